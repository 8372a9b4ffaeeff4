"""StopStrings against its definition, over any text, any strings and any borders."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from musespark.errors import InvalidRequest
from musespark.text.stops import StopStrings

ALPHABET = st.text("ab\N{GRINNING FACE}", max_size=30)
STRINGS = st.lists(st.text("ab\N{GRINNING FACE}", min_size=1, max_size=5), max_size=4)


def defined(text: str, strings: list[str]) -> tuple[str, str | None]:
    """The text before the stop string that is complete first; of several, before the longest."""
    for end in range(1, len(text) + 1):
        complete = [s for s in strings if text[:end].endswith(s)]
        if complete:
            longest = max(complete, key=len)
            return text[: end - len(longest)], longest
    return text, None


@given(ALPHABET, STRINGS, st.lists(st.integers(0, 30), max_size=8))
def test_any_borders_give_the_definition(text: str, strings: list[str], cuts: list[int]) -> None:
    wanted, stopped = defined(text, strings)
    borders = sorted({0, len(text), *(c for c in cuts if c <= len(text))})
    stop, out = StopStrings(strings), ""
    for start, end in itertools.pairwise(borders):
        out += stop.feed(text[start:end])
        # Nothing that comes out is ever taken back, and nothing is held longer than need be.
        assert wanted.startswith(out)
        held = text[:end][len(out) :]
        assert stop.stopped or not held or any(s.startswith(held) for s in strings)
    assert stop.stopped == stopped
    assert out + stop.flush() == wanted


def test_nothing_comes_after_a_stop() -> None:
    stop = StopStrings(["END"])
    assert stop.feed("one E") == "one "
    assert stop.feed("ND two") == ""
    assert stop.stopped == "END"
    assert stop.feed("three") == "" and stop.flush() == ""


def test_what_only_began_like_a_stop_string_comes_out() -> None:
    stop = StopStrings(["<|end|>", "\n\n"])
    assert [stop.feed(p) for p in ["a<", "|en", "x", "\n", "b"]] == ["a", "", "<|enx", "", "\nb"]


@pytest.mark.parametrize("bad", ["text", [""], [1], ["a", ""]])
def test_strings_are_checked(bad: object) -> None:
    with pytest.raises(InvalidRequest, match="stop: got"):
        StopStrings(bad)
