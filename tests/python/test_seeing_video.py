"""Videos in messages: as transformers reads them, remembered as images are, or refused by name."""

from __future__ import annotations

import base64
import math
import zlib
from typing import Any

import numpy as np
import processor_cases
import pytest
import sight_cases

import musespark
from musespark import images
from musespark.errors import CorruptFile, InvalidRequest, UnsupportedModel
from musespark.results import ImageUse
from musespark.vision import video
from musespark.vision.processors import processor_for
from musespark.vision.tower import VisionTower
from support.blind import blind_nano
from support.sight_folder import BYTES_ALONE, CASES, film, golden_film, sight_folder

NAME = "muse_glimmer"
FRAMES, FPS = processor_cases.frames(), sight_cases.FPS
# Letters alone, so that what was said is the same tokens when it is read again.
_OTHERS = dict.fromkeys(range(94, sight_cases.VOCAB), -1e4)
FOUR: dict[str, Any] = {"max_new_tokens": 4, "logit_bias": _OTHERS}
ROWS = 18  # of the film's video: 3 groups of 2 x 3
IMAGE_ROWS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return sight_folder(tmp_path_factory.mktemp("video") / "m", NAME)


def load(folder, **more) -> musespark.Model:
    return musespark.load(folder, quantize="none", kv="f32", threads=1, **more)


@pytest.fixture(scope="module")
def model(folder):
    with load(folder) as loaded:
        yield loaded


@pytest.fixture
def tower_calls(monkeypatch):
    """How often a tower was run, since the test began."""
    calls, encode = [], VisionTower.encode

    def counted(self, *given):
        calls.append(self)
        return encode(self, *given)

    monkeypatch.setattr(VisionTower, "encode", counted)
    return lambda: len(calls)


def user(*parts) -> dict:
    texts = ({"type": "text", "text": p} if isinstance(p, str) else p for p in parts)
    return {"role": "user", "content": list(texts)}


def clip(frames: Any = FRAMES, **more: Any) -> dict:
    return {"type": "video", "video": frames, **more}


def chat(model, *parts, **options):
    return model.chat([user(*parts)], **FOUR | options)


def scenes(*seeds: int) -> np.ndarray:
    return np.stack([processor_cases.scene(24, 32, seed) for seed in seeds])


# ---- as transformers ----------------------------------------------------------------------------


def test_tokens_are_those_of_transformers(model) -> None:
    expected = golden_film(NAME)
    request, _ = model._requests.chat(film(NAME), {})
    ids, spans = request.tokens.copy(), request.given
    assert [span.count for span in spans] == [6, 6, 6, IMAGE_ROWS]
    for span in spans:
        marker = "<|video|>" if span.count == 6 else "<|patch|>"
        assert (ids[span.first : span.first + span.count] < 0).all()
        ids[span.first : span.first + span.count] = sight_cases.ID[marker]
    assert np.array_equal(ids, expected["prompt"])
    result = model.chat(film(NAME), max_new_tokens=sight_cases.GREEDY, **BYTES_ALONE)
    assert list(result.tokens) == expected["tokens"].tolist()
    assert result.usage.image_tokens == ROWS + IMAGE_ROWS


def test_rows_are_those_of_transformers(model) -> None:
    expected = golden_film(NAME)["rows"]
    found = model.encode_video(FRAMES, fps=FPS)
    assert found.grid == ((3, 2, 3),)
    # Pixels are a level of 256 apart at most (their resize is torchvision's), of a range of 255.
    assert np.abs(found.array - expected).max() <= 0.01 * np.ptp(expected)
    assert np.abs(found.array - expected).mean() <= 1e-3 * np.ptp(expected)


def test_a_list_of_frames_is_the_array_of_them(model) -> None:
    array = model.encode_video(FRAMES, fps=FPS)
    listed = model.encode_video([*FRAMES], fps=FPS)
    assert listed.key == array.key
    assert model.encode_video(FRAMES).grid == ((1, 2, 3),)  # 24 a second where nobody says
    assert model.encode_video(FRAMES).key == model.encode_video(FRAMES, fps=24).key
    grey = model.encode_video(np.stack([FRAMES[0]] * 2)[..., :1], fps=1)
    assert grey.array.shape == (6, array.array.shape[1])


# ---- nothing twice ------------------------------------------------------------------------------


def test_a_video_is_one_of_the_images_that_are_counted(folder, tower_calls) -> None:
    with load(folder) as model:
        first = model.chat(film(NAME), **FOUR)
        use = first.images
        assert use == ImageUse(2, ROWS + IMAGE_ROWS, 2, 0, 0, use.encode_s)
        assert tower_calls() == 1  # both at once
        again = model.chat(film(NAME), **FOUR)
        assert (again.tokens, again.images.encoded, tower_calls()) == (first.tokens, 0, 1)
        assert again.usage.cached_tokens > ROWS
        other = chat(model, "Again: ", clip(fps=FPS))  # another prefix: its rows are remembered
        assert (other.images.from_memory, tower_calls()) == (1, 1)


def test_the_times_are_part_of_the_prompt_and_not_of_the_rows(folder, tower_calls) -> None:
    with load(folder) as model:
        slow, fast = (model.encode_video(FRAMES[:2], fps=fps) for fps in (1.0, 2.0))
        assert tower_calls() == 1
        assert np.array_equal(slow.array, fast.array)
        late = [clip(FRAMES[:2], fps=fps) for fps in (0.5, 1.0)]
        ids = [list(model._requests.chat([user(part)], {})[0].tokens) for part in late]
        assert ids[0] == ids[1]  # one group, at 0.0 s
        late = [clip(FRAMES[:4], fps=fps) for fps in (1.0, 2.0)]
        texts = []
        for part in late:
            tokens = model._requests.chat([user(part)], {})[0].tokens
            texts.append(model.tokenizer.decode([t for t in tokens if t >= 0]))
        assert "Time: 2.0s" in texts[0] and "Time: 1.0s" in texts[1]
        # What is remembered is written as it stands, not as it stood first.
        one, two = (model.encode_video(FRAMES[:4], fps=fps).outline.pieces for fps in (1.0, 2.0))
        assert one != two


def test_a_video_of_one_frame_is_not_the_image(model) -> None:
    frame = processor_cases.scene(40, 66)
    image, film = model.encode_image(frame), model.encode_video(frame[None])
    assert image.key != film.key
    assert (len(image.array), len(film.array)) == (8, 6)


def test_embeddings_stand_in_messages(model, tower_calls) -> None:
    embedding = model.encode_video(FRAMES, fps=FPS)
    before = tower_calls()
    held = chat(model, "Look: ", clip(embedding), logprobs=1)
    assert held.logprobs == chat(model, "Look: ", clip(fps=FPS), logprobs=1).logprobs
    assert tower_calls() == before
    with pytest.raises(InvalidRequest, match=r"content\[0\]\.fps: got 2, allowed is none"):
        chat(model, clip(embedding, fps=2))


def test_a_session_remembers_a_video(folder, model, tower_calls, tmp_path) -> None:
    frames = FRAMES.copy()
    with load(folder) as alone:
        session = alone.session()
        first = session.chat(user("Watch: ", clip(frames, fps=FPS)), **FOUR)
        frames[:] = 0  # pinned: the conversation is what it was
        assert tower_calls() == 1
        session.save(tmp_path / "s")
        second = session.chat("And now?", **FOUR, logprobs=1)
        assert (tower_calls(), second.images) == (1, ImageUse(1, ROWS, 0, 0, 0, 0.0))
        new = second.usage.prompt_tokens - first.usage.prompt_tokens - len(first.tokens) + 1
        assert second.usage.prompt_tokens - second.usage.cached_tokens <= new
    with load(folder) as other:
        resumed = other.resume(tmp_path / "s")
        found = resumed.chat("And now?", **FOUR, logprobs=1)
        assert (tower_calls(), found.images.known) == (1, 1)
        assert (found.tokens, found.logprobs) == (second.tokens, second.logprobs)
        held = resumed.messages[0]["content"][1]["video"]
        assert np.array_equal(held.pixels, FRAMES[[0, 1, 2, 3, 4, 6]])
        assert (held.indices, held.fps) == ((0, 1, 2, 3, 4, 6), FPS)
        resumed.save(tmp_path / "again")
    # The file holds the frames: they can be encoded again.
    with load(folder, prefix_cache=False) as third:
        fresh = third.chat(resumed.messages[:-1], **FOUR, logprobs=1)
        assert fresh.images.encoded == 1
        assert fresh.tokens == second.tokens


def test_folders_remember_for_the_next_process(folder, tower_calls, tmp_path) -> None:
    text = "word " * 40
    with load(folder, image_folder=tmp_path / "i", prefix_folder=tmp_path / "p") as model:
        expected = chat(model, clip(fps=FPS), text, logprobs=1)
        assert (expected.images.encoded, tower_calls()) == (1, 1)
    with load(folder, image_folder=tmp_path / "i") as model:
        found = chat(model, clip(fps=FPS), text, logprobs=1)
        assert (found.images.from_disk, tower_calls()) == (1, 1)
        assert found.logprobs == expected.logprobs
    with load(folder, prefix_folder=tmp_path / "p") as model:
        found = chat(model, clip(fps=FPS), text, logprobs=1)
        assert (found.images.known, tower_calls()) == (1, 1)
        assert found.logprobs == expected.logprobs


def test_a_batch_equals_one_by_one_and_a_fork_its_session(model) -> None:
    talks = [[user("Number ", str(i), clip(FRAMES[i : i + 4], fps=FPS))] for i in range(3)]
    alone = [model.chat(talk, **FOUR, logprobs=1).logprobs for talk in talks]
    assert [r.logprobs for r in model.chat_batch(talks, **FOUR, logprobs=1)] == alone
    session = model.session()
    session.chat(talks[0][0], **FOUR)
    fork = session.fork()
    said = [one.chat("And now?", **FOUR, logprobs=1) for one in (session, fork)]
    assert said[0].logprobs == said[1].logprobs
    assert [one.images.known for one in said] == [1, 1]


def test_a_packed_file_reads_videos(folder, model, tmp_path) -> None:
    musespark.convert(folder, tmp_path / "p.safetensors", quantize="none")
    with musespark.load(tmp_path / "p.safetensors", kv="f32", threads=1) as packed:
        found = packed.encode_video(FRAMES, fps=FPS).array
        assert np.array_equal(found, model.encode_video(FRAMES, fps=FPS).array)


def saved(**changes: Any) -> list[dict]:
    """A message of a session's file."""
    held = {"type": "video", "video": video.Video(scenes(1, 2), (0, 3), 2.0)}
    (message,) = images.savable([user(held)])
    part = message["content"][0]
    return [{"role": "user", "content": [part | changes]}]


def test_what_was_saved_is_restored() -> None:
    (message,) = images.restored(saved(), "f")
    held = message["content"][0]["video"]
    assert np.array_equal(held.pixels, scenes(1, 2))
    assert (held.indices, held.fps) == ((0, 3), 2.0)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"size": [24, 32]}, "a video has a size and pixels"),
        ({"size": [0, 24, 32]}, "a video has a size and pixels"),
        ({"size": [3, 24, 32]}, "not the 6912 bytes"),
        ({"size": [1 << 16] * 3}, "at most 268435456 pixels"),
        ({"pixels": "!"}, "pixels: "),
        ({"pixels": base64.b64encode(zlib.compress(b"1")).decode()}, "not the 4608 bytes"),
        ({"indices": [1]}, "indices: not 2 whole"),
        ({"indices": None}, "indices: not 2 whole"),
        ({"indices": [0, -1]}, "indices: not 2 whole"),
        ({"indices": [0, 1 << 20]}, "indices: not 2 whole"),
        ({"indices": [0, 1.5]}, "indices: not 2 whole"),
        ({"fps": 0}, "fps: got 0"),
        ({"fps": "2"}, "fps: got '2'"),
        ({"fps": None}, "fps: got None"),
    ],
)
def test_a_file_that_no_session_wrote(changes: dict, says: str) -> None:
    with pytest.raises(CorruptFile, match=rf"f: messages\[0\]\.content\[0\].*{says}"):
        images.restored(saved(**changes), "f")


def test_a_trace_leaves_videos_out_and_says_so(model) -> None:
    trace = model.chat(film(NAME), **FOUR).trace
    assert len(trace.images) == 1
    assert any("1 of the conversation's videos left out" in w for w in trace.warnings)
    kinds = [part["type"] for part in trace.messages[0]["content"]]
    assert kinds == ["text", "text", "image", "text"]
    assert musespark.VisualTrace.from_json(trace.to_json()) == trace
    assert trace.heat(model).steps[-1].heat
    assert chat(model, clip(fps=FPS)).trace is None
    plain = model.chat([film(NAME)[0]], **FOUR).trace
    assert trace.verify(model).warnings == plain.warnings


def test_where_attention_goes_is_not_mapped_for_videos(model) -> None:
    with pytest.raises(UnsupportedModel, match=r"video: where attention goes .* 3 groups"):
        model.image_attention(film(NAME), "this")


# ---- refused ------------------------------------------------------------------------------------

LARGE = np.broadcast_to(np.uint8(0), (96, 2048, 2048, 3))
ONE_PIXEL = np.broadcast_to(np.uint8(0), ((1 << 20) + 1, 1, 1, 3))


@pytest.mark.parametrize(
    ("part", "says"),
    [
        (clip([]), r"\.video: got 0 frames, allowed are 1 to 1048576"),
        (clip(FRAMES[:0]), r"\.video: got 0 frames"),
        (clip(ONE_PIXEL), r"\.video: got 1048577 frames, allowed are 1 to 1048576"),
        (clip(LARGE, fps=2), r"\.video: 96 frames of 2048 x 2048 = 402653184 .* 268435456"),
        (
            clip([FRAMES[0], FRAMES[1, :9]]),
            r"\.video: .* one size; frame 1 has 66 x 9 pixels, frame 0 66 x 40",
        ),
        (clip([FRAMES[0], 5]), r"\.video\[1\]: an image is .* got int"),
        (clip([FRAMES[0], "no/such.png"]), r"\.video\[1\]: 'no/such.png'.*No such file"),
        (clip(FRAMES[0]), r"\.video: got uint8 \[40, 66, 3\], allowed is an array uint8 \[frames"),
        (clip(FRAMES.astype(np.float32)), r"\.video: got float32 \[7, 40, 66, 3\]"),
        (clip("film.mp4"), r"\.video: got str, .* no video file is decoded"),
        (clip(iter(FRAMES)), r"\.video: got .*iterator"),
        (clip(5), r"\.video: got int"),
        (clip(None), r"\.video: no video"),
        ({"type": "video"}, r"\.video: no video"),
        (clip() | {"frames": 3}, r"\.frames: unknown; known are fps, type, video"),
        *(
            (clip(fps=wrong), rf"\.fps: got {wrong!r}, allowed is a number from 1e-06 to 1e\+06")
            for wrong in (0, -1, math.nan, math.inf, -math.inf, "2", True, 1e-9)
        ),
    ],
)
def test_what_is_no_video_is_named(model, part: dict, says: str) -> None:
    for ask in (model.chat, lambda messages, **more: model.session().chat(messages, **more)):
        with pytest.raises(InvalidRequest, match=rf"^messages\[0\]\.content\[1\]{says}"):
            ask([user("x", part)], **FOUR)


def test_encode_video_names_the_same(model) -> None:
    with pytest.raises(InvalidRequest, match=r"^video: got 0 frames"):
        model.encode_video([])
    with pytest.raises(InvalidRequest, match=r"^fps: got 0, allowed"):
        model.encode_video(FRAMES, fps=0)


def test_no_more_frames_than_the_processor_takes() -> None:
    settings = {"do_sample_frames": False, "num_frames": 3}
    muse = processor_for({"model_type": NAME}, None, None, settings)
    assert muse.open_video(FRAMES[:3]).indices == (0, 1, 2)
    with pytest.raises(InvalidRequest, match="video: 4 frames would be taken, at most 3 are"):
        muse.open_video(FRAMES[:4])


def test_a_tower_of_other_groups_is_refused(tmp_path) -> None:
    """One frame a patch, where the processor lays two into one."""
    with (
        load(sight_folder(tmp_path / "m", "muse_spark")) as model,
        pytest.raises(UnsupportedModel, match=r"muse_spark: .*temporal_patch_size is 2, .* is 1"),
    ):
        model.encode_video(FRAMES)


@pytest.mark.parametrize("name", ["llava", "qwen3_vl"])
def test_families_that_read_none_say_so(tmp_path, name: str) -> None:
    with load(sight_folder(tmp_path / "m", name)) as model:
        for ask in (model.chat, model.session().chat):
            why = rf"^messages\[0\]\.content\[0\]\.video: {name} models read images and no video"
            with pytest.raises(UnsupportedModel, match=why):
                ask([user(clip())], **FOUR)
        with pytest.raises(UnsupportedModel, match=f"^video: {name} models"):
            model.encode_video(FRAMES)


def test_who_sees_nothing_says_so(tmp_path) -> None:
    with musespark.load(blind_nano(tmp_path / "m"), threads=1) as nano:
        with pytest.raises(UnsupportedModel, match=r"content\[0\]\.video: this model"):
            nano.chat([user(clip())], max_new_tokens=1)
        with pytest.raises(UnsupportedModel, match=r"^video: this model"):
            nano.encode_video(FRAMES)


def test_a_template_that_leaves_videos_out_or_swaps_them(folder) -> None:
    text = sight_cases.template(CASES[NAME])
    with load(folder) as model:
        model.template = text.replace("<|video|>", "")
        with pytest.raises(InvalidRequest, match=r"1 videos, but .* writes '<\|video\|>' 0 times"):
            chat(model, clip(fps=FPS))
        model.template = text.replace("video", "film")
        with pytest.raises(UnsupportedModel, match=r"type 'video'; video: the chat template"):
            chat(model, clip(fps=FPS))
        loop = "{% for part in m.content %}"
        assert loop in text
        model.template = text.replace(loop, "{% for part in m.content | reverse %}")
        with pytest.raises(InvalidRequest, match=r"images and videos are .* template writes"):
            model.chat(film(NAME), **FOUR)
