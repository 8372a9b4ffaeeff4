"""Thought X-ray: what every trial gives, on a scripted engine, on tiny models and on Nano."""

from __future__ import annotations

import base64
import copy
import gc
import hashlib
import json
import math
import pickle
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from tests.support import eyes as e

import musespark
from musespark import ChatResult, ThinkingPolicy
from musespark.cli import main
from musespark.errors import ContextOverflow, Error, InvalidRequest
from musespark.explaining import Asked
from musespark.text.protocols import PROTOCOLS
from musespark.thinking.request import Thoughts
from musespark.thinking.sentences import sentence_ends, thought_spans
from musespark.thought_cache import thought_marks
from support.chat_folder import CHATML, HIDDEN, chat_folder
from support.lora import lora_config, write_adapter
from support.turns import END as TURN_END
from support.turns import writer

SUM = (
    "Jack has 80 eggs. Jack gives away 8 eggs. Jack finds 31 eggs. Jack gets 25 more from Iris. "
    "How many eggs does Jack have?"
)
HIGH = {"reasoning_effort": "high"}
OTHERS = ["What is 3 + 4?", "sort 19, 42, 94, 58, 92", "Hi!"]
MARKERS = ("<|im_start|>", "<|im_end|>", "<think>", "</think>")
THINK = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1] }}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>{% endif %}"
)
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


@pytest.fixture(scope="module")
def nano():
    with musespark.load(threads=1) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def natural(nano):
    found = nano.chat(SUM, **HIGH, logprobs=1)
    assert found.thinking_stop_reason == "natural" and found.content
    return found


@pytest.fixture(scope="module")
def thinker(tmp_path_factory):
    folder = chat_folder(tmp_path_factory.mktemp("model") / "m", THINK, MARKERS)
    with musespark.load(folder, threads=1, quantize="none") as loaded:
        yield loaded


def prompt(model, **options) -> list[int]:
    request, _ = model._requests.chat(SUM, {**HIGH, **options})
    return [int(t) for t in request.tokens]


def closing(model, *, tools: bool = False) -> list[int]:
    return model._requests.thoughts.closing(tools=tools)


def answer_of(model, result) -> list[int]:
    """The ids after the close."""
    ids, close = list(result.tokens), closing(model)
    at = next(i for i in range(len(ids)) if ids[i : i + len(close)] == close)
    return ids[at + len(close) :]


def said(xray) -> list[str]:
    return [xray.before.answer, *(one.answer for one in xray.sentences)]


# ---- an engine whose answers are known -----------------------------------------------------------


class Scripted:
    """An engine that answers with the last digit it has read, and an end. A token that it would
    write has the probability 0.8 (0.95 once it is certain), any other 0.1."""

    context = 4096

    def __init__(self, tokenizer, close: list[int], end: str = "<|eot|>"):
        self.tokenizer, self.close, self.asked = tokenizer, close, []
        self.end = tokenizer.markers[end]

    def stats(self) -> dict:
        return {}

    def says(self, tokens: list[int]) -> list[int]:
        assert tokens[-len(self.close) :] == self.close, "not closed as decoding does"
        text = self.tokenizer.decode(tokens[: -len(self.close)])
        digits = [c for c in text if c.isdigit()]
        return [*self.tokenizer.encode(digits[-1]), self.end]

    def submit(self, request, base=None):
        self.asked.append(request)
        tokens, values, written = list(request.tokens), None, []
        if request.logits == "score":
            cut = request.logits_from + 1
            wanted = self.says(tokens[:cut])
            p = 0.95 if "certain" in self.tokenizer.decode(tokens) else 0.8
            values = [p if [t] == wanted[i : i + 1] else 0.1 for i, t in enumerate(tokens[cut:])]
            values = np.log(np.array(values, np.float32)).reshape(-1, 1)
        elif request.max_new_tokens:
            written = self.says(tokens)[: request.max_new_tokens]
        stats = {"prompt_tokens": len(tokens), "cached_tokens": len(tokens) - 1}
        stats["completion_tokens"] = len(written)
        result = SimpleNamespace(tokens=written, logits=values, stats=stats)
        kept = SimpleNamespace(release=lambda: None)
        return SimpleNamespace(
            result=lambda: result, cancel=lambda: None, discard=lambda: None, retained=kept
        )


class Model(SimpleNamespace):
    """What explaining takes of a model."""


# Markers of Muse's protocol in a scripted turn: a thought begins and ends, another channel begins,
# its header ends, the answer begins, the turn ends.
END = [("<|eom|>", True), ("<|start|>", True), ("assistant", False)]
SIGNS = {
    "{": [(" to=self", False), ("<|message|>", True)],
    "}": END,
    "~": END,
    "#": [("<|message|>", True)],
    ">": [(" to=user", False), ("<|message|>", True)],
    "|": [("<|eot|>", True)],
}


def scripted(nano, written: str, *, stop: str = "natural", tools: bool = False):
    """A model whose engine is scripted, and the result of a turn in Muse's protocol; ``written``:
    with SIGNS."""
    tokenizer, requests = nano.tokenizer, nano._requests
    close = closing(nano, tools=tools)
    model = Model(
        tokenizer=tokenizer,
        info=nano.info,
        _engine=Scripted(tokenizer, close),
        _requests=requests,
        _weights=nano._weights,
    )
    pieces = [piece for char in written for piece in SIGNS.get(char, [(char, False)])]
    joined = []  # neighbours of one kind, so that a text is encoded as one
    for text, marker in pieces:
        if joined and not marker and not joined[-1][1]:
            joined[-1] = (joined[-1][0] + text, False)
        else:
            joined.append((text, marker))
    ids = [t for piece in joined for t in tokenizer.encode_pieces([piece])]
    asked = Asked(
        question="Which?",
        ids=np.asarray(prompt(nano), np.int32),
        images=[],
        protocol=requests.protocol,
        stop_ids=requests.stop_ids,
        adapter=None,
        tools=tools,
        thought_cache=None,
    ).of(model)
    result = ChatResult(
        text="",
        tokens=tuple(ids),
        seed=0,
        finish_reason="stop",
        thinking_stop_reason=stop,
        asked=asked,
    )
    return model, result


def explained(nano, written: str, *, answer_tokens: int = 64, **turn):
    """The X-ray of a scripted turn."""
    model, result = scripted(nano, written, **turn)
    assert model is not None  # results know it weakly
    return result.explain_thinking(answer_tokens=answer_tokens)


def test_what_each_sentence_did(nano) -> None:
    _model, result = scripted(nano, "{Say 3. Or 7?\nNo, 5. Wait. I mean 5. Sure}>5|")
    xray = result.explain_thinking()
    assert [one.text for one in xray.sentences] == [
        "Say 3.",
        " Or 7?\n",
        "No, 5.",
        " Wait.",
        " I mean 5.",
        " Sure",
    ]
    assert said(xray) == ["5", "3", "7", "5", "5", "5", "5"]  # the prompt's last digit is 5
    assert [one.is_final for one in xray.sentences] == [False, False, True, True, True, True]
    assert [one.changed for one in xray.sentences] == [True, True, True, False, False, False]
    assert xray.before.is_final and xray.committed_at == 3
    assert (xray.answer, xray.answer_tokens, xray.answer_is_trial) == ("5", 2, False)
    for one in (xray.before, *xray.sentences):
        first = 0.8 if one.is_final else 0.1
        assert one.probability == pytest.approx(first * 0.8, rel=1e-6)
        assert one.confidence == pytest.approx(math.sqrt(first * 0.8), rel=1e-6)
        assert one.token_logprob == pytest.approx(math.log(first * 0.8) / 2, rel=1e-6)
    spans = [one.tokens for one in xray.sentences]
    decode = nano.tokenizer.decode
    assert [decode(result.tokens[a:b]) for a, b in spans] == [s.text for s in xray.sentences]
    assert all(a[1] == b[0] for a, b in pairwise(spans))
    assert xray.saved_tokens == spans[-1][1] - spans[3][0]
    assert xray.thought_tokens == spans[-1][1] - spans[0][0]


def test_a_sentence_that_makes_the_model_surer_changed_something(nano) -> None:
    xray = explained(nano, "{It is 6. Hm. Now I am certain. Yes.}>6|")
    assert [one.changed for one in xray.sentences] == [True, False, True, False]
    assert xray.committed_at == 1


def test_tokens_are_counted_and_each_place_is_asked_twice(nano) -> None:
    model, result = scripted(nano, "{One 1. Two 2.}>2|")
    xray = result.explain_thinking()
    asked = model._engine.asked
    assert [r.retain for r in asked] == [True, False, False] * 3
    assert [r.max_new_tokens for r in asked] == [0, 2, None] * 3
    assert xray.probe_tokens == 3 * (1 + (1 + 2) + 1)


@pytest.mark.parametrize(
    ("written", "committed"),
    [
        ("{It is 5.}>5|", 0),  # as without a thought
        ("{It is 5. So 5.}>5|", 0),
        ("{It is 6. So 6.}>6|", 1),
        ("{It is 6. Or 7.}>7|", 2),
        ("{It is 6. Or 7.}>6|", None),  # sampled: another answer than the likeliest
    ],
)
def test_where_the_model_commits(nano, written: str, committed: int | None) -> None:
    xray = explained(nano, written)
    assert xray.committed_at == committed
    late = [] if committed is None else xray.sentences[committed:]
    assert xray.saved_tokens == sum(b - a for a, b in (one.tokens for one in late))


def test_several_thoughts_of_a_turn(nano) -> None:
    """Each is closed in its place, with what stands between them; the answer is the last."""
    xray = explained(nano, "{First 3. Then 4.}{Or 8. No, 9.}>9|")
    assert [one.thought for one in xray.sentences] == [0, 0, 1, 1]
    assert said(xray)[1:] == ["3", "4", "8", "9"] and xray.committed_at == 4
    assert xray.thought_tokens < xray.sentences[-1].tokens[1] - xray.sentences[0].tokens[0]


def test_calls_between_thoughts_are_read(nano) -> None:
    xray = explained(nano, "{First 3.} to=weather#8~{So be it. Now 4.}>4|")
    assert said(xray)[1:] == ["3", "8", "4"] and [s.thought for s in xray.sentences] == [0, 1, 1]


def test_a_thought_without_a_sentence_end_is_one_sentence(nano) -> None:
    xray = explained(nano, "{six or 6}>6|")
    assert [one.text for one in xray.sentences] == ["six or 6"] and xray.committed_at == 1


@pytest.mark.parametrize("end", ["", "}", "}>", "|"])
def test_a_turn_without_an_answer_takes_the_trial_at_its_end(nano, end: str) -> None:
    xray = explained(nano, "{It is 6. Or 7. And so" + end, stop="length")
    assert xray.answer_is_trial and xray.answer == "7" and xray.committed_at == 2
    assert said(xray)[1:] == ["6", "7", "7"] and xray.sentences[-1].is_final
    assert "has no answer" in xray.to_html() and "there is no answer" in str(xray)


def test_an_answer_is_compared_as_far_as_asked(nano) -> None:
    written = "{It is 6.}>6 of them, I am sure of it.|"
    short, long = (explained(nano, written, answer_tokens=n) for n in (1, 64))
    assert (short.answer, short.answer_tokens, short.committed_at) == ("6", 1, 1)
    assert long.answer.endswith("sure of it.") and long.committed_at is None


def test_with_tools_the_model_chooses_whom_it_turns_to(nano) -> None:
    model, result = scripted(nano, "{It is 6.} to=weather", tools=True)
    xray = result.explain_thinking()
    assert xray.answer == "to=weather" and model._engine.close == closing(nano, tools=True)


def test_an_answer_to_nobody_known_is_compared_with_its_header(nano) -> None:
    """No tools are on offer, and the model calls one."""
    _model, result = scripted(nano, "{It is 6.} to=weather#6|", tools=True)
    xray = replace(result, asked=replace(result.asked, tools=False)).explain_thinking()
    assert xray.answer == "to=weather<|message|>6" and not xray.answer_is_trial


HARMONY = [
    *(("<|channel|>", True), ("analysis", False), ("<|message|>", True), ("So 6. Or 7.", False)),
    *(("<|end|>", True), ("<|start|>", True), ("assistant", False)),
    *(("<|channel|>", True), ("final", False), ("<|message|>", True), ("7", False)),
]


@pytest.mark.parametrize(
    "name", ["harmony", "think", "seed-think", "bracket-think", "gemma-think", "think+hermes"]
)
def test_every_family_whose_thoughts_are_marked(nano, name: str) -> None:
    protocol = PROTOCOLS[name]
    tokenizer, tag = writer(protocol), next((t for t in protocol.tags if t.kind == "thought"), None)
    turn = HARMONY
    if tag is not None:
        turn = [(tag.open, True), ("So 6. Or 7.", False), (tag.close, True), ("7", False)]
    end = "<|return|>" if name == "harmony" else TURN_END
    thoughts = Thoughts(protocol, tokenizer, thought_marks(protocol, tokenizer), 1000)
    model = Model(
        tokenizer=tokenizer,
        info=nano.info,
        _engine=Scripted(tokenizer, thoughts.closing(tools=False), end),
        _requests=SimpleNamespace(thoughts=thoughts, eyes=None, blind=""),
        _weights=nano._weights,
    )
    asked = Asked(
        question="Which?",
        ids=np.asarray(tokenizer.encode("5 or 6 or 7? I say 5"), np.int32),
        images=[],
        protocol=protocol,
        stop_ids=frozenset([tokenizer.markers[end]]),
        adapter=None,
        tools=False,
        thought_cache=None,
    ).of(model)
    ids = tuple(tokenizer.encode_pieces([*turn, (end, True)]))
    xray = ChatResult("", ids, 0, "stop", asked=asked).explain_thinking()
    assert [one.text for one in xray.sentences] in (["So 6. ", "Or 7."], ["So 6.", " Or 7."])
    assert said(xray) == ["5", "6", "7"] and xray.committed_at == 2 and xray.answer == "7"


@pytest.mark.parametrize("written", [">5|", "{}>5|", "{ \n}>5|"])
def test_a_result_that_did_not_think_is_refused(nano, written: str) -> None:
    with pytest.raises(InvalidRequest, match="the result has no thought"):
        explained(nano, written, stop="none")


# ---- real models ---------------------------------------------------------------------------------


def test_every_trial_is_what_the_model_gives_alone(nano, natural) -> None:
    xray = natural.explain_thinking()
    answer = answer_of(nano, natural)
    begin = xray.sentences[0].tokens[0]
    with musespark.load(threads=2, prefix_cache=False) as other:
        for at, one in zip(
            [begin, *(s.tokens[1] for s in xray.sentences)],
            (xray.before, *xray.sentences),
            strict=True,
        ):
            ids = prompt(nano) + list(natural.tokens[:at]) + closing(nano)
            scores = other.score(ids + answer)[len(ids) :]
            assert one.token_logprob == float(scores.astype(np.float64).sum()) / len(answer)
            found = other.generate(ids, max_new_tokens=len(answer))
            assert one.is_final == (list(found.tokens) == answer)
            assert one.answer == found.text
    assert "".join(one.text for one in xray.sentences) == natural.reasoning
    assert xray.thought_tokens == natural.usage.reasoning_tokens


SAMPLED = [
    {},
    {"temperature": 1.1, "seed": 4},
    {"thinking_token_budget": 60},
    {"thinking_token_budget": 30, "max_new_tokens": 12},
    {"thinking_policy": ThinkingPolicy(trials=8, confident=0.5, stable=3, every=1)},
    {"mode": "thinking"},
]


@pytest.mark.parametrize("options", SAMPLED)
def test_the_last_place_is_the_result_itself(nano, options) -> None:
    """There the trial closes the thought as it was closed: the answer has the same bits."""
    found = nano.chat(SUM, **HIGH, **options, logprobs=1)
    xray = found.explain_thinking()
    answer = answer_of(nano, found)
    logprobs = [one.logprob for one in found.logprobs[-len(answer) :]]
    assert not xray.answer_is_trial and xray.answer_tokens == len(answer)
    assert xray.sentences[-1].token_logprob * len(answer) == pytest.approx(
        math.fsum(logprobs), rel=1e-6, abs=1e-9
    )
    assert xray.question == SUM and xray.thinking_stop_reason == found.thinking_stop_reason


def test_demoted_thoughts_are_read_demoted() -> None:
    options, last = {**HIGH, "logprobs": 1}, []
    with musespark.load(threads=1, kv="kv8") as model:
        for choice in ("keep", "demote"):
            found = model.chat(SUM, **options, thought_cache=choice)
            answer = answer_of(model, found)
            logprobs = [one.logprob for one in found.logprobs[-len(answer) :]]
            last.append(found.explain_thinking().sentences[-1].token_logprob)
            assert last[-1] * len(answer) == pytest.approx(math.fsum(logprobs), rel=1e-6)
    assert found.thought_cache.demoted_pages > 0 and last[0] != last[1]


@pytest.mark.parametrize("options", SAMPLED[:4])
def test_the_same_in_a_batch_with_other_memory_and_threads(nano, options) -> None:
    given = {**HIGH, **options}
    found = nano.chat(SUM, **given)
    alone = found.explain_thinking()
    streams = [nano.chat(text, **HIGH, stream=True) for text in OTHERS]
    assert found.explain_thinking() == alone
    for stream in streams:
        stream.drain()
    with musespark.load(threads=2, prefix_cache=False) as other:
        assert other.chat(SUM, **given).explain_thinking() == alone
    assert nano.chat_batch([*OTHERS, SUM], **given)[-1].explain_thinking() == alone
    assert nano.session().chat(SUM, **given).explain_thinking() == alone


def test_nothing_changes_and_nothing_is_left_in_memory(nano, natural) -> None:
    def used() -> int:
        nano.generate("x", max_new_tokens=1)
        return nano._engine.stats()["kv_bytes_used"]

    before, was = used(), natural.to_dict()
    natural.explain_thinking()
    assert used() == before and natural.to_dict() == was
    assert nano.chat(SUM, **HIGH).tokens == natural.tokens


def test_a_thought_that_was_cut(nano) -> None:
    found = nano.chat(SUM, **HIGH, max_new_tokens=40)
    assert found.finish_reason == "length" and not found.content
    xray = found.explain_thinking()
    assert xray.answer_is_trial and xray.sentences[-1].is_final and xray.answer
    assert "".join(one.text for one in xray.sentences) == found.reasoning


def test_a_thought_that_fills_the_context_says_so() -> None:
    with musespark.load(threads=1, context=100) as small:
        found = small.chat(SUM, **HIGH, thinking_policy="off")
        assert found.finish_reason == "length"
        with pytest.raises(ContextOverflow, match="the context has 100"):
            found.explain_thinking()


def test_a_call_is_an_answer(nano) -> None:
    found = nano.chat("What is the weather in Bergen?", tools=[TOOL], **HIGH, logprobs=1)
    assert found.finish_reason == "tool_calls" and found.reasoning
    xray = found.explain_thinking()
    count = xray.answer_tokens
    assert xray.answer.startswith("to=weather") and not xray.answer_is_trial
    logprobs = [one.logprob for one in found.logprobs[-count:]]
    last = xray.sentences[-1].token_logprob * count
    assert last == pytest.approx(math.fsum(logprobs), rel=1e-6)


def test_a_prompt_that_opens_the_thought(thinker) -> None:
    """Whatever a random model writes; the answer is scripted."""
    found = thinker.chat("a", max_new_tokens=3, seed=1)
    encode = thinker.tokenizer.encode
    ids = [*encode("Yes. No."), thinker.tokenizer.markers["</think>"], *encode("\n\nMaybe")]
    xray = replace(found, tokens=tuple(ids)).explain_thinking()
    assert [one.text for one in xray.sentences] == ["Yes. ", "No."]
    assert xray.sentences[0].tokens[0] == 0 and xray.answer == "Maybe"
    request, _ = thinker._requests.chat("a", {})
    scores = thinker.score([*map(int, request.tokens), *ids])[-len(encode("\n\nMaybe")) :]
    assert xray.sentences[-1].token_logprob == float(scores.astype(np.float64).mean())


def test_images_of_the_prompt_are_seen_again(tmp_path) -> None:
    said = ("{{ m.content }}{% else", "{{ m.content.split('</think>')[-1] }}{% else")
    template = e.TEMPLATE.replace(*said).replace("assistant\n", "assistant\n<think>")
    folder = chat_folder(tmp_path / "m", template, (*MARKERS, *e.MARKERS))
    picture = {"type": "image", "image": e.picture(1)}
    message = {"role": "user", "content": [picture, {"type": "text", "text": "What is it?"}]}
    found = []
    for prefix_cache in (True, False):
        load = {"quantize": "none", "threads": 1, "prefix_cache": prefix_cache}
        with musespark.load(folder, **load) as model:
            model._requests.eyes = e.eyes(HIDDEN)
            given = model.chat([message], max_new_tokens=4, seed=1, logprobs=1)
            answer = [model.tokenizer.markers["</think>"], *given.tokens]
            xray = replace(given, tokens=(*given.tokens, *answer)).explain_thinking()
            found.append(xray)
            blind = model.chat("What is it?", max_new_tokens=4, seed=1)
            other = replace(blind, tokens=(*given.tokens, *answer)).explain_thinking()
            assert other.before.token_logprob != xray.before.token_logprob
    assert found[0] == found[1] and found[0].question == "What is it?"


def test_an_adapter_answers_for_its_results(nano, tmp_path) -> None:
    name, rng = "base_model.model.model.layers.0.mlp.up_proj", np.random.default_rng(1)
    layer = nano._weights.spec.layers[0]
    sizes = {"A": (4, nano._weights.spec.hidden), "B": (layer.mlp.intermediate, 4)}
    tensors = {
        f"{name}.lora_{part}.weight": rng.standard_normal(size).astype(np.float32)
        for part, size in sizes.items()
    }
    config = lora_config(target_modules=["up_proj"])
    with musespark.load(threads=1) as model:
        adapter = model.load_adapter(write_adapter(tmp_path / "one", config, tensors))
        found = model.chat(SUM, **HIGH, adapter=adapter, mode="thinking", max_new_tokens=30)
        plain = model.chat(SUM, **HIGH, mode="thinking", max_new_tokens=30)
        with_it = found.explain_thinking()
        without = replace(plain, tokens=found.tokens).explain_thinking()
        assert with_it.before.token_logprob != without.before.token_logprob
        adapter.close()
        with pytest.raises(InvalidRequest, match="adapter: got"):
            found.explain_thinking()


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [0, -1, 1.5, True, "3", None])
def test_how_much_of_the_answer_is_checked(natural, tokens) -> None:
    with pytest.raises(InvalidRequest, match=r"answer_tokens: got .*, allowed is an integer >= 1"):
        natural.explain_thinking(answer_tokens=tokens)


def test_a_result_without_a_thought_is_refused(nano) -> None:
    with pytest.raises(InvalidRequest, match="the result has no thought"):
        nano.chat(SUM, mode="instant").explain_thinking()


def test_thoughts_that_no_token_marks_are_refused(tmp_path) -> None:
    with musespark.load(chat_folder(tmp_path), threads=1, quantize="none") as model:
        found = model.chat("a", max_new_tokens=3)
        with pytest.raises(InvalidRequest, match="marks no thoughts by tokens"):
            found.explain_thinking()


def test_evicted_thoughts_are_refused(nano) -> None:
    found = nano.chat(SUM, **HIGH, thought_cache_tokens=32)
    assert found.thought_cache.evictions
    with pytest.raises(InvalidRequest, match="tokens of the thought were evicted"):
        found.explain_thinking()


def test_copies_do_not_know_their_model(natural) -> None:
    for twin in (pickle.loads(pickle.dumps(natural)), copy.deepcopy(natural)):
        assert twin == natural and twin.to_dict() == natural.to_dict()
        with pytest.raises(InvalidRequest, match="this result is a copy"):
            twin.explain_thinking()
    assert "asked" not in natural.to_dict() and "asked" not in repr(natural)


def test_the_model_has_to_be_there() -> None:
    model = musespark.load(threads=1)
    found = model.chat("What is 3 + 4?", **HIGH)
    model.close()
    with pytest.raises(Error, match="the model is closed"):
        found.explain_thinking()
    del model
    gc.collect()
    with pytest.raises(Error, match="the model that gave this result is gone"):
        found.explain_thinking()


def test_another_template_changes_nothing(tmp_path) -> None:
    folder = chat_folder(tmp_path, THINK, MARKERS)
    with musespark.load(folder, threads=1, quantize="none") as model:
        found = model.chat("a", max_new_tokens=4)
        xray = found.explain_thinking()
        model.template = musespark.ChatTemplate(CHATML)
        assert model._requests.protocol is not found.asked.protocol
        assert found.explain_thinking() == xray


def test_other_weights_do_not_answer_for_a_result(thinker, nano, natural) -> None:
    other = replace(natural.asked, engine=thinker.chat("a", max_new_tokens=1).asked.engine)
    with pytest.raises(InvalidRequest, match="weights were replaced"):
        replace(natural, asked=other).explain_thinking()


# ---- data ----------------------------------------------------------------------------------------


def test_json_has_everything(natural, tmp_path) -> None:
    xray = natural.explain_thinking()
    told = json.loads(xray.to_json())
    assert told["format"] == "musespark.thought-xray" and told["version"] == 1
    assert told["committed_at"] == xray.committed_at and told["answer"] == natural.content
    assert [s["token_logprob"] for s in told["sentences"]] == [
        s.token_logprob for s in xray.sentences
    ]
    assert [tuple(s["tokens"]) for s in told["sentences"]] == [s.tokens for s in xray.sentences]
    assert told == json.loads(json.dumps(xray.to_dict()))
    path = tmp_path / "x.json"
    path.write_text("before")
    xray.save(path)
    assert path.read_text() == xray.to_json() and list(tmp_path.iterdir()) == [path]


# ---- pages ---------------------------------------------------------------------------------------

HOSTILE = "</div><script>alert(1)</script> & 5 <|eom|>\u202e."


class Reader(HTMLParser):
    """Elements in order, text, and whether every element was closed in its place."""

    def __init__(self, page: str):
        super().__init__()
        self.open, self.seen, self.attributes, self.text = [], [], [], ""
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs) -> None:
        self.seen.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs) -> None:
        self.seen.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        self.text += data


def hostile(xray):
    one = replace(xray.sentences[0], text=HOSTILE, answer=HOSTILE)
    return replace(xray, question=HOSTILE, answer=HOSTILE, model=HOSTILE, sentences=(one,))


def test_pages_and_cells_escape_and_load_nothing(nano) -> None:
    xray = hostile(explained(nano, "{It is 6.}>6|"))
    for html in (xray.to_html(), xray._repr_html_()):
        read = Reader(html)
        assert "script" not in read.seen and "</div><script>alert(1)</script> & 5" in read.text
        assert "\u202e" not in html and "\\u202e" in read.text
        for name, value in read.attributes:
            assert not name.startswith("on") and name not in ("src", "href")
            assert value is None or "url(" not in value
    assert dict(Reader(xray._repr_html_()).attributes).keys() >= {"style", "title"}


def test_a_page_allows_its_own_style_alone(nano) -> None:
    html = explained(nano, "{It is 6.}>6|").to_html()
    style = re.search("<style>(.*?)</style>", html, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri" in html
    assert "script-src" not in html and " style=" not in html
    assert "prefers-color-scheme: dark" in style


@pytest.mark.parametrize("show", [lambda x: x.to_html(), lambda x: x._repr_html_()])
def test_sentences_are_marked_before_and_after_the_commitment(nano, show) -> None:
    html = show(explained(nano, "{Say 3. Or 7. Sure. Yes.}>7|"))
    marks = re.findall(
        r'<span (?:class|style)="([^"]*)" title="[^"]*">([^<]*)<sup [^>]*>([^<]*)', html
    )
    assert [(text, number) for _, text, number in marks] == [
        ("Say 3.", "1"),
        ("Or 7.", "2"),
        ("Sure.", "3="),
        ("Yes.", "4="),
    ]
    looks = [look for look, _, _ in marks]
    assert looks[0] == looks[1] != looks[2] == looks[3]
    assert looks[2].endswith(("same", "italic")) and not looks[1].endswith(("same", "italic"))
    before, after = html.split("◆ committed: 7")
    assert "Or 7." in before and "Sure." in after and "Sure." not in before.split("<svg")[0]
    assert html.count("<circle") == 5 and html.count("<tr>") == 6


def test_what_is_never_committed_to_says_so(nano) -> None:
    xray = explained(nano, "{It is 6. Or 7.}>6|")
    for told in (xray.to_html(), str(xray)):
        assert "never" in told and "◆" not in told


def test_a_page_is_written_whole(nano, tmp_path) -> None:
    xray = explained(nano, "{It is 6.}>6|")
    path = tmp_path / "x.html"
    assert xray.to_html(path) == path.read_text(encoding="utf-8")
    assert list(tmp_path.iterdir()) == [path]


def test_the_command(natural, capsys, tmp_path) -> None:
    page = tmp_path / "x.html"
    ask = ["xray", SUM, "--effort", "high", "--threads", "1"]
    assert main([*ask, "--html", str(page)]) == 0
    said = capsys.readouterr().out
    wanted = natural.explain_thinking()
    sentences = f"{wanted.committed_at} of {len(wanted.sentences)} sentences"
    assert f"committed: after {sentences}" in said and said.endswith(f"{wanted.answer}\n")
    assert f"◆ committed: {wanted.answer}" in page.read_text(encoding="utf-8")
    assert main([*ask, "--json", "--answer-tokens", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["answer_tokens"] == 1
    assert main([*ask[:2], "--effort", "none"]) == 1
    assert "the result has no thought" in capsys.readouterr().err
    assert main([*ask, "--html", str(tmp_path / "none" / "x.html")]) == 1
    assert "there is no folder" in capsys.readouterr().err


# ---- sentences -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "wanted"),
    [
        (["So", " 19", ".", "\n", "Next", "."], ["So 19.\n", "Next."]),
        (["pi", " is", " 3", ".", "14", ".", " Yes"], ["pi is 3.14.", " Yes"]),
        (['"', "No", '."', " Then"], ['"No."', " Then"]),
        (["one", "\n", "\n", "two"], ["one\n\n", "two"]),
        (["\n", "one.", " "], ["\none. "]),
        (["Wait", "...", " no", "?!", " Ok"], ["Wait...", " no?!", " Ok"]),
        (["a. b", " c"], ["a. b", " c"]),  # inside a token: behind it
        (["好", "。", "吗", "？"], ["好。", "吗？"]),
        (["plain"], ["plain"]),
        ([" ", "\n"], [" \n"]),
        ([], []),
    ],
)
def test_sentences_end(texts: list[str], wanted: list[str]) -> None:
    ends = sentence_ends(texts, [text.encode() for text in texts])
    begins = [0, *ends]
    assert ["".join(texts[a:b]) for a, b in zip(begins, ends, strict=False)] == wanted


def test_no_sentence_ends_inside_a_character() -> None:
    first, last = "。".encode(), "你".encode()
    # The mark's token begins the next character: the sentence goes on to the thought's end.
    assert sentence_ends(["。", "", "你"], [first + last[:1], last[1:2], last[2:]]) == [3]
    # The turn was cut inside a character, whose tokens belong to no sentence.
    assert sentence_ends(["。", "", ""], [first, last[:1], last[1:2]]) == [1]
    assert sentence_ends(["", ""], [last[:1], last[1:2]]) == []


def test_thoughts_are_found_as_the_core_finds_them() -> None:
    marks = {"opens": [[7, 8], [9]], "closes": [3, 4]}
    found = thought_spans([7, 8, 1, 3, 9, 9, 2, 4, 7, 8, 5], marks, 0)
    assert [tuple(span) for span in found] == [(2, 3, True), (5, 7, True), (10, 11, False)]
    # What lies before the completion is left out, and so is the prompt's part of a thought.
    found = thought_spans([7, 8, 1, 3, 9, 9, 2, 4, 7, 8, 5], marks, 6)
    assert [tuple(span) for span in found] == [(6, 7, True), (10, 11, False)]
