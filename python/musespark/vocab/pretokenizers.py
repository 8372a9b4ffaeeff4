"""How byte-level BPE models cut a text into words before merging, by ``tokenizer.ggml.pre``.

The names are those of llama.cpp (``src/llama-vocab.cpp``); the patterns are those of the models'
own tokenizer.json files. Patterns of one entry apply one after the other: each cuts the pieces
that the ones before left, into its matches and what is between them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PreTokenizer:
    """``ignore_merges``: a word that is a token is taken whole. ``add_bos``, ``add_sep``: what is
    put around a text where the file does not say."""

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False
    add_sep: bool = False


_SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_BREAKS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"


def _llama(digits: str) -> str:
    return rf"{_SUFFIX}|{_WORD}|{digits}|{_SIGNS}|{_BREAKS}"


def _cased(suffix: str, digits: str, exclude: str = "", signs: str = r"[\r\n/]*") -> str:
    """Words cut where a capital begins, as GPT-4o does it."""
    upper = rf"\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}\p{{M}}{exclude}"
    lower = rf"\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}{exclude}"
    lead = r"[^\r\n\p{L}\p{N}]?"
    return (
        rf"{lead}[{upper}]*[{lower}]+{suffix}|{lead}[{upper}]+[{lower}]*{suffix}|{digits}|"
        rf" ?[^\s\p{{L}}\p{{N}}]+{signs}|{_BREAKS}"
    )


_LLAMA3, _QWEN2 = _llama(r"\p{N}{1,3}"), _llama(r"\p{N}")
_QWEN35 = (
    rf"{_SUFFIX}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}|"
    rf" ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_BREAKS}"
)
_GPT4O = _cased(f"{_SUFFIX}?", r"\p{N}{1,3}")
_PUNCTUATION = r"[\p{P}$+<=>^~|`]+"
_SENTENCE = r" ?[^(\s|.,!?…。，、।۔،)]+"
# Escapes where a letter's canonical form is another one.
_CASED_LETTERS = (
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕ"
    "ἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\u1f7dᾀ-ᾴᾶ-ᾼ\u1fbeῂ-ῄῆ-ῌῐ-\u1fd3ῖ-\u1fdbῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ\u212a-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳ"
    "Ꙁ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
)
_DEEPSEEK_LLM = (
    r"[\r\n]",
    rf"\s?[{_CASED_LETTERS}]+",
    r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
    r"\s+$",
    r"[一-龥ࠀ-一가-퟿]+",
    r"\p{N}+",
)
_DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-퟿]+", r"\p{N}")
_DEEPSEEK3_WORDS = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"
    rf" ?[\p{{P}}\p{{S}}]+[\r\n]*|{_BREAKS}"
)
_DEEPSEEK3 = (r"\p{N}{1,3}", r"[一-龥぀-ゟ゠-ヿ]+", _DEEPSEEK3_WORDS)
_JAIS2 = (
    rf"{_SUFFIX}|{_WORD}|\p{{N}}{{1,3}}|{_SIGNS}|\s*[\r\n]+|"
    + "".join(rf"\s{{{n}}}(?!\S)|" for n in (512, 256, 128, 64, 32, 16, 8, 4))
    + r"\s{1,2}(?!\S)|\s{1}"
)
_KIMI_K2 = r"\p{Han}+|" + _cased(f"{_SUFFIX}?", r"\p{N}{1,3}", r"&&[^\p{Han}]", r"[\r\n]*")
_YOUTU = (
    r"[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥぀-ゟ゠-ヿ]+",
    _cased(f"{_SUFFIX}?", r"\p{N}"),
)
_BAILING = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|"
    r"\s*[\r\n]|\s+(?!\S)|\s+"
)
_SEED_CODER = rf"{_SUFFIX}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_BREAKS}"
_EXAONE_MOE = (
    rf"{_SUFFIX}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
)

_default = PreTokenizer((r"[\p{P}$+<=>^~|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"))
_gpt2, _gpt2_sep = PreTokenizer((_GPT2,)), PreTokenizer((_GPT2,), add_sep=True)
_digits = PreTokenizer((r"\p{N}", _GPT2))
_llama3 = PreTokenizer((_LLAMA3,), ignore_merges=True, add_bos=True)
_llama3_merging = PreTokenizer((_LLAMA3,))
_qwen2, _gpt4o = PreTokenizer((_QWEN2,)), PreTokenizer((_GPT4O,))
_sentence, _deepseek3 = PreTokenizer((_SENTENCE,)), PreTokenizer(_DEEPSEEK3)
_bailing = PreTokenizer((_BAILING,))
_tiny_aya = PreTokenizer((r"\d{1,3}(?=(?:\d{3})*\b)", _GPT4O))

PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    "default": _default,
    "llama3": _llama3,
    "llama-v3": _llama3,
    "llama-bpe": _llama3,
    "falcon3": _llama3,
    "falcon-h1": _llama3,
    "pixtral": _llama3,
    "midm-2.0": _llama3,
    "lfm2": _llama3,
    "jina-v5-nano": _llama3,
    "dbrx": _llama3_merging,
    "smaug-bpe": _llama3_merging,
    "glm4": _llama3_merging,
    "chatglm-bpe": _llama3_merging,
    "minicpm5": PreTokenizer((r"\p{N}{1,3}", _llama(r"\p{N}+")), ignore_merges=True),
    "gpt-2": _gpt2,
    "phi-2": _gpt2,
    "mpt": _gpt2,
    "olmo": _gpt2,
    "jais": _gpt2,
    "trillion": _gpt2,
    "granite-docling": _gpt2,
    "gigachat": _gpt2,
    "a.x-4.0": _gpt2,
    "mellum": _gpt2,
    "modern-bert": _gpt2,
    "exaone4": _gpt2,
    "jina-es": _gpt2,
    "jina-de": _gpt2,
    "jina-v2-es": _gpt2,
    "jina-v2-de": _gpt2,
    "jina-v1-en": _gpt2_sep,
    "jina-v2-code": _gpt2_sep,
    "roberta-bpe": _gpt2_sep,
    "starcoder": _digits,
    "refact": _digits,
    "command-r": _digits,
    "smollm": _digits,
    "codeshell": _digits,
    "exaone": _digits,
    "minerva-7b": _digits,
    "mellum2": _digits,
    "falcon": PreTokenizer((_PUNCTUATION, _GPT2, "[0-9][0-9][0-9]")),
    "qwen2": _qwen2,
    "deepseek-r1-qwen": _qwen2,
    "stablelm2": _qwen2,
    "hunyuan": _qwen2,
    "megrez": _qwen2,
    "grok-2": _qwen2,
    "solar-open": _qwen2,
    "kormo": _qwen2,
    "f2llmv2": _qwen2,
    "qwen35": PreTokenizer((_QWEN35,)),
    "ufakzeka": PreTokenizer((rf"{_WORD}|\p{{N}}|{_SIGNS}|{_BREAKS}",)),
    "laguna": PreTokenizer((r"[^\n]+|[\n]+", _QWEN2)),
    "gpt-4o": _gpt4o,
    "llama4": _gpt4o,
    "kanana2": _gpt4o,
    "talkie": _gpt4o,
    "minimax-m2": _gpt4o,
    "tekken": PreTokenizer((_cased("", r"\p{N}"),), ignore_merges=True, add_bos=True),
    "tiny_aya": _tiny_aya,
    "cohere2moe": _tiny_aya,
    "youtu": PreTokenizer(_YOUTU, ignore_merges=True),
    "kimi-k2": PreTokenizer((_KIMI_K2,)),
    "deepseek-llm": PreTokenizer(_DEEPSEEK_LLM),
    "deepseek-coder": PreTokenizer(_DEEPSEEK_CODER),
    "deepseek-v3": _deepseek3,
    "hunyuan-dense": _deepseek3,
    "joyai-llm": _deepseek3,
    "hy_v4": _deepseek3,
    "bloom": _sentence,
    "poro-chat": _sentence,
    "gpt3-finnish": _sentence,
    "viking": PreTokenizer((_SENTENCE, r"\p{N}")),
    "jais-2": PreTokenizer((_JAIS2,)),
    "bailingmoe": _bailing,
    "bailingmoe2": _bailing,
    "llada-moe": _bailing,
    "seed-coder": PreTokenizer((_SEED_CODER,)),
    "exaone-moe": PreTokenizer((_EXAONE_MOE,)),
    "superbpe": PreTokenizer((r"\p{N}+", r"(?=(\d{3})+(?!\d))")),
}
