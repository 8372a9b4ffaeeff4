"""What GGUF files call things, as data: one :class:`Architecture` for each general.architecture.

llama.cpp writes a model's config as keys ``<architecture>.<name>``, its layers as tensors
``blk.{i}.<part>``, a few of them in an order or form of its own. An entry of :data:`ARCHITECTURES`
says how those become the config and the tensors that one of our families reads. gguf.py applies it.

Adding one: the ``model_type`` of the family, what differs from ``_DECODER_KEYS`` and
``LAYER_NAMES``, and a case in tests/support/gguf_models.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

# Key, without the architecture -> field of the family's config. An integer or a number.
_DECODER_KEYS = {
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "context_length": "max_position_embeddings",
    "rope.freq_base": "rope_theta",
}
_EXPERT_KEYS = {
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
}
# What a file of any decoder must say.
_REQUIRED = frozenset({
    "embedding_length",
    "block_count",
    "feed_forward_length",
    "attention.head_count",
    "attention.layer_norm_rms_epsilon",
    "context_length",
})  # fmt: skip
# Norms that take the mean off: another epsilon.
_EPSILON, _RMS_EPSILON = "attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon"
_SPARSE_REQUIRED = _REQUIRED | {"expert_count", "expert_used_count"}
# Keys that change nothing.
WITHOUT_EFFECT = ("rope.scaling.finetuned", "tensor_data_layout")
# Keys that nobody has to read where they have one of these values, of this type.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "attention.sliding_window": (0,),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "expert_shared_count": (0,),
    "use_parallel_residual": (False,),
    "rope.scale_linear": (0.0, 1.0),
    "rope.scaling.factor": (0.0, 1.0),
    "rope.scaling.attn_factor": (1.0,),
    "rope.scaling.yarn_log_multiplier": (0.0,),
    "rope.scaling.yarn_ext_factor": (1.0,),
    "rope.scaling.yarn_attn_factor": (1.0,),
    "rope.scaling.yarn_beta_fast": (32.0,),
    "rope.scaling.yarn_beta_slow": (1.0,),
}

# Canonical name of a layer's part (families/tensors.py) -> what follows ``blk.{i}.``. Experts are
# stacks [experts, rows, columns] of one name.
LAYER_NAMES = {
    "attn_norm": "attn_norm.weight",
    "attn_norm_bias": "attn_norm.bias",
    "q": "attn_q.weight",
    "k": "attn_k.weight",
    "v": "attn_v.weight",
    "o": "attn_output.weight",
    "q_bias": "attn_q.bias",
    "k_bias": "attn_k.bias",
    "v_bias": "attn_v.bias",
    "o_bias": "attn_output.bias",
    "q_norm": "attn_q_norm.weight",
    "k_norm": "attn_k_norm.weight",
    "sinks": "attn_sinks.weight",
    "post_attn_norm": "post_attention_norm.weight",
    "mlp_norm": "ffn_norm.weight",
    "mlp_norm_bias": "ffn_norm.bias",
    "gate": "ffn_gate.weight",
    "up": "ffn_up.weight",
    "down": "ffn_down.weight",
    "gate_bias": "ffn_gate.bias",
    "up_bias": "ffn_up.bias",
    "down_bias": "ffn_down.bias",
    "post_mlp_norm": "post_ffw_norm.weight",
    "router": "ffn_gate_inp.weight",
    "router_bias": "ffn_gate_inp.bias",
    "experts.gate": "ffn_gate_exps.weight",
    "experts.up": "ffn_up_exps.weight",
    "experts.down": "ffn_down_exps.weight",
    "experts.gate_bias": "ffn_gate_exps.bias",
    "experts.up_bias": "ffn_up_exps.bias",
    "experts.down_bias": "ffn_down_exps.bias",
    "shared_gate": "ffn_gate_shexp.weight",
    "shared_up": "ffn_up_shexp.weight",
    "shared_down": "ffn_down_shexp.weight",
    "shared_router": "ffn_gate_inp_shexp.weight",
}
NAMES = {
    "embed": "token_embd.weight",
    "embed_norm": "token_embd_norm.weight",
    "embed_norm_bias": "token_embd_norm.bias",
    "positions": "position_embd.weight",
    "token_types": "token_types.weight",
    "final_norm": "output_norm.weight",
    "final_norm_bias": "output_norm.bias",
    "head": "output.weight",
}
ROPE_FACTORS = "rope_freqs.weight"
LONG_FACTORS, SHORT_FACTORS = "rope_factors_long.weight", "rope_factors_short.weight"
# Read as a part of the rotation, so no tensors of the model.
ROTATION = (ROPE_FACTORS, LONG_FACTORS, SHORT_FACTORS)


# Config field -> the keys that it is made of, beyond Architecture.keys: what a refusal names.
FIELD_KEYS = {
    "attention_factor": ("rope.scaling.attn_factor",),
    "beta_fast": ("rope.scaling.yarn_beta_fast",),
    "beta_slow": ("rope.scaling.yarn_beta_slow",),
    "factor": ("rope.scaling.factor",),
    "head_dim": ("attention.head_count",),
    "layer_rope_theta": ("rope.freq_base",),
    "layer_types": ("attention.sliding_window_pattern",),
    "mrope_section": ("rope.dimension_sections",),
    "num_key_value_heads": ("attention.head_count",),
    "original_max_position_embeddings": ("rope.scaling.original_context_length",),
    "partial_rotary_factor": ("rope.dimension_count",),
    "query_pre_attn_scalar": ("attention.key_length", "attention.head_count"),
    "rope_type": ("rope.scaling.type", "rope.scaling.factor"),
    "vocab_size": ("vocab_size",),
}
# Config field -> the tensor that says it, where no key does.
FIELD_TENSORS = {
    "long_factor": LONG_FACTORS,
    "rope_type": LONG_FACTORS,
    "short_factor": SHORT_FACTORS,
    "tie_word_embeddings": NAMES["head"],
    "vocab_size": NAMES["embed"],
}


# From the config that the keys give to the one that the family reads: what no key says, because
# llama.cpp holds it for known.
Complete = Callable[[dict[str, Any]], dict[str, Any]]


def _as_it_is(config: dict[str, Any]) -> dict[str, Any]:
    return config


def _head_dim(config: dict[str, Any]) -> int:
    shared = config["hidden_size"] // config["num_attention_heads"]
    return max(1, config.get("head_dim", shared))


def _query_scalar(layers_of_27b: int) -> Complete:
    # llama.cpp knows the one size of a Gemma whose scalar is not its head_dim by its layers.
    def complete(config: dict[str, Any]) -> dict[str, Any]:
        if config["num_hidden_layers"] == layers_of_27b:
            scalar = config["hidden_size"] // config["num_attention_heads"]
        else:
            scalar = _head_dim(config)
        return config | {"query_pre_attn_scalar": scalar}

    return complete


def _phi3_window(config: dict[str, Any]) -> dict[str, Any]:
    return config | {"sliding_window": config.get("sliding_window") or None}


def _granite_scales(config: dict[str, Any]) -> dict[str, Any]:
    return {"attention_multiplier": _head_dim(config) ** -0.5} | config


def _gpt_oss_rope(config: dict[str, Any]) -> dict[str, Any]:
    # The models were made with a ramp between dimensions; files do not say it.
    scaling = config.get("rope_scaling", {"rope_type": "default"})
    untruncated = {"truncate": False} if scaling["rope_type"] == "yarn" else {}
    return config | {"rope_scaling": scaling | untruncated}


def _muse_text(config: dict[str, Any]) -> dict[str, Any]:
    # Layers with a window rotate, the others have no positions; the norms of queries carry
    # qk_scale_factor as weights.
    layers = range(config["num_hidden_layers"])
    default = ["sliding_attention" if i % 4 < 3 else "full_attention" for i in layers]
    text = {"layer_types": default} | config | {"model_type": "muse_glimmer_text"}
    theta = text.get("rope_theta", 10000.0)
    text["layer_rope_theta"] = [
        theta if kind == "sliding_attention" else 0 for kind in text["layer_types"]
    ]
    tied = {"tie_word_embeddings": text.pop("tie_word_embeddings")}
    return tied | {"model_type": "muse_glimmer", "text_config": text | {"qk_scale_factor": 1.0}}


def _bert(config: dict[str, Any]) -> dict[str, Any]:
    # What only decoders have.
    gone = ("rope_theta", "num_key_value_heads", "tie_word_embeddings", "partial_rotary_factor")
    return {name: value for name, value in config.items() if name not in gone}


@dataclass(frozen=True)
class Architecture:
    """How the files of one general.architecture are read.

    ``keys``: key -> config field; ``required`` of them; ``constants``: config fields that hold for
    every file; ``complete``: what else the family needs; ``biases``: config flag -> the tensor of
    layer 0 whose presence sets it. ``fused``: stored part -> the canonical parts whose rows it
    holds one after the other. ``encoder``: it gives embeddings. ``interleaved``: rows of Q and K
    alternate between the halves that rotate together (llama.cpp's pairs are neighbours, ours half a
    head apart). ``one_added``: norm weights are stored as 1 + w. ``weighted_heads``: norms of
    queries and keys have weights, which the family's do not. ``by_axis``: positions are along three
    axes. ``variants``: key -> how a file is
    read in which it is there and not 0: an architecture that llama.cpp shares between families.
    """

    model_type: str
    keys: Mapping[str, str] = field(default_factory=lambda: _DECODER_KEYS)
    required: frozenset[str] = _REQUIRED
    constants: Mapping[str, Any] = field(default_factory=dict)
    complete: Complete = _as_it_is
    biases: Mapping[str, str] = field(default_factory=dict)
    layer_names: Mapping[str, str] = field(default_factory=lambda: LAYER_NAMES)
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    encoder: bool = False
    interleaved: bool = False
    one_added: bool = False
    weighted_heads: bool = False
    by_axis: bool = False
    variants: Mapping[str, Architecture] = field(default_factory=dict)


_WINDOW = {"attention.sliding_window": "sliding_window"}
_ATTENTION_BIAS = {"attention_bias": "attn_output.bias"}
_BERT_KEYS = {
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    _EPSILON: "layer_norm_eps",
    "context_length": "max_position_embeddings",
}
_LOCAL_EXPERT_KEYS = {
    "expert_count": "num_local_experts",
    "expert_used_count": "num_experts_per_tok",
}
_GRANITE_KEYS = _DECODER_KEYS | {
    "attention.scale": "attention_multiplier",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
}
_MIXTRAL = Architecture(
    "mixtral",
    keys=_DECODER_KEYS | _LOCAL_EXPERT_KEYS,
    required=_SPARSE_REQUIRED,
    interleaved=True,
)
_OLMO3 = Architecture("olmo3", keys=_DECODER_KEYS | _WINDOW, biases=_ATTENTION_BIAS)

ARCHITECTURES: dict[str, Architecture] = {
    "muse-glimmer": Architecture(
        "muse_glimmer",
        keys=_DECODER_KEYS
        | _WINDOW
        | {
            "logit_scale": "output_multiplier",
            "final_logit_softcapping": "final_logit_softcapping",
        },
        complete=_muse_text,
        biases=_ATTENTION_BIAS,
        layer_names=LAYER_NAMES | {"attn_gate": "attn_gate.weight"},
        interleaved=True,
        one_added=True,
        weighted_heads=True,
    ),
    "llama": Architecture(
        "llama",
        biases=_ATTENTION_BIAS | {"mlp_bias": "ffn_up.bias"},
        interleaved=True,
        variants={
            "expert_count": _MIXTRAL,
            "attention.sliding_window": Architecture(
                "mistral", keys=_DECODER_KEYS | _WINDOW, interleaved=True
            ),
        },
    ),
    # Mistral Small 3.x, whose text is a mistral without a window. What Ministral 3 has beyond it
    # stands in keys that are refused.
    "mistral3": Architecture("mistral", constants={"sliding_window": None}, interleaved=True),
    "qwen2": Architecture("qwen2"),
    "qwen2moe": Architecture(
        "qwen2_moe",
        keys=_DECODER_KEYS
        | _EXPERT_KEYS
        | {"expert_shared_feed_forward_length": "shared_expert_intermediate_size"},
        required=_SPARSE_REQUIRED
        | {"expert_feed_forward_length", "expert_shared_feed_forward_length"},
    ),
    "qwen2vl": Architecture("qwen2_vl", by_axis=True),  # Qwen2.5-VL too
    "qwen3": Architecture("qwen3", biases=_ATTENTION_BIAS),
    "qwen3vl": Architecture("qwen3_vl", biases=_ATTENTION_BIAS, by_axis=True),
    "qwen3moe": Architecture(
        "qwen3_moe",
        keys=_DECODER_KEYS | _EXPERT_KEYS,
        required=_SPARSE_REQUIRED | {"expert_feed_forward_length"},
        constants={"norm_topk_prob": True},
        biases=_ATTENTION_BIAS,
    ),
    "gpt-oss": Architecture(
        "gpt_oss",
        keys=_DECODER_KEYS
        | _WINDOW
        | {
            "expert_feed_forward_length": "intermediate_size",
            **_LOCAL_EXPERT_KEYS,
        },
        required=_SPARSE_REQUIRED - {"feed_forward_length"}
        | {"expert_feed_forward_length", "attention.sliding_window"},
        complete=_gpt_oss_rope,
        biases=_ATTENTION_BIAS,
        layer_names=LAYER_NAMES | {"mlp_norm": "post_attention_norm.weight"},
    ),
    "gemma": Architecture("gemma", biases=_ATTENTION_BIAS, one_added=True),
    "gemma2": Architecture(
        "gemma2",
        keys=_DECODER_KEYS
        | _WINDOW
        | {
            "attn_logit_softcapping": "attn_logit_softcapping",
            "final_logit_softcapping": "final_logit_softcapping",
        },
        complete=_query_scalar(46),
        biases=_ATTENTION_BIAS,
        one_added=True,
    ),
    "gemma3": Architecture(
        "gemma3_text",
        keys=_DECODER_KEYS
        | _WINDOW
        | {
            "final_logit_softcapping": "final_logit_softcapping",
            "rope.freq_base_swa": "rope_local_base_freq",
        },
        complete=_query_scalar(62),
        biases=_ATTENTION_BIAS,
        one_added=True,
    ),
    "phi3": Architecture(
        "phi3",
        keys=_DECODER_KEYS | _WINDOW,
        complete=_phi3_window,
        fused={"attn_qkv.weight": ("q", "k", "v"), "ffn_up.weight": ("gate", "up")},
    ),
    "glm4": Architecture(
        "glm4",
        biases={"attention_bias": "attn_q.bias"},
        fused={"ffn_up.weight": ("gate", "up")},
    ),
    "smollm3": Architecture(
        "smollm3",
        biases=_ATTENTION_BIAS | {"mlp_bias": "ffn_up.bias"},
        interleaved=True,
    ),
    "olmo2": Architecture(
        "olmo2", biases=_ATTENTION_BIAS, variants={"attention.sliding_window": _OLMO3}
    ),
    "granite": Architecture(
        "granite",
        keys=_GRANITE_KEYS,
        complete=_granite_scales,
        biases=_ATTENTION_BIAS | {"mlp_bias": "ffn_up.bias"},
        interleaved=True,
    ),
    "granitemoe": Architecture(
        "granitemoe",
        keys=_GRANITE_KEYS | _LOCAL_EXPERT_KEYS,
        required=_SPARSE_REQUIRED,
        complete=_granite_scales,
        biases=_ATTENTION_BIAS,
        interleaved=True,
    ),
    "starcoder2": Architecture(
        "starcoder2",
        keys=_DECODER_KEYS | {_EPSILON: "norm_epsilon"},
        required=_REQUIRED - {_RMS_EPSILON} | {_EPSILON},
        biases={"use_bias": "attn_output.bias"},
    ),
    "bert": Architecture(
        "bert",
        keys=_BERT_KEYS,
        required=frozenset(_BERT_KEYS),
        complete=_bert,
        layer_names=LAYER_NAMES
        | {
            "attn_norm": "attn_output_norm.weight",
            "attn_norm_bias": "attn_output_norm.bias",
            "mlp_norm": "layer_output_norm.weight",
            "mlp_norm_bias": "layer_output_norm.bias",
        },
        encoder=True,
    ),
}
