"""Pictures from the chat page to a model that sees, in a real browser: picked, pasted, dropped, taken, on a small screen."""

import base64
import json
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from gangpao.images.look import from_data_url
from gangpao.serve.answers import pictures
from gangpao.serve.app import running
from gangpao.serve.server import Server, Settings
from tests.engine.pictures.linear_sight import LinearSight, png
from tests.engine.tiny import write_tiny
from tests.serve.pages.browser import Reader, context_of

CONTEXT = 2048
PARAMS = "localStorage.setItem('gangpao.settings', JSON.stringify({params: {temperature: 0, max_tokens: 6}}))"


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Server]]:
    path = write_tiny(tmp_path_factory.mktemp("page") / "tiny.gguf", context=CONTEXT)
    # A camera's picture is one piece, so that a conversation of several fits the tiny model's context.
    settings = Settings({"tiny": path}, sights={"tiny": LinearSight()}, port=0, batch=2, threads=1, context=CONTEXT)
    server = Server(settings)
    with running(server) as url:
        yield url, server


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """URLs of the pictures that come to the server."""
    found: list[str] = []
    look_at = pictures.look_at
    monkeypatch.setattr(pictures, "look_at", lambda image, *rest: (found.append(image.url), look_at(image, *rest))[1])
    return found


@pytest.fixture(
    params=[{}, {"viewport": {"width": 320, "height": 568}, "has_touch": True, "is_mobile": True}],
    ids=["wide", "small"],
)
def reader(chrome: Any, seeing: tuple[str, Server], request: pytest.FixtureRequest) -> Iterator[Reader]:
    context = context_of(chrome, **request.param)
    context.add_init_script(PARAMS)
    made = Reader(context, seeing[0])
    yield made.open()
    context.close()
    assert made.complaints == []


def ask(reader: Reader, text: str) -> None:
    """With the button: on a small screen Enter makes a line."""
    reader.page.fill("textarea", text)
    reader.page.click("button[aria-label=Send]")


def give(reader: Reader, event: str, data: bytes) -> None:
    """Paste or drop a file, as a browser does it."""
    reader.page.evaluate(
        """([event, encoded]) => {
          const bytes = Uint8Array.from(atob(encoded), (c) => c.charCodeAt(0));
          const transfer = new DataTransfer();
          transfer.items.add(new File([bytes], "given.png", { type: "image/png" }));
          const [where, made] = event === "paste"
            ? ["textarea", new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true, cancelable: true })]
            : ["main", new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true })];
          document.querySelector(where).dispatchEvent(made);
        }""",
        [event, base64.b64encode(data).decode()],
    )


def test_a_conversation_with_pictures(
    reader: Reader, seeing: tuple[str, Server], sent: list[str], tmp_path: Path
) -> None:
    page, (_, server) = reader.page, seeing
    file = tmp_path / "clear.png"
    Image.new("RGBA", (60, 40), (0, 0, 0, 0)).save(file)
    page.set_input_files("input[accept^=image]", file)
    page.wait_for_selector(".thumb")
    page.click("button[aria-label='Take a photo']")
    page.wait_for_function("() => document.querySelector('video')?.videoWidth > 0")
    page.click("text=Take the photo")
    page.wait_for_function("() => document.querySelectorAll('.thumb').length === 2")
    give(reader, "paste", png(50, 50, seed=1))
    page.wait_for_function("() => document.querySelectorAll('.thumb').length === 3")
    give(reader, "drop", png(50, 50, seed=2))
    page.wait_for_function("() => document.querySelectorAll('.thumb').length === 4")
    assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth"), "nothing stands out of the screen"
    page.click(".thumb >> nth=3 >> button")
    ask(reader, "what are these?")
    reader.answered(1)
    counters = server.models.loaded()["tiny"].engine.seeing.counters
    looked = [from_data_url(url) for url in sent]
    assert [(p.kind, p.width, p.height) for p in looked[::2]] == [("jpeg", 60, 40), ("jpeg", 50, 50)]
    assert looked[1].width > 100
    with Image.open(BytesIO(looked[0].data)) as clear:
        assert min(clear.convert("RGB").getpixel((30, 20))) > 250  # paper, not black
    pieces = counters.pieces
    ask(reader, "and which is the larger one?")
    reader.answered(2)
    assert counters.pieces == pieces  # a follow-up question encodes nothing
    assert sent[3:] == sent[:3]
    assert page.locator(".user .body img").count() == 3


def test_a_picture_alone_is_a_question(reader: Reader, sent: list[str]) -> None:
    give(reader, "paste", png(30, 30, seed=3))
    reader.page.wait_for_selector(".thumb")
    reader.page.click("button[aria-label=Send]")
    reader.answered(1)
    assert len(sent) == 1
    assert reader.page.title() == "An image · gangpao"


def test_pictures_are_exported_and_imported(
    chrome: Any, seeing: tuple[str, Server], sent: list[str], tmp_path: Path
) -> None:
    context = context_of(chrome)
    context.add_init_script(PARAMS)
    reader = Reader(context, seeing[0]).open()
    page = reader.page
    give(reader, "drop", png(40, 30, seed=4))
    page.wait_for_selector(".thumb")
    reader.ask("keep it").answered()
    page.hover(".conversation")
    with page.expect_download() as saved:
        page.click("button[aria-label='Save keep it as Markdown']")
    saved.value.save_as(tmp_path / "one.md")
    assert f"![]({sent[0]})\n\nkeep it" in (tmp_path / "one.md").read_text(encoding="utf-8")
    page.click("text=Settings")
    with page.expect_download() as saved:
        page.click("text=Export all")
    path = tmp_path / "all.json"
    saved.value.save_as(path)
    assert sent[0] in path.read_text(encoding="utf-8")
    page.click("text=Delete all")
    page.click("dialog >> nth=1 >> button.danger")
    page.wait_for_selector("text=Nothing here yet.")
    page.click("text=Settings")
    page.set_input_files("dialog input[type=file]", path)
    page.wait_for_selector("text=1 conversations imported.")
    page.click("text=keep it")
    reader.shows("keep it")
    assert page.get_attribute(".user .body img", "src") == sent[0]
    reader.ask("still there?").answered(2)
    assert sent[1:] == sent[:1]
    context.close()
    assert reader.complaints == []
    assert json.loads(path.read_text(encoding="utf-8"))["format"] == "gangpao-conversations"
