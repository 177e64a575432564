"""The watch page in a real browser with a fake camera, in front of an endpoint that answers what each test wants."""

import base64
import io
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image

from gangpao.serve.app import running
from gangpao.serve.server import Server, Settings
from tests.engine.tiny import write_tiny
from tests.serve.pages.browser import Reader, context_of
from tests.serve.pages.web_fake import Endpoint


class Watcher(Reader):
    """Somebody at /watch."""

    def start(self) -> "Watcher":
        self.page.click("text=Start the camera")
        return self

    def sentences(self, count: int) -> list[str]:
        """What was said of frames, as soon as there are so many."""
        self.page.wait_for_function("n => document.querySelectorAll('.lines time').length >= n", arg=count)
        return [text.strip() for text in self.page.locator(".lines li:has(time) .text").all_inner_texts()]

    def ask(self, text: str) -> "Watcher":
        self.page.fill(".question input[type=text]", text)
        self.page.press(".question input[type=text]", "Enter")
        return self

    def answer(self) -> str:
        self.page.wait_for_function("() => document.querySelector('.lines .answer .text')?.textContent.length > 1")
        return self.page.inner_text(".lines li.answer .text")


@pytest.fixture
def watcher(profile: Any, endpoint: Endpoint) -> Iterator[Watcher]:
    endpoint.sees = True
    endpoint.pieces = ["A green", " ball.\n"]
    made = Watcher(profile, f"{endpoint.url}/watch")
    yield made
    clear = {"origin": endpoint.url, "storageTypes": "all"}
    profile.new_cdp_session(made.page).send("Storage.clearDataForOrigin", clear)
    made.page.close()
    assert made.complaints == []


def picture_of(request: dict[str, Any]) -> Image.Image:
    (image, text) = request["messages"][-1]["content"]
    assert (image["type"], text["type"]) == ("image_url", "text")
    return Image.open(io.BytesIO(base64.b64decode(image["image_url"]["url"].removeprefix("data:image/jpeg;base64,"))))


def test_frames_are_told_and_questions_answered_from_the_log(watcher: Watcher, endpoint: Endpoint) -> None:
    watcher.open()
    assert "Start the camera or choose a video" in watcher.page.inner_text(".lines")
    watcher.start()
    assert watcher.sentences(1)[0] == "A green ball."
    assert re.search(r"\d\d:\d\d:\d\d", watcher.page.inner_text(".lines time"))
    assert re.fullmatch(r"\d+\.\d s behind", watcher.page.inner_text(".lines small >> nth=0"))
    request = endpoint.requests[0]
    picture = picture_of(request)
    assert 448 * 448 * 0.9 < picture.width * picture.height <= 448 * 448
    assert np.asarray(picture).std() > 10  # the camera's picture, not a black one
    assert (request["model"], request["max_tokens"], request["temperature"]) == ("toy", 64, 0)
    assert request["messages"][0]["content"][1]["text"] == "Describe what this picture shows in one short sentence."

    watcher.page.click("text=Stop")
    seen = len(endpoint.requests)
    endpoint.pieces = ["A ball, ", "a green one."]
    assert watcher.ask("what did I show before?").answer().startswith("A ball")
    watcher.page.wait_for_function(
        "() => document.querySelector('.lines .answer').textContent === 'A ball, a green one.'"
    )
    system, user = endpoint.requests[seen]["messages"]
    assert re.search(r"\[\d\d:\d\d:\d\d\] A green ball\.", system["content"])
    assert user == {"role": "user", "content": "what did I show before?"}
    # The lines outlive the page, and can be saved and forgotten.
    watcher.open()
    assert watcher.sentences(1)[0] == "A green ball."
    with watcher.page.expect_download() as saved:
        watcher.page.click("button[aria-label='Save what was seen']")
    rows = [json.loads(line) for line in Path(saved.value.path()).read_text("utf-8").splitlines()]
    assert (rows[0]["text"], rows[-1]["asked"]) == ("A green ball.", "what did I show before?")
    watcher.page.click("button[aria-label='Forget what was seen']")
    assert watcher.page.locator(".lines time").count() == 0
    watcher.open()
    assert watcher.page.locator(".lines time").count() == 0


def test_a_question_may_go_with_the_picture_of_now(watcher: Watcher, endpoint: Endpoint) -> None:
    watcher.open().start()
    watcher.sentences(1)
    watcher.page.select_option(".eye select", "30")
    watcher.page.check("text=with the picture of now")
    seen = len(endpoint.requests)
    watcher.ask("which colour?").answer()
    asked = next(one for one in endpoint.requests[seen:] if one["messages"][0]["role"] == "system")
    assert picture_of(asked).width > 100
    assert asked["messages"][-1]["content"][1]["text"] == "which colour?"


def test_what_does_not_change_is_not_sent(watcher: Watcher, endpoint: Endpoint) -> None:
    watcher.open()
    # A camera that shows one still picture.
    watcher.page.evaluate("""() => {
      const canvas = document.createElement("canvas");
      canvas.getContext("2d").fillRect(0, 0, 99, 99);
      setInterval(() => canvas.getContext("2d").fillRect(0, 0, 1, 1), 50);
      navigator.mediaDevices.getUserMedia = async () => canvas.captureStream(20);
    }""")
    watcher.start()
    watcher.sentences(1)
    watcher.page.wait_for_selector("text=nothing new (2)")
    assert len(endpoint.requests) == 1


@pytest.mark.parametrize(
    ("error", "words", "goes_on"),
    [
        ((400, {"message": "toy does not see"}, {}), "toy does not see", False),
        ((429, {"message": "busy"}, {"retry-after": "1"}), "in 1 s", True),
    ],
)
def test_errors_are_told(watcher: Watcher, endpoint: Endpoint, error: Any, words: str, goes_on: bool) -> None:
    watcher.open()
    endpoint.fail = error
    watcher.start()
    watcher.page.wait_for_selector(".trouble:not([hidden])")
    assert words in watcher.page.inner_text(".trouble")
    assert watcher.page.is_visible("text=Stop" if goes_on else "text=Start the camera")
    if goes_on:
        endpoint.fail = None
        assert watcher.sentences(1)[0] == "A green ball."
        assert not watcher.page.is_visible(".trouble")
    watcher.complaints = [text for text in watcher.complaints if "Failed to load resource" not in text]


def test_it_needs_a_model_that_sees_and_the_chat_links_there_only_then(watcher: Watcher, endpoint: Endpoint) -> None:
    endpoint.sees = False
    watcher.open()
    assert "No model of this server sees" in watcher.page.inner_text(".trouble")
    assert watcher.page.is_disabled("text=Start the camera")
    link = ".sidebar a[href='/watch']"
    watcher.page.goto(endpoint.url)
    watcher.page.wait_for_selector("body[data-ready]")
    assert not watcher.page.is_visible(link)
    endpoint.sees = True
    watcher.page.reload()
    watcher.page.wait_for_selector("body[data-ready]")
    watcher.page.click(link)
    watcher.page.wait_for_selector("text=Start the camera")


def test_a_camera_that_may_not_be_used_is_told(watcher: Watcher) -> None:
    watcher.open()
    watcher.page.evaluate("() => { navigator.mediaDevices.getUserMedia = async () => { throw new Error('no'); }; }")
    watcher.start()
    watcher.page.wait_for_selector(".trouble:not([hidden])")
    assert "no camera" in watcher.page.inner_text(".trouble").lower()


@pytest.mark.parametrize("name", ["a.webm", "broken.webm"])
def test_a_video_file_is_watched(watcher: Watcher, endpoint: Endpoint, tmp_path: Path, name: str) -> None:
    watcher.open()
    path = tmp_path / name
    if name == "a.webm":
        made = watcher.page.evaluate("""async () => {
          const canvas = document.createElement("canvas"), context = canvas.getContext("2d");
          const recorder = new MediaRecorder(canvas.captureStream(20), { mimeType: "video/webm" }), parts = [];
          recorder.ondataavailable = (event) => parts.push(event.data);
          const ended = new Promise((resolve) => { recorder.onstop = resolve; });
          recorder.start();
          for (let i = 0; i < 12; i++) {
            context.fillStyle = i < 6 ? "red" : "lime";
            context.fillRect(0, 0, 300, 150);
            await new Promise((resolve) => setTimeout(resolve, 100));
          }
          recorder.stop();
          await ended;
          return Array.from(new Uint8Array(await new Blob(parts).arrayBuffer()));
        }""")
        path.write_bytes(bytes(made))
    else:
        path.write_bytes(b"no video at all" * 50)
    watcher.page.set_input_files("input[type=file]", path)
    if name == "a.webm":
        watcher.sentences(1)
        colour = np.asarray(picture_of(endpoint.requests[0])).mean((0, 1))
        assert max(colour) - min(colour) > 150
        watcher.page.wait_for_selector("text=Start the camera")  # its end
    else:
        watcher.page.wait_for_selector(".trouble:not([hidden])")
        assert "broken.webm is not a video" in watcher.page.inner_text(".trouble")
    watcher.complaints = [text for text in watcher.complaints if "blob:" not in text]


def test_small_screens_and_chinese(chrome: Any, endpoint: Endpoint) -> None:
    endpoint.sees, endpoint.pieces = True, ["一个绿色的球。"]
    context = context_of(chrome, locale="zh-CN", viewport={"width": 360, "height": 640})
    watcher = Watcher(context, f"{endpoint.url}/watch").open()
    watcher.page.click("text=启动相机")
    assert watcher.sentences(1)[0] == "一个绿色的球。"
    assert endpoint.requests[0]["messages"][0]["content"][1]["text"] == "用一句短话描述这张图片。"
    assert "滞后" in watcher.page.inner_text(".lines small >> nth=0")
    wide = watcher.page.evaluate("() => document.documentElement.scrollWidth > innerWidth")
    assert not wide
    field = watcher.page.locator(".question input[type=text]").bounding_box()
    assert field["y"] + field["height"] <= 640
    assert watcher.complaints == []
    context.close()


def test_speech_goes_in_and_out_where_the_browser_has_it(watcher: Watcher, endpoint: Endpoint) -> None:
    watcher.page.add_init_script("""
      globalThis.said = [];
      globalThis.speechSynthesis.speak = (one) => said.push([one.text, one.lang]);
      globalThis.SpeechRecognition = class {
        start() {
          setTimeout(() => {
            this.onresult({ results: [[{ transcript: "what is this" }]] });
            this.onend();
          }, 50);
        }
        abort() {}
      };
    """)
    watcher.open()
    watcher.page.check("text=Read aloud")
    watcher.start()
    watcher.sentences(1)
    watcher.page.click("text=Speak")
    assert watcher.answer().startswith("A green")
    assert watcher.page.inner_text(".lines li.asked") == "what is this"
    watcher.page.wait_for_function("() => said.length >= 2")
    assert watcher.page.evaluate("() => said[0]") == ["A green ball.", "en-US"]


def test_the_microphone_is_for_this_page_only(endpoint: Endpoint) -> None:
    policies = {path: httpx2.get(f"{endpoint.url}{path}").headers["permissions-policy"] for path in ("/", "/watch")}
    assert "microphone=()" in policies["/"]
    assert "microphone=(self)" in policies["/watch"]


def test_a_real_engine_that_sees_tells_what_a_camera_shows(chrome: Any, tmp_path: Path) -> None:
    """Random weights: what they say means nothing, but every part between the camera and the log is the real one."""
    vision = pytest.importorskip("tests.engine.vision", reason="torch is not installed")
    row = vision.small("minicpm-v-2.6")
    sight = vision.written(tmp_path, replace(row, slicing=replace(row.slicing, resolution=56)))
    model = write_tiny(tmp_path / "tiny.gguf", context=4096)
    settings = Settings({"tiny": model}, sights={"tiny": sight}, port=0, batch=2, threads=1, context=4096)
    with running(Server(settings)) as url:
        context = context_of(chrome)
        watcher = Watcher(context, f"{url}/watch").open().start()
        watcher.sentences(1)
        watcher.page.click("text=Stop")
        watcher.ask("and before?")
        watcher.page.wait_for_selector(".lines li.answer")
        watcher.page.wait_for_function("() => document.querySelector('.lines .answer .text').textContent !== '…'")
        assert not watcher.page.is_visible(".trouble")
        assert watcher.complaints == []
        context.close()
