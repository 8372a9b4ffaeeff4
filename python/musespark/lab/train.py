"""``python -m musespark.lab.train OUT``: train Spark Nano, or go on from OUT's checkpoint.

The learning rate is constant after a warm-up and falls to zero over ``--decay-steps`` once the file
OUT/decay exists or ``--tokens`` are reached; nothing depends on the clock, so a run may be stopped
(SIGSTOP) or killed and continued. Several processes train data-parallel (gloo), one thread each:
on a
busy machine that beats threads, which wait for each other in every operation.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from . import checkpoint, network, tokenizer
from .optim import Optimizer
from .pack import FAMILIES, IGNORE, Batch, Source
from .progress import Status
from .stopping import asked_to_stop

#: Steps between two lines of the log.
LOG_EVERY = 20


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The options of the command."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("out", help="folder of checkpoints and log")
    p.add_argument("--tokenizer", help="folder with tokenizer.json (default: the embedded model's)")
    p.add_argument(
        "--books",
        help="folder of public-domain books (.md, .txt); without it prose is little stories only",
    )
    p.add_argument("--nlvr", metavar="FILE", help="NLVR's dev.json, to train on most of it")
    p.add_argument("--rollouts", metavar="FILE", help="what `musespark lab rollouts` wrote")
    p.add_argument("--size", default="nano", choices=list(network.SIZES))
    p.add_argument(
        "--rows",
        type=int,
        default=14,
        help="rows per step and process (0: pictures alone, for the tower and its heads)",
    )
    p.add_argument("--length", type=int, default=384, help="tokens of a row; twice that for longer")
    p.add_argument("--lr", type=float, default=3e-3)
    p.add_argument("--warmup", type=int, default=100, help="steps")
    p.add_argument(
        "--first-tokens", type=float, default=2e6, help="tokens of the phase of first skills"
    )
    p.add_argument("--tokens", type=float, default=1e12, help="begin the decay at this many tokens")
    p.add_argument("--decay-steps", type=int, default=400)
    p.add_argument("--save-every", type=int, default=200, help="steps")
    p.add_argument("--processes", type=int, default=1, help="data-parallel processes (CPU)")
    p.add_argument(
        "--workers", type=int, default=1, help="generator processes per training process"
    )
    p.add_argument(
        "--pictures",
        type=int,
        help="pictures per step and process (default: a row in two; 0: none)",
    )
    p.add_argument("--vision", type=float, default=0.4, help="share of documents with pictures")
    p.add_argument(
        "--heads", type=float, default=0.1, help="weight of the throw-away heads per patch"
    )
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--no-compile", action="store_true")
    p.add_argument(
        "--max-steps",
        type=int,
        default=10**9,
        help="stop (with a checkpoint) after this many steps in this run",
    )
    return _checked(p, p.parse_args(argv))


def _checked(p: argparse.ArgumentParser, args: argparse.Namespace) -> argparse.Namespace:
    if args.pictures is None:
        args.pictures = max(1, args.rows // 2)
    if args.rows < 1 and not (args.rows == 0 and args.pictures > 0 and args.heads > 0):
        p.error(
            f"--rows: got {args.rows} beside --pictures {args.pictures} and "
            f"--heads {args.heads:g}; allowed is 1 or more, or 0 where both of those are above 0"
        )
    if args.books and not Path(args.books).is_dir():
        p.error(f"--books: there is no folder {args.books}")
    for name in ("nlvr", "rollouts"):
        path = getattr(args, name)
        if path and not Path(path).is_file():
            p.error(f"--{name}: there is no file {path}")
        if path and not Path(path).stat().st_size:
            p.error(f"--{name}: {path} is empty")
    return args


class Trainer:
    """One process of a run."""

    def __init__(self, args: argparse.Namespace, rank: int):
        self.args, self.rank, self.world = args, rank, args.processes
        self.out = Path(args.out)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if self.device.type == "cpu":
            torch.set_num_threads(1 if self.world > 1 else network.threads_of_this_machine())
        self.model = network.create(args.size, args.seed).to(self.device)
        if not args.pictures:
            network.freeze_vision(self.model)
        if not args.rows:
            network.freeze_all_but_vision(self.model)
        if self.device.type == "cpu":
            network.use_plain_attention(self.model)
        folder = args.tokenizer or str(Path(__file__).parent.parent / "nano")
        words = network.words_of(tokenizer.load(folder))
        self.loss = network.PackedLoss(self.model, args.heads, words).to(self.device)
        self.loss.heads.requires_grad_(bool(args.pictures and args.heads))
        self.optimizer = Optimizer(self.loss)
        self.families = np.zeros((2, len(FAMILIES)))
        self.step, self.tokens, self.decay_from = 0, 0, None
        self.stopping = self.stop = False  # asked to stop; agreed to stop
        if (self.out / "last.pt").exists():
            self._resume()
        self.run_loss = self.loss if args.no_compile else torch.compile(self.loss, dynamic=False)
        seed = args.seed + 7919 * self.step + rank
        self.source = Source(
            folder,
            args.books,
            args.rows,
            args.length,
            args.pictures,
            args.vision,
            seed,
            self._phase(),
            args.workers,
            args.nlvr,
            args.rollouts,
        )

    def _resume(self) -> None:
        state = torch.load(self.out / "last.pt", map_location=self.device, weights_only=True)
        checkpoint.load_weights(self.model, state["model"])
        if "heads" in state:
            # Heads are thrown away: what an older checkpoint has none of begins afresh.
            self.loss.heads.load_state_dict(state["heads"], strict=False)
        if "optimizer" in state:
            self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.tokens, self.decay_from = (
            state["step"],
            state["tokens"],
            state.get("decay_from"),
        )

    def _phase(self) -> str:
        return "first" if self.tokens < self.args.first_tokens else "main"

    def _rate(self) -> float:
        """Learning rate of this step: warm-up, constant, linear to zero from the step the decay
        began at."""
        rate = self.args.lr * min(1.0, (self.step + 1) / self.args.warmup)
        if self.decay_from is not None:
            rate *= max(0.0, 1 - (self.step - self.decay_from) / self.args.decay_steps)
        return rate

    def _reduce(self, loss: torch.Tensor) -> float:
        """Average gradients and loss over the processes, and agree on the signs to begin the decay
        and to stop: all processes must act on them after the same step."""
        decay = float((self.out / "decay").exists() or self.tokens >= self.args.tokens)
        if self.world == 1:
            self._agree(decay, self.stopping)
            return float(loss.detach())
        grads = [p.grad for p in self.optimizer.parameters]
        signs = torch.tensor([float(loss.detach()), decay, float(self.stopping)])
        flat = torch.cat([g.flatten() for g in grads] + [signs])
        dist.all_reduce(flat)
        at = 0
        for g in grads:
            g.copy_(flat[at : at + g.numel()].view_as(g)).div_(self.world)
            at += g.numel()
        self._agree(flat[-2], flat[-1])
        return float(flat[-3]) / self.world

    def _agree(self, decay: float, stop: float) -> None:
        self.stop = bool(stop)
        if decay and self.decay_from is None:
            self.decay_from = self.step

    def one_step(self, batch: Batch) -> tuple[float, float]:
        """Forward, backward, update; returns (loss, gradient norm)."""
        tensors = {
            k: torch.from_numpy(v).to(self.device)
            for k, v in batch.arrays().items()
            if k != "family"
        }
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            loss, losses, _ = self.run_loss(tensors)
        loss.backward()
        used = batch.labels != IGNORE
        for row, weights in zip(self.families, (losses.cpu().numpy()[used], None), strict=True):
            row += np.bincount(batch.family[used], weights, len(FAMILIES))
        mean = self._reduce(loss)
        norm = self.optimizer.step(self._rate())
        self.step += 1
        self.tokens += batch.ids.size * self.world
        return mean, norm

    def save(self) -> None:
        """Write last.pt by renaming, so that a reader or a crash never meets half a file."""
        if self.rank == 0:
            checkpoint.save(
                self.out / "last.pt",
                self.loss,
                self.optimizer,
                self.step,
                self.tokens,
                self.decay_from,
                self.args.size,
            )

    def run(self) -> None:
        """Train until the decay is through, the step limit, Ctrl-C or SIGTERM; always leaves a
        checkpoint."""
        with asked_to_stop(lambda: setattr(self, "stopping", True)):
            self._run()

    def _run(self) -> None:
        parent = os.getppid()
        begin, first, average, mark = time.time(), self.step, None, (time.time(), self.tokens)
        speed, status = 0.0, Status()
        while not self.stop and self.step - first < self.args.max_steps:
            if self.decay_from is not None and self.step >= self.decay_from + self.args.decay_steps:
                break
            self.stopping |= os.getppid() != parent  # whoever started it is gone
            loss, norm = self.one_step(self.source.get(self._phase()))
            average = loss if average is None else 0.98 * average + 0.02 * loss
            if logged := self.step % LOG_EVERY == 0:
                now = time.time()
                speed, mark = (self.tokens - mark[1]) / (now - mark[0]), (now, self.tokens)
                self._log(
                    loss=average,
                    norm=norm,
                    rate=self._rate(),
                    tokens_per_s=speed,
                    minutes=(now - begin) / 60,
                )
            if self.rank == 0:
                status(self._state(average, speed), kept=logged)
            if self.step % self.args.save_every == 0:
                self._log_families()
                self.save()
        self.save()
        if self.rank == 0 and average is not None:
            status.end(f"{self._state(average, speed)}; {self.out / 'last.pt'}")
        self.source.close()

    def _state(self, loss: float, speed: float) -> str:
        """The state of the run in a line; ``speed`` is 0 while it is not known."""
        rate = f"{speed:,.0f} tokens/s" if speed else "starting"
        phase = self.source.phase if self.decay_from is None else "decay"
        tokens = f"{self.tokens / 1e6:.2f} M tokens"
        return f"step {self.step}  {tokens}  loss {loss:.4f}  {rate}  {phase}"

    def _log_families(self) -> None:
        """Mean loss of each task's trained tokens since the last such line."""
        total, count = self.families
        means = {f: total[i] / count[i] for i, f in enumerate(FAMILIES) if count[i]}
        self.families[:] = 0
        if self.rank == 0:
            with (self.out / "families.jsonl").open("a") as f:
                line = {k: round(v, 4) for k, v in means.items()}
                f.write(json.dumps({"step": self.step, "tokens": self.tokens, **line}) + "\n")

    def _log(self, **values: float) -> None:
        if self.rank:
            return
        line = {"step": self.step, "tokens": self.tokens, "phase": self.source.phase}
        line |= {k: float(f"{v:.5g}") for k, v in values.items()}
        with (self.out / "log.jsonl").open("a") as f:
            f.write(json.dumps(line) + "\n")


def _process(rank: int, args: argparse.Namespace) -> None:
    if args.processes > 1:
        store = dist.FileStore(str(Path(args.out) / f"store-{os.getppid()}"), args.processes)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=args.processes)
    Trainer(args, rank).run()


def main(argv: list[str] | None = None) -> None:
    """Run one process, or start several."""
    args = parse(argv)
    Path(args.out).mkdir(parents=True, exist_ok=True)
    if args.processes == 1:
        _process(0, args)
        return
    context = torch.multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_process, args=(rank, args)) for rank in range(args.processes)
    ]
    for process in processes:
        process.start()
    with asked_to_stop(lambda: [process.terminate() for process in processes]):
        (Path(args.out) / "pids").write_text(" ".join(str(p.pid) for p in processes))
        for process in processes:
            process.join()
    if any(p.exitcode for p in processes):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
