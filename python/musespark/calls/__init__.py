"""Turns in which every tool call parses: the protocols' ways of writing calls, as grammars."""

from musespark.calls.turn import TOOL_CHOICES, check_choice, turn_grammar

__all__ = ["TOOL_CHOICES", "check_choice", "turn_grammar"]
