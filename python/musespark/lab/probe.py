"""``musespark lab probe CHECKPOINT``: what a vision tower tells, and whether it is read from.

Of pictures of the evaluation side: the share of patches that show something whose class, color and
character the throw-away heads tell, how far off their boxes are, the share of image tokens whose
nearest word names what they show; and how many `pointing` answers the text half begins rightly
(what stands at this point, and where does this stand?).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from random import Random

import numpy as np
import torch

from . import drills, network, protocol
from . import tokenizer as tok
from .arguments import at_least
from .item import compose
from .raster import LABEL_WIDTH, LABELS, SIZE, Picture
from .tasks.pictures import ask_several

TASKS = ("codes", "displays", "labels", "buttons", "bars", "counting")
_HEADER = f"{'':10} {'class':>6} {'color':>6} {'char':>6} {'box px':>7} {'words':>6}"


def main(argv: list[str] | None = None) -> None:
    """Load a checkpoint of a training run, print the table."""
    p = argparse.ArgumentParser(
        prog="musespark lab probe",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("checkpoint", type=Path, help="last.pt of a run, with its heads")
    p.add_argument("--n", type=int, default=64, help="pictures of each kind (default: 64)")
    p.add_argument("--seed", type=int, default=2026)
    args = p.parse_args(argv)
    at_least(1, args.n, "--n")
    state = torch.load(args.checkpoint, map_location="cpu", weights_only=True)
    tokenizer = tok.load(Path(__file__).parent.parent / "nano")
    loss = network.PackedLoss(
        network.create(state["size"], 1), 1.0, network.words_of(tokenizer)
    ).eval()
    loss.model.load_state_dict(state["model"])
    loss.heads.load_state_dict(state["heads"])
    print(f"{state['tokens'] / 1e6:.1f} M tokens\n{_HEADER}")
    r = Random(args.seed)
    told(loss, "drills", [drills.draw(r) for _ in range(args.n)])
    for task in TASKS:
        told(loss, task, [_picture(r, task) for _ in range(args.n)])
    counts = read(loss, tokenizer, r, args.n)
    told_of = ", ".join(f"{kind} {right} of {count}" for kind, (right, count) in counts.items())
    print(f"pointing: the text half says {told_of}")


def _picture(r: Random, task: str) -> Picture:
    return ask_several(r, task, "easy", 1, evaluation=True)[0].pictures[0]


@torch.no_grad()
def told(loss: network.PackedLoss, name: str, pictures: list[Picture]) -> None:
    """Print a row for ``pictures``; ``-`` where none of them has such a label."""
    features = loss.sight(torch.from_numpy(np.stack([p.pixels for p in pictures])))
    side = features.shape[1] ** 0.5
    seen = torch.from_numpy(np.stack([p.labels for p in pictures]))
    cells = seen.view(len(pictures), int(side), 2, int(side), 2, LABEL_WIDTH)
    truth = cells.permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, LABEL_WIDTH).long()
    patches = truth.flatten(0, 1)
    logits = loss.heads.linear(features).view(-1, sum(LABELS)).split(LABELS, -1)
    shares = []
    for k, part in enumerate(logits):
        some = (patches[:, k] > 0) & (patches[:, k] < LABELS[k])
        shares.append(_mean((part.argmax(-1) == patches[:, k])[some]))
    edges = patches[:, len(LABELS) :]
    boxed = (patches[:, 0] < LABELS[0]) & (edges[:, 2] > 0)
    away = (loss.heads.box(features).view(-1, 4) * SIZE - edges).abs().mean(-1)[boxed]
    words = _mean(named(loss, features.flatten(0, 1), truth))
    print(f"{name:10}", *(f"{v:>6}" for v in shares), f"{_mean(away):>7} {words:>6}")


def named(loss: network.PackedLoss, features: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """bool [image tokens that show something with a name]: the nearest word is one of those.
    ``features`` [n, hidden], ``truth`` [n, 4, LABEL_WIDTH]."""
    nearest = (features @ loss.model.model.language_model.embed_tokens.weight.T).argmax(-1)
    words = torch.cat(
        [
            loss.heads.words[k][torch.where(truth[..., k] < size, truth[..., k], 0)].flatten(1)
            for k, size in enumerate(LABELS)
        ],
        -1,
    )
    return (words == nearest[:, None]).any(-1)[(words >= 0).any(-1)]


@torch.no_grad()
def read(
    loss: network.PackedLoss, tokenizer: tok.Tokenizer, r: Random, n: int
) -> dict[str, tuple[int, int]]:
    """Of ``n`` answers of `pointing` how many begin with the likeliest token, and how many there
    are: ``what`` is at a point, and ``where`` a thing is (the first digit of its place)."""
    counts = {"what": (0, 0), "where": (0, 0)}
    for _ in range(n):
        problem = ask_several(r, "pointing", "easy", 1, evaluation=True)[0]
        item = compose(problem, "medium", r)
        pieces = protocol.prompt_pieces(item.messages, item.effort, item.tools, item.pictures)
        *before, _answer, _end = protocol.reply_pieces(item)
        named, place, rest = item.answer.partition("(")
        kind, said = ("where", named + place) if place else ("what", "")
        ids, _ = protocol.encode([*pieces, *before], tokenizer)
        ids += tokenizer.encode(said, add_special_tokens=False).ids
        logits = loss.model(
            input_ids=torch.tensor([ids]),
            pixel_values=network.patches_of(torch.from_numpy(item.pictures[0].pixels[None]))[0],
            image_grid_thw=torch.tensor([[1, 16, 16]]),
        ).logits[0, -1]
        first = tokenizer.encode(rest if place else named, add_special_tokens=False).ids[0]
        right, count = counts[kind]
        counts[kind] = right + int(logits.argmax() == first), count + 1
    return counts


def _mean(values: torch.Tensor) -> str:
    return f"{values.float().mean().item():.2f}" if len(values) else "-"
