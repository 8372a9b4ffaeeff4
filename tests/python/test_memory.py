"""What a model needs and what fits: the figures before loading are those after loading."""

from __future__ import annotations

import dataclasses
import json
from contextlib import closing

import pytest

import musespark
from musespark import _core, machine
from musespark.cli import main
from musespark.engine import default_threads
from musespark.errors import InvalidRequest, MemoryBudgetExceeded, UnsupportedModel
from musespark.families import family_for
from musespark.memory import Needs
from musespark.sizes import kv_bytes
from musespark.weights import convert, hub, loading, look, open_model
from musespark.weights.hubheaders import remote_checkpoint
from musespark.weights.hubids import HubId
from musespark.weights.licence import licence_of
from support import bert_models, tiny_models
from support.fake_hub import etag_of
from support.hub_cases import CASE, model_files
from support.model_folder import CASES, checkpoint_weights, safetensors_bytes, write_folder

pytest_plugins = ("support.hub_fixtures",)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MUSESPARK_CACHE", str(tmp_path / "cache"))
    return write_folder(tmp_path / "model", CASE.config, checkpoint_weights(CASE, 1))


@pytest.fixture
def free(monkeypatch):
    """Sets what is free."""
    return lambda count: monkeypatch.setenv("MUSESPARK_MEMORY", str(count))


# ---- figures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("quantize", ["q4", "q8", "none"])
def test_weights_are_estimated_to_the_byte(folder, tmp_path, quantize):
    wanted = look(folder).weights[quantize]
    info = convert(folder, tmp_path / "packed.safetensors", quantize=quantize)
    assert wanted == info["bytes"]
    assert look(tmp_path / "packed.safetensors").weights == {quantize: wanted}


def test_keys_and_values_are_the_engines_and_agents_multiply_them():
    with musespark.load(context=1024, threads=1) as model:
        info = model.info
    (need,) = musespark.estimate(context=1024, kv="auto", quantize="q8").needs
    assert need.keys_values == info.kv_bytes_full_context
    assert need.weights == info.weight_bytes
    (four,) = musespark.estimate(context=1024, kv="auto", quantize="q8", agents=4).needs
    with musespark.load(context=1024, threads=1) as model:
        spec = model._weights.spec
    one = kv_bytes(spec, info.kv_formats, 1024, 1)  # one step is not packed, not four
    assert four.keys_values == 3 * one + need.keys_values
    assert four.total == four.weights + four.keys_values + four.working


@pytest.mark.parametrize("name", ["llama", "muse", "everything", "experts"])
@pytest.mark.parametrize("count", [1, 70])
def test_activations_are_what_a_step_takes(name, count):
    spec = tiny_models.SPECS[name]()
    weights = tiny_models.random_weights(spec, seed=3)
    sizes = {"rows": count, "tokens": 1, "sequences": 3, "threads": 2}
    experts = any(layer.mlp.kind == "experts" for layer in spec.layers)
    for recipe in ("f32", "q8"):
        figure = _core.step_memory(dataclasses.asdict(spec), floats=recipe == "f32", **sizes)
        runner = tiny_models.Runner(spec, tiny_models.pack(weights, recipe))
        runner.logits(tiny_models.random_tokens(spec, count))
        held = runner.model.work_bytes()
        assert held == figure["activations"] or (experts and recipe == "q8")
        assert 0.7 * figure["activations"] < held <= figure["activations"]
        assert 2 * runner.model.scratch_bytes(count) == figure["scratch"]
        assert figure["logits"] == 3 * 4 * spec.vocab


def test_recipes_that_read_floats_take_more_in_a_step():
    spec = tiny_models.SPECS["llama"]()
    none, q8 = (Needs(spec, recipe).step(1) for recipe in ("none", "q8"))
    sizes = {"rows": 512, "tokens": 1, "sequences": 1, "threads": default_threads()}
    for found, floats in ((none, True), (q8, False)):
        memory = _core.step_memory(dataclasses.asdict(spec), floats=floats, **sizes)
        assert found == sum(memory.values())
    assert none != q8


def test_tables_of_positions_grow_with_the_context():
    spec = tiny_models.SPECS["llama"]()
    (rope,) = spec.ropes

    def table(tokens, **changed):
        changed = dataclasses.replace(spec, ropes=[dataclasses.replace(rope, **changed)])
        sizes = {"rows": 1, "sequences": 1, "threads": 1, "floats": True}
        return _core.step_memory(dataclasses.asdict(changed), tokens=tokens, **sizes)["ropes"]

    assert table(1) == table(128) == 128 * rope.dim * 4
    assert table(129) == 256 * rope.dim * 4
    factors = [1.0] * (rope.dim // 2)
    longer = {"scaling": "factors", "factors": factors, "short_factors": factors}
    assert table(1000, original_context=256, **longer) == (1024 + 256) * rope.dim * 4


def test_working_memory_knows_of_experts():
    spec = tiny_models.SPECS["experts"]()
    (layer,) = {layer.mlp for layer in spec.layers if layer.mlp.shared_intermediate}
    wide = dataclasses.replace(layer, experts=64, experts_per_token=48, intermediate=4096)
    layers = [
        dataclasses.replace(one, mlp=wide) if one.mlp == layer else one for one in spec.layers
    ]
    wider = dataclasses.replace(spec, layers=layers)
    more = Needs(wider, "q8").step(1) - Needs(spec, "q8").step(1)
    assert more > 512 * 48 * 4096  # the chosen experts' insides, a byte each at least


def test_every_choice_has_a_row_and_auto_is_the_one_load_takes(folder):
    found = musespark.estimate(folder, context=[100, 50])
    assert [(n.quantize, n.kv, n.context) for n in found.needs] == [
        (q, kv, c)
        for q in ("q4", "q8", "none")
        for kv in ("kv8", "kv8v4", "kv4", "f32")
        for c in (50, 100)
    ]
    assert [q for q, *_ in musespark.estimate(folder, quantize="auto", kv="auto").largest] == ["q8"]


def test_the_largest_context_is_the_last_that_fits(folder, free):
    spec = family_for(CASE.config).spec(CASE.config)
    least = musespark.estimate(folder, quantize="q8", kv="f32", context=200).needs[0]
    budget = least.weights + least.working + kv_bytes(spec, "f32", 200)
    free(budget)
    found = musespark.estimate(folder, quantize="q8", kv="f32", context=[64, 200, spec.max_context])
    ((_, _, largest),) = found.largest
    assert 200 <= largest < spec.max_context
    assert kv_bytes(spec, "f32", largest) <= kv_bytes(spec, "f32", 200)
    assert kv_bytes(spec, "f32", largest + 1) > kv_bytes(spec, "f32", 200)
    assert [n.fits for n in found.needs] == [True, True, False]
    assert [n.total <= budget for n in found.needs] == [True, True, False]
    double = musespark.estimate(folder, quantize="q8", kv="f32", agents=2)
    ((_, _, two),) = double.largest
    room = kv_bytes(spec, "f32", 200)
    assert 0 < 2 * kv_bytes(spec, "f32", two) <= room < 2 * kv_bytes(spec, "f32", two + 1)


def test_several_sequences_fit_in_what_load_gives_to_keys_and_values(free):
    free("70M")
    ((_, _, most),) = musespark.estimate(quantize="q8", kv="f32", agents=20).largest
    with musespark.load(quantize="q8", kv="f32", context=64, threads=1) as model:
        limit = model._engine.stats()["kv_bytes_limit"]
        spec = model._weights.spec
    assert 20 * kv_bytes(spec, "f32", most) <= limit < 20 * kv_bytes(spec, "f32", most + 1)


def test_agents_share_the_pages_of_their_prompt():
    settings = {"quantize": "q8", "kv": "kv8", "context": 1000, "agents": 8}
    (whole,) = musespark.estimate(**settings).needs
    (shared,) = musespark.estimate(shared=900, **settings).needs
    with musespark.load(context=1024, threads=1, kv="kv8") as model:
        layers = model._weights.spec.layers
        page = 64 * model.info.kv_bytes_per_token
    full = sum(layer.attention.window == 0 for layer in layers)
    assert 0 < full < len(layers), "each has its own pages of layers with a window"
    assert whole.keys_values - shared.keys_values == 7 * (900 // 64) * page * full // len(layers)
    with pytest.raises(InvalidRequest, match="shared: got 1001, allowed is 0 to 1000"):
        musespark.estimate(shared=1001, **settings)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"context": 10**9}, "context: got 1000000000, allowed is 1 to"),
        ({"context": 0}, "context: got 0"),
        ({"context": [5, True]}, "context: got True"),
        ({"context": []}, "no size"),
        ({"context": 512.0}, r"context: got 512\.0"),
        ({"context": "64"}, "context: got '64'"),
        ({"context": b"@"}, "context: got b'@'"),
        ({"kv": "kv9"}, "kv: got 'kv9'"),
        ({"kv": ["kv8"]}, "kv: got"),
        ({"quantize": "q5"}, "quantize: got 'q5'"),
        ({"agents": 0}, "agents: got 0, allowed is 1 to 4096"),
        ({"agents": 1.5}, "agents: got 1.5"),
    ],
)
def test_wrong_values_name_the_field(options, message):
    with pytest.raises(InvalidRequest, match=message):
        musespark.estimate(**options)


def test_a_packed_file_has_its_own_recipe_alone(folder, tmp_path):
    path = tmp_path / "packed.safetensors"
    convert(folder, path, quantize="q4")
    assert {n.quantize for n in musespark.estimate(path).needs} == {"q4"}
    with pytest.raises(InvalidRequest, match="quantize: got 'q8', the file is packed as 'q4'"):
        musespark.estimate(path, quantize="q8")


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0"])
def test_a_gguf_file_has_a_recipe_of_its_own_and_auto_takes_it(tmp_path, monkeypatch, kind):
    pytest.importorskip("gguf")
    from support import gguf_models

    monkeypatch.setenv("MUSESPARK_CACHE", str(tmp_path / "cache"))
    config = gguf_models.CASES["llama"]
    path = tmp_path / "m.gguf"
    gguf_models.write_gguf(
        path,
        config,
        gguf_models.checkpoint_of(config),
        encode=gguf_models.quantized(kind),
        more=lambda writer: writer.add_license("mit"),
    )
    found = look(path)
    assert found.auto == "gguf" and found.report["licence"] == "mit (general.license)"
    with closing(open_model(path)) as loaded:
        assert loaded.info["bytes"] == found.weights["gguf"]
    estimate = musespark.estimate(path, quantize="auto", context=16)
    assert {need.quantize for need in estimate.needs} == {"gguf"}
    assert "gguf (auto)" in str(estimate)


def test_encoders_keep_no_keys_and_values(tmp_path, monkeypatch):
    monkeypatch.setenv("MUSESPARK_CACHE", str(tmp_path / "cache"))
    folder = bert_models.folder_of(tmp_path / "bert", "plain", 11)
    found = musespark.estimate(folder)
    assert {(need.kv, need.keys_values) for need in found.needs} == {("none", 0)}
    assert {largest for *_, largest in found.largest} == {found.max_context}
    with musespark.load(folder, quantize="none") as model:
        assert "none: an encoder keeps none" in str(model.info)


# ---- what fits is what load does ----------------------------------------------------------------


def test_load_takes_the_context_that_fits_and_says_so(free):
    (need,) = musespark.estimate(context=700, kv="f32", quantize="q8").needs
    free(2 * need.total)  # keys and values may take half of what is free, and what is left
    with musespark.load(kv="f32", threads=1) as model:
        assert model.info.context == 2048
    free(need.total + 2**18)  # load takes it that there are as many merges as tokens
    with musespark.load(kv="f32", threads=1) as model:
        context, notes = model.info.context, model.info.notes
    assert 700 <= context < 800
    assert any(f"context auto: {context:,} of 2,048 tokens fit in" in note for note in notes)


def test_info_says_every_automatic_choice(folder):
    with musespark.load() as model:
        said = [note.split(":")[0] for note in model.info.notes]
    assert {"context auto", "kv auto", "threads auto"} <= set(said)
    chosen = {"context": 128, "kv": "f32", "threads": 1, "quantize": "q8"}
    with musespark.load(**chosen) as model:
        assert not [note for note in model.info.notes if "auto" in note]


def test_what_does_not_fit_says_what_would(free):
    (need,) = musespark.estimate(context=2048, kv="f32", quantize="none").needs
    free(need.total - 1)
    with pytest.raises(MemoryBudgetExceeded) as caught:
        musespark.load(quantize="none", kv="f32", context=2048)
    message = str(caught.value)
    assert "quantize='none', kv='f32' and 2,048 tokens need" in message
    # Each choice it names can be taken as it stands, and holds what it says.
    for recipe, kv, tokens in (("none", "kv8", 2048), ("q8", "kv8", 2048), ("q4", "f32", 2048)):
        assert f"quantize={recipe!r}, kv={kv!r} with up to {tokens:,} tokens" in message
    assert "quantize='none', kv='f32' with up to 1," in message
    with musespark.load(quantize="none", kv="kv8", context=2048, threads=1) as model:
        assert model.info.context == 2048
        model.generate([5] * 2000, max_new_tokens=40)


def test_what_does_not_fit_is_neither_packed_nor_downloaded(fake, tmp_path, free):
    fake.add("org/tiny", model_files())
    free("1M")
    with pytest.raises(MemoryBudgetExceeded, match=r"nothing of this model.* least they can be"):
        musespark.load("org/tiny")
    assert fake.count(part="model.safetensors") == 0
    folder = write_folder(tmp_path / "model", CASE.config, checkpoint_weights(CASE, 1))
    with pytest.raises(MemoryBudgetExceeded) as caught:
        musespark.load(folder)
    assert "least they can be" not in str(caught.value), "what is here is counted to the byte"
    assert not (tmp_path / "packed").exists()


def test_the_least_of_weights_that_are_not_here_is_no_more_than_they_are(folder):
    found = look(folder)
    least = loading.pack.least_nbytes(loading.packed_shapes(found.spec, None))
    assert least["q4"] == found.weights["q4"] and least["q8"] == found.weights["q8"]
    assert 0 < least["none"] <= found.weights["none"]


@pytest.mark.parametrize(
    "text, count",
    [("1000", 1000), ("2K", 2048), ("1.5 GiB", 3 << 29), ("3MB", 3 << 20), ("1T", 1 << 40)],
)
def test_memory_from_the_environment(free, text, count):
    free(text)
    assert machine.available_memory() == count


@pytest.mark.parametrize("text", ["x", "-1", "1e9", "1X", "GiB", "9" * 30])
def test_memory_from_the_environment_that_is_no_size(free, text):
    free(text)
    with pytest.raises(InvalidRequest, match="MUSESPARK_MEMORY is"):
        machine.available_memory()


# ---- how it looks --------------------------------------------------------------------------------


def test_an_estimate_prints_and_renders(folder, free):
    free("64M")
    found = musespark.estimate(folder)
    text, page = str(found), found._repr_html_()
    lines = text.splitlines()
    assert lines[2].split()[:3] == ["quantize", "kv", "weights"]
    assert len({len(line) for line in lines[3:9]}) <= 2
    for part in ("fits up to", "an estimate", "q8", "none", "64.0 MiB are free"):
        assert part in text and part in page
    assert json.loads(json.dumps(found.to_dict()))["needs"][0]["total"] == found.needs[0].total
    hostile = dataclasses.replace(found, source="<script>")
    assert "<script>" not in hostile._repr_html_()


def test_info_prints_and_renders():
    with musespark.load(threads=1, context=256) as model:
        text, page = str(model.info), model.info._repr_html_()
    for part in ("Spark Nano", "4.7 M parameters", "256 tokens", "kv8", "1 threads", "note"):
        assert part in text
        assert part in page
    hostile = dataclasses.replace(model.info, source="<script>", notes=("<b>",))
    assert "<script>" not in hostile._repr_html_() and "<b>" not in hostile._repr_html_()


# ---- inspect, and a hub's model ------------------------------------------------------------------


@pytest.mark.parametrize(
    "files, wanted",
    [
        ({"README.md": "---\nlicense: mit\ntags: [a]\n---\n# x"}, "mit (README.md)"),
        ({"README.md": "---\ntags:\n- a\nlicense:\n- mit\n- x\n---\n"}, "mit, x (README.md)"),
        ({"README.md": "---\nlicense: other\nlicense_name: 'own'\n---\n"}, "own (README.md)"),
        ({"README.md": "license: mit"}, None),
        ({"README.md": "#", "LICENSE": "\n Apache License\n  Version 2.0"}, "apache-2.0 (LICENSE)"),
        ({"LICENSE.txt": "# My Terms\nno"}, "My Terms (LICENSE.txt)"),
        ({"LICENSE": ""}, "empty (LICENSE)"),
        ({}, None),
    ],
)  # fmt: skip
def test_licences(tmp_path, files, wanted):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert licence_of(tmp_path) == wanted


def test_inspect_holds_licence_weights_and_memory(folder):
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    report = musespark.inspect(folder)
    assert report["licence"] == "mit (README.md)"
    assert report["family"] == "llama"
    assert report["weights"] == look(folder).weights
    assert report["memory"].needs == musespark.estimate(folder).needs


@pytest.mark.parametrize("shards", [1, 3])
def test_a_hubs_model_is_inspected_by_its_headers(fake, folder, shards):
    commit = fake.add("org/tiny", model_files(shards=shards), card={"license": "apache-2.0"})
    report = musespark.inspect("org/tiny")
    assert report["source"] == f"org/tiny@{commit}"
    assert report["licence"] == "apache-2.0 (the hub)"
    assert "the weights are on the hub: only their headers were read" in report["notes"]
    asked = [a for a in fake.asked if a.path.endswith("000.safetensors") or "model" in a.path]
    weights = [a for a in asked if a.path.endswith(".safetensors")]
    assert len(weights) == shards and all(a.range for a in weights)
    assert report["weights"] == look(folder).weights
    with closing(open_model("org/tiny")) as loaded:  # and when it is here, as a folder
        assert loaded.info["weights"] == report["weights"]
    fake.asked.clear()
    assert "only their headers" not in str(musespark.inspect("org/tiny")["notes"])
    assert fake.count(part="resolve") == 0


def test_of_two_heads_no_guess_is_made_without_the_weights(fake):
    case = CASES["llama_plain"]
    weights = checkpoint_weights(case, 11)
    embed = weights["model.embed_tokens.weight"]
    data = safetensors_bytes(weights | {"lm_head.weight": embed + 1})
    config = json.dumps(case.config).encode()
    fake.add("org/tied", {"config.json": config, "model.safetensors": data})
    notes = musespark.inspect("org/tied")["notes"]
    assert "whether the head is the embedding is not known without the weights" in notes
    snapshot = hub.snapshot_of(HubId("org/tied"))
    headers = remote_checkpoint(snapshot, ("model.safetensors",))
    assert headers.entry("lm_head.weight").shape == embed.shape
    with pytest.raises(UnsupportedModel, match=r"lm_head\.weight' has to be read"):
        headers.array("lm_head.weight")


def test_what_is_not_known_before_it_is_here_is_said(fake):
    """Of a file that is packed, or may be: it says of itself what it is."""
    data = b"what packed files have" * 10
    fake.add("org/packed", {"a.safetensors": data}, card={"license": "mit"})
    report = musespark.inspect("org/packed")
    assert (report["family"], report["memory"], report["bytes"]) == (None, None, len(data))
    assert report["licence"] == "mit (the hub)"
    assert "not known before it is here" in report["notes"][0]
    with pytest.raises(UnsupportedModel, match="not known before it is here"):
        musespark.estimate("org/packed")
    assert fake.count(part=etag_of(data)) == fake.count(part="resolve") == 0


def test_headers_that_lie_are_refused(fake):
    files = model_files()
    header = json.loads(files["model.safetensors"][8:].split(b"}}", 1)[0] + b"}}")
    name = next(iter(header))
    header[name]["data_offsets"][1] += 4
    text = json.dumps(header).encode()
    for size, message in ((400_000, "tensor '"), (10_000, "the last tensor ends")):
        files["model.safetensors"] = len(text).to_bytes(8, "little") + text + bytes(size)
        fake.add("org/tiny", files)
        with pytest.raises(musespark.CorruptFile, match=rf"org/tiny/model\.safetensors: {message}"):
            musespark.inspect("org/tiny")


# ---- the command line ----------------------------------------------------------------------------


def run(*arguments: object) -> int:
    return main([str(a) for a in arguments])


def test_the_commands_show_the_same(folder, free, capsys):
    free("1G")
    assert run("estimate", folder, "--context", 64, 128, "--agents", 2) == 0
    found = musespark.estimate(folder, context=[64, 128], agents=2)
    assert capsys.readouterr().out == f"{found}\n"
    assert run("estimate", folder, "--kv", "kv8", "--quantize", "q4", "--json") == 0
    plain = json.loads(capsys.readouterr().out)
    assert {(n["quantize"], n["kv"]) for n in plain["needs"]} == {("q4", "kv8")}
    assert run("inspect", folder, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["memory"]["largest"] and "tensors" not in report
    assert run("inspect", folder, "--tensors") == 0
    out = capsys.readouterr().out
    assert "layers.0.q" in out and "fits up to" in out and "licence" in out
    assert run("estimate", folder, "--kv", "kv9") == 1
    assert "kv: got 'kv9'" in capsys.readouterr().err
