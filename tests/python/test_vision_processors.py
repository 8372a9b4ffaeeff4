"""Processors against what transformers' classes made of the same images (tests/golden), and where
their tiles say they lie."""

from __future__ import annotations

import hashlib
import json
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from musespark.errors import CorruptFile, InvalidRequest, UnsupportedModel
from musespark.vision import Picture, open_picture
from musespark.vision.preprocess import ProcessedImage, Processor
from musespark.vision.processors import MODEL_TYPES, processor_for
from musespark.vision.processors.muse import Muse

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
sys.path.insert(0, str(GOLDEN))
import processor_cases as cases  # noqa: E402

LEVEL = 1 / 127.5
TORCHVISION = ("Lfm2VlImageProcessor", "MuseGlimmerImageProcessor")


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "processors.npz") as file:
        return dict(file)


def ours(case: cases.Case, **changes: Any) -> Processor:
    config = {"model_type": case.model_type, **case.config}
    return processor_for(config, {**case.preprocessor, **changes}, case.processor)


def of_video(processor: Processor, *given: Any) -> ProcessedImage:
    return processor.process_video(processor.open_video(*given))


def assert_equal(got: ProcessedImage, golden: dict[str, np.ndarray], key: str, exact: bool) -> None:
    want = json.loads(golden[key].tobytes())
    assert list(got.patches.shape) == want["shape"], key
    assert [list(grid) for grid in got.grids] == want["grids"], key
    assert got.text == want["text"], key
    values = golden[f"{key}_values"]
    step = max(got.patches.size // 400, 1)
    off = np.abs(got.patches.reshape(-1)[::step] - values)
    if exact:
        assert hashlib.sha256(got.patches.tobytes()).hexdigest() == want["sha256"], off.max()
    assert (off <= 1.001 * LEVEL).mean() >= 0.999, (key, off.max())
    assert got.patches.dtype == np.float32
    assert got.tokens == sum(piece.count for piece in got.pieces if piece.is_image)


@pytest.mark.parametrize("size", cases.SIZES, ids=str)
@pytest.mark.parametrize("name", cases.SMALL)
def test_patches_and_text_are_those_of_transformers(
    golden: dict[str, np.ndarray], name: str, size: tuple[int, int]
) -> None:
    """Bit for bit where theirs runs on Pillow; within a level of 256 where on torchvision."""
    case = cases.SMALL[name]
    (got,) = ours(case).process([cases.scene(*size)])
    assert_equal(got, golden, f"{name}_{size[0]}x{size[1]}", case.theirs not in TORCHVISION)


@pytest.mark.parametrize("fps", cases.FPS)
def test_videos_are_those_of_transformers(golden: dict[str, np.ndarray], fps: float) -> None:
    processor = processor_for({"model_type": "muse_glimmer"}, None, None, cases.VIDEO)
    assert_equal(of_video(processor, cases.frames(), fps), golden, f"video_{fps:g}", False)


def patch_centres(processor: Processor, tile: Any) -> np.ndarray:
    """[patches, 2]: (x, y) of the middle of each patch, in the order of the rows."""
    _, rows, columns = tile.grid
    merge = getattr(processor, "merge", 1)
    y, x = np.mgrid[:rows, :columns]
    order = np.stack([x, y], axis=-1).reshape(rows // merge, merge, columns // merge, merge, 2)
    order = order.transpose(0, 2, 1, 3, 4).reshape(-1, 2)
    return (order + 0.5) * (np.array(tile.size)[::-1] / (columns, rows))


@pytest.mark.parametrize("name", cases.SMALL)
@pytest.mark.parametrize("size", [(300, 200), (150, 400)], ids=str)
def test_tiles_know_where_they_lie(name: str, size: tuple[int, int]) -> None:
    """On a picture whose colours are coordinates each patch shows the place it claims, to within
    half a pixel of the original and the rounding of colours; also for a crop of a picture."""
    height, width = size
    y, x = np.mgrid[:height, :width] + 0.5
    map_of_itself = np.stack([x / 400 * 255, y / 400 * 255, x * 0], axis=-1)
    whole = open_picture(np.round(map_of_itself).astype(np.uint8))
    processor = ours(cases.SMALL[name], do_rescale=False, do_normalize=False)
    for picture in (whole, whole.crop((20, 30, width - 10, height - 40))):
        (got,) = processor.process([picture])
        at = 0
        for tile in got.tiles:
            centres = patch_centres(processor, tile)
            rows = got.patches[at : at + len(centres)]
            at += len(centres)
            inside = colours_of(cases.SMALL[name], rows)
            claimed = tile.transform.points(centres)
            # At the edges filters see half of their window, and padding shows no place at all.
            margin = 30
            left, top, right, bottom = picture.transform.box((0, 0, *picture.size[::-1]))
            far = (claimed > (left + margin, top + margin)).all(1)
            far &= (claimed < (right - margin, bottom - margin)).all(1)
            seen = inside[far][:, :2] / 255 * 400
            assert np.abs(seen - claimed[far]).max(initial=0) < 0.5 + 400 / 255 / 2
        assert at == len(got.patches)


def colours_of(case: cases.Case, rows: np.ndarray) -> np.ndarray:
    """[patches, 3]: the mean colour of each."""
    if case.model_type == "lfm2_vl":
        return rows.reshape(len(rows), -1, 3).mean(1)
    if case.model_type.startswith("muse"):
        return rows.reshape(len(rows), 2, 3, -1).mean((1, 3))
    return rows.reshape(len(rows), 3, -1).mean(2)


def test_the_key_names_pixels_and_processing() -> None:
    case = cases.SMALL["qwen2_vl"]
    scene = cases.scene(60, 90)
    other = scene.copy()
    other[0, 0, 0] ^= 1
    processor = ours(case)
    keys = [processor.process([image])[0].key for image in (scene, other)]
    keys.append(ours(case, max_pixels=28 * 28 * 6).process([scene])[0].key)
    keys.append(ours(cases.SMALL["llava"]).process([scene])[0].key)
    assert len(set(keys)) == 4
    assert ours(case).process([np.asfortranarray(scene)])[0].key == keys[0]


@pytest.mark.parametrize("family", ["siglip", "llava", "idefics3", "gemma3"])
def test_the_key_names_the_patch_size_of_the_model(family: str) -> None:
    """Which these families keep in config.json, beside the processor's own settings."""
    keys = set()
    for patch in (4, 8):
        config = {"model_type": family, "vision_config": {"patch_size": patch}}
        keys.add(processor_for(config).process([cases.scene(60, 90)])[0].key)
    assert len(keys) == 2


def test_pictures_are_opened_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many large ones, all decoded at once, the pixels alone would fill the memory."""
    living: list[weakref.ref[Picture]] = []
    most = 0

    def opened(source: np.ndarray, **given: Any) -> Picture:
        nonlocal most
        picture = open_picture(source, **given)
        living.append(weakref.ref(picture))
        most = max(most, sum(each() is not None for each in living))
        return picture

    monkeypatch.setattr("musespark.vision.pixels.open_picture", opened)
    image = cases.scene(60, 90)
    processor_for({"model_type": "siglip"}).process([image] * 6)
    muse = processor_for({"model_type": "muse_glimmer"})
    assert isinstance(muse, Muse)
    of_video(muse, [image] * 24)
    assert len(living) > 6
    assert most <= 2  # the next is opened before the name of the last is given to it


def test_every_listed_family_has_a_processor_with_class_defaults() -> None:
    scene = cases.scene(48, 64)
    for model_type in MODEL_TYPES:
        processor = processor_for({"model_type": model_type, **cases.vision(14)})
        (got,) = processor.process([scene])
        assert got.tokens > 0
        assert processor.placeholder in {piece.text for piece in got.pieces}


def test_settings_inside_processor_config() -> None:
    nested = {"image_processor": {"max_image_tokens": 4}, "video_processor": {"num_frames": 2}}
    processor = processor_for({"model_type": "muse_spark"}, None, nested)
    assert processor.process([cases.scene(300, 300)])[0].tokens == 4
    assert of_video(processor, cases.frames(), 1.0).grids[0][0] == 1


@pytest.mark.parametrize(
    ("model_type", "settings", "error", "message"),
    [
        ("bert", {}, UnsupportedModel, "no image processor for model_type 'bert'"),
        ("gemma3", {"do_resize": False}, UnsupportedModel, "do_resize = false"),
        ("gemma3", {"do_resize": 1}, CorruptFile, "do_resize must be true or false, got 1"),
        ("gemma3", {"size": {"height": 896}}, CorruptFile, "size must be height and width"),
        ("gemma3", {"size": {"height": 1 << 40, "width": 2}}, CorruptFile, "size must be"),
        ("qwen2_vl", {"patch_size": 0}, CorruptFile, "patch_size must be .* got 0"),
        ("qwen2_vl", {"merge_size": True}, CorruptFile, "merge_size must be .* got True"),
        ("qwen2_vl", {"size": {"shortest_edge": 10}}, CorruptFile, "longest_edge"),
        ("qwen2_vl", {"image_mean": [0.5, 0.5]}, CorruptFile, "image_mean"),
        ("qwen2_vl", {"image_std": [0, 1, 1]}, CorruptFile, "no finite values"),
        ("idefics3", {"resample": 9}, CorruptFile, "resample must be one of .* got 9"),
        ("lfm2_vl", {"min_tiles": 9, "max_tiles": 2}, CorruptFile, "min_tiles 9 above"),
        ("llava", {"rescale_factor": "x"}, CorruptFile, "rescale_factor must be a positive"),
    ],
)
def test_configurations_that_are_refused(
    model_type: str, settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message), np.errstate(all="ignore"):
        config = {"model_type": model_type, **cases.vision(14)}
        processor_for(config, settings).process([cases.scene(32, 32)])


@pytest.mark.parametrize(
    "form", ["{timestamp.__class__}", "{timestamp:99999999999f}", "{0}", "{timestamp!r}", 3, ""]
)
def test_a_frame_stamp_may_hold_the_seconds_alone(form: object) -> None:
    video = {"frame_timestamp_format": form}
    with pytest.raises(CorruptFile, match="frame_timestamp_format"):
        processor_for({"model_type": "muse_glimmer"}, None, None, video)


def test_pictures_a_family_refuses() -> None:
    long = cases.scene(2, 460)
    with pytest.raises(InvalidRequest, match="230 times the other, this family takes 200"):
        ours(cases.SMALL["qwen2_vl"]).process([long])
    muse = processor_for({"model_type": "muse_glimmer"})
    with pytest.raises(InvalidRequest, match="one size"):
        muse.open_video([cases.scene(20, 30), cases.scene(30, 20)], 2.0)
    with pytest.raises(UnsupportedModel, match="video: qwen2_vl models read images and no video"):
        ours(cases.SMALL["qwen2_vl"]).open_video(cases.frames())
