"""Tokens that end a turn though no key or configuration says so, known by their text."""

from __future__ import annotations

from collections.abc import Container, Mapping

# Files name one end, models have several. The list is llama.cpp's, without the tokens of code
# infilling.
_ENDS = frozenset(
    [
        *("<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>"),
        *("<|calls|>", "<|flush|>", "<|endoftext|>", "<|end_of_text|>", "<end_of_turn>"),
        *("<end_of_utterance>", "<EOT>", "_<EOT>", "[EOT]", "<turn|>", "<|tool_response>"),
        *("<｜end▁of▁sentence｜>", "[e~["),
    ]
)
# These letters are also ordinary tags in some vocabularies: only control tokens count.
_CONTROL_ENDS = frozenset(["</s>", "<eos>", "[EOS]"])


def turn_ends(named: list[int], markers: Mapping[str, int], control: Container[int]) -> list[int]:
    """The ids that end a text or turn: the ``named`` ones, then the known ones in order.

    ``markers``: text -> id of every token that may be one; ``control``: those that no text spells.
    """
    known = [
        i
        for text, i in markers.items()
        if text in _ENDS or (text in _CONTROL_ENDS and i in control)
    ]
    found = dict.fromkeys([*named, *sorted(known)])
    texts = {text for text, i in markers.items() if i in found}
    if texts & {"<|return|>", "<|flush|>"} and texts & {"<|call|>", "<|calls|>"}:
        found.pop(markers.get("<|end|>", -1), None)  # harmony: it ends a channel, the turn goes on
    return list(found)
