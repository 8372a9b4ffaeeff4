"""llama.cpp behind a pipe: loads one GGUF file and times what it is asked to.

    PEER_PYTHON benchmarks/llama_cpp_worker.py quantize F16_GGUF OUT_GGUF q4_0|q8_0
    PEER_PYTHON benchmarks/llama_cpp_worker.py serve MODEL_GGUF THREADS
    PEER_PYTHON benchmarks/llama_cpp_worker.py load MODEL_GGUF THREADS

Needs only llama-cpp-python, in an environment of its own. ``serve`` answers each line
``prefill N`` or ``decode N`` on standard input with one JSON line of seconds. Sampling is no part
of the time; flash attention is on and ubatch is 512. ``load`` prints the seconds from the file to
the first logits, and the most memory that was resident.
"""

from __future__ import annotations

import ctypes
import json
import resource
import sys
import time

import llama_cpp as lib


@lib.llama_log_callback
def quiet(level, text, data):
    pass


def quantize(source: str, destination: str, kind: str) -> None:
    params = lib.llama_model_quantize_default_params()
    params.ftype = {"q4_0": 2, "q8_0": 7}[kind]
    params.nthread = 2
    status = lib.llama_model_quantize(source.encode(), destination.encode(), ctypes.byref(params))
    if status:
        sys.exit(f"llama_model_quantize: status {status}")


class Worker:
    def __init__(self, path: str, threads: int):
        lib.llama_log_set(quiet, ctypes.c_void_p(0))
        lib.llama_backend_init()
        params = lib.llama_model_default_params()
        params.n_gpu_layers = 0
        self.model = lib.llama_model_load_from_file(path.encode(), params)
        if not self.model:
            sys.exit(f"llama.cpp cannot load {path}")
        self.vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self.model))
        params = lib.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = 4096, 512, 512
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = 1
        self.context = lib.llama_init_from_model(self.model, params)
        if not self.context:
            sys.exit("llama.cpp cannot make a context")
        self.batch = lib.llama_batch_init(512, 0, 1)
        self.evaluate(1, 0)
        self.clear()

    def clear(self) -> None:
        lib.llama_memory_clear(lib.llama_get_memory(self.context), True)

    def evaluate(self, count: int, past: int) -> None:
        self.batch.n_tokens = count
        for i in range(count):
            self.batch.token[i] = (7 + 13 * (past + i)) % self.vocab
            self.batch.pos[i] = past + i
            self.batch.n_seq_id[i] = 1
            self.batch.seq_id[i][0] = 0
            self.batch.logits[i] = i == count - 1
        status = lib.llama_decode(self.context, self.batch)
        if status:
            sys.exit(f"llama_decode: status {status}")
        lib.llama_synchronize(self.context)

    def time(self, test: str, count: int) -> float:
        self.clear()
        if test == "decode":
            self.evaluate(1, 0)
        start = time.perf_counter()
        if test == "prefill":
            for past in range(0, count, 512):
                self.evaluate(min(512, count - past), past)
        else:
            for i in range(count):
                self.evaluate(1, 1 + i)
        return time.perf_counter() - start


def main() -> None:
    if sys.argv[1] == "quantize":
        quantize(*sys.argv[2:5])
        return
    start = time.perf_counter()
    worker = Worker(sys.argv[2], int(sys.argv[3]))
    if sys.argv[1] == "load":
        seconds = time.perf_counter() - start
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"seconds": seconds, "resident": resident, "version": lib.__version__}))
        return
    info = {"version": lib.__version__, "system": lib.llama_print_system_info().decode()}
    print(json.dumps(info), flush=True)
    for line in sys.stdin:
        test, count = line.split()
        print(json.dumps({"seconds": worker.time(test, int(count))}), flush=True)


if __name__ == "__main__":
    main()
