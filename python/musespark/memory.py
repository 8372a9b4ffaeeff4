"""What a model needs in memory for each choice of formats and context, and what fits.

:func:`estimate` and :func:`inspect` say it without loading; :func:`choose_context` decides by the
same figures at load. Weights and keys and values are counted to the byte; the working memory of the
process is an estimate, and called so (``benchmarks/memory.py`` holds it against what is measured).
"""

from __future__ import annotations

import html
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

from musespark.engine import default_threads
from musespark.errors import InvalidRequest, MemoryBudgetExceeded, UnsupportedModel
from musespark.families.spec import ModelSpec
from musespark.machine import available_memory
from musespark.options import refuse_unknown
from musespark.results import human_bytes
from musespark.sizes import kv_bytes, shared_kv_bytes, step_bytes
from musespark.weights import FALLBACK, QUANTIZE, Inspection, KvChoice, Source, look

# What ``kv`` may be.
KV_FORMATS = ("auto", "kv8", "kv8v4", "kv4", "f32")
# Where no context is asked for, keys and values may take this part of the memory that is free, and
# a model that has not room for so many tokens is refused.
KV_SHARE = 0.5
LEAST_CONTEXT = 512
_ESTIMATE_OPTIONS = ("quantize", "kv", "context", "agents", "shared", "mmproj")
_LADDER = (4096, 16384, 65536)
_MOST_AGENTS = 4096
# Measured: interpreter, NumPy and the other libraries, as far as they are read; and the tokenizer,
# once a text has been encoded, by its tokens and its merges, the first tokens with what building
# it leaves in the heap.
_PROCESS_BYTES, _BYTES_PER_TOKEN, _BYTES_PER_MERGE = 50_300_000, 350, 235
_FIRST_TOKENS, _BYTES_PER_FIRST = 2500, 1000


@dataclass(frozen=True)
class Need:
    """Bytes for one choice.

    ``weights``: as packed; of a mapped file all of it, as when all of it has been read (its pages
    are shared between processes, and the system may take them back). ``keys_values``: of `agents`
    sequences of `context` tokens each, the most they hold. ``step``: activations, scratch of the
    threads, tables of positions, logits. ``process``: interpreter, libraries and tokenizer, an
    estimate. ``fits``: whether load would run them all at once with what is free now.
    """

    quantize: str
    kv: str
    context: int
    agents: int
    weights: int
    keys_values: int
    step: int
    process: int
    fits: bool

    @property
    def working(self) -> int:
        """What is neither weights nor keys and values."""
        return self.step + self.process

    @property
    def total(self) -> int:
        return self.weights + self.keys_values + self.working


@dataclass(frozen=True)
class Estimate:
    """What a model needs, for each choice; prints as a table, also in a notebook.

    ``needs``: one :class:`Need` for each recipe, format and context. ``largest``: (quantize, kv,
    context), the largest context that fits in ``available`` bytes, 0 where none does. ``auto`` is
    the recipe that load takes by itself. ``shared``: tokens that all sequences begin with, counted
    once. Beginnings of past prompts are kept in what is left (load's ``prefix_cache``): up to half
    of the free memory, given up when it is needed, and not counted here.
    """

    source: str
    family: str
    parameters: int
    max_context: int
    auto: str
    agents: int
    shared: int
    available: int
    needs: tuple[Need, ...]
    largest: tuple[tuple[str, str, int], ...]

    def to_dict(self) -> dict[str, Any]:
        plain = asdict(self)
        plain["needs"] = [asdict(need) | {"total": need.total} for need in self.needs]
        return plain

    def __str__(self) -> str:
        rows = self._rows()
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = [
            "  ".join(
                cell.ljust(width) if i < 2 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        return "\n".join([self._title(), "", *lines, "", *self._footer()])

    def _repr_html_(self) -> str:
        head, *body = self._rows()
        cells = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
        rows = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
            for row in body
        )
        foot = "<br>".join(html.escape(line) for line in self._footer())
        return (
            f"<div>{html.escape(self._title())}</div><table><tr>{cells}</tr>{rows}</table>"
            f"<div style='color:gray;font-size:smaller'>{foot}</div>"
        )

    def _title(self) -> str:
        many = f", {self.agents} sequences" if self.agents > 1 else ""
        many += f" that share {self.shared:,} tokens" if self.agents > 1 and self.shared else ""
        return (
            f"{self.source}: {self.family}, {self.parameters / 1e6:,.1f} M parameters, "
            f"context up to {self.max_context:,}{many}; {human_bytes(self.available)} are free"
        )

    def _rows(self) -> list[list[str]]:
        """A head, and a row for each (quantize, kv): weights, the total at each context."""
        contexts = sorted({need.context for need in self.needs})
        head = ["quantize", "kv", "weights", *(f"{c:,} tokens" for c in contexts), "fits up to"]
        rows = [head]
        for quantize, kv, largest in self.largest:
            own = [n for n in self.needs if (n.quantize, n.kv) == (quantize, kv)]
            totals = [f"{human_bytes(n.total)}{'' if n.fits else ' !'}" for n in own]
            fits = f"{largest:,}" if largest else "does not fit"
            name = f"{quantize} (auto)" if quantize == self.auto else quantize
            rows.append([name, kv, human_bytes(own[0].weights), *totals, fits])
        return rows

    def _footer(self) -> list[str]:
        step, process = (max(getattr(n, part) for n in self.needs) for part in ("step", "process"))
        lines = [
            f"In each total up to {human_bytes(step)} for the work of a step, and about "
            f"{human_bytes(process)} for interpreter, libraries and tokenizer, an estimate."
        ]
        if any(not need.fits for need in self.needs):
            lines.append("! more than is free now")
        return lines


def estimate(
    source: Source = None,
    *,
    quantize: str | None = None,
    kv: str | None = None,
    context: int | Sequence[int] | None = None,
    agents: int = 1,
    shared: int = 0,
    mmproj: Any = None,
    **unknown: Any,
) -> Estimate:
    """What a model would need in memory, without packing or loading it.

    ``source`` as for :func:`musespark.load`; of a hub's model that is not cached only small files
    and the headers of its weights are fetched. ``quantize`` and ``kv``: None for each there is.
    ``context``: tokens of a sequence, one or several; None for some sizes up to the model's own.
    ``agents``: how many such sequences at once; ``shared``: how many tokens all of them begin with
    (their prompt), which are held once. ``mmproj`` as for load.

    Raises what load raises for a model that cannot be run, and UnsupportedModel for one of which
    nothing is known before it is downloaded.
    """
    refuse_unknown(unknown, _ESTIMATE_OPTIONS)
    found = look(source, mmproj=mmproj)
    if found.spec is None:
        raise UnsupportedModel(f"{found.report['source']}: {found.report['notes'][0]}")
    if isinstance(agents, bool) or not isinstance(agents, int) or not 1 <= agents <= _MOST_AGENTS:
        raise InvalidRequest(f"agents: got {agents!r:.60}, allowed is 1 to {_MOST_AGENTS}")
    recipes = _recipes(quantize, found)
    contexts = _contexts(context, found.spec.max_context)
    if isinstance(shared, bool) or not isinstance(shared, int) or not 0 <= shared <= contexts[0]:
        raise InvalidRequest(
            f"shared: got {shared!r:.60}, allowed is 0 to {contexts[0]}, the smallest context"
        )
    formats = _formats(found.spec, kv, found.kv)
    return _estimate(found, recipes, formats, contexts, agents, shared)


def inspect(
    source: Source = None, *, verify: bool = False, mmproj: Any = None, **unknown: Any
) -> dict[str, Any]:
    """What is in a model, without packing or loading it: what ``musespark inspect`` shows.

    Keys: source, packed, family, quantize (of a packed file), licence (None where none is stated),
    parameters, bytes, formats {format: bytes}, weights {recipe: bytes once packed}, layers, hidden,
    vocab, max_context, files, notes, verified, tensors [{name, format, shape, bytes}], and memory,
    an :class:`Estimate`, None where nothing is known before the model is downloaded. ``verify``
    checks every checksum of a packed file. ``mmproj`` as for load. Raises as :func:`estimate`.
    """
    refuse_unknown(unknown, ("verify", "mmproj"))
    found = look(source, verify=verify, mmproj=mmproj)
    memory = None
    if found.spec is not None:
        contexts = _contexts(None, found.spec.max_context)
        memory = _estimate(found, list(found.weights), _formats(found.spec, None), contexts)
    return found.report | {"memory": memory}


def _estimate(
    found: Inspection,
    recipes: list[str],
    formats: list[str],
    contexts: list[int],
    agents: int = 1,
    shared: int = 0,
) -> Estimate:
    spec, report = found.spec, found.report
    assert spec is not None
    free = available_memory()
    needs, largest = [], []
    for recipe in recipes:
        weights = found.weights[recipe]
        need = Needs(spec, recipe, agents=agents, shared=shared, merges=found.merges)
        for kv in formats:
            most = need.largest_context(kv, free, weights)
            largest.append((recipe, kv, most))
            for one in contexts:
                parts = (weights, need.keys_values(kv, one), need.step(one), need.process)
                needs.append(Need(recipe, kv, one, agents, *parts, one <= most))
    return Estimate(
        source=report["source"],
        family=report["family"],
        parameters=report["parameters"],
        max_context=spec.max_context,
        auto=found.auto,
        agents=agents,
        shared=shared,
        available=free,
        needs=tuple(needs),
        largest=tuple(largest),
    )


class Needs:
    """Bytes beside the weights of one recipe, for `agents` sequences whose first `shared` tokens
    are the same. Encoders keep no keys and values. ``merges``: of the tokenizer; None: not known,
    as many as tokens."""

    def __init__(
        self,
        spec: ModelSpec,
        recipe: str,
        *,
        agents: int = 1,
        shared: int = 0,
        merges: int | None = None,
    ):
        self._spec, self._encodes, self._most = asdict(spec), not spec.writes, spec.max_context
        self._agents, self._shared = agents, shared
        self._sizes = {
            "sequences": agents,
            "threads": default_threads(),
            "floats": recipe == "none",
            "two_forms": recipe == "q4",
        }
        merges = spec.vocab if merges is None else merges
        tokenizer = _BYTES_PER_TOKEN * spec.vocab + _BYTES_PER_MERGE * merges
        tokenizer += _BYTES_PER_FIRST * min(spec.vocab, _FIRST_TOKENS)
        self.process = _PROCESS_BYTES + tokenizer

    def reserved(self, kv: str, tokens: int) -> int:
        """Keys and values as the engine reserves them, for all sequences."""
        if self._encodes:
            return 0
        return self._agents * kv_bytes(self._spec, kv, tokens) - self._twice(kv, tokens)

    def keys_values(self, kv: str, tokens: int) -> int:
        """The most that they hold: of all sequences together one step at a time is not packed."""
        if self._encodes:
            return 0
        packed = kv_bytes(self._spec, kv, tokens, 1)
        unpacked = kv_bytes(self._spec, kv, tokens) - packed
        return self._agents * packed + unpacked - self._twice(kv, tokens)

    def _twice(self, kv: str, tokens: int) -> int:
        return (self._agents - 1) * shared_kv_bytes(self._spec, kv, min(self._shared, tokens))

    def step(self, tokens: int) -> int:
        """Activations, scratch, positions and logits."""
        return step_bytes(self._spec, tokens=tokens, **self._sizes)

    def room(self, free: int, weights: int, tokens: int) -> int:
        """What `free` bytes leave to keys and values."""
        return free - weights - self.process - self.step(tokens)

    def largest_context(self, kv: str, free: int, weights: int, share: float = 1) -> int:
        """The most tokens that fit in `free` bytes beside `weights`, and whose keys and values fit
        in that share of them; 0: none. Several sequences have to fit in what load gives to keys and
        values."""
        most = int(free * (KV_SHARE if self._agents > 1 else share))

        def over(tokens: int) -> int:
            return self.reserved(kv, tokens) - min(most, self.room(free, weights, tokens))

        return bisect_right(range(1, self._most + 1), 0, key=over)


@dataclass(frozen=True)
class Choice:
    """The context in tokens, the bytes keys and values may take, and what to note of both."""

    context: int
    budget: int
    notes: list[str]


def choose_context(
    spec: ModelSpec,
    weights: Mapping[str, int],
    recipe: str,
    kv: str,
    asked: int | None,
    beside: Mapping[str, int] = MappingProxyType({}),
) -> Choice:
    """The context of a model that is being loaded, from what is free on this machine.

    `weights` are the bytes of each recipe the model can have, `recipe` the one that is loaded.
    `asked` None: the model's own limit, or what fits in half of the free memory. `beside`: bytes
    of what is loaded with the model, by name. What does not fit raises MemoryBudgetExceeded and
    says what would.
    """
    most = spec.max_context
    if asked is not None and (
        isinstance(asked, bool) or not isinstance(asked, int) or not 1 <= asked <= most
    ):
        raise InvalidRequest(f"context: got {asked!r:.60}, allowed is 1 to {most}, the model's own")
    free, need = available_memory(), Needs(spec, recipe)
    taken = weights[recipe] + sum(beside.values())
    least = min(LEAST_CONTEXT, most) if asked is None else asked
    needed = need.reserved(kv, least)
    if needed > need.room(free, taken, least):
        raise MemoryBudgetExceeded(_too_large(spec, weights, recipe, kv, least, free, beside))
    fits = asked or max(least, need.largest_context(kv, free, taken, KV_SHARE))
    share = max(needed, min(int(free * KV_SHARE), need.room(free, taken, fits)))
    if asked is not None:
        return Choice(asked, share, [])
    if fits == most:
        return Choice(most, share, [f"context auto: {most:,}, the model's own limit"])
    return Choice(
        fits, share, [f"context auto: {fits:,} of {most:,} tokens fit in {human_bytes(share)}"]
    )


def _too_large(
    spec: ModelSpec,
    weights: Mapping[str, int],
    recipe: str,
    kv: str,
    tokens: int,
    free: int,
    beside: Mapping[str, int],
) -> str:
    """What to tell of a choice that does not fit: its parts, and the choices that would."""
    need = Needs(spec, recipe)
    needed, working = need.reserved(kv, tokens), need.step(tokens) + need.process
    more = sum(beside.values())
    fitting = []
    for one, size in weights.items():
        for form in _formats(spec, None):
            most = Needs(spec, one).largest_context(form, free, size + more)
            if most >= min(LEAST_CONTEXT, spec.max_context):
                fitting.append(f"quantize={_asked(one)!r}, kv={form!r} with up to {most:,} tokens")
    told = "".join(f"the {name} {human_bytes(size)}, " for name, size in beside.items() if size)
    return (
        f"quantize={_asked(recipe)!r}, kv={kv!r} and {tokens:,} tokens need "
        f"{human_bytes(weights[recipe] + more + needed + working)} (weights "
        f"{human_bytes(weights[recipe])}, keys and values {human_bytes(needed)}, "
        f"{told}the rest about {human_bytes(working)}); {human_bytes(free)} are free. "
        f"What would fit: {'; '.join(fitting) or 'nothing of this model'}. "
        "MUSESPARK_MEMORY says how much may be used, where that is not what is free"
    )


def kv_formats(asked: str, chosen: KvChoice | None) -> str:
    """What ``kv`` stands for, as the engine takes it; `chosen`: what the packed file records."""
    if asked != "auto":
        return asked
    return FALLBACK if chosen is None else chosen.formats


def _asked(recipe: str) -> str:
    """What to give as ``quantize`` for a recipe: some are taken by ``auto`` alone."""
    return recipe if recipe in QUANTIZE else "auto"


def _recipes(asked: str | None, found: Inspection) -> list[str]:
    if asked is None:
        return list(found.weights)
    if asked == "auto":
        return [found.auto]
    if not isinstance(asked, str) or asked not in QUANTIZE:
        raise InvalidRequest(f"quantize: got {asked!r:.60}, allowed is one of {list(QUANTIZE)}")
    if asked not in found.weights:
        raise InvalidRequest(f"quantize: got {asked!r}, the file is packed as {found.auto!r}")
    return [asked]


def _formats(spec: ModelSpec, asked: str | None, chosen: KvChoice | None = None) -> list[str]:
    if asked is not None and (not isinstance(asked, str) or asked not in KV_FORMATS):
        raise InvalidRequest(f"kv: got {asked!r:.60}, allowed is one of {list(KV_FORMATS)}")
    if not spec.writes:
        return ["none"]
    return list(KV_FORMATS[1:]) if asked is None else [kv_formats(asked, chosen)]


def _contexts(asked: int | Sequence[int] | None, most: int) -> list[int]:
    if asked is None:
        return [c for c in _LADDER if c < most] + [most]
    several = isinstance(asked, Sequence) and not isinstance(asked, str | bytes)
    found = list(asked) if several else [asked]
    for one in found:
        if isinstance(one, bool) or not isinstance(one, int) or not 1 <= one <= most:
            raise InvalidRequest(
                f"context: got {one!r:.60}, allowed is 1 to {most}, the model's own"
            )
    if not found:
        raise InvalidRequest("context: got no size at all")
    return sorted(set(found))
