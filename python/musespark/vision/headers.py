"""Format and size of an image file from its first bytes, before anything is decoded.

Sources: PNG (W3C, 11.2.1 IHDR), JPEG (ITU T.81, B.2.2 frame header), WebP (RFC 9649, 2.5 to 2.7),
GIF89a (18, logical screen descriptor), BMP (BITMAPFILEHEADER, BITMAPCOREHEADER, BITMAPINFOHEADER).
"""

from __future__ import annotations

import struct

from musespark.errors import CorruptFile

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")

# JPEG markers that begin a frame: SOF0 to SOF15 without DHT, JPG and DAC.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# Markers that stand alone, without a length: TEM, RST0 to RST7, SOI.
_ALONE = frozenset({0x01, *range(0xD0, 0xD9)})


def sniff(data: bytes, where: str) -> str:
    """The format, one of FORMATS; CorruptFile for anything else."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if data.startswith(b"BM"):
        return "BMP"
    raise CorruptFile(f"{where}: not a PNG, JPEG, WebP, GIF or BMP image: begins {data[:8]!r}")


def size_of(data: bytes, format: str, where: str) -> tuple[int, int]:
    """(height, width) as the header says; CorruptFile if it breaks off or is none."""
    try:
        height, width = _READERS[format](data)
    except (struct.error, IndexError):
        raise CorruptFile(f"{where}: the {format} header breaks off") from None
    except ValueError as error:
        raise CorruptFile(f"{where}: {format} header: {error}") from None
    if height < 1 or width < 1:
        raise CorruptFile(f"{where}: {format} header: {width} x {height} pixels")
    return height, width


def _png(data: bytes) -> tuple[int, int]:
    kind, width, height = struct.unpack_from(">4sII", data, 12)
    if kind != b"IHDR":
        raise ValueError(f"the first chunk is {kind!r}, not IHDR")
    return height, width


def _jpeg(data: bytes) -> tuple[int, int]:
    at = 2
    while True:
        if data[at] != 0xFF:
            raise ValueError(f"no marker at byte {at}")
        marker = data[at + 1]
        if marker == 0xFF:  # padding
            at += 1
        elif marker in _ALONE:
            at += 2
        elif marker in _FRAMES:
            height, width = struct.unpack_from(">HH", data, at + 5)
            return height, width
        elif marker in (0xD9, 0xDA):
            raise ValueError("no frame before the scan")
        else:
            (length,) = struct.unpack_from(">H", data, at + 2)
            if length < 2:
                raise ValueError(f"a segment of {length} bytes")
            at += 2 + length


def _webp(data: bytes) -> tuple[int, int]:
    kind = data[12:16]
    if kind == b"VP8 ":
        code, width, height = struct.unpack_from("<3sHH", data, 23)
        if code != b"\x9d\x01\x2a":
            raise ValueError("no start code of a key frame")
        return height & 0x3FFF, width & 0x3FFF
    if kind == b"VP8L":
        signature, bits = struct.unpack_from("<BI", data, 20)
        if signature != 0x2F:
            raise ValueError("no signature of a lossless image")
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    if kind == b"VP8X":
        low = struct.unpack_from("<HBHB", data, 24)
        return (low[2] | low[3] << 16) + 1, (low[0] | low[1] << 16) + 1
    raise ValueError(f"the first chunk is {kind!r}")


def _gif(data: bytes) -> tuple[int, int]:
    width, height = struct.unpack_from("<HH", data, 6)
    return height, width


def _bmp(data: bytes) -> tuple[int, int]:
    (header,) = struct.unpack_from("<I", data, 14)
    if header == 12:
        width, height = struct.unpack_from("<HH", data, 18)
    else:
        width, height = struct.unpack_from("<ii", data, 18)
    return abs(height), width  # rows from the top have a negative height


_READERS = {"PNG": _png, "JPEG": _jpeg, "WEBP": _webp, "GIF": _gif, "BMP": _bmp}
