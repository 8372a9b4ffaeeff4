"""Chat templates: a conversation to the model's prompt.

``ChatTemplate(source).render(messages, ...)`` gives the string that transformers'
``apply_chat_template(..., tokenize=False)`` gives (``utils/chat_template_utils.py``, 5.23; compared
in the tests for every template at hand), from a template that runs in a metered sandbox.
:func:`encode_chat` gives ids, and keeps the rule that what people typed never becomes a marker.

Deliberate differences, where OpenAI's messages have several forms of one thing (forms.py): each
template gets the form it is written for.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jinja2
from jinja2 import meta, nodes

from musespark.errors import ContextOverflow, CorruptFile, Error, InvalidRequest
from musespark.text.conversation import (
    cut_at,
    hide,
    hide_message,
    mark_end,
    plain_inputs,
    size_of,
)
from musespark.text.forms import (
    CallForm,
    Messages,
    find_call_form,
    with_call_form,
    with_contents,
    with_known_roles,
)
from musespark.text.guard import Disguise, Guard
from musespark.text.markers import MarkerFinder
from musespark.text.meter import Meter
from musespark.text.sandbox import MeteredEnvironment
from musespark.text.tokenizer import Tokenizer, token_text
from musespark.untrusted import read_json_object, read_small_file

MAX_SOURCE_CHARS = 96 * 1024
MAX_OUTPUT_CHARS = 64 * 2**20
_environment: MeteredEnvironment | None = None
_environment_lock = threading.Lock()


def _shared_environment() -> MeteredEnvironment:
    global _environment
    with _environment_lock:
        if _environment is None:
            _environment = MeteredEnvironment()
        return _environment


class ChatTemplate:
    """A chat template.

    ``source``: a model folder (``chat_template.jinja``, else the ``chat_template`` of
    ``tokenizer_config.json`` or ``chat_template.json``), a ``.jinja`` file, or the template text.
    Where a model has several, ``name`` chooses (``default`` if there is one; the one called
    ``tool_use`` is taken by itself for a rendering with tools).

    ``time_budget``: seconds of CPU time for one rendering (DeadlineExceeded). ``max_output``:
    characters that a rendering may produce, intermediate values included, beyond 64 for each
    character of the conversation (InvalidRequest).

    Raises CorruptFile for files, InvalidRequest for text, that is not a template.
    """

    def __init__(
        self,
        source: str | os.PathLike[str],
        *,
        name: str | None = None,
        time_budget: float = 2.0,
        max_output: int = MAX_OUTPUT_CHARS,
        _named: dict[str, str] | None = None,
    ):
        self.time_budget, self.max_output = time_budget, max_output
        self.special_tokens: dict[str, str] = {}
        is_text = _named is None and isinstance(source, str) and ("{" in source or "\n" in source)
        if _named is not None:
            named = _named
        elif is_text:
            named = {"default": str(source)}
        else:
            named = self._read(Path(source))
        self.origin = "the template text" if is_text else str(source)
        failure = InvalidRequest if is_text else CorruptFile
        if name is not None and name not in named:
            raise InvalidRequest(f"{self.origin}: no template {name!r}; there are {sorted(named)}")
        chosen = name or ("default" if "default" in named else sorted(named)[0])
        self.source: str = named[chosen]
        self._tool_use: ChatTemplate | None = None
        if name is None and chosen != "tool_use" and "tool_use" in named:
            self._tool_use = ChatTemplate(
                self.origin,
                time_budget=time_budget,
                max_output=max_output,
                _named={"default": named["tool_use"]},
            )
            self._tool_use.special_tokens = self.special_tokens
        self._compile(failure)
        self._guards: dict[frozenset[str], Guard] = {}
        self._call_form: CallForm | None = None

    def identity(self) -> bytes:
        """The texts that decide what it renders."""
        sources = [self.source] if self._tool_use is None else [self.source, self._tool_use.source]
        return "\0".join(sources).encode("utf-8", "surrogatepass")

    def __repr__(self) -> str:
        return f"ChatTemplate({self.origin!r}, {len(self.source)} characters)"

    def render(
        self,
        messages: Sequence[Mapping[str, Any]] | str,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        **variables: Any,
    ) -> str:
        """The prompt text. ``messages``: OpenAI-shaped dicts, or a str for one user turn;
        ``variables`` are further template variables (``bos_token``, ``enable_thinking``, …).
        ``continue_final_message``: the text ends with the last message, an assistant's, which is
        not closed; what its content ends with in white space is the template's to keep or trim.

        Raises InvalidRequest where the template refuses the conversation or fails on it, and
        DeadlineExceeded past the time budget.
        """
        chosen = self.chosen(tools)
        ending = _ending(add_generation_prompt, continue_final_message)
        pieces = chosen._render(messages, tools, ending, variables, None)
        return "".join(text for text, _ in pieces)

    def render_segments(
        self,
        messages: Sequence[Mapping[str, Any]] | str,
        *,
        markers: Collection[str],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        special_tokens: Mapping[str, str] | None = None,
        **variables: Any,
    ) -> list[tuple[str, bool]]:
        """The prompt as pieces ``(text, is_marker)``: exactly the occurrences of ``markers`` that
        the template wrote are True, whatever messages, tools and variables spell.
        ``special_tokens`` (``bos_token``, …) are the trusted variables. Concatenated, the pieces
        are :meth:`render`'s text, but where the template looks for marker characters inside the
        messages."""
        chosen = self.chosen(tools)
        guard = chosen._guard_of(frozenset(markers))
        ending = _ending(add_generation_prompt, continue_final_message)
        return chosen._render(messages, tools, ending, variables, guard, special_tokens or {})

    @property
    def sources(self) -> list[str]:
        """The texts of the model's templates: this one's, and the ``tool_use`` one's."""
        return [self.source] + ([self._tool_use.source] if self._tool_use else [])

    def chosen(self, tools: Any) -> ChatTemplate:
        """The template for a rendering with these tools: this one, or the model's ``tool_use``."""
        return self._tool_use if tools and self._tool_use is not None else self

    def _guard_of(self, markers: frozenset[str]) -> Guard:
        guard = self._guards.get(markers)
        if guard is None:
            guard = Guard.build(markers, self.literals, self._names)
            self._guards = {markers: guard}  # one tokenizer at a time
        return guard

    # ---- loading ------------------------------------------------------------------------------

    @classmethod
    def from_named(cls, found: Any, *, origin: str) -> ChatTemplate:
        """From a ``chat_template`` field: a text, {name: text}, or a list of {name, template}."""
        return cls(origin, _named=_named(found, origin))

    def _read(self, path: Path) -> dict[str, str]:
        if not path.exists():
            raise CorruptFile(f"{path}: no such template file or folder")
        if path.is_file() and path.suffix != ".json":
            return {"default": _read_text(path)}
        folder = path if path.is_dir() else path.parent
        config = folder / "tokenizer_config.json"
        data = read_json_object(config) if config.is_file() else {}
        for key, value in data.items():
            if key.endswith("_token") and token_text(value):
                self.special_tokens[key] = token_text(value)
        if (folder / "chat_template.jinja").is_file():
            return {"default": _read_text(folder / "chat_template.jinja")}
        found = data.get("chat_template")
        if found is None and (folder / "chat_template.json").is_file():
            found = read_json_object(folder / "chat_template.json").get("chat_template")
        if found is None:
            raise CorruptFile(
                f"{folder}: no chat_template.jinja and no chat_template in its configuration"
            )
        return _named(found, f"{config}: field chat_template")

    def _compile(self, failure: type[Error]) -> None:
        if len(self.source) > MAX_SOURCE_CHARS:
            raise failure(
                f"{self.origin}: a template of {len(self.source)} characters, "
                f"more than the {MAX_SOURCE_CHARS} allowed"
            )
        environment = _shared_environment()
        try:
            tree = environment.parse(self.source)
            code = environment.compile(tree)
            shared = environment.make_globals(None)
            self._template = environment.template_class.from_code(environment, code, shared)
        except Exception as error:  # a syntax error of jinja2 or Python, too deep, a bad number
            raise failure(f"{self.origin}: not a valid chat template: {error}") from error
        constants = {
            node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)
        }
        self.literals = frozenset(constants | {n.data for n in tree.find_all(nodes.TemplateData)})
        self.variables = frozenset(meta.find_undeclared_variables(tree))
        self._names = constants | {node.attr for node in tree.find_all(nodes.Getattr)}

    # ---- rendering ----------------------------------------------------------------------------

    def _render(
        self,
        messages: Any,
        tools: Any,
        ending: str,
        variables: dict[str, Any],
        guard: Guard | None,
        special_tokens: Mapping[str, str] | None = None,
    ) -> list[tuple[str, bool]]:
        try:
            messages, tools, variables = plain_inputs(messages, tools, variables)
            # As in transformers, variables of the caller come before the tokenizer's own tokens.
            given = {**self.special_tokens, **(special_tokens or {}), **variables}
            given.update(tools=tools, add_generation_prompt=ending == _PROMPT)
            given.setdefault("documents", None)
            messages = self._in_its_forms(messages, given)
            # Nobody can write it: a character of no words, and letters that nobody knows.
            mark = f"\U00100000{secrets.token_hex(16)} "
            final = mark_end(messages, mark) if ending == _CONTINUED else None
            disguise = None
            if guard is not None:
                disguise = Disguise(guard, [messages, tools, variables])
                messages = [hide_message(disguise, message) for message in messages]
                tools, variables = (
                    hide(disguise, tools),
                    {k: hide(disguise, v) for k, v in variables.items()},
                )
        except RecursionError as error:
            raise InvalidRequest("messages or tools are nested too deeply") from error
        given.update(variables, messages=messages, tools=tools)
        reveal = disguise.reveal if disguise else str
        text = self._run(given, size_of([messages, tools, variables]), reveal)
        if final is not None:
            text = self._up_to(text, mark, final.strip(), reveal)
        return disguise.pieces(text) if disguise else [(text, False)]

    def _up_to(self, text: str, mark: str, final: str, reveal: Any) -> str:
        cut = cut_at(text, mark)
        if cut is None or final not in reveal(cut):
            raise InvalidRequest(
                f"continue_final_message: {self.origin} does not write the final message as it is: "
                f"{final!r:.80}"
            )
        return cut

    def _run(self, given: dict[str, Any], size: int, reveal: Any) -> str:
        environment = _shared_environment()
        before = environment.start(Meter(self.time_budget, self.max_output + 64 * size))
        try:
            return "".join(self._template.generate(given))
        except jinja2.TemplateError as error:
            message = reveal(error.message or type(error).__name__)
            raise InvalidRequest(
                f"the chat template refused the conversation: {message}"
            ) from error
        except Error:
            raise
        except RecursionError as error:
            raise InvalidRequest(f"{self.origin}: endless recursion in the template") from error
        except Exception as error:  # what a template's own mistakes raise: TypeError, KeyError, …
            message = reveal(f"{type(error).__name__}: {error}")
            raise InvalidRequest(
                f"{self.origin}: the template fails on this conversation: {message}"
            ) from error
        finally:
            environment.stop(before)

    def _in_its_forms(self, messages: Messages, given: dict[str, Any]) -> Messages:
        """The messages (our own copy) in the forms that this template is written for."""

        def attempt(tried: Messages, names: dict[str, Any]) -> str | None:
            size = size_of([tried, names.get("tools")])
            try:
                return self._run({**names, "messages": tried}, size, str)
            except InvalidRequest:  # this is the question: the template cannot take this form
                return None

        def probe(tried: Messages, tools: Any) -> str | None:
            names = {"documents": None, "bos_token": "", "eos_token": "", **self.special_tokens}
            return attempt(tried, {**names, "tools": tools, "add_generation_prompt": False})

        messages = with_known_roles(messages, self.literals)
        if any(message.get("tool_calls") for message in messages) and self._call_form is None:
            self._call_form = find_call_form(probe)
        messages = with_call_form(messages, self._call_form or CallForm())
        return with_contents(messages, lambda tried: attempt(tried, given))


_PROMPT, _CONTINUED, _CLOSED = "prompt", "continued", "closed"


def _ending(prompt: bool, continued: bool) -> str:
    if prompt and continued:
        raise InvalidRequest("continue_final_message contradicts add_generation_prompt")
    return _PROMPT if prompt else _CONTINUED if continued else _CLOSED


def _named(found: Any, origin: str) -> dict[str, str]:
    """{name: template text} of a ``chat_template`` field in any of its forms."""
    if isinstance(found, str):
        found = {"default": found}
    elif isinstance(found, list):
        try:
            found = {entry["name"]: entry["template"] for entry in found}
        except (TypeError, KeyError) as error:
            raise CorruptFile(f"{origin}: {error!r}") from error
    if not isinstance(found, dict) or not found:
        raise CorruptFile(f"{origin}: expected a text or named texts, got {type(found).__name__}")
    wrong = [name for name, text in found.items() if not isinstance(text, str)]
    if wrong:
        raise CorruptFile(f"{origin}: the template {wrong[0]!r} is not a text")
    return found


class WrittenImages(Protocol):
    """What :func:`encode_chat` asks of images (images.py)."""

    @property
    def markers(self) -> set[str]: ...

    def written(self, pieces: list[tuple[str, bool]], tokenizer: Tokenizer) -> list: ...


def encode_chat(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    messages: Sequence[Mapping[str, Any]] | str,
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    most_tokens: int | None = None,
    images: WrittenImages | None = None,
    **variables: Any,
) -> list[int]:
    """The prompt ids of a conversation; with ``continue_final_message`` without the generation
    prompt, up to where the last message's content ends. ContextOverflow where they are surely more
    than ``most_tokens``, before they are made.

    ``images``: the conversation's, which stand in place of what the template writes for each.

    Marker ids come from the template alone. Equal to encoding the whole rendering with markers
    parsed wherever messages, tools and variables spell none.
    """
    control = tokenizer.control_markers(template.chosen(tools).literals)
    if images is not None:
        control |= images.markers & tokenizer.markers.keys()
    pieces = template.render_segments(
        messages,
        markers=control,
        tools=tools,
        add_generation_prompt=add_generation_prompt and not continue_final_message,
        continue_final_message=continue_final_message,
        special_tokens=tokenizer.special_tokens,
        **variables,
    )
    if images is not None:
        pieces = images.written(pieces, tokenizer)
    refuse_early(tokenizer, sum(len(text) for text, marker in pieces if not marker), most_tokens)
    words = tokenizer.markers.keys() - control
    if words:
        finder = MarkerFinder(words)
        pieces = [p for piece in pieces for p in ([piece] if piece[1] else finder.split(piece[0]))]
    return tokenizer.encode_pieces(pieces)


def refuse_early(tokenizer: Tokenizer, chars: int, most_tokens: int | None) -> None:
    """ContextOverflow for a text that surely has more tokens than the context."""
    needed = tokenizer.at_least(chars)
    if most_tokens is not None and needed > most_tokens:
        raise ContextOverflow(
            f"the prompt has {chars} characters, at least {needed} tokens; "
            f"the context has {most_tokens}",
            needed=needed,
            limit=most_tokens,
        )


def _read_text(path: Path) -> str:
    try:
        return read_small_file(path, 4 * MAX_SOURCE_CHARS).decode("utf-8")
    except UnicodeDecodeError as error:
        raise CorruptFile(f"{path}: not UTF-8: {error}") from error
