"""Keys and values of thoughts: found by their markers; dropped with the same results."""

from __future__ import annotations

import json

import pytest

import musespark
from musespark.cli import main
from musespark.events import Request
from musespark.session_file import SessionFile
from musespark.text.protocols import HARMONY, MUSE, PLAIN, compose
from musespark.thought_cache import ThoughtChoice, thought_marks
from support import engine_cases as cases
from support.chat_folder import chat_folder

LONG = "sort 19, 42, 94, 58, 92, 92, 15, 46, 74"  # a thought of more than two pages
TURNS = ("What is 23 + 45?", LONG, "And what is 7 + 8?")
NEW = {"max_new_tokens": 400, "seed": 3}


@pytest.fixture(scope="module", params=["kv8", "f32"])
def model(request):
    with musespark.load(threads=1, kv=request.param, prefix_cache=False) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def nano():
    with musespark.load(threads=1, kv="kv8") as loaded:
        yield loaded


def used(model) -> int:
    """Bytes that sequences hold, when all that was asked for has been done."""
    model.generate("x", max_new_tokens=1)
    return model._engine.stats()["kv_bytes_used"]


# ---- dropped ------------------------------------------------------------------------------------


def test_dropping_changes_nothing_but_what_is_computed(model):
    kept, dropped = model.session(), model.session(thought_cache="drop")
    before = None
    for text in TURNS:
        here, there = kept.chat(text, logprobs=1, **NEW), dropped.chat(text, logprobs=1, **NEW)
        assert here.tokens == there.tokens and here.logprobs == there.logprobs
        assert there.thought_cache.tokens == here.thought_cache.tokens > 15
        if before is not None:  # of the prompt nothing but what the user says is computed
            new = there.usage.prompt_tokens - there.usage.cached_tokens
            assert new <= len(model.tokenizer.encode(text)) + 6
            again = there.usage.cached_tokens - here.usage.cached_tokens
            assert again == before.thought_cache.recomputed_tokens > 2
        before = there
    kept.close()
    dropped.close()


def test_dropping_gives_memory_back(model):
    held = {}
    for choice in ("keep", "drop"):
        with model.session(thought_cache=choice) as session:
            result = session.chat(LONG, reasoning_effort="high", **NEW)
            assert result.usage.reasoning_tokens > 2 * 64
            session._settle()
            held[choice] = used(model)
            freed = result.thought_cache.freed_bytes
        assert used(model) == 0
    assert freed > result.thought_cache.bytes > 0
    # What is measured differs by the open page of the prompt's end, which `keep` may hold too.
    assert held["keep"] - held["drop"] >= freed > held["keep"] // 6


def test_the_thoughts_of_an_unfinished_turn_are_not_dropped(nano, monkeypatch):
    session = nano.session(thought_cache="drop")
    call = [{"id": "call_1", "type": "function", "function": {"name": "add", "arguments": "{}"}}]
    take = session._take

    def with_a_call(turn, sent, result, kept):
        import dataclasses

        return take(turn, sent, dataclasses.replace(result, tool_calls=tuple(call)), kept)

    monkeypatch.setattr(session, "_take", with_a_call)
    result = session.chat("What is 23 + 45?", **NEW)
    assert result.usage.reasoning_tokens and result.thought_cache.freed_bytes == 0
    assert session._settling is None
    monkeypatch.undo()
    answered = session.chat(
        {"role": "tool", "tool_call_id": "call_1", "name": "add", "content": "68"}, **NEW
    )
    # The template repeats the thought, and it is there.
    assert answered.usage.cached_tokens >= result.usage.prompt_tokens + result.thought_cache.tokens


def test_a_template_that_repeats_thoughts_drops_nothing():
    with repeating() as model:
        session = model.session(thought_cache="drop")
        first = session.chat(TURNS[0], **NEW)
        assert first.thought_cache.freed_bytes == 0 and session._settling is None
        second = session.chat(TURNS[2], **NEW)
        assert second.usage.cached_tokens > first.usage.prompt_tokens + first.thought_cache.tokens


def test_a_dropped_thought_is_not_in_the_prefix_tree():
    held = []
    for choice in ("keep", "drop"):
        with musespark.load(threads=1) as model:
            model.chat(LONG, reasoning_effort="high", thought_cache=choice, **NEW)
            held.append(model._engine.stats()["prefix_bytes"])
    assert held[0] > 0 == held[1]  # the prompt alone fills no page


def test_sessions_that_drop_fork_are_saved_and_resumed(model, tmp_path):
    session = model.session("Be brief.", thought_cache="drop")
    session.chat(TURNS[0], **NEW)
    twin = session.fork()  # while the answer is being computed again
    session.save(tmp_path / "s")
    resumed = model.resume(tmp_path / "s")
    results = [s.chat(LONG, **NEW) for s in (session, twin, resumed)]
    assert len({r.tokens for r in results}) == 1
    assert len({r.usage.cached_tokens for r in results}) == 1
    assert {s.thought_cache for s in (session, twin, resumed)} == {"drop"}
    assert len({r.thought_cache for r in results}) == 1


@pytest.mark.parametrize("how", ["cancelled", "failed"])
def test_a_session_that_cannot_settle_computes_its_next_turn(model, how):
    class Failed:
        def __iter__(self):
            raise musespark.MemoryBudgetExceeded("no room")

    session, wanted = model.session(thought_cache="drop"), model.session()
    for s in (session, wanted):
        s.chat(TURNS[0], **NEW)
    if how == "cancelled":
        session._settling.cancel()
    else:
        session._settling = Failed()
    result = session.chat(LONG, **NEW)
    assert result.tokens == wanted.chat(LONG, **NEW).tokens
    assert how == "cancelled" or result.usage.cached_tokens == 0
    session.close()
    assert session.chat(LONG, **NEW).usage.reasoning_tokens  # closing is not the end


# ---- demoted and evicted -------------------------------------------------------------------------


def repeating() -> musespark.Model:
    """A model whose template repeats every thought."""
    model = musespark.load(threads=1, kv="kv8", prefix_cache=False)
    old = str(model.template.sources[0])
    model.template = old.replace("loop.index0 > last.user or", "true or")
    return model


def test_what_a_result_tells(nano):
    given = {"reasoning_effort": "high", **NEW}
    kept, demoted, evicted = (
        nano.chat(LONG, **given, **choice).thought_cache
        for choice in ({}, {"thought_cache": "demote"}, {"thought_cache_tokens": 64})
    )
    assert kept.tokens == kept.kept_tokens > 2 * 64 and kept.bytes > 0 == kept.freed_bytes
    assert demoted.policy == "demote" and demoted.demoted_pages >= 2
    assert demoted.bytes + demoted.freed_bytes == kept.bytes and demoted.bytes < 0.6 * kept.bytes
    assert evicted.policy == "keep" and evicted.evictions > 2
    assert evicted.evicted_tokens == 16 * evicted.evictions == evicted.tokens - evicted.kept_tokens
    assert evicted.bytes < kept.bytes and evicted.freed_bytes > 0


@pytest.mark.parametrize(
    "choice", [{"thought_cache": "demote"}, {"thought_cache_tokens": 48}], ids=["demote", "evict"]
)
def test_a_session_is_the_same_in_memory_resumed_and_computed_anew(choice, tmp_path):
    """With a template that repeats thoughts, so that every turn reads those before it."""
    with repeating() as model:
        session = model.session(**choice)
        more = {"reasoning_effort": "high", **NEW}
        first = session.chat(LONG, **more)
        assert first.thought_cache.freed_bytes > 0
        session.save(tmp_path / "s")
        resumed, fresh = model.resume(tmp_path / "s"), model.session(**choice)
        fresh.messages = [dict(m) for m in session.messages]
        turns = [s.chat(TURNS[0], **more) for s in (session, resumed, fresh)]
        assert len({t.tokens for t in turns}) == 1
        cached = [t.usage.cached_tokens for t in turns]
        if "thought_cache" in choice:  # the file has the prompt's end; memory the thought too
            assert cached[0] > first.usage.prompt_tokens + first.thought_cache.tokens
        else:
            assert cached[0] == first.usage.prompt_tokens
        assert cached[1] == first.usage.prompt_tokens and cached[2] == 0
        assert (resumed.thought_cache, resumed.thought_cache_tokens) == (
            session.thought_cache,
            session.thought_cache_tokens,
        )


def test_batches_and_streams_take_the_choice(nano):
    choice = {"thought_cache": "demote", "thought_cache_tokens": 48, **NEW}
    alone = nano.chat(LONG, **choice)
    batch = nano.chat_batch([LONG, TURNS[0]], **choice)
    with nano.chat(LONG, stream=True, **choice) as stream:
        streamed = stream.drain()
    assert batch[0].tokens == alone.tokens == streamed.tokens
    assert batch[0].thought_cache == alone.thought_cache == streamed.thought_cache
    assert alone.thought_cache.evictions > 3


# ---- without windows ----------------------------------------------------------------------------

THINK = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>{% endif %}"
)


@pytest.mark.parametrize(
    "choice",
    [{"thought_cache": "drop"}, {"thought_cache": "demote"}, {"thought_cache_tokens": 32}],
    ids=["drop", "demote", "evict"],
)
def test_a_model_without_windows_goes_on_from_its_prompts_end(choice, tmp_path):
    """To the token, not to the page in which the prompt ended; after a file as well. The template
    opens the thought in the prompt, so that all but this marker is in the next one."""
    markers = ("<|im_start|>", "<|im_end|>", "<think>", "</think>")
    folder = chat_folder(tmp_path / "m", THINK, markers)
    with musespark.load(folder, kv="kv8", prefix_cache=False, threads=1) as model:
        model._requests.protocol = compose("think", None)
        close = model.tokenizer.markers["</think>"]
        given = {"max_new_tokens": 150, "temperature": 1.0, "logit_bias": {close: 1.0}}
        session, plain = model.session(**choice), model.session()
        thoughts, known = 0, 0
        for turn in range(3):
            result, wanted = (s.chat("abc" * 9, seed=turn, **given) for s in (session, plain))
            thoughts += result.usage.reasoning_tokens
            if choice == {"thought_cache": "drop"}:
                assert result.tokens == wanted.tokens
                assert turn == 0 or result.usage.prompt_tokens - result.usage.cached_tokens < 50
                assert result.usage.cached_tokens >= known
            else:
                assert result.usage.cached_tokens == known
            known = result.usage.prompt_tokens - 1
            session.save(tmp_path / "s")
            session.close()
            session = model.resume(tmp_path / "s")
        assert thoughts > 100


# ---- what is asked for --------------------------------------------------------------------------


def test_wrong_choices_are_refused_by_name(nano, tmp_path):
    for make in (nano.session, lambda **given: nano.chat("Hi", **given)):
        with pytest.raises(musespark.InvalidRequest, match=r"thought_cache: got 'droop'.*'drop'"):
            make(thought_cache="droop")
    for wrong in (31, -1, True, 2.5, "64", 2**31):
        with pytest.raises(musespark.InvalidRequest, match=r"thought_cache_tokens: got .*least 32"):
            nano.session(thought_cache_tokens=wrong)
    with pytest.raises(musespark.InvalidRequest, match=r"thought_cache_tokens: a session has one"):
        nano.session().chat("Hi", thought_cache_tokens=64)
    with pytest.raises(musespark.InvalidRequest, match=r"thought_cache: a session has one"):
        nano.session().chat("Hi", thought_cache="keep")
    with pytest.raises(musespark.InvalidRequest, match="unknown argument 'thought_cache'"):
        nano.generate("Hi", thought_cache="drop")
    with musespark.load(threads=1) as model:
        model._requests.protocol = PLAIN
        assert model.chat("Hi", max_new_tokens=2).thought_cache is None
        with pytest.raises(musespark.InvalidRequest, match=r"'drop'.*marks no thoughts"):
            model.chat("Hi", thought_cache="drop")
        with pytest.raises(musespark.InvalidRequest, match=r"_tokens: got 64.*marks no thoughts"):
            model.chat("Hi", thought_cache_tokens=64)
    for kv in ("f32", "kv4"):
        refused = pytest.raises(musespark.InvalidRequest, match=f"'demote'.*values are {kv}")
        with musespark.load(threads=1, kv=kv) as model, refused:
            model.session(thought_cache="demote").chat("Hi")


def test_a_file_of_another_choice_is_refused(nano, tmp_path, monkeypatch):
    session = nano.session()
    session._thoughts = ThoughtChoice("fold")
    session.save(tmp_path / "s")
    with pytest.raises(musespark.CorruptFile, match="thought_cache: got 'fold'"):
        nano.resume(tmp_path / "s")
    header = SessionFile._read_header

    def without(self, text):  # as files of before have it
        kept = {k: v for k, v in json.loads(text).items() if not k.startswith("thought_cache")}
        header(self, json.dumps(kept).encode())

    monkeypatch.setattr(SessionFile, "_read_header", without)
    assert nano.resume(tmp_path / "s").thought_cache == "keep"


# ---- markers ------------------------------------------------------------------------------------


class _Tokenizer:
    def __init__(self, *markers: str):
        self.markers = {name: i for i, name in enumerate(markers)}

    def encode_pieces(self, pieces):
        return [self.markers.get(text, 100 + len(text)) for text, _ in pieces]

    def find(self, token):
        return None  # no other token that spells a part of a header


def test_marks_of_protocols():
    known = ("<|start|>", "<|message|>", "<|eom|>", "<|eot|>")
    assert thought_marks(MUSE, _Tokenizer(*known)) == {
        "opens": [[108, 1]],
        "closes": [0, 2, 3],
        "header": [0, 1],
    }
    assert thought_marks(MUSE, _Tokenizer(*known[:3])) is None
    harmony = ("<|channel|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>", "<|start|>")
    assert thought_marks(HARMONY, _Tokenizer(*harmony)) == {
        "opens": [[0, 108, 1]],
        "closes": [2, 3, 4, 5],
        "header": [5, 1],
    }
    tags = compose("think", "hermes")
    assert thought_marks(tags, _Tokenizer("<think>", "</think>")) == {"opens": [[0]], "closes": [1]}
    assert thought_marks(tags, _Tokenizer("<think>")) is None
    assert thought_marks(PLAIN, _Tokenizer("<think>", "</think>")) is None


def test_the_command_line_takes_the_choice(tmp_path, capsys):
    path = str(tmp_path / "s")
    ask = ["chat", LONG, "--kv", "kv8", "--json", "--effort", "high", "--session", path]
    assert main([*ask, "--thought-cache", "demote", "--thought-cache-tokens", "96"]) == 0
    told = json.loads(capsys.readouterr().out)["thought_cache"]
    assert told["policy"] == "demote" and told["evictions"] > 0
    assert main([*ask, "--thought-cache-tokens", "96"]) != 0
    assert "--thought-cache-tokens: the session in" in capsys.readouterr().err


@pytest.mark.parametrize("cache", ["keep", "drop"])
def test_the_engine_counts_what_lies_between_markers(cache):
    """Opened by 7 8, closed by 9: of the completion, wherever the prompt begins or ends one."""
    thoughts = {"cache": cache, "opens": [[7, 8]], "closes": [9]}
    new = 200
    with cases.make_engine("llama_f32") as engine:

        def ask(prompt, **more):
            given = {"thoughts": thoughts, "max_new_tokens": new, **more}
            return engine.submit(Request(tokens=prompt, **given)).result()

        plain = ask([1, 2, 3], logit_bias={7: -100.0})
        assert plain.stats["thought_tokens"] == 0 == plain.stats["thought_bytes"]
        opened = ask([1, 7, 8, 3], logit_bias={9: -100.0})
        assert opened.stats["thought_tokens"] == new
        # Positions 64 .. 191 of 203 with keys and values; the first page has the prompt in it.
        page = engine._driver.check().page_list(length=64, prompt=0)[0][2]
        assert opened.stats["thought_bytes"] == 2 * page
        assert ask([7, 8, 3, 9], logit_bias={7: -100.0}).stats["thought_tokens"] == 0
        assert ask([7, 8], logit_bias={9: 100.0}).stats["thought_tokens"] == 0
    with cases.make_engine("llama_f32") as engine:
        for wrong in ({"opens": [[]]}, {"opens": [[101]]}, {"closes": [-1]}, {"cache": "x"}):
            name = next(iter(wrong))
            with pytest.raises(musespark.InvalidRequest, match=f"thoughts.*{name}"):
                engine.submit(Request(tokens=[1], thoughts=thoughts | wrong))
        headed = thoughts | {"header": [3, 5], "opens": [[7, 5], [7, 8]]}
        with pytest.raises(
            musespark.InvalidRequest, match=r"opens: got one that ends with 8,.* 5$"
        ):
            engine.submit(Request(tokens=[1], thoughts=headed))
