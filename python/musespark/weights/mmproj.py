"""A projector file (mmproj) beside a GGUF model: which one, whether it fits, both as one source."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from musespark.errors import CorruptFile, InvalidRequest, UnsupportedModel
from musespark.families.gguf import GgufModel
from musespark.families.vision.mmproj import Projector, Tower, read_projector, tower_of
from musespark.untrusted import plain_value
from musespark.vocab import tokens_missing
from musespark.weights.gguf_source import GgufCheckpoint, open_gguf

# Reads the model of a file again, with its config inside another.
Again = Callable[[Callable[[Mapping[str, Any]], dict[str, Any]]], GgufModel]


@dataclass(frozen=True)
class Mmproj:
    """Which projector file goes with a model. ``path`` None: none, or with ``search`` the one that
    lies beside it. ``named``: the caller said so, and one that does not fit is refused.
    ``headers``: what is known of one that is not here; ``why``: why none was taken."""

    path: Path | None = None
    named: bool = False
    search: bool = False
    headers: GgufCheckpoint | None = None
    why: str = ""


SEARCH, NOTHING = Mmproj(search=True), Mmproj()


def is_projector(name: str) -> bool:
    """Whether a file is called as projector files are."""
    return name.lower().endswith(".gguf") and "mmproj" in name.lower()


def check_mmproj(mmproj: Any) -> None:
    """InvalidRequest unless it is None, False, a path or a hub id."""
    path = isinstance(mmproj, str | os.PathLike) and os.fspath(mmproj)
    if not path and mmproj is not None and mmproj is not False:
        raise InvalidRequest(
            f"mmproj: got {mmproj!r:.60}, allowed is a path or hub id, None (the one beside the "
            "model) or False (none)"
        )


def refuse_beside(mmproj: Mmproj, path: Path) -> None:
    """InvalidRequest for a projector file that is named beside what is no GGUF model."""
    if mmproj.named:
        raise InvalidRequest(
            f"mmproj: {mmproj.path} goes with a GGUF model; what {path} sees with lies in its own "
            "files"
        )


def several_say(names: Sequence[str]) -> str:
    """Why none of several is taken."""
    few = ", ".join(names[:8])
    return f"{len(names)} mmproj files lie beside the model; name one as mmproj: {few}"


@dataclass(frozen=True)
class Pair:
    """A text (inside the whole's config) and its tower. ``source``: the tensors of both; ``note``:
    where the tower came from."""

    projector: Projector
    tower: Tower
    text: GgufModel
    source: GgufCheckpoint
    note: str

    @property
    def assets(self) -> dict[str, dict[str, Any]]:
        """What preprocessor_config.json and processor_config.json of a model folder would say."""
        said = self.projector.said
        found = {"preprocessor_config.json": said.preprocessor}
        return found | ({"processor_config.json": said.processor} if said.processor else {})


def paired(
    checkpoint: GgufCheckpoint, text: GgufModel, again: Again, mmproj: Mmproj
) -> tuple[Pair | None, str]:
    """The model with its tower, or None and why (nothing where nobody asked and none is there).

    A file that was not named is left aside where it does not fit or is of a type that is not run:
    it may be another model's. CorruptFile of a damaged one, whoever chose it.
    """
    model = checkpoint.files[0].path
    path = mmproj.path
    if path is None and mmproj.search:
        others = (p for p in model.parent.glob("*.[gG][gG][uU][fF]") if p != model)
        found = sorted(p for p in others if is_projector(p.name))
        if len(found) > 1:
            return None, several_say([p.name for p in found])
        path = found[0] if found else None
    if path is None:
        return None, mmproj.why
    try:
        return _opened(checkpoint, text, again, path, mmproj), ""
    except (InvalidRequest, UnsupportedModel) as error:
        if mmproj.named:
            raise
        return None, str(error)
    except CorruptFile as error:
        if mmproj.named:
            raise
        raise CorruptFile(f"{error} (mmproj=False leaves the file aside)") from None


def _opened(
    checkpoint: GgufCheckpoint, text: GgufModel, again: Again, path: Path, mmproj: Mmproj
) -> Pair:
    part = mmproj.headers or open_gguf(path)
    try:
        shapes = {name: part.entry(name).shape for name in part.file_of}
        try:
            projector = read_projector(part.metadata, shapes)
            _check_fits(projector, checkpoint.metadata, text, mmproj.named)
            whole = again(projector.around)
            tower = tower_of(projector, whole.config)
        except (UnsupportedModel, CorruptFile, InvalidRequest) as error:
            raise type(error)(f"{path}: {error}") from None
        both = GgufCheckpoint([*checkpoint.files, *part.files])
    except BaseException:
        part.close()
        raise
    found = "" if mmproj.named else ", found beside the model"
    return Pair(projector, tower, whole, both, f"images: read with {path.name}{found}")


def _check_fits(
    projector: Projector, metadata: Mapping[str, Any], text: GgufModel, named: bool
) -> None:
    """InvalidRequest for a projector of another model."""
    hidden = text.spec.hidden
    kind, arch = projector.kind, plain_value(metadata, "general.architecture")
    other = "it belongs to another model"
    if arch not in kind.texts:
        raise InvalidRequest(
            f"projector_type {projector.name!r} goes with general.architecture "
            f"{' or '.join(map(repr, kind.texts))}, the model's is {arch!r}: {other}"
        )
    if arch == "llama" and text.family != "llama":
        raise UnsupportedModel(f"images beside a text of the family {text.family} are not run")
    if projector.width != hidden:
        raise InvalidRequest(
            f"makes rows of {projector.width} (tensor {kind.output!r}), the model's have {hidden} "
            f"({arch}.embedding_length): {other}"
        )
    taps = plain_value(metadata, f"{arch}.n_deepstack_layers")
    if taps is not None and taps != projector.taps:
        raise InvalidRequest(
            f"has {projector.taps} deep stack layers, {arch}.n_deepstack_layers is {taps}: {other}"
        )
    # What tells the family's text from another of its architecture. A token that stands for a row
    # is made where it lacks; but where there are no marks it alone tells.
    wanted = kind.marks if kind.marks or named else (kind.row,)
    missing = tokens_missing(metadata, wanted)
    if missing:
        raise InvalidRequest(f"the model's vocabulary has no {missing[0]!r}: {other}")
