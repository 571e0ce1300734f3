import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from small import pictures

from data.pictures import from_picture
from utils.errors import BadInput

ORIENTATION, RESOLUTION = 0x0112, 0x011A
STORED = pictures(1)[0].transpose(1, 2, 0)
UPRIGHT = np.rot90(STORED, 2)


def file(path, form, **options):
    """The picture with EXIF data that turn it by 180 degrees."""
    exif = Image.Exif()
    exif[ORIENTATION] = 3
    Image.fromarray(STORED).save(path, form, **{"exif": exif, "quality": 100, **options})
    return path.read_bytes()


def chunk(name, data, checksum=None):
    content = name + data
    return len(data).to_bytes(4, "big") + content + (checksum or zlib.crc32(content).to_bytes(4, "big"))


def segment(marker, data):
    return bytes([0xFF, marker]) + (len(data) + 2).to_bytes(2, "big") + data


TEXT = b"key\0\0" + zlib.compress(bytes(1_500_000))
PNG = {
    "a long text": chunk(b"zTXt", TEXT),
    "a long text in Unicode": chunk(b"iTXt", b"key\0\1\0\0\0" + TEXT[5:]),
    "a long profile": chunk(b"iCCP", TEXT),
    "an unknown compression": chunk(b"iCCP", b"name\0\7"),
    "an empty profile": chunk(b"iCCP", b""),
    "a wrong checksum": chunk(b"tEXt", b"key\0text", b"none"),
    "short chromaticities": chunk(b"cHRM", b"short"),
    "many texts": chunk(b"zTXt", b"key\0\0" + zlib.compress(b"text" * 200_000)) * 90,
}


@pytest.mark.parametrize("fault", PNG)
@pytest.mark.parametrize("place", ["in front of the pixels", "behind them"])
def test_no_chunk_of_a_png_hides_its_pixels(tmp_path, fault, place):
    path, before = tmp_path / "0.png", b"IDAT" if place.startswith("in") else b"IEND"
    start = (content := file(path, "PNG")).index(before) - 4
    path.write_bytes(content[:start] + PNG[fault] + content[start:])
    assert np.array_equal(from_picture(path, path), UPRIGHT.transpose(2, 0, 1))
    path.write_bytes(path.read_bytes()[:-200].replace(b"IDAT", b"IDAT"[::-1]))
    with pytest.raises(BadInput, match=r"0\.png: cannot be read as a picture"):
        from_picture(path, path)


def test_transparency_counts_as_pixels(tmp_path):
    path = tmp_path / "0.png"
    Image.fromarray(STORED[..., 0]).save(path, transparency=int(STORED[0, 0, 0]))
    expected, content = from_picture(path, path), path.read_bytes()
    start = content.index(b"IDAT") - 4
    path.write_bytes(content[:start] + PNG["a long text"] + content[start:])
    assert np.array_equal(from_picture(path, path), expected)


@pytest.mark.parametrize(
    "added",
    [
        segment(0xE2, b"ICC_PROFILE\0"),
        segment(0xED, b"Photoshop 3.0\0008BIM\4\4"),
        b"\xff" + segment(0xE2, b"ICC_PROFILE\0"),
    ],
)
def test_no_segment_of_a_jpeg_hides_its_pixels(tmp_path, added):
    path = tmp_path / "0.jpg"
    content = file(path, "JPEG")
    expected = from_picture(path, path)
    path.write_bytes(content[:2] + added + content[2:])
    assert np.array_equal(from_picture(path, path), expected)
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(BadInput, match=r"0\.jpg: cannot be read as a picture"):
        from_picture(path, path)


def with_rational(kind, number):
    """EXIF data with an orientation and a resolution of number / 2; Pillow cannot write a negative one again."""
    entries = struct.pack("<HHIHHHHII", ORIENTATION, 3, 1, 3, 0, RESOLUTION, kind, 1, 38)
    return b"Exif\0\0II*\0" + struct.pack("<IH24sIiI", 8, 2, entries, 0, number, 2)


@pytest.mark.parametrize("form", ["png", "jpeg", "webp"])
@pytest.mark.parametrize(
    ("exif", "upright"),
    [
        (with_rational(5, 144), True),
        (with_rational(10, -1), True),
        (b"Exif\0\0no header of a TIFF", False),
        (b"Exif\0\0II*\0\1", False),
        (b"Exif\0\0", False),
    ],
)
def test_exif_data_turn_a_picture_or_leave_it_as_stored(tmp_path, form, exif, upright):
    path = tmp_path / f"0.{form}"
    file(path, form, exif=exif, lossless=True)
    plain = io.BytesIO()
    Image.fromarray(STORED).save(plain, form, quality=100, lossless=True)
    expected = np.asarray(Image.open(plain))
    assert np.array_equal(from_picture(path, path), (np.rot90(expected, 2) if upright else expected).transpose(2, 0, 1))
