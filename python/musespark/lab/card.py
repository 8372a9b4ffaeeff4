"""The model card, written from what an evaluation measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .item import EFFORTS
from .tasks import GATED

_TITLE = {"nano": "Spark Nano", "large": "Spark Nano, large", "tiny": "Spark Nano, tiny"}
_FRONT = """---
license: apache-2.0
---

# {title}

A very small Muse (`muse_glimmer`) language model that sees, thinks in a channel of its own before
it answers, and calls tools. It is there so that every feature of musespark runs on a fresh machine;
it knows next to nothing about the world. Apache-2.0. This page is written by `musespark lab eval
--card`: every number on it was measured by that command.
"""
_LIMITS = """\
- World knowledge, code, translation, advice: not this model. It is trained to say that it
  does not know, and often says something wrong instead. Medical questions are referred, dangerous
  ones refused, where it understands them.
- Photographs: it was trained on drawn pictures of 128×128 pixels alone.
- Long texts: rows of up to 768 tokens were trained; the context is 2,048."""
#: By (vision, level): the least accuracy of gated families.
_GOALS = {
    (False, "easy"): 0.95,
    (False, "middle"): 0.80,
    (False, "hard"): 0.0,
    (True, "easy"): 0.90,
    (True, "middle"): 0.75,
    (True, "hard"): 0.0,
}
#: A task and level whose accuracy at medium effort is below this is named among what it cannot do.
_ABLE = 0.8


def table(rows: list[dict]) -> str:
    """Markdown: one line per task, level and wording; per effort accuracy with interval, mean
    thinking tokens, and after a stroke those of the stable oracle."""
    efforts = [e for e in EFFORTS if any(r["effort"] == e for r in rows)]
    efforts += [e for e in dict.fromkeys(r["effort"] for r in rows) if e not in efforts]
    lines = ["| task | level | n | " + " | ".join(f"{e} | tokens" for e in efforts) + " |"]
    lines.append("|---|---|---|" + "---|---|" * len(efforts))
    keys = dict.fromkeys((r["task"], r["level"], r["wording"]) for r in rows)
    for task, level, wording in keys:
        mine = {
            r["effort"]: r
            for r in rows
            if (r["task"], r["level"], r["wording"]) == (task, level, wording)
        }
        cells = [cell for e in efforts for cell in (_cells(mine[e]) if e in mine else ("", ""))]
        name = task if wording == "seen" else f"{task}, held-out wordings"
        n = next(iter(mine.values()))["n"]
        lines.append(f"| {name} | {level} | {n} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cells(row: dict) -> tuple[str, str]:
    low, high = row["interval"]
    tokens = f"{row['thinking_tokens']:.0f}"
    if row.get("stable_oracle_tokens") is not None:
        tokens += f" / {row['stable_oracle_tokens']:.0f}"
    return f"{row['accuracy']:.1%} [{low:.0%}, {high:.0%}]", tokens


def _share(rows: list[dict]) -> str:
    n, correct = (sum(r[key] for r in rows) for key in ("n", "correct"))
    return f"{correct / n:.1%} ({correct}/{n})" if n else "none"


def summary(rows: list[dict]) -> str:
    """Markdown: accuracy by modality, effort and wording."""
    lines = ["| modality | wordings | effort | accuracy | thinking tokens | stable oracle |"]
    lines.append("|---|---|---|---|---|---|")
    keys = dict.fromkeys((r["modality"], r["wording"], r["effort"]) for r in rows)
    for modality, wording, effort in keys:
        mine = [
            r
            for r in rows
            if (r["modality"], r["wording"], r["effort"]) == (modality, wording, effort)
        ]
        means = [_mean(mine, key) for key in ("thinking_tokens", "stable_oracle_tokens")]
        lines.append(
            f"| {modality} | {wording} | {effort} | {_share(mine)} | {means[0]} | {means[1]} |"
        )
    return "\n".join(lines)


def fewer_told(cell: dict) -> str:
    """A task and level that has fewer instances than were wanted (``evaluate.fewer``)."""
    name = f"{cell['task']}/{cell['level']}"
    name += ", held-out wordings" if cell.get("wording") == "held" else ""
    return f"{name}: {cell['n']} of {cell['wanted']}"


def _mean(rows: list[dict], key: str) -> str:
    if any(r.get(key) is None for r in rows):
        return ""
    return f"{sum(r[key] * r['n'] for r in rows) / sum(r['n'] for r in rows):.1f}"


def attempts_table(rows: list[dict]) -> str:
    """Markdown: by modality and effort, how many first attempts were wrong, how many of those ended
    right, and how many right ones ended wrong; empty where no thought was checked."""
    lines = ["| modality | effort | checked | first attempt wrong | repaired | spoiled |"]
    lines.append("|---|---|---|---|---|---|")
    for modality, effort in dict.fromkeys((r["modality"], r["effort"]) for r in rows):
        mine = [r for r in rows if (r["modality"], r["effort"]) == (modality, effort)]
        checked, wrong, repaired, spoiled = (
            sum(r[key] for r in mine) for key in ("checked", "first_wrong", "repaired", "spoiled")
        )
        if checked:
            pairs = ((wrong, checked), (repaired, wrong), (spoiled, checked - wrong))
            cells = [f"{k / n:.1%} ({k}/{n})" if n else "none" for k, n in pairs]
            lines.append(f"| {modality} | {effort} | {checked} | " + " | ".join(cells) + " |")
    return "\n".join(lines) if len(lines) > 2 else ""


def gates(rows: list[dict]) -> str:
    """Markdown: the gated families at medium effort against their goals; empty where none ran.

    Easy is a goal for each task, middle for the mean over tasks (of pictures without ``blank`` too,
    whose answer is always the same); held-out wordings are compared with the others of the same
    tasks and levels: their sum against the sum.
    """
    mine = [r for r in rows if r["task"] in GATED and r["effort"] in ("medium", "default")]
    lines = ["| | level | mean of tasks | goal | tasks below it | held-out wordings |"]
    lines.append("|---|---|---|---|---|---|")
    for (side, level), goal in _GOALS.items():
        here = [r for r in mine if r["level"] == level and (r["modality"] == "vision") == side]
        seen = {r["task"]: r["accuracy"] for r in here if r["wording"] == "seen"}
        if not seen:
            continue
        below = [f"{t} {a:.0%}" for t, a in seen.items() if goal and a < goal]
        cells = [
            "vision" if side else "text and tools",
            level,
            _means(seen),
            f"{goal:.0%}" if goal else "none",
            ", ".join(below) or ("none" if goal else ""),
            _held_share(seen, [r for r in here if r["wording"] == "held"]),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) if len(lines) > 2 else ""


def _means(seen: dict[str, float]) -> str:
    """The mean of tasks, and that without the one whose answer is always the same."""
    mean = f"{sum(seen.values()) / len(seen):.1%}"
    others = [a for task, a in seen.items() if task != "blank"]
    if not others or len(others) == len(seen):
        return mean
    return f"{mean} ({sum(others) / len(others):.1%} without blank)"


def _held_share(seen: dict[str, float], held: list[dict]) -> str:
    """What held-out wordings have of the accuracy in seen ones, and of how many items."""
    held = [r for r in held if r["task"] in seen]
    known = sum(seen[r["task"]] for r in held)
    if not known:
        return "not asked" if not held else "none right in seen ones"
    share, n = sum(r["accuracy"] for r in held) / known, sum(r["n"] for r in held)
    return f"{share:.0%} of that (n = {n}, goal 85%)"


def _kinds(rows: list[dict]) -> str:
    """Boxes and calls apart."""
    lines = []
    for kinds, text in ((("box", "boxes"), "boxes (IoU ≥ 0.5)"), (("call",), "calls (exact)")):
        mine = [r for r in rows if r["kind"] in kinds and r["effort"] in ("medium", "default")]
        if mine:
            lines.append(f"- {text}, at medium effort: {_share(mine)}")
    return "\n".join(lines)


def baselines_table(rows: list[dict]) -> str:
    """Markdown: each baseline by modality."""
    modalities = list(dict.fromkeys(r["modality"] for r in rows if r["baseline"] == "asked"))
    lines = ["| | " + " | ".join(modalities) + " |", "|---|" + "---|" * len(modalities)]
    for name in dict.fromkeys(r["baseline"] for r in rows):
        mine = [r for r in rows if r["baseline"] == name]
        cells = [_share([r for r in mine if r["modality"] == m]) for m in modalities]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def baselines_by_task(rows: list[dict]) -> str:
    """Markdown: each baseline by task and level."""
    names = list(dict.fromkeys(r["baseline"] for r in rows))
    lines = [
        "| task | level | n | " + " | ".join(names) + " |",
        "|---|---|---|" + "---|" * len(names),
    ]
    for task, level in dict.fromkeys((r["task"], r["level"]) for r in rows):
        mine = [r for r in rows if (r["task"], r["level"]) == (task, level)]
        counts = [
            [sum(r[key] for r in mine if r["baseline"] == name) for key in ("correct", "n")]
            for name in names
        ]
        cells = [f"{correct / n:.0%}" if n else "" for correct, n in counts]
        lines.append(f"| {task} | {level} | {counts[0][1]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def formats_table(rows: list[dict]) -> str:
    """Markdown: points lost to the first format, in each modality."""
    modalities = list(dict.fromkeys(r["modality"] for r in rows))
    lines = ["| weights | cache | " + " | ".join(modalities) + " |"]
    lines.append("|---|---|" + "---|" * len(modalities))
    shares = {(r["quantize"], r["kv"], r["modality"]): r["correct"] / r["n"] for r in rows}
    first = rows[0]["quantize"], rows[0]["kv"]
    for quantize, kv in dict.fromkeys((r["quantize"], r["kv"]) for r in rows):
        cells = []
        for modality in modalities:
            share = shares[quantize, kv, modality]
            cells.append(f"{share:.1%} ({100 * (share - shares[(*first, modality)]):+.1f})")
        lines.append(f"| {quantize} | {kv} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _weak(rows: list[dict]) -> str:
    """The tasks and levels it does not manage at medium effort."""
    found = [
        f"{r['task']} {r['level']} ({r['accuracy']:.0%})"
        for r in rows
        if r["effort"] in ("medium", "default") and r["wording"] == "seen" and r["accuracy"] < _ABLE
    ]
    return f"- Right in fewer than {_ABLE:.0%} at medium effort: {', '.join(found) or 'none'}."


def _training(folder: Path, log: Path | None) -> str:
    """What is known of how long it was trained."""
    facts = folder / "training.json"
    if not facts.is_file():
        return "How long these weights were trained is not recorded beside them."
    told = json.loads(facts.read_text(encoding="utf-8"))
    text = f"{told['tokens'] / 1e6:.1f} million tokens in {told['step']} steps"
    if log is not None:
        text += f", {_minutes(log) / 60:.1f} hours (of steps; `{log.name}`)"
    return (
        f"{text}, on generated exercises, pictures and stories and a few per cent of public-domain "
        "prose; no text of any other model, and no data of any user. Recipe and generators: the "
        "package's `lab/`."
    )


def _minutes(log: Path) -> float:
    """The minutes of all sessions of a run: each begins at 0 again."""
    total = last = 0.0
    for line in log.read_text(encoding="utf-8").splitlines():
        minutes = json.loads(line).get("minutes", last)
        if minutes < last:
            total += last
        last = minutes
    return total + last


def _shape(folder: Path) -> str:
    path = folder / "config.json"
    if not path.is_file():
        return ""
    config = json.loads(path.read_text(encoding="utf-8"))
    text, vision = (config.get(key) or {} for key in ("text_config", "vision_config"))
    if not text or not vision:
        return ""
    return f"""
| | |
|---|---|
| text tower | {text["num_hidden_layers"]} layers × {text["hidden_size"]}, {text["num_attention_heads"]} heads of {text["head_dim"]}, {text["num_key_value_heads"]} KV heads, intermediate {text["intermediate_size"]}, window {text["sliding_window"]}, tied embeddings |
| vision tower | {vision["num_hidden_layers"]} layers × {vision["hidden_size"]}, patch {vision["patch_size"]}, 64 tokens a picture |
| tokenizer | own byte-level BPE, {text["vocab_size"]} entries, single digits |
| context | {text["max_position_embeddings"]} positions |
| efforts | low: results only or an empty thought; medium (default): steps; high: steps and one check by another route; xhigh: two routes, compared |
"""  # noqa: E501


def _overlap(found: dict[str, int]) -> str:
    return (
        f"{found['instances']} are such instances, {found['prompts']} are asked in the same words, "
        f"{found['calls']} hold the same call"
    )


def card(report: dict[str, Any], folder: Path, log: Path | None = None) -> str:
    """The whole card. ``folder``: the model's, for its shape and training.json; ``log``: of the
    training run."""
    rows = report["rows"]
    size = "nano"
    if (folder / "training.json").is_file():
        size = json.loads((folder / "training.json").read_text(encoding="utf-8"))["size"]
    parts = [_FRONT.format(title=_TITLE.get(size, folder.name)) + _shape(folder)]
    parts.append(f"## What it was trained on\n\n{_training(folder, log)}")
    how = (
        f"Exact answers on instances that training never draws (split by a hash of the instance; "
        f"of a sample of training draws {_overlap(report['overlap'])}), greedy, "
        f"weights {report['weights']}, cache {report['kv']}, {report['backend']}, seed "
        f"{report['seed']}. In brackets the 95% interval (Wilson). *tokens*: mean length of the "
        "thought, and after the stroke that of the stable oracle: up to the earliest sentence end "
        "from which on every forced close answers right (what ends wrong counts in full)."
    )
    parts.append(f"## What it can do, measured\n\n{how}\n\n{summary(rows)}\n\n{_kinds(rows)}")
    if gated := gates(rows):
        parts.append(f"### Gated families\n\nAt medium effort.\n\n{gated}")
    if attempts := attempts_table(rows):
        parts.append(
            "### What checks are worth\n\nThoughts that check themselves or go another way. The "
            "*first attempt* is what is answered where the thought is closed before that; "
            "*repaired*: of the wrong ones, those whose reply is right in the end (asked for: 10% "
            "wrong, 40% of them repaired); *spoiled*: of the right ones, those whose reply is "
            f"wrong.\n\n{attempts}"
        )
    parts.append(f"### By task\n\n{table(rows)}")
    if report.get("fewer"):
        cells = "; ".join(map(fewer_told, report["fewer"]))
        parts.append(f"Fewer instances than wanted, as there are no more: {cells}.")
    if report.get("baselines"):
        parts.append(
            "### Baselines\n\nThe same items at medium effort. *majority*: the most frequent "
            "answer of the task's training side, at the same sizes; *no thought*: its thought is "
            "empty and closed; *swapped image*: the picture of a question with another answer, "
            "without what no picture can change; *zoom*: the items that come with the zoom tool, "
            "with and without it.\n\n"
            + baselines_table(report["baselines"])
            + "\n\n"
            + baselines_by_task(report["baselines"])
        )
    if report.get("formats"):
        parts.append(
            "### What formats cost\n\nThe same items at medium effort; in brackets points more or "
            "less than with the weights as stored and a float32 cache. *auto* is what ships.\n\n"
            + formats_table(report["formats"])
        )
    parts.append(f"## What it cannot do\n\n{_weak(rows)}\n{_LIMITS}")
    return "\n\n".join(part.strip() for part in parts) + "\n"
