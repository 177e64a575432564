"""The page in a real browser: nothing is fetched, nothing runs, and it can be read in light and dark, on a desk and on a phone."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from gangpao.evaluate.report import runs
from gangpao.evaluate.report.page import build
from gangpao.evaluate.report.page.given import Given
from gangpao.evaluate.report.published import load_published
from gangpao.evaluate.results import read_run
from tests.evaluate.report.makers import HOSTILE, TASKS, a_run, changed, thinking
from tests.serve.pages.browser import browser, context_of

# Of every text that is shown: its colour, and that of what lies behind it.
CONTRASTS = r"""() => {
    const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true }), known = {};
    const rgba = (colour) => {
        if (known[colour]) return known[colour];
        canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
        return known[colour] = [...canvas.getImageData(0, 0, 1, 1).data];
    };
    const sheet = document.body.appendChild(Object.assign(document.createElement("i"), { style: "background:Canvas" }));
    const paper = rgba(getComputedStyle(sheet).backgroundColor).slice(0, 3);
    sheet.remove();
    const light = (c) => [0.2126, 0.7152, 0.0722].reduce((sum, w, i) => {
        const v = c[i] / 255;
        return sum + w * (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    }, 0);
    const behind = (node) => {
        const over = [];
        for (; node; node = node.parentElement) over.push(rgba(getComputedStyle(node).backgroundColor));
        return over.reverse().reduce((under, c) => under.map((u, i) => u + (c[i] - u) * c[3] / 255), paper);
    };
    const texts = [...document.querySelectorAll("h1, h2, p, td, th, li, summary, pre")];
    return texts.filter((n, i) => n.matches(".loud") || i % 7 === 0).map((n) => {
        const [a, b] = [light(rgba(getComputedStyle(n).color)), light(behind(n))].sort((x, y) => y - x);
        return (a + 0.05) / (b + 0.05);
    });
}"""


@pytest.fixture(scope="module")
def chrome() -> Iterator[Any]:
    with browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pages in both languages of two runs whose models wrote scripts into everything."""
    folder = tmp_path_factory.mktemp("pages")
    pair = [a_run(folder / "a", "small", 5, TASKS[3:], count=40), a_run(folder / "b", "large", 6, TASKS[3:], count=40)]
    result = read_run(pair[0])
    tasks = [s.model_copy(update={"thinking": thinking(0.3), "grader": HOSTILE, "data": HOSTILE}) for s in result.tasks]
    model = result.model.model_copy(update={"name": f"a {HOSTILE}", "quantization": HOSTILE})
    changed(pair[0], tasks=tasks, model=model, notes=[HOSTILE], settings={HOSTILE: HOSTILE})
    found, known = runs.read(pair), load_published()
    keys = ("minicpm-2b", "mistral-7b", "llama2-13b")
    return {lang: build.write(Given(found, known, keys, lang), folder / "out")[0] for lang in ("en", "zh")}  # type: ignore[arg-type]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_page_is_read_anywhere(chrome, pages, language):
    context = context_of(chrome)
    context.set_default_timeout(60_000)  # a busy machine is slow, not wrong
    page, asked, complaints = context.new_page(), [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text))
    page.goto(pages[language].as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    for width, scheme, shown in ((1100, "light", "dark on light"), (390, "dark", "light on dark")):
        page.set_viewport_size({"width": width, "height": 844})
        page.emulate_media(color_scheme=scheme)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), width
        assert min(page.evaluate(CONTRASTS)) > 4.5, scheme
        assert inked(page, shown) == shown
        high = page.evaluate("Math.max(...[...document.querySelectorAll('.numbers tr')].map(r => r.offsetHeight))")
        assert high < 330, width  # no cell is a column of single letters
    assert page.evaluate("document.images.length") == 3
    assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 100)")
    assert page.get_attribute("html", "lang") == language
    assert [url for url in asked if not url.startswith("data:")] == [pages[language].as_uri()]
    assert (complaints, page.evaluate("window.hurt"), page.evaluate("document.scripts.length")) == ([], None, 0)
    context.close()


def inked(page: Any, shown: str) -> str:
    """The ink of the first picture, when it has followed a change of scheme, or five seconds later."""
    for _ in range(50):
        if ink(page.locator(".picture img").first) == shown:
            return shown
        page.wait_for_timeout(100)
    return ink(page.locator(".picture img").first)


def ink(picture: Any) -> str:
    """The ink of a picture as it is shown, by its darkest and lightest greys."""
    grey = Image.open(io.BytesIO(picture.screenshot())).convert("L")
    counts = grey.histogram()
    paper = counts.index(max(counts))
    darkest, lightest = (next(i for i in order if counts[i] > 20) for order in (range(256), range(255, -1, -1)))
    return "dark on light" if paper - darkest > lightest - paper and paper > 200 else (
        "light on dark" if lightest - paper > 100 and paper < 60 else f"{darkest} to {lightest} on {paper}"
    )  # fmt: skip


def test_what_a_model_wrote_is_shown_as_it_wrote_it(chrome, pages):
    context = context_of(chrome)
    page = context.new_page()
    page.goto(pages["en"].as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert HOSTILE in page.inner_text("pre >> nth=1") or HOSTILE in page.inner_text("pre >> nth=0")
    assert "30% of the answers are empty" in page.inner_text("body")
    context.close()
