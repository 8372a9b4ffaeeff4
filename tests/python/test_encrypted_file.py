"""Sessions under a passphrase: they go on alike; the wrong passphrase, damage, cuts and chunks out
of order are told apart and refused."""

from __future__ import annotations

import itertools
import random
import struct
import subprocess
import sys

import numpy as np
import pytest

import musespark
from musespark import encrypted_file
from musespark.encrypted_file import CHUNK, TAG, DecryptedFile, EncryptingFile, encrypted_size
from musespark.errors import CorruptFile, InvalidRequest, MissingLibrary, WrongPassphrase
from musespark.weights.files import MappedFile, write_aside
from musespark.weights.packed import checksum_of

pytest.importorskip("cryptography")

HEAD, WORD = 96, "correct horse"
SAMPLED = {"max_new_tokens": 40, "temperature": 0.8, "seed": 7}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """scrypt with N = 2, which is what the files of these tests then say."""
    monkeypatch.setattr(encrypted_file, "_LOG_N", 1)


def write(path, data: bytes, pieces, word: str = WORD) -> None:
    """`data` in `pieces` (begin, end), in that order."""
    with write_aside(path) as aside:
        file = EncryptingFile(aside, len(data), word)
        for begin, end in pieces:
            file.write_at(begin, data[begin:end])
        file.finish()


def read(path, word: str = WORD) -> bytes:
    file = DecryptedFile(MappedFile(path), word)
    try:
        return file.read(0, file.nbytes)
    finally:
        file.close()


@pytest.mark.parametrize("size", [1, 63, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK + 17])
def test_any_size_comes_back_in_whatever_order_it_was_written(tmp_path, size):
    choose = random.Random(size)
    data = choose.randbytes(size)
    cuts = sorted({0, size, *(choose.randrange(size + 1) for _ in range(6))})
    pieces = list(itertools.pairwise(cuts))
    choose.shuffle(pieces)
    path = tmp_path / "f"
    write(path, data, pieces)
    assert path.stat().st_size == encrypted_size(size) == HEAD + size + TAG * -(-size // CHUNK)
    assert read(path) == data
    file = DecryptedFile(MappedFile(path), WORD)
    for _ in range(20):
        begin, end = sorted(choose.randrange(size + 1) for _ in range(2))
        out = np.empty(end - begin, np.uint8)
        file.read_into(begin, out)
        assert out.tobytes() == data[begin:end] == file.read(begin, end)
    with pytest.raises(CorruptFile, match="it ends at byte"):
        file.read(0, size + 1)
    file.close()


def test_two_files_of_the_same_have_nothing_in_common(tmp_path):
    data = bytes(1000)
    for name in "ab":
        write(tmp_path / name, data, [(0, 1000)])
    one, two = ((tmp_path / name).read_bytes() for name in "ab")
    assert data[:64] not in one
    assert sum(a == b for a, b in zip(one[HEAD:], two[HEAD:], strict=True)) < 40


def test_what_the_library_of_others_makes_of_it(tmp_path):
    """The format as it is written down, by hand."""
    import hashlib

    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    data = random.Random(2).randbytes(CHUNK + 100)
    write(tmp_path / "f", data, [(0, len(data))], "Passwo\u0308rt")
    file = (tmp_path / "f").read_bytes()
    fields = struct.unpack("<8sIIIIII16s7sxQ16sQ8x", file[:HEAD])
    assert fields[:7] == (b"MUSECRYP", 1, 1, 8, 1, CHUNK, 0)
    salt, prefix, size, check, checksum = fields[7:]
    both = hashlib.scrypt("Passw\u00f6rt".encode(), salt=salt, n=2, r=8, p=1, dklen=64)
    assert hashlib.blake2b(both[32:], digest_size=16, person=b"musespark check").digest() == check
    assert size == len(data)
    assert int(checksum_of(file[:80] + bytes(16)), 16) == checksum
    one = AESGCM(both[:32]).decrypt(
        prefix + b"\0\0\0\0\0", file[HEAD : HEAD + CHUNK + TAG], file[:HEAD]
    )
    two = AESGCM(both[:32]).decrypt(prefix + b"\0\0\0\1\1", file[HEAD + CHUNK + TAG :], file[:HEAD])
    assert one + two == data


def test_changed_moved_and_cut_chunks_are_found(tmp_path):
    path, other = tmp_path / "f", tmp_path / "g"
    data, choose = random.Random(3).randbytes(3 * CHUNK), random.Random(4)
    write(path, data, [(0, len(data))])
    write(other, data, [(0, len(data))])
    whole, stranger = path.read_bytes(), other.read_bytes()
    step = CHUNK + TAG
    chunks = [whole[HEAD + i * step : HEAD + (i + 1) * step] for i in range(3)]
    foreign = stranger[HEAD : HEAD + step]

    def check(changed: bytes, message: str, error=CorruptFile) -> None:
        path.write_bytes(changed)
        with pytest.raises(error, match=message) as caught:
            read(path)
        assert WORD not in str(caught.value)

    for at in (choose.randrange(HEAD, len(whole)) for _ in range(40)):
        changed = bytearray(whole)
        changed[at] ^= 1 << choose.randrange(8)
        check(bytes(changed), f"chunk {(at - HEAD) // step} is not authentic")
    head = whole[:HEAD]
    check(head + chunks[1] + chunks[0] + chunks[2], "chunk 0 is not authentic")
    check(head + foreign + chunks[1] + chunks[2], "chunk 0 is not authentic")
    check(stranger[:HEAD] + b"".join(chunks), "chunk 0 is not authentic")
    for end in (0, 5, HEAD - 1, HEAD, HEAD + step, len(whole) - 1):
        check(whole[:end], "bytes" if end else "the file is empty")
    check(whole + b"\0", "do not hold the")


def test_cutting_whole_chunks_off_is_found_even_where_the_head_is_mended(tmp_path):
    path, data = tmp_path / "f", bytes(3 * CHUNK)
    write(path, data, [(0, len(data))])
    changed = bytearray(path.read_bytes()[: HEAD + 2 * (CHUNK + TAG)])
    changed[56:64] = struct.pack("<Q", 2 * CHUNK)
    changed[80:88] = bytes(8)
    changed[80:88] = struct.pack("<Q", int(checksum_of(bytes(changed[:HEAD])), 16))
    path.write_bytes(changed)
    with pytest.raises(CorruptFile, match="chunk 0 is not authentic"):
        read(path)


def test_every_flipped_byte_of_the_head_is_found(tmp_path):
    path = tmp_path / "f"
    write(path, b"x" * 100, [(0, 100)])
    whole = path.read_bytes()
    for at in range(8, HEAD):
        for bit in (0, 7):
            changed = bytearray(whole)
            changed[at] ^= 1 << bit
            path.write_bytes(changed)
            with pytest.raises((CorruptFile, InvalidRequest), match=str(path)) as caught:
                read(path)
            assert not isinstance(caught.value, WrongPassphrase)


@pytest.mark.parametrize(
    "at, value, message",
    [
        (12, 21, "scrypt log2 N is 21, allowed is 1 to 20"),
        (12, 0, "scrypt log2 N is 0"),
        (16, 33, "scrypt r is 33"),
        (20, 17, "scrypt p is 17"),
        (24, 1 << 30, "chunks of 1073741824 bytes"),
    ],
)
def test_what_a_file_asks_of_scrypt_is_held_to_limits(tmp_path, at, value, message, monkeypatch):
    path = tmp_path / "f"
    write(path, b"x" * 100, [(0, 100)])
    monkeypatch.setattr(encrypted_file, "_derive", lambda *_: pytest.fail("it was computed"))
    changed = bytearray(path.read_bytes())
    changed[at : at + 4] = struct.pack("<I", value)
    changed[80:88] = bytes(8)
    changed[80:88] = struct.pack("<Q", int(checksum_of(bytes(changed[:HEAD])), 16))
    path.write_bytes(changed)
    with pytest.raises(CorruptFile, match=message):
        read(path)


def test_the_memory_of_scrypt_is_limited_together(tmp_path):
    path = tmp_path / "f"
    write(path, b"x" * 100, [(0, 100)])
    changed = bytearray(path.read_bytes())
    changed[12:20] = struct.pack("<II", 20, 16)
    changed[80:88] = bytes(8)
    changed[80:88] = struct.pack("<Q", int(checksum_of(bytes(changed[:HEAD])), 16))
    path.write_bytes(changed)
    with pytest.raises(CorruptFile, match="scrypt needs 2147483648 bytes"):
        read(path)


# ---- sessions ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    with musespark.load(threads=1) as loaded:
        yield loaded


def test_an_encrypted_session_goes_on_as_the_plain_one(model, tmp_path):
    session = model.session("You are brief.")
    session.chat("Tell me about " + "the sun and the moon and " * 30, **SAMPLED)
    session.save(tmp_path / "plain")
    session.save(tmp_path / "secret", passphrase=WORD)
    data = (tmp_path / "secret").read_bytes()
    assert b"the sun" not in data and b"messages" not in data
    assert read(tmp_path / "secret") == (tmp_path / "plain").read_bytes()
    resumed = model.resume(tmp_path / "secret", passphrase=WORD)
    one, two = (s.chat("And then?", logprobs=1, **SAMPLED) for s in (session, resumed))
    assert (one.tokens, one.logprobs) == (two.tokens, two.logprobs)
    assert one.usage.cached_tokens == two.usage.cached_tokens > 60
    resumed.save(tmp_path / "again", passphrase="other")
    session.save(tmp_path / "plain")
    assert read(tmp_path / "again", "other") == (tmp_path / "plain").read_bytes()


def test_errors_say_what_is_wrong_and_never_the_passphrase(model, tmp_path):
    session, path = model.session(), tmp_path / "s"
    session.chat("hi", max_new_tokens=3)
    session.save(path, passphrase=WORD)
    whole = path.read_bytes()
    for word in ("Correct horse", WORD + " ", "x"):
        with pytest.raises(WrongPassphrase, match="the passphrase is another one") as caught:
            model.resume(path, passphrase=word)
        assert isinstance(caught.value, InvalidRequest) and word not in str(caught.value)
    with pytest.raises(WrongPassphrase, match="encrypted; passphrase= is needed"):
        model.resume(path)
    path.write_bytes(whole[:-1])
    with pytest.raises(CorruptFile):
        model.resume(path, passphrase=WORD)
    session.save(path)
    with pytest.raises(InvalidRequest, match="not encrypted; leave the passphrase out"):
        model.resume(path, passphrase=WORD)
    before = path.read_bytes()
    for word, message in ((5, "got int"), ("", "empty str"), ("\ud800", "lone surrogates")):
        with pytest.raises(InvalidRequest, match=message):
            session.save(path, passphrase=word)
        with pytest.raises(InvalidRequest, match=message):
            model.resume(path, passphrase=word)
    assert path.read_bytes() == before


def test_without_the_library_it_is_said_at_once(tmp_path):
    script = (
        "import sys, musespark\n"
        "sys.modules['cryptography'] = None\n"
        "session = musespark.load(threads=1).session()\n"
        "session.save(sys.argv[1])\n"
        "try:\n"
        "    session.save(sys.argv[1], passphrase='x')\n"
        "except musespark.MissingLibrary as error:\n"
        "    print(error)\n"
    )
    run = [sys.executable, "-c", script, str(tmp_path / "s")]
    found = subprocess.run(run, check=True, capture_output=True, text=True).stdout
    assert 'pip install "musespark[encrypt]"' in found
    assert issubclass(MissingLibrary, ImportError) and issubclass(MissingLibrary, musespark.Error)


def test_the_real_parameters_are_those_of_the_format(tmp_path, monkeypatch):
    monkeypatch.setattr(encrypted_file, "_LOG_N", 17)
    write(tmp_path / "f", b"x", [(0, 1)])
    assert struct.unpack_from("<III", (tmp_path / "f").read_bytes(), 12) == (17, 8, 1)
    assert read(tmp_path / "f") == b"x"
