"""VisionSpec: what a vision tower is, as data. The Python twin of ``csrc/model/vision_spec.h``.

A family (``families/vision/<name>.py``) makes one from a checkpoint's config;
``dataclasses.asdict`` of it goes to the core, which refuses unknown or missing fields. Names and
meanings are the header's.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from musespark.families.spec import LayerSpec, NormSpec

PATCH_ORDERS = ("raster", "blocks")
POSITION_KINDS = (
    "none", "table", "buckets", "bilinear_corners", "bilinear_zeros", "bilinear_area"
)  # fmt: skip
MERGES = ("concat", "interleave", "average")

_NO_NORM = NormSpec()


@dataclass(frozen=True)
class PositionSpec:
    """How patch (y, x) of a frame reads the learned table [side * side, hidden].

    ``table``: row y * side + x. ``buckets``: by the side-th of the frame that it begins in.
    ``bilinear_corners``: interpolated, corners on corners. ``bilinear_zeros``: centres on centres,
    zeros outside. ``bilinear_area``: the same, normalized at the edges and antialiased.
    ``turned``: patch number k of h x w reads what patch number k of w x h would.
    """

    kind: str = "none"
    side: int = 0
    turned: bool = False


@dataclass(frozen=True)
class AxialRopeSpec:
    """Rotary positions: the first quarter of a head's pairs turns by the row, the second by the
    column (``columns_first``: the other way round), both counted from ``first``."""

    on: bool = False
    theta: float = 10000.0
    columns_first: bool = False
    first: int = 0


@dataclass(frozen=True)
class HeadSpec:
    """From patches to rows of the text side: ``norm`` of each row, ``merge`` of a block of them
    (``concat`` side by side, ``interleave`` with channels outermost, ``average``), ``merged_norm``,
    products of ``widths`` with ``activation`` between two of them, ``out_norm``."""

    norm: NormSpec = _NO_NORM
    merge: str = "concat"
    merged_norm: NormSpec = _NO_NORM
    widths: tuple[int, ...] = ()
    activation: str = "gelu"
    bias: bool = False
    out_norm: NormSpec = _NO_NORM


@dataclass(frozen=True)
class TapSpec:
    """A head on what layer ``layer`` gives: deep-stack features."""

    layer: int = 0
    head: HeadSpec = HeadSpec()


@dataclass(frozen=True)
class VisionSpec:
    """The whole tower. Frames are ``merge`` patches of a token on a side; their patches come in
    ``raster`` order or block by block (``blocks``). ``attention.window`` of a layer is in patches
    on a side, 0 is full; ``attention.rope`` is 0 (``rope``) or -1."""

    patch_dim: int = 0
    hidden: int = 0
    merge: int = 1
    order: str = "raster"
    patch_bias: bool = False
    class_token: bool = False
    positions: PositionSpec = PositionSpec()
    rope: AxialRopeSpec = AxialRopeSpec()
    embed_norm: NormSpec = _NO_NORM
    layers: list[LayerSpec] = field(default_factory=list)
    head: HeadSpec = HeadSpec()
    taps: list[TapSpec] = field(default_factory=list)
