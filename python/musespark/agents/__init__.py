"""Tools that are Python functions, and the loop in which a model calls them."""

from musespark.agents.loop import aact, act
from musespark.agents.tools import Tool, tool

__all__ = ["Tool", "aact", "act", "tool"]
