"""Draw, hear, see: a local page on which you draw a digit, hear it, and see what a trained model
imagines.

    python app.py                              # the newest complete run in results
    python app.py --run elsewhere/train_all    # a run at another place

It needs gradio: `pip install -r requirements-app.txt`, or `make app`. The page is served to this
machine alone, at 127.0.0.1, and works without a network. docs/app.md describes it. Ctrl-C ends
it."""

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).parent))  # `python -P` leaves it out

from common.cli import Limit, command_line
from common.device import choose_device
from common.files import UserError
from data import default_root
from evaluation.rating import find_run


@dataclass(frozen=True)
class Config:
    # Run of stage three: the name of a folder in results, or a path. None: the newest complete run.
    # The page offers the other runs of results too.
    run: Path | None = None
    port: Annotated[int, Limit(1, 65535)] = 7860  # Port of the page, at 127.0.0.1.
    browser: bool = True  # Open the page in the browser.
    device: str = "cpu"  # auto, cpu, cuda or cuda:1. One image is soon imagined on any.
    # The folder of the data sets; also $LISTEN_DATA.
    data_root: Path = field(default_factory=default_root)
    results: Path = Path("results")  # The folder of all runs.


def main(config: Config) -> None:
    """Serve the page until Ctrl-C."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # gradio reads it when it is imported
    try:
        import gradio  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(
            f"gradio is missing ({error}); run `pip install -r requirements-app.txt` or `make app`."
        ) from error
    from evaluation.app_page import Page, serve

    run = find_run(config.run, config.results)
    page = Page(run, config.results, choose_device(config.device), config.data_root)
    serve(page, config.port, config.browser)


if __name__ == "__main__":
    command_line(Config, main, __doc__)
