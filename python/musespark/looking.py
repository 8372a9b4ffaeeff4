"""A model with its visual tools: :meth:`musespark.Model.look`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from musespark.errors import UnsupportedModel

if TYPE_CHECKING:
    from musespark.model import Model
    from musespark.vision.loop import Looked

_TOLD = "qwen3-vl"  # the tools tell a model of no convention to count from 0 to 1000


def look(
    model: Model,
    question: str,
    images: Sequence[Any],
    *,
    calls: int,
    convention: str | None,
    **options: Any,
) -> Looked:
    from musespark.vision.loop import VisualLoop  # here: most models see nothing
    from musespark.vision.tools import TOOLS

    requests = model._requests
    if requests.eyes is None:
        raise UnsupportedModel(f"images: {requests.blind}")
    processor = requests.eyes.processor
    own = processor.convention if processor.convention != "none" else _TOLD
    loop = VisualLoop(
        model.chat,
        convention or own,
        tools=TOOLS if calls else (),
        calls=calls,
        fit=processor.fitted,
        tokenizer=model.tokenizer,
        model=model.info.source,
    )
    return loop.run(question, images, **options)
