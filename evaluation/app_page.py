"""The page of app.py: draw, hear, see. It is built with gradio, an optional package."""

import base64
import dataclasses
import html
import io
import time
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
from evaluation.listener import READERS, Explanation, Listener, as_digit, is_bright
from evaluation.report import png, spectrogram, wav, where_loud
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
# A black canvas. It sends what was drawn when the pen is lifted, and shows what Python sends.
CANVAS_HTML = f"""<canvas id="canvas" width="{CANVAS}" height="{CANVAS}" role="img"
  aria-label="Canvas to draw on. By keyboard: take a test image, or upload a picture."></canvas>"""
CANVAS_JS = """
const canvas = element.querySelector('canvas'), pen = canvas.getContext('2d');
const clear = () => { pen.fillStyle = 'black'; pen.fillRect(0, 0, canvas.width, canvas.height); };
const place = event => { const box = canvas.getBoundingClientRect();
  return [(event.clientX - box.left) * canvas.width / box.width,
          (event.clientY - box.top) * canvas.height / box.height]; };
let drawing = false;
clear();
canvas.onpointerdown = event => { drawing = true; canvas.setPointerCapture(event.pointerId);
  Object.assign(pen, {strokeStyle: 'white', lineWidth: 22, lineCap: 'round', lineJoin: 'round'});
  pen.beginPath(); pen.moveTo(...place(event)); canvas.onpointermove(event); };
canvas.onpointermove = event => { if (drawing) { pen.lineTo(...place(event)); pen.stroke(); } };
canvas.onpointerup = canvas.onpointercancel = () => { if (drawing) { drawing = false;
  trigger('select', {picture: canvas.toDataURL('image/png')}); } };
watch('value', () => { const picture = new Image(), source = props.value.split(' ')[1];
  picture.onload = () => { clear(); pen.imageSmoothingEnabled = false;
    pen.drawImage(picture, 0, 0, canvas.width, canvas.height); };
  if (source) picture.src = source; else clear(); });
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
.pictures figcaption { padding: .2rem 0; } .logmel { position: relative; }
.logmel img { width: 15rem; } .marker { position: absolute; top: 0; bottom: 0; width: 2px;
  background: white; box-shadow: 0 0 2px black; }
.play { display: flex; flex-wrap: wrap; align-items: center; gap: .4rem 1rem; margin: .6rem 0; }
.play audio { width: 100%; max-width: 24rem; }
.readings, .readings * { border: 0 !important; } .readings th { font-weight: 500; }
.readings th, .readings td { padding: .25rem 1.2rem .25rem 0 !important; text-align: left; }
.readings meter { width: min(5rem, 11vw); vertical-align: middle; }
.error { border-left: 4px solid #c0392b; padding: .4rem .8rem; } .hint { font-style: italic; }
"""


class Page:
    """What the page's controls compute. It keeps nothing of a visitor, but the runs that it loaded.

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

    def test_image(self, run: str, index: float | None) -> tuple[Tensor, str]:
        """Image `index` of the test part of the data set that a run learned, `(28, 28)` uint8, and
        its class."""
        listener = self.listener(run)
        images, labels = load_digits(listener.model.dataset, "test", self.data_root, "cpu")
        if index is None or not 0 <= index < len(images):
            raise UserError(f"the test part has the images 0 to {len(images) - 1:,}; give one.")
        return images[int(index)], listener.classes[int(labels[int(index)])]

    def imagine(
        self, picture: Tensor | None, run: str, negative: bool, centre: bool, refine: bool
    ) -> str:
        """What a run imagines of a picture, as HTML."""
        if picture is None:
            return "<p>Draw a digit, upload a picture, or take a test image.</p>"
        listener = self.listener(run)
        digit = as_digit(picture, negative, centre)
        made = listener.explain(digit[None], REFINE_STEPS if refine else 0)
        hint = ""
        if is_bright(picture) and not negative:
            hint = "The picture is mostly bright. MNIST is white on black: try “Dark on bright”."
        if listener.missing:
            hint = f"The run was copied without {', '.join(listener.missing)}."
        front_end = listener.model.front_end
        grey = (made.imagined[0, 0].cpu().numpy() + 1) * 127.5
        best = [name for name, _ in made.readings(listener.classes).values()]
        said = f"Imagined; classified as {', '.join(best)}" if best else "Imagined"
        correlation = made.correlations.item()
        return (
            (f'<p class="hint">{html.escape(hint)}</p>' if hint else "")
            + sound_html(
                made.heard[0], made.sounds[0], made.logmels[0, 0], front_end,
                [(f"Imagined, correlation {correlation:.2f}", as_bytes(grey), said)],
            )
            + readings_html(made, listener.classes)
        )  # fmt: skip

    def encode(self, shown: bool, picture: Tensor | None, *values: Any) -> str:
        """The sound of a picture by an encoding, as HTML.

        Args:
            shown: whether anybody sees it; if not, nothing is computed.
            picture: `(H, W)` uint8.
            values: of the controls, in the order of `FIELDS`.
        """
        if not shown or picture is None:
            return "<p>Draw something, upload a picture, or take a test image.</p>"
        front_end, scanned, sound = translate(picture, values)
        return sound_html(scanned, sound, front_end.log_mel(sound[None])[0, 0], front_end, [])

    def decode(self, shown: bool, picture: Tensor | None, *values: Any) -> str:
        """The image decoded from that sound, as HTML. It takes up to some seconds."""
        if not shown or picture is None:
            return ""
        front_end, scanned, sound = translate(picture, values)
        encoding = front_end.encoding
        if encoding.rows * encoding.samples > LARGEST_DECODED:
            return "<p>The sound is too long to be decoded here.</p>"
        image = estimate_image(sound, encoding)
        text = "Decoded from the sound"
        pair = torch.stack([image, scanned.double()]).flatten(1)
        if pair.std(1).min() > 1e-6:
            text += f", correlation {pair.corrcoef()[0, 1]:.2f}"
        figure = figure_html(text, as_bytes(image.numpy() * 255), text)
        return f'<div class="pictures">{figure}</div>'


def translate(picture: Tensor, values: tuple[Any, ...]) -> tuple[ImageToLogMel, Tensor, Tensor]:
    """The front end of the encoding that the controls say, the picture as it is scanned, `(rows,
    columns)` in [0, 1], and its sound."""
    named = zip(FIELDS, values, strict=True)
    front_end = encoding_front_end(
        Encoding(**{one.name: field_value(one, value) for one, value in named})
    )
    with torch.no_grad():
        translator = front_end.translator
        return front_end, translator.resized(picture[None])[0] / 255, translator(picture[None])[0]


@lru_cache(4)
def encoding_front_end(encoding: Encoding) -> ImageToLogMel:
    """The front end of an encoding."""
    return ImageToLogMel(encoding)


def field_value(field: dataclasses.Field, value: Any) -> Any:
    """The value of a control as the type of its field; an empty one is None."""
    kind = typing.get_type_hints(Encoding)[field.name]
    if type(None) in typing.get_args(kind):  # an empty control shows 0
        return int(value) if value else None
    return int(value) if kind is int and value is not None else value


def as_bytes(grey: np.ndarray) -> np.ndarray:
    """Grey levels in 0..255 as uint8."""
    return np.clip(grey.round(), 0, 255).astype(np.uint8)


def sound_html(
    scanned: Tensor,
    sound: Tensor,
    logmel: Tensor,
    front_end: ImageToLogMel,
    pictures: list[tuple[str, np.ndarray, str]],
) -> str:
    """A picture as it is scanned, its log-mel, `pictures` (title, uint8, alternative text), and its
    sound."""
    shown, grey = logmel.cpu().numpy(), as_bytes(scanned.cpu().numpy() * 255)
    seconds = len(shown) * front_end.hop / SAMPLE_RATE
    text = f"Log-mel of {seconds:.2f} s, {where_loud(shown, front_end.hop)}"
    source = wav(sound.cpu().numpy(), front_end.encoding.sample_rate)
    return (
        f'<div class="sound" data-seconds="{seconds}"><div class="pictures">'
        f"{figure_html('Heard', grey, 'The picture as it is scanned')}"
        f'<figure><div class="logmel">{image_html(spectrogram(shown), text)}'
        f'<span class="marker" hidden></span></div>'
        f"<figcaption>Its log-mel, {seconds:.2f} s</figcaption></figure>"
        f"{''.join(figure_html(*one) for one in pictures)}</div>"
        f'<div class="play"><audio controls aria-label="Soundscape" src="{source}"></audio>'
        f'<a download="soundscape.wav" href="{source}">Download the soundscape</a></div></div>'
    )


def figure_html(title: str, pixels: np.ndarray, text: str) -> str:
    caption = f"<figcaption>{html.escape(title)}</figcaption>"
    return f"<figure>{image_html(pixels, text)}{caption}</figure>"


def image_html(pixels: np.ndarray, text: str) -> str:
    return f'<img src="{png(pixels)}" alt="{html.escape(text)}">'


def readings_html(made: Explanation, classes: tuple[str, ...]) -> str:
    """The table of readings: the two most probable classes by each classifier."""
    rows = []
    for name, shares in made.probabilities.items():
        rows.append(f'<tr><th scope="row">{READERS[name]}</th>')
        for share, index in zip(*(one.tolist() for one in shares[0].topk(2)), strict=True):
            meter = f'<meter value="{share:.3f}" aria-hidden="true"></meter>'
            rows.append(f"<td>{html.escape(classes[index])} {meter} {share:.1%}</td>")
        rows.append("</tr>")
    if not rows:
        return ""
    head = "".join(f'<th scope="col">{name}</th>' for name in ("classified by", "class", "next"))
    body = f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return f'<table class="readings">{body}</table>'


def drawn_picture(uri: Any) -> tuple[Tensor, str]:
    """The grey levels of what the canvas sent, `(280, 280)` uint8, and no class.

    Raises:
        UserError: if it is no PNG of that size.
    """
    try:
        content = base64.b64decode(str(uri).partition("base64,")[2], validate=True)
        with Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
            if picture.size != (CANVAS, CANVAS):
                raise ValueError("it has another size")
            return torch.from_numpy(np.array(picture.convert("L"))), ""
    except Exception as error:  # a damaged picture raises any of a dozen types
        raise UserError("the drawing cannot be read; clear it and draw again.") from error


def uploaded_picture(path: str) -> tuple[Tensor, str]:
    """The grey levels of an uploaded picture, at most 512 pixels long, `(H, W)` uint8, and no
    class."""
    try:
        image = Image.fromarray(read_picture(Path(path)).numpy())
    except UserError as error:  # the visitor knows the file's name, not its place
        raise UserError(str(error).replace(path, Path(path).name)) from error
    image.thumbnail((LARGEST_PICTURE, LARGEST_PICTURE))
    return torch.from_numpy(np.array(image)), ""


def in_words(function: Callable[..., str]) -> Callable[..., str]:
    """`function`, whose errors of the visitor become a sentence in the page."""

    def answer(*values: Any) -> str:
        try:
            return function(*values)
        except (UserError, ValueError, TypeError, OverflowError) as error:
            return error_html(error)

    return answer


def error_html(error: Exception) -> str:
    return f'<p class="error" role="alert">{html.escape(str(error))}</p>'


def build(page: Page) -> gr.Blocks:
    """Lay out the page."""
    with gr.Blocks(
        title="Draw, hear, see", analytics_enabled=False, delete_cache=(3600, 3600)
    ) as blocks:
        picture = gr.State(None)
        gr.Markdown(
            "# Draw, hear, see\nDraw a digit. It becomes sound, a model hears the sound, and draws "
            "what it imagines."
        )
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                canvas = gr.HTML(
                    None, html_template=CANVAS_HTML, js_on_load=CANVAS_JS, elem_id="drawing"
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
                    result = gr.HTML(js_on_load=MARKER_JS)
                with gr.Tab("Encodings") as comparing, gr.Row():
                    sides = [EncodingControls(name) for name in ("late-blind", "hificode")]
        is_comparing = gr.State(False)
        imagining.select(lambda: False, None, is_comparing)
        compared = comparing.select(lambda: True, None, is_comparing)
        choices = [run, negative, centre, refine]
        imagine = in_words(page.imagine)
        blocks.load(imagine, [picture, *choices], result)
        changes = [one.change for one in choices]
        gr.on(changes, imagine, [picture, *choices], result, trigger_mode="always_last")

        def show(make: Callable[..., tuple[Tensor, str]], value: Any, *chosen: Any) -> tuple:
            """The visitor's new picture, what the canvas shows, what is imagined, and a message."""
            try:
                new, label = make(value)
            except UserError as error:
                return gr.skip(), gr.skip(), gr.skip(), error_html(error)
            said = f"<p>Its class: {html.escape(label)}.</p>" if label else ""
            return new, on_canvas(png(new.numpy())), imagine(new, *chosen), said

        def drawn(
            event: gr.EventData, run: str, negative: bool, centre: bool, refine: bool
        ) -> tuple:
            new, _, *others = show(drawn_picture, event.picture, run, negative, centre, refine)
            return new, gr.skip(), *others  # or a stroke that is begun by now would disappear

        def uploaded(path: str, *chosen: Any) -> tuple:
            return show(uploaded_picture, path, *chosen)

        def taken(index: float | None, *chosen: Any) -> tuple:
            return show(lambda index: page.test_image(chosen[0], index), index, *chosen)

        def cleared(*chosen: Any) -> tuple:
            return None, on_canvas(""), imagine(None, *chosen), ""

        outputs = [picture, canvas, result, message]
        events = [
            canvas.select(drawn, choices, outputs),
            upload.upload(uploaded, [upload, *choices], outputs),
            gr.on([take.click, index.submit], taken, [index, *choices], outputs),
            clear.click(cleared, choices, outputs),
        ]
        for controls in sides:
            controls.connect(page, [is_comparing, picture], [*events, compared])
    return blocks


def on_canvas(source: str) -> str:
    """What makes the canvas show a picture, or nothing. No two are equal, so that each is shown."""
    return f"{time.time_ns()} {source}"


class EncodingControls:
    """A preset, and a control for every field of an encoding; below them its sound, and the image
    decoded from it.

    Args:
        preset: that is chosen at first, a key of PRESETS.
    """

    def __init__(self, preset: str) -> None:
        hints = typing.get_type_hints(Encoding)
        with gr.Column(min_width=320):
            self.preset = gr.Dropdown(list(PRESETS), value=preset, label="Preset")
            self.sound, self.decoded = gr.HTML(js_on_load=MARKER_JS), gr.HTML()
            with gr.Accordion("Every setting", open=False):
                self.fields = [self.control(one, hints[one.name], preset) for one in FIELDS]

    @staticmethod
    def control(field: dataclasses.Field, kind: Any, preset: str) -> gr.components.Component:
        """The control of a field of this type."""
        named = {
            "label": field.name.replace("_", " "),
            "info": get_field_docstring(Encoding, field.name, ()),
            "value": getattr(PRESETS[preset], field.name),
        }
        if typing.get_origin(kind) is typing.Literal:
            return gr.Dropdown(list(typing.get_args(kind)), **named)
        return gr.Checkbox(**named) if kind is bool else gr.Number(**named)

    def connect(self, page: Page, states: list[gr.State], events: list[Any]) -> None:
        """Compute the sound, and then the decoded image, after each of `events` and each change.

        Args:
            page: computes them.
            states: whether the controls are shown, and the picture.
            events: after which the picture or the first state is another.
        """
        preset = self.preset.input(
            lambda name: list(dataclasses.asdict(PRESETS[name]).values()), self.preset, self.fields
        )
        inputs = [*states, *self.fields]
        encode = {"fn": in_words(page.encode), "inputs": inputs, "outputs": self.sound}
        decode = {"fn": in_words(page.decode), "inputs": inputs, "outputs": self.decoded}
        for event in [*events, preset]:
            event.then(**encode).then(**decode)
        changes = [one.input for one in self.fields]
        gr.on(changes, trigger_mode="always_last", **encode).then(**decode)


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
