"""How many prefill rows a step takes beside decode rows (csrc/decode/pace.h)."""

from __future__ import annotations

import pytest

from musespark._core import testing

PROMISE_S = 0.15  # what prefill may add to a step


def simulate(row_s: list[float], decode_s: float) -> list[float]:
    """Seconds that prefill adds to each of a run of steps whose rows cost `row_s` each."""
    pace = testing.PrefillPace()
    pace.observe(0, decode_s)
    added = []
    for seconds in row_s:
        rows = pace.rows(512)
        assert 1 <= rows <= 512
        pace.observe(rows, decode_s + rows * seconds)
        added.append(rows * seconds)
    return added


@pytest.mark.parametrize("row_s", [1e-5, 2e-4, 1e-3, 4e-3, 1.2e-2])
@pytest.mark.parametrize("decode_s", [1e-4, 0.05, 0.4])
def test_prefill_adds_at_most_its_share(row_s: float, decode_s: float) -> None:
    added = simulate([row_s] * 40, decode_s)
    assert max(added) <= PROMISE_S or row_s * 32 > PROMISE_S  # the first step measures 32 rows
    assert max(added[1:]) <= PROMISE_S
    assert added[-1] >= min(512 * row_s, 0.09)  # and does not starve prefill


def test_prefill_that_grows_dearer_stays_within_the_promise() -> None:
    """Attention makes later rows of a long prompt dearer: 4% more each step."""
    assert max(simulate([1e-3 * 1.04**i for i in range(60)], 0.05)[1:]) <= PROMISE_S
