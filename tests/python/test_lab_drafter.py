"""Training a block drafter: the packed loss, a run that goes on, a folder that is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import musespark

torch = pytest.importorskip("torch", reason="the lab needs torch")
transformers = pytest.importorskip(
    "transformers", minversion="5.23", reason="the lab needs transformers"
)

from musespark.lab import drafter, drafting, network  # noqa: E402
from musespark.lab import tokenizer as tok  # noqa: E402
from musespark.lab.pack import Packer  # noqa: E402

pytestmark = [pytest.mark.lab, pytest.mark.slow]
NANO = Path(network.__file__).parent.parent / "nano"


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    torch.set_num_threads(1)


def setup(block: int = 6):
    """A tiny target with a short window, a drafter for it, a batch, and where its blocks begin."""
    model = network.create("tiny", 0)
    config = drafting.config(model, layers=2, intermediate=48, block=block, target_layers=[0, 2])
    config._attn_implementation, config.sliding_window = "eager", 40
    torch.manual_seed(1)
    target = drafting.Target(model, config.target_layer_ids)
    loss = drafting.BlockLoss(transformers.MuseGlimmerAssistantModel(config))
    batch = next(iter(Packer(tok.load(NANO), [], rows=2, length=192, seed=4)))
    blocks = drafting.draw_blocks(batch, 5, block, np.random.default_rng(0))
    tensors = {
        name: torch.from_numpy(getattr(batch, name))
        for name in ("ids", "document", "branch", "position")
    }
    return target, loss, batch, blocks, tensors


def test_blocks_begin_where_the_model_writes_and_stay_in_their_document():
    _, _, batch, blocks, _ = setup()
    trained = set(batch.index[batch.labels >= 0].tolist())
    length = batch.ids.shape[1]
    for row in range(2):
        for anchor, labels in zip(blocks.anchors[row], blocks.labels[row], strict=True):
            assert row * length + int(anchor) in trained and labels[0] >= 0
            for i, label in enumerate(labels.tolist(), 1):
                if label < 0:
                    assert set(labels[i - 1 :].tolist()) == {-100}
                    break
                assert label == batch.ids[row, anchor + i]
                assert batch.document[row, anchor + i] == batch.document[row, anchor]


def test_the_packed_loss_is_that_of_passes_one_by_one():
    """The oracle: what transformers' drafter gives for a document cut off before the block."""
    target, loss, batch, blocks, tensors = setup()
    table = target.model.model.language_model.embed_tokens.weight
    with torch.no_grad():
        states = target.states(tensors)
        packed, right = loss(tensors, blocks, states, target)
        total = weights = 0.0
        for row in range(2):
            for n, anchor in enumerate(blocks.anchors[row].tolist()):
                here = np.flatnonzero(batch.document[row] == batch.document[row, anchor])
                before = here[here < anchor]
                ids = torch.from_numpy(batch.ids[row][before])[None]
                text = target.model.model.language_model(
                    input_ids=ids, output_hidden_states=[1, 3]
                ).hidden_states
                noise = torch.full((1, loss.block), drafting.MASK)
                noise[0, 0] = int(batch.ids[row, anchor])
                hidden = loss.drafter(
                    noise_embeds=table[noise],
                    context_hidden_states=torch.cat([text[1], text[3]], -1),
                    position_ids=torch.arange(len(before) + loss.block)[None],
                    past_key_values=_cache(loss, len(before)),
                ).last_hidden_state
                scores = target.logits(hidden)[0, 1:].log_softmax(-1)
                labels = blocks.labels[row, n]
                for i, label in enumerate(labels[labels >= 0].tolist()):
                    weight = float(np.exp(-i / (loss.block / 2)))
                    total -= weight * float(scores[i, label])
                    weights += weight
                same = (scores.argmax(-1) == labels).int().cumprod(0).sum()
                assert int(same) == int(right[row, n])
    assert float(packed) == pytest.approx(total / weights, rel=1e-4)


def _cache(loss, count: int):
    from transformers.cache_utils import DFlashCache

    cache = DFlashCache(config=loss.drafter.config)
    cache.activate_past_recording()
    cache.set_previous_accepted_tokens(count)
    return cache


def test_training_lowers_the_loss():
    target, loss, _, blocks, tensors = setup()
    from musespark.lab.optim import Optimizer

    optimizer, values = Optimizer(loss), []
    states = target.states(tensors)
    for _ in range(25):
        value, _ = loss(tensors, blocks, states, target)
        value.backward()
        optimizer.step(5e-3)
        values.append(float(value.detach()))
    assert values[-1] < values[0] - 1


def test_the_last_layer_and_those_that_are_not_there_are_refused():
    model = network.create("tiny", 0)
    for layer in (-1, 3, 4):
        with pytest.raises(ValueError, match=f"got {layer}, allowed is 0 to 2"):
            drafting.Target(model, [0, layer])


def test_a_run_goes_on_and_its_folder_is_loaded(tmp_path):
    run, folder = tmp_path / "run", tmp_path / "drafter"
    options = ["--rows", "2", "--length", "128", "--blocks", "4", "--threads", "1"]
    shape = ["--layers", "1", "--intermediate", "64", "--block", "4"]
    drafter.main([str(run), *options, *shape, "--max-steps", "2"])
    state = torch.load(run / "last.pt", weights_only=True)
    assert (state["step"], state["tokens"]) == (2, 2 * 2 * 128)
    # The shape is the checkpoint's from here on.
    drafter.main([str(run), *options, "--max-steps", "1", "--export", str(folder)])
    assert torch.load(run / "last.pt", weights_only=True)["optimizer"]["steps"] == 3
    config = json.loads((folder / "config.json").read_text())
    assert config["block_size"] == 4 and config["target_layer_ids"] == [1, 4, 6]
    with musespark.load(threads=1, drafter=folder, context=512) as model:
        found = model.chat("What is 3 + 4?", max_new_tokens=40)
    with musespark.load(threads=1, context=512) as model:
        assert found.tokens == model.chat("What is 3 + 4?", max_new_tokens=40).tokens
