"""Feeds mutated files to the safetensors, quantized, GGUF, projector and packed readers.

    python tests/fuzz/fuzz_readers.py 100000 [SEED [KIND]]    # needs the package on the path

Each must end in CorruptFile or UnsupportedModel, or in a load: then every byte that the load
offers is read, through NumPy and through the core's decoder, and the engine continues a prompt with
it, which the sanitizer build watches.
Anything else (another exception, a crash, more than 100 ms to open) is a finding: the file is kept
and its path printed.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
import mutate_gguf  # noqa: E402
from mutate import (  # noqa: E402
    HOSTILE_NUMBERS,
    at_place,
    flip,
    join,
    mutate_bytes,
    mutate_header,
    mutate_json,
    places,
    split,
)

from musespark import _core  # noqa: E402
from musespark.errors import CorruptFile, InvalidRequest, UnsupportedModel  # noqa: E402
from musespark.families.vision.mmproj import read_projector, tower_of  # noqa: E402
from musespark.families.vision.tensors import canonical_shapes  # noqa: E402
from musespark.weights import LoadedWeights, convert, open_model, pack, packed  # noqa: E402
from musespark.weights.gguf_source import GgufSource, open_gguf  # noqa: E402
from musespark.weights.mmproj import Mmproj  # noqa: E402
from musespark.weights.model_source import understand  # noqa: E402
from musespark.weights.safetensors import (  # noqa: E402
    SafetensorsFile,
    open_sharded,
)
from support.fuzz_gguf import valid_gguf, valid_projector  # noqa: E402
from support.model_folder import CASES, checkpoint_weights, to_bf16, write_folder  # noqa: E402
from support.quantized_models import (  # noqa: E402
    GPT_OSS,
    LLAMA,
    both_folders,
    gpt_oss_folders,
)

LIMIT_BYTES = 64 << 20  # of memory to open a file, besides the file itself
LIMIT_S = 0.1  # of processor time to open a file: a busy machine must not count as a finding
_HANG_S = 20.0  # of real time, for what waits instead of working
_ALLOWED = (CorruptFile, UnsupportedModel)
_CASE = CASES["muse_defaults"]
# Seven matrices, and "mixed" has six ways to store one: a second layer would show the same again.
_ONE_LAYER = {"num_hidden_layers": 1}
_QUANTIZED = ("gptq_act_order", "awq", "mixed")
_QWEN = "qwen2vl_merger"


def read_safetensors(path: Path) -> Callable[[], None]:
    """Opens a file; the result reads all it offers."""
    file = SafetensorsFile(path)

    def read() -> None:
        for name in file.entries:
            with contextlib.suppress(UnsupportedModel):
                file.array(name).astype(np.float32).sum()

    return read


def read_index(path: Path) -> Callable[[], None]:
    """Opens shards through their index."""
    checkpoint = open_sharded(path)

    def read() -> None:
        for name in checkpoint.file_of:
            with contextlib.suppress(UnsupportedModel):
                checkpoint.array(name).astype(np.float32).sum()

    return read


def read_gguf(path: Path) -> Callable[[], None]:
    """Opens a GGUF file and its parts."""
    checkpoint = open_gguf(path)

    def read() -> None:
        for key in checkpoint.metadata:
            str(checkpoint.metadata[key])
        with np.errstate(all="ignore"):
            for name in checkpoint.file_of:
                rows = np.atleast_2d(checkpoint.array(name))
                dtype = checkpoint.entry(name).dtype.lower()
                _core.decode(dtype, rows.reshape(-1, rows.shape[-1])).sum()

    return read


def read_gguf_model(path: Path) -> Callable[[], None]:
    """Understands a GGUF model, makes its tokenizer and packs it: one that is wrong may not be
    packed."""
    folder = understand(path)
    try:
        folder.made_assets()
    finally:
        folder.checkpoint.close()
    target = path.parent / "packed.out"

    def read() -> None:
        convert(path, target, quantize="auto", progress=False)
        read_packed(target)()

    return read


def read_projector_file(path: Path) -> Callable[[], None]:
    """Opens a projector file, packs its tower and runs it on an image."""
    checkpoint = open_gguf(path)
    shapes = {name: checkpoint.entry(name).shape for name in checkpoint.file_of}
    projector = read_projector(checkpoint.metadata, shapes)
    tower = tower_of(projector, projector.around({"tie_word_embeddings": True}))
    source = GgufSource(checkpoint, tower.interleaved, tower.remade)
    parts = tower.mapping.sources
    planned = pack.plan(source, canonical_shapes(tower.spec), parts, "q8")

    def read() -> None:
        packed_now = {p.name: pack.pack_one(source, parts[p.name], p, 1, quick=True)
                      for p in planned}  # fmt: skip
        side = max(tower.spec.positions.side, tower.spec.merge)
        if side <= 64:
            core = _core.VisionTower(asdict(tower.spec), packed_now, threads=1)
            patches = np.ones((side * side, tower.spec.patch_dim), np.float32)
            core.encode(patches, [(1, side, side)], stopped=bool)

    return read


def read_pair(path: Path) -> Callable[[], None]:
    """Understands the model with a mutated projector beside it, and packs both."""
    model, target = path.with_name("m.gguf"), path.parent / "packed.out"
    try:
        folder = understand(model, mmproj=Mmproj(path, named=True))
    except InvalidRequest as error:
        assert "another model" in str(error), error
        raise UnsupportedModel(str(error)) from None
    folder.made_assets()
    folder.checkpoint.close()

    def read() -> None:
        convert(model, target, quantize="q8", progress=False, mmproj=path)
        read_packed(target)()

    return read


def read_folder(path: Path) -> Callable[[], None]:
    """Opens the folder of a mutated file and packs it: a source that is wrong may not be packed."""
    target = path.parent / "packed.out"

    def read() -> None:
        convert(path.parent, target, quantize="q4", progress=False)
        read_packed(target)()

    return read


def read_quantized(path: Path) -> Callable[[], None]:
    """Understands the folder of a mutated file, whose matrices are quantized, and packs it."""
    folder = understand(path.parent)
    folder.plan(folder.recipe("auto"))
    folder.checkpoint.close()
    target = path.parent / "packed.out"

    def read() -> None:
        convert(path.parent, target, quantize="auto", progress=False)
        read_packed(target)()

    return read


def read_packed(path: Path) -> Callable[[], None]:
    """Opens a packed file."""
    model = open_model(path, progress=False)

    def read() -> None:
        with np.errstate(all="ignore"):
            for fmt, rows, cols, data in model.tensors.values():
                if rows == 1:
                    np.asarray(data).sum()
                else:
                    _core.unpack(fmt, data, rows, cols).sum()
        model.verify(progress=False)
        with contextlib.suppress(InvalidRequest):  # a spec with a context shorter than the request
            run(model)

    return read


def run(model: LoadedWeights) -> None:
    """Continues three tokens by three. Weights that are damaged may end it as bad logits."""
    core = _core.Engine(
        asdict(model.spec),
        model.tensors,
        threads=1,
        context=min(16, model.spec.max_context),
        kv="kv8"
        if all(layer.attention.head_dim % 16 == 0 for layer in model.spec.layers)
        else "f32",
        memory_budget=64 << 20,
    )
    tokens = np.zeros(3, np.int32)
    core.submit(tokens, params={"max_new_tokens": 3})
    while core.has_work():
        core.run_until(0.1)


def mutate_packed(rng: random.Random, data: bytes) -> bytes:
    """The packed header changed and signed again, as somebody with intent would."""
    header, body = split(data)
    metadata = header.pop("__metadata__")
    head = json.loads(metadata["musespark"])
    mutate_json(rng, head if rng.random() < 0.8 else header)
    try:
        return packed._encode(head, header) + body
    except (ValueError, TypeError, KeyError):  # the mutation is no header at all
        return join({"__metadata__": metadata} | header, body)


def mutate_spec(rng: random.Random, data: bytes) -> bytes:
    """One number of the spec changed, signed again; or payload bytes flipped."""
    if rng.random() < 0.3:
        return flip(rng, data, 8 + int.from_bytes(data[:8], "little"), len(data))
    header, body = split(data)
    head = json.loads(header.pop("__metadata__")["musespark"])
    *parents, last = rng.choice(
        [p for p in places(head["spec"], 64) if type(at_place(head["spec"], p)) in (int, float)]
    )
    at_place(head["spec"], tuple(parents))[last] = rng.choice([*HOSTILE_NUMBERS, 1e-30, 3.5, 5])
    return packed._encode(head, header) + body


def mutate_index(rng: random.Random, data: bytes) -> bytes:
    """An index with other names or shards, or damaged."""
    if rng.random() < 0.3:
        return flip(rng, data, 0, len(data))
    values = json.loads(data)
    mutate_json(rng, values)
    return json.dumps(values).encode()


def mutate_data(rng: random.Random, data: bytes) -> bytes:
    """Bytes of tensors flipped, most of them at a tensor's beginning."""
    header, body = split(data)
    begin = len(data) - len(body)
    offsets = [v["data_offsets"][0] for k, v in header.items() if k != "__metadata__"]
    low = begin + (rng.choice(offsets) if rng.random() < 0.7 else 0)
    return flip(rng, data, low, low + 256 if rng.random() < 0.7 else len(data))


def mutate_quantization(rng: random.Random, data: bytes) -> bytes:
    """A config.json that says something else of how its matrices are quantized."""
    config = json.loads(data)
    mutate_json(rng, config["quantization_config"])
    return json.dumps(config).encode()


def best_of_three(
    reader: Callable[[Path], Callable[[], None]], path: Path
) -> tuple[Callable[[], None] | Exception, float]:
    """How opening ended, and its processor time: repeated where it is beyond the limit, for what
    runs on the core's other thread makes it look longer."""
    times: list[float] = []
    while not times or (min(times) > LIMIT_S and len(times) < 3):
        start = time.thread_time()
        try:
            with limited_memory(path):
                ended: Callable[[], None] | Exception = reader(path)
        except _ALLOWED as error:
            ended = error
        times.append(time.thread_time() - start)
    return ended, min(times)


@contextlib.contextmanager
def limited_memory(path: Path) -> Iterator[None]:
    """Opening may take the file's size and LIMIT_BYTES; more ends as MemoryError, a finding.

    A sanitizer's allocator reserves address space of its own: no limit there.
    """
    before = resource.getrlimit(resource.RLIMIT_AS)
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    if not os.environ.get("MUSESPARK_TEST_SANITIZED"):
        most = in_use + path.stat().st_size + LIMIT_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


# What is opened how, by the kind of file.
KINDS = {
    "safetensors": (read_safetensors, read_index, read_folder, read_packed),
    "gguf": (read_gguf, read_gguf_model),
    "quantized": (read_quantized,),
    "projector": (read_projector_file, read_pair),
}


class Fuzzer:
    """Seeds (valid files) in a folder of its own, and the loop over their mutations."""

    def __init__(self, folder: Path, seed: int, kind: str | None = None):
        self.folder, self.seed = folder, seed
        weights = checkpoint_weights(_CASE, 11)
        half = {name: to_bf16(value) for name, value in weights.items()}
        one = write_folder(folder / "one", _CASE.config, half) / "model.safetensors"
        index = write_folder(folder / "many", _CASE.config, weights, shards=3)
        index /= "model.safetensors.index.json"
        packs = {q: folder / f"{q}.packed" for q in ("q4", "none")}
        for quantize, path in packs.items():
            convert(one.parent, path, quantize=quantize, progress=False)
        quantized = [
            *(both_folders(folder / kind, kind, LLAMA | _ONE_LAYER)[0] for kind in _QUANTIZED),
            gpt_oss_folders(folder / "gpt_oss", GPT_OSS | _ONE_LAYER)[0],
        ]
        gguf = valid_gguf(folder / "m.gguf")
        biased = valid_gguf(folder / "biases.gguf", biases=True)
        pieces = valid_gguf(folder / "pieces.gguf", vocabulary="llama")
        broken = [mutate_gguf.mutate_numbers, mutate_gguf.mutate_bytes, mutate_gguf.mutate_nested]
        clip, qwen = (
            valid_projector(folder / f"mmproj-{kind}.gguf", kind) for kind in ("mlp", _QWEN)
        )
        either = [mutate_bytes, mutate_header]
        self.targets = [
            (one, read_safetensors, either),
            (one, read_folder, either),
            (index, read_index, [mutate_index]),
            (gguf, read_gguf, [*broken, mutate_gguf.mutate_numbers]),
            (gguf, read_gguf_model, [*broken, mutate_gguf.mutate_numbers]),
            (biased, read_gguf_model, [*broken, mutate_gguf.mutate_numbers]),
            (gguf, read_gguf_model, [mutate_gguf.mutate_values]),
            (pieces, read_gguf_model, [*broken, mutate_gguf.mutate_values]),
            (clip, read_projector_file, [*broken, mutate_gguf.mutate_numbers]),
            (qwen, read_projector_file, [*broken, *[mutate_gguf.mutate_numbers] * 2]),
            (clip, read_pair, [*broken, mutate_gguf.mutate_numbers, mutate_gguf.mutate_values]),
            (packs["q4"], read_packed, [*either, mutate_packed, mutate_spec, mutate_spec]),
            (packs["none"], read_packed, [*either, mutate_packed, mutate_spec]),
        ]
        for one in quantized:
            path = one / "model.safetensors"
            self.targets.append((path, read_quantized, [*either, mutate_data]))
        for one in quantized[:3]:
            self.targets.append((one / "config.json", read_quantized, [mutate_quantization]))
        if kind is not None:
            self.targets = [target for target in self.targets if target[1] in KINDS[kind]]
        self.valid = {path: path.read_bytes() for path, _, _ in self.targets}

    def case(self, number: int) -> str:
        """Runs mutation `number`; the name of how it ended. AssertionError for a finding."""
        rng = random.Random(f"{self.seed}/{number}")
        path, reader, mutations = rng.choice(self.targets)
        data = rng.choice(mutations)(rng, self.valid[path])
        path.write_bytes(data)
        try:
            begin = time.monotonic()
            read, took = best_of_three(reader, path)
            waited = time.monotonic() - begin
            assert took <= LIMIT_S, f"mutation {number}: {1000 * took:.0f} ms to open {path}"
            assert waited <= _HANG_S, f"mutation {number}: {waited:.0f} s to open {path}"
            if isinstance(read, Exception):
                raise read
            read()
            ended = "loaded"
        except _ALLOWED as error:
            ended = type(error).__name__
            assert str(error), f"mutation {number}: an error without a message"
        path.write_bytes(self.valid[path])
        return f"{reader.__name__} {ended}"


def fuzz(
    count: int, seed: int, folder: Path, kind: str | None = None, first: int = 0
) -> Counter[str]:
    """Runs `count` mutations, of files of one `kind` or of all, and counts how they ended."""
    fuzzer = Fuzzer(folder, seed, kind)
    ends: Counter[str] = Counter()
    for number in range(first, first + count):
        ends[fuzzer.case(number)] += 1
    return ends


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    kind = sys.argv[3] if len(sys.argv) > 3 else None
    folder = Path(tempfile.mkdtemp(prefix="musespark-fuzz-"))
    begin = time.monotonic()
    ends = fuzz(count, seed, folder, kind)
    for name, times in sorted(ends.items()):
        print(f"{times:8d}  {name}")
    print(f"{count} mutations, seed {seed}, {time.monotonic() - begin:.0f} s: no finding")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
