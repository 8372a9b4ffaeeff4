"""Decode speed beside llama.cpp in the same run, as tokens/s and as a share of read bandwidth.

    python benchmarks/decode.py [--model MODEL_DIR] [--peer PEER_PYTHON] [--rounds 7] [--tokens 64]

MODEL_DIR is what make_model.py wrote; PEER_PYTHON is an interpreter with llama-cpp-python; both are
made under build/bench where they are not given. Rounds
alternate ours and theirs; the machine's read bandwidth is measured before and after each round, and
a round in which it moved by more than 5% is discarded. Sampling is excluded on their side; ours
holds the greedy choice.
"""

from __future__ import annotations

from speed import main

if __name__ == "__main__":
    main("decode", default_tokens=64)
