"""A session on disk: the conversation, and keys and values to go on from.

    64 bytes        _HEAD: magic, version, arithmetic version, then as uint64 the bytes of the
                    header, the tokens, the pages, the bytes of the file, and a checksum
    header          JSON, filled up with spaces to a multiple of 8
    tokens          int32 each: those that have keys and values
    page checksums  uint64 each, then zeros up to a multiple of 64
    pages           see csrc/cache/saved_pages.h; each a multiple of 64 bytes

Little endian. A checksum is that of weights/packed.py (XXH64: it finds damage, not forgery): the
head's covers everything before the pages, with itself as zero. The header is an object: model,
assets (tokenizer and defaults), template, kv, adapter {name, checksum} or null (what the pages
depend on, compared on resume), source (the model's name when saved), prompt, short_rope
(:class:`Kept`), system, messages, thought_cache and thought_cache_tokens (``keep`` and null where
they are missing).

With a passphrase all of it is in an encrypted file (encrypted_file.py).

Written aside and renamed: a file under its name is whole, whenever the writer was killed.
"""

from __future__ import annotations

import itertools
import json
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from musespark.encrypted_file import DecryptedFile, EncryptingFile, encrypted_size, is_encrypted
from musespark.errors import CorruptFile, InvalidRequest, WrongPassphrase
from musespark.events import Kept
from musespark.untrusted import parse_json, parse_json_object
from musespark.weights.files import MappedFile, check_disk, write_aside
from musespark.weights.packed import checksum_of

MAGIC, VERSION = b"MUSESESS", 2
MAX_HEADER_BYTES = 256 << 20
_HEAD = struct.Struct("<8sIIQQQQQ8x")
_SUM_AT = 48  # of the checksum in it
_ALIGN = 64
_NO_TOKENS = Kept(np.empty(0, np.int32), 0, False)


@dataclass(frozen=True)
class Identity:
    """What keys and values depend on beside the tokens, as checksums and names."""

    arithmetic: int
    model: str
    assets: str
    template: str | None
    kv: str
    adapter: dict[str, str] | None  # name and checksum
    source: str

    def fields(self) -> dict[str, Any]:
        """Those that the header has."""
        return {name: value for name, value in vars(self).items() if name != "arithmetic"}


@dataclass(frozen=True)
class Conversation:
    """The conversation as plain data."""

    system: str | None
    messages: list[dict[str, Any]]
    thought_cache: str = "keep"
    thought_cache_tokens: int | None = None


def write_session(
    path: Path,
    identity: Identity,
    conversation: Conversation,
    kept: Kept = _NO_TOKENS,
    sizes: list[int] | None = None,
    pages: Iterable[np.ndarray] = (),
    passphrase: str | None = None,
) -> None:
    """Writes a session file in place of what is there, with a passphrase encrypted.

    ``sizes``: bytes of each of the ``pages``; they may raise GivenUp, and nothing changes then.
    Raises InvalidRequest for messages that JSON cannot hold, and WriteFailed; the old file stays.
    """
    sizes = sizes or []
    header = _header(identity, conversation, kept)
    start = _start(len(header), len(kept.tokens), len(sizes))
    sums: list[int] = []
    whole = start + sum(sizes)
    check_disk(path, whole if passphrase is None else encrypted_size(whole))
    with write_aside(path) as aside:
        file = aside if passphrase is None else EncryptingFile(aside, whole, passphrase)
        file.position = start
        for size, page in zip(sizes, pages, strict=True):
            assert page.nbytes == size and size % _ALIGN == 0
            sums.append(int(checksum_of(page), 16))
            file.write(page)
        tokens = kept.tokens.astype("<i4").tobytes()
        body = header + tokens + np.asarray(sums, "<u8").tobytes()
        counts = (len(header), len(kept.tokens), len(sizes), whole)
        fields = (MAGIC, VERSION, identity.arithmetic, *counts)
        front = (_HEAD.pack(*fields, 0) + body).ljust(start, b"\0")
        head = _HEAD.pack(*fields, int(checksum_of(front), 16))
        file.write_at(0, head + front[_HEAD.size :])
        if isinstance(file, EncryptingFile):
            file.finish()


def _start(header: int, tokens: int, pages: int) -> int:
    """Where the pages begin."""
    end = _HEAD.size + header + 4 * tokens + 8 * pages
    return -(-end // _ALIGN) * _ALIGN


def _header(identity: Identity, conversation: Conversation, kept: Kept) -> bytes:
    head = {
        **identity.fields(),
        "prompt": kept.prompt,
        "short_rope": kept.short_rope,
        **vars(conversation),
    }
    try:
        text = json.dumps(head, separators=(",", ":"), allow_nan=False).encode()
        back = parse_json(text, "messages", MAX_HEADER_BYTES)
    except (TypeError, ValueError, RecursionError) as error:  # CorruptFile is a ValueError
        raise InvalidRequest(f"messages: cannot be saved: {error}") from error
    if not _same(back["messages"], conversation.messages):
        raise InvalidRequest("messages: cannot be saved: keys that are not str, or other types")
    return text + b" " * (-len(text) % 8)


def _same(read: Any, given: Any) -> bool:
    """Whether JSON gave back what it was given; a tuple may come back as a list."""
    if isinstance(given, (list, tuple)):
        return len(read) == len(given) and all(map(_same, read, given))
    if isinstance(given, dict):
        return read.keys() == given.keys() and all(_same(read[k], v) for k, v in given.items())
    return read == given and type(read) is type(given)


class SessionFile:
    """A session file, open and checked, but for its pages. Close it, or use it in a with block.

    Raises FileNotFoundError, CorruptFile naming what is damaged, InvalidRequest naming the field
    and both values for a file of another version, and WrongPassphrase.
    """

    def __init__(self, path: Path, arithmetic: int, passphrase: str | None = None):
        self.path = path
        self._file: MappedFile | DecryptedFile = MappedFile(path)
        try:
            self._decrypt(passphrase)
            self._open(arithmetic)
        except BaseException:
            self._file.close()
            raise

    def _decrypt(self, passphrase: str | None) -> None:
        file = self._file
        assert isinstance(file, MappedFile)
        if is_encrypted(file):
            if passphrase is None:
                raise WrongPassphrase(f"{self.path}: encrypted; passphrase= is needed")
            self._file = DecryptedFile(file, passphrase)
        elif passphrase is not None:
            raise InvalidRequest(f"{self.path}: not encrypted; leave the passphrase out")

    def _open(self, arithmetic: int) -> None:
        size = self._file.nbytes
        if size < _HEAD.size:
            raise CorruptFile(f"{self.path}: {size} bytes, a session file has {_HEAD.size} or more")
        magic, version, made_with, *counts = _HEAD.unpack(self._file.read(0, _HEAD.size))
        if magic != MAGIC:
            raise CorruptFile(f"{self.path}: not a session file; it begins with {magic!r}")
        self._check_field("version", version, VERSION)
        self._check_field("arithmetic", made_with, arithmetic)
        header, tokens, pages, whole, checksum = counts
        if whole != size:
            raise CorruptFile(f"{self.path}: {size} bytes, the head says {whole}")
        if header > MAX_HEADER_BYTES or header % 8 or _start(header, tokens, pages) > size:
            raise CorruptFile(
                f"{self.path}: {header} bytes of header, {tokens} tokens and {pages} pages do not "
                f"fit its {size} bytes"
            )
        start = _start(header, tokens, pages)
        checked = bytearray(self._file.read(0, start))
        checked[_SUM_AT : _SUM_AT + 8] = bytes(8)
        found = int(checksum_of(checked), 16)
        if found != checksum:
            raise CorruptFile(
                f"{self.path}: the header has checksum {found:016x}, the head says {checksum:016x}"
            )
        at = _HEAD.size
        self._read_header(bytes(checked[at : at + header]))
        self._read_kept(checked, at + header, tokens)
        sums = at + header + 4 * tokens
        self._sums = np.frombuffer(bytes(checked[sums : sums + 8 * pages]), "<u8").tolist()
        self._at, self._begins = start, [start]

    def _check_field(self, field: str, found: Any, ours: Any) -> None:
        if found != ours:
            raise InvalidRequest(
                f"{self.path}: saved with {field} {found!r:.200}, {ours!r:.200} is needed here"
            )

    def _read_header(self, text: bytes) -> None:
        where = f"{self.path}: header"
        self._head = parse_json_object(text, where, MAX_HEADER_BYTES)
        system, messages = self._field("system", (str, type(None))), self._field("messages", list)
        if not all(isinstance(m, dict) for m in messages):
            raise CorruptFile(f"{where}: messages must be a list of objects")
        self._head = {"thought_cache": "keep", "thought_cache_tokens": None, **self._head}
        tokens = self._field("thought_cache_tokens", (int, type(None)))
        self.conversation = Conversation(
            system, messages, self._field("thought_cache", str), tokens
        )
        adapter = self._field("adapter", (dict, type(None)))
        if adapter is not None and not isinstance(adapter.get("checksum"), str):
            raise CorruptFile(f"{where}: adapter is {adapter!r:.80}, a checksum is needed")
        self.adapter: str | None = None if adapter is None else adapter["checksum"]

    def _field(self, name: str, kinds: type | tuple[type, ...]) -> Any:
        value = self._head.get(name)
        allowed = kinds if isinstance(kinds, tuple) else (kinds,)
        if type(value) not in allowed or name not in self._head:
            wanted = " or ".join(kind.__name__ for kind in allowed)
            raise CorruptFile(f"{self.path}: header: {name} is {value!r:.80}, allowed is {wanted}")
        return value

    def _read_kept(self, data: bytearray, at: int, tokens: int) -> None:
        prompt, short_rope = self._field("prompt", int), self._field("short_rope", bool)
        if not 0 <= prompt <= tokens:
            raise CorruptFile(f"{self.path}: header: prompt is {prompt}, allowed is 0 to {tokens}")
        ids = np.frombuffer(bytes(data[at : at + 4 * tokens]), "<i4").astype(np.int32)
        self.kept = Kept(ids, prompt, short_rope)

    def check(self, ours: Identity) -> None:
        """InvalidRequest where it was saved with another model, tokenizer, template or format of
        keys and values; the adapter is for the caller to find."""
        for name, value in ours.fields().items():
            if name == "model" and self._head.get(name) != value:
                theirs = f"{self._head.get(name)!r:.40} ({self._head.get('source')!r:.200})"
                raise InvalidRequest(
                    f"{self.path}: saved with model {theirs}, this one is {value!r} "
                    f"({ours.source!r:.200})"
                )
            if name not in ("source", "adapter"):
                self._check_field(name, self._head.get(name), value)

    def check_pages(self, sizes: list[int]) -> None:
        """CorruptFile unless its pages are of these sizes."""
        if len(sizes) != len(self._sums):
            raise CorruptFile(f"{self.path}: {len(self._sums)} pages, {len(sizes)} are needed")
        self._begins = list(itertools.accumulate(sizes, initial=self._at))
        if self._begins[-1] != self._file.nbytes:
            raise CorruptFile(
                f"{self.path}: {self._file.nbytes} bytes, {self._begins[-1]} are needed"
            )

    def read_page(self, index: int, out: np.ndarray) -> None:
        """Page ``index`` into ``out``, uint8 of its size; CorruptFile where it is damaged. After
        :meth:`check_pages`, in any number of threads."""
        self._file.read_into(self._begins[index], out)
        found, said = int(checksum_of(out), 16), self._sums[index]
        if found != said:
            raise CorruptFile(
                f"{self.path}: page {index} has checksum {found:016x}, the file says {said:016x}"
            )

    def close(self) -> None:
        """Lets the file go."""
        self._file.close()

    def __enter__(self) -> SessionFile:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
