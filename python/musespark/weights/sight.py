"""The vision tower of a model folder: its spec, and where its tensors are beside the text's."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from musespark.errors import UnsupportedModel
from musespark.families.spec import ModelSpec
from musespark.families.tensors import NOT_RUN, TensorMap
from musespark.families.vision import VisionSpec, vision_spec, vision_tensors
from musespark.families.vision.beside import PREFIX
from musespark.untrusted import parse_json_object

PREPROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"


@dataclasses.dataclass(frozen=True)
class Sight:
    """``spec`` is None where the model has no tower, or (``why``) none that is run."""

    spec: VisionSpec | None = None
    why: str = ""


def sight_of(config: Mapping[str, Any], text: ModelSpec, assets: Mapping[str, bytes]) -> Sight:
    """What a ``config.json`` and the files beside it say of a tower beside a text side."""
    if not isinstance(config.get("vision_config"), Mapping):
        return Sight()
    if not says_how_images_are_prepared(assets):
        return Sight()
    try:
        return Sight(vision_spec(config, text.hidden))
    except UnsupportedModel as error:
        return Sight(why=str(error))


def says_how_images_are_prepared(assets: Mapping[str, bytes]) -> bool:
    """Whether settings of an image processor are among the files beside the weights."""
    if PREPROCESSOR in assets or PROCESSOR not in assets:
        return PREPROCESSOR in assets
    return bool(parse_json_object(assets[PROCESSOR], PROCESSOR).get("image_processor"))


def beside(
    sight: Sight, config: Mapping[str, Any], mapping: TensorMap, names: Iterable[str]
) -> tuple[Sight, TensorMap]:
    """The text's tensors in `mapping` and the tower's, found among a checkpoint's `names`; without
    a tower where the checkpoint holds none."""
    if sight.spec is None:
        return sight, mapping
    if NOT_RUN not in mapping.ignored:
        return Sight(why="the files hold no vision tower"), mapping
    return sight, joined(mapping, vision_tensors(config, sight.spec, names))


def joined(text: TensorMap, tower: TensorMap) -> TensorMap:
    """The tensors of both, the tower's under names of their own."""
    sources = text.sources | {PREFIX + name: part for name, part in tower.sources.items()}
    left = {why: found for why, found in text.ignored.items() if why != NOT_RUN}
    return dataclasses.replace(text, sources=sources, ignored=left | tower.ignored)
