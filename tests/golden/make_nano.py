"""Greedy answers of the embedded model by transformers in float32 -> nano.json.

    python tests/golden/make_nano.py        (torch, transformers and this package's Python files)

Run it whenever python/musespark/nano changes; the test refuses a fixture of other weights.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from transformers import MuseGlimmerForConditionalGeneration

from musespark.text import ChatTemplate, Tokenizer, encode_chat

HERE = Path(__file__).resolve().parent
NANO = HERE.parent.parent / "python" / "musespark" / "nano"
QUESTIONS = [
    *(f"What is {a} + {b}?" for a, b in ((47, 38), (12, 9), (58, 67), (90, 15))),
    *(f"Which is larger, {a} or {b}?" for a, b in ((618, 681), (45, 54), (7, 70))),
    "Tom has 23 apples and buys 14 more. How many apples does Tom have now?",
    "Sort: 31 4 15 92",
    "How many e in green?",
    "Reverse lemon",
    "What is 36 - 19?",
    "What is 24 * 3?",
    "Who are you?",
    "Tell me a story.",
    "What is the capital of France?",
]
EFFORTS = ("low", "medium", "high", "xhigh")
NEW_TOKENS = 120


def weights_hash() -> str:
    return hashlib.sha256((NANO / "model.safetensors").read_bytes()).hexdigest()


@torch.no_grad()
def main() -> None:
    weights = weights_hash()
    tokenizer, template = Tokenizer.load(NANO), ChatTemplate(NANO)
    model = MuseGlimmerForConditionalGeneration.from_pretrained(NANO, dtype=torch.float32)
    model.eval()
    ends = sorted(tokenizer.eos_ids)
    cases = []
    for index, question in enumerate(QUESTIONS):
        effort = EFFORTS[index % len(EFFORTS)]
        ids = encode_chat(tokenizer, template, question, reasoning_strength=effort)
        out = model.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            eos_token_id=ends,
            pad_token_id=ends[0],
        )
        tokens = out[0, len(ids) :].tolist()
        cases.append({"question": question, "effort": effort, "prompt": ids, "tokens": tokens})
    report = {"weights": weights, "new_tokens": NEW_TOKENS, "cases": cases}
    (HERE / "nano.json").write_text(json.dumps(report) + "\n")
    print(f"{len(cases)} answers, {sum(len(c['tokens']) for c in cases)} tokens")


if __name__ == "__main__":
    main()
