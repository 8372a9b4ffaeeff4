"""Control vectors: made of pairs of texts, bounded, kept in files, added by :meth:`Model.steer`.

A direction of a layer is the mean, over the pairs, of what the layer gives for the positive text
less what it gives for the negative one. Of the usual ways to make one (their first principal
component: Zou et al., arXiv:2310.01405; the mean: Rimsky et al., arXiv:2312.06681) the mean is the
one whose sign and length need no convention, and the one that steers best and is optimal for the
squared error (Im and Li, arXiv:2502.02716). How far to go along it is bounded, as by Azizi et al.
(arXiv:2507.04742), by the divergence of the next token's distribution: here measured on texts, not
derived.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from musespark.adapters import OFF, Steering
from musespark.calibration import sample_text
from musespark.errors import CorruptFile, InvalidRequest, UnsupportedModel
from musespark.events import Request
from musespark.options import integer, real
from musespark.prompts import common
from musespark.untrusted import checked_path
from musespark.weights.control_vectors import (
    core_tensors,
    read_control_vector,
    write_control_vector,
)

if TYPE_CHECKING:
    from musespark.model import Model

Text = str | Sequence[int]
POOLS = ("last", "mean")
MOST_STRENGTH = 1024.0  # times the mean difference: beyond it the search ends
_LEAST_STRENGTH = 2.0**-20
_BISECTIONS = 10
_UNDER_WAY = 32  # texts in the engine at once
_NEUTRAL = (8, 128)  # chunks of the package's own text, tokens of each
_UNSTEERED = {"steering": OFF}
_ROWS = 16  # of logits that are compared at once, in float64


@dataclass(frozen=True, eq=False, repr=False)
class ControlVector:
    """Directions of the residual stream, by the layer after whose block each is added.

    ``directions``: layer (from 0) -> float32 [hidden], at strength 1. ``model``: the checksum of
    the weights they were calibrated for, empty where nobody knows. ``max_kl`` and ``kl``: the bound
    that was asked for and what was measured at strength 1, in nats, by :meth:`divergence` on the
    neutral texts; None where nothing was.

    Raises InvalidRequest for directions that are none, of several widths or not finite.
    """

    directions: Mapping[int, np.ndarray]
    model: str = ""
    max_kl: float | None = None
    kl: float | None = None

    def __post_init__(self) -> None:
        checked: dict[int, np.ndarray] = {}
        for layer, given in sorted(self.directions.items()):
            where = f"directions[{integer('directions: layer', layer, 0)}]"
            direction = np.array(given, np.float32)
            if direction.ndim != 1 or direction.size == 0:
                raise InvalidRequest(f"{where}: got shape {direction.shape}, allowed is (hidden,)")
            if not np.isfinite(direction).all():
                raise InvalidRequest(f"{where}: got a number that is not finite")
            width = len(next(iter(checked.values()), direction))
            if len(direction) != width:
                raise InvalidRequest(
                    f"{where}: got {len(direction)} numbers, allowed is {width} as in the others"
                )
            direction.flags.writeable = False
            checked[int(layer)] = direction
        if not checked:
            raise InvalidRequest("directions: got none, allowed is one or more")
        object.__setattr__(self, "directions", MappingProxyType(checked))

    def __repr__(self) -> str:
        layers = ", ".join(map(str, self.layers))
        kl = "" if self.kl is None else f", KL {self.kl:.3g}"
        return f"<musespark.ControlVector of {self.hidden} on layers {layers}{kl}>"

    @property
    def layers(self) -> tuple[int, ...]:
        """Ascending."""
        return tuple(self.directions)

    @property
    def hidden(self) -> int:
        """Numbers of each direction."""
        return len(next(iter(self.directions.values())))

    def scaled(self, strength: float) -> ControlVector:
        """The same with another strength as 1; what was measured is forgotten."""
        by = np.float32(_strength(strength))
        directions = {layer: by * v for layer, v in self.directions.items()}
        return ControlVector(directions, self.model)

    # ---- files --------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a safetensors file in place of one of that name: ``direction.N`` for each layer.
        Raises :class:`musespark.WriteFailed`."""
        about = {"model": self.model}
        for name in ("max_kl", "kl"):
            if (value := getattr(self, name)) is not None:
                about[name] = repr(float(value))
        write_control_vector(checked_path(path, "path"), self.directions, about)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ControlVector:
        """Reads what :meth:`save` wrote, or a control vector of llama.cpp (GGUF), in which layers
        are counted alike.

        Raises FileNotFoundError, CorruptFile, InvalidRequest for a file of another version and
        UnsupportedModel for one of something else.
        """
        found = checked_path(path, "path")
        if not found.is_file():
            raise FileNotFoundError(f"there is no file {os.fspath(path)!r:.300}")
        directions, about = read_control_vector(found)
        try:
            numbers = {n: float(about[n]) for n in ("max_kl", "kl") if n in about}
            return cls(directions, about.get("model", ""), **numbers)
        except (InvalidRequest, ValueError) as error:
            raise CorruptFile(f"{path}: {error}") from None

    # ---- calibration --------------------------------------------------------------------------

    @classmethod
    def calibrate(
        cls,
        model: Model,
        positive: Sequence[Text],
        negative: Sequence[Text],
        *,
        neutral: Sequence[Text] | None = None,
        max_kl: float = 0.1,
        layers: tuple[int, int] | Sequence[int] | None = None,
        pool: str = "last",
    ) -> ControlVector:
        """The vector that leads from the ``negative`` to the ``positive`` texts, pair by pair, as
        long as ``max_kl`` allows.

        Texts are strs (encoded as :meth:`Model.generate` does) or token ids. ``pool``: the states
        at each text's last token, or the mean over the tokens behind what a pair has in common.
        ``layers``: as of :meth:`Model.steer`; None is all but the last, after which nothing attends
        any more. ``neutral``: texts beside the pairs, on which the :meth:`divergence` at strength 1
        stays within ``max_kl`` nats; None is a piece of a text in the package. The strength is
        found by bisection, at most 1024 times the mean difference; of what was measured the largest
        within the bound is taken.

        Raises InvalidRequest naming a field: texts that are no pairs, a neutral text that is one of
        them, layers that the model does not have, pairs without a difference.
        """
        _check_writes(model)
        most = real("max_kl", max_kl, 0.0, 1e3, "a number of nats from 0 to 1000")
        if pool not in POOLS:
            raise InvalidRequest(f"pool: got {pool!r:.40}, allowed is one of {list(POOLS)}")
        count = len(model._weights.spec.layers)
        chosen = _chosen_layers(layers, range(count - 1), count)
        pairs = _pairs(model, positive, negative)
        texts = _neutral(model, neutral, pairs)
        difference = _mean_difference(model, pairs, pool)
        directions = {layer: difference[layer].astype(np.float32) for layer in chosen}
        if not any(direction.any() for direction in directions.values()):
            raise InvalidRequest("positive: got texts with the states of the negative ones")
        natural = cls(directions, model._weights.identity())
        strength, kl = _largest(lambda s: _divergence(model, natural, texts, s), most)
        return replace(natural.scaled(strength), max_kl=most, kl=kl)

    def divergence(self, model: Model, texts: Sequence[Text], strength: float = 1.0) -> float:
        """What steering changes: the Kullback-Leibler divergence of the steered next token's
        distribution from the unsteered one, in nats, the mean over all tokens of ``texts``."""
        ids = [model._requests.ids(text, f"texts[{i}]") for i, text in enumerate(texts)]
        if not ids:
            raise InvalidRequest("texts: got none, allowed is one or more")
        return _divergence(model, self, ids, _strength(strength))


# ---- Model.steer --------------------------------------------------------------------------------


def steer(
    model: Model,
    vector: ControlVector | str | os.PathLike[str],
    layers: tuple[int, int] | Sequence[int] | None,
    strength: float,
    everywhere: bool,
    check: bool,
    name: str | None = None,
) -> Steering:
    """See :meth:`musespark.Model.steer`."""
    _check_writes(model)
    for option, value in (("everywhere", everywhere), ("check", check)):
        if not isinstance(value, bool):
            raise InvalidRequest(f"{option}: got {value!r:.60}, allowed is True or False")
    if isinstance(vector, (str, os.PathLike)):
        vector = ControlVector.load(vector)
    if not isinstance(vector, ControlVector):
        raise InvalidRequest(
            f"vector: got {vector!r:.60}, allowed is a ControlVector or the path of one"
        )
    spec, by = model._weights.spec, _strength(strength)
    if vector.hidden != spec.hidden:
        raise InvalidRequest(f"vector: got width {vector.hidden}, the model has {spec.hidden}")
    if vector.layers[-1] >= len(spec.layers):
        raise InvalidRequest(
            f"vector: got layer {vector.layers[-1]}, the model has 0 to {len(spec.layers) - 1}"
        )
    if check and vector.model and vector.model != (own := model._weights.identity()):
        raise InvalidRequest(
            f"vector: it was calibrated for weights {vector.model}, the model has {own}; "
            "check=False uses it, its bound not known"
        )
    chosen = _chosen_layers(layers, vector.layers, len(spec.layers))
    added = vector.scaled(by).directions
    tensors = core_tensors({layer: added[layer] for layer in chosen})
    return model._adapters.steer(tensors, chosen, by, everywhere, name)


def _check_writes(model: Model) -> None:
    if model._encoder is not None:
        raise UnsupportedModel(f"{model.info.family} models write nothing that could be steered")


def _strength(given: float) -> float:
    return real("strength", given, -1e6, 1e6, "a number from -1e6 to 1e6")


def _chosen_layers(
    given: tuple[int, int] | Sequence[int] | None, known: Sequence[int], count: int
) -> tuple[int, ...]:
    """Of the ``known`` layers, of a model of ``count``, those of a tuple (first, last), both
    included, or of a list."""
    if given is None:
        return tuple(known)
    allowed = f"None, (first, last) or a list, of the layers {list(known)}"
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise InvalidRequest(f"layers: got {given!r:.60}, allowed is {allowed}")
    numbers = [integer("layers", layer, 0) for layer in given]
    if isinstance(given, tuple):
        if len(numbers) != 2 or numbers[1] >= count:
            raise InvalidRequest(f"layers: got {given!r:.60}, allowed is {allowed}")
        found = tuple(layer for layer in known if numbers[0] <= layer <= numbers[1])
    else:
        found = tuple(sorted({*numbers} & {*known}))
        if len(found) < len({*numbers}):
            raise InvalidRequest(f"layers: got {given!r:.60}, allowed is {allowed}")
    if not found:
        raise InvalidRequest(f"layers: got {given!r:.60}, allowed is {allowed}")
    return found


# ---- states -------------------------------------------------------------------------------------

Pair = tuple[np.ndarray, np.ndarray]


def _pairs(model: Model, positive: Sequence[Text], negative: Sequence[Text]) -> list[Pair]:
    given = {"positive": positive, "negative": negative}
    for name, texts in given.items():
        if isinstance(texts, str) or not isinstance(texts, Sequence) or not texts:
            raise InvalidRequest(f"{name}: got {texts!r:.60}, allowed is a list of texts")
    if len(positive) != len(negative):
        raise InvalidRequest(
            f"negative: got {len(negative)} texts, allowed is {len(positive)}, as many as positive"
        )
    columns = [
        [model._requests.ids(text, f"{name}[{i}]") for i, text in enumerate(texts)]
        for name, texts in given.items()
    ]
    return list(zip(*columns, strict=True))


def _mean_difference(model: Model, pairs: Sequence[Pair], pool: str) -> np.ndarray:
    """float64 [layers - 1, hidden]: of the pooled states, positive less negative."""

    def asked() -> Iterator[tuple[np.ndarray, int]]:
        for one, other in pairs:
            shared = len(common(one.tolist(), other.tolist()))
            for ids in (one, other):
                yield ids, min(shared, len(ids) - 1) if pool == "mean" else len(ids) - 1

    total: Any = 0.0
    for i, pooled in enumerate(_pooled(model, asked())):
        total = total + (-pooled if i % 2 else pooled)
    return total / len(pairs)


def _pooled(model: Model, asked: Iterator[tuple[np.ndarray, int]]) -> Iterator[np.ndarray]:
    """float64 [layers - 1, hidden] of each (ids, first): the mean over the tokens from ``first``
    on."""
    own = model._adapters.chosen(_UNSTEERED)
    while some := list(islice(asked, _UNDER_WAY)):
        requests = (
            Request(tokens=ids, logits="states", logits_from=first, adapter=own)
            for ids, first in some
        )
        handles = [model._engine.submit(request) for request in requests]
        for handle in handles:
            states = handle.result().logits
            mean = states.mean(axis=0, dtype=np.float64)
            yield mean.reshape(-1, model._weights.spec.hidden)


# ---- divergence ---------------------------------------------------------------------------------


def _neutral(model: Model, given: Sequence[Text] | None, pairs: Sequence[Pair]) -> list[np.ndarray]:
    """Ids of the texts that the bound holds on."""
    if given is None:
        weights = model._weights
        chunks = sample_text(weights.spec, weights.assets, str(weights.info["source"]))
        if not len(chunks):
            raise InvalidRequest("neutral: got None, and the model has no tokenizer for a text")
        some, tokens = _NEUTRAL
        return [chunk[:tokens] for chunk in chunks[:: max(1, len(chunks) // some)][:some]]
    if isinstance(given, str) or not isinstance(given, Sequence) or not given:
        raise InvalidRequest(f"neutral: got {given!r:.60}, allowed is a list of texts")
    texts = [model._requests.ids(text, f"neutral[{i}]") for i, text in enumerate(given)]
    taken = {ids.tobytes() for pair in pairs for ids in pair}
    for i, ids in enumerate(texts):
        if ids.tobytes() in taken:
            raise InvalidRequest(f"neutral[{i}]: it is one of the pairs' texts, on which no bound "
                                 "says anything")  # fmt: skip
    return texts


def _divergence(
    model: Model, vector: ControlVector, texts: Sequence[np.ndarray], strength: float
) -> float:
    """See :meth:`ControlVector.divergence`; inf where steered logits are not finite."""
    total, tokens = 0.0, 0
    with steer(model, vector, None, strength, everywhere=False, check=False) as steering:
        own = model._adapters.chosen(_UNSTEERED)
        steered = steering.id_over(own)
        for ids in texts:
            requests = (Request(tokens=ids, logits="all", adapter=a) for a in (own, steered))
            handles = [model._engine.submit(request) for request in requests]
            before, after = (handle.result().logits for handle in handles)
            total += sum(_kl_of_rows(before, after))
            tokens += len(ids)
    return total / tokens if np.isfinite(total) else float("inf")


def _kl_of_rows(before: np.ndarray, after: np.ndarray) -> Iterable[float]:
    """In nats, of each row's softmax, a few rows at a time."""
    for at in range(0, len(before), _ROWS):
        p, q = (_log_softmax(logits[at : at + _ROWS]) for logits in (before, after))
        yield float((np.exp(p) * (p - q)).sum())


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def _largest(measure: Callable[[float], float], most: float) -> tuple[float, float]:
    """A strength whose divergence was measured to be at most ``most``, and that divergence: the
    largest that doubling or halving from 1, then bisection find."""
    low, kl = 0.0, 0.0
    at = 1.0
    while (found := measure(at)) <= most and at < MOST_STRENGTH:
        low, kl, at = at, found, 2 * at
    if found <= most:
        return at, found
    high = at
    while low == 0.0:
        at = high / 2
        if at < _LEAST_STRENGTH:
            raise InvalidRequest(f"max_kl: got {most}, allowed is more: {high} of the mean "
                                 "difference is beyond it")  # fmt: skip
        if (found := measure(at)) <= most:
            low, kl = at, found
        else:
            high = at
    for _ in range(_BISECTIONS):
        at = (low + high) / 2
        if (found := measure(at)) <= most:
            low, kl = at, found
        else:
            high = at
    return low, kl
