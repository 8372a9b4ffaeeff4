"""How far quantized matrices move by being stored in another format, measured while packing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from musespark import _core
from musespark.weights.packed import Planned

SAMPLES = 4  # row blocks of a matrix whose error is measured
_BLOCK = 16  # rows that are packed independently of all others
_MOST = 9.99  # of a relative error that is said in figures


class PackingError:
    """One line for each pair of a stored type and a format.

    "exact" is said of matrices that their format holds to the bit, whatever is in them: packing
    them rounds nothing or fails. Of the others the relative error is sqrt(sum of squared
    differences / sum of squares), over up to four blocks of 16 rows of each matrix; what is
    measured are the very bytes that are packed.

    ``kinds`` says of each matrix to speak of: (stored type, whether its format holds it exactly).
    """

    def __init__(
        self, planned: Sequence[Planned], kinds: Mapping[str, tuple[str, bool]], threads: int
    ):
        self._kinds, self._threads = kinds, threads
        self._sums: dict[tuple[str, str, bool], np.ndarray] = {}
        self._to_come = {name for name, (_, exact) in kinds.items() if not exact}
        for p in planned:
            if p.name in kinds:
                self._sums.setdefault(self._key(p), np.zeros(3))[2] += 1

    def _key(self, p: Planned) -> tuple[str, str, bool]:
        stored, exact = self._kinds[p.name]
        return stored, p.format, exact

    def measure(self, p: Planned, array: Any, dtype: str, begin: int, piece: np.ndarray) -> None:
        """Takes in `piece`, the packed rows of matrix `p` from `begin`; `array` has all its rows,
        in numbers that ``_core`` calls `dtype`."""
        if p.name not in self._to_come:
            return
        blocks, nbytes = -(-p.rows // _BLOCK), int(_core.packed_nbytes(p.format, _BLOCK, p.cols))
        first = begin // _BLOCK
        chosen = sorted({i * blocks // SAMPLES for i in range(SAMPLES)})
        end = first + piece.nbytes // nbytes
        chosen = [block for block in chosen if first <= block < end]

        def one(block: int) -> tuple[float, float]:
            rows = array[_BLOCK * block : _BLOCK * (block + 1)]
            at = (block - first) * nbytes
            return squares(p.format, rows, dtype, piece[at : at + nbytes])

        if chosen:
            with ThreadPoolExecutor(min(self._threads, SAMPLES)) as pool:
                for found in pool.map(one, chosen):  # in order: sums do not depend on threads
                    self._sums[self._key(p)][:2] += found
        if end == blocks:
            self._to_come.remove(p.name)

    def notes(self) -> list[str]:
        """The lines; as long as they can become before every matrix was measured."""
        return [
            f"{stored} ({count:.0f} tensors) kept as {form}: "
            + ("exact" if exact else self._in_words(missed, whole))
            for (stored, form, exact), (missed, whole, count) in self._sums.items()
        ]

    def _in_words(self, missed: float, whole: float) -> str:
        if not whole and not self._to_come:
            return "not measured (zeros)"
        error = np.sqrt(missed / whole) if whole else np.inf
        said = f"{error:.2%}" if error <= _MOST else f"above {_MOST:.2%}"
        return f"relative error {said}, measured on up to {_BLOCK * SAMPLES} rows of each matrix"


def squares(form: str, rows: Any, dtype: str, packed: np.ndarray) -> tuple[float, float]:
    """Sums of the squared differences, and of the squares, of `rows` that became `packed`."""
    values = _core.decode(dtype, np.ascontiguousarray(rows))
    exact = values.astype(np.float64)
    got = _core.unpack(form, packed, *values.shape)
    return float(((got - exact) ** 2).sum()), float((exact**2).sum())
