"""LoRA adapters of a loaded model: taken in, named, chosen for a request, given up."""

from __future__ import annotations

import os
import threading
from typing import Any

from musespark.engine import Engine
from musespark.errors import InvalidRequest
from musespark.weights import LoraWeights


class Adapter:
    """A LoRA adapter beside a model's weights; made by :meth:`Model.load_adapter`.

    Give it (or its name) to ``generate``, ``chat``, ``session``, ``logits`` or ``score`` as
    ``adapter``. Close it, or use it as a context manager; closing the model closes it too.

    Attributes: ``name``, ``path``, ``rank`` (the largest), ``targets`` (kinds of matrices it adds
    to), ``parameters`` and ``bytes`` (of memory it takes).
    """

    def __init__(self, engine: Engine, name: str, weights: LoraWeights):
        self.name, self.path = name, str(weights.folder)
        self.rank, self.targets = weights.rank, weights.targets
        self.parameters = sum(a.size + b.size for a, b in weights.matrices.values())
        self._engine = engine
        self._ids: list[int] = []
        self.bytes = 0
        try:
            tensors = weights.tensors()
            self.bytes = sum(tensor[3].nbytes for tensor in tensors.values())
            engine.add_adapter(self._ids, tensors)
        except BaseException:  # Ctrl-C just after the engine took it
            self.close()
            raise

    @property
    def closed(self) -> bool:
        """Whether it was closed, or its model was."""
        return not self._ids or self._engine.closed

    def close(self) -> None:
        """No later request may use it; those under way run on with it. Idempotent."""
        ids, self._ids = self._ids, []
        for adapter in ids:
            self._engine.remove_adapter(adapter)

    def __enter__(self) -> Adapter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = " closed" if self.closed else ""
        return f"<musespark.Adapter {self.name!r} rank {self.rank} on {self.targets}{state}>"


class Adapters:
    """The adapters of one model, by name. Thread-safe."""

    def __init__(self, engine: Engine):
        self._engine = engine
        self._lock = threading.Lock()
        self._by_name: dict[str, Adapter] = {}

    def add(self, name: str, weights: LoraWeights) -> Adapter:
        """Takes one in; InvalidRequest where another that is not closed has the name."""
        with self._lock:
            if name in self._by_name and not self._by_name[name].closed:
                raise InvalidRequest(f"name: got {name!r:.80}, which an adapter of this model has")
            adapter = self._by_name[name] = Adapter(self._engine, name, weights)
        return adapter

    def open(self) -> tuple[Adapter, ...]:
        """Those that are not closed, in the order of loading."""
        with self._lock:
            return tuple(a for a in self._by_name.values() if not a.closed)

    def id_of(self, given: Any) -> int | None:
        """The engine's id of what a caller gave as ``adapter``: one of these, a name, or None."""
        if given is None:
            return None
        if isinstance(given, str):
            with self._lock:
                adapter = self._by_name.get(given)
        else:
            adapter = given if isinstance(given, Adapter) else None
        names = [a.name for a in self.open()]
        allowed = f"allowed is None or what load_adapter gave: {names or 'none is loaded'}"
        if adapter is None:
            raise InvalidRequest(f"adapter: got {given!r:.80}, {allowed}")
        if adapter._engine is not self._engine:
            raise InvalidRequest(f"adapter: {adapter.name!r:.80} is of another model; {allowed}")
        try:
            return adapter._ids[0]
        except IndexError:
            raise InvalidRequest(f"adapter: {adapter.name!r:.80} is closed; {allowed}") from None


def adapter_name(path: str | os.PathLike[str], given: Any) -> str:
    """The name of an adapter: `given`, else its folder's."""
    if given is None:
        return os.path.basename(os.path.abspath(os.fspath(path))) or "adapter"
    if not isinstance(given, str) or not 0 < len(given) <= 200:
        raise InvalidRequest(f"name: got {given!r:.60}, allowed is a str of 1 to 200 characters")
    return given


def described(name: str, weights: LoraWeights, how: str) -> str:
    """What ``Model.info`` says of an adapter."""
    kinds = ", ".join(weights.targets)
    return f"{name} (rank {weights.rank} on {kinds}; {how})"
