"""A model folder's tower, measured before it is packed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from musespark import _core
from musespark.families.vision.beside import PREFIX
from musespark.weights import pack
from musespark.weights.model_source import ModelFolder
from musespark.weights.tower_choice import (
    FLOATS,
    FORMATS,
    NARROW,
    TowerChoice,
    choose_stored,
)
from musespark.weights.tower_pieces import STORED, Tensor, View, group_of

# Called with the files beside the weights of a model that sees: what to measure its tower with.
Look = Callable[[Mapping[str, bytes]], Sequence[View]]


def measured_tower(
    folder: ModelFolder, recipe: str, look: Look | None, report: Callable[[int, int, str], None]
) -> TowerChoice | None:
    """What is chosen for a tower's layers; None where there is nothing to choose."""
    if folder.vision is None or look is None:
        return None
    planned = {p.name: p for p in folder.plan(recipe)}
    own = [p for p in planned.values() if p.name.startswith(PREFIX) and not p.vector]
    if all(p.format in FLOATS for p in own):
        return None
    as_stored = {p.name: p for p in folder.plan("none")}
    matrices = {p.name for p in own}
    threads, quick = _core.count_cores()["usable"], recipe in pack.KEEPING

    def read(name: str, form: str) -> Tensor:
        p = (as_stored if form == STORED else planned)[PREFIX + name]
        if form == NARROW and p.name in matrices and p.format not in FLOATS:
            p = dataclasses.replace(p, format=FORMATS[NARROW])
        part = folder.mapping.sources[p.name]
        tensor = pack.pack_one(folder.checkpoint, part, p, threads, quick=quick)
        folder.checkpoint.forget(part.name)
        return tensor

    return choose_stored(
        folder.vision,
        read,
        look(folder.all_assets),
        threads=threads,
        report=lambda what: report(0, 1, what),
    )


def chosen_formats(folder: ModelFolder, tower: TowerChoice | None) -> dict[str, str]:
    """Of the matrices whose format is not the recipe's: by name ``none``, for as stored, or q8."""
    own = (name for name in folder.shapes if name.startswith(PREFIX))
    chosen = {} if tower is None else dict.fromkeys(tower.narrow, FORMATS[NARROW])
    chosen |= {} if tower is None else dict.fromkeys(tower.stored, "none")
    groups = {name: group_of(name.removeprefix(PREFIX)) for name in own}
    return {name: chosen[group] for name, group in groups.items() if group in chosen}
