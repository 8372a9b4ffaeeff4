"""What ends a turn: more than the one token that a configuration names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import musespark
from golden import template_cases as cases
from musespark.prompts import stop_ids
from musespark.text import ChatTemplate, Tokenizer
from musespark.text.detection import detect_protocol, end_of_answer
from support.chat_folder import chat_folder
from support.tokenizers_zoo import byte_level

# What each template writes behind an answer, where it is a marker.
ENDS = {
    "Qwen-Qwen3-0.6B": "<|im_end|>",
    "microsoft-Phi-3.5-mini-instruct": "<|end|>",
    "meta-llama-Llama-3.1-8B-Instruct": "<|eot_id|>",
    "google-gemma-2-2b-it": "<end_of_turn>",
    "ibm-granite-granite-3.3-2B-Instruct": "<|end_of_text|>",
    "ByteDance-Seed-OSS": "<seed:eos>",
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": "<｜end▁of▁sentence｜>",
    "GLM-4.6": "<|user|>",  # nothing ends an answer: the next turn begins
    "Apertus-8B-Instruct": "<|assistant_end|>",
    "HuggingFaceTB-SmolLM3-3B": "<|im_end|>",
    "mistralai-Mistral-Nemo-Instruct-2407": "<EOS>",
    "openai-gpt-oss-120b": None,  # <|end|> ends a channel, the turn goes on
}


def tokenizer_with(markers: set[str], eos: str = "<EOS>") -> Tokenizer:
    made = byte_level()
    made.add_special_tokens([eos, *sorted(markers)])
    return Tokenizer.from_json(made.to_str(), config={"eos_token": eos})


@pytest.mark.parametrize("name", sorted(ENDS))
def test_what_a_template_writes_behind_an_answer_ends_a_turn(name: str, shared_data: Path) -> None:
    """With another eos in the configuration, models ran on past the end of their turn."""
    template = ChatTemplate(shared_data / "templates" / f"{name}.jinja")
    markers = cases.spelled_markers(template.source)
    markers |= {"<seed:eos>", "<|return|>", "<|call|>", "<|constrain|>", ENDS[name] or "<EOS>"}
    tokenizer = tokenizer_with(markers - {"<EOS>"})
    protocol = detect_protocol(tokenizer, template)
    assert end_of_answer(tokenizer, template, protocol) == ENDS[name]
    stops = {tokenizer.token(i) for i in stop_ids(tokenizer, template, protocol, 10**6)}
    assert stops >= {"<EOS>", ENDS[name] or "<|return|>"}
    assert "<|end|>" not in stops or ENDS[name] == "<|end|>"


def test_known_ends_count_without_a_template() -> None:
    tokenizer = tokenizer_with({"<|im_end|>", "<|im_start|>", "<|eot_id|>"})
    stops = stop_ids(tokenizer, None, detect_protocol(tokenizer, None), 10**6)
    assert {tokenizer.token(i) for i in stops} == {"<EOS>", "</s>", "<|im_end|>", "<|eot_id|>"}


def test_a_folder_stops_at_the_end_of_its_turn(tmp_path: Path, own_cache: Path) -> None:
    """As the same model does as a GGUF file."""
    folder = chat_folder(tmp_path / "m", markers=("<|im_start|>", "<|im_end|>", "[/ours]"))
    with musespark.load(folder, threads=1) as model:
        assert model.info.stop_tokens == ("</s>", "<|im_end|>")
        assert "<|im_end|>" in str(model.info)
        end = model.tokenizer.markers["<|im_end|>"]
        result = model.chat("hi", max_new_tokens=4, logit_bias={end: 100})
        assert (result.finish_reason, len(result.tokens), result.content) == ("stop", 1, "")
        assert result.protocol_errors == ()
        # Another template has another end, and another protocol; info follows it.
        model.template = "{% for m in messages %}{{ m.content }}[/ours]{% endfor %}<tool_call>"
        assert model.info.stop_tokens == ("</s>", "<|im_end|>", "[/ours]")
        assert [n for n in model.info.notes if "protocol" in n] == ["chat protocol: hermes"]


def test_ends_of_the_config_count_where_nothing_else_names_one(
    tmp_path: Path, own_cache: Path
) -> None:
    folder = chat_folder(tmp_path / "m", "{{ messages[0].content }}", ("<|im_end|>", "[a]", "[b]"))
    (folder / "tokenizer_config.json").write_text("{}")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    ids = {t["content"]: t["id"] for t in tokenizer["added_tokens"]}
    config = json.loads((folder / "config.json").read_text())
    config["eos_token_id"] = [ids["[a]"], 10**9]
    (folder / "config.json").write_text(json.dumps(config))
    with musespark.load(folder, threads=1) as model:
        assert "[a]" in model.info.stop_tokens
        note = f"eos_token_id: 1000000000 is not in the vocabulary of {config['vocab_size']}"
        assert note in model.info.notes
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ids["[b]"]}))
    with musespark.load(folder, threads=1) as model:
        assert "[b]" in model.info.stop_tokens
        assert "[a]" not in model.info.stop_tokens
