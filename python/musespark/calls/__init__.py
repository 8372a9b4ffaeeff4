"""Turns in which every tool call parses: the protocols' ways of writing calls, as grammars."""

from musespark.calls.offer import TOOL_CHOICES, Offer, offer_of
from musespark.calls.turn import turn_grammar

__all__ = ["TOOL_CHOICES", "Offer", "offer_of", "turn_grammar"]
