"""musespark: reasoning models on an ordinary CPU, with visible thoughts.

    import musespark

    model = musespark.load()                      # Spark Nano, inside the package
    answer = model.chat("What is 17 + 25?")
    print(answer.reasoning, answer.content, sep="\n")

The names below are imported when first used, so ``import musespark`` itself costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# Module -> the public names it defines.
_DEFINED_IN = {
    "loading": ("load", "convert"),
    "model": ("Model",),
    "session": ("Session",),
    "adapters": ("Adapter", "Steering"),
    "steering": ("ControlVector",),
    "machine": ("doctor",),
    "memory": ("estimate", "inspect", "Estimate"),
    "weights": ("WriteFailed",),
    "text": ("Tokenizer", "ChatTemplate"),
    "results": (
        "Completion",
        "ChatResult",
        "Delta",
        "Usage",
        "Timings",
        "ThoughtCache",
        "ThoughtSignals",
        "TrialAnswer",
        "ImageUse",
        "ImageAttention",
        "ModelInfo",
    ),
    "vision.embedding": ("ImageEmbedding",),
    "vision.loop": ("Looked",),
    "thinking": ("Stopper", "ThinkingPolicy"),
    "thinking.xray": ("ThoughtXray",),
    "contemplating": (
        "ContemplatingOptions",
        "ContemplationResult",
        "AgentResult",
        "AgentDelta",
        "RoundResult",
    ),
    "vision.trace": ("VisualTrace",),
    "agents.tools": ("Tool", "tool"),
    "agents.events": ("ToolUse",),
    "agents.result": ("ActResult",),
    "errors": (
        "Error",
        "UnsupportedModel",
        "CorruptFile",
        "InvalidRequest",
        "ContextOverflow",
        "WrongPassphrase",
        "MissingLibrary",
        "SandboxUnavailable",
        "ToolServerFailed",
        "Cancelled",
        "DeadlineExceeded",
        "HubUnavailable",
        "AccessDenied",
        "MemoryBudgetExceeded",
        "SavedWithoutCache",
    ),
}
_MODULE_OF = {name: module for module, names in _DEFINED_IN.items() for name in names}

__all__ = ["__version__", *_MODULE_OF]


def __getattr__(name: str) -> Any:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module 'musespark' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"musespark.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
