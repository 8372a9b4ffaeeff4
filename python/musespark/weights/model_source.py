"""What a model folder or a GGUF file holds: its spec and where its tensors are, not packed."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from musespark.errors import CorruptFile, InvalidRequest, UnsupportedModel
from musespark.families import Family, read_config
from musespark.families.gguf import Around, GgufModel, read_gguf
from musespark.families.spec import ModelSpec
from musespark.families.tensors import Shape, TensorMap
from musespark.families.vision import VisionSpec
from musespark.families.vision.beside import PREFIX, packed_shapes
from musespark.untrusted import (
    MAX_TOKENIZER_BYTES,
    array_length,
    no_tokenizer,
    parse_json,
    parse_json_object,
    plain_value,
    read_json_object,
    read_small_file,
)
from musespark.vocab import sampling_notes, tokenizer_assets
from musespark.weights import pack
from musespark.weights.gguf import is_gguf
from musespark.weights.gguf_source import GgufCheckpoint, GgufSource, open_gguf
from musespark.weights.mmproj import SEARCH, Mmproj, Pair, is_projector, paired, refuse_beside
from musespark.weights.quantized.config import FILES, KEYS, Reader, read_quantization
from musespark.weights.quantized.linear import Stored
from musespark.weights.quantized.source import QuantizedSource, refuse_unexplained
from musespark.weights.safetensors import Checkpoint, SafetensorsFile, open_sharded
from musespark.weights.sight import PREPROCESSOR, PROCESSOR, Sight, beside, joined, sight_of

# Files of sentence-transformers that say how an encoder's rows become an embedding; in the config
# that families read they stand under "sentence_transformers".
SENTENCE_FILES = {
    "modules": "modules.json",
    "pooling": "1_Pooling/config.json",
    "transformer": "sentence_bert_config.json",
}
ASSETS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    PREPROCESSOR,
    PROCESSOR,
    "video_preprocessor_config.json",
    *SENTENCE_FILES.values(),
    *FILES,
)


# What a note begins with that says why a model with a vision tower does not see.
BLIND = "images: not read: "


@dataclass
class ModelFolder:
    """A model folder or GGUF file, understood but not packed.

    ``own_files``: the paths it is made of. ``made_assets`` makes, when it is packed, the assets
    that the file holds in another form.
    """

    path: Path
    checkpoint: pack.TensorSource
    assets: dict[str, bytes]
    family: str
    spec: ModelSpec
    mapping: TensorMap
    notes: list[str]
    own_files: list[Path]
    made_assets: Callable[[], dict[str, bytes]] = dict
    licence: str | None = None  # what a GGUF file says of it
    vision: VisionSpec | None = None  # its tensors are in the mapping too
    aside: list[str] = field(default_factory=list)  # notes on files beside it, which may change

    @functools.cached_property
    def shapes(self) -> dict[str, Shape]:
        """Every tensor that is packed -> its shape."""
        return packed_shapes(self.spec, self.vision)

    @functools.cached_property
    def all_assets(self) -> dict[str, bytes]:
        """Every file beside the weights, the made ones too."""
        return self.assets | self.made_assets()

    def check_tokenizer(self) -> None:
        """UnsupportedModel where it has none: nobody waits for it to be packed in vain."""
        if self.made_assets is dict and "tokenizer.json" not in self.assets:
            raise UnsupportedModel(no_tokenizer(str(self.path)))

    def recipe(self, quantize: str) -> str:
        """What `quantize` stands for here; of a tower the stored types decide nothing."""
        texts = (p for name, p in self.mapping.sources.items() if not name.startswith(PREFIX))
        stored = {self.checkpoint.entry(part.name).dtype for part in texts}
        return pack.resolve_quantize(quantize, self.shapes, stored)

    def plan(self, recipe: str) -> list[pack.Planned]:
        """What packing will write; checks shape and type of every tensor."""
        return pack.plan(self.checkpoint, self.shapes, self.mapping.sources, recipe)

    def weights(self) -> dict[str, int]:
        """Bytes once packed, for each recipe that there is; raises as :meth:`plan`."""
        planned = self.plan(pack.RECIPES[0])
        stored = {
            name: self.checkpoint.entry(p.name).dtype for name, p in self.mapping.sources.items()
        }
        size = functools.cache(lambda *shape: pack.Planned("", *shape, vector=False).nbytes)

        def nbytes(p: pack.Planned, recipe: str) -> int:
            if p.vector:
                return p.nbytes
            form = pack.matrix_format(recipe, p.name, stored[p.name], p.rows, p.cols)
            return size(form, p.rows, p.cols)

        recipes = dict.fromkeys((*pack.RECIPES, self.recipe("auto")))
        return {recipe: sum(nbytes(p, recipe) for p in planned) for recipe in recipes}


def understand(
    path: Path,
    headers: Checkpoint | GgufCheckpoint | None = None,
    mmproj: Mmproj = SEARCH,
) -> ModelFolder:
    """Maps the weights of a folder or GGUF file and matches their names; reads no matrix.

    With `headers` the weights are not there: these are what is known of them. `mmproj`: the
    projector file of a GGUF model.
    """
    if isinstance(headers, GgufCheckpoint):
        return _understand_gguf(path, mmproj, headers)
    gguf = None
    if headers is None:
        gguf = path if path.is_file() and is_gguf(path) else _only_gguf(path)
    if gguf is not None:
        return _understand_gguf(gguf, mmproj)
    refuse_beside(mmproj, path)
    return _understand_folder(path, headers)


# ---- GGUF ---------------------------------------------------------------------------------------


def _only_gguf(folder: Path) -> Path | None:
    """The GGUF model of a folder that holds nothing else: one file, or the first of its parts."""
    if (folder / "config.json").exists():
        return None
    found = sorted(p for p in folder.glob("*.gguf") if not is_projector(p.name))
    firsts = [p for p in found if not re.search(r"-(?!00001)\d{5}-of-\d{5}\.gguf$", p.name)]
    if len(firsts) > 1:
        names = ", ".join(p.name for p in firsts[:8])
        raise InvalidRequest(f"{folder} holds {len(firsts)} GGUF models; give one: {names}")
    return firsts[0] if firsts else None


def _understand_gguf(
    path: Path, mmproj: Mmproj, headers: GgufCheckpoint | None = None
) -> ModelFolder:
    checkpoint = headers or open_gguf(path)
    try:
        model = _read_text(checkpoint)
        again = functools.partial(_read_text, checkpoint)
        pair, why = paired(checkpoint, model, again, mmproj)
    except BaseException:
        checkpoint.close()
        raise
    metadata, name = checkpoint.metadata, checkpoint.files[0].path
    marker = "" if pair is None else pair.projector.kind.row
    folder = ModelFolder(
        path=path,
        checkpoint=GgufSource(checkpoint, model.interleaved),
        assets={"config.json": _as_json(model.config)},
        family=model.family,
        spec=model.spec,
        mapping=model.mapping,
        notes=model.notes + sampling_notes(metadata),
        own_files=[file.path for file in checkpoint.files],
        made_assets=functools.partial(_gguf_assets, metadata, name, model.spec.vocab, marker),
        licence=_gguf_licence(metadata),
        aside=[f"{BLIND}{why}"] if why else [],
    )
    return folder if pair is None else _with_tower(folder, pair)


def _as_json(value: Any) -> bytes:
    return json.dumps(value, indent=1).encode()


def _read_text(checkpoint: GgufCheckpoint, around: Around = dict) -> GgufModel:
    """The model of a GGUF file; `around` as for :func:`read_gguf`."""
    path = checkpoint.files[0].path
    shapes = {name: checkpoint.entry(name).shape for name in checkpoint.file_of}
    try:
        return read_gguf(checkpoint.metadata, shapes, checkpoint.vector, around)
    except (UnsupportedModel, CorruptFile) as error:
        if not shapes and isinstance(error, CorruptFile):
            text = f"{path}: holds no tensors (a vocabulary only), and is no model to run"
            raise UnsupportedModel(text) from None
        raise type(error)(f"{path}: {error}") from None


def _with_tower(folder: ModelFolder, pair: Pair) -> ModelFolder:
    text, tower = pair.text, pair.tower
    return dataclasses.replace(
        folder,
        checkpoint=GgufSource(
            pair.source, text.interleaved | tower.interleaved, remade=tower.remade
        ),
        assets={"config.json": _as_json(text.config)}
        | {name: _as_json(said) for name, said in pair.assets.items()},
        family=text.family,
        spec=text.spec,
        mapping=joined(text.mapping, tower.mapping),
        notes=[*text.notes, *sampling_notes(pair.source.metadata), *tower.mapping.ignored],
        own_files=[file.path for file in pair.source.files],
        vision=tower.spec,
        aside=[pair.note],
    )


def _gguf_licence(metadata: Mapping[str, Any]) -> str | None:
    said = plain_value(metadata, "general.license")
    return f"{said[:200]} (general.license)" if isinstance(said, str) and said else None


def _gguf_assets(
    metadata: Mapping[str, Any], path: Path, rows: int, marker: str = ""
) -> dict[str, bytes]:
    """Tokenizer, template and defaults of a GGUF file; none where it has no vocabulary.

    ``rows`` of the embedding are there, and so many tokens at most; ``marker``, which stands for a
    row of an image, is one more where the file lacks it.
    """
    if "tokenizer.ggml.model" not in metadata:
        return {}
    tokens = array_length(metadata, "tokenizer.ggml.tokens") or 0
    if tokens > rows:
        raise CorruptFile(
            f"{path}: tokenizer.ggml.tokens has {tokens} entries, the embedding {rows} rows"
        )
    try:
        return tokenizer_assets(metadata, marker)
    except (UnsupportedModel, CorruptFile) as error:
        raise type(error)(f"{path}: {error}") from None


# ---- folders ------------------------------------------------------------------------------------


def _understand_folder(folder: Path, headers: Checkpoint | None = None) -> ModelFolder:
    if not os.path.lexists(folder / "config.json"):
        raise _no_model(folder)
    assets = {
        name: read_small_file(folder / name, MAX_TOKENIZER_BYTES)
        for name in ASSETS
        if os.path.lexists(folder / name)
    }
    family, spec, notes, reader, sight = read_config_files(assets, folder)
    files = _open_checkpoint(folder) if headers is None else headers
    try:
        stored = Stored(files, readable=headers is None)
        checkpoint, mapping = _match(family, spec, stored, reader, folder)
        if mapping.spare_head is not None and headers is not None:
            notes.append("whether the head is the embedding is not known without the weights")
        elif mapping.spare_head is not None and _heads_differ(checkpoint, mapping):
            # As transformers: two different matrices in the file are stronger than the config.
            spec = dataclasses.replace(spec, tied_head=False)
            mapping = family.tensors(spec, checkpoint.file_of)
        config = parse_json_object(assets["config.json"], str(folder / "config.json"))
        sight, mapping = beside(sight, config, mapping, checkpoint.file_of)
    except BaseException:
        files.close()
        raise
    notes += mapping.ignored
    if sight.why:
        notes.append(f"{BLIND}{sight.why}")
    own = [folder / name for name in (*ASSETS, "model.safetensors.index.json")]
    own += [file.path for file in checkpoint.files]
    return ModelFolder(
        folder,
        checkpoint,
        assets,
        family.name,
        spec,
        mapping,
        notes,
        own,
        vision=sight.spec,
    )


def _no_model(folder: Path) -> InvalidRequest:
    """What to say of a folder without a config.json."""
    adapter = folder / "adapter_config.json"
    if not adapter.is_file():
        return InvalidRequest(f"{folder} has no config.json; a model folder has one")
    base = read_json_object(adapter).get("base_model_name_or_path")
    return InvalidRequest(
        f"{folder} is an adapter (for {base!r:.200}), no model: load the model that it was made "
        "for, with adapter= this folder"
    )


def _match(
    family: Family, spec: ModelSpec, stored: Stored, reader: Reader | None, folder: Path
) -> tuple[Checkpoint | QuantizedSource, TensorMap]:
    """The stored tensors, with quantized matrices put together, and what they become."""
    if reader is None:
        refuse_unexplained(stored.checkpoint)
    source = None if reader is None else QuantizedSource(stored, reader(stored))
    checkpoint = source or stored.checkpoint
    try:
        try:
            mapping = family.tensors(spec, checkpoint.file_of)
        except CorruptFile:
            if source is None or not source.drop_zero_biases():
                raise
            mapping = family.tensors(spec, checkpoint.file_of)
    except CorruptFile as error:
        raise CorruptFile(f"{folder}: {error}") from None
    if source is not None:
        mapping.ignored |= source.ignored
    return checkpoint, mapping


def read_config_files(
    assets: Mapping[str, bytes], folder: Path
) -> tuple[Family, ModelSpec, list[str], Reader | None, Sight]:
    """What a folder's ``config.json`` and the files beside it say: family, spec, notes, the reader
    of matrices that are quantized, and the vision tower."""
    where = folder / "config.json"
    config = parse_json_object(assets["config.json"], str(where))
    beside = {
        key: parse_json(assets[name], str(folder / name))
        for key, name in SENTENCE_FILES.items()
        if name in assets
    }
    if beside:
        config["sentence_transformers"] = beside
    reader, notes = _read_settings(config, assets, folder)
    try:
        plain = {key: value for key, value in config.items() if key not in KEYS}
        family, spec, more = read_config(plain)
        return family, spec, more + notes, reader, sight_of(plain, spec, assets)
    except UnsupportedModel as error:
        raise UnsupportedModel(f"{where}: {error}") from None


def _read_settings(
    config: Mapping[str, Any], assets: Mapping[str, bytes], folder: Path
) -> tuple[Reader | None, list[str]]:
    beside = {
        name: parse_json(assets[name], str(folder / name)) for name in FILES if name in assets
    }
    try:
        return read_quantization(config, beside)
    except UnsupportedModel as error:
        raise UnsupportedModel(f"{folder}: {error}") from None


# Adapters, and the second copy of the weights in the form of Mistral's own tools.
_OTHER_FORMS = ("adapter_", "consolidated")


def _open_checkpoint(folder: Path) -> Checkpoint:
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.exists():
        return Checkpoint([SafetensorsFile(single)])
    if index.exists():
        return open_sharded(index)
    named = sorted(p for p in folder.glob("*.safetensors") if not p.name.startswith(_OTHER_FORMS))
    if len(named) == 1:
        return Checkpoint([SafetensorsFile(named[0])])
    others = sorted(p.name for p in folder.glob("*") if p.suffix in (".bin", ".pt", ".pth"))
    hint = f"; {others[0]} is pickled, which is never read" if others else ""
    if named:
        hint = f"; of several files none is chosen: {', '.join(p.name for p in named[:8])}"
    raise InvalidRequest(f"{folder} has no model.safetensors and no index of shards{hint}")


def _heads_differ(checkpoint: Checkpoint | QuantizedSource, mapping: TensorMap) -> bool:
    embed, head = mapping.sources["embed"].name, mapping.spare_head or ""
    ours, theirs = checkpoint.entry(embed), checkpoint.entry(head)
    if (ours.dtype, ours.shape) != (theirs.dtype, theirs.shape):
        return True
    a, b = checkpoint.array(embed), checkpoint.array(head)
    step = max(1, (16 << 20) // max(1, a.itemsize * math.prod(a.shape[1:])))
    bits = np.dtype(f"u{a.itemsize}")
    pieces = (slice(i, i + step) for i in range(0, a.shape[0], step))
    return any(
        not np.array_equal(np.asarray(a[i]).view(bits), np.asarray(b[i]).view(bits)) for i in pieces
    )
