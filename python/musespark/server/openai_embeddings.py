"""``/v1/embeddings``: OpenAI's embeddings, of an embedding model."""

from __future__ import annotations

import base64
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from musespark.server.limits import Limits, at_most
from musespark.server.openai_shared import openai_error
from musespark.server.wire import Body, Served, Several, Text, TokenId

PATH = "/v1/embeddings"

Ids = Annotated[Several[TokenId], Field(min_length=1)]


class EmbeddingBody(Body):
    """A request. ``user`` has no effect."""

    model: str
    input: Text | Ids | Annotated[Several[Text | Ids], Field(min_length=1)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: None = None
    user: str | None = None


class Embeddings:
    """One request and its answer. ``texts``: what :meth:`musespark.Model.aembed` takes."""

    error_body = staticmethod(openai_error)
    body_type = EmbeddingBody

    def __init__(self, value: Any, served: Served, limits: Limits):
        self._body: EmbeddingBody = served.read(EmbeddingBody, value)
        given = self._body.input
        several = isinstance(given, list) and not isinstance(given[0], int)
        self.texts: list[Any] = list(given) if several else [given]
        at_most("input: texts", len(self.texts), limits.prompts)

    def answer(self, rows: np.ndarray, tokens: int) -> dict[str, Any]:
        """``rows``: float32 [texts, width]; ``tokens``: of all texts."""
        data = [
            {"object": "embedding", "index": index, "embedding": self._written(row)}
            for index, row in enumerate(rows)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return {"object": "list", "data": data, "model": self._body.model, "usage": usage}

    def _written(self, row: np.ndarray) -> str | list[float]:
        if self._body.encoding_format == "base64":
            return base64.b64encode(row.astype("<f4").tobytes()).decode()
        return [float(value) for value in row]
