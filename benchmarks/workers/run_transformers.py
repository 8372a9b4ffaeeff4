"""transformers' ``generate`` on a model folder: FOLDER THREADS DTYPE; JSON lines as ``protocol.py``
has them, but of one kind of question:

    {"prompts": [[ids]], "new": 400, "ends": [ids], "pad": 0, "seed": 1}
                              -> {"seconds": 1.2, "steps": 400, "tokens": [[ids]]}

Prompts are padded on the left to one batch and sampled from at temperature 1, nothing cut off.
``steps``: forward passes that wrote a token for each row; ``tokens``: of each row up to the first
end, that included. The seconds are those of ``generate`` alone.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any


class Transformers:
    """A loaded model."""

    def __init__(self, folder: str, threads: int, dtype: str):
        import torch
        import transformers

        torch.set_num_threads(threads)
        self._torch = torch
        load = transformers.AutoModelForImageTextToText.from_pretrained
        self._model = load(folder, dtype=getattr(torch, dtype)).eval()
        self.info = {"version": f"transformers {transformers.__version__}, {torch.__version__}"}

    def rollouts(
        self, prompts: list[list[int]], new: int, ends: list[int], pad: int, seed: int
    ) -> dict[str, Any]:
        torch, longest = self._torch, max(map(len, prompts))
        ids = torch.tensor([[pad] * (longest - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
        torch.manual_seed(seed)
        begin = time.perf_counter()
        with torch.inference_mode():
            out = self._model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=new,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                eos_token_id=ends,
                pad_token_id=pad,
            )
        seconds = time.perf_counter() - begin
        rows = out[:, longest:].tolist()
        tokens = [ended(row, ends) for row in rows]
        return {"seconds": seconds, "steps": len(rows[0]), "tokens": tokens}


def ended(row: list[int], ends: list[int]) -> list[int]:
    """A row up to its first end, that included: what follows is padding."""
    at = next((i for i, token in enumerate(row) if token in ends), len(row))
    return row[: at + 1]


def main() -> None:
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not reach the answers

    def say(value: dict[str, Any]) -> None:
        print(json.dumps(value), file=out, flush=True)

    try:
        engine = Transformers(sys.argv[1], int(sys.argv[2]), sys.argv[3])
    except BaseException as error:
        say({"error": f"{type(error).__name__}: {error}"[:400]})
        raise
    say(engine.info)
    for line in sys.stdin:
        try:
            say(engine.rollouts(**json.loads(line)))
        except Exception as error:
            say({"error": f"{type(error).__name__}: {error}"[:400]})


if __name__ == "__main__":
    main()
