"""What users report of thinking budgets in other engines, each as a test: markers that leak into
the answer, a second closing marker, a character split at the cut, an answer that is starved, a
budget that is ignored. What else budgets promise is in test_thinking.py."""

from __future__ import annotations

import pytest

import musespark
from musespark import ThinkingPolicy
from musespark.errors import InvalidRequest
from musespark.text.channels import ChannelParser
from musespark.text.spelling import spellings
from musespark.thinking.sentences import thought_spans
from support.chat_folder import chat_folder

SUM = "Tom has 12 apples. He buys 7 more and gives 5 to Ann. How many apples does he have?"
HIGH = {"reasoning_effort": "high"}
TAGS = ("<|im_start|>", "<|im_end|>", "<think>", "</think>")
TAGGED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
EARLY = {
    "budget": {"thinking_token_budget": 30},
    "margin": {"thinking_policy": ThinkingPolicy(margin=1e6)},
    "trials": {"thinking_policy": ThinkingPolicy(trials=8, confident=0.5, every=1)},
    "repeats": {"thinking_policy": ThinkingPolicy(trials=8, confident=0.0, stable=2, every=1)},
}


@pytest.fixture(scope="module")
def nano():
    with musespark.load(threads=1) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def tagged(tmp_path_factory):
    folder = chat_folder(tmp_path_factory.mktemp("tagged"), TAGGED, TAGS)
    with musespark.load(folder, threads=1, quantize="none") as loaded:
        yield loaded


def length(nano) -> int:
    """Tokens of the thought that nothing ends."""
    return nano.chat(SUM, **HIGH).usage.reasoning_tokens


def spans(model, tokens) -> list[tuple[int, int | None]]:
    """Begin and end of each thought among the tokens of a turn."""
    marks, ids, found, at = model._requests.thoughts.marks, list(tokens), [], 0
    while at < len(ids):
        opens = next((o for o in marks["opens"] if ids[at : at + len(o)] == o), None)
        if opens is None:
            at += 1
            continue
        begin = at + len(opens)
        end = next((k for k in range(begin, len(ids)) if ids[k] in marks["closes"]), None)
        found.append((begin, end))
        at = len(ids) if end is None else end
    return found


# ---- markers in the answer -----------------------------------------------------------------------


@pytest.mark.parametrize("options", EARLY.values(), ids=EARLY)
def test_no_marker_is_text(nano, options: dict) -> None:
    found = nano.chat(SUM, **HIGH, **options)
    assert found.thinking_stop_reason != "natural" and found.content
    deltas = list(nano.chat(SUM, **HIGH, **options, stream=True))
    content = "".join(d.text for d in deltas if d.channel == "content")
    assert content == found.content and not found.protocol_errors
    for text in (found.content, found.reasoning, *(d.text for d in deltas)):
        assert not any(marker in text for marker in nano.tokenizer.markers)
        assert "to=self" not in text and "to=user" not in text


@pytest.mark.parametrize("budget", [0, 1, 2, 5, 9])
def test_no_tag_is_text(tagged, budget: int) -> None:
    known = tagged.tokenizer.markers
    bias = {known["<think>"]: 12.0}
    found = tagged.chat(
        "a", thinking_token_budget=budget, max_new_tokens=20, seed=1, logit_bias=bias
    )
    assert not any(tag in found.content + found.reasoning for tag in TAGS)
    assert found.usage.reasoning_tokens <= budget
    assert (known["<think>"] in found.tokens) == (budget > 0)


# ---- a second closing marker ---------------------------------------------------------------------


def test_a_thought_is_closed_once_wherever_it_is_cut(nano) -> None:
    """Around its own end too, where the model closes it in the same breath."""
    whole = length(nano)
    for budget in [*range(1, 12), 14, 15, 16, 30, *range(whole - 3, whole + 4)]:
        found = nano.chat(SUM, **HIGH, thinking_token_budget=budget)
        ((begin, end),) = spans(nano, found.tokens)
        closes = nano._requests.thoughts.marks["closes"]
        assert sum(t in closes for t in found.tokens[begin:end]) == 0
        assert found.tokens.count(found.tokens[end]) == 1, budget
        assert end - begin == found.usage.reasoning_tokens <= budget
        assert found.content and found.finish_reason == "stop"


@pytest.mark.parametrize("options", EARLY.values(), ids=EARLY)
def test_what_ends_a_thought_closes_it_once(nano, options: dict) -> None:
    found = nano.chat(SUM, **HIGH, **options)
    ((_, end),) = spans(nano, found.tokens)
    assert found.tokens.count(found.tokens[end]) == 1


def test_a_tag_is_closed_once(tagged) -> None:
    known = tagged.tokenizer.markers
    for budget in range(1, 12):
        options = {"thinking_token_budget": budget, "max_new_tokens": 12, "seed": 1}
        found = tagged.chat("a", **options, logit_bias={known["<think>"]: 12.0})
        ends = [end for _, end in spans(tagged, found.tokens)]
        assert ends and None not in ends
        assert found.tokens.count(known["</think>"]) == len(ends), budget


# ---- a character split at the cut ----------------------------------------------------------------


@pytest.mark.parametrize("message", ["\nZeit um … já 😀.", "…"])
def test_closing_words_are_written_whole_or_not_at_all(nano, message: str) -> None:
    """A character has several tokens here. The thought's own characters at the cut:
    test_thinking.py::test_characters_are_whole_at_the_cut."""
    size = len(nano.tokenizer.encode(message))
    assert size > len(message)
    for budget in range(size + 1, size + 5):
        given = {"thinking_token_budget": budget, "thinking_closing_message": message}
        found = nano.chat(SUM, **HIGH, **given)
        assert found.reasoning.endswith(message) and "\ufffd" not in found.reasoning
        stream = nano.chat(SUM, **HIGH, **given, stream=True)
        assert not any("\ufffd" in delta.text for delta in stream)
    with pytest.raises(InvalidRequest, match=f"thinking_closing_message: got {size} tokens"):
        nano.chat(SUM, **HIGH, thinking_token_budget=size, thinking_closing_message=message)


# ---- an answer that is starved -------------------------------------------------------------------


@pytest.mark.parametrize("budget", [0, 1, 20, 60])
def test_the_answer_has_its_own_length(nano, budget: int) -> None:
    """Another engine counts thoughts against max_tokens and returns an empty answer."""
    found = nano.chat(SUM, **HIGH, thinking_token_budget=budget, max_new_tokens=12)
    used = found.usage
    whole = found.finish_reason == "stop" or used.completion_tokens - used.reasoning_tokens >= 12
    assert found.content and whole


@pytest.mark.parametrize("room", [12, 20, 44])
def test_a_short_context_starves_no_answer(nano, room: int) -> None:
    prompt = nano.chat(SUM, **HIGH).usage.prompt_tokens
    with musespark.load(threads=1, context=prompt + room) as small:
        found = small.chat(SUM, **HIGH, thinking_token_budget=10_000, max_new_tokens=12)
    assert found.content and found.usage.completion_tokens <= room


# ---- a budget that is ignored --------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("budget", [0, 7, 25])
def test_a_budget_holds_however_the_model_writes(nano, budget: int, seed: int) -> None:
    """Hot sampling, a marker that the caller himself bars, a stream, a batch."""
    given = {**HIGH, "thinking_token_budget": budget, "max_new_tokens": 30}
    hot = {**given, "temperature": 1.5, "seed": seed}
    ends = {nano.tokenizer.id("<|eom|>"): -1e9}
    for options in (hot, {**hot, "logit_bias": ends}, {**given, "logit_bias": ends}):
        found = nano.chat(SUM, **options)
        assert found.usage.reasoning_tokens <= budget
        assert sum(end - begin for begin, end in spans(nano, found.tokens)) <= budget
        stream = nano.chat(SUM, **options, stream=True)
        list(stream)
        assert stream.result.tokens == found.tokens
        assert nano.chat_batch([SUM, "Hi!"], **options)[0].tokens == found.tokens


def test_a_budget_counts_all_thoughts_of_a_turn(nano) -> None:
    """A model that opens a second thought has what is left of the budget, not another one."""
    found = nano.chat(
        SUM,
        **HIGH,
        thinking_token_budget=40,
        logit_bias={nano._requests.thoughts.marks["opens"][0][0]: 60.0},
        max_new_tokens=20,
    )
    total = sum(end - begin for begin, end in spans(nano, found.tokens))
    assert total <= 40 and found.usage.reasoning_tokens <= 40


def test_a_thought_is_one_in_whatever_tokens_its_header_is_spelled(nano) -> None:
    """Who reads the turn goes by the header's text; a budget that knew the encoder's tokens alone
    was evaded by a header in letters."""
    tokens, protocol = nano.tokenizer, nano._requests.protocol
    thoughts, message = nano._requests.thoughts, tokens.id("<|message|>")
    spelled = spellings(tokens, " to=self")
    assert spelled[0] == tokens.encode(" to=self") and len(spelled) > 20
    assert len({*map(tuple, spelled)}) == len(spelled)
    assert {tokens.decode(ids) for ids in spelled} == {" to=self"}
    letters = [tokens.id(part) for part in ("\u0120", *"to=self")]
    assert letters in spelled
    said = tokens.encode("Hm.")
    prompt = tokens.encode("<|start|>assistant", parse_special=True)
    ends = dict.fromkeys(map(tokens.id, ("<|eom|>", "<|eot|>", "<|start|>")), -1e9)
    more = {"max_new_tokens": 2, "signals": True, "logit_bias": ends}
    for ids in spelled:
        watched = nano.generate([*prompt, *ids, message], **more)
        assert len(watched.signals.margin) == 2, "the core counts it as thought"
        parser = ChannelParser(protocol, tokens)
        for token in (*ids, message, *said):
            parser.push(token)
        parser.finish()
        turn = [*ids, message, *said]
        begin = len(ids) + 1
        assert parser.turn.reasoning == "Hm."
        assert [tuple(span) for span in thought_spans(turn, thoughts.marks, 0)] == [
            (begin, len(turn), False)
        ]
    answered = nano.generate([*prompt, *tokens.encode(" to=you"), message], **more)
    assert not len(answered.signals.margin)


def test_all_spellings_of_short_ascii_texts_alone(nano) -> None:
    assert len(spellings(nano.tokenizer, "self")) > 2
    for text in ("self-reflection", "für"):
        assert spellings(nano.tokenizer, text) == [nano.tokenizer.encode(text)]
