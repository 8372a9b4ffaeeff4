"""Packing by what a model's matrices read: token chunks in, what guides the rounding out.

The chunks run through the model once (more often where the sums do not fit :data:`PASS_BYTES`),
each as a sequence of its own, and every input x of a matrix is summed up:

- ``importance``: the squares x[k]^2. A column's squared error counts as much as its inputs are
  large, in the search for scales (llama.cpp calls such sums an importance matrix). For q4 and q6;
  q8 has no search.
- ``error-feedback``: all products x[i] * x[j]. What rounding a column misses is carried to the
  columns after it, so that the sum of the squared errors of x . W is small rather than that of W
  (GPTQ); scales are chosen as with ``importance``. One factorization per input; the products of a
  matrix with K inputs take 4 K^2 bytes and their factorization 12 K^2 more for a moment: 1.1 GB at
  K = 8192. A layer of Llama-3.2-1B's widths took 0.5 core seconds for 512 tokens, 6 for its
  factorizations and 12 for its rounding (two cores of Emerald Rapids with AVX-512).

The inputs are those of the unquantized model up to 50 million parameters, and of the model as q8
above: a choice by the model alone. Sums have the same bits on every machine and with any number of
threads; the factorization is a BLAS's, and its last bits are the processor's.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from musespark import _core
from musespark.errors import InvalidRequest
from musespark.families.spec import ModelSpec
from musespark.weights.packed import Planned, checksum_of

METHODS = ("importance", "error-feedback")
CHUNK = 512  # tokens of a chunk at most
PASS_BYTES = 1 << 30  # of products that are summed up in one run
LEAST_TOKENS = 256
# Of the mean square, added to each column's: none counts for nothing, and the factorization holds.
# Errors move by no more than 3% for a third or ten times of either (benchmarks/divergence.py).
FLOOR, DAMPING = 0.1, 0.01
_GUIDED = {"importance": ("q4", "q6"), "error-feedback": ("q4", "q6", "q8")}
_INPUTS = {
    "q": "attn", "k": "attn", "v": "attn", "attn_gate": "attn", "o": "o",
    "gate": "mlp", "up": "mlp", "expert_in": "mlp", "shared_gate": "mlp", "shared_up": "mlp",
    "down": "down", "shared_down": "shared_down", "expert_out": "expert_out",
}  # fmt: skip

# (what, layer, expert) as _core.Calibrator calls an input.
Input = tuple[str, int, int]
Report = Callable[[str], None]


@dataclass(frozen=True)
class Calibration:
    """How to calibrate, and with what: int32 chunks of at most :data:`CHUNK` tokens."""

    method: str
    chunks: tuple[np.ndarray, ...]

    @property
    def tokens(self) -> int:
        """In all chunks."""
        return sum(chunk.size for chunk in self.chunks)

    def record(self) -> dict[str, Any]:
        """What the packed file says of it: method, tokens, and a checksum of the chunks."""
        parts = [np.array([len(self.chunks), *(c.size for c in self.chunks)]), *self.chunks]
        data = np.concatenate([part.astype("<i4") for part in parts])
        return {"method": self.method, "tokens": self.tokens, "checksum": checksum_of(data)}


def check_method(method: str, quantize: str) -> None:
    """InvalidRequest for a method that does not exist, or that has nothing to do here."""
    if method not in METHODS:
        raise InvalidRequest(f"method is {method!r:.40}; known are {', '.join(METHODS)}")
    if quantize not in ("q4", "q8"):
        raise InvalidRequest(f"calibration is for quantize q4 or q8, and quantize is {quantize!r}")
    if quantize not in _GUIDED[method]:
        raise InvalidRequest(
            f"method {method!r}: {quantize} has no scale to choose, as its blocks' largest numbers "
            "set them; error-feedback is for it"
        )
    if method == "error-feedback":
        _linalg()


def _linalg() -> Any:
    try:
        return importlib.import_module("musespark._linalg")
    except ImportError as error:
        raise InvalidRequest(
            f"method 'error-feedback' needs an extension that is not here ({error}): musespark was "
            "built without Eigen or OpenBLAS; method 'importance' needs neither"
        ) from None


def input_of(name: str, spec: ModelSpec) -> Input | None:
    """The input that the canonical matrix `name` reads; None for one that is looked up."""
    if name == "head" or (name == "embed" and spec.tied_head):
        return ("head", 0, 0)
    if not name.startswith("layers."):
        return None
    layer, leaf = name.removeprefix("layers.").split(".", 1)
    if leaf.startswith("experts."):
        expert, leaf = leaf.removeprefix("experts.").split(".", 1)
        return ("expert_down" if leaf == "down" else "expert", int(layer), int(expert))
    return (_INPUTS[leaf], int(layer), 0) if leaf in _INPUTS else None


@dataclass
class _Found:
    """What guides the matrices that read one input; none: too few rows were seen."""

    guide: dict[str, np.ndarray] = field(default_factory=dict)


class Guides:
    """What guides the packing of each matrix (:meth:`of`), computed when it is first asked for.

    `spec` and `tensors`: the model that runs; `planned`: what will be packed, in that order.
    """

    def __init__(
        self,
        calibration: Calibration,
        spec: ModelSpec,
        tensors: Mapping[str, tuple[str, int, int, np.ndarray]],
        planned: Iterable[Planned],
        *,
        threads: int,
        report: Report,
    ):
        self._calibration, self._spec, self._report = calibration, spec, report
        self.record = calibration.record()
        self._core = _core.Calibrator(asdict(spec), dict(tensors), threads=threads)
        self._waiting: dict[Input, int] = {}  # columns of inputs whose sums are not there yet
        self._uses: dict[Input, int] = {}
        self._found: dict[Input, _Found] = {}
        self._plain = 0
        for p in (p for p in planned if not p.vector):
            key = self._input(p)
            if key is not None:
                self._waiting[key] = p.cols
                self._uses[key] = self._uses.get(key, 0) + 1
        self._matrices = sum(self._uses.values())
        self._check_tokens()

    def _check_tokens(self) -> None:
        tokens, least = self._calibration.tokens, LEAST_TOKENS
        if self._feeds:
            dense = [n for key, n in self._waiting.items() if not key[0].startswith("expert")]
            least = max(least, *dense)
        if tokens < least:
            raise InvalidRequest(
                f"calibration has {tokens} tokens; {self._calibration.method} needs at least "
                f"{least} with this model"
                + ", as many as its widest matrix has inputs"
                * (least > LEAST_TOKENS)
            )

    @property
    def _feeds(self) -> bool:
        return self._calibration.method == "error-feedback"

    def _input(self, p: Planned) -> Input | None:
        if p.format not in _GUIDED[self._calibration.method]:
            return None
        return input_of(p.name, self._spec)

    def of(self, p: Planned) -> dict[str, np.ndarray]:
        """Keywords for ``_core.pack``: importance and factor, or nothing. Once for each matrix."""
        key = self._input(p)
        if key is None:
            return {}
        if key not in self._found:
            self._collect(key)
        found = self._found[key]
        self._uses[key] -= 1
        if not self._uses[key]:
            del self._found[key]
        self._plain += not found.guide
        return found.guide

    def notes(self) -> list[str]:
        """One line where some matrices had to be packed plainly; no longer at the end than it is
        at the beginning."""
        plain = self._plain if not self._waiting and not self._found else self._matrices
        if not plain:
            return []
        return [f"{plain} of {self._matrices} matrices are packed without calibration: experts "
                "that too few tokens chose"]  # fmt: skip

    def _collect(self, first: Input) -> None:
        """One run over the chunks, for `first` and as many others as there is room for."""
        wanted, room = [first], PASS_BYTES - 4 * self._waiting[first] ** 2
        for key, cols in self._waiting.items():
            need = 4 * cols**2 if self._feeds else 0
            if key != first and need <= room:
                wanted.append(key)
                room -= need
        for key in wanted:
            self._core.want(*key, self._waiting[key], products=self._feeds)
        chunks, left = self._calibration.chunks, len(self._waiting)
        for i, chunk in enumerate(chunks):
            self._report(f"calibrating {len(wanted)} of {left} inputs, chunk {i} of {len(chunks)}")
            self._core.run(chunk)
        # The head last: what is not finite is said of where it begins.
        for key in sorted(wanted, key=lambda key: (key[0] == "head", key[1])):
            del self._waiting[key]
            self._found[key] = self._guide(key)

    def _guide(self, key: Input) -> _Found:
        rows, squares, products = self._core.take(*key)
        if not np.isfinite(squares).all():
            where = key[0] + (f" in layer {key[1]}" if key[0] != "head" else "")
            raise InvalidRequest(f"calibration: the inputs of {where} are not finite")
        expert = key[0].startswith("expert") and key[0] != "expert_out"
        if not squares.any() or (expert and rows < (squares.size if self._feeds else LEAST_TOKENS)):
            return _Found()
        mean = math.fsum(squares) / squares.size
        guide = {"importance": (squares / mean + FLOOR).astype(np.float32)}
        if products is not None:
            guide["factor"] = _linalg().factor(products, damping=DAMPING)
        return _Found(guide)
