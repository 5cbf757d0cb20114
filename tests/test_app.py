"""The app in a real browser: draw, hear, see."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT

import app
from common.files import UserError

LINES = {"one": [(140, 50), (140, 230)], "seven": [(80, 60), (200, 60), (120, 230)]}


def test_gradio_is_named_where_it_is_missing(chain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UserError, match="pip install -r requirements-app.txt"):
        app.main(app.Config(results=chain))


@pytest.fixture(scope="module")
def address(chain: Path) -> Iterator[str]:
    """The address of the app, which runs as a user starts it."""
    pytest.importorskip("gradio", reason="gradio is not installed: make app")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = ["--results", str(chain), "--port", str(port), "--no-browser"]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "app.py"), *flags], cwd=ROOT, env=dict(os.environ)
    )
    try:
        for _ in range(600):
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = shutil.which("chromium")
    if not path:
        pytest.skip("no chromium is here: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--mute-audio",
             "--disable-background-networking"]  # fmt: skip
    with playwright.sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=path, args=flags)
        yield chromium
        chromium.close()


@pytest.fixture
def page(address: str, browser: Any) -> Iterator[Any]:
    """The page of a new visitor, which asks nothing of another server and reports no error."""
    context = browser.new_context(viewport={"width": 1280, "height": 1000})
    opened, foreign, errors = context.new_page(), [], []
    opened.on(
        "request", lambda one: one.url.startswith((address, "data:")) or foreign.append(one.url)
    )
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.goto(address)
    opened.wait_for_selector("text=Draw a digit, upload a picture")
    yield opened
    assert foreign == [] and errors == []
    context.close()


def draw(page: Any, name: str) -> None:
    """Draw one of LINES by mouse, and wait until it is imagined."""
    before = page.locator("audio:visible").first.get_attribute("src") if heard(page) else ""
    box = page.locator("#canvas").bounding_box()
    points = [
        (box["x"] + x * box["width"] / 280, box["y"] + y * box["width"] / 280)
        for x, y in LINES[name]
    ]
    page.mouse.move(*points[0])
    page.mouse.down()
    for point in points[1:]:
        page.mouse.move(*point, steps=5)
    page.mouse.up()
    page.wait_for_function(
        "before => [...document.querySelectorAll('audio')].some(one => one.src != before)",
        arg=before,
    )


def heard(page: Any) -> bool:
    return page.locator("audio:visible").count() > 0


def shown_sound(page: Any) -> str:
    return page.locator("audio:visible").first.get_attribute("src")


def test_draw_hear_and_see(page: Any, chain: Path) -> None:
    from evaluation.app_page import read_canvas
    from evaluation.listener import Listener, as_digit
    from evaluation.report import wav

    draw(page, "seven")
    drawn = read_canvas(page.evaluate("document.querySelector('#canvas').toDataURL()"))
    assert drawn.max() == 255 and 0.05 < (drawn > 0).double().mean() < 0.3
    translator = Listener(chain).model.front_end.translator
    sound = translator(as_digit(drawn, centre=True)[None])[0].numpy()
    assert shown_sound(page) == wav(sound, translator.encoding.sample_rate)
    alternatives = page.eval_on_selector_all(".sound img", "all => all.map(one => one.alt)")
    assert len(alternatives) == 3 and alternatives[2].startswith("Imagined; classified as")
    assert page.locator(".readings tbody tr").count() == 5
    assert page.locator("a[download]:visible").get_attribute("href") == shown_sound(page)

    # A line moves over the log-mel while the sound plays.
    page.evaluate("document.querySelector('audio').play()")
    page.wait_for_function("parseFloat(document.querySelector('.marker').style.left) > 20")
    page.wait_for_function("document.querySelector('.marker').hidden")

    # Of another run, and with latent refinement, the page says the same in the same places.
    page.get_by_label("Latent refinement").check()
    page.get_by_label("Run").fill("nowhere")
    page.get_by_label("Run").press("Enter")
    page.wait_for_selector("[role=alert]:has-text('checkpoint.pt is missing')")

    page.get_by_role("button", name="Clear").click()
    page.wait_for_selector("text=Draw a digit, upload a picture")
    blank = read_canvas(page.evaluate("document.querySelector('#canvas').toDataURL()"))
    assert not blank.any()


def test_encodings_side_by_side(page: Any) -> None:
    draw(page, "seven")
    page.get_by_role("tab", name="Encodings").click()
    page.wait_for_function(
        "document.querySelectorAll('[alt^=Decoded]').length == 2", timeout=60_000
    )
    before = shown_sound(page)
    page.get_by_role("button", name="Every setting").first.click()
    page.get_by_label("lowest hz").first.fill("400")
    page.wait_for_function(
        "before => document.querySelectorAll('audio')[1].src != before", arg=before
    )
    page.get_by_label("lowest hz").first.fill("9000")
    page.wait_for_selector("[role=alert]:has-text('do not rise')")
    assert page.locator("input[type=number]:visible").count() > 5


def test_by_keyboard_and_axe_finds_nothing(page: Any) -> None:
    from axe_playwright_python.sync_playwright import Axe

    for _ in range(8):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.ariaLabel") == "Index of a test image":
            break
    page.keyboard.type("3")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=Its class: ")
    page.wait_for_selector("audio")
    assert page.evaluate(  # the canvas shows the test image
        "document.querySelector('#canvas').getContext('2d').getImageData(0, 0, 280, 280)"
        ".data.filter((value, index) => index % 4 == 0 && value > 100).length"
    )
    for width, scheme in ((1280, "light"), (400, "dark")):
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)
        page.wait_for_timeout(500)  # the colours of the buttons change slowly
        report = Axe().run(page)
        found = [
            one for one in report.response["violations"] if one["impact"] in ("serious", "critical")
        ]
        assert found == [], report.generate_report()


def test_two_visitors_do_not_disturb_each_other(page: Any, address: str, browser: Any) -> None:
    other = browser.new_context().new_page()
    other.goto(address)
    other.wait_for_selector("text=Draw a digit, upload a picture")
    draw(page, "seven")
    draw(other, "one")
    mine, theirs = shown_sound(page), shown_sound(other)
    assert mine != theirs
    page.get_by_label("Centre and scale").uncheck()
    page.wait_for_function("before => document.querySelector('audio').src != before", arg=mine)
    uncentred = shown_sound(page)
    other.get_by_label("Centre and scale").uncheck()
    other.wait_for_function("before => document.querySelector('audio').src != before", arg=theirs)
    assert shown_sound(other) != uncentred == shown_sound(page)
    other.context.close()


def test_wrong_input_is_refused_in_the_page(page: Any, tmp_path: Path) -> None:
    (tmp_path / "notes.png").write_text("no picture")
    page.locator("input[type=file]").first.set_input_files(tmp_path / "notes.png")
    page.wait_for_selector("[role=alert]:has-text('notes.png is damaged, or no picture')")
    page.get_by_label("Index of a test image").fill("99999")
    page.get_by_role("button", name="Take the test image").click()
    page.wait_for_selector("[role=alert]:has-text('the test part has the images 0 to 359')")


def test_a_drawing_that_is_no_png_is_refused() -> None:
    pytest.importorskip("gradio", reason="gradio is not installed: make app")
    from evaluation.app_page import read_canvas

    for value in (None, "", "data:image/png;base64,????", "data:image/png;base64,aGVsbG8="):
        with pytest.raises(UserError, match="cannot be read"):
            read_canvas(value)


def test_controls_give_the_fields_their_types() -> None:
    pytest.importorskip("gradio", reason="gradio is not installed: make app")
    from evaluation.app_page import FIELDS, PRESETS, field_value
    from voice_translator import Encoding

    for encoding in PRESETS.values():
        sent = {}  # as a browser sends it: numbers as floats, what may be None as text
        for one in FIELDS:
            value = getattr(encoding, one.name)
            if one.default is None:
                value = "" if value is None else str(value)
            elif type(value) is int:
                value = float(value)
            sent[one.name] = value
        back = Encoding(**{one.name: field_value(one, sent[one.name]) for one in FIELDS})
        assert back == encoding and torch.equal(back.frequencies(), encoding.frequencies())
    texts = {"speaker_band_hz": "300, 3400", "noise_snr_db": "0", "grey_levels": ""}
    fields = {one.name: one for one in FIELDS}
    values = [field_value(fields[name], text) for name, text in texts.items()]
    assert values == [(300, 3400), 0, None]
    with pytest.raises(UserError, match="give numbers, or nothing"):
        field_value(fields["noise_snr_db"], "loud")
