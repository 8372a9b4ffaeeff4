"""LoRA adapters of a loaded model: taken in, named, chosen for a request, given up."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from musespark.engine import Engine
from musespark.errors import InvalidRequest
from musespark.families.spec import ModelSpec
from musespark.results import human_bytes
from musespark.weights import LoraWeights, core_bytes, read_adapter, read_adapter_config
from musespark.weights.packed import Checksum


class Adapter:
    """A LoRA adapter beside a model's weights; made by :meth:`Model.load_adapter`.

    Give it (or its name) to ``generate``, ``chat``, ``session``, ``logits`` or ``score`` as
    ``adapter``. Close it, or use it as a context manager; closing the model closes it too.

    Attributes: ``name``, ``path``, ``rank`` (the largest), ``targets`` (kinds of matrices it adds
    to), ``base`` (the model that its maker names), ``parameters``, ``bytes`` (of memory it takes)
    and ``checksum`` (of its numbers, 16 hexadecimal digits).
    """

    def __init__(self, engine: Engine, name: str, weights: LoraWeights):
        self.name, self.path = name, str(weights.folder)
        self.rank, self.targets, self.base = weights.rank, weights.targets, weights.base
        self.parameters = sum(a.size + b.size for a, b in weights.matrices.values())
        self._engine = engine
        self._ids: list[int] = []
        self.bytes = 0
        try:
            tensors = weights.tensors()
            self.bytes = core_bytes(tensors)
            self.checksum = _checksum(tensors)
            engine.add_adapter(self._ids, tensors)
        except BaseException:  # Ctrl-C just after the engine took it
            self.close()
            raise

    @property
    def id(self) -> int | None:
        """The engine's; None once it is closed."""
        ids = self._ids
        return ids[0] if ids else None

    def belongs_to(self, engine: Any) -> bool:
        """Whether that engine has it."""
        return self._engine is engine

    @property
    def closed(self) -> bool:
        """Whether it was closed, or its model was."""
        return not self._ids or self._engine.closed

    def close(self) -> None:
        """No later request may use it; those under way run on with it. Idempotent."""
        ids, self._ids = self._ids, []
        for adapter in ids:
            self._engine.remove_adapter(adapter)

    def __del__(self) -> None:  # Ctrl-C may drop one before its model has it
        if hasattr(self, "_ids"):
            self.close()

    def __enter__(self) -> Adapter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = " closed" if self.closed else ""
        return f"<musespark.Adapter {self.name!r} rank {self.rank} on {self.targets}{state}>"


class _Claim:
    """The right to a name while its adapter is made: ends with whoever makes it, Ctrl-C or not."""


class Adapters:
    """The adapters of one model, by name. Thread-safe.

    ``own``: the one that the model was loaded with, for every request; then there are no others.
    ``merged``: its numbers are in the weights already.
    """

    def __init__(self, engine: Any, own: LoraWeights | None = None, *, merged: bool = False):
        self._engine = engine  # an Encoder takes none: read_adapter refuses its models
        self._lock = threading.Lock()
        self._by_name: dict[str, Adapter] = {}
        self._claims: WeakValueDictionary[str, _Claim] = WeakValueDictionary()
        self._own: tuple[Path, str] | None = None  # its folder and what to say of it
        if own is not None:
            how = "merged into the weights" if merged else "for every request"
            self._own = own.folder, _described(_name(own.folder, None), own, how)
        self._of_all = None if own is None or merged else self.add(_name(own.folder, None), own)

    def must_be_none(self, what: str) -> None:
        """InvalidRequest where there are adapters: they were made for the weights there are."""
        names = [name for name, a in sorted(self._by_name.items()) if not a.closed]
        if self._own is not None or names:
            raise InvalidRequest(
                f"{what}: adapters are loaded ({self.described()}); close them first"
            )

    def move(self, engine: Any) -> None:
        """To another engine of the same model; there must be none."""
        self._engine = engine

    def load(
        self, path: str | os.PathLike[str], name: str | None, spec: ModelSpec, family: str
    ) -> Adapter:
        """Reads an adapter's folder and takes it in; errors as :meth:`Model.load_adapter`."""
        if self._own is not None:
            raise InvalidRequest(
                f"load_adapter: the model was loaded with the adapter {os.fspath(self._own[0])}"
                "; load it without one to choose them by request"
            )
        config = read_adapter_config(path)
        return self.add(_name(path, name), read_adapter(config, spec, family))

    def add(self, name: str, weights: LoraWeights) -> Adapter:
        """Takes one in; InvalidRequest where another that is not closed has the name.

        It is packed outside the lock: requests for others do not wait for it.
        """
        claim = self._claim(name)
        try:
            adapter = Adapter(self._engine, name, weights)
            with self._lock:
                self._by_name[name] = adapter
        finally:
            del claim
        return adapter

    def _claim(self, name: str) -> _Claim:
        with self._lock:
            before = self._by_name.get(name)
            if name in self._claims or (before is not None and not before.closed):
                raise InvalidRequest(
                    f"name: got {name!r:.80}, which an adapter of this model has; "
                    "give another with name="
                )
            claim = self._claims[name] = _Claim()
        return claim

    def given(self, given: Any) -> Adapter | None:
        """The adapter that makes what :meth:`id_of` names: errors as there."""
        found = self.id_of(given)
        for adapter in (self._of_all, *self._open()):
            if found is not None and adapter is not None and adapter.id == found:
                return adapter
        return None

    def checksum_of(self, adapter: int | None) -> str | None:
        """Of the one with this id; None for none."""
        found = [a for a in (self._of_all, *self._open()) if a is not None and a.id == adapter]
        return found[0].checksum if found and adapter is not None else None

    def with_checksum(self, checksum: str | None) -> Adapter | None:
        """What to give to requests for the adapter of this checksum (None: for none).

        InvalidRequest where no open one has it, or every request gets another.
        """
        of_all = self._of_all
        if checksum == (None if of_all is None else of_all.checksum):
            return None
        for adapter in self._open():
            if checksum == adapter.checksum:
                return adapter
        has = ", ".join(f"{a.name!r} ({a.checksum})" for a in self._open()) or "none"
        raise InvalidRequest(f"adapter: {checksum or 'none'} is needed, the model has {has}")

    def described(self) -> tuple[str, ...]:
        """What ``Model.info`` says of those that are open, in the order of loading."""
        if self._own is not None:
            return (self._own[1],)
        return tuple(_described(a.name, a, human_bytes(a.bytes)) for a in self._open())

    def id_of(self, given: Any) -> int | None:
        """The engine's id of what a caller gave as ``adapter``: one of these, a name, or None."""
        if given is None and self._of_all is None:
            return None
        adapter = self._of_all if given is None else given
        if isinstance(given, str):
            with self._lock:
                adapter = self._by_name.get(given)
        if not isinstance(adapter, Adapter) or not adapter.belongs_to(self._engine):
            raise self._refused(f"got {given!r:.120}")
        found = adapter.id  # once: another thread may close it, and None is the model without any
        if found is None:
            raise self._refused(f"{adapter.name!r:.80} is closed")
        return found

    def _open(self) -> tuple[Adapter, ...]:
        with self._lock:
            return tuple(a for a in self._by_name.values() if not a.closed)

    def _refused(self, what: str) -> InvalidRequest:
        names = ", ".join(repr(a.name) for a in self._open()) or "none is loaded"
        return InvalidRequest(
            f"adapter: {what}; allowed is None or what this model's load_adapter gave ({names})"
        )


def split_adapters(given: Any, rows: int) -> list[Any]:
    """One adapter for each row of a batch: one (or None) serves all rows, a list names each."""
    if not isinstance(given, (list, tuple)):
        return [given] * rows
    if len(given) != rows:
        raise InvalidRequest(f"adapter: got {len(given)} of them, allowed is one or {rows}")
    return list(given)


def _checksum(tensors: Mapping[str, tuple]) -> str:
    """Of an adapter's tensors, as the core takes them."""
    checksum = Checksum()
    for name, (form, rows, cols, data) in sorted(tensors.items()):
        checksum.update(f"{name} {form} {rows} {cols}\n".encode())
        checksum.update(data)
    return checksum.hex()


def _name(path: str | os.PathLike[str], given: Any) -> str:
    """The name of an adapter: `given`, else its folder's."""
    if given is None:
        return os.path.basename(os.path.abspath(os.fspath(path))) or "adapter"
    if not isinstance(given, str) or not 0 < len(given) <= 200:
        raise InvalidRequest(f"name: got {given!r:.60}, allowed is a str of 1 to 200 characters")
    return given


def _described(name: str, adapter: Adapter | LoraWeights, how: str) -> str:
    made_for = f"; made for {adapter.base!r}" if adapter.base else ""
    return f"{name}: rank {adapter.rank} on {', '.join(adapter.targets)}; {how}{made_for}"
