"""Text in and out: tokenizer, chat template, and the channels of a model's answer."""

from musespark.text.decoding import StreamDecoder
from musespark.text.template import ChatTemplate, encode_chat
from musespark.text.tokenizer import Tokenizer

__all__ = ["ChatTemplate", "StreamDecoder", "Tokenizer", "encode_chat"]
