"""What is no image, or too much of one, before a model that sees: named, never guessed at."""

from __future__ import annotations

import base64
import io
import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import sight_cases

import musespark
from musespark import images
from musespark.errors import Cancelled, CorruptFile, InvalidRequest, UnsupportedModel
from musespark.vision.embedding import ImageEmbedding
from musespark.vision.tower import VisionTower
from support.blind import blind_nano
from support.sight_folder import BYTES_ALONE, CASES, messages, sight_folder

NAME = "llava"
SMALL = np.zeros((20, 20, 3), np.uint8)
TWO = {"max_new_tokens": 2} | BYTES_ALONE


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = sight_folder(tmp_path_factory.mktemp("refused") / "m", NAME)
    with musespark.load(folder, quantize="none", kv="f32", threads=1) as loaded:
        yield loaded


def chat(model, *parts, **options):
    return model.chat([{"role": "user", "content": list(parts)}], **TWO | options)


def image(held) -> dict:
    return {"type": "image", "image": held}


def text(said: str) -> dict:
    return {"type": "text", "text": said}


def png(height: int = 8, width: int = 8) -> bytes:
    pil = pytest.importorskip("PIL.Image")
    file = io.BytesIO()
    pil.fromarray(np.zeros((height, width, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


WHERE = r"messages\[0\]\.content\[1\]"


@pytest.mark.parametrize(
    ("held", "error", "says"),
    [
        (5, InvalidRequest, "got int"),
        ([1, 2], InvalidRequest, "got list"),
        ("no/such/file.png", InvalidRequest, "no/such/file.png.*No such file"),
        ("a\0b", InvalidRequest, "null"),
        ("x" * 5000, InvalidRequest, "too long"),
        (os.curdir, CorruptFile, "not a regular file"),
        (b"", CorruptFile, ""),
        (b"GIF", CorruptFile, ""),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), CorruptFile, ""),
        ("data:image/png;base64," + "A" * 40, CorruptFile, ""),
        (np.zeros((4, 4, 3), np.float32), InvalidRequest, "float32"),
        (np.zeros((4, 4, 7), np.uint8), InvalidRequest, "7"),
        (np.zeros((0, 4, 3), np.uint8), InvalidRequest, "0"),
        (np.zeros((1, 2000, 3), np.uint8), InvalidRequest, "2000"),
        (np.broadcast_to(np.uint8(0), (1 << 14, 1 << 14, 3)), InvalidRequest, str(1 << 14)),
        ("https://example.org/a.png", InvalidRequest, "nothing remote"),
    ],
)
def test_what_is_no_image_is_named(model, held, error, says: str) -> None:
    with pytest.raises(error, match=f"(?s){WHERE}.*{says}"):
        chat(model, text("see"), image(held))
    session = model.session()
    with pytest.raises(error, match=f"(?s){WHERE}.*{says}"):
        session.chat({"role": "user", "content": [text("see"), image(held)]})
    assert not session.messages


def test_a_bomb_in_a_file_is_refused_by_its_header(model) -> None:
    data = bytearray(png())
    data[16:24] = (1 << 30).to_bytes(4, "big") * 2
    with pytest.raises((InvalidRequest, CorruptFile), match=WHERE):
        chat(model, text("see"), image(bytes(data)))
    truncated = png(300, 300)
    with pytest.raises(CorruptFile, match=WHERE):
        chat(model, text("see"), image(truncated[: len(truncated) // 2]))


def test_files_in_every_form_are_one_image(model, tmp_path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png())
    url = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
    forms = [str(path), path, f"file://{path}", url, path.read_bytes(), np.zeros((8, 8, 3), "u1")]
    first, *others = [chat(model, image(held), logprobs=1) for held in forms]
    assert {other.images.encoded for other in others} == {0}
    assert all(other.logprobs == first.logprobs for other in others)


def test_too_many(model, monkeypatch) -> None:
    with pytest.raises(InvalidRequest, match="messages: 300 images, at most 256"):
        chat(model, *[image(SMALL)] * 300)
    monkeypatch.setattr(images, "MOST_PIXELS", 1000)
    with pytest.raises(InvalidRequest, match=r"content\[2\].*1200 pixels, at most 1000"):
        chat(model, *[image(SMALL)] * 3)
    with pytest.raises(musespark.ContextOverflow, match="context"):
        chat(model, *[image(SMALL)] * 2, max_new_tokens=10**6)


@pytest.mark.parametrize("where", ["user", "assistant", "system", "with image", "between"])
@pytest.mark.parametrize("name", ["qwen2_5_vl", "idefics3", "gemma3", "muse_glimmer"])
def test_a_placeholder_that_somebody_writes_is_text(tmp_path, name: str, where: str) -> None:
    case = CASES[name]
    words = {case.placeholder, case.image_token, case.written, "<|vision_start|>", "<|im_end|>"}
    said = " ".join(sorted(words))
    talk = {
        "user": [{"role": "user", "content": said}],
        "assistant": [
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": said},
            {"role": "user", "content": "y"},
        ],
        "system": [{"role": "system", "content": said}, {"role": "user", "content": "x"}],
        "with image": [{"role": "user", "content": [text(said), image(case.image(0)), text(said)]}],
        # Between two markers it is a piece of its own, that only being text tells from an image.
        "between": [
            {
                "role": "user",
                "content": [image(case.image(0)), text(case.placeholder), image(case.image(0))],
            }
        ],
    }[where]
    with musespark.load(sight_folder(tmp_path / "m", name), quantize="none", threads=1) as model:
        request, _ = model._requests.chat(talk, {})
        ids = request.tokens.tolist()
        seen = {"with image": 1, "between": 2}.get(where, 0) * [image(case.image(0))]
        plain = [{"role": "user", "content": [text("x"), *seen, text("x")]}]
        bare = model._requests.chat(plain if seen else [{"role": "user", "content": "x"}], {})[0]
    rows = [i for i in ids if i < 0]
    assert rows == [i for i in bare.tokens.tolist() if i < 0]
    assert bool(rows) == bool(seen)
    # The markers of images are those that an image brings.
    markers = set(sight_cases.ID.values()) - {sight_cases.ID[end] for end in sight_cases.ENDS}
    assert [i for i in ids if i in markers] == [i for i in bare.tokens if i in markers]
    spelled = sight_cases.tokenizer().decode([i for i in ids if 0 <= i < sight_cases.BYTES])
    assert (case.placeholder if where == "between" else case.image_token) in spelled


def test_an_embedding_of_another_model_is_refused(model, tmp_path) -> None:
    other = sight_folder(tmp_path / "m", "qwen3_vl")
    with musespark.load(other, quantize="none", threads=1) as deep:
        embedding = deep.encode_image(SMALL)
        with pytest.raises(InvalidRequest, match="taps: got 2, needed is 0"):
            chat(model, image(embedding))
        bare = ImageEmbedding(embedding.outline, embedding.array)
        with pytest.raises(InvalidRequest, match="taps: got 0, needed is 2"):
            chat(deep, image(bare))
    narrow = model.encode_image(SMALL)
    with pytest.raises(InvalidRequest, match="25 rows"):
        ImageEmbedding(narrow.outline, narrow.array[:-1].copy())
    wrong = ImageEmbedding(narrow.outline, np.zeros((25, 7), np.float32))
    with pytest.raises(InvalidRequest, match="columns: got 7, needed is 40"):
        chat(model, image(wrong))


def test_settings_that_do_not_fit_the_tower_are_named(tmp_path) -> None:
    folder = sight_folder(tmp_path / "m", "idefics3")
    (folder / "processor_config.json").write_text('{"image_seq_len": 8}')
    with (
        musespark.load(folder, quantize="none", threads=1) as model,
        pytest.raises(CorruptFile, match=r"write 40 tokens.*gives 45 rows"),
    ):
        model.encode_image(np.zeros((24, 24, 3), np.uint8))
    folder = sight_folder(tmp_path / "n", NAME, image_mean="grey")
    with pytest.raises(CorruptFile, match="image_mean"):
        musespark.load(folder, quantize="none", threads=1)


def test_a_tower_that_is_not_run_is_named_when_an_image_comes(tmp_path) -> None:
    folder = sight_folder(tmp_path / "m", NAME, do_resize="maybe")
    with pytest.raises(CorruptFile, match="do_resize"):
        musespark.load(folder, quantize="none", threads=1)
    folder = sight_folder(tmp_path / "n", "muse_glimmer", do_resize=False)
    with musespark.load(folder, quantize="none", threads=1) as model:
        assert [n for n in model.info.notes if n.startswith("images: not read: ")]
        assert model.chat("text is read", **TWO).finish_reason == "length"
        with pytest.raises(UnsupportedModel, match="images: image processor: do_resize = false"):
            model.chat(messages("muse_glimmer", 1), **TWO)
        with pytest.raises(UnsupportedModel, match="do_resize"):
            model.encode_image(SMALL)


def test_without_settings_for_images_nothing_is_guessed(tmp_path) -> None:
    folder = sight_folder(tmp_path / "m", NAME)
    (folder / "preprocessor_config.json").unlink()
    why = "images: this model comes without preprocessor_config.json"
    with (
        musespark.load(folder, quantize="none", threads=1) as model,
        pytest.raises(UnsupportedModel, match=why),
    ):
        model.encode_image(SMALL)
    blind = musespark.load(blind_nano(tmp_path / "nano"), threads=1)
    with blind as nano, pytest.raises(UnsupportedModel, match=why):
        nano.encode_image(SMALL)
    (folder / "processor_config.json").write_text(
        json.dumps({"image_processor": dict(CASES[NAME].processor.preprocessor)})
    )
    with musespark.load(folder, quantize="none", threads=1) as model:
        assert model.encode_image(SMALL).array.shape == (25, 40)


def test_closing_ends_what_is_being_encoded(tmp_path, monkeypatch) -> None:
    begun = threading.Event()

    def endless(self, patches, grids, stopped):
        begun.set()
        for _ in range(2000):
            if stopped():
                raise Cancelled("within a layer")
            time.sleep(0.01)
        raise AssertionError("nobody stopped it")

    monkeypatch.setattr(VisionTower, "encode", endless)
    model = musespark.load(sight_folder(tmp_path / "m", NAME), quantize="none", threads=1)
    with ThreadPoolExecutor() as pool:
        waits = [pool.submit(chat, model, image(SMALL)), pool.submit(model.encode_image, SMALL)]
        assert begun.wait(10)
        model.close()
        for one in waits:
            # Whoever comes after the end is told so too.
            with pytest.raises(musespark.Error, match=r"the model (was|is) closed"):
                one.result(10)


def test_a_closed_model_encodes_nothing(tmp_path) -> None:
    model = musespark.load(sight_folder(tmp_path / "m", NAME), quantize="none", threads=1)
    model.close()
    with pytest.raises(musespark.Error, match="closed"):
        model.encode_image(SMALL)
