"""Pairs of GGUF files that llama.cpp's own converter makes, read by musespark: the same results?

Needs torch, transformers >= 5.23, gguf and the source tree of llama.cpp (the folder ``vendor/
llama.cpp`` of llama-cpp-python's sdist is one). Run

    PYTHONPATH=PATH-OF-AN-INSTALLED-MUSESPARK python tests/golden/check_mmproj.py LLAMA_CPP [NAME …]

from the repository root. For each pair of tests/support/mmproj_models.py it writes the model's
folder, lets the converter make both files of it as f32, f16 and q8_0, and compares what they give
with the folder (as stored): the largest difference of an image's rows as a share of their range,
and the greedy tokens of conversations with 0 to 4 images. LLaVA's towers are written by the older
converter in tools/mtmd/legacy-models. The default tests write the same names themselves.
"""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent.parent)]
import sight_cases  # noqa: E402

_OLD = "tools/mtmd/legacy-models/convert_image_encoder_to_gguf.py"
_CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
_CLIP_STD = [0.26862954, 0.26130258, 0.27577711]


# ---- in a process of its own: the converter ------------------------------------------------------


def convert(root: Path, folder: Path, kind: str, projector: bool, out: Path) -> None:
    """Runs llama.cpp's converter; the tests' tokenizer, which no list knows, is gpt-2's."""
    sys.path[:0] = [str(root), str(root / "gguf-py")]
    base = __import__("conversion.base", fromlist=["TextModel"])
    base.TextModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
    more = ["--mmproj"] if projector else []
    sys.argv = ["convert", str(folder), "--outtype", kind, "--outfile", str(out), *more]
    runpy.run_path(str(root / "convert_hf_to_gguf.py"), run_name="__main__")


def convert_llava(root: Path, folder: Path, kind: str, out: Path) -> None:
    """Runs the older converter on the tower of a LLaVA folder."""
    import torch
    import transformers
    from safetensors.torch import load_file

    whole = transformers.LlavaForConditionalGeneration.from_pretrained(folder)
    stored = load_file(folder / "model.safetensors")
    names = {"linear_1": "0", "linear_2": "2"}
    torch.save(
        {
            f"model.mm_projector.{names[n.split('.')[-2]]}.{n.split('.')[-1]}": v
            for n, v in stored.items()
            if "multi_modal_projector" in n
        },
        out.parent / "llava.projector",
    )
    config = json.loads((folder / "config.json").read_text())
    vision = config["vision_config"] | {"vision_feature_layer": config["vision_feature_layer"]}
    (out.parent / "config.json").write_text(json.dumps(vision))

    class Tower:
        """As CLIPVisionModel was when the converter was written."""

        def __init__(self):
            inner = whole.model.vision_tower
            self.vision_model = getattr(inner, "vision_model", inner)

        def state_dict(self):
            found = self.vision_model.state_dict()
            return {f"vision_model.{name}": value for name, value in found.items()}

    transformers.CLIPVisionModel.from_pretrained = classmethod(lambda cls, path: Tower())
    sys.path.insert(0, str(root / "gguf-py"))
    sys.argv = ["convert", "-m", str(out.parent), "--llava-projector"]
    sys.argv += [str(out.parent / "llava.projector"), "--clip-model-is-vision"]
    sys.argv += ["--output-dir", str(out.parent)] + (["--use-f32"] if kind == "f32" else [])
    runpy.run_path(str(root / _OLD), run_name="__main__")
    next(out.parent.glob("mmproj-model-*.gguf")).rename(out)


# ---- folders as they are published ---------------------------------------------------------------


def fill_out(folder: Path) -> None:
    """Config and image processor with every key, and tensors under the names of a hub's models."""
    import transformers
    from safetensors.numpy import load_file, save_file

    raw = json.loads((folder / "config.json").read_text())
    config = transformers.AutoConfig.from_pretrained(folder)
    config.architectures = raw["architectures"]
    config.save_pretrained(folder)
    written = json.loads((folder / "config.json").read_text())
    for part in (written, written["text_config"]):
        for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
            part.pop(key, None)  # of larger vocabularies
    if raw["model_type"] in ("idefics3", "smolvlm"):
        written["text_config"]["architectures"] = ["VLlama3ForCausalLM"]
    (folder / "config.json").write_text(json.dumps(written))
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    # A GGUF file may not be without merges: one, in the place of a byte that no text has.
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["ĀĀ"] = vocabulary.pop("ÿ")
    tokenizer["model"]["merges"] = [["Ā", "Ā"]]
    # Gemma's converter drops rows of the embedding that no token has, and keeps their tokens.
    added = tokenizer["added_tokens"]
    ids = range(added[-1]["id"] + 1, sight_cases.VOCAB)
    added += [added[-1] | {"id": i, "content": f"<unused{i}>"} for i in ids]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    about = {"eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    clip = raw["model_type"].startswith(("qwen", "llava"))
    settings.setdefault("image_mean", _CLIP_MEAN if clip else [0.5] * 3)
    settings.setdefault("image_std", _CLIP_STD if clip else [0.5] * 3)
    if raw["model_type"] == "gemma3":
        settings["image_seq_length"] = raw["mm_tokens_per_image"]
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    if raw["model_type"] == "gemma3":
        tensors = load_file(folder / "model.safetensors")
        tower = re.compile(r"^vision_tower\.(?!vision_model)")
        tensors = {tower.sub("vision_tower.vision_model.", n): v for n, v in tensors.items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def run(root: Path, folder: Path, name: str, kind: str, out: Path) -> tuple[Path, Path]:
    """Both files of a folder, each made by a process of its own."""
    text, tower = out / "text.gguf", out / "mmproj-x.gguf"
    for part, path in (("text", text), ("llava" if name == "llava" else "tower", tower)):
        command = [sys.executable, __file__, "--convert", str(root), str(folder), kind, part]
        done = subprocess.run([*command, str(path)], capture_output=True, text=True, check=False)
        if not path.exists():
            raise SystemExit(f"{name} {kind} {part}:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return text, tower


# ---- the comparison ------------------------------------------------------------------------------


def check(root: Path, name: str, kind: str) -> bool:
    import numpy as np
    import processor_cases

    import musespark
    from support.mmproj_models import PAIRS, model_folder
    from support.sight_folder import CASES, greedy

    sight = PAIRS[name].sight
    pictures = [CASES[sight].image(i) for i in range(2)] + [processor_cases.scene(260, 190, seed=7)]
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "model"
        folder.mkdir()
        model_folder(folder, name)
        fill_out(folder)
        text, _ = run(root, folder, name, kind, Path(made))
        options = {"quantize": "none", "kv": "f32", "threads": 2, "progress": False}
        with musespark.load(folder, **options) as ours, musespark.load(text, **options) as theirs:
            assert any("images: read with" in note for note in theirs.info.notes)
            worst = 0.0
            for picture in pictures:
                one, other = ours.encode_image(picture), theirs.encode_image(picture)
                pairs = zip((one.array, *one.taps), (other.array, *other.taps), strict=True)
                worst = max(worst, *(float(np.abs(a - b).max() / np.ptp(a)) for a, b in pairs))
            said = [
                list(greedy(ours, sight, n).tokens) == list(greedy(theirs, sight, n).tokens)
                for n in range(5)
            ]
        # Of some matrices the converters write F16 in any case.
        f32 = 1e-3 if name in ("gemma3", "llava") else 1e-5
        close = worst < {"f32": f32, "f16": 3e-3, "q8_0": 3e-2}[kind]
        good = close and (all(said) or kind != "f32")
        print(f"{name:13} {kind:5} rows {worst:.1e}  same tokens {said} {'' if good else 'WRONG'}")
        return good


def main() -> int:
    if sys.argv[1] == "--convert":
        root, folder, kind, part, out = sys.argv[2:]
        if part == "llava":
            convert_llava(Path(root), Path(folder), kind, Path(out))
        else:
            convert(Path(root), Path(folder), kind, part == "tower", Path(out))
        return 0
    from support.mmproj_models import PAIRS

    with tempfile.TemporaryDirectory() as cache:
        os.environ["MUSESPARK_CACHE"] = cache
        names = sys.argv[2:] or list(PAIRS)
        good = [check(Path(sys.argv[1]), n, k) for n in names for k in ("f32", "f16", "q8_0")]
    return 0 if all(good) else 1


if __name__ == "__main__":
    raise SystemExit(main())
