"""Every table of the channel parser: the same turn however it comes, and nothing lost."""

from __future__ import annotations

import json
import re
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from golden import template_cases
from musespark.errors import InvalidRequest
from musespark.prompts import stop_ids
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
    ToolCallError,
    TurnEnd,
    checked_messages,
    detect_protocol,
)
from musespark.text.protocols import CALLS, THOUGHTS
from musespark.text.syntaxes import SYNTAXES, CallReader, may_be_calls
from support.channels import held, pushed_in_runs
from support.tokenizers_zoo import byte_level
from support.turns import CASES, END, TOOLS, Case, protocol_of, writer

NAMES = sorted(CASES)


def merged(events: list[Event]) -> list[Event]:
    """Neighbouring texts of one channel as one: what does not depend on the cut."""
    out: list[Event] = []
    for event in events:
        last = out[-1] if out else None
        if isinstance(event, Text) and isinstance(last, Text) and last.kind == event.kind:
            out[-1] = Text(event.kind, last.text + event.text)
        else:
            out.append(event)
    return out


def as_text(case: Case, pieces: list[str], tools: Any = TOOLS) -> tuple[ChannelParser, list[Event]]:
    parser = ChannelParser(protocol_of(case), None, tools=tools, opened=case.opened)
    events = [event for piece in pieces for event in parser.push_text(piece)]
    return parser, merged(events + parser.finish())


def as_ids(case: Case, ids: list[int], tools: Any = TOOLS) -> tuple[ChannelParser, list[Event]]:
    tokenizer = writer(protocol_of(case))
    parser, in_runs = (
        ChannelParser(protocol_of(case), tokenizer, tools=tools, opened=case.opened)
        for _ in range(2)
    )
    events = [event for token_id in ids for event in parser.push(token_id)]
    events = merged(events + parser.finish())
    assert merged(pushed_in_runs(in_runs, ids)) == events
    assert held(in_runs.turn) == held(parser.turn)
    return parser, events


def byte_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Markers as their ids, everything else one id a byte."""
    ids: list[int] = []
    for piece, marker in tokenizer.split_markers(text):
        if marker:
            ids.append(tokenizer.id(piece))
        else:
            alphabet = {tokenizer.token_bytes(i): i for i in range(4, 260)}
            ids += [alphabet[bytes([b])] for b in piece.encode()]
    return ids


def check(case: Case, parser: ChannelParser) -> None:
    turn = parser.turn
    assert (turn.content, turn.reasoning) == (case.content, case.reasoning)
    assert turn.errors == []
    assert [(c.name, c.arguments) for c in turn.tool_calls] == [c[:2] for c in case.calls]
    for n, (call, expected) in enumerate(zip(turn.tool_calls, case.calls, strict=True), 1):
        assert call.id == (expected[2] or protocol_of(case).call_ids.format(n))


def test_every_table_has_a_case() -> None:
    used = {name for case in CASES.values() for name in case.protocol.split("+")}
    assert used >= {*CALLS, *THOUGHTS, "harmony"}
    syntaxes = {t.syntax for case in CASES.values() for t in protocol_of(case).tags}
    assert syntaxes | {"", "atem", "harmony", "python"} == {*SYNTAXES, ""}


@pytest.mark.parametrize("name", NAMES)
def test_text_cut_at_every_place(name: str) -> None:
    case = CASES[name]
    parser, whole = as_text(case, [case.text])
    check(case, parser)
    assert as_text(case, list(case.text))[1] == whole
    for cut in range(len(case.text)):
        assert as_text(case, [case.text[:cut], case.text[cut:]])[1] == whole, cut


@pytest.mark.parametrize("name", NAMES)
def test_ids_of_any_tokenization(name: str) -> None:
    """As the tokenizer writes it and byte by byte; the turn ends by the end's id."""
    case = CASES[name]
    tokenizer = writer(protocol_of(case))
    end = [tokenizer.id(END)]
    ids = tokenizer.encode(case.text, parse_special=True)
    parser, whole = as_ids(case, ids + end)
    check(case, parser)
    assert TurnEnd() in whole
    single = byte_ids(tokenizer, case.text)
    assert len(single) >= len(ids)
    assert as_ids(case, single + end)[1] == whole
    # by text: the same, but for the end, which a text cannot say where no marker does
    spoken = [e for e in as_text(case, [case.text])[1] if e != TurnEnd()]
    assert [e for e in whole if e != TurnEnd()] == spoken


# ---- what is typed, cut, malformed --------------------------------------------------------------


@pytest.mark.parametrize("name", sorted({c.protocol for c in CASES.values()}))
def test_typed_markers_stay_text(name: str) -> None:
    """Ids of ordinary text that spells markers: nothing opens, nothing closes."""
    protocol = PROTOCOLS[name]
    tokenizer = writer(protocol)
    attack = " ".join(["so", *sorted(tokenizer.markers), "x"])
    spelled = {t.open for t in protocol.tags} - tokenizer.markers.keys()
    opened = "answer" if protocol.headers else None
    parser = ChannelParser(protocol, tokenizer, tools=TOOLS, opened=opened)
    for token_id in [*tokenizer.encode(attack), tokenizer.id(END)]:
        parser.push(token_id)
    assert parser.turn.content == attack
    assert not parser.turn.tool_calls and not parser.turn.errors and not parser.turn.reasoning
    assert spelled <= {"<｜DSML｜function_calls>", "<｜DSML｜tool_calls>"}


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        (
            "think+hermes",
            '<tool_call>{"name": "weather", "arguments": {"city": "',
            '"}}</tool_call>',
        ),
        ("glm", "<tool_call>weather<arg_key>city</arg_key><arg_value>", "</arg_value></tool_call>"),
        ("gemma-4", '<|tool_call>call:weather{city:<|"|>', '<|"|>}<tool_call|>'),
        ("mistral", '[TOOL_CALLS]weather[ARGS]{"city": "', '"}'),
        ("kimi", '<|tool_call_begin|>weather:0<|tool_call_argument_begin|>{"city": "', '"}'),
        ("harmony", ' to=functions.weather<|message|>{"city": "', '"}<|call|>'),
        ("xml", "<tool_call><function=weather><parameter=city>", "</parameter></function>"),
    ],
)
def test_markers_spelled_in_an_argument_stay_in_it(name: str, before: str, after: str) -> None:
    protocol = PROTOCOLS[name]
    tokenizer = writer(protocol)
    value = " ".join(m for m in sorted(tokenizer.markers) if '"' not in m)
    if name == "gemma-4":
        value += ' <|"|>, days:5'
    ids = [
        *tokenizer.encode(before, parse_special=True),
        *tokenizer.encode(value),
        *tokenizer.encode(after, parse_special=True),
    ]
    parser = ChannelParser(protocol, tokenizer, tools=TOOLS)
    for token_id in ids:
        parser.push(token_id)
    parser.finish()
    assert [c.arguments for c in parser.turn.tool_calls] == [{"city": value}]


def words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text))


@pytest.mark.parametrize("name", NAMES)
def test_cut_turns_lose_nothing(name: str) -> None:
    """Of every prefix all words are there: as content, thought, call or error."""
    case = CASES[name]
    protocol = protocol_of(case)
    silent = words("assistant analysis commentary final thought") if protocol.headers else set()
    silent |= {"thought"} if protocol.name.startswith("gemma-think") else set()
    for cut in range(len(case.text)):
        parser, events = as_text(case, [case.text[:cut]])
        turn = parser.turn
        seen = words(turn.content) | words(turn.reasoning)
        for event in events:
            if isinstance(event, (ToolCallError, ProtocolError)):
                seen |= words(event.raw)
            elif isinstance(event, Text):
                seen |= words(event.text)
            elif isinstance(event, ChannelStart):
                seen |= words(event.recipient or "")
        left = case.text[:cut]
        for marker in sorted(protocol.markers, key=len, reverse=True):
            left = left.replace(marker, " ")
        lost = words(left) - seen - silent - {"to", "json"}
        assert not lost, (cut, lost)
        started = sum(isinstance(e, ChannelStart) for e in events)
        assert started == sum(isinstance(e, ChannelEnd) for e in events)
        in_tool = [e for e in events if isinstance(e, Text) and e.kind == "tool"]
        if in_tool:
            assert turn.tool_calls or turn.malformed_tool_calls
        # what was cut in the middle of a call is not made up
        assert [(c.name, c.arguments) for c in turn.tool_calls] == [
            c[:2] for c in case.calls[: len(turn.tool_calls)]
        ]


MALFORMED = {
    "think+hermes": [
        "<tool_call>{bad}</tool_call>",
        '<tool_call>{"name": 5}</tool_call>',
        '<tool_call>{"name": "weather", "args": {"city": "a"}}</tool_call>',
        '<tool_call>{"name": "weather", "city": "a"}</tool_call>',
        '<tool_call>{"function": {"name": "weather"}, "arguments": {"city": "a"}}</tool_call>',
        '<tool_call>{"name": "weather", "arguments": {}, "parameters": {"city": 1}}</tool_call>',
        '<tool_call>{"function": {"name": "weather", "arguments": {}}, "arguments": 1}</tool_call>',
        '<tool_call>{"name": "weather", "arguments": {"city": "a", "city": "b"}}</tool_call>',
        '<tool_call>{"name": "weather", "arguments": "{\\"a\\": 1, \\"a\\": 2}"}</tool_call>',
        '<tool_call>{"name": "weather", "arguments": {"city": "\\ud800"}}</tool_call>',
        '<tool_call>{"name": "weather", "arguments": {"\\ud800": 1}}</tool_call>',
        '<tool_call>{"name": "\\ud800", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "weather", "arguments": {}, "id": "\\ud800"}</tool_call>',
        f'<tool_call>{{"name": "weather", "arguments": {{"a": {"[" * 70}{"]" * 70}}}}}</tool_call>',
    ],
    "xml": [
        "<tool_call>weather</tool_call>",
        "<tool_call><function=weather><parameter=days>three</parameter></function></tool_call>",
        "<tool_call><function=weather></tool_call>",
        "<tool_call><function=weather><parameter=a>1</parameter><parameter=a>2</parameter>"
        "</function></tool_call>",
    ],
    "glm": [
        "<tool_call></tool_call>",
        "<tool_call>weather<arg_key>city</arg_key></tool_call>",
        "<tool_call>weather<arg_key>days</arg_key><arg_value>x</arg_value></tool_call>",
        '<tool_call>{"name": "weather"}</tool_call>',
    ],
    "mistral": [
        *("[TOOL_CALLS]", "[TOOL_CALLS]weather", "[TOOL_CALLS]weather[ARGS]{"),
        *("[TOOL_CALLS]{}", "[TOOL_CALLS]weather[ARGS]"),
    ],
    "deepseek": [
        "<｜tool▁call▁begin｜>weather<｜tool▁call▁end｜>",
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{}<｜tool▁call▁end｜>",
        "<｜tool▁call▁begin｜>weather<｜tool▁sep｜>[1]<｜tool▁call▁end｜>",
    ],
    "dsml": [
        "<｜DSML｜function_calls></｜DSML｜function_calls>",
        '<｜DSML｜function_calls><｜DSML｜invoke name="weather"><｜DSML｜parameter name="days" '
        'string="false">x</｜DSML｜parameter></｜DSML｜invoke></｜DSML｜function_calls>',
    ],
    "kimi": ["<|tool_call_begin|>weather<|tool_call_end|>"],
    "phi4": ["<|tool_call|>[]<|/tool_call|>", "<|tool_call|>[1]<|/tool_call|>"],
    "apertus": ['<|tools_prefix|>[{"a": {}, "b": {}}]<|tools_suffix|>', "<|tools_prefix|>x"],
    "lfm2": [
        "<|tool_call_start|>[weather(city=]<|tool_call_end|>",
        "<|tool_call_start|>[weather(open('x'))]<|tool_call_end|>",
        "<|tool_call_start|>[weather(1, 2, 3, 4, 5, 6)]<|tool_call_end|>",
        "<|tool_call_start|>[weather(city='a', city='b')]<|tool_call_end|>",
        "<|tool_call_start|>[weather(city='a'<|tool_call_end|>",
        "<|tool_call_start|>[weather(days=" + "[" * 500 + ")]<|tool_call_end|>",
        "<|tool_call_start|>[weather(days=1e999)]<|tool_call_end|>",
        "<|tool_call_start|>[weather(days={'a': 1, 'a': 2})]<|tool_call_end|>",
        "<|tool_call_start|>print(weather(days=1)<|tool_call_end|>",
        "<|tool_call_start|>print()<|tool_call_end|>",
        "<|tool_call_start|>[weather(city='\\ud800')]<|tool_call_end|>",
        "<|tool_call_start|>__import__('os').system('x')<|tool_call_end|>",
    ],
    "gemma-4": [
        "<|tool_call>weather{}<tool_call|>",
        "<|tool_call>call:weather{city:<tool_call|>",
        '<|tool_call>call:weather{city:<|"|>a}<tool_call|>',
        "<|tool_call>call:weather{} x<tool_call|>",
        "<|tool_call>call:weather{days:1,days:2}<tool_call|>",
    ],
    "llama-3": ["<|python_tag|>print(1); import os", "<|python_tag|>"],
    "harmony": [" to=functions.weather<|message|>{bad<|call|>"],
}


@pytest.mark.parametrize(
    ("protocol", "text"), [(name, text) for name, texts in MALFORMED.items() for text in texts]
)
def test_malformed_calls_are_reported_whole(protocol: str, text: str) -> None:
    for prefix in ("", "Hm. "):
        if protocol == "harmony" and prefix:
            continue
        parser, events = as_text(Case(protocol, ""), [prefix + text])
        turn = parser.turn
        assert not turn.tool_calls
        (error,) = (e for e in events if isinstance(e, ToolCallError))
        assert error.reason and turn.malformed_tool_calls == [error.raw]
        inner = "".join(e.text for e in events if isinstance(e, Text) and e.kind == "tool")
        assert error.raw.strip() == inner.strip()
        assert turn.content == prefix


def test_a_good_call_before_a_bad_one_counts() -> None:
    text = '[TOOL_CALLS]weather[ARGS]{"city": "a"}[TOOL_CALLS]weather[ARGS]{"city'
    turn = as_text(Case("mistral", ""), [text])[0].turn
    assert [c.id for c in turn.tool_calls] == ["call00001"]
    assert turn.malformed_tool_calls == ['weather[ARGS]{"city']


@pytest.mark.parametrize(
    ("protocol", "text", "expected"),
    [
        (
            "gemma-4",
            '<|tool_call>call:weather{city:<|"|>x<escape>y<|"|>}<tool_call|>',
            [{"city": "x<escape>y"}],
        ),
        (
            "function-gemma",
            '<start_function_call>call:weather{city:<escape>x<|"|>y<escape>}<end_function_call>',
            [{"city": 'x<|"|>y'}],
        ),
        (
            "mistral",
            '[TOOL_CALLS][{"name": "weather", "arguments": {"city": "sys.argv[ARGS] here"}}]',
            [{"city": "sys.argv[ARGS] here"}],
        ),
        (
            "gemma",
            "```tool_code\nprint(weather(city='a'))\nprint( weather(city='b') , weather())\n```",
            [{"city": "a"}, {"city": "b"}, {}],
        ),
        (
            "think+hermes",
            '<tool_call>{"type": "function", "function": {"name": "weather"}}</tool_call>',
            [{}],
        ),
    ],
)
def test_what_stands_inside_arguments_is_theirs(
    protocol: str, text: str, expected: list[dict[str, Any]]
) -> None:
    turn = as_text(Case(protocol, ""), [text])[0].turn
    assert not turn.malformed_tool_calls
    assert [call.arguments for call in turn.tool_calls] == expected


def test_calls_that_were_read_can_be_sent_again() -> None:
    """As deep as a call may be, its message is taken: the conversation goes on."""
    for depth in range(55, 70):
        value = "[" * depth + "]" * depth
        for protocol, text in (
            ("hermes", f'<tool_call>{{"name": "f", "arguments": {{"a": {value}}}}}</tool_call>'),
            ("gemma-4", f"<|tool_call>call:weather{{a:{value}}}<tool_call|>"),
        ):
            turn = as_text(Case(protocol, ""), [text])[0].turn
            assert len(turn.tool_calls) == (depth <= 64), depth
            sent = [{"role": "assistant", "tool_calls": [c.to_openai() for c in turn.tool_calls]}]
            if turn.tool_calls:
                checked_messages(sent, "")


def test_many_values_are_read_in_one_walk() -> None:
    """Not each one looked for to the end of the text, or the rest of it copied: 17 s."""
    begin = time.process_time()
    reader = CallReader(TOOLS, "call_{}")
    assert len(reader.read("json", '{"name": "f"} ' * 40_000)) == 40_000
    numbers = "1," * 200_000
    assert len(reader.read("gemma", f"call:f{{a:[{numbers}]}}")[0].arguments["a"]) == 200_000
    assert time.process_time() - begin < 6


def test_ids_that_come_twice_are_replaced() -> None:
    call = '{"name": "weather", "arguments": {}, "id": "abc"}'
    turn = as_text(Case("mistral", ""), [f"[TOOL_CALLS][{call}, {call}]"])[0].turn
    assert [c.id for c in turn.tool_calls] == ["abc", "call00001"]


@pytest.mark.parametrize(
    ("form", "known", "new"),
    [
        ("call_{}", [], ["call_1", "call_2"]),
        ("call_{}", ["call_2"], ["call_3", "call_4"]),  # the first rounds were cut off
        ("call_{}", ["call_7", "call_2", "toolu_9"], ["call_8", "call_9"]),
        ("call_{}", ["call_02", "call_x", "call_٣", "call_-3", ""], ["call_1", "call_2"]),
        ("call_{}", ["call_99999", "call_" + "9" * 5000, "call_1"], ["call_2", "call_3"]),
        ("call_{}", ["call_99998", "call_100000"], ["call_99999", "call_100001"]),
        ("call{:05d}", ["call00012", "call_50"], ["call00013", "call00014"]),
    ],
)
def test_ids_are_none_that_the_conversation_has(
    form: str, known: list[str], new: list[str]
) -> None:
    reader = CallReader(TOOLS, form, known)
    calls = reader.read("json", '{"name": "f"} {"name": "f"}')
    assert [call.id for call in calls] == new


def test_an_id_of_the_models_that_the_conversation_has_is_replaced() -> None:
    text = "functions.weather:0<|tool_call_argument_begin|>{}"
    ids = [
        CallReader(TOOLS, "call_{}", known).read("kimi", text)[0].id
        for known in ([], ["functions.weather:0", "call_4"])
    ]
    assert ids == ["functions.weather:0", "call_5"]


def test_nested_markers() -> None:
    """A call inside a thought ends it; a thought inside a call ends that, which is reported."""
    case = Case("think+hermes", "")
    tokenizer = writer(protocol_of(case))
    call = '<tool_call>{"name": "weather", "arguments": {}}</tool_call>'
    ids = tokenizer.encode(f"<think>a{call}b<tool_call>{{<think>c</think>d", parse_special=True)
    turn = as_ids(case, ids)[0].turn
    assert (turn.reasoning, turn.content) == ("a\n\nc", "b\n\nd")
    assert [c.name for c in turn.tool_calls] == ["weather"]
    assert turn.malformed_tool_calls == ["{"]


@pytest.mark.parametrize(
    ("text", "content", "reasoning"),
    [
        ("\n<think>a", "", "a"),
        ("\n<think>a</think>\n\n", "", "a"),
        ('\n<tool_call>{"name": "weather"}</tool_call>\n', "", ""),
        ("\n\nb", "\n\nb", ""),
        ("\n\n", "\n\n", ""),
    ],
)
def test_separators_around_tags_belong_to_nothing(text: str, content: str, reasoning: str) -> None:
    case = Case("think+hermes", text)
    ids = writer(protocol_of(case)).encode(text, parse_special=True)
    for parser, _ in (as_text(case, list(text)), as_ids(case, ids)):
        assert (parser.turn.content, parser.turn.reasoning) == (content, reasoning)


# ---- calls without tags -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "weather", "parameters": {"city": "a"}} And so on.',
        '{"name": "unknown", "parameters": {}}',
        '{"answer": 42}',
        '{"name": "weather", "par',
        "[1, 2, 3]",
        "[weather](https://example.org)",
        "```python\nweather(city='a')\n```",
        "```tool_code\nimport os\n```",
        "\n {",
        "{}",
        "   ",
        "plain",
    ],
)
@pytest.mark.parametrize("protocol", ["llama-3", "gemma"])
def test_answers_that_are_no_calls_stay_answers(protocol: str, text: str) -> None:
    case = Case(protocol, text)
    for pieces in ([text], list(text)):
        turn = as_text(case, pieces)[0].turn
        assert (turn.content, turn.tool_calls, turn.errors) == (text, [], [])


def test_bare_and_spelled_calls_need_tools_on_offer() -> None:
    for name in ("llama-3 bare", "gemma fence"):
        case = CASES[name]
        parser, _ = as_text(case, [case.text], tools=None)
        assert (parser.turn.content, parser.turn.tool_calls) == (case.text, [])
    case, plain = CASES["hermes"], Tokenizer.from_json(byte_level().to_str())
    data = json.loads(byte_level().to_str())
    data["added_tokens"] = data["added_tokens"][:4]
    plain = Tokenizer.from_json(json.dumps(data))
    for tools, calls in ((None, 0), (TOOLS, 2)):
        parser = ChannelParser(protocol_of(case), plain, tools=tools)
        for token_id in plain.encode(case.text):
            parser.push(token_id)
        parser.finish()
        assert len(parser.turn.tool_calls) == calls
        assert parser.turn.reasoning == case.reasoning
        assert ("<tool_call>" in parser.turn.content) is (tools is None)


def test_an_answer_that_is_surely_none_streams_at_once() -> None:
    parser = ChannelParser(PROTOCOLS["llama-3"], None, tools=TOOLS)
    assert parser.push_text('{"na') == []
    events = parser.push_text("rrow")
    assert Text("answer", '{"narrow') in events


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet='{}[]"name type:(,x`tool_code\n', max_size=40), st.integers(0, 40))
def test_once_no_call_never_a_call(text: str, cut: int) -> None:
    """The check of a longer text never says yes where that of its beginning said no."""
    kinds = ("json", "list", "fence")
    if may_be_calls(text, kinds):
        assert may_be_calls(text[:cut], kinds)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(NAMES),
    st.lists(st.integers(0, 10**6), min_size=2, max_size=8),
    st.text(max_size=6),
)
def test_mixed_up_turns_do_not_depend_on_the_cut(name: str, places: list[int], noise: str) -> None:
    """A turn with a piece cut out and noise put in: whole, by characters and by ids agree."""
    case = CASES[name]
    a, b, *cuts = (p % (len(case.text) + 1) for p in places)
    text = case.text[: min(a, b)] + noise + case.text[max(a, b) :]
    whole = as_text(case, [text])[1]
    edges = sorted({0, len(text), *(c % (len(text) + 1) for c in cuts)})
    pieces = [text[i:j] for i, j in pairwise(edges)]
    assert as_text(case, pieces)[1] == whole
    assert as_text(case, list(text))[1] == whole
    tokenizer = writer(protocol_of(case))
    ids = as_ids(case, tokenizer.encode(text, parse_special=True))[1]
    assert as_ids(case, byte_ids(tokenizer, text))[1] == ids


def test_parsers_without_a_tokenizer_take_text_only() -> None:
    with pytest.raises(InvalidRequest, match="push_text"):
        ChannelParser(PROTOCOLS["plain"], None).push(1)


def test_long_turns_are_linear() -> None:
    """100,000 characters of what looks like markers, one character at a time."""
    parser = ChannelParser(PROTOCOLS["think+hermes"], None, tools=TOOLS)
    for char in "<tool_cal" * 6000 + '{"name": "x"' * 4000:
        parser.push_text(char)
    parser.finish()
    assert len(parser.turn.content) == 9 * 6000 + 12 * 4000
    bare = ChannelParser(PROTOCOLS["llama-3"], None, tools=TOOLS)
    for char in '{"name": "weather", "parameters": {"city": "' + "x" * 100_000:
        bare.push_text(char)
    bare.finish()
    assert len(bare.turn.content) > 100_000


# ---- prompts -------------------------------------------------------------------------------------


def test_harmony_prompts() -> None:
    """Forced channels are those that the parser finds open, and both ends stop the engine."""
    harmony = PROTOCOLS["harmony"]
    tokenizer, headers = writer(harmony), harmony.headers
    assert headers is not None
    prompt = tokenizer.encode("<|start|>assistant", parse_special=True)
    for forced, kind in ((headers.open_thought, "thought"), (headers.open_answer, "answer")):
        ids = [*prompt, *tokenizer.encode_pieces(forced)]
        parser = ChannelParser.for_prompt(harmony, tokenizer, ids)
        parser.push(tokenizer.encode("x")[0])
        assert parser.turn.parts[kind] == ["x"]
    ends = stop_ids(tokenizer, None, harmony, tokenizer.vocab_size)
    assert ends == {tokenizer.id(t) for t in ("<|return|>", "<|call|>", END)}


def test_gemma_prompt_with_an_open_thought() -> None:
    protocol = PROTOCOLS["gemma-think+gemma-4"]
    tokenizer = writer(protocol)
    prompt = tokenizer.encode("model\n<|channel>thought\n", parse_special=True)
    parser = ChannelParser.for_prompt(protocol, tokenizer, prompt)
    for token_id in tokenizer.encode("a<channel|>b", parse_special=True):
        parser.push(token_id)
    assert (parser.turn.reasoning, parser.turn.content) == ("a", "b")


# ---- what templates write, the parser reads -----------------------------------------------------

_ARGUMENTS = {"city": "Zürich", "days": 3, "tags": ["a b", "ç"]}
# Templates whose calls have a form of their own, of which there is no table.
_OWN_FORMS = {
    "Apriel-1.6-15b-Thinker-fixed",
    "CohereForAI-c4ai-command-r-plus-tool_use",
    "GigaChat3-10B-A1.8B",
    "GigaChat3.1-10B-A1.8B",
    "fireworks-ai-llama-3-firefunction-v2",
    "meetkai-functionary-medium-v3.1",
    "meetkai-functionary-medium-v3.2",
    "unsloth-Apriel-1.5",
}


def rendered_turn(template: ChatTemplate, name: str) -> str | None:
    """What the template writes after the generation prompt for a call of ``weather``."""
    call = {"id": "call00001", "type": "function"}
    call["function"] = {"name": "weather", "arguments": _ARGUMENTS}
    user = {"role": "user", "content": "q"}
    try:
        before = template.render([user], tools=TOOLS, **template_cases.VARIABLES)
        after = template.render(
            [user, {"role": "assistant", "content": "", "tool_calls": [call]}],
            tools=TOOLS,
            **template_cases.VARIABLES,
        )
    except InvalidRequest:
        return None
    pairs = enumerate(zip(before, after, strict=False))
    same = next((i for i, (a, b) in pairs if a != b), len(before))
    return after[same:] if "Zürich" in after else None


def test_calls_that_templates_write_are_read(shared_data: Path) -> None:
    read, wrong = set(), []
    for path in sorted((shared_data / "templates").glob("*.jinja")):
        template = ChatTemplate(path)
        text = rendered_turn(template, path.stem)
        if text is None:
            continue
        protocol = detect_protocol(writer(PROTOCOLS["plain"]), template)
        if path.stem == "openai-gpt-oss-120b":
            protocol = PROTOCOLS["harmony"]
            text = text.partition("<|start|>assistant")[2]
        elif path.stem == "Muse-Glimmer-30B":
            protocol = PROTOCOLS["muse"]
            text = text.partition("assistant")[2]
        parser = ChannelParser(protocol, None, tools=TOOLS)
        for end in ("<EOS>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<turn|>"):
            text = text.partition(end)[0]
        head = re.match(r"(?:<\|[a-z_]+\|>)?assistant(?:<\|end_header_id\|>)?\n+", text)
        parser.push_text(text[head.end() :] if head else text)
        parser.finish()
        if [(c.name, c.arguments) for c in parser.turn.tool_calls] == [("weather", _ARGUMENTS)]:
            read.add(path.stem)
        elif path.stem not in _OWN_FORMS:
            wrong.append((path.stem, protocol.name, text, parser.turn.errors))
    assert not wrong, wrong
    assert len(read) >= 30
    assert not read & _OWN_FORMS
