"""A model with its visual tools: :meth:`musespark.Model.look`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from musespark.errors import InvalidRequest, MissingLibrary, UnsupportedModel
from musespark.images import image_of
from musespark.options import UnknownArgument
from musespark.vision.embedding import ImageEmbedding
from musespark.vision.pixels import open_named

if TYPE_CHECKING:
    from musespark.model import Model
    from musespark.vision.loop import Looked

_TOLD = "qwen3-vl"  # the tools tell a model of no convention to count from 0 to 1000
_NOT_HERE = {  # options of others, and what look has for them
    "stream": "look gives its result whole; chat streams",
    "tools": "look has its own; act takes others, also visual_tools beside them",
    "messages": "look makes them of the question and the images; act and chat take them",
    "max_steps": "no option of look; calls says how many calls of its tools are answered",
}


def look(
    model: Model,
    question: str,
    images: Sequence[Any],
    /,
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
    if not isinstance(calls, int) or isinstance(calls, bool) or calls < 0:
        raise InvalidRequest(f"calls: {calls!r:.60}, must be 0 or more")
    for name, why in _NOT_HERE.items():
        if name in options:
            raise InvalidRequest(f"{name}: {why}")
    processor = requests.eyes.processor
    if calls:
        options.setdefault("tool_choice", "auto")  # its calls parse and have the right arguments
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
    try:
        return loop.run(question, _each(images), **options)
    except UnknownArgument as error:
        raise error.beside(("calls", "convention")) from None
    except (InvalidRequest, MissingLibrary) as error:
        if calls and (isinstance(error, MissingLibrary) or str(error).startswith("tools:")):
            raise type(error)(f"{error}. With calls=0 (--calls 0) it looks without.") from None
        raise


def _each(images: Any) -> list[Any]:
    """The images of a list, or one alone, as image parts of messages have them."""
    one = isinstance(images, (str, bytes, bytearray, os.PathLike)) or not isinstance(
        images, (Sequence, np.ndarray)
    )
    if isinstance(images, np.ndarray):
        one = images.ndim < 4
    every = [images] if one else list(images)
    if images is None or not every:
        raise InvalidRequest(f"images: got {images!r:.60}, allowed is an image or a list of them")
    for i, image in enumerate(every):
        if isinstance(image, ImageEmbedding):
            raise InvalidRequest(f"images[{i}]: an embedding has no pixels to look at")
    found = [image_of({"image": image}, f"images[{i}]") for i, image in enumerate(every)]
    return [open_named(image, f"images[{i}]") for i, image in enumerate(found)]
