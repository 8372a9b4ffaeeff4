"""Adapters as a user meets them, on the embedded model: load, switch, sessions, batches, CLI."""

from __future__ import annotations

import asyncio
import gc
import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from tests.python.test_interrupts import strikes

import musespark
from musespark import adapters as adapters_module
from musespark import driver as driver_module
from musespark import engine as engine_module
from musespark import memory
from musespark.cli import main
from musespark.families import MODULES
from musespark.families.tensors import EVERY_NAME
from musespark.sizes import kv_bytes
from musespark.weights import LoraWeights, loading
from support.lora import LoraGolden, lora_config, write_adapter

TEXT = "Once upon a time"
QUESTION = "What is 23 + 45?"


def nano_adapter(folder: Path, model: musespark.Model, seed: int, parts=("q_proj", "up_proj")):
    """A random adapter on the embedded model's matrices of these names."""
    spec = model._weights.spec
    family = next(f for f in MODULES if f.name == model.info.family)
    rng, tensors = np.random.default_rng(seed), {}
    for part in family.tensors(spec, [EVERY_NAME]).sources.values():
        module = part.name.removesuffix(".weight")
        if not module.endswith(parts) or ".layers." not in module:
            continue
        outputs, inputs = part.stored
        a = rng.standard_normal((4, inputs)) * inputs**-0.5
        b = rng.standard_normal((outputs, 4)) * 0.8
        tensors[f"base_model.model.{module}.lora_A.weight"] = a.astype(np.float32)
        tensors[f"base_model.model.{module}.lora_B.weight"] = b.astype(np.float32)
    return write_adapter(folder, lora_config(), tensors)


@pytest.fixture(scope="module")
def model():
    with musespark.load(context=512, threads=1) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def folders(model, tmp_path_factory) -> list[Path]:
    base = tmp_path_factory.mktemp("adapters")
    return [nano_adapter(base / f"number{i}", model, i) for i in (1, 2)]


@pytest.fixture
def loaded(model, folders):
    with model.load_adapter(folders[0]) as one, model.load_adapter(folders[1], "other") as two:
        yield one, two


def test_an_adapter_says_what_it_is(model, loaded, folders) -> None:
    one, two = loaded
    assert (one.name, two.name, one.path) == ("number1", "other", str(folders[0]))
    assert one.rank == 4 and one.targets == ("q", "up") and not one.closed
    assert model._engine.stats()["adapter_bytes"] == one.bytes + two.bytes
    assert 4 * one.parameters < one.bytes < 16 * one.parameters
    assert "'other' rank 4" in repr(two)
    assert len(model.info.adapters) == 2
    assert model.info.adapters[0].startswith("number1: rank 4 on q, up; ")
    two.close()
    two.close()
    assert two.closed and len(model.info.adapters) == 1
    assert "number1" in model.info._repr_html_()


def test_an_adapter_names_the_model_it_was_made_for(model, folders, tmp_path) -> None:
    """One made for another model of the same shapes was taken without a word."""
    other = shutil.copytree(folders[0], tmp_path / "number1")
    config = json.loads((other / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "org/another-model"
    (other / "adapter_config.json").write_text(json.dumps(config))
    with model.load_adapter(folders[0]), model.load_adapter(other, "b") as adapter:
        assert adapter.base == "org/another-model"
        assert model.info.adapters[1].endswith("; made for 'org/another-model'")
        with pytest.raises(musespark.InvalidRequest, match=r"'number1'.*give another with name="):
            model.load_adapter(other)


def test_requests_choose_and_a_batch_mixes(model, loaded) -> None:
    one, two = loaded
    options = {"max_new_tokens": 24, "temperature": 0.8, "seed": 5}
    chosen = [one, None, "other", two, None, "number1"]
    alone = [model.generate(TEXT, adapter=a, **options).tokens for a in chosen]
    assert alone[0] == alone[5] and alone[2] == alone[3] and alone[1] == alone[4]
    assert len({alone[0], alone[1], alone[2]}) == 3
    together = model.generate_batch([TEXT] * 6, adapter=chosen, **options)
    assert [r.tokens for r in together] == alone
    assert [r.tokens for r in model.generate_batch([TEXT] * 2, adapter=one, **options)] == [
        alone[0]
    ] * 2
    streamed = model.generate(TEXT, adapter=two, stream=True, **options)
    list(streamed)
    assert streamed.result.tokens == alone[2]
    again = asyncio.run(model.agenerate(TEXT, adapter=one, **options))
    assert again.tokens == alone[0]


def test_chat_scores_and_logits(model, loaded) -> None:
    one, _ = loaded
    more = {"max_new_tokens": 30, "logprobs": 1}
    plain = model.chat(QUESTION, **more)
    adapted = model.chat(QUESTION, adapter=one, **more)
    assert adapted.logprobs != plain.logprobs
    both = model.chat_batch([QUESTION, QUESTION], adapter=[None, one], **more)
    assert [r.tokens for r in both] == [plain.tokens, adapted.tokens]
    assert [r.logprobs for r in both] == [plain.logprobs, adapted.logprobs]
    ids = model.tokenizer.encode(TEXT)
    assert np.abs(model.logits(ids, adapter=one) - model.logits(ids)).max() > 0.1
    score, rows = model.score(ids, adapter="number1"), model.logits(ids, adapter=one)
    rows = rows.astype(np.float64)
    wanted = rows - np.log(np.exp(rows - rows.max(1, keepdims=True)).sum(1, keepdims=True))
    wanted -= rows.max(1, keepdims=True)
    assert np.abs(score[1:] - wanted[np.arange(len(ids) - 1), ids[1:]]).max() < 1e-4


def test_a_session_has_one_adapter(model, loaded) -> None:
    one, two = loaded
    session = model.session(adapter=one)
    session.chat(QUESTION, max_new_tokens=20)
    second = session.chat("And 2 + 2?", max_new_tokens=20)
    assert second.usage.cached_tokens > 0
    fresh = model.chat(session.messages[:-1], max_new_tokens=20, adapter=one)
    assert fresh.tokens == second.tokens
    other = session.fork()
    third = other.chat("Why?", max_new_tokens=20)
    assert third.usage.cached_tokens > 0
    assert third.tokens == model.chat(other.messages[:-1], max_new_tokens=20, adapter=one).tokens
    with pytest.raises(musespark.InvalidRequest, match="a session has one for all its turns"):
        session.chat("Now?", adapter=two)
    one.close()
    with pytest.raises(musespark.InvalidRequest, match="'number1' is closed"):
        session.chat("Now?")
    assert len(session.messages) == 4
    with pytest.raises(musespark.InvalidRequest, match="'number1' is closed"):
        model.session(adapter=one)


def test_what_is_no_adapter_of_this_model(model, loaded, folders) -> None:
    one, _ = loaded
    for wrong in ("number3", 5, folders[0], b"other", True):
        with pytest.raises(musespark.InvalidRequest, match=r"load_adapter gave \('number1', 'oth"):
            model.generate(TEXT, adapter=wrong)
    with pytest.raises(musespark.InvalidRequest, match="got 2 of them, allowed is one or 3"):
        model.generate_batch([TEXT] * 3, adapter=[one, None])
    with pytest.raises(musespark.InvalidRequest, match="an adapter of this model has"):
        model.load_adapter(folders[1], "number1")
    for name in ("", 5, "x" * 201):
        with pytest.raises(musespark.InvalidRequest, match="name: got"):
            model.load_adapter(folders[1], name)
    with (
        musespark.load(context=64, threads=1) as another,
        pytest.raises(musespark.InvalidRequest, match=r"Adapter 'number1'.*none is loaded"),
    ):
        another.generate(TEXT, adapter=one)
    one.close()
    with model.load_adapter(folders[1], "number1") as again:  # the name is free
        assert again.path == str(folders[1])


def test_closed_while_a_request_runs(model, folders) -> None:
    adapter = model.load_adapter(folders[0])
    whole = model.generate(TEXT, adapter=adapter, max_new_tokens=200).tokens
    stream = model.generate(TEXT, adapter=adapter, max_new_tokens=200, stream=True)
    next(stream)
    adapter.close()
    list(stream)
    assert stream.result.tokens == whole
    with pytest.raises(musespark.InvalidRequest, match="is closed"):
        model.generate(TEXT, adapter=adapter)


def test_the_model_goes_first(folders) -> None:
    model = musespark.load(context=64, threads=1)
    adapter = model.load_adapter(folders[0])
    model.close()
    assert adapter.closed
    adapter.close()
    with pytest.raises(musespark.Error, match="closed"):
        model.load_adapter(folders[1])


def test_an_interrupted_load_leaves_nothing(model, folders) -> None:
    functions = [
        adapters_module.Adapter.__init__,
        adapters_module.Adapters.add,
        adapters_module.Adapters._claim,
        adapters_module.Adapters.load,
        engine_module.Engine.add_adapter,
        driver_module.Driver.take,
        driver_module.note_id,
    ]
    made: list = []
    for error in strikes(functions, lambda: made.append(model.load_adapter(folders[0]))):
        del error
        held = len(model.info.adapters)
        assert model._engine.stats()["adapters"] == held <= 1
        for adapter in model._adapters._open():
            adapter.close()
    assert len(made) == 1


def test_threads_load_and_use_adapters(model, folders) -> None:
    wanted = []
    for folder in folders:
        with model.load_adapter(folder) as adapter:
            wanted.append(model.generate(TEXT, adapter=adapter, max_new_tokens=16).tokens)
    wrong: list = []

    def use(index: int) -> None:
        for turn in range(4):
            with model.load_adapter(folders[index % 2], f"{index} {turn}") as adapter:
                got = model.generate(TEXT, adapter=adapter, max_new_tokens=16).tokens
            if got != wanted[index % 2]:
                wrong.append((index, turn))

    threads = [threading.Thread(target=use, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and not model.info.adapters


# ---- load(adapter=) and the command line --------------------------------------------------------


def test_an_adapter_that_is_closed_meanwhile_is_not_the_model_alone(model, folders) -> None:
    """Another thread closes it while a request asks for its id; None would be the base model."""

    class Closing(adapters_module.Adapter):
        asked = 0

        @property
        def id(self) -> int | None:
            self.asked += 1
            if self.asked > 1:
                self.close()
            return super().id

    adapter = model.load_adapter(folders[0])
    adapter.__class__ = Closing
    assert model._adapters.id_of(adapter) is not None
    with pytest.raises(musespark.InvalidRequest, match="is closed"):
        model._adapters.id_of(adapter)


def test_requests_do_not_wait_for_an_adapter_that_is_taken_in(
    model, loaded, folders, monkeypatch
) -> None:
    packing, go_on = threading.Event(), threading.Event()
    tensors = LoraWeights.tensors

    def slowly(weights: LoraWeights):
        packing.set()
        assert go_on.wait(30)
        return tensors(weights)

    monkeypatch.setattr(LoraWeights, "tensors", slowly)
    loading = threading.Thread(target=lambda: model.load_adapter(folders[0], "third").close())
    loading.start()
    try:
        assert packing.wait(30)
        asked = threading.Thread(target=lambda: model._adapters.id_of("other"), daemon=True)
        asked.start()
        asked.join(5)
        assert not asked.is_alive()
        with pytest.raises(musespark.InvalidRequest, match="'third', which an adapter of this"):
            model.load_adapter(folders[1], "third")
        with pytest.raises(musespark.InvalidRequest, match="got 'third'"):
            model._adapters.id_of("third")
    finally:
        go_on.set()
        loading.join(30)


def test_load_with_an_adapter_on_packed_weights(model, folders) -> None:
    """Beside the packed matrices, for every request: what a request with it gives."""
    with model.load_adapter(folders[0]) as adapter:
        wanted = model.generate(TEXT, adapter=adapter, max_new_tokens=24).tokens
    with musespark.load(context=512, threads=1, adapter=folders[0]) as own:
        assert own.info.weight_formats == model.info.weight_formats
        assert own.info.adapters == ("number1: rank 4 on q, up; for every request",)
        assert own.generate(TEXT, max_new_tokens=24).tokens == wanted
        with pytest.raises(musespark.InvalidRequest, match="was loaded with the adapter"):
            own.load_adapter(folders[1])


def test_load_with_an_adapter_merges_into_floats(folders, own_cache) -> None:
    settings = {"context": 512, "threads": 1, "quantize": "none", "kv": "f32"}
    with musespark.load(**settings) as plain, plain.load_adapter(folders[0]) as adapter:
        ids = plain.tokenizer.encode(TEXT)
        beside = plain.logits(ids, adapter=adapter)
        without = plain.logits(ids)
    with musespark.load(adapter=folders[0], **settings) as merged:
        assert merged.info.adapters[0].endswith("merged into the weights")
        assert merged.info.weight_bytes == sum(merged.info.weight_formats.values())
        found = merged.logits(ids)
        with pytest.raises(musespark.InvalidRequest, match="was loaded with the adapter"):
            merged.load_adapter(folders[1])
    assert np.abs(found - beside).max() < 1e-4 * np.ptp(beside)
    assert np.abs(found - without).max() > 0.01 * np.ptp(beside)


def beside(spec, recipe: str, context: int) -> int:
    """Bytes beside weights, keys and values."""
    need = memory.Needs(spec, recipe)
    return need.process + need.step(context)


def test_an_adapter_of_all_requests_is_counted(model, folders, monkeypatch) -> None:
    """Its bytes were free for keys and values too."""
    with model.load_adapter(folders[0]) as adapter:
        taken = adapter.bytes
    spec = model._weights.spec
    fixed = model.info.weight_bytes + beside(spec, "q8", 1000)
    needed = fixed + kv_bytes(spec, model.info.kv_formats, 1000) + taken
    monkeypatch.setenv("MUSESPARK_MEMORY", str(needed))
    musespark.load(context=1000, threads=1, adapter=folders[0]).close()
    gc.collect()
    assert not [one for one in gc.get_objects() if isinstance(one, LoraWeights)]
    monkeypatch.setenv("MUSESPARK_MEMORY", str(needed - 1))
    with pytest.raises(musespark.MemoryBudgetExceeded, match=r"the adapter [\d.]+ .iB, the rest"):
        musespark.load(context=1000, threads=1, adapter=folders[0])
    musespark.load(context=1000, threads=1).close()


def test_weights_that_an_adapter_made_larger_are_counted(folders, own_cache, monkeypatch) -> None:
    settings = {"context": 512, "threads": 1, "quantize": "none", "kv": "f32"}
    with musespark.load(**settings) as plain, musespark.load(adapter=folders[0], **settings) as one:
        spec, larger = plain._weights.spec, one.info.weight_bytes
        assert larger > plain.info.weight_bytes  # bfloat16 became float32
    needed = larger + beside(spec, "none", 512) + kv_bytes(spec, "f32", 512)
    for count, fits in ((needed, True), (needed - 1, False)):
        monkeypatch.setenv("MUSESPARK_MEMORY", str(count))
        if fits:
            musespark.load(adapter=folders[0], **settings).close()
        else:
            with pytest.raises(musespark.MemoryBudgetExceeded):
                musespark.load(adapter=folders[0], **settings)


def test_what_does_not_fit_with_its_adapter_is_refused_early(folders, monkeypatch) -> None:
    """Before the model is packed: what the adapter's file has stands in for its bytes."""
    with musespark.load(context=512, threads=1) as model:
        spec, weights = model._weights.spec, model.info.weight_bytes
    monkeypatch.setenv(
        "MUSESPARK_MEMORY",
        str(weights + beside(spec, "q8", 512) + kv_bytes(spec, "kv4", 512) + 10_000),
    )
    monkeypatch.setattr(loading, "EMBEDDED_PACKED", Path("nowhere"))
    monkeypatch.setattr(loading, "_through_cache", lambda *_: pytest.fail("it was packed"))
    with pytest.raises(musespark.MemoryBudgetExceeded, match="the adapter"):
        musespark.load(context=512, threads=1, adapter=folders[0])


def test_an_adapter_of_another_model_is_refused(tmp_path) -> None:
    golden = LoraGolden.of("lora_llama")
    folder = golden.adapter_folder(tmp_path / "a")
    with pytest.raises(musespark.CorruptFile, match=r"lora_A.weight' has shape \[4, 72\]"):
        musespark.load(adapter=folder)
    (folder / "adapter_config.json").write_text(json.dumps(golden.config | {"use_dora": True}))
    with pytest.raises(musespark.UnsupportedModel, match="use_dora is True"):
        musespark.load("no/such-model-anywhere", adapter=folder)
    with pytest.raises(musespark.InvalidRequest, match="allowed is the path"):
        musespark.load(adapter=3)


def test_the_command_line(model, folders, capsys, monkeypatch) -> None:
    with model.load_adapter(folders[0]) as adapter:
        wanted = model.generate(TEXT, adapter=adapter, max_new_tokens=12).text
    fast = ["--context", "256", "--threads", "1", "--adapter", str(folders[0])]
    assert main(["generate", TEXT, "-n", "12", *fast]) == 0
    assert capsys.readouterr().out == f"{TEXT}{wanted}\n"
    assert main(["generate", TEXT, "--adapter", "nowhere"]) == 1
    assert "there is no adapter_config.json" in capsys.readouterr().err
