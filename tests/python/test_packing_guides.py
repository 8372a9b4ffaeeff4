"""Importance and error feedback in packing: the packer's bits are the twin's, and they help."""

from __future__ import annotations

import numpy as np
import pytest

from musespark import _core
from musespark.errors import InvalidRequest
from musespark.reference import formats, packing
from support.levels import stdout_by_level

linalg = pytest.importorskip("musespark._linalg", reason="built without Eigen or OpenBLAS")
Q4, DAMPING = "q4", 0.01
FED = ("q4", "q6", "q8", "q8g1024h", "q8g32h", "q4g32h", "iq4g32h", "mxfp4")


def pack(form: str, weights: np.ndarray, **guide) -> np.ndarray:
    out = np.full(_core.packed_nbytes(form, *weights.shape), 0xAA, np.uint8)
    _core.pack(form, weights, out=out, **guide)
    return out


def correlated(rng: np.random.Generator, cols: int, rows: int = 900) -> np.ndarray:
    """Products X^T X of inputs that share a few causes, some columns far larger than others."""
    causes = rng.standard_normal((rows, max(2, cols // 4)))
    x = causes @ rng.standard_normal((causes.shape[1], cols)) + 0.3 * rng.standard_normal(
        (rows, cols)
    )
    x *= np.exp(rng.standard_normal(cols))
    return (x.T @ x).astype(np.float32)


def importance_of(products: np.ndarray) -> np.ndarray:
    squares = np.diag(products)
    return (squares / squares.mean() + DAMPING).astype(np.float32)


@pytest.mark.parametrize("shape", [(5, 31), (16, 64), (18, 300), (33, 513)])
@pytest.mark.parametrize("guided", ["", "importance", "factor", "importance factor"])
def test_bits_are_the_twins(shape: tuple[int, int], guided: str) -> None:
    rng = np.random.default_rng(shape[1])
    weights = rng.standard_t(5, size=shape).astype(np.float32)
    weights[1] = 0
    weights[2, : shape[1] // 2] *= 100
    products = correlated(rng, shape[1])
    every = {
        "importance": importance_of(products),
        "factor": linalg.factor(products, damping=DAMPING),
    }
    guide = {name: every[name] for name in guided.split()}
    packed, rows = pack(Q4, weights, **guide), shape[0]
    found, twin = formats.take_apart(Q4, packed, *shape), packing.pack_q4(weights, **guide)
    for part in ("row", "block", "sub", "codes"):
        np.testing.assert_array_equal(getattr(found, part)[:rows], getattr(twin, part), part)
    assert not formats.take_apart(Q4, packed, *shape).codes[rows:].any()


def test_importance_of_one_changes_nothing() -> None:
    weights = np.random.default_rng(0).standard_normal((20, 300)).astype(np.float32)
    for form in ("q4", "q6", "q8", "q8g1024h", "q4g32h"):
        plain = pack(form, weights)
        same = pack(form, weights, importance=np.ones(300, np.float32))
        none = pack(form, weights, factor=np.zeros((300, 300), np.float32))
        np.testing.assert_array_equal(same, plain, form)
        np.testing.assert_array_equal(none, plain, form)


@pytest.mark.parametrize("form", FED)
def test_feedback_has_the_least_loss(form: str) -> None:
    rng = np.random.default_rng(4)
    weights = rng.standard_normal((40, 520)).astype(np.float32)
    products = correlated(rng, 520)
    guides = {
        "plain": {},
        "importance": {"importance": importance_of(products)},
        "both": {
            "importance": importance_of(products),
            "factor": linalg.factor(products, damping=DAMPING),
        },
    }
    loss = {
        name: packing.proxy_loss(
            weights, _core.unpack(form, pack(form, weights, **guide), 40, 520), products
        )
        for name, guide in guides.items()
    }
    assert loss["both"] < 0.35 * loss["plain"], loss
    if form in ("q4", "q6"):
        assert loss["importance"] < 0.9 * loss["plain"], loss


def test_dead_inputs_keep_their_weights_and_feed_nothing() -> None:
    """A column whose input was always zero has nothing to be made up for by others."""
    rng = np.random.default_rng(5)
    dead = np.arange(0, 300, 3)
    products = correlated(rng, 300)
    products[dead] = 0
    products[:, dead] = 0
    factor = linalg.factor(products, damping=DAMPING)
    assert np.isfinite(factor).all() and not factor[dead].any() and not factor[:, dead].any()
    weights = rng.standard_normal((16, 300)).astype(np.float32)
    got = _core.unpack(
        "q4", pack("q4", weights, importance=importance_of(products), factor=factor), 16, 300
    )
    missed = np.abs(got - weights)[:, dead]
    assert np.sqrt((missed**2).mean()) < 0.2 * np.sqrt((weights**2).mean())


def test_the_factor_is_the_twins() -> None:
    for cols in (1, 2, 65, 400):
        products = correlated(np.random.default_rng(cols), cols)
        found = linalg.factor(np.triu(products), damping=DAMPING)
        np.testing.assert_allclose(
            found, packing.factor_products(products, DAMPING), rtol=1e-5, atol=1e-6
        )
        assert not np.tril(found).any()


def test_products_that_have_no_factor() -> None:
    good = np.eye(4, dtype=np.float32)
    holed, indefinite = good.copy(), good.copy()
    holed[1, 2] = np.nan
    indefinite[0, 3] = 9
    for products, match in (
        (holed, "inputs 1 and 2"),
        (0 * good, "all zero"),
        (indefinite, "positive definite"),
        (good[:3], "square"),
    ):
        with pytest.raises(InvalidRequest, match=match):
            linalg.factor(products, damping=DAMPING)
    for damping in (0.0, 1.5, float("nan")):
        with pytest.raises(InvalidRequest, match="damping"):
            linalg.factor(good, damping=damping)


def test_guides_that_cannot_be() -> None:
    weights = np.ones((4, 40), np.float32)
    ones, square = np.ones(40, np.float32), np.zeros((40, 40), np.float32)
    for guide, match in (
        ({"importance": ones[:39]}, "39.*40"),
        ({"importance": 0 * ones}, "importance holds 0"),
        ({"importance": ones * np.float32(np.nan)}, "importance holds"),
        ({"factor": square[:39]}, "columns"),
        ({"factor": square + np.float32(np.inf)}, "factor holds inf"),
    ):
        with pytest.raises(InvalidRequest, match=match):
            pack("q4", weights, **guide)
    for form in ("f32", "bf16"):
        with pytest.raises(InvalidRequest, match="for rounding"):
            pack(form, weights, importance=ones)


DIGEST = """
import numpy as np
from musespark import _core
rng = np.random.default_rng(8)
weights = rng.standard_t(5, size=(37, 330)).astype(np.float32)
importance = np.exp(rng.standard_normal(330)).astype(np.float32)
factor = np.triu(rng.standard_normal((330, 330)), 1).astype(np.float32) / 30
for form in ("q4", "q6", "q8", "q8g1024h", "q8g32h", "q4g32h", "iq4g32h", "mxfp4"):
    for guide in ({"importance": importance}, {"importance": importance, "factor": factor}):
        for threads in (1, 2):
            out = np.zeros(_core.packed_nbytes(form, *weights.shape), np.uint8)
            _core.pack(form, weights, out=out, threads=threads, **guide)
            print(form, len(guide), format(_core.checksum(out), "016x"))
"""


def test_same_bytes_on_every_level_and_thread_count() -> None:
    outputs = stdout_by_level(DIGEST)
    lines = outputs["scalar"].splitlines()
    assert len(lines) == 32 and len(set(lines)) == 16, "threads change nothing, all else does"
    assert set(outputs.values()) == {outputs["scalar"]}
