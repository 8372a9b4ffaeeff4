"""The vocabulary inside a GGUF file as the files a Hugging Face model folder has.

``tokenizer_assets(metadata)`` turns the ``tokenizer.*`` keys of a GGUF file into tokenizer.json,
tokenizer_config.json, generation_config.json and the chat template. It needs no other part of the
package and no tokenizer library: what it gives is data, loaded by ``musespark.text.Tokenizer`` and
kept by ``convert`` beside the weights. outline.py shortens a tokenizer.json of any source.

keys.py reads metadata that nobody vouches for; vocabulary.py what all kinds share; spm.py, bpe.py
(with pretokenizers.py) and wordpiece.py are the kinds; assets.py puts the files together;
ends.py knows what ends a turn.
"""

from musespark.vocab.assets import (
    TOKENIZER_MODELS,
    sampling_notes,
    tokenizer_assets,
    tokens_missing,
)
from musespark.vocab.ends import turn_ends
from musespark.vocab.outline import OUTLINE, Outline, make_outline, read_outline, rest_of
from musespark.vocab.pretokenizers import PRE_TOKENIZERS

__all__ = [
    "OUTLINE",
    "PRE_TOKENIZERS",
    "TOKENIZER_MODELS",
    "Outline",
    "make_outline",
    "read_outline",
    "rest_of",
    "sampling_notes",
    "tokenizer_assets",
    "tokens_missing",
    "turn_ends",
]
