"""Prefill speed beside llama.cpp in the same run, as tokens/s and as a share of the dot peak.

    python benchmarks/prefill.py [--model MODEL_DIR] [--peer PYTHON] [--rounds 7] [--tokens 512]

As decode.py; the share is of the int8 dot-product peak (AMX not counted) measured in the same run,
over the operations of the linear layers (2 per weight and token, the head for the last token only).
"""

from __future__ import annotations

from speed import main

if __name__ == "__main__":
    main("prefill", default_tokens=512)
