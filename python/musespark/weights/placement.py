"""Where the weights of an opened model lie: locked in memory, or copied into huge pages.

Otherwise they are read where the file is mapped, and no advice is given. Measured on Emerald
Rapids with 1.3 GB that are not in the page cache: sequential reading (first token after 1.9 s) and
reading ahead (1.8 to 2.0 s) change no more than the time varies (2.0 to 2.5 s); random access,
which experts might seem to ask for, took 41 s. Decoding from huge pages was 20% faster there (38
tokens/s, 31 from the map; ``benchmarks/load.py --huge-pages``), on another processor 20% slower.
"""

from __future__ import annotations

import mmap
import re
from pathlib import Path

import numpy as np

from musespark import _core
from musespark.errors import InvalidRequest, MemoryBudgetExceeded
from musespark.results import human_bytes
from musespark.weights.loading import LoadedWeights

_ALIGN = 64
_HUGE = 2 << 20


def place(weights: LoadedWeights, *, lock_memory: bool, huge_pages: bool) -> None:
    """Moves and locks the weights as asked; ``info["notes"]`` says what came of it."""
    if huge_pages:
        _into_huge_pages(weights)
    if lock_memory:
        _lock(weights)


def _lock(weights: LoadedWeights) -> None:
    """Reads all weights in and keeps them in memory. MemoryBudgetExceeded names limit and need."""
    every = (*weights.tensors.values(), *weights.tower.values())
    views = [view for *_, view in every]
    _core.lock_memory(views)
    size = human_bytes(sum(view.nbytes for view in views))
    weights.info["notes"].append(f"lock_memory: {size} of weights stay in memory")


def _into_huge_pages(weights: LoadedWeights) -> None:
    """Copies all weights into memory of this process, in huge pages as far as the system has them,
    and lets the file go."""
    both = (weights.tensors, weights.tower)
    at = sum(_room_of(view) for tensors in both for *_, view in tensors.values())
    room, begin = _huge_room(at), 0
    for tensors in both:
        for name, (form, rows, cols, view) in tensors.items():
            copy = room[begin:][: view.nbytes].view(view.dtype)
            copy[:] = view.reshape(-1)
            tensors[name] = (form, rows, cols, copy)
            begin += _room_of(view)
    weights.packed.close()
    found = _huge_bytes(room.ctypes.data)
    weights.info["notes"].append(
        f"huge_pages: {human_bytes(at)} of weights copied, {human_bytes(found)} of them lie in "
        "huge pages"
    )


def _room_of(view: np.ndarray) -> int:
    return -(-view.nbytes // _ALIGN) * _ALIGN


def _huge_room(nbytes: int) -> np.ndarray:
    """uint8, at least `nbytes`, of anonymous memory that may be huge pages."""
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if advice is None:
        raise InvalidRequest("huge_pages: this system has none")
    try:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        memory = mmap.mmap(-1, nbytes + _HUGE, flags=flags)
    except OSError as error:
        raise MemoryBudgetExceeded(f"huge_pages: no memory for {nbytes} bytes") from error
    try:
        memory.madvise(advice)
    except OSError as error:  # a kernel built without them
        raise InvalidRequest(f"huge_pages: this system has none ({error.strerror})") from error
    room = np.frombuffer(memory, np.uint8)
    return room[-room.ctypes.data % _HUGE :]


def _huge_bytes(address: int) -> int:
    """Bytes of the mapping at `address` that lie in huge pages now; 0 where nobody tells."""
    try:
        text = Path("/proc/self/smaps").read_text()
    except OSError:
        return 0
    for begin, end, fields in re.findall(
        r"(?m)^([0-9a-f]+)-([0-9a-f]+) (.*\n(?:[A-Z].*\n)*)", text
    ):
        if int(begin, 16) <= address < int(end, 16):
            found = re.search(r"AnonHugePages: +(\d+) kB", fields)
            return int(found[1]) << 10 if found else 0
    return 0
