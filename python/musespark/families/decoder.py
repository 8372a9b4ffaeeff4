"""What the configs of most decoders say under the same keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from musespark.families.fields import MAX_CONTEXT, MAX_LAYERS, MAX_VOCAB, MAX_WIDTH, Fields
from musespark.families.spec import AttentionSpec


@dataclass(frozen=True)
class Sizes:
    """The sizes of a decoder, heads included."""

    vocab: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int

    def attention(self, **more: Any) -> AttentionSpec:
        """Attention of these heads that rotates with the first rope and has the usual scale, with
        what a family says besides or in place of it."""
        usual: dict[str, Any] = {"rope": 0, "query_scale": self.head_dim**-0.5}
        return AttentionSpec(
            heads=self.heads, kv_heads=self.kv_heads, head_dim=self.head_dim, **(usual | more)
        )


def read_sizes(
    c: Fields,
    *,
    vocab_size: int,
    hidden_size: int,
    intermediate_size: int,
    num_hidden_layers: int,
    num_attention_heads: int,
    num_key_value_heads: int | None,
    max_position_embeddings: int,
    head_dim: int | None = None,
) -> Sizes:
    """Reads the keys of these names; the arguments are the family's defaults.

    Without ``num_key_value_heads`` (absent or null) every head has its own; without ``head_dim``
    the heads share the hidden width.
    """
    hidden = c.integer("hidden_size", hidden_size, MAX_WIDTH)
    heads = c.integer("num_attention_heads", num_attention_heads, MAX_WIDTH)
    sizes = Sizes(
        vocab=c.integer("vocab_size", vocab_size, MAX_VOCAB),
        hidden=hidden,
        intermediate=c.integer("intermediate_size", intermediate_size, MAX_WIDTH),
        layers=c.integer("num_hidden_layers", num_hidden_layers, MAX_LAYERS),
        heads=heads,
        kv_heads=c.optional_integer("num_key_value_heads", num_key_value_heads, heads) or heads,
        head_dim=c.optional_integer("head_dim", head_dim, MAX_WIDTH) or hidden // heads,
        context=c.integer("max_position_embeddings", max_position_embeddings, MAX_CONTEXT),
    )
    c.check_heads(sizes.heads, sizes.kv_heads, sizes.head_dim)
    return sizes


def chosen_window(c: Fields) -> int | None:
    """``sliding_window`` where ``use_sliding_window`` says so; else transformers writes 0 there."""
    if c.flag("use_sliding_window", False):
        return c.optional_integer("sliding_window", 4096, MAX_CONTEXT)
    c.get("sliding_window")
    return None


def read_windows(c: Fields, window: int | None, default: list[str]) -> list[int]:
    """The window of each layer (0 = full attention) from ``layer_types``, else from `default`.

    A query of transformers' sliding layers at q sees keys with k > q - window: itself and the
    window - 1 positions before it, which is what AttentionSpec.window means.
    """
    kinds = c.layer_types(len(default), default)
    if not window and "sliding_attention" in kinds:
        raise c.refuse("sliding_window", "layer_types has sliding layers, so a window is needed")
    return [window or 0 if kind == "sliding_attention" else 0 for kind in kinds]
