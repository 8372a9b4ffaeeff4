"""Folders of the models of tests/golden/sight_cases.py, and what transformers says of them."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import processor_cases
import sight_cases
from sight_cases import CASES

from support.model_folder import GOLDEN, write_folder

__all__ = [
    "BYTES_ALONE",
    "CASES",
    "film",
    "golden",
    "golden_film",
    "greedy",
    "messages",
    "sight_folder",
]
# Options: ends and markers are never written, as in make_sight.py.
BYTES_ALONE = {"logit_bias": dict.fromkeys(range(sight_cases.BYTES, sight_cases.VOCAB), -1e4)}


@functools.cache
def golden(name: str) -> dict[str, np.ndarray]:
    """See tests/golden/make_sight.py."""
    with np.load(GOLDEN / f"sight_{name}.npz") as stored:
        return dict(stored)


def sight_folder(path: Path, name: str, **preprocessor: Any) -> Path:
    """A model folder; `preprocessor`: settings in place of the case's."""
    case = CASES[name]
    shapes = json.loads(golden(name)["tensors"].tobytes())
    tied = "lm_head.weight" not in shapes
    tensors = {
        name: sight_cases.weight(case, name, tuple(shape), tied) for name, shape in shapes.items()
    }
    write_folder(path, case.config, tensors)
    _write(path / "preprocessor_config.json", case.processor.preprocessor | preprocessor)
    _write(path / "processor_config.json", dict(case.processor.processor))
    if case.video:
        _write(path / "video_preprocessor_config.json", case.video)
    (path / "tokenizer.json").write_text(sight_cases.tokenizer().to_str())
    _write(path / "tokenizer_config.json", {"eos_token": "</s>"})
    (path / "chat_template.jinja").write_text(sight_cases.template(case))
    return path


def _write(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values))


def messages(name: str, count: int) -> list[dict[str, Any]]:
    """A case's conversation, with the images themselves."""

    def part(one: dict[str, Any]) -> dict[str, Any]:
        if one["type"] != "image":
            return one
        return {"type": "image", "image": CASES[name].image(one["index"])}

    return [
        m if isinstance(m["content"], str) else m | {"content": [part(p) for p in m["content"]]}
        for m in sight_cases.conversation(count)
    ]


def film(name: str) -> list[dict[str, Any]]:
    """Messages with a video and an image, those of video_<case>.npz."""
    video = {"video": processor_cases.frames(), "fps": sight_cases.FPS}

    def part(one: dict[str, Any]) -> dict[str, Any]:
        if one["type"] == "image":
            return {"type": "image", "image": CASES[name].image(one["index"])}
        return one | video if one["type"] == "video" else one

    return [m | {"content": [part(p) for p in m["content"]]} for m in sight_cases.film()]


@functools.cache
def golden_film(name: str) -> dict[str, np.ndarray]:
    """See tests/golden/make_video.py."""
    with np.load(GOLDEN / f"video_{name}.npz") as stored:
        return dict(stored)


def greedy(model: Any, name: str, count: int, **options: Any) -> Any:
    """The model's answer to a case's conversation, as many tokens as transformers wrote."""
    asked = {"max_new_tokens": sight_cases.GREEDY} | BYTES_ALONE | options
    return model.chat(messages(name, count), **asked)
