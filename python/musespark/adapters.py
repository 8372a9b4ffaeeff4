"""What requests get beside a model's weights: LoRA adapters and control vectors, taken in, chosen
for a request, given up.

To the engine a control vector is an adapter too, alone or laid over a LoRA adapter: one id of it
says what made keys and values, and nothing made with another is used.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from weakref import WeakSet, WeakValueDictionary

from musespark.engine import Engine
from musespark.errors import InvalidRequest
from musespark.families.spec import ModelSpec
from musespark.results import human_bytes
from musespark.weights import LoraWeights, core_bytes, read_adapter, read_adapter_config
from musespark.weights.packed import Checksum

OFF = "off"  # as steering: the control vector that every request gets is not this one's
ADDITIONS = ("adapter", "steering")  # options of a request


class Steering:
    """Control vectors that are added in a loaded model; made by :meth:`Model.steer`.

    Give it (or its name) to ``generate``, ``chat``, ``session``, ``logits`` or ``score`` as
    ``steering`` where not every request gets it. Remove it, or use it as a context manager.

    Attributes: ``layers`` (after whose blocks something is added), ``strength``, ``everywhere``
    (whether requests that name no ``steering`` have it), ``name`` (None for none) and ``checksum``
    (of the numbers added).
    """

    def __init__(
        self,
        engine: Engine,
        tensors: dict[str, tuple],
        layers: tuple[int, ...],
        strength: float,
        everywhere: bool,
        name: str | None,
    ):
        self.layers, self.strength, self.everywhere = layers, strength, everywhere
        self.name = name
        self.checksum = _checksum(tensors)
        self._engine, self._tensors = engine, tensors
        self._lock = threading.Lock()
        self._ids: dict[int | None, list[int]] = {}  # by the adapter that it is laid over
        self._removed = False
        self.id_over(None)  # the core refuses here what does not fit

    def id_over(self, adapter: int | None) -> int | None:
        """The engine's id of it, laid over the adapter with that id; None once it is removed."""
        with self._lock:
            if self._removed:
                return None
            ids = self._ids.setdefault(adapter, [])
            if not ids:
                self._engine.add_adapter(ids, self._tensors, over=adapter)
            return ids[0]

    def known_over(self, adapter: int | None) -> int | None:
        """The same where there is one already."""
        ids = self._ids.get(adapter)
        return ids[0] if ids else None

    def forget(self, adapter: int) -> None:
        """The adapter with that id is closed."""
        with self._lock:
            for one in self._ids.pop(adapter, []):
                self._engine.remove_adapter(one)

    def belongs_to(self, engine: Any) -> bool:
        """Whether that engine has it."""
        return self._engine is engine

    @property
    def removed(self) -> bool:
        """Whether it was removed, or its model closed."""
        return self._removed or self._engine.closed

    def remove(self) -> None:
        """No later request gets it; those under way run on with it. Idempotent."""
        with self._lock:
            self._removed = True
            ids, self._ids = self._ids, {}
        for one in ids.values():
            for steered in one:
                self._engine.remove_adapter(steered)

    def __del__(self) -> None:
        if hasattr(self, "_removed"):
            self.remove()

    def __enter__(self) -> Steering:
        return self

    def __exit__(self, *exc: object) -> None:
        self.remove()

    def __repr__(self) -> str:
        return f"<musespark.Steering {_steered(self)}{' removed' if self.removed else ''}>"


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
        self._steered: WeakSet[Steering] = WeakSet()  # laid over it
        self._lock = threading.Lock()
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
            with self._lock:
                steered = list(self._steered)
            for steering in steered:
                steering.forget(adapter)
            self._engine.remove_adapter(adapter)

    def take(self, steering: Steering) -> None:
        """Notes what is laid over it, which goes when it is closed."""
        with self._lock:
            self._steered.add(steering)

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
    """The adapters of one model, by name, and its control vectors. Thread-safe.

    ``own``: the one that the model was loaded with, for every request; then there are no others.
    ``merged``: its numbers are in the weights already.
    """

    def __init__(self, engine: Any, own: LoraWeights | None = None, *, merged: bool = False):
        self._engine = engine  # an Encoder takes none: read_adapter refuses its models
        self._lock = threading.Lock()
        self._by_name: dict[str, Adapter] = {}
        self._claims: WeakValueDictionary[str, _Claim] = WeakValueDictionary()
        self._steerings: WeakSet[Steering] = WeakSet()
        self._everywhere: Steering | None = None  # for requests that name none
        self._own: tuple[Path, str] | None = None  # its folder and what to say of it
        if own is not None:
            how = "merged into the weights" if merged else "for every request"
            self._own = own.folder, _described(_name(own.folder, None), own, how)
        self._of_all = None if own is None or merged else self.add(_name(own.folder, None), own)

    def must_be_none(self, what: str) -> None:
        """InvalidRequest where there are adapters or control vectors: they were made for the
        weights there are."""
        if self._own is not None or self._open() or self._steering():
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

    def steer(
        self,
        tensors: dict[str, tuple],
        layers: tuple[int, ...],
        strength: float,
        everywhere: bool,
        name: str | None = None,
    ) -> Steering:
        """Takes control vectors in; see :meth:`Model.steer`. InvalidRequest where every request is
        to get them and gets others, and for a name that others have."""
        with self._lock:
            self._check_steering_name(name)
            before = self._everywhere
            if everywhere and before is not None and not before.removed:
                raise InvalidRequest(
                    f"steer: every request is steered already ({_steered(before)}); remove that "
                    "first, or give everywhere=False"
                )
            steering = Steering(self._engine, tensors, layers, strength, everywhere, name)
            self._steerings.add(steering)
            if everywhere:
                self._everywhere = steering
        return steering

    def _check_steering_name(self, name: str | None) -> None:
        if name is None:
            return
        if not isinstance(name, str) or not name or name == OFF:
            raise InvalidRequest(f"name: got {name!r:.80}, allowed is a str but '' and {OFF!r}")
        if any(one.name == name and not one.removed for one in self._steerings):
            raise InvalidRequest(f"name: got {name!r:.80}, which another control vector has")

    def steering_of(self, given: Any) -> Steering | None:
        """What a caller's ``steering`` stands for; None, given, for what every request gets."""
        if isinstance(given, str) and given == OFF:
            return None
        if given is None:
            with self._lock:
                everywhere = self._everywhere
            return None if everywhere is None or everywhere.removed else everywhere
        found = given
        if isinstance(given, str):
            found = next((one for one in self._steering() if one.name == given), None)
        if not isinstance(found, Steering) or not found.belongs_to(self._engine):
            raise InvalidRequest(
                f"steering: got {given!r:.120}, allowed is None, {OFF!r} or what this model's "
                "steer gave, or the name that it was given"
            )
        return found

    def made_by(self, given: Mapping[str, Any]) -> dict[str, str] | None:
        """Name and checksum of what :meth:`chosen` gives an id of."""
        wanted = self.chosen(given)
        for adapter, steering, made_by in self._combinations():
            if wanted is not None and made_by == wanted:
                names = [adapter and adapter.name, steering and _steered(steering)]
                name = " + ".join(name for name in names if name)
                return {"name": name, "checksum": _joined(adapter, steering)}
        return None

    def checksum_of(self, adapter: int | None) -> str | None:
        """Of what has this id; None for none."""
        if adapter is None:
            return None
        for one, steering, made_by in self._combinations():
            if made_by == adapter:
                return _joined(one, steering)
        return None

    def with_checksum(self, checksum: str | None) -> dict[str, Any]:
        """What to give to requests for the adapter of this checksum (None: for none), as options.

        InvalidRequest where none that is open has it, or every request gets another.
        """
        for adapter, steering, _ in self._combinations():
            if checksum == _joined(adapter, steering):
                given = None if adapter is self._of_all else adapter
                return {"adapter": given, "steering": OFF if steering is None else steering}
        has = ", ".join(f"{a.name!r} ({a.checksum})" for a in self._open()) or "none"
        steered = "".join(f", steered {s.checksum}" for s in self._steering())
        raise InvalidRequest(
            f"adapter: {checksum or 'none'} is needed, the model has {has}{steered}"
        )

    def _combinations(self) -> Iterator[tuple[Adapter | None, Steering | None, int | None]]:
        """Every adapter with every control vector, each or none, and the engine's id of both; None
        where it has none yet."""
        for adapter in [self._of_all, *self._open()] if self._of_all else [None, *self._open()]:
            own = None if adapter is None else adapter.id
            yield adapter, None, own
            for steering in self._steering():
                yield adapter, steering, steering.known_over(own)

    def described(self) -> tuple[str, ...]:
        """What ``Model.info`` says of those that are open, in the order of loading."""
        steered = [f"steering: {_steered(s)}" for s in self._steering()]
        if self._own is not None:
            return (self._own[1], *steered)
        loras = (_described(a.name, a, human_bytes(a.bytes)) for a in self._open())
        return (*loras, *steered)

    def chosen(self, given: Mapping[str, Any]) -> int | None:
        """The engine's id of what a request gets beside the weights, by its options ``adapter`` and
        ``steering``; None for nothing."""
        steering = self.steering_of(given.get("steering"))
        adapter, own = self._found(given.get("adapter"))
        if steering is None:
            return own
        if adapter is not None:
            adapter.take(steering)
        both = steering.id_over(own)
        if both is None and given.get("steering") is not None:
            raise InvalidRequest("steering: it was removed")
        return own if both is None else both  # another thread removed what every request gets

    def id_of(self, given: Any) -> int | None:
        """The engine's id of what a caller gave as ``adapter``: one of these, a name, or None."""
        return self._found(given)[1]

    def _found(self, given: Any) -> tuple[Adapter | None, int | None]:
        if given is None and self._of_all is None:
            return None, None
        adapter = self._of_all if given is None else given
        if isinstance(given, str):
            with self._lock:
                adapter = self._by_name.get(given)
        if not isinstance(adapter, Adapter) or not adapter.belongs_to(self._engine):
            raise self._refused(f"got {given!r:.120}")
        found = adapter.id  # once: another thread may close it, and None is the model without any
        if found is None:
            raise self._refused(f"{adapter.name!r:.80} is closed")
        return adapter, found

    def _open(self) -> tuple[Adapter, ...]:
        with self._lock:
            return tuple(a for a in self._by_name.values() if not a.closed)

    def _steering(self) -> list[Steering]:
        with self._lock:
            found = [s for s in self._steerings if not s.removed]
        return sorted(found, key=lambda s: s.checksum)

    def _refused(self, what: str) -> InvalidRequest:
        names = ", ".join(repr(a.name) for a in self._open()) or "none is loaded"
        return InvalidRequest(
            f"adapter: {what}; allowed is None or what this model's load_adapter gave ({names})"
        )


def split_additions(options: Mapping[str, Any], rows: int) -> list[dict[str, Any]]:
    """``adapter`` and ``steering`` of each row of a batch: one (or None) serves all rows, a list
    names each."""
    columns = []
    for name in ADDITIONS:
        given = options.get(name)
        each = list(given) if isinstance(given, (list, tuple)) else [given] * rows
        if len(each) != rows:
            raise InvalidRequest(f"{name}: got {len(each)} of them, allowed is one or {rows}")
        columns.append(each)
    return [dict(zip(ADDITIONS, row, strict=True)) for row in zip(*columns, strict=True)]


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


def _joined(adapter: Adapter | None, steering: Steering | None) -> str | None:
    """The checksum of both together, which is their own where there is one alone."""
    found = [one.checksum for one in (adapter, steering) if one is not None]
    if len(found) < 2:
        return found[0] if found else None
    both = Checksum()
    both.update("+".join(found).encode())
    return both.hex()


def _steered(steering: Steering) -> str:
    layers = ", ".join(map(str, steering.layers))
    every = ", every request" if steering.everywhere else ""
    return f"layers {layers}, strength {steering.strength:g} ({steering.checksum}){every}"


def _described(name: str, adapter: Adapter | LoraWeights, how: str) -> str:
    made_for = f"; made for {adapter.base!r}" if adapter.base else ""
    return f"{name}: rank {adapter.rank} on {', '.join(adapter.targets)}; {how}{made_for}"
