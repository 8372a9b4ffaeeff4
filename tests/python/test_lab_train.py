"""Training, checkpoints and export at the smallest size (needs torch and transformers)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the lab needs torch")
transformers = pytest.importorskip(
    "transformers", minversion="5.17", reason="the lab needs transformers"
)

from musespark.lab import network, train  # noqa: E402
from musespark.lab import tokenizer as tok  # noqa: E402
from musespark.lab.backends import TransformersBackend  # noqa: E402
from musespark.lab.evaluate import items_for  # noqa: E402
from musespark.lab.export import export  # noqa: E402
from musespark.lab.optim import Optimizer, orthogonalize  # noqa: E402
from musespark.lab.pack import Packer  # noqa: E402

pytestmark = [pytest.mark.lab, pytest.mark.slow]
NANO = Path(network.__file__).parent.parent / "nano"


def run(out, *more):
    train.main(
        [
            str(out),
            "--size",
            "tiny",
            "--rows",
            "4",
            "--length",
            "128",
            "--no-compile",
            "--save-every",
            "3",
            *more,
        ]
    )
    return torch.load(out / "last.pt", weights_only=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    state = run(out, "--max-steps", "4")
    return out, state


def test_a_run_stops_and_continues(trained):
    out, state = trained
    assert (state["step"], state["tokens"]) == (4, 4 * 4 * 128)
    again = run(out, "--max-steps", "2")
    assert again["step"] == 6
    assert again["optimizer"]["steps"] == 6


def test_the_decay_file_ends_a_run_with_rate_zero(tmp_path):
    (tmp_path / "decay").touch()
    state = run(tmp_path, "--decay-steps", "5")
    assert (state["step"], state["decay_from"]) == (5, 0)


def test_training_lowers_the_loss_and_averages_follow(tmp_path):
    model = network.create("tiny", 0)
    network.use_plain_attention(model)
    network.freeze_vision(model)
    optimizer, loss = Optimizer(model), network.PackedLoss(model)
    batch = next(iter(Packer(tok.load(NANO), [], rows=4, length=128, seed=1)))
    tensors = [torch.from_numpy(a) for a in (batch.ids, batch.document, batch.index, batch.labels)]
    values = []
    for _ in range(30):
        value = loss(*tensors)
        value.backward()
        optimizer.step(3e-3)
        values.append(float(value.detach()))
    assert values[0] > 7
    assert values[-1] < values[0] - 1.5


def test_packed_loss_equals_the_model_run_on_each_document_alone():
    """Packing, masks, targets: the oracle is the mean loss of each document by itself."""
    model = network.create("tiny", 0).eval()
    batch = next(iter(Packer(tok.load(NANO), [], rows=2, length=256, seed=4)))
    tensors = [torch.from_numpy(a) for a in (batch.ids, batch.document, batch.index, batch.labels)]
    trained = set(batch.index[batch.labels >= 0].tolist())
    total = 0.0
    with torch.no_grad():
        packed = float(network.PackedLoss(model)(*tensors))
        for row in range(2):
            for number in range(1, int(batch.document[row].max()) + 1):
                where = (batch.document[row] == number).nonzero()[0]
                ids = torch.from_numpy(batch.ids[row][where])[None]
                logits = model(input_ids=ids).logits[0].log_softmax(-1)
                for k, position in enumerate(where[:-1]):
                    if row * 256 + int(position) in trained:
                        total -= float(logits[k, ids[0, k + 1]])
    assert packed == pytest.approx(total / len(trained), rel=1e-4)


def test_plain_attention_equals_sdpa():
    model = network.create("tiny", 0)
    batch = next(iter(Packer(tok.load(NANO), [], rows=2, length=128, seed=4)))
    tensors = [torch.from_numpy(a) for a in (batch.ids, batch.document, batch.index, batch.labels)]
    fused = float(network.PackedLoss(model)(*tensors).detach())
    network.use_plain_attention(model)
    assert float(network.PackedLoss(model)(*tensors).detach()) == pytest.approx(fused, rel=1e-5)


@pytest.mark.parametrize("shape", [(3, 16, 40), (3, 40, 16), (2, 24, 24)])
def test_orthogonalized_updates_have_flat_singular_values(shape):
    values = torch.linalg.svdvals(
        orthogonalize(torch.randn(*shape, generator=torch.manual_seed(0))).float()
    )
    # The quintic's coefficients drive singular values into about [0.7, 1.2], not to 1; a random
    # square matrix has a few so near 0 that five rounds do not lift them.
    assert float((values > 0.5).float().mean()) > 0.9
    assert float(values.max()) < 1.3


def test_export_loads_in_transformers_and_answers(trained, tmp_path):
    out, _ = trained
    facts = export(out / "last.pt", tmp_path / "model", torch.float32)
    assert facts["bytes"] > 1_000_000
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["model_type"] == "muse_glimmer"
    assert config["text_config"]["vocab_size"] == tok.VOCAB_SIZE
    items = items_for(["addition"], ["easy"], ["low"], 3, seed=1)
    replies = TransformersBackend(tmp_path / "model").reply(items, 8)
    assert len(replies) == 3


def test_batched_replies_equal_single_ones(trained, tmp_path):
    out, _ = trained
    export(out / "last.pt", tmp_path / "model", torch.float32)
    items = items_for(["addition", "recall"], ["easy"], ["low"], 4, seed=1)
    together = TransformersBackend(tmp_path / "model", batch=8).reply(items, 12)
    alone = TransformersBackend(tmp_path / "model", batch=1).reply(items, 12)
    assert [r.raw for r in together] == [r.raw for r in alone]


def test_the_shipped_template_is_what_transformers_applies():
    tokenizer = transformers.AutoTokenizer.from_pretrained(NANO)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is 23 + 45?"}],
        add_generation_prompt=True,
        return_dict=False,
        reasoning_strength="high",
    )
    text = tok.load(NANO).decode(ids, skip_special_tokens=False)
    assert text == (
        "<|begin_of_text|><|start|>system<|message|>Reasoning strength: high.\n"
        '# Valid recipients: "self", "user".<|eot|><|start|>user<|message|>What is 23 + 45?<|eot|>'
        "<|start|>assistant"
    )


def test_two_processes_agree_on_the_step_to_stop_at(tmp_path):
    """SIGTERM once reached them a step apart: one left, the other failed in its reduction."""
    command = [sys.executable, "-m", "musespark.lab.train", str(tmp_path), "--processes", "2"]
    command += ["--size", "tiny", "--rows", "4", "--length", "128", "--no-compile"]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 240
        while not (tmp_path / "log.jsonl").exists():
            assert run.poll() is None, run.stderr.read()
            assert time.monotonic() < deadline, "no step in 240 s"
            time.sleep(0.2)
        os.kill(int((tmp_path / "pids").read_text().split()[1]), signal.SIGTERM)
        _, errors = run.communicate(timeout=120)
    finally:
        run.kill()
    assert run.returncode == 0, errors
    assert torch.load(tmp_path / "last.pt", weights_only=True)["step"] >= 20
