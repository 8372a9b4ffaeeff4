"""Calibrated thresholds: the file, who reads it, and what auto makes of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import musespark
from musespark import ThinkingPolicy
from musespark.errors import CorruptFile, InvalidRequest
from musespark.thinking import thresholds
from musespark.thinking.stopper import FEATURES
from musespark.thinking.thresholds import (
    Thresholds,
    find_thresholds,
    key_of,
    read_thresholds,
    user_path,
    write_thresholds,
)
from support.chat_folder import THINK, THINK_MARKERS, chat_folder

SHIPPED_AT = "nano/thinking.json"
SUM = "Tom has 12 apples. He buys 7 more and gives 5 to Ann. How many apples does he have?"
HIGH = {"reasoning_effort": "high"}
# Stops at the third border at a rate of 5%, at the fifth at 1%.
SOME = Thresholds(
    model="abc",
    weights={"borders": 100.0},
    bias=-100 * float(np.log(3.5)),
    thresholds={0.01: 1 / (1 + np.exp(-100 * np.log(5.5 / 3.5))), 0.05: 0.5},
    rate=0.05,
    trials=0,
    every=16,
    problems=200,
    seed=7,
    efforts=["high", "default"],
)


@pytest.fixture
def nano(own_cache: Path):
    with musespark.load(threads=1) as loaded:
        yield loaded


def calibrate(model, some: Thresholds = SOME, kv: str | None = None) -> Thresholds:
    found = replace(some, model=key_of(model._weights, kv or model._again.kv))
    path = user_path(found.model)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_thresholds(path, found)
    return found


def sentences(result) -> int:
    return int(result.signals.borders.sum())


# ---- auto ----------------------------------------------------------------------------------------


def test_auto_is_what_was_calibrated(nano) -> None:
    calibrate(nano)
    given = {**HIGH, "signals": True}
    found = nano.chat(SUM, **given)
    assert found.thinking_policy == "calibrated 0.05"
    assert found.thinking_stop_reason == "confident" and sentences(found) == 3
    careful = nano.chat(SUM, **given, premature_exits=0.01)
    assert careful.thinking_policy == "calibrated 0.01" and sentences(careful) == 5
    loop = nano.chat(SUM, **given, thinking_policy=ThinkingPolicy())
    assert loop.thinking_policy == "given" and loop.thinking_stop_reason == "natural"
    assert nano.chat(SUM, **given, thinking_policy="off").thinking_policy == "off"
    assert nano.chat_batch([SUM, SUM], **given)[1].tokens == found.tokens
    assert nano.session().chat(SUM, **given).tokens == found.tokens
    # a budget holds beside it
    short = nano.chat(SUM, **given, thinking_token_budget=20)
    assert short.usage.reasoning_tokens <= 20 and short.thinking_policy == "calibrated 0.05"


def test_nothing_is_calibrated_by_default(nano) -> None:
    found = nano.chat(SUM, **HIGH)
    assert found.thinking_policy == "loop" and found.thinking_stop_reason == "natural"
    with pytest.raises(InvalidRequest, match=r"premature_exits: got 0\.05, but nothing is calib"):
        nano.chat(SUM, premature_exits=0.05)


@pytest.mark.parametrize("change", [{"version": 1}, {"features": ["margin"]}])
def test_a_file_of_another_version_is_left_alone_and_told(nano, change: dict) -> None:
    path = user_path(calibrate(nano).model)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    for _ in range(2):
        found = nano.chat(SUM, **HIGH)
        assert found.thinking_policy == "loop (calibrated for another version)"
    assert found.thinking_stop_reason == "natural"
    assert nano.chat(SUM, thinking_policy="off").thinking_policy == "off"
    with pytest.raises(InvalidRequest, match=r"premature_exits: got 0\.05, but .*calibrate again"):
        nano.chat(SUM, premature_exits=0.05)


def test_what_is_shipped_is_for_spark_nano_as_it_is(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("MUSESPARK_CACHE", str(tmp_path))
    monkeypatch.setattr(thresholds, "SHIPPED", Path(musespark.__file__).parent / SHIPPED_AT)
    with musespark.load(threads=1) as model:
        found = find_thresholds(key_of(model._weights, model._again.kv))
        assert found is not None and {"high", "xhigh"} <= {*found.efforts}
        assert model.chat(SUM, **HIGH).thinking_policy == f"calibrated {found.rate:g}"
    assert find_thresholds("another model") is None
    assert hash(found) == hash(replace(found))


def test_a_damaged_file_ends_no_chat_and_is_told(nano) -> None:
    path = user_path(calibrate(nano).model)
    path.write_text(path.read_text()[:-9])
    assert nano.chat(SUM, **HIGH).thinking_policy == "loop (its thresholds cannot be read)"
    with pytest.raises(InvalidRequest, match=rf"premature_exits: got 0\.05, but .*{path.name}"):
        nano.chat(SUM, premature_exits=0.05)


def test_it_is_for_the_efforts_it_was_calibrated_at(nano) -> None:
    calibrate(nano)
    assert nano.chat(SUM).thinking_policy == "calibrated 0.05"
    other = {"reasoning_effort": "xhigh"}
    assert nano.chat(SUM, **other).thinking_policy == "loop (calibrated for other efforts)"
    with pytest.raises(InvalidRequest, match=r"at effort 'xhigh', calibrated .* are high, default"):
        nano.chat(SUM, **other, premature_exits=0.05)


def test_other_formats_of_keys_and_values_are_another_model(nano) -> None:
    calibrate(nano, kv="f32")
    assert nano.chat(SUM, **HIGH).thinking_policy == "loop"
    with musespark.load(threads=1, kv="f32") as other:
        assert other.chat(SUM, **HIGH).thinking_policy == "calibrated 0.05"


def test_where_no_rate_is_auto_s_one_has_to_be_given(nano) -> None:
    calibrate(nano, replace(SOME, rate=None))
    assert nano.chat(SUM, **HIGH).thinking_policy == "loop"
    assert nano.chat(SUM, **HIGH, premature_exits=0.05).thinking_policy == "calibrated 0.05"


def test_trials_come_with_it(nano) -> None:
    calibrate(nano, replace(SOME, trials=6, every=3))
    found = nano.chat(SUM, **HIGH)
    assert found.trials and all(
        b.thought_tokens - a.thought_tokens >= 3
        for a, b in zip(found.trials, found.trials[1:], strict=False)
    )
    request, _ = nano._requests.chat(SUM, HIGH)
    assert (request.trials["tokens"], request.trials["every"]) == (6, 3)
    # evicted rows cannot be taken back, so there it does not act
    evicting = nano.chat(SUM, **HIGH, thought_cache_tokens=64)
    assert evicting.thinking_policy == "loop" and not evicting.trials


def test_it_is_not_for_an_adapted_model(nano, monkeypatch) -> None:
    calibrate(nano)
    chosen = lambda given: 0 if given.get("adapter") else None  # noqa: E731
    monkeypatch.setattr(nano._adapters, "chosen", chosen)
    assert nano._requests._chat_options({})[1].chosen == "calibrated 0.05"
    assert nano._requests._chat_options({"adapter": object()})[1].chosen == "loop"


def test_the_shipped_file_is_for_its_model_alone(nano, tmp_path, monkeypatch) -> None:
    shipped = tmp_path / "thinking.json"
    monkeypatch.setattr(thresholds, "SHIPPED", shipped)
    assert find_thresholds("abc") is None
    write_thresholds(shipped, SOME)
    assert find_thresholds("abc") == SOME and find_thresholds("other") is None
    write_thresholds(shipped, replace(SOME, model=key_of(nano._weights, nano._again.kv), rate=0.01))
    assert nano.chat(SUM, **HIGH).thinking_policy == "calibrated 0.01"
    # the user's own goes before it
    with musespark.load(threads=1) as other:
        calibrate(other)
        assert other.chat(SUM, **HIGH).thinking_policy == "calibrated 0.05"


def test_other_weights_are_another_model(own_cache, tmp_path) -> None:
    folder = chat_folder(tmp_path, THINK, THINK_MARKERS)
    with musespark.load(folder, threads=1, quantize="none") as model:
        calibrate(model)
        assert model.chat("a", max_new_tokens=3).thinking_policy == "calibrated 0.05"
        stored = load_file(folder / "model.safetensors")
        model.update_weights({name: 2 * values for name, values in stored.items()})
        assert model.chat("a", max_new_tokens=3).thinking_policy == "loop"


def test_a_model_without_marked_thoughts_has_no_policy(tmp_path) -> None:
    with musespark.load(chat_folder(tmp_path), threads=1, quantize="none") as model:
        assert model.chat("a", max_new_tokens=3).thinking_policy == "none"
        with pytest.raises(InvalidRequest, match=r"premature_exits: .*marks no thoughts"):
            model.chat("a", max_new_tokens=3, premature_exits=0.05)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"premature_exits": 0.02}, r"premature_exits: got 0\.02, calibrated .*\[0\.01, 0\.05\]"),
        ({"premature_exits": 0}, r"premature_exits: got 0, allowed is a number in \(0, 1\)"),
        ({"premature_exits": "5%"}, "premature_exits: got '5%'"),
        ({"premature_exits": 0.05, "thinking_policy": "off"}, "which thinking_policy 'auto' alone"),
    ],
)
def test_what_is_refused(nano, options: dict, says: str) -> None:
    calibrate(nano)
    with pytest.raises(InvalidRequest, match=says):
        nano.chat(SUM, **options)


def test_auto_gives_up_what_is_hopeless(nano) -> None:
    never = {"weights": {"borders": 0.0}, "bias": -30.0}
    some = replace(SOME, **never, hopeless_weights=SOME.weights, hopeless_bias=SOME.bias)
    calibrate(nano, some)
    found = nano.chat(SUM, **HIGH, signals=True)
    assert found.thinking_stop_reason == "hopeless" and found.thinking_policy == "calibrated 0.05"
    assert found.content


# ---- the file ------------------------------------------------------------------------------------


def test_a_file_says_what_was_written(tmp_path) -> None:
    path = tmp_path / "thinking.json"
    write_thresholds(path, SOME)
    assert read_thresholds(path) == SOME
    assert [p.name for p in tmp_path.iterdir()] == ["thinking.json"]
    told = json.loads(path.read_text())
    assert told["version"] == 2 and told["features"] == list(FEATURES)
    assert "hopeless_weights" not in told
    both = replace(SOME, hopeless_weights={"margin": 2.0}, hopeless_bias=-1.0)
    write_thresholds(path, both)
    assert read_thresholds(path) == both and both.policy(0.05).hopeless.bias == -1.0


@pytest.mark.parametrize(
    ("change", "kind", "says"),
    [
        ({"version": 1}, InvalidRequest, "version: another than .*calibrate again"),
        ({"features": ["margin"]}, InvalidRequest, "features: another than .*calibrate again"),
        ({"model": ""}, CorruptFile, "model: got ''"),
        ({"efforts": []}, CorruptFile, r"efforts: got \[\]"),
        ({"efforts": ["huge"]}, CorruptFile, r"efforts: got \['huge'\]"),
        ({"efforts": "high"}, CorruptFile, "efforts: got 'high'"),
        ({"efforts": [["high"]]}, CorruptFile, r"efforts: got \[\['high'\]\]"),
        ({"model": 5}, CorruptFile, "model: got 5"),
        ({"weights": {"luck": 1}}, CorruptFile, "weights: got 'luck'"),
        ({"weights": [1]}, CorruptFile, r"weights: got \[1\]"),
        ({"bias": "0"}, CorruptFile, "bias: got '0'"),
        ({"hopeless_weights": {"luck": 1}}, CorruptFile, "weights: got 'luck'"),
        ({"thresholds": {}}, CorruptFile, "thresholds: got none"),
        ({"rate": 0.02}, CorruptFile, r"rate: got 0\.02, allowed are"),
        ({"thresholds": {"0.05": 2}}, CorruptFile, "threshold: got 2, allowed"),
        ({"thresholds": {"5%": 0.5}}, CorruptFile, "thresholds: .*5%"),
        ({"thresholds": {"1.5": 0.5, "0.05": 0.5}}, CorruptFile, "thresholds: got a rate of 1.5"),
        ({"thresholds": [0.5]}, CorruptFile, "thresholds: got"),
        ({"rate": [0.05]}, CorruptFile, "rate: got"),
        ({"trials": 65}, CorruptFile, "trials: got 65"),
        ({"trials": 2, "every": 0}, CorruptFile, "every: got 0"),
        ({"problems": 0}, CorruptFile, "problems: got 0"),
        ({"seed": True}, CorruptFile, "seed: got True"),
        ({"more": 1}, CorruptFile, "fields .*more"),
        ({"seed": None}, CorruptFile, "seed: got None"),
    ],
)
def test_damaged_files_are_refused(tmp_path, change: dict, kind: type, says: str) -> None:
    path = tmp_path / "thinking.json"
    write_thresholds(path, SOME)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(kind, match=says) as refused:
        read_thresholds(path)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b'{"bias": NaN}', b"\xff", b" " * 70_000])
def test_what_is_no_such_file(tmp_path, data: bytes) -> None:
    path = tmp_path / "thinking.json"
    path.write_bytes(data)
    with pytest.raises(CorruptFile):
        read_thresholds(path)


def test_a_users_file_of_another_model_is_said(own_cache) -> None:
    path = user_path("mine")
    path.parent.mkdir(parents=True)
    write_thresholds(path, SOME)
    with pytest.raises(InvalidRequest, match="model: got abc, allowed is mine"):
        find_thresholds("mine")
