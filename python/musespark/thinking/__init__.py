"""How long a model thinks: budgets, what ends a thought early, the words it is closed with."""

from musespark.thinking.policy import ThinkingPolicy

__all__ = ["ThinkingPolicy"]
