"""kv="auto": what is measured, what is chosen from it, and where it is said."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from tests.support.tiny_models import SPECS, pack, random_tokens, random_weights

import musespark
from musespark import _core
from musespark.errors import CorruptFile
from musespark.reference import attention, forward
from musespark.reference.rowwise import Exact
from musespark.weights import convert as pack_into
from musespark.weights import kv_choice
from musespark.weights.kv_choice import LOGITS, OUTPUT, WEIGHTS, choose, read_formats

NANO = Path(musespark.__file__).parent / "nano"
FORMS = ("kv8", "kv8v4", "kv4")


# ---- the measurement ----------------------------------------------------------------------------


def twin_errors(q, k, v, a, sinks, tokens: int) -> dict[str, np.ndarray]:
    """[heads, formats] means and sums of csrc/calibrate/kv_errors.h, in float64.

    q [n, heads, D] scaled; k, v [n, kv_heads, D].
    """
    dim = -(-a.head_dim // 16) * 16
    frame = Exact.rotation(dim)

    def turned(x):
        padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (0, dim - a.head_dim)))
        return padded @ frame.T

    q, k, v = turned(q), turned(k), turned(v)
    pages = tokens // 64
    positions = [p for p in range(128, tokens) if p % 64 < 4]
    out = {what: np.zeros((a.heads, len(FORMS))) for what in ("divergence", "error", "exact")}
    for head in range(a.heads):
        kv_head = head // (a.heads // a.kv_heads)
        sealed = {form: [] for form in FORMS}
        for p in range(pages):
            rows = slice(64 * p, 64 * p + 64)
            page = attention.OpenPage(
                k[rows, kv_head].astype(np.float32),
                attention.to_half(v[rows, kv_head].astype(np.float32)),
            )
            for form in FORMS:
                sealed[form].append(attention.seal("kv8" if p == 0 else form, page))
        for pos in positions:
            row = q[pos, head]
            codes, scale = attention.quantize_query(row.astype(np.float32))
            seen = np.arange(max(0, pos - a.window + 1) if a.window else 0, pos + 1)
            exact = attend(k[:, kv_head] @ row, v[:, kv_head], seen, a, sinks, head)
            out["exact"][head] += (exact[2] ** 2).sum()
            for f, form in enumerate(FORMS):
                logits, values = k[:, kv_head] @ row, v[:, kv_head].copy()
                for p in range(pos // 64):
                    s, rows = sealed[form][p], slice(64 * p, 64 * p + 64)
                    logits[rows] = row @ s.key_mean.astype(np.float64) + (
                        (s.key_codes @ codes) * s.key_scale.astype(np.float64) * float(scale)
                    )
                    values[rows] = s.value_codes * s.value_scale[:, None].astype(np.float64)
                found = attend(logits, values, seen, a, sinks, head)
                kl = found[1] - exact[1] + (exact[0][seen] * (exact[3] - found[3])[seen]).sum()
                out["divergence"][head, f] += kl
                out["error"][head, f] += ((found[2] - exact[2]) ** 2).sum()
    return out


def attend(logits, values, seen, a, sinks, head):
    """(weights, log of their sum, output, capped logits) of one query."""
    if a.softcap:
        logits = a.softcap * np.tanh(logits / a.softcap)
    sink = -np.inf if sinks is None else float(sinks[head])
    top = max(logits[seen].max(), sink)
    weights = np.zeros(len(logits))
    weights[seen] = np.exp(logits[seen] - top)
    total = weights.sum() + np.exp(sink - top)
    weights /= total
    return weights, top + np.log(total), weights @ values, logits


@pytest.mark.parametrize("name", ["llama", "everything", "muse"])
def test_errors_are_those_of_the_twin(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = SPECS[name]()
    weights = random_weights(spec, seed=8)
    tokens = random_tokens(spec, 280)
    run = _core.Calibrator(asdict(spec), pack(weights, "f32"), threads=2)
    run.last_logits(tokens, 40)
    layers, attend_twin = [], forward.attend

    def watched(q, k, v, a, sinks, seen):
        layers.append(twin_errors(q, k, v, a, sinks, 240))
        return attend_twin(q, k, v, a, sinks, seen)

    monkeypatch.setattr(forward, "attend", watched)
    exact_weights = {key: value.astype(np.float64) for key, value in weights.items()}
    forward.logits(spec, exact_weights, tokens[:240])
    for i, (queries, exact, divergence, error) in enumerate(run.kv_errors()):
        assert queries == 8
        where = f"layer {i}"
        np.testing.assert_allclose(exact, layers[i]["exact"][:, 0], rtol=1e-4, err_msg=where)
        # What rounds the other way in float32 moves one sum of a few.
        for found, wanted in ((divergence, "divergence"), (error, "error")):
            off = np.abs(found / layers[i][wanted] - 1)
            assert np.median(off) < 1e-3 and off.max() < 0.1, f"{where}: {off}"


def test_the_divergence_of_logits() -> None:
    rng = np.random.default_rng(3)
    a, b = (rng.standard_normal((5, 40)).astype(np.float32) * 3 for _ in range(2))
    p, q = (
        np.exp(x.astype(np.float64)) / np.exp(x.astype(np.float64)).sum(1)[:, None] for x in (a, b)
    )
    expected = (p * np.log(p / q)).sum(1).mean()
    assert _core.mean_divergence(a, b) == pytest.approx(expected, rel=1e-12)
    assert _core.mean_divergence(a, a) == 0
    assert np.isnan(_core.mean_divergence(a, np.full_like(b, np.nan)))


# ---- the choice ---------------------------------------------------------------------------------


def chosen(name: str, weights, *, threads: int = 2, chunks: int = 2):
    spec = SPECS[name]()
    text = random_tokens(spec, 512 * chunks, seed=2).reshape(chunks, 512)
    return spec, choose(spec, pack(weights, "q8"), list(text), threads=threads)


def measured(name: str, weights) -> list[list[dict[str, tuple[float, float]]]]:
    """By layer, KV head and format: (weights, output) of the worst query head."""
    spec = SPECS[name]()
    run = _core.Calibrator(asdict(spec), pack(weights, "q8"), threads=2)
    for chunk in random_tokens(spec, 1024, seed=2).reshape(2, 512):
        run.last_logits(chunk, 64)
    out = []
    for layer, (queries, exact, divergence, error) in zip(
        spec.layers, run.kv_errors(), strict=True
    ):
        group = layer.attention.heads // layer.attention.kv_heads
        weights_kl, output = divergence / queries, np.sqrt(error / exact[:, None])
        heads = range(0, layer.attention.heads, group)
        out.append(
            [
                {
                    form: (weights_kl[h : h + group, f].max(), output[h : h + group, f].max())
                    for f, form in enumerate(FORMS)
                }
                for h in heads
            ]
        )
    return out


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", ["llama", "qwen3", "everything"])
def test_no_choice_breaks_the_stated_error(name: str, seed: int) -> None:
    weights = random_weights(SPECS[name](), seed=seed)
    spec, choice = chosen(name, weights)
    heads = [h for row in measured(name, weights) for h in row]
    forms = [form for row in read_formats(choice.formats, spec) for form in row]
    for errors, form in zip(heads, forms, strict=True):
        if form != "kv8":
            assert errors[form][0] <= WEIGHTS and errors[form][1] <= OUTPUT
    assert choice.logits <= LOGITS or set(forms) == {"kv8"}
    assert choice.weights == pytest.approx(
        max(e[f][0] for e, f in zip(heads, forms, strict=True)), rel=1e-9
    )
    assert choice.tokens == 1024


def outliers(weights, layer: int, kv_head: int, a, size: float):
    """The same model: one rope pair of one head's keys `size` times as large, of its queries as
    much smaller."""
    out = {name: value.copy() for name, value in weights.items()}
    group, half = a.heads // a.kv_heads, a.head_dim // 2
    for channel in (1, 1 + half):
        out[f"layers.{layer}.k"][kv_head * a.head_dim + channel] *= size
        for head in range(kv_head * group, kv_head * group + group):
            out[f"layers.{layer}.q"][head * a.head_dim + channel] /= size
    return out


@pytest.mark.parametrize(("layer", "kv_head"), [(0, 1), (1, 0)])
def test_keys_with_outliers_get_8_bits(layer: int, kv_head: int) -> None:
    """Six times as large, they leave 4 bits, and they alone; 64 times, 8 bits are too few too."""
    spec = SPECS["llama"]()
    weights = random_weights(spec, seed=1)
    expected = read_formats(chosen("llama", weights)[1].formats, spec)
    expected[layer][kv_head] = "kv8v4"
    mild = outliers(weights, layer, kv_head, spec.layers[layer].attention, 6.0)
    _, choice = chosen("llama", mild)
    assert read_formats(choice.formats, spec) == expected
    assert choice.within
    bad = outliers(weights, layer, kv_head, spec.layers[layer].attention, 64.0)
    _, choice = chosen("llama", bad)
    assert read_formats(choice.formats, spec)[layer][kv_head] == "kv8"
    assert not choice.within and choice.weights > WEIGHTS
    assert "there are no more bits" in kv_choice.describe(choice, spec)


def test_a_model_that_makes_more_of_errors_gets_more_bits() -> None:
    """Its heads are within bounds at kv8v4, but its logits are not."""
    weights = random_weights(SPECS["muse"](), seed=4)
    heads = [h for row in measured("muse", weights) for h in row]
    assert all(h["kv8v4"][0] <= WEIGHTS and h["kv8v4"][1] <= OUTPUT for h in heads)
    _, choice = chosen("muse", weights)
    assert (choice.formats, choice.within) == ("kv8", False)


def test_what_is_not_finite_gets_8_bits() -> None:
    weights = random_weights(SPECS["llama"](), seed=1)
    weights["layers.0.k"][3] = 3e38
    _, choice = chosen("llama", weights)
    assert (choice.formats, choice.within) == ("kv8", False)
    assert json.loads(json.dumps(asdict(choice), allow_nan=False)) == asdict(choice)


@pytest.mark.isa
def test_one_choice_with_any_threads() -> None:
    weights = random_weights(SPECS["everything"](), seed=3)
    _, one = chosen("everything", weights, threads=1)
    _, three = chosen("everything", weights, threads=3)
    assert one == three


def test_large_models_are_measured_with_half_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = random_weights(SPECS["llama"](), seed=1)
    assert chosen("llama", weights, chunks=4)[1].tokens == 2048
    monkeypatch.setattr(kv_choice, "LARGE", 1000)
    assert chosen("llama", weights, chunks=4)[1].tokens == 1024


def test_chunks_come_from_the_whole_text() -> None:
    chunks = [np.arange(n, dtype=np.int32) for n in (512, 255, 512, 300, 512, 512, 512, 80)]
    assert [c.size for c in kv_choice.usable_chunks(chunks)] == [512, 512, 512, 512]
    assert kv_choice.usable_chunks([np.arange(255)]) == []
    numbered = [np.full(300, i, np.int32) for i in range(7)]
    assert [c[0] for c in kv_choice.usable_chunks(numbered)] == [0, 2, 4, 6]
    assert [c[0] for c in kv_choice.usable_chunks(numbered, 2)] == [0, 6]
    assert [c[0] for c in kv_choice.usable_chunks(numbered, 1)] == [0]
    spec = SPECS["llama"]()
    assert choose(spec, pack(random_weights(spec), "q8"), [np.arange(50)], threads=1) is None


# ---- where it is written and said ---------------------------------------------------------------


def test_formats_as_text() -> None:
    spec = SPECS["llama"]()  # two layers of two KV heads
    for text, layers in {
        "kv8": [["kv8", "kv8"], ["kv8", "kv8"]],
        "kv8,kv4": [["kv8", "kv8"], ["kv4", "kv4"]],
        "kv8/kv4,kv8v4": [["kv8", "kv4"], ["kv8v4", "kv8v4"]],
        "kv8/kv4,kv8/kv4": [["kv8", "kv4"], ["kv8", "kv4"]],
    }.items():
        assert read_formats(text, spec) == layers
        assert kv_choice.write_formats(layers) == text
    assert kv_choice.summary("kv8/kv4,kv8v4", spec) == "kv8v4 2/4, kv4 1/4, kv8 1/4"
    assert kv_choice.summary("kv8v4", spec) == "kv8v4"


def test_a_damaged_record_is_refused_by_name() -> None:
    spec = SPECS["llama"]()
    good = asdict(kv_choice.KvChoice("kv8,kv4", 0.1, 0.1, 0.1, True, 9, "0" * 16))
    assert asdict(kv_choice.read_record(good, spec, "f")) == good
    assert kv_choice.read_record(None, spec, "f") is None
    for change, what in (
        ({"formats": "kv8,kv4,kv4"}, "kv.formats is for another model: 3 layers"),
        ({"formats": "kv8,kv4/kv4/kv4"}, "3 KV heads in layer 1"),
        ({"formats": "kv8,kv5"}, "'kv5' in layer 1"),
        ({"formats": "f32"}, "kv.formats is 'f32'"),
        ({"formats": 8}, "formats, weights, output"),
        ({"logits": -0.1}, "kv.logits is -0.1"),
        ({"weights": float("inf")}, "kv.weights is inf"),
        ({"tokens": True}, "are needed"),
        ({"more": 1}, "are needed"),
    ):
        with pytest.raises(CorruptFile, match=what):
            kv_choice.read_record(good | change, spec, "f")
    with pytest.raises(CorruptFile, match="are needed"):
        kv_choice.read_record("kv8", spec, "f")


def test_nano_says_what_was_chosen(capsys: pytest.CaptureFixture) -> None:
    record = musespark.inspect()["kv"]
    with musespark.load(threads=1) as model:
        info = model.info
        assert info.kv_formats == record["formats"]
        assert f"kv auto: {record['says']}" in info.notes
        assert model.generate("1", max_new_tokens=1).kv == info.kv
        assert model.chat("Hi", max_new_tokens=1).kv == info.kv
        assert info.kv in str(info)
    with musespark.load(threads=1, kv="kv8v4") as model:
        assert (model.info.kv, model.info.kv_formats) == ("kv8v4", "kv8v4")
        assert not any(note.startswith("kv auto") for note in model.info.notes)
        assert model.generate("1", max_new_tokens=1).kv == "kv8v4"
    from musespark.cli import main

    assert main(["inspect"]) == 0
    assert record["says"] in capsys.readouterr().out


def test_a_file_without_a_record_means_kv8v4(tmp_path: Path) -> None:
    path = tmp_path / "nano.safetensors"
    assert pack_into(NANO, path, quantize="q8", progress=False)["kv"] is None
    with musespark.load(path, threads=1) as model:
        assert model.info.kv_formats == "kv8v4"
        assert any("nothing was measured" in note for note in model.info.notes)


def test_conversion_measures_with_the_calibration_it_is_given(tmp_path: Path) -> None:
    own = musespark.inspect()["kv"]
    text = [[(5 + 11 * i * i) % 2560 for i in range(600)]]
    kv = musespark.convert(
        NANO, tmp_path / "n", quantize="q4", calibration=text, method="importance", progress=False
    )["kv"]
    assert kv["tokens"] == 512 and kv["checksum"] != own["checksum"]
    record = json.loads(json.dumps(kv))
    with musespark.load(tmp_path / "n", threads=1, verify=True) as model:
        assert model.info.kv_formats == record["formats"]


def test_an_old_choice_is_not_taken_for_another_model(tmp_path: Path) -> None:
    """The record is in the header, under its checksum."""
    path = tmp_path / "nano.safetensors"
    path.write_bytes((NANO / "packed" / "nano-q8.safetensors").read_bytes())
    data = path.read_bytes()
    formats = musespark.inspect()["kv"]["formats"].encode()
    assert data.count(formats) == 1
    path.write_bytes(data.replace(formats, formats.replace(b"kv4", b"kv8", 1)))
    with pytest.raises(CorruptFile, match="packed header does not match its checksum"):
        musespark.load(path)


def test_windows_and_the_spec_decide_what_is_seen() -> None:
    """A window of one page: what lies before it cannot count."""
    spec = SPECS["llama"]()
    layers = [replace(x, attention=replace(x.attention, window=8)) for x in spec.layers]
    narrow = replace(spec, layers=layers)
    tokens = random_tokens(spec, 512)
    found = []
    for one in (spec, narrow):
        run = _core.Calibrator(asdict(one), pack(random_weights(one), "f32"), threads=1)
        run.last_logits(tokens, 64)
        found.append(run.kv_errors()[0][2][:, 2].sum())
    assert 0 < found[1] != found[0]
