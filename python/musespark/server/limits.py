"""What the server takes at most."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from musespark.errors import InvalidRequest
from musespark.grammar import GRAMMAR_OPTIONS
from musespark.options import integer, real
from musespark.parts import media_parts
from musespark.server.wire import Job


@dataclass(frozen=True)
class Limits:
    """``body_bytes``: of a request; ``bodies_bytes``: of all that are read or not answered yet,
    beyond which 429 is answered; in memory they are some times as large. ``messages``: of a
    conversation. ``images``: of a request, of ``image_pixels`` each and ``pixels`` together;
    ``decoded_pixels``: of all requests under way, 3 bytes each, beyond which a request waits.
    ``tools``: of a request. ``schema_bytes``: of one schema or grammar, as JSON. ``prompts``: texts
    to embed. ``choices``: answers to a request, of all its prompts.

    ``running``: answers in the engine at once, where each of several agents is one; ``waiting``:
    more that wait, behind which 429 is answered. ``read_seconds``: for a body to come;
    ``write_seconds``: for a client to take what it is sent, a KiB for each of them or all of it,
    before it is cut off.
    ``quiet_seconds``: after which a stream that has nothing to say says so.
    """

    body_bytes: int = 32 << 20
    bodies_bytes: int = 128 << 20
    messages: int = 4096
    images: int = 16
    image_pixels: int = 1 << 25
    pixels: int = 1 << 26
    decoded_pixels: int = 1 << 27
    tools: int = 128
    schema_bytes: int = 64 << 10
    prompts: int = 2048
    choices: int = 32
    running: int = 32
    waiting: int = 128
    read_seconds: float = 30.0
    write_seconds: float = 60.0
    quiet_seconds: float = 10.0  # proxies end what is silent for 60 s, some for 30

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name.endswith("_seconds"):
                real(name, value, 1e-3, 1e6, "seconds: 0.001 to a million")
            else:
                integer(name, value, 0 if name == "waiting" else 1)
        for whole, part in (("bodies_bytes", "body_bytes"), ("decoded_pixels", "pixels")):
            if getattr(self, whole) < getattr(self, part):
                raise InvalidRequest(
                    f"{whole}: got {getattr(self, whole)}, allowed is at least {part}, "
                    f"{getattr(self, part)}"
                )

    def check(self, job: Job) -> None:
        """InvalidRequest for what is too much of a job, naming it, how much and how much may be."""
        if len(job.prompts) == 1:
            at_most("choices", job.choices, self.choices)
        elif len(job.prompts) * job.choices > self.choices:
            raise InvalidRequest(
                f"prompt: got {len(job.prompts)} texts with {job.choices} answers each, allowed "
                f"are at most {self.choices} answers together"
            )
        for prompt in job.prompts:
            if job.is_chat:
                at_most("messages", len(prompt), self.messages)
                at_most("images", len(list(media_parts(prompt))), self.images)
        tools = job.options.get("tools") or ()
        at_most("tools", len(tools), self.tools)
        for index, tool in enumerate(tools):
            self._check_schema(f"tools[{index}]", tool["function"].get("parameters"))
        for name in GRAMMAR_OPTIONS:
            self._check_schema(name, job.options.get(name))

    def _check_schema(self, name: str, schema: Mapping[str, Any] | str | None) -> None:
        if schema is None:
            return
        text = schema if isinstance(schema, str) else json.dumps(schema, ensure_ascii=False)
        at_most(f"{name}: bytes", len(text.encode("utf-8", "surrogatepass")), self.schema_bytes)


def at_most(name: str, count: int, most: int) -> None:
    if count > most:
        raise InvalidRequest(f"{name}: got {count}, allowed are at most {most}")
