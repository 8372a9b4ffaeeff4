"""Text in and out: tokenizer, chat template, and the channels of a model's turn.

tokenizer.py: ids and markers (markers.py finds them in text, long_texts.py encodes in pieces,
building.py makes the library's instances);
decoding.py: ids to text as they come; template.py: conversation to prompt, run in sandbox.py within
the budget of meter.py, with given.py, conversation.py and guard.py for what callers give and
template_globals.py for what templates get.

channels.py: a model's output to events (events.py), by the tables of protocols.py, which
detection.py chooses from. machine.py with machine_headers.py and machine_tags.py keeps a turn's
state, spelling.py finds tags that are no tokens. toolcalls.py: what a call is; syntaxes.py: the
ways to write one, in calls_json.py, calls_tagged.py and calls_python.py.
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
from musespark.text.detection import detect_protocol
from musespark.text.given import checked_messages, checked_tools
from musespark.text.protocols import PROTOCOLS, Protocol
from musespark.text.template import ChatTemplate, encode_chat, refuse_early
from musespark.text.tokenizer import Tokenizer
from musespark.text.toolcalls import ToolCall, ToolCallError

__all__ = [
    "ChatTemplate",
    "StreamDecoder",
    "Tokenizer",
    "checked_messages",
    "checked_tools",
    "encode_chat",
    "refuse_early",
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
