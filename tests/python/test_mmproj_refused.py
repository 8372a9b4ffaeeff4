"""Projector files that are damaged, hostile, or of what is not run: named, never guessed at."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import musespark
from musespark.errors import CorruptFile, UnsupportedModel
from musespark.families.vision import mmproj
from musespark.weights import open_model

gguf = pytest.importorskip("gguf")
from support.mmproj_models import model_folder, write_pair, write_projector  # noqa: E402

V = "clip.vision."


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """name -> (the model as a folder, its text's GGUF file)."""
    made: dict[str, tuple[Path, Path]] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MUSESPARK_CACHE", str(tmp_path_factory.mktemp("cache")))

        def one(name: str) -> tuple[Path, Path]:
            if name not in made:
                root = tmp_path_factory.mktemp("mmproj")
                (root / "hf").mkdir()
                model_folder(root / "hf", name)
                made[name] = root / "hf", write_pair(root / "hf", name, root / "pair")[0]
            return made[name]

        yield one


def key(name: str, kind: str, value: Any) -> tuple[str, Callable[[Any], object]]:
    return name, lambda writer: getattr(writer, f"add_{kind}")(name, value)


@pytest.fixture
def refused(folders, tmp_path):
    """Writes a model's projector with changes, and says how it is refused."""

    def write(
        name: str, error: type[Exception], says: str, *keys: Any, tensors: Any = lambda t: None
    ) -> None:
        folder, text = folders(name)
        path = tmp_path / "mmproj.gguf"
        write_projector(folder, name, path, keys=dict(keys), tensors=tensors)
        with pytest.raises(error, match=says) as refusal:
            open_model(text, mmproj=path, quantize="none", progress=False)
        assert type(refusal.value) is error and str(path) in str(refusal.value)

    return write


NUMBERS = [
    ("block_count", 0, "an integer in 1 … 1024 is needed"),
    ("block_count", 2**32 - 1, "an integer in 1 … 1024 is needed"),
    ("embedding_length", 0, "an integer in 1 … 1048576"),
    ("embedding_length", 2**31, "an integer in 1 … 1048576"),
    ("attention.head_count", 0, "an integer in 1 … 1048576"),
    ("attention.head_count", 5, r"must divide clip.vision.embedding_length, 48"),
    ("patch_size", 0, "an integer in 1 … 1024 is needed"),
    ("patch_size", 5, r"v.patch_embd.weight' has shape .48, 3, 4, 4., the keys ask for .48, 3, 5"),
    ("image_size", 3, "an integer in 4 … 65536 is needed"),
    ("image_size", 32, r"v.position_embd.weight' has shape .36, 48., .* asks for .64, 48."),
    ("feed_forward_length", 71, "is 71, tensor 'v.blk.0.ffn_up.weight' has 70 rows"),
    ("projection_dim", 41, "is 41, tensor 'mm.model.fc.weight' makes rows of 40"),
    ("projector.scale_factor", 4, "is 4: must divide 6 patches on a side"),
    ("projector.scale_factor", 0, "an integer in 1 … 64 is needed"),
    ("preproc_image_size", 2**31, "an integer in 1 … 65536 is needed"),
]


@pytest.mark.parametrize(("name", "value", "says"), NUMBERS)
def test_numbers_out_of_range(refused, name: str, value: int, says: str) -> None:
    named = "" if says.startswith(("v.", "r")) else V.replace(".", r"\.") + name
    refused("idefics3", CorruptFile, f"{named}.*{says}", key(V + name, "uint32", value))


VALUES = [
    (key(V + "block_count", "string", "3"), "block_count is '3', an integer"),
    (key(V + "block_count", "array", [3, 3]), "block_count is an array of 2, an integer"),
    (key(V + "block_count", "float32", 3.0), "block_count is 3.0, an integer"),
    (key("clip.projector_type", "uint32", 3), "clip.projector_type is 3, a string"),
    (key("clip.use_gelu", "uint32", 1), "clip.use_gelu is 1, a boolean"),
    (key(V + "image_mean", "array", [0.5, 0.5]), "image_mean is an array of 2, 3 finite numbers"),
    (key(V + "image_mean", "array", [0.5, 0.5, float("nan")]), "image_mean .*3 finite numbers"),
    (key(V + "image_mean", "array", ["a", "b", "c"]), "image_mean is .*, 3 finite numbers"),
    (key(V + "image_mean", "float32", 0.5), "image_mean is 0.5, 3 finite numbers"),
    (key(V + "image_std", "array", [0.5, 0.5, 0.0]), "image_std is .*numbers above 0 are needed"),
    (key(V + "attention.layer_norm_epsilon", "float32", 0.0), "epsilon is 0.0, a number above 0"),
    (key(V + "attention.layer_norm_epsilon", "float32", float("inf")), "epsilon is inf, a number"),
]


@pytest.mark.parametrize(("value", "says"), VALUES)
def test_values_of_another_kind(refused, value: Any, says: str) -> None:
    refused("idefics3", CorruptFile, says, value)


@pytest.mark.parametrize(
    "name",
    [
        *("block_count", "embedding_length", "attention.head_count", "patch_size", "image_size"),
        *("image_mean", "image_std", "attention.layer_norm_epsilon"),
    ],
)
def test_keys_that_are_missing(refused, name: str) -> None:
    refused("idefics3", CorruptFile, f"{V}{name} is missing", (V + name, None))


def test_the_type_is_missing(refused) -> None:
    refused("idefics3", CorruptFile, "projector_type is missing", ("clip.projector_type", None))


KINDS = ["pixtral", "internvl", "lfm2", "gemma3nv", "llama4", "mlp_norm", "ultravox", "x" * 300]


@pytest.mark.parametrize("kind", KINDS)
def test_types_that_are_not_run(refused, kind: str) -> None:
    why = "short convolution" if kind == "lfm2" else "known are idefics3, gemma3, mlp, qwen2vl_"
    refused(
        "idefics3",
        UnsupportedModel,
        f"projector_type is {kind[:60]!r}"[:60] + f".*{why}",
        key("clip.projector_type", "string", kind),
    )


KEYS = [
    (key("clip.has_audio_encoder", "bool", True), "clip.has_audio_encoder is True: this key"),
    (key(V + "window_size", "uint32", 112), "clip.vision.window_size is 112: this key"),
    (key(V + "mm_patch_merge_type", "string", "spatial_unpad"), "'spatial_unpad': this key"),
    (key(V + "image_grid_pinpoints", "array", [336, 672]), "is an array of 2: this key"),
    (key("clip.has_vision_encoder", "bool", False), "clip.has_vision_encoder is not true"),
    (key("clip.use_gelu", "bool", False), r"clip.use_silu say \[\]: towers of .* have gelu"),
    (key("clip.use_silu", "bool", True), r"say \['gelu', 'silu'\]: towers of .* have gelu"),
    (key("general.architecture", "string", "llama"), "is 'llama': a projector file .mmproj. says"),
]


@pytest.mark.parametrize(("value", "says"), KEYS)
def test_what_is_not_supported(refused, value: Any, says: str) -> None:
    refused("idefics3", UnsupportedModel, says, value)


def drop(*names: str) -> Callable[[dict[str, np.ndarray]], None]:
    def change(tensors: dict[str, np.ndarray]) -> None:
        for name in names:
            del tensors[name]

    return change


def reshape(name: str, *shape: int) -> Callable[[dict[str, np.ndarray]], None]:
    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors[name] = np.ones(shape, np.float32)

    return change


TENSORS = [
    ("idefics3", drop("v.patch_embd.weight"), "'v.patch_embd.weight' is missing"),
    ("idefics3", drop("v.patch_embd.bias"), "'v.patch_embd.bias' of the vision tower is missing"),
    ("idefics3", drop("mm.model.fc.weight"), "'mm.model.fc.weight' is missing"),
    ("idefics3", drop("v.blk.0.ffn_up.weight"), "'v.blk.0.ffn_up.weight' is missing"),
    ("idefics3", drop("v.blk.1.ln2.bias"), "'v.blk.1.ln2.bias' of the vision tower is missing"),
    ("idefics3", reshape("v.extra", 3), "'v.extra' is not a part of this vision tower"),
    ("idefics3", reshape("blk.0.attn_q.weight", 3), "attn_q.weight' is not a part of this vision"),
    ("idefics3", reshape("mm.model.fc.weight", 40), r"shape \[40\], a matrix is needed"),
    ("idefics3", reshape("mm.model.fc.weight", 40, 191), r"\[40, 191\], .*\[40, 192\]"),
    ("idefics3", reshape("v.blk.2.attn_q.weight", 48, 47), r"\[48, 47\], .*\[48, 48\]"),
    ("idefics3", reshape("v.post_ln.weight", 47), r"v.post_ln.weight' has shape \[47\]"),
    ("gemma3", reshape("mm.input_projection.weight", 47, 40), r"\[47, 40\], the keys ask for .48,"),
    ("qwen2_vl", drop("v.patch_embd.weight.1"), "'v.patch_embd.weight.1' is missing"),
    (
        "qwen2_vl",
        reshape("v.patch_embd.weight.1", 48, 3, 4, 5),
        r"weight.1' has shape .48, 3, 4, 5",
    ),
    ("qwen3_vl", reshape("v.position_embd.weight", 24, 48), "has 24 rows, a square is needed"),
    ("qwen3_vl", reshape("v.blk.0.attn_qkv.bias", 143), r"shape \[143\], .*\[144\]"),
    ("qwen3_vl", drop("v.deepstack.2.fc1.weight"), "'v.deepstack.2.fc1.weight' of the vision tow"),
    ("muse_glimmer", reshape("mm.0.weight", 52, 191), "shape .52, 191., 192 columns needed"),
    ("muse_glimmer", reshape("v.blk.0.attn_q.weight", 47, 48), r"\[47, 48\], .*\[48, 48\]"),
]


@pytest.mark.parametrize(("name", "change", "says"), TENSORS)
def test_tensors_missing_and_of_other_shapes(refused, name: str, change: Any, says: str) -> None:
    refused(name, CorruptFile, says, tensors=change)


def test_what_is_decoded_at_once_has_a_limit(refused, monkeypatch) -> None:
    monkeypatch.setattr(mmproj, "_MOST_NUMBERS", 4000)
    says = "'v.patch_embd.weight' has 4608 numbers, at most 4000 are decoded at once"
    refused("qwen2_vl", UnsupportedModel, says)


def test_numbers_that_are_not_finite(refused) -> None:
    def change(name: str) -> Callable[[dict[str, np.ndarray]], None]:
        def spoil(tensors: dict[str, np.ndarray]) -> None:
            tensors[name].flat[5] = np.nan

        return spoil

    for name in ("v.patch_embd.weight", "v.blk.0.ln1.weight", "mm.0.weight"):
        refused("qwen2_vl", CorruptFile, f"{name}'.*finite", tensors=change(name))


def test_qwen_patterns(refused) -> None:
    pattern = V + "n_wa_pattern"
    refused("qwen2_5_vl", CorruptFile, "n_wa_pattern is missing", (pattern, None))
    refused("qwen2_5_vl", CorruptFile, "an integer in 1 … 4", key(pattern, "uint32", 5))
    taps = V + "is_deepstack_layers"
    many = key(taps, "array", [True] * 5)
    refused("qwen3_vl", CorruptFile, "is an array of 5, an array of 4 booleans", many)
    refused("qwen3_vl", CorruptFile, "4 booleans", key(taps, "array", [1, 0, 1, 0]))


def test_llava_towers_that_are_no_clip(refused) -> None:
    lacking = "'v.class_embd' is missing: of projector_type 'mlp' CLIP towers"
    refused("llava", UnsupportedModel, lacking, tensors=drop("v.class_embd"))
    newline = reshape("model.image_newline", 40)
    refused("llava", UnsupportedModel, "model.image_newline': LLaVA 1.6", tensors=newline)
    layer = key(V + "feature_layer", "array", [9])
    refused("llava", UnsupportedModel, r"clip.vision.feature_layer: one of the \d layers", layer)


def test_a_file_that_is_cut_short(folders, tmp_path) -> None:
    folder, text = folders("idefics3")
    whole = write_projector(folder, "idefics3", tmp_path / "whole.gguf").read_bytes()
    path = text.parent / "mmproj-cut.gguf"
    (text.parent / "mmproj-model.gguf").unlink()
    try:
        for length in (0, 3, 20, 500, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:length])
            with pytest.raises(CorruptFile) as named:
                musespark.load(text, mmproj=path)
            assert str(path) in str(named.value) and "mmproj=False" not in str(named.value)
            with pytest.raises(CorruptFile, match=r"\(mmproj=False leaves the file aside\)"):
                musespark.load(text)  # found beside it
    finally:
        path.unlink()


def test_a_video_before_frames_that_were_added_up(folders) -> None:
    """Of Muse's patches the converter keeps the sum of two frames."""
    text = folders("muse_glimmer")[1]
    frames = np.zeros((4, 24, 24, 3), np.uint8)
    with (
        musespark.load(text, quantize="none", kv="f32", threads=1, progress=False) as model,
        pytest.raises(UnsupportedModel, match=r"temporal_patch_size is 2, .*patch_temporal is 1"),
    ):
        model.encode_video(frames)


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        (None, "dimension_sections is missing: pairs of time, height and width"),
        ([4, 3, 3], "is an array of 3|is array"),
        ([4, 3, 2, 0], "dimension_sections .*10 pairs in all are needed"),
        ([-4, 10, 4, 0], "pairs of time, height and width, and 0, are needed"),
        ([4, 3, 2, 1], "pairs of time, height and width, and 0, are needed"),
    ],
)
def test_positions_along_three_axes(folders, tmp_path, sections: Any, says: str) -> None:
    from support import mmproj_models

    folder, _ = folders("qwen2_vl")
    name = "qwen2vl.rope.dimension_sections"

    def change(writer: Any) -> None:
        writer.kv_data[0].pop(name, None)
        if sections is not None:
            writer.add_array(name, sections)

    text = tmp_path / "text.gguf"
    with pytest.MonkeyPatch.context() as patch:
        flush = gguf.GGUFWriter.write_header_to_file
        patch.setattr(
            gguf.GGUFWriter,
            "write_header_to_file",
            lambda writer: (change(writer), flush(writer)),
        )
        mmproj_models.write_text(folder, "qwen2_vl", text)
    with pytest.raises(UnsupportedModel, match=says):
        open_model(text, progress=False)
