"""A Hugging Face folder as OpenVINO's representation: SOURCE DESTINATION int4|int8.

int4: symmetric, groups of 128, embedding and head in int8, as optimum-intel makes it.
"""

from __future__ import annotations

import sys

from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig

KINDS = {"int4": {"bits": 4, "sym": True, "group_size": 128, "ratio": 1.0},
         "int8": {"bits": 8, "sym": True}}  # fmt: skip

source, destination, kind = sys.argv[1:4]
quantization = OVWeightQuantizationConfig(**KINDS[kind])
model = OVModelForCausalLM.from_pretrained(
    source, export=True, compile=False, quantization_config=quantization
)
model.save_pretrained(destination)
