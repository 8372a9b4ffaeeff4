"""In what format the layers of a vision tower are packed: by what each loses, with its record.

``wide``, 8 bits with a scale per 1024 columns, is fastest; ``narrow`` (q8), with a scale per 64,
loses less where few channels are loud; ``stored`` (f32, or bf16 where that is what is stored) loses
nothing. When a model is packed its tower runs over a few pictures, a layer at a time, as stored and
in 8 bits on the same rows (weights/tower_pieces.py). The error of a layer is what 8 bits change of
what it adds to a row, relative to that, mean over the rows of a picture, of the worst picture; that
of the head, or of a tap, is relative to its rows. All matrices of a layer whose error is above
:data:`THRESHOLD` are narrow, and as stored where that is above it too. Then further layers become
narrow, the largest error first, and after all of them as stored, until the whole reaches
:data:`COSINE`: the cosine of the rows that the text side reads to those of it as stored, mean
over the rows of a picture, of the worst picture and of the head and all taps.

The choice is a function of the stored tower and the pictures alone: all products are our own
kernels', whatever the threads. What it costs is bounded: :data:`WORK` multiply-adds for one pass
over all layers, by looking at fewer patches of each picture (its middle); passes are one as stored,
one or two in 8 bits, and one for each whole that is tried, of which there are no more than 2 + log2
of the number of layers. One layer is in memory at a time.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from musespark.errors import CorruptFile, InvalidRequest, UnsupportedModel
from musespark.families.vision import VisionSpec
from musespark.families.vision.beside import PREFIX
from musespark.families.vision.tensors import canonical_shapes
from musespark.weights.packed import Planned, checksum_of
from musespark.weights.tower_pieces import STORED, Pieces, Read, View, group_of, groups_of

THRESHOLD = 0.1
COSINE = 0.999
WORK = 400_000_000_000  # multiply-adds of one pass
LEAST, MOST = 64, 256  # patches of a picture
FLOATS = ("f32", "bf16")
WIDE, NARROW = "wide", "narrow"
FORMATS = {WIDE: "q8g1024h", NARROW: "q8"}  # of matrices
_WORST = 1e9  # what stands for an error that is not finite
_MOST_PICTURES = 1 << 16
Forms = dict[str, str]  # of each group


@dataclass(frozen=True)
class TowerChoice:
    """What was chosen, and by what.

    ``stored``: groups (``layers.i``, ``taps.j``, ``head``) whose matrices stay as stored;
    ``narrow``: those that are q8; all others are wide. ``errors``: of each group, wide.
    ``cosine``: of the whole as chosen; below ``least`` only where nothing but what is stored would
    reach it. ``pictures``, ``patches``: how many were looked at; ``checksum``: of those patches.
    """

    stored: tuple[str, ...]
    narrow: tuple[str, ...]
    errors: dict[str, float]
    cosine: float
    threshold: float
    least: float
    pictures: int
    patches: int
    checksum: str


def choose_stored(
    spec: VisionSpec,
    read: Read,
    views: Sequence[View],
    *,
    threads: int,
    report: Callable[[str], None] = lambda what: None,
) -> TowerChoice | None:
    """The choice for a tower by its run over `views`; None where the core cannot run it, or the
    views do not fit it."""
    if not views or not all(_fits(spec, view) for view in views):
        return None
    try:
        pieces = Pieces(spec, read, threads, most=_patches_of(spec, len(views)))
        x = pieces.embed(views)
    except (UnsupportedModel, InvalidRequest):  # who opens the model, or an image, says so
        return None
    return _Run(spec, pieces, report).choose(x)


def _fits(spec: VisionSpec, view: View) -> bool:
    whole = view.height % spec.merge == 0 and view.width % spec.merge == 0
    return whole and view.patches.shape == (view.height * view.width, spec.patch_dim)


def _patches_of(spec: VisionSpec, pictures: int) -> int:
    shapes = canonical_shapes(spec)
    a_patch = sum(math.prod(s) for n, s in shapes.items() if group_of(n) and len(s) == 2)
    return min(MOST, max(LEAST, WORK // (a_patch * pictures)))


class _Run:
    def __init__(self, spec: VisionSpec, pieces: Pieces, report: Callable[[str], None]):
        self.spec, self.pieces, self._report = spec, pieces, report
        self._taps = {tap.layer: f"taps.{j}" for j, tap in enumerate(spec.taps)}

    def choose(self, x: np.ndarray) -> TowerChoice:
        errors, forms, exact = self._errors(x)
        order = sorted(errors, key=lambda group: -errors[group])  # stable: the earlier first
        cosine = self._cosine(x, forms, exact)
        if cosine < COSINE:
            forms, cosine = self._finer(x, order, forms, exact)
        stored, narrow = (
            tuple(group for group in errors if forms[group] == form) for form in (STORED, NARROW)
        )
        numbers = THRESHOLD, COSINE, len(self.pieces.grids), int(_patches(self.pieces))
        checksum = checksum_of(np.ascontiguousarray(x))
        return TowerChoice(stored, narrow, errors, cosine, *numbers, checksum)

    def _finer(
        self, x: np.ndarray, order: list[str], forms: Forms, exact: dict[str, np.ndarray]
    ) -> tuple[Forms, float]:
        """The fewest steps from `forms` on that reach it: a group narrow, then a group as stored,
        in the order given."""
        steps = [(group, NARROW) for group in order if forms[group] == WIDE]
        steps += [(group, STORED) for group in order if forms[group] != STORED]
        low, high, best = 0, len(steps), 1.0
        while high - low > 1:
            middle = (low + high) // 2
            cosine = self._cosine(x, forms | dict(steps[:middle]), exact)
            if cosine < COSINE:
                low = middle
            else:
                high, best = middle, cosine
        return forms | dict(steps[:high]), best

    def _errors(self, x: np.ndarray) -> tuple[dict[str, float], Forms, dict[str, np.ndarray]]:
        """Of every group, wide; what form that asks for; the rows of head and taps, as stored."""
        errors: dict[str, float] = {}
        forms: Forms = {}
        rows: dict[str, np.ndarray] = {}

        def measure(group: str, run: Callable[[str], np.ndarray], before: np.ndarray | None) -> Any:
            y = run(STORED)
            before = np.zeros_like(y) if before is None else before
            errors[group] = self._worst(_relative, run(WIDE), y, before)
            forms[group] = WIDE
            if errors[group] > THRESHOLD:
                narrow = self._worst(_relative, run(NARROW), y, before)
                forms[group] = STORED if narrow > THRESHOLD else NARROW
            return y

        def head(group: str) -> None:
            rows[group] = measure(group, lambda form: self.pieces.head(group, x, form), None)

        for i in range(len(self.spec.layers)):
            self._report(f"measuring layer {i} of {len(self.spec.layers)} of the vision tower")
            layer = functools.partial(self.pieces.layer, i, x)
            x = measure(f"layers.{i}", layer, x)
            if i in self._taps:
                head(self._taps[i])
        head("head")
        return {group: errors[group] for group in groups_of(self.spec)}, forms, rows

    def _cosine(self, x: np.ndarray, forms: Forms, exact: dict[str, np.ndarray]) -> float:
        """Of the whole tower with its groups in these forms."""
        stored = sum(form == STORED for form in forms.values())
        self._report(f"measuring the vision tower, {stored} layers as stored")
        found = {}
        for i in range(len(self.spec.layers)):
            x = self.pieces.layer(i, x, forms[f"layers.{i}"])
            tap = self._taps.get(i)
            if tap is not None:
                found[tap] = self.pieces.head(tap, x, forms[tap])
        found["head"] = self.pieces.head("head", x, forms["head"])
        return -max(self._worst(_minus_cosine, found[g], exact[g]) for g in exact)

    def _worst(self, measure: Callable[..., np.ndarray], *rows: np.ndarray) -> float:
        """Of the pictures' means over rows the largest, in six digits: that is what is compared,
        so that the last bits of a sum decide nothing."""
        with np.errstate(all="ignore"):
            frames = self.pieces.frames(measure(*(one.astype(np.float64) for one in rows)))
        worst = max(math.fsum(np.nan_to_num(f, nan=_WORST, posinf=_WORST)) / len(f) for f in frames)
        return float(f"{worst:.6g}")


def _patches(pieces: Pieces) -> int:
    return sum(height * width for _, height, width in pieces.grids)


def _length(rows: np.ndarray) -> np.ndarray:
    return np.sqrt((rows * rows).sum(1))


def _relative(found: np.ndarray, exact: np.ndarray, before: np.ndarray) -> np.ndarray:
    error = _length(found - exact)
    return np.where(error == 0, 0, error / _length(exact - before))


def _minus_cosine(found: np.ndarray, exact: np.ndarray) -> np.ndarray:
    same = (found == exact).all(1)
    cosine = (found * exact).sum(1) / (_length(found) * _length(exact))
    return np.where(same, -1.0, -np.nan_to_num(cosine, nan=0.0))


# ---- in a packed file ----------------------------------------------------------------------------


def record_of(chosen: TowerChoice | None) -> dict[str, Any] | None:
    """As the file's header holds it."""
    if chosen is None:
        return None
    return asdict(chosen) | {"stored": list(chosen.stored), "narrow": list(chosen.narrow)}


def read_tower_record(
    found: Any, spec: VisionSpec | None, planned: Iterable[Planned], where: str
) -> TowerChoice | None:
    """A packed file's record; CorruptFile, naming what is wrong with it, also where the tensors'
    formats are not what it says."""
    if found is None:
        return None
    if spec is None:
        raise CorruptFile(f"{where}: tower is there, and no vision tower")
    if isinstance(found, dict):  # before there were wide layers none was narrow by choice
        found = {"narrow": []} | found
    kinds = {name: kind.__name__ for name, kind in _KINDS.items()}
    if not isinstance(found, dict) or {k: type(v).__name__ for k, v in found.items()} != kinds:
        raise CorruptFile(f"{where}: tower is {found!r:.80}; {', '.join(kinds)} are needed")
    groups = groups_of(spec)
    if list(found["errors"]) != groups:
        raise CorruptFile(f"{where}: tower.errors are of {list(found['errors'])!r:.120}")
    for group, error in found["errors"].items():
        if type(error) is not float or not 0 <= error < math.inf:
            raise CorruptFile(f"{where}: tower.errors[{group}] is {error!r:.40}, not a size")
    for name in ("cosine", "threshold", "least"):
        if not -1.001 <= found[name] <= 1.001:
            raise CorruptFile(f"{where}: tower.{name} is {found[name]!r:.40}")
    for name in ("pictures", "patches"):
        if not 1 <= found[name] <= _MOST_PICTURES * (1 if name == "pictures" else MOST):
            raise CorruptFile(f"{where}: tower.{name} is {found[name]!r:.40}")
    for name in ("stored", "narrow"):
        if [group for group in groups if group in found[name]] != found[name]:
            raise CorruptFile(f"{where}: tower.{name} is {found[name]!r:.120}")
    _check_formats(found, planned, where)
    lists = {name: tuple(found[name]) for name in ("stored", "narrow")}
    return TowerChoice(**found | lists)


def _check_formats(found: dict[str, Any], planned: Iterable[Planned], where: str) -> None:
    """That the matrices of the groups named are in the formats that names stand for."""
    for p in planned:
        group = group_of(p.name.removeprefix(PREFIX)) if p.name.startswith(PREFIX) else None
        for name, formats in (("stored", FLOATS), ("narrow", (FORMATS[NARROW],))):
            if group in found[name] and p.format not in formats:
                raise CorruptFile(
                    f"{where}: tower.{name} has {group}, tensor {p.name} is {p.format}"
                )


_KINDS: Mapping[str, type] = {
    "stored": list, "narrow": list, "errors": dict, "cosine": float, "threshold": float,
    "least": float, "pictures": int, "patches": int, "checksum": str,
}  # fmt: skip


def describe_tower(chosen: TowerChoice | None) -> str:
    """For people: which layers stay as stored, and what it costs."""
    if chosen is None:
        return "in 8 bits; nothing was measured when this was packed"
    worst = max(chosen.errors, key=lambda group: chosen.errors[group])
    kept = [f"{group} ({100 * chosen.errors[group]:.2g}%)" for group in chosen.stored]
    what = f"{', '.join(kept)} of {len(chosen.errors)} stay as stored" if kept else "all in 8 bits"
    if chosen.narrow:
        what += f", {', '.join(chosen.narrow)} with a scale per 64 columns"
    return (
        f"{what}; measured when it was packed, on {chosen.pictures} pictures: cosine "
        f"{chosen.cosine:.6f} to the tower as stored (least {chosen.least:g}), largest error of a "
        f"layer in 8 bits {100 * chosen.errors[worst]:.2g}% in {worst} (most "
        f"{100 * chosen.threshold:g}%)"
    )


def tower_report(chosen: TowerChoice | None) -> dict[str, Any] | None:
    """As :func:`inspect` and :func:`convert` give it: the record, and ``says`` what it means."""
    made = record_of(chosen)
    return None if chosen is None or made is None else made | {"says": describe_tower(chosen)}
