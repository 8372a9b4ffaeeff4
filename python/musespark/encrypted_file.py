"""A file under a passphrase: 64 KiB at a time, so that any part can be read without the others.

    96 bytes    _HEAD: magic, version, log2 N, r and p of scrypt, bytes of a chunk, 0, salt (16),
                nonce prefix (7, a zero), bytes of the plain file (uint64), key check (16), checksum
                (uint64), zeros
    chunks      AES-256-GCM: as many bytes as the plain chunk, and a tag of 16

scrypt(passphrase as UTF-8 in NFC, salt) gives 64 bytes: the key, and 32 whose BLAKE2b is the key
check, which tells a wrong passphrase from a damaged file and binds the file to one key. The nonce
of a chunk is prefix (7) || number (uint32, big endian) || 1 for the last one, else 0 (the STREAM
construction of Hoang, Reyhanitabar, Rogaway and Vizár), and the head is authenticated with each: a
chunk that is changed, moved, cut off or of another file is found. The checksum (XXH64) of the head
finds damage where nothing is authenticated yet. What a file says of scrypt is held to limits before
it is computed: at most 1 GiB and log2 N of 20. Little endian but for the number.

Needs ``cryptography``: ``pip install "musespark[encrypt]"``.
"""

from __future__ import annotations

import hashlib
import importlib
import secrets
import struct
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np

from musespark.errors import CorruptFile, InvalidRequest, MissingLibrary, WrongPassphrase
from musespark.weights.files import AsideFile, MappedFile
from musespark.weights.packed import checksum_of

MAGIC, VERSION = b"MUSECRYP", 1
CHUNK, TAG = 1 << 16, 16
_HEAD = struct.Struct("<8sIIIIII16s8sQ16sQ8x")
_SUM_AT = 80
_LOG_N, _R, _P = 17, 8, 1  # 128 MiB, about 0.4 s
_MOST_LOG_N, _MOST_R, _MOST_P, _MOST_BYTES = 20, 32, 16, 1 << 30
_MOST_CHUNKS = 1 << 32


def is_encrypted(file: MappedFile) -> bool:
    """Whether a file begins as one of these."""
    return file.nbytes >= len(MAGIC) and file.read(0, len(MAGIC)) == MAGIC


def check_passphrase(passphrase: Any) -> None:
    """InvalidRequest for what is none, without showing it; MissingLibrary."""
    if not isinstance(passphrase, str):
        raise InvalidRequest(f"passphrase: got {type(passphrase).__name__}, allowed is a str")
    if not passphrase:
        raise InvalidRequest("passphrase: got an empty str, allowed is at least one character")
    try:
        passphrase.encode()
    except UnicodeEncodeError:
        raise InvalidRequest("passphrase: has lone surrogates, which are no text") from None
    check_library()


def check_library() -> None:
    """MissingLibrary where there is none to encrypt with."""
    _library("hazmat.primitives.ciphers.aead")


def encrypted_size(plain: int) -> int:
    """Bytes of the file that holds so many."""
    return _HEAD.size + plain + TAG * _chunks(plain)


class EncryptingFile:
    """Writes the ``size`` bytes of a plain file encrypted into an AsideFile, in any order, each
    byte once; then :meth:`finish`. Nothing plain reaches the disk."""

    def __init__(self, aside: AsideFile, size: int, passphrase: str):
        if _chunks(size) >= _MOST_CHUNKS:
            raise InvalidRequest(f"passphrase: {size} bytes are more than can be encrypted")
        self._aside, self._size, self.position = aside, size, 0
        salt, prefix = secrets.token_bytes(16), secrets.token_bytes(7)
        key, check = _derive(passphrase, salt, _LOG_N, _R, _P)
        front = (MAGIC, VERSION, _LOG_N, _R, _P, CHUNK, 0, salt, prefix + b"\0", size, check)
        bare = _HEAD.pack(*front, 0)
        self._head = _HEAD.pack(*front, int(checksum_of(bare), 16))
        self._cipher, self._prefix = _cipher(key), prefix
        self._parts: dict[int, tuple[bytearray, int]] = {}  # chunk -> its bytes, how many are there
        self._left = _chunks(size)

    def write(self, data: bytes | memoryview | np.ndarray) -> None:
        """As AsideFile."""
        self.write_at(self.position, data)
        self.position += memoryview(data).nbytes

    def write_at(self, offset: int, data: bytes | memoryview | np.ndarray) -> None:
        """As AsideFile."""
        view = memoryview(data).cast("B")
        while view.nbytes:
            number, begin = divmod(offset, CHUNK)
            whole = min(CHUNK, self._size - number * CHUNK)
            piece, view = view[: whole - begin], view[whole - begin :]
            offset += piece.nbytes
            if piece.nbytes == whole:
                self._put(number, piece)
                continue
            part, there = self._parts.pop(number, None) or (bytearray(whole), 0)
            part[begin : begin + piece.nbytes] = piece
            if there + piece.nbytes == whole:
                self._put(number, part)
            else:
                self._parts[number] = part, there + piece.nbytes

    def _put(self, number: int, plain: memoryview | bytearray) -> None:
        nonce = _nonce(self._prefix, number, _chunks(self._size))
        sealed = self._cipher.encrypt(nonce, bytes(plain), self._head)
        self._aside.write_at(_HEAD.size + number * (CHUNK + TAG), sealed)
        self._left -= 1

    def finish(self) -> None:
        """Writes the head; everything else has been written."""
        assert self._left == 0 and not self._parts, "bytes are missing"
        self._aside.write_at(0, self._head)


class DecryptedFile:
    """The plain bytes of an encrypted file: reads as MappedFile does; any number of threads.

    Takes the file over. WrongPassphrase, CorruptFile, InvalidRequest for another version.
    """

    def __init__(self, file: MappedFile, passphrase: str):
        self.path: Path = file.path
        self._file = file
        if file.nbytes < _HEAD.size:
            raise CorruptFile(f"{self.path}: {file.nbytes} bytes, the head has {_HEAD.size}")
        self._head = file.read(0, _HEAD.size)
        _, version, log_n, r, p, chunk, zero, salt, prefix, size, check, checksum = _HEAD.unpack(
            self._head
        )
        if version != VERSION:
            raise InvalidRequest(
                f"{self.path}: encrypted with version {version}, {VERSION} is needed here"
            )
        bare = bytearray(self._head)
        bare[_SUM_AT : _SUM_AT + 8] = bytes(8)
        if int(checksum_of(bare), 16) != checksum:
            raise CorruptFile(f"{self.path}: the head is damaged: its checksum is another")
        self._check_limits(log_n, r, p, chunk, zero, size)
        key, found = _derive(passphrase, salt, log_n, r, p)
        if not secrets.compare_digest(found, check):
            raise WrongPassphrase(f"{self.path}: the passphrase is another one")
        self._key, self._prefix, self.nbytes = key, prefix[:7], size

    def _check_limits(self, log_n: int, r: int, p: int, chunk: int, zero: int, size: int) -> None:
        most = {"log2 N": (log_n, _MOST_LOG_N), "r": (r, _MOST_R), "p": (p, _MOST_P)}
        for name, (value, limit) in most.items():
            if not 1 <= value <= limit:
                raise CorruptFile(f"{self.path}: scrypt {name} is {value}, allowed is 1 to {limit}")
        if 128 * r << log_n > _MOST_BYTES:
            raise CorruptFile(
                f"{self.path}: scrypt needs {128 * r << log_n} bytes, allowed are {_MOST_BYTES}"
            )
        if (chunk, zero) != (CHUNK, 0):
            raise CorruptFile(f"{self.path}: chunks of {chunk} bytes ({zero}), {CHUNK} are needed")
        if size < 1 or size > self._file.nbytes or encrypted_size(size) != self._file.nbytes:
            raise CorruptFile(
                f"{self.path}: {self._file.nbytes} bytes do not hold the {size} that the head says"
            )

    def read(self, begin: int, end: int) -> bytes:
        """The plain bytes begin … end; CorruptFile where they are not there or not authentic."""
        out = np.empty(max(end - begin, 0), np.uint8)
        self.read_into(begin, out)
        return out.tobytes()

    def read_into(self, begin: int, out: np.ndarray) -> None:
        """Fills ``out`` (uint8) from ``begin`` on, as :meth:`read`."""
        if begin + out.nbytes > self.nbytes:
            raise CorruptFile(
                f"{self.path}: it ends at byte {self.nbytes}, {begin + out.nbytes} are needed"
            )
        cipher, done = _cipher(self._key), 0
        while done < out.nbytes:
            number, skip = divmod(begin + done, CHUNK)
            plain = self._chunk(cipher, number)[skip : skip + out.nbytes - done]
            out[done : done + len(plain)] = np.frombuffer(plain, np.uint8)
            done += len(plain)

    def _chunk(self, cipher: Any, number: int) -> bytes:
        at = _HEAD.size + number * (CHUNK + TAG)
        sealed = self._file.read(at, at + min(CHUNK, self.nbytes - number * CHUNK) + TAG)
        try:
            nonce = _nonce(self._prefix, number, _chunks(self.nbytes))
            return cipher.decrypt(nonce, sealed, self._head)
        except _library("exceptions").InvalidTag:
            raise CorruptFile(
                f"{self.path}: chunk {number} is not authentic: damaged, moved or of another file"
            ) from None

    def close(self) -> None:
        """Lets the file go."""
        self._file.close()


def _chunks(size: int) -> int:
    return -(-size // CHUNK)


def _nonce(prefix: bytes, number: int, count: int) -> bytes:
    return prefix + struct.pack(">IB", number, number == count - 1)


def _derive(passphrase: str, salt: bytes, log_n: int, r: int, p: int) -> tuple[bytes, bytes]:
    """The key, and the key check."""
    of = _library("hazmat.primitives.kdf.scrypt").Scrypt
    scrypt = of(salt=salt, length=64, n=1 << log_n, r=r, p=p)
    both = scrypt.derive(unicodedata.normalize("NFC", passphrase).encode())
    return both[:32], hashlib.blake2b(both[32:], digest_size=16, person=b"musespark check").digest()


def _cipher(key: bytes) -> Any:
    return _library("hazmat.primitives.ciphers.aead").AESGCM(key)


def _library(part: str) -> Any:
    try:
        return importlib.import_module(f"cryptography.{part}")
    except ImportError as error:
        raise MissingLibrary(
            f"a passphrase needs the library cryptography ({error}): "
            'pip install "musespark[encrypt]"'
        ) from error
