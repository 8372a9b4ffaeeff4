"""The common body of decode.py and prefill.py."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import (
    LlamaCpp,
    bench_model,
    dot_peak,
    machine,
    peer_python,
    read_bandwidth,
    save,
    spread,
)

PAIRS = {"q4": "q4_0", "q8": "q8_0"}
MAX_DRIFT = 0.05


class Ours:
    """Our engine on one packed model. Its time holds the greedy choice of each token, which the
    peer's does not."""

    def __init__(self, folder: Path, quantize: str, threads: int, kv: str):
        import musespark

        self.model = musespark.load(folder, quantize=quantize, threads=threads, context=4096, kv=kv)
        self.vocab = self.model.info.vocab

    def seconds(self, test: str, count: int) -> float:
        if test == "prefill":
            ids = np.asarray([(7 + 13 * i) % self.vocab for i in range(count)], np.int32)
            result = self.model.generate(ids, max_new_tokens=1, temperature=0)
            return result.timings.prefill_s
        result = self.model.generate(
            [7], max_new_tokens=count + 1, min_new_tokens=count + 1, temperature=0
        )
        return result.timings.decode_s

    def close(self) -> None:
        self.model.close()


def one_round(engines: dict[str, Any], test: str, count: int, threads: int) -> dict[str, Any]:
    before = read_bandwidth(threads)
    speeds = {}
    for name, engine in engines.items():
        speeds[name] = count / engine.seconds(test, count)
    after = read_bandwidth(threads)
    kept = abs(after - before) <= MAX_DRIFT * before
    return {"bandwidth": [before, after], "kept": kept, **speeds}


def compare(args: argparse.Namespace, test: str, quantize: str) -> dict[str, Any]:
    peer_file = args.folder / f"{PAIRS[quantize]}.gguf"
    if not peer_file.exists():
        worker = Path(__file__).parent / "llama_cpp_worker.py"
        source = args.folder / "f16.gguf"
        command = [args.peer, worker, "quantize", source, peer_file, PAIRS[quantize]]
        subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
    ours = Ours(args.folder / "hf", quantize, args.threads, args.kv)
    peer = LlamaCpp(args.peer, str(peer_file), args.threads)
    engines = {"musespark": ours, "llama.cpp": peer}
    for engine in engines.values():
        engine.seconds(test, args.tokens)
    rounds = []
    while sum(r["kept"] for r in rounds) < args.rounds and len(rounds) < 3 * args.rounds:
        rounds.append(one_round(engines, test, args.tokens, args.threads))
        time.sleep(0.2)
    kept = [r for r in rounds if r["kept"]]
    info = ours.model.info
    report = {
        "format": quantize,
        "kv": info.kv,
        "isa": info.isa,
        "peer": {"format": PAIRS[quantize], **peer.info},
        "parameters": info.parameters,
        "weight_bytes": info.weight_bytes,
        "rounds_kept": len(kept),
        "rounds_discarded": len(rounds) - len(kept),
        "rounds": rounds,
    }
    ours.close()
    peer.close()
    if kept:
        for name in engines:
            report[name] = spread([r[name] for r in kept])
        report["ratio"] = spread([r["musespark"] / r["llama.cpp"] for r in kept])
        report["bandwidth"] = spread([b for r in kept for b in r["bandwidth"]])
    return report


def show(test: str, row: dict[str, Any], peak: float) -> None:
    if "ratio" not in row:
        print(f"{row['format']}: every round was discarded (bandwidth moved by more than 5%)")
        return
    ours, peer = row["musespark"], row["llama.cpp"]
    if test == "decode":
        share = ours["median"] * row["weight_bytes"] / row["bandwidth"]["median"]
        what = f"{share:.0%} of {row['bandwidth']['median'] / 1e9:.1f} GB/s read"
    else:
        share = ours["median"] * 2 * row["parameters"] / peak
        what = f"{share:.0%} of the {peak / 1e9:.0f} Gop/s dot peak (AMX not counted)"
    row["share"] = share
    ratio = row["ratio"]
    print(
        f"{test} {row['format']:<3} ours {ours['median']:7.1f}"
        f" [{ours['low']:.1f}..{ours['high']:.1f}]"
        f"   llama.cpp {row['peer']['format']} {peer['median']:7.1f}"
        f" [{peer['low']:.1f}..{peer['high']:.1f}] tokens/s"
        f"   ratio {ratio['median']:.2f} [{ratio['low']:.2f}..{ratio['high']:.2f}]"
        f"   {what}; {row['rounds_kept']} rounds, {row['rounds_discarded']} discarded"
    )


def main(test: str, default_tokens: int) -> None:
    parser = argparse.ArgumentParser(description=f"{test} speed beside llama.cpp in the same run")
    parser.add_argument("--model", type=Path, default=None, help="what make_model.py wrote")
    parser.add_argument("--peer", default=None, help="a Python with llama-cpp-python")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=default_tokens)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--formats", nargs="+", default=["q4", "q8"], choices=sorted(PAIRS))
    parser.add_argument("--kv", default="auto")
    parser.add_argument("--name", default=test, help="name of the result file")
    args = parser.parse_args()
    if args.rounds < 1 or args.tokens < 1:
        sys.exit("--rounds and --tokens must be at least 1")
    args.folder = args.model or bench_model()
    args.peer = args.peer or peer_python()
    peaks = [dot_peak(args.threads)]
    rows = [compare(args, test, quantize) for quantize in args.formats]
    peaks.append(dot_peak(args.threads))
    for row in rows:
        if "peer" in row:
            print(f"llama.cpp {row['peer']['version']}: {row['peer']['system']}")
            break
    for row in rows:
        show(test, row, sum(peaks) / 2)
    report = {"test": test, "tokens": args.tokens, "threads": args.threads, "machine": machine()}
    save(args.name, {**report, "dot_peak": peaks, "rows": rows})
