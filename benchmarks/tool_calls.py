"""Calls that always parse: sampled at temperature 2 from random models, over a folder of schemas.

    python benchmarks/tool_calls.py FOLDER [--each 500] [--styles muse,hermes] [--save]

FOLDER has files of the Berkeley Function-Calling Leaderboard (BFCL_v4_*.json, a line for each
question, with its ``function``). Every schema becomes the grammar of a turn in each style of
writing calls; then ``--each`` turns a style are sampled, the schemas in rotation, from a tiny model
with random weights. A call counts as good if it parses and fits its schema. So that turns end,
texts are of at most 20 characters and lists of at most 3 items; a turn that is cut by its length
(in a thought, which nothing bounds) counts as cut.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common import machine, save

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from support.sampled_calls import STYLES, Sampler, sampler, wrong_calls

_TYPES = {"dict": "object", "float": "number", "tuple": "array"}
_KEPT = ("enum", "required", "minItems", "maxItems", "maximum", "minimum")
_BATCH = 16


def json_schema(given: dict[str, Any]) -> dict[str, Any]:
    """A schema of the leaderboard's as JSON Schema, with bounds for texts and lists."""
    out: dict[str, Any] = {key: given[key] for key in _KEPT if key in given}
    if given.get("type", "any") != "any":
        out["type"] = _TYPES.get(given["type"], given["type"])
    if "properties" in given:
        out["properties"] = {name: json_schema(rule) for name, rule in given["properties"].items()}
    if "items" in given:
        out["items"] = json_schema(given["items"])
    if out.get("type") == "string" and "enum" not in out:
        out["maxLength"] = 20
    if out.get("type") == "array":
        out.setdefault("maxItems", 3)
    return out


def tools_of(folder: Path) -> list[dict[str, Any]]:
    """The different functions of all questions."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("BFCL_v4_*.json")):
        for line in path.read_text(encoding="utf-8").splitlines():
            for function in json.loads(line)["function"]:
                schema = json_schema(function["parameters"])
                tool = {"name": function["name"], "description": "", "parameters": schema}
                found[json.dumps(tool)] = {"type": "function", "function": tool}
    return list(found.values())


def rotated(tools: list[Any], count: int, seed: int) -> Iterator[tuple[int, list[Any]]]:
    for i in range(count):
        yield seed + i, [tools[(seed + i) % len(tools)]]


def measured(samples: Sampler, tools: list[Any], each: int) -> dict[str, Any]:
    began = time.perf_counter()
    for tool in tools:
        samples.compiles([tool])
    compiled = time.perf_counter() - began
    good = cut = 0
    wrong: list[str] = []
    work = list(rotated(tools, each, 0))
    for at in range(0, each, _BATCH):
        begun = [(given, samples.begin(given, seed)) for seed, given in work[at : at + _BATCH]]
        for given, handle in begun:
            result = handle.result()
            if result.reason == "length":
                cut += 1
                continue
            found = wrong_calls(samples.read(given, result.tokens), given)
            wrong += [f"{error}: {samples.text(result.tokens):.300}" for error in found[:1]]
            good += not found
    return {
        "schemas": len(tools),
        "turns": each,
        "good": good,
        "cut": cut,
        "wrong": wrong,
        "compile_ms": 1e3 * compiled / len(tools),
        "seconds": time.perf_counter() - began,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--each", type=int, default=500, help="turns of each style")
    parser.add_argument("--styles", default=",".join(STYLES))
    parser.add_argument("--save", action="store_true", help="write results/tool_calls.json")
    args = parser.parse_args()
    tools, report = tools_of(args.folder), {}
    for style in args.styles.split(","):
        with tempfile.TemporaryDirectory() as folder, sampler(style, Path(folder) / "m") as samples:
            report[style] = measured(samples, tools, args.each)
        print(style, json.dumps(report[style]), flush=True)
    if args.save:
        save("tool_calls", {"machine": machine(), "temperature": 2.0, "styles": report})
    wrong = sum(len(one["wrong"]) for one in report.values())
    if wrong:
        raise SystemExit(f"{wrong} turns have calls that are wrong, the goal is none")


if __name__ == "__main__":
    main()
