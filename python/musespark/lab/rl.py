"""``musespark lab rl RUN``: group-relative policy optimization; how accuracy and length move.

The reward of a reply is 1 where it is right, less ``--lam`` for each thought token. Its advantage
is the reward less the mean of the replies to the same problem (GRPO, arXiv:2402.03300, without the
division by the deviation: Dr. GRPO, arXiv:2503.20783). Replies are sampled at temperature 1 by our
engine on the weights as they stand; one step of the optimizer for each batch of them, so the policy
is never stale, and no term holds it to where it began. ``--levels easy:200,middle:100`` raises the
difficulty after 200 steps. RUN/rl.jsonl has a line for each step and each measurement, RUN/last.pt
is a checkpoint that ``musespark lab export`` reads and the same command goes on from.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch

from ..errors import InvalidRequest
from . import checkpoint, network, protocol
from . import tokenizer as tok
from .arguments import at_least, chosen_of
from .backends import Reply, right
from .engine import MusesparkBackend
from .item import EFFORTS, LEVELS, Item, compose
from .optim import Optimizer
from .pack import Batch, Packer, Sample, plain_sample
from .rollouts import TASKS
from .tasks import draw

#: Rows and tokens of a batch; of longer samples half as many rows, twice as long.
_ROWS, _LENGTH = 12, 512
#: Problems of the evaluation side and replies to each, for pass@1 and pass@16.
_MEASURED, _PASS = 64, 16


@dataclass(frozen=True)
class Phase:
    """So many ``steps`` at one level."""

    level: str
    steps: int


def phases(text: str) -> list[Phase]:
    """Of ``easy:200,middle:100``."""
    out = []
    for part in text.split(","):
        level, _, steps = part.partition(":")
        if level not in LEVELS or not steps.isdigit() or int(steps) < 1:
            raise InvalidRequest(f"--levels: got {part!r:.60}, wanted LEVEL:STEPS, as easy:200")
        out.append(Phase(level, int(steps)))
    return out


def advantages(correct: np.ndarray, tokens: np.ndarray, lam: float) -> np.ndarray:
    """Of replies [problems, group]: correct less ``lam`` for each token, less the row's mean."""
    reward = correct.astype(np.float64) - lam * tokens
    return reward - reward.mean(1, keepdims=True)


class Learner:
    """The weights in torch and the engine that writes with them."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.out = args, Path(args.out)
        torch.set_num_threads(args.threads or network.threads_of_this_machine())
        self.model = network.create("nano", args.seed)
        network.freeze_vision(self.model)
        network.use_plain_attention(self.model)
        self.folder = str(args.model or Path(__file__).parent.parent / "nano")
        self.backend = MusesparkBackend(
            self.folder, quantize="none", kv="f32", threads=args.threads
        )
        self.step = 0
        weights = _weights_of(Path(self.folder))
        if (self.out / "last.pt").exists():
            state = torch.load(self.out / "last.pt", weights_only=True)
            weights, self.step = state["model"], state["step"]
        checkpoint.load_weights(self.model, weights)
        self.loss = network.PackedLoss(self.model)
        self.loss.heads.requires_grad_(False)
        self.optimizer = Optimizer(self.loss)
        if self.step:
            self.optimizer.load_state_dict(state["optimizer"])
        self.run_loss = self.loss if args.no_compile else torch.compile(self.loss, dynamic=False)
        self.tokenizer = tok.load(self.folder)
        # A sample's tokens are nearly all a reply's, and each has its part in the gradient.
        self.packer = Packer(self.tokenizer, [], _ROWS, _LENGTH, args.seed, trained=1.0)
        self._swap()

    def _swap(self) -> None:
        """The engine's weights are the learner's from here on."""
        tensors = {
            name: t.detach().numpy()
            for name, t in self.model.state_dict().items()
            if name != "lm_head.weight"
        }
        self.backend.model.update_weights(tensors)

    def replies(self, items: list[Item], count: int, seed: int) -> list[list[Reply]]:
        """``count`` sampled replies to each item."""

        def told(item: Item, k: int) -> dict[str, Any]:
            # What a policy writes is no choice of the model's.
            return {"temperature": 1.0, "thinking_policy": "off", "seed": seed * 1009 + k}

        return self.backend.replies(items, count, self.args.max_new_tokens, told)

    def one_step(self, level: str) -> dict:
        """Sample, judge, learn, swap; the line of the log."""
        begin, args = time.monotonic(), self.args
        rng = Random(f"rl {args.seed} {self.step}")
        items = [
            compose(draw(rng, rng.choice(args.tasks), level, evaluation=False), args.effort, rng)
            for _ in range(args.problems)
        ]
        groups = self.replies(items, args.group, args.seed * 100_003 + self.step)
        correct = np.array([[right(i, r) for r in g] for i, g in zip(items, groups, strict=True)])
        tokens = np.array([[r.thinking_tokens for r in g] for g in groups])
        worth = advantages(correct, tokens, args.lam)
        samples = [
            self.sample(item, reply, weight)
            for item, group, row in zip(items, groups, worth, strict=True)
            for reply, weight in zip(group, row, strict=True)
            if weight and reply.tokens
        ]
        sampled = time.monotonic()
        norm = self.learn(samples)
        self.step += 1
        self._swap()
        return {
            "step": self.step,
            "level": level,
            "lam": args.lam,
            "correct": round(float(correct.mean()), 4),
            "tokens": round(float(tokens.mean()), 2),
            "reward": round(float((correct - args.lam * tokens).mean()), 4),
            "norm": round(norm, 4),
            "sampling_s": round(sampled - begin, 2),
            "learning_s": round(time.monotonic() - sampled, 2),
        }

    def sample(self, item: Item, reply: Reply, weight: float) -> Sample:
        """The prompt and the reply, of which every token counts ``weight``."""
        pieces = protocol.prompt_pieces(item.messages, item.effort, item.tools)
        prompt, _ = protocol.encode(pieces, self.tokenizer)
        wrote = list(reply.tokens)
        if reply.finished and wrote[-1] != tok.EOT:
            wrote.append(tok.EOT)
        mask = [False] * len(prompt) + [True] * len(wrote)
        made = plain_sample(prompt + wrote, mask, item.task)
        made.weight = float(weight)
        return made

    def learn(self, samples: list[Sample]) -> float:
        """One step of the optimizer over all samples; the norm of the gradient."""
        total = sum(sum(s.mask) for s in samples)
        if not total:
            return 0.0
        long = [s for s in samples if len(s) > _LENGTH]
        short = [s for s in samples if len(s) <= _LENGTH]
        for pool, rows, length in ((short, _ROWS, _LENGTH), (long, _ROWS // 2, 2 * _LENGTH)):
            while pool:
                self._add_gradients(self.packer.batch(pool, rows, length), total)
        return self.optimizer.step(self.args.lr)

    def _add_gradients(self, batch: Batch, total: int) -> None:
        """Those of a batch's targets, as its part of the mean over ``total`` of them."""
        arrays = {k: torch.from_numpy(v) for k, v in batch.arrays().items() if k != "family"}
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss, _, _ = self.run_loss(arrays)
        (loss * (float((batch.labels >= 0).sum()) / total)).backward()

    def measure(self, level: str) -> dict:
        """pass@1 and pass@16 on problems of the evaluation side."""
        rng, args = Random(f"measure {args_key(self.args)}"), self.args
        items = []
        for k in range(_MEASURED):
            problem = draw(rng, args.tasks[k % len(args.tasks)], level, evaluation=True)
            items.append(compose(problem, args.effort, rng))
        groups = self.replies(items, _PASS, args.seed)
        solved = np.array([[right(i, r) for r in g] for i, g in zip(items, groups, strict=True)])
        return {
            "step": self.step,
            "level": level,
            "pass_at_1": round(float(solved.mean()), 4),
            "pass_at_16": round(float(solved.any(1).mean()), 4),
        }

    def save(self) -> None:
        """RUN/last.pt, by renaming."""
        checkpoint.save(self.out / "last.pt", self.loss, self.optimizer, self.step, 0, None, "nano")

    def log(self, line: dict) -> None:
        """To RUN/rl.jsonl and the terminal."""
        with (self.out / "rl.jsonl").open("a", encoding="utf-8") as f:
            f.write(json.dumps(line) + "\n")
        print(" ".join(f"{k} {v}" for k, v in line.items()), flush=True)


def args_key(args: argparse.Namespace) -> str:
    """What the measured problems depend on: the same for every run that is compared."""
    return f"{','.join(args.tasks)} {args.effort}"


def _weights_of(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    weights = {k: v.float() for k, v in load_file(folder / "model.safetensors").items()}
    embedding = next(v for k, v in weights.items() if k.endswith("embed_tokens.weight"))
    return {**weights, "lm_head.weight": embedding}


def parse(argv: list[str]) -> argparse.Namespace:
    """The options of the command."""
    p = argparse.ArgumentParser(
        prog="musespark lab rl",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("out", help="folder of the log and the checkpoint")
    p.add_argument("model", nargs="?", help="folder to begin with (default: Spark Nano)")
    p.add_argument("--tasks", default="addition,subtraction,multiplication,word_problem")
    p.add_argument("--effort", default="high", choices=EFFORTS)
    p.add_argument("--levels", default="easy:150,middle:100", help="LEVEL:STEPS,…")
    p.add_argument("--lam", type=float, default=0.0, help="price of a thought token")
    p.add_argument("--problems", type=int, default=16, help="a step")
    p.add_argument("--group", type=int, default=8, help="replies to each")
    p.add_argument("--lr", type=float, default=3e-4)
    p.add_argument("--measure-every", type=int, default=25, metavar="STEPS")
    p.add_argument("--max-new-tokens", type=int, default=400)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--threads", type=int)
    p.add_argument("--no-compile", action="store_true")
    args = p.parse_args(argv)
    args.tasks = chosen_of(args.tasks, TASKS, "--tasks")
    for name, least in (("problems", 1), ("group", 2), ("measure_every", 1), ("max_new_tokens", 1)):
        at_least(least, getattr(args, name), f"--{name.replace('_', '-')}")
    if args.max_new_tokens > _LENGTH:  # with a prompt it fits into the longer rows
        got = args.max_new_tokens
        raise InvalidRequest(f"--max-new-tokens: got {got}, allowed is 1 to {_LENGTH}")
    if not args.lam >= 0:
        raise InvalidRequest(f"--lam: got {args.lam}, must be 0 or more")
    args.levels = phases(args.levels)
    return args


def main(argv: list[str]) -> None:
    """Learn until the last phase is through."""
    args = parse(argv)
    Path(args.out).mkdir(parents=True, exist_ok=True)
    learner = Learner(args)
    try:
        end = 0
        for phase in args.levels:
            end += phase.steps
            while learner.step < end:
                if learner.step % args.measure_every == 0:
                    learner.save()
                    learner.log(learner.measure(phase.level))
                learner.log(learner.one_step(phase.level))
        learner.save()
        learner.log(learner.measure(args.levels[-1].level))
    finally:
        learner.backend.close()
