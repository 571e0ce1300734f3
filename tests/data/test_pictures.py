import os
import random
import struct
import tracemalloc
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small import pictures
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import is_image_file
from torchvision.transforms import functional

from data.pictures import class_folders, find_files, from_picture, mean_and_std
from utils.errors import BadInput

ORIENTATION = 0x0112  # of EXIF
RAMP = np.tile(np.arange(32) * 2114, (32, 1))  # 16 bits, from 0 to 65534 across


def colours(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def read_picture(path: Path) -> np.ndarray:
    return from_picture(path, path)


def find_pictures(folder: Path) -> list[Path]:
    return [path for path in find_files(folder) if is_image_file(path.name)]


def saved(path: Path, picture: Image.Image, **options) -> Path:
    picture.save(path, **options)
    return path


@pytest.mark.parametrize("side", [20, 32, 75])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "1", "P", "CMYK"])
def test_a_square_picture_is_converted_to_rgb_and_resized(tmp_path, mode, side):
    picture = colours(side, side).convert(mode)
    if "A" in mode:
        picture.putalpha(Image.linear_gradient("L").resize((side, side)))
    path = saved(tmp_path / ("0.tif" if mode == "CMYK" else "0.png"), picture)
    on_white = Image.new("RGB", (side, side), "white")
    on_white.paste(picture, mask=picture.getchannel("A") if "A" in mode else None)
    expected = np.asarray(on_white.resize((32, 32))).transpose(2, 0, 1)
    read = read_picture(path)
    assert read.dtype == np.uint8 and read.shape == (3, 32, 32) and read.flags.c_contiguous
    assert np.array_equal(read, expected)


LEFT = np.arange(32) < np.full((32, 1), 16)
CLEAR = {  # black pictures whose left half, of another value or not, is transparent
    "RGBA": (Image.fromarray(np.where(LEFT[..., None], 0, (0, 0, 0, 255)).astype(np.uint8)), {}),
    "LA": (Image.fromarray(np.where(LEFT[..., None], 0, (0, 255)).astype(np.uint8), "LA"), {}),
    "RGB": (Image.fromarray(np.where(LEFT[..., None], (0, 0, 7), 0).astype(np.uint8)), {"transparency": (0, 0, 7)}),
    "L": (Image.fromarray(np.where(LEFT, 7, 0).astype(np.uint8)), {"transparency": 7}),
    "1": (Image.fromarray(~LEFT), {"transparency": 0}),  # the right half is white
    "I;16": (Image.fromarray(np.where(LEFT, 513, 0).astype(np.uint16)), {"transparency": 513}),
    "P": (Image.fromarray(LEFT.astype(np.uint8), "P"), {"transparency": 1}),
    "P, each colour": (Image.fromarray(LEFT.astype(np.uint8), "P"), {"transparency": bytes([255, 0])}),
}
for name in ("P", "P, each colour"):
    CLEAR[name][0].putpalette(bytes(6))


@pytest.mark.parametrize("kind", [*CLEAR, "PA"])
def test_what_is_transparent_is_white(tmp_path, kind):
    picture, options = CLEAR["P" if kind == "PA" else kind]
    if kind == "PA":  # in no file
        source = picture.copy()
        source.putalpha(Image.fromarray(np.where(LEFT, 0, 255).astype(np.uint8)))
        assert source.mode == "PA"
    else:
        source = saved(tmp_path / "0.png", picture, **options)
    right = 255 if kind == "1" else 0
    assert np.array_equal(from_picture(source, "0.png"), np.stack([np.where(LEFT, 255, right)] * 3))


@pytest.mark.parametrize("size", [(32, 64), (64, 128), (100, 45), (33, 500)])
def test_the_centre_of_an_oblong_picture_is_kept_in_proportion(tmp_path, size):
    picture = colours(*size)
    expected = functional.center_crop(functional.resize(picture, 32, functional.InterpolationMode.BICUBIC), 32)
    assert np.array_equal(read_picture(saved(tmp_path / "0.png", picture)), np.asarray(expected).transpose(2, 0, 1))
    if size == (32, 64):
        middle = np.asarray(picture)[16:48].transpose(2, 0, 1)
        assert np.array_equal(read_picture(tmp_path / "0.png"), middle)


def test_an_extremely_long_picture_takes_no_more_memory_than_its_middle(tmp_path, monkeypatch):
    sizes, resize = [], functional.resize
    monkeypatch.setattr(functional, "resize", lambda picture, *how: sizes.append(picture.size) or resize(picture, *how))
    for size in ((50_000, 2), (2, 50_000)):
        Image.new("RGB", size, (10, 20, 30)).save(tmp_path / "long.png")
        assert (read_picture(tmp_path / "long.png").reshape(3, -1) == np.array([[10], [20], [30]])).all()
    assert sizes == [(200, 2), (2, 200)]


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [(1, lambda a: a), (2, np.fliplr), (3, lambda a: np.rot90(a, 2)), (6, lambda a: np.rot90(a, -1)), (8, np.rot90)],
)
def test_exif_orientation_is_applied(tmp_path, orientation, upright):
    picture, exif = colours(32, 32), Image.Exif()
    exif[ORIENTATION] = orientation
    read = read_picture(saved(tmp_path / "0.png", picture, exif=exif))
    assert np.array_equal(read, upright(np.asarray(picture)).transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("0.png", "<u2"), ("0.png", ">u2"), ("0.tif", "<u2"), ("0.tif", ">u2"), ("0.pgm", "<u2")],
)
def test_16_bit_grey_is_scaled_to_8_bits(tmp_path, name, dtype):
    exif = Image.Exif()
    exif[ORIENTATION] = 3
    read = read_picture(saved(tmp_path / name, Image.fromarray(RAMP.astype(dtype)), exif=exif))
    turned = RAMP if name == "0.pgm" else RAMP[:, ::-1]  # a PGM has no EXIF data
    assert np.array_equal(read, np.stack([np.rint(turned / 257)] * 3))


@pytest.mark.parametrize(
    ("pixels", "fault"),
    [((RAMP / 65535).astype(np.float32), "floating-point pixels,"), (RAMP.astype(np.int32), "integer pixels")],
)
def test_pixels_of_unknown_range_are_refused(tmp_path, pixels, fault):
    picture = Image.fromarray(pixels)
    for source in (saved(tmp_path / "0.tif", picture), picture):
        with pytest.raises(BadInput, match=rf"0\.tif: has {fault} of unknown range.*; save it with 8 or 16 bits"):
            from_picture(source, "0.tif")


def tag(number, value):
    return struct.pack("<HHIHH", number, 3, 1, value, 0)


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        (b"", b"", "has integer pixels of unknown range"),  # signed: its black is -32768
        (tag(262, 1), tag(262, 0), r"has 0 for white and 16 bits or more; save it with 0 for black"),
        (tag(258, 16), tag(258, 12), "has integer pixels of unknown range"),  # white would be 4095 of 65535
    ],
)
def test_16_bits_that_pillow_gives_as_they_are_are_refused(tmp_path, old, new, fault):
    """It inverts 8 bits where 0 is white, and scales 12 bits of a PNG, but not those of a TIFF."""
    options = {} if old else {"tiffinfo": {339: 2}}
    path = saved(tmp_path / "0.tif", Image.fromarray((RAMP >> 4).astype("<u2")), **options)
    if old:
        assert path.read_bytes().count(old) == 1
        path.write_bytes(path.read_bytes().replace(old, new))
    with pytest.raises(BadInput, match=rf"0\.tif: {fault}"):
        read_picture(path)


@pytest.mark.parametrize("limit", [1023, 600, 500])  # up to twice the limit Pillow only warns
def test_a_picture_beyond_pillows_limit_is_refused(tmp_path, monkeypatch, limit):
    path = saved(tmp_path / "0.png", colours(32, 32))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(BadInput, match=rf"0\.png: has more than {limit:,} pixels, Pillow's limit; make it smaller"):
        read_picture(path)


@pytest.mark.parametrize(
    ("cause", "damage"),
    [
        ("UnidentifiedImageError", lambda path: path.write_bytes(b"no picture")),
        ("OSError", lambda path: path.write_bytes(path.read_bytes()[:-1000])),
        ("ValueError", lambda path: path.write_bytes(b"P3\n1 1\n255\n1 2 256\n")),
    ],
)
def test_a_damaged_picture_is_one_line(tmp_path, cause, damage):
    path = saved(tmp_path / "0.png", colours(32, 32))
    damage(path)
    with pytest.raises(BadInput) as refusal:
        read_picture(path)
    line = str(refusal.value)
    assert line.startswith(f"{path}: cannot be read as a picture (") and line.endswith("); replace or remove it")
    assert "\n" not in line and type(refusal.value.__cause__).__name__ == cause


def test_what_is_no_file_or_has_no_pixels_is_said_so(tmp_path):
    for path, line in ((tmp_path / "0.png", "no such file"), (tmp_path, "is a folder; name the pictures in it")):
        with pytest.raises(BadInput, match=f"^{path}: {line}$"):
            read_picture(path)
    with pytest.raises(BadInput, match="a crop: cannot be read as a picture"):
        from_picture(Image.new("RGB", (4, 4)).crop((0, 0, 0, 4)), "a crop")


def test_no_damage_raises_anything_else(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)  # a damaged size shall not fill the memory
    source, exif = random.Random(0), Image.Exif()
    exif[ORIENTATION] = 6
    for name in ("0.png", "0.jpg", "0.bmp", "0.ppm", "0.webp"):
        whole = saved(tmp_path / name, colours(12, 10), exif=exif).read_bytes()
        for _ in range(40):
            content = bytearray(whole)
            content[source.randrange(min(len(whole), 150))] = source.randrange(256)
            (tmp_path / name).write_bytes(content)
            try:
                assert read_picture(tmp_path / name).shape == (3, 32, 32)
            except BadInput as refusal:
                assert str(tmp_path / name) in str(refusal)


def tree(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_pictures_are_found_in_the_order_of_image_folder(tmp_path):
    tree(tmp_path, "b/2.png", "b/10.JPG", "b/note.txt", "b/in/1.webp", "b/in/more/1.Tiff", "b/in-2/1.pgm")
    tree(tmp_path, "a/z.bmp", "a/é.jpeg", "a/A.ppm", "c d/x.tif", "elsewhere.png")
    tree(tmp_path / "pool", "1.png", "deep/2.png")
    (tmp_path / "a/link").symlink_to(tmp_path / "pool")
    (tmp_path / "e").symlink_to(tmp_path / "b")
    expected = ImageFolder(tmp_path)
    assert class_folders(tmp_path) == expected.classes == ["a", "b", "c d", "e", "pool"]
    found = [(str(path), i) for i, name in enumerate(expected.classes) for path in find_pictures(tmp_path / name)]
    assert found == expected.samples


def test_links_in_a_circle_multiply_nothing(tmp_path):
    tree(tmp_path, "train/cat/0.png", "train/cat/inner/1.png", "train/dog/2.png", "pool/3.png")
    cat = tmp_path / "train/cat"
    (cat / "again").symlink_to(cat)
    assert len(find_pictures(cat)) == 2
    for name in ("inner/again", "inner/twice"):  # three links of a circle would make 3^40 paths
        (cat / name).symlink_to(cat)
    (cat / "up").symlink_to(tmp_path / "train")  # dogs are no cats
    (cat / "pool").symlink_to(tmp_path / "pool")
    (cat / "same pool").symlink_to(tmp_path / "pool")
    assert [str(path.relative_to(cat)) for path in find_pictures(cat)] == ["0.png", "inner/1.png", "pool/3.png"]


def test_a_directory_that_cannot_be_read_is_one_line(tmp_path, monkeypatch):
    tree(tmp_path, "cat/0.png", "cat/closed/1.png")
    list_directory = os.scandir

    def refuse(path):  # root may read everything
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return list_directory(path)

    monkeypatch.setattr(os, "scandir", refuse)
    for find, folder in ((find_pictures, tmp_path / "cat"), (class_folders, tmp_path / "cat/closed")):
        with pytest.raises(BadInput, match=r"cat/closed: cannot be read \(Permission denied\); make it readable"):
            find(folder)


def test_mean_and_std_are_numpys_without_a_copy_of_the_images():
    images = np.concatenate([pictures(1500), np.zeros((1700, 3, 32, 32), np.uint8)])
    images[:, 1] //= 3
    tracemalloc.start()
    found = mean_and_std(images)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    pixels = images.astype(np.float64) / 255
    assert np.abs(np.array(found) - [pixels.mean((0, 2, 3)), pixels.std((0, 2, 3))]).max() < 1e-12
    assert peak < images.nbytes


def test_threads_leave_the_filters_for_warnings_as_they_were():
    before, picture = list(warnings.filters), Image.new("RGB", (64, 64))
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: from_picture(picture, "a picture"), range(400)))
    assert warnings.filters == before
