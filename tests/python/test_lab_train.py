"""Training, checkpoints and export at the smallest size (needs torch and transformers)."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the lab needs torch")
transformers = pytest.importorskip(
    "transformers", minversion="5.17", reason="the lab needs transformers"
)

from musespark.lab import network, probe, raster, train  # noqa: E402
from musespark.lab import tokenizer as tok  # noqa: E402
from musespark.lab.backends import TransformersBackend  # noqa: E402
from musespark.lab.engine import MusesparkBackend  # noqa: E402
from musespark.lab.evaluate import items_for  # noqa: E402
from musespark.lab.export import export  # noqa: E402
from musespark.lab.export import main as export_main  # noqa: E402
from musespark.lab.optim import Optimizer, orthogonalize  # noqa: E402
from musespark.lab.pack import Packer  # noqa: E402

pytestmark = [pytest.mark.lab, pytest.mark.slow]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Threads wait for each other in every operation: on a busy one two took 40 times as long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network, "threads_of_this_machine", lambda: 1)
        torch.set_num_threads(1)
        yield


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


def batch_of(**options):
    batch = next(iter(Packer(tok.load(NANO), [], **options)))
    return batch, {k: torch.from_numpy(v) for k, v in batch.arrays().items()}


def test_training_lowers_the_loss_and_averages_follow():
    model = network.create("tiny", 0)
    network.use_plain_attention(model)
    loss = network.PackedLoss(model, heads_weight=0.1)
    optimizer = Optimizer(loss)
    batch, tensors = batch_of(rows=4, length=256, seed=2, pictures=2, vision=0.5)
    assert (batch.seen < 255).any()
    before = model.model.vision_tower.layers[0].mlp.fc1.weight.detach().clone()
    values, heads = [], []
    for _ in range(20):
        value, _, extra = loss(tensors)
        value.backward()
        optimizer.step(3e-3)
        values.append(float(value.detach()))
        heads.append(float(extra))
    assert values[0] > 7
    assert values[-1] < values[0] - 1.5
    assert heads[-1] < heads[0] - 1.5
    assert not torch.equal(before, model.model.vision_tower.layers[0].mlp.fc1.weight)


def alone(model, batch, row, number, branch):
    """Negative log-probability of the trained tokens of one branch, by the model's own forward on
    that branch with what stands before it."""
    document, length = batch.document[row], batch.ids.shape[1]
    where = np.flatnonzero(
        (document == number) & ((batch.branch[row] == 0) | (batch.branch[row] == branch))
    )
    ids = torch.from_numpy(batch.ids[row][where])[None]
    more = {}
    if tok.PATCH in ids:
        slot = int(np.flatnonzero(batch.place == row * length + where[ids[0] == tok.PATCH][0])[0])
        pixels = torch.from_numpy(batch.pixels[slot // 64 : slot // 64 + 1])
        more = {
            "pixel_values": network.patches_of(pixels)[0],
            "image_grid_thw": torch.tensor([[1, 16, 16]]),
        }
    scores = model(input_ids=ids, **more).logits[0].log_softmax(-1)
    trained = set(batch.index[batch.labels >= 0].tolist())
    return [
        -float(scores[k, ids[0, k + 1]])
        for k, p in enumerate(where[:-1])
        if row * length + int(p) in trained and batch.branch[row][where[k + 1]] == branch
    ]


@pytest.mark.parametrize("pictures", [0, 2])
def test_packed_loss_equals_the_model_run_on_each_document_alone(pictures):
    """Packing, masks, positions, pictures, targets: the oracle is transformers' own forward on each
    document, and on each question about a picture, by itself."""
    model = network.create("tiny", 0).eval()
    batch, tensors = batch_of(rows=2, length=512, seed=6, pictures=pictures, vision=0.5)
    assert (batch.place < batch.ids.size).sum() == pictures * 64
    assert (batch.branch.max() > 1) == (pictures > 0)
    with torch.no_grad():
        packed = float(network.PackedLoss(model)(tensors)[0])
        each = [
            value
            for row in range(2)
            for number in range(1, int(batch.document[row].max()) + 1)
            for branch in np.unique(batch.branch[row][batch.document[row] == number])
            for value in alone(model, batch, row, number, branch)
        ]
    assert len(each) == (batch.labels >= 0).sum()
    assert packed == pytest.approx(np.mean(each), rel=1e-4)


def test_room_for_pictures_that_no_row_has_is_filled_with_drills():
    batch, _ = batch_of(rows=2, length=256, seed=4, pictures=6, vision=0.5)
    used = (batch.place < batch.ids.size).sum() // 64
    assert 0 < used < 6
    filled = batch.seen[used:]
    assert (filled[..., 0] < raster.LABELS[0]).all()  # each is labelled
    assert all(picture.any() for picture in filled)
    assert (batch.place[64 * used :] == batch.ids.size + np.arange(64 * used, 64 * 6)).all()


def test_sight_equals_the_models_own_image_features():
    model = network.create("tiny", 0).eval()
    pixels = torch.randint(0, 256, (3, 128, 128, 3), dtype=torch.uint8)
    patches = network.patches_of(pixels).flatten(0, 1)
    with torch.no_grad():
        wanted = model.model.get_image_features(patches, torch.tensor([[1, 16, 16]] * 3))
        got = network.Sight(model)(pixels)
    for mine, theirs in zip(got, wanted.pooler_output, strict=True):
        assert float((mine - theirs).abs().max()) < 1e-5 < float(theirs.abs().mean())


def test_heads_learn_from_labelled_patches_only():
    heads = network.PatchHeads(8)
    features = torch.randn(2, 64, 8, generator=torch.manual_seed(0), requires_grad=True)
    nothing = torch.full((2, 16, 16, raster.LABEL_WIDTH), 255, dtype=torch.uint8)
    torch.nn.init.zeros_(heads.place.weight)
    torch.nn.init.zeros_(heads.place.bias)
    chance = 2 * float(np.log(8))  # of a token's own row and column, which every token is asked for
    assert float(heads(features, nothing)) == pytest.approx(chance)
    nothing[1, 5, 7] = 1  # token row 2, column 3
    heads(features, nothing).backward()
    touched = features.grad.abs().sum(-1).nonzero().tolist()
    assert touched == [[1, 2 * 8 + 3]]


def test_pictures_alone_teach_the_tower_and_leave_the_rest_as_it_is(trained, tmp_path):
    shutil.copy(trained[0] / "last.pt", tmp_path / "last.pt")
    before = torch.load(tmp_path / "last.pt", weights_only=True)
    after = run(tmp_path, "--rows", "0", "--pictures", "3", "--max-steps", "2")
    changed = {n for n, w in after["model"].items() if not torch.equal(w, before["model"][n])}
    assert changed
    assert all("vision" in n for n in changed)
    assert after["tokens"] == before["tokens"]
    assert after["step"] == before["step"] + 2
    moments = after["optimizer"]["adam"]
    assert moments.keys() >= before["optimizer"]["adam"].keys()
    name = "model.model.language_model.norm.weight"
    assert torch.equal(moments[name]["exp_avg"], before["optimizer"]["adam"][name]["exp_avg"])
    again = run(tmp_path, "--max-steps", "1")  # and text goes on
    assert again["tokens"] > after["tokens"]


def test_heads_ask_each_token_for_the_box_of_what_it_is_part_of():
    heads = network.PatchHeads(8)
    for p in heads.parameters():
        torch.nn.init.zeros_(p)
    seen = torch.zeros(1, 16, 16, raster.LABEL_WIDTH, dtype=torch.uint8)
    features = torch.zeros(1, 64, 8)
    without = heads(features, seen)
    seen[0, 3, 5] = torch.tensor([1, 0, 0, 32, 16, 96, 64])
    with torch.no_grad():
        told = heads(features, seen) - without
        # One patch: 8 * mean(1/4, 1/8, 3/4, 1/2) over 1 + 1, beside its class.
        box = 8 * (0.25 + 0.125 + 0.75 + 0.5) / 4 / 2
        seen[0, 3, 5, 3:] = 0
        plain = heads(features, seen) - without
    assert (told - plain).item() == pytest.approx(box, rel=1e-5)


@pytest.mark.parametrize(
    "given", [["--rows", "-1"], ["--rows", "0", "--heads", "0"], ["--rows", "0", "--pictures", "0"]]
)
def test_a_run_that_would_train_nothing_is_refused(given, capsys, tmp_path):
    with pytest.raises(SystemExit):
        train.parse([str(tmp_path), *given])
    assert f"--rows: got {given[1]} beside --pictures" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--books", "--nlvr", "--rollouts"])
def test_what_is_not_there_to_train_on_is_named(option, capsys, tmp_path):
    with pytest.raises(SystemExit):
        train.parse([str(tmp_path), option, str(tmp_path / "nothing")])
    assert f"{option}: there is no " in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--nlvr", "--rollouts"])
def test_an_empty_file_to_train_on_is_named(option, capsys, tmp_path):
    (tmp_path / "empty").touch()
    with pytest.raises(SystemExit):
        train.parse([str(tmp_path), option, str(tmp_path / "empty")])
    assert f"{option}: {tmp_path / 'empty'} is empty" in capsys.readouterr().err


def test_words_of_labels_are_those_that_thoughts_use():
    tokenizer = tok.load(NANO)
    words = network.words_of(tokenizer)
    classes, colors, characters = words
    assert (classes[[0, *range(7, 11)]] == -1).all()  # nothing; text, buttons, bars, lines
    ring = tokenizer.encode(" ring", add_special_tokens=False).ids
    assert classes[raster.CLASSES.index("ring")].tolist() == [ring[0], ring[-1]]
    blue = 1 + list(raster.COLORS).index("blue")
    assert tokenizer.decode(colors[blue].tolist()[:1]) == " blue"
    a, seven = (1 + raster.CHARACTERS.index(c) for c in "A7")
    assert [tokenizer.decode([i]) for i in characters[a].tolist()] == ["A", " A"]
    assert characters[seven].tolist() == [tokenizer.token_to_id("7"), -1]


def test_an_image_token_is_to_look_like_the_words_for_what_it_shows():
    words = torch.full((3, max(raster.LABELS), 2), -1)
    words[0, 2, 0], words[1, 3, 0] = 4, 6
    heads = network.PatchHeads(16, words)
    heads.requires_grad_(False)
    embedded = 4 * torch.eye(16)[:10]
    seen = torch.full((1, 16, 16, raster.LABEL_WIDTH), 255, dtype=torch.uint8)
    seen[0, 4, 6] = torch.tensor([2, 3, 0, 0, 0, 0, 0])  # token row 2, column 3
    seen[0, 0, 0] = 0  # shows nothing: no word
    features = torch.zeros(1, 64, 16, requires_grad=True)
    named = heads(features, seen, embedded) - heads(features, seen)
    named.backward()
    # Two words of ten, equally likely, over 2 + 1.
    assert float(named.detach()) == pytest.approx(2 * np.log(10) / 3)
    pulled_at = (features.grad.abs().sum(-1) > 1e-5).nonzero().tolist()
    assert pulled_at == [[0, 2 * 8 + 3]]
    pulled = -features.grad[0, 2 * 8 + 3]
    assert set(pulled.topk(2).indices.tolist()) == {4, 6}


def test_a_probe_counts_image_tokens_whose_nearest_word_is_one_of_those_shown():
    loss = network.PackedLoss(network.create("tiny", 1), words=network.words_of(tok.load(NANO)))
    truth = torch.full((3, 4, raster.LABEL_WIDTH), 255)
    truth[0, 1, 2], truth[1, 3, 2] = 5, 6  # two characters; the third token has no label
    embedded = loss.model.model.language_model.embed_tokens.weight.detach()
    looks_like = [int(loss.heads.words[2, character, 0]) for character in (5, 5, 5)]
    assert probe.named(loss, 100 * embedded[looks_like], truth).tolist() == [True, False]


def test_a_probe_tells_of_every_kind_of_picture_and_of_what_is_read(trained, capsys):
    probe.main([str(trained[0] / "last.pt"), "--n", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:-1]] == ["drills", *probe.TASKS]
    assert re.fullmatch(r"pointing: the text half says what 0 of \d, where 0 of \d", lines[-1])


def test_heads_ask_each_token_for_its_row_and_column():
    heads = network.PatchHeads(16)
    nothing = torch.full((1, 16, 16, raster.LABEL_WIDTH), 255, dtype=torch.uint8)
    row, column = torch.arange(64) // 8, torch.arange(64) % 8
    own = torch.cat((torch.eye(8)[row], torch.eye(8)[column]), -1)[None]
    with torch.no_grad():
        heads.place.weight.copy_(30 * torch.eye(16))
        heads.place.bias.zero_()
    assert float(heads(own, nothing)) == pytest.approx(0, abs=1e-6)
    assert float(heads(own.transpose(1, 2).roll(1, -1).transpose(1, 2), nothing)) > 10


def test_plain_attention_equals_sdpa():
    model = network.create("tiny", 0)
    _, tensors = batch_of(rows=2, length=128, seed=4)
    fused = float(network.PackedLoss(model)(tensors)[0].detach())
    network.use_plain_attention(model)
    assert float(network.PackedLoss(model)(tensors)[0].detach()) == pytest.approx(fused, rel=1e-5)


def test_a_run_of_text_alone_goes_on_with_pictures(tmp_path):
    """The vision half begins afresh, the text half keeps its moments and its average."""
    text = run(tmp_path, "--max-steps", "2", "--pictures", "0")
    assert not any("vision" in n for n in text["average"])
    both = run(tmp_path, "--max-steps", "1")
    assert both["step"] == 3
    name = "model.vision_tower.layers.0.mlp.fc1.weight"
    assert not torch.equal(both["model"][name], text["model"][name])
    adam = both["optimizer"]["adam"]
    name = "model.model.language_model.embed_tokens.weight"
    assert float(adam[name]["step"]) == 3
    assert float(adam["model.model.vision_projection.weight"]["step"]) == 1
    assert set(both["average"]) > set(text["average"])
    assert not any("heads" in n for n in both["average"])


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


def test_signals_do_afterwards_what_they_did_before(tmp_path):
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    run(tmp_path, "--max-steps", "1")
    assert [signal.getsignal(number) for number in numbers] == before


@pytest.mark.parametrize("who", ["a process", "who started them", "all, by Ctrl-C"])
def test_two_processes_agree_on_the_step_to_stop_at(tmp_path, who):
    """SIGTERM once reached them a step apart: one left, the other failed in its reduction; and
    once who started them alone, who left them running. Ctrl-C once left no checkpoint."""
    command = [sys.executable, "-m", "musespark.lab.train", str(tmp_path), "--processes", "2"]
    command += ["--size", "tiny", "--rows", "4", "--length", "128", "--no-compile"]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        deadline = time.monotonic() + 240
        while not (tmp_path / "log.jsonl").exists():
            assert run.poll() is None, run.stderr.read()
            assert time.monotonic() < deadline, "no step in 240 s"
            time.sleep(0.2)
        pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
        if who == "all, by Ctrl-C":
            os.killpg(run.pid, signal.SIGINT)
        else:
            os.kill(pids[1] if who == "a process" else run.pid, signal.SIGTERM)
        _, errors = run.communicate(timeout=120)
    finally:
        run.kill()
    assert run.returncode == 0, errors
    states = [line for line in errors.splitlines() if line.startswith("step ")]
    assert states[0].startswith("step 20 ") and states[-1].endswith(f"; {tmp_path / 'last.pt'}")
    assert all("tokens/s" in state for state in states)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids), "workers are left"
    assert torch.load(tmp_path / "last.pt", weights_only=True)["step"] >= 20


def test_the_whole_way_from_a_run_to_a_folder_that_answers(tmp_path):
    """What an hour of a large machine does, small: sessions, decay, export, the folder sent in
    pieces, put together, loaded by this package."""
    out, model, sent = tmp_path / "run", tmp_path / "model", tmp_path / "sent"
    assert run(out, "--max-steps", "25")["step"] == 25
    assert run(out, "--max-steps", "20")["step"] == 45
    (out / "decay").touch()
    assert run(out, "--decay-steps", "5")["step"] == 50
    losses = [json.loads(line)["loss"] for line in (out / "log.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0]
    export_main([str(out / "last.pt"), str(model)])
    sent.mkdir()
    pieces = f"tar -C {tmp_path} -c model | split -b 200K - {sent}/tiny.tar."
    subprocess.run(["bash", "-ec", f"set -o pipefail; {pieces}"], check=True)
    assert len(list(sent.iterdir())) > 2
    joined = f"cat {sent}/tiny.tar.* | tar -C {sent} -x"
    subprocess.run(["bash", "-ec", f"set -o pipefail; {joined}"], check=True)
    for path in model.iterdir():
        assert (sent / "model" / path.name).read_bytes() == path.read_bytes()
    items = items_for(["addition", "counting"], ["easy"], ["low"], 2, seed=1)
    backend = MusesparkBackend(sent / "model", quantize="none", kv="f32")
    try:
        ours = backend.reply(items, 12)
    finally:
        backend.close()
    assert all(len(r.tokens) for r in ours)
