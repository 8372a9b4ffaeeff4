"""Which protocol a model writes, from its markers and its chat template."""

from __future__ import annotations

from musespark.errors import Error
from musespark.text.protocols import HARMONY, MUSE, THOUGHTS, Protocol, compose
from musespark.text.template import ChatTemplate
from musespark.text.tokenizer import Tokenizer

# What a template says where its model writes calls in a form; the first whose strings are all there
# counts, so the narrower forms come first.
_TEMPLATE_SIGNS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("glm", ("<tool_call>", "<arg_key>")),
    ("seed", ("<seed:tool_call>",)),
    ("xml", ("<tool_call>", "<function=")),
    ("hermes", ("<tool_call>",)),
    ("mistral", ("[TOOL_CALLS]",)),
    ("deepseek", ("<｜tool▁call▁begin｜>",)),
    ("dsml-4", ("｜DSML｜", "tool_calls>")),
    ("dsml", ("｜DSML｜", "function_calls>")),
    ("kimi", ("<|tool_call_begin|>",)),
    ("command", ("<|START_ACTION|>",)),
    ("granite", ("<|tool_call|>", "<|start_of_role|>")),
    ("phi4", ("<|tool_call|>",)),
    ("apertus", ("<|tools_prefix|>",)),
    ("gemma-4", ("<|tool_call>",)),
    ("function-gemma", ("<start_function_call>",)),
    ("llama-3", ("<|start_header_id|>", '"parameters": ')),
    ("llama-4", ("<|header_start|>",)),
    ("gemma", ("<start_of_turn>",)),
)
# Forms that a template need not mention, because the model is told of them in other ways: known by
# the tokens of the vocabulary.
_TOKEN_SIGNS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("lfm2", ("<|tool_call_start|>", "<|tool_call_end|>")),
    ("phi4", ("<|tool_call|>", "<|/tool_call|>")),
    ("llama-3", ("<|python_tag|>", "<|eom_id|>")),
    ("hermes", ("<tool_call>", "</tool_call>")),
)


def detect_protocol(tokenizer: Tokenizer, template: ChatTemplate | str | None) -> Protocol:
    """The protocol of a model, ``PLAIN`` where nothing fits.

    Header protocols are known by their tokens. Thoughts are known by the closing tag in the
    template (some templates write the opening one themselves, others leave it away), calls by the
    strings of their form in it, then by tokens.
    """
    for protocol in (HARMONY, MUSE):
        if protocol.headers and protocol.headers.markers <= tokenizer.markers.keys():
            return protocol
    if template is None:
        return compose(None, None)
    sources = [template] if isinstance(template, str) else template.sources
    text = "\n".join(sources)
    thoughts = next((name for name, tag in THOUGHTS.items() if tag.close in text), None)
    calls = next((n for n, signs in _TEMPLATE_SIGNS if all(s in text for s in signs)), None)
    if calls is None:
        known = tokenizer.markers.keys()
        calls = next((n for n, signs in _TOKEN_SIGNS if known >= set(signs)), None)
    return compose(thoughts, calls)


def end_of_answer(
    tokenizer: Tokenizer, template: ChatTemplate | None, protocol: Protocol
) -> str | None:
    """The marker that a template writes behind an answer, None where there is none.

    What ends a turn in the prompts that a model learned from ends its own, whatever the
    configuration calls the end of a text. A marker of the protocol's own goes on with the turn.
    """
    if template is None or protocol.headers:
        return None
    answer = "qzanswerx"
    turn = [{"role": "user", "content": "qzuserx"}, {"role": "assistant", "content": answer}]
    for messages in (turn, [*turn, turn[0]]):
        try:
            text = template.render(messages, **tokenizer.special_tokens)
        except Error:  # a template that takes no such conversation
            continue
        _, found, behind = text.rpartition(answer)
        if found and behind.strip():
            begun = [m for m in tokenizer.markers if behind.lstrip().startswith(m)]
            end = max(begun, key=len, default=None)
            return None if end in protocol.markers else end
    return None
