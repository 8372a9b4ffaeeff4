"""One conversation in all of its OpenAI forms, with every template: nothing is mangled or lost."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

import musespark
from golden import template_cases as cases
from musespark import prompts
from musespark.errors import InvalidRequest
from musespark.text import PROTOCOLS, ChatTemplate
from musespark.text.written import refuse_unwritten

NAMES = sorted(
    json.loads((Path(__file__).parent.parent / "golden" / "templates.json").read_text())[
        "templates"
    ]
)
CALL = {
    "id": "call00001",
    "type": "function",
    "function": {"name": "look_up", "arguments": '{"place": "Zagreb"}'},
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "search",
            "description": "A tool.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "description": "A city"}},
                "required": ["city"],
            },
        },
    }
]


def says(role: str, text: object, **more: object) -> dict:
    return {"role": role, "content": text, **more}


USER, LAST = says("user", "Aardvark?"), says("user", "Walrus?")
CALLING = says("assistant", None, tool_calls=[CALL])
RESULT = says("tool", "Quokka", tool_call_id="call00001", name="look_up")
CHATS = {
    "user": [USER],
    "system": [says("system", "Bandicoot."), USER],
    "developer": [says("developer", "Bandicoot."), USER],
    "unknown role": [says("banana", "Bandicoot."), USER],
    "late system": [USER, says("assistant", "Numbat."), says("system", "Bandicoot."), LAST],
    "assistant": [USER, says("assistant", "Numbat."), LAST],
    "tool": [USER, CALLING, RESULT],
    "after tool": [USER, CALLING, RESULT, says("assistant", "Numbat."), LAST],
    "tool without call": [USER, says("assistant", "Numbat."), RESULT],
}


def shown(template: ChatTemplate, messages: list, tools: object) -> str | None:
    """What chat would send, None where it raises."""

    def render(tried: list) -> str:
        return template.render(
            tried,
            tools=tools,
            add_generation_prompt=True,
            **cases.VARIABLES,
            functions="[]",
            datetime="Feb 03 2026",
        )

    try:
        refuse_unwritten(messages, render, template.origin)
        return render(messages)
    except InvalidRequest:
        return None


def with_parts(messages: list, cut: int) -> list:
    """Each text as parts: one where `cut` is 0, else two that end and begin at the cut."""

    def parts(text: str) -> list:
        pieces = (text[:cut], text[cut:]) if cut else (text,)
        return [{"type": "text", "text": piece} for piece in pieces]

    return [{**m, "content": parts(m["content"])} if m["content"] else m for m in messages]


@pytest.mark.parametrize("name", NAMES)
def test_every_text_is_written_or_refused_in_every_form(name: str, shared_data: Path) -> None:
    """Text parts were printed as Python lists or dropped, messages of roles that a template skips
    were dropped, and so were calls; calls without a content failed."""
    template = ChatTemplate(shared_data / "templates" / name)
    written = 0
    for what, messages in CHATS.items():
        for tools in (None, TOOLS):
            text = shown(template, messages, tools)
            assert shown(template, with_parts(messages, 0), tools) == text, (what, tools)
            two = shown(template, with_parts(messages, 3), tools)
            assert (two is None) == (text is None), (what, tools)
            for blank in ({"content": ""}, {"content": []}, {}):
                again = [
                    {**{k: v for k, v in m.items() if v is not None}, **blank}
                    if m["content"] is None
                    else m
                    for m in messages
                ]
                assert shown(template, again, tools) == text, (what, tools, blank)
            if text is None:
                continue
            written += 1
            for message in messages:
                said = message["content"] or "look_up"
                assert said in text, (what, tools)
                assert said in two or (said[:3] in two and said[3:] in two), (what, tools)
            assert "'type': 'text'" not in two and '"type": "text"' not in two, (what, tools)
    assert written >= 3, written  # what each takes differs; users and assistants all do


def test_a_template_for_lists_only_gets_lists() -> None:
    source = (
        "{% for m in messages %}{{ m.role }}: {% for p in m.content %}{{ p.text }}{% endfor %};"
        "{% endfor %}"
    )
    template = ChatTemplate(source)
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert template.render([says("user", parts), says("tool", parts)]) == "user: ab;tool: ab;"


def test_parts_are_joined_by_line_breaks_where_a_template_takes_text() -> None:
    template = ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}")
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert template.render([says("user", parts)]) == "a\nb"


def test_developer_stays_where_a_template_knows_it() -> None:
    plain = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    message = [says("developer", "x")]
    assert ChatTemplate(plain).render(message) == "system: x\n"
    knows = plain + "{% if messages[0].role == 'developer' %}!{% endif %}"
    assert ChatTemplate(knows).render(message) == "developer: x\n!"


# ---- through chat -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    with musespark.load(context=2048, threads=1) as loaded:
        yield loaded


def ids(model: musespark.Model, source: str, messages: list) -> list[int]:
    template = ChatTemplate.from_named(source, origin="chat_template.jinja")
    return prompts.chat_ids(model.tokenizer, template, PROTOCOLS["plain"], messages)


ONLY_USERS = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"


@pytest.mark.parametrize(
    ("messages", "place"),
    [
        ([says("system", "s"), USER], r"messages\[0\]\.content \(role 'system'\)"),
        ([USER, says("assistant", [{"type": "text", "text": "a"}]), USER], r"\[1\]\.content\[0\]"),
        ([USER, CALLING, USER], r"messages\[1\]\.tool_calls\[0\]"),
        ([USER, says("tool", {"sky": "clear"})], r"messages\[1\]\.content \(role 'tool'\)"),
    ],
)
def test_what_a_template_leaves_out_is_named(model, messages: list, place: str) -> None:
    with pytest.raises(InvalidRequest, match=place + r".*chat_template\.jinja does not write it"):
        ids(model, ONLY_USERS, messages)


def test_short_texts_are_not_mistaken_for_others(model) -> None:
    """'a' stands in every prompt; the dropped message is found all the same."""
    with pytest.raises(InvalidRequest, match=r"messages\[0\]"):
        ids(model, ONLY_USERS, [says("system", "a"), USER])
    assert ids(model, ONLY_USERS, [says("system", " "), USER]) == ids(model, ONLY_USERS, [USER])


def test_objects_are_looked_into_as_dicts_are(model) -> None:
    """Calls as an SDK hands them back: objects with model_dump."""
    call = SimpleNamespace(model_dump=lambda: CALL)
    source = ONLY_USERS + "{% for m in messages %}{{ m.tool_calls }}{% endfor %}"
    assert ids(model, source, [USER, says("assistant", None, tool_calls=[call]), USER])
    with pytest.raises(InvalidRequest, match=r"tool_calls\[0\]"):
        ids(model, ONLY_USERS, [USER, says("assistant", None, tool_calls=[call]), USER])


def test_what_a_model_says_beside_its_calls_is_left_to_its_template(model) -> None:
    """Llama 3, Mistral Nemo and Muse leave it out: an agent goes on with what the model wrote."""
    source = (
        "{% for m in messages %}{% if m.tool_calls %}{{ m.tool_calls }}{% else %}{{ m.content }}"
        "{% endif %}{% endfor %}"
    )
    assert ids(model, source, [USER, says("assistant", "Hm.", tool_calls=[CALL]), RESULT])
