"""page/: a real browser sends pictures, sees answers, maps and errors, and works by keyboard."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright
from servers import CLASSES, NAME, Served, picture, serving

pytestmark = pytest.mark.slow
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, server: Served) -> Iterator[Page]:
    page = browser.new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda sent: wrong.extend([sent.url] if not ours(sent.url, server) else []))
    page.goto(server.url)
    yield page
    page.close()
    assert wrong == []  # neither an error of the page nor a request to anywhere else


def ours(url: str, server: Served) -> bool:
    return url.startswith((server.url, "blob:"))


def sent(name: str, content: bytes) -> dict:
    return {"name": name, "mimeType": "image/png", "buffer": content}


def painted(page: Page) -> bytes:
    """The canvas' pixels."""
    return page.locator("#canvas").screenshot()


def test_a_picture_gets_answers_and_the_map_of_the_first(page: Page) -> None:
    page.set_input_files("#files", [sent("photo.png", picture(0))])
    bars = page.locator("#bars button")
    expect(bars).to_have_count(5)
    expect(bars.first).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#answers-title")).to_have_text("photo.png")
    assert bars.first.locator(".label").inner_text() in CLASSES
    assert bars.first.locator(".percent").inner_text().endswith("%")
    expect(page.locator("#times")).to_contain_text("network")
    assert "strongest at" in (page.locator("#canvas").get_attribute("aria-label") or "")
    expect(page.locator("#said")).to_contain_text("photo.png: ")


def test_a_click_on_a_class_shows_its_map(page: Page) -> None:
    page.set_input_files("#files", [sent("photo.png", picture(0))])
    bars = page.locator("#bars button")
    expect(bars).to_have_count(5)
    first = painted(page)
    bars.nth(3).click()
    expect(bars.nth(3)).to_have_attribute("aria-pressed", "true")
    expect(bars.first).to_have_attribute("aria-pressed", "false")
    other = painted(page)
    assert other != first
    page.keyboard.press("Escape")
    expect(page.locator("#bars [aria-pressed=true]")).to_have_count(0)
    assert painted(page) not in (first, other)


def test_any_class_can_be_asked_for_by_name(page: Page) -> None:
    page.set_input_files("#files", [sent("photo.png", picture(0))])
    bars = page.locator("#bars .label")
    expect(bars).to_have_count(5)
    rest = next(name for name in CLASSES if name not in bars.all_inner_texts())
    page.fill("#class", rest)
    page.locator("#class").dispatch_event("change")
    expect(page.locator("#caption")).to_contain_text(f"What speaks for {rest}")


def test_an_error_is_a_sentence_beside_the_others_answers(page: Page) -> None:
    files = [
        sent("good.png", picture(0)),
        sent("bad.png", b"nothing"),
        sent("big.png", bytes(300_001)),
    ]
    page.set_input_files("#files", files)
    expect(page.locator("#bars button")).to_have_count(5)
    expect(page.locator("#strip .failed")).to_have_count(2)
    page.locator("#strip button").nth(1).click()
    expect(page.locator("#problem")).to_have_text("Is not an image that PIL can read.")
    page.locator("#strip button").nth(2).click()
    expect(page.locator("#problem")).to_contain_text("larger than")
    page.locator("#strip button").nth(0).click()
    expect(page.locator("#problem")).to_be_hidden()


def test_a_file_that_the_browser_cannot_show_is_answered(page: Page) -> None:
    tiff = io.BytesIO()
    Image.open(io.BytesIO(picture(0))).save(tiff, "tiff")
    page.set_input_files("#files", [sent("scan.tif", tiff.getvalue())])
    expect(page.locator("#bars button")).to_have_count(5)
    expect(page.locator("#caption")).to_contain_text("cannot show this file")


def test_it_works_by_keyboard_alone(page: Page) -> None:
    page.set_input_files("#files", [sent("photo.png", picture(0))])
    expect(page.locator("#bars button")).to_have_count(5)
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.closest('#bars li:nth-child(2)') !== null"):
            break
    page.keyboard.press("Enter")
    expect(page.locator("#bars button").nth(1)).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#bars button").nth(1)).to_be_focused()


def test_a_picture_can_be_pasted_or_dropped(page: Page) -> None:
    expect(page.locator("#main")).to_be_visible()
    script = """([kind, bytes]) => {
        const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(bytes)], `${kind}.png`, {type: "image/png"}));
        const made = kind === "paste" ? new ClipboardEvent(kind, {clipboardData: data})
            : new DragEvent(kind, {dataTransfer: data});
        document.dispatchEvent(made);
    }"""
    for kind in ("paste", "drop"):
        page.evaluate(script, [kind, list(picture(1))])
        expect(page.locator("#answers-title")).to_have_text(f"{kind}.png")
        expect(page.locator("#bars button")).to_have_count(5)


def test_every_control_has_a_name_and_the_page_a_language(page: Page) -> None:
    page.set_input_files("#files", [sent(f"{i}.png", picture(i)) for i in range(2)])
    expect(page.locator("#strip button")).to_have_count(2)
    nameless = page.evaluate("""() => [...document.querySelectorAll("button, input:not([hidden])")]
        .filter(one => !(one.textContent.trim() || one.getAttribute("aria-label") ||
            (one.labels && one.labels.length))).map(one => one.outerHTML)""")
    assert nameless == []
    assert page.evaluate("document.documentElement.lang") == "en"
    assert page.locator("#model-name").inner_text() == NAME


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_nothing_is_wider_than_the_screen(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    page.set_input_files("#files", [sent(f"{'long' * 30}{i}.png", picture(i)) for i in range(9)])
    expect(page.locator("#bars button")).to_have_count(5)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_with_a_token_the_page_asks_for_it(browser: Browser, network: Path, tmp_path: Path) -> None:
    with serving(network, tmp_path, "--token", "secret") as served:
        page = browser.new_page()
        page.goto(served.url)
        page.fill("#token", "wrong")
        page.keyboard.press("Enter")
        expect(page.locator("#token-note")).to_contain_text("not the right one")
        page.fill("#token", "secret")
        page.keyboard.press("Enter")
        page.set_input_files("#files", [sent("photo.png", picture(0))])
        expect(page.locator("#bars button")).to_have_count(5)
        page.close()


def test_the_page_is_small_and_names_no_other_host() -> None:
    files = list((resources.files("densekit.serve") / "page").iterdir())
    texts = [file.read_text(encoding="utf-8") for file in files]
    assert sum(map(len, texts)) < 60_000
    assert not [
        text for text in texts if "https:" in text or " style=" in text or "onclick" in text
    ]
