"""Text in and out: tokenizer, chat template, and the channels of a model's turn.

tokenizer.py (ids and markers), decoding.py (ids to text as they come), template.py (conversation to
prompt) with sandbox.py, meter.py, template_globals.py, conversation.py and guard.py, channels.py (a model's
output to events) with protocols.py (families' tables) and toolcalls.py.
"""

from musespark.text.channels import (
    ChannelEnd,
    ChannelParser,
    ChannelStart,
    Event,
    ProtocolError,
    Text,
    Turn,
    TurnEnd,
)
from musespark.text.decoding import StreamDecoder
from musespark.text.protocols import PROTOCOLS, Protocol, detect_protocol
from musespark.text.template import ChatTemplate, encode_chat
from musespark.text.tokenizer import Tokenizer
from musespark.text.toolcalls import ToolCall, ToolCallError

__all__ = [
    "ChatTemplate",
    "StreamDecoder",
    "Tokenizer",
    "encode_chat",
    "PROTOCOLS",
    "Protocol",
    "detect_protocol",
    "ChannelParser",
    "Event",
    "ChannelStart",
    "Text",
    "ToolCall",
    "ToolCallError",
    "ChannelEnd",
    "TurnEnd",
    "ProtocolError",
    "Turn",
]
