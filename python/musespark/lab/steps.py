"""The commands ``musespark lab …``, and what --help says of them: all but ``eval`` (command.py) are
modules here with a ``main(argv)`` of their own."""

from __future__ import annotations

STEPS = {
    "eval": "exact accuracy on held-out instances",
    "bench-thinking": "what may end a thought, compared; several agents",
    "calibrate": "when a thought may end: a model's thresholds for thinking_policy auto",
    "steer": "a control vector for shorter thoughts, and what it does",
    "train": "train Spark Nano, or go on from a checkpoint (needs torch)",
    "drafter": "train a block drafter for Nano (needs torch)",
    "rl": "group-relative policy optimization (needs torch)",
    "curve": "what runs of `lab rl` say of accuracy and length",
    "rollouts": "the model's own tries, checked and mended, to train on",
    "export": "a checkpoint as a folder that transformers and musespark load (needs torch)",
    "probe": "what a vision tower tells, and whether it is read from (needs torch)",
    "plot": "loss, speed and losses by task of a training run, as SVG",
    "generate": "items with their answers and pictures as files, which eval --items reads",
}
