"""Pictures, their questions, zooming: what generators claim, checked from outside."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import combinations
from random import Random

import numpy as np
import pytest

from musespark.errors import InvalidRequest
from musespark.lab import drills, glyphs, mix, raster, zoom
from musespark.lab.evaluate import blinded, items_for, overlap
from musespark.lab.grading import boxes_in, grade, overlap_of
from musespark.lab.item import EFFORTS, LEVELS, HeldOutWording, Item, compose, is_evaluation, phrase
from musespark.lab.tasks import draw, figures, nlvr, pictures, pointing, scenes, zooming
from musespark.vision.loop import VisualLoop
from musespark.vision.pixels import open_picture
from musespark.vision.processors.muse import Muse

CASES = [(task, level) for task in pictures.TASKS for level in LEVELS]


@pytest.mark.parametrize(("task", "level"), CASES)
def test_questions_about_one_picture_share_it_and_its_side(task, level):
    for evaluation in (False, True):
        asked = pictures.ask_several(Random(3), task, level, 4, evaluation=evaluation)
        assert all(p.pictures[0] is asked[0].pictures[0] for p in asked)
        assert all(is_evaluation(pictures.SPLIT, p.key) == evaluation for p in asked)
        assert len({(p.question, p.answer) for p in asked}) == len(asked)


@pytest.mark.parametrize(("task", "level"), CASES)
def test_a_picture_is_a_function_of_the_seed(task, level):
    one, same, other = (pictures.ask(Random(s), task, level) for s in (5, 5, 6))
    assert (one.pictures[0].pixels == same.pictures[0].pixels).all()
    assert (one.question, one.answer, one.key) == (same.question, same.answer, same.key)
    assert one.pictures[0].pixels.shape == (128, 128, 3)
    assert one.pictures[0].pixels.tobytes() != other.pictures[0].pixels.tobytes()


@pytest.mark.parametrize("level", LEVELS)
def test_things_are_where_their_boxes_say(level):
    """Outside all boxes there is background only; each box is filled to its edges in its color."""
    for seed in range(30):
        scene = scenes.draw_scene(
            Random(seed), 6, (14, 30), scenes.plain_kinds(Random(seed), 6, level)
        )
        pixels = scene.picture.pixels.astype(int)
        outside = np.ones((128, 128), bool)
        for t in scene.things:
            x0, y0, x1, y1 = t.box
            outside[y0:y1, x0:x1] = False
        spread = np.ptp(pixels[outside], axis=0).max()
        assert spread <= 28  # noise of up to 14 levels
        background = np.median(pixels[outside], axis=0)
        for t in scene.things:
            x0, y0, x1, y1 = t.box
            inked = np.abs(pixels[y0:y1, x0:x1] - background).max(-1) > 20
            assert inked.any(0)[[0, -1]].all()
            assert inked.any(1)[[0, -1]].all()
            mask = raster.shape_mask(t.shape, t.size)
            ink = np.median(pixels[y0:y1, x0:x1][mask], axis=0)
            assert np.abs(ink - raster.COLORS[t.color]).max() <= 40


def test_counting_thoughts_go_through_all_shapes_and_number_those_they_count():
    rng = Random(8)
    for level in LEVELS:
        for _ in range(60):
            problem = draw(rng, "counting", level, evaluation=False)
            text, result = problem.steps(None)
            assert result == problem.answer
            things = len(problem.key.split()) // 3
            assert len(re.findall(r"\(\d+,\d+\) \w+", text)) == things
            numbers = re.findall(r"[a-z] (\d+)\b", text.removesuffix(f" So {result}."))
            assert numbers == [str(k + 1) for k in range(int(problem.answer))]
            assert len(re.findall(r"\(\d+,\d+\)", problem.check(result)[0])) == things
            assert len(re.findall(r"\(\d+,\d+\)", problem.second)) == int(problem.answer)


def test_thoughts_of_labels_go_down_to_the_line_that_is_asked_for():
    rng = Random(8)
    for level in LEVELS:
        for _ in range(40):
            problem = draw(rng, "labels", level, evaluation=False)
            begun, at, _ = problem.steps(None)[0].split(": ", 2)
            lines = [part.split() for part in begun.split(", ")]
            names = problem.key.split()[1::2]
            assert [a + b for _, a, b in lines] == [name[:2] for name in names[: len(lines)]]
            tops = [int(top) for top, _, _ in lines]
            assert tops == sorted(tops)
            name, box = at.split(" at ")
            assert name == names[len(lines) - 1] and name.lower() in problem.question
            assert int(box.split(",")[1]) == tops[-1]


def test_comparisons_in_correct_thoughts_about_relations_hold():
    rng, seen = Random(8), 0
    for level in LEVELS:
        for _ in range(60):
            text, _ = draw(rng, "relations", level, evaluation=False).steps(None)
            for left, sign, right in re.findall(r": (\d+)([<>])(\d+),", text):
                assert (int(left) < int(right)) == (sign == "<")
                seen += 1
    assert seen > 80


def test_patch_labels_name_what_stands_there():
    canvas = raster.Canvas()
    canvas.stamp(raster.shape_mask("square", 16), 16, 32, (1, 2, 3), "square", "blue")
    width, blue = raster.LABEL_WIDTH, 1 + list(raster.COLORS).index("blue")
    square = raster.CLASSES.index("square"), blue, 0, 16, 32, 32, 48
    assert [tuple(v) for v in canvas.labels[4:6, 2:4].reshape(-1, width)] == [square] * 4
    assert (canvas.labels.reshape(-1, width).any(1)).sum() == 4
    canvas.text("7", 64, 64, (0, 0, 0), scale=1)
    assert canvas.labels[8, 8, 2] == 1 + raster.CHARACTERS.index("7")
    assert all(canvas.labels[..., k].max() < n for k, n in enumerate(raster.LABELS))


def test_each_patch_of_a_character_knows_it_and_the_line_it_stands_in():
    canvas = raster.Canvas()
    box = canvas.text("4T", 10, 20, (0, 0, 0), scale=4)  # 20 by 28 pixels each, 4 apart
    text = raster.CLASSES.index("text")
    read = canvas.labels[..., 2].astype(int) - 1
    assert box == (10, 20, 54, 48)
    assert canvas.middles == [20, 44]
    for left, character in ((10, "4"), (34, "T")):
        rows, columns = (
            [p for p in range(16) if low <= 8 * p + 4 < high]
            for low, high in ((20, 48), (left, left + 20))
        )
        part = np.ix_(rows, columns)
        assert (read[part] == raster.CHARACTERS.index(character)).all()
        assert (canvas.labels[part] == (text, 0, read[part][0, 0] + 1, *box)).all()
        read[part] = -1
    assert (read == -1).all()
    canvas.forget(box)
    assert not canvas.labels.any()


def test_text_on_a_button_keeps_the_buttons_box():
    r = Random(4)
    for _ in range(20):
        problem = draw(r, "buttons", "middle", evaluation=False)
        labels = problem.pictures[0].labels
        written = labels[labels[..., 2] > 0]
        boxes = {raster.scaled(tuple(map(int, v[3:]))) for v in written}
        asked = tuple(map(int, re.findall(r"\d+", problem.answer)))
        assert asked in boxes


@pytest.mark.parametrize("kind", drills.KINDS)
def test_drills_are_full_of_what_the_heads_ask_about(kind, monkeypatch):
    monkeypatch.setattr(drills, "KINDS", {kind: 1})
    pages = [drills.draw(Random(s)) for s in range(40)]
    labels = np.stack([p.labels for p in pages])
    assert labels.shape == (40, 16, 16, raster.LABEL_WIDTH)
    assert all((labels[..., k] < n).all() for k, n in enumerate(raster.LABELS))
    assert (labels[..., 5] <= 128).all()
    per_picture = (labels[..., 0] > 0).sum() / 40
    assert per_picture > {"page": 25, "displays": 25, "shapes": 30, "scene": 15}[kind]
    if kind == "page":
        told = set(labels[..., 2].reshape(-1).tolist())
        assert told == set(range(1 + len(raster.CHARACTERS)))
    assert (pages[3].pixels == drills.draw(Random(3)).pixels).all()


def test_what_reading_says_of_places_is_where_the_characters_are():
    """Between two neighbours' middles there is no ink of a third; each is inside the line's box."""
    r = Random(9)
    for task, level in (("codes", "middle"), ("displays", "hard"), ("labels", "middle")):
        for _ in range(20):
            problem = draw(r, task, level, evaluation=False)
            if problem.answer == scenes.CANNOT_TELL:
                continue
            thought, _ = problem.steps(None)
            x0, _, x1, _ = boxes_in(thought)[0][1]
            read = re.findall(r"(\d+) (\S)(?:,|\.)", thought.split("]: ")[1])
            assert "".join(c for _, c in read) == problem.answer
            middles = [int(x) for x, _ in read]
            assert middles == sorted(set(middles))
            assert all(x0 <= x <= x1 for x in middles)


def test_no_two_characters_of_a_face_look_alike():
    for font in glyphs.FONTS:
        known = raster.CHARACTERS + ("" if font == "small" else "abcdefghijklmnopqrstuvwxyz")
        for a, b in combinations(known, 2):
            assert not np.array_equal(glyphs.glyph(a, font, 2), glyphs.glyph(b, font, 2)), (a, b)
    for a, b in combinations("0123456789", 2):
        shapes = (glyphs.seven_segments(d, 8, 16, 2) for d in (a, b))
        assert not np.array_equal(*shapes)


def test_drawing_is_cut_at_the_edges():
    canvas = raster.Canvas((0, 0, 0))
    assert canvas.rectangle((-5, 120, 3, 140), (9, 9, 9)) == (0, 120, 3, 128)
    assert canvas.rectangle((130, 0, 140, 5), (9, 9, 9))[0] >= 128
    assert (canvas.pixels == 9).sum() == 3 * 8 * 3


def test_resizing_keeps_constants_and_averages_ramps():
    flat = np.full((512, 512, 3), 77, np.uint8)
    assert (raster.resized(flat, 128, 128) == 77).all()
    ramp = np.repeat((np.arange(512) // 2).astype(np.uint8)[:, None, None], 512, 1)
    ramp = np.repeat(ramp, 3, 2)
    small = raster.resized(ramp, 128, 64)
    wanted = np.arange(128) * 2 + 0.75
    assert np.abs(small[8:-8, 5, 0] - wanted[8:-8]).max() <= 1
    turned = raster.resized(ramp.transpose(1, 0, 2), 64, 128)
    assert (turned.transpose(1, 0, 2) == small).all()


@pytest.mark.parametrize(
    ("size", "grid"),
    [
        ((512, 512), (8, 8)),
        ((128, 128), (8, 8)),
        ((100, 60), (7, 4)),
        ((16, 16), (1, 1)),
        ((64, 128), (4, 8)),
        ((5, 500), (1, 32)),
        ((1000, 500), (11, 5)),
    ],
)
def test_grids_of_tokens(size, grid):
    """As the rule reads: the whole grid nearest the aspect ratio, at most 64 tokens."""
    assert raster.grid_for(*size) == grid


@pytest.mark.parametrize("size", [(512, 512), (100, 130), (33, 70), (300, 40)])
def test_the_lab_sizes_pictures_as_the_products_processor_does(size):
    """But for its rounding of the filter's weights: one level in a few of ten thousand values."""
    pixels = np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8)
    settings = {"patch_size": 8, "max_image_tokens": raster.MOST_TOKENS}
    processor = Muse({"model_type": "muse_glimmer"}, settings)
    seen = processor.resized(open_picture(pixels), processor.settings, "max_image_tokens").pixels
    away = np.abs(seen.astype(int) - raster.fitted(pixels))
    assert away.max() <= 1
    assert away.mean() < 1e-3


def test_the_only_shortest_way_of_a_maze():
    assert figures._only_way(3, {(1, 1)}, (0, 0), (0, 2)) == ["right", "right"]
    assert figures._only_way(3, {(0, 1)}, (0, 0), (0, 2)) == ["down", "right", "right", "up"]
    assert figures._only_way(3, {(1, 1)}, (0, 0), (2, 2)) is None  # two ways around
    assert figures._only_way(3, {(0, 1), (1, 1), (2, 1)}, (0, 0), (0, 2)) is None  # none


def test_a_quarter_box_is_seen_pixel_by_pixel():
    large = np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8)
    picture = raster.Picture(raster.resized(large, 128, 128), original=large)
    for x in range(0, 751, 50):
        seen = zoom.crop(picture, (x, 500, x + 250, 750)).pixels
        left = round(x * 512 / 1000)
        assert (seen == large[256:384, left : left + 128]).all()


@pytest.mark.parametrize("box", [(900, 900, 2000, 5000), (500, 500, 100, 100), (7, 7, 7, 7)])
def test_odd_boxes_are_clipped_and_turned_round(box):
    pixels = np.zeros((128, 128, 3), np.uint8)
    seen = zoom.crop(raster.Picture(pixels), box).pixels
    assert min(seen.shape[:2]) >= 16
    assert seen.shape[0] % 16 == seen.shape[1] % 16 == 0


def test_a_zooming_item_is_asked_without_its_calls_and_goes_on_with_the_crop():
    rng = Random(2)
    problem = next(p for p in iter(lambda: zooming.zooming(rng, "middle")(rng), None) if p.tools)
    item = compose(problem, "medium", rng)
    asked = zoom.opened(item)
    assert [m["role"] for m in asked.messages] == ["user"]
    assert len(asked.pictures) == 1
    call = item.messages[1]["tool_calls"][0]["function"]
    told = {"name": call["name"], "arguments": {k: str(v) for k, v in call["arguments"].items()}}
    further = zoom.answered(asked, "t", [told])
    assert (further.pictures[1].pixels == item.pictures[1].pixels).all()
    assert [m["role"] for m in further.messages] == ["user", "assistant", "tool"]
    for wrong in ({"bbox_2d": "here"}, {"img_idx": "1"}, {"img_idx": "-1"}):
        arguments = told["arguments"] | wrong
        assert zoom.answered(asked, "t", [{"name": told["name"], "arguments": arguments}]) is None
    assert zoom.answered(asked, "t", [{"name": "other", "arguments": told["arguments"]}]) is None


@pytest.mark.parametrize(
    ("checker", "want", "got", "right"),
    [
        ("box", "[100,100,300,300]", "[100, 100, 300, 300]", True),
        ("box", "[100,100,300,300]", "[100,100,300,180]", False),
        ("box", "[100,100,300,300]", "[300,300,100,100]", False),
        ("box", "[100,100,300,300]", "[100,100,300,300] [0,0,9,9]", False),
        ("box", "[100,100,300,300]", "there", False),
        ("boxes", "red ring [0,0,90,90]; blue cross [500,500,700,700]",
         "blue cross [510,500,700,700]; red ring [0,0,90,80]", True),
        ("boxes", "red ring [0,0,90,90]", "red cross [0,0,90,90]", False),
        ("boxes", "red ring [0,0,90,90]", "red ring [0,0,90,90]; red ring [0,0,90,90]", False),
        ("boxes", "red ring [0,0,90,90]; red ring [0,0,90,90]", "red ring [0,0,90,90]", False),
    ],
)  # fmt: skip
def test_grading_boxes(checker, want, got, right):
    assert grade(Item("t", "easy", "low", "k", [], "", want, checker), got) is right


def test_overlap_of_boxes():
    assert overlap_of((0, 0, 10, 10), (5, 0, 15, 10)) == pytest.approx(1 / 3)
    assert overlap_of((0, 0, 10, 10), (10, 0, 20, 10)) == 0
    assert boxes_in("a [1,2,3,4]; b [5, 6, 7, 8]") == [("a", (1, 2, 3, 4)), ("b", (5, 6, 7, 8))]


def test_held_wordings_are_never_trained():
    templates = tuple("abcdefghijklmnopqrst")
    trained = {phrase(Random(s), templates) for s in range(300)}
    held = {phrase(HeldOutWording(s), templates) for s in range(300)}
    assert (len(trained), held) == (18, {"s", "t"})
    assert not trained & held
    seen, unseen = (
        {i.messages[-1]["content"][-1]["text"] for i in asked}
        for asked in (
            items_for(["codes"], ["easy"], ["low"], 40, 1, held_wording=held)
            for held in (False, True)
        )
    )
    assert not seen & unseen
    assert len(unseen) == 1


def test_evaluated_pictures_are_never_trained():
    items = items_for(["counting", "codes", "zooming"], ["easy"], ["low"], 20, seed=3)
    assert overlap(items, 120, seed=5)["instances"] == 0
    rng = Random(5)
    mix.draw_training_item(rng, "main")
    stolen = mix.draw_picture_items(rng)[0]
    # The same scene under another task's name is the same instance.
    assert overlap([replace(stolen, task="relations")], 1, seed=5)["instances"] >= 1


def test_baselines_grey_and_swapped():
    items = items_for(["counting", "addition"], ["easy"], ["low"], 4, seed=3)
    swapped = blinded(items, "swapped")
    shown = [id(i.pictures[0]) for i in items[:4]]
    for k in range(4):
        assert id(swapped[k].pictures[0]) in shown[:k] + shown[k + 1 :]
        assert swapped[k].answer == items[k].answer
    grey = blinded(items, "grey")
    assert np.ptp(grey[0].pictures[0].pixels) == 0
    assert swapped[4] is items[4]
    assert items[0].modality == "vision"


def test_efforts_of_a_picture_are_told_apart():
    rng = Random(4)
    problem = draw(rng, "counting", "middle", evaluation=False)
    low, medium, high, xhigh = (compose(problem, e, Random(0)).thought for e in EFFORTS)
    assert low == ""
    assert medium in high
    assert "Check: from the left" in high
    assert "Another way: from below" in xhigh


def test_mazes_are_walked_without_meeting_a_wall():
    rng = Random(4)
    for level in LEVELS:
        for _ in range(10):
            p = draw(rng, "mazes", level, evaluation=False)
            side, at, end, walls = _maze(p.key)
            for move in p.answer.split():
                di, dj = {"right": (0, 1), "left": (0, -1), "down": (1, 0), "up": (-1, 0)}[move]
                at = at[0] + di, at[1] + dj
                assert 0 <= at[0] < side
                assert 0 <= at[1] < side
                assert at not in walls
            assert at == end


def _maze(key):
    numbers = [int(n) for n in re.findall(r"\d+", key)]
    cells = list(zip(numbers[1::2], numbers[2::2], strict=True))
    return numbers[0], cells[-2], cells[-1], set(cells[:-2])


def test_two_pictures_differ_in_what_the_answer_names():
    rng = Random(4)
    for level in LEVELS:
        p = draw(rng, "comparing", level, evaluation=False)
        first, second = p.steps(None)[0].split(" Second: ")
        assert p.answer not in first
        assert p.answer in second.split(" New: ")[0]
        assert len(p.pictures) == 2
        content = compose(p, "low", rng).messages[0]["content"]
        assert [part["type"] for part in content] == ["image", "image", "text"]


# ---- NLVR --------------------------------------------------------------------------------------


@pytest.fixture
def scenes_file(tmp_path, monkeypatch):
    """40 sentences, two scenes each."""
    monkeypatch.setattr(nlvr, "_records", {False: [], True: []})
    square = {"x_loc": 10, "y_loc": 70, "type": "square", "color": "#0099ff", "size": 30}
    circle = {"x_loc": 60, "y_loc": 10, "type": "circle", "color": "Yellow", "size": 10}
    lines = [
        {
            "sentence": f"There are {k} things.",
            "label": ("true", "false")[k % 2],
            "structured_rep": [[square], [circle, square], []],
        }
        for k in range(40)
        for _ in range(2)
    ]
    path = tmp_path / "dev.json"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_nlvr_is_split_by_sentence_and_drawn_from_its_structure(scenes_file):
    assert not nlvr.there()
    assert nlvr.use(scenes_file) == 80
    rng = Random(4)
    trained = {nlvr.problem(rng, evaluation=False).key for _ in range(300)}
    held = {i.key for i in nlvr.items(list(LEVELS), ["low"], 99, seed=1)}
    assert held
    assert not trained & held
    assert len(trained) + len(held) == 40
    p = nlvr.problem(rng, evaluation=False)
    assert p.question == f"True or false: {p.key}"
    pixels = p.pictures[0].pixels
    assert pixels.shape == (128, 128, 3)
    blue = (pixels == raster.COLORS["blue"]).all(-1).sum()
    assert abs(blue - 2 * 19**2) < 40
    thought, _ = p.steps(None)
    assert thought.count("blue square") == 2
    assert thought.count("yellow circle") == 1
    assert "nothing" in thought
    items = nlvr.items(list(LEVELS), ["low", "high"], 3, seed=1)
    assert [i.effort for i in items] == ["low"] * 3 + ["high"] * 3
    assert overlap(items, 50, seed=1)["instances"] == 0
    assert not nlvr.items(["middle", "hard"], ["low"], 3, seed=1)


def test_nlvr_is_trained_on_where_it_is_there(scenes_file, monkeypatch):
    rng = Random(4)
    monkeypatch.setattr(mix, "NLVR", 0.5)
    assert not any(i.task == "nlvr" for _ in range(20) for i in mix.draw_picture_items(rng))
    nlvr.use(scenes_file)
    assert any(i.task == "nlvr" for _ in range(20) for i in mix.draw_picture_items(rng))


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"sentence": "a", "label": "true", "structured_rep": [[]]}', "7"]
)
def test_an_odd_nlvr_file_is_refused(tmp_path, line, monkeypatch):
    monkeypatch.setattr(nlvr, "_records", {False: [], True: []})
    path = tmp_path / "dev.json"
    path.write_text(line)
    with pytest.raises(InvalidRequest, match=r"dev.json:1: "):
        nlvr.use(path)
    with pytest.raises(InvalidRequest, match="nothing"):
        nlvr.use(tmp_path / "nothing")


def test_what_is_pointed_at_differs_from_the_background():
    """A color like the background's is none of those drawn, and another is always left."""
    for grey in range(0, 256, 5):
        for name, color in raster.COLORS.items():
            left = pointing._shown(([], [], list(raster.COLORS)), (grey, grey, grey))[2]
            assert len(left) >= len(raster.COLORS) - 1
            near = sum(abs(v - grey) for v in color) < 60
            assert not (near and name in left)


def test_the_tools_that_training_shows_are_those_of_look():
    assert list(zoom.SHIPPED) == VisualLoop(lambda *_, **__: None, "muse").schemas
