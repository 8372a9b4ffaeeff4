"""What the server counts, for Prometheus. Counts alone: no texts, no clients."""

from __future__ import annotations

import contextlib
import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.utils import floatToGoString

from musespark.errors import Error

if TYPE_CHECKING:
    from musespark.model import Model
    from musespark.results import Usage

_FIRST_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_BETWEEN_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_KINDS = ("prompt", "cached", "completion", "reasoning", "probe", "image")
# Of the engine's counters, those that are of interest beside each other.
_ENGINE = ("waiting", "running", "preemptions", "prefix_bytes")
_ENGINE += ("kv_bytes_used", "kv_bytes_allocated", "kv_bytes_limit")


class Meter:
    """The metrics of one server."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, model: Model):
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "musespark_requests", "Requests answered.", ["path", "status"], registry=registry
        )
        self._waiting = Gauge(
            "musespark_waiting", "Answers that wait for a turn.", registry=registry
        )
        self._tokens = Counter("musespark_tokens", "Tokens.", ["kind"], registry=registry)
        for kind in _KINDS:
            self._tokens.labels(kind)
        self._queue = _Times("queue_seconds", "Waiting for a turn.", _FIRST_S)
        self._first = _Times(
            "first_piece_seconds",
            "From a turn's beginning to the first piece of its answer.",
            _FIRST_S,
        )
        self._between = _Times(
            "between_pieces_seconds",
            "Between two pieces of an answer; a piece may be several tokens.",
            _BETWEEN_S,
        )
        for collector in (self._queue, self._first, self._between, _EngineStats(model)):
            registry.register(collector)

    def answered(self, path: str, status: int) -> None:
        """A request has been answered; ``path``: one of the server's own."""
        self._requests.labels(path, str(status)).inc()

    @contextlib.contextmanager
    def waits(self) -> Iterator[None]:
        """Around the waiting for a turn."""
        began = time.monotonic()
        with self._waiting.track_inprogress():
            yield
        self._queue.observe(time.monotonic() - began)

    def clock(self) -> Clock:
        """Of an answer that begins now."""
        return Clock(self._first, self._between)

    def used(self, usage: Usage) -> None:
        """The tokens of an answer."""
        for kind in _KINDS:
            self._tokens.labels(kind).inc(getattr(usage, f"{kind}_tokens"))

    def text(self) -> bytes:
        """All of it in Prometheus' format."""
        return generate_latest(self._registry)


class Clock:
    """Times the pieces of one answer."""

    def __init__(self, first: _Times, between: _Times):
        self._histogram, self._between, self._last = first, between, time.monotonic()

    def tick(self) -> None:
        """A piece has come."""
        now = time.monotonic()
        self._histogram.observe(now - self._last)
        self._histogram, self._last = self._between, now


class _Times:
    """A histogram of seconds that one thread observes: prometheus_client's own locks, and looks
    through its buckets, for each value, and there is one for each piece of each answer."""

    def __init__(self, name: str, about: str, bounds: Sequence[float]):
        self._name, self._about, self._bounds = f"musespark_{name}", about, bounds
        self._counts, self._sum = [0] * (len(bounds) + 1), 0.0

    def observe(self, seconds: float) -> None:
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self._sum += seconds

    def collect(self) -> Iterator[Any]:
        names = [*map(floatToGoString, self._bounds), "+Inf"]
        buckets = [*zip(names, accumulate(self._counts), strict=True)]
        yield HistogramMetricFamily(self._name, self._about, buckets, self._sum)


class _EngineStats:
    """The engine's counters, read when somebody asks for them."""

    def __init__(self, model: Model):
        self._model = model

    def collect(self) -> Iterator[Any]:
        try:
            stats = self._model._engine.stats()
        except Error:  # it is gone, which /health tells; the server's own counters are not
            return
        for name in _ENGINE:
            if name in stats:  # an encoder has few
                about = f"The engine's {name.replace('_', ' ')}."
                yield GaugeMetricFamily(f"musespark_engine_{name}", about, value=stats[name])
