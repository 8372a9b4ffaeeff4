"""Checked access to a checkpoint's config: every refusal names the field and the value."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from musespark.errors import UnsupportedModel

# transformers' names of activation functions -> ours. gelu_new is the tanh formula written out.
_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
    "quick_gelu": "quick_gelu",
}
# Keys that do not change what a text tower computes: bookkeeping, training, special tokens (which
# the tokenizer and generation_config.json give), and the parts of a model that are not its text.
_IDLE_KEYS = """
    _attn_implementation _attn_implementation_autoset _commit_hash _name_or_path
    _pad_token_id _sliding_window_pattern _vision_feature_layer
    add_cross_attention architectures attn_implementation audio_config
    audio_token_id auto_map bad_words_ids boi_token_id boi_token_index bos_token_id
    cache_implementation chunk_size_feed_forward cross_attention_hidden_size
    decoder_start_token_id description dtype eoi_token_id eoi_token_index eos_token_id
    finetuning_task fsdp generation_config id2label image_token_id
    image_seq_length image_token_index init_std initial_context_length initializer_range is_decoder
    is_encoder_decoder is_llama_config keys_to_ignore_at_inference label2id length_penalty
    max_window_layers mm_tokens_per_image model_type multimodal_projector_bias num_labels
    out_hidden_size
    output_attentions output_hidden_states output_router_logits pad_token_id prefix
    pretraining_tp problem_type
    projector_hidden_act projector_hidden_size pruned_heads remove_invalid_values return_dict
    return_dict_in_generate router_aux_loss_coef sep_token_id spatial_merge_size
    task_specific_params tf_legacy_loss tie_encoder_decoder tokenizer_class torch_dtype torchscript
    transformers.js_config transformers_version unk_token_id unsloth_fixed unsloth_version
    use_bfloat16 use_cache video_token_id vision_config vision_end_token_id vision_feature_layer
    vision_feature_select_strategy vision_start_token_id
    attention_dropout attn_dropout attn_pdrop classifier_dropout embd_dropout embd_pdrop
    embedding_dropout
    attention_probs_dropout_prob gradient_checkpointing hidden_dropout hidden_dropout_prob
    layerdrop mlp_dropout resid_dropout resid_pdrop residual_dropout
"""
_WITHOUT_EFFECT = frozenset(_IDLE_KEYS.split())
# Keys that change what some family computes. A family that does not read one refuses a config in
# which it is set; null and false mean not set, and so does the value given here.
_WITH_EFFECT = {
    "alibi": None, "attention_bias": None, "attention_multiplier": 1.0, "attn_scale": None,
    "attn_logit_softcapping": None, "clip_qkv": None, "embedding_multiplier": 1.0,
    "final_logit_softcapping": None, "full_attn_mod": 1, "interpolate_factor": 1,
    "kv_lora_rank": None, "layer_rope_theta": None, "layer_types": None, "lm_head_bias": None,
    "logit_scale": 1.0, "logits_scaling": 1.0, "mlp_bias": None, "n_shared_experts": 0,
    "no_rope_layers": None, "num_experts": 0, "num_local_experts": 0,
    "num_nextn_predict_layers": 0, "parallel_attn": None, "partial_rotary_factor": 1.0,
    "per_layer_config": None, "q_lora_rank": None, "qk_layernorm": None,
    "qk_norm": None, "quantization": None, "quantization_config": None,
    "query_pre_attn_scalar": None, "residual_multiplier": 1.0, "rope_interleaved": None,
    "rope_local_base_freq": None, "sliding_window": None, "sliding_window_pattern": None,
    "swiglu_limit": None, "use_bidirectional_attention": None, "use_mrope": None,
    "use_parallel_residual": None, "use_qk_norm": None, "use_sliding_window": None,
}  # fmt: skip
MAX_LAYERS = 1024
MAX_EXPERTS = 4096
MAX_WIDTH = 2**20  # hidden, intermediate, heads * head_dim
MAX_VOCAB = 2**24
MAX_CONTEXT = 2**31 - 1


class FieldRefused(UnsupportedModel):
    """A config in which ``field`` is not supported, and ``why``."""

    def __init__(self, message: str, *, field: str = "", why: str = ""):
        super().__init__(message)
        self.field = field
        self.why = why


class Fields:
    """One JSON object of a config, which keeps account of the keys that were read.

    ``where`` is its path for messages, such as ``config.text_config``.
    """

    def __init__(self, values: Any, where: str = "config"):
        if not isinstance(values, Mapping):
            raise UnsupportedModel(f"{where}: an object is needed, not {values!r:.80}")
        self.values = values
        self.where = where
        self._read: set[str] = set()
        self._sections: dict[str, Fields] = {}

    @classmethod
    def of(cls, config: Mapping[str, Any] | Fields) -> Fields:
        """A config as Fields; one that is Fields already goes on with its account."""
        return config if isinstance(config, Fields) else cls(config)

    def refuse(self, name: str, why: str) -> FieldRefused:
        """The error for field `name`, with its value."""
        message = f"{self.where}.{name} is {self.values.get(name)!r:.120}: {why}"
        return FieldRefused(message, field=name, why=why)

    def get(self, name: str, default: Any = None) -> Any:
        """The value as it stands."""
        self._read.add(name)
        return self.values.get(name, default)

    def has(self, name: str) -> bool:
        """Whether a value that is not null is there."""
        return self.get(name) is not None

    def section(self, name: str) -> Fields:
        """The object under `name`; absent or null counts as empty (class defaults)."""
        if name not in self._sections:
            value = self.get(name)
            self._sections[name] = Fields({} if value is None else value, f"{self.where}.{name}")
        return self._sections[name]

    def laid_over(self, base: Fields) -> Fields:
        """The keys of both objects, these before the base's. All of them count as read: whoever
        asks for this checks every key."""
        for one in (self, base):
            one._read.update(one.values)
        return Fields({**base.values, **self.values}, self.where)

    def integer(self, name: str, default: int, high: int, low: int = 1) -> int:
        """An integer in low … high."""
        value = self.get(name, default)
        if type(value) is not int or not low <= value <= high:
            raise self.refuse(name, f"an integer in {low} … {high} is needed")
        return value

    def optional_integer(self, name: str, default: int | None, high: int) -> int | None:
        """As :meth:`integer`, or None where the config says null."""
        if self.get(name, default) is None:
            return None
        return self.integer(name, default or 0, high)

    def number(self, name: str, default: float, low: float = 0.0) -> float:
        """A finite number greater than `low`."""
        value = self.get(name, default)
        if type(value) not in (int, float) or not low < value < 1e30 or not math.isfinite(value):
            raise self.refuse(name, f"a finite number greater than {low} is needed")
        return float(value)

    def optional_number(self, name: str, default: float | None) -> float | None:
        """As :meth:`number`, or None where the config says null."""
        if self.get(name, default) is None:
            return None
        return self.number(name, default or 0.0)

    def number_or(self, name: str, default: float) -> float:
        """As :meth:`number`; null counts as absent."""
        return self.number(name, default) if self.has(name) else default

    def flag(self, name: str, default: bool) -> bool:
        """A boolean; null counts as absent."""
        value = self.get(name)
        value = default if value is None else value
        if type(value) is not bool:
            raise self.refuse(name, "true or false is needed")
        return value

    def activation(self, name: str, default: str) -> str:
        """An activation function, as ModelSpec names it."""
        value = self.get(name, default)
        if not isinstance(value, str) or value not in _ACTIVATIONS:
            raise self.refuse(name, f"known activations are {sorted(_ACTIVATIONS)}")
        return _ACTIVATIONS[value]

    def list_of(self, name: str, count: int, what: str = "num_hidden_layers") -> list[Any] | None:
        """A list with one element for each layer (or `what`), or None where there is none."""
        value = self.get(name)
        if value is not None and (not isinstance(value, list) or len(value) != count):
            raise self.refuse(name, f"a list of {count} ({what}) is needed")
        return value

    def layer_types(self, layers: int, default: list[str]) -> list[str]:
        """``layer_types``: full_attention or sliding_attention for each layer."""
        known = ("full_attention", "sliding_attention")
        value = self.list_of("layer_types", layers)
        for one in value or ():
            if one not in known:
                raise self.refuse("layer_types", f"{one!r:.80} is none of {list(known)}")
        return default if value is None else value

    def must_be_absent(self, *names: str) -> None:
        """Fields that change the arithmetic in ways this version does not know."""
        for name in names:
            if self.has(name):
                raise self.refuse(name, "this field is not supported")

    def must_be(self, name: str, allowed: Any, default: Any) -> None:
        """A field for which only one value is supported."""
        value = self.get(name, default)
        if value is not None and value != allowed:
            raise self.refuse(name, f"only {allowed!r} is supported")

    def check_heads(self, heads: int, kv_heads: int, head_dim: int) -> None:
        """Query heads must share the key heads evenly, and lie within the widest row."""
        if heads % kv_heads:
            raise self.refuse("num_key_value_heads", f"must divide num_attention_heads, {heads}")
        if head_dim < 1 or heads * head_dim > MAX_WIDTH:
            raise self.refuse(
                "head_dim", f"{heads} heads must be at most {MAX_WIDTH} wide together"
            )

    def architecture(self, *known: str) -> None:
        """``architectures``, where given, must name a class that generates text."""
        value = self.get("architectures")
        if value is None or value == []:
            return
        if not isinstance(value, list) or value[0] not in known:
            raise self.refuse("architectures", f"supported: {', '.join(known)}")

    def unknown(self) -> list[str]:
        """Paths of the keys that nobody read and that are not known to be without effect.

        UnsupportedModel for one that is known to change what a model computes.
        """
        found = []
        for name, value in self.values.items():
            if name in self._read or name in _WITHOUT_EFFECT:
                continue
            if name in _WITH_EFFECT:
                if value is not None and value is not False and value != _WITH_EFFECT[name]:
                    raise self.refuse(name, "this field is not supported in this family")
                continue
            found.append(f"{self.where}.{name}"[:200])
        for section in self._sections.values():
            found += section.unknown()
        return found
