"""Tokenizer: markers typed in text stay text, streams equal whole decoding, for every kind."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from musespark.errors import CorruptFile, InvalidRequest
from musespark.text import ChatTemplate, Tokenizer, encode_chat
from musespark.text import tokenizer as tokenizer_module
from musespark.text.tokenizer import is_marker
from support.tokenizers_zoo import MARKERS, TAGS, ZOO

NANO = Path(__file__).parents[2] / "python" / "musespark" / "nano"
KINDS = [*sorted(ZOO), "nano"]
# Tokenizers whose text the byte-fallback rule can change when bytes are not UTF-8.
_FALLBACK = ("spm_first", "spm_always", "spm_never", "spm_legacy")


@cache
def pair(kind: str) -> tuple[tokenizers.Tokenizer, Tokenizer]:
    """The library's tokenizer and ours of the same file."""
    if kind == "nano":
        return tokenizers.Tokenizer.from_file(str(NANO / "tokenizer.json")), Tokenizer.load(NANO)
    theirs = ZOO[kind]()
    return theirs, Tokenizer.from_json(theirs.to_str())


_FRAGMENTS = [*MARKERS, *TAGS, "<|l|>", "<|r|>", "<|n|>", "<|w|>", "<unk>", "[CLS]", "[UNK]"]
_FRAGMENTS += [
    "<",
    "|",
    ">",
    "</",
    "s>",
    "<|e",
    "ot|>",
    "＜s＞",
    "<S>",
    "▁",
    " ",
    "  ",
    "\n\n",
    "é",
    "你",
]
_FRAGMENTS += [
    "hello",
    "the",
    "🙂",
    "\u0301",
    "\x00",
    "<0x41>",
    "</w>",
    "##",
    "<|reserved_1|>",
    "\U000f0000",
]
_FRAGMENTS += ['{"name": "', " to=self", "<atem:function_calls>\n", "<|message|>"]
texts = st.lists(st.one_of(st.sampled_from(_FRAGMENTS), st.text(max_size=6)), max_size=10).map(
    "".join
)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(text=texts)
def test_typed_text_never_becomes_a_marker(kind: str, text: str) -> None:
    _, ours = pair(kind)
    unknown = {ours.find(t) for t in ("<unk>", "[UNK]")} | (
        {ours.find("<s>")} if kind == "clip" else set()
    )
    forbidden = set(ours.markers.values()) - unknown
    assert forbidden.isdisjoint(ours.encode(text))


@pytest.mark.parametrize("kind", KINDS)
def test_each_marker_as_text_and_as_marker(kind: str) -> None:
    _, ours = pair(kind)
    assert len(ours.markers) >= 7
    for marker, token_id in ours.markers.items():
        typed = ours.encode(f"a{marker}b {marker} c")
        assert token_id not in typed or marker in ("<unk>", "[UNK]", "<s>"), marker
        written = ours.encode_pieces([("a ", False), (marker, True), (" " + marker, False)])
        assert written.count(token_id) >= 1, marker


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=50, deadline=None)
@given(text=texts, add_special=st.booleans())
def test_parsed_text_equals_the_library(kind: str, text: str, add_special: bool) -> None:
    theirs, ours = pair(kind)
    expected = theirs.encode(text, add_special_tokens=add_special).ids
    assert ours.encode(text, add_special=add_special, parse_special=True) == expected


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in ("stripping",)])
@settings(max_examples=50, deadline=None)
@given(text=texts, add_special=st.booleans())
def test_pieces_equal_the_library(kind: str, text: str, add_special: bool) -> None:
    """Text whose markers are all meant gives the library's ids, merges and spaces included."""
    theirs, ours = pair(kind)
    expected = theirs.encode(text, add_special_tokens=add_special).ids
    assert ours.encode_pieces(ours.split_markers(text), add_special=add_special) == expected


@pytest.mark.parametrize(
    "text", ["a <|l|> b", "a <|r|>  b", "a<|n|>b", "x <|w|> y", "  <|l|>", "<|r|>\n c"]
)
def test_stripping_markers_in_pieces(text: str) -> None:
    theirs, ours = pair("stripping")
    assert (
        ours.encode_pieces(ours.split_markers(text))
        == theirs.encode(text, add_special_tokens=False).ids
    )


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(data=st.data(), skip=st.booleans(), continuing=st.booleans())
def test_stream_equals_decode(kind: str, data: st.DataObject, skip: bool, continuing: bool) -> None:
    _, ours = pair(kind)
    known = sorted(set(pair(kind)[0].get_vocab().values()))
    ids = data.draw(st.lists(st.sampled_from(known), max_size=30))
    stream = ours.stream(skip_special=skip, continuing=continuing)
    parts = [stream.push(i) for i in ids]
    whole = "".join(parts) + stream.flush()
    assert whole == ours.decode(ids, skip_special=skip, continuing=continuing)
    assert stream.flush() == ""
    in_runs = ours.stream(skip_special=skip, continuing=continuing)
    cut = data.draw(st.integers(0, 30))
    parts = [in_runs.push_run(ids[:cut]), in_runs.push_run(ids[cut:]), in_runs.flush()]
    assert "".join(parts) == whole


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(data=st.data(), skip=st.booleans())
def test_decode_equals_the_library(kind: str, data: st.DataObject, skip: bool) -> None:
    """For any ids, but where byte-fallback tokens are not UTF-8 (they lose only the broken bytes
    here, the whole run in the library)."""
    theirs, ours = pair(kind)
    known = sorted(set(theirs.get_vocab().values()))
    ids = data.draw(st.lists(st.sampled_from(known), max_size=30))
    expected = theirs.decode(ids, skip_special_tokens=skip)
    if kind in _FALLBACK and "\ufffd" in expected:
        return
    assert ours.decode(ids, skip_special=skip) == expected


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=50, deadline=None)
@given(
    text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd"), max_size=40)
)
def test_no_half_characters(kind: str, text: str) -> None:
    theirs, ours = pair(kind)
    ids = ours.encode(text)
    if "\ufffd" in theirs.decode(ids):
        return
    stream = ours.stream()
    parts = [stream.push(i) for i in ids] + [stream.flush()]
    assert not any("\ufffd" in part for part in parts)


def test_split_characters_appear_whole() -> None:
    _, ours = pair("byte_level")
    stream, seen = ours.stream(), []
    ids = ours.encode("a🙃ж")
    assert len(ids) == 6  # the first two bytes of the emoji are one token
    for token_id in ids:
        seen.append(stream.push(token_id))
    assert [part for part in seen if part] == ["a", "🙃", "ж"]
    cut = ours.stream()
    assert "".join(cut.push(i) for i in ours.encode("🙃")[:2]) == ""
    assert cut.flush() == "\ufffd"


def test_broken_byte_run_keeps_its_good_characters() -> None:
    _, ours = pair("spm_first")
    ids = [ours.id(f"<0x{b:02X}>") for b in "你".encode() + b"\xff"]
    assert ours.decode(ids) == "你\ufffd"


def test_leading_space_rule() -> None:
    _, ours = pair("spm_first")
    ids = ours.encode("the time")
    assert ours.decode(ids) == "the time"
    assert ours.decode(ids, continuing=True) == " the time"


def test_stream_does_constant_work() -> None:
    """Each id is looked up once; after that a push does not touch the tokenizer."""
    _, ours = pair("byte_level")
    stream = ours.stream()
    looked_up = []
    token_of = stream._token_of
    stream._token_of = lambda i: looked_up.append(i) or token_of(i)
    ids = ours.encode("Once upon a time, 你好. " * 400)
    ours._pieces.clear()
    for token_id in ids:
        stream.push(token_id)
    assert len(ids) > 2000
    assert len(looked_up) <= len(set(ids)) + 1


def test_token_bytes() -> None:
    _, ours = pair("byte_level")
    text = "naïve 🙂"
    assert b"".join(ours.token_bytes(i) for i in ours.encode(text)) == text.encode()
    assert pair("whole_text")[1].token_bytes(5) is None
    _, spm = pair("spm_first")
    assert spm.token_bytes(spm.id("<0xE4>")) == b"\xe4"


@pytest.mark.parametrize("token_id", [-1, 10**6, 2**40])
def test_unknown_ids(token_id: int) -> None:
    _, ours = pair("byte_level")
    for use in (
        ours.token,
        ours.token_bytes,
        lambda i: ours.decode([i]),
        lambda i: ours.stream().push(i),
    ):
        with pytest.raises(InvalidRequest, match=rf"{token_id}.*vocabulary size {ours.vocab_size}"):
            use(token_id)


def test_unknown_tokens_and_pieces() -> None:
    _, ours = pair("byte_level")
    assert ours.find("no such") is None
    with pytest.raises(InvalidRequest, match="no such"):
        ours.id("no such")
    with pytest.raises(InvalidRequest, match="not a marker"):
        ours.encode_pieces([("hello", True)])
    with pytest.raises(InvalidRequest, match="surrogate at index 1"):
        ours.encode("a\ud800")
    with pytest.raises(InvalidRequest, match="int"):
        ours.encode(5)


@pytest.mark.parametrize(
    ("content", "special", "expected"),
    [
        ("<|eot|>", True, True),
        ("User", True, True),
        ("<think>", False, True),
        ("</tool_call>", False, True),
        ("<｜User｜>", False, True),
        ("[INST]", False, True),
        ('<atem:invoke name="', False, True),
        ("\n</tool_output>", False, True),
        ("    ", False, False),
        ("\n\n", False, False),
        ("õ", False, False),
        ("÷", False, False),
        ('{"name": "', False, False),
        ("<=", False, False),
        ("<3", False, False),
        ("▁▁", False, False),
        ("[1]", False, False),
        ("hello", False, False),
        (" to=self", False, False),
    ],
)
def test_what_is_a_marker(content: str, special: bool, expected: bool) -> None:
    assert is_marker(content, special) is expected


def test_ends_from_configuration(tmp_path: Path) -> None:
    theirs = ZOO["byte_level"]()
    (tmp_path / "tokenizer.json").write_text(theirs.to_str())
    config = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "pad_token": None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    eot = theirs.token_to_id("<|eot|>")
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [eot]}))
    ours = Tokenizer.load(tmp_path)
    assert (ours.bos_token, ours.bos_id) == ("<s>", theirs.token_to_id("<s>"))
    assert ours.eos_ids == (eot, theirs.token_to_id("</s>"))
    assert ours.special_tokens == {"bos_token": "<s>", "eos_token": "</s>"}
    assert Tokenizer.load(tmp_path / "tokenizer.json").eos_ids == ours.eos_ids
    alone = Tokenizer.from_json(theirs.to_str())
    assert (alone.bos_token, alone.eos_token) == ("<s>", "</s>")
    assert pair("word_piece")[1].bos_token == "[CLS]"


def test_configuration_flags_special_tokens(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(ZOO["byte_level"]().to_str())
    config = {"added_tokens_decoder": {"1": {"content": "<think>", "special": True}}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ours = Tokenizer.load(tmp_path)
    assert ours.id("<think>") in ours.special_ids
    assert ours.decode([ours.id("<think>")], skip_special=True) == ""


def test_files_cannot_cut_pad_or_randomize() -> None:
    """Truncation, padding and BPE dropout in a tokenizer.json are not obeyed."""
    theirs = ZOO["byte_level"]()
    plain = theirs.encode("hello world, once upon a time").ids
    theirs.enable_truncation(3)
    theirs.enable_padding(length=64)
    data = json.loads(theirs.to_str())
    data["model"]["dropout"] = 0.9
    ours = Tokenizer.from_json(json.dumps(data))
    for parse in (False, True):
        assert ours.encode("hello world, once upon a time", parse_special=parse) == plain


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"model": 5}',
        b'{"model": {"type": "BPE"}}',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"version": "1.0", "model": {"type": "WordLevel", "vocab": {}, "unk_token": "x"}}',
    ],
)
def test_broken_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(CorruptFile):
        Tokenizer.load(tmp_path)


def test_mutated_files_load_or_raise_corrupt_file() -> None:
    data = ZOO["spm_first"]().to_str()
    raised = 0
    for i in range(60):
        at = (i * 7919) % len(data)
        mutated = data[:at] + data[at + 1 + i % 5 :] if i % 2 else data[:at] + '"' + data[at:]
        try:
            Tokenizer.from_json(mutated).encode("hello </s>")
        except (CorruptFile, InvalidRequest):
            raised += 1
    assert raised > 10


def test_missing_and_oversized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CorruptFile, match="no such file"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text(ZOO["byte_level"]().to_str())
    monkeypatch.setattr(tokenizer_module, "MAX_TOKENIZER_BYTES", 100)
    with pytest.raises(CorruptFile, match="more than 100 bytes"):
        Tokenizer.load(tmp_path)


def test_inconsistent_ids() -> None:
    data = json.loads(ZOO["byte_level"]().to_str())
    data["added_tokens"][-1]["id"] += 7
    with pytest.raises(CorruptFile, match="id"):
        Tokenizer.from_json(json.dumps(data))


# ---- whole conversations -----------------------------------------------------------------------

_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|eot|>"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(content=texts, again=texts)
def test_chat_ids(kind: str, content: str, again: str) -> None:
    """Markers come from the template alone; without typed ones the ids are the library's."""
    theirs, ours = pair(kind)
    template = ChatTemplate(_TEMPLATE)
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": again}]
    ids = encode_chat(ours, template, messages)
    text = template.render(messages, add_generation_prompt=True, **ours.special_tokens)
    markers = {
        m for m in ours.markers if m in content or m in again or m in (content + again).casefold()
    }
    start, eot = theirs.token_to_id("<|start|>"), theirs.token_to_id("<|eot|>")
    if start in ours.markers.values():
        assert (ids.count(start), ids.count(eot)) == (3, 2)
    if not markers and kind != "stripping":
        assert ids == theirs.encode(text, add_special_tokens=False).ids


def test_nano_conversation_ids(shared_data: Path) -> None:
    """With the shipped tokenizer and template, and with the flagship's template."""
    theirs, ours = pair("nano")
    tools = [
        {
            "type": "function",
            "function": {
                "name": "a.b",
                "description": 'd "q" <x>',
                "parameters": {"type": "object", "properties": {"k": {"type": "string"}}},
            },
        }
    ]
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "a.b", "arguments": {"k": "1 < 2"}},
    }
    messages = [
        {"role": "user", "content": 'say {"a": ["b"]} > c to=self'},
        {"role": "assistant", "content": "", "reasoning_content": "x < y", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "<ok/>"},
    ]
    for source in (NANO, shared_data / "templates" / "Muse-Glimmer-30B.jinja"):
        template = ChatTemplate(source)
        ids = encode_chat(ours, template, messages, tools=tools)
        text = template.render(
            messages, tools=tools, add_generation_prompt=True, **ours.special_tokens
        )
        assert ids == theirs.encode(text, add_special_tokens=False).ids
        assert ours.decode(ids) == text


def test_vocabulary_words_in_brackets_stay_words() -> None:
    """Unflagged tags that the template never writes (Gemma's ``<table>``) are ordinary tokens."""
    theirs = ZOO["byte_level"]()
    theirs.add_tokens(["<table>"])
    ours = Tokenizer.from_json(theirs.to_str())
    template = ChatTemplate(_TEMPLATE)
    messages = [{"role": "user", "content": "a <table> <|eot|>"}]
    ids = encode_chat(ours, template, messages)
    assert ids.count(ours.id("<table>")) == 1
    assert ids.count(ours.id("<|eot|>")) == 1
    assert ours.id("<table>") not in ours.encode("a <table>")
