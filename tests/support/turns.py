"""Turns of each protocol as its models write them, and what they hold; tokenizers to write them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from musespark.text import PROTOCOLS, Protocol, Tokenizer
from support.tokenizers_zoo import byte_level

_PROPERTIES = {
    "city": {"type": "string"},
    "days": {"type": "integer"},
    "tags": {"type": "array", "items": {"type": "string"}},
    "deep": {"type": "object"},
    "exact": {"type": ["boolean", "null"]},
}


def tool(name: str) -> dict[str, Any]:
    parameters = {"type": "object", "properties": _PROPERTIES, "required": ["city"]}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


TOOLS = [tool("weather"), tool("geo.find")]
END = "<|end_of_turn_of_test|>"


@dataclass(frozen=True)
class Case:
    """``calls``: (name, arguments, the id where the model gives one)."""

    protocol: str
    text: str
    content: str = ""
    reasoning: str = ""
    calls: list[tuple[str, dict[str, Any], str | None]] = field(default_factory=list)
    opened: str | None = None


_A = {"city": "Zürich 🙂", "days": 3, "tags": ["a", "ç"]}
_B = {"city": 'x "y" </tool> \\n', "exact": None}
_JA, _JB = (json.dumps(v, ensure_ascii=False) for v in (_A, _B))
_TWO = [("weather", _A, None), ("geo.find", _B, None)]
_XML_A = (
    "\n<function=weather>\n<parameter=city>\nZürich 🙂\n</parameter>\n<parameter=days>\n3\n"
    '</parameter>\n<parameter=tags>\n["a", "ç"]\n</parameter>\n</function>\n'
)
_XML_B = (
    '<function=geo.find><parameter=city>x "y" </tool> \\n</parameter>'
    "<parameter=exact>null</parameter></function>"
)
_GLM_A = (
    "<arg_key>city</arg_key>\n<arg_value>Zürich 🙂</arg_value>\n<arg_key>days</arg_key>\n"
    '<arg_value>3</arg_value>\n<arg_key>tags</arg_key>\n<arg_value>["a", "ç"]</arg_value>\n'
)
_GLM_B = (
    '<arg_key>city</arg_key><arg_value>x "y" </tool> \\n</arg_value>'
    "<arg_key>exact</arg_key><arg_value>null</arg_value>"
)
_PARAMETER = '<｜DSML｜parameter name="{}" string="{}">{}</｜DSML｜parameter>\n'.format
_INVOKE = '<｜DSML｜invoke name="{}">\n{}</｜DSML｜invoke>\n'.format
_DSML_A = _INVOKE(
    "weather",
    _PARAMETER("city", "true", "Zürich 🙂")
    + _PARAMETER("days", "false", "3")
    + _PARAMETER("tags", "false", '["a", "ç"]'),
)
_DSML_B = _INVOKE(
    "geo.find",
    _PARAMETER("city", "true", 'x "y" </tool> \\n') + _PARAMETER("exact", "false", "null"),
)
_PY_A = 'weather(city="Zürich 🙂", days=3, tags=["a", \'ç\'])'
_PY_B = "geo.find(city='x \"y\" </tool> \\\\n', exact=None)"
_G4_A = 'call:weather{city:<|"|>Zürich 🙂<|"|>,days:3,tags:[<|"|>a<|"|>,<|"|>ç<|"|>]}'
_G4_B = 'call:geo.find{city:<|"|>x "y" </tool> \\n<|"|>,exact:null}'
_DS = "<｜tool▁call▁begin｜>{}<｜tool▁sep｜>{}<｜tool▁call▁end｜>"
_DS_ALL = "<｜tool▁calls▁begin｜>{}<｜tool▁calls▁end｜>"
_R1 = "<｜tool▁call▁begin｜>function<｜tool▁sep｜>{}\n```json\n{}\n```<｜tool▁call▁end｜>"
_HERMES = "<tool_call>\n{}\n</tool_call>"


def _object(name: str, arguments: str, key: str = "arguments") -> str:
    return f'{{"name": "{name}", "{key}": {arguments}}}'


_OA, _OB = _object("weather", _JA), _object("geo.find", _JB)
_LA, _LB = _object("weather", _JA, "parameters"), _object("geo.find", _JB, "parameters")
_KIMI_A = "<|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>"
_KIMI_B = "<|tool_call_begin|>functions.geo.find:1<|tool_call_argument_begin|>"

CASES: dict[str, Case] = {
    "harmony": Case(
        "harmony",
        "<|channel|>analysis<|message|>Think é.<|end|><|start|>assistant<|channel|>commentary"
        "<|message|>Looking.<|end|><|start|>assistant<|channel|>commentary to=functions.weather "
        f"<|constrain|>json<|message|>{_JA}<|call|>",
        content="Looking.",
        reasoning="Think é.",
        calls=_TWO[:1],
    ),
    "harmony as templates write it": Case(
        "harmony",
        f" to=functions.geo.find<|channel|>commentary json<|message|>{_JB}<|call|>",
        calls=_TWO[1:],
    ),
    "harmony answer": Case(
        "harmony",
        "<|channel|>analysis<|message|>So.<|end|><|start|>assistant<|channel|>final<|message|>"
        "The answer 你.<|return|>",
        content="The answer 你.",
        reasoning="So.",
    ),
    "hermes": Case(
        "think+hermes",
        f"<think>\nHm {{x}}.\n</think>\n\nLook.\n{_HERMES.format(_OA)}\n{_HERMES.format(_OB)}",
        content="Look.\n",
        reasoning="Hm {x}.",
        calls=_TWO,
    ),
    "hermes with the thought opened by the prompt": Case(
        "think+hermes",
        f"Hm.</think>{_HERMES.format(_OA)}",
        reasoning="Hm.",
        calls=_TWO[:1],
        opened="thought",
    ),
    "xml": Case(
        "xml", f"<tool_call>{_XML_A}</tool_call>\n<tool_call>{_XML_B}</tool_call>", calls=_TWO
    ),
    "xml, two functions": Case("think+xml", f"<tool_call>{_XML_A}{_XML_B}</tool_call>", calls=_TWO),
    "seed": Case(
        "seed-think+seed",
        f"<seed:think>a</seed:think>b<seed:tool_call>{_XML_A}</seed:tool_call>",
        content="b",
        reasoning="a",
        calls=_TWO[:1],
    ),
    "glm": Case(
        "think+glm",
        f"\n<think>a</think>\nb\n<tool_call>weather\n{_GLM_A}</tool_call>\n"
        f"<tool_call>geo.find{_GLM_B}</tool_call>",
        content="b\n",
        reasoning="a",
        calls=_TWO,
    ),
    "mistral list": Case(
        "mistral",
        f'[TOOL_CALLS][{_OA[:-1]}, "id": "abcdefghi"}}, {_OB[:-1]}, "id": "jklmnopqr"}}]',
        calls=[("weather", _A, "abcdefghi"), ("geo.find", _B, "jklmnopqr")],
    ),
    "mistral names": Case(
        "bracket-think+mistral",
        f"[THINK]a[/THINK]b[TOOL_CALLS]weather[ARGS]{_JA}[TOOL_CALLS]geo.find[ARGS]{_JB}",
        content="b",
        reasoning="a",
        calls=_TWO,
    ),
    "mistral ids": Case(
        "mistral",
        f"[TOOL_CALLS]weather[CALL_ID]abcdefghi[ARGS]{_JA}",
        calls=[("weather", _A, "abcdefghi")],
    ),
    "deepseek 3.1": Case(
        "think+deepseek",
        "a</think>b" + _DS_ALL.format(_DS.format("weather", _JA) + _DS.format("geo.find", _JB)),
        content="b",
        reasoning="a",
        calls=_TWO,
        opened="thought",
    ),
    "deepseek r1": Case(
        "think+deepseek",
        "<think>\na\n</think>\n\n"
        + _DS_ALL.format(_R1.format("weather", _JA) + "\n" + _R1.format("geo.find", _JB)),
        reasoning="a",
        calls=_TWO,
    ),
    "dsml": Case(
        "think+dsml",
        f"<think>a</think>b\n\n<｜DSML｜function_calls>\n{_DSML_A}{_DSML_B}</｜DSML｜function_calls>",
        content="b\n\n",
        reasoning="a",
        calls=_TWO,
    ),
    "dsml-4": Case(
        "dsml-4", f"<｜DSML｜tool_calls>\n{_DSML_A}</｜DSML｜tool_calls>", calls=_TWO[:1]
    ),
    "kimi": Case(
        "think+kimi",
        f"<think>a</think>b<|tool_calls_section_begin|>{_KIMI_A}{_JA}<|tool_call_end|>{_KIMI_B}"
        f"{_JB}<|tool_call_end|><|tool_calls_section_end|>",
        content="b",
        reasoning="a",
        calls=[("weather", _A, "functions.weather:0"), ("geo.find", _B, "functions.geo.find:1")],
    ),
    "command": Case(
        "command-think+command",
        "<|START_THINKING|>a<|END_THINKING|><|START_ACTION|>[\n"
        f'{{"tool_call_id": "0", "tool_name": "weather", "parameters": {_JA}}}\n]<|END_ACTION|>',
        reasoning="a",
        calls=[("weather", _A, "0")],
    ),
    "command answer": Case(
        "command-think+command",
        "<|START_THINKING|>a<|END_THINKING|><|START_RESPONSE|>b<|END_RESPONSE|>",
        content="b",
        reasoning="a",
    ),
    "phi4": Case("phi4", f"<|tool_call|>[{_OA}, {_OB}]<|/tool_call|>", calls=_TWO),
    "granite": Case("think+granite", f"<|tool_call|>[{_OA}, {_OB}]", calls=_TWO),
    "lfm2": Case(
        "lfm2", f"<|tool_call_start|>[{_PY_A}, {_PY_B}]<|tool_call_end|>Ok.", "Ok.", "", _TWO
    ),
    "apertus": Case(
        "apertus-think+apertus",
        f'<|inner_prefix|>a<|inner_suffix|><|tools_prefix|>[{{"weather": {_JA}}}, '
        f'{{"geo.find": {_JB}}}]<|tools_suffix|>',
        reasoning="a",
        calls=_TWO,
    ),
    "gemma-4": Case(
        "gemma-think+gemma-4",
        f"<|channel>thought\na\n<channel|>b<|tool_call>{_G4_A}<tool_call|><|tool_call>{_G4_B}"
        "<tool_call|>",
        content="b",
        reasoning="a",
        calls=_TWO,
    ),
    "function-gemma": Case(
        "function-gemma",
        "<start_function_call>"
        + _G4_A.replace('<|"|>', "<escape>")
        + "<end_function_call><start_function_call>"
        + _G4_B.replace('<|"|>', "<escape>")
        + "<end_function_call>",
        calls=_TWO,
    ),
    "llama-3 bare": Case("llama-3", _LA, calls=_TWO[:1]),
    "llama-3 bare, two": Case("llama-3", f"{_LA}; {_LB}", calls=_TWO),
    "llama-3 tag": Case("llama-3", f"<|python_tag|>{_LA}", calls=_TWO[:1]),
    "llama-3 built in": Case(
        "llama-3", f"Yes.<|python_tag|>{_PY_A.replace('(', '.call(', 1)}", "Yes.", "", _TWO[:1]
    ),
    "llama-3.2 list": Case("llama-3", f"[{_PY_A}, {_PY_B}]", calls=_TWO),
    "llama-4": Case("llama-4", f"<|python_start|>[{_PY_A},\n {_PY_B}]<|python_end|>", calls=_TWO),
    "gemma fence": Case("gemma", f"```tool_code\n{_PY_A}\n```", calls=_TWO[:1]),
    "gemma printed": Case("gemma", f"```tool_code\nprint({_PY_A})\n```\n", calls=_TWO[:1]),
    "gemma json": Case("gemma", f"```json\n{_OA}\n```", calls=_TWO[:1]),
}


def writer_json(protocol: Protocol) -> str:
    """A byte-level tokenizer in which the protocol's markers are tokens, and END ends a turn, as
    tokenizer.json has it."""
    data = json.loads(byte_level().to_str())
    data["added_tokens"] = [t for t in data["added_tokens"] if t["id"] < 4]
    for entry in data["added_tokens"]:  # the zoo's own markers under other names
        vocab, name = data["model"]["vocab"], f"<|zoo_{entry['id']}|>"
        vocab[name] = vocab.pop(entry["content"])
        entry["content"] = name
    spelled = {t.open for t in protocol.tags if "DSML" in t.open}
    spelled |= {t.close for t in protocol.tags if "DSML" in t.close}
    names = [*sorted({*protocol.markers, *protocol.ends} - spelled), END]
    base = max(data["model"]["vocab"].values()) + 1
    template = data["added_tokens"][0]
    for i, name in enumerate(names):
        data["added_tokens"].append(
            {**template, "id": base + i, "content": name, "special": not name.startswith("<arg")}
        )
    return json.dumps(data)


@cache
def writer(protocol: Protocol) -> Tokenizer:
    """:func:`writer_json` as a tokenizer."""
    config = {"eos_token": END, "bos_token": None}
    return Tokenizer.from_json(writer_json(protocol), config=config, source=protocol.name)


def protocol_of(case: Case) -> Protocol:
    return PROTOCOLS[case.protocol]
