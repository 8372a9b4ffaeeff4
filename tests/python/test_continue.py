"""Answers that the caller begins, and what a model object refuses."""

from __future__ import annotations

import asyncio
import copy
import pickle

import pytest

import musespark
from musespark.cli import main
from musespark.errors import InvalidRequest
from musespark.text import PROTOCOLS, ChannelParser, encode_chat

QUESTION = {"role": "user", "content": "What is 23 + 45?"}
BEGUN = {"role": "assistant", "content": "The answer is 6"}


@pytest.fixture(scope="module")
def model():
    with musespark.load(context=512, threads=1) as loaded:
        yield loaded


def test_an_answer_that_is_begun_goes_on(model) -> None:
    messages = [QUESTION, BEGUN]
    given = {"continue_final_message": True, "max_new_tokens": 5}  # no marker comes that soon
    result = model.chat(messages, **given)
    text = model.template.render(
        messages, continue_final_message=True, **model.tokenizer.special_tokens
    )
    assert text.endswith("to=user<|message|>The answer is 6")
    ids = encode_chat(model.tokenizer, model.template, messages, continue_final_message=True)
    assert ids == model.tokenizer.encode(text, parse_special=True)
    assert result.tokens == model.generate(ids, max_new_tokens=5).tokens
    assert result.usage.prompt_tokens == len(ids) and result.reasoning == ""
    assert result.content == model.generate(ids, max_new_tokens=5).text != ""
    assert not result.content.startswith("The")
    stream = model.chat(messages, stream=True, **given)
    assert "".join(str(delta) for delta in stream) == result.content
    assert asyncio.run(model.achat(messages, **given)).tokens == result.tokens
    assert [r.tokens for r in model.chat_batch([messages], **given)] == [result.tokens]


def test_what_cannot_be_continued_is_refused(model) -> None:
    def ask(*messages, **more):
        model.chat(list(messages), **{"continue_final_message": True, **more})

    with pytest.raises(InvalidRequest, match=r"messages\[0\] is of the role 'user'"):
        ask(QUESTION)
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {}}}
    with pytest.raises(InvalidRequest, match=r"messages\[1\] calls tools"):
        ask(QUESTION, BEGUN | {"tool_calls": [call]})
    with pytest.raises(InvalidRequest, match="mode 'instant' contradicts continue_final"):
        ask(QUESTION, BEGUN, mode="instant")
    with pytest.raises(InvalidRequest, match="continue_final_message: got 'yes'"):
        ask(QUESTION, BEGUN, continue_final_message="yes")
    with pytest.raises(InvalidRequest, match="go on with it by continue_final_message=True"):
        ask(QUESTION, BEGUN, continue_final_message=False)
    with pytest.raises(InvalidRequest, match="a session keeps whole turns"):
        model.session().chat([QUESTION, BEGUN], continue_final_message=True)


@pytest.mark.parametrize("name", ["think+hermes", "llama-3", "plain"])
def test_a_continued_answer_is_text_from_its_first_character(name) -> None:
    """Not trimmed, no thought, no call without tags."""
    text = '\n\n<think> {"name": "f", "parameters": {}}'
    parser = ChannelParser(PROTOCOLS[name], None, tools=[], opened="answer")
    begun = [event for piece in text for event in parser.push_text(piece)]
    parser.finish()
    assert begun and parser.turn.content == text


def test_the_command_line(model, capsys) -> None:
    wanted = model.chat([QUESTION, BEGUN], continue_final_message=True, max_new_tokens=12).content
    fast = ["--context", "512", "--threads", "1", "-n", "12"]
    asked = ["chat", QUESTION["content"], "--begin", BEGUN["content"], *fast]
    assert main(asked) == 0
    assert capsys.readouterr().out == f"{BEGUN['content']}{wanted}\n(length)\n"
    assert main([*asked, "--json"]) == 0
    assert f'"content": "{wanted}"' in capsys.readouterr().out
    assert main(["chat", "--begin", "x", *fast]) == 1
    assert "--begin: a question is needed" in capsys.readouterr().err


@pytest.mark.parametrize("take", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_model_is_not_copied(model, take) -> None:
    """It failed somewhere inside with what the extension says of itself, or shared its engine."""
    with pytest.raises(
        InvalidRequest, match=r"cannot be pickled or copied: .* 'Spark Nano, inside"
    ):
        take(model)
    with pytest.raises(InvalidRequest, match="cannot be pickled or copied"):
        take([model]) if take is not copy.copy else take(model)
