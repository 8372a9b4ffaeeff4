"""A conversation that computes only what is new, in memory and on disk."""

from __future__ import annotations

import os
import threading
import warnings
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from musespark.adapters import ADDITIONS, OFF
from musespark.encrypted_file import check_passphrase
from musespark.engine import ARITHMETIC_VERSION
from musespark.errors import CorruptFile, Error, InvalidRequest, SavedWithoutCache
from musespark.events import GivenRows, Kept, Request
from musespark.generation import Stream
from musespark.grammar import GRAMMAR_OPTIONS
from musespark.images import pinned, restored, savable
from musespark.options import (
    CALL_OPTIONS,
    CHAT_OPTIONS,
    OPTION_NAMES,
    check_stream,
    unknown_argument,
)
from musespark.prompts import common
from musespark.results import ChatResult, Delta
from musespark.session_file import Conversation, Identity, SessionFile, write_session
from musespark.thinking.policy import THINKING_OPTIONS
from musespark.thought_cache import DROP, THOUGHT_OPTIONS, ThoughtChoice, checked_choice
from musespark.transfers import GivenUp, outgoing, page_sizes, restore
from musespark.untrusted import checked_path
from musespark.vocab import OUTLINE
from musespark.weights.packed import Checksum, checksum_of

if TYPE_CHECKING:
    from musespark.adapters import Adapter, Steering
    from musespark.engine import Handle, Retained
    from musespark.model import Model


class _Turn:
    """The right to the next turn of a session: held until it ends or nobody knows of it.

    ``closings``: how often the session had been closed when it began. ``given``: its options;
    ``prompt``: its token ids.
    """

    ended = False
    prompt: Sequence[int] = ()

    def __init__(self, closings: int, given: dict[str, Any] | None = None):
        self.closings, self.given = closings, given or {}


class SessionStream(Stream):
    """A streamed turn: the session takes it in at its end, and forgets it when closed early."""

    def __init__(self, session: Session, turn: _Turn, sent: list[dict[str, Any]], *args: Any):
        self._session, self._turn, self._sent = session, turn, sent
        self._forgotten = False
        super().__init__(*args)

    def _run(self) -> Iterator[Delta]:
        try:
            yield from super()._run()
            if not self._forgotten:
                self._result = self._session._take(
                    self._turn, self._sent, self.result, self.handle.retained
                )
        finally:
            self._end()

    def close(self) -> None:
        """Ends the turn; the session forgets it unless it was complete."""
        self._forgotten = True
        super().close()
        self._end()

    def _end(self) -> None:
        self._session._drop(self.handle)
        self._turn.ended = True


class Session:
    """Made by :meth:`Model.session` or :meth:`Model.resume`. ``messages`` is the conversation so
    far, as plain data.

    A turn's prompt is the whole conversation through the template, as :meth:`Model.chat` makes it,
    with the same result; keys and values of the part that has not changed since the last turn are
    taken from memory (``usage.cached_tokens``). One turn at a time.

    With ``thought_cache="drop"`` the keys and values of a turn that thought, and has ended with its
    answer, are given back at its end but for the prompt's, and those of the answer are computed
    again, in the background, where the next prompt has it: without the thought. The next turn
    begins with what is new in it. Results are those of ``keep``. After tool calls nothing is
    dropped: templates repeat the thoughts of an unfinished turn.
    """

    def __init__(
        self,
        model: Model,
        *,
        system: str | None = None,
        adapter: Adapter | str | None = None,
        steering: Steering | str | None = None,
        thoughts: ThoughtChoice | None = None,
    ):
        if system is not None and not isinstance(system, str):
            raise InvalidRequest(f"system: got {type(system).__name__}, allowed is a str or None")
        self._model = model
        # They make the keys and values of every turn: what every request gets now, all of them get.
        steered = model._adapters.steering_of(steering)
        self._made_by = {"adapter": adapter, "steering": OFF if steered is None else steered}
        self._thoughts = ThoughtChoice() if thoughts is None else thoughts
        self.system = system
        self.messages: list[dict[str, Any]] = []
        if system is not None:
            self.messages.append({"role": "system", "content": system})
        self._kept: Retained | None = None
        self._lost = False  # what was kept, when it was made
        self._settling: Handle | None = None  # makes what is kept
        self._claiming = threading.Lock()
        self._closings = 0
        self._turn: weakref.ref[_Turn] | None = None  # the one under way

    def chat(
        self,
        message: str | Mapping[str, Any] | Sequence[Mapping[str, Any]],
        *,
        stream: bool = False,
        **options: Any,
    ) -> ChatResult | SessionStream:
        """The next turn: a str (the user's), a message, or several (tool results).

        Options as :meth:`Model.chat`. If the turn fails or is stopped by closing the stream, the
        conversation is as it was before. InvalidRequest while another turn is under way, in
        whatever thread.
        """
        check_stream(stream)
        requests = self._model._requests
        sent = pinned(requests.eyes, _as_messages(message), requests.blind)
        turn = _Turn(self._closings, self._given(options))
        try:
            self._claim(turn)
            prepared = self._model._chat_request([*self.messages, *sent], turn.given, retain=True)
            request, collector, base = prepared
            turn.prompt = request.tokens
            self._settle()
            handle, collector = self._model._submit(request, collector, self._kept or base)
        except BaseException:
            turn.ended = True
            raise
        try:
            out = SessionStream(self, turn, sent, handle, collector)
            return out if stream else out.drain()
        except BaseException:
            self._drop(handle)
            turn.ended = True
            raise

    @property
    def thought_cache(self) -> str:
        """What becomes of finished thoughts' keys and values: ``keep``, ``demote`` or ``drop``."""
        return self._thoughts.cache

    @property
    def thought_cache_tokens(self) -> int | None:
        """The most tokens of a thought that are remembered while it goes on; None: no limit."""
        return self._thoughts.tokens

    def _given(self, options: dict[str, Any]) -> dict[str, Any]:
        for name in (*ADDITIONS, *THOUGHT_OPTIONS):
            if name in options:
                raise InvalidRequest(
                    f"{name}: a session has one for all its turns; give it to model.session"
                )
        if options.get("continue_final_message"):
            raise InvalidRequest(
                "continue_final_message: a session keeps whole turns; use model.chat with its "
                "messages"
            )
        return {**options, **self._made_by, **self._thoughts.fields()}

    def _claim(self, turn: _Turn) -> None:
        with self._claiming:
            before = None if self._turn is None else self._turn()
            if before is not None and not before.ended:
                raise InvalidRequest(
                    "the session's last turn has not ended; read its stream to the end or close it"
                )
            self._turn = weakref.ref(turn)

    def save(self, path: str | os.PathLike[str], *, passphrase: str | None = None) -> None:
        """Writes the session to a file, in place of one of that name: the conversation, and the
        keys and values computed so far, for :meth:`Model.resume`.

        The file is whole or the old one stays, even if the process is killed. Keys and values that
        running requests have pushed out of memory are not in it, which
        :class:`musespark.SavedWithoutCache` warns of; they are computed again then.
        ``passphrase``: encrypt it, with the library cryptography (``musespark[encrypt]``);
        whoever has lost the passphrase has lost the session. InvalidRequest while a turn is under
        way, and for messages that JSON cannot hold; :class:`musespark.WriteFailed`;
        :class:`musespark.MissingLibrary`.
        """
        target = checked_path(path, "path")
        if passphrase is not None:
            check_passphrase(passphrase)
        turn = _Turn(self._closings)
        try:
            self._claim(turn)
            complete = self._save(target, passphrase)
        finally:
            turn.ended = True
        if not complete:
            warnings.warn(
                f"{os.fspath(path)}: saved without keys and values: running requests needed their "
                "memory; resumed, the session computes them again",
                SavedWithoutCache,
                stacklevel=2,
            )

    def _save(self, path: Path, passphrase: str | None) -> bool:
        """False where keys and values had been computed and are not in the file."""
        self._settle()
        identity = _identity(self._model, self._model._adapters.made_by(self._made_by))
        messages = savable(self.messages)
        conversation = Conversation(self.system, messages, **self._thoughts.fields())
        if self._kept is not None:
            try:
                with outgoing(self._kept) as (kept, pages):
                    sizes = page_sizes(self._model._engine, kept)
                    given = (kept, sizes, pages)
                    write_session(path, identity, conversation, *given, passphrase=passphrase)
                    return len(kept.tokens) > 0
            except GivenUp:
                self._lost = True
        write_session(path, identity, conversation, passphrase=passphrase)
        return not self._lost

    @classmethod
    def _resumed(
        cls, model: Model, path: str | os.PathLike[str], passphrase: str | None
    ) -> Session:
        """See :meth:`Model.resume`."""
        if passphrase is not None:
            check_passphrase(passphrase)
        adapters = model._adapters
        with SessionFile(checked_path(path, "path"), ARITHMETIC_VERSION, passphrase) as file:
            file.check(_identity(model, None))
            said = file.conversation
            options = adapters.with_checksum(file.adapter)
            session = cls(model, **options, thoughts=_known_choice(said, path))
            session.system = said.system
            session.messages = restored(said.messages, f"{path}: header")
            sizes = page_sizes(model._engine, file.kept)
            file.check_pages(sizes)
            if sizes:
                made_by = adapters.chosen(options)
                session._kept = restore(model._engine, file.kept, made_by, sizes, file.read_page)
        return session

    def fork(self) -> Session:
        """A second conversation that goes on from here; memory is shared until they differ."""
        self._settle()
        same = {**self._made_by, "thoughts": self._thoughts}
        twin = Session(self._model, system=self.system, **same)
        twin.messages = [dict(m) for m in self.messages]
        twin._kept = None if self._kept is None else self._kept.fork()
        twin._lost = self._lost
        return twin

    def _take(
        self, turn: _Turn, sent: list[dict[str, Any]], result: ChatResult, kept: Retained | None
    ) -> ChatResult:
        # In this order Ctrl-C between two steps leaves a session that works: what is kept may know
        # more than the conversation has, or less.
        before = self._kept
        try:
            with self._claiming:
                if turn.closings == self._closings:  # else closed meanwhile: _drop gives it back
                    self._kept, self._lost = kept, False
            self.messages.extend([*sent, result.message])
        finally:
            if before is not None and before is not self._kept:
                before.release()
        if self._thoughts.cache == DROP and self._kept is kept is not None:
            return self._drop_thought(turn, result, kept)
        return result

    def _drop_thought(self, turn: _Turn, result: ChatResult, kept: Retained) -> ChatResult:
        """Begins to put what the next turn's prompt begins with in the place of a turn's keys and
        values; the result with what that gives back."""
        if not result.usage.reasoning_tokens or result.tool_calls:
            return result
        try:
            wanted, given = self._next_prompt(turn)
        except InvalidRequest:  # no user may speak next, says the template: nothing is known
            return result
        had = [*turn.prompt, *result.tokens][:-1]
        shared = common(had, wanted)
        if len(shared) >= min(len(had), len(wanted)):  # the template repeats the thought
            return result
        request = Request(
            tokens=wanted,
            max_new_tokens=0,
            retain=True,
            adapter=self._model._adapters.chosen(self._made_by),
            given=given,
        )
        try:
            handle = self._model._engine.submit(request, base=kept)
        except Error:  # closed meanwhile: the turn is complete, and nothing is given back
            return result
        self._settling, self._kept = handle, handle.retained
        kept.release()
        if result.thought_cache.evictions:
            had = list(turn.prompt)  # nothing else is retained then
        held, left = (self._bytes(len(ids)) for ids in (had, wanted))
        told = replace(
            result.thought_cache,
            freed_bytes=result.thought_cache.freed_bytes + max(0, held - left),
            recomputed_tokens=len(wanted) - len(shared),
        )
        return replace(result, thought_cache=told)

    def _next_prompt(self, turn: _Turn) -> tuple[list[int], list[GivenRows]]:
        """The ids that the next turn's prompt begins with, whatever the user will say, and the rows
        of images in them."""

        def asked(text: str) -> Request:
            messages = [*self.messages, {"role": "user", "content": text}]
            return self._model._chat_request(messages, turn.given)[0]

        one, two = asked("a"), asked("b")
        ids = common(list(one.tokens), list(two.tokens))
        return ids, [span for span in one.given if span.first + span.count <= len(ids)]

    def _bytes(self, tokens: int) -> int:
        """Of the keys and values of so many tokens."""
        kept = Kept(np.zeros(tokens, np.int32), 0, False)
        return sum(page_sizes(self._model._engine, kept))

    def _settle(self) -> None:
        """Waits until what is kept has been made; what is of weights that were replaced is given
        up."""
        kept = self._kept
        if kept is not None and not self._model._engine.has(kept):
            self._kept, self._settling, self._lost = None, None, True
            kept.release()
        handle, self._settling = self._settling, None
        if handle is None:
            return
        try:
            for _ in handle:
                pass
        except Error:  # no memory, or closed: the next turn computes it, or says so
            kept, self._kept = self._kept, None
            self._lost = True
            if kept is not None:
                kept.release()
        except BaseException:
            self._settling = handle
            raise

    def _drop(self, handle: Handle) -> None:
        """Ends a turn, and gives its memory back unless it was taken in."""
        if handle.retained is not self._kept:
            handle.discard()

    def close(self) -> None:
        """Gives the session's memory back, that of a turn under way at its end; the messages
        stay. A later turn computes all of them."""
        with self._claiming:
            self._closings += 1
            kept, self._kept, self._lost = self._kept, None, False
            settling, self._settling = self._settling, None
        if settling is not None:
            settling.cancel()
        if kept is not None:
            kept.release()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _repr_html_(self) -> str:
        import html

        rows = "".join(
            f"<tr><td style='vertical-align:top;color:gray'>{html.escape(str(m.get('role')))}</td>"
            f"<td style='white-space:pre-wrap'>{html.escape(_shown(m.get('content')))}</td></tr>"
            for m in self.messages
        )
        return f"<table>{rows}</table>"


def refuse_turn_options(given: Iterable[str]) -> None:
    """InvalidRequest for the first keyword of :meth:`Model.session` that it does not have."""
    turn = (*OPTION_NAMES, *CHAT_OPTIONS, *CALL_OPTIONS, *THINKING_OPTIONS, *GRAMMAR_OPTIONS)
    for name in given:
        if name in turn:
            raise InvalidRequest(f"{name}: an option of each turn; give it to session.chat")
        raise unknown_argument(name, ("system", *ADDITIONS, *THOUGHT_OPTIONS))


def _shown(content: Any) -> str:
    """A content as text, an image as a word."""
    if not isinstance(content, (list, tuple)):
        return str(content or "")
    return "\n".join(str(part.get("text", f"[{part.get('type')}]")) for part in content)


def _identity(model: Model, adapter: dict[str, str] | None) -> Identity:
    """What a session's file must agree with; the adapter is compared apart."""
    info, weights, template = model.info, model._weights, model.template
    assets = Checksum()
    for name, data in sorted(weights.assets.items()):
        if name != OUTLINE:  # made from another of them
            assets.update(f"{name} {len(data)}\n".encode())
            assets.update(data)
    return Identity(
        arithmetic=ARITHMETIC_VERSION,
        model=weights.identity(),
        assets=assets.hex(),
        template=None if template is None else checksum_of(template.identity()),
        kv=info.kv_formats,
        adapter=adapter,
        source=info.source,
    )


def _known_choice(said: Conversation, path: object) -> ThoughtChoice:
    try:
        return checked_choice(said.thought_cache, said.thought_cache_tokens)
    except InvalidRequest as error:
        raise CorruptFile(f"{path}: header: {error}") from None


def _as_messages(message: Any) -> list[dict[str, Any]]:
    """What a turn sends: the message or messages a caller gave in any of their forms."""
    if isinstance(message, str):
        return [{"role": "user", "content": message}]
    if isinstance(message, Mapping):
        return [dict(message)]
    if not isinstance(message, Sequence) or not all(isinstance(m, Mapping) for m in message):
        raise InvalidRequest(
            f"message: got {type(message).__name__}, allowed is a str, a message or a list of them"
        )
    if not message:
        raise InvalidRequest("message: got an empty list, allowed is at least one message")
    return [dict(m) for m in message]
