"""Nano's tokenizer and template, and the lab's fast twin of the template."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import jinja2
import numpy as np
import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from musespark.lab import pack, protocol
from musespark.lab import tokenizer as tok
from musespark.lab.item import WRONG_CLOSE, WRONG_OPEN, Item
from musespark.lab.pack import IGNORE, Packer, branched_sample
from musespark.lab.tasks import EFFORTS, LEVELS, TASKS, draw_item

NANO = Path(protocol.__file__).parent.parent / "nano"


@pytest.fixture(scope="module")
def tokenizer():
    return tok.load(NANO)


@pytest.fixture(scope="module")
def template():
    def fail(message):
        raise ValueError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda v: json.dumps(v, ensure_ascii=False)
    environment.globals["raise_exception"] = fail
    compiled = environment.from_string((NANO / "chat_template.jinja").read_text())

    def render(**kw):
        """What the template writes, its images widened as a processor does."""
        text = compiled.render(bos_token="<|begin_of_text|>", **kw)
        return text.replace("<|patch|>", f"<|image_start|>{'<|patch|>' * 64}<|image_end|>")

    return render


def text_of(pieces):
    return "".join(tok.SPECIAL[p] if isinstance(p, int) else p for p, _ in pieces)


@pytest.mark.parametrize("task", list(TASKS))
def test_prompts_equal_the_template(template, task):
    rng = Random(6)
    for level in LEVELS:
        for effort in EFFORTS:
            for _ in range(6):
                item = draw_item(rng, task, level, effort, evaluation=False)
                wanted = template(
                    messages=item.messages,
                    tools=item.tools,
                    reasoning_strength=effort,
                    add_generation_prompt=True,
                )
                pieces = protocol.prompt_pieces(item.messages, effort, item.tools, item.pictures)
                assert text_of(pieces) == wanted


def test_replies_equal_the_template(template):
    rng = Random(8)
    for task in ("addition", "tool_call", "sorting"):
        for _ in range(30):
            item = draw_item(rng, task, "middle", "high", evaluation=False)
            message = {
                "role": "assistant",
                "content": item.answer,
                "reasoning_content": item.thought,
            }
            if item.calls:
                message["tool_calls"] = [{"function": c} for c in item.calls]
            before = template(
                messages=item.messages,
                tools=item.tools,
                reasoning_strength="high",
                add_generation_prompt=True,
            )
            after = template(
                messages=[*item.messages, message], tools=item.tools, reasoning_strength="high"
            )
            if item.thought:
                assert before + text_of(protocol.reply_pieces(item)) == after


def test_template_defaults_and_refusals(template):
    user = [{"role": "user", "content": "Hi"}]
    assert "Reasoning strength: medium." in template(messages=user, add_generation_prompt=True)
    assert template(messages=user, add_generation_prompt=True).endswith("<|start|>assistant")
    with pytest.raises(ValueError, match="reasoning_strength: got most"):
        template(messages=user, reasoning_strength="most")
    with pytest.raises(ValueError, match="role: got judge"):
        template(messages=[{"role": "judge", "content": "x"}])
    with pytest.raises(ValueError, match="a system message may only come first"):
        template(messages=[*user, {"role": "system", "content": "x"}])
    with pytest.raises(ValueError, match="wanted a mapping"):
        template(
            messages=[
                {
                    "role": "assistant",
                    "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}],
                }
            ]
        )


def test_template_keeps_thoughts_only_since_the_last_user_turn(template):
    thought = {"role": "assistant", "content": "a", "reasoning_content": "SECRET"}
    user = {"role": "user", "content": "u"}
    assert "SECRET" not in template(messages=[user, thought, user])
    assert "SECRET" in template(messages=[user, thought, user], keep_thoughts=True)
    assert "SECRET" in template(messages=[user, thought])


def test_template_renders_an_image_as_one_patch(template):
    content = [{"type": "image"}, {"type": "text", "text": "What?"}]
    text = template(messages=[{"role": "user", "content": content}])
    assert text.count("<|image_start|>") == 1
    assert "<|patch|><|image_end|>What?<|eot|>" in text


def test_template_names_a_tool_answer_by_its_call_id(template):
    call = {
        "id": "c7",
        "function": {"name": "clock", "arguments": {"n": 1, "deep": {"a": [True, None]}}},
    }
    messages = [
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c7", "content": "ok"},
    ]
    text = template(messages=messages)
    assert (
        '<|start|>tool clock<|message|><tool_output name="clock">\nok\n</tool_output><|eot|>'
        in text
    )
    assert '<atem:parameter name="deep">{"a": [true, null]}</atem:parameter>' in text


def test_ids_are_frozen(tokenizer):
    assert tokenizer.get_vocab_size() == tok.VOCAB_SIZE
    assert [tokenizer.id_to_token(i) for i in range(64)] == list(tok.SPECIAL)
    assert tok.SPECIAL[:9] == (
        "<|pad|>",
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|start|>",
        "<|message|>",
        "<|eom|>",
        "<|eot|>",
        "<|image_start|>",
        "<|patch|>",
    )
    assert sorted(tokenizer.get_vocab().values()) == list(range(tok.VOCAB_SIZE))


def test_any_text_comes_back(tokenizer):
    rng = Random(1)
    texts = [
        "",
        " ",
        "\n\n\t x  y",
        "héllo wörld 日本語 😀\u200d👩",
        "\x00\x7f",
        "12345 -6*7",
        " to=self to=user",
        '{"a": ["b"]}',
    ]
    texts += [
        "".join(
            chr(
                rng.choice(
                    (
                        rng.randrange(1, 128),
                        rng.randrange(0xA0, 0xD7FF),
                        rng.randrange(0x10000, 0x1FFFF),
                    )
                )
            )
            for _ in range(rng.randrange(40))
        )
        for _ in range(400)
    ]
    for text in texts:
        assert (
            tokenizer.decode(
                tokenizer.encode(text, add_special_tokens=False).ids, skip_special_tokens=True
            )
            == text
        )


def test_digits_are_single_and_protocol_strings_are_whole(tokenizer):
    assert len(tokenizer.encode("12345", add_special_tokens=False).ids) == 5
    for string in tok.STRINGS:
        assert len(tokenizer.encode(string, add_special_tokens=False).ids) == 1
        assert tokenizer.token_to_id(string) >= 64


def test_typed_markers_stay_text_when_special_tokens_are_encoded_as_text(tokenizer):
    plain = tok.load(NANO)
    plain.encode_special_tokens = True
    ids = plain.encode("a<|eot|><|start|>assistant to=user", add_special_tokens=False).ids
    assert min(ids) >= 64
    assert plain.decode(ids) == "a<|eot|><|start|>assistant to=user"
    assert tok.EOT in tokenizer.encode("a<|eot|>", add_special_tokens=False).ids


def test_wrong_steps_are_input_and_not_loss(tokenizer):
    item = Item(
        "t",
        "easy",
        "high",
        "k",
        [{"role": "user", "content": "q"}],
        f"{WRONG_OPEN}bad{WRONG_CLOSE} good",
        "a",
        "string",
    )
    pieces = dict(protocol.reply_pieces(item))
    assert pieces["bad"] is False
    assert pieces[" good"] is True
    ids, mask = protocol.encode(protocol.prompt_pieces(item.messages, "high", None), tokenizer)
    assert not any(mask)
    assert len(ids) == len(mask)


@pytest.mark.parametrize("pictures", [0, 3])
def test_packed_rows_hold_whole_items_and_true_targets(tokenizer, pictures):
    packer = Packer(tokenizer, [], rows=4, length=192, seed=3, pictures=pictures, vision=0.5)
    lengths = set()
    for batch, _ in zip(packer, range(30), strict=False):
        lengths.add(batch.ids.shape[1])
        length = batch.ids.shape[1]
        flat, documents = batch.ids.reshape(-1), batch.document.reshape(-1)
        used = batch.labels != IGNORE
        index = batch.index[used]
        assert used.any()
        assert (index % length < length - 1).all()
        assert (flat[index + 1] == batch.labels[used]).all()
        for same in (batch.document, batch.branch):
            same = same.reshape(-1)
            assert (same[index] == same[index + 1]).all()
        assert (documents[index] > 0).all()
        starts = (batch.document != 0) & (
            batch.document != [[0, *row[:-1]] for row in batch.document.tolist()]
        )
        assert (batch.ids[starts] == tok.BOS).all()
        assert (batch.position[starts] == 0).all()
        assert (batch.ids[batch.document == 0] == tok.PAD).all()
        places = batch.place[batch.place < flat.size]
        assert (places == np.flatnonzero(flat == tok.PATCH)).all()
        assert len(places) % 64 == 0
    assert lengths == {192, 384}


def test_branches_stand_where_they_would_stand_alone(tokenizer):
    packer = Packer(tokenizer, [], rows=1, length=256, seed=3, pictures=1, vision=1.0)
    sample = next(s for s in iter(packer.sample, None) if max(s.branch) > 2)
    shared = sample.branch.count(0)
    assert sample.ids[shared - 1] == tok.IMAGE_END
    assert sample.ids.count(tok.PATCH) == 64
    assert not any(sample.mask[:shared])
    for number in range(1, max(sample.branch) + 1):
        here = [i for i, b in enumerate(sample.branch) if b == number]
        assert [sample.position[i] for i in here] == list(range(shared, shared + len(here)))
        assert sample.ids[here[-1]] == tok.EOT
    with pytest.raises(ValueError, match="branches"):
        branched_sample([([7, 9, 5], [False] * 3, "codes"), ([8, 9, 5], [False] * 3, "codes")], [])


def test_packing_is_a_function_of_the_seed(tokenizer, monkeypatch):
    """But for the pieces of words: the tokenizer draws those with numbers of its own."""
    monkeypatch.setattr(pack, "_DROPOUT_SHARE", 0)
    a = next(iter(Packer(tokenizer, [], rows=2, length=128, seed=9)))
    b = next(iter(Packer(tokenizer, [], rows=2, length=128, seed=9)))
    c = next(iter(Packer(tokenizer, [], rows=2, length=128, seed=10)))
    assert np.array_equal(a.ids, b.ids) and np.array_equal(a.labels, b.labels)
    assert not np.array_equal(a.ids, c.ids)


def test_bpe_dropout_only_changes_the_pieces(tokenizer):
    dropped = tok.with_dropout(tokenizer, 0.5)
    text = "The strawberry elephant"
    ids = {tuple(dropped.encode(text, add_special_tokens=False).ids) for _ in range(20)}
    assert len(ids) > 5
    assert all(dropped.decode(list(i)) == text for i in ids)


def test_undefined_names_do_not_pass_silently(template):
    with pytest.raises((ValueError, jinja2.UndefinedError)):
        template(messages=[{"role": "user", "content": [{"type": "sound"}]}])


def trained_text(tokenizer, item):
    """The ids that are loss, as text with the markers' names."""
    ids, mask = protocol.encode(protocol.reply_pieces(item), tokenizer)
    kept = [i for i, loss in zip(ids, mask, strict=True) if loss]
    return "".join(tok.SPECIAL[i] if i < len(tok.SPECIAL) else tokenizer.decode([i]) for i in kept)


def test_what_ends_a_thought_from_outside_is_no_loss(tokenizer):
    item = Item("addition", "easy", "high", "1", [], "1+1=2", "2", "number", forced=True)
    told = "assistant to=user<|message|>2<|eot|>"
    assert trained_text(tokenizer, item) == f" to=self<|message|><|start|>{told}"
    item.thought = None
    assert trained_text(tokenizer, item) == "2<|eot|>"
    item.forced = False
    assert trained_text(tokenizer, item) == " to=user<|message|>2<|eot|>"
    whole = text_of(protocol.reply_pieces(item))
    item.forced = True
    assert text_of(protocol.reply_pieces(item)) == whole
