"""What a model takes in memory: the estimate beside the measured peak, and bytes of each format.

    python benchmarks/memory.py [--data ../shared/data] [--only nano] [--save]

Each measured row is a process of its own, which loads the model, encodes a text (so that the
tokenizer is there, as with any prompt that is not token ids), computes a prompt that leaves room
for 16 tokens in the context, and samples those. The peak is VmHWM, the most pages that were
resident at any moment, of files and anonymous ones. A mapped weight file counts as far as it has
been read: here all of it, but for rows of an embedding that is not tied to the head and experts
that nobody was sent to. Its pages are shared with other processes and can be taken back by the
system; they are in the estimate whole. With agents: so many prompts of random tokens at once.

The table of bytes: formula of formats/kv_page.h, what the engine's page pool holds for a sequence
of so many tokens written 512 at a time (the most, with the pages of a step that are not packed
yet; the steps begin and end inside pages), and bytes a token of a pool that is filled. The pool
allocates what it counts, so the shapes that are too large for this machine are held against it too.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import models
from common import RESULTS, machine, save
from shapes import SHAPES, Shape

import musespark
from musespark import _core
from musespark.families.spec import ModelSpec
from musespark.sizes import kv_bytes, kv_bytes_per_token

WORKER = Path(__file__).parent / "workers" / "memory_once.py"
GOAL = 0.03
DECODED = 16
FORMATS = ("f32", "kv8", "kv8v4", "kv4")
# Three layers with a window to one without, as the large one has them.
WINDOWED = Shape(
    "muse-windowed-0.2b",
    {
        "architectures": ["MuseGlimmerForConditionalGeneration"],
        "model_type": "muse_glimmer",
        "tie_word_embeddings": False,
        "text_config": {
            "model_type": "muse_glimmer_text",
            "vocab_size": 32768,
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "num_hidden_layers": 16,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "head_dim": 128,
            "rms_norm_eps": 1e-5,
            "sliding_window": 1024,
            "max_position_embeddings": 32768,
            "bos_token_id": 32768 - 256,
            "eos_token_id": 32768 - 255,
        },
    },
    "muse-glimmer",
    "llama4",
)
# Model -> (format, context, agents) of each run.
RUNS = {
    "nano": [("kv8", 512, 1), ("kv8", 2048, 1), ("f32", 2048, 1), ("kv4", 2048, 1)],
    "stories260K": [("kv8", 512, 1), ("f32", 512, 1)],
    "llama-3.2-1b": [
        *(("kv8", tokens, 1) for tokens in (1024, 4096, 16384)),
        *((kv, 4096, 1) for kv in ("kv8v4", "kv4", "f32")),
        ("kv8", 1024, 8),
    ],
    WINDOWED.name: [*((kv, 8192, 1) for kv in FORMATS), ("kv8", 2048, 1), ("kv8", 2048, 4)],
}
# Shape -> contexts of the table of bytes.
TABLE = {"llama-3.2-1b": (8192,), WINDOWED.name: (8192,), "muse-glimmer-30b": (131072,)}


def measure(source: str | None, kv: str, context: int, agents: int) -> dict[str, Any]:
    """One run: the estimate and its parts, the peak, and by how much the estimate is off."""
    options = {"kv": kv, "context": context, "agents": agents}
    quantize = "auto"
    (need,) = musespark.estimate(source, quantize=quantize, **options).needs
    prompt = context - DECODED
    asked = {"source": source, "kv": kv, "context": context, "agents": agents, "prompt": prompt}
    command = [sys.executable, str(WORKER), json.dumps(asked | {"decoded": DECODED})]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    parts = {name: getattr(need, name) for name in ("weights", "keys_values", "step", "process")}
    return {
        "quantize": need.quantize,
        **options,
        "estimate": need.total,
        **parts,
        "measured": found,
        "deviation": need.total / found["peak"] - 1,
    }


def page_bytes(kv: str, dim: int) -> int:
    """Bytes of 64 sealed tokens of one layer and KV head, from the drawing in formats/kv_page.h."""
    if kv == "f32":
        return 2 * 64 * dim * 4
    keys, values = (4 if kv == "kv4" else 8), (8 if kv == "kv8" else 4)
    steps = sum(bits == 4 for bits in (keys, values)) * -(-dim // 32) * 32
    return -(-(64 * dim * keys // 8 + 64 * dim * values // 8 + steps + 2 * dim + 256) // 64) * 64


def bytes_of(spec: ModelSpec, kv: str, tokens: int) -> dict[str, Any]:
    """Formula against the page pool for one sequence of ``tokens`` tokens."""
    attention = [layer.attention for layer in spec.layers]
    padded = [(a.kv_heads, -(-a.head_dim // 16) * 16, a.window) for a in attention]
    formula = sum(heads * page_bytes(kv, dim) for heads, dim, _ in padded) / 64
    pool = _core.testing.PagePool(kv, padded, 1 << 40)
    sequence = _core.testing.Sequence(pool)
    for end in [37, *range(37 + 512, tokens, 512), tokens]:
        sequence.begin_step(end - sequence.length)
        sequence.commit_step()
        sequence.accept(end)
    most, full = pool.usage(), [(a.kv_heads, a.head_dim, 0) for a in attention]
    flat = _core.testing.PagePool(kv, full, 1 << 40)
    whole = _core.testing.Sequence(flat)
    held = []
    for end in (64, 64 + 1024):  # the first page is at 8 bits
        whole.begin_step(end - whole.length)
        whole.commit_step()
        whole.accept(end)
        held.append(flat.usage()["in_use"])
    figures = {
        "kv": kv,
        "tokens": tokens,
        "formula_per_token": formula,
        "engine_per_token": kv_bytes_per_token(spec, kv),
        "pool_per_token": (held[1] - held[0]) / 1024,
        "estimate": kv_bytes(spec, kv, tokens),
        "pool_most": most["peak"],
        "pool_after": most["in_use"],
        "per_token_layer_head": formula / sum(heads for heads, *_ in padded),
    }
    assert figures["formula_per_token"] == figures["pool_per_token"] == figures["engine_per_token"]
    return figures


def sources(only: list[str], data: Path | None) -> Iterator[tuple[str, str | None]]:
    """Each model that is asked for and can be had, and what load takes for it."""
    for name in RUNS:
        if only and name not in only:
            continue
        if name == "nano":
            yield name, None
        elif name == "stories260K":
            if data is None:
                print("stories260K needs --data", file=sys.stderr)
                continue
            from divergence import convert_stories260k

            with tempfile.TemporaryDirectory() as folder:
                packed = Path(folder) / "stories260K.safetensors"
                hf = convert_stories260k(data / "stories260K", Path(folder) / "hf")
                musespark.convert(hf, packed, quantize="q8", progress=False)
                yield name, str(packed)
        else:
            shape = WINDOWED if name == WINDOWED.name else SHAPES[name]
            yield name, str(models.build(shape, "q4.safetensors"))


def table() -> dict[str, list[dict[str, Any]]]:
    found = {}
    for name, contexts in TABLE.items():
        shape = WINDOWED if name == WINDOWED.name else SHAPES[name]
        spec = dataclasses.replace(models.spec_of(shape))
        found[name] = [bytes_of(spec, kv, tokens) for tokens in contexts for kv in FORMATS]
    return found


def show(name: str, row: dict[str, Any]) -> None:
    def mib(count: int) -> str:
        return f"{count / 2**20:,.1f}"

    agents = f" x{row['agents']}" if row["agents"] > 1 else ""
    parts = " ".join(
        f"{part} {mib(row[part])}" for part in ("weights", "keys_values", "step", "process")
    )
    found = row["measured"]
    print(
        f"{name:20} {row['kv']:6} {row['context']:>6}{agents:3} {mib(row['estimate']):>8} MiB "
        f"({parts}), peak {mib(found['peak']):>8} (file {mib(found['file'])}, anonymous "
        f"{mib(found['anonymous'])}): {row['deviation']:+.1%}",
        flush=True,
    )


def show_bytes(name: str, row: dict[str, Any]) -> None:
    print(
        f"{name:20} {row['kv']:6} {row['tokens']:>7} tokens: {row['per_token_layer_head']:7.2f} "
        f"bytes a token, layer and head; at most {row['pool_most'] / 2**20:9,.1f} MiB, formula "
        f"{row['estimate'] / 2**20:9,.1f} ({row['estimate'] / row['pool_most'] - 1:+.2%})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=None, help="folder with stories260K in it")
    parser.add_argument(
        "--only", nargs="+", default=[], choices=sorted(RUNS), help="the others' results stay"
    )
    parser.add_argument("--save", action="store_true", help="write results/memory.json")
    args = parser.parse_args()
    bytes_table = table()
    for name, rows in bytes_table.items():
        for row in rows:
            show_bytes(name, row)
    before = RESULTS / "memory.json"
    keep = args.only and before.exists()
    measured: dict[str, list[dict[str, Any]]] = {}
    for name, source in sources(args.only, args.data):
        for run in RUNS[name]:
            row = measure(source, *run)
            measured.setdefault(name, []).append(row)
            show(name, row)
    if keep:
        measured = json.loads(before.read_text())["measured"] | measured
    deviations = [abs(row["deviation"]) for rows in measured.values() for row in rows]
    worst = max(deviations)
    print(f"largest deviation {worst:.1%}; goal {GOAL:.0%}")
    if args.save:
        report = {"machine": machine(), "bytes": bytes_table, "measured": measured}
        save("memory", report | {"largest_deviation": worst, "goal": GOAL})


if __name__ == "__main__":
    main()
