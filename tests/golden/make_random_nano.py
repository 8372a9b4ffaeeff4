"""Greedy tokens of a random network of Nano's shape by transformers in float32, text and pictures
-> random_nano.json.

    python tests/golden/make_random_nano.py   (torch, transformers, this package's Python files)
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import random_nano_cases

from musespark.lab.backends import TransformersBackend

HERE = Path(__file__).resolve().parent


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        random_nano_cases.write(Path(folder))
        replies = TransformersBackend(folder, batch=1).reply(
            random_nano_cases.items(), random_nano_cases.NEW_TOKENS
        )
    tokens = [list(reply.tokens) for reply in replies]
    (HERE / "random_nano.json").write_text(json.dumps(tokens) + "\n")
    print(f"{len(tokens)} answers")


if __name__ == "__main__":
    main()
