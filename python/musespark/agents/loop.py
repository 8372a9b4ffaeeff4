"""A model that acts: it calls tools, reads what they give, and goes on until it answers.

    def spend(month: str) -> float:
        \"\"\"What was spent in a month.\"\"\"

    found = model.act("What did we spend in May?", [spend], on_event=print)
    found.content, found.uses, found.ended

The loop itself (:class:`_Loop`) does nothing that takes time: it says what is to be done next (ask
the model, ask for approval, run a tool), and who drives it does that, at once or on an event loop.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from musespark.agents import events
from musespark.agents.asked import MAX_STEPS, OWN, Approve, Asked, OnEvent
from musespark.agents.conversation import first_messages, flags_of_results
from musespark.agents.events import ProposedCall, ToolUse
from musespark.agents.result import ActResult, Step
from musespark.agents.running import Ran, Run, arun_all, run_all
from musespark.agents.telling import MAX_RESULT, Room, Share, told, told_call
from musespark.agents.tools import Tools, text_of, tools_by_name
from musespark.calling import NO_VALID_CALL, choice_after, no_such_tool
from musespark.errors import ContextOverflow, InvalidRequest
from musespark.options import TOTAL, UnknownArgument
from musespark.results import ChatResult, Delta, Usage

_CUT = ("length", "cancelled", "deadline")
_Answer = tuple[ToolUse, Any]  # what became of a call, and the content of the message about it


def act(
    chat: Callable[..., Any],
    messages: str | Sequence[Mapping[str, Any]],
    tools: Tools,
    *,
    approve: Approve | None = None,
    on_event: OnEvent | None = None,
    max_steps: int = MAX_STEPS,
    max_seconds: float | None = None,
    max_output_tokens: int | None = None,
    max_result_characters: int = MAX_RESULT,
    dry_run: bool = False,
    markers: Collection[str] = (),
    sees: bool = True,
    room: Room | None = None,
    **options: Any,
) -> ActResult:
    """A conversation to its answer, with tools that are run.

    ``chat``: :meth:`Model.chat`, or what answers like it. ``messages``: as for it. ``tools``:
    functions, whose signature and docstring the model is told (:meth:`Tool.of`), or tools with
    their own schema; they run in the caller's thread, one after the other. What they give (a str,
    what JSON knows, :class:`Content`) is told to the model up to ``max_result_characters``, and of
    one step together up to half of what the context has left; an error is told too. ``options``: of
    each turn; ``tool_choice`` is ``auto``, so that every call parses and has arguments that its
    tool allows (which needs llguidance; None leaves calls free). A choice that requires a call is
    for the turns up to the first; after that it is ``auto``.

    ``approve``: asked before each call of a tool with effects; True, False, or a text that says to
    the model why not. It must be given where there is such a tool, unless ``dry_run``, in which no
    tool with effects is run and the model is told so. ``on_event``: gets each
    :class:`~musespark.agents.events.ActEvent` as it happens.

    ``max_steps``: turns of the model; ``max_seconds``: wall clock, looked at between turns and
    calls and kept inside turns (a function that runs is not ended); ``max_output_tokens``: of all
    turns, thoughts included; it may be more than the context has. A turn gets what is left of it as
    ``max_total_tokens``, beside which a thought ends early enough for an answer. Calls that a limit
    leaves over are answered in the messages, as not run. ``markers``: the model's, of which what
    tools give should have none. ``sees``: whether it takes images; else it is told how many a tool
    gave. ``room``: its context; None: not known.

    Raises InvalidRequest, as :meth:`Model.chat` does. What ``approve`` and ``on_event`` raise ends
    it.
    """
    limits = (max_steps, max_seconds, max_output_tokens, max_result_characters)
    asked = Asked(approve, on_event, *limits, dry_run, markers, sees, room)
    loop = _Loop(messages, tools, asked, options, together=False)
    for one in loop.tools.values():
        if one.is_async:
            raise InvalidRequest(f"tools: {one.name} is a coroutine function; use aact()")
    if inspect.iscoroutinefunction(approve):
        raise _async_approve(approve)
    flow, reply = loop.flow(), None
    while True:
        try:
            want = flow.send(reply)
        except StopIteration as end:
            return end.value
        reply = _done(want, chat, approve, loop.streams)


async def aact(
    chat: Callable[..., Any],
    messages: str | Sequence[Mapping[str, Any]],
    tools: Tools,
    *,
    approve: Approve | None = None,
    **options: Any,
) -> ActResult:
    """:func:`act` for an event loop, with :meth:`Model.achat` and the same options. Tools and
    ``approve`` may be coroutine functions; functions that are not run in a thread.

    Calls that follow each other in a turn and have no effects are made together: coroutines run
    beside each other, other functions still one after the other. Results and events are in the
    order of the calls. A coroutine that runs when ``max_seconds`` are over is cancelled."""
    known = {one.name for one in fields(Asked)} & options.keys()
    asked = Asked(approve, **{name: options.pop(name) for name in known})
    loop = _Loop(messages, tools, asked, options, together=True)
    flow, reply = loop.flow(), None
    while True:
        try:
            want = flow.send(reply)
        except StopIteration as end:
            return end.value
        reply = await _adone(want, chat, approve, loop.streams)


# ---- what is to be done -------------------------------------------------------------------------


@dataclass(frozen=True)
class _Ask:
    """A turn of the model; answered with its result, or with the ContextOverflow of it."""

    messages: list[Any]
    options: Mapping[str, Any]
    take: Callable[[Delta], None]


@dataclass(frozen=True)
class _Approve:
    """Whether a call may be made; answered with what ``approve`` says."""

    call: ProposedCall


_Want = _Ask | _Approve | Run


def _done(want: _Want, chat: Callable[..., Any], approve: Any, streams: bool) -> Any:
    if isinstance(want, _Approve):
        said = approve(want.call)
        if inspect.isawaitable(said):
            raise _async_approve(said)
        return said
    if isinstance(want, Run):
        return run_all(want)
    try:
        if not streams:
            return chat(want.messages, **want.options)
        with chat(want.messages, stream=True, **want.options) as stream:
            for delta in stream:
                want.take(delta)
        return stream.result
    except ContextOverflow as error:
        return error
    except UnknownArgument as error:
        raise error.beside(OWN) from None


async def _adone(want: _Want, chat: Callable[..., Any], approve: Any, streams: bool) -> Any:
    if isinstance(want, _Approve):
        said = approve(want.call)
        return await said if inspect.isawaitable(said) else said
    if isinstance(want, Run):
        return await arun_all(want)
    try:
        if not streams:
            return await chat(want.messages, **want.options)
        async with await chat(want.messages, stream=True, **want.options) as stream:
            async for delta in stream:
                want.take(delta)
        return stream.result
    except ContextOverflow as error:
        return error
    except UnknownArgument as error:
        raise error.beside(OWN) from None


def _async_approve(given: Any) -> InvalidRequest:
    """The error for an ``approve`` that only an event loop could wait for, or for what it gave."""
    if inspect.iscoroutine(given):
        given.close()  # else Python warns that nobody awaited it
    return InvalidRequest(
        "approve: got a coroutine function, allowed of act() is a plain one; use aact(), which "
        "awaits it"
    )


# ---- the loop -----------------------------------------------------------------------------------


class _Loop:
    """The state of one conversation; :meth:`flow` yields what is to be done."""

    def __init__(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        tools: Tools,
        asked: Asked,
        options: Mapping[str, Any],
        *,
        together: bool,
    ):
        """``together``: whether calls without effects are made together."""
        for name in ("stream", "tools"):
            if name in options:
                raise InvalidRequest(f"{name}: no option of act; on_event shows what happens")
        asked.check_lengths(options)
        self.messages, self.tools = first_messages(messages), tools_by_name(tools)
        asked.check_approval(self.tools)
        self._flags = flags_of_results(self.messages, self.tools, asked.markers)
        self._asked, self.streams = asked, asked.on_event is not None
        self._together = together
        self._emit: OnEvent = asked.on_event or (lambda event: None)
        self._options = {"tool_choice": "auto", **options}
        self._options["tools"] = [one.to_openai() for one in self.tools.values()]
        self._steps: list[Step] = []
        self._usage, self._began = Usage(), time.monotonic()
        seconds = asked.max_seconds
        self._until = None if seconds is None else self._began + seconds
        self._malformed: list[str] = []
        self._share: Share | None = None  # that the answers to the calls of this step have

    def flow(self) -> Generator[_Want, Any, ActResult]:
        while True:
            result = yield _Ask(self.messages, self._turn_options(), self._heard)
            if isinstance(result, ContextOverflow):
                if not self._steps:
                    raise result
                return self._ended("context")
            self._take(result)
            ended = self._end_of(result)
            if ended is not None:
                return self._ended(ended)
            yield from self._answer_calls(result)
            if self._time_over():
                return self._ended("max_seconds")

    @property
    def _turn(self) -> int:
        return len(self._steps)

    # ---- the model's turn -----------------------------------------------------------------------

    def _turn_options(self) -> dict[str, Any]:
        """The options of the next turn, within what is left of time and tokens."""
        options = dict(self._options)
        called = any(step.result.tool_calls for step in self._steps)
        options["tool_choice"] = choice_after(options["tool_choice"], called=called)
        if self._until is not None:
            left = max(0.001, self._until - time.monotonic())
            own = options.get("deadline")
            options["deadline"] = left if own is None else min(own, left)
        if self._asked.max_output_tokens is not None:
            left_tokens = self._asked.max_output_tokens - self._usage.completion_tokens
            own, least = options.get(TOTAL), options.get("min_new_tokens")
            options[TOTAL] = left_tokens if own is None else min(own, left_tokens)
            if least is not None and least > left_tokens:  # the last turn has what is left
                options["min_new_tokens"] = left_tokens
        return options

    def _heard(self, delta: Delta) -> None:
        if delta.channel == "reasoning":
            self._emit(events.ThoughtText(self._turn, delta.text))
        elif delta.channel == "content":
            self._emit(events.AnswerText(self._turn, delta.text))

    def _take(self, result: ChatResult) -> None:
        self._usage += result.usage
        self._malformed += result.malformed_tool_calls
        self.messages.append(dict(result.message))
        self._steps.append(Step(result))

    def _end_of(self, result: ChatResult) -> str | None:
        """Why the conversation ends after this turn; None where it goes on."""
        tokens = self._asked.max_output_tokens
        tokens_over = tokens is not None and self._usage.completion_tokens >= tokens
        time_over = self._time_over()
        if result.finish_reason in _CUT:
            if time_over:
                return "max_seconds"
            return "max_output_tokens" if tokens_over else result.finish_reason
        if not result.tool_calls and not result.malformed_tool_calls:
            self._emit(events.Answer(self._turn - 1, result.content))
            return "answer"
        if len(self._steps) >= self._asked.max_steps:
            return "max_steps"
        if time_over:
            return "max_seconds"
        return "max_output_tokens" if tokens_over else None

    def _time_over(self) -> bool:
        return self._until is not None and time.monotonic() >= self._until

    def _ended(self, why: str) -> ActResult:
        last, seconds = self._steps[-1], time.monotonic() - self._began
        for call in last.result.tool_calls[len(last.uses) :]:  # each is to have an answer
            self._tell(call["function"]["name"], call.get("id", ""), _late("not run", why))
        steps, malformed = tuple(self._steps), tuple(self._malformed)
        return ActResult(last.result, self.messages, steps, self._usage, why, seconds, malformed)

    # ---- its calls ------------------------------------------------------------------------------

    def _answer_calls(self, result: ChatResult) -> Generator[_Want, Any, None]:
        if not result.tool_calls:  # there is no call that a tool could answer
            self.messages.append({"role": "user", "content": NO_VALID_CALL})
        if self._asked.room is not None:
            count = len(result.tool_calls)
            self._share = self._asked.room.after(result, self._options, count)
        for calls in self._groups(result.tool_calls):
            if self._time_over():
                return
            yield from self._answer(calls)

    def _groups(self, calls: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
        """The calls, in order, those beside each other that may be made together. One with effects
        is made alone: what is before it may be seen by who approves, and what it does after it."""
        groups: list[list[Mapping[str, Any]]] = []
        joins = False
        for call in calls:
            tool = self.tools.get(call["function"]["name"])
            alone = not self._together or (tool is not None and tool.effects)
            if joins and not alone:
                groups[-1].append(call)
            else:
                groups.append([call])
            joins = not alone
        return groups

    def _answer(self, calls: Sequence[Mapping[str, Any]]) -> Generator[_Want, Any, None]:
        """Makes calls that may be made together, and tells what became of them."""
        ready: list[ProposedCall | _Answer] = []
        for call in calls:
            ready.append((yield from self._checked(call)))
        made = [one for one in ready if isinstance(one, ProposedCall)]
        wanted = tuple((self.tools[one.name], one.arguments) for one in made)
        room = self._asked.room
        images = None if room is None else room.images
        run = Run(wanted, self._until, self._asked.max_result_characters, images)
        found = iter((yield run) if wanted else ())
        for one in ready:
            use, content = self._made(one, next(found)) if isinstance(one, ProposedCall) else one
            step = self._steps[-1]
            self._steps[-1] = Step(step.result, (*step.uses, use))
            self._tell(use.name, use.id, content)
            if self._share is not None:
                self._share.take(use.answer)
            if use.flags:
                self._emit(events.InstructionFlagged(self._turn - 1, use))

    def _tell(self, name: str, number: str, content: Any) -> None:
        told_as = {"name": name, "tool_call_id": number}
        self.messages.append({"role": "tool", **told_as, "content": content})

    def _checked(self, call: Mapping[str, Any]) -> Generator[_Want, Any, ProposedCall | _Answer]:
        """A call that is to be made, or why it is not."""
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        turn, number = self._turn - 1, call.get("id", "")
        tool = self.tools.get(name)
        try:
            if tool is None:
                raise InvalidRequest(no_such_tool(name, [*self.tools]))
            tool.check(arguments)
        except InvalidRequest as error:
            return self._failed(ToolUse(turn, number, name, arguments, told(error), "error"))
        flags = (flag for step in self._steps for use in step.uses for flag in use.flags)
        seen = (*self._flags, *flags)
        proposed = ProposedCall(turn, number, name, arguments, tool.effects, seen)
        self._emit(events.CallProposed(turn, proposed))
        if tool.effects:
            refused = yield from self._refusal(proposed)
            if refused is not None:
                return refused
            if self._time_over():  # while somebody thought about it
                return self._made(proposed, Ran(late="not run"))
        return proposed

    def _refusal(self, call: ProposedCall) -> Generator[_Want, Any, _Answer | None]:
        """What becomes of a call that is not made; None where it may be."""
        status, why = "dry_run", f"dry run: {call.name} was not called"
        if not self._asked.dry_run:
            said = yield _Approve(call)
            if not isinstance(said, (bool, str)):
                raise InvalidRequest(
                    f"approve: gave {said!r:.60} for {call.name}, allowed is True, False or a text "
                    "that says to the model why not"
                )
            if said is True:
                self._emit(events.CallApproved(call.turn, call))
                return None
            reason = f": {said}" if said else ""
            status, why = "refused", f"error: the call was refused{reason}"
        self._emit(events.CallRefused(call.turn, call, why))
        use = ToolUse(call.turn, call.id, call.name, call.arguments, text_of(why), status)
        return use, use.answer

    def _made(self, call: ProposedCall, ran: Ran) -> _Answer:
        """What the model is told of a call that was made."""
        seen = (call.turn, call.id, call.name, call.arguments)
        if ran.late:
            text = _late(ran.late, "max_seconds")
            return self._failed(ToolUse(*seen, text, "limit", ran.seconds))
        asked = self._asked
        limits = (self.tools, asked.markers, asked.max_result_characters, self._share)
        use, content = told_call(seen, ran, *limits, sees=asked.sees)
        self._emit((events.CallError if use.error else events.CallResult)(call.turn, use))
        return use, content

    def _failed(self, use: ToolUse) -> _Answer:
        self._emit(events.CallError(use.turn, use))
        return use, use.answer


def _late(how: str, why: str) -> str:
    """What the model is told of a call that a limit ended, or kept from being made."""
    return f"error: {how}, ended by {why}"
