"""A contemplation: rounds of agents, from a question to one answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from musespark.agents.conversation import ToolConversation, refuse_effects
from musespark.agents.telling import Room
from musespark.agents.tools import Tool, tools_by_name
from musespark.contemplating.agents import Agent, Turn, added
from musespark.contemplating.drafts import Round, Steps
from musespark.contemplating.options import (
    AGENT_TEMPERATURE,
    agent_seed,
    checked_contemplating,
)
from musespark.contemplating.result import AgentDelta, ContemplationResult
from musespark.contemplating.workspace import Draft, with_workspace, workspace_text
from musespark.driver import CLOSED_MEANWHILE
from musespark.engine import Handle
from musespark.errors import Cancelled, Error, InvalidRequest
from musespark.options import AGENT_OPTIONS, TOTAL
from musespark.results import ChatResult, Timings

if TYPE_CHECKING:
    from musespark.model import Model
    from musespark.requests import PreparedChat

Messages = str | Sequence[Mapping[str, Any]]
_CANCELLED = "this contemplation was cancelled"


class Contemplation:
    """One question under way: who drives it sends what :attr:`wanted` asks for (see
    :data:`musespark.contemplating.drafts.Steps`) to :meth:`advance`, until it is None; then
    :attr:`result` is there.

    ``given``: options of :meth:`Model.chat`, and of contemplating. ``clock``: seconds, for the
    deadline alone. Raises InvalidRequest and ContextOverflow at once; submits nothing yet.
    """

    def __init__(
        self,
        model: Model,
        messages: Messages,
        given: Mapping[str, Any],
        *,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._began, self._clock = time.perf_counter(), clock
        self._model, self._messages = model, messages
        self._options = checked_contemplating(given)
        self._functions, schemas = _functions_of(given.get("tools"))
        if self._functions is not None and given.get("continue_final_message"):
            raise InvalidRequest(
                "continue_final_message contradicts tools that are functions: they take turns"
            )
        self._given = _agents_options(given, schemas, model._requests.defaults.temperature)
        self._prepared = self._prepare(messages)
        options = self._prepared.options
        if options.temperature == 0 and self._options.n_agents > 1:
            raise InvalidRequest(
                f"temperature: got 0 with n_agents = {self._options.n_agents}, allowed is more "
                "than 0: all of them would write the same"
            )
        self._seed = options.seed
        self._ends = None if options.deadline is None else clock() + options.deadline
        self._rounds: list[Round] = []
        self.heard = True  # whether anybody wants deltas as they come
        self._cancelled, self._ended_by = False, ""
        self._steps = self._run()
        self.wanted: Handle | AgentDelta | Callable[[], None] | None = None
        self.result: ContemplationResult | None = None

    def start(self) -> Contemplation:
        """Submits the first round."""
        self.advance(None)
        return self

    def advance(self, answer: Any = None) -> None:
        """Goes on with what :attr:`wanted` asked for."""
        try:
            self.wanted = self._steps.send(answer)
        except StopIteration:
            self.wanted = None
        except BaseException:
            self.wanted = None
            raise

    def cancel(self) -> None:
        """Ends the round under way with what there is, and all that runs in the engine. From any
        thread."""
        self._cancelled = True
        for one in self._rounds[-1:]:
            for agent in one.agents:
                agent.turn.handle.cancel()

    def _halted(self) -> str:
        if self._cancelled:
            return "cancelled"
        return "deadline" if self._ends is not None and self._clock() >= self._ends else ""

    # ---- rounds -------------------------------------------------------------------------------

    def _run(self) -> Steps:
        try:
            self._begin(self._messages, self._prepared)
            yield from self._rounds[0].run()
            for _ in range(self._options.later_rounds):
                if not self._undecided():
                    break
                before = len(self._rounds)
                yield self._begin_next
                if len(self._rounds) == before:
                    self._ended_by = self._ended_by or self._halted()
                    break
                yield from self._rounds[-1].run()
            self.result = self._result()
        finally:
            for one in self._rounds:
                one.discard()

    def _begin(self, messages: Messages, prepared: PreparedChat) -> None:
        number, agents = len(self._rounds), list[Agent]()
        try:
            for i in range(self._options.n_agents):
                seed = agent_seed(self._seed, number, i)
                turn = self._submit(prepared, seed, first=number == i == 0)
                agents.append(Agent(i, number, seed, turn, **self._agents_fields(messages)))
        except BaseException:
            for agent in agents:
                agent.turn.handle.discard()
            raise
        self._rounds.append(Round(agents, self._options, self._halted, lambda: self.heard))
        if self._cancelled:  # meanwhile: who cancelled did not know of this round
            self.cancel()

    def _agents_fields(self, messages: Messages) -> dict[str, Any]:
        fields: dict[str, Any] = {"window": self._options.weak_window}
        if self._functions is not None:
            room = Room.of(self._model._requests)
            conversation = (self._functions, messages, self._options.calls, room, self._given)
            fields["conversation"] = ToolConversation(*conversation)
            fields["ask"] = lambda turns, seed: self._submit(self._prepare(turns), seed)
        return fields

    def _prepare(self, messages: Messages) -> PreparedChat:
        return self._model._prepared_chat(messages, self._given)

    def _submit(self, prepared: PreparedChat, seed: int, *, first: bool = False) -> Turn:
        if self._cancelled:  # while another thread ran a tool
            raise Cancelled(_CANCELLED)
        model = self._model
        request, collector = prepared.ask(seed)
        request = replace(request, logprobs=request.logprobs or 1)  # which confidence is made of
        if self._ends is not None:  # what is left now
            left = max(0.0, self._ends - self._clock())
            thinking = model._requests.thoughts.within_deadline(request.thinking)
            request = replace(request, deadline=left, thinking=thinking)
        try:
            handle, _ = model._submit(request, collector, model._prefixes.base_for(request))
        except Error as error:
            if model._engine.closed and not first:
                raise Cancelled(CLOSED_MEANWHILE) from error
            raise
        if self._cancelled:  # meanwhile: who cancelled did not know of it
            handle.discard()
            raise Cancelled(_CANCELLED)
        return Turn(request, handle, collector)

    def _undecided(self) -> bool:
        """Whether a further round has something to refine."""
        last = self._rounds[-1]
        agreed = len(last.tallies) == 1 and last.tallies[0].votes > 1
        if last.stop_reason not in ("consensus", "all") or not last.tallies or agreed:
            return False
        self._ended_by = self._halted()
        return not self._ended_by

    def _begin_next(self) -> None:
        """Submits a round under the drafts of the last one, where the context has room for them and
        for an answer: as long as the caller asked for, else half of what the question leaves, or
        what is less, the limit of thought and answer together."""
        last, requests = self._rounds[-1], self._model._requests
        drafts = {a.number: _draft(a) for a in last.agents if a.vote is not None}
        leading = [drafts[one.best] for one in last.tallies]
        context, asked = self._model.info.context, len(self._prepared.ids)
        answer = self._answer_tokens(context - asked)
        most = min(self._options.workspace_tokens, context - asked - answer)
        while most > 0:
            text = workspace_text(
                requests.tokenizer, [*drafts.values()], leading, most, self._options.workspace
            )
            if text is None:
                break
            messages = with_workspace(self._messages, text)
            prepared = self._prepare(messages)
            excess = len(prepared.ids) + answer - context
            if excess <= 0:
                self._begin(messages, prepared)
                return
            most -= excess
        self._ended_by = "context"

    def _answer_tokens(self, room: int) -> int:
        """Tokens of ``room`` that a workspace leaves to the answer and its thought."""
        asked = any(self._given.get(name) for name in ("max_new_tokens", "max_tokens"))
        most = self._prepared.options.max_new_tokens
        if most is None or not (asked or self._given.get(TOTAL)):
            return room // 2
        return most if asked else min(most, room // 2)

    # ---- the result ---------------------------------------------------------------------------

    def _result(self) -> ContemplationResult:
        voted = [one for one in self._rounds if one.tallies]
        last = voted[-1] if voted else self._rounds[-1]
        speaker = last.agents[last.tallies[0].best] if voted else _furthest(last.agents)
        turn, agents = speaker.result, [agent for one in self._rounds for agent in one.agents]
        assert turn is not None
        seconds = time.perf_counter() - self._began
        told = tuple(agent.told() for agent in agents)
        stop_reason = self._ended_by or self._rounds[-1].stop_reason
        own = {field.name: getattr(turn, field.name) for field in fields(ChatResult)}
        own |= {
            "seed": self._seed,
            "usage": added(*(one.usage for one in told)),
            "timings": _timings(agents, seconds),
        }
        if stop_reason == "cancelled":
            own["finish_reason"] = stop_reason
        return ContemplationResult(
            **own,
            answer=last.tallies[0].key if voted else None,
            votes={one.key: one.weight for one in last.tallies},
            aggregate=self._options.aggregate,
            stop_reason=stop_reason,
            agents=told,
            rounds=tuple(one.told() for one in self._rounds),
            seconds=seconds,
        )


def _draft(agent: Agent) -> Draft:
    assert agent.result is not None and agent.vote is not None
    return Draft(agent.result.content or agent.vote.key, agent.result.reasoning)


def _furthest(agents: Sequence[Agent]) -> Agent:
    """Who speaks where nobody has answered: the most confident of those that have begun to."""

    def rank(agent: Agent) -> tuple[bool, float, int]:
        assert agent.result is not None
        return bool(agent.result.content), agent.confidence.mean, -agent.number

    return max(agents, key=rank)


def _timings(agents: Sequence[Agent], seconds: float) -> Timings:
    """Of the first agent to write, and of all together."""
    turns = [one for agent in agents for one in agent.timings]
    first = min(
        (one for one in turns if one.first_token_s > 0),
        key=lambda one: one.first_token_s,
        default=Timings(),
    )
    return Timings(
        prefill_s=first.prefill_s,
        first_token_s=first.first_token_s,
        decode_s=max(0.0, seconds - first.first_token_s),
        drafted_tokens=sum(one.drafted_tokens for one in turns),
        accepted_tokens=sum(one.accepted_tokens for one in turns),
    )


def _functions_of(tools: Any) -> tuple[dict[str, Tool] | None, Any]:
    """Tools that are functions, by name; and their descriptions, or the tools as they are."""
    run = isinstance(tools, Mapping) or (
        isinstance(tools, (list, tuple)) and any(callable(tool) for tool in tools)
    )
    if not run:
        return None, tools
    known = tools_by_name(tools)
    refuse_effects(known, "agents that contemplate")
    return known, [tool.to_openai() for tool in known.values()]


def _agents_options(
    given: Mapping[str, Any], tools: Any, default_temperature: float
) -> dict[str, Any]:
    """Options of an agent's request, as :meth:`Model.chat` has them."""
    apart = (*AGENT_OPTIONS, "mode")
    out = {name: value for name, value in given.items() if name not in apart}
    out["tools"] = tools
    if given.get("temperature") is None and default_temperature == 0:
        out["temperature"] = AGENT_TEMPERATURE
    return out
