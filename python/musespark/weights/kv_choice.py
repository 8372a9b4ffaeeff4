"""Which format keys and values get: chosen from what each does to the model, by its record.

The model runs over calibration text with exact keys and values, and what the formats make of them
is held against these, KV head by KV head (csrc/calibrate/kv_errors.h). Each gets the smallest of
kv4, kv8v4 and kv8 that stays within the stated error:

- ``WEIGHTS``: nats, KL of the attention weights of its worst query head, mean over queries. For
  small errors e of the logits this is half their variance under the weights: what all logits of a
  query have in common costs nothing, and a logit counts as much as its position is attended to.
- ``OUTPUT``: relative error of that head's output, root mean square: values in 4 bits show here.
- ``LOGITS``: nats, KL of the next token's distribution with all layers as chosen, mean over the
  last positions of each chunk. A model that makes more of such errors than others gets smaller
  bounds of the other two, step by step, until it is kept or all is at 8 bits.

The choice is a function of the packed model and the text alone. Measured on Spark Nano (6,000
tokens of text it was not measured with, q8): kv8 0.0004 nats and 1,104 bytes a token, kv8v4 0.0013
and 864, kv4 0.0047 and 608; WEIGHTS 0.005, 0.01, 0.02 with OUTPUT 0.1: 848, 784, 656 bytes and
0.0013, 0.0014, 0.0035 nats. Models with random weights, and benchmarks/cache_quality.py, are why
LOGITS is there: heads within their bounds at kv8v4 moved one by 0.17 nats.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from musespark import _core
from musespark.errors import CorruptFile
from musespark.families.spec import ModelSpec
from musespark.families.tensors import canonical_shapes
from musespark.families.vision.beside import packed_shapes, vision_from_dict
from musespark.weights.packed import PackedFile, checksum_of
from musespark.weights.safetensors import SafetensorsFile

WEIGHTS, OUTPUT, LOGITS = 0.01, 0.1, 0.005
FORMATS = ("kv4", "kv8v4", "kv8")  # smallest first
FALLBACK = "kv8v4"  # where nothing was measured
MOST_CHUNKS = 4  # of the text; half of them for a model of more parameters than LARGE
LARGE = 1_000_000_000
CHUNK = 512  # tokens of a chunk at most
LEAST = 256  # and at least
LAST = 64  # positions of a chunk whose logits are compared
_MEASURED = ("kv8", "kv8v4", "kv4")  # as the core lists them
# Of the bounds: what is tried in turn. With the last of them all is at 8 bits.
_TIGHTNESS = (1.0, 0.7, 0.5, 0.35, 0.25, 0.0)

Tensors = Mapping[str, tuple[str, int, int, np.ndarray]]


@dataclass(frozen=True)
class KvChoice:
    """What was chosen and what it costs on the text it was measured with.

    ``formats``: as the core reads it ("kv8", or by layer and KV head, "kv8v4,kv8/kv4").
    ``weights``, ``output``: the largest of any head; ``logits``: of the model.
    ``within``: whether that is the stated error; kv8 for all is chosen where nothing is.
    """

    formats: str
    weights: float
    output: float
    logits: float
    within: bool
    tokens: int
    checksum: str


@dataclass(frozen=True)
class _Head:
    """A KV head's worst query head, by format."""

    weights: dict[str, float]
    output: dict[str, float]

    def smallest(self, tightness: float) -> str:
        for form in FORMATS[:-1]:
            within = self.weights[form] <= WEIGHTS * tightness
            if tightness > 0 and within and self.output[form] <= OUTPUT * tightness:
                return form
        return FORMATS[-1]


def choose(
    spec: ModelSpec,
    tensors: Tensors,
    chunks: Sequence[np.ndarray],
    *,
    threads: int,
    report: Callable[[str], None] = lambda what: None,
) -> KvChoice | None:
    """The choice for a model by its run over `chunks` of tokens; None where none is long enough."""
    large = sum(math.prod(shape) for shape in canonical_shapes(spec).values()) > LARGE
    chunks = usable_chunks(chunks, MOST_CHUNKS // 2 if large else MOST_CHUNKS)
    if not chunks:
        return None
    given = asdict(spec), dict(tensors)

    def logits(run: Any) -> list[np.ndarray]:
        return [run.last_logits(chunk, LAST) for chunk in chunks]

    report("measuring formats of keys and values")
    run = _core.Calibrator(*given, threads=threads)
    exact = logits(run)
    layers = _heads(spec, run.kv_errors())
    before: list[list[str]] | None = None
    for tightness in _TIGHTNESS:
        formats = [[head.smallest(tightness) for head in row] for row in layers]
        if formats == before:
            continue
        before = formats
        text = write_formats(formats)
        report(f"measuring {summary(text, spec)}")
        run = _core.Calibrator(*given, threads=threads, kv=text)
        found = zip(exact, logits(run), strict=True)
        cost = sum(_core.mean_divergence(a, b) for a, b in found) / len(chunks)
        if cost <= LOGITS:
            break
    return _choice(layers, formats, cost, chunks)


def usable_chunks(chunks: Sequence[np.ndarray], most: int = MOST_CHUNKS) -> list[np.ndarray]:
    """At most so many of those that are long enough, from the whole text."""
    long = [chunk[:CHUNK] for chunk in chunks if chunk.size >= LEAST]
    count = min(most, len(long))
    return [long[i * (len(long) - 1) // max(count - 1, 1)] for i in range(count)]


def _heads(spec: ModelSpec, errors: Sequence[tuple[int, Any, Any, Any]]) -> list[list[_Head]]:
    layers = []
    for layer, (queries, exact, divergence, error) in zip(spec.layers, errors, strict=True):
        shape = layer.attention.kv_heads, -1, len(_MEASURED)
        with np.errstate(all="ignore"):
            # An output of nothing but zeros is exact in any format; what is not finite fits none.
            relative = np.sqrt(np.where(error == 0, 0, error / exact[:, None]))
            weights = (divergence / queries).reshape(shape).max(axis=1)
        output = relative.reshape(shape).max(axis=1)
        layers.append(
            [
                _Head(*(dict(zip(_MEASURED, map(float, row), strict=True)) for row in pair))
                for pair in zip(weights, output, strict=True)
            ]
        )
    return layers


def _choice(
    layers: list[list[_Head]], formats: list[list[str]], cost: float, chunks: list[np.ndarray]
) -> KvChoice:
    heads = [
        (head, form)
        for row, forms in zip(layers, formats, strict=True)
        for head, form in zip(row, forms, strict=True)
    ]
    weights = max(head.weights[form] for head, form in heads)
    output = max(head.output[form] for head, form in heads)
    within = weights <= WEIGHTS and output <= OUTPUT and cost <= LOGITS
    numbers = [float(np.nan_to_num(x, nan=1e9, posinf=1e9)) for x in (weights, output, cost)]
    data = np.concatenate(chunks).astype("<i4")
    return KvChoice(write_formats(formats), *numbers, within, data.size, checksum_of(data))


# ---- formats as text -----------------------------------------------------------------------------


def write_formats(layers: Sequence[Sequence[str]]) -> str:
    """As short as the core reads it."""
    rows = [row[0] if len(set(row)) == 1 else "/".join(row) for row in layers]
    return rows[0] if len(set(rows)) == 1 and "/" not in rows[0] else ",".join(rows)


def read_formats(text: str, spec: ModelSpec) -> list[list[str]]:
    """The format of each layer and KV head; ValueError where the text is for no such model."""
    heads = [layer.attention.kv_heads for layer in spec.layers]
    if text in (*FORMATS, "f32"):
        return [[text] * count for count in heads]
    rows = [row.split("/") for row in text.split(",")]
    if len(rows) != len(heads):
        raise ValueError(f"{len(rows)} layers, the model has {len(heads)}")
    layers = [row * count if len(row) == 1 else row for row, count in zip(rows, heads, strict=True)]
    for i, (row, count) in enumerate(zip(layers, heads, strict=True)):
        if len(row) != count:
            raise ValueError(f"{len(row)} KV heads in layer {i}, the model has {count}")
        if not set(row) <= set(FORMATS):
            raise ValueError(f"{min(set(row) - set(FORMATS))!r:.40} in layer {i}")
    return layers


def summary(text: str, spec: ModelSpec) -> str:
    """For people: "kv8", or how many KV heads have which: "kv8v4 11/16, kv4 5/16"."""
    heads = [form for row in read_formats(text, spec) for form in row]
    forms = sorted(set(heads), key=lambda form: (-heads.count(form), form))
    if len(forms) == 1:
        return forms[0]
    return ", ".join(f"{form} {heads.count(form)}/{len(heads)}" for form in forms)


def describe(chosen: KvChoice | None, spec: ModelSpec) -> str:
    """What auto means for a model, and what it costs."""
    if chosen is None:
        return f"{FALLBACK} for every layer; nothing was measured when this was packed"
    cost = (
        f"{chosen.logits:.2g} nats of the next token, at most {chosen.weights:.2g} nats of a "
        f"head's weights and {100 * chosen.output:.2g}% of its output"
    )
    bounds = f"{LOGITS} nats, {WEIGHTS} nats and {100 * OUTPUT:.0f}%"
    more = "" if chosen.within else f": more than {bounds}, and there are no more bits"
    return f"{summary(chosen.formats, spec)}; measured when it was packed: {cost}{more}"


def report_of(chosen: KvChoice | None, spec: ModelSpec) -> dict[str, Any] | None:
    """As :func:`inspect` and :func:`convert` give it: the record, and ``says`` what it means."""
    return None if chosen is None else asdict(chosen) | {"says": describe(chosen, spec)}


# ---- in a packed file ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Recorder:
    """What a packed file says of its keys and values, measured once its weights are written.

    ``text``: chunks of tokens, asked for then.
    """

    spec: ModelSpec
    text: Callable[[], Sequence[np.ndarray]]
    report: Callable[[str], None]

    @property
    def room(self) -> dict[str, Any]:
        """A record no shorter as JSON than any that :meth:`measure` gives."""
        formats = [[FALLBACK] * layer.attention.kv_heads for layer in self.spec.layers]
        text = ",".join("/".join(row) for row in formats)
        number = -1.7976931348623157e-308
        return asdict(KvChoice(text, number, number, number, False, 2**31, "0" * 16))

    def measure(self, path: Path) -> dict[str, Any] | None:
        """The record of the packed file at `path`; None where the text is too short for it."""
        packed = PackedFile(
            SafetensorsFile(path),
            lambda _, vision: packed_shapes(self.spec, vision_from_dict(vision, str(path))),
        )
        try:
            threads = _core.count_cores()["usable"]
            tensors = packed.tensors()
            made = choose(self.spec, tensors, self.text(), threads=threads, report=self.report)
        finally:
            packed.close()
        return None if made is None else asdict(made)


def read_record(found: Any, spec: ModelSpec, where: str) -> KvChoice | None:
    """A packed file's record; CorruptFile, naming what is wrong with it."""
    if found is None:
        return None
    kinds = {name: kind.__name__ for name, kind in _KINDS.items()}
    if not isinstance(found, dict) or {k: type(v).__name__ for k, v in found.items()} != kinds:
        raise CorruptFile(f"{where}: kv is {found!r:.80}; {', '.join(kinds)} are needed")
    for name in ("weights", "output", "logits"):
        if not 0 <= found[name] < float("inf"):
            raise CorruptFile(f"{where}: kv.{name} is {found[name]!r:.40}, not a size")
    try:
        read_formats(found["formats"], spec)
    except ValueError as error:
        raise CorruptFile(f"{where}: kv.formats is for another model: {error}") from None
    if "f32" in found["formats"]:
        raise CorruptFile(f"{where}: kv.formats is {found['formats']!r:.40}")
    return KvChoice(**found)


_KINDS = {
    "formats": str, "weights": float, "output": float, "logits": float, "within": bool,
    "tokens": int, "checksum": str,
}  # fmt: skip
