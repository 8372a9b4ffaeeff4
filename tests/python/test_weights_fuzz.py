"""1,000 mutated files of each kind in the suite; ``make fuzz``: 100,000 under the sanitizers."""

from __future__ import annotations

import math
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from musespark.weights import gguf, safetensors
from musespark.weights.gguf import GgufFile
from musespark.weights.quantized import gptq
from musespark.weights.quantized.linear import Stored

FUZZ = Path(__file__).resolve().parent.parent / "fuzz"
sys.path.insert(0, str(FUZZ))
import fuzz_readers  # noqa: E402

COUNT = int(os.environ.get("MUSESPARK_FUZZ_CASES", "1000"))


@pytest.fixture
def quick_folder(tmp_path: Path) -> Iterator[Path]:
    """In memory where the system has such a folder: packing waits for the disk."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory, prefix="musespark-fuzz-") as folder:
        yield Path(folder)


@pytest.mark.fuzz
@pytest.mark.slow
@pytest.mark.parametrize("kind", fuzz_readers.KINDS)
def test_mutated_files(kind: str, quick_folder: Path) -> None:
    ends = fuzz_readers.fuzz(COUNT, 20261120, quick_folder, kind)
    assert ends.total() == COUNT
    readers = {reader.__name__ for reader in fuzz_readers.KINDS[kind]}
    assert {name.split()[0] for name in ends} == readers
    for reader in readers:  # both ways out were taken, or the mutations are too tame or too wild
        assert ends[f"{reader} CorruptFile"] and ends[f"{reader} loaded"], ends


def test_the_fuzzer_finds_a_planted_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the check that tensors cover the file, some mutation must show."""

    def lax(name: str, entry: dict, path: Path, start: int, size: int):
        begin, end = entry["data_offsets"]
        return fuzz_readers.TensorEntry(
            name, entry["dtype"], tuple(entry["shape"]), start + begin, start + end
        )

    monkeypatch.setattr(safetensors, "_entry", lax)
    with pytest.raises((AssertionError, KeyError, TypeError, ValueError, AttributeError)):
        fuzz_readers.fuzz(300, seed=1, folder=tmp_path)


def test_the_fuzzer_finds_a_tensor_beyond_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the check that GGUF tensors lie in the file, some mutation must show."""

    def lax(self: GgufFile, start: int, name: str, lengths: tuple, kind: int, offset: int):
        dtype, values, size = gguf._TYPES[kind]
        nbytes = math.prod(lengths) // values * size
        begin = start + offset
        return gguf.GgufEntry(name, dtype, lengths[::-1], begin, begin + nbytes)

    monkeypatch.setattr(GgufFile, "_entry", lax)
    with pytest.raises((AssertionError, KeyError, ValueError, MemoryError, ZeroDivisionError)):
        fuzz_readers.fuzz(400, seed=1, folder=tmp_path)


def test_the_fuzzer_finds_an_order_that_nobody_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the check that the groups of inputs exist, some flipped byte must show."""

    def lax(stored: Stored, part: str, cols: int, groups: int, group: int) -> np.ndarray:
        return stored.array(part)

    monkeypatch.setattr(gptq, "read_order", lax)
    fuzzer = fuzz_readers.Fuzzer(tmp_path, seed=1)
    fuzzer.targets = [t for t in fuzzer.targets if t[1] is fuzz_readers.read_quantized][:1]
    with pytest.raises(IndexError):
        for number in range(300):
            fuzzer.case(number)


@pytest.mark.skipif(
    "MUSESPARK_TEST_SANITIZED" in os.environ, reason="a sanitizer needs all of the address space"
)
def test_the_fuzzer_finds_memory_taken_on_a_claim(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the cap on counts, an array that claims to be long must show."""

    def lax(self: gguf._Cursor, what: str, each: int, limit: int) -> int:
        count = self.integer(what) % 2**40
        np.empty(count, np.uint8)[:] = 0
        return count

    monkeypatch.setattr(gguf._Cursor, "count", lax)
    with pytest.raises(MemoryError):
        fuzz_readers.fuzz(400, seed=1, folder=tmp_path)
