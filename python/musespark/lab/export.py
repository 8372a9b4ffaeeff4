"""``python -m musespark.lab.export CHECKPOINT FOLDER``: a folder that transformers and musespark
load.

Writes config.json, model.safetensors (the checkpoint's averaged weights), tokenizer.json,
tokenizer_config.json, chat_template.jinja, generation_config.json, the settings of the processors
of images and videos, and training.json (how long it was trained, for the model card); then loads
the folder with transformers and fails unless every weight was found.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText

from . import network
from . import tokenizer as tok
from .raster import CELL, MOST_TOKENS, PATCH

_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def export(
    checkpoint: Path, folder: Path, dtype: torch.dtype = torch.bfloat16, *, average: bool = True
) -> dict:
    """Write ``folder``; returns {"step", "tokens", "parameters", "bytes"}."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    model = network.create(state["size"], seed=1)
    weights = {**state["model"], **(state["average"] if average else {})}
    weights.pop("lm_head.weight", None)
    _, unexpected = model.load_state_dict(weights, strict=False)
    if unexpected:
        raise ValueError(f"{checkpoint}: weights the model does not have: {sorted(unexpected)}")
    model.tie_weights()
    model.config.dtype = dtype
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        k: v.to(dtype).contiguous() for k, v in model.state_dict().items() if k != "lm_head.weight"
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    model.config.architectures = ["MuseGlimmerForConditionalGeneration"]
    model.config.save_pretrained(folder)
    _write_settings(folder, state)
    source = Path(__file__).parent.parent / "nano"
    for name in _FILES:
        if (source / name).resolve() != (folder / name).resolve():
            shutil.copyfile(source / name, folder / name)
    verify(folder)
    size = (folder / "model.safetensors").stat().st_size
    return {
        "step": state["step"],
        "tokens": state["tokens"],
        "parameters": sum(t.numel() for t in tensors.values()),
        "bytes": size,
    }


def _write_settings(folder: Path, state: dict) -> None:
    generation = {
        "bos_token_id": tok.BOS,
        "eos_token_id": [tok.EOT, tok.EOS],
        "pad_token_id": tok.PAD,
        "do_sample": False,
        "max_new_tokens": 512,
    }
    sizes = {
        "patch_size": PATCH,
        "temporal_patch_size": 2,
        "merge_size": CELL // PATCH,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "resample": 1,
    }
    image = {
        "image_processor_type": "MuseGlimmerImageProcessor",
        "processor_class": "MuseGlimmerProcessor",
        **sizes,
        "max_image_tokens": MOST_TOKENS,
    }
    video = {
        "video_processor_type": "MuseGlimmerVideoProcessor",
        "processor_class": "MuseGlimmerProcessor",
        **sizes,
        "max_video_frame_tokens": MOST_TOKENS // 4,
        "num_frames": 16,
    }
    training = {key: state[key] for key in ("size", "step", "tokens")}
    for name, values in (
        ("generation_config.json", generation),
        ("preprocessor_config.json", image),
        ("video_preprocessor_config.json", video),
        ("processor_config.json", {"processor_class": "MuseGlimmerProcessor"}),
        ("training.json", training),
    ):
        (folder / name).write_text(json.dumps(values, indent=2) + "\n")


def verify(folder: Path) -> None:
    """Load with transformers; any missing, unexpected or mismatched weight is an error."""
    _, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    wrong = {k: v for k, v in info.items() if v}
    if wrong:
        raise ValueError(f"{folder}: transformers does not load it whole: {wrong}")


def main(argv: list[str] | None = None) -> None:
    """Export and print what was written."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint")
    parser.add_argument("folder")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument(
        "--last", action="store_true", help="the last weights, not their running average"
    )
    args = parser.parse_args(argv)
    print(
        json.dumps(
            export(
                Path(args.checkpoint),
                Path(args.folder),
                getattr(torch, args.dtype),
                average=not args.last,
            )
        )
    )


if __name__ == "__main__":
    main()
