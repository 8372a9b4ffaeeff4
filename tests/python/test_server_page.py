"""The server's page in a real browser, on the embedded model: what is asked, shown, and refused."""

from __future__ import annotations

import base64
import io
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, Route, expect, sync_playwright

import musespark
from musespark.server import Access, Limits, create_app
from musespark.server.app import Server
from support.browser import find
from support.serving import served, within

CHROMIUM = find()
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the path"),
    pytest.mark.xdist_group("browser"),
]
SUM = "What is 47 + 38?"
PICTURE = Path(musespark.__file__).parent / "nano" / "examples" / "window.png"
DATA = base64.b64encode(PICTURE.read_bytes()).decode()
WHERE = "Where is the button Exit?"
TOKEN = "a-token-of-this-test"
PATIENCE_MS = 60_000  # for a machine that does other things beside
expect.set_options(timeout=PATIENCE_MS)
CHAT = "**/v1/chat/completions"
LONG = {"min_tokens": 1900, "max_tokens": 1900}

# Where screenshots are kept for people to look at.
SHOTS = os.environ.get("MUSESPARK_SCREENSHOTS")


@pytest.fixture(scope="module")
def model() -> Iterator[musespark.Model]:
    with musespark.load(threads=1) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def server(model) -> Server:
    return Server(model, (), Access(), Limits(running=2, waiting=1))


@pytest.fixture(scope="module")
def url(server: Server) -> Iterator[str]:
    with served(server.app) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield running
        running.close()


Open = Callable[..., Page]


@pytest.fixture
def opened(browser: Browser, url: str) -> Iterator[Open]:
    """Opens the page; at the end nothing may have gone wrong in it or been asked elsewhere."""
    contexts, problems, asked = [], list[str](), list[str]()

    def open_page(width: int = 1280, theme: str = "light", at: str = url) -> Page:
        viewport = {"width": width, "height": 800}
        context = browser.new_context(viewport=viewport, color_scheme=theme)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda told: problems.append(told.text))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(at)
        return page

    yield open_page
    for context in contexts:
        context.close()
    # What a browser says of an answer that is an error is no error of the page.
    assert [one for one in problems if "Failed to load resource" not in one] == []
    near = ("http://127.0.0.1:", "blob:http://127.0.0.1:", "data:")
    assert [one for one in asked if not one.startswith(near)] == []


@pytest.fixture
def page(opened: Open) -> Page:
    made = opened()
    expect(made.locator("#about")).not_to_be_empty()
    return made


def say(page: Page, text: str) -> None:
    page.fill("#message", text)
    page.keyboard.press("Enter")


def ended(page: Page, answers: int = 1) -> None:
    """Waits until so many answers are whole."""
    expect(page.locator(".facts")).to_have_count(answers)
    expect(page.locator("#send")).to_be_visible()


def sent(page: Page, **more: Any) -> list[dict[str, Any]]:
    """The requests that the page makes from here on, each with more fields."""
    bodies: list[dict[str, Any]] = []

    def go_on(route: Route) -> None:
        bodies.append(json.loads(route.request.post_data or ""))
        route.continue_(post_data=json.dumps({**bodies[-1], **more}))

    page.route(CHAT, go_on)
    return bodies


def canned(page: Page, *deltas: dict[str, Any], end: dict[str, Any] | None = None) -> None:
    """An answer that no model gives."""
    last = {"delta": {}, "finish_reason": "stop", "thinking_stop_reason": "natural"}
    last["timings"] = {"prefill_s": 0.0, "first_token_s": 0.0, "decode_s": 0.0}
    last |= end or {}
    choices = [*({"delta": delta, "finish_reason": None} for delta in deltas), last]
    lines = [f"data: {json.dumps({'choices': [choice]})}\n\n" for choice in choices]
    body = "".join([*lines, "data: [DONE]\n\n"])
    page.route(CHAT, lambda route: route.fulfill(content_type="text/event-stream", body=body))


def before_the_model(page: Page) -> Route:
    """The page anew, which waits for what the server says of its model; its request for that."""
    held: list[Route] = []
    page.route("**/v1/models", lambda route: held.append(route))
    page.reload()
    within(lambda: page.evaluate("1") and held, "the page does not ask for it")
    return held[0]


# ---- asking and answering -----------------------------------------------------------------------


def test_an_answer_its_folded_thought_and_how_fast_it_was(page: Page, model) -> None:
    here = model.chat(SUM, reasoning_effort="medium")
    bodies = sent(page)
    say(page, SUM)
    ended(page)
    assert page.locator(".question p").inner_text() == SUM
    assert page.locator(".reply > .prose").inner_text() == here.content
    thought = page.locator("details.thought")
    assert thought.get_attribute("open") is None
    expect(thought.locator(".thought-text")).to_be_hidden()
    thought.locator("summary").click()
    assert thought.locator(".thought-text").inner_text() == here.reasoning.strip()
    facts = page.locator(".facts").inner_text()
    assert f"{here.usage.completion_tokens} tokens" in facts
    assert "tokens/s" in facts
    expect(page.locator("#status")).to_have_text(here.content)
    assert bodies[0]["reasoning_effort"] == "medium"


def test_a_question_waits_for_the_model(page: Page) -> None:
    """The key did nothing before the server had said what it serves."""
    asks = before_the_model(page)
    say(page, SUM)
    assert page.locator(".turn").count() == 0
    asks.continue_()
    ended(page)
    assert page.locator(".question p").inner_text() == SUM


def test_a_conversation_goes_on_and_a_new_chat_begins(page: Page) -> None:
    bodies = sent(page)
    say(page, SUM)
    ended(page)
    say(page, "What is 7 + 8?")
    ended(page, 2)
    first, answer, again = bodies[1]["messages"]
    assert [first["content"], again["content"]] == [SUM, "What is 7 + 8?"]
    assert (answer["role"], answer["content"]) == ("assistant", "85")
    page.click("#new-chat")
    expect(page.locator(".turn")).to_have_count(0)
    expect(page.locator("#welcome")).to_be_visible()
    expect(page.locator("#message")).to_be_focused()
    say(page, SUM)
    ended(page)
    assert len(bodies[2]["messages"]) == 1


@pytest.fixture
def slow_steps(model, monkeypatch) -> None:
    """Holds the engine up at each token, so that a long answer takes seconds on any machine."""
    driver = model._engine._driver
    submit = driver.submit

    def waits(tokens: Any) -> None:
        time.sleep(0.005)

    def held(handle: Any, tokens: Any, params: dict, base: Any) -> None:
        submit(handle, tokens, {**params, "constraint": waits}, base)

    monkeypatch.setattr(driver, "submit", held)


@pytest.mark.usefixtures("slow_steps")
@pytest.mark.parametrize("how", ["Escape", "button"])
def test_it_streams_and_a_stop_ends_it_in_the_engine(page: Page, model, url, how: str) -> None:
    def running() -> int:
        return model._engine.stats()["running"]

    def written() -> str:
        lines = httpx.get(f"{url}/metrics").text.splitlines()
        return next(line for line in lines if line.startswith('musespark_tokens_total{kind="comp'))

    before = written()
    sent(page, **LONG, reasoning_effort="none")
    say(page, "Tell a story.")
    answer = page.locator(".reply > .prose")
    expect(answer).not_to_be_empty()
    expect(page.locator("#stop")).to_be_visible()
    some = len(answer.inner_text())
    page.wait_for_function("n => document.querySelector('.prose').innerText.length > n", arg=some)
    assert running() == 1
    if how == "Escape":
        page.keyboard.press("Escape")
    else:
        page.click("#stop")
    within(lambda: running() == 0, "its row is still there")
    assert written() == before, "it ran to its end"
    expect(page.locator(".remark")).to_have_text("Stopped.")
    expect(page.locator("#message")).to_be_focused()
    kept = answer.inner_text()
    assert len(kept) > some
    page.unroute(CHAT)
    bodies = sent(page)
    say(page, SUM)
    ended(page, 2)
    assert bodies[0]["messages"][1]["content"].split() == kept.split()


def test_a_stop_before_anything_was_said_leaves_no_trace_in_what_follows(page: Page) -> None:
    page.route(CHAT, lambda route: None)  # never answered
    say(page, SUM)
    expect(page.locator("#stop")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator(".remark").last).to_contain_text("does not build on this question")
    page.unroute(CHAT)
    bodies = sent(page)
    say(page, SUM)
    expect(page.locator(".facts")).to_have_count(1)
    assert len(bodies[0]["messages"]) == 1


def test_a_question_is_written_anew_and_what_followed_leaves(page: Page) -> None:
    bodies = sent(page)
    page.set_input_files("#picture-files", PICTURE)
    say(page, WHERE)
    ended(page)
    say(page, SUM)
    ended(page, 2)
    page.fill("#message", "a draft")
    page.locator(".question .edit").first.click()
    assert page.input_value("#message") == WHERE
    expect(page.locator("#tray img")).to_have_count(1)
    expect(page.locator(".turn.leaves")).to_have_count(2)
    shoot(page, "editing")
    page.keyboard.press("Escape")  # it stays as it was
    assert page.input_value("#message") == "a draft"
    expect(page.locator(".turn.leaves")).to_have_count(0)
    expect(page.locator("#tray img")).to_have_count(0)
    page.locator(".question .edit").nth(1).click()
    expect(page.locator(".turn.leaves")).to_have_count(1)
    say(page, "What is 7 + 8?")
    expect(page.locator(".question p").last).to_have_text("What is 7 + 8?")
    ended(page, 2)
    expect(page.locator("#editing")).to_be_hidden()
    assert page.input_value("#message") == ""
    assert [one["role"] for one in bodies[2]["messages"]] == ["user", "assistant", "user"]
    assert bodies[2]["messages"][0] == bodies[0]["messages"][0]
    assert bodies[2]["messages"][2]["content"] == "What is 7 + 8?"
    page.locator(".question .edit").first.click()
    page.click("#new-chat")
    expect(page.locator("#editing")).to_be_hidden()
    assert page.input_value("#message") == ""


def test_the_last_question_is_asked_again(page: Page) -> None:
    bodies = sent(page)
    for number, question in enumerate([SUM, "What is 7 + 8?"], 1):
        say(page, question)
        ended(page, number)
    expect(page.locator(".again").first).to_be_hidden()
    page.locator(".again").last.click()
    expect(page.locator(".reply > .prose").last).to_have_text("15")
    ended(page, 2)
    assert bodies[2] == bodies[1]
    page.route(CHAT, lambda route: None)  # never answered
    page.locator(".again").last.click()
    expect(page.locator("#stop")).to_be_visible()
    for one in (".edit", ".again"):  # not while an answer is written
        expect(page.locator(one).first).to_be_hidden()
    page.keyboard.press("Escape")


def test_effort_is_a_slider_with_names(page: Page) -> None:
    bodies = sent(page)
    slider = page.locator("#effort")
    slider.focus()
    names = []
    page.keyboard.press("Home")
    for _ in range(6):
        names.append(slider.get_attribute("aria-valuetext"))
        page.keyboard.press("ArrowRight")
    assert names == ["none", "minimal", "low", "medium", "high", "xhigh"]
    say(page, SUM)
    ended(page)
    assert bodies[0]["reasoning_effort"] == "xhigh"
    page.select_option("#agents", "2")
    slider.focus()
    page.keyboard.press("Home")  # agents that do not think are refused
    assert slider.get_attribute("aria-valuetext") == "minimal"


# ---- pictures -----------------------------------------------------------------------------------

DROPPED = """([kind, data, type]) => {
  const bytes = Uint8Array.from(atob(data), one => one.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], "a <b>file</b>", { type }));
  const [Kind, field] = kind === "paste"
    ? [ClipboardEvent, "clipboardData"] : [DragEvent, "dataTransfer"];
  const event = new Kind(kind, { [field]: transfer, bubbles: true, cancelable: true });
  document.querySelector("#message").dispatchEvent(event);
}"""


def paste(page: Page, data: bytes) -> None:
    page.evaluate(DROPPED, ["paste", base64.b64encode(data).decode(), "image/png"])


SLOW_PICTURES = """() => {
  const read = createImageBitmap;
  window.createImageBitmap = async (file) => {
    await new Promise((done) => { window.goOn = done; });
    return read(file);
  };
}"""


def test_a_question_waits_for_its_picture(page: Page) -> None:
    """It went without, and the picture with the next one."""
    page.evaluate(SLOW_PICTURES)
    bodies = sent(page)
    page.set_input_files("#picture-files", PICTURE)
    say(page, WHERE)
    assert page.input_value("#message") == WHERE
    page.evaluate("goOn()")
    ended(page)
    kinds = [part["type"] for part in bodies[0]["messages"][0]["content"]]
    assert kinds == ["image_url", "text"]


def test_a_picture_waits_for_the_model_too(page: Page) -> None:
    """It was dropped, with a word that the model reads text alone."""
    asks = before_the_model(page)
    paste(page, PICTURE.read_bytes())
    say(page, WHERE)
    expect(page.locator("#notice")).to_be_hidden()
    bodies = sent(page)
    asks.continue_()
    ended(page)
    kinds = [part["type"] for part in bodies[0]["messages"][0]["content"]]
    assert kinds == ["image_url", "text"]


def test_a_question_does_not_go_without_a_picture_that_nobody_sees(page: Page) -> None:
    asks = before_the_model(page)
    paste(page, PICTURE.read_bytes())
    say(page, WHERE)
    told = asks.fetch().json()
    told["data"][0]["images"] = False
    asks.fulfill(json=told)
    expect(page.locator("#notice")).to_have_text("This model reads text alone.")
    expect(page.locator("#send")).to_be_enabled()
    assert page.locator(".turn").count() == 0 and page.input_value("#message") == WHERE


def test_the_key_does_nothing_while_an_answer_is_written(page: Page) -> None:
    """Nor later, when a picture was read meanwhile."""
    page.evaluate(SLOW_PICTURES)
    page.route(CHAT, lambda route: None)  # never answered
    say(page, SUM)
    expect(page.locator("#stop")).to_be_visible()
    page.set_input_files("#picture-files", PICTURE)
    say(page, WHERE)
    page.click("#stop")
    page.evaluate("goOn()")
    expect(page.locator("#tray img")).to_have_count(1)
    assert page.locator(".turn").count() == 1 and page.input_value("#message") == WHERE


def test_a_word_about_a_broken_picture_stays_when_another_is_read(page: Page) -> None:
    page.evaluate(SLOW_PICTURES)
    page.set_input_files("#picture-files", PICTURE)
    say(page, WHERE)
    page.evaluate("() => { window.first = window.goOn; }")
    paste(page, b"no picture")
    page.evaluate("goOn()")
    expect(page.locator("#notice")).to_contain_text("Damaged")
    page.evaluate("first()")
    expect(page.locator("#tray img")).to_have_count(1)
    expect(page.locator("#notice")).to_contain_text("Damaged")
    assert page.input_value("#message") == WHERE


@pytest.mark.parametrize("why", ["more is written", "it does not open", "a new chat", "Escape"])
def test_a_question_that_waits_does_not_go_where(page: Page, why: str, tmp_path: Path) -> None:
    page.evaluate(SLOW_PICTURES)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    page.set_input_files("#picture-files", broken if why == "it does not open" else PICTURE)
    say(page, WHERE)
    if why == "more is written":
        page.keyboard.type(" And")
    if why == "a new chat":
        page.click("#new-chat")
    if why == "Escape":
        page.keyboard.press("Escape")
    page.evaluate("goOn()")
    if why == "it does not open":
        expect(page.locator("#notice")).to_contain_text("broken.png")
    else:
        expect(page.locator("#tray img")).to_have_count(1)
    expect(page.locator(".turn")).to_have_count(0)
    assert page.input_value("#message").startswith(WHERE)
    page.keyboard.press("Enter")
    ended(page)


def test_places_are_drawn_over_a_picture(page: Page, model) -> None:
    image = {"type": "image", "image": PICTURE.read_bytes()}
    asked = [{"role": "user", "content": [image, {"type": "text", "text": WHERE}]}]
    here = model.chat(asked, reasoning_effort="medium")
    regions = [region for step in here.trace.steps for region in step.regions]
    boxes = [region for region in regions if region.kind == "box"]
    points = {region.points for region in regions if region.kind == "point"}
    assert boxes and points, "nothing is named, so the test cannot tell"
    page.set_input_files("#picture-files", PICTURE)
    expect(page.locator("#tray img")).to_have_count(1)
    say(page, WHERE)
    expect(page.locator("#tray")).to_be_hidden()
    ended(page)
    drawn = page.locator(".shape.of-answer .line").get_attribute("points")
    left, top, right, bottom = boxes[0].bounds
    assert drawn == f"{left:g},{top:g} {right:g},{top:g} {right:g},{bottom:g} {left:g},{bottom:g}"
    assert page.locator(".picture svg").get_attribute("viewBox") == "0 0 128 128"
    assert page.locator(".dot").count() == len(points)
    frame, line = page.locator(".picture img").bounding_box(), page.locator(".shape .line")
    place, scale = line.bounding_box(), frame["width"] / 128
    middle = [place["x"] + place["width"] / 2 - frame["x"]]
    middle += [place["y"] + place["height"] / 2 - frame["y"]]
    assert middle == pytest.approx([(left + right) / 2 * scale, (top + bottom) / 2 * scale], abs=1)
    chip = page.locator(".chip.of-answer")
    chip.focus()
    number = chip.inner_text()
    expect(page.locator(".shape.here")).to_have_attribute("data-place", number)
    shoot(page, "trace")


@pytest.mark.parametrize("kind", ["paste", "drop"])
def test_pictures_are_pasted_and_dropped_and_taken_away(page: Page, kind: str) -> None:
    bodies = sent(page)
    page.evaluate(DROPPED, [kind, DATA, "image/png"])
    expect(page.locator("#tray img")).to_have_count(1)
    page.evaluate(DROPPED, [kind, DATA, "image/png"])
    expect(page.locator("#tray img")).to_have_count(2)
    page.locator(".remove").first.click()
    expect(page.locator("#tray img")).to_have_count(1)
    page.evaluate(DROPPED, [kind, DATA, "text/plain"])
    expect(page.locator("#notice")).to_have_text("No picture: a <b>file</b>.")
    page.click("#send")  # a picture alone is a question too
    ended(page)
    (part,) = bodies[0]["messages"][0]["content"]
    assert part["image_url"]["url"] == f"data:image/png;base64,{DATA}"


def test_a_damaged_picture_is_said_where_it_is_dropped(page: Page) -> None:
    """And is not sent, for the server reads none of these either."""
    whole = PICTURE.read_bytes()
    for data in (b"no picture", whole[:20], whole[: len(whole) // 2]):
        page.evaluate(DROPPED, ["drop", base64.b64encode(data).decode(), "image/png"])
        expect(page.locator("#notice")).to_contain_text("Damaged, or of a kind that is not read")
        expect(page.locator("#notice")).to_contain_text("a <b>file</b>")
        expect(page.locator("#tray img")).to_have_count(0)
        page.evaluate(DROPPED, ["drop", DATA, "image/png"])
        expect(page.locator("#notice")).to_be_hidden()
        page.locator(".remove").click()


def test_large_pictures_are_made_smaller(page: Page) -> None:
    """They are sent again with each question, so a photograph must not fill the server's limit."""
    noise = np.random.default_rng(0).integers(0, 256, (2000, 3000, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    bodies = sent(page)
    page.evaluate(DROPPED, ["drop", base64.b64encode(file.getvalue()).decode(), "image/png"])
    expect(page.locator("#tray img")).to_have_count(1)
    page.click("#send")
    ended(page)
    (part,) = bodies[0]["messages"][0]["content"]
    kind, data = part["image_url"]["url"].split(",")
    assert kind == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as seen:
        width, height = seen.size
    assert width * height <= 1.01 * 2**21
    assert abs(width / height - 1.5) < 0.01


def test_a_chat_sends_its_last_pictures(page: Page) -> None:
    bodies = sent(page)
    for count in (3, 14):  # 17, and 16 may be sent
        for _ in range(count):
            page.evaluate(DROPPED, ["drop", DATA, "image/png"])
        expect(page.locator("#tray img")).to_have_count(count)
        page.click("#send")
        ended(page, len(bodies))
    first, _, last = bodies[1]["messages"]
    assert (len(first["content"]), len(last["content"])) == (2, 14)
    expect(page.locator("#notice")).to_contain_text("only the last 16 pictures")


# ---- agents -------------------------------------------------------------------------------------


def test_agents_stand_side_by_side_and_vote(page: Page, model) -> None:
    options: dict[str, Any] = {"seed": 5, "temperature": 1.0}
    asked = "Sort: 49, 12, 88, 7"
    here = model.chat(asked, mode="contemplating", n_agents=4, reasoning_effort="medium", **options)
    bodies = sent(page, **options)
    page.select_option("#agents", "4")
    say(page, asked)
    ended(page)
    assert (bodies[0]["mode"], bodies[0]["n_agents"]) == ("contemplating", 4)
    cards = page.locator(".agent")
    told = [cards.nth(i).locator(".agent-text").inner_text() for i in range(4)]
    assert told == [agent.content for agent in here.agents]
    leading = [agent.agent for agent in here.agents if agent.key == here.answer]
    assert [i for i in range(4) if "leads" in cards.nth(i).get_attribute("class")] == leading
    assert page.locator(".reply > .prose").inner_text() == here.content
    places = [cards.nth(i).bounding_box() for i in range(4)]
    assert len({place["y"] for place in places}) == 1, "they do not stand side by side"
    shoot(page, "agents")


def test_what_decided_is_said_of_all(page: Page) -> None:
    """Of agents that were stopped it is said that they did not count, whatever they had written."""
    agents = [
        {"index": i, "round": 0, "key": "5" if i < 5 else None, "confidence": 0.9}
        | {"stop_reason": "stop" if i < 5 else "consensus", "completion_tokens": 3}
        for i in range(8)
    ]
    agents[0]["key"] = "4"
    deltas = [
        {"agent": {"index": i, "round": 0, "channel": "content", "text": "5"}} for i in range(8)
    ]
    end = {"agents": agents, "answer": "5", "stop_reason": "consensus"}
    canned(page, *deltas, {"content": "5"}, end=end)
    say(page, SUM)
    ended(page)
    expect(page.locator(".votes")).to_have_text("Decided after 5 of 8 answers: 4 agree.")
    states = page.locator(".agent-state").all_inner_texts()
    assert states == ["90% confident"] * 5 + ["not counted: decided before"] * 3


def test_agents_that_refine_have_a_row_for_each_round(page: Page) -> None:
    sent(page, seed=5, temperature=1.9)  # no two agents agree, so there is another round
    page.select_option("#agents", "2")
    page.select_option("#aggregate", "refine")
    say(page, "Sort: 49, 12, 88, 7, 31, 5, 64, 90")
    ended(page)
    expect(page.locator(".agents")).to_have_count(2)
    expect(page.locator(".board h2")).to_have_text("Round 2")


# ---- settings, the chat as a file ---------------------------------------------------------------


def test_a_system_prompt_and_a_temperature_are_sent(page: Page) -> None:
    bodies = sent(page)
    say(page, SUM)
    ended(page)
    assert [one["role"] for one in bodies[0]["messages"]] == ["user"]
    assert "temperature" not in bodies[0]
    page.click("#settings")
    page.fill("#system", " Be brief. ")
    page.fill("#temperature", "0.5")
    page.click("#settings-form [type=submit]")
    expect(page.locator("#settings")).to_have_class("round set")
    page.click("#new-chat")  # they stay
    say(page, SUM)
    ended(page)
    first, question = bodies[1]["messages"]
    assert first == {"role": "system", "content": "Be brief."}
    assert (question["content"], bodies[1]["temperature"]) == (SUM, 0.5)
    page.click("#settings")
    page.fill("#system", "")
    page.fill("#temperature", "3")
    page.click("#settings-form [type=submit]")
    expect(page.locator("#settings-dialog")).to_be_visible()  # it is more than is allowed
    page.fill("#temperature", "")
    page.keyboard.press("Enter")
    expect(page.locator("#settings-dialog")).to_be_hidden()
    expect(page.locator("#settings")).to_have_class("round")
    say(page, SUM)
    ended(page, 2)
    assert bodies[2]["messages"][0]["role"] == "user" and "temperature" not in bodies[2]
    assert page.evaluate("localStorage.length + sessionStorage.length") == 0


def test_a_chat_is_saved_as_a_file(page: Page, url: str) -> None:
    bodies = sent(page)
    page.click("#settings")
    expect(page.locator("#save-json")).to_be_disabled()  # there is nothing yet
    page.fill("#system", "Be brief.")
    page.keyboard.press("Escape")
    page.set_input_files("#picture-files", PICTURE)
    say(page, WHERE)
    ended(page)
    say(page, SUM)
    ended(page, 2)
    page.route(CHAT, lambda route: route.fulfill(status=500, body="?"))
    say(page, "A question without an answer")
    expect(page.locator(".said")).to_be_visible()
    answers = page.locator(".reply > .prose").all_inner_texts()[:2]
    page.click("#settings")
    saved = {}
    for kind, name in (("json", "chat.json"), ("markdown", "chat.md")):
        with page.expect_download() as download:
            page.click(f"#save-{kind}")
        assert download.value.suggested_filename == name
        saved[kind] = Path(download.value.path()).read_text(encoding="utf-8")
    chat = json.loads(saved["json"])
    assert chat["messages"][:4] == bodies[1]["messages"]
    assert [one["role"] for one in chat["messages"]] == ["system", *("user", "assistant") * 2]
    assert (
        httpx.post(f"{url}/v1/chat/completions", json=chat).status_code == 400
    )  # an answer ends it
    more = {**chat, "messages": chat["messages"][:-1], "max_tokens": 50}
    assert httpx.post(f"{url}/v1/chat/completions", json=more).status_code == 200
    told = saved["markdown"]
    titles = [line for line in told.splitlines() if line.startswith("#")]
    assert titles == [
        *("# spark-nano", "## System prompt"),
        *("## Question", "## Answer") * 2,
    ]
    assert f"(a picture)\n\n{WHERE}\n" in told and "data:" not in told
    assert all(f"\n\n{answer}\n" in told for answer in answers)
    assert "\n> " in told, "no thought is there"


def test_a_chat_is_not_lost_by_a_reload_without_a_word(page: Page) -> None:
    asked = []
    page.on("dialog", lambda dialog: (asked.append(dialog.type), dialog.accept()))
    page.reload()  # there is nothing to lose
    expect(page.locator("#about")).not_to_be_empty()
    assert asked == []
    say(page, SUM)
    ended(page)
    page.reload()
    expect(page.locator("#about")).not_to_be_empty()
    assert asked == ["beforeunload"]
    expect(page.locator(".turn")).to_have_count(0)


# ---- what goes wrong ----------------------------------------------------------------------------


def test_errors_are_shown_as_the_server_says_them(page: Page) -> None:
    sent(page, temperature=9)
    with page.expect_response(CHAT) as answered:
        say(page, SUM)
    said = answered.value.json()["error"]["message"]
    assert answered.value.status == 400
    assert "temperature" in said
    expect(page.locator(".error .said")).to_have_text(said)
    expect(page.locator(".error")).to_contain_text("400")
    expect(page.locator("#send")).to_be_visible()
    shoot(page, "error")
    expect(page.locator(".error button")).to_have_text("Edit")  # the same is refused again
    page.click(".error button")
    assert page.input_value("#message") == SUM


def test_a_full_queue_is_said_and_asked_again(page: Page, server: Server) -> None:
    turns = server.work.turns
    free, waiting = turns.free, turns.waiting
    turns.free, turns.waiting = 0, 1
    try:
        say(page, SUM)
        expect(page.locator(".error")).to_contain_text("429")
        expect(page.locator(".said")).to_contain_text("1 requests wait already; try again in")
    finally:
        turns.free, turns.waiting = free, waiting
    page.click(".error button")
    ended(page)
    expect(page.locator(".turn")).to_have_count(1)
    expect(page.locator(".reply > .prose")).to_have_text("85")


def test_where_the_context_is_full_a_new_chat_is_offered(page: Page, model) -> None:
    say(page, SUM)
    ended(page)
    say(page, "fox " * model.info.context)
    expect(page.locator(".said")).to_contain_text("tokens")
    button = page.locator(".error button")
    expect(button).to_have_text("New chat")
    button.click()
    expect(page.locator("#welcome")).to_be_visible()


def test_a_first_question_that_is_too_long_is_to_be_written_anew(page: Page, model) -> None:
    say(page, "fox " * model.info.context)
    expect(page.locator(".said")).to_contain_text("tokens")
    button = page.locator(".error button")
    expect(button).to_have_text("Edit")
    button.click()
    assert page.input_value("#message").startswith("fox fox")


def test_an_answer_that_fills_the_context_offers_a_new_chat(opened: Open) -> None:
    """One that is cut for another reason does not: what follows has room."""
    with musespark.load(threads=1, context=64) as small, served(create_app(small)) as url:
        page = opened(at=url)
        expect(page.locator("#about")).not_to_be_empty()
        sent(page, reasoning_effort="none", max_tokens=2)
        say(page, SUM)
        ended(page)
        expect(page.locator(".remark").first).to_contain_text("Cut: there was no room")
        expect(page.locator(".notes > button")).to_have_count(0)
        page.unroute(CHAT)
        end = {str(small.tokenizer.markers["<|eot|>"]): -100}
        sent(page, reasoning_effort="none", logit_bias=end)
        page.click(".again")
        ended(page)
        expect(page.locator(".remark")).to_contain_text("Cut: there was no room")
        button = page.locator(".notes > button")
        expect(button).to_have_text("New chat")
        shoot(page, "full")
        button.click()
        expect(page.locator("#welcome")).to_be_visible()


def test_what_breaks_off_says_so(page: Page) -> None:
    whole = 'data: {"choices": [{"delta": {"content": "half"}, "finish_reason": null}]}\n\n'
    page.route(CHAT, lambda r: r.fulfill(content_type="text/event-stream", body=whole))
    say(page, SUM)
    expect(page.locator(".said")).to_have_text("the connection ended before the answer did")
    expect(page.locator(".reply > .prose")).to_have_text("half")
    page.unroute(CHAT)
    page.route(CHAT, lambda route: route.abort())
    page.click(".error button")
    expect(page.locator(".said")).to_contain_text("does not answer")


def test_a_token_is_asked_for_and_kept_in_the_tab_alone(opened: Open, model) -> None:
    with served(create_app(model, access=Access(token=TOKEN))) as url:
        page = opened(at=url)
        expect(page.locator("#token")).to_be_focused()
        page.keyboard.press("Escape")
        expect(page.locator("#token-dialog")).to_be_visible()
        page.fill("#token", "wrong")
        page.keyboard.press("Enter")
        error = page.locator("#token-error")
        expect(error).to_contain_text("The token is missing or wrong.")
        expect(error).not_to_contain_text("Bearer")
        shoot(page, "token")
        page.fill("#token", TOKEN)
        page.keyboard.press("Enter")
        expect(page.locator("#token-dialog")).to_be_hidden()
        say(page, SUM)
        ended(page)
        assert page.evaluate("Object.values(sessionStorage)") == [TOKEN]
        assert page.evaluate("localStorage.length") == 0
        assert page.context.cookies() == []
        page.once("dialog", lambda dialog: dialog.accept())  # that the chat may go
        page.reload()
        expect(page.locator("#about")).not_to_be_empty()
        expect(page.locator("#token-dialog")).to_be_hidden()


# ---- what a model writes is data ----------------------------------------------------------------

HOSTILE = """<img src=x onerror="window.hit=1"><script>window.hit=1</script>
![p](http://evil.example/p.png) [here](javascript:window.hit=1) [safe](https://a.example/b)
<style>body{display:none}</style>"""


def test_nothing_of_an_answer_becomes_html(page: Page) -> None:
    agent = {"index": 0, "round": 0, "channel": "content", "text": HOSTILE}
    call = {"function": {"name": "<b>f</b>", "arguments": HOSTILE}}
    canned(page, {"reasoning": HOSTILE}, {"tool_calls": [call]}, {"content": HOSTILE})
    say(page, HOSTILE)
    ended(page)
    page.unroute(CHAT)
    canned(page, {"agent": agent}, {"content": HOSTILE})
    say(page, HOSTILE)
    ended(page, 2)
    inside = page.locator("#talk")
    assert inside.locator("img, script, style, b").count() == 1  # the agent's name
    assert inside.locator(".prose").first.inner_text().startswith("<img src=x onerror=")
    links = inside.locator("a").evaluate_all("all => all.map(one => [one.href, one.rel])")
    leads = {"https://a.example/b", "http://evil.example/p.png"}  # where a reader may choose to go
    assert {(one, "noopener noreferrer nofollow") for one in leads} == set(map(tuple, links))
    assert page.evaluate("window.hit") is None


MARKDOWN = {
    "a\nb\n\nc": "<p>a\nb</p><p>c</p>",
    "# One\n### Three": "<h3>One</h3><h5>Three</h5>",
    "2*3*4 and 2**3, **b** and *i* and _i_, a_b_c": (
        "<p>2*3*4 and 2**3, <strong>b</strong> and <em>i</em> and <em>i</em>, a_b_c</p>"
    ),
    "**a *b* c**": "<p><strong>a <em>b</em> c</strong></p>",
    "`a*b*` ~~no~~ \\*x\\*": "<p><code>a*b*</code> <del>no</del> *x*</p>",
    "- a\n- b\n  1. c\n  2. d\n\nend": (
        "<ul><li>a</li><li>b<ol><li>c</li><li>d</li></ol></li></ul><p>end</p>"
    ),
    "3. c\n\n4. d": "<ol><li>c</li><li>d</li></ol>",
    "> a\n> - b": "<blockquote><p>a</p><ul><li>b</li></ul></blockquote>",
    "```py\n<b>\n\n# x\n```\nend": "<div><div><span>py</span></div><pre><code><b>\n\n# x</code>"
    "</pre></div><p>end</p>",
    "~~~\nopen": "<div><div><span></span></div><pre><code>open</code></pre></div>",
    "|a|b\\|c|\n|-|:-:|\n|`1`|2|\nend": (
        "<div><table><thead><tr><th>a</th><th>b|c</th></tr></thead><tbody><tr>"
        "<td><code>1</code></td><td>2</td></tr></tbody></table></div><p>end</p>"
    ),
    "a | b": "<p>a | b</p>",
    "---": "<hr>",
    "see https://a.example/x, or": "<p>see <a>https://a.example/x</a>, or</p>",
    "[x](https://a.example/)": "<p><span><a>x</a><span> (a.example)</span></span></p>",
    "``a`b`` and `c``": "<p><code>a`b</code> and `c``</p>",
    "```x``` is code": "<p><code>x</code> is code</p>",
}
SHOWN = """async ([text, steps]) => {
  const { renderMarkdown } = await import("/page/markdown.js");
  const box = document.createElement("div");
  for (let end = steps; end < text.length; end += steps) renderMarkdown(box, text.slice(0, end));
  renderMarkdown(box, text);
  for (const one of box.querySelectorAll("button")) one.remove();
  const plain = (node) => node.nodeType === Node.TEXT_NODE ? node.data
    : `<${node.localName}>${[...node.childNodes].map(plain).join("")}`
      + (["hr"].includes(node.localName) ? "" : `</${node.localName}>`);
  return [...box.childNodes].map(plain).join("");
}"""


def test_markdown(page: Page) -> None:
    """Also as it comes: what was shown of half a text leaves nothing behind."""
    for text, wanted in MARKDOWN.items():
        for steps in (1, 10**6):
            assert page.evaluate(SHOWN, [text, steps]) == wanted, text


HEAVY = ["*", "**a ", "`", "``a", "_a ", "[", "![a](", "> ", "- ", "  - a\n", "|-", "~~", "\\"]
BLANK = " " * 300_000
BLANK_LINES = [
    f"a|b\n-{BLANK}x",
    f"a|b\n-|{BLANK}x",
    f"# {BLANK}a\u2028",
    f"-{BLANK}",
    f"---{BLANK}x",
]


def test_markdown_takes_any_text(page: Page) -> None:
    """These would take minutes, or all of the stack, where lengths and depths had no bounds."""
    for one in HEAVY:
        assert page.evaluate(SHOWN, [one * 20_000, 10**6])
    for one in BLANK_LINES:
        began = time.monotonic()
        assert page.evaluate(SHOWN, [one, 10**6]).startswith("<")
        assert time.monotonic() - began < 10


# ---- keys, sizes, colours -----------------------------------------------------------------------


def test_keys(page: Page) -> None:
    expect(page.locator("#message")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator(".turn")).to_have_count(0)  # there is nothing to send
    height = page.locator("#message").bounding_box()["height"]
    page.keyboard.type("a")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("b")
    assert page.input_value("#message") == "a\nb"
    assert page.locator("#message").bounding_box()["height"] > height
    order = []
    for _ in range(4):
        page.keyboard.press("Tab")
        order.append(page.evaluate("document.activeElement.id"))
        style = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert style == "solid", order
    assert order == ["add-picture", "effort", "agents", "send"]
    page.locator(".skip").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#message")).to_be_focused()  # past the conversation


CONTRASTS = """() => {
  const context = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (color) => {
    context.clearRect(0, 0, 1, 1);
    context.fillStyle = color;
    context.fillRect(0, 0, 1, 1);
    return [...context.getImageData(0, 0, 1, 1).data];
  };
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const found = rgba(getComputedStyle(at).backgroundColor);
      if (found[3] === 255) return found;
    }
  };
  const light = (color) => {
    const [r, g, b] = color.slice(0, 3).map((one) => one / 255)
      .map((one) => one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const texts = [...document.querySelectorAll("body *")].filter((one) => (
    [...one.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.data.trim())
    && one.checkVisibility() && !one.disabled));
  return texts.map((one) => {
    const [a, b] = [light(rgba(getComputedStyle(one).color)), light(ground(one))];
    return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), one.className || one.tagName];
  });
}"""


def shoot(page: Page, name: str, *, whole: bool = False) -> None:
    if SHOTS:
        page.screenshot(path=Path(SHOTS) / f"page-{name}.png", full_page=whole)


CUT = """() => [...document.querySelectorAll("select")].filter((one) => {
  const whole = one.cloneNode(true);
  Object.assign(whole.style, { position: "absolute", maxWidth: "none", width: "auto" });
  one.parentElement.append(whole);
  const cut = whole.getBoundingClientRect().width > one.getBoundingClientRect().width;
  whole.remove();
  return cut;
}).map((one) => one.id)"""


@pytest.mark.parametrize("width", [320, 360, 390])
def test_choices_are_whole_on_narrow_screens(opened: Open, width: int) -> None:
    page = opened(width=width)
    expect(page.locator("#about")).not_to_be_empty()
    assert page.evaluate(CUT) == []
    page.select_option("#agents", "8")
    assert page.evaluate(CUT) == []
    rows = [page.locator(one).bounding_box() for one in ("#add-picture", "#agents", "#send")]
    middles = [row["y"] + row["height"] / 2 for row in rows]
    assert max(middles) - min(middles) < 2, "they do not stand in one row"
    assert page.evaluate("document.documentElement.scrollWidth") <= width


FACTS = """() => [...document.querySelectorAll(".facts > *")].map((one) => {
  const range = document.createRange();
  range.selectNodeContents(one);
  return range.getBoundingClientRect().bottom;
})"""


@pytest.mark.parametrize("width", [1280, 390])
def test_facts_stand_on_one_line(opened: Open, width: int) -> None:
    """The buttons' letters too."""
    page = opened(width=width)
    for number in (1, 2):
        say(page, SUM)
        ended(page, number)
    page.locator(".again").last.evaluate("one => one.remove()")
    bottoms = page.evaluate(FACTS)
    lines = {round(one / 5) for one in bottoms}
    assert len(bottoms) > 8 and len({round(one, 1) for one in bottoms}) == len(lines)


WIDE = f"""## A title

{"w" * 300}

```
{"c" * 300}
```

|{"t|" * 60}
|{"-|" * 60}

- one
- two"""


def test_themes_and_widths(page: Page) -> None:
    """Every part in both themes: what is text can be read, and nothing scrolls sideways."""
    page.set_input_files("#picture-files", PICTURE)
    say(page, WHERE)
    ended(page)
    page.select_option("#agents", "4")
    say(page, "Sort: 49, 12, 88, 7")
    ended(page, 2)
    canned(page, {"reasoning": "t" * 300}, {"content": WIDE})
    say(page, "q" * 300)
    ended(page, 3)
    page.unroute(CHAT)
    page.route(CHAT, lambda route: route.fulfill(status=500, body="w" * 300))
    say(page, "?")
    expect(page.locator(".said")).to_be_visible()
    for theme in ("light", "dark"):
        page.emulate_media(color_scheme=theme)  # type: ignore[arg-type]
        found = page.evaluate(CONTRASTS)
        assert len(found) > 40
        assert [one for one in found if one[0] < 4.5] == []
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (int(ground[4:].split(",")[0]) > 127) == (theme == "light")
        for width in (1280, 390, 360):
            page.set_viewport_size({"width": width, "height": 800})
            shoot(page, f"{theme}-{width}", whole=True)
            scrolled = page.evaluate("document.documentElement.scrollWidth")
            assert scrolled <= width, "it scrolls sideways"
        page.click("#settings")
        assert [one for one in page.evaluate(CONTRASTS) if one[0] < 4.5] == []
        shoot(page, f"settings-{theme}")
        page.keyboard.press("Escape")
