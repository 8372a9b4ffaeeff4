"""mistral.rs through its Python package. It takes text alone, one request at a time: a text is cut
until it has the tokens asked for, and times are those of its own usage report."""

from __future__ import annotations

import os
import random
from importlib.metadata import version
from typing import Any

import mistralrs as lib
from protocol import serve


class MistralRs:
    def __init__(self, path: str, threads: int, context: int):
        folder, name = os.path.split(path)
        self._runner = lib.Runner(
            lib.Which.GGUF(folder, name), prefix_cache_n=0, token_source="none", max_seqs=1
        )
        self._texts: dict[int, str] = {}
        self.info = {"version": version("mistralrs")}

    def _text(self, tokens: int) -> str:
        """A text of random letters that has so many tokens."""
        if tokens not in self._texts:
            source = random.Random(0)
            text = "".join(chr(source.randrange(97, 123)) for _ in range(4 * tokens))
            low, high = 1, len(text)
            while low < high:
                middle = (low + high) // 2
                if len(self._runner.tokenize_text(text[:middle], True, False)) >= tokens:
                    high = middle
                else:
                    low = middle + 1
            self._texts[tokens] = text[:low]
        return self._texts[tokens]

    def _usage(self, tokens: int, new: int) -> Any:
        request = lib.CompletionRequest(
            prompt=self._text(tokens),
            model="default",
            max_tokens=new,
            ignore_eos=True,
            temperature=0.0,
        )
        return self._runner.send_completion_request(request).usage

    def prefill(self, tokens: int) -> float:
        usage = self._usage(tokens, 2)
        return usage.total_prompt_time_sec / usage.prompt_tokens * tokens

    def step(self, rows: int, steps: int) -> float:
        if rows > 1:
            raise NotImplementedError("its Python interface takes one request at a time")
        usage = self._usage(4, steps + 1)
        return usage.total_completion_time_sec / (usage.completion_tokens - 1)


if __name__ == "__main__":
    serve(MistralRs)
