"""What a model is told of large answers of tools: no more than its context has room for, and no
more of a generator than that."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import musespark
from musespark.agents import aact, act
from musespark.agents.asked import acting
from musespark.agents.conversation import ToolConversation
from musespark.agents.telling import MAX_RESULT, Room
from musespark.agents.tools import Content, Tool
from musespark.errors import InvalidRequest
from musespark.results import ChatResult, Usage
from support.scripted_chat import Script, call


@pytest.fixture(scope="module")
def nano() -> Iterator[musespark.Model]:
    with musespark.load(threads=1) as model:
        yield model


def act_at_once(script: Script, *given: Any, **options: Any) -> Any:
    return act(script, *given, **options)


def act_on_a_loop(script: Script, *given: Any, **options: Any) -> Any:
    return asyncio.run(aact(script.asynchronous, *given, **options))


@pytest.fixture(params=[act_at_once, act_on_a_loop])
def run(request: pytest.FixtureRequest) -> Callable[..., Any]:
    return request.param


def words(count: int) -> str:
    """So many words."""
    return "sunny " * count


def words_of(text: str) -> int:
    return len(text.split())


# ---- the context -------------------------------------------------------------------------------


@pytest.mark.parametrize("counts", [[2000], [2000, 2000, 2000], [1, 4000]])
def test_an_answer_follows_what_is_longer_than_the_context(nano: Any, counts: list[int]) -> None:
    """It ended with ``context``, and so did what went on with its messages."""
    script = Script([call("words", {"count": n}, i) for i, n in enumerate(counts)])

    def chat(messages: Any, **options: Any) -> Any:
        return script(messages) if script.turns else nano.chat(messages, **options)

    asked = [{"role": "user", "content": "How is the weather in Bergen?"}]
    options = {"room": Room(nano.info.context, lambda text: len(nano.tokenizer.encode(text)))}
    found = act(chat, asked, [words], max_steps=2, max_new_tokens=100, **options)
    assert found.ended != "context" and len(found.steps) == 2
    for use, count in zip(found.uses, counts, strict=True):
        whole = words(count)
        assert use.left_out == 0 or use.answer.endswith(
            f"\n[{use.left_out} more characters were left out]"
        )
        assert (use.left_out == 0) == (count == 1)
        assert use.answer.startswith(whole[: len(whole) - use.left_out])
        assert count == 1 or len(use.answer) > 400
    used = found.steps[1].result.usage.prompt_tokens
    assert nano.info.context // 4 < used < nano.info.context * 2 // 3
    again = [*found.messages, {"role": "user", "content": "And now?"}]
    assert nano.chat(again, max_new_tokens=20).finish_reason


def test_a_loaded_model_knows_its_room(nano: Any) -> None:
    calls = [call("words", {"count": 3000})]
    blank: dict[str, Any] = {"text": "", "tokens": (), "seed": 0, "usage": Usage(100, 0, 50)}
    turn = ChatResult(**blank, finish_reason="tool_calls", tool_calls=tuple(calls))
    given = acting({}, nano._requests)
    found = act(Script(turn, "Ok."), "?", [words], **given)
    tokens = len(nano.tokenizer.encode(found.uses[0].answer))
    assert 700 < tokens <= (nano.info.context - 150) // 2


def test_a_limit_of_all_turns_may_be_more_than_the_context(nano: Any) -> None:
    """It was asked of the first turn, and overflowed."""
    found = nano.act("What is 47 + 38?", tools=[words], max_output_tokens=100_000)
    assert (found.ended, found.content) == ("answer", "85")


def asked(run: Any, context: int, counts: list[int], **options: Any) -> tuple[Any, ...]:
    script = Script([call("words", {"count": n}, i) for i, n in enumerate(counts)], "Ok.")
    return run(script, "?", [words], room=Room(context, words_of), **options).uses


def test_calls_of_one_step_share_what_is_left(run: Any) -> None:
    """The turn before took 15 tokens; a message is counted as 32 more than its text."""
    (one,) = asked(run, 1015, [5000])
    assert 400 < words_of(one.answer) <= 500 - 32
    first, second = asked(run, 1015, [5000, 5000])
    assert 200 < words_of(first.answer) <= 250 - 32
    assert 200 < words_of(second.answer) <= 500 - 64 - words_of(first.answer)
    short, long = asked(run, 1015, [3, 5000])
    assert short.left_out == 0 and 380 < words_of(long.answer) <= 500 - 64 - 3
    (kept,) = asked(run, 1015, [5000], max_new_tokens=800)
    assert 120 < words_of(kept.answer) <= 200 - 32
    (kept,) = asked(run, 1015, [5000], max_total_tokens=800, max_new_tokens=700)
    assert 200 < words_of(kept.answer) <= 300 - 32
    for limit in ("max_total_tokens", "thinking_token_budget"):  # which yield to the room
        assert asked(run, 1015, [5000], **{limit: 4000})[0].answer == one.answer
    (free,) = asked(run, 1015, [5000], max_output_tokens=900)  # of all turns: none has to be kept
    assert free.answer == one.answer
    (none,) = asked(run, 20, [5000])
    assert none.answer.startswith(words(13)) and none.left_out == len(words(5000)) - 80
    (large,) = asked(run, 1 << 20, [5000])
    assert large.left_out == len(words(5000)) - MAX_RESULT
    assert asked(run, 1015, [5000])[0].answer == one.answer


def test_lists_are_cut_behind_an_item_for_the_context_too(run: Any) -> None:
    def numbers() -> list[int]:
        return [*range(100_000)]

    script = Script([call("numbers", {})], "Ok.")
    (use,) = run(script, "?", [numbers], room=Room(1015, words_of)).uses
    assert use.items is not None and use.items[1] == 100_000 and 300 < use.items[0] < 500
    assert use.answer.startswith("[0, 1, ") and "of 100000 items are shown" in use.answer


def test_how_many_characters_are_told_may_be_chosen(run: Any) -> None:
    for most in (10, 20_000):
        script = Script([call("words", {"count": 5000})], "Ok.")
        (use,) = run(script, "?", [words], max_result_characters=most).uses
        assert use.left_out == 30_000 - most
    with pytest.raises(InvalidRequest, match="max_result_characters: got 0, allowed is an integer"):
        run(Script(), "?", [words], max_result_characters=0)


# ---- generators --------------------------------------------------------------------------------


def test_a_generator_without_an_end_is_read_as_far_as_it_is_told(run: Any) -> None:
    """It was read until the memory was full."""
    given, closed = [0], []

    def endless() -> Any:
        try:
            for number in itertools.count():
                given[0] += 1
                yield {"number": number, "more": (i for i in range(3))}
        finally:
            closed.append(True)

    def nested() -> Any:
        return {"rows": (itertools.count() for _ in iter(int, 1)), "all": (x for x in endless())}

    began = time.monotonic()
    calls = [call("endless", {}), call("nested", {}, 2)]
    uses = run(Script(calls, "Ok."), "?", [endless, nested]).uses
    assert time.monotonic() - began < 20 and given[0] < 2000 and closed
    use = uses[0]
    assert use.status == "done" and use.answer.startswith('[{"number": 0, "more": [0, 1, 2]}, {"nu')
    assert use.items is not None and use.items[0] <= use.items[1]
    shown, taken = use.items
    left = f"at least {use.left_out} more characters were left out]"
    assert use.answer.endswith(f"\n[{shown} of at least {taken} items are shown; {left}")
    assert "[at least " in uses[1].answer and uses[1].items is None


def test_a_generator_is_ended_by_the_clock(run: Any) -> None:
    def slow() -> Any:
        while True:
            time.sleep(0.02)
            yield 1

    began = time.monotonic()
    found = run(Script([call("slow", {})], "Ok."), "?", [slow], max_seconds=0.3)
    assert time.monotonic() - began < 5
    assert (found.ended, found.uses[0].status) == ("max_seconds", "limit")
    assert found.messages[-1]["content"] == "error: not finished, ended by max_seconds"


def test_what_a_generator_raises_is_told(run: Any) -> None:
    def broken() -> Any:
        yield 1
        raise LookupError("no second")

    def whole() -> Any:
        yield from (1, "a", None, 2.5)

    calls = [call("broken", {}), call("whole", {}, 2)]
    uses = run(Script(calls, "Ok."), "?", [broken, whole]).uses
    assert uses[0].answer == "error: LookupError: no second" and uses[0].error
    assert (uses[1].answer, uses[1].left_out) == ('[1, "a", null, 2.5]', 0)


# ---- images -------------------------------------------------------------------------------------

PICTURE = Path(musespark.__file__).parent / "nano" / "examples" / "window.png"


def seen(nano: Any, run: Any, parts: list[Any], left: int, **options: Any) -> tuple[Any, Any]:
    """A tool's use that gives these parts, and what the model is told, by a context that has
    ``left`` tokens."""

    def look() -> Content:
        return Content(parts)

    room = Room(15 + left, words_of, nano._requests.image_tokens)
    found = run(Script([call("look", {})], "Ok."), "?", [look], room=room, **options)
    assert found.content == "Ok."
    return found.uses[0], next(m["content"] for m in found.messages if m["role"] == "tool")


def test_images_are_counted(nano: Any, run: Any) -> None:
    """They were not, and a conversation ended with ``context``."""
    image = {"type": "image", "image": PICTURE}
    tokens = nano.encode_image(PICTURE).array.shape[0]
    text = {"type": "text", "text": words(5000)}
    use, told = seen(nano, run, [image, text], 1000)
    assert told[0] == image and 400 - tokens < words_of(use.answer) <= 500 - 32 - tokens
    for count, more, keep in ((1, {}, 32), (2, {}, 32), (1, {"max_new_tokens": 90}, 90)):
        fits = tokens * count + 32 + keep
        assert seen(nano, run, [image] * count, fits, **more)[1] == [image] * count
        use, told = seen(nano, run, [image] * count, fits - 1, **more)
        assert told == use.answer == f"[images, for which the context has no room: {count}]"
    for limit in ("max_total_tokens", "thinking_token_budget", "max_output_tokens"):
        assert seen(nano, run, [image], 200, **{limit: 4000})[1] == [image]
    use, told = seen(nano, run, [image, text], 1000, sees=False)
    assert told == use.answer and told.endswith("[images, which this model cannot see: 1]")


def test_images_that_do_not_open_are_errors_of_their_tool(nano: Any, run: Any) -> None:
    """The next turn's request raised, and what had been said until then was lost."""
    for image, says in (
        ({"type": "image", "image": b"no picture"}, "not a PNG"),
        ({"type": "image"}, "content[1]: no image"),
        ({"type": "image_url", "image_url": {"url": "https://a.example/b"}}, "content[1]"),
    ):
        use, told = seen(nano, run, [{"type": "text", "text": "a"}, image], 500)
        assert use.status == "error" and told == use.answer and says in told


def test_agents_driven_from_outside_are_told_the_same(nano: Any) -> None:
    blank: dict[str, Any] = {"text": "", "tokens": (), "seed": 0, "usage": Usage(10, 0, 5)}
    turn = ChatResult(**blank, finish_reason="tool_calls", tool_calls=(call("look", {}),))
    image = {"type": "image", "image": PICTURE}
    for given, count, context, says in (
        (image, nano._requests.image_tokens, 1015, None),
        (image, nano._requests.image_tokens, 100, "[images, for which the context has no room: 1]"),
        (image, None, 1015, "[images, which this model cannot see: 1]"),
        ({"type": "image"}, nano._requests.image_tokens, 1015, "error: content[0]: no image"),
    ):
        tools = {"look": Tool.of(lambda given=given: Content([given]), "look")}
        talk = ToolConversation(tools, "?", 3, Room(context, words_of, count))
        assert talk.take(turn)
        told = talk.messages[-1]["content"]
        assert told == [image] if says is None else told.startswith(says)


def test_what_is_to_be_awaited_is_an_error_there() -> None:
    """The agents go on: each is told, and tries something else."""

    async def later() -> str:
        return "rain"

    blank: dict[str, Any] = {"text": "", "tokens": (), "seed": 0, "usage": Usage(10, 0, 5)}
    turn = ChatResult(**blank, finish_reason="tool_calls", tool_calls=(call("look", {}),))
    talk = ToolConversation({"look": Tool.of(lambda: later(), "look")}, "?", 3)
    assert talk.take(turn)
    (use,) = talk.uses
    assert use.status == "error" and "look gave a coroutine" in talk.messages[-1]["content"]


def test_a_loaded_model_tells_its_images(nano: Any) -> None:
    def look() -> Content:
        return Content([{"type": "image", "image": PICTURE}])

    async def alook() -> Content:
        return look()

    for tool in (look, alook):
        for most, fits in ((100, True), (nano.info.context - 80, False)):
            script = Script([call(tool.__name__, {})], "Ok.")
            given = {**acting({}, nano._requests), "max_new_tokens": most}
            found = asyncio.run(aact(script.asynchronous, "?", [tool], **given))
            told = found.messages[2]["content"]
            assert told == [{"type": "image", "image": PICTURE}] if fits else "no room" in told
