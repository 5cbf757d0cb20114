"""Images that need no download: handwritten and printed digits, letters, and shapes."""

import string
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from data.parts import Digits, Part, divide

FONT_NAMES = (
    "DejaVuSans DejaVuSans-Bold DejaVuSans-Oblique DejaVuSans-BoldOblique DejaVuSansMono "
    "DejaVuSansMono-Oblique DejaVuSerif DejaVuSerif-Bold DejaVuSerif-Italic STIXGeneral "
    "STIXGeneralBol STIXGeneralItalic cmr10 cmb10 cmss10 cmtt10"
)
PRINTED_FONTS = FONT_NAMES.split()


def load_handwritten(part: Part, root: Path | None = None) -> Digits:
    """scikit-learn's 8 x 8 digits (UCI, E. Alpaydin and C. Kaynak, 1998), enlarged to 20 x 20 in 28
    x 28, as in MNIST."""
    from sklearn.datasets import load_digits  # slow to import, and MNIST does not need it

    small, labels = load_digits(return_X_y=True)
    small = torch.from_numpy(small.reshape(-1, 1, 8, 8)).float() / 16
    images = F.interpolate(small, (20, 20), mode="bicubic").clamp(0, 1).mul(255).round().byte()
    images = F.pad(images[:, 0], (4, 4, 4, 4))
    kept = divide(len(images), part, test=360, validation=180)
    return Digits(images[kept], torch.from_numpy(labels)[kept])


def load_printed(count: int = 8000, together: int = 4) -> Digits:
    """Digits in matplotlib's fonts with random affine and elastic distortions, always the same and
    all different. The ten digits in `together` fonts each share one: torchvision draws one a call.
    """
    from torchvision.transforms import v2  # it takes as long to import as PyTorch

    glyphs = torch.stack(
        [torch.stack([_glyph(font, str(digit)) for font in PRINTED_FONTS]) for digit in range(10)]
    )
    # The largest rotation (degrees), shift (share of the width), scale and shear (degrees).
    ranges = ((-12, 12), (0.08, 0.08), (0.75, 1.1), (-12, 12))
    affine = v2.RandomAffine(*ranges, interpolation=v2.InterpolationMode.BILINEAR)
    elastic = v2.ElasticTransform(alpha=30.0, sigma=4.0)
    labels = torch.arange(10).repeat_interleave(together)
    images = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for _ in range(count // len(labels)):
            fonts = torch.cat([torch.randperm(len(PRINTED_FONTS))[:together] for _ in range(10)])
            images.append(elastic(affine(glyphs[labels, fonts][:, None]))[:, 0])
    return Digits(torch.cat(images), labels.repeat(len(images)))


def printed_letters() -> Tensor:
    """A to Z in DejaVu Sans, `(26, 28, 28)` uint8, for what was never heard."""
    return torch.stack([_glyph("DejaVuSans", letter) for letter in string.ascii_uppercase])


def simple_shapes() -> Tensor:
    """Disc, ring, square, frame, triangle, plus, cross, and a line across, down and aslant, `(10,
    28, 28)` uint8, with strokes as thick as a digit's."""
    drawings = (
        lambda pen: pen.ellipse((6, 6, 22, 22), fill=255),
        lambda pen: pen.ellipse((4, 4, 24, 24), outline=255, width=3),
        lambda pen: pen.rectangle((7, 7, 21, 21), fill=255),
        lambda pen: pen.rectangle((5, 5, 23, 23), outline=255, width=3),
        lambda pen: pen.polygon(((14, 4), (24, 23), (4, 23)), outline=255, width=3),
        lambda pen: (pen.line((14, 4, 14, 24), 255, 3), pen.line((4, 14, 24, 14), 255, 3)),
        lambda pen: (pen.line((5, 5, 23, 23), 255, 3), pen.line((5, 23, 23, 5), 255, 3)),
        lambda pen: pen.line((4, 14, 24, 14), 255, 3),
        lambda pen: pen.line((14, 4, 14, 24), 255, 3),
        lambda pen: pen.line((5, 23, 23, 5), 255, 3),
    )
    images = []
    for draw in drawings:
        canvas = Image.new("L", (28, 28))
        draw(ImageDraw.Draw(canvas))
        images.append(torch.from_numpy(np.array(canvas)))
    return torch.stack(images)


def _glyph(font: str, digit: str) -> Tensor:
    """`(28, 28)` uint8: one digit, 20 pixels high, its box in the middle."""
    import matplotlib

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{font}.ttf"
    typeface = ImageFont.truetype(str(path), 26)
    left, top, right, bottom = typeface.getbbox(digit)
    image = Image.new("L", (int(right - left), int(bottom - top)))
    ImageDraw.Draw(image).text((-left, -top), digit, fill=255, font=typeface)
    scale = 20 / max(image.size)
    size = [max(1, round(edge * scale)) for edge in image.size]
    image = image.resize(size, Image.Resampling.BICUBIC)
    canvas = Image.new("L", (28, 28))
    canvas.paste(image, ((28 - image.width) // 2, (28 - image.height) // 2))
    return torch.from_numpy(np.array(canvas))
