"""Calibrated conversion: what is summed up, what is refused, what the file says."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

import musespark
from musespark import _core
from musespark.errors import CorruptFile, InvalidRequest, UnsupportedModel
from musespark.families.spec import ModelSpec
from musespark.reference import forward
from musespark.reference.packing import proxy_loss
from musespark.weights import Calibration, calibration, convert, converting, inspect, open_model
from musespark.weights.calibration import input_of
from support import bert_models, tiny_models
from support.model_folder import CASES, checkpoint_weights, write_folder
from support.packing import unpacked
from support.run_engine import pack_weights

pytestmark = pytest.mark.usefixtures("own_cache")
NANO = Path(musespark.__file__).parent / "nano"
STORY = "The red fox ran up the hill and saw 12 birds. It said: hello, birds, who are you? " * 40
METHODS = ("importance", "error-feedback")


# ---- what is summed up --------------------------------------------------------------------------


class Watch:
    """The reference forward pass, with every input of a matrix written down."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, spec, weights) -> None:
        self.inputs: dict[str, list[np.ndarray]] = {}
        self.weights = {name: value.astype(np.float64) for name, value in weights.items()}
        product, norm, spec_of = forward.product, forward.norm, spec

        def watched_product(x, w, name, bias=False):
            self.layer += name == "q"
            self.inputs.setdefault(f"layers.{self.layer}.{name}", []).append(x)
            return product(x, w, name, bias)

        def watched_norm(x, kind, weight, bias=0.0):
            y = norm(x, kind, weight, bias)
            if weight is self.weights.get("final_norm"):
                self.inputs.setdefault("head", []).append(y)
            return y

        monkeypatch.setattr(forward, "product", watched_product)
        monkeypatch.setattr(forward, "norm", watched_norm)
        self.spec = spec_of

    def run(self, tokens: np.ndarray) -> None:
        self.layer = -1
        forward.logits(self.spec, self.weights, tokens)


def wide() -> ModelSpec:
    """More columns than products are made of at a time."""
    spec = tiny_models.llama()
    first = spec.layers[0]
    return replace(spec, layers=[replace(first, mlp=replace(first.mlp, intermediate=700))])


SPECS = tiny_models.SPECS | {"wide": wide}


@pytest.mark.parametrize("name", sorted(SPECS))
def test_sums_are_of_what_the_matrices_read(name: str, monkeypatch) -> None:
    spec = SPECS[name]()
    weights = tiny_models.random_weights(spec)
    watch = Watch(monkeypatch, spec, weights)
    chunks = [tiny_models.random_tokens(spec, count, seed=count) for count in (90, 17)]
    for chunk in chunks:
        watch.run(chunk)
    found = {}
    for threads in (1, 2):
        core = _core.Calibrator(asdict(spec), pack_weights(weights), threads=threads)
        keys = {n: input_of(n, spec) for n, w in weights.items() if w.ndim == 2}
        wanted = {k: weights[n].shape[1] for n, k in keys.items() if k is not None}
        for key, cols in wanted.items():
            core.want(*key, cols, products=True)
        for chunk in chunks:
            core.run(np.asarray(chunk, np.int32))
        found[threads] = {key: core.take(*key) for key in wanted}
    checked = 0
    for matrix, key in keys.items():
        seen = watch.inputs.get("head" if matrix == "embed" else matrix)
        if key is None or seen is None:
            continue
        rows, squares, products = found[1][key]
        x = np.concatenate(seen)
        size = np.abs(x).max() ** 2 * len(x)
        assert rows == len(x), matrix
        np.testing.assert_allclose(squares, (x * x).sum(0), atol=2e-5 * size, err_msg=matrix)
        np.testing.assert_allclose(np.triu(products), np.triu(x.T @ x), atol=2e-5 * size)
        assert np.array_equal(products, found[2][key][2]), "threads"
        checked += 1
    assert checked >= 6 * len(spec.layers)


def test_every_matrix_of_every_layer_has_an_input() -> None:
    for make in tiny_models.SPECS.values():
        spec = make()
        for name, weight in tiny_models.random_weights(spec).items():
            looked_up = name == "embed" and not spec.tied_head
            if weight.ndim == 2:
                known = input_of(name, spec) is not None
                assert known == (not looked_up and not name.endswith("router")), name


def test_an_input_of_other_columns_and_one_that_nobody_wants() -> None:
    spec = tiny_models.llama()
    core = _core.Calibrator(asdict(spec), pack_weights(tiny_models.random_weights(spec)), threads=1)
    core.want("attn", 0, 0, 7, products=False)
    with pytest.raises(InvalidRequest, match=r"columns, 7"):
        core.run(np.array([1, 2], np.int32))
    with pytest.raises(InvalidRequest, match="not asked for"):
        core.take("o", 0, 0)
    with pytest.raises(InvalidRequest, match="what"):
        core.want("query", 0, 0, 7, products=False)
    with pytest.raises(InvalidRequest, match="tokens"):
        core.run(np.empty(0, np.int32))


# ---- conversion ---------------------------------------------------------------------------------


def chunks_of(vocab: int, tokens: int, seed: int = 0) -> Calibration:
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, vocab, tokens).astype(np.int32)
    return Calibration("error-feedback", tuple(np.split(ids, range(200, tokens, 200))))


def calibrated(source: Path, target: Path, given: Calibration, quantize: str = "q4", **more):
    return convert(
        source, target, quantize=quantize, method=given.method, calibrate=lambda *_: given, **more
    )


def test_the_outputs_of_every_matrix_move_less(folder: Path, tmp_path: Path) -> None:
    given = chunks_of(99, 2000)
    exact = open_model(folder, quantize="none")
    weights = unpacked(exact)
    core = _core.Calibrator(asdict(exact.spec), dict(exact.tensors), threads=1)
    keys = {n: input_of(n, exact.spec) for n, w in weights.items() if w.ndim == 2}
    keys = {n: key for n, key in keys.items() if key is not None}
    for name, key in keys.items():
        core.want(*key, weights[name].shape[1], products=True)
    for chunk in given.chunks:
        core.run(chunk)
    products = {key: core.take(*key)[2] for key in dict.fromkeys(keys.values())}
    for quantize in ("q4", "q8"):
        convert(folder, tmp_path / "plain", quantize=quantize)
        calibrated(folder, tmp_path / "fed", given, quantize)
        plain, fed = (unpacked(open_model(tmp_path / n)) for n in ("plain", "fed"))
        for name, key in keys.items():
            loss = [proxy_loss(weights[name], m[name], products[key]) for m in (fed, plain)]
            assert loss[0] < 0.95 * loss[1], (quantize, name, loss)
        assert (
            open_model(tmp_path / "fed").info["formats"]
            == (open_model(tmp_path / "plain").info["formats"])
        )


def test_same_bytes_again_and_in_several_passes(folder: Path, tmp_path, monkeypatch) -> None:
    given = chunks_of(99, 600)
    calibrated(folder, tmp_path / "a", given)
    calibrated(folder, tmp_path / "b", given)
    monkeypatch.setattr(calibration, "PASS_BYTES", 1)
    passes = []
    calibrated(folder, tmp_path / "c", given, progress=lambda *said: passes.append(said[2]))
    assert sum("chunk 0 of 3" in said for said in passes) > 4
    first = (tmp_path / "a").read_bytes()
    assert first == (tmp_path / "b").read_bytes() == (tmp_path / "c").read_bytes()
    calibrated(folder, tmp_path / "d", chunks_of(99, 600, seed=1))
    assert first != (tmp_path / "d").read_bytes()


@pytest.mark.parametrize("method", METHODS)
def test_the_file_says_how_it_was_made(folder: Path, tmp_path: Path, method: str) -> None:
    given = Calibration(method, chunks_of(99, 400).chunks)
    info = calibrated(folder, tmp_path / "m", given)
    said = {"method": method, "tokens": 400, "checksum": given.record()["checksum"]}
    assert info["calibration"] == said == inspect(tmp_path / "m", verify=True)["calibration"]
    assert inspect(folder)["calibration"] is None
    other = Calibration(method, chunks_of(99, 400, seed=2).chunks)
    assert other.record()["checksum"] != said["checksum"]
    cut = Calibration(method, (np.concatenate(given.chunks),))
    assert cut.record()["checksum"] != said["checksum"], "where chunks begin counts"


@pytest.mark.parametrize("said", [7, {"method": "x"}, {"method": 1, "tokens": 1, "checksum": ""}])
def test_a_file_that_says_nonsense_is_corrupt(folder: Path, tmp_path, monkeypatch, said) -> None:
    monkeypatch.setattr(Calibration, "record", lambda self: said)
    with pytest.raises(CorruptFile, match="calibration"):
        calibrated(folder, tmp_path / "m", chunks_of(99, 400))


def test_an_expert_that_saw_too_little_is_packed_plainly(tmp_path: Path) -> None:
    case = CASES["qwen3_moe_plain"]
    source = write_folder(tmp_path / "moe", case.config, checkpoint_weights(case, 11))
    vocab = case.config["vocab_size"]
    few = Calibration("importance", (np.arange(300, dtype=np.int32) % 3,))
    info = calibrated(source, tmp_path / "few", few)
    assert any("packed without calibration" in note for note in info["notes"]), info["notes"]
    enough = Calibration("importance", chunks_of(vocab, 4000).chunks)
    info = calibrated(source, tmp_path / "enough", enough)
    assert not any("without calibration" in note for note in info["notes"])
    assert open_model(tmp_path / "enough").info["calibration"]["tokens"] == 4000


@pytest.mark.parametrize("at", ["packing what runs", "chunk 1 of", "packing m"])
def test_an_interrupt_leaves_nothing(folder: Path, tmp_path: Path, at: str) -> None:
    def interrupt(done: int, total: int, label: str) -> None:
        if at in label and (done > total // 2 or "chunk" in at):
            raise KeyboardInterrupt

    target = tmp_path / "out" / "m"
    target.parent.mkdir()
    with pytest.raises(KeyboardInterrupt):
        calibrated(folder, target, chunks_of(99, 400), progress=interrupt)
    assert list(target.parent.iterdir()) == []


@pytest.mark.parametrize("what_runs", ["half", "whole"])
def test_what_a_killed_conversion_left_is_removed(
    folder: Path, tmp_path: Path, what_runs: str
) -> None:
    """Also where the file of the model that runs was written, and not opened yet: it once had a
    name that nobody cleaned up."""
    target, given = tmp_path / "out" / "m", chunks_of(99, 400)
    target.parent.mkdir()
    child = os.fork()
    if child == 0:
        try:
            if what_runs == "whole":
                converting.open_packed = lambda _: os._exit(9)
                calibrated(folder, target, given)
            calibrated(folder, target, given, progress=lambda done, *_: done and os._exit(9))
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert list(target.parent.iterdir()), "it left nothing"
    calibrated(folder, target, given)
    assert list(target.parent.iterdir()) == [target]


def test_inputs_that_are_not_finite(folder: Path, tmp_path: Path) -> None:
    huge = checkpoint_weights(CASES["llama_plain"], 11)
    huge["model.layers.0.mlp.up_proj.weight"] = np.full_like(
        huge["model.layers.0.mlp.up_proj.weight"], 3e38
    )
    source = write_folder(tmp_path / "huge", CASES["llama_plain"].config, huge)
    vocab = CASES["llama_plain"].config["vocab_size"]
    with pytest.raises(InvalidRequest, match="down in layer 0 are not finite"):
        calibrated(source, tmp_path / "m", chunks_of(vocab, 400))
    assert not (tmp_path / "m").exists()


# ---- the public function ------------------------------------------------------------------------


def test_text_calibrates_nano(tmp_path: Path, capsys) -> None:
    text = tmp_path / "text.txt"
    text.write_text(STORY)
    target = tmp_path / "m.safetensors"
    info = musespark.convert(NANO, target, calibration=str(text), progress=False)
    again = musespark.convert(NANO, tmp_path / "n", calibration=[STORY], method=METHODS[1])
    assert info["calibration"] == again["calibration"]
    assert info["calibration"]["method"] == "error-feedback"
    assert target.read_bytes() == (tmp_path / "n").read_bytes()
    with musespark.load(target) as model:
        assert model.generate("The red", max_new_tokens=4).tokens
    from musespark.cli import main

    assert main(["inspect", str(target)]) == 0
    assert "error-feedback" in capsys.readouterr().out
    options = ["--calibration", str(text), "--method", "importance", "--quantize", "q4"]
    assert main(["convert", str(NANO), str(tmp_path / "o"), *options]) == 0
    assert inspect(tmp_path / "o")["calibration"]["method"] == "importance"


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ([], "is empty"),
        ([""], "no tokens"),
        ([[]], "no tokens"),
        ("no/such/file.txt", "there is no file"),
        (b"bytes", "allowed is"),
        (3, "allowed is"),
        ([STORY, [1, 2]], "mixes"),
        ([[1, 2560]], "token 2560 is not of this vocabulary, 0 to 2559"),
        ([[1, -1]], "token -1"),
        ([[1, float("nan")]], r"calibration\[0\]\[1\]: got nan"),
        ([[True]], "got True"),
        ([np.ones(4)], "allowed is"),
        ([[5] * 300], "at least 512"),
        (["too short"], "needs at least"),
    ],
)
def test_what_cannot_calibrate(tmp_path: Path, given, match: str) -> None:
    with pytest.raises(InvalidRequest, match=match):
        musespark.convert(NANO, tmp_path / "m", calibration=given)
    assert list(tmp_path.iterdir()) in ([], [tmp_path / "cache"])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"method": "importance"}, "no calibration"),
        ({"method": "gptq", "calibration": [STORY]}, "known are importance, error-feedback"),
        ({"quantize": "none", "calibration": [STORY]}, "q4 or q8"),
        ({"quantize": "q8", "calibration": [STORY], "method": "importance"}, "no scale to choose"),
    ],
)
def test_options_that_do_not_go_together(tmp_path: Path, options, match: str) -> None:
    with pytest.raises(InvalidRequest, match=match):
        musespark.convert(NANO, tmp_path / "m", **options)


def test_text_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidRequest, match="not UTF-8"):
        musespark.convert(NANO, tmp_path / "m", calibration=tmp_path / "x")


def test_without_the_extension_feedback_says_so(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "musespark._linalg", None)
    with pytest.raises(InvalidRequest, match="without Eigen"):
        musespark.convert(NANO, tmp_path / "m", calibration=[STORY])
    musespark.convert(NANO, tmp_path / "m", calibration=[STORY], method="importance")
    with open(tmp_path / "m", "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        head = json.loads(json.loads(file.read(size))["__metadata__"]["musespark"])
    assert head["calibration"]["method"] == "importance"


def test_an_encoder_is_refused(tmp_path: Path) -> None:
    name = next(iter(bert_models.CASES))
    source = bert_models.folder_of(tmp_path / "bert", name, bert_models.SEEDS[0])
    with pytest.raises(UnsupportedModel, match="embedding model"):
        musespark.convert(source, tmp_path / "m", calibration=[STORY])
