"""``musespark lab drafter RUN``: train a block drafter for Nano, or go on from RUN's checkpoint.

The drafter (transformers' MuseGlimmerAssistantModel) learns what ``--target``, which stays as it
is, will write: blocks of tokens at once, from what its layers give for the text before
(lab/drafting.py). The learning rate is constant after a warm-up and falls to zero over the last
``--decay-steps`` of ``--steps``; the run may be killed and continued, and ends with a checkpoint.
RUN/log.jsonl has a line every 20 steps: ``per_pass`` is how many tokens a step of the model writes
with drafts, where the text is the model's. ``--export FOLDER`` writes the averaged weights as a
folder that transformers loads, and musespark as ``load(drafter=FOLDER)``.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import (
    MuseGlimmerAssistantConfig,
    MuseGlimmerAssistantModel,
    MuseGlimmerForConditionalGeneration,
)

from . import drafting, network
from .optim import Optimizer
from .pack import Batch, Source
from .stopping import asked_to_stop


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The options of the command."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("out", help="folder of checkpoint and log")
    p.add_argument("--target", help="model folder (default: the embedded model's)")
    p.add_argument("--export", metavar="FOLDER", help="write the drafter there at the end")
    p.add_argument("--layers", type=int, default=2)
    p.add_argument("--intermediate", type=int, default=384)
    p.add_argument("--block", type=int, default=8, help="positions, the known one included")
    p.add_argument("--target-layers", default="1,4,6", help="from 0; none of them the last")
    p.add_argument("--books", help="folder of public-domain books (.md, .txt)")
    p.add_argument("--rollouts", metavar="FILE", help="what `musespark lab rollouts` wrote")
    p.add_argument("--rows", type=int, default=16, help="rows per step")
    p.add_argument("--length", type=int, default=256, help="tokens per row")
    p.add_argument("--blocks", type=int, default=16, help="per row")
    p.add_argument("--lr", type=float, default=2e-3)
    p.add_argument("--warmup", type=int, default=100, help="steps")
    p.add_argument("--steps", type=int, default=10_000, help="of all runs together")
    p.add_argument("--decay-steps", type=int, default=2_000)
    p.add_argument("--save-every", type=int, default=200, help="steps")
    p.add_argument("--max-steps", type=int, default=10**9, help="in this run")
    p.add_argument("--workers", type=int, default=1, help="processes that make items")
    p.add_argument("--threads", type=int)
    p.add_argument("--seed", type=int, default=1)
    return p.parse_args(argv)


class Trainer:
    """One run."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.out = args, Path(args.out)
        torch.set_num_threads(args.threads or network.threads_of_this_machine())
        folder = args.target or str(Path(__file__).parent.parent / "nano")
        model = MuseGlimmerForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
        network.use_plain_attention(model)
        state = self._last()
        config = self._config(model) if state is None else _config_of(state["config"])
        torch.manual_seed(args.seed)
        config._attn_implementation = "eager"
        self.target = drafting.Target(model, config.target_layer_ids)
        self.loss = drafting.BlockLoss(MuseGlimmerAssistantModel(config))
        self.optimizer = Optimizer(self.loss)
        self.step, self.tokens, self.stopping = 0, 0, False
        if state is not None:
            self.loss.drafter.load_state_dict(state["drafter"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.tokens = state["step"], state["tokens"]
        seed = args.seed + 7919 * self.step
        self.rng = np.random.default_rng(seed)
        more = {"workers": args.workers, "rollouts": args.rollouts}
        self.source = Source(
            folder, args.books, args.rows, args.length, 0, 0.0, seed, "main", **more
        )

    def _last(self) -> dict | None:
        path = self.out / "last.pt"
        return torch.load(path, weights_only=True) if path.exists() else None

    def _config(self, model: MuseGlimmerForConditionalGeneration) -> MuseGlimmerAssistantConfig:
        args = self.args
        return drafting.config(
            model,
            layers=args.layers,
            intermediate=args.intermediate,
            block=args.block,
            target_layers=[int(one) for one in args.target_layers.split(",")],
        )

    def _rate(self) -> float:
        """Learning rate of this step."""
        left = (self.args.steps - self.step) / self.args.decay_steps
        return self.args.lr * min(1.0, (self.step + 1) / self.args.warmup, left)

    def one_step(self, batch: Batch) -> tuple[float, float, float]:
        """Forward, backward, update; loss, tokens of a pass, norm of the gradient."""
        blocks = drafting.draw_blocks(batch, self.args.blocks, self.loss.block, self.rng)
        tensors = {
            name: torch.from_numpy(getattr(batch, name))
            for name in ("ids", "document", "branch", "position")
        }
        with torch.autocast("cpu", dtype=torch.bfloat16):
            states = self.target.states(tensors)
            loss, right = self.loss(tensors, blocks, states, self.target)
        loss.backward()
        norm = self.optimizer.step(self._rate())
        self.step += 1
        self.tokens += batch.ids.size
        used = blocks.labels[:, :, 0] >= 0
        return float(loss.detach()), 1 + float(right[used].float().mean()), norm

    def save(self) -> None:
        """Writes last.pt by renaming, so that a reader or a crash never meets half a file."""
        average = dict(zip(self.optimizer.names, self.optimizer.average, strict=True))
        state = {
            "drafter": self.loss.drafter.state_dict(),
            "average": {k.removeprefix("drafter."): v for k, v in average.items()},
            "optimizer": self.optimizer.state_dict(),
            "config": json.dumps(self.loss.drafter.config.to_diff_dict()),
            "step": self.step,
            "tokens": self.tokens,
        }
        temporary = self.out / "last.tmp"
        torch.save(state, temporary)
        os.replace(temporary, self.out / "last.pt")

    def run(self) -> None:
        """Trains until the last step, the limit of this run, Ctrl-C or SIGTERM; leaves a
        checkpoint."""
        with asked_to_stop(lambda: setattr(self, "stopping", True)):
            self._run()

    def _run(self) -> None:
        begin, first, mark = time.time(), self.step, (time.time(), self.tokens)
        means: np.ndarray | None = None
        while not self.stopping and self.step < self.args.steps:
            if self.step - first >= self.args.max_steps:
                break
            now = np.array(self.one_step(self.source.get("main")))
            means = now if means is None else 0.98 * means + 0.02 * now
            if self.step % 20 == 0:
                speed = (self.tokens - mark[1]) / (time.time() - mark[0])
                mark = (time.time(), self.tokens)
                loss, per_pass, norm = means
                self._log(
                    loss=loss,
                    per_pass=per_pass,
                    norm=norm,
                    rate=self._rate(),
                    tokens_per_s=speed,
                    minutes=(time.time() - begin) / 60,
                )
            if self.step % self.args.save_every == 0:
                self.save()
        self.save()
        self.source.close()

    def _log(self, **values: float) -> None:
        line = {"step": self.step, "tokens": self.tokens}
        line |= {k: float(f"{v:.5g}") for k, v in values.items()}
        with (self.out / "log.jsonl").open("a") as f:
            f.write(json.dumps(line) + "\n")


def _config_of(text: str) -> MuseGlimmerAssistantConfig:
    return MuseGlimmerAssistantConfig(**json.loads(text))


def export(checkpoint: Path, folder: Path, dtype: torch.dtype = torch.bfloat16) -> dict:
    """Writes ``folder`` from the averaged weights; returns {"step", "tokens", "parameters",
    "bytes"}. Fails unless transformers finds every weight there."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    config = _config_of(state["config"])
    config.dtype, config.architectures = dtype, ["MuseGlimmerAssistantModel"]
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    tensors = {name: value.to(dtype).contiguous() for name, value in state["average"].items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    training = {key: state[key] for key in ("step", "tokens")}
    (folder / "training.json").write_text(json.dumps(training, indent=2) + "\n")
    _, info = MuseGlimmerAssistantModel.from_pretrained(folder, output_loading_info=True)
    wrong = {k: v for k, v in info.items() if v}
    if wrong:
        raise ValueError(f"{folder}: transformers does not load it whole: {wrong}")
    size = (folder / "model.safetensors").stat().st_size
    return training | {"parameters": sum(t.numel() for t in tensors.values()), "bytes": size}


def main(argv: list[str] | None = None) -> None:
    """Trains, then exports where that is asked for."""
    args = parse(argv)
    Path(args.out).mkdir(parents=True, exist_ok=True)
    Trainer(args).run()
    if args.export:
        print(json.dumps(export(Path(args.out) / "last.pt", Path(args.export))))


if __name__ == "__main__":
    main()
