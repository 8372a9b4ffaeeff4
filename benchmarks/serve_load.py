"""The server under load: many clients on loopback, some slow, some that go away.

    python benchmarks/serve_load.py [--model M] [--clients 64] [--requests 256] [--rounds 5]
                                    [--seconds 20] [--gone 0.1] [--slow 0.1] [--threads N] [--save]
                                    [--peer URL] [--peer-model NAME]

Two parts, with ``--clients`` clients of ``musespark serve`` in a process of its own:

throughput: ``--requests`` completions of mixed lengths (prompts of 8 to 600 tokens, 16 to 200 new
ones, from a fixed seed; every prompt is another, so that nothing is cached), streamed; against the
same requests with as many coroutines of ``model.agenerate(stream=True)`` in this process, which
keeps as much of past prompts as the server does. Tokens of answers over the seconds that all took;
both in turn ``--rounds`` times, each time with other requests: medians, and each round's ratio.
``clients_share`` is what the clients themselves took of all cores' time while they were served,
which the same requests in one process do not need.

With ``--peer`` the last round's requests then go to another server of /v1/completions, that was
started by hand with the same weights and as many threads (``python -m llama_cpp.server --model
FILE.gguf --n_threads N --interrupt_requests false``); prompts are text then, for that one takes no
ids, and ours is stopped meanwhile. Weights that end their answers early make its work less: use
ones that do not (``benchmarks/gguf_files.py``).

load: for ``--seconds`` each client asks again and again; a share ``--gone`` of the requests is left
at a random moment, a share ``--slow`` is read a line every 50 ms. Reported: statuses (anything but
200 and 429 is an error), p50, p95 and p99 of the time to the first piece and between pieces (of
those that are read at once), and of before, ten times on the way and after the server's resident
memory and what it has of it for keys and values (``cache``: what prompts begin with;
``allocated``: that, what requests use and memory kept for reuse), so that a cache that fills is
told from a leak.

Clients and server share the machine: where a model takes microseconds for a token, the clients'
own Python is a part of what is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from common import machine, save

import musespark
from musespark.cli.serve import PREFIX_CACHE_BYTES

SEED = 64
_WARM = 8  # requests before anything is looked at


@dataclass(frozen=True)
class Wanted:
    """One completion: token ids or a text, and how many more."""

    prompt: list[int] | str
    new: int

    def body(self, name: str) -> dict[str, Any]:
        lengths = {"max_tokens": self.new, "min_tokens": self.new}
        return {"model": name, "prompt": self.prompt, "stream": True, **lengths}


@dataclass(frozen=True)
class Round:
    """Tokens a second of the same requests, and what their clients took of the cores' time."""

    in_process: float
    served: float
    clients: float


@dataclass
class Seen:
    """What clients saw."""

    statuses: Counter[int] = field(default_factory=Counter)
    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)
    left: int = 0


def as_text(model: musespark.Model, work: Sequence[Wanted]) -> list[Wanted]:
    return [replace(item, prompt=model.tokenizer.decode(item.prompt)) for item in work]


def wanted(count: int, vocab: int, seed: int) -> list[Wanted]:
    chance = random.Random(seed)
    return [
        Wanted(
            [chance.randrange(16, vocab) for _ in range(chance.randint(8, 600))],
            chance.randint(16, 200),
        )
        for _ in range(count)
    ]


# ---- a client -----------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def asked(
    url: str, body: dict[str, Any], limit: int = 1 << 20
) -> AsyncIterator[tuple[int, asyncio.StreamReader]]:
    """The status and the lines of an answer: as little HTTP as will do, for it is paid for here."""
    host, port = urlsplit(url).netloc.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port), limit=limit)
    try:
        data = json.dumps(body).encode()
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(data)}\r\nConnection: close\r\n\r\n"
        )
        writer.write(head.encode() + data)
        await writer.drain()
        status = int((await reader.readline()).split()[1])
        while (await reader.readline()).strip():
            pass
        yield status, reader
    finally:
        writer.close()


async def complete(url: str, body: dict[str, Any]) -> None:
    async with asked(url, body) as (status, reader):
        text = await reader.read()
        if status != 200 or b"[DONE]" not in text:
            raise RuntimeError(f"status {status}: {text[:200]!r}")


async def behave(url: str, body: dict[str, Any], seen: Seen, patience: float, slow: bool) -> None:
    """Reads until ``patience`` seconds are over."""
    begun = last = time.perf_counter()
    async with asked(url, body, limit=4096 if slow else 1 << 20) as (status, reader):
        seen.statuses[status] += 1
        while status == 200 and (line := await reader.readline()):
            if not line.startswith(b"data: "):
                continue
            now = time.perf_counter()
            if not slow:
                (seen.first if last == begun else seen.between).append(now - last)
            last = now
            if now - begun > patience:
                seen.left += 1
                return
            if slow:
                await asyncio.sleep(0.05)
        if status == 429:
            await asyncio.sleep(0.2)


# ---- the two parts ------------------------------------------------------------------------------


async def shared_out(work: Sequence[Wanted], clients: int, one: Any) -> float:
    """Seconds that ``clients`` take for all of the work."""
    left = iter(work)

    async def client() -> None:
        for item in left:
            await one(item)

    begun = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return time.perf_counter() - begun


async def in_process(model: musespark.Model, work: Sequence[Wanted], clients: int) -> float:
    async def one(item: Wanted) -> None:
        lengths = {"max_new_tokens": item.new, "min_new_tokens": item.new}
        async for _ in await model.agenerate(item.prompt, stream=True, **lengths):
            pass

    return await shared_out(work, clients, one)


async def over_loopback(url: str, name: str, work: Sequence[Wanted], clients: int) -> float:
    async def one(item: Wanted) -> None:
        await complete(url, item.body(name))

    return await shared_out(work, clients, one)


def one_round(
    model: musespark.Model, url: str, name: str, work: Sequence[Wanted], clients: int
) -> Round:
    tokens = sum(item.new for item in work)
    alone = asyncio.run(in_process(model, work, clients))
    before = time.process_time()
    served = asyncio.run(over_loopback(url, name, work, clients))
    took = time.process_time() - before
    return Round(tokens / alone, tokens / served, took / served / usable_cores())


def usable_cores() -> int:
    return len(os.sched_getaffinity(0))


async def under_load(
    pid: int, url: str, name: str, vocab: int, args: argparse.Namespace
) -> tuple[Seen, list[dict[str, int]]]:
    """What the clients saw, and the server's memory ten times on the way."""
    memory: list[dict[str, int]] = []

    async def look() -> None:
        for _ in range(10):
            await asyncio.sleep(args.seconds / 10)
            memory.append(await asyncio.to_thread(memory_of, pid, url))

    seen, end = Seen(), time.perf_counter() + args.seconds

    async def client(index: int) -> None:
        chance = random.Random(SEED + index)
        while (now := time.perf_counter()) < end:
            (item,) = wanted(1, vocab, chance.getrandbits(32))
            goes = chance.random() < args.gone
            patience = chance.uniform(0, 0.5) if goes else end - now + 60
            await behave(url, item.body(name), seen, patience, chance.random() < args.slow)

    await asyncio.gather(look(), *(client(index) for index in range(args.clients)))
    return seen, memory


def resident(pid: int) -> int:
    """Bytes of a process in memory."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def memory_of(pid: int, url: str) -> dict[str, int]:
    """Bytes of a server in memory, and of its keys and values."""
    with urllib.request.urlopen(f"{url}/metrics") as answer:
        lines = dict(line.rsplit(" ", 1) for line in answer.read().decode().splitlines())
    found = {"resident": resident(pid)}
    for name, metric in (("cache", "prefix_bytes"), ("allocated", "kv_bytes_allocated")):
        found[name] = int(float(lines[f"musespark_engine_{metric}"]))
    return found | {"rest": found["resident"] - found["allocated"]}


@contextlib.contextmanager
def server(args: argparse.Namespace) -> Iterator[tuple[int, str]]:
    """The process and the URL of ``musespark serve``."""
    command = [sys.executable, "-m", "musespark", "serve", "--port", "0", *common_arguments(args)]
    command += ["--running", "64", "--waiting", str(args.clients)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            yield process.pid, "http" + line.rpartition(": http")[2].strip().removesuffix("/v1")
        finally:
            process.terminate()


def common_arguments(args: argparse.Namespace) -> list[str]:
    model = [] if args.model is None else ["--model", args.model]
    return model + ([] if args.threads is None else ["--threads", str(args.threads)])


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Milliseconds; with at least two figures."""
    cuts = statistics.quantiles(seconds, n=100)
    return {f"p{p}_ms": round(cuts[p - 1] * 1000, 2) for p in (50, 95, 99)}


def run(args: argparse.Namespace) -> dict[str, Any]:
    with contextlib.ExitStack() as held:
        alone = held.enter_context(
            musespark.load(args.model, threads=args.threads, prefix_cache_bytes=PREFIX_CACHE_BYTES)
        )
        vocab = alone.info.vocab
        pid, url = held.enter_context(server(args))
        with urllib.request.urlopen(f"{url}/v1/models") as answer:
            name = json.load(answer)["data"][0]["id"]
        asyncio.run(in_process(alone, wanted(_WARM, vocab, 1), _WARM))
        asyncio.run(over_loopback(url, name, wanted(_WARM, vocab, 1), _WARM))
        rounds = []
        for number in range(args.rounds):
            work = wanted(args.requests, vocab, SEED + number)
            if args.peer:
                work = as_text(alone, work)
            rounds.append(one_round(alone, url, name, work, args.clients))
        before = memory_of(pid, url)
        seen, memory = asyncio.run(under_load(pid, url, name, vocab, args))
        after = memory_of(pid, url)
    peer = {}
    if args.peer:
        seconds = asyncio.run(over_loopback(args.peer, args.peer_model, work, args.clients))
        tokens = sum(item.new for item in work)
        peer = {"model": args.peer_model, "tokens_per_s": round(tokens / seconds)}
    ratios = [one.served / one.in_process for one in rounds]
    return {
        "model": "nano" if args.model is None else Path(args.model).resolve().parent.name,
        "clients": args.clients,
        "requests": args.requests,
        "tokens_per_s_in_process": round(statistics.median(one.in_process for one in rounds)),
        "tokens_per_s_served": round(statistics.median(one.served for one in rounds)),
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(one, 3) for one in ratios],
        "clients_share": round(statistics.median(one.clients for one in rounds), 3),
        "peer": peer,
        "load_seconds": args.seconds,
        "statuses": {str(status): count for status, count in sorted(seen.statuses.items())},
        "left": seen.left,
        "first_piece": percentiles(seen.first),
        "between_pieces": percentiles(seen.between),
        "bytes_before": before,
        "bytes_under_load": memory,
        "bytes_after": after,
        "machine": machine(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--requests", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--gone", type=float, default=0.1)
    parser.add_argument("--slow", type=float, default=0.1)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--peer", metavar="URL", help="of another server, without /v1")
    parser.add_argument("--peer-model", default="peer", help="its name for the model")
    parser.add_argument("--save", action="store_true")
    args = parser.parse_args()
    report = run(args)
    print(json.dumps(report, indent=1))
    if args.save:
        save(f"serve_load_{report['model']}", report)


if __name__ == "__main__":
    main()
