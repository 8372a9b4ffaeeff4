"""ModelSpec: what a text tower is, as data. The Python twin of ``csrc/model/spec.h``.

A family (``families/<name>.py``) makes one from a checkpoint's config; ``dataclasses.asdict`` of it
goes to the core, which refuses unknown or missing fields. Field names, meanings and defaults are
those of the header; enumerations are lower-case strings. Fields made by :func:`_later` came after
the first packed files: a file leaves them out where they have their default.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from musespark.errors import CorruptFile, Error

NORM_KINDS = ("none", "rms", "rms_centered", "rms_scaleless", "rms_input_scaled", "layer")
ROPE_SCALINGS = ("none", "linear", "llama3", "yarn", "factors")
ACTIVATIONS = ("silu", "gelu_tanh", "gelu", "relu", "relu2", "quick_gelu")
MLP_KINDS = ("dense", "experts")
ROUTERS = ("softmax", "softmax_chosen", "sigmoid")
POOLINGS = ("none", "mean", "cls")


_LATER = {"later": True}


def _later(default: Any) -> Any:
    return field(default=default, metadata=_LATER)


@dataclass(frozen=True)
class NormSpec:
    """``rms``: x/rms * w. ``rms_centered``: x/rms * (1 + w). ``rms_scaleless``: x/rms.

    ``rms_input_scaled``: rms(x * (1 + w)). ``layer``: LayerNorm with a weight and, where ``bias``,
    a bias (``<name>_bias``).
    """

    kind: str = "none"
    eps: float = 0.0
    bias: bool = _later(False)

    @property
    def weighted(self) -> bool:
        """Whether the checkpoint has a weight vector for this norm."""
        return self.kind not in ("none", "rms_scaleless")


@dataclass(frozen=True)
class RopeSpec:
    """Rotary positions; ``dim`` is the number of rotated floats of a head.

    Scaling ``factors``: the frequency of pair i is divided by ``factors[i]`` (dim / 2 of them).
    ``short_factors`` (the same number, or none) serve in their place while a sequence has at most
    ``original_context`` tokens (longrope): all its keys are made again when it grows beyond.
    ``axes``: by pair, the axis (0 time, 1 height, 2 width) whose position turns it; none where
    positions have one axis.
    """

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
    factors: tuple[float, ...] = _later(())
    short_factors: tuple[float, ...] = _later(())
    axes: tuple[int, ...] = _later(())


@dataclass(frozen=True)
class AttentionSpec:
    """One attention; ``window`` 0 is full, else a query sees itself and window - 1 before.

    ``joint_qk_norm``: q_norm and k_norm run over all heads at once, with weights [heads*head_dim]
    and [kv_heads*head_dim]. ``out_norm`` is over head_dim of what attention gives, before the gate.
    """

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
    joint_qk_norm: bool = _later(False)
    out_norm: NormSpec = field(default=NormSpec(), metadata=_LATER)


@dataclass(frozen=True)
class MlpSpec:
    """``gated``: down(f(gate(x)) * up(x)), else down(f(up(x))).

    ``swiglu_limit`` above 0 (gated silu only): g = min(gate, limit), u = clamp(up, +-limit);
    g * sigmoid(swiglu_alpha * g) * (u + 1).

    ``experts``: every expert is such an MLP with matrices of its own, ``intermediate`` wide. The
    router's logits are router(x) [+ router_bias], times ``router_scale``; scores are their
    ``softmax`` over all experts, ``softmax_chosen`` (over the chosen ones) or ``sigmoid``. Chosen
    are the ``experts_per_token`` largest scores (plus router_correction, for the choice alone), the
    lower index first among equals; ``router_renormalize`` divides the chosen scores by their sum;
    ``routed_scale`` multiplies them.

    ``expert_width`` above 0: experts read expert_in_norm(expert_in(x)), that wide, and the sum of
    their outputs goes through expert_out to the hidden width. ``expert_out_norm`` is on each
    expert's output, before its score. ``shared_intermediate`` above 0: a dense MLP (shared_gate,
    shared_up, shared_down) beside the experts, on x itself, times sigmoid(shared_router . x) where
    ``shared_router``.
    """

    kind: str = "dense"
    activation: str = "silu"
    gated: bool = True
    bias: bool = False
    intermediate: int = 0
    experts: int = 0
    experts_per_token: int = 0
    swiglu_limit: float = _later(0.0)
    swiglu_alpha: float = _later(1.0)
    router: str = _later("softmax")
    router_renormalize: bool = _later(False)
    router_bias: bool = _later(False)
    router_correction: bool = _later(False)
    router_scale: float = _later(1.0)
    routed_scale: float = _later(1.0)
    expert_width: int = _later(0)
    expert_in_norm: NormSpec = field(default=NormSpec(), metadata=_LATER)
    expert_out_norm: NormSpec = field(default=NormSpec(), metadata=_LATER)
    shared_intermediate: int = _later(0)
    shared_router: bool = _later(False)


@dataclass(frozen=True)
class LayerSpec:
    """One layer: norm, attention, norm, add; norm, MLP, norm, add.

    ``add`` is x + residual_scale * y, or with ``residual_gates`` alpha * x + beta * y with, for
    each channel, w = gate / residual_temperature, beta = sigmoid(w) and
    alpha = sqrt(max(sigmoid(-w) * (1 + beta), 1e-3)); gates ``attn_residual_gate`` and
    ``mlp_residual_gate``.
    """

    attention: AttentionSpec = AttentionSpec()
    mlp: MlpSpec = MlpSpec()
    attn_norm: NormSpec = NormSpec()
    post_attn_norm: NormSpec = NormSpec()
    mlp_norm: NormSpec = NormSpec()
    post_mlp_norm: NormSpec = NormSpec()
    residual_gates: bool = False
    residual_temperature: float = _later(1.0)
    residual_scale: float = _later(1.0)


@dataclass(frozen=True)
class ModelSpec:
    """The whole text tower; ``logits = softcap(logit_scale * head(final_norm(x)))``.

    ``bidirectional``: an encoder. Every token sees every other, there is no head, and the result is
    ``pooling`` of the last rows (divided by its length where ``normalize``). It alone may have
    learned ``positions`` (that many rows, added to the embedding), ``token_types`` (row 0 is added)
    and ``normed_residual``: the norm is of the sum and is what goes on, x = attn_norm(x +
    attention(x)), x = mlp_norm(x + mlp(x)).

    ``mutual_rows``: rows that a prompt gives in place of embeddings (an image's) see each other in
    both directions.

    ``block`` above 0: a block drafter (csrc/model/drafter.h), which drafts that many positions at
    once, the known one included, with ``mask_token`` in place of those to come. It has no embedding
    and no head (``vocab`` is as many ids as its mask needs); what the layers ``target_layers``
    (from 0) of the model it drafts for gave goes through "context" and ``context_norm``.
    """

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
    bidirectional: bool = _later(False)
    positions: int = _later(0)
    token_types: int = _later(0)
    normed_residual: bool = _later(False)
    pooling: str = _later("none")
    normalize: bool = _later(False)
    mutual_rows: bool = _later(False)
    block: int = _later(0)
    mask_token: int = _later(0)
    target_layers: tuple[int, ...] = _later(())
    context_norm: NormSpec = field(default=NormSpec(), metadata=_LATER)

    @property
    def writes(self) -> bool:
        """Whether it writes text by itself: it is neither an encoder nor a drafter."""
        return not self.bidirectional and self.block == 0


Enums = Mapping[tuple[type, str], tuple[str, ...]]
ENUMS: Enums = {
    (NormSpec, "kind"): NORM_KINDS,
    (RopeSpec, "scaling"): ROPE_SCALINGS,
    (MlpSpec, "kind"): MLP_KINDS,
    (MlpSpec, "activation"): ACTIVATIONS,
    (MlpSpec, "router"): ROUTERS,
    (ModelSpec, "pooling"): POOLINGS,
}
_MAX_LIST = 4096  # layers, ropes
_MAX_EXPERTS = 2**16  # of all layers together


def spec_to_file(spec: Any) -> dict[str, Any]:
    """The nested dict that the packed header takes: :func:`spec_from_dict` reads it back.

    Later fields are left out where they have their default, so that files which do not use them
    are the ones that earlier versions wrote and read.
    """

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            return spec_to_file(value)
        return [plain(one) for one in value] if isinstance(value, list | tuple) else value

    return {
        f.name: plain(getattr(spec, f.name))
        for f in dataclasses.fields(spec)
        if not (f.metadata.get("later") and getattr(spec, f.name) == f.default)
    }


def spec_from_dict(values: Any, where: str) -> ModelSpec:
    """The inverse of :func:`spec_to_file` for a dict that was read from a file.

    Every field must be there with its type (later ones may be left out), and nothing else:
    ``CorruptFile`` names the field, prefixed with `where` (the file).
    """
    spec = build(ModelSpec, values, f"{where}: spec", ENUMS)
    check_spec(spec, f"{where}: spec")
    return spec


def check_spec(spec: ModelSpec, where: str, error: type[Error] = CorruptFile) -> None:
    """Refuses (`error`) a spec whose numbers contradict each other or are beyond what is run."""

    def need(ok: bool, what: str) -> None:
        if not ok:
            raise error(f"{where}: {what}")

    need(1 <= spec.vocab <= 2**24, f"vocab is {spec.vocab}, 1 … 2^24 is needed")
    need(1 <= spec.hidden <= 2**20, f"hidden is {spec.hidden}, 1 … 2^20 is needed")
    need(spec.max_context >= 1, f"max_context is {spec.max_context}, at least 1 is needed")
    need(spec.logit_softcap >= 0, f"logit_softcap is {spec.logit_softcap}, not below 0")
    need(len(spec.layers) >= 1, "there are no layers")
    need(0 <= spec.block <= 64 and spec.block != 1, f"block is {spec.block}, 0 or 2 … 64 is needed")
    for layer in spec.target_layers:
        need(0 <= layer < _MAX_LIST, f"target_layers has {layer}, 0 … {_MAX_LIST - 1} is needed")
    need(
        bool(spec.target_layers) == (spec.block > 0),
        "target_layers are a drafter's, which has some",
    )
    for i, rope in enumerate(spec.ropes):
        need(rope.dim >= 2 and rope.dim % 2 == 0, f"ropes[{i}].dim is {rope.dim}, must be even")
        need(rope.theta > 0 and rope.factor > 0, f"ropes[{i}]: theta and factor must be above 0")
        for name in ("factors", "short_factors"):
            factors = getattr(rope, name)
            wanted = (0, rope.dim // 2) if name == "short_factors" else (rope.dim // 2,)
            need(
                len(factors) in (wanted if rope.scaling == "factors" else (0,)),
                f"ropes[{i}].{name} has {len(factors)} numbers, dim is {rope.dim}",
            )
            need(all(f > 0 for f in factors), f"ropes[{i}].{name} must be above 0")
        need(
            len(rope.axes) in (0, rope.dim // 2),
            f"ropes[{i}].axes has {len(rope.axes)} numbers, dim is {rope.dim}",
        )
        need(all(a in (0, 1, 2) for a in rope.axes), f"ropes[{i}].axes must be 0, 1 or 2")
        same = bool(rope.axes) == bool(spec.ropes[0].axes)
        need(same, f"ropes[{i}].axes: all ropes have axes, or none has")
    experts = sum(layer.mlp.experts for layer in spec.layers)
    need(
        experts <= _MAX_EXPERTS,
        f"the layers have {experts} experts together, at most {_MAX_EXPERTS} are allowed",
    )
    for name in ("positions", "token_types"):
        rows = getattr(spec, name)
        need(0 <= rows <= 2**24, f"{name} is {rows}, 0 … 2^24 is needed")
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
        _check_mlp(layer.mlp, f"layers[{i}].mlp", need)


def _check_mlp(mlp: MlpSpec, at: str, need: Callable[[bool, str], None]) -> None:
    need(
        1 <= mlp.intermediate <= 2**24,
        f"{at}.intermediate is {mlp.intermediate}, 1 … 2^24 is needed",
    )
    for name in ("expert_width", "shared_intermediate"):
        width = getattr(mlp, name)
        need(0 <= width <= 2**24, f"{at}.{name} is {width}, 0 … 2^24 is needed")
    if mlp.kind == "experts":
        need(
            1 <= mlp.experts_per_token <= mlp.experts,
            f"{at}.experts_per_token is {mlp.experts_per_token} of {mlp.experts} experts",
        )
    else:
        need(mlp.experts == 0, f"{at}.experts is {mlp.experts} in a dense MLP")


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    """Its fields' types; finding them takes longer than all checks of a layer."""
    return typing.get_type_hints(cls)


def build(cls: type, values: Any, where: str, enums: Enums) -> Any:
    """A dataclass of a dict that was read from a file; `enums`: what its fields may be."""
    if not isinstance(values, dict):
        raise CorruptFile(f"{where}: an object is needed, not {type(values).__name__}")
    hints = _hints(cls)
    later = {f.name for f in dataclasses.fields(cls) if f.metadata.get("later")}
    unknown = sorted(set(values) - set(hints))
    missing = sorted(set(hints) - set(values) - later)
    if unknown or missing:
        raise CorruptFile(f"{where}: unknown fields {unknown}, missing fields {missing}")
    built = {
        name: _value(hint, values[name], f"{where}.{name}", enums, enums.get((cls, name)))
        for name, hint in hints.items()
        if name in values
    }
    return cls(**built)


def _value(
    hint: Any, value: Any, where: str, enums: Enums, choices: tuple[str, ...] | None = None
) -> Any:
    if isinstance(hint, types.GenericAlias):  # list[...]
        if not isinstance(value, list | tuple) or len(value) > _MAX_LIST:
            raise CorruptFile(f"{where}: a list of at most {_MAX_LIST} is needed")
        item = typing.get_args(hint)[0]
        if item in (float, int):
            return tuple(_value(item, one, f"{where}[{i}]", enums) for i, one in enumerate(value))
        return [build(item, one, f"{where}[{i}]", enums) for i, one in enumerate(value)]
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), value, where, enums)
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
