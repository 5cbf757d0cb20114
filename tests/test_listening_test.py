"""The listening test: its page in a real browser, its files of answers, and their rating."""

import base64
import csv
import hashlib
import io
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import listening.build
import listening_test
from common.files import UserError
from data import load_digits
from evaluation.encodings import ENCODINGS
from listening.answers import (
    COLUMNS,
    read_all_answers,
    read_answers,
    row_check,
    write_answers,
    write_rows,
)
from listening.build import NODE_MODULES, SCRIPTS, choice_keys, describe
from listening.experiment import Experiment, Stimulus
from listening.power import power_of, simulate_people
from listening.score import errors_in_common, score
from listening_test import Config
from voice_translator import Encoding, VoiceTranslator, to_pcm16

TWO = Config(
    dataset="handwritten", encodings=("primary", "mel"), trials=20, practice=3, device="cpu"
)

needs_jspsych = pytest.mark.skipif(
    not all((NODE_MODULES / path).is_file() for path in SCRIPTS),
    reason="jsPsych is not here: npm ci",
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a page with two encodings. Without npm's files it has an empty script."""
    folder = tmp_path_factory.mktemp("listening")
    with pytest.MonkeyPatch.context() as patch:
        if not all((NODE_MODULES / path).is_file() for path in SCRIPTS):
            patch.setattr(listening.build, "read_script", lambda path: "")
        listening_test.main(Config(**{**vars(TWO), "output": folder}))
    return folder


@pytest.fixture
def experiment(built: Path) -> Experiment:
    return Experiment.load(built)


def page_data(folder: Path) -> dict:
    """What the script of the page reads."""
    html = (folder / "index.html").read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="experiment">(.*?)</script>', html)
    assert found
    return json.loads(found[1])


def test_sounds_of_the_page_are_the_translators(built: Path) -> None:
    images = load_digits("handwritten", "test", TWO.data_root, "cpu")
    stimuli = page_data(built)["stimuli"]
    assert len(stimuli) == 26
    for one in stimuli:
        wav = base64.b64decode(one["sound"].removeprefix("data:audio/wav;base64,"))
        samples, rate = soundfile.read(io.BytesIO(wav), dtype="int16")
        encoding = ENCODINGS[one["encoding"]].encoding
        expected = to_pcm16(VoiceTranslator(encoding)(images.images[one["index"]][None]))[0]
        assert torch.equal(torch.from_numpy(samples), expected)
        assert rate == encoding.sample_rate
        assert hashlib.sha256(wav).hexdigest() == one["sha256"]
        assert one["label"] == images.labels[one["index"]]


def test_classes_are_balanced_and_practice_has_other_images(experiment: Experiment) -> None:
    practised = {one.index for one in experiment.select("practice", "primary")}
    tested = {one.index for one in experiment.select("test", "primary")}
    assert (len(practised), len(tested)) == (3, 10) and not practised & tested
    for name in ("primary", "mel"):
        labels = Counter(one.label for one in experiment.select("test", name))
        assert labels == dict.fromkeys(range(10), 1)


def test_version_depends_on_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening.build, "read_script", lambda path: "")
    consent = tmp_path / "consent.txt"
    consent.write_text("Our own <words>.\n\nAnd more.\n")
    versions = []
    for changes in ({}, {}, {"seed": 1}, {"trials": 40}, {"consent": consent}):
        settings = {**vars(TWO), "output": tmp_path, **changes}
        versions.append(listening_test.main(Config(**settings)).version)
    assert versions[0] == versions[1] and len(set(versions)) == 4
    html = (tmp_path / "index.html").read_text()
    assert "<p>Our own &lt;words&gt;.</p><p>And more.</p>" in html.replace("\n", "")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encodings": ("primary", "nothing")}, "there is no nothing"),
        ({"encodings": ("mel", "mel")}, "each once"),
        ({"encodings": ()}, "at least one name"),
        ({"trials": 21}, "multiple of 2"),
        ({"trials": 4000}, "too few test images"),
        ({"encodings": ("primary", "primary_in_208_frames")}, "the same sound"),
        ({"dataset": "nothing"}, "no such data set"),
        ({"power": True, "machine": Path("results")}, "--power and --machine exclude each other"),
        ({"power": True, "simulate": 3}, "--simulate and --power exclude each other"),
        ({"power": True, "spread": 0.9}, "no accuracies have"),
        ({"machine": Path("nowhere"), "output": Path("nowhere")}, "build the page first"),
    ],
)
def test_impossible_settings_are_refused(
    changes: dict, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening.build, "read_script", lambda path: "")
    with pytest.raises(UserError, match=message):
        listening_test.main(Config(**{**vars(TWO), "output": tmp_path, **changes}))


def test_missing_jspsych_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening.build, "NODE_MODULES", tmp_path)
    with pytest.raises(UserError, match="run `npm ci`"):
        listening_test.main(Config(**{**vars(TWO), "output": tmp_path}))


def test_keys_for_any_classes() -> None:
    assert choice_keys("0123456789") == list("0123456789")
    assert choice_keys(("A", "B")) == ["a", "b"]
    assert choice_keys(("bag", "coat", "shoe")) == ["1", "2", "3"]
    with pytest.raises(UserError, match="no keys"):
        choice_keys([f"class {number}" for number in range(37)])


def test_description_follows_the_encoding() -> None:
    assert "High tones stand for the top" in describe(Encoding()) and "bright" in describe(
        Encoding()
    )
    other = describe(Encoding(pitch_position="bottom", negative=True, seconds=2.0))
    assert "2 seconds" in other and "the bottom" in other and "dark" in other


def perfect(experiment: Experiment, participant: int, path: Path, source: str = "person") -> Path:
    write_answers(path, experiment, source, participant, lambda one: one.label)
    return path


def rewrite(path: Path, edit: Callable[[list[list[str]]], None], checked: bool = False) -> None:
    """Change the lines of a file of answers; `checked` makes their checks fit again."""
    lines = list(csv.reader(path.open(newline="")))
    edit(lines)
    if checked:
        before = ""
        for line in lines[1:]:
            before = line[-1] = row_check(before, line[:-1])
    write_rows(path, lines)


def set_cell(column: str, value: str) -> Callable[[list[list[str]]], None]:
    return lambda lines: lines[5].__setitem__(COLUMNS.index(column), value)


@pytest.mark.parametrize(
    ("edit", "checked", "message"),
    [
        (set_cell("choice", "7"), False, "line 6 of .* was changed"),
        (lambda lines: lines.pop(5), False, "a line before it is missing"),
        (lambda lines: lines.insert(5, lines.pop(8)), False, "line 6 of .* was changed"),
        (lambda lines: lines.pop(), False, "25 of 26 trials"),
        (lambda lines: lines.clear(), False, "holds no answers"),
        (lambda lines: lines[0].pop(), False, "holds no answers"),
        (lambda lines: lines[5].pop(), False, "line 6 of .* was changed"),
        (set_cell("sha256", "0" * 64), True, "line 6 .* names a sound or"),
        (set_cell("encoding", "tanh"), True, "that the page does not have"),
        (lambda lines: lines.__setitem__(5, lines[4][:]), True, "a sound for the second time"),
        (set_cell("source", "nobody"), True, "or is damaged"),
        (set_cell("choice", "11"), True, "a class that the page does not have"),
        (set_cell("response_ms", "-5"), True, "that the page does not have"),
        (set_cell("page_version", "123"), True, "another experiment"),
    ],
)
def test_wrong_files_are_refused(
    edit: Callable, checked: bool, message: str, experiment: Experiment, tmp_path: Path
) -> None:
    path = perfect(experiment, 7, tmp_path / "7.csv")
    assert len(read_answers(path, experiment)) == 26
    rewrite(path, edit, checked)
    with pytest.raises(UserError, match=message):
        read_answers(path, experiment)


def test_files_that_do_not_fit_together_are_refused(experiment: Experiment, tmp_path: Path) -> None:
    one, two = (perfect(experiment, number, tmp_path / f"{number}.csv") for number in (1, 2))
    again = perfect(experiment, 1, tmp_path / "again.csv")
    machine = perfect(experiment, 3, tmp_path / "machine.csv", "machine")
    assert len(read_all_answers([one, two], experiment)) == 52
    with pytest.raises(UserError, match="both of participant 1"):
        read_all_answers([one, two, again], experiment)
    with pytest.raises(UserError, match="is of machine participants"):
        read_all_answers([one, machine], experiment)
    for path, content in ((tmp_path / "missing.csv", None), (tmp_path / "bytes.csv", b"\xff\0")):
        if content:
            path.write_bytes(content)
        with pytest.raises(UserError, match="missing or unreadable"):
            read_all_answers([path], experiment)


def test_score_of_known_answers(experiment: Experiment, tmp_path: Path) -> None:
    paths = []
    for number in range(1, 5):  # all is right with primary; with mel, 9 is heard for every class

        def choose(one: Stimulus) -> int:
            return one.label if one.encoding == "primary" else 9

        paths.append(tmp_path / f"{number}.csv")
        write_answers(paths[-1], experiment, "simulated", number, choose)
    record = score(paths, experiment, None, TWO.data_root, torch.device("cpu"), tmp_path / "score")
    primary, mel = record["encodings"]["primary"], record["encodings"]["mel"]
    assert (primary["people"]["accuracy"], mel["people"]["accuracy"]) == (1.0, 0.1)
    assert primary["people"]["images"] == mel["people"]["images"] == 40
    assert mel["people"]["interval"] == pytest.approx([0.0396, 0.2305], abs=1e-4)  # Wilson, 4 of 40
    assert [row[9] for row in mel["people"]["confusion"]] == [4] * 10
    shares = {number: one["accuracy"] for number, one in mel["participants"].items()}
    assert shares == dict.fromkeys(range(1, 5), 0.1)
    table = (tmp_path / "score" / "table.md").read_text()
    assert table.startswith("# Listening test: 4 simulated participants\n")
    assert "| mel | 40 | 10.0% (4.0% to 23.1%) |" in table
    rows = list(csv.DictReader((tmp_path / "score" / "answers.csv").open()))
    assert len(rows) == 104 and "check" not in rows[0]
    assert (tmp_path / "score" / "people.png").stat().st_size > 10_000


def test_a_large_difference_is_significant(experiment: Experiment, tmp_path: Path) -> None:
    paths = simulate_people(experiment, 12, 0.2, 0.6, 0.1, 0, tmp_path)
    record = score(paths, experiment, None, TWO.data_root, torch.device("cpu"), tmp_path)
    found = record["differences"]["mel"]
    assert found["significant"] and found["mean"] > 0.4


def test_the_machine_takes_the_test_and_is_scored(
    chain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening.build, "read_script", lambda path: "")
    settings = {**vars(TWO), "encodings": ("primary",), "output": tmp_path}
    listening_test.main(Config(**settings))
    paths = listening_test.main(Config(**{**settings, "machine": chain}))
    assert [path.name for path in paths] == ["machine_001.csv"]
    run = chain / "train_all"
    record = listening_test.main(Config(**{**settings, "score": tuple(paths), "machine": run}))
    primary = record["encodings"]["primary"]
    assert record["who"] == "machine participants" and primary["runs"] == 1
    assert primary["people"] == primary["machine"]
    both = Config(**{**vars(TWO), "output": tmp_path / "two"})
    listening_test.main(both)
    with pytest.raises(UserError, match="no complete run .* with the encoding mel"):
        listening_test.main(Config(**{**vars(both), "machine": chain}))


def test_errors_in_common() -> None:
    generator = np.random.default_rng(1)
    machine = generator.random((10, 10)) + 3 * np.eye(10)
    people = np.stack([generator.poisson(5 * machine) for _ in range(8)])
    same = errors_in_common(people, machine)
    assert same["correlation"] > 0.8 and same["p"] < 0.01
    low, high = same["interval"]
    assert 0.5 < low < same["correlation"] < high < 1
    other = errors_in_common(people, generator.random((10, 10)))
    assert abs(other["correlation"]) < 0.3 and other["p"] > 0.01
    covered = []  # people who err at random: the interval covers 0 in 95 % of the studies
    for _ in range(300):
        shares = np.where(np.eye(10, dtype=bool), 0.5, 0.5 / 9)
        people = generator.multinomial(3, shares, (8, 10))
        found = errors_in_common(people, generator.random((10, 10)), permutations=1)["interval"]
        covered.append(found[0] < 0 < found[1])
    assert 0.9 < np.mean(covered) < 0.98
    assert errors_in_common(people[:1], machine)["interval"] is None
    assert errors_in_common(np.eye(10)[None] * 3, machine) is None


def test_power_agrees_with_theory() -> None:
    # Normal approximation of the two-sample test; no spread between people, only of their trials.
    from scipy.stats import norm

    people, trials, low, high = 20, 50, 0.5, 0.58
    variance = (low * (1 - low) + high * (1 - high)) / trials / people
    expected = norm.sf(norm.ppf(0.975) - (high - low) / variance**0.5)
    assert power_of(people, trials, low, high - low, 0.0) == pytest.approx(expected, abs=0.04)
    assert power_of(30, 30, 0.5, 0.0, 0.15) == pytest.approx(0.05, abs=0.025)
    assert power_of(30, 30, 0.5, 0.1, 0.15) > power_of(30, 30, 0.5, 0.1, 0.15, encodings=5)


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    path = shutil.which("chromium")
    if not path:
        pytest.skip("no chromium is here: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    flags = [
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-dev-shm-usage",
    ]
    with playwright.sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=path, args=flags)
        yield chromium
        chromium.close()


def assert_accessible(page: object) -> None:
    """axe-core finds nothing, in the light, in the dark, and in a narrow window."""
    from axe_playwright_python.sync_playwright import Axe

    for width, scheme in ((1000, "light"), (360, "dark")):
        page.set_viewport_size({"width": width, "height": 700})
        page.emulate_media(color_scheme=scheme)
        report = Axe().run(page)
        assert report.violations_count == 0, report.generate_report()
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def press(page: object, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)


def listen(page: object) -> None:
    """Play the sound of a trial by keyboard."""
    page.wait_for_function("document.activeElement.getAttribute('role') === 'application'")
    press(page, "Space")
    page.wait_for_selector(".choices button:enabled")


def heading(page: object) -> str:
    return page.evaluate(
        "[...document.querySelectorAll('h2')].find(one => one.offsetParent)?.textContent"
    )


@needs_jspsych
def test_a_participant_with_the_keyboard_alone(
    built: Path, browser: object, tmp_path: Path
) -> None:
    experiment, labels = Experiment.load(built), {}
    for one in page_data(built)["stimuli"]:
        labels[one["sound"]] = one["label"]
    page = browser.new_page()
    requests, errors = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text))
    page.goto((built / "index.html").as_uri())
    assert_accessible(page)
    press(page, "Tab", "Enter")  # no number, so it does not begin
    assert page.locator("#start").is_visible()
    page.keyboard.type("42")
    press(page, "Enter")
    page.wait_for_selector(".play")
    assert heading(page) == "Volume check"
    assert_accessible(page)
    listen(page)
    press(page, "Enter")
    page.wait_for_selector("text=Part 1 of 2: practice")
    assert_accessible(page)

    answered, right, reloaded = 0, 0, False
    while answered < 26:
        page.wait_for_function("document.activeElement.matches('h2, [role=application], .play')")
        if page.evaluate("document.activeElement.tagName") == "H2":  # the instructions of a part
            press(page, "Tab", "Enter")
            continue
        if answered == 10 and not reloaded:  # a reload in the middle of a trial
            listen(page)
            page.reload()
            reloaded = True
            page.wait_for_selector("text=has answered 10 of 26 sounds")
            assert_accessible(page)
            press(page, "Tab", "Enter")
            page.wait_for_selector("text=Volume check")
            listen(page)
            press(page, "Enter")
            page.wait_for_selector("h2:has-text('test')")
            continue
        title = heading(page)
        if answered == 0:
            press(page, "3")  # before the sound, a key does nothing
        listen(page)
        label = labels[page.evaluate("player.src")]
        if answered == 12:  # once more
            page.wait_for_function("player.ended")
            press(page, "Space")
            page.wait_for_function("state.plays === 2")
        if answered == 0:
            assert_accessible(page)
        choice = label if answered % 2 else (label + 1) % 10
        press(page, str(choice))
        if "practice" in title:
            page.wait_for_selector(f"text={'Right, it was' if answered % 2 else 'It was'} {label}.")
            if answered == 0:
                assert_accessible(page)
            press(page, "Enter")
        else:
            right += choice == label
        answered += 1
        page.wait_for_function(
            "title => document.querySelector('#title')?.textContent !== title", arg=title
        )
    page.wait_for_selector("text=You have answered all sounds.")
    assert_accessible(page)
    page.reload()  # before it was saved: nothing is lost
    page.wait_for_selector("text=You have answered all sounds.")
    with page.expect_download() as download:
        press(page, "Tab", "Enter")
    path = tmp_path / download.value.suggested_filename
    download.value.save_as(path)
    assert path.name == f"listening_{experiment.version}_person_042.csv"

    rows = read_answers(path, experiment)
    assert {row["participant"] for row in rows} == {42}
    assert [row["correct"] for row in rows] == [0, 1] * 13
    assert [row["replays"] for row in rows if row["replays"]] == [1, 1]  # the reload, and once more
    assert [row["trial"] for row in rows if row["replays"]] == [11, 13]
    assert all(0 < row["response_ms"] < 30_000 for row in rows)
    record = score([path], experiment, None, TWO.data_root, torch.device("cpu"), tmp_path)
    counts = [one["people"] for one in record["encodings"].values()]
    assert sum(round(one["accuracy"] * one["images"]) for one in counts) == right
    assert sum(one["images"] for one in counts) == 20

    press(page, "Tab", "Enter")  # remove the answers from the browser
    page.wait_for_selector("text=I agree to take part")
    assert page.evaluate("localStorage.length") == 0
    assert errors == []
    assert {url for url in requests if not url.startswith(("data:", "blob:"))} == {
        (built / "index.html").as_uri()
    }
    page.close()


@needs_jspsych
def test_orders_are_seeded_and_balanced(built: Path, browser: object) -> None:
    page = browser.new_page()
    page.goto((built / "index.html").as_uri())
    plans = [page.evaluate("number => plan(number)", number) for number in (1, 2, 3, 4, 1)]
    assert plans[0] == plans[4] != plans[3]
    for plan in plans:
        assert [one["phase"] for one in plan] == (["practice"] * 3 + ["test"] * 10) * 2
        assert sorted(one["sha256"] for one in plan) == sorted(one["sha256"] for one in plans[0])
    first = [plan[0]["encoding"] for plan in plans[:4]]
    assert first == ["primary", "mel", "mel", "primary"]
    assert [one["index"] for one in plans[0][3:13]] != [one["index"] for one in plans[3][3:13]]
    # Three encodings: in six participants, each has each place and predecessor equally often.
    page.evaluate("names.push('third')")
    orders = [page.evaluate("number => blockOrder(number)", number) for number in range(1, 7)]
    assert set(
        Counter((name, place) for one in orders for place, name in enumerate(one)).values()
    ) == {2}
    assert set(
        Counter(pair for one in orders for pair in zip(one, one[1:], strict=False)).values()
    ) == {2}
    page.close()


@needs_jspsych
def test_stopping_early_and_a_browser_that_keeps_nothing(
    built: Path, browser: object, tmp_path: Path
) -> None:
    page = browser.new_page()
    page.add_init_script("Storage.prototype.setItem = () => { throw new Error('full'); }")
    page.goto((built / "index.html").as_uri())
    page.fill("#number", "3")
    page.click("text=I agree to take part")
    page.wait_for_selector("text=This browser cannot keep your answers.")
    page.evaluate(
        "record(plan(3)[0], { choice: 1, response_ms: 5, plays: 1 });"
        "byId('screen').hidden = true; finish()"
    )
    page.wait_for_selector("text=25 sounds were not answered")
    with page.expect_download() as download:
        page.click("text=Save my answers")
    download.value.save_as(tmp_path / "3.csv")
    with pytest.raises(UserError, match="1 of 26 trials"):
        read_answers(tmp_path / "3.csv", Experiment.load(built))
    page.close()
