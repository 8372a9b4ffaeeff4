"""Pairs of GGUF files of tiny models that see, laid out as llama.cpp's converter lays them out.

The models are those of tests/golden/sight_cases.py, with what a projector file cannot say at the
value that it stands for. Which tensor gets which name and what becomes of it is written down here
once more, apart from the tables under test; tests/golden/check_mmproj.py runs the converter itself.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import sight_cases
from safetensors.numpy import load_file

from musespark.families import read_config
from support.gguf_families import write_family
from support.gguf_models import Encode, plain, weave
from support.model_folder import Case, write_folder
from support.sight_folder import CASES, golden, sight_folder

__all__ = ["PAIRS", "model_folder", "write_pair", "write_projector", "write_text"]


@dataclasses.dataclass(frozen=True)
class PairCase:
    """``kind``: clip.projector_type; ``sight``: the case; ``text``: family of the text alone.
    ``vision`` and ``inner``: changes of the vision_config and text_config, ``pixels`` of the image
    processor's settings."""

    kind: str
    sight: str
    text: str
    vision: dict[str, Any] = dataclasses.field(default_factory=dict)
    inner: dict[str, Any] = dataclasses.field(default_factory=dict)
    pixels: dict[str, Any] = dataclasses.field(default_factory=dict)


_ANY_SIZE = {"size": None}  # the class's limits of pixels
# Windows have 112 pixels: a file does not say.
_WINDOWS = {"patch_size": 14, "window_size": 112}
PAIRS = {
    "idefics3": PairCase("idefics3", "idefics3", "llama"),
    "smolvlm": PairCase("idefics3", "smolvlm", "llama", {"hidden_act": "gelu_pytorch_tanh"}),
    "gemma3": PairCase("gemma3", "gemma3", "gemma3", inner={"query_pre_attn_scalar": 16}),
    "llava": PairCase("mlp", "llava", "llama"),
    "qwen2_vl": PairCase("qwen2vl_merger", "qwen2_vl", "qwen2_vl", pixels=_ANY_SIZE),
    "qwen2_5_vl": PairCase(
        "qwen2.5vl_merger",
        "qwen2_5_vl",
        "qwen2_vl",
        _WINDOWS,
        pixels=_ANY_SIZE | {"patch_size": 14},
    ),
    "qwen3_vl": PairCase("qwen3vl_merger", "qwen3_vl", "qwen3_vl", pixels=_ANY_SIZE),
    "muse_glimmer": PairCase(
        "muse-glimmer", "muse_glimmer", "muse_glimmer", pixels={"max_image_tokens": None}
    ),
}


def model_folder(path: Path, name: str) -> Path:
    """A pair's model as a folder of transformers."""
    case, sight = PAIRS[name], CASES[PAIRS[name].sight]
    sight_folder(path, case.sight, **case.pixels)
    config = sight.config
    config["vision_config"] = config["vision_config"] | case.vision
    config["text_config"] = config["text_config"] | case.inner
    shapes = json.loads(golden(case.sight)["tensors"].tobytes())
    tied = "lm_head.weight" not in shapes
    patch = case.vision.get("patch_size")
    tensors = {}
    for tensor, shape in shapes.items():
        if patch and "patch_embed" in tensor and len(shape) > 1:
            shape = [*shape[:-2], patch, patch]
        tensors[tensor] = sight_cases.weight(sight, tensor, tuple(shape), tied)
    write_folder(path, config, tensors)
    return path


def write_pair(folder: Path, name: str, out: Path, encode: Encode = plain) -> tuple[Path, Path]:
    """(model, projector) of a folder of :func:`model_folder`, in the folder `out`."""
    out.mkdir(exist_ok=True)
    text = write_text(folder, name, out / "model.gguf")
    return text, write_projector(folder, name, out / "mmproj-model.gguf", encode)


# ---- the text ------------------------------------------------------------------------------------

_TEXT = (
    (re.compile(r"^model\.(language_model|text_model)\."), "model."),
    (re.compile(r"^language_model\."), ""),
)
_TOWER = re.compile(
    r"^(model\.)?(vision|visual|connector|multi_modal|audio)|^model\.vision|^visual\."
)


def write_text(
    folder: Path,
    name: str,
    path: Path,
    lacking: Iterable[str] = (),
    more: Callable[[Any], object] = lambda writer: None,
) -> Path:
    """The text of a model alone. ``lacking``: tokens that its vocabulary has not; ``more`` adds
    keys."""
    case, config = PAIRS[name], json.loads((folder / "config.json").read_text())
    inner = config if case.text == "muse_glimmer" else config["text_config"]
    spec = read_config(config)[1]
    weights = {}
    for tensor, value in load_file(folder / "model.safetensors").items():
        if _TOWER.match(tensor):
            continue
        if case.text != "muse_glimmer":
            for pattern, instead in _TEXT:
                tensor = pattern.sub(instead, tensor)
        weights[tensor] = value

    def keys(writer: Any) -> None:
        _vocabulary(writer, name, frozenset(lacking))
        if case.text == "qwen3_vl":
            taps = config["vision_config"]["deepstack_visual_indexes"]
            writer.add_num_deepstack_layers(len(taps))
        more(writer)

    full = {"max_position_embeddings": spec.max_context, "intermediate_size": 0} | inner
    return write_family(path, Case(case.text, full, 0), spec, weights, more=keys)


def _vocabulary(writer: Any, name: str, lacking: frozenset[str]) -> None:
    made = sight_cases.tokenizer()
    tokens = [made.id_to_token(i) for i in range(sight_cases.BYTES + len(sight_cases.MARKERS))]
    tokens = [f"[none {i}]" if one in lacking else one for i, one in enumerate(tokens)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    # A list of merges may not be empty: one of two bytes that no text here has. The model may
    # write any of its tokens.
    tokens.append("ĀĀ")
    tokens += [f"[unused {i}]" for i in range(len(tokens), sight_cases.VOCAB)]
    marked = len(sight_cases.MARKERS)
    writer.add_token_list(tokens)
    writer.add_token_types(
        [1] * sight_cases.BYTES + [3] * marked + [1] * (len(tokens) - sight_cases.BYTES - marked)
    )
    writer.add_token_merges(["Ā Ā"])
    writer.add_eos_token_id(sight_cases.ID["</s>"])
    writer.add_chat_template(sight_cases.template(CASES[PAIRS[name].sight]))


# ---- the projector -------------------------------------------------------------------------------

_SIGLIP = {
    "embeddings.patch_embedding": "v.patch_embd",
    "embeddings.position_embedding": "v.position_embd",
    "pre_layrnorm": "v.pre_ln",
    "post_layernorm": "v.post_ln",
    "connector.modality_projection.proj": "mm.model.fc",
    "multi_modal_projector.mm_input_projection_weight": "mm.input_projection",
    "multi_modal_projector.mm_soft_emb_norm": "mm.soft_emb_norm",
    "multi_modal_projector.linear_1": "mm.0",
    "multi_modal_projector.linear_2": "mm.2",
    "merger.ln_q": "v.post_ln",
    "merger.mlp.0": "mm.0",
    "merger.mlp.2": "mm.2",
    "merger.norm": "v.post_ln",
    "merger.linear_fc1": "mm.0",
    "merger.linear_fc2": "mm.2",
    "pos_embed": "v.position_embd",
    "patch_embed.proj": "v.patch_embd",
    "patch_embedder.position_embedding_table": "v.position_embd",
    "ln_pre": "v.pre_ln",
    "ln_post": "v.post_ln",
    "vision_adapter.fc1": "mm.0",
    "vision_adapter.fc2": "mm.1",
    "vision_projection": "mm.2",
}
_LAYER = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.out_proj": "attn_out", "layer_norm1": "ln1", "layer_norm2": "ln2",
    "mlp.fc1": "ffn_up", "mlp.fc2": "ffn_down", "norm1": "ln1", "norm2": "ln2",
    "attn.proj": "attn_out", "attn.qkv": "attn_qkv", "attn.q_proj": "attn_q",
    "attn.k_proj": "attn_k", "attn.v_proj": "attn_v", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "mlp.linear_fc1": "ffn_up",
    "mlp.linear_fc2": "ffn_down",
}  # fmt: skip
_STACK = {"norm": "norm", "linear_fc1": "fc1", "linear_fc2": "fc2"}
_ROOTS = r"^(?:model\.)?(?:visual|vision_tower|vision_model)\.|^model\."


def write_projector(
    folder: Path,
    name: str,
    path: Path,
    encode: Encode = plain,
    *,
    keys: Mapping[str, Callable[[Any], object] | None] | None = None,
    tensors: Callable[[dict[str, np.ndarray]], object] = lambda tensors: None,
    older: bool = False,
) -> Path:
    """The tower of a model. ``keys``: key -> what adds it to a GGUFWriter in its place (None:
    nothing); ``tensors`` changes them; ``older``: as LLaVA's own converter writes them."""
    config = json.loads((folder / "config.json").read_text())
    stored = load_file(folder / "model.safetensors")
    found: dict[str, np.ndarray] = {}
    for tensor, value in stored.items():
        if _TOWER.match(tensor):
            found |= _converted(name, config, tensor, value)
    if older:
        swap = {"ffn_up": "ffn_down", "ffn_down": "ffn_up"}
        swapped = lambda n: re.sub(r"ffn_(up|down)", lambda m: swap[m[0]], n)  # noqa: E731
        found = {swapped(tensor): value for tensor, value in found.items()}
    said = _keys(name, folder, config, found, older) | dict(keys or {})
    tensors(found)
    writer = gguf.GGUFWriter(str(path), "clip")
    for add in said.values():
        if add is not None:
            add(writer)
    for tensor, value in found.items():
        data, kind = (value, None) if value.ndim > 2 else encode(tensor, value)
        writer.add_tensor(tensor, np.ascontiguousarray(data), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _converted(
    name: str, config: dict[str, Any], tensor: str, value: np.ndarray
) -> dict[str, np.ndarray]:
    tensor = re.sub(_ROOTS, "", tensor)
    if tensor.startswith("head."):
        return {}
    if tensor == "embeddings.class_embedding":
        return {"v.class_embd": value}
    if tensor.startswith("deepstack_merger_list."):
        _, index, part, suffix = tensor.split(".")
        layer = config["vision_config"]["deepstack_visual_indexes"][int(index)]
        return {f"v.deepstack.{layer}.{_STACK[part]}.{suffix}": value}
    layer = re.fullmatch(r"(?:encoder\.layers|blocks|layers)\.(\d+)\.(.+)\.(weight|bias)", tensor)
    if layer:
        return _of_layer(name, config, layer[1], layer[2], layer[3], value)
    if tensor.endswith("patch_embedding.weight") and name == "muse_glimmer":
        frames = config["vision_config"].get("patch_temporal", 2)
        patch = config["vision_config"]["patch_size"]
        value = value.reshape(len(value), frames, 3, patch, patch).sum(axis=1)
        return {"v.patch_embd.weight": value}
    if tensor == "patch_embed.proj.weight":
        halves = ("v.patch_embd.weight", "v.patch_embd.weight.1")
        return {half: value[:, :, i] for i, half in enumerate(halves)}
    if tensor.endswith("mm_soft_emb_norm.weight"):
        value = value + 1
    if tensor.endswith("_weight"):
        return {f"{_SIGLIP[tensor]}.weight": value}
    stem, _, suffix = tensor.rpartition(".")
    return {f"{_SIGLIP[stem]}.{suffix}": value}


def _of_layer(
    name: str, config: dict[str, Any], index: str, part: str, suffix: str, value: np.ndarray
) -> dict[str, np.ndarray]:
    at = f"v.blk.{index}."
    if name == "llava" and int(index) == config["vision_config"]["num_hidden_layers"] - 1:
        return {}  # after the one that is read
    if name == "muse_glimmer" and part in ("attn.q_proj", "attn.k_proj"):
        value = weave(value, config["vision_config"]["num_attention_heads"])
    if part == "attn.qkv" and name != "qwen3_vl":
        thirds = np.split(value, 3)
        return {f"{at}attn_{x}.{suffix}": one for x, one in zip("qkv", thirds, strict=True)}
    return {f"{at}{_LAYER[part]}.{suffix}": value}


def _keys(
    name: str, folder: Path, config: dict[str, Any], tensors: dict[str, np.ndarray], older: bool
) -> dict[str, Callable[[Any], object]]:
    """What the converter says of a model, key -> what adds it."""
    vision, kind = config["vision_config"], PAIRS[name].kind
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    clip = kind == "mlp" or "qwen" in kind
    mean = [0.48145466, 0.4578275, 0.40821073] if clip else [0.5] * 3
    std = [0.26862954, 0.26130258, 0.27577711] if clip else [0.5] * 3
    patch = tensors["v.patch_embd.weight"]
    blocks = {n.split(".")[2] for n in tensors if n.startswith("v.blk.")}
    width = config["text_config"]["hidden_size"]
    image = vision.get("image_size", 560)
    if kind == "qwen3vl_merger":
        image = int(vision["num_position_embeddings"] ** 0.5) * vision["patch_size"]
    ff = tensors[f"v.blk.0.ffn_{'down' if older else 'up'}.weight"].shape[0]
    numbers = {
        "projection_dim": 77 if kind == "mlp" else width,  # CLIP's own
        "image_size": image,
        "patch_size": patch.shape[-1],
        "embedding_length": patch.shape[0],
        "feed_forward_length": width if kind == "qwen2vl_merger" else ff,
        "block_count": len(blocks),
        "attention.head_count": vision.get("num_attention_heads", vision.get("num_heads")),
    }
    scale = {
        "idefics3": config.get("scale_factor"),
        "gemma3": (image // patch.shape[-1]) // int(config.get("mm_tokens_per_image", 1) ** 0.5),
    }.get(kind)
    merge = {"qwen3vl_merger": 2, "muse-glimmer": 2}.get(kind)
    full = vision.get("fullatt_block_indexes", [0])[0] + 1 if "2.5" in kind else None
    longest = settings["size"]["longest_edge"] if kind == "idefics3" else None
    more = {"projector.scale_factor": scale, "spatial_merge_size": merge, "n_wa_pattern": full}
    more["preproc_image_size"] = longest
    numbers |= {key: value for key, value in more.items() if value is not None}

    def number(key: str, value: int) -> Callable[[Any], object]:
        return lambda writer: writer.add_uint32(f"clip.vision.{key}", value)

    said = {f"clip.vision.{key}": number(key, value) for key, value in numbers.items()}
    said |= {
        "clip.has_vision_encoder": lambda w: w.add_clip_has_vision_encoder(True),
        "clip.projector_type": lambda w: w.add_clip_projector_type(kind),
        "clip.vision.image_mean": lambda w: w.add_vision_image_mean(mean),
        "clip.vision.image_std": lambda w: w.add_vision_image_std(std),
        "clip.vision.attention.layer_norm_epsilon": lambda w: w.add_vision_attention_layernorm_eps(
            vision.get("layer_norm_eps", _EPSILON[name])
        ),
    }
    if kind in ("idefics3", "gemma3", "qwen3vl_merger"):
        said["clip.use_gelu"] = lambda w: w.add_vision_use_gelu(True)
    if kind == "qwen2.5vl_merger":
        said["clip.use_silu"] = lambda w: w.add_vision_use_silu(True)
    if kind == "qwen3vl_merger":
        taps = [i in vision["deepstack_visual_indexes"] for i in range(len(blocks))]
        said["clip.vision.is_deepstack_layers"] = lambda w: w.add_vision_is_deepstack_layers(taps)
    if older:
        last = [len(blocks)]
        said["clip.use_gelu"] = lambda w: w.add_vision_use_gelu(False)
        said["clip.has_text_encoder"] = lambda w: w.add_bool("clip.has_text_encoder", False)
        said["clip.has_llava_projector"] = lambda w: w.add_bool("clip.has_llava_projector", True)
        said["clip.vision.feature_layer"] = lambda w: w.add_array("clip.vision.feature_layer", last)
    else:
        said["general.type"] = lambda w: w.add_type("mmproj")
    return said


_EPSILON = dict.fromkeys(PAIRS, 1e-6) | {"llava": 1e-5, "muse_glimmer": 1e-5}
