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
}
MAX_LAYERS = 1024
MAX_WIDTH = 2**20  # hidden, intermediate, heads * head_dim
MAX_VOCAB = 2**24
MAX_CONTEXT = 2**31 - 1


class Fields:
    """One JSON object of a config. ``where`` is its path for messages, such as ``text_config``."""

    def __init__(self, values: Any, where: str = "config"):
        if not isinstance(values, Mapping):
            raise UnsupportedModel(f"{where}: an object is needed, not {values!r:.80}")
        self.values = values
        self.where = where

    def refuse(self, name: str, why: str) -> UnsupportedModel:
        """The error for field `name`, with its value."""
        return UnsupportedModel(f"{self.where}.{name} is {self.values.get(name)!r:.120}: {why}")

    def section(self, name: str) -> Fields:
        """The object under `name`; absent or null counts as empty (class defaults)."""
        value = self.values.get(name)
        return Fields({} if value is None else value, f"{self.where}.{name}")

    def integer(self, name: str, default: int, high: int, low: int = 1) -> int:
        """An integer in low … high."""
        value = self.values.get(name, default)
        if type(value) is not int or not low <= value <= high:
            raise self.refuse(name, f"an integer in {low} … {high} is needed")
        return value

    def optional_integer(self, name: str, default: int | None, high: int) -> int | None:
        """As :meth:`integer`, or None where the config says null."""
        if self.values.get(name, default) is None:
            return None
        return self.integer(name, default or 0, high)

    def number(self, name: str, default: float, low: float = 0.0) -> float:
        """A finite number greater than `low`."""
        value = self.values.get(name, default)
        if type(value) not in (int, float) or not low < value < 1e30 or not math.isfinite(value):
            raise self.refuse(name, f"a finite number greater than {low} is needed")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """A boolean; null counts as absent."""
        value = default if self.values.get(name) is None else self.values[name]
        if type(value) is not bool:
            raise self.refuse(name, "true or false is needed")
        return value

    def activation(self, name: str, default: str) -> str:
        """An activation function, as ModelSpec names it."""
        value = self.values.get(name, default)
        if not isinstance(value, str) or value not in _ACTIVATIONS:
            raise self.refuse(name, f"known activations are {sorted(_ACTIVATIONS)}")
        return _ACTIVATIONS[value]

    def layer_types(self, layers: int, default: list[str]) -> list[str]:
        """``layer_types``: full_attention or sliding_attention for each layer."""
        value = self.values.get("layer_types")
        if value is None:
            return default
        known = ("full_attention", "sliding_attention")
        if not isinstance(value, list) or len(value) != layers:
            raise self.refuse("layer_types", f"a list of {layers} (num_hidden_layers) is needed")
        for one in value:
            if one not in known:
                raise self.refuse("layer_types", f"{one!r:.80} is none of {list(known)}")
        return value

    def must_be_absent(self, *names: str) -> None:
        """Fields that change the arithmetic in ways this version does not know."""
        for name in names:
            if self.values.get(name) is not None:
                raise self.refuse(name, "this field is not supported")

    def must_be(self, name: str, allowed: Any, default: Any) -> None:
        """A field for which only one value is supported."""
        value = self.values.get(name, default)
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
        value = self.values.get("architectures")
        if value is None or value == []:
            return
        if not isinstance(value, list) or value[0] not in known:
            raise self.refuse("architectures", f"supported: {', '.join(known)}")
