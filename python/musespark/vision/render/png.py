"""PNG files from arrays: pages need no imaging library. Source: W3C, PNG (Third Edition)."""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np
from numpy.typing import NDArray

_UP = 2  # each byte minus the one above it


def encode(pixels: NDArray[np.uint8]) -> bytes:
    """A PNG file of uint8 [height, width, 3 or 4]: RGB or RGBA."""
    height, width, channels = pixels.shape
    lines = np.ascontiguousarray(pixels).reshape(height, width * channels)
    filtered = np.empty((height, width * channels + 1), np.uint8)
    filtered[:, 0] = _UP
    filtered[0, 1:] = lines[0]
    np.subtract(lines[1:], lines[:-1], out=filtered[1:, 1:])
    color = {3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 8, color, 0, 0, 0)
    data = zlib.compress(filtered.tobytes(), 6)
    parts = (_chunk(b"IHDR", header), _chunk(b"IDAT", data), _chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def data_url(pixels: NDArray[np.uint8]) -> str:
    """The PNG as a URL that holds it."""
    return "data:image/png;base64," + base64.b64encode(encode(pixels)).decode("ascii")


def reduced(pixels: NDArray[np.uint8], longest: int) -> NDArray[np.uint8]:
    """The pixels, or means of square blocks of them so that no side is longer than ``longest``."""
    height, width = pixels.shape[:2]
    block = -(-max(height, width) // longest)
    if block == 1:
        return pixels
    rows, columns = np.arange(0, height, block), np.arange(0, width, block)
    sums = np.add.reduceat(
        np.add.reduceat(pixels, rows, axis=0, dtype=np.uint32), columns, axis=1, dtype=np.uint32
    )
    area = np.outer(np.diff([*rows, height]), np.diff([*columns, width]))[:, :, None]
    return ((sums + area // 2) // area).astype(np.uint8)
