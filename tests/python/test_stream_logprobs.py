"""Log-probabilities in streams: each piece has those of its tokens; which string stopped."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest

import musespark


@pytest.fixture(scope="module")
def model():
    with musespark.load(threads=1) as loaded:
        yield loaded


def told(stream: Any) -> dict[str, list[int]]:
    """The tokens of each channel that its pieces tell of."""
    found: dict[str, list[int]] = defaultdict(list)
    for delta in stream:
        found[delta.channel] += [one.token for one in delta.logprobs]
    return found


def test_a_channel_s_pieces_tell_of_its_text_and_of_no_marker(model) -> None:
    stream = model.chat("What is 47 + 38?", reasoning_effort="high", logprobs=1, stream=True)
    tokens = told(stream)
    result = stream.result
    assert model.tokenizer.decode(tokens["reasoning"]) == result.reasoning
    assert model.tokenizer.decode(tokens["content"]) == result.content
    assert len(result.logprobs) > len(tokens["reasoning"]) + len(tokens["content"])


def test_what_a_stop_string_cuts_is_not_told_of(model) -> None:
    stream = model.chat("What is 47 + 38?", stop="5", logprobs=1, stream=True)
    assert model.tokenizer.decode(told(stream)["content"]) == "8"
    assert (stream.result.content, stream.result.stop_string) == ("8", "5")


def test_plain_texts_tell_of_all_but_the_end(model) -> None:
    stream = model.generate("Once upon a time", max_new_tokens=30, logprobs=1, stream=True)
    tokens = told(stream)["content"]
    assert model.tokenizer.decode(tokens, continuing=True) == stream.result.text
    assert stream.result.stop_string is None
    met = model.generate("Once upon a time", max_new_tokens=30, stop=["zebra", "was"])
    assert met.stop_string == "was"


def test_without_log_probabilities_pieces_have_none(model) -> None:
    assert not told(model.chat("What is 47 + 38?", stream=True))["content"]
