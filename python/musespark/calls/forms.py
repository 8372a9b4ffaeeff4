"""How each family writes the calls of a turn: what stands between the tags, as rules.

The texts are those of the families' chat templates, as text/syntaxes.py reads them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from musespark.calls.lark import Lark
from musespark.calls.offer import Offer
from musespark.calls.values import Values, resolved, split_texts, tagged
from musespark.schema import shapes_of

_ID = "[A-Za-z0-9]{9}"
ATEM = "<atem:"  # how each of Muse's tags for calls begins
_ATEM_END = "</atem:invoke>\n</atem:function_calls>"


def _either(lark: Lark, offer: Offer, write: Callable[[str, Any], str]) -> str:
    """A call of one of the tools."""
    return lark.rule(" | ".join(write(name, schema) for name, schema in offer.schemas.items()))


def _arguments(lark: Lark, name: str, schema: Any, quote: str | None = None) -> str:
    return Values(lark, schema, f"tools: {name}", quote).arguments()


def _parameters(
    lark: Lark, name: str, schema: Any, form: str, close: str, *, wrap: str = ""
) -> str:
    """Each parameter in its own tags, and a line break. ``form``: what stands before a value, with
    ``{}`` for the key."""

    def write(key: str, rule: Any) -> str:
        where = f"tools: {name}.{key}"
        value = tagged(lark, resolved(rule, schema, where), schema, where, close, wrap=wrap)
        return rf'{lark.text(form.format(key))} {value} "\n"'

    return _in_order(lark, schema, write)


def _in_order(lark: Lark, schema: Any, write: Callable[[str, Any], str]) -> str:
    """The properties of each shape of arguments, one after the other."""
    shapes = []
    for shape in shapes_of(schema):
        needed, out = shape.get("required") or (), []
        for key, rule in (shape.get("properties") or {}).items():
            out.append(write(key, rule) if key in needed else f"({write(key, rule)})?")
        shapes.append(" ".join(out))
    return shapes[0] if len(shapes) == 1 else lark.rule(" | ".join(one or '""' for one in shapes))


# ---- arguments in tags --------------------------------------------------------------------------


def atem(lark: Lark, name: str, schema: Any) -> str:
    """A channel of Muse's: one call to the channel's recipient."""
    form, close = '<atem:parameter name="{}">', "</atem:parameter>"
    body = _parameters(lark, name, schema, form, close)
    head = lark.text(f'<atem:function_calls>\n<atem:invoke name="{name}">\n')
    return f"{head} {body} {lark.text(_ATEM_END)}"


def _xml(lark: Lark, offer: Offer) -> str:
    def write(name: str, schema: Any) -> str:
        form, close = "<parameter={}>\n", "</parameter>"
        body = _parameters(lark, name, schema, form, close, wrap="\n")
        head, tail = lark.text(f"<function={name}>\n"), lark.text("</function>\n")
        return f"{head} {body} {tail}"

    one = _either(lark, offer, write)
    return f"{_line(lark)} {offer.repeated(one)}"


def _glm(lark: Lark, offer: Offer) -> str:
    def write(name: str, schema: Any) -> str:
        form, close = "<arg_key>{}</arg_key>\n<arg_value>", "</arg_value>"
        body = _parameters(lark, name, schema, form, close)
        head = lark.text(f"{name}\n")
        return f"{head} {body}"

    return _either(lark, offer, write)


def _dsml(lark: Lark, offer: Offer) -> str:
    mark = "｜DSML｜"
    form = f'<{mark}parameter name="{{}}" string="{{}}">'
    close = f"</{mark}parameter>"

    def write(name: str, schema: Any) -> str:
        def parameter(key: str, rule: Any) -> str:
            where, ways = f"tools: {name}.{key}", []
            parts = split_texts(resolved(rule, schema, where))
            for said, part in zip(("true", "false"), parts, strict=True):
                if part is not None:
                    value = tagged(lark, part, schema, where, close)
                    ways.append(rf'{lark.text(form.format(key, said))} {value} "\n"')
            return lark.rule(" | ".join(ways))

        head = lark.text(f'<{mark}invoke name="{name}">\n')
        tail = lark.text(f"</{mark}invoke>\n")
        return f"{head} {_in_order(lark, schema, parameter)} {tail}"

    return rf'"\n" {offer.repeated(_either(lark, offer, write))}'


# ---- arguments as JSON --------------------------------------------------------------------------


def _object(lark: Lark, offer: Offer, form: str) -> str:
    """``form``: a call with ``NAME`` and ``ARGUMENTS`` in it."""
    head, tail = form.split("ARGUMENTS")

    def write(name: str, schema: Any) -> str:
        quoted = head.replace("NAME", json.dumps(name, ensure_ascii=False)[1:-1])
        parts = [lark.text(quoted), _arguments(lark, name, schema)]
        return " ".join([*parts, lark.text(tail)] if tail else parts)

    return _either(lark, offer, write)


_CALL = '{"name": "NAME", "arguments": ARGUMENTS}'
_LLAMA = '{"name": "NAME", "parameters": ARGUMENTS}'
_JSON_PIECE = re.compile(r'"(?:[^"\\]|\\.)*"|[{}]|[:,] ')


def _listed(offer: Offer, one: str) -> str:
    between = '", "'
    return f'"[" {offer.repeated(one, between)} "]"'


def _line(lark: Lark) -> str:
    return lark.rule('"\\n"?')


def _hermes(lark: Lark, offer: Offer) -> str:
    return f"{_line(lark)} {_object(lark, offer, _CALL)} {_line(lark)}"


def _phi(lark: Lark, offer: Offer) -> str:
    return _listed(offer, _object(lark, offer, _CALL))


def _keyed(lark: Lark, offer: Offer) -> str:
    return _listed(offer, _object(lark, offer, '{"NAME": ARGUMENTS}'))


def _command(lark: Lark, offer: Offer) -> str:
    call = _object(lark, offer, '", "tool_name": "NAME", "parameters": ARGUMENTS}')
    number = lark.terminal("[0-9]{1,3}")
    head = lark.text('    {"tool_call_id": "')
    one = lark.rule(f"{head} {number} {call}")
    between = '",\\n"'
    return f'"[\\n" {offer.repeated(one, between)} "\\n]"'


def _mistral(lark: Lark, offer: Offer) -> str:
    """``[TOOL_CALLS]`` stands before each call where ``[ARGS]`` is a token, else before a list."""
    if not lark.is_token("[ARGS]"):
        number = lark.terminal(_ID)
        one = _object(lark, offer, _CALL[:-1] + ', "id": "')
        return _listed(offer, lark.rule(f'{one} {number} "\\"}}"'))
    number = (
        f"({lark.text('[CALL_ID]')} {lark.terminal(_ID)})?" if lark.is_token("[CALL_ID]") else ""
    )

    def write(name: str, schema: Any) -> str:
        arguments = _arguments(lark, name, schema)
        return f"{lark.text(name)} {number} {lark.text('[ARGS]')} {arguments}"

    return _either(lark, offer, write)


def _deepseek(lark: Lark, offer: Offer) -> str:
    """``NAME<｜tool▁sep｜>{…}`` (V3.1), or the arguments in a fence (V3, R1)."""
    new = _object(lark, offer, "NAME<｜tool▁sep｜>ARGUMENTS")
    old = _object(lark, offer, "function<｜tool▁sep｜>NAME\n```json\nARGUMENTS\n```")
    return lark.rule(f"{new} | {old}")


def _kimi(lark: Lark, offer: Offer) -> str:
    number = lark.terminal("[0-9]{1,3}")
    argument = lark.text("<|tool_call_argument_begin|>")

    def write(name: str, schema: Any) -> str:
        arguments = _arguments(lark, name, schema)
        return f"{lark.text(f'functions.{name}:')} {number} {argument} {arguments}"

    return _either(lark, offer, write)


# ---- calls like code ----------------------------------------------------------------------------


def _code(lark: Lark, offer: Offer) -> str:
    """``name(key=value, …)``."""

    def write(name: str, schema: Any) -> str:
        values = Values(lark, schema, f"tools: {name}")
        shapes = []
        for shape in shapes_of(schema):
            needed = shape.get("required") or ()
            entries = [
                (f"{lark.text(key + '=')} {values.value(rule)}", key in needed)
                for key, rule in (shape.get("properties") or {}).items()
            ]
            shapes.append(values.listed(entries))
        return f'{lark.text(name + "(")} {lark.rule(" | ".join(shapes))} ")"'

    return _either(lark, offer, write)


def _code_list(lark: Lark, offer: Offer) -> str:
    return _listed(offer, _code(lark, offer))


def _quoted(quote: str) -> Callable[[Lark, Offer], str]:
    def write_all(lark: Lark, offer: Offer) -> str:
        def write(name: str, schema: Any) -> str:
            return f"{lark.text(f'call:{name}')} {_arguments(lark, name, schema, quote)}"

        return _either(lark, offer, write)

    return write_all


def _llama(lark: Lark, offer: Offer) -> str:
    """Written piece by piece, as JSON is read: an answer that is JSON too may stand in the place of
    a call, and a lexer that has begun a longer text does not go back to a shorter one."""
    head, tail = _LLAMA.split("ARGUMENTS")

    def write(name: str, schema: Any) -> str:
        quoted = head.replace("NAME", json.dumps(name, ensure_ascii=False)[1:-1])
        pieces = map(lark.text, _JSON_PIECE.findall(quoted))
        return " ".join([*pieces, _arguments(lark, name, schema), lark.text(tail)])

    return _either(lark, offer, write)


# What stands between a protocol's tags of calls, by the protocol's name for calls.
BLOCKS: dict[str, Callable[[Lark, Offer], str]] = {
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


def bare_calls(lark: Lark, offer: Offer, kinds: tuple[str, ...]) -> str:
    """A whole answer that is calls, without tags (:attr:`Protocol.bare`)."""
    ways = []
    if "json" in kinds:
        ways.append(offer.repeated(_llama(lark, offer), '"; "'))
    if "list" in kinds:
        ways.append(_code_list(lark, offer))
    if "fence" in kinds:
        ways.append(f'"```tool_code\\n" {_code(lark, offer)} "\\n```"')
    return lark.rule(" | ".join(ways))
