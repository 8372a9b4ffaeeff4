"""Images in conversations: written where the template says, encoded once and only when needed."""

from __future__ import annotations

import base64
import dataclasses
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tests.support import eyes as e

import musespark
from musespark import images
from musespark.errors import CorruptFile, InvalidRequest, UnsupportedModel
from musespark.results import ImageUse
from musespark.vision.cache import EmbeddingCache, EmbeddingFolder
from musespark.vision.embedding import ImageEmbedding, ImageOutline, row_ids
from support.chat_folder import HIDDEN, chat_folder

CHATML = ("<|im_start|>", "<|im_end|>")
ROWS = 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    return chat_folder(path / "m", e.TEMPLATE, (*CHATML, *e.MARKERS))


@pytest.fixture
def model(folder):
    with musespark.load(folder, quantize="none", kv="kv8", threads=1) as loaded:
        loaded._requests.eyes = e.eyes(HIDDEN)
        yield loaded


def part(seed: int) -> dict:
    return {"type": "image", "image": e.picture(seed)}


def user(*parts) -> dict:
    texts = ({"type": "text", "text": p} if isinstance(p, str) else p for p in parts)
    return {"role": "user", "content": list(texts)}


def ask(model, *messages, **options):
    return model.chat(list(messages), **({"max_new_tokens": 6} | options))


def towers(model) -> int:
    return model._requests.eyes.tower.calls


def test_an_image_is_encoded_once_and_its_rows_are_counted(model) -> None:
    first = ask(model, user("look: ", part(1), " what is it?"))
    assert first.images is not None
    assert (first.images.encoded, first.images.count, towers(model)) == (1, 1, 1)
    assert first.usage.image_tokens == first.images.tokens == ROWS
    assert first.usage.prompt_tokens > ROWS + 20
    again = ask(model, user("look: ", part(1), " what is it?"))
    assert (again.tokens, towers(model)) == (first.tokens, 1)
    assert again.images.encoded == 0
    assert ask(model, user("look: ", part(2), " what is it?")).images.encoded == 1
    assert ask(model, user("nothing here")).images is None


def test_an_image_is_processed_once(model, monkeypatch) -> None:
    processor = model._requests.eyes.processor
    ask(model, user(part(1), part(2), "?"))
    assert processor.calls == 2  # for the outline; its patches wait for the tower
    monkeypatch.setattr("musespark.vision.eyes._PATCHES", 64 * 4 * 4)
    ask(model, user(part(3), part(4), "?"))
    assert processor.calls == 5  # the patches of one are kept


def test_rows_say_what_is_seen(model) -> None:
    one, two = (
        ask(model, user(part(seed), "?"), logprobs=1, max_new_tokens=1).logprobs for seed in (1, 2)
    )
    assert one != two


def test_several_images_anywhere_in_the_conversation(model) -> None:
    talk = [
        user("one ", part(1), " and ", part(2)),
        {"role": "assistant", "content": "I see."},
        user(part(1), "again"),
    ]
    result = ask(model, *talk)
    assert result.images == ImageUse(3, 3 * ROWS, 2, 1, 0, result.images.encode_s)
    assert towers(model) == 1  # both in one batch
    swapped = [user("one ", part(2), " and ", part(1)), *talk[1:]]
    other = ask(model, *swapped, logprobs=1)
    assert other.logprobs != ask(model, *talk, logprobs=1).logprobs
    assert towers(model) == 1


def test_tiles_parted_by_text_are_one_image(model) -> None:
    model._requests.eyes = e.eyes(HIDDEN, tiles=3)
    result = ask(model, user("see ", part(1)))
    assert (result.usage.image_tokens, towers(model)) == (3 * ROWS, 1)
    request, _ = model._requests.chat([user("see ", part(1))], {})
    spans = [(span.first, span.count) for span in request.given]
    assert [count for _, count in spans] == [ROWS] * 3
    text = model.tokenizer.decode(list(request.tokens[spans[0][0] + ROWS : spans[1][0]]))
    assert "part 0" in text
    rows = np.concatenate([span.make()[0] for span in request.given])
    assert np.array_equal(rows, model.encode_image(e.picture(1)).array)


def test_a_follow_up_computes_the_new_text_alone(model) -> None:
    session = model.session()
    first = session.chat(user("look: ", part(1), " what is it?"), max_new_tokens=6)
    model._requests.eyes.cache = EmbeddingCache(0)  # nothing is remembered
    second = session.chat("And now?", max_new_tokens=6)
    assert second.images == ImageUse(1, ROWS, 0, 0, 0, 0.0)
    assert (second.images.known, towers(model)) == (1, 1)
    new = second.usage.prompt_tokens - first.usage.prompt_tokens
    assert second.usage.prompt_tokens - second.usage.cached_tokens <= new
    assert second.usage.image_tokens == ROWS


def test_a_session_on_disk_goes_on_without_encoding(model, folder, tmp_path) -> None:
    session = model.session()
    session.chat(user("look: ", part(1), " what is it?"), max_new_tokens=6)
    session.save(tmp_path / "s")
    expected = session.chat("And now?", max_new_tokens=6, logprobs=1)
    with musespark.load(folder, quantize="none", kv="kv8", threads=1) as other:
        other._requests.eyes = e.eyes(HIDDEN)
        resumed = other.resume(tmp_path / "s")
        result = resumed.chat("And now?", max_new_tokens=6, logprobs=1)
        assert towers(other) == 0
        assert (result.tokens, result.logprobs) == (expected.tokens, expected.logprobs)
        # Its keys and values gone, the image is there to be encoded.
        lost = other.resume(tmp_path / "s")
        lost._kept.release()
        lost._kept = None
        with musespark.load(
            folder, quantize="none", kv="kv8", threads=1, prefix_cache=False
        ) as third:
            third._requests.eyes = e.eyes(HIDDEN)
            fresh = third.session()
            fresh.messages = lost.messages
            again = fresh.chat("And now?", max_new_tokens=6, logprobs=1)
            assert towers(third) == 1
            assert (again.tokens, again.logprobs) == (expected.tokens, expected.logprobs)


def test_embeddings_stand_in_messages_but_not_in_files(model, tmp_path) -> None:
    embedding = model.encode_image(e.picture(1))
    assert towers(model) == 1
    assert embedding.array.shape == (ROWS, HIDDEN)
    result = ask(model, user({"type": "image", "image": embedding}, "?"), logprobs=1)
    assert towers(model) == 1
    assert result.logprobs == ask(model, user(part(1), "?"), logprobs=1).logprobs
    session = model.session()
    session.chat(user({"type": "image", "image": embedding}, "?"), max_new_tokens=2)
    with pytest.raises(InvalidRequest, match=r"messages\[0\]\.content\[0\]: an ImageEmbedding"):
        session.save(tmp_path / "s")


def test_an_encoder_that_fails_ends_its_request_alone(model) -> None:
    def fail(patches, grids, stopped):
        raise CorruptFile("planted")

    working = model._requests.eyes.tower.encode
    model._requests.eyes.tower.encode = fail
    with pytest.raises(CorruptFile, match="planted"):
        ask(model, user(part(1), "?"))
    model._requests.eyes.tower.encode = working
    assert ask(model, user("text")).finish_reason == "length"
    assert ask(model, user(part(1), "?")).images.encoded == 1


def test_who_need_not_wait_for_an_image_does_not(model) -> None:
    """A deadline passes, others go on, while the tower is at work."""
    gate, working = threading.Event(), model._requests.eyes.tower.encode
    model._requests.eyes.tower.encode = lambda *given: gate.wait(20) and working(*given)
    try:
        start = time.perf_counter()
        late = ask(model, user(part(1), "?"), deadline=0.2)
        assert (late.finish_reason, len(late.tokens)) == ("deadline", 0)
        with ThreadPoolExecutor() as pool:
            waits = pool.submit(ask, model, user(part(2), "?"))
            assert ask(model, user("text")).finish_reason == "length"
            assert time.perf_counter() - start < 10
            assert not waits.done()
            gate.set()
            assert waits.result().images.encoded == 1
    finally:
        gate.set()


def test_a_batch_equals_one_by_one(model) -> None:
    talks = [[user(part(i % 3), f"number {i}")] for i in range(6)]
    alone = [ask(model, *talk, logprobs=1) for talk in talks]
    batch = model.chat_batch(talks, max_new_tokens=6, logprobs=1)
    assert [r.logprobs for r in batch] == [r.logprobs for r in alone]
    assert towers(model) == 3


def test_a_marker_that_a_user_writes_is_no_image(model) -> None:
    plain = ask(model, user("<img> <row> ", "x"))
    assert plain.images is None
    seen = ask(model, user("<img><row>", part(1)))
    assert seen.usage.image_tokens == ROWS


def test_who_cannot_see_says_so(folder) -> None:
    with musespark.load(folder, quantize="none", threads=1) as blind:
        with pytest.raises(UnsupportedModel, match="images: this model has no vision tower"):
            ask(blind, user(part(1), "?"))
        with pytest.raises(UnsupportedModel, match="images: this model has no vision tower"):
            blind.encode_image(np.zeros((4, 4, 3), np.uint8))


def test_a_template_that_leaves_images_out_is_refused(model) -> None:
    model.template = e.TEMPLATE.replace("<img>", "")
    with pytest.raises(InvalidRequest, match="1 images, but the chat template writes '<img>' 0"):
        ask(model, user(part(1), "?"))


# ---- parts --------------------------------------------------------------------------------------

PNG = b"\x89PNG"


@pytest.mark.parametrize(
    ("given", "held"),
    [
        ({"type": "image", "image": "a/b.png"}, "a/b.png"),
        ({"type": "image", "path": "b.png"}, "b.png"),
        ({"type": "image", "url": "file:///b.png"}, "/b.png"),
        ({"type": "image", "image": PNG}, PNG),
        (
            {
                "type": "image_url",
                "image_url": {"url": "data:image/png;base64," + base64.b64encode(PNG).decode()},
            },
            PNG,
        ),
        ({"type": "input_image", "image_url": "data:;base64,iVBORw=="}, PNG),
    ],
)
def test_forms_of_parts(given: dict, held: object) -> None:
    messages, sources = images.without_images([{"role": "user", "content": [given]}])
    assert messages == [{"role": "user", "content": [{"type": "image"}]}]
    assert sources == [(held, "messages[0].content[0]")]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"type": "image"}, r"messages\[0\]\.content\[0\]: no image"),
        ({"type": "image_url", "image_url": {"url": "https://a/b.png"}}, "nothing remote"),
        ({"type": "image", "image": "http://a/b.png"}, r"\.image: got 'http:.*nothing remote"),
        ({"type": "image", "image": "data:image/png,abc"}, "allowed is data:…;base64,"),
        ({"type": "image", "image": "data:image/png;base64,a$"}, "not base64"),
        ({"type": "image", "image": "data:image/png;base64"}, "allowed is data:…;base64,"),
        ({"type": "image", "image": PNG, "path": "a.png"}, "image and path; allowed is one"),
        ({"type": "image", "image": PNG, "size": 3}, r"content\[0\]\.size: unknown"),
        (
            {"type": "image_url", "image_url": {"url": "data:;base64,", "detail": "high"}},
            r"image_url\.detail: got 'high', allowed is 'auto'",
        ),
    ],
)
def test_parts_that_are_refused(given: dict, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        images.without_images([{"role": "user", "content": [given]}])


# ---- ids and caches -----------------------------------------------------------------------------


def outline(seed: int = 1, tokens: int = 70) -> ImageOutline:
    return ImageOutline(bytes([seed]) * 32, (("<row>", tokens, True),))


def test_ids_are_negative_and_of_everything_that_rows_are() -> None:
    ids = row_ids(outline(), 64)
    assert ids.dtype == np.int32
    assert (ids < 0).all()
    assert len(set(ids.tolist())) == 70
    assert np.array_equal(ids, row_ids(outline(), 64))
    places = np.zeros((70, 3), np.int32)
    others = [
        row_ids(outline(2), 64),
        row_ids(outline(), 65),
        row_ids(outline(tokens=71), 64)[:70],
        row_ids(dataclasses.replace(outline(), places=places), 64),
        row_ids(dataclasses.replace(outline(), places=places + 1), 64),
        row_ids(dataclasses.replace(outline(), advance=3), 64),
    ]
    for i, other in enumerate([ids, *others]):
        for another in others[i:]:
            assert not np.intersect1d(other, another).size


def embedding(seed: int = 1, taps: int = 0) -> ImageEmbedding:
    rng = np.random.default_rng(seed)
    rows = [rng.standard_normal((70, 8)).astype(np.float32) for _ in range(1 + taps)]
    return ImageEmbedding(outline(seed), rows[0], tuple(rows[1:]))


def test_the_cache_keeps_to_its_limit() -> None:
    one = embedding(1)
    cache = EmbeddingCache(2 * one.nbytes)
    for seed in (1, 2):
        cache.put(embedding(seed))
    assert cache.get(outline(1), 8)[1] == "memory"  # used: 2 is the oldest now
    cache.put(embedding(3))
    assert [cache.get(outline(s), 8)[1] for s in (1, 2, 3)] == ["memory", "", "memory"]
    assert (cache.bytes, len(cache)) == (2 * one.nbytes, 2)
    cache.put(ImageEmbedding(outline(4, 700), np.zeros((700, 8), np.float32)))
    assert len(cache) == 2


@pytest.mark.parametrize("taps", [0, 2])
def test_the_folder_gives_back_what_it_was_given(tmp_path, taps: int) -> None:
    made = embedding(1, taps)
    EmbeddingCache(1 << 20, EmbeddingFolder(tmp_path, 1 << 20, 1)).put(made)
    cache = EmbeddingCache(1 << 20, EmbeddingFolder(tmp_path, 1 << 20, 1))
    found, where = cache.get(outline(1), 8)
    assert where == "disk"
    assert np.array_equal(found.array, made.array)
    assert [t.tobytes() for t in found.taps] == [t.tobytes() for t in made.taps]
    assert cache.get(outline(1), 8) == (found, "memory")
    assert cache.get(outline(2), 8) == (None, "")


@pytest.mark.parametrize("at", [0, 8, 12, 16, 20, 24, 32, 40, 71, 80, 500, -1])
def test_a_damaged_file_is_named_and_goes(tmp_path, at: int) -> None:
    folder = EmbeddingFolder(tmp_path, 1 << 20, 1)
    folder.write(embedding())
    path = folder.file(outline().key)
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    assert folder.read(outline(), 8) is None
    assert str(path) in folder.notes[0]
    assert not path.exists()


def test_a_file_of_other_sizes_or_cut_short_is_none(tmp_path) -> None:
    folder = EmbeddingFolder(tmp_path, 1 << 20, 1)
    folder.write(embedding())
    assert folder.read(outline(tokens=71), 8) is None
    folder.write(embedding())
    assert folder.read(outline(), 9) is None
    folder.write(embedding())
    path = folder.file(outline().key)
    path.write_bytes(path.read_bytes()[:50])
    assert folder.read(outline(), 8) is None


def test_the_folder_keeps_to_its_limit(tmp_path) -> None:
    size = 80 + embedding().nbytes
    folder = EmbeddingFolder(tmp_path, 3 * size, 1)
    for seed in range(1, 6):
        folder.write(embedding(seed))
    left = [seed for seed in range(1, 6) if folder.file(outline(seed).key).exists()]
    assert 1 <= len(left) <= 3
    assert left == list(range(6 - len(left), 6))
    tight = EmbeddingFolder(tmp_path / "other", size - 1, 1)
    tight.write(embedding())
    assert not tight.file(outline().key).exists()


def test_an_embedding_of_another_model_is_refused(model) -> None:
    embedding = model.encode_image(e.picture(1))
    assert ask(model, user("x", {"type": "image", "image": embedding})).images.count == 1
    other = dataclasses.replace(embedding.outline, model="another")
    foreign = ImageEmbedding(other, embedding.array)
    with pytest.raises(InvalidRequest, match=r"of another model .*: made by another, this is test"):
        ask(model, user("x", {"type": "image", "image": foreign}))


@pytest.mark.parametrize("name", ["images", "image", "image_url", "video", "audio"])
def test_images_beside_the_content_are_refused(model, name: str) -> None:
    """As other engines take them: answered about unseen, before."""
    beside = {"role": "user", "content": "what is it?", name: ["a.png"]}
    with pytest.raises(InvalidRequest, match=rf"messages\[0\].{name}: nothing reads it"):
        ask(model, beside)
    text = {"type": "text", "text": "what is it?", name: "a.png"}
    with pytest.raises(InvalidRequest, match=rf"messages\[0\].content\[0\].{name}: nothing reads"):
        ask(model, {"role": "user", "content": [text]})
    assert ask(model, {"role": "user", "content": "x", name: None}).images is None
