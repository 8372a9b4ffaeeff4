"""Transforms: composed, inverted, applied."""

from __future__ import annotations

import numpy as np
import pytest

from musespark.errors import InvalidRequest
from musespark.vision import Transform

STEPS = [
    Transform.scale(2.0, 0.5),
    Transform.shift(-7.0, 11.0),
    Transform.resized((480, 640), (224, 336)),
    Transform.resized((480, 640), (100, 50), (10.5, 20.0, 210.0, 300.25)),
    *(Transform.oriented(number, (480, 640)) for number in range(1, 9)),
]


@pytest.mark.parametrize("step", STEPS)
def test_the_inverse_leads_back(step: Transform) -> None:
    points = np.random.default_rng(0).uniform(-100, 700, (50, 2))
    assert np.allclose(step.inverse().points(step.points(points)), points, atol=1e-9)
    assert np.allclose((step.inverse() @ step).to_list(), Transform().to_list(), atol=1e-12)


def test_products_do_the_right_one_first() -> None:
    both = Transform.scale(2.0, 3.0) @ Transform.shift(5.0, 7.0)
    assert both.points((1.0, 1.0)).tolist() == [12.0, 24.0]
    assert (Transform(*both.to_list())) == both


def test_a_resized_box_covers_the_same_part() -> None:
    step = Transform.resized((100, 200), (50, 400))
    assert step.box((0, 0, 400, 50)) == (0, 0, 200, 100)
    assert step.box((40, 10, 80, 20)) == (20, 20, 40, 40)
    turned = Transform.oriented(6, (100, 200))
    assert turned.box((0, 0, 100, 200)) == (0, 0, 200, 100)


def test_what_has_no_inverse() -> None:
    with pytest.raises(InvalidRequest, match="no inverse"):
        Transform.scale(0.0, 1.0).inverse()
    with pytest.raises(InvalidRequest, match="between 1 and 8, got 9"):
        Transform.oriented(9, (1, 1))
