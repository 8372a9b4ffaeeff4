"""How each family writes the calls of a turn: what stands between the tags, as rules.

The texts are those of the families' chat templates, as text/syntaxes.py reads them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from musespark.calls.lark import Lark
from musespark.calls.values import Values, resolved, split_texts, tagged

Tools = Mapping[str, Mapping[str, Any]]  # name -> JSON schema of its parameters
_ID = "[A-Za-z0-9]{9}"
_ATEM_END = "</atem:invoke>\n</atem:function_calls>"


def _either(lark: Lark, tools: Tools, write: Callable[[str, Any], str]) -> str:
    """A call of one of the tools."""
    return lark.rule(" | ".join(write(name, schema) for name, schema in tools.items()))


def _arguments(lark: Lark, name: str, schema: Any, quote: str | None = None) -> str:
    return Values(lark, schema, f"tools: {name}", quote).object(schema)


def _parameters(
    lark: Lark, name: str, schema: Any, form: str, close: str, *, wrap: str = ""
) -> str:
    """Each parameter in its own tags, and a line break. ``form``: what stands before a value, with
    ``{}`` for the key."""
    out, needed = [], schema.get("required") or ()
    for key, rule in (schema.get("properties") or {}).items():
        rule = resolved(rule, schema)
        value = tagged(lark, rule, schema, f"tools: {name}.{key}", close, wrap=wrap)
        one = rf'{lark.text(form.format(key))} {value} "\n"'
        out.append(one if key in needed else f"({one})?")
    return " ".join(out)


# ---- arguments in tags --------------------------------------------------------------------------


def atem(lark: Lark, name: str, schema: Any) -> str:
    """A channel of Muse's: one call to the channel's recipient."""
    form, close = '<atem:parameter name="{}">', "</atem:parameter>"
    body = _parameters(lark, name, schema, form, close)
    head = lark.text(f'<atem:function_calls>\n<atem:invoke name="{name}">\n')
    return f"{head} {body} {lark.text(_ATEM_END)}"


def _xml(lark: Lark, tools: Tools) -> str:
    def write(name: str, schema: Any) -> str:
        form, close = "<parameter={}>\n", "</parameter>"
        body = _parameters(lark, name, schema, form, close, wrap="\n")
        head, tail = lark.text(f"<function={name}>\n"), lark.text("</function>\n")
        return f"{head} {body} {tail}"

    one = _either(lark, tools, write)
    return f"{_line(lark)} {one}+"


def _glm(lark: Lark, tools: Tools) -> str:
    def write(name: str, schema: Any) -> str:
        form, close = "<arg_key>{}</arg_key>\n<arg_value>", "</arg_value>"
        body = _parameters(lark, name, schema, form, close)
        head = lark.text(f"{name}\n")
        return f"{head} {body}"

    return _either(lark, tools, write)


def _dsml(lark: Lark, tools: Tools) -> str:
    mark = "｜DSML｜"
    form = f'<{mark}parameter name="{{}}" string="{{}}">'
    close = f"</{mark}parameter>"

    def parameter(name: str, key: str, rule: Any, root: Any) -> str:
        where, ways = f"tools: {name}.{key}", []
        for said, part in zip(("true", "false"), split_texts(resolved(rule, root)), strict=True):
            if part is not None:
                value = tagged(lark, part, root, where, close)
                ways.append(rf'{lark.text(form.format(key, said))} {value} "\n"')
        return lark.rule(" | ".join(ways))

    def write(name: str, schema: Any) -> str:
        out, needed = [lark.text(f'<{mark}invoke name="{name}">\n')], schema.get("required") or ()
        for key, rule in (schema.get("properties") or {}).items():
            one = parameter(name, key, rule, schema)
            out.append(one if key in needed else f"({one})?")
        return " ".join([*out, lark.text(f"</{mark}invoke>\n")])

    return rf'"\n" {_either(lark, tools, write)}+'


# ---- arguments as JSON --------------------------------------------------------------------------


def _object(lark: Lark, tools: Tools, form: str) -> str:
    """``form``: a call with ``NAME`` and ``ARGUMENTS`` in it."""
    head, tail = form.split("ARGUMENTS")

    def write(name: str, schema: Any) -> str:
        quoted = head.replace("NAME", json.dumps(name, ensure_ascii=False)[1:-1])
        parts = [lark.text(quoted), _arguments(lark, name, schema)]
        return " ".join([*parts, lark.text(tail)] if tail else parts)

    return _either(lark, tools, write)


_CALL = '{"name": "NAME", "arguments": ARGUMENTS}'
_LLAMA = '{"name": "NAME", "parameters": ARGUMENTS}'


def _listed(lark: Lark, one: str) -> str:
    return f'"[" {one} (", " {one})* "]"'


def _line(lark: Lark) -> str:
    return lark.rule('"\\n"?')


def _hermes(lark: Lark, tools: Tools) -> str:
    return f"{_line(lark)} {_object(lark, tools, _CALL)} {_line(lark)}"


def _phi(lark: Lark, tools: Tools) -> str:
    return _listed(lark, _object(lark, tools, _CALL))


def _keyed(lark: Lark, tools: Tools) -> str:
    return _listed(lark, _object(lark, tools, '{"NAME": ARGUMENTS}'))


def _command(lark: Lark, tools: Tools) -> str:
    call = _object(lark, tools, '", "tool_name": "NAME", "parameters": ARGUMENTS}')
    number = lark.terminal("[0-9]{1,3}")
    head = lark.text('    {"tool_call_id": "')
    one = lark.rule(f"{head} {number} {call}")
    return f'"[\\n" {one} (",\\n" {one})* "\\n]"'


def _mistral(lark: Lark, tools: Tools) -> str:
    """``[TOOL_CALLS]`` stands before each call where ``[ARGS]`` is a token, else before a list."""
    if not lark.is_token("[ARGS]"):
        number = lark.terminal(_ID)
        one = _object(lark, tools, _CALL[:-1] + ', "id": "')
        return _listed(lark, lark.rule(f'{one} {number} "\\"}}"'))
    number = (
        f"({lark.text('[CALL_ID]')} {lark.terminal(_ID)})?" if lark.is_token("[CALL_ID]") else ""
    )

    def write(name: str, schema: Any) -> str:
        arguments = _arguments(lark, name, schema)
        return f"{lark.text(name)} {number} {lark.text('[ARGS]')} {arguments}"

    return _either(lark, tools, write)


def _deepseek(lark: Lark, tools: Tools) -> str:
    """``NAME<｜tool▁sep｜>{…}`` (V3.1), or the arguments in a fence (V3, R1)."""
    new = _object(lark, tools, "NAME<｜tool▁sep｜>ARGUMENTS")
    old = _object(lark, tools, "function<｜tool▁sep｜>NAME\n```json\nARGUMENTS\n```")
    return lark.rule(f"{new} | {old}")


def _kimi(lark: Lark, tools: Tools) -> str:
    number = lark.terminal("[0-9]{1,3}")
    argument = lark.text("<|tool_call_argument_begin|>")

    def write(name: str, schema: Any) -> str:
        arguments = _arguments(lark, name, schema)
        return f"{lark.text(f'functions.{name}:')} {number} {argument} {arguments}"

    return _either(lark, tools, write)


# ---- calls like code ----------------------------------------------------------------------------


def _code(lark: Lark, tools: Tools) -> str:
    """``name(key=value, …)``."""

    def write(name: str, schema: Any) -> str:
        values = Values(lark, schema, f"tools: {name}")
        entries = [
            (f"{lark.text(key + '=')} {values.value(rule)}", key in (schema.get("required") or ()))
            for key, rule in (schema.get("properties") or {}).items()
        ]
        return f'{lark.text(name + "(")} {values.listed(entries)} ")"'

    return _either(lark, tools, write)


def _code_list(lark: Lark, tools: Tools) -> str:
    return _listed(lark, _code(lark, tools))


def _quoted(quote: str) -> Callable[[Lark, Tools], str]:
    def write_all(lark: Lark, tools: Tools) -> str:
        def write(name: str, schema: Any) -> str:
            return f"{lark.text(f'call:{name}')} {_arguments(lark, name, schema, quote)}"

        return _either(lark, tools, write)

    return write_all


def _llama(lark: Lark, tools: Tools) -> str:
    return _object(lark, tools, _LLAMA)


# What stands between a protocol's tags of calls, by the protocol's name for calls.
BLOCKS: dict[str, Callable[[Lark, Tools], str]] = {
    "hermes": _hermes,
    "xml": _xml,
    "seed": _xml,
    "glm": _glm,
    "mistral": _mistral,
    "deepseek": _deepseek,
    "dsml": _dsml,
    "dsml-4": _dsml,
    "kimi": _kimi,
    "command": _command,
    "phi4": _phi,
    "granite": _phi,
    "lfm2": _code_list,
    "apertus": _keyed,
    "gemma-4": _quoted('<|"|>'),
    "function-gemma": _quoted("<escape>"),
    "llama-3": _llama,
    "llama-4": _code_list,
}


def bare_calls(lark: Lark, tools: Tools, kinds: tuple[str, ...]) -> str:
    """A whole answer that is calls, without tags (:attr:`Protocol.bare`)."""
    ways = []
    if "json" in kinds:
        one = _llama(lark, tools)
        ways.append(f'{one} ("; " {one})*')
    if "list" in kinds:
        ways.append(_code_list(lark, tools))
    if "fence" in kinds:
        ways.append(f'"```tool_code\\n" {_code(lark, tools)} "\\n```"')
    return lark.rule(" | ".join(ways))
