"""Grammars: masks against a search over all texts, answers against their schemas, refusals."""

from __future__ import annotations

import datetime
import enum
import json
import random
import re
import sys
import threading
from types import SimpleNamespace
from typing import Annotated, Any

import jsonschema
import pydantic
import pytest

import musespark
from musespark.cli import main
from musespark.errors import InvalidRequest, MissingLibrary
from musespark.grammar import MAX_CHARACTERS, Grammars, chosen_grammar, grammar_of_lark
from musespark.text import Tokenizer
from musespark.text.protocols import HARMONY, MUSE, compose
from musespark.turn_start import Constraint, TurnStart, turn_start
from support import tokenizers_zoo as zoo
from support.chat_folder import chat_folder
from support.turns import writer

ANSWER = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def model():
    with musespark.load(context=512, threads=2) as model:
        yield model


# ---- masks against all texts -------------------------------------------------------------------

_END, _OTHER_END, _MARKER = 0, 1, 2


def small_vocabulary(rng: random.Random, letters: str) -> Any:
    """Two ends, a marker, the letters, and random pieces of two to four of them, some twice."""
    pieces = [b"", b"", b"<m>", *(c.encode() for c in letters), "é".encode()[:1], "é".encode()[1:]]
    pieces += ["".join(rng.choices(letters, k=rng.randint(2, 4))).encode() for _ in range(60)]
    return SimpleNamespace(markers={"<m>": _MARKER}, special_ids=(), all_bytes=lambda: pieces)


def ids_of(mask: bytes, vocab: int) -> set[int]:
    return {i for i in range(vocab) if mask[i >> 3] >> (i & 7) & 1}


def walk(grammars: Grammars, given: dict[str, Any], texts: set[bytes], rng: random.Random) -> int:
    """Random walks through a grammar of finitely many texts; at each step the mask must be what
    looking through all of them gives. Returns how many steps were compared."""
    compared = 0
    for _ in range(4):
        constraint, done, new = Constraint(grammars, chosen_grammar(given)), b"", []
        while True:
            mask = ids_of(constraint(new), grammars.vocab)
            wanted = {
                i
                for i, piece in enumerate(grammars.pieces)
                if piece and any(text.startswith(done + piece) for text in texts)
            }
            if done in texts:
                wanted |= grammars.ends
            assert mask == wanted, (given, done)
            compared += 1
            token = rng.choice(sorted(mask))
            if token in grammars.ends:
                break
            done, new = done + grammars.pieces[token], [token]
    return compared


@pytest.mark.parametrize("seed", range(12))
def test_masks_are_those_of_a_search_over_all_texts(seed: int) -> None:
    rng = random.Random(seed)
    letters = "ab1é" if seed % 2 else "abc"
    grammars = Grammars(small_vocabulary(rng, letters), 64 + seed, {_END, _OTHER_END})
    words = {"".join(rng.choices(letters, k=rng.randint(1, 7))) for _ in range(rng.randint(2, 6))}
    texts = {word.encode() for word in words}
    listed = sorted(words)
    compared = walk(grammars, {"regex": "|".join(listed)}, texts, rng)
    lark = " | ".join(f'"{word}"' for word in listed)
    compared += walk(grammars, {"grammar": f"start: {lark}"}, texts, rng)
    assert compared > 12


def test_masks_of_a_schema_are_those_of_a_search_over_all_texts() -> None:
    rng = random.Random(5)
    grammars = Grammars(small_vocabulary(rng, '{}"a:1, []'), 77, {_END})
    schema = {
        "type": "object",
        "properties": {"a": {"enum": [1, 11]}, "aa": {"type": "array", "items": {"const": 1}}},
        "required": ["a"],
        "additionalProperties": False,
    }
    schema["properties"]["aa"] |= {"maxItems": 2}
    values = [{"a": n} for n in (1, 11)]
    values += [{"a": n, "aa": [1] * k} for n in (1, 11) for k in range(3)]
    texts = {json.dumps(value).encode() for value in values}
    assert walk(grammars, {"json_schema": schema}, texts, rng) > 30


def test_no_text_begins_what_the_library_has_for_a_marker() -> None:
    """It spells the marker with id 2 as b"\\xff[2]": pieces of that stood where the marker may, and
    the next token was refused."""
    spelled = [b"\xff", b"\xff[", b"\xff[2", b"\xff[2]"]
    known = [b"", b"", b"<m>", b"a", *spelled, b"[", b"2", b"]"]
    tokenizer = SimpleNamespace(markers={"<m>": _MARKER}, special_ids=(), all_bytes=lambda: known)
    grammars = Grammars(tokenizer, len(known), {_END}, ["<m>"])
    constraint = Constraint(grammars, grammar_of_lark("tools", f'start: ("a" | <[{_MARKER}]>) "a"'))
    assert ids_of(constraint([]), len(known)) == {_MARKER, known.index(b"a")}
    assert ids_of(constraint([_MARKER]), len(known)) == {known.index(b"a")}


@pytest.mark.parametrize("ends", [{_END}, set()])
def test_a_complete_text_ends(ends: set[int]) -> None:
    """With the ends that the model has, or without one where it has none."""
    grammars = Grammars(small_vocabulary(random.Random(1), "ab"), 40, ends)
    constraint = Constraint(grammars, chosen_grammar({"regex": "ab"}))
    a, b = (grammars.pieces.index(c) for c in (b"a", b"b"))
    assert a in ids_of(constraint([]), 40)
    constraint([a])
    answer = constraint([b])
    assert ids_of(answer, 40) == ends if ends else answer == b""


# ---- vocabularies ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make", [zoo.byte_level, zoo.ignoring_merges, zoo.sentencepiece_bpe, zoo.unigram, zoo.clip]
)
def test_what_a_tokenizer_writes_is_allowed_and_says_the_same(make) -> None:
    """Every id of JSON as the tokenizer spells it is allowed at its place, and no marker is."""
    tokenizer = Tokenizer.from_json(make().to_str())
    if make is zoo.clip:  # a token's bytes depend on whether it is the last
        with pytest.raises(InvalidRequest, match="a grammar needs the bytes of each token"):
            Grammars(tokenizer, tokenizer.vocab_size, {0}).matcher(chosen_grammar({"regex": "a"}))
        return
    end = max(tokenizer.markers.values())
    grammars = Grammars(tokenizer, tokenizer.vocab_size + 7, {end})
    markers = {*tokenizer.markers.values(), *tokenizer.special_ids} - {end}
    text, given = json.dumps({"name": "the cat", "age": 12}), {"json_schema": ANSWER}
    if make is zoo.unigram:  # it has not all the letters of the schema
        text, given = "the cat", {"regex": "[a-z]+ [a-z]+"}
    constraint, new = Constraint(grammars, chosen_grammar(given)), []
    ids = tokenizer.encode(text)
    if grammars.pieces[ids[0]][:1] != text[:1].encode():  # the space that SentencePiece begins with
        ids = tokenizer.encode("a" + text)[1:]
    for token in [*ids, end]:
        mask = ids_of(constraint(new), grammars.vocab)
        assert token in mask, (tokenizer.token(token), text)
        assert not mask & markers and max(mask) < tokenizer.vocab_size
        new = [token]
    assert b"".join(grammars.pieces[i] for i in ids).decode() == text


def test_a_vocabulary_that_cannot_write_the_text() -> None:
    grammars = Grammars(small_vocabulary(random.Random(1), "ab"), 40, {_END})
    constraint = Constraint(grammars, chosen_grammar({"regex": "ac"}))
    constraint([])
    with pytest.raises(InvalidRequest, match="regex: no token of the model's vocabulary can cont"):
        constraint([grammars.pieces.index(b"a")])


# ---- whole answers -----------------------------------------------------------------------------


def random_schema(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    """A schema whose texts are all shorter than the context."""
    kinds = ["integer", "number", "string", "boolean", "enum", "null", "pattern"]
    kind = rng.choice([*kinds, *(["object", "array", "anyOf"] * 2 if depth < 3 else [])])
    if kind == "object" or depth == 0:
        names = rng.sample(["a", "name", "größe", 'q"t', "x y", "n1"], rng.randint(1, 4))
        properties = {name: random_schema(rng, depth + 1) for name in names}
        required = [name for name in names if rng.random() < 0.6]
        return {
            "type": "object",
            "properties": properties,
            "required": required,
            "additionalProperties": False,
        }
    if kind == "array":
        low = rng.randint(0, 2)
        items = random_schema(rng, depth + 1)
        return {
            "type": "array",
            "items": items,
            "minItems": low,
            "maxItems": low + rng.randint(0, 2),
        }
    if kind == "anyOf":
        return {"anyOf": [random_schema(rng, depth + 1) for _ in range(2)]}
    if kind in ("integer", "number"):
        low = rng.randint(-1000, 1000)
        bounds = {"minimum": low, "maximum": low + rng.randint(0, 5000)}
        return {"type": "integer", **bounds} if kind == "integer" else {"enum": [low, 0.5, 1e10]}
    if kind == "string":
        return {"type": "string", "minLength": rng.randint(0, 2), "maxLength": rng.randint(2, 6)}
    if kind == "enum":
        return {"enum": rng.sample(["red", "grün", 1, None, True, [1], {"k": "v"}], 3)}
    if kind == "pattern":
        return {"type": "string", "pattern": r"^[A-Z]{2}-\d{3}$"}
    return {"type": kind}


@pytest.mark.parametrize("seed", range(30))
def test_random_schemas_at_temperature_one(model, seed: int) -> None:
    rng = random.Random(1000 + seed)
    schema = random_schema(rng)
    result = model.chat(
        "Tell me about Anna.",
        json_schema=schema if seed % 2 else json.dumps(schema),
        temperature=1.0,
        seed=seed,
        mode=rng.choice(["auto", "instant", "thinking"]),
        max_new_tokens=480,
    )
    if result.finish_reason == "length":  # in the thought, which nothing bounds
        assert result.parsed is None and result.content == ""
        return
    assert result.finish_reason == "stop" and not result.protocol_errors
    jsonschema.validate(result.parsed, schema)
    assert json.loads(result.content) == result.parsed
    assert json.loads(result.to_openai()["choices"][0]["message"]["content"]) == result.parsed


@pytest.mark.parametrize("seed", range(10))
def test_random_schemas_on_a_random_model(tmp_path_factory, seed: int, random_model) -> None:
    """A model that knows nothing at all, and whose chat protocol has no channels."""
    schema = random_schema(random.Random(seed))
    for ask in (random_model.generate, random_model.chat):
        result = ask("a", json_schema=schema, temperature=1.0, seed=seed, max_new_tokens=400)
        assert result.finish_reason == "stop"
        jsonschema.validate(result.parsed, schema)


@pytest.fixture(scope="module")
def random_model(tmp_path_factory):
    folder = chat_folder(
        tmp_path_factory.mktemp("random") / "m", markers=("<|im_start|>", "<|im_end|>")
    )
    with musespark.load(folder, quantize="none", threads=1) as model:
        yield model


def test_regular_expressions_and_grammars(model) -> None:
    for seed in range(5):
        more = {"temperature": 1.0, "seed": seed}
        text = model.generate("The date: ", regex=r"\d{4}/\d\d/\d\d\n(mon|tue)", **more).text
        assert re.fullmatch(r"\d{4}/\d\d/\d\d\n(mon|tue)", text)
        text = model.chat("Which?", grammar='start: "(" WORD ")"\nWORD: /[a-c]{1,3}/', **more).text
        assert re.fullmatch(r"\([a-c]{1,3}\)", text)
        assert model.generate("a", regex="a", **more).parsed is None


def test_an_answer_that_is_cut_is_not_parsed(model) -> None:
    cut = model.chat("Hi", json_schema=ANSWER, max_new_tokens=4, mode="instant")
    assert cut.finish_reason == "length" and cut.parsed is None and cut.content
    number = {"type": "integer", "minimum": 100, "maximum": 999}  # what is cut is JSON too
    for ask in (model.generate, lambda text, **more: model.chat(text, mode="instant", **more)):
        short = ask("1", json_schema=number, max_new_tokens=1, temperature=0)
        assert short.finish_reason == "length" and json.loads(short.text) < 100
        assert short.parsed is None
    stopped = model.chat("Hi", json_schema=ANSWER, stop="age", mode="instant")
    assert stopped.finish_reason == "stop" and stopped.parsed is None


def test_streams_batches_async_and_sessions_give_the_same(model) -> None:
    import asyncio

    more = {"json_schema": ANSWER, "temperature": 1.0, "seed": 4}
    wanted = model.chat("Who?", **more)
    stream = model.chat("Who?", stream=True, **more)
    assert "".join(d.text for d in stream if d.channel == "content") == wanted.content
    assert stream.result.parsed == wanted.parsed is not None
    assert asyncio.run(model.achat("Who?", **more)).parsed == wanted.parsed
    assert model.session().chat("Who?", **more).parsed == wanted.parsed
    batch = model.chat_batch(["What?", "Who?", "Why?"], **more)
    assert batch[1].tokens == wanted.tokens
    assert all(r.finish_reason == "length" or r.parsed is not None for r in batch)


def test_one_result_on_any_threads() -> None:
    found = []
    for threads in (1, 2):
        with musespark.load(context=512, threads=threads) as model:
            beside = model.generate("Once", max_new_tokens=200, stream=True)
            found.append(model.chat("Who?", json_schema=ANSWER, temperature=1.0, seed=8).tokens)
            beside.close()
    assert found[0] == found[1]


def test_requests_from_many_threads(model) -> None:
    results: dict[int, Any] = {}

    def ask(seed: int) -> None:
        results[seed] = model.chat("Who?", json_schema=ANSWER, temperature=1.0, seed=seed)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, result in results.items():
        again = model.chat("Who?", json_schema=ANSWER, temperature=1.0, seed=seed)
        assert result.tokens == again.tokens


# ---- thoughts ----------------------------------------------------------------------------------


def test_the_thought_is_free_and_the_answer_is_not(model) -> None:
    question = "What is 17 + 25?"
    free = model.chat(question, mode="thinking", temperature=0)
    bound = model.chat(question, mode="thinking", temperature=0, json_schema=ANSWER)
    assert len(free.reasoning) > 20 and bound.reasoning == free.reasoning
    jsonschema.validate(bound.parsed, ANSWER)
    instant = model.chat(question, mode="instant", temperature=0, json_schema=ANSWER)
    assert instant.reasoning == "" and instant.parsed is not None


def begun(protocol, prompt: str, **more) -> tuple[Tokenizer, Constraint, Grammars]:
    tokenizer = writer(protocol)
    ends = set(tokenizer.eos_ids) | {
        tokenizer.markers[m] for m in protocol.ends if m in tokenizer.markers
    }
    grammars = Grammars(tokenizer, tokenizer.vocab_size, ends)
    ids = tokenizer.encode(prompt, parse_special=True)
    start = turn_start(protocol, grammars, ids, option="regex", **more)
    return tokenizer, Constraint(grammars, chosen_grammar({"regex": "[{]a}"}), start), grammars


def feed(tokenizer: Tokenizer, constraint: Constraint, text: str) -> set[int]:
    """Writes a text token by token, each of which must be allowed; what may follow."""
    new: list[int] = []
    for token in tokenizer.encode(text, parse_special=True):
        allowed = ids_of(constraint(new), tokenizer.vocab_size)
        assert token in allowed, (tokenizer.token(token), text)
        new = [token]
    return ids_of(constraint(new), tokenizer.vocab_size)


def test_thoughts_between_tags() -> None:
    protocol = compose("think", "hermes")
    tokenizer, constraint, grammars = begun(protocol, "Hi")
    mark = tokenizer.markers
    brace = grammars.pieces.index(b"{")
    newline = grammars.pieces.index(b"\n")
    first = feed(tokenizer, constraint, "")
    assert {mark["<think>"], brace} <= first and newline not in first
    inside = feed(tokenizer, constraint, "<think>\nWell, {b")
    assert len(inside) > 250 and mark["</think>"] in inside
    assert not inside & {*grammars.ends, mark["<tool_call>"], mark["<think>"]}
    constraint([])
    after = feed(tokenizer, begun(protocol, "Hi")[1], "<think>x</think>\n")
    assert {brace, newline} <= after and mark["<think>"] not in after
    _, again, _ = begun(protocol, "Hi")
    assert feed(tokenizer, again, "<think>x</think>\n\n") & {brace, newline} == {brace}
    _, again, _ = begun(protocol, "Hi")
    assert feed(tokenizer, again, "<think>x</think>\n{a}") == grammars.ends


def test_a_thought_that_the_prompt_has_opened_and_one_that_must_not_be() -> None:
    protocol = compose("think", None)
    tokenizer, opened, grammars = begun(protocol, "Hi<think>\n")
    assert feed(tokenizer, opened, "hm</think>{a}") == grammars.ends
    _, instant, _ = begun(protocol, "Hi", thinks=False)
    assert feed(tokenizer, instant, "") == {
        i for i, piece in enumerate(grammars.pieces) if piece and b"{a}".startswith(piece)
    }


def test_channels_with_headers() -> None:
    tokenizer, constraint, grammars = begun(MUSE, "<|start|>assistant")
    mark = tokenizer.markers
    inside = feed(tokenizer, constraint, " to=self<|message|>hm")
    assert len(inside) > 250 and not inside & {mark["<|eot|>"], mark["<|start|>"]}
    _, again, _ = begun(MUSE, "<|start|>assistant")
    after = feed(tokenizer, again, " to=self<|message|>hm<|eom|>")
    assert after == {mark["<|start|>"]}
    text = " to=self<|message|>x<|eom|><|start|>assistant to=self<|message|>y<|eom|>"
    _, again, _ = begun(MUSE, "<|start|>assistant")
    end = feed(tokenizer, again, f"{text}<|start|>assistant to=user<|message|>{{a}}")
    assert end == grammars.ends
    tokenizer, harmony, grammars = begun(HARMONY, "<|start|>assistant")
    text = "<|channel|>analysis<|message|>x<|end|><|start|>assistant<|channel|>final<|message|>{a}"
    assert feed(tokenizer, harmony, text) == grammars.ends


def test_thoughts_that_are_no_tokens_are_refused() -> None:
    protocol = compose("think", None)
    grammars = Grammars(writer(compose(None, None)), 400, {0})
    with pytest.raises(InvalidRequest, match="json_schema: the model's thoughts stand between"):
        turn_start(protocol, grammars, [5], option="json_schema")


def test_start_without_channels_is_the_grammar() -> None:
    assert turn_start(
        compose(None, None), Grammars(writer(MUSE), 400, {0}), [5], option="regex"
    ) == (TurnStart())


# ---- refusals ----------------------------------------------------------------------------------

_DEEP: Any = {}
for _ in range(80):
    _DEEP = {"items": _DEEP}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"json_schema": {"type": "frob"}}, "json_schema: .*Invalid type: frob"),
        ({"json_schema": {"not": {}}}, r'json_schema: .*Unimplemented keys: \["not"\]'),
        ({"json_schema": {"enum": []}}, "json_schema: .*Unsatisfiable"),
        ({"json_schema": {"minimum": 2, "maximum": 1, "type": "integer"}}, "minimum.*greater"),
        ({"json_schema": {"$ref": "http://a.b/c"}}, "json_schema: .*a.b/c"),
        ({"json_schema": {"type": "string", "pattern": "("}}, "json_schema: .*unclosed group"),
        ({"json_schema": "{"}, "json_schema: the text is no JSON"),
        ({"json_schema": 3}, "json_schema: got 3, allowed is a schema"),
        ({"json_schema": _DEEP}, "json_schema.*nested more than 64 deep"),
        ({"json_schema": {"properties": {"a": {"x-guidance": {}}}}}, "properties.a.x-guidance"),
        ({"json_schema": {"enum": list(range(30_000))}}, "json_schema: more than 20000 values"),
        ({"json_schema": {"enum": ["a" * MAX_CHARACTERS]}}, "json_schema: got .* characters"),
        ({"json_schema": {"enum": [object()]}}, r"json_schema.enum\[0\]: got a value of type"),
        ({"regex": "(?=a)"}, "regex: .*look-around"),
        ({"regex": ""}, "regex: got '', allowed is a regular expression"),
        ({"regex": "\ud800"}, "regex: a lone surrogate at index 0"),
        ({"grammar": "foo: 1"}, "grammar: "),
        ({"grammar": 'begin: "a"'}, "grammar: no start rule"),
        ({"grammar": '%llguidance {}\nstart: "a"'}, "grammar: got a %llguidance directive"),
        ({"grammar": 'start: <|eot|>'}, "grammar: .*unknown special token"),
        ({"regex": "a", "grammar": "b"}, "regex and grammar: allowed is one of them"),
        ({"regex": "a", "min_new_tokens": 3}, "min_new_tokens contradicts regex"),
    ],
)  # fmt: skip
def test_refusals_name_the_place(model, options: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        model.generate("a", **options)


def test_what_contradicts_a_grammar(model) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    with pytest.raises(InvalidRequest, match="json_schema contradicts continue_final_message"):
        model.chat("a", json_schema=ANSWER, continue_final_message=True)
    with pytest.raises(InvalidRequest, match="regex contradicts tools"):
        model.chat("a", regex="[0-9]+", tools=tools)


def test_a_grammar_that_grows_beyond_the_limits_ends_its_request_alone(model) -> None:
    """Hundreds of ways to read each text: more work for every token, until a limit is met."""
    ambiguous = "start: x\nx: x x | " + " | ".join(f'"{c}" x' for c in "abcdefgh") + ' | "a"'
    beside = model.generate("Once", max_new_tokens=30, stream=True)
    with pytest.raises(InvalidRequest, match="grammar: it cannot be followed any further"):
        model.generate("a", grammar=ambiguous, max_new_tokens=400, logit_bias=no_ends(model))
    assert len(beside.drain().tokens) == 30


def no_ends(model) -> dict[int, float]:
    return dict.fromkeys(model._requests.stop_ids, -1e9)


def test_pydantic_like_classes(model) -> None:
    class Answer:
        @classmethod
        def model_json_schema(cls) -> dict[str, Any]:
            return ANSWER

    assert model.chat("Who?", json_schema=Answer, mode="instant").parsed is not None


class Person:
    """What a class of pydantic has: a schema, validators, a dump."""

    def __init__(self, name: str, age: int):
        self.name, self.age = name, age

    @classmethod
    def model_json_schema(cls) -> dict[str, Any]:
        return ANSWER

    @classmethod
    def model_validate(cls, value: dict[str, Any]) -> Person:
        if value["age"] % 2:
            raise ValueError(f"age: {value['age']} is odd")
        return cls(**value)

    def model_dump(self) -> dict[str, Any]:
        return vars(self)


def test_validated_objects_and_why_there_is_none(model) -> None:
    """The class's own validators come after the schema: half of all answers are refused."""
    found = {True: 0, False: 0}
    for seed in range(12):
        more = {"json_schema": Person, "temperature": 1.0, "seed": seed, "mode": "instant"}
        result = model.chat("Who?", **more)
        value = json.loads(result.content)
        found[value["age"] % 2 == 0] += 1
        if value["age"] % 2:
            assert result.parsed is None and result.parse_error == f"age: {value['age']} is odd"
        else:
            assert isinstance(result.parsed, Person) and vars(result.parsed) == value
            assert result.to_dict()["parsed"] == value and result.parse_error == ""
    assert all(found.values())
    with model.generate("Who?", json_schema=Person, stream=True, temperature=0) as stream:
        assert "".join(d.text for d in stream) == stream.result.text
    assert isinstance(stream.result.parsed, Person) or "is odd" in stream.result.parse_error


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Item(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True, extra="forbid")
    color: Color
    day: datetime.date


class Basket(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    items: Annotated[list[Item], pydantic.Field(min_length=1, max_length=2)]
    count: Annotated[int, pydantic.Field(ge=0, le=9)]

    @pydantic.field_validator("count")
    @classmethod
    def even(cls, count: int) -> int:
        if count in (1, 3, 5):
            raise ValueError("the count is odd")
        return {n: n for n in (0, 2, 4, 6, 8)}[count]  # a KeyError for 7 and 9


def test_pydantics_own_objects_and_typed_errors(model) -> None:
    found: set[str] = set()
    for seed in range(40):
        more = {"json_schema": Basket, "temperature": 1.5, "seed": seed, "mode": "instant"}
        result = model.chat("What?", **more)
        count = json.loads(result.content)["count"]
        if result.parsed is not None:
            found.add("object")
            assert isinstance(result.parsed, Basket) and result.parsed.count == count
            assert all(isinstance(one.day, datetime.date) for one in result.parsed.items)
            assert all(isinstance(one.color, Color) for one in result.parsed.items)
            assert result.to_dict()["parsed"]["count"] == count
        elif count in (7, 9):
            found.add("KeyError")
            assert result.parse_error == f"KeyError: {count}"
        else:  # a day that no month has is none of the schema's to refuse
            found.add("refused")
            assert "validation error" in result.parse_error
    assert found == {"object", "KeyError", "refused"}


def test_without_the_library(model, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(MissingLibrary, match=r"pip install 'musespark\[grammar\]'"):
        model.generate("a", regex="b")
    assert model.generate("a", max_new_tokens=2).tokens


# ---- command line ------------------------------------------------------------------------------


def test_command_line(tmp_path, capsys) -> None:
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(ANSWER))
    fast = ["--context", "256", "--threads", "1"]
    assert main(["chat", "Who?", "--json-schema", str(file), "--mode", "instant", *fast]) == 0
    jsonschema.validate(json.loads(capsys.readouterr().out), ANSWER)
    assert main(["generate", "A", "--json", "--json-schema", str(file), *fast]) == 0
    jsonschema.validate(json.loads(capsys.readouterr().out)["parsed"], ANSWER)
    file.write_text("{")
    assert main(["generate", "A", "--json-schema", str(file), *fast]) == 1
    assert "json_schema: the text is no JSON" in capsys.readouterr().err
    assert main(["generate", "A", "--json-schema", str(tmp_path / "none"), *fast]) == 1
    assert "none" in capsys.readouterr().err
