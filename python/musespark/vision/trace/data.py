"""The trace itself: plain frozen data. How it is made is in build.py, its JSON in file.py."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from musespark.errors import InvalidRequest
from musespark.vision.geometry import Transform
from musespark.vision.pixels import Picture, open_picture
from musespark.vision.regions import Region, View

if TYPE_CHECKING:
    from musespark.vision.trace.heat import Looker
    from musespark.vision.trace.verify import Judge, Score

STEP_KINDS = ("look", "locate", "zoom", "read", "compare", "tool", "conclude")
CHANNELS = ("reasoning", "content", "tool")


@dataclass(frozen=True)
class TraceImage:
    """An image of the conversation, without its pixels.

    ``size``: (height, width). ``transform``: its pixels to those of the original it was cut from,
    the identity for an original. ``sha256``: of the pixels, as :attr:`Picture.sha256`.
    ``parent``: id of the image it was made from, as the part ``crop`` (left, top, right, bottom, in
    the parent's pixels) or turned by ``turn`` degrees clockwise. ``shown``: (height, width) that it
    was resized to for the model, whose pixels ``shown_transform`` maps to this image's; None where
    it is not known.
    """

    id: str
    sha256: str
    size: tuple[int, int]
    transform: Transform = field(default_factory=Transform)
    parent: str | None = None
    crop: tuple[int, int, int, int] | None = None
    turn: int = 0
    shown: tuple[int, int] | None = None
    shown_transform: Transform = field(default_factory=Transform)


@dataclass(frozen=True)
class HeatMap:
    """What was measured over an image: ``rows`` x ``columns`` cells in row order, the first at the
    top left. ``note`` says what the values are. A measurement, not an explanation."""

    image: str
    rows: int
    columns: int
    values: tuple[float, ...]
    layers: tuple[int, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Check:
    """What became of the answer when a region was masked (see verify.py).

    ``change``: of the natural logarithm of the answer's probability; ``random_change``: the mean
    over ``draws`` regions of equal area elsewhere, which hold no more than ``overlap`` of this one.
    ``load_bearing``: None where that could not be decided; ``note`` says why. ``flipped``,
    ``random_flips``: whether the answer itself changed, and how many of the draws changed it; None
    where the model was not asked again.
    """

    region: int
    change: float
    random_change: float
    draws: int
    load_bearing: bool | None
    flipped: bool | None = None
    random_flips: int | None = None
    note: str = ""


@dataclass(frozen=True)
class Step:
    """One step.

    ``kind``: look, locate, zoom, read, compare, tool or conclude. ``exact``: the kind is known from
    how the turn is built (a tool call, the answer); else it is a guess by English words.
    ``source``: ``model`` (it said so), ``engine`` (it was measured), ``tool`` (a tool answered).
    ``tokens``: [first, after the last) among the tokens that the model wrote in its ``turn``, None
    where they could not be found. ``image``: id of the image it is about. ``crop``: id of an image
    that the step made. ``parent``: index of the step that led to it. ``cost``: seconds, tokens,
    pixels. ``tool``, ``arguments``: of a call and of its answer.
    """

    kind: str
    text: str = ""
    source: str = "model"
    channel: str = "reasoning"
    exact: bool = False
    turn: int = 0
    tokens: tuple[int, int] | None = None
    image: str = ""
    regions: tuple[Region, ...] = ()
    crop: str = ""
    heat: HeatMap | None = None
    tool: str = ""
    arguments: Mapping[str, Any] | None = None
    parent: int | None = None
    cost: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    checks: tuple[Check, ...] = ()

    @property
    def load_bearing(self) -> bool | None:
        """Whether the answer leaned on a region of this step; None where nothing was decided."""
        known = [c.load_bearing for c in self.checks if c.load_bearing is not None]
        return any(known) if known else None


@dataclass(frozen=True)
class VisualTrace:
    """Images, steps and answer of one question. Prints as a list of steps, renders in notebooks.

    ``messages``: the conversation that led to the answer, an image in it as ``{"type": "image",
    "id": ...}``. ``timings`` in seconds. ``convention``: how the model writes coordinates.
    ``pictures``: id to pixels, as far as they are here; they are no part of the JSON, nor of what
    makes two traces equal.
    """

    images: tuple[TraceImage, ...]
    steps: tuple[Step, ...] = ()
    question: str = ""
    answer: str = ""
    model: str = ""
    convention: str = ""
    messages: tuple[Mapping[str, Any], ...] = ()
    timings: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    pictures: Mapping[str, Picture] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def _by_id(self) -> dict[str, tuple[TraceImage, TraceImage]]:
        """Each image and its original; an image comes after the one it was made from."""
        found: dict[str, tuple[TraceImage, TraceImage]] = {}
        for image in self.images:
            found[image.id] = (image, found[image.parent][1] if image.parent else image)
        return found

    def image(self, id: str) -> TraceImage:
        """The image of an id; InvalidRequest with the ids there are for any other."""
        return self._pair(id)[0]

    def original(self, id: str) -> TraceImage:
        """The original that an image was cut from, itself for an original."""
        return self._pair(id)[1]

    def _pair(self, id: str) -> tuple[TraceImage, TraceImage]:
        if id not in self._by_id:
            raise InvalidRequest(f"image: {id!r}, the trace has {list(self._by_id)}")
        return self._by_id[id]

    def view(self, id: str) -> View:
        """An image as 0 to 1000 and the like refer to it."""
        image = self.image(id)
        return View(image.size, image.transform, self.original(id).size, id)

    def attach(self, images: Mapping[str, Any]) -> VisualTrace:
        """With the pixels of its originals, whatever :func:`open_picture` takes, by id; crops are
        cut again. InvalidRequest where they are not the same pixels."""
        pictures: dict[str, Picture] = {}
        for image in self.images:
            if image.parent is not None and image.parent in pictures:
                picture = remade(image, pictures[image.parent])
            elif image.id in images:
                picture = replace(open_picture(images[image.id]), transform=Transform())
            else:
                continue
            if picture.sha256 != image.sha256:
                raise InvalidRequest(
                    f"{image.id}: pixels of sha256 {picture.sha256}, the trace has {image.sha256}"
                )
            pictures[image.id] = picture
        if unknown := set(images) - {image.id for image in self.images}:
            self.image(min(unknown))
        return replace(self, pictures=pictures)

    def to_json(self) -> str:
        """The trace as JSON, without pixels; :meth:`from_json` gives an equal one."""
        from musespark.vision.trace.file import to_json

        return to_json(self)

    @classmethod
    def from_json(cls, text: str | bytes, where: str = "trace") -> VisualTrace:
        """From :meth:`to_json`; CorruptFile naming the field for anything that is none."""
        from musespark.vision.trace.file import from_json

        return from_json(text, where)

    def to_html(self, path: str | os.PathLike[str] | None = None) -> str:
        """One page that holds everything it shows; written to ``path`` where one is given."""
        from musespark.vision.render import to_html

        return to_html(self, path)

    def to_png(
        self,
        path: str | os.PathLike[str],
        *,
        image: str | None = None,
        step: int | None = None,
        scale: int = 1,
    ) -> None:
        """An original (the first, where none is named) with the regions of all steps or of one,
        ``scale`` times as large each way. MissingLibrary without Pillow."""
        from musespark.vision.render import to_png

        to_png(self, path, image=image, step=step, scale=scale)

    def verify(self, score: Score | Judge, **options: Any) -> VisualTrace:
        """Masks each cited region and asks the model ``score`` again; see
        :func:`musespark.vision.trace.verify.verify`."""
        from musespark.vision.trace.verify import verify

        return verify(self, score, **options)

    def heat(self, model: Looker, **options: Any) -> VisualTrace:
        """With heat maps of where the model looked while it wrote the answer; see
        :func:`musespark.vision.trace.heat.heat`."""
        from musespark.vision.trace.heat import heat

        return heat(self, model, **options)

    def _repr_html_(self) -> str:
        from musespark.vision.render import to_notebook

        return to_notebook(self)

    def __str__(self) -> str:
        lines = [self.question] if self.question else []
        for index, step in enumerate(self.steps):
            flags = [flag for region in step.regions for flag in region.flags]
            told = f" ({', '.join(dict.fromkeys(flags))})" if flags else ""
            boxes = f" [{len(step.regions)} regions{told}]" if step.regions else ""
            text = " ".join(step.text.split())
            cut = text if len(text) <= 100 else text[:99] + "…"
            lines.append(f"{index + 1:3}  {step.kind:<8} {step.source:<6}{boxes} {cut}")
        return "\n".join([*lines, f"     {self.answer}"])


def remade(image: TraceImage, parent: Picture) -> Picture:
    """An image's pixels, made from its parent's as they were the first time."""
    return turned(parent, image.turn) if image.crop is None else parent.crop(image.crop)


def turned(picture: Picture, degrees: int) -> Picture:
    """A copy turned clockwise by 0, 90, 180 or 270 degrees."""
    import numpy as np

    quarters = {0: 0, 90: 1, 180: 2, 270: 3}
    if degrees not in quarters:
        raise InvalidRequest(f"degrees: {degrees!r}, must be one of {sorted(quarters)}")
    orientation = {0: 1, 90: 6, 180: 3, 270: 8}[degrees]
    pixels = np.ascontiguousarray(np.rot90(picture.pixels, -quarters[degrees]))
    pixels.flags.writeable = False
    step = Transform.oriented(orientation, picture.size)
    return replace(picture, pixels=pixels, transform=picture.transform @ step)
