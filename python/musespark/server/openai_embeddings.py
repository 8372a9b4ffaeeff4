"""``/v1/embeddings``: OpenAI's embeddings, of an embedding model."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field

from musespark.batches import embedded
from musespark.errors import Cancelled, ContextOverflow
from musespark.server.limits import Limits, at_most
from musespark.server.openai_shared import openai_error
from musespark.server.wire import Body, Served, Several, Text, TokenIds

if TYPE_CHECKING:
    from musespark.model import Model

PATH = "/v1/embeddings"

# Characters of a text for each token of the context. No text that fits has so many, unless nearly
# all of them are spaces; what has more is not worth the seconds that it takes to count its tokens.
_TOKEN_CHARS = 256


def _ids(model: Model, text: Any, where: str) -> np.ndarray:
    """A text, or token ids, as the model takes them; ContextOverflow for too many."""
    most = model.info.context
    if isinstance(text, str):
        at_most(f"{where}: characters", len(text), most * _TOKEN_CHARS)
        text = model._requests.ids(text, where)
    if len(text) > most:
        what = f"{where}: got {len(text)} tokens, the model takes at most {most}"
        raise ContextOverflow(what, needed=len(text), limit=most)
    return model._requests.ids(text, where)


class EmbeddingBody(Body):
    """A request. ``user`` has no effect."""

    model: str
    input: Text | TokenIds | Annotated[Several[Text | TokenIds], Field(min_length=1)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: None = None
    user: str | None = None


class Embeddings:
    """One request and its answer."""

    error_body = staticmethod(openai_error)
    body_type = EmbeddingBody

    def __init__(self, value: Any, served: Served, limits: Limits):
        self._body: EmbeddingBody = served.read(EmbeddingBody, value)
        given = self._body.input
        several = isinstance(given, list) and not isinstance(given[0], int)
        self._texts: list[Any] = list(given) if several else [given]
        at_most("input: texts", len(self._texts), limits.prompts)

    def rows(self, model: Model, stopped: Callable[[], bool]) -> tuple[np.ndarray, int]:
        """float32 [texts, width], and how many tokens all texts have, which are made once;
        Cancelled soon after ``stopped``. A text that is too long is refused before those behind it
        are looked at."""
        ids = []
        for index, text in enumerate(self._texts):
            if stopped():
                raise Cancelled("nobody waits for these embeddings any more")
            ids.append(_ids(model, text, f"input[{index}]"))
        return embedded(model, ids, False, stopped), sum(map(len, ids))

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
