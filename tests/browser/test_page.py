"""The page in a headless Chromium: for every task it shows the answer that the server gives, and the explanation.

`make test-browser` runs these tests. They are skipped where playwright or a Chromium is missing; MMATTN_SCREENSHOTS
names a folder for screenshots.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("playwright", reason="browser tests: pip install playwright")
pytest.importorskip("fastapi")

from playwright.sync_api import sync_playwright

from mmattn.tasks.common.serving.models import ServedModel, open_models
from mmattn.tasks.common.task import tasks
from tests.tasks.echo import Echo
from tests.tasks.servers import request, serving

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# No sandbox for root, no connections of its own, and a camera and a microphone that play a test pattern.
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync")
FLAGS += ("--disable-component-update", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="browser tests: install chromium, e.g. apt-get install chromium"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page that must log no error, and load nothing but from the server."""
    page = browser.new_page(viewport={"width": 1100, "height": 900})
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("request", lambda sent: errors.append(sent.url) if _is_foreign(sent.url) else None)
    page.errors = errors
    yield page
    page.close()


def _is_foreign(url: str) -> bool:
    return not url.startswith(("data:", "blob:http://127.0.0.1:", "http://127.0.0.1:"))


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """All built-in models on one server."""
    with serving(open_models([f"{task}/demo" for task in tasks()], device="cpu")) as address:
        yield address


def shoot(page: Any, name: str) -> None:
    """A screenshot for the eye."""
    if folder := os.environ.get("MMATTN_SCREENSHOTS"):
        page.screenshot(path=Path(folder, f"{name}.png"), full_page=True)


def answer(page: Any) -> str:
    """The answer, once the button can be pressed again."""
    page.wait_for_selector("#ask:enabled")
    return page.inner_text("#answer")


@pytest.mark.parametrize("task", tasks())
def test_the_answer_is_that_of_the_server(task: str, server: str, page: Any) -> None:
    name = f"{task}/demo"
    item = request(server, f"/examples?model={name}").json["items"][0]
    expected = request(server, "/predict", {"model": name, "item": item}).json
    page.goto(f"{server}/#{name}")
    page.click("#examples button")
    assert answer(page).split() == (expected["results"][0]["answer"] or "(nothing)").split()
    picture = page.wait_for_selector("#picture:not([hidden])")
    assert picture.evaluate("image => image.naturalWidth") > 100
    record = json.loads(page.text_content("#record pre"))["results"][0]["prediction"]
    given = expected["results"][0]["prediction"].keys()
    assert record.keys() == given - ({"score"} if task == "text_generation" else set()), "what is streamed has no score"
    assert f"{name}, version {expected['version']}, " in page.inner_text("#state")
    shoot(page, task)
    assert not page.errors


def test_explanations_have_the_options_of_the_page(server: str, page: Any) -> None:
    """Those that explain takes, and its own; options that a model refuses are not shown."""
    sent = {}
    page.on("request", lambda one: sent.update({one.url.rpartition("/")[2]: one.post_data_buffer or b""}))
    page.goto(f"{server}/#text_generation/demo")
    page.fill("#field-prompt", "the old cat")
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    for name, value in {"temperature": "1.5", "seed": "3", "max_new_tokens": "5", "words": "2"}.items():
        page.fill(f"#option-{name}", value)
    assert not page.query_selector("#option-chat")
    page.click("#ask")
    assert answer(page)
    page.wait_for_selector("#picture:not([hidden])")
    for name in ("temperature", "seed", "max_new_tokens"):
        assert all(f'name="{name}"'.encode() in sent[command] for command in ("predict", "explain"))
    assert b'name="words"' in sent["explain"]
    assert b'name="words"' not in sent["predict"]
    assert not page.errors


def test_a_model_without_examples_says_so(page: Any) -> None:
    with serving([ServedModel("own", Echo(), examples=[])]) as address:
        page.goto(address)
        page.get_by_text("serve --examples PATH gives some").wait_for()
    assert not page.errors


def test_own_files_texts_and_options(server: str, page: Any, tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    page.goto(f"{server}/#vqa/demo")
    page.set_input_files("#field-image", tmp_path / "red.png")
    assert page.locator("#preview-image img").evaluate(
        "async image => { await image.decode(); return image.naturalWidth }"
    )
    page.click("#ask")
    assert answer(page) == "question is missing."
    page.fill("#field-question", "what colour is the circle?")
    page.click("#more summary")
    page.fill("#option-top_k", "3")
    page.click("#ask")
    assert answer(page)
    assert page.locator(".bar").count() == 3
    page.set_input_files("#field-image", {"name": "x.png", "mimeType": "image/png", "buffer": b"nothing"})
    page.click("#ask")
    assert "expected an image" in answer(page)
    shoot(page, "error")
    assert page.input_value("#field-image").endswith("x.png")
    page.click("#examples button")
    assert answer(page)
    assert page.input_value("#field-image") == "", "the name of the earlier file is gone"
    assert [error for error in page.errors if "422" not in error] == []


def test_rare_options_are_behind_the_others(server: str, page: Any) -> None:
    page.goto(f"{server}/#text_generation/demo")
    page.click("#more > summary")
    assert page.is_visible("#option-temperature")
    assert not page.is_visible("#option-seed")
    page.click("#options summary")
    page.fill("#option-seed", "3")
    page.fill("#option-temperature", "-1")
    page.fill("#field-prompt", "the cat")
    page.click("#ask")
    assert answer(page) == "temperature: expected a number from 0 to 100, found '-1'."
    page.goto(f"{server}/#qa/demo")
    page.wait_for_selector("#option-threshold")
    assert page.locator("#options summary").count() == 0, "of few options, all are shown"
    assert [error for error in page.errors if "422" not in error] == []


def test_models_are_chosen_by_the_list(server: str, page: Any) -> None:
    page.goto(server)
    assert page.locator("#models option").count() == len(tasks())
    page.select_option("#models", "translation/demo")
    page.wait_for_selector("#field-text")
    page.fill("#field-text", "the old baker lifts a basket")
    page.click("#ask")
    expected = {"model": "translation/demo", "item": "the old baker lifts a basket"}
    assert answer(page) == request(server, "/predict", expected).json["results"][0]["answer"]
    assert not page.errors


@pytest.mark.parametrize(("task", "field"), [("classification", "image"), ("asr", "audio"), ("video", "video")])
def test_camera_and_microphone(task: str, field: str, server: str, page: Any) -> None:
    """Of a test pattern: a picture, a recording and a clip reach the model."""
    page.goto(f"{server}/#{task}/demo")
    page.click(f"#device-{field}")
    page.locator(f"#device-{field}", has_text=re.compile("Take|Stop")).wait_for()
    page.wait_for_timeout(1500)
    page.click(f"#device-{field}")
    page.wait_for_selector(f"#preview-{field} > *")
    page.uncheck("#explain")
    page.click("#ask")
    assert answer(page)
    assert page.get_attribute("#answer", "class") == "", page.inner_text("#answer")
    shoot(page, f"device_{field}")
    assert not page.errors


def test_token_and_streaming(browser: Any) -> None:
    echo = Echo()
    echo.go.release(100)
    with serving([ServedModel("echo", echo)], token="secret") as address:
        page = browser.new_page()
        page.goto(address)
        page.wait_for_selector("#token")
        assert page.is_hidden("#refused")
        page.fill("#token", "wrong")
        page.keyboard.press("Enter")
        page.wait_for_selector("#refused")
        assert page.inner_text("#refused") == "wrong token"
        assert page.is_visible("#token")
        page.fill("#token", "secret")
        page.keyboard.press("Enter")
        page.wait_for_selector("#field-text")
        assert page.is_hidden("#token")
        page.uncheck("#explain")
        page.fill("#field-text", "one two three")
        page.click("#ask")
        assert answer(page) == "ONE TWO THREE "
        page.click("#more summary")
        page.fill("#option-top_k", "2")  # with which it does not stream
        page.click("#ask")
        assert answer(page) == "ONE TWO THREE"
        page.close()


def test_a_text_ends_when_another_model_is_chosen(browser: Any) -> None:
    echo = Echo()
    with serving([ServedModel("first", echo), ServedModel("second", Echo())]) as address:
        page = browser.new_page()
        page.goto(address)
        page.fill("#field-text", "word " * 50)
        page.click("#ask")
        page.wait_for_function("document.getElementById('answer').textContent === 'WORD '")
        page.select_option("#models", "second")
        for _ in range(50):
            echo.go.release()
            page.wait_for_timeout(20)
        assert echo.pieces < 50, "the server writes no more"
        assert page.inner_text("#state") == page.inner_text("#answer") == ""
        page.close()


def test_the_page_fits_a_telephone_and_names_its_fields(server: str, browser: Any) -> None:
    page = browser.new_page(viewport={"width": 360, "height": 740})
    for task in ("vqa", "qa"):
        page.goto(f"{server}/#{task}/demo")
        page.reload()
        page.wait_for_selector("#examples button")
        page.click("#examples button")
        page.wait_for_selector("#picture:not([hidden])")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, "nothing is wider than the screen"
        unnamed = "all => all.filter(one => !one.labels.length && !one.ariaLabel).map(one => one.id)"
        assert page.eval_on_selector_all("input, textarea, select", unnamed) == []
        shoot(page, f"telephone_{task}")
    page.close()
