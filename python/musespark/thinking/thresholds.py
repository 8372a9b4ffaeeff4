"""What was calibrated for one model: the stopper that ``thinking_policy="auto"`` uses, and how sure
it must be for each rate of premature exits that a caller may accept.

A JSON object: ``version``; ``model``, :func:`key_of` it; ``features``, all names in order;
``weights`` by feature and ``bias``; ``hopeless_weights`` and ``hopeless_bias`` of the stopper for
hopeless thoughts, missing where there is none; ``thresholds`` by accepted rate, of both; ``rate``,
that of ``auto``, null where none is (``premature_exits`` then says it); ``trials`` and ``every`` of
the policy it was fitted for; ``problems`` and ``seed``: how it was measured; ``efforts``: of what
requests, ``default`` for those that name none. ``musespark lab calibrate`` writes one
(lab/calibrate.py says what it promises). A model's own lies in the cache folder, Spark Nano's
beside its weights.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from musespark.errors import CorruptFile, Error, InvalidRequest
from musespark.thinking.effort import ALL_EFFORTS
from musespark.thinking.policy import (
    AUTO_NAME,
    EXITS,
    LOOP,
    OTHER_EFFORT,
    OUTDATED,
    UNREADABLE,
    Thinking,
    ThinkingPolicy,
)
from musespark.thinking.stopper import FEATURES, Stopper
from musespark.untrusted import read_json_object
from musespark.weights import LoadedWeights
from musespark.weights.cache import cache_folder
from musespark.weights.files import write_whole

VERSION = 2
DEFAULT_EFFORT = "default"
SHIPPED = Path(__file__).resolve().parent.parent / "nano" / "thinking.json"
_MOST_BYTES = 1 << 16
_HOPELESS = ("hopeless_weights", "hopeless_bias")


class OutdatedThresholds(InvalidRequest):
    """A file that another version wrote, or one whose stoppers look at something else."""


@dataclass(frozen=True)
class Thresholds:
    """The file's fields, checked: InvalidRequest names the one that is wrong."""

    model: str
    weights: Mapping[str, float] = field(hash=False)
    bias: float
    thresholds: Mapping[float, float] = field(hash=False)
    rate: float | None
    trials: int
    every: int
    problems: int
    seed: int
    efforts: Sequence[str] = field(hash=False)
    hopeless_weights: Mapping[str, float] | None = field(default=None, hash=False)
    hopeless_bias: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.model, str) or not self.model:
            raise InvalidRequest(f"model: got {self.model!r:.60}, allowed is a checksum")
        for name, least in (("problems", 1), ("seed", 0)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise InvalidRequest(
                    f"{name}: got {value!r:.60}, allowed is an integer of at least {least}"
                )
        known = (*ALL_EFFORTS, DEFAULT_EFFORT)
        names = self.efforts if isinstance(self.efforts, list) else []
        if not names or not all(isinstance(one, str) and one in known for one in names):
            raise InvalidRequest(f"efforts: got {self.efforts!r:.60}, allowed are some of {known}")
        if not self.thresholds:
            raise InvalidRequest("thresholds: got none, allowed is one or more")
        for rate in self.thresholds:
            if not 0 < rate < 1:
                raise InvalidRequest(f"thresholds: got a rate of {rate!r}, allowed is 0 to 1")
            self.policy(rate)
        if self.rate is not None and self.rate not in list(self.thresholds):
            raise InvalidRequest(f"rate: got {self.rate!r:.60}, allowed are {self._rates()}")

    def policy(self, rate: float) -> ThinkingPolicy:
        """Of a rate of premature exits that there is a threshold for, else InvalidRequest."""
        if rate not in self.thresholds:
            raise InvalidRequest(
                f"premature_exits: got {rate!r:.60}, calibrated for this model are {self._rates()}"
            )
        tried: dict[str, Any] = {"trials": self.trials, "every": self.every} if self.trials else {}
        at = self.thresholds[rate]
        if self.hopeless_weights is not None:
            tried["hopeless"] = Stopper(self.hopeless_weights, self.hopeless_bias, at)
        return ThinkingPolicy(stopper=Stopper(self.weights, self.bias, at), **tried)

    def _rates(self) -> list[float]:
        return sorted(self.thresholds)


def key_of(weights: LoadedWeights, kv: str) -> str:
    """What thresholds hold for: the checksum of a model's weights and their formats, and the
    formats of its keys and values."""
    return f"{weights.identity()} kv={kv}"


def user_path(model: str) -> Path:
    """Where the file of a model lies that its user calibrated; ``model``: :func:`key_of` it."""
    name = hashlib.blake2b(model.encode(), digest_size=16).hexdigest()
    return cache_folder() / "thinking" / f"{name}.json"


def user_files() -> list[Path]:
    """All of them, by name."""
    return sorted((cache_folder() / "thinking").glob("*.json"))


def find_thresholds(model: str) -> Thresholds | None:
    """What was calibrated for the model of this key: by its user, else what is shipped for it, else
    nothing. Raises as :func:`read_thresholds`."""
    own = user_path(model)
    if own.exists():
        found = read_thresholds(own)
        if found.model != model:
            raise InvalidRequest(f"{own}: model: got {found.model:.80}, allowed is {model}")
        return found
    if not SHIPPED.exists() or _object_in(SHIPPED).get("model") != model:
        return None
    return read_thresholds(SHIPPED)


#: What was calibrated for a model, or the error of a file that cannot be used.
Found = Callable[[], Thresholds | Error | None]


def calibrated(thinking: Thinking, found: Found, *, usable: bool, effort: str | None) -> Thinking:
    """``thinking`` with what ``auto`` stands for. ``found``: what was calibrated for the model;
    ``usable``: whether the request is one that it holds for, but for its ``effort``. InvalidRequest
    for a rate that was not calibrated."""
    if thinking.chosen != AUTO_NAME:
        return thinking
    there = found() if usable else None
    if isinstance(there, Error):
        if thinking.exits is not None:
            raise InvalidRequest(f"{EXITS}: got {thinking.exits}, but {there}")
        old = isinstance(there, OutdatedThresholds)
        return replace(thinking, chosen=OUTDATED if old else UNREADABLE)
    if thinking.exits is not None and there is None:
        raise InvalidRequest(
            f"{EXITS}: got {thinking.exits}, but nothing is calibrated for this model with this "
            "request's adapter and thought_cache_tokens (musespark lab calibrate)"
        )
    effort = effort or DEFAULT_EFFORT
    if there is not None and effort != "none" and effort not in there.efforts:
        if thinking.exits is not None:
            raise InvalidRequest(
                f"{EXITS}: got {thinking.exits} at effort {effort!r}, calibrated for this model "
                f"are {', '.join(there.efforts)}"
            )
        return replace(thinking, chosen=OTHER_EFFORT)
    rate = there and (there.rate if thinking.exits is None else thinking.exits)
    if there is None or rate is None:
        return replace(thinking, chosen=LOOP)
    return replace(thinking, policy=there.policy(rate), chosen=f"calibrated {rate:g}")


def lookup(model: Callable[[], str]) -> Found:
    """:func:`find_thresholds` when it is first needed, then what was found. ``model`` gives the
    key."""

    @functools.cache
    def found() -> Thresholds | Error | None:
        try:
            return find_thresholds(model())
        except (CorruptFile, InvalidRequest) as error:
            return error  # of a file: a chat goes on without, and says so

    return found


def write_thresholds(path: Path, thresholds: Thresholds) -> None:
    """Writes the file aside and renames it. Raises WriteFailed."""
    told = asdict(thresholds)
    told["thresholds"] = {str(rate): at for rate, at in sorted(thresholds.thresholds.items())}
    if thresholds.hopeless_weights is None:
        told = {name: value for name, value in told.items() if name not in _HOPELESS}
    told = {"version": VERSION, "model": told.pop("model"), "features": list(FEATURES), **told}
    write_whole(path, f"{json.dumps(told, indent=1, allow_nan=False)}\n".encode())


def read_thresholds(path: Path) -> Thresholds:
    """A file that nobody vouches for. CorruptFile naming the field; OutdatedThresholds;
    FileNotFoundError."""
    told = _object_in(path)
    for name, allowed in (("version", VERSION), ("features", list(FEATURES))):
        if told.pop(name, None) != allowed:
            raise OutdatedThresholds(
                f"{path}: {name}: another than this version's; calibrate again (musespark lab "
                "calibrate) or remove the file"
            )
    known = {one.name for one in fields(Thresholds)}
    if wrong := sorted((told.keys() ^ known) - {*_HOPELESS}):
        raise CorruptFile(f"{path}: fields {wrong!r:.200} are missing or unknown")
    try:
        return Thresholds(**told | {"thresholds": _by_rate(told["thresholds"])})
    except InvalidRequest as error:
        raise CorruptFile(f"{path}: {error}") from None


def _object_in(path: Path) -> dict[str, Any]:
    return read_json_object(path, _MOST_BYTES)


def _by_rate(told: Any) -> dict[float, Any]:
    if not isinstance(told, dict):
        raise InvalidRequest(f"thresholds: got {told!r:.60}, allowed is a number by rate")
    try:
        return {float(rate): at for rate, at in told.items()}
    except ValueError as error:
        raise InvalidRequest(f"thresholds: {error}") from None
