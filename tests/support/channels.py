"""Tokens given to a channel parser as streams give them."""

from __future__ import annotations

from musespark.text.channels import ChannelParser, Event
from musespark.text.events import ANSWER, THOUGHT, TOOL, Turn


def pushed_in_runs(parser: ChannelParser, ids: list[int]) -> list[Event]:
    """All events, with as many ids at once as the parser allows."""
    events, at = list[Event](), 0
    while at < len(ids):
        length = parser.run_length(ids, at)
        run = ids[at : at + length]
        events += parser.push_run(run) if length > 1 else parser.push(run[0])
        at += length
    return events + parser.finish()


def held(turn: Turn) -> dict:
    """What a turn held, however its text came."""
    parts = {kind: "".join(turn.parts[kind]) for kind in (THOUGHT, ANSWER, TOOL)}
    return {**vars(turn), "parts": parts}
