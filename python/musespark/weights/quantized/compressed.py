"""compressed-tensors: what llm-compressor writes. Modules that are not quantized stay as they are.

- pack-quantized: ``X.weight_packed`` int32 [N, K * bits / 32] (fields of 1 to 8 bits side by side
  from the lowest bit on, each the signed code plus 2^(bits - 1)), ``X.weight_shape`` [2],
  ``X.weight_scale`` [N, groups], ``X.weight_zero_point`` int32 [N * bits / 32, groups] where not
  symmetric, and in old files ``X.weight_g_idx`` [K], the group of each input.
- int-quantized: ``X.weight`` int8 [N, K], ``X.weight_scale`` for the tensor, each output, or each
  group of inputs, ``X.weight_zero_point`` int8 of the same shape or none.
- float-quantized, nvfp4- and mxfp4-pack-quantized, mxfp8-quantized: see floating.py.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from musespark.errors import CorruptFile
from musespark.weights.quantized.gptq import SCALES, read_order
from musespark.weights.quantized.linear import IntegerLinear, Stored
from musespark.weights.quantized.numbers import fields, fields_of, floats


def _group_size(cols: int, groups: int, sizes: tuple[int, ...]) -> int | None:
    """How many inputs share a scale where a row has `groups` of them: the one of the config's
    `sizes` that gives so many; None where none does, or several."""
    if groups == 1:
        return cols
    fitting = [size for size in sizes if size > 0 and -(-cols // size) == groups]
    return fitting[0] if len(fitting) == 1 else None


class PackedLinear(IntegerLinear):
    """pack-quantized; `bits` are the widths and `group_sizes` the sizes of groups that the config
    has, of which the shapes pick one."""

    def __init__(
        self, stored: Stored, name: str, bits: tuple[int, ...], group_sizes: tuple[int, ...]
    ):
        super().__init__(stored, name)
        data, scale, zero, order = (
            f"{name}.weight_{part}" for part in ("packed", "scale", "zero_point", "g_idx")
        )
        rows, words = stored.shape(data, ("I32",), 2)
        cols = self._read_cols(f"{name}.weight_shape", rows, words, bits)
        self.shape = (rows, cols)
        fitting = [b for b in bits if -(-cols * b // 32) == words]
        if len(fitting) != 1:
            raise CorruptFile(
                f"{stored.where(data)} has {words} words a row for {cols} inputs; the config has "
                f"num_bits {', '.join(map(str, bits))}"
            )
        self.bits = fitting[0]
        scale_rows, self._groups = stored.shape(scale, SCALES, 2)
        size = _group_size(cols, self._groups, group_sizes)
        if not stored.readable:  # then cols are a guess
            size = size or -(-cols // self._groups)
        if scale_rows != rows or size is None:
            raise CorruptFile(
                f"{stored.where(scale)} has shape {[scale_rows, self._groups]}; {rows} rows of "
                f"scales for groups of {list(group_sizes)} inputs are needed by {data!r:.120} of "
                f"{[rows, cols]}"
            )
        self._size = size
        self.parts, self.scale = (data, scale, f"{name}.weight_shape"), scale
        self._zero = zero if stored.has(zero) else None
        self.symmetric = self._zero is None
        if self._zero:
            wanted = (-(-rows * self.bits // 32), self._groups)
            stored.need(zero, ("I32",), wanted, data)
            self.parts += (zero,)
        self._order = order if stored.has(order) else None
        if self._order:
            stored.need(order, ("I32",), (cols,), data)
            self.parts += (order,)
        self.kind = f"compressed-tensors {self.bits} bits"

    def _read_cols(self, part: str, rows: int, words: int, bits: tuple[int, ...]) -> int:
        self.stored.need(part, ("I64", "I32"), (2,), part)
        if not self.stored.readable:
            return words * 32 // max(bits, default=8)
        shape = [int(n) for n in self.stored.array(part)]
        if shape[0] != rows or not 0 < shape[1] < 2**31:
            raise CorruptFile(
                f"{self.stored.where(part)} says {shape}; the matrix has {rows} outputs"
            )
        return shape[1]

    @cached_property
    def group(self) -> int | np.ndarray:  # type: ignore[override]
        if self._order is None or not self.stored.readable:
            return self._size
        return read_order(self.stored, self._order, self.shape[1], self._groups, self._size)

    @property
    def groups(self) -> int:
        return self._groups

    def codes(self, rows: range) -> np.ndarray:
        words = self.stored.array(self.parts[0])[rows.start : rows.stop : rows.step]
        return np.ascontiguousarray(fields(words, self.bits)[:, : self.shape[1]])

    def zeros(self, rows: range) -> np.ndarray | int:
        if self._zero is None:
            return 1 << (self.bits - 1)
        return fields_of(self.stored.array(self._zero).T, self.bits, rows).T.astype(np.int16)

    def scales(self, rows: range) -> np.ndarray:
        return self.stored.floats(self.parts[1], slice(rows.start, rows.stop, rows.step))


class Int8Linear(IntegerLinear):
    """int-quantized, and naive-quantized integers; `groups` are the group sizes the config has."""

    bits = 8
    kind = "compressed-tensors int8"

    def __init__(self, stored: Stored, name: str, group_sizes: tuple[int, ...]):
        super().__init__(stored, name)
        weight, scale, zero = (f"{name}.weight{part}" for part in ("", "_scale", "_zero_point"))
        self.shape = rows, cols = stored.shape(weight, ("I8",), 2)  # type: ignore[assignment]
        self.parts, self.scale = (weight, scale), scale
        dimensions = len(stored.checkpoint.entry(scale).shape) if stored.has(scale) else 0
        found = stored.shape(scale, SCALES, dimensions)
        self._rows, self.group = rows, cols
        if found in ((rows,), (rows, 1)):
            self._rows = 1
        elif found not in ((), (1,), (1, 1)):
            wide = len(found) == 2 and found[0] == rows
            size = _group_size(cols, found[1], group_sizes) if wide else None
            if size is None:
                raise CorruptFile(
                    f"{stored.where(scale)} has shape {list(found)}; [1], {[rows, 1]} or groups of "
                    f"{list(group_sizes)} inputs are needed by {weight!r:.120} of {[rows, cols]}"
                )
            self._rows, self.group = 1, size
        self._zero = zero if stored.has(zero) else None
        self.symmetric = self._zero is None
        if self._zero:
            stored.need(zero, ("I8",), found, weight)
            self.parts += (zero,)

    def codes(self, rows: range) -> np.ndarray:
        signed = self.stored.array(self.parts[0])[rows.start : rows.stop : rows.step]
        return signed.view(np.uint8) ^ np.uint8(128)

    def zeros(self, rows: range) -> np.ndarray | int:
        if self._zero is None:
            return 128
        return self._each(self._zero, rows).astype(np.int16) + 128

    def scales(self, rows: range) -> np.ndarray:
        return floats(self._each(self.scale, rows), self.stored.checkpoint.entry(self.scale).dtype)

    def _each(self, part: str, rows: range) -> np.ndarray:
        array = self.stored.array(part).reshape(-1, self.groups)
        return array[np.array(rows) // self._rows]
