"""Embedding models: texts as ids in, one row of numbers for each out; on the C++ encoder."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from musespark import _core
from musespark.errors import Cancelled, ContextOverflow, Error, UnsupportedModel

# Rows a batch may have: enough that weights are read for many, little enough for any memory.
_BATCH_ROWS = 4096


def fitting(texts: Sequence[np.ndarray], limit: int, truncate: bool) -> list[np.ndarray]:
    """Ids of texts, none above ``limit``: a longer one keeps its beginning and its last id, or
    raises ContextOverflow."""
    rows = list(texts)
    for i, ids in enumerate(rows):
        if len(ids) <= limit:
            continue
        if not truncate:
            what = f"texts[{i}] has {len(ids)} tokens; the model takes {limit} (truncate=True)"
            raise ContextOverflow(what, needed=len(ids), limit=limit)
        rows[i] = np.concatenate([ids[: limit - 1], ids[-1:]])
    return rows


class Encoder:
    """An encoder on its own threads. Stands where a model that generates has its Engine.

    ``spec``: a ``families.spec.ModelSpec``. ``tensors``: name -> (format, rows, cols, buffer).
    """

    def __init__(self, spec: Any, tensors: Mapping[str, tuple], *, threads: int) -> None:
        self._core: _core.Encoder | None = _core.Encoder(
            dataclasses.asdict(spec), dict(tensors), threads=threads
        )
        self._width = spec.hidden
        self._threads = threads
        self._one_call = threading.Lock()

    def embed(
        self, texts: Sequence[np.ndarray], stopped: Callable[[], bool] = lambda: False
    ) -> np.ndarray:
        """float32 [texts, hidden]; a text's row is the same alone and in any batch.

        Runs in batches of a few thousand rows; Ctrl-C takes effect between them, and so does
        `stopped` (Cancelled).
        """
        out = np.empty((len(texts), self._width), np.float32)
        begin = 0
        while begin < len(texts):
            if stopped():
                raise Cancelled("the task that embedded these texts was cancelled")
            end, rows = begin + 1, len(texts[begin])
            while end < len(texts) and rows + len(texts[end]) <= _BATCH_ROWS:
                rows += len(texts[end])
                end += 1
            with self._one_call:
                if self._core is None and begin:
                    raise Cancelled("the model was closed while these texts were embedded")
                if self._core is None:
                    raise Error("the model is closed")
                out[begin:end] = self._core.embed(texts[begin:end])
            begin = end
        return out

    def submit(self, *args: Any, **options: Any) -> NoReturn:
        """UnsupportedModel: there is nothing to continue."""
        raise UnsupportedModel("this is an embedding model, which writes no text: use model.embed")

    def check(self) -> None:
        """Error where it is closed. Waits for nothing."""
        if self._core is None:
            raise Error("the model is closed")

    def stats(self) -> dict[str, Any]:
        """Threads and the instruction set in use."""
        return {"threads": self._threads, "isa": _core.isa_levels()[0]}

    def close(self) -> None:
        """Lets go of threads and tensors. Idempotent."""
        with self._one_call:
            self._core = None
