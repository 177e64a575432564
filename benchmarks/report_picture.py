"""A picture of a report's page for the documentation, of runs that were measured.

    python benchmarks/report_picture.py RUN... --out docs/images/evaluation-report.png [--lang zh] [--dark] [--height 1500]

It makes the report in a folder that is thrown away, opens it in Debian's chromium, and takes the first --height points of it. Needs
playwright and a chromium; for --lang zh a font with Chinese signs. The last line is JSON.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from gangpao.evaluate.report import runs
from gangpao.evaluate.report.page import build
from gangpao.evaluate.report.page.given import Given
from gangpao.evaluate.report.published import DEFAULT, load_published
from gangpao.page import language_of


def page_of(folders: list[Path], lang: str, folder: Path) -> Path:
    """The HTML page of these runs, beside the published rows of their own models and the usual ones."""
    found, published = runs.read(folders), load_published()
    own = [key for run in found for key in published.of_model(run.result.model.name)]
    return build.write(Given(found, published, published.chosen([*own, *DEFAULT]), language_of(lang)), folder)[0]


def shoot(page: Path, out: Path, width: int, height: int, dark: bool) -> None:
    """The top of a page as PNG."""
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        raise SystemExit("no chromium is installed (Debian: chromium)")
    with sync_playwright() as started:
        chrome = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        opened = chrome.new_page(viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light")
        opened.goto(page.as_uri())
        opened.screenshot(path=out)
        chrome.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--lang", default="en")
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--width", type=int, default=1180)
    parser.add_argument("--height", type=int, default=1500)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        shoot(page_of(asked.runs, asked.lang, Path(folder)), asked.out, asked.width, asked.height, asked.dark)
    print(json.dumps({"picture": str(asked.out), "bytes": asked.out.stat().st_size}))


if __name__ == "__main__":
    main()
