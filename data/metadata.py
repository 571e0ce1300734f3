"""PNG and JPEG files without their metadata: text, profiles, EXIF and others' data, whose damage harms no pixel."""

PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
EXIF = b"Exif\0\0"
COMMENT, START_OF_SCAN = 0xFE, 0xDA  # markers of JPEG
METADATA = {COMMENT, *range(0xE1, 0xF0)} - {0xEE}  # APP0 and APP14 tell the colours


def without_metadata(content: bytes) -> tuple[bytes, bytes] | None:
    """A file's content with its pixels alone, and its EXIF data (empty if it has none); None for other formats.

    What is no part of a sound file is left as it is.
    """
    if content.startswith(PNG):
        return _png(content)
    return _jpeg(content) if content.startswith(JPEG) else None


def _png(content: bytes) -> tuple[bytes, bytes]:
    """Critical chunks, whose names begin with a capital, and tRNS, the transparency."""
    kept, exif, start = [PNG], b"", len(PNG)
    while start < len(content):
        name = content[start + 4 : start + 8]
        end = start + 12 + int.from_bytes(content[start : start + 4], "big")  # length, name, data, checksum
        if name[:1].isupper() or name == b"tRNS":
            kept.append(content[start:end])
        elif name == b"eXIf":
            exif = EXIF + content[start + 8 : end - 4]
        start = end
    return b"".join(kept), exif


def _jpeg(content: bytes) -> tuple[bytes, bytes]:
    kept, exif, start = [JPEG], b"", len(JPEG)
    while content[start : start + 1] == b"\xff" and start + 4 <= len(content):
        marker = content[start + 1]
        if marker == START_OF_SCAN:
            break
        end = start + 2 + int.from_bytes(content[start + 2 : start + 4], "big")
        if marker == 0xFF:  # may stand before a marker
            end = start + 1
        elif marker not in METADATA:
            kept.append(content[start:end])
        elif content.startswith(EXIF, start + 4):
            exif = content[start + 4 : end]
        start = end
    return b"".join([*kept, content[start:]]), exif
