"""Channels: the same events however the output is cut, calls parsed or reported, nothing lost."""

from __future__ import annotations

import json
import time
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musespark.errors import InvalidRequest
from musespark.text import (
    PROTOCOLS,
    ChannelEnd,
    ChannelParser,
    ChannelStart,
    ChatTemplate,
    Event,
    ProtocolError,
    Text,
    Tokenizer,
    ToolCall,
    TurnEnd,
    detect_protocol,
    encode_chat,
)
from support.channels import held, pushed_in_runs
from support.tokenizers_zoo import byte_level, unigram

NANO = Path(__file__).parents[2] / "python" / "musespark" / "nano"
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
MUSE, THINK, PLAIN = PROTOCOLS["muse"], PROTOCOLS["think+hermes"], PROTOCOLS["plain"]


@cache
def nano() -> Tokenizer:
    return Tokenizer.load(NANO)


@cache
def nano_template() -> ChatTemplate:
    return ChatTemplate(NANO)


@cache
def with_think_tokens() -> Tokenizer:
    theirs = byte_level()
    theirs.add_tokens(["</tool_call>"])
    return Tokenizer.from_json(theirs.to_str())


@cache
def without_think_tokens() -> Tokenizer:
    data = json.loads(byte_level().to_str())
    data["added_tokens"] = [t for t in data["added_tokens"] if "think" not in t["content"]]
    data["added_tokens"] = [
        t for t in data["added_tokens"] if t["id"] in data["model"]["vocab"].values()
    ]
    return Tokenizer.from_json(json.dumps(data))


def merged(events: list[Event]) -> list[Event]:
    """Neighbouring texts of one channel as one: what does not depend on the cut."""
    out: list[Event] = []
    for event in events:
        if (
            out
            and isinstance(event, Text)
            and isinstance(out[-1], Text)
            and out[-1].kind == event.kind
        ):
            out[-1] = Text(event.kind, out[-1].text + event.text)
        else:
            out.append(event)
    return out


def run(parser: ChannelParser, ids: list[int]) -> list[Event]:
    events = [event for token_id in ids for event in parser.push(token_id)]
    return merged(events + parser.finish())


def muse(text: str, tools: Any = None, **more: Any) -> tuple[ChannelParser, list[Event]]:
    parser, in_runs = (ChannelParser(MUSE, nano(), tools=tools, **more) for _ in range(2))
    ids = nano().encode(text, parse_special=True)
    events = run(parser, ids)
    assert merged(pushed_in_runs(in_runs, ids)) == events
    assert held(in_runs.turn) == held(parser.turn)
    return parser, events


CALL = (
    "<atem:function_calls>\n"
    '<atem:invoke name="get.weather">\n'
    '<atem:parameter name="city">Paris</atem:parameter>\n'
    '<atem:parameter name="days">3</atem:parameter>\n'
    "</atem:invoke>\n"
    "</atem:function_calls>"
)
TURN = (
    " to=self<|message|>I think <x> é.<|eom|><|start|>assistant to=self<|message|>More.<|eom|>"
    f"<|start|>assistant to=get.weather<|message|>{CALL}<|eom|>"
    "<|start|>assistant to=user<|message|>The answer 你.<|eot|>"
)


def test_muse_turn() -> None:
    parser, events = muse(TURN)
    call = ToolCall("get.weather", {"city": "Paris", "days": 3}, CALL[22:-23], "call_1")
    assert events == [
        ChannelStart("thought", "self"),
        Text("thought", "I think <x> é."),
        ChannelEnd("thought"),
        ChannelStart("thought", "self"),
        Text("thought", "\n\nMore."),
        ChannelEnd("thought"),
        ChannelStart("tool", "get.weather"),
        Text("tool", CALL),
        call,
        ChannelEnd("tool"),
        ChannelStart("answer", "user"),
        Text("answer", "The answer 你."),
        ChannelEnd("answer"),
        TurnEnd(),
    ]
    turn = parser.turn
    assert turn.reasoning == "I think <x> é.\n\nMore."
    assert turn.content == "The answer 你."
    assert turn.tool_calls == [call]
    assert (turn.ended, turn.open_kind, turn.finish_hint, turn.errors) == (
        True,
        None,
        "tool_calls",
        [],
    )
    ids = nano().encode(TURN, parse_special=True)
    thought = nano().encode(TURN.split("<|start|>assistant to=get")[0], parse_special=True)
    assert turn.reasoning_tokens == len(thought) < len(ids)


def test_muse_is_independent_of_tokenization() -> None:
    """Character by character (other tokens for the same text) gives the same turn."""
    _, expected = muse(TURN)
    ids = []
    for text, marker in nano().split_markers(TURN):
        if text in ("<|start|>", "<|message|>", "<|eom|>", "<|eot|>"):
            ids.append(nano().id(text))
        else:
            assert not marker or "atem" in text
            ids += [i for char in text for i in nano().encode(char)]
    assert len(ids) > len(nano().encode(TURN, parse_special=True)) + 50
    assert run(ChannelParser(MUSE, nano()), ids) == expected


def test_muse_typed_markers_stay_text() -> None:
    text = "see <|eot|><|start|>assistant to=user<|message|> done"
    ids = nano().encode(" to=self<|message|>", parse_special=True) + nano().encode(text)
    parser = ChannelParser(MUSE, nano())
    events = run(parser, [*ids, nano().id("<|eot|>")])
    assert events[1] == Text("thought", text)
    assert parser.turn.content == ""


def test_muse_cut_anywhere() -> None:
    """Every prefix of a turn keeps all the text that it has."""
    ids = nano().encode(TURN, parse_special=True)
    _, full = muse(TURN)
    texts = "".join(e.text for e in full if isinstance(e, Text) and e.kind != "tool")
    for cut in range(len(ids)):
        parser = ChannelParser(MUSE, nano())
        events = run(parser, ids[:cut])
        turn = parser.turn
        assert not turn.ended and turn.finish_hint is None
        assert texts.startswith((turn.reasoning + turn.content).rstrip("\ufffd"))
        started = [e for e in events if isinstance(e, ChannelStart)]
        assert len(started) == len([e for e in events if isinstance(e, ChannelEnd)])
        if turn.open_kind == "tool":
            assert turn.tool_calls or turn.malformed_tool_calls
    assert turn.open_kind == "answer"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<|message|>Hi<|eot|>", ("Hi", "", 0)),  # a header without a recipient
        (" to=user<|message|>Hi", ("Hi", "", 0)),
        (" to=user<|message|>a<|start|>assistant to=self<|message|>b<|eot|>", ("a", "b", 0)),
        (" to=us", ("", "", 1)),
        (" to=user<|message|>a<|message|>b<|eot|>", ("ab", "", 1)),
        (" to=user<|message|>a<|eom|>stray<|eot|>", ("a", "", 1)),
        (" to=user<|message|>a<|eom|> \n<|start|>assistant<|message|>b<|eot|>", ("a\n\nb", "", 0)),
        (" to=user<|message|>a<|pad|>b<|eot|>", ("ab", "", 1)),
        ("<|eom|>", ("", "", 0)),
        (" to=user<|message|>a<|eom|><|eom|><|eot|>", ("a", "", 1)),
        (" to=self<|message|>x<|eom|><|start|>user<|message|>I say<|eot|>", ("", "x", 2)),
        ("x" * 2000, ("x" * 2000, "", 1)),
        ("", ("", "", 0)),
        (" to=user extra<|message|>a<|eot|>", ("a", "", 1)),
    ],
)
def test_muse_odd_turns(text: str, expected: tuple[str, str, int]) -> None:
    parser, _ = muse(text)
    assert (parser.turn.content, parser.turn.reasoning, len(parser.turn.errors)) == expected
    assert len(parser.turn.protocol_errors) == expected[2]
    assert all(reason and raw in "assistant" + text for reason, raw in parser.turn.protocol_errors)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [
                "<|start|>",
                "<|message|>",
                "<|eom|>",
                "<|eot|>",
                "<|pad|>",
                "assistant",
                " to=self",
                " to=user",
                " to=x",
                "user",
                CALL,
                "<atem:",
                "text ",
                "é",
                "\n",
                "</atem:invoke>",
            ]
        ),
        max_size=14,
    )
)
def test_muse_never_raises_and_loses_nothing(parts: list[str]) -> None:
    parser, events = muse("".join(parts))
    kept = "".join(
        e.text if isinstance(e, Text) else e.raw
        for e in events
        if isinstance(e, (Text, ProtocolError))
    )
    kept += "".join(e.recipient or "" for e in events if isinstance(e, ChannelStart))
    for word in ("é", "text"):
        assert kept.count(word) >= "".join(parts).count(word)
    opened = [e.kind for e in events if isinstance(e, ChannelStart)]
    assert opened == [e.kind for e in events if isinstance(e, ChannelEnd)]
    assert parser.finish() == [] or parser.turn.errors


# ---- think tags --------------------------------------------------------------------------------

THOUGHTS = [
    ("<think>\nTwo and\n\ntwo.\n</think>\n\nFour.\n", None, "Two and\n\ntwo.", "Four.\n"),
    ("\nTwo.\n</think>\n\nFour", "thought", "Two.", "Four"),
    ("Four </ think> <b>", None, "", "Four </ think> <b>"),
    ("<think>\n\n</think>\n\nFour", None, "", "Four"),
    ("<think>cut\n", None, "cut\n", ""),
    ("<think></think>", None, "", ""),
    ("\n\n <thin", None, "", "\n\n <thin"),
    ("", None, "", ""),
]


@pytest.mark.parametrize(("text", "opened", "reasoning", "content"), THOUGHTS)
def test_think_tokens(text: str, opened: str | None, reasoning: str, content: str) -> None:
    tokenizer = with_think_tokens()
    parser = ChannelParser(THINK, tokenizer, opened=opened)
    run(parser, tokenizer.encode(text, parse_special=True))
    assert (parser.turn.reasoning, parser.turn.content) == (reasoning, content)


@pytest.mark.parametrize(("text", "opened", "reasoning", "content"), THOUGHTS)
def test_think_text_at_every_cut(
    text: str, opened: str | None, reasoning: str, content: str
) -> None:
    tokenizer = without_think_tokens()

    def parse(pieces: list[str]) -> tuple[list[Event], str, str]:
        parser = ChannelParser(THINK, tokenizer, opened=opened)
        events = [event for piece in pieces for event in parser.push_text(piece)]
        events += parser.finish()
        return merged(events), parser.turn.reasoning, parser.turn.content

    whole = parse([text])
    assert whole[1:] == (reasoning, content)
    assert parse(list(text)) == whole
    for i in range(len(text)):
        for j in range(i, len(text)):
            assert parse([text[:i], text[i:j], text[j:]]) == whole, (i, j)
    parser, in_runs = (ChannelParser(THINK, tokenizer, opened=opened) for _ in range(2))
    assert run(parser, tokenizer.encode(text)) == whole[0]
    assert merged(pushed_in_runs(in_runs, tokenizer.encode(text))) == whole[0]
    assert held(in_runs.turn) == held(parser.turn)


def test_think_tokens_ignore_spelled_tags() -> None:
    """Where the tags are tokens, the same letters as ordinary text are text."""
    tokenizer = with_think_tokens()
    parser = ChannelParser(THINK, tokenizer, opened="thought")
    ids = tokenizer.encode("a </think> b") + tokenizer.encode("</think>c", parse_special=True)
    run(parser, [*ids, *tokenizer.encode("<think>d</think>")])
    assert parser.turn.reasoning == "a </think> b"
    assert parser.turn.content == "c<think>d</think>"


def test_second_pair_in_text_is_text() -> None:
    parser = ChannelParser(THINK, without_think_tokens())
    parser.push_text("<think>a</think>b<think>c</think>")
    parser.finish()
    assert (parser.turn.reasoning, parser.turn.content) == ("a", "b<think>c</think>")


@pytest.mark.parametrize("lead, thinks", [(256, True), (257, False)])
@pytest.mark.parametrize("cut", [1, 7, 200, 10_000])
def test_white_space_before_a_spelled_tag_is_waited_for_up_to_a_limit(lead, thinks, cut) -> None:
    """Beyond it the turn is an answer, and what comes is given on."""
    parser = ChannelParser(THINK, without_think_tokens())
    text = "\t" * lead + "<think>a</think>b"
    for at in range(0, len(text), cut):
        parser.push_text(text[at : at + cut])
    parser.finish()
    found = (parser.turn.reasoning, parser.turn.content.lstrip("\t"))
    assert found == (("a", "b") if thinks else ("", "<think>a</think>b"))


def test_white_space_at_the_beginning_is_given_on() -> None:
    parser = ChannelParser(THINK, without_think_tokens())
    given = [event for _ in range(300) for event in parser.push_text("\t")]
    assert any(isinstance(event, Text) for event in given)


@pytest.mark.parametrize("opened", [None, "thought"])
def test_long_white_space_is_linear(opened) -> None:
    """200,000 line ends, one at a time, at the beginning of a turn and inside a thought."""
    parser = ChannelParser(THINK, without_think_tokens(), opened=opened)
    begun = time.process_time()
    for piece in ["x" if opened else "", *["\n"] * 200_000, "y"]:
        parser.push_text(piece)
    assert (
        time.process_time() - begun < 4
    )  # measured: under 1; reading all of it each time: 7 and 66
    parser.finish()
    assert (parser.turn.reasoning or parser.turn.content).endswith("\ny")


@pytest.mark.parametrize("opened", [None, "thought"])
@pytest.mark.parametrize("white", [" ", "\n"])
def test_a_million_separators_are_given_on_as_they_come(opened, white) -> None:
    """Of separators before or after a channel 256 are waited with; they were kept without bound."""
    parser = ChannelParser(THINK, without_think_tokens(), opened=opened, tools=TOOLS)
    begun, given = time.process_time(), 0
    for piece in ["x" if opened else "", *[white * 16] * 62_500]:
        given += sum(len(e.text) for e in parser.push_text(piece) if isinstance(e, Text))
    assert given > 1_000_000 - 1_000
    assert time.process_time() - begun < 1
    parser.finish()
    assert len(parser.turn.reasoning or parser.turn.content) >= 1_000_000


@pytest.mark.parametrize("count", [255, 256, 257, 511, 512, 513, 900])
@pytest.mark.parametrize("cut", [1, 7, 300])
def test_long_separators_are_cut_the_same_however_they_come(count, cut) -> None:
    """After a thought, before an answer, a call in text and a call without tags."""
    blank = "\n" * count
    texts = [
        ("think+hermes", f"<think>a{blank}</think>{blank}b{blank}", "thought"),
        ("think+hermes", f"<think>a{blank}b{blank}", "thought"),
        ("hermes", f'{blank}<tool_call>{{"name": "f", "arguments": {{}}}}</tool_call>', "call"),
        ("llama-3", f'{blank}{{"name": "f", "parameters": {{}}}}', "call"),
        ("hermes", blank, None),
    ]
    for name, text, holds in texts:
        parses = []
        for step in (cut, len(text)):
            parser = ChannelParser(PROTOCOLS[name], None, tools=TOOLS)
            pieces = (text[at : at + step] for at in range(0, len(text), step))
            events = [event for piece in pieces for event in parser.push_text(piece)]
            parses.append(merged(events + parser.finish()))
        assert parses[0] == parses[1], (name, text[:12])
        if holds == "thought":
            kept = parser.turn.reasoning.count("\n")
            closed = "</think>" in text
            assert kept == (max(count - 256, 0) if closed else 2 * count)
        elif holds == "call":
            found = bool(parser.turn.tool_calls)
            assert found == (name == "hermes" or count <= 256)
            assert not parser.turn.content or count > 256
        else:
            assert parser.turn.content == blank


def test_interleaved_thoughts_and_calls() -> None:
    tokenizer = with_think_tokens()
    text = (
        "<think>a</think>\nb\n<tool_call>\n"
        '{"name": "f", "arguments": {"x": 1}}\n</tool_call>\n'
        '<tool_call>{"bad</tool_call>\n<think>c</think>d'
    )
    parser = ChannelParser(THINK, tokenizer, known_calls=["call_3"])
    events = run(parser, [*tokenizer.encode(text, parse_special=True), tokenizer.id("</s>")])
    assert parser.turn.reasoning == "a\n\nc"
    assert parser.turn.content == "b\n\n\nd"
    assert [(c.name, c.arguments, c.id) for c in parser.turn.tool_calls] == [
        ("f", {"x": 1}, "call_4")
    ]
    assert parser.turn.malformed_tool_calls == ['{"bad']
    assert events[-1] == TurnEnd() and parser.turn.finish_hint == "tool_calls"
    stray = ChannelParser(THINK, tokenizer)
    run(stray, tokenizer.encode("a</think>b", parse_special=True))
    assert stray.turn.content == "ab" and stray.turn.errors[0].raw == "</think>"


def test_plain() -> None:
    parser = ChannelParser(PLAIN, with_think_tokens())
    text = "\n<b> é <|eo\n"
    assert run(parser, with_think_tokens().encode(text))[1] == Text("answer", text)
    assert parser.turn.content == text


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=30), st.sampled_from(["muse", "think", "plain"]))
def test_streamed_text_adds_up(text: str, name: str) -> None:
    """Texts concatenated are the fields, and half characters never show."""
    tokenizer = nano() if name == "muse" else with_think_tokens()
    parser = ChannelParser(PROTOCOLS[name], tokenizer, opened="answer" if name == "muse" else None)
    events = [e for i in tokenizer.encode(text) for e in parser.push(i)]
    events += parser.finish()
    assert "".join(e.text for e in events if isinstance(e, Text)) == parser.turn.content == text


# ---- prompts and detection ---------------------------------------------------------------------


def test_muse_prompt() -> None:
    template = ChatTemplate(NANO)
    ids = encode_chat(nano(), template, "<|start|>assistant to=self<|message|>")
    parser = ChannelParser.for_prompt(MUSE, nano(), ids)
    run(parser, nano().encode(" to=user<|message|>Hi<|eot|>", parse_special=True))
    assert parser.turn.content == "Hi"
    forced = [*ids, *nano().encode(" to=self<|message|>So", parse_special=True)]
    parser = ChannelParser.for_prompt(MUSE, nano(), forced)
    run(parser, nano().encode(" far<|eot|>", parse_special=True))
    assert parser.turn.reasoning == " far"
    half = [*ids, *nano().encode(" to=self", parse_special=True)]
    parser = ChannelParser.for_prompt(MUSE, nano(), half)
    run(parser, nano().encode("<|message|>x<|eot|>", parse_special=True))
    assert (parser.turn.reasoning, parser.turn.errors) == ("x", [])


@pytest.mark.parametrize("tokenizer", [with_think_tokens, without_think_tokens])
@pytest.mark.parametrize(
    ("ending", "opened"), [("<think>\n", "thought"), ("<think>\n\n</think>\n\n", None), ("", None)]
)
def test_think_prompt(tokenizer: Any, ending: str, opened: str | None) -> None:
    ids = tokenizer().encode("user: hi\nassistant: " + ending, parse_special=True)
    parser = ChannelParser.for_prompt(THINK, tokenizer(), ids)
    run(parser, tokenizer().encode("a</think>b", parse_special=True))
    assert parser.turn.reasoning == ("a" if opened else "")


def test_detection(shared_data: Path) -> None:
    folder = shared_data / "templates"
    assert detect_protocol(nano(), ChatTemplate(NANO)) is MUSE
    found = {
        name: detect_protocol(with_think_tokens(), ChatTemplate(folder / f"{name}.jinja")).name
        for name in (
            "Qwen-Qwen3-0.6B",
            "ByteDance-Seed-OSS",
            "Qwen-Qwen2.5-7B-Instruct",
            "google-gemma-2-2b-it",
            "llama-cpp-deepseek-r1",
            "mistralai-Ministral-3-14B-Reasoning-2512",
        )
    }
    assert found == {
        "Qwen-Qwen3-0.6B": "think+hermes",
        "ByteDance-Seed-OSS": "seed-think+seed",
        "Qwen-Qwen2.5-7B-Instruct": "hermes",
        "google-gemma-2-2b-it": "gemma",
        "llama-cpp-deepseek-r1": "think+deepseek",
        "mistralai-Ministral-3-14B-Reasoning-2512": "bracket-think+mistral",
    }
    assert detect_protocol(Tokenizer.from_json(unigram().to_str()), None) is PLAIN


def test_unknown_id_raises() -> None:
    with pytest.raises(InvalidRequest, match="vocabulary size"):
        ChannelParser(MUSE, nano()).push(10**6)


def test_calls_of_earlier_turns_do_not_change_how_an_answer_is_cut():
    """They only number calls; they once also trimmed the first text of the answer."""
    contents = []
    for known in ([], ["call_4"]):
        parser = ChannelParser(THINK, with_think_tokens(), known_calls=known)
        parser.push_text("\n\nhello")
        parser.finish()
        contents.append(parser.turn.content)
    assert contents[0] == contents[1] == "\n\nhello"
