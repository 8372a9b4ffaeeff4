"""From what a caller asks to prompt ids: chat options, effort, modes, ids."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from musespark.errors import ContextOverflow, InvalidRequest
from musespark.images import PromptImages
from musespark.options import CONTEMPLATING, EFFORTS, MODES
from musespark.text import (
    ChatTemplate,
    Tokenizer,
    checked_messages,
    checked_tools,
    encode_chat,
)
from musespark.text.detection import end_of_answer
from musespark.text.protocols import Protocol
from musespark.text.written import refuse_unwritten
from musespark.vocab import turn_ends

# How templates name the effort; the first that a template reads is set.
_EFFORT_VARIABLES = ("reasoning_strength", "reasoning_effort")
_THINK_VARIABLE = "enable_thinking"
# How templates name the tools; SmolLM3's takes them as xml_tools or python_tools.
_TOOL_VARIABLES = ("tools", "xml_tools", "python_tools")


def common(a: Sequence[int], b: Sequence[int]) -> list[int]:
    """What both begin with."""
    count = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
    return list(a[: min(len(a), len(b)) if count is None else count])


def token_ids(value: Any, name: str) -> np.ndarray:
    """Token ids given by the caller as an int32 array [n]; InvalidRequest for anything else."""
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, OverflowError):  # rows of unequal length, odd objects
        array = np.empty((0, 0))
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise InvalidRequest(f"{name}: got {value!r:.60}, allowed is a str or a list of token ids")
    if array.size and (array.min() < 0 or array.max() >= 2**31):
        worst = array.min() if array.min() < 0 else array.max()
        raise InvalidRequest(f"{name}: got token id {worst}, allowed is 0 to vocabulary - 1")
    return array.astype(np.int32)


def stop_ids(
    tokenizer: Tokenizer, template: ChatTemplate | None, protocol: Protocol, vocab: int
) -> frozenset[int]:
    """Every id that ends a turn: the configuration's, the protocol's own, those known by their
    text, and what the template writes behind an answer."""
    found = set(turn_ends(list(tokenizer.eos_ids), tokenizer.markers, tokenizer.special_ids))
    ends = {*protocol.ends, end_of_answer(tokenizer, template, protocol)}
    found.update(tokenizer.markers[m] for m in ends if m in tokenizer.markers)
    return frozenset(i for i in found if i < vocab)


def foreign_ends(tokenizer: Tokenizer, vocab: int) -> list[str]:
    """A note for each end that the model cannot write."""
    wrong = (i for i in tokenizer.eos_ids if i >= vocab)
    return [f"eos_token_id: {i} is not in the vocabulary of {vocab}" for i in wrong]


def spelled(tokenizer: Tokenizer, ids: Collection[int]) -> tuple[str, ...]:
    """The spellings of ids; a model may have more of them than its tokenizer."""
    known = tokenizer.vocab_size
    return tuple(tokenizer.token(i) if i < known else f"id {i}" for i in sorted(ids))


def chat_ids(
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    protocol: Protocol,
    messages: str | Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    reasoning_effort: str | None = None,
    mode: str | None = None,
    continue_final_message: bool = False,
    context: int | None = None,
    images: PromptImages | None = None,
) -> list[int]:
    """The prompt ids of a conversation, up to where the model writes.

    ``context``: the most ids there may be, to refuse what is far too long at once. ``images``:
    those of the messages, each run of their rows still one id.

    Raises InvalidRequest where the template cannot express an option or leaves out a message:
    nothing is ignored.
    """
    if template is None:
        raise InvalidRequest(
            "this model has no chat template; give one with "
            "model.template = musespark.ChatTemplate(path or text), or put a chat_template.jinja "
            "into its folder, or use generate(), which needs none"
        )
    mode = "auto" if mode is None else mode
    check_mode(mode, reasoning_effort)
    seen = images is not None and len(images) > 0
    messages = checked_messages(messages, "".join(template.sources), images=seen)
    _check_end(messages, continue_final_message, mode)
    given = _Rendering(tokenizer, template, messages, checked_tools(tools), continue_final_message)
    given.images = images
    given.variables |= _effort(given, reasoning_effort)
    given.variables |= _thinking(given, protocol, mode)
    given.name_tools()
    given.refuse_unwritten()
    ids = given.ids(context)
    if protocol.headers and mode != "auto":
        headers = protocol.headers
        ids += tokenizer.encode_pieces(
            headers.open_answer if mode == "instant" else headers.open_thought
        )
    return ids


def writes_effort(template: ChatTemplate) -> bool:
    """Whether a template reads an effort."""
    return any(name in template.variables for name in _EFFORT_VARIABLES)


def chooses_thinking(template: ChatTemplate) -> bool:
    """Whether a template reads if there is to be a thought."""
    return _THINK_VARIABLE in template.variables


def check_mode(mode: Any, effort: Any = None) -> None:
    """InvalidRequest for a mode that a turn does not have, or that contradicts its effort."""
    if mode == CONTEMPLATING:
        raise InvalidRequest(
            f"mode: got {mode!r}, which chat, achat and chat_batch have; allowed of a session's "
            f"turn is one of {list(MODES)}"
        )
    if not isinstance(mode, str) or mode not in MODES:
        allowed = [*MODES, CONTEMPLATING]
        raise InvalidRequest(f"mode: got {mode!r:.60}, allowed is one of {allowed}")
    if mode == "instant" and effort is not None:
        raise InvalidRequest(f"mode 'instant' (no thought) contradicts reasoning_effort {effort!r}")


def _check_end(messages: list[dict[str, Any]], continued: Any, mode: str) -> None:
    """What the last message may be: the assistant's where it is to be continued, and only then."""
    if not isinstance(continued, bool):
        raise InvalidRequest(
            f"continue_final_message: got {continued!r:.60}, allowed is True or False"
        )
    last, where = messages[-1], f"messages[{len(messages) - 1}]"
    if not continued:
        if last["role"] == "assistant":
            raise InvalidRequest(
                f"{where}: the last message is the assistant's; end with a user's or a tool's, or "
                "go on with it by continue_final_message=True"
            )
        return
    if last["role"] != "assistant" or last.get("tool_calls"):
        what = "calls tools" if last.get("tool_calls") else f"is of the role {last['role']!r:.60}"
        raise InvalidRequest(
            f"continue_final_message: {where} {what}; allowed is an assistant's with content alone"
        )
    if mode != "auto":
        raise InvalidRequest(
            f"mode {mode!r} contradicts continue_final_message: the answer has begun"
        )


class _Rendering:
    """A conversation and the template variables it is rendered with.

    A variable that a template reads is not always one that it uses. So what a caller asked for is
    rendered with another value too: where nothing changes, it would have been ignored.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None,
        continued: bool = False,
    ):
        self.continued = continued
        self.tokenizer, self.messages, self.tools = tokenizer, messages, tools
        self.template = template.chosen(tools)
        self.variables: dict[str, Any] = {}
        self.images: PromptImages | None = None

    def name_tools(self) -> None:
        """Gives the tools the name that the template has for them."""
        if not self.tools:
            return
        known = [name for name in _TOOL_VARIABLES if name in self.template.variables]
        if known and known[0] != "tools":
            self.variables[known[0]], self.tools = self.tools, None
        if not known or not self.changes({known[0]: None}):
            raise InvalidRequest(
                f"tools: the chat template {self.template.origin} does not use tools; "
                "the model would not hear of them"
            )

    def refuse_unwritten(self) -> None:
        """InvalidRequest for a message that the template leaves out."""
        refuse_unwritten(self.messages, lambda tried: self._text({}, tried), self.template.origin)

    def changes(self, other: Mapping[str, Any]) -> bool:
        """Whether other values of some variables give another text."""
        try:
            return self._text(other) != self._text({})
        except InvalidRequest:
            self._text({})  # it is the caller's own rendering that fails: say how
            return True

    def _text(self, other: Mapping[str, Any], messages: Any = None) -> str:
        # The caller's variables come before the tokenizer's, as in ids.
        names = {"tools": self.tools, **self.tokenizer.special_tokens, **self.variables, **other}
        return self.template.render(
            messages or self.messages,
            add_generation_prompt=not self.continued,
            continue_final_message=self.continued,
            **names,
        )

    def ids(self, context: int | None) -> list[int]:
        try:
            return encode_chat(
                self.tokenizer,
                self.template,
                self.messages,
                tools=self.tools,
                continue_final_message=self.continued,
                most_tokens=context,
                images=self.images,
                **self.variables,
            )
        except InvalidRequest as error:
            needs = self.tools is None and "tools" in self.template.variables
            if isinstance(error, ContextOverflow) or not needs or "NoneType" not in str(error):
                raise
            raise InvalidRequest(
                f"{error} (there are no tools; this template may be written for tools only: "
                "pass tools=[...])"
            ) from error


def _effort(given: _Rendering, effort: str | None) -> dict[str, Any]:
    if effort is None:
        return {}
    if not isinstance(effort, str) or effort not in EFFORTS:
        raise InvalidRequest(
            f"reasoning_effort: got {effort!r:.60}, allowed is one of {list(EFFORTS)}"
        )
    for name in _EFFORT_VARIABLES:
        if name in given.template.variables:
            given.variables[name] = effort
            others = (level for level in EFFORTS if level != effort)
            if any(given.changes({name: level}) for level in others):
                return {name: effort}
            break
    raise InvalidRequest(
        f"reasoning_effort: got {effort!r}, but the chat template {given.template.origin} "
        "knows no effort"
    )


def _thinking(given: _Rendering, protocol: Protocol, mode: str) -> dict[str, Any]:
    if mode == "auto" or protocol.headers:
        return {}
    chosen = {_THINK_VARIABLE: mode == "thinking"}
    if _THINK_VARIABLE in given.template.variables:
        given.variables |= chosen
        if given.changes({_THINK_VARIABLE: mode != "thinking"}):
            return chosen
    raise InvalidRequest(
        f"mode: got {mode!r}, but the chat template {given.template.origin} cannot choose it"
    )
