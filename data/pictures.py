"""Pictures of any size and format as square uint8 arrays: finding the files, reading them, their statistics."""

import math
import os
import threading
import warnings
import zlib
from contextlib import nullcontext
from pathlib import Path
from typing import NoReturn

import numpy as np
from PIL import Image, ImageOps
from torchvision.transforms import functional

from data.views import CIFAR_SIZE, Views
from utils import files
from utils.errors import BadInput

# What Pillow raises: for damaged pixels OSError, SyntaxError or ValueError, for damaged EXIF data almost anything.
UNREADABLE = (*files.UNREADABLE, SyntaxError, zlib.error, ZeroDivisionError)
MOST_ELONGATED = 100  # longer side by shorter side, before resizing
SAVE_ANEW = "save it with 8 or 16 bits per channel"
BITS_PER_SAMPLE, PHOTOMETRIC = 258, 262  # tags of a TIFF; if the second is 0, 0 is white


def class_folders(directory: Path) -> list[str]:
    """Names of the folders (and links to folders) in `directory`, sorted. Raises BadInput if it cannot be read."""
    return sorted(next(os.walk(directory, onerror=_refuse))[1])


def find_files(folder: Path) -> list[Path]:
    """Every file below `folder`, in the order of torchvision's ImageFolder, without macOS's companions ("._name").

    Links are followed. Each directory is read only once, and those that contain `folder` are not read at all, so a
    loop of links adds nothing. Raises BadInput for a directory that cannot be read.
    """
    entered = {str(parent) for parent in Path(os.path.realpath(folder)).parents}
    found = []
    for directory, inner, names in os.walk(folder, followlinks=True, onerror=_refuse):
        real_path = os.path.realpath(directory)
        if real_path in entered:
            inner.clear()
            continue
        entered.add(real_path)
        inner.sort()
        found += [(directory, name) for name in names if not name.startswith("._")]
    return [Path(directory, name) for directory, name in sorted(found)]


def _refuse(error: OSError) -> NoReturn:
    raise BadInput(f"{error.filename}: cannot be read ({error.strerror}); make it readable or remove it") from error


one_at_a_time = threading.Lock()  # filters for warnings are shared by all threads


def from_picture(source: Path | Image.Image, name: object, image_size: int = CIFAR_SIZE, side: int = 0) -> np.ndarray:
    """A picture, from its file or from Pillow, as (3, side, side) uint8, RGB. name: for messages.

    image_size: of the network's images. side: how much of the middle is taken; 0: as much as `image_size`.
    It is turned upright as its EXIF data say. 16-bit grey is scaled to 8 bits; everything else is converted to RGB by
    Pillow, which drops transparency. The shorter side is resized (bicubic, Pillow's default) to what the views of an
    image need (data/views.py: 32 for 32, 256 for 224), and the centre is cropped, as is usual on ImageNet. Raises
    BadInput for a file that is damaged or not a picture, for one with more pixels than Pillow allows, and for pixels
    whose range is unknown (floating point, 12 or 32 bits).
    """
    with one_at_a_time, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about metadata, without the file's name
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with nullcontext(source) if isinstance(source, Image.Image) else Image.open(source) as picture:
                if 0 in picture.size:
                    raise ValueError("no pixels")
                _require_known_range(picture, name)
                upright = _rgb(ImageOps.exif_transpose(picture))
        except (Image.DecompressionBombWarning, Image.DecompressionBombError):
            limit = f"{Image.MAX_IMAGE_PIXELS:,} pixels"
            raise BadInput(f"{name}: has more than {limit}, Pillow's limit; make it smaller or remove it") from None
        except FileNotFoundError:
            raise BadInput(f"{name}: no such file") from None
        except IsADirectoryError:
            raise BadInput(f"{name}: is a folder; name the pictures in it") from None
        except UNREADABLE as error:
            reason = " ".join((getattr(error, "strerror", None) or str(error) or type(error).__name__).split())
            raise BadInput(f"{name}: cannot be read as a picture ({reason}); replace or remove it") from error
    longest = MOST_ELONGATED * min(upright.size)  # the rest is cropped anyway and would only take memory
    middle = functional.center_crop(upright, [min(length, longest) for length in upright.size[::-1]])
    resized = functional.resize(middle, Views(image_size).stored, functional.InterpolationMode.BICUBIC)
    return np.ascontiguousarray(np.asarray(functional.center_crop(resized, side or image_size)).transpose(2, 0, 1))


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
    if picture.mode.startswith("I"):  # 16 bits; 65535 = 255 * 257
        picture = Image.fromarray(((np.asarray(picture).astype(np.int32) + 128) // 257).astype(np.uint8))
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
