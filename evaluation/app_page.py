"""The page of app.py: draw, hear, see. It is built with gradio, an optional package."""

import base64
import dataclasses
import html
import io
import json
import typing
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import gradio as gr  # pyright: ignore[reportMissingImports]
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tyro._docstrings import get_field_docstring

from common.files import UserError
from common.media import read_picture
from data import load_digits
from evaluation.listener import READERS, Listener, as_digit, is_bright
from evaluation.report import png, spectrogram, template, wav, where_loud
from models.late_blind import complete_runs
from vggish import SAMPLE_RATE, ImageToLogMel
from voice_translator import Encoding, estimate_image

REFINE_STEPS = 8
CANVAS = 280  # pixels
LARGEST_PICTURE = 512  # pixels; the longer edge of what is kept of an uploaded picture
LARGEST_DECODED = 2**24  # rows times samples; a larger soundscape is not decoded
PRESETS = {
    "late-blind": Encoding(),
    "congenitally-blind": Encoding.congenitally_blind(),
    "hificode": Encoding.hificode(),
    "hificode, stereo": Encoding.hificode(stereo=True),
    "hificode of 2013": Encoding.hificode_2013(),
}
FIELDS = dataclasses.fields(Encoding)
TYPES = typing.get_type_hints(Encoding)
NOTHING = "<p>Draw a digit, upload a picture, or take a test image.</p>"
# A black canvas. Its value is the picture as a data URI: it sets the value when the pen is lifted,
# and shows a value that Python sets.
CANVAS_HTML = f"""<canvas id="canvas" width="{CANVAS}" height="{CANVAS}" role="img"
  aria-label="Canvas to draw on. By keyboard: take a test image, or upload a picture."></canvas>"""
CANVAS_JS = """
const canvas = element.querySelector('canvas'), pen = canvas.getContext('2d');
const clear = () => { pen.fillStyle = 'black'; pen.fillRect(0, 0, canvas.width, canvas.height); };
const place = event => { const box = canvas.getBoundingClientRect();
  return [(event.clientX - box.left) * canvas.width / box.width,
          (event.clientY - box.top) * canvas.height / box.height]; };
let drawing = false, drawn = '';
clear();
canvas.onpointerdown = event => { drawing = true; canvas.setPointerCapture(event.pointerId);
  Object.assign(pen, {strokeStyle: 'white', lineWidth: 22, lineCap: 'round', lineJoin: 'round'});
  pen.beginPath(); pen.moveTo(...place(event)); canvas.onpointermove(event); };
canvas.onpointermove = event => { if (drawing) { pen.lineTo(...place(event)); pen.stroke(); } };
canvas.onpointerup = canvas.onpointercancel = () => { if (drawing) { drawing = false;
  props.value = drawn = canvas.toDataURL('image/png'); } };
watch('value', () => { if (props.value === drawn) return;  // or a stroke begun by now would go
  const picture = new Image();
  picture.onload = () => { clear(); pen.imageSmoothingEnabled = false;
    pen.drawImage(picture, 0, 0, canvas.width, canvas.height); };
  if (props.value) picture.src = props.value; else clear(); });
"""
# While a sound plays, a line moves over its log-mel.
MARKER_JS = """
element.addEventListener('play', ({target}) => { const shown = target.closest('.sound');
  const marker = shown.querySelector('.marker'), seconds = shown.dataset.seconds;
  const move = () => { marker.style.left = 100 * target.currentTime / seconds + '%';
    marker.hidden = target.paused || target.ended;
    if (!marker.hidden) requestAnimationFrame(move); };
  move(); }, true);
"""
CSS = """
.gradio-container { max-width: 76rem !important; --block-info-text-color: var(--body-text-color); }
#drawing, #drawing > * { padding: 0 !important; }
#canvas { width: 100%; aspect-ratio: 1; touch-action: none; cursor: crosshair; display: block;
  border: 1px solid var(--border-color-primary); border-radius: 4px; }
.pictures { display: flex; flex-wrap: wrap; gap: 1rem; } .pictures figure { margin: 0; }
.pictures img { height: 9.5rem; max-width: 100%; image-rendering: pixelated; display: block;
  border: 1px solid var(--border-color-primary); border-radius: 4px; }
.pictures figure div { position: relative; } .pictures figcaption { padding: .2rem 0; }
.pictures img:has(+ .marker) { width: 15rem; }
.marker { position: absolute; top: 0; bottom: 0; width: 2px; background: white;
  box-shadow: 0 0 2px black; }
.play { display: flex; flex-wrap: wrap; align-items: center; gap: .4rem 1rem; margin: .6rem 0; }
.play audio { width: 100%; max-width: 24rem; }
.readings, .readings * { border: 0 !important; } .readings th { font-weight: 500; }
.readings th, .readings td { padding: .25rem 1.2rem .25rem 0 !important; text-align: left; }
.readings meter { width: min(5rem, 11vw); vertical-align: middle; }
.error { border-left: 4px solid #c0392b; padding: .4rem .8rem; } .hint { font-style: italic; }
"""


class Page:
    """What the page's controls compute. It keeps nothing of a visitor, but the runs that it loaded.
    A picture arrives as the value of the canvas, and what is shown leaves as HTML.

    Args:
        run: the run that is chosen at first.
        results: the folder whose complete runs are offered.
        device: where everything is computed.
        data_root: the folder of the data sets, for the test images.
    """

    def __init__(self, run: Path, results: Path, device: torch.device, data_root: Path) -> None:
        self.run, self.device, self.data_root = run, device, data_root
        self.runs = list(dict.fromkeys(map(str, [run, *complete_runs(results)])))
        self.listener = lru_cache(3)(lambda run: Listener(run, device, data_root))
        self.listener(str(run)).explain(np.zeros((1, 28, 28), np.uint8))  # the first one is slow

    def test_image(self, run: str, index: float | None) -> tuple[str, str]:
        """Image `index` of the test part of the data set that a run learned, for the canvas, and
        a sentence with its class."""
        listener = self.listener(run)
        images, labels = load_digits(listener.model.dataset, "test", self.data_root, "cpu")
        if index is None or not 0 <= index < len(images):
            raise UserError(f"the test part has the images 0 to {len(images) - 1:,}; give one.")
        label = listener.classes[int(labels[int(index)])]
        return png(images[int(index)].numpy()), f"<p>Its class: {html.escape(label)}.</p>"

    def imagine(
        self, canvas: str | None, run: str, negative: bool, centre: bool, refine: bool
    ) -> str:
        """What a run imagines of a picture."""
        if not canvas:
            return NOTHING
        picture, listener = read_canvas(canvas), self.listener(run)
        digit = as_digit(picture, negative, centre)
        made = listener.explain(digit[None], REFINE_STEPS if refine else 0)
        hint = ""
        if is_bright(picture) and not negative:
            hint = "The picture is mostly bright. MNIST is white on black: try “Dark on bright”."
        if listener.missing:
            hint = f"The run was copied without {', '.join(listener.missing)}."
        best = ", ".join(name for name, _ in made.readings(listener.classes).values())
        readings = []
        for name, shares in made.probabilities.items():
            top = [(listener.classes[i], shares[0, i].item()) for i in shares[0].topk(2).indices]
            readings.append((READERS[name], top))
        imagined = (
            f"Imagined, correlation {made.correlations.item():.2f}",
            grey_png((made.imagined[0, 0].cpu() + 1) / 2),
            f"Imagined; classified as {best}" if best else "Imagined",
        )
        return show_sound(
            listener.model.front_end, made.heard[0], made.sounds[0], [imagined], hint, readings
        )

    def encode(self, shown: bool, canvas: str | None, *values: Any) -> str:
        """The sound of a picture by an encoding.

        Args:
            shown: whether anybody sees it; if not, nothing is computed.
            canvas: the picture.
            values: of the controls, in the order of `FIELDS`.
        """
        return show_sound(*translate(canvas, values)) if shown and canvas else NOTHING

    def decode(self, shown: bool, canvas: str | None, *values: Any) -> str:
        """The image decoded from that sound. It takes up to some seconds."""
        if not shown or not canvas:
            return ""
        front_end, scanned, sound = translate(canvas, values)
        encoding = front_end.encoding
        if encoding.rows * encoding.samples > LARGEST_DECODED:
            return "<p>The sound is too long to be decoded here.</p>"
        image = estimate_image(sound, encoding)
        text = "Decoded from the sound"
        pair = torch.stack([image, scanned.double()]).flatten(1)
        if pair.std(1).min() > 1e-6:
            text += f", correlation {pair.corrcoef()[0, 1]:.2f}"
        return template("app.html.j2").render(
            hint="", seconds=0, pictures=[(text, grey_png(image), text)], sound="", readings=()
        )


def translate(canvas: str, values: tuple[Any, ...]) -> tuple[ImageToLogMel, Tensor, Tensor]:
    """The front end of the encoding that the controls say, the resized picture, `(H, W)` in [0, 1],
    and its sound."""
    picture, named = read_canvas(canvas)[None], zip(FIELDS, values, strict=True)
    encoding = Encoding(**{one.name: field_value(one, value) for one, value in named})
    front_end = encoding_front_end(encoding)
    with torch.no_grad():
        translator = front_end.translator
        return front_end, translator.resized(picture)[0] / 255, translator(picture)[0]


encoding_front_end = lru_cache(4)(ImageToLogMel)


def field_value(field: dataclasses.Field, value: Any) -> Any:
    """The value of a control as the type of its field. A field that may be None has a text: one
    number or more with commas between, or nothing."""
    if type(None) not in typing.get_args(TYPES[field.name]):
        return int(value) if TYPES[field.name] is int and value is not None else value
    try:
        numbers = json.loads(f"[{value or ''}]")
    except ValueError as error:
        raise UserError(f"{field.name} is {value}; give numbers, or nothing.") from error
    return tuple(numbers) if len(numbers) > 1 else numbers[0] if numbers else None


def grey_png(grey: Tensor) -> str:
    """`(H, W)` in [0, 1] as a data URI."""
    return png((grey * 255).round().clamp(0, 255).byte().numpy())


def show_sound(
    front_end: ImageToLogMel,
    scanned: Tensor,
    sound: Tensor,
    pictures: typing.Sequence[tuple[str, str, str]] = (),
    hint: str = "",
    readings: typing.Sequence[tuple[str, list[tuple[str, float]]]] = (),
) -> str:
    """A resized picture, its log-mel, and its sound, as HTML.

    Args:
        front_end: of the encoding.
        scanned: `(H, W)` in [0, 1].
        sound: `(samples,)`, or `(2, samples)` in stereo.
        pictures: to show beside: title, data URI, alternative text.
        hint: a sentence above.
        readings: for the table below: a classifier, and its two most probable classes.
    """
    logmel = front_end.log_mel(sound[None])[0, 0].cpu().numpy()
    seconds = len(logmel) * front_end.hop / SAMPLE_RATE
    text = f"Log-mel of {seconds:.2f} s, {where_loud(logmel, front_end.hop)}"
    return template("app.html.j2").render(
        hint=hint,
        seconds=seconds,
        pictures=[
            ("Heard", grey_png(scanned.cpu()), "The picture as it is translated"),
            (f"Its log-mel, {seconds:.2f} s", png(spectrogram(logmel)), text),
            *pictures,
        ],
        sound=wav(sound.cpu().numpy(), front_end.encoding.sample_rate),
        readings=readings,
    )


def read_canvas(uri: str) -> Tensor:
    """The grey levels of the value of the canvas, `(H, W)` uint8.

    Raises:
        UserError: if it is no PNG of at most 512 x 512.
    """
    try:
        content = base64.b64decode(str(uri).partition("base64,")[2], validate=True)
        with Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
            if max(picture.size) > LARGEST_PICTURE:
                raise ValueError("it is too large")
            return torch.from_numpy(np.array(picture.convert("L")))
    except Exception as error:  # a damaged picture raises any of a dozen types
        raise UserError("the drawing cannot be read; clear it and draw again.") from error


def uploaded_picture(path: str) -> tuple[str, str]:
    """The grey levels of an uploaded picture, at most 512 pixels long, for the canvas, and nothing
    to say of it."""
    try:
        image = Image.fromarray(read_picture(Path(path)).numpy())
    except UserError as error:  # the visitor knows the file's name, not its place
        raise UserError(str(error).replace(path, Path(path).name)) from error
    image.thumbnail((LARGEST_PICTURE, LARGEST_PICTURE))
    return png(np.array(image)), ""


def in_words(function: Callable[..., Any], kept: int = 0) -> Callable[..., Any]:
    """`function`, whose errors of the visitor become a sentence in its last output. The `kept`
    outputs before it stay as they are."""

    def answer(*values: Any) -> Any:
        try:
            return function(*values)
        except (UserError, ValueError, TypeError, OverflowError) as error:
            said = f'<p class="error" role="alert">{html.escape(str(error))}</p>'
            return (*[gr.skip()] * kept, said) if kept else said

    return answer


def build(page: Page) -> gr.Blocks:
    """Lay out the page."""
    with gr.Blocks(
        title="Draw, hear, see", analytics_enabled=False, delete_cache=(3600, 3600)
    ) as blocks:
        comparing = gr.State(False)  # whether the second tab is shown
        gr.Markdown(
            "# Draw, hear, see\nDraw a digit. It becomes sound, a model hears the sound, and draws "
            "what it imagines."
        )
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                canvas = gr.HTML(
                    "", html_template=CANVAS_HTML, js_on_load=CANVAS_JS, elem_id="drawing"
                )
                clear = gr.Button("Clear")
                upload = gr.UploadButton("Upload a picture")
                index = gr.Number(0, label="Index of a test image", precision=0)
                take = gr.Button("Take the test image")
                message = gr.HTML()
            with gr.Column(scale=3, min_width=320), gr.Tabs():
                with gr.Tab("Imagine") as imagining:
                    run = gr.Dropdown(
                        page.runs, value=str(page.run), allow_custom_value=True, label="Run",
                        info="A run of the list, or the path of another run or results folder.",
                    )  # fmt: skip
                    with gr.Row():
                        negative = gr.Checkbox(label="Dark on bright", min_width=140)
                        centre = gr.Checkbox(True, label="Centre and scale", min_width=150)
                        refine = gr.Checkbox(label="Latent refinement", min_width=160)
                    result = gr.HTML(NOTHING, js_on_load=MARKER_JS)
                with gr.Tab("Encodings") as encodings, gr.Row():
                    sides = [EncodingControls(name) for name in ("late-blind", "hificode")]
        imagining.select(lambda: False, None, comparing)
        compared = encodings.select(lambda: True, None, comparing)
        inputs = [canvas, run, negative, centre, refine]
        changes = [one.change for one in inputs]
        imagined = gr.on(
            changes, in_words(page.imagine), inputs, result, trigger_mode="always_last"
        )
        shown = [canvas, message]
        upload.upload(in_words(uploaded_picture, 1), upload, shown)
        gr.on([take.click, index.submit], in_words(page.test_image, 1), [run, index], shown)
        clear.click(lambda: ("", ""), None, shown)
        for controls in sides:
            controls.connect(page, [comparing, canvas], [imagined, compared])
    return blocks


class EncodingControls:
    """A preset, and a control for every field of an encoding; between them its sound, and the image
    decoded from it.

    Args:
        preset: that is chosen at first, a key of PRESETS.
    """

    def __init__(self, preset: str) -> None:
        with gr.Column(min_width=320):
            self.preset = gr.Dropdown(list(PRESETS), value=preset, label="Preset")
            self.sound, self.decoded = gr.HTML(js_on_load=MARKER_JS), gr.HTML()
            with gr.Accordion("Every setting", open=False):
                self.fields = [control(one, getattr(PRESETS[preset], one.name)) for one in FIELDS]

    def connect(self, page: Page, states: list[gr.components.Component], events: list[Any]) -> None:
        """Compute the sound, and then the decoded image, after each of `events` and each change.

        Args:
            page: computes them.
            states: whether the controls are shown, and the canvas.
            events: after which one of these may be another.
        """
        chosen = self.preset.input(
            lambda name: list(dataclasses.asdict(PRESETS[name]).values()), self.preset, self.fields
        )
        inputs = [*states, *self.fields]
        encode = {"fn": in_words(page.encode), "inputs": inputs, "outputs": self.sound}
        decode = {"fn": in_words(page.decode), "inputs": inputs, "outputs": self.decoded}
        for event in [*events, chosen]:
            event.then(**encode).then(**decode)
        changes = [one.input for one in self.fields]
        gr.on(changes, trigger_mode="always_last", **encode).then(**decode)


def control(field: dataclasses.Field, value: Any) -> gr.components.Component:
    """The control of a field, by its type."""
    kind, info = TYPES[field.name], get_field_docstring(Encoding, field.name, ())
    named = {"label": field.name.replace("_", " "), "info": info, "value": value}
    if typing.get_origin(kind) is typing.Literal:
        return gr.Dropdown(list(typing.get_args(kind)), **named)
    if type(None) in typing.get_args(kind):
        return gr.Textbox(**named)
    return gr.Checkbox(**named) if kind is bool else gr.Number(**named)


def serve(page: Page, port: int, browser: bool) -> None:
    """Serve the page to this machine alone, until Ctrl-C.

    Raises:
        UserError: if the port is in use.
    """
    system = [gr.themes.Font(name) for name in ("system-ui", "sans-serif")]
    theme = gr.themes.Default(font=system, font_mono=gr.themes.Font("monospace"))
    blocks = build(page)
    try:
        blocks.launch(
            server_name="127.0.0.1", server_port=port, share=False, inbrowser=browser,
            footer_links=[], run_history=False, enable_monitoring=False, ssr_mode=False, pwa=False,
            max_file_size="64mb", quiet=True, css=CSS, theme=theme, prevent_thread_lock=True,
        )  # fmt: skip
    except OSError as error:
        raise UserError(f"port {port} is in use; give another --port.") from error
    print(f"http://127.0.0.1:{port} serves the page to this machine. Ctrl-C ends it.", flush=True)
    blocks.block_thread()
