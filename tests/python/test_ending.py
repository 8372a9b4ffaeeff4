"""How requests end before their time: streams closed early, models closed under them, two readers.

Which part of a request a close meets is up to the machine; every test holds for all of them.
"""

from __future__ import annotations

import asyncio
import threading

import pytest

import musespark
from musespark import engine

LONG = {"max_new_tokens": 1900, "min_new_tokens": 1900}
WAITING = {
    "generate": lambda model: model.generate("Once", **LONG),
    "chat": lambda model: model.chat("Tell me a story.", **LONG),
    "generate_batch": lambda model: model.generate_batch(["Once"] * 3, **LONG),
    "chat_batch": lambda model: model.chat_batch(["Tell me a story."] * 3, **LONG),
    "stream": lambda model: list(model.generate("Once", stream=True, **LONG)),
    "session": lambda model: model.session().chat("Tell me a story.", **LONG),
    "logits": lambda model: model.logits([5] * 2048),
    "score": lambda model: model.score([5] * 2048),
    "agenerate": lambda model: asyncio.run(model.agenerate("Once", **LONG)),
}


@pytest.fixture
def model():
    with musespark.load(threads=1) as loaded:
        yield loaded


@pytest.mark.parametrize("way", WAITING)
def test_a_closed_model_has_one_outcome(model, monkeypatch, way) -> None:
    """Once generate gave half a text, logits half an array, and score numpy's ValueError."""
    submitted, outcome = threading.Event(), []
    submit = engine.Driver.submit

    def noted(*args) -> None:
        submit(*args)
        submitted.set()

    monkeypatch.setattr(engine.Driver, "submit", noted)

    def wait() -> None:
        try:
            outcome.append(WAITING[way](model))
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    assert submitted.wait(20)
    model.close()
    thread.join(20)
    if not isinstance(outcome[0], Exception):  # done before it was closed: whole, then
        assert way in ("logits", "score") and len(outcome[0]) == 2048
    else:
        assert isinstance(outcome[0], musespark.Cancelled), outcome
    with pytest.raises(musespark.Error, match="closed"):
        WAITING[way](model)


def test_whoever_cancelled_himself_keeps_his_result(model) -> None:
    stream = model.generate("Once", stream=True, **LONG)
    next(stream)
    stream.cancel()
    assert list(stream) is not None
    assert stream.result.finish_reason == "cancelled"


@pytest.mark.parametrize("read", [0, 3])
def test_a_closed_stream_has_a_partial_result(model, read: int) -> None:
    with model.generate("Once", stream=True, **LONG) as stream:
        text = "".join(str(next(stream)) for _ in range(read))
    result = stream.result
    assert (result.finish_reason, result.usage.prompt_tokens > 0) == ("cancelled", True)
    assert result.text.startswith(text) and len(result.tokens) < 1900
    assert stream.result is result
    assert list(stream) == []


def test_an_async_stream_closes_the_same_way(model) -> None:
    async def main() -> None:
        async with await model.achat("Tell me a story.", stream=True, **LONG) as stream:
            async for _ in stream:
                break
        assert stream.result.finish_reason == "cancelled"

    asyncio.run(main())


def test_a_stream_whose_model_was_closed_says_so_again(model) -> None:
    stream = model.generate("Once", stream=True, **LONG)
    next(stream)
    model.close()
    with pytest.raises(musespark.Cancelled):
        list(stream)
    with pytest.raises(musespark.Cancelled, match="model was closed"):
        _ = stream.result


def test_a_stream_has_one_reader(model) -> None:
    """The generator's own ValueError came out, in whichever thread was second."""
    stream = model.generate("Once", stream=True, **LONG)
    inside, go, outcome = threading.Event(), threading.Event(), []
    step = stream._step

    def held(event):
        inside.set()
        assert go.wait(20)
        return step(event)

    stream._step = held
    reader = threading.Thread(target=lambda: outcome.append(list(stream)))
    reader.start()
    assert inside.wait(20)
    with pytest.raises(musespark.InvalidRequest, match="one reader at a time"):
        next(stream)
    stream.close()  # ends the other's reading
    go.set()
    reader.join(20)
    assert outcome and stream.result.finish_reason == "cancelled"


def test_an_async_stream_has_one_reader(model, monkeypatch) -> None:
    go = threading.Event()
    submit = engine.Driver.submit

    def waits(tokens: list[int]) -> None:
        assert go.wait(20)

    def held(driver, handle, tokens, params, base) -> None:
        submit(driver, handle, tokens, {**params, "constraint": waits}, base)

    monkeypatch.setattr(engine.Driver, "submit", held)

    async def main() -> None:
        stream = await model.agenerate("Once", stream=True, **LONG)
        first = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)  # it is inside, for there is no token yet
        with pytest.raises(musespark.InvalidRequest, match="one reader at a time"):
            await anext(stream)
        go.set()
        assert type(await first) is musespark.Delta
        await stream.aclose()

    asyncio.run(main())


def test_one_of_many_threads_gets_the_turn(model, monkeypatch) -> None:
    """The guard looked before the prompt was made and claimed after it: several turns ran at once,
    and the conversation held their messages in any order."""
    ready = threading.Barrier(4)
    prepare, outcome, all_in = model._chat_request, [], threading.Event()

    def slow(*args, **kwargs):
        all_in.wait(20)
        return prepare(*args, **kwargs)

    monkeypatch.setattr(model, "_chat_request", slow)
    session = model.session()

    def turn() -> None:
        ready.wait(20)
        try:
            session.chat("What is 1 + 1?", max_new_tokens=2)
            outcome.append("done")
        except musespark.InvalidRequest:
            outcome.append("refused")
            if outcome.count("refused") == 3:
                all_in.set()

    threads = [threading.Thread(target=turn) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(outcome) == ["done", "refused", "refused", "refused"]
    assert [m["role"] for m in session.messages] == ["user", "assistant"]
    monkeypatch.undo()
    session.chat("What is 2 + 2?", max_new_tokens=2)


def test_a_turn_closed_while_another_thread_reads_is_forgotten(model) -> None:
    session = model.session()
    stream = session.chat("Tell me a story.", stream=True, **LONG)
    inside, go = threading.Event(), threading.Event()
    step = stream._step

    def held(event):
        inside.set()
        assert go.wait(20)
        return step(event)

    stream._step = held
    reader = threading.Thread(target=lambda: list(stream))
    reader.start()
    assert inside.wait(20)
    stream.close()
    go.set()
    reader.join(20)
    assert session.messages == []
    session.chat("What is 2 + 2?", max_new_tokens=2)


def test_a_turn_that_is_nothing_is_refused(model) -> None:
    with pytest.raises(musespark.InvalidRequest, match="empty list"):
        model.session().chat([])
    with pytest.raises(musespark.InvalidRequest, match="system: got int"):
        model.session(system=5)
