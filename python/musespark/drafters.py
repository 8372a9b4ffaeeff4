"""A block drafter beside the model it drafts for: ``load(..., drafter=)``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from musespark.errors import InvalidRequest
from musespark.results import human_bytes
from musespark.sizes import kv_bytes
from musespark.weights import LoadedWeights, open_model
from musespark.weights.progress import ProgressFn


class LoadedDrafter:
    """Opened weights of a drafter; what the core checks is whether they fit the model."""

    def __init__(self, weights: LoadedWeights):
        self._weights = weights

    @classmethod
    def open(
        cls, source: str | os.PathLike[str], progress: bool | ProgressFn | None = None
    ) -> LoadedDrafter:
        """A folder, packed file or hub id, as of a model; packed as ``auto`` says (what is drafted
        decides no result). InvalidRequest where it holds no drafter."""
        weights = open_model(source, progress=progress)
        if weights.spec.block == 0:
            family = weights.info["family"]
            weights.close()
            raise InvalidRequest(
                f"drafter: got {str(source)!r:.300}, a model ({family}), allowed is a block drafter"
            )
        return cls(weights)

    def bytes(self, tokens: int) -> int:
        """Bytes of its weights, and of its keys and values for a text of so many tokens."""
        return int(self._weights.info["bytes"]) + kv_bytes(self._weights.spec, "f32", tokens)

    def for_engine(self) -> tuple[Any, Mapping[str, tuple]]:
        """Spec and tensors."""
        return self._weights.spec, self._weights.tensors

    @property
    def note(self) -> str:
        """What ``model.info`` says of it."""
        info, spec = self._weights.info, self._weights.spec
        size = f"{info['parameters'] / 1e6:.1f}M parameters, {human_bytes(info['bytes'])}"
        return f"drafter: {info['source']}, blocks of {spec.block}, {size}"

    def close(self) -> None:
        """Lets the file go."""
        self._weights.close()
