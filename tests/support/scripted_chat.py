"""A chat that says what a test wrote: each turn an answer, a list of calls, or a whole result."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

from musespark.results import ChatResult, Delta, Usage


def call(name: str, arguments: Any, number: int = 1) -> dict[str, Any]:
    """A call as a result has it."""
    function = {"name": name, "arguments": arguments}
    return {"id": f"call_{number}", "type": "function", "function": function}


class Script:
    """Answers like :meth:`Model.chat`, streams too. ``seen``: (messages, options) of each turn.
    A turn that is an exception is raised. Every turn costs 10 + 5 tokens."""

    def __init__(self, *turns: Any):
        self.turns, self.seen = list(turns), list[tuple[list[Any], dict[str, Any]]]()

    def __call__(self, messages: list[Any], *, stream: bool = False, **options: Any) -> Any:
        self.seen.append(([dict(m) for m in messages], options))
        turn = self.turns.pop(0)
        if isinstance(turn, Exception):
            raise turn
        result = turn if isinstance(turn, ChatResult) else _result(turn)
        return _Stream(result) if stream else result

    async def asynchronous(self, messages: list[Any], **options: Any) -> Any:
        """:meth:`Model.achat`."""
        return self(messages, **options)


def _result(turn: str | list[Any]) -> ChatResult:
    calling = isinstance(turn, list)
    return ChatResult(
        text="",
        tokens=(),
        seed=0,
        finish_reason="tool_calls" if calling else "stop",
        reasoning="Hm.",
        usage=Usage(10, 0, 5),
        **({"tool_calls": tuple(turn)} if calling else {"content": turn}),
    )


class _Stream:
    def __init__(self, result: ChatResult):
        self.result = result

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *exc: object) -> None: ...

    async def __aenter__(self) -> _Stream:
        return self

    async def __aexit__(self, *exc: object) -> None: ...

    def __iter__(self) -> Iterator[Delta]:
        yield Delta(self.result.reasoning, "reasoning")
        if self.result.content:
            yield Delta(self.result.content)

    async def __aiter__(self) -> AsyncIterator[Delta]:
        for delta in self:
            yield delta
