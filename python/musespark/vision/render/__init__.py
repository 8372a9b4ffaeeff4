"""Traces for the eye: a page, a notebook cell, a picture. Every text of a model is escaped."""

from __future__ import annotations

from musespark.vision.render.notebook import to_notebook
from musespark.vision.render.page import to_html
from musespark.vision.render.raster import to_png

__all__ = ["to_html", "to_notebook", "to_png"]
