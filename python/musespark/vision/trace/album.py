"""The images of a conversation in the order in which the model was given them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from musespark.errors import InvalidRequest
from musespark.vision.conventions import Convention
from musespark.vision.geometry import Transform
from musespark.vision.pixels import Picture, open_picture
from musespark.vision.regions import View
from musespark.vision.trace.data import TraceImage, remade

Fit = Callable[[tuple[int, int]], tuple[int, int]]


class Album:
    """Pictures and what a trace says of them. An image's place is what tools call ``img_idx``.

    ``fit``: (height, width) of an image to those it is resized to for the model; without it, what
    pixel coordinates refer to is not known, and they are taken as the image's own.
    """

    def __init__(self, images: Iterable[Any] = (), *, fit: Fit | None = None):
        self._fit = fit
        self.images: list[TraceImage] = []
        self.pictures: list[Picture] = []
        for image in images:
            self.add(image)

    def __len__(self) -> int:
        return len(self.images)

    def add(self, image: Any) -> TraceImage:
        """An original: whatever :func:`open_picture` takes."""
        return self._keep(replace(open_picture(image), transform=Transform()))

    def crop(self, index: int, box: tuple[int, int, int, int]) -> TraceImage:
        """The part (left, top, right, bottom) of an image, in its pixels."""
        return self._make(index, crop=box)

    def turn(self, index: int, degrees: int) -> TraceImage:
        """An image turned clockwise by a multiple of 90 degrees."""
        return self._make(index, turn=degrees)

    def view(self, index: int, convention: Convention) -> View:
        """An image as the coordinates of a convention refer to it."""
        image = self.images[index]
        original = self.images[self.original(index)].size
        if convention.full is None and image.shown:
            return View(image.shown, image.transform @ image.shown_transform, original, image.id)
        return View(image.size, image.transform, original, image.id)

    def original(self, index: int) -> int:
        """The place of the original that an image was cut from."""
        names = {image.id: place for place, image in enumerate(self.images)}
        while (parent := self.images[index].parent) is not None:
            index = names[parent]
        return index

    def _make(self, index: int, **how: Any) -> TraceImage:
        if not 0 <= index < len(self):
            raise InvalidRequest(f"img_idx: {index}, there are images 0 to {len(self) - 1}")
        parent = self.images[index]
        plan = TraceImage("", "", (0, 0), parent=parent.id, **how)
        return self._keep(remade(plan, self.pictures[index]), parent=parent.id, **how)

    def _keep(self, picture: Picture, **fields: Any) -> TraceImage:
        shown = self._fit(picture.size) if self._fit else None
        image = TraceImage(
            f"image-{len(self)}",
            picture.sha256,
            picture.size,
            picture.transform,
            shown=shown,
            shown_transform=Transform.resized(picture.size, shown) if shown else Transform(),
            **fields,
        )
        self.images.append(image)
        self.pictures.append(picture)
        return image
