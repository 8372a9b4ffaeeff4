"""ModelSpec: what a text tower is, as data. The Python twin of ``csrc/model/spec.h``.

A family (``families/<name>.py``) makes one from a checkpoint's config; ``dataclasses.asdict`` of it
goes to the core, which refuses unknown or missing fields. Field names, meanings and defaults are
those of the header; enumerations are lower-case strings.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass, field
from typing import Any

from musespark.errors import CorruptFile

NORM_KINDS = ("none", "rms", "rms_centered", "rms_scaleless", "rms_input_scaled", "layer")
ROPE_SCALINGS = ("none", "linear", "llama3", "yarn")
ACTIVATIONS = ("silu", "gelu_tanh", "gelu", "relu", "relu2")
MLP_KINDS = ("dense", "experts")


@dataclass(frozen=True)
class NormSpec:
    """``rms``: x/rms * w. ``rms_centered``: x/rms * (1 + w). ``rms_scaleless``: x/rms."""

    kind: str = "none"
    eps: float = 0.0

    @property
    def weighted(self) -> bool:
        """Whether the checkpoint has a weight vector for this norm."""
        return self.kind not in ("none", "rms_scaleless")


@dataclass(frozen=True)
class RopeSpec:
    """Rotary positions; ``dim`` is the number of rotated floats of a head."""

    dim: int = 0
    interleaved: bool = False
    theta: float = 10000.0
    scaling: str = "none"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    original_context: int = 0
    attention_factor: float = 1.0


@dataclass(frozen=True)
class AttentionSpec:
    """One attention; ``window`` 0 is full, else a query sees itself and window - 1 before."""

    heads: int = 0
    kv_heads: int = 0
    head_dim: int = 0
    window: int = 0
    rope: int = -1  # index into ModelSpec.ropes, -1: no positions
    q_norm: NormSpec = NormSpec()
    k_norm: NormSpec = NormSpec()
    query_scale: float = 1.0  # 1/sqrt(head_dim) included
    softcap: float = 0.0
    sinks: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    output_gate: bool = False


@dataclass(frozen=True)
class MlpSpec:
    """``gated``: down(f(gate(x)) * up(x)), else down(f(up(x)))."""

    kind: str = "dense"
    activation: str = "silu"
    gated: bool = True
    bias: bool = False
    intermediate: int = 0
    experts: int = 0
    experts_per_token: int = 0


@dataclass(frozen=True)
class LayerSpec:
    """One layer: norm, attention, norm, add; norm, MLP, norm, add."""

    attention: AttentionSpec = AttentionSpec()
    mlp: MlpSpec = MlpSpec()
    attn_norm: NormSpec = NormSpec()
    post_attn_norm: NormSpec = NormSpec()
    mlp_norm: NormSpec = NormSpec()
    post_mlp_norm: NormSpec = NormSpec()
    residual_gates: bool = False


@dataclass(frozen=True)
class ModelSpec:
    """The whole text tower; ``logits = softcap(logit_scale * head(final_norm(x)))``."""

    vocab: int = 0
    hidden: int = 0
    max_context: int = 0
    embed_scale: float = 1.0
    embed_norm: NormSpec = NormSpec()
    final_norm: NormSpec = NormSpec()
    tied_head: bool = False
    logit_scale: float = 1.0
    logit_softcap: float = 0.0
    ropes: list[RopeSpec] = field(default_factory=list)
    layers: list[LayerSpec] = field(default_factory=list)


_ENUMS = {
    (NormSpec, "kind"): NORM_KINDS,
    (RopeSpec, "scaling"): ROPE_SCALINGS,
    (MlpSpec, "kind"): MLP_KINDS,
    (MlpSpec, "activation"): ACTIVATIONS,
}
_MAX_LIST = 4096  # layers, ropes


def spec_to_dict(spec: ModelSpec) -> dict[str, Any]:
    """The nested dict that the core and the packed header take."""
    return dataclasses.asdict(spec)


def spec_from_dict(values: Any, where: str) -> ModelSpec:
    """The inverse of :func:`spec_to_dict` for a dict that was read from a file.

    Every field must be there with its type, and nothing else: ``CorruptFile`` names the field,
    prefixed with `where` (the file).
    """
    spec = _build(ModelSpec, values, f"{where}: spec")
    check_spec(spec, f"{where}: spec")
    return spec


def check_spec(spec: ModelSpec, where: str) -> None:
    """Refuses (``CorruptFile``) a spec whose numbers contradict each other."""

    def need(ok: bool, what: str) -> None:
        if not ok:
            raise CorruptFile(f"{where}: {what}")

    need(1 <= spec.vocab <= 2**24, f"vocab is {spec.vocab}, 1 … 2^24 is needed")
    need(1 <= spec.hidden <= 2**20, f"hidden is {spec.hidden}, 1 … 2^20 is needed")
    need(spec.max_context >= 1, f"max_context is {spec.max_context}, at least 1 is needed")
    need(spec.logit_softcap >= 0, f"logit_softcap is {spec.logit_softcap}, not below 0")
    need(len(spec.layers) >= 1, "there are no layers")
    for i, rope in enumerate(spec.ropes):
        need(rope.dim >= 2 and rope.dim % 2 == 0, f"ropes[{i}].dim is {rope.dim}, must be even")
        need(rope.theta > 0 and rope.factor > 0, f"ropes[{i}]: theta and factor must be above 0")
    for i, layer in enumerate(spec.layers):
        a, at = layer.attention, f"layers[{i}].attention"
        need(1 <= a.head_dim <= 2**16, f"{at}.head_dim is {a.head_dim}, 1 … 2^16 is needed")
        need(1 <= a.heads <= 2**16, f"{at}.heads is {a.heads}, 1 … 2^16 is needed")
        need(
            a.kv_heads >= 1 and a.heads % a.kv_heads == 0,
            f"{at}.kv_heads is {a.kv_heads}, must divide heads, {a.heads}",
        )
        need(a.window >= 0, f"{at}.window is {a.window}, not below 0")
        need(
            -1 <= a.rope < len(spec.ropes),
            f"{at}.rope is {a.rope}, there are {len(spec.ropes)} ropes",
        )
        need(a.rope < 0 or spec.ropes[a.rope].dim <= a.head_dim, f"{at}: rope wider than a head")
        need(
            1 <= layer.mlp.intermediate <= 2**24,
            f"layers[{i}].mlp.intermediate is {layer.mlp.intermediate}, 1 … 2^24 is needed",
        )


def _build(cls: type, values: Any, where: str) -> Any:
    if not isinstance(values, dict):
        raise CorruptFile(f"{where}: an object is needed, not {type(values).__name__}")
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(values) - set(hints))
    missing = sorted(set(hints) - set(values))
    if unknown or missing:
        raise CorruptFile(f"{where}: unknown fields {unknown}, missing fields {missing}")
    built = {
        name: _value(hint, values[name], f"{where}.{name}", _ENUMS.get((cls, name)))
        for name, hint in hints.items()
    }
    return cls(**built)


def _value(hint: Any, value: Any, where: str, choices: tuple[str, ...] | None) -> Any:
    if isinstance(hint, types.GenericAlias):  # list[...]
        if not isinstance(value, list) or len(value) > _MAX_LIST:
            raise CorruptFile(f"{where}: a list of at most {_MAX_LIST} is needed")
        (item,) = typing.get_args(hint)
        return [_build(item, one, f"{where}[{i}]") for i, one in enumerate(value)]
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast(type, hint), value, where)
    if hint is float and type(value) in (int, float):
        number = float(value) if abs(value) < 1e300 else float("inf")
        if number - number != 0:
            raise CorruptFile(f"{where}: {value!r} is not a finite number")
        return number
    if type(value) is not hint:
        raise CorruptFile(f"{where}: {hint.__name__} needed, got {value!r:.80}")
    if hint is int and not -1 <= value < 2**40:
        raise CorruptFile(f"{where}: {value} is outside -1 … 2^40")
    if choices is not None and value not in choices:
        raise CorruptFile(f"{where}: {value!r:.80} is none of {list(choices)}")
    return value
