"""How long a model thinks: budgets, what ends a thought early, the words it is closed with."""

from musespark.thinking.policy import ThinkingPolicy
from musespark.thinking.stopper import Stopper

__all__ = ["Stopper", "ThinkingPolicy"]
