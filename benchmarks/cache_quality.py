"""What formats of keys and values do to whole models, beside a cache of float32.

    python benchmarks/cache_quality.py --data ../shared/data [--save] [--only attacks …]

- ``end to end``: KL divergence of the next token's distribution from the f32 cache's, in nats, and
  the share of positions with the same best token, at 512 to 8,192 tokens; positions from 128 on
  (before them every format is at 8 bits). Weights are float32 on all rows, so that the cache alone
  differs. ``auto`` is chosen as at conversion, from the package's own text (the random model: from
  other random tokens).
- ``attacks``: the same divergence where keys and queries are changed so that exact attention stays
  the same function (cache_attacks.py), over that without an attack. Stated: at most 2 for kv8 and
  kv8v4, shifts up to 40 standard deviations, a pair scaled by up to 4.
- ``tasks``: Spark Nano answers after a conversation of so many tokens: a fact told at its beginning
  (retrieval) or an addition of three to four digits worked out step by step (chained arithmetic).
  Before 128 tokens all formats are the same; 4k and 8k are beyond its context.

Models: Spark Nano (trained on up to 512 tokens, context 2,048); stories260K (trained on 512; beyond
that its texts are noise, its divergence still is one); a random qwen2 with biases on its keys.
Intervals are 95%: blocks of 128 positions drawn again, tasks by Wilson.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import common
import divergence
import numpy as np
from cache_attacks import Attack, logits

import musespark
from musespark import _core
from musespark.calibration import sample_text
from musespark.families import family_for
from musespark.lab.evaluate import wilson
from musespark.weights import open_model
from musespark.weights.kv_choice import choose

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from support.run_engine import pack_weights
from support.stories260k import BOS, convert_stories260k
from support.tiny_models import Runner, random_weights

FORMATS = ("kv8", "kv8v4", "kv4")
COUNTS = {512: 12, 1024: 8, 2048: 6, 4096: 3, 8192: 2}  # texts of each length
FIRST, BLOCK = 128, 128
ATTACKS = [Attack("shift", s) for s in (3, 10, 40)] + [Attack("scale", s) for s in (2, 4)]
PARTS = ("attacks", "end to end", "tasks")


@dataclass
class Bed:
    """A model with float32 weights, token ids to measure on, and chunks to choose formats with."""

    name: str
    spec: Any
    weights: dict[str, np.ndarray]
    ids: np.ndarray
    chunks: Sequence[np.ndarray]
    lengths: tuple[int, ...]

    def texts(self, length: int, count: int) -> list[np.ndarray]:
        room = len(self.ids) // length
        return [self.ids[i * length : (i + 1) * length] for i in range(min(count, room))]


def beds(data: Path) -> list[Bed]:
    return [nano(data), stories(data), random_model()]


def _chunks(folder: Path, spec: Any) -> Sequence[np.ndarray]:
    model = open_model(folder, quantize="none", progress=False)
    return sample_text(spec, model.assets, folder.name)


def _ids(folder: Path, text: str) -> np.ndarray:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return np.array(tokenizer.encode(text, add_special_tokens=False).ids, np.int32)


def nano(data: Path) -> Bed:
    folder = Path(musespark.__file__).parent / "nano"
    spec, weights = divergence.exact_weights(folder)
    ids = _ids(folder, (data / "text/wikitext2-valid.txt").read_text()[:120_000])
    return Bed("nano", spec, weights, ids, _chunks(folder, spec), (512, 1024, 2048))


def stories(data: Path) -> Bed:
    folder = convert_stories260k(data / "stories260K", Path(tempfile.mkdtemp()) / "stories260K")
    spec, weights = divergence.exact_weights(folder)
    chunks = _chunks(folder, spec)
    ids = _ids(folder, (data / "text/tinystories.txt").read_text()[:80_000])
    ids[::512] = BOS
    return Bed("stories260K", replace(spec, max_context=8192), weights, ids, chunks, tuple(COUNTS))


def random_model() -> Bed:
    config = {
        "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "vocab_size": 1024,
        "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": True, "hidden_act": "silu",
    }  # fmt: skip
    spec = family_for(config).spec(config)
    weights = random_weights(spec, seed=1)
    for i in range(len(spec.layers)):
        weights[f"layers.{i}.k_bias"] *= np.float32(30)  # of normal numbers times 0.3
        for name in ("o", "down"):  # a layer adds less than what is there, as in trained models
            weights[f"layers.{i}.{name}"] *= np.float32(0.3)
    weights["final_norm"] *= np.float32(0.15)  # logits of a standard deviation of about 4
    rng = np.random.default_rng(5)
    ids = rng.integers(0, spec.vocab, 40_000).astype(np.int32)
    chunks = list(rng.integers(0, spec.vocab, (4, 512)).astype(np.int32))
    return Bed("random qwen2", spec, weights, ids, chunks, tuple(COUNTS))


# ---- end to end ---------------------------------------------------------------------------------


def interval(values: np.ndarray) -> list[float]:
    """95% of the mean, blocks of positions drawn again."""
    blocks = [values[i : i + BLOCK].mean() for i in range(0, len(values), BLOCK)]
    drawn = np.random.default_rng(0).choice(blocks, (2000, len(blocks))).mean(axis=1)
    return [float(x) for x in np.percentile(drawn, [2.5, 97.5])]


def end_to_end(bed: Bed) -> list[dict[str, Any]]:
    tensors = pack_weights(bed.weights)
    chosen = choose(bed.spec, tensors, bed.chunks, threads=2)
    assert chosen is not None
    print(f"{bed.name}: auto is {chosen.formats}", flush=True)
    rows: list[dict[str, Any]] = []
    for length in bed.lengths:
        texts = bed.texts(length, COUNTS[length])
        exact = [_run(bed, tensors, "f32", text) for text in texts]
        for kv in (*FORMATS, "auto"):
            formats = chosen.formats if kv == "auto" else kv
            found = [_run(bed, tensors, formats, text) for text in texts]
            kld = np.concatenate([_kld(a, b) for a, b in zip(exact, found, strict=True)])
            same = [a.argmax(1) == b.argmax(1) for a, b in zip(exact, found, strict=True)]
            size = _core.kv_bytes_per_token(asdict(bed.spec), kv=formats)
            row = {"model": bed.name, "length": length, "kv": kv, "n": len(kld), "bytes": size}
            row |= {"kld": float(kld.mean()), "interval": interval(kld)}
            row |= {"same_top": float(np.concatenate(same).mean())}
            rows.append(row | ({"chosen": asdict(chosen)} if kv == "auto" else {}))
            print(
                f"{bed.name:14} {length:5} {kv:6} {size:6.0f} B a token  KLD {row['kld']:.5f} "
                f"[{row['interval'][0]:.5f}, {row['interval'][1]:.5f}]  same top "
                f"{100 * row['same_top']:.1f}%  n {row['n']}",
                flush=True,
            )
    return rows


def _run(bed: Bed, tensors: Any, kv: str, text: np.ndarray) -> np.ndarray:
    """Log-probabilities [n, vocab] from position FIRST on."""
    rows = Runner(bed.spec, tensors, threads=2, kv=kv).logits(text, 512)
    return divergence.log_softmax(rows[FIRST:])


def _kld(exact: np.ndarray, found: np.ndarray) -> np.ndarray:
    return (np.exp(exact) * (exact - found)).sum(1)


# ---- attacks ------------------------------------------------------------------------------------


def attacks(bed: Bed) -> list[dict[str, Any]]:
    texts = bed.texts(512, 4)
    exact = [
        divergence.log_softmax(logits(bed.spec, bed.weights, t, None, Attack())) for t in texts
    ]
    rows = []
    for kv in FORMATS:
        plain = None
        for attack in (Attack(), *ATTACKS):
            found = [logits(bed.spec, bed.weights, text, kv, attack) for text in texts]
            pairs = zip(exact, found, strict=True)
            kld = np.concatenate([_kld(a, divergence.log_softmax(b))[FIRST:] for a, b in pairs])
            plain = kld if plain is None else plain
            row = {"model": bed.name, "kv": kv, **asdict(attack), "n": len(kld)}
            row |= {"kld": float(kld.mean()), "interval": interval(kld)}
            row["ratio"] = float(kld.mean() / plain.mean())
            rows.append(row)
            print(
                f"{bed.name:14} {kv:6} {attack.kind:5} {attack.size:4}  KLD {row['kld']:.6f}  "
                f"ratio {row['ratio']:.2f}",
                flush=True,
            )
    return rows


# ---- tasks --------------------------------------------------------------------------------------


def conversation(task: str, tokens: int, seed: int, count: Any) -> tuple[list[dict], str]:
    """Messages of about so many tokens that end with a question, and its answer."""
    from musespark.lab.tasks import draw
    from musespark.lab.tasks.text import WORDS

    rng = Random(f"{seed} {task} {tokens}")
    if task == "retrieval":
        problem = draw(rng, "recall", "easy", evaluation=True)
        messages, ask = list(problem.messages[:2]), problem.messages[2]
    else:
        problem = draw(rng, "addition", "middle", evaluation=True)
        messages, ask = [], {"role": "user", "content": problem.question}
    while count([*messages, ask]) < tokens:
        word = rng.choice(WORDS)
        messages += [
            {"role": "user", "content": f"Repeat: {word}"},
            {"role": "assistant", "content": word},
        ]
    return [*messages, ask], problem.answer


def tasks(n: int) -> list[dict[str, Any]]:
    rows = []
    for kv in ("f32", *FORMATS, "auto"):
        with musespark.load(kv=kv, threads=2) as model:

            def count(messages: list[dict], model: Any = model) -> int:
                return sum(len(model.tokenizer.encode(m["content"])) + 5 for m in messages)

            for task in ("retrieval", "arithmetic"):
                for tokens in (0, 160, 1024, 1900):
                    asked = [conversation(task, tokens, i, count) for i in range(n)]
                    found = model.chat_batch([m for m, _ in asked], max_new_tokens=120)
                    right = sum(
                        r.content.strip() == a for r, (_, a) in zip(found, asked, strict=True)
                    )
                    length = float(np.mean([r.usage.prompt_tokens for r in found]))
                    row = {"task": task, "kv": kv, "tokens": length, "n": n, "right": right}
                    rows.append(row | {"interval": wilson(right, n)})
                    print(f"{task:10} {length:6.0f} tokens {kv:6} {right}/{n}", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder of real test data")
    parser.add_argument("--save", action="store_true", help="write results/cache_quality.json")
    parser.add_argument("--only", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--tasks", type=int, default=20, help="questions of each kind and length")
    options = parser.parse_args()
    report: dict[str, Any] = {"machine": common.machine()}
    models = beds(options.data)
    if "attacks" in options.only:
        report["attacks"] = [row for bed in models for row in attacks(bed)]
        broken = [r for r in report["attacks"] if r["kv"] != "kv4" and r["ratio"] > 2]
        report["attacks_hold"] = not broken
        for row in broken:
            print(f"above 2: {row['model']} {row['kv']} {row['kind']} {row['size']}")
    if "end to end" in options.only:
        report["end_to_end"] = [row for bed in models for row in end_to_end(bed)]
    if "tasks" in options.only:
        report["tasks"] = tasks(options.tasks)
    if options.save:
        common.save("cache_quality", report)


if __name__ == "__main__":
    main()
