"""Texts on which pre-tokenizers differ, shared by make_pretokenizers.py and the test."""

TEXTS = [
    "Hello, world!",
    "  two  spaces ",
    "a\n\n\nb \n c\t\td",
    "x = y+1;\r\n\tz",
    "it's I'LL we've",
    "'s 'T 'reX d'accord",
    "1 12 123 1234567",
    "3.14 v2.0.1",
    "2024-05-06T07:08",
    "½ ² ٣٤٥ 一二三",
    "camelCase HTTPServer",
    "Straße ÉCOLE naïve",
    "ǅ ǆ ʰa",
    "e\u0301a\u0308 o\u0308",
    "नमस्ते दुनिया",
    "สวัสดี ชาวโลก",
    "你好，世界。3个",
    "こんにちは カタカナ",
    "안녕 하세요 ㅋㅋ",
    "привет Мир їжак",
    "مرحبا، عالم ١٢",
    "🦙 🙂👍🏽 ✅",
    "$5 + €6 = £7 <=> ^~|`",
    "[x](y) {z} \"q\" 'r'",
    "foo_bar#baz @qux /a/b",
    "…—“” «»",
    "!!! ??? ...",
    "a/b// c\\d\n/e",
    "\u00a0nbsp\u2003em\u3000x",
    "tail   \n",
    "end\n  ",
    "\n \n  \n",
    "        eight",
    "(a|b),c.d",
    "\u1100\u1161 ㄅㄆ 〇々",
    "K ſ 'ſ don'T",
    "A\u200db \u200bzero",
    "12345 6789012",
    "\r\r\n\n\r",
    "_under __dunder__",
    "{};\n//b\n/*c*/\r\n/",
]

# Where llama.cpp only approximates the pattern of the model's own tokenizer.json: its engine has no
# letter cases and takes combining marks for no letters. There the words are these.
_CASES = {
    "'s 'T 'reX d'accord": ["'s", " '", "T", " '", "re", "X", " d", "'accord"],
    "camelCase HTTPServer": ["camel", "Case", " HTTPServer"],
    "Straße ÉCOLE naïve": ["Straße", " ÉCOLE", " naïve"],
    "e\u0301a\u0308 o\u0308": ["e\u0301a\u0308", " o\u0308"],
    "नमस्ते दुनिया": ["नमस्ते", " दुनिया"],
    "สวัสดี ชาวโลก": ["สวัสดี", " ชาวโลก"],
}
_HAN = {"\u1100\u1161 ㄅㄆ 〇々": ["\u1100\u1161", " ㄅㄆ", " ", "〇々"]}
_SPACES = {"\u00a0nbsp\u2003em\u3000x": ["\u00a0nbsp", "\u2003", "em", "\u3000", "x"]}
OWN_WORDS: dict[str, dict[str, list[str]]] = {
    **dict.fromkeys(
        ("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2", "tekken", "tiny_aya"), _CASES
    ),
    "cohere2moe": _CASES,
    "youtu": _CASES,
    "kimi-k2": _CASES | _HAN,
    "deepseek-llm": _SPACES,
    "deepseek-coder": _SPACES,
}
