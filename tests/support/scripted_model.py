"""A loaded model whose turns a test writes: prompts, channels, calls and streams are real, the
tokens are not the model's."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import musespark
from support.scripted_agents import Script, ScriptedHandle

_START = "<|start|>assistant"


def thinks(text: str) -> str:
    """A thought, which a turn may begin with."""
    return f" to=self<|message|>{text}<|eom|>{_START}"


def says(text: str) -> str:
    """An answer, as Spark Nano writes it."""
    return f" to=user<|message|>{text}<|eot|>"


def calls(name: str, **arguments: Any) -> str:
    """A call, as Spark Nano writes it."""
    written = "".join(
        f'<atem:parameter name="{key}">'
        f"{value if isinstance(value, str) else json.dumps(value)}</atem:parameter>\n"
        for key, value in arguments.items()
    )
    invoke = f'<atem:function_calls>\n<atem:invoke name="{name}">\n{written}</atem:invoke>\n'
    return f" to={name}<|message|>{invoke}</atem:function_calls><|eot|>"


@contextmanager
def scripted_model(turns: Iterable[str]) -> Iterator[musespark.Model]:
    """Spark Nano, whose n-th request gets the n-th of ``turns``; ``asked`` of it: the prompts."""
    left = iter(turns)
    with musespark.load(threads=1) as model:
        model.asked = []

        def submit(request: Any, collector: Any, base: Any = None) -> tuple[Any, Any]:
            model.asked.append(model.tokenizer.decode(list(request.tokens)))
            script = Script("", "", raw=next(left))
            handle = ScriptedHandle(script, script.ids(model), len(request.tokens), lambda: 3, 0)
            return handle, collector

        model._submit = submit
        yield model
