"""Float8 and float4 matrices with scales: what DeepSeek, Qwen, gpt-oss and vLLM's tools write.

- float8 (``X.weight`` F8_E4M3 or F8_E5M2 [N, K]): a scale for the tensor, for each output [N] or
  [N, 1], for each group of inputs [N, K / group], or for each block [N / rows, K / cols], rounded
  up. It is multiplied, though DeepSeek calls it ``weight_scale_inv``.
- float4 (uint8 [N, K / 2], the even column in the low half of a byte): e2m1 with a scale for every
  32 columns that is a power of two (MXFP4, one e8m0 byte), or for every 16 that is a float8 divided
  by one float32 of the tensor (NVFP4). gpt-oss stores stacks, ``X_blocks`` [E, N, K / 32, 16] and
  ``X_scales`` [E, N, K / 32].
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from musespark import _core
from musespark.errors import CorruptFile
from musespark.weights.quantized.linear import Kept, Linear, Rows, Stored, by_parts
from musespark.weights.quantized.numbers import E2M1, floats, nibbles

FLOAT8 = ("F8_E4M3", "F8_E5M2")
_SCALES = ("F32", "BF16", "F16", "F8_E8M0", "U8")
_REACH = 39  # binades between the largest and the smallest scale of a row that mxfp4 holds


class Float8Linear(Linear):
    """Float8 with scales; `tiles` are the [rows, cols] the config has, of which the shapes pick."""

    def __init__(self, stored: Stored, name: str, scale: str, tiles: tuple[tuple[int, int], ...]):
        super().__init__(stored, name)
        weight = f"{name}.weight"
        self.shape = rows, cols = stored.shape(weight, FLOAT8, 2)  # type: ignore[assignment]
        self.parts = (weight, scale)
        self.kind = f"FP8 {stored.checkpoint.entry(weight).dtype[3:]}"
        dimensions = len(stored.checkpoint.entry(scale).shape) if stored.has(scale) else 0
        found = stored.shape(scale, _SCALES, dimensions)
        self._rows, self.group = rows, cols
        if found in ((), (1,), (1, 1)):
            return
        if found in ((rows,), (rows, 1)):
            self._rows = 1
            return
        shapes = {tile: (-(-rows // tile[0]), -(-cols // tile[1])) for tile in tiles}
        fitting = [tile for tile, shape in shapes.items() if shape == found]
        if len(fitting) != 1:
            wanted = " or ".join(str(list(s)) for s in ((1,), (rows, 1), *shapes.values()))
            raise CorruptFile(
                f"{stored.where(scale)} has shape {list(found)}; {wanted} is needed by "
                f"{weight!r:.120} of shape {[rows, cols]}"
            )
        self._rows, self.group = fitting[0]

    def levels(self, rows: range) -> np.ndarray:
        return self.stored.floats(self.parts[0], slice(rows.start, rows.stop, rows.step))

    def scales(self, rows: range) -> np.ndarray:
        array = self.stored.array(self.parts[1]).reshape(-1, self.groups)
        dtype = self.stored.checkpoint.entry(self.parts[1]).dtype
        return floats(array[np.array(rows) // self._rows], dtype)

    @cached_property
    def kept(self) -> Kept:
        return Kept("q8", False)


class Float4Linear(Linear):
    """Float4 with scales; `data`, `scale` and `whole` name the tensors, `expert` a part of them."""

    def __init__(
        self,
        stored: Stored,
        name: str,
        data: str,
        scale: str,
        whole: str | None = None,
        expert: int | None = None,
    ):
        super().__init__(stored, name)
        self.group = 32 if whole is None else 16
        self.kind = "MXFP4 pairs" if whole is None else "NVFP4 pairs"
        self.parts = (data, scale) if whole is None else (data, scale, whole)
        self._expert = expert
        if expert is None:
            rows, half = stored.shape(data, ("U8",), 2)
            cols = 2 * half
        else:
            count, rows, blocks, width = stored.shape(data, ("U8",), 4)
            cols = 32 * blocks
            if width != 16:
                raise CorruptFile(f"{stored.where(data)} has blocks of {width} bytes, not 16")
        if cols % self.group:
            raise CorruptFile(f"{stored.where(data)} has {cols} columns, groups {self.group}")
        lead = () if expert is None else (count,)
        dtypes = ("U8", "F8_E8M0") if whole is None else ("F8_E4M3",)
        stored.need(scale, dtypes, (*lead, rows, cols // self.group), data)
        if whole is not None:
            stored.need(whole, ("F32",), (1,), data)
        self.shape = (rows, cols)

    def _part(self, part: int, rows: range) -> np.ndarray:
        array = self.stored.array(self.parts[part]).view(np.uint8)
        array = array if self._expert is None else array[self._expert]
        return array[rows.start : rows.stop : rows.step].reshape(len(rows), -1)

    def levels(self, rows: range) -> np.ndarray:
        return E2M1[nibbles(self._part(0, rows))]

    def scales(self, rows: range) -> np.ndarray:
        if self.group == 32:
            return floats(self._part(1, rows), "F8_E8M0")
        with np.errstate(all="ignore"):
            return floats(self._part(1, rows), "F8_E4M3") / self.stored.floats(self.parts[2])[0]

    @cached_property
    def kept(self) -> Kept:
        if self.group == 16:
            return Kept("q6", False)
        return Kept("mxfp4", True) if self._in_reach() else Kept("bf16", True)

    def _in_reach(self) -> bool:
        """Whether mxfp4 holds every row; blocks of zeros count for nothing."""
        rows = range(self.shape[0] if self.stored.readable else 0)
        for i in rows[::1024]:
            scales = self._part(1, rows[i : i + 1024]).astype(np.int16)
            wide = np.flatnonzero(np.ptp(scales, axis=1) > _REACH) + i
            for row in wide:
                codes = nibbles(self._part(0, range(row, row + 1))).reshape(-1, 32) & 7
                used = scales[row - i][codes.any(axis=1)]
                if used.size and np.ptp(used) > _REACH:
                    return False
        return True

    def _pack_exact(self, rows: range, out: np.ndarray, threads: int) -> None:
        if self.kept.form == "bf16":
            bits = (by_parts(self.floats, rows, threads).view(np.uint32) >> 16).astype(np.uint16)
            _core.pack("bf16", bits, dtype="bf16", out=out, threads=threads)
            return
        codes = nibbles(self._part(0, rows)).view(np.int8)
        scales = np.ascontiguousarray(self._part(1, rows))
        _core.pack_codes("mxfp4", codes, scales, out=out, scale_dtype="e8m0", threads=threads)


class Transposed:
    """A matrix that the family knows as [inputs, outputs]; only ``.T`` is asked of it."""

    def __init__(self, linear: Float4Linear):
        self.T = Rows(linear)
        self.shape = self.T.shape[::-1]


class Experts:
    """A stack of MXFP4 matrices, for the family [experts, inputs, outputs]; indexed by expert."""

    kind = "MXFP4 stacks"

    def __init__(self, stored: Stored, name: str):
        self.stored, self.name = stored, name
        self.parts = (f"{name}_blocks", f"{name}_scales")
        self._experts: dict[int, Float4Linear] = {}
        rows, cols = self._expert(0).shape
        self.shape = (stored.checkpoint.entry(self.parts[0]).shape[0], cols, rows)

    def _expert(self, expert: int) -> Float4Linear:
        if expert not in self._experts:
            name = f"{self.name}[{expert}]"
            self._experts[expert] = Float4Linear(self.stored, name, *self.parts, expert=expert)
        return self._experts[expert]

    def __getitem__(self, expert: int) -> Transposed:
        return Transposed(self._expert(expert))

    @property
    def nbytes(self) -> int:
        """Bytes of the whole stack in the checkpoint."""
        return self._expert(0).nbytes
