"""GPTQ and AWQ: 4-bit words that run down the inputs or across the outputs.

Both store ``X.qweight``, ``X.qzeros`` and ``X.scales``, all int32 but the scales, N outputs and K
inputs in G groups of inputs:

- GPTQ: qweight [K * bits / 32, N], fields along K; qzeros [G, N * bits / 32], fields along N;
  scales [G, N]; ``X.g_idx`` [K], the group of each input, where their order was another.
  Fields lie side by side from the lowest bit on (3 bits: 32 in three words). In the first version
  of the format qzeros hold the zero point minus one. Its writers subtract and add 1 in every field
  of a whole word at once, so that a zero point of 0 borrows from the next; with 3 bits each field
  alone.
- AWQ (gemm): qweight [K, N / 8], qzeros [G, N / 8], scales [G, N]; the eight outputs of a word are
  in the order 0 2 4 6 1 3 5 7.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from musespark.errors import CorruptFile
from musespark.weights.quantized.linear import IntegerLinear, Stored
from musespark.weights.quantized.numbers import fields, fields_of

GPTQ_BITS = (2, 3, 4, 8)
SCALES = ("F16", "BF16", "F32")
_ONES = {2: 0x55555555, 4: 0x11111111, 8: 0x01010101}  # 1 in every field of a word
_AWQ_PLACE = np.array([0, 4, 1, 5, 2, 6, 3, 7])  # of output j among the fields of its word


@dataclass(frozen=True)
class IntegerScheme:
    """What a config says of its GPTQ or AWQ matrices.

    ``group`` is -1 for one group. ``mixed``: modules may differ in bits and groups, which then
    follow from the shapes. ``desc_act``: the groups of the inputs must be there.
    ``first_version``: qzeros hold the zero point minus one.
    """

    bits: int
    group: int
    mixed: bool = False
    symmetric: bool = True
    desc_act: bool = False
    first_version: bool = True


def _group_of(scheme: IntegerScheme, stored: Stored, name: str, groups: int, cols: int) -> int:
    """Columns of a group, from the config or, where modules may differ, from the shapes."""
    group = cols if scheme.group == -1 else min(scheme.group, cols)
    if -(-cols // group) == groups:
        return group
    if scheme.mixed and cols % groups == 0:
        return cols // groups
    raise CorruptFile(
        f"{stored.where(f'{name}.scales')} has {groups} groups; group_size {scheme.group} makes "
        f"{-(-cols // group)} of {cols} inputs"
    )


def read_order(stored: Stored, part: str, cols: int, groups: int, group: int) -> int | np.ndarray:
    """The group of each column as `part` gives it; `group` where that is no other order."""
    order = stored.array(part).astype(np.int32)
    low, high = int(order.min()), int(order.max())
    if low < 0 or high >= groups:
        raise CorruptFile(
            f"{stored.where(part)} names group {low if low < 0 else high} of {groups}"
        )
    if groups == 1 or np.array_equal(order, np.arange(cols) // group):
        return group
    return order


class GptqLinear(IntegerLinear):
    """See the top of this file."""

    def __init__(self, stored: Stored, name: str, scheme: IntegerScheme):
        super().__init__(stored, name)
        weight, zeros, scales = (f"{name}.{part}" for part in ("qweight", "qzeros", "scales"))
        words, rows = stored.shape(weight, ("I32",), 2)
        groups, zero_words = stored.shape(zeros, ("I32",), 2)
        stored.need(scales, SCALES, (groups, rows), weight)
        self.symmetric = scheme.symmetric
        self.bits = self._read_bits(scheme, zeros, zero_words, rows)
        if words * 32 % self.bits:
            raise CorruptFile(f"{stored.where(weight)} has {words} words of {self.bits} bits")
        cols = words * 32 // self.bits
        self.shape = (rows, cols)
        self._first_version, self._desc_act = scheme.first_version, scheme.desc_act
        self._group = _group_of(scheme, stored, name, groups, cols)
        self._groups = groups
        self.parts, self.scale = (weight, zeros, scales), scales
        order = f"{name}.g_idx"
        if stored.has(order):
            stored.need(order, ("I32",), (cols,), weight)
            self.parts = (*self.parts, order)
        elif scheme.desc_act:
            raise stored.missing(order, ", and the config has desc_act")
        self.kind = f"GPTQ {self.bits} bits"

    def _read_bits(self, scheme: IntegerScheme, zeros: str, words: int, rows: int) -> int:
        bits = words * 32 // rows
        fits = bits * rows == words * 32 and bits in GPTQ_BITS
        if not fits or (bits != scheme.bits and not scheme.mixed):
            raise CorruptFile(
                f"{self.stored.where(zeros)} has {words} words a group for {rows} outputs; "
                f"bits {scheme.bits} takes {rows * scheme.bits / 32:g}"
            )
        return bits

    @cached_property
    def group(self) -> int | np.ndarray:  # type: ignore[override]
        if not self.stored.readable and self._desc_act:
            return np.arange(self.shape[1], dtype=np.int32) // self._group
        if len(self.parts) == 3 or not self.stored.readable:
            return self._group
        return read_order(self.stored, self.parts[3], self.shape[1], self._groups, self._group)

    @property
    def groups(self) -> int:
        return self._groups

    def codes(self, rows: range) -> np.ndarray:
        words = self.stored.array(self.parts[0])[:, rows.start : rows.stop : rows.step]
        return fields(words.T, self.bits)

    def zeros(self, rows: range) -> np.ndarray:
        words = self.stored.array(self.parts[1]).view(np.uint32)
        add = _ONES.get(self.bits, 0) if self._first_version else 0
        found = fields_of(words, self.bits, rows, np.uint32(add))
        if self._first_version and not add:
            found = found + 1 & (1 << self.bits) - 1
        return found.T.astype(np.int16)

    def scales(self, rows: range) -> np.ndarray:
        return self.stored.floats(self.parts[2], np.s_[:, rows.start : rows.stop : rows.step]).T


class AwqLinear(IntegerLinear):
    """See the top of this file."""

    bits = 4
    kind = "AWQ 4 bits"

    def __init__(self, stored: Stored, name: str, scheme: IntegerScheme):
        super().__init__(stored, name)
        weight, zeros, scales = (f"{name}.{part}" for part in ("qweight", "qzeros", "scales"))
        cols, words = stored.shape(weight, ("I32",), 2)
        groups, rows = stored.shape(scales, SCALES, 2)
        if rows != words * 8:
            raise CorruptFile(
                f"{stored.where(scales)} has shape {[groups, rows]}, {[groups, words * 8]} is "
                f"needed by {weight!r:.120}"
            )
        stored.need(zeros, ("I32",), (groups, words), weight)
        self.symmetric = scheme.symmetric
        self.shape = (rows, cols)
        self.group = _group_of(scheme, stored, name, groups, cols)
        self.parts, self.scale = (weight, zeros, scales), scales

    def _outputs(self, part: int, rows: range) -> np.ndarray:
        """uint8 [len(rows), first length of the part]: the fields of these outputs."""
        low, high = min(rows[0], rows[-1]) // 8, max(rows[0], rows[-1]) // 8 + 1
        found = fields(self.stored.array(self.parts[part])[:, low:high], 4)
        output = np.array(rows) - 8 * low
        return found[:, output // 8 * 8 + _AWQ_PLACE[output % 8]].T

    def codes(self, rows: range) -> np.ndarray:
        return self._outputs(0, rows)

    def zeros(self, rows: range) -> np.ndarray:
        return self._outputs(1, rows).astype(np.int16)

    def scales(self, rows: range) -> np.ndarray:
        return self.stored.floats(self.parts[2], np.s_[:, rows.start : rows.stop : rows.step]).T
