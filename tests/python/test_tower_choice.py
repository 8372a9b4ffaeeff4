"""Layers of a vision tower that lose too much in 8 bits: found, left as stored, recorded, read."""

from __future__ import annotations

import dataclasses
import functools
import json
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import sight_cases

import musespark
from musespark import _core
from musespark.errors import CorruptFile
from musespark.vision.samples import sample_pictures
from musespark.vision.tower import VisionTower, pack_tower
from musespark.weights import View, open_model, packed, tower_choice
from musespark.weights.tower_choice import TowerChoice, choose_stored
from musespark.weights.tower_pieces import Pieces, aligned, group_of, groups_of
from support.compare import assert_same_bits, assert_within
from support.sight_folder import CASES as SIGHTS
from support.sight_folder import sight_folder
from support.vision_towers import CASES, canonical, grids, patches_of

LOUD = 1000.0


def views_of(name: str) -> list[View]:
    """The first frame of each grid of a case."""
    views, at, patches = [], 0, patches_of(name)
    for frames, height, width in grids(name):
        views.append(View(patches[at : at + height * width], height, width))
        at += frames * height * width
    return views


def loud(name: str, layer: int) -> dict[str, np.ndarray]:
    """A case's weights, one channel a thousand times as loud where a layer's MLP reads it, and its
    weights as much smaller: exact numbers do not change. In 8 bits all others drown in its scale,
    and it in theirs."""
    weights = dict(canonical(name)[1])
    for key, factor in (("mlp_norm", LOUD), ("mlp_norm_bias", LOUD), ("up", 1 / LOUD)):
        one = weights[f"layers.{layer}.{key}"].copy()
        one[..., 5] *= np.float32(factor)
        weights[f"layers.{layer}.{key}"] = one
    return weights


def both(name: str, weights: dict[str, np.ndarray] | None = None) -> dict[str, dict]:
    """The tensors as stored, and in both kinds of 8 bits."""
    spec, plain = canonical(name)
    read = (weights or plain).__getitem__
    made = {"stored": pack_tower(spec, read), "wide": pack_tower(spec, read, "q8"), "narrow": {}}
    for key, (form, rows, cols, data) in made["wide"].items():
        made["narrow"][key] = (form, rows, cols, data)
        if form == "q8g1024h":
            out = aligned(_core.packed_nbytes("q8", rows, cols))
            _core.pack("q8", np.ascontiguousarray(read(key), np.float32), out=out, dtype="f32")
            made["narrow"][key] = ("q8", rows, cols, out)
    return made


def chosen_of(name: str, tensors: dict[str, dict], threads: int = 1) -> TowerChoice:
    spec = canonical(name)[0]
    found = choose_stored(
        spec, lambda key, form: tensors[form][key], views_of(name), threads=threads
    )
    assert found is not None
    return found


def rows_of(name: str, tensors: dict[str, dict], stored: Any, narrow: Any = ()) -> np.ndarray:
    """Of the whole tower with these groups as stored, or narrow."""
    spec = canonical(name)[0]

    def form(key: str) -> str:
        group = group_of(key)
        return "stored" if group in stored else "narrow" if group in narrow else "wide"

    mixed = {key: tensors[form(key)][key] for key in tensors["stored"]}
    views = views_of(name)
    frames = [(1, view.height, view.width) for view in views]
    patches = np.concatenate([view.patches for view in views])
    return VisionTower(spec, mixed, threads=2).encode(patches, frames).rows


def worst_cosine(name: str, found: np.ndarray, exact: np.ndarray) -> float:
    """Mean over the rows of a view, of the worst view."""
    a, b = found.astype(np.float64), exact.astype(np.float64)
    cosine = (a * b).sum(1) / np.sqrt((a**2).sum(1) * (b**2).sum(1))
    merge = canonical(name)[0].merge
    ends = np.cumsum([view.height * view.width // merge**2 for view in views_of(name)])
    return min(part.mean() for part in np.split(cosine, ends[:-1]))


# ---- pieces --------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["stored", "wide"])
@pytest.mark.parametrize("name", CASES)
def test_pieces_make_the_whole(name: str, form: str) -> None:
    spec, tensors = canonical(name)[0], both(name)
    pieces = Pieces(spec, lambda key, form: tensors[form][key], 1, most=1 << 20)
    x = pieces.embed(views_of(name))
    for i in range(len(spec.layers)):
        x = pieces.layer(i, x, form)
    exact = form == "stored"
    found = pieces.head("head", x, form)
    whole = rows_of(name, tensors, groups_of(spec) if exact else ())
    if spec.order == "raster" and not any(layer.attention.window for layer in spec.layers):
        assert_same_bits(found, whole, name)
    else:  # keys in another order: of floats the last bits, of 8 bits what shares a scale
        assert_within(found, whole, (1e-5 if exact else 2e-2) * float(np.ptp(whole)), name)


def test_of_large_frames_the_middle_is_looked_at() -> None:
    spec, tensors = canonical("smolvlm_between")[0], both("smolvlm_between")
    assert spec.merge == 4
    pieces = Pieces(spec, lambda key, form: tensors[form][key], 1, most=30)
    marked = np.zeros((12, 20, spec.patch_dim), np.float32)
    marked[4:8, 8:12] = 1
    all_ones = View(np.ones((16, spec.patch_dim), np.float32), 4, 4)
    frame = embedded(pieces, View(marked.reshape(240, -1), 12, 20))
    assert pieces.grids == [(1, 4, 4)]
    assert frame.shape == (16, spec.hidden)
    # What depends on the patch, not on its place: 1 everywhere in the middle.
    empty = embedded(pieces, View(np.zeros((240, spec.patch_dim), np.float32), 12, 20))
    alone = embedded(pieces, all_ones)
    nothing = embedded(pieces, View(np.zeros_like(all_ones.patches), 4, 4))
    assert_within(frame - empty, alone - nothing, 1e-5, "the middle")


def embedded(pieces: Pieces, view: View) -> np.ndarray:
    pieces.grids.clear()
    return pieces.embed([view])


# ---- the choice ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["idefics3", "gemma3", "llava", "lfm2_vl", "muse_glimmer"])
def test_a_quiet_tower_is_all_in_8_bits(name: str) -> None:
    chosen, tensors = chosen_of(name, both(name)), both(name)
    assert chosen.stored == ()
    assert max(chosen.errors.values()) < 0.03
    found = worst_cosine(name, rows_of(name, tensors, ()), rows_of(name, tensors, chosen.errors))
    assert 0.999 <= found < 1 - 1e-6
    assert chosen.cosine == pytest.approx(found, abs=1e-5)


@pytest.mark.parametrize(("name", "layer"), [("idefics3", 1), ("llava", 0), ("lfm2_vl", 2)])
def test_a_loud_layer_stays_as_stored(name: str, layer: int, monkeypatch) -> None:
    tensors = both(name, loud(name, layer))
    exact = rows_of(name, tensors, groups_of(canonical(name)[0]))
    assert_within(exact, rows_of(name, both(name), groups_of(canonical(name)[0])), 1e-3, "exact")
    chosen = chosen_of(name, tensors)
    assert chosen.stored == (f"layers.{layer}",)
    assert chosen.errors[f"layers.{layer}"] > tower_choice.THRESHOLD
    assert worst_cosine(name, rows_of(name, tensors, ()), exact) < 0.999
    found = worst_cosine(name, rows_of(name, tensors, chosen.stored), exact)
    assert found >= 0.999
    assert chosen.cosine == pytest.approx(found, abs=1e-5)
    assert chosen_of(name, tensors, threads=3) == chosen
    for bound, off in (("THRESHOLD", 1e6), ("COSINE", -1.0)):  # either finds it alone
        with monkeypatch.context() as one:
            one.setattr(tower_choice, bound, off)
            assert chosen_of(name, tensors).stored == chosen.stored


@pytest.mark.parametrize("name", ["qwen3_vl", "idefics3"])
def test_further_layers_stay_until_the_whole_is_near(name: str, monkeypatch) -> None:
    tensors = both(name)
    errors = chosen_of(name, tensors).errors
    order = sorted(errors, key=lambda group: -errors[group])
    counts = []
    for least in (0.99, 0.9996, 0.9999, 0.99999, 1.0):
        monkeypatch.setattr(tower_choice, "COSINE", least)
        chosen = chosen_of(name, tensors)
        assert chosen.cosine >= least
        assert set(chosen.stored) == set(order[: len(chosen.stored)])
        counts.append(len(chosen.stored))
    assert counts == sorted(counts) and counts[0] == 0 and counts[-1] == len(order)
    assert len(set(counts)) >= 3


class Noisy:
    """Pieces of three layers, each of which adds ones and an error of its form."""

    ERRORS: ClassVar = {"stored": (0, 0, 0), "narrow": (0.005, 0.02, 0.5), "wide": (0.01, 0.3, 0.6)}
    grids: ClassVar = [(1, 2, 2)]

    def layer(self, index: int, x: np.ndarray, form: str) -> np.ndarray:
        return x + np.float32(1 + self.ERRORS[form][index])

    def head(self, group: str, x: np.ndarray, form: str) -> np.ndarray:
        return x

    def frames(self, rows: np.ndarray) -> list[np.ndarray]:
        return [rows]


def test_a_layer_gets_the_first_form_that_holds_it(monkeypatch) -> None:
    spec = canonical("idefics3")[0]
    spec = dataclasses.replace(spec, layers=spec.layers[:1] * 3, taps=[])
    run = tower_choice._Run(spec, Noisy(), lambda what: None)  # type: ignore[arg-type]
    chosen = run.choose(np.ones((4, 8), np.float32))
    assert (chosen.stored, chosen.narrow) == (("layers.2",), ("layers.1",))
    assert chosen.errors["layers.1"] == pytest.approx(0.3)
    monkeypatch.setattr(tower_choice, "COSINE", 2.0)  # nothing reaches it: all as stored in the end
    assert run.choose(np.ones((4, 8), np.float32)).stored == tuple(groups_of(spec))


def test_numbers_that_overflow_are_an_error_like_any_other() -> None:
    weights = dict(canonical("idefics3")[1])
    for key in ("layers.1.up", "layers.1.down"):
        weights[key] = weights[key] * np.float32(1e30)
    chosen = chosen_of("idefics3", both("idefics3", weights))
    assert "layers.1" in chosen.stored
    assert all(np.isfinite(error) for error in chosen.errors.values())


@pytest.mark.parametrize("height", [6, 5])
def test_views_that_do_not_fit_measure_nothing(height: int) -> None:
    spec, tensors = canonical("gemma3")[0], both("gemma3")
    wrong = View(np.zeros((height * 6, spec.patch_dim - (height == 6)), np.float32), height, 6)
    read = lambda key, form: tensors[form][key]  # noqa: E731
    assert choose_stored(spec, read, [wrong], threads=1) is None
    assert choose_stored(spec, read, [], threads=1) is None


def test_the_pictures_are_the_same_everywhere() -> None:
    assert [picture.sha256[:12] for picture in sample_pictures()] == [
        "251c3a263a00", "6b2386f45d1e", "58644c92153e", "d778570aade9", "7232336b4c19",
        "a0943a9ca75d",
    ]  # fmt: skip


# ---- a whole model -------------------------------------------------------------------------------


@pytest.fixture
def loud_folder(tmp_path: Path, monkeypatch) -> Path:
    """LLaVA's case, with a loud channel in layer 1 of its tower."""
    plain = sight_cases.weight

    def weight(case: Any, name: str, shape: tuple[int, ...], tied: bool) -> np.ndarray:
        found = plain(case, name, shape, tied)
        for leaf, factor in (("layer_norm2.", LOUD), ("mlp.fc1.weight", 1 / LOUD)):
            if f"vision_tower.encoder.layers.1.{leaf}" in name.replace("vision_model.", ""):
                found = found.copy()
                found[..., 5] *= np.float32(factor)
        return found

    monkeypatch.setattr(sight_cases, "weight", weight)
    return sight_folder(tmp_path / "m", "llava")


def formats_of(path: Path) -> dict[str, str]:
    return {one["name"]: one["format"] for one in musespark.inspect(path)["tensors"]}


def test_a_packed_file_records_it(loud_folder: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    convert = functools.partial(musespark.convert, loud_folder, quantize="q8", progress=False)
    said = convert(tmp_path / "p.safetensors")["tower"]
    assert said["stored"] == ["layers.1"]
    assert said["pictures"] == len(sample_pictures())
    matrices = {n: f for n, f in formats_of(tmp_path / "p.safetensors").items() if "norm" not in n}
    for name in ("q", "k", "v", "o", "up", "down"):
        assert matrices[f"vision.layers.1.{name}"] == "f32"
        assert matrices[f"vision.layers.0.{name}"] == "q8g1024h"
    assert matrices["layers.0.q"] == "q8"
    assert matrices["vision.head.0"] == "q8g1024h"
    monkeypatch.setattr(_core, "count_cores", lambda: {"usable": 3})
    convert(tmp_path / "again.safetensors")
    assert (tmp_path / "p.safetensors").read_bytes() == (
        tmp_path / "again.safetensors"
    ).read_bytes()

    monkeypatch.setattr(tower_choice, "THRESHOLD", 1.0)
    monkeypatch.setattr(tower_choice, "COSINE", -1.0)
    assert convert(tmp_path / "without.safetensors")["tower"]["stored"] == []
    exact, with_it, without = (
        _rows(source, quantize)
        for source, quantize in (
            (loud_folder, "none"),
            (tmp_path / "p.safetensors", "auto"),
            (tmp_path / "without.safetensors", "auto"),
        )
    )
    assert _cosine(with_it, exact) >= 0.999 > _cosine(without, exact)

    from musespark.cli import main

    assert main(["inspect", str(tmp_path / "p.safetensors")]) == 0
    assert said["says"] in capsys.readouterr().out
    again = str(tmp_path / "cli.safetensors")
    assert main(["convert", str(loud_folder), again, "--quantize", "q8"]) == 0
    assert "vision tower: " in capsys.readouterr().out
    with musespark.load(tmp_path / "p.safetensors", threads=1) as model:
        assert f"vision tower: {said['says']}" in model.info.notes


def _rows(source: Path, quantize: str) -> np.ndarray:
    with musespark.load(source, quantize=quantize, threads=1) as model:
        return np.concatenate(
            [model.encode_image(SIGHTS["llava"].image(i)).array for i in range(3)]
        )


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.mean((a * b).sum(1) / np.sqrt((a**2).sum(1) * (b**2).sum(1))))


def test_the_callers_pictures_are_looked_at_too(tmp_path: Path) -> None:
    folder = sight_folder(tmp_path / "m", "qwen3_vl")
    own = [SIGHTS["qwen3_vl"].image(0), np.zeros((40, 60, 3), np.uint8)]
    found = [
        musespark.convert(folder, tmp_path / str(i), quantize="q8", pictures=pictures)["tower"]
        for i, pictures in enumerate(([], own))
    ]
    assert found[1]["pictures"] == found[0]["pictures"] + 2
    assert found[1]["checksum"] != found[0]["checksum"]


@pytest.mark.parametrize("quantize", ["none", "q4"])
def test_what_is_as_stored_is_not_measured(tmp_path: Path, quantize: str) -> None:
    folder = sight_folder(tmp_path / "m", "gemma3")
    said = musespark.convert(folder, tmp_path / "p", quantize=quantize)
    assert (said["tower"] is None) == (quantize == "none")


# ---- untrusted -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("small") / "p.safetensors"
    folder = sight_folder(path.parent / "m", "idefics3")
    musespark.convert(folder, path, quantize="q8", progress=False)
    return path


def with_record(path: Path, target: Path, change: Any) -> Path:
    """The file with its record changed, and a checksum that is right."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    head = json.loads(header.pop("__metadata__")["musespark"])
    change(head)
    target.write_bytes(packed._encode(head, header, 8 + length) + data[8 + length :])
    return target


@pytest.mark.parametrize(
    ("field", "wrong", "message"),
    [
        ("stored", ["layers.0"], "layers.0"),  # whose tensors are in 8 bits
        ("stored", ["layers.9"], "stored"),
        ("stored", ["head", "layers.0"], "stored"),
        ("stored", [["x"]], "stored"),
        ("stored", "head", "tower is"),
        ("narrow", ["layers.0"], "layers.0"),  # whose tensors are wide
        ("narrow", ["layers.9"], "narrow"),
        ("narrow", 1, "tower is"),
        ("errors", {}, "errors"),
        ("errors", {"head": 0.1}, "errors"),
        ("errors", None, "tower is"),
        ("cosine", 2.0, "cosine"),
        ("cosine", 1, "tower is"),
        ("threshold", -7.0, "threshold"),
        ("least", 1e308, "least"),
        ("pictures", 0, "pictures"),
        ("pictures", True, "tower is"),
        ("patches", 2**40, "patches"),
        ("checksum", 5, "tower is"),
        ("more", 1, "tower is"),
    ],
)
def test_a_record_that_makes_no_sense_is_refused(
    small: Path, tmp_path: Path, field: str, wrong: Any, message: str
) -> None:
    made = with_record(small, tmp_path / "p", lambda head: head["tower"].update({field: wrong}))
    with pytest.raises(CorruptFile, match=message):
        open_model(made)


@pytest.mark.parametrize("error", [-1.0, "x", None, True, 1])
def test_an_error_that_is_no_size_is_refused(small: Path, tmp_path: Path, error: Any) -> None:
    made = with_record(small, tmp_path / "p", lambda h: h["tower"]["errors"].update(head=error))
    with pytest.raises(CorruptFile, match=r"tower\.errors"):
        open_model(made)


@pytest.mark.parametrize("record", [[], "x", 1, {}])
def test_a_record_of_another_kind_is_refused(small: Path, tmp_path: Path, record: Any) -> None:
    made = with_record(small, tmp_path / "p", lambda head: head.update(tower=record))
    with pytest.raises(CorruptFile, match="tower is"):
        open_model(made)


def test_a_file_without_a_record_says_nothing(small: Path, tmp_path: Path) -> None:
    made = with_record(small, tmp_path / "p.safetensors", lambda head: head.pop("tower"))
    with closing(open_model(made)) as loaded:
        assert loaded.info["tower"] is None
        assert any("nothing was measured" in note for note in loaded.info["notes"])


def test_a_record_from_before_there_were_wide_layers(small: Path, tmp_path: Path) -> None:
    made = with_record(small, tmp_path / "p.safetensors", lambda head: head["tower"].pop("narrow"))
    with closing(open_model(made)) as loaded:
        assert loaded.info["tower"].narrow == ()


def test_of_bf16_weights_bf16_stays() -> None:
    """And is as near as f32: what 8 bits lose is the activations."""
    name = "idefics3"
    tensors = both(name, loud(name, 1))
    exact: dict[str, Any] = {}
    for key, (form, rows, cols, data) in tensors["stored"].items():
        exact[key] = form, rows, cols, data
        if rows > 1 and key not in ("patch", "positions"):
            plain = _core.unpack(form, data, rows, cols)
            out = aligned(_core.packed_nbytes("bf16", rows, cols))
            _core.pack("bf16", plain, out=out, dtype="f32")
            exact[key] = "bf16", rows, cols, out
    halves = tensors | {"stored": exact}
    chosen = chosen_of(name, halves)
    assert chosen.stored == ("layers.1",)
    whole = rows_of(name, halves, chosen.errors)
    assert worst_cosine(name, rows_of(name, halves, chosen.stored), whole) >= 0.999
    assert worst_cosine(name, rows_of(name, halves, ()), whole) < 0.999
