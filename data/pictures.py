"""Pictures of any size and format as square uint8 arrays: finding the files, reading them, their statistics."""

import io
import math
import os
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import numpy as np
from PIL import Image
from torchvision.transforms import functional

from data.metadata import without_metadata
from data.views import CIFAR_SIZE, Views
from utils import files
from utils.errors import BadInput

# What Pillow raises: for damaged pixels OSError, SyntaxError or ValueError, for damaged metadata almost anything.
UNREADABLE = (*files.UNREADABLE, SyntaxError, zlib.error, ZeroDivisionError)
MOST_ELONGATED = 100  # longer side by shorter side, before resizing
SAVE_ANEW = "save it with 8 or 16 bits per channel"
BITS_PER_SAMPLE, PHOTOMETRIC = 258, 262  # tags of a TIFF; if the second is 0, 0 is white
ORIENTATION = 274  # a tag of EXIF, and what turns a picture of each value upright
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip


def class_folders(directory: Path) -> list[str]:
    """Names of the folders (and links to folders) in `directory`, sorted. Raises BadInput if it cannot be read."""
    return sorted(next(os.walk(directory, onerror=_refuse))[1])


FOREIGN = ("__MACOSX", "$RECYCLE.BIN", "System Volume Information", "lost+found", "__pycache__")


def is_foreign(folder: str) -> bool:
    """Whether a folder of this name belongs to another program: .ipynb_checkpoints, @eaDir, __MACOSX."""
    return folder.startswith((".", "@")) or folder in FOREIGN


def find_files(folder: Path) -> list[Path]:
    """Every file below `folder`, in the order of torchvision's ImageFolder; no hidden ones, nothing in foreign folders.

    Pipes, sockets and devices are no files: to open one may wait for ever. Links are followed. Each directory is read
    only once, and those that contain `folder` are not read at all, so a loop of links adds nothing. Raises BadInput
    for a directory that cannot be read.
    """
    entered = {str(parent) for parent in Path(os.path.realpath(folder)).parents}
    found = []
    for directory, inner, names in os.walk(folder, followlinks=True, onerror=_refuse):
        real_path = os.path.realpath(directory)
        if real_path in entered:
            inner.clear()
            continue
        entered.add(real_path)
        inner[:] = sorted(name for name in inner if not is_foreign(name))
        found += [(directory, name) for name in names if not name.startswith(".")]
    paths = [Path(directory, name) for directory, name in sorted(found)]
    return [path for path in paths if path.is_file() or not path.exists()]  # a broken link is refused when it is read


def _refuse(error: OSError) -> NoReturn:
    raise BadInput(f"{error.filename}: cannot be read ({error.strerror}); make it readable or remove it") from error


one_at_a_time = threading.Lock()  # filters for warnings are shared by all threads


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings about metadata, which would not name the file. Pictures are decoded in it, by one or more threads."""
    with one_at_a_time, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def from_picture(source: Path | Image.Image, name: object, image_size: int = CIFAR_SIZE, side: int = 0) -> np.ndarray:
    """A picture, from its file or from Pillow, as (3, side, side) uint8, RGB. name: for messages.

    image_size: of the network's images. side: how much of the middle is taken; 0: as much as `image_size`.
    It is turned upright as its EXIF data say, where they can be read. 16-bit grey is scaled to 8 bits; what is
    transparent lies on white; everything else is converted to RGB by Pillow. Raises BadInput for a file that is damaged
    or not a picture, for one with more pixels than Pillow allows, and for pixels whose range is unknown (floating
    point, 12 or 32 bits).
    """
    with quiet():
        return square(upright(source, name), image_size, side or image_size)


def square(picture: Image.Image, image_size: int, side: int) -> np.ndarray:
    """The middle of an RGB picture as (3, side, side) uint8.

    The shorter side is resized (bicubic, Pillow's default) to what the views of an image need (data/views.py: 32 for
    32, 256 for 224), and the centre is cropped, as is usual on ImageNet.
    """
    longest = MOST_ELONGATED * min(picture.size)  # the rest is cropped anyway and would only take memory
    middle = functional.center_crop(picture, [min(length, longest) for length in picture.size[::-1]])
    resized = functional.resize(middle, Views(image_size).stored, functional.InterpolationMode.BICUBIC)
    return np.ascontiguousarray(np.asarray(functional.center_crop(resized, side)).transpose(2, 0, 1))


def upright(source: Path | Image.Image, name: object) -> Image.Image:
    """The picture in RGB, turned upright. Raises BadInput as `from_picture` does."""
    try:
        return _opened(source, name)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        limit = f"{Image.MAX_IMAGE_PIXELS:,} pixels"
        raise BadInput(f"{name}: has more than {limit}, Pillow's limit; make it smaller or remove it") from None
    except FileNotFoundError:
        is_broken = isinstance(source, Path) and source.is_symlink()
        raise BadInput(f"{name}: {'is a broken link; remove it' if is_broken else 'no such file'}") from None
    except IsADirectoryError:
        raise BadInput(f"{name}: is a folder; name the pictures in it") from None
    except UNREADABLE as error:
        reason = " ".join((getattr(error, "strerror", None) or str(error) or type(error).__name__).split())
        raise BadInput(f"{name}: cannot be read as a picture ({reason}); replace or remove it") from error


def _opened(source: Path | Image.Image, name: object) -> Image.Image:
    """Where Pillow stumbles over a file's metadata, it is read without them."""
    if isinstance(source, Image.Image):
        return _decoded(source, name)
    try:
        with Image.open(source) as picture:
            return _decoded(picture, name)
    except (FileNotFoundError, IsADirectoryError):
        raise
    except UNREADABLE as error:
        parts = without_metadata(Path(source).read_bytes())
        if parts is None:
            raise
        pixels, exif = parts
        try:
            with Image.open(io.BytesIO(pixels)) as picture:
                picture.info["exif"] = exif
                return _decoded(picture, name)
        except UNREADABLE:
            raise error from None


def _decoded(picture: Image.Image, name: object) -> Image.Image:
    if 0 in picture.size:
        raise ValueError("no pixels")
    _require_known_range(picture, name)
    picture.load()
    try:
        turn = TURNS.get(picture.getexif().get(ORIENTATION))
    except UNREADABLE:  # as stored
        turn = None
    return _rgb(picture if turn is None else picture.transpose(turn))


def _require_known_range(picture: Image.Image, name: object) -> None:
    """Raise BadInput unless 0 is black and the largest value of 8 or 16 bits is white.

    Pillow gives 32-bit integers, and in a TIFF 12-bit, signed and inverted ones, as they are; it scales the integers of
    PNG and PPM to 16 bits.
    """
    if picture.mode == "F":
        raise BadInput(f"{name}: has floating-point pixels, of unknown range; {SAVE_ANEW}")
    if picture.mode.startswith("I"):
        fills_16_bits = picture.mode.startswith("I;16") or picture.format in ("PNG", "PPM")
        if picture.format == "TIFF":
            if picture.tag_v2.get(PHOTOMETRIC, 0) == 0:  # as Pillow takes a missing one
                raise BadInput(f"{name}: has 0 for white and 16 bits or more; save it with 0 for black")
            fills_16_bits &= tuple(picture.tag_v2.get(BITS_PER_SAMPLE, ())) == (16,)
        if not fills_16_bits:
            raise BadInput(f"{name}: has integer pixels of unknown range (not of 8 or 16 bits); {SAVE_ANEW}")


def _rgb(picture: Image.Image) -> Image.Image:
    """In RGB, on white where it is transparent."""
    if picture.mode.startswith("I"):  # 16 bits; 65535 = 255 * 257
        pixels = np.asarray(picture).astype(np.int32)
        grey = (pixels + 128) // 257
        grey[pixels == picture.info.get("transparency", -1)] = 255
        picture = Image.fromarray(grey.astype(np.uint8))
    if picture.has_transparency_data:
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture.convert("RGBA"))
    return picture.convert("RGB")


def mean_and_std(images: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel of (N, 3, H, W) uint8 images, in units of full scale (255).

    Counts how often each of the 256 values occurs, a thousand images at a time, without a copy of all images.
    """
    counts = np.zeros((3, 256), np.int64)
    for start in range(0, len(images), 1000):
        for channel, pixels in enumerate(images[start : start + 1000].transpose(1, 0, 2, 3)):
            counts[channel] += np.bincount(pixels.reshape(-1), minlength=256)
    means, deviations = [], []
    for of_value in counts.tolist():  # in integers, so that every machine gets the same result
        n, total, squares = (sum(c * v**power for v, c in enumerate(of_value)) for power in (0, 1, 2))
        means.append(total / (255 * n))
        deviations.append(math.sqrt(n * squares - total**2) / (255 * n))
    return means, deviations
