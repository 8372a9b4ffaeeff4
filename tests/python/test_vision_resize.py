"""resize() gives Pillow's bits, those of its numpy twin, and the same at every level."""

from __future__ import annotations

import numpy as np
import pytest

from musespark import _core
from musespark.errors import InvalidRequest, MemoryBudgetExceeded
from musespark.reference import resize as reference
from musespark.vision import resampling, resize
from musespark.vision.resampling import FILTERS

LEVELS = _core.testing.kernel_levels()
Case = tuple[np.ndarray, tuple[int, int], tuple[float, ...] | None]


def random_image(rng: np.random.Generator, height: int, width: int, channels: int) -> np.ndarray:
    """Noise, black and white, or a gradient: overshoot and rounding show in different ones."""
    kind = rng.integers(3)
    if kind == 2:
        ramp = np.linspace(0, 255, height * width * channels).reshape(height, width, channels)
        return ramp.astype(np.uint8)
    noise = rng.integers(0, 256, (height, width, channels), dtype=np.uint8)
    return noise if kind == 0 else np.where(noise > 127, 255, 0).astype(np.uint8)


def random_side(rng: np.random.Generator, most: int) -> int:
    return int(np.exp(rng.uniform(0, np.log(most))))


def random_box(rng: np.random.Generator, height: int, width: int) -> tuple[float, ...] | None:
    x, y = sorted(rng.uniform(0, width, 2)), sorted(rng.uniform(0, height, 2))
    if rng.integers(4) or x[1] - x[0] < 0.01 or y[1] - y[0] < 0.01:
        return None
    return (x[0], y[0], x[1], y[1])


def random_case(rng: np.random.Generator, most: int, channels: int) -> Case:
    """Half of them with an axis that stays, where a pass falls away."""
    height, width, new_height, new_width = (random_side(rng, most) for _ in range(4))
    if rng.integers(4) == 0:
        new_width = width
    if rng.integers(4) == 0:
        new_height = height
    image = random_image(rng, height, width, channels)
    return image, (new_height, new_width), random_box(rng, height, width)


def by_pillow(image: np.ndarray, size: tuple[int, int], name: str, box: object) -> np.ndarray:
    library = pytest.importorskip("PIL.Image")
    flat = image[:, :, 0] if image.shape[2] == 1 else image
    resized = library.fromarray(np.ascontiguousarray(flat)).resize(
        (size[1], size[0]), FILTERS.index(name), box=box
    )
    return np.asarray(resized).reshape(*size, image.shape[2])


def pillow_has_our_order(image: np.ndarray, size: tuple[int, int]) -> bool:
    """Before version 13 the pass along rows came first always."""
    import PIL

    rows, columns = image.shape[0] - size[0], image.shape[1] - size[1]
    return int(PIL.__version__.split(".")[0]) >= 13 or not (rows > 0 and rows > 2 * columns)


@pytest.mark.parametrize("seed", range(10))
def test_pillows_bits(seed: int) -> None:
    """500 images: 1 x 1 to 1000 x 1000, up and down, grey, RGB and RGBA, all filters."""
    pytest.importorskip("PIL")
    rng = np.random.default_rng(seed)
    for number in range(50):
        image, size, box = random_case(
            rng, 1000 if number % 10 == 0 else 200, [1, 3, 4][number % 3]
        )
        for name in FILTERS:
            if name != "nearest" and not pillow_has_our_order(image, size):
                continue
            got = resize(image, size, resample=name, box=box)
            want = by_pillow(image, size, name, box)
            assert np.array_equal(got, want), (image.shape, size, name, box)


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((3000, 4000, 3), (1, 1)),
        ((1, 1, 3), (3000, 4000)),
        ((3000, 4000, 3), (333, 517)),
        ((2, 4000, 3), (700, 3)),
        ((4000, 1, 1), (7, 900)),
    ],
)
def test_pillows_bits_at_the_ends_of_the_range(
    name: str, shape: tuple[int, int, int], size: tuple[int, int]
) -> None:
    image = np.random.default_rng(5).integers(0, 256, shape, dtype=np.uint8)
    pytest.importorskip("PIL")
    if name == "nearest" or pillow_has_our_order(image, size):
        assert np.array_equal(
            resize(image, size, resample=name), by_pillow(image, size, name, None)
        )


@pytest.mark.isa
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_each_level_gives_the_twins_bits(level: str, channels: int) -> None:
    rng = np.random.default_rng(channels)
    columns_first = 0
    for case in range(60):
        image, size, box = random_case(rng, 70, channels)
        rows_first = case % 3 == 0
        columns_first += image.shape[0] - size[0] > max(2 * (image.shape[1] - size[1]), 0)
        for name in FILTERS:
            want = reference.resize(image, size, resample=name, part=box, rows_first=rows_first)
            sides = {"height": size[0], "width": size[1]}
            how = {"resample": name, "box": box, "rows_first": rows_first}
            got = _core.resize(image, **sides, **how, isa=level)
            assert np.array_equal(got, want), (image.shape, size, name, box, rows_first)
    assert columns_first > 5


def test_strides_make_no_difference() -> None:
    rng = np.random.default_rng(1)
    wide = rng.integers(0, 256, (40, 60, 8), dtype=np.uint8)
    views = [
        wide[::-1, ::2, :3],
        wide[:, ::-1, 2:6],
        wide[3:, 5:, ::-1][:, :, :3],
        wide[:, :, 4],
        wide.transpose(1, 0, 2)[:, :, 1:4],
        wide[:, :, :3].transpose(2, 0, 1).copy().transpose(1, 2, 0),
    ]
    for view in views:
        for name in FILTERS:
            for size in [(13, 17), (90, 17), view.shape[:2]]:
                packed = resize(np.ascontiguousarray(view), size, resample=name)
                assert np.array_equal(resize(view, size, resample=name), packed)


def test_the_same_size_is_a_copy() -> None:
    image = np.random.default_rng(2).integers(0, 256, (9, 7, 4), dtype=np.uint8)
    same = resize(image, (9, 7), resample="lanczos")
    assert np.array_equal(same, image)
    assert not np.shares_memory(same, image)


def test_filters_by_name_number_and_enumeration() -> None:
    library = pytest.importorskip("PIL.Image")
    image = np.random.default_rng(3).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    for number, name in enumerate(FILTERS):
        want = resize(image, (5, 4), resample=name)
        assert np.array_equal(resize(image, (5, 4), resample=number), want)
        assert np.array_equal(resize(image, (5, 4), resample=library.Resampling(number)), want)
    grey = resize(image[:, :, 0], (5, 4), resample="box")
    assert np.array_equal(grey, resize(image, (5, 4), resample="box")[:, :, 0])


IMAGE = np.zeros((4, 6, 3), np.uint8)


@pytest.mark.parametrize(
    ("array", "size", "options", "message"),
    [
        (IMAGE.astype(np.float32), (2, 2), {}, r"uint8 .* got float32 \[4, 6, 3\]"),
        (IMAGE[0, 0], (2, 2), {}, r"uint8 \[3\]"),
        (np.zeros((4, 6, 2), np.uint8), (2, 2), {}, "channels must be 1, 3 or 4, got 2"),
        (np.zeros((0, 6, 3), np.uint8), (2, 2), {}, r"image .* got \(0, 6\)"),
        (np.zeros((1, 1, 1 << 20), np.uint8), (1 << 20, 1 << 20), {}, "channels must be 1, 3 or"),
        (IMAGE, (0, 2), {}, r"between 1 and 1048576, got \(0, 2\)"),
        (IMAGE, (2, 1 << 40), {}, "between 1 and 1048576"),
        (IMAGE, (2, 2, 2), {}, r"size must be \(height, width\)"),
        (IMAGE, (2.5, 2), {}, r"size must be \(height, width\)"),
        (IMAGE, (2, 2), {"resample": "cubic"}, r"bicubic \(3\).* got 'cubic'"),
        (IMAGE, (2, 2), {"resample": 6}, "got 6"),
        (IMAGE, (2, 2), {"box": (0, 0, 7, 4)}, r"inside 6 x 4 pixels, got \(0.0+, 0.0+, 7.0"),
        (IMAGE, (2, 2), {"box": (2, 0, 2, 4)}, "not empty"),
        (IMAGE, (2, 2), {"box": (float("nan"), 0, 2, 4)}, "not empty"),
        (IMAGE, (2, 2), {"box": (0, 0, 2)}, "box must be"),
    ],
)
def test_what_is_refused(array: np.ndarray, size: object, options: dict, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        resize(array, size, **options)


def test_no_room_for_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **options: object) -> None:
        raise MemoryError

    monkeypatch.setattr(resampling._core, "resize", full)
    with pytest.raises(MemoryBudgetExceeded, match="no memory for 1048576 x 1048576 pixels"):
        resize(IMAGE, (1 << 20, 1 << 20))
