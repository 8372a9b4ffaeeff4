"""Writes video_<case>.npz: what transformers' whole models say to sight_cases.py's film().

Needs and runs as make_sight.py. A fixture holds ``prompt`` int32, the prompt's ids with the image's
and the video's token for each row, ``rows`` float32 [video's tokens, hidden], ``tokens`` int32 [16]
and ``margins`` float32 [16], as there. The checkpoint is that of sight_<case>.npz.
"""

from __future__ import annotations

import sys

import numpy as np
from make_sight import (
    HERE,
    Image,
    cases,
    greedy,
    pixels_of,
    processor_cases,
    reference_model,
    torch,
    transformers,
)


def make(name: str) -> dict[str, np.ndarray]:
    case = cases.CASES[name]
    model, _ = reference_model(case)
    image = Image.fromarray(case.image(0))
    video = processor_cases.expected_video(processor_cases.frames(), cases.FPS, case.video)
    compiled = transformers.utils.chat_template_utils._compile_jinja_template(cases.template(case))
    text = compiled.render(messages=cases.film(), add_generation_prompt=True)
    assert text.count("<|video|>") == text.count(case.placeholder) == 1
    text = text.replace(
        case.placeholder, processor_cases.expected(case.processor, image).text
    ).replace("<|video|>", video.text)
    ids = cases.tokenizer().encode(text).ids
    given = {
        "pixel_values_videos": torch.from_numpy(video.patches),
        "video_grid_thw": torch.tensor(video.grids),
    }
    tokens, margins = greedy(case, model, ids, pixels_of(case, [image]) | given)
    with torch.inference_mode():
        rows = model.get_video_features(*given.values(), return_dict=True).pooler_output
    rows = torch.cat(tuple(rows)).numpy()
    assert len(rows) == ids.count(cases.ID["<|video|>"])
    print(f"{name}: {len(ids)} ids, grids {video.grids}, {len(set(tokens))} different tokens, "
          f"least margin {min(margins):.4f}")  # fmt: skip
    print(video.text)
    return {
        "prompt": np.array(ids, np.int32),
        "rows": rows.astype(np.float32),
        "tokens": np.array(tokens, np.int32),
        "margins": np.array(margins, np.float32),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    for case_name in sys.argv[1:] or [n for n, c in cases.CASES.items() if c.video]:
        np.savez_compressed(HERE / f"video_{case_name}.npz", **make(case_name))
