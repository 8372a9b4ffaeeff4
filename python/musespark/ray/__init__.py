"""Batches and a server over several processes and machines, on Ray (``musespark[ray]``).

Ray Data moves the rows, starts the workers, starts a killed one again and computes what it had not
given back; here is only what a worker does with a batch of rows. Each worker loads the model once::

    import ray
    import musespark.ray

    prompts = ray.data.from_items([{"id": i, "prompt": f"The fox {i}"} for i in range(100)])
    answers = musespark.ray.generate(prompts, workers=2, threads=1, max_new_tokens=8)
    for row in answers.iter_rows():  # as they come; each has its id, prompt, text, error, ...
        print(row["id"], row["text"])

A row's text is what :meth:`musespark.Model.generate` gives in one process, whatever the number of
workers, the batches, and however often a worker was killed (sampled rows need a ``seed`` for it).
:mod:`musespark.ray.serving` puts a model behind Ray Serve. Ray reports statistics of its use to its
makers; importing this module turns that off for clusters this process starts, unless
``RAY_USAGE_STATS_ENABLED`` says otherwise.
"""

from __future__ import annotations

import functools
import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import musespark
from musespark.errors import (
    CorruptFile,
    Error,
    InvalidRequest,
    MemoryBudgetExceeded,
    MissingLibrary,
    UnsupportedModel,
)
from musespark.generation import Stream
from musespark.grammar import GRAMMAR_OPTIONS
from musespark.loading import LOAD_OPTIONS, MAX_THREADS
from musespark.options import (
    AGENT_OPTIONS,
    CALL_OPTIONS,
    CHAT_OPTIONS,
    GenerationOptions,
    integer,
    refuse_unknown,
    refused,
    resolve,
)
from musespark.thinking.policy import SIGNALS, THINKING_OPTIONS
from musespark.thought_cache import THOUGHT_OPTIONS

try:
    import pyarrow as pa
    import ray.data
    from ray.data.dataset import MaterializedDataset
except ImportError as error:
    raise MissingLibrary(
        f"musespark.ray needs {error.name}: pip install 'musespark[ray]'"
    ) from error

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing leaves the machine unasked

T = TypeVar("T")
__all__ = ["chat", "generate"]

BATCH_ROWS = 256  # some times what an engine runs at once, so that it idles at few ends
# What a row may have done wrong; all else is the worker's or the engine's, and ends the job.
_OF_A_ROW = (InvalidRequest, UnsupportedModel, CorruptFile, MemoryBudgetExceeded)
_CHAT_ONLY = (*CHAT_OPTIONS, *CALL_OPTIONS, *THOUGHT_OPTIONS, *THINKING_OPTIONS, *AGENT_OPTIONS)
_NO_COLUMN = ("logprobs", SIGNALS)  # options whose results no column holds
_ANY_VOCAB = 2**31  # the driver has no model; a worker checks token ids

_TEXT_COLUMNS: dict[str, tuple[pa.DataType, Callable[[Any], Any]]] = {
    "text": (pa.string(), lambda result: result.text),
    "finish_reason": (pa.string(), lambda result: result.finish_reason),
    "prompt_tokens": (pa.int64(), lambda result: result.usage.prompt_tokens),
    "completion_tokens": (pa.int64(), lambda result: result.usage.completion_tokens),
}
_CHAT_COLUMNS = {
    **_TEXT_COLUMNS,
    "reasoning": (pa.string(), lambda result: result.reasoning),
    "tool_calls": (pa.string(), lambda result: json.dumps(result.tool_calls, ensure_ascii=False)),
}


def generate(
    data: ray.data.Dataset,
    source: str | None = None,
    *,
    workers: int,
    threads: int,
    column: str = "prompt",
    seed: int | str | None = None,
    batch_size: int = BATCH_ROWS,
    load: Mapping[str, Any] | None = None,
    **options: Any,
) -> ray.data.Dataset:
    """:meth:`musespark.Model.generate` for each row of a Ray dataset: a dataset of the same rows,
    computed when it is read, with the columns ``text``, ``finish_reason``, ``prompt_tokens``,
    ``completion_tokens`` and ``error``.

    A row that cannot be answered has its reason as ``error`` and null in the others; an answered
    one has null as ``error``. Rows come in the order in which they are done, unless Ray Data's
    ``DataContext.execution_options.preserve_order`` is set.

    ``source``: as of :func:`musespark.load`, the same on every machine. ``workers``: engines, each
    in a process of its own. ``threads``: of each engine; Ray reserves as many CPUs (``num_cpus``)
    of one machine for it, so that no two share a core. Both have to be given: Ray does not start a
    worker before a machine has so many CPUs free, and waits for one (a warning says so where none
    has so many). An engine reads its weights once for all rows that it runs
    at once, so that one worker on each machine, with its cores as threads, reads them least often.
    Leave a CPU of the cluster free where ``data`` is read from files or transformed: Ray Data's
    tasks for it need one (a warning says so where none is). Workers of one machine share the
    weights in memory.

    ``column``: what holds the prompts, texts or lists of token ids. ``seed``: of all rows, or the
    name of the column that has each row's. ``batch_size``: rows that a worker takes at once; so
    many it computes again when it was killed. ``load``: options of :func:`musespark.load`, but for
    threads. ``options``: of :meth:`musespark.Model.generate`, but for ``stream``, ``logprobs``,
    ``signals``, adapters and steering.

    Raises InvalidRequest for wrong options at once. What is wrong with a column or the model ends
    the job in a worker, and Ray raises it where the dataset is read.
    """
    given = {"workers": workers, "threads": threads, "column": column, "seed": seed}
    given |= {"batch_size": batch_size, "load": load, "source": source}
    return _mapped(data, "generate", options, _TEXT_COLUMNS, **given)


def chat(
    data: ray.data.Dataset,
    source: str | None = None,
    *,
    workers: int,
    threads: int,
    column: str = "messages",
    seed: int | str | None = None,
    batch_size: int = BATCH_ROWS,
    load: Mapping[str, Any] | None = None,
    **options: Any,
) -> ray.data.Dataset:
    """:meth:`musespark.Model.chat` for each row of a Ray dataset, as :func:`generate`.

    ``column``: what holds the conversations: a text (one user turn) or a list of messages. Arrow
    fills the keys that a message lacks and another has with null; nulls are left out again. Two
    columns more: ``reasoning``, and ``tool_calls``, the list of them as JSON text.
    """
    given = {"workers": workers, "threads": threads, "column": column, "seed": seed}
    given |= {"batch_size": batch_size, "load": load, "source": source}
    return _mapped(data, "chat", options, _CHAT_COLUMNS, **given)


def _mapped(
    data: ray.data.Dataset,
    method: str,
    options: Mapping[str, Any],
    columns: Mapping[str, Any],
    *,
    source: str | None,
    workers: int,
    threads: int,
    batch_size: int,
    load: Mapping[str, Any] | None,
    **where: Any,
) -> ray.data.Dataset:
    if not isinstance(data, ray.data.Dataset):
        raise refused("data", data, "a ray.data.Dataset, such as ray.data.from_items(rows)")
    _check_options(options, chat=method == "chat")
    workers, threads = integer("workers", workers, 1), integer("threads", threads, 1, MAX_THREADS)
    rows = integer("batch_size", batch_size, 1)
    given = {"load": {"source": source, **load_options(load), "threads": threads}, **where}
    given |= {"method": method, "options": dict(options), "columns": tuple(columns)}
    _warn_of_waiting(data, workers, threads)
    return data.map_batches(
        Worker,
        fn_constructor_kwargs=given,
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=threads,
        batch_size=rows,
        batch_format="pyarrow",
    )


def _warn_of_waiting(data: ray.data.Dataset, workers: int, threads: int) -> None:
    """Of workers that no machine has room for, and of tasks that workers wait for: those hold their
    CPUs until the end. No errors, for a cluster may grow."""
    if not ray.is_initialized():
        return
    machines = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
    room = sum(int(cpus // threads) for cpus in machines)
    cpus, there, why = workers * threads, sum(machines), ""
    if room < workers:
        who = "the others" if room else "all of them"
        why = (
            f"workers, threads: got {workers} workers of {threads} CPUs each, the cluster's "
            f"machines, of {max(machines, default=0):g} CPUs at most, have room for {room}; {who} "
            "will wait until it grows. Take fewer"
        )
    elif cpus >= there and not isinstance(data, MaterializedDataset):
        why = (
            f"workers x threads: {cpus} CPUs of the cluster's {there:g}; none is left for Ray "
            "Data to compute the rows, which will wait until the cluster grows. Take fewer, or "
            "data.materialize() first"
        )
    if why:
        warnings.warn(why, stacklevel=4)


def load_options(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Options of :func:`musespark.load` for a worker, which has no terminal for a progress bar."""
    known = [name for name in LOAD_OPTIONS if name not in ("threads", "progress")]
    refuse_unknown(given or {}, known)
    return {"progress": False, **(given or {})}


def _check_options(given: Mapping[str, Any], *, chat: bool) -> None:
    """InvalidRequest for what every row would be refused for, before a worker starts."""
    apart = (*GRAMMAR_OPTIONS, *(_CHAT_ONLY if chat else ()))
    for name in _NO_COLUMN:
        if given.get(name):
            raise refused(name, given[name], "nothing here: no column holds it")
    rest = {name: value for name, value in given.items() if name not in apart}
    resolve(rest, GenerationOptions(), _ANY_VOCAB, also_known=apart)


class Worker:
    """What an actor of Ray Data runs: one engine, which answers batches of rows.

    ``load``: keyword arguments of :func:`musespark.load`. ``method``: generate or chat.
    ``columns``: names of what is added, of :data:`_CHAT_COLUMNS`, beside ``error``.
    """

    def __init__(
        self,
        *,
        load: Mapping[str, Any],
        method: str,
        options: Mapping[str, Any],
        column: str,
        seed: int | str | None,
        columns: Sequence[str],
    ):
        self._model = musespark.load(**load)
        self._ask = functools.partial(getattr(self._model, method), stream=True, **options)
        self._column, self._seed, self._columns = column, seed, columns

    def __call__(self, table: pa.Table) -> pa.Table:
        """The table with the columns of the answers."""
        taken = [name for name in (*self._columns, "error") if name in table.column_names]
        if taken:
            raise InvalidRequest(f"data: has the columns {taken}, which answers are to have")
        answers = self._answers(self._values(table, "column", self._column), self._seeds(table))
        for name in self._columns:
            kind, value_of = _CHAT_COLUMNS[name]
            values = [None if isinstance(one, Error) else value_of(one) for one in answers]
            table = table.append_column(name, pa.array(values, kind))
        errors = [str(one) if isinstance(one, Error) else None for one in answers]
        return table.append_column("error", pa.array(errors, pa.string()))

    def _values(self, table: pa.Table, option: str, name: str) -> list[Any]:
        if name not in table.column_names:
            raise refused(option, name, f"a column of the rows: {table.column_names}")
        return [_without_nulls(value) for value in table.column(name).to_pylist()]

    def _seeds(self, table: pa.Table) -> list[Any]:
        if isinstance(self._seed, str):
            return self._values(table, "seed", self._seed)
        return [self._seed] * table.num_rows

    def _answers(self, prompts: Sequence[Any], seeds: Sequence[Any]) -> list[Any]:
        """A result or the error of each, all computed in one run of the engine."""
        begun: list[Stream | Error] = []
        try:
            for prompt, seed in zip(prompts, seeds, strict=True):
                begun.append(_attempt(functools.partial(self._ask, prompt, seed=seed)))
            return [one if isinstance(one, Error) else _attempt(one.drain) for one in begun]
        finally:
            for one in begun:
                if isinstance(one, Stream):
                    one.close()


def _attempt(act: Callable[[], T]) -> T | Error:
    """What ``act`` gives, or the error that is its row's own."""
    try:
        return act()
    except _OF_A_ROW as error:
        return error


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_nulls(one) for name, one in value.items() if one is not None}
    return [_without_nulls(one) for one in value] if isinstance(value, list) else value
