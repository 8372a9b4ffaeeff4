"""A jinja2 environment that renders untrusted chat templates within a time and size budget.

Chat templates come with model files and are programs. jinja2's ``ImmutableSandboxedEnvironment``
keeps them away from Python, but not from ``{% for a in range(99999) %}{% for b in range(99999) %}``
or ``'x' * 10**9``. This environment meters a rendering without signals, tracing or a second
process, in whatever thread it runs: while the template is compiled, its syntax tree is rewritten
so that every loop pulls its items through :meth:`Meter.loop`, and everything that can produce a
large value (operators, filters, method calls, concatenation, slices, nested literals, output)
reports the size *before* producing it. Loops are stopped by the thread's CPU time, so a busy
machine does not make a good template fail; sizes are stopped by a budget of characters.

What a template may use is what transformers gives it (``utils/chat_template_utils.py`` of
https://github.com/huggingface/transformers, 5.23): ``raise_exception``, ``strftime_now``, its
``tojson``, ``dict``, ``namespace``, loop controls and the ``{% generation %}`` tag.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from functools import wraps
from string import Formatter
from types import BuiltinMethodType, GeneratorType
from typing import Any

import jinja2
import jinja2.ext
import jinja2.filters
import jinja2.runtime
import jinja2.sandbox
import jinja2.utils
from jinja2 import nodes
from jinja2.visitor import NodeTransformer

from musespark.errors import InvalidRequest
from musespark.text.meter import ELEMENT, Meter
from musespark.text.template_globals import (
    GenerationTag,
    TemplateDict,
    TemplateNamespace,
    raise_exception,
    strftime_now,
    tojson,
)

_CONTAINERS = (list, tuple, dict)
_SIZED = (str, bytes, list, tuple)


class _Formatter(jinja2.sandbox.SandboxedFormatter):
    """``str.format`` whose fields are measured before they are made."""

    def format_field(self, value: Any, format_spec: str) -> str:
        self._env.check_width(format_spec)
        self._env.bounded(value)
        text = Formatter.format_field(self, value, format_spec)
        self._env.meter.charge(len(text))
        return text


_DENIED = frozenset({"translate", "maketrans", "encode", "decode", "to_bytes", "from_bytes"})
# Filters that look at no more than the outermost level of a container.
_SHALLOW = frozenset(
    [
        "length",
        "count",
        "first",
        "last",
        "list",
        "map",
        "select",
        "reject",
        "selectattr",
        "rejectattr",
        "items",
        "default",
        "d",
        "batch",
        "slice",
        "reverse",
        "random",
        "attr",
    ]
)


class MeteredEnvironment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The environment; a rendering runs between :meth:`start` and :meth:`stop` of its thread."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        # Without the optimizer nothing of a template runs while it is compiled.
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,
            finalize=_finalize,
            extensions=[GenerationTag, jinja2.ext.loopcontrols],
        )
        self._local = threading.local()
        self.filters["tojson"] = tojson
        # Unmetered loops and regular expressions that no chat template has a use for.
        del self.globals["lipsum"], self.filters["urlize"], self.filters["pprint"]
        for name, function in list(self.filters.items()):
            self.filters[name] = self._guard_filter(name, function)
        for name, function in list(self.tests.items()):
            self.tests[name] = self._guard_test(function)
        self.filters["_loop"] = lambda items, body: self.meter.loop(items, body)
        self.filters["_concat"] = self._concat
        self.filters["_bounded"] = self.bounded
        self.filters["_slice"] = self._charged
        self.globals["raise_exception"] = raise_exception
        self.globals["strftime_now"] = strftime_now
        self.globals["dict"] = TemplateDict()
        self.globals["namespace"] = TemplateNamespace

    # ---- metering -----------------------------------------------------------------------------

    @property
    def meter(self) -> Meter:
        return self._local.meter

    def start(self, meter: Meter) -> Meter | None:
        """Meter this thread's rendering; returns what :meth:`stop` wants."""
        before = getattr(self._local, "meter", None)
        self._local.meter = meter
        return before

    def stop(self, before: Meter | None) -> None:
        self._local.meter = before

    def bounded(self, value: Any) -> Any:
        """The value; InvalidRequest where its nesting would explode when walked."""
        if isinstance(value, _CONTAINERS):
            self.meter.measure(value)
        else:
            self.meter.tick(1 + len(value) // 4096 if isinstance(value, str) else 1)
        return value

    def _charged(self, value: Any) -> Any:
        """A produced value, paid for; lazy ones are paid for as they are read."""
        if isinstance(value, (str, bytes)):
            self.meter.charge(len(value))
        elif isinstance(value, _CONTAINERS):
            self.meter.charge(ELEMENT * len(value))
        elif isinstance(value, GeneratorType):
            return self.meter.loop(value)
        else:
            self.meter.tick()
        return value

    def _concat(self, *parts: Any) -> str:
        texts = []
        for part in parts:
            self.bounded(part)
            text = part if isinstance(part, str) else str(part)
            self.meter.charge(len(text))
            texts.append(text)
        return "".join(texts)

    def _joined(self, separator: Any, items: Any) -> list[Any]:
        """The items of a join, after paying for the joined text."""
        items = list(self.meter.loop(items))
        width = len(separator) if isinstance(separator, str) else 0
        for item in items:
            size = len(item) if isinstance(item, str) else self.meter.measure(item)
            self.meter.charge(size + width)
        return items

    def _replacing(self, text: Any, args: tuple, kwargs: dict) -> None:
        text = str(text)
        old, new = (
            str(args[i]) if len(args) > i else str(kwargs.get(name, ""))
            for i, name in ((0, "old"), (1, "new"))
        )
        self.meter.charge(len(text) + text.count(old) * len(new))

    def check_width(self, text: str) -> None:
        """Refuse format strings that ask for padding or precision of five digits and more."""
        if re.search(r"\d{5}|\*", text):
            raise InvalidRequest(f"chat template: format width in {text[:80]!r} is too large")

    # ---- operators, calls, filters --------------------------------------------------------------

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        meter = self.meter
        if operator == "+":
            if isinstance(left, _SIZED) and isinstance(right, _SIZED):
                unit = 1 if isinstance(left, (str, bytes)) else ELEMENT
                meter.charge((len(left) + len(right)) * unit)
        elif operator == "%" and isinstance(left, (str, bytes)):
            for spec in re.findall(r"%(?:\([^)]*\))?([^a-zA-Z%]*)", str(left)):
                self.check_width(spec)
            meter.charge(len(left) + str(left).count("%") * meter.measure(right))
        elif operator == "*":
            for sized, times in ((left, right), (right, left)):
                if isinstance(sized, _SIZED) and isinstance(times, int):
                    unit = 1 if isinstance(sized, (str, bytes)) else ELEMENT
                    meter.charge(len(sized) * max(times, 0) * unit)
        if isinstance(left, int) and isinstance(right, int) and operator in ("*", "**"):
            bits = left.bit_length()
            if (bits * right if operator == "**" else bits + right.bit_length()) > 4096:
                raise InvalidRequest("chat template: an integer of more than 4096 bits")
        meter.tick()
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        self = __self
        self.meter.tick()
        if isinstance(__obj, jinja2.runtime.LoopContext) and args:
            args = (self.meter.loop(args[0]), *args[1:])  # a recursive loop's next level
        elif isinstance(__obj, BuiltinMethodType) and not isinstance(__obj.__self__, type):
            args = self._check_method(__obj.__self__, __obj.__name__, args, kwargs)
        return self._charged(super().call(__context, __obj, *args, **kwargs))

    def _check_method(self, owner: Any, name: str, args: tuple, kwargs: dict) -> tuple:
        for value in (*args, *kwargs.values()):
            if isinstance(value, _CONTAINERS):
                self.meter.measure(value)
        if isinstance(owner, str):
            self.meter.tick(len(owner) // 4096)
            if name in ("center", "ljust", "rjust", "zfill", "expandtabs"):
                widths = [v for v in (*args, *kwargs.values()) if isinstance(v, int)]
                repeats = owner.count("\t") if name == "expandtabs" else 1
                self.meter.charge(repeats * max([0, *widths]))
            elif name == "join" and args:
                args = (self._joined(owner, args[0]), *args[1:])
            elif name == "replace":
                self._replacing(owner, args, kwargs)
        return args

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        if not isinstance(value, BuiltinMethodType) or value.__name__ not in (
            "format",
            "format_map",
        ):
            return None
        text = value.__self__
        if not isinstance(text, str):
            return None
        is_map = value.__name__ == "format_map"

        def formatted(*args: Any, **kwargs: Any) -> str:
            if is_map:
                (kwargs,) = args
                args = ()
            return _Formatter(self).vformat(str(text), args, kwargs)

        return formatted

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return attr not in _DENIED and super().is_safe_attribute(obj, attr, value)

    def _guard_filter(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        offset = 0 if jinja2.utils._PassArg.from_obj(function) is None else 1

        @wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            self.meter.tick()
            lead, value, rest = args[:offset], args[offset : offset + 1], args[offset + 1 :]
            if value and name not in _SHALLOW:
                self.bounded(value[0])
            check = _FILTER_CHECKS.get(name)
            if check is not None and value:
                value = (check(self, value[0], rest, kwargs),)
                if name == "join":
                    kwargs.pop("attribute", None)
                    rest = rest[:1]
            return self._charged(function(*lead, *value, *rest, **kwargs))

        return guarded

    def _guard_test(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            for value in args[1:]:
                self.bounded(value)
            self.meter.tick()
            return function(*args, **kwargs)

        return guarded

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return _Rewriter(self).visit(super()._parse(source, name, filename))


@jinja2.pass_context
def _finalize(context: Any, value: Any) -> Any:
    """Pay for each ``{{ value }}`` before it is turned into text."""
    meter = context.environment.meter
    if isinstance(value, _CONTAINERS):
        meter.charge(meter.measure(value))
    else:
        meter.charge(len(value) if isinstance(value, str) else 8)
    return value


# ---- checks of filters before they run: (environment, value, args, kwargs) -> value ------------


def _option(args: tuple, kwargs: dict, index: int, name: str, default: Any) -> Any:
    return args[index] if len(args) > index else kwargs.get(name, default)


def _check_join(env: MeteredEnvironment, value: Any, args: tuple, kwargs: dict) -> Any:
    attribute = _option(args, kwargs, 1, "attribute", None)
    items = env.meter.loop(value)
    if attribute is not None:
        items = map(jinja2.filters.make_attrgetter(env, attribute), items)
    return env._joined(_option(args, kwargs, 0, "d", ""), items)


def _check_size(index: int, name: str, unit: int) -> Callable[..., Any]:
    def check(env: MeteredEnvironment, value: Any, args: tuple, kwargs: dict) -> Any:
        width = _option(args, kwargs, index, name, 0)
        env.meter.charge(unit * max(0, width) if isinstance(width, int) else 0)
        return value

    return check


def _check_indent(env: MeteredEnvironment, value: Any, args: tuple, kwargs: dict) -> Any:
    width = _option(args, kwargs, 0, "width", 4)
    size = len(width) if isinstance(width, str) else int(width)
    env.meter.charge(max(0, size) * (str(value).count("\n") + 1))
    return value


def _check_replace(env: MeteredEnvironment, value: Any, args: tuple, kwargs: dict) -> Any:
    env._replacing(value, args, {"old": kwargs.get("old", ""), "new": kwargs.get("new", "")})
    return value


def _check_format(env: MeteredEnvironment, value: Any, args: tuple, kwargs: dict) -> Any:
    env.call_binop(None, "%", str(value), kwargs or args)
    return value


def _check_small(index: int, name: str, most: int) -> Callable[..., Any]:
    def check(env: MeteredEnvironment, value: Any, args: tuple, kwargs: dict) -> Any:
        given = _option(args, kwargs, index, name, 0)
        if (isinstance(given, int) and abs(given) > most) or (
            isinstance(given, str) and len(given) > most
        ):
            raise InvalidRequest(f"chat template: filter argument {name} is {given!r:.80}")
        return value

    return check


def _check_sum(env: MeteredEnvironment, value: Any, args: tuple, kwargs: dict) -> Any:
    if not isinstance(_option(args, kwargs, 1, "start", 0), (int, float)):
        raise InvalidRequest("chat template: filter sum adds numbers only")
    return value


def _check_short(env: MeteredEnvironment, value: Any, args: tuple, kwargs: dict) -> Any:
    if len(str(value)) > 100_000:
        raise InvalidRequest("chat template: more than 100000 characters for a slow filter")
    return value


_FILTER_CHECKS: dict[str, Callable[..., Any]] = {
    "join": _check_join,
    "center": _check_size(0, "width", 1),
    "batch": _check_size(0, "linecount", ELEMENT),
    "slice": _check_size(0, "slices", ELEMENT),
    "indent": _check_indent,
    "replace": _check_replace,
    "format": _check_format,
    "round": _check_small(0, "precision", 300),
    "tojson": _check_small(1, "indent", 64),
    "sum": _check_sum,
    "wordwrap": _check_short,
    "striptags": _check_short,
    "title": _check_short,
    "xmlattr": _check_short,
}


class _Rewriter(NodeTransformer):
    """Puts the metering filters into a template's syntax tree."""

    def __init__(self, environment: MeteredEnvironment):
        self._environment = environment

    def _through(self, name: str, node: nodes.Expr, *args: nodes.Expr) -> nodes.Filter:
        made = nodes.Filter(node, name, list(args), [], None, None, lineno=node.lineno)
        made.set_environment(self._environment)
        return made

    def visit_For(self, node: nodes.For) -> nodes.For:  # noqa: N802
        body = sum(
            len(data.data) for part in node.body for data in part.find_all(nodes.TemplateData)
        )
        self.generic_visit(node)
        node.iter = self._through("_loop", node.iter, nodes.Const(body, lineno=node.lineno))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:  # noqa: N802
        self.generic_visit(node)
        return self._through("_concat", node.nodes[0], *node.nodes[1:])

    def visit_Compare(self, node: nodes.Compare) -> nodes.Compare:  # noqa: N802
        self.generic_visit(node)
        if not isinstance(node.expr, nodes.Const):
            node.expr = self._through("_bounded", node.expr)
        for operand in node.ops:
            if not isinstance(operand.expr, nodes.Const):
                operand.expr = self._through("_bounded", operand.expr)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Expr:  # noqa: N802
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            return self._through("_slice", node)
        if not isinstance(node.arg, nodes.Const):
            node.arg = self._through("_bounded", node.arg)
        return node

    def _literal(self, node: Any) -> nodes.Expr:
        self.generic_visit(node)
        stored = getattr(node, "ctx", "load") != "load"
        if stored or all(isinstance(n, nodes.Const) for n in node.iter_child_nodes()):
            return node
        return self._through("_bounded", node)

    visit_List = visit_Tuple = visit_Dict = _literal  # noqa: N815

    def visit_Pair(self, node: nodes.Pair) -> nodes.Pair:  # noqa: N802
        self.generic_visit(node)
        if not isinstance(node.key, nodes.Const):
            node.key = self._through("_bounded", node.key)
        return node
