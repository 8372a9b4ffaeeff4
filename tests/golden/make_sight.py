"""Writes sight_<case>.npz: what transformers' whole models say to sight_cases.py's conversations.

Needs torch, torchvision, Pillow >= 13 and transformers >= 5.23; run ``python
tests/golden/make_sight.py [CASE …]`` from the repository root. A fixture holds ``tensors``, names
and shapes of the checkpoint as JSON, and for each number of images n ``prompt_<n>`` int32, the
prompt's ids with the image token for each row, ``tokens_<n>`` int32 [16], what the model goes on
with (greedily, bytes alone), and ``margins_<n>`` float32 [16]: how far the best logit is above the
second, as a share of the range of all. From pixels to tokens all of it is transformers', but for
the tokenizer, which is a token a byte.
"""

from __future__ import annotations

import inspect
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import processor_cases  # noqa: E402
import sight_cases as cases  # noqa: E402

processor_cases.theirs(cases.CASES["muse_glimmer"].processor)  # before torchvision is imported
import torch  # noqa: E402
import transformers  # noqa: E402
from safetensors import safe_open  # noqa: E402
from safetensors.numpy import save_file  # noqa: E402


def reference_model(case: cases.SightCase) -> tuple[torch.nn.Module, dict[str, list[int]]]:
    kind = getattr(transformers, case.architecture)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(case.config))
        config = transformers.AutoConfig.from_pretrained(folder)
        kind(config).float().save_pretrained(folder)
        file = Path(folder) / "model.safetensors"
        with safe_open(file, "np") as stored:
            shapes = {n: list(stored.get_slice(n).get_shape()) for n in sorted(stored.keys())}
        tied = "lm_head.weight" not in shapes
        every = {n: cases.weight(case, n, tuple(s), tied) for n, s in shapes.items()}
        save_file(every, file, metadata={"format": "pt"})
        model, report = kind.from_pretrained(
            folder,
            dtype=torch.float32,
            attn_implementation="eager",
            output_loading_info=True,
        )
    wrong = {what: found for what, found in report.items() if found}
    assert not wrong, wrong
    return model.eval(), shapes


def prompt_of(case: cases.SightCase, images: list[Image.Image], count: int) -> list[int]:
    """The conversation as ids: the template's text with what their processor writes for images."""
    compiled = transformers.utils.chat_template_utils._compile_jinja_template(cases.template(case))
    text = compiled.render(messages=cases.conversation(count), add_generation_prompt=True)
    first, *rest = text.split(case.placeholder)
    assert len(rest) == count
    for one, after in zip(images, rest, strict=True):
        first += processor_cases.expected(case.processor, one).text + after
    return cases.tokenizer().encode(first).ids


def pixels_of(case: cases.SightCase, images: list[Image.Image]) -> dict[str, torch.Tensor]:
    if not images:
        return {}
    nested = case.processor.model_type in ("idefics3", "smolvlm")
    processor = processor_cases.theirs(case.processor)
    made = processor([images] if nested else images, return_tensors="pt")
    return {k: v for k, v in made.items() if isinstance(v, torch.Tensor)}


def greedy(case: cases.SightCase, model: torch.nn.Module, ids: list[int], pixels: dict) -> tuple:
    """By whole forward passes: no cache that could differ."""
    known = inspect.signature(model.forward).parameters
    tokens, margins, token = list(ids), [], cases.ID[case.image_token]
    with torch.inference_mode():
        for _ in range(cases.GREEDY):
            now = torch.tensor(tokens)[None]
            images = (now == token).int()
            given = {
                **pixels,
                "attention_mask": torch.ones_like(now),
                "mm_token_type_ids": images,
                "token_type_ids": images.long(),
            }
            given = {name: value for name, value in given.items() if name in known}
            logits = model(input_ids=now, use_cache=False, **given).logits[0, -1, : cases.BYTES]
            best = logits.topk(2).values
            margins.append(float(best[0] - best[1]) / float(logits.max() - logits.min()))
            tokens.append(int(logits.argmax()))
    return tokens[len(ids) :], margins


def make(name: str) -> dict[str, np.ndarray]:
    case = cases.CASES[name]
    model, shapes = reference_model(case)
    arrays = {"tensors": np.frombuffer(json.dumps(shapes).encode(), np.uint8)}
    for count in range(cases.MOST_IMAGES + 1):
        images = [Image.fromarray(case.image(i)) for i in range(count)]
        ids = prompt_of(case, images, count)
        tokens, margins = greedy(case, model, ids, pixels_of(case, images))
        arrays |= {
            f"prompt_{count}": np.array(ids, np.int32),
            f"tokens_{count}": np.array(tokens, np.int32),
            f"margins_{count}": np.array(margins, np.float32),
        }
        rows = ids.count(cases.ID[case.image_token])
        print(f"{name} {count}: {len(ids)} ids, {rows} rows, {len(set(tokens))} different tokens, "
              f"least margin {min(margins):.4f}")  # fmt: skip
    return arrays


if __name__ == "__main__":
    torch.set_num_threads(1)
    for case_name in sys.argv[1:] or cases.CASES:
        np.savez_compressed(HERE / f"sight_{case_name}.npz", **make(case_name))
