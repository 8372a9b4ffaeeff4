"""musespark: reasoning models that see, on an ordinary CPU.

    import musespark

    model = musespark.load()                      # Spark Nano, inside the package
    print(model.chat("What is 17 + 25?"))

The names below are imported when first used, so ``import musespark`` itself costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# Public name -> the module that defines it. A name of None in the second place is the module itself.
_LAZY: dict[str, tuple[str, str | None]] = {
    "Error": ("musespark.errors", "Error"),
    "UnsupportedModel": ("musespark.errors", "UnsupportedModel"),
    "CorruptFile": ("musespark.errors", "CorruptFile"),
    "InvalidRequest": ("musespark.errors", "InvalidRequest"),
    "ContextOverflow": ("musespark.errors", "ContextOverflow"),
    "Cancelled": ("musespark.errors", "Cancelled"),
    "DeadlineExceeded": ("musespark.errors", "DeadlineExceeded"),
    "MemoryBudgetExceeded": ("musespark.errors", "MemoryBudgetExceeded"),
    "errors": ("musespark.errors", None),
}

__all__ = ["__version__", *_LAZY]


def __getattr__(name: str) -> Any:
    try:
        module_name, attribute = _LAZY[name]
    except KeyError:
        raise AttributeError(f"module 'musespark' has no attribute {name!r}") from None
    module = importlib.import_module(module_name)
    value = module if attribute is None else getattr(module, attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_LAZY))
