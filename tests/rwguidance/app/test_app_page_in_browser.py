"""The page in headless Chromium; skipped without gradio, playwright or a Chromium."""

import json
import re
import shutil
import socket
import urllib.error
import urllib.request

import pytest

pytest.importorskip("gradio", reason="the page needs the extra app")
playwright = pytest.importorskip("playwright.sync_api", reason="a browser needs playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("no chromium on the path", allow_module_level=True)

from page_studio import register, studio  # noqa: E402
from pixel_law import QUIET  # noqa: E402
from rwguidance.app.commands.sources import Sources  # noqa: E402
from rwguidance.app.page.blocks import opened_page  # noqa: E402

pytestmark = [
    *QUIET,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),
]  # those of gradio are not ours


@pytest.fixture(scope="module")
def address():
    with pytest.MonkeyPatch.context() as monkeypatch:
        register(monkeypatch)
        with opened_page(studio(letters=40, waiting=4), Sources(), ["a cat"]) as found:
            yield found


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as tools:
        found = tools.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def visit(browser, address):
    """Opens the page as a new visitor, who must be led nowhere else."""

    visitors, elsewhere = [], []

    def visit():
        visitor = browser.new_context(viewport={"width": 1000, "height": 900})
        visitors.append(visitor)
        page = visitor.new_page()
        own = (address, "data:", "blob:")
        page.on("request", lambda one: one.url.startswith(own) or elsewhere.append(one.url))
        page.goto(address)
        page.wait_for_selector("#make")
        return page

    yield visit
    for visitor in visitors:
        visitor.close()
    assert not elsewhere


def fill(page, prompt):
    page.fill("#prompt input, #prompt textarea", prompt)


def captions(page):
    return page.locator("#pairs .caption-label").all_inner_texts()


def pictures(page):
    """What the pictures show, as the browser has loaded them."""

    page.wait_for_function(
        "[...document.querySelectorAll('#pairs img')].every(one => one.naturalWidth > 0)"
    )
    return page.evaluate(
        """[...document.querySelectorAll('#pairs .thumbnail-item img')].map(one => {
            const canvas = document.createElement('canvas');
            canvas.width = canvas.height = 1;
            const pen = canvas.getContext('2d');
            pen.drawImage(one, 0, 0, 1, 1);
            return [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3);
        })"""
    )


def make(page):
    page.click("#make")
    page.wait_for_selector("#said li")


def test_a_click_makes_pairs_and_says_how(visit):
    page = visit()
    make(page)
    shown = captions(page)
    assert len(shown) == 8
    assert [text.split()[0] for text in shown] == ["base", "aligned"] * 4
    said = page.inner_text("#said")
    assert re.search(r"mean reward of 4 pictures rose from .* by .* ±", said)
    page.get_by_text("The lines that make these pictures again").click()
    page.wait_for_selector(".cm-content")
    lines = " ".join(page.locator(".cm-content").all_inner_texts())
    assert "--backbone pixel-law --reward brightness" in lines
    assert "Importance(kl=1.0, leave_one_out=True)" in lines


@pytest.mark.parametrize(
    ("prompt", "message"), [("   ", "write a prompt"), ("unknown", "knows no <b>unknown</b>")]
)
def test_a_bad_prompt_gives_a_message_and_takes_the_pictures_away(visit, prompt, message):
    page = visit()
    make(page)
    fill(page, prompt)
    page.click("#make")
    page.wait_for_selector("#said .rwg-error")
    assert message in page.inner_text("#said")  # as text, whatever a model says
    assert page.locator("#said b").count() == 0
    page.wait_for_selector("#pairs .thumbnail-item", state="detached")


def test_the_slider_moves_the_aligned_picture_and_not_the_base(visit):
    page = visit()
    make(page)
    before, said = pictures(page), page.inner_text("#said")
    slider = page.locator("#nats input[type=range]")
    box = slider.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.32, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.9, box["y"] + box["height"] / 2, steps=4)
    page.mouse.up()
    page.wait_for_function("old => document.querySelector('#said').innerText !== old", arg=said)
    after = pictures(page)
    assert before[::2] == after[::2]
    assert before[1::2] != after[1::2]
    assert sum(map(sum, after[1::2])) > sum(map(sum, before[1::2]))


def test_two_visitors_do_not_mix(visit):
    first, second = visit(), visit()
    fill(first, "a")
    fill(second, "a" * 40)  # brighter by 100 levels: see pixel_law
    first.click("#make")
    second.click("#make")
    for page in (first, second):
        page.wait_for_selector("#said li")
    dark, bright = pictures(first), pictures(second)
    level = lambda shown: sum(map(sum, shown[::2])) / 12
    assert level(bright) - level(dark) > 50
    assert visit().locator("#pairs .thumbnail-item").count() == 0  # a third one sees nothing


def test_the_page_listens_on_this_machine_and_takes_no_uploads(address):
    assert address.startswith("http://127.0.0.1:")
    port = int(address.rstrip("/").rpartition(":")[2])
    with socket.socket() as other:
        other.settimeout(5)
        assert other.connect_ex(("127.0.0.2", port)), "it listens on more than one address"
    form = (
        b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\nb\r\n--x--\r\n'
    )
    for body in (b"x" * 70_000, form.replace(b"b", b"longer than one byte")):
        request = urllib.request.Request(
            address + "gradio_api/upload",
            body,
            {"Content-Type": "multipart/form-data; boundary=x"},
        )
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=30)
        assert refused.value.code == 413


def test_what_the_page_bounds_is_bounded_for_those_who_go_around_it(address):
    with urllib.request.urlopen(address + "config", timeout=30) as answer:
        config = json.load(answer)
    assert all(one["api_visibility"] != "public" for one in config["dependencies"])
