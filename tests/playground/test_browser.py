"""The playground as its users meet it: `rotalabs-steer playground` in a process of its own, and a real Chromium."""

import json
import os
import re
import socket
import subprocess
import sys
from itertools import pairwise

import pytest

from playground.conftest import MARKUP, QUESTION
from rotalabs_steer import MultiVectorInjector, SteeringVectorSet
from rotalabs_steer.chat.tokenizer import ChatTokenizer
from rotalabs_steer.generation.continuation import continue_rows

CHROMIUM = os.environ.get("ROTALABS_STEER_CHROMIUM")
pytestmark = [
    pytest.mark.real_model,
    pytest.mark.skipif(not CHROMIUM, reason="make test-playground runs it, with a Chromium"),
]
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
TOKENS = 24
SLOW = 60_000


@pytest.fixture(scope="module")
def address(vectors, tmp_path_factory):
    """The address of a playground, as the verb prints it."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    verb = "from rotalabs_steer.cli import main; main()"
    command = [sys.executable, "-c", verb, "playground", "sample", "--vectors", str(vectors), "--port", str(port)]
    log = tmp_path_factory.mktemp("playground") / "log"
    with log.open("w") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
    try:
        said = process.stdout.readline()
        found = re.fullmatch(r"The playground is at (http://127\.0\.0\.1:\d+/) \(Ctrl-C ends it\)\.\n", said)
        assert found, said + log.read_text()
        yield found[1]
        assert process.poll() is None
    finally:
        process.terminate()
        process.communicate(timeout=60)


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(params=[(1280, 900)], ids=["desk"])
def page(request, browser, address):
    """The page, loaded. It must ask no other host for anything, and fail nowhere."""
    width, height = request.param
    context = browser.new_context(
        viewport={"width": width, "height": height}, permissions=["clipboard-read", "clipboard-write"]
    )
    context.set_default_timeout(SLOW)
    page = context.new_page()
    asked, failed = [], []
    page.on("request", lambda sent: asked.append(sent.url))
    page.on("pageerror", lambda error: failed.append(str(error)))
    page.goto(address)
    page.wait_for_selector(".strength")
    for closed in ("Model and vectors", "More settings"):
        page.get_by_role("button", name=closed).click()
    page.get_by_label("Maximum number of new tokens").wait_for()
    page.locator("#send").click()  # Gradio hears what is typed in a field that has just appeared a moment later
    page.locator("#message").get_by_text("The prompt is empty.").wait_for()
    yield page
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []
    assert failed == []
    assert page.title() == "rotalabs-steer playground"
    assert page.locator("img[src=x]").count() == 0
    context.close()


def ask(page, prompt=QUESTION, tokens=TOKENS):
    """Sends a prompt with short answers, and waits for what belongs to them."""
    field = page.get_by_label("Maximum number of new tokens")
    field.fill(str(tokens))
    field.press("Tab")
    page.get_by_label("Prompt").fill(prompt)
    page.locator("#send").click()


def move(page, behavior, strength):
    """Moves a slider with the keyboard."""
    slider = page.get_by_label(f"range slider for {behavior}")
    slider.focus()
    for _ in range(round(abs(strength - float(slider.input_value())) / 0.05)):
        slider.press("ArrowRight" if strength > float(slider.input_value()) else "ArrowLeft")
    assert float(page.get_by_label(f"number input for {behavior}").input_value()) == strength


def answers(page):
    """Both panes, once they are written."""
    page.wait_for_selector("#panes .answer span[title]")
    return tuple(page.locator(f"#{pane} .answer").text_content() for pane in ("unsteered", "steered"))


def expected(model, tokenizer, vectors, strength):
    """What `model.generate` writes, steered or not."""
    injector = MultiVectorInjector(
        model, {"formality": SteeringVectorSet.load(vectors / "formality")}, {"formality": strength}
    )
    with injector:
        (row,) = continue_rows(model, tokenizer, [ChatTokenizer.of(tokenizer).prompt(QUESTION)], TOKENS)
    return tokenizer.decode(row, skip_special_tokens=True)


def test_a_slider_is_moved_and_both_answers_are_read(page, smollm, tokenizer, vectors, tmp_path):
    move(page, "formality", 1.25)
    ask(page)
    unsteered, steered = answers(page)
    assert unsteered == expected(smollm, tokenizer, vectors, 0.0)
    assert steered == expected(smollm, tokenizer, vectors, 1.25) != unsteered
    assert page.locator("#steered h3").text_content() == "Steered formality +1.25"

    page.locator("#python").get_by_label("Copy").click()
    program = page.evaluate("navigator.clipboard.readText()")
    printed = subprocess.check_output([sys.executable, "-c", program], text=True, stderr=subprocess.DEVNULL)
    assert printed.rstrip("\n") == steered.rstrip("\n")


def test_sliders_mark_the_safe_range_of_what_was_tuned(page):
    tuned, untuned = page.locator(".strength.tuned"), page.locator(".strength.untuned")
    assert tuned.count() == untuned.count() == 1
    assert "raw: no safe range known" in untuned.text_content()
    assert MARKUP in untuned.text_content()
    tracks = [each.evaluate("each => getComputedStyle(each).getPropertyValue('--track')") for each in (tuned, untuned)]
    assert ["25%" in track for track in tracks] == [True, False]


def test_tokens_are_coloured_by_the_behaviour_that_is_chosen(page):
    move(page, MARKUP, 0.5)
    move(page, "formality", 1)
    ask(page)
    first = answers(page)
    assert "more formality" in page.locator("#legend").text_content()
    colors = page.locator("#steered .answer span").first.get_attribute("style")
    page.get_by_label("Colour tokens by").click()
    page.get_by_role("option", name=MARKUP).click()
    page.wait_for_function(f"document.querySelector('#legend').textContent.includes({json.dumps(MARKUP)})")
    assert answers(page) == first
    assert page.locator("#steered .answer span").first.get_attribute("style") != colors
    page.get_by_label("Colour tokens by").click()
    page.get_by_role("option", name="nothing").click()
    page.wait_for_function("!document.querySelector('#legend').textContent.trim()")
    assert page.locator("#steered .answer span").count() == 0
    assert page.locator("#steered .answer").text_content() == first[1]


def test_history_is_opened_again_and_exported(page):
    move(page, "formality", 1)
    ask(page)
    first = answers(page)
    move(page, "formality", -1)
    ask(page, "Say hello.", tokens=8)
    rows = page.locator("#history tbody tr")
    page.wait_for_function("document.querySelectorAll('#history tbody tr').length === 2")
    assert rows.nth(0).text_content().split("formality")[0].strip() == "Say hello."
    rows.nth(1).click()
    page.wait_for_function(f"document.querySelector('#steered .answer').textContent === {json.dumps(first[1])}")
    assert page.get_by_label("Prompt").input_value() == QUESTION
    assert page.get_by_label("Maximum number of new tokens").input_value() == str(TOKENS)
    page.wait_for_function("document.querySelector('.tuned input[type=range]').value === '1'")
    with page.expect_download() as downloading:
        page.locator("#export").click()
    records = json.loads(downloading.value.path().read_text("utf-8"))
    assert [record["strengths"] for record in records] == [{"formality": -1.0}, {"formality": 1.0}]
    assert (records[1]["unsteered"], records[1]["steered"]) == first


def test_an_answer_is_stopped_and_the_next_one_is_right(page, smollm, tokenizer, vectors):
    move(page, "formality", 1)
    ask(page, "Write a long story about the sea.", tokens=400)
    page.wait_for_function("document.querySelector('#steered .writing .answer')?.textContent.length > 20")
    page.locator("#stop").click()
    page.wait_for_selector("#send:not([disabled])")
    assert page.locator(".writing").count() == 0
    assert page.locator("#python").is_hidden()
    ask(page)
    assert answers(page)[1] == expected(smollm, tokenizer, vectors, 1.0)


def test_where_nothing_steers_the_page_says_so(page):
    ask(page, tokens=4)
    page.wait_for_selector("#python .cm-content")
    assert "nothing steers" in page.locator("#steered").text_content()
    assert "rotalabs_steer" not in page.locator("#python").text_content()


def test_a_mistake_is_one_sentence_on_the_page(page, vectors, tmp_path):
    def load(message, **fields):
        for name, text in fields.items():
            page.locator(f"#{name} textarea").fill(text)
        page.locator("#load").click()
        page.locator("#setup-message").get_by_text(message).wait_for()

    nowhere = tmp_path / "nowhere"
    load(f"There are no steering vectors at {nowhere}: neither a folder of sets", vectors=str(nowhere))
    load("No model is named. Give a model folder", model="")
    load("There is no folder ./none. Give a model folder or a Hugging Face id.", vectors=str(vectors), model="./none")
    page.get_by_label("vLLM server").check()
    load(
        "No server answers at http://127.0.0.1:9/v1. Start one with: rotalabs-steer serve", server="http://127.0.0.1:9"
    )
    assert "Traceback" not in page.content()


@pytest.mark.parametrize("page", [(390, 844)], indirect=True, ids=["phone"])
def test_on_a_phone_everything_is_one_column(page):
    move(page, "formality", 1)
    ask(page)
    answers(page)
    boxes = [page.locator(f"#{name}").bounding_box() for name in ("strengths", "unsteered", "steered", "found")]
    assert all(above["y"] + above["height"] <= below["y"] for above, below in pairwise(boxes))
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= 390 for box in boxes)
    assert page.evaluate("document.scrollingElement.scrollWidth") == 390
    send = page.locator("#send").bounding_box()
    assert 700 < send["y"] < 844
