"""Adapters in the engine: how long one lives, and what does not fit."""

from __future__ import annotations

import dataclasses
import resource
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from musespark.engine import Request
from musespark.errors import CorruptFile, InvalidRequest, UnsupportedModel
from support import engine_cases as cases
from support import tiny_models
from support.adapted import LORA, add
from support.engine_cases import tokens
from support.lora import adapter_tensors, random_adapter

ADAPTER = Request(tokens=tokens(90), max_new_tokens=20, temperature=1.0, seed=3)


def test_removed_while_in_use_it_serves_to_the_end() -> None:
    with cases.make_engine() as engine:
        adapter = add(engine, LORA)
        assert engine.stats()["adapters"] == 1 and engine.stats()["adapter_bytes"] > 0
        request = dataclasses.replace(ADAPTER, max_new_tokens=400, adapter=adapter, retain=True)
        expected = engine.submit(request).result().tokens
        handle = engine.submit(request)
        queued = [engine.submit(request) for _ in range(3)]
        engine.remove_adapter(adapter)
        assert engine.stats()["adapters"] == 0 and engine.stats()["adapter_bytes"] == 0
        with pytest.raises(InvalidRequest, match=f"adapter: got {adapter}, allowed is an adapter"):
            engine.submit(request)
        assert handle.result().tokens == expected
        assert [h.result().tokens for h in queued] == [expected] * 3
        engine.remove_adapter(adapter)  # nothing: it is gone
        later = add(engine, LORA, seed=2)
        assert later != adapter, "ids are not given out twice"
        # What was retained belongs to the removed adapter: the new one does not take it up.
        other = dataclasses.replace(ADAPTER, adapter=later)
        got = engine.submit(other, base=handle.retained).result()
        assert got.stats["cached_tokens"] == 0
        assert got.tokens == engine.submit(other).result().tokens


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_memory_goes_with_the_last_user() -> None:
    """A large adapter, added and removed twenty times, with a request that runs each time."""

    def used() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    spec = cases.packed("muse_kv8")[0]
    big = adapter_tensors(random_adapter(spec, rank=4000, targets=("q", "o", "gate", "up", "down")))
    size = sum(tensor[3].nbytes for tensor in big.values())
    assert size > 30 << 20
    with cases.make_engine() as engine:
        before = used()
        for _ in range(20):
            ids: list[int] = []
            engine.add_adapter(ids, big)
            handle = engine.submit(Request(tokens=[1], max_new_tokens=1, adapter=ids[0]))
            engine.remove_adapter(ids[0])
            handle.result()
        assert engine.stats()["adapters"] == 0
        assert used() - before < 5 * size, "twenty of them were kept"


def test_adding_and_removing_while_others_run() -> None:
    with cases.make_engine() as engine:
        kept = add(engine, LORA)
        request = dataclasses.replace(ADAPTER, adapter=kept)
        expected = engine.submit(request).result().tokens
        stop, wrong = threading.Event(), []

        def churn() -> None:
            while not stop.is_set():
                adapter = add(engine, LORA, seed=2)
                handle = engine.submit(dataclasses.replace(ADAPTER, adapter=adapter))
                engine.remove_adapter(adapter)
                handle.cancel()

        thread = threading.Thread(target=churn)
        thread.start()
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            wrong += [t for t in [engine.submit(request).result().tokens] if t != expected]
        stop.set()
        thread.join()
        assert not wrong


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"drop": "layers.0.q.lora_b"}, CorruptFile, "'layers.0.q.lora_b' is missing"),
        ({"name": "layers.9.q.lora_a"}, CorruptFile, "'layers.9.q.lora_a' is not one of"),
        ({"name": "layers.0.router.lora_a"}, CorruptFile, "router.lora_a' is not one of"),
        ({"shape": "layers.1.down.lora_a"}, CorruptFile, "is 5 x 64; 5 x 96 is needed"),
        ({"rank": "layers.1.o.lora_b"}, CorruptFile, "is 64 x 4; 64 x 5 is needed"),
        ({"bytes": "layers.1.o.lora_b"}, CorruptFile, "bytes; .* are needed"),
        ({"form": "layers.1.o.lora_b"}, CorruptFile, "is q8, not f32 or bf16"),
    ],
)
def test_tensors_that_do_not_fit(change: dict, error: type, text: str) -> None:
    """The core checks for itself what the reader has checked before."""
    spec = cases.packed("muse_kv8")[0]
    weights = random_adapter(spec, rank=5)
    weights = {n: w[:5] if n.endswith("_a") else w[:, :5] for n, w in weights.items()}
    (kind, name), *_ = change.items()
    if kind == "drop":
        del weights[name]
    elif kind == "name":
        weights[name] = weights["layers.0.q.lora_a"]
    elif kind == "shape":
        weights[name] = weights[name][:, :64]
    elif kind == "rank":
        weights[name] = weights[name][:, :4]
    tensors = adapter_tensors({n: np.ascontiguousarray(w) for n, w in weights.items()})
    if kind == "bytes":
        tensors[name] = (*tensors[name][:3], tensors[name][3][:-64])
    elif kind == "form":
        tensors[name] = ("q8", *tensors[name][1:])
    with cases.make_engine() as engine:
        with pytest.raises(error, match=text):
            engine.add_adapter([], tensors)
        assert engine.stats()["adapters"] == 0


def test_layers_of_experts_take_adapters_on_attention_alone() -> None:
    spec = tiny_models.experts()
    runner = tiny_models.Runner(spec, tiny_models.pack(tiny_models.random_weights(spec), "f32"))
    weights = random_adapter(spec)
    runner.model.adapter(adapter_tensors(weights))
    for name in ("lora_a", "lora_b"):
        weights[f"layers.0.down.{name}"] = weights[f"layers.2.down.{name}"]
    with pytest.raises(UnsupportedModel, match="no such matrix"):
        runner.model.adapter(adapter_tensors(weights))
