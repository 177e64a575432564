"""The chat page in a real browser, in front of an endpoint that answers what each test wants."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from gangpao.serve.pages import libraries
from tests.serve.http.attacks import ALLOWED, ATTACKS
from tests.serve.pages.browser import TEXT_FILES, Reader, context_of, need_parts
from tests.serve.pages.web_fake import Endpoint


def test_a_question_is_answered_with_its_speed_and_price(reader: Reader, endpoint: Endpoint) -> None:
    reader.ask("Good morning")
    assert reader.answered() == ["Hello there."]
    stats = reader.page.inner_text(".stats")
    assert re.fullmatch(r"31 tokens/s · 12 tokens · first after \d+\.\d s · ¥0\.000021", stats)
    (request,) = endpoint.requests
    assert request == {
        "model": "toy", "messages": [{"role": "user", "content": "Good morning"}], "stream": True,
        "stream_options": {"include_usage": True}, "model_defaults": True,
    }  # fmt: skip
    assert reader.page.title() == "Good morning · gangpao"
    reader.ask("And now?")
    assert reader.answered(2) == ["Hello there."] * 2
    assert [m["content"] for m in endpoint.requests[1]["messages"]] == ["Good morning", "Hello there.", "And now?"]


def test_stop_keeps_what_came_and_frees_the_server(reader: Reader, endpoint: Endpoint) -> None:
    endpoint.hold = True
    reader.ask("Tell me a long story")
    reader.page.wait_for_function("() => document.querySelector('.assistant .body').textContent.includes('there.')")
    reader.page.click("button[aria-label=Stop]")
    assert reader.answered() == ["Hello there."]
    assert reader.page.inner_text(".note") == "Stopped."
    assert endpoint.dropped.wait(5)


def test_a_question_without_a_word_of_answer_is_not_sent_again(reader: Reader, endpoint: Endpoint) -> None:
    endpoint.pieces, endpoint.hold = [], True
    reader.ask("silence")
    reader.page.wait_for_selector(".running")
    reader.page.keyboard.press("Escape")
    assert reader.answered() == [""]
    endpoint.reset()
    reader.ask("now").answered(2)
    assert endpoint.requests[0]["messages"] == [{"role": "user", "content": "now"}]


def test_a_conversation_deleted_in_the_middle_of_an_answer_stays_away(reader: Reader, endpoint: Endpoint) -> None:
    endpoint.hold = True
    reader.ask("short life")
    reader.page.wait_for_selector(".running")
    reader.page.hover(".conversation")
    reader.page.click("button[aria-label='Delete short life']")
    assert endpoint.dropped.wait(5)
    reader.page.wait_for_selector("text=Nothing here yet.")
    reader.page.reload()
    reader.page.wait_for_selector("body[data-ready]")
    assert reader.page.locator(".conversation").count() == 0


def test_an_edit_ends_the_answer_that_is_being_written(reader: Reader, endpoint: Endpoint) -> None:
    endpoint.hold = True
    reader.ask("first")
    reader.page.wait_for_selector(".running")
    reader.page.hover(".user")
    reader.page.click("button[aria-label=Edit]")
    endpoint.hold = False
    reader.page.fill("textarea[aria-label='Edit the question']", "second")
    reader.page.click("text=Send >> visible=true >> nth=0")
    reader.shows("second")  # before that the first answer may have come to its end
    assert reader.answered() == ["Hello there."]
    assert reader.questions() == ["second"]


def test_editing_and_asking_again_make_branches(reader: Reader, endpoint: Endpoint) -> None:
    page = reader.page
    endpoint.pieces = ["one"]
    reader.ask("first").answered()
    endpoint.pieces = ["two"]
    page.click("button[aria-label='Answer again']")
    assert reader.answered() == ["two"]
    assert page.inner_text(".assistant .branch") == "2 / 2"
    assert endpoint.requests[0]["messages"] == endpoint.requests[1]["messages"]
    page.click("button[aria-label='Previous version']")
    assert reader.answered() == ["one"]
    endpoint.pieces = ["three"]
    page.hover(".user")
    page.click("button[aria-label=Edit]")
    page.fill("textarea[aria-label='Edit the question']", "changed")
    page.press("textarea[aria-label='Edit the question']", "Enter")
    assert (reader.answered(), reader.questions()) == (["three"], ["changed"])
    assert page.inner_text(".user .branch") == "2 / 2"
    page.click(".user button[aria-label='Previous version']")
    assert (reader.answered(), reader.questions()) == (["one"], ["first"])
    page.reload()
    page.wait_for_selector("body[data-ready]")
    assert (reader.answered(), reader.questions()) == (["one"], ["first"])
    page.click(".assistant button[aria-label='Next version']")
    assert reader.answered() == ["two"]


def test_a_reload_keeps_the_history(reader: Reader, endpoint: Endpoint) -> None:
    page = reader.page
    reader.ask("what stays?").answered()
    page.click("text=New conversation")
    reader.ask("and this?").answered()
    page.reload()
    page.wait_for_selector("body[data-ready]")
    assert reader.questions() == ["and this?"]
    assert page.locator(".conversation .title").all_inner_texts() == ["and this?", "what stays?"]
    page.click("text=what stays?")
    reader.shows("what stays?")
    assert (reader.questions(), reader.answered()) == (["what stays?"], ["Hello there."])
    page.go_back()
    reader.shows("and this?")


def test_leaving_in_the_middle_keeps_what_came(reader: Reader, endpoint: Endpoint) -> None:
    endpoint.hold = True
    reader.ask("going away")
    reader.page.wait_for_function("() => document.querySelector('.assistant .body').textContent.includes('there.')")
    reader.page.wait_for_timeout(1200)  # the page saves once a second
    reader.page.reload()
    reader.page.wait_for_selector("body[data-ready]")
    assert reader.answered() == ["Hello there."]
    assert reader.page.inner_text(".note") == "Stopped."


@pytest.mark.parametrize("formatted", [True, False], ids=["formatted", "plain"])
def test_nothing_in_an_answer_is_executed_or_fetched(
    visitor: Reader, endpoint: Endpoint, formatted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if formatted:
        need_parts("chat")
    else:
        monkeypatch.setattr(libraries, "fetch", lambda pages: (_ for _ in ()).throw(ValueError("no registry")))
        monkeypatch.setattr(libraries, "missing", lambda pages=(): list(libraries.LIBRARIES))
        monkeypatch.setattr(libraries, "find", lambda name: None)
    whole = "\n\n".join([*ATTACKS, "end"])
    endpoint.pieces = [whole[at : at + 9] for at in range(0, len(whole), 9)]
    reader, foreign = visitor, list[str]()
    reader.page.on("request", lambda r: None if r.url.startswith((endpoint.url, "blob:")) else foreign.append(r.url))
    reader.open().ask("attack")
    text = reader.answered()[0]
    assert text.endswith("end")
    assert "<script>window.hit = 1</script>" in text  # shown as what it is
    found = reader.page.evaluate(
        "[...new Set([...document.querySelectorAll('.assistant .body *')].map(e => e.localName))]"
    )
    assert set(found) <= ALLOWED
    attributes = reader.page.evaluate(
        "[...document.querySelectorAll('.assistant .body *')].flatMap(e => [...e.attributes].map(a => a.name + '=' + a.value))"
    )
    assert not [
        a for a in attributes if a.startswith(("on", "style", "src")) or "javascript:" in a or "icon-button" in a
    ]
    for link in reader.page.locator(".assistant .body a").all():
        assert link.get_attribute("rel") == "noopener noreferrer nofollow"
        assert re.match("https?:|mailto:", link.get_attribute("href") or "https:")
    reader.page.wait_for_timeout(100)
    assert reader.page.evaluate("window.hit") is None
    assert foreign == []
    if not formatted:
        assert "plain text" in reader.page.inner_text(".fine")


def test_the_policy_itself_stops_a_script(reader: Reader) -> None:
    result = reader.page.evaluate(
        """() => {
            try { document.body.innerHTML += "<img src=x onerror='window.hit=1'>"; return "parsed"; }
            catch (error) { return error.name; }
        }"""
    )
    assert result == "TypeError"  # Trusted Types: no string becomes HTML
    script = "const s = document.createElement('script'); s.src = 'https://example.com/x.js'; document.head.append(s)"
    assert (
        reader.page.evaluate(f"() => {{ try {{ {script}; return 'ran' }} catch (error) {{ return error.name }} }}")
        == "TypeError"
    )
    reader.complaints.clear()  # the browser reports both


def test_markdown_is_formatted_and_code_is_coloured_and_copied(reader: Reader, endpoint: Endpoint) -> None:
    need_parts("chat")
    endpoint.pieces = [
        *"# Title\n\nSome **bold** words.\n\n```python\ndef f(x):\n    return x\n```\n\n| a | b |\n|-|-|\n| 1 | 2 |\n"
    ]
    reader.ask("format")
    reader.answered()
    page = reader.page
    assert page.inner_text(".assistant h1") == "Title"
    assert page.inner_text(".assistant strong") == "bold"
    assert page.inner_text(".code .hljs-keyword >> nth=0") == "def"
    assert page.locator(".assistant td").all_inner_texts() == ["1", "2"]
    reader.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.click(".code .copy")
    assert page.evaluate("navigator.clipboard.readText()") == "def f(x):\n    return x"


FAILURES: list[tuple[int, dict[str, str], dict[str, str], str]] = [
    (429, {"message": "full"}, {"retry-after": "7"}, "Try again in 7 seconds"),
    (503, {"message": "loading"}, {"retry-after": "2"}, "still being loaded. Try again in 2"),
    (400, {"message": "9 tokens are too many", "code": "context_length_exceeded"}, {}, "Start a new one"),
    (400, {"message": "temperature: 9 is too hot"}, {}, "refused this request: temperature: 9 is too hot"),
    (500, {"message": "a bug"}, {}, "its log says why. a bug"),
]


def test_errors_say_what_to_do(reader: Reader, endpoint: Endpoint) -> None:
    endpoint.fail = FAILURES[0][:3]
    reader.ask("fail").answered()
    for *failure, says in FAILURES:
        status, error, headers = failure
        endpoint.fail = (status, error, headers)  # type: ignore[assignment]
        reader.page.click(".error button")
        reader.answered()
        assert says in reader.page.inner_text(".error[role=alert] p")
    endpoint.fail = None
    reader.page.click(".error button")
    assert reader.answered() == ["Hello there."]
    assert len(reader.complaints) == len(FAILURES) + 1  # the browser's own: "Failed to load resource"
    reader.complaints.clear()


def test_a_server_that_is_gone_is_told(reader: Reader) -> None:
    reader.context.set_offline(True)
    reader.ask("anybody?").answered()
    assert "gangpao serve" in reader.page.inner_text(".error p")
    reader.context.set_offline(False)
    reader.page.click(".error button")
    assert reader.answered() == ["Hello there."]
    reader.complaints.clear()


def test_a_key_is_asked_for_kept_and_sent(visitor: Reader, endpoint: Endpoint) -> None:
    endpoint.key, reader = "sesame", visitor
    reader.page.goto(endpoint.url)
    reader.page.fill("dialog input[type=password]", "sesame")
    reader.page.press("dialog input[type=password]", "Enter")
    reader.page.wait_for_selector("body[data-ready]")
    assert reader.ask("open").answered() == ["Hello there."]
    reader.page.reload()
    reader.page.wait_for_selector("body[data-ready]")
    assert reader.page.locator("dialog").count() == 0
    assert ["401" in complaint for complaint in reader.complaints] == [True]
    reader.complaints.clear()


def test_everything_works_with_the_keyboard_alone(reader: Reader, endpoint: Endpoint) -> None:
    page, press = reader.page, reader.page.keyboard.press
    page.focus(".skip")
    press("Enter")
    page.keyboard.type("one line")
    press("Shift+Enter")
    page.keyboard.type("another")
    press("Enter")
    reader.answered()
    assert endpoint.requests[0]["messages"][0]["content"] == "one line\nanother"
    endpoint.hold = True
    page.keyboard.type("on and on")
    press("Enter")
    page.wait_for_selector(".running")
    press("Escape")
    assert len(reader.answered(2)) == 2
    page.evaluate("document.activeElement.blur()")
    press("/")
    assert page.evaluate("document.activeElement.localName") == "textarea"
    press("Control+k")
    assert page.evaluate("document.activeElement.type") == "search"
    press("Alt+n")
    assert reader.questions() == []
    page.evaluate("document.activeElement.blur()")
    press("?")
    assert page.inner_text("dialog h2") == "Keyboard"
    press("Escape")
    page.wait_for_selector("dialog", state="detached")
    names = page.evaluate(
        "[...document.querySelectorAll('button, input, select, textarea')].filter(e => !e.hidden && !(e.ariaLabel || "
        "e.textContent.trim() || e.labels?.length)).map(e => e.outerHTML)"
    )
    assert names == []  # everything that takes focus has a name to read out


def test_answers_are_read_out_sentence_by_sentence(reader: Reader, endpoint: Endpoint) -> None:
    endpoint.pieces = ["It is 3", ".", "5 metres", ". Quite ", "long! And **end"]
    reader.ask("how long?")
    reader.answered()
    spoken = reader.page.locator("[role=log] p").all_inner_texts()
    assert spoken == ["It is 3.", "5 metres.", "Quite long!", "And end", "The answer is complete."] or spoken == [
        "It is 3.5 metres.", "Quite long!", "And end", "The answer is complete."
    ]  # fmt: skip
    assert reader.page.get_attribute("[role=log]", "aria-live") == "polite"


def test_conversations_are_renamed_searched_deleted_and_restored(reader: Reader, endpoint: Endpoint) -> None:
    page = reader.page
    for text in ("about apples", "about pears"):
        page.click("text=New conversation")
        reader.ask(text).answered()
    titles = page.locator(".conversation .title")
    page.hover(".conversation >> nth=1")
    page.click("button[aria-label='Rename about apples']")
    page.fill(".conversation input", "Fruit")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=Fruit")
    assert titles.all_inner_texts() == ["about pears", "Fruit"]
    page.fill("input[type=search]", "apples")
    assert titles.all_inner_texts() == ["Fruit"]  # found by what was said
    page.fill("input[type=search]", "")
    page.hover(".conversation >> nth=0")
    page.click("button[aria-label='Delete about pears']")
    page.wait_for_selector(".toast")
    assert titles.all_inner_texts() == ["Fruit"]
    page.click("text=Undo")
    page.wait_for_function("() => document.querySelectorAll('.conversation').length === 2")


def test_what_is_exported_can_be_imported(reader: Reader, endpoint: Endpoint, tmp_path: Path) -> None:
    page = reader.page
    reader.ask("keep me").answered()
    page.click("text=Settings")
    with page.expect_download() as saved:
        page.click("text=Export all")
    path = tmp_path / "all.json"
    saved.value.save_as(path)
    body = json.loads(path.read_text(encoding="utf-8"))
    assert (body["format"], body["version"], len(body["conversations"])) == ("gangpao-conversations", 1, 1)
    page.click("text=Delete all")
    page.click("dialog >> nth=1 >> button.danger")
    page.wait_for_selector("text=Nothing here yet.")
    page.click("text=Settings")
    page.set_input_files("dialog input[type=file]", path)
    page.wait_for_selector("text=1 conversations imported.")
    page.click("text=keep me")
    reader.shows("keep me")
    assert (reader.questions(), reader.answered()) == (["keep me"], ["Hello there."])
    page.hover(".conversation")
    with page.expect_download() as saved:
        page.click("button[aria-label='Save keep me as Markdown']")
    saved.value.save_as(path)
    assert path.read_text(encoding="utf-8") == "# keep me\n\n## You\n\nkeep me\n\n## toy\n\nHello there.\n"
    broken = {**body, "conversations": [{**body["conversations"][0], "nodes": {"a": {"role": "system"}}}]}
    for wrong in ("{", "[]", json.dumps(broken)):
        path.write_text(wrong, encoding="utf-8")
        page.click("text=Settings")
        page.set_input_files("dialog input[type=file]", path)
        page.wait_for_selector("text=nothing was imported")
    assert page.locator(".conversation").count() == 1


def test_system_prompt_sampling_and_model_are_sent(reader: Reader, endpoint: Endpoint) -> None:
    page = reader.page
    page.select_option(".picker", "other")
    page.click("text=Settings")
    page.fill("dialog textarea", "Be brief.")
    page.fill("label:has-text('Temperature') input", "0.5")
    page.fill("label:has-text('Seed') input", "7")
    page.fill("label:has-text('Top p') input", "3")  # impossible: not taken
    page.press("label:has-text('Top p') input", "Tab")
    page.keyboard.press("Escape")
    reader.ask("hm").answered()
    (request,) = endpoint.requests
    assert request["messages"][0] == {"role": "system", "content": "Be brief."}
    assert {k: v for k, v in request.items() if k not in ("messages", "stream", "stream_options")} == {
        "model": "other", "temperature": 0.5, "seed": 7, "model_defaults": True,
    }  # fmt: skip


def test_images_are_for_models_that_see(reader: Reader, endpoint: Endpoint) -> None:
    buttons = [reader.page.locator(f"button[aria-label='{name}']") for name in ("Attach an image", "Take a photo")]
    assert [button.is_visible() for button in buttons] == [False, False]
    picture = Path(__file__).parents[3] / "gangpao/serve/pages/web/icon-192.png"
    reader.page.set_input_files(TEXT_FILES, picture)
    reader.page.wait_for_selector(".toast >> text=icon-192.png is an image, and this model reads text only.")
    assert reader.page.locator(".thumbs > *").count() == 0
    endpoint.sees = True
    reader.page.reload()
    reader.page.wait_for_selector("body[data-ready]")
    assert [button.is_visible() for button in buttons] == [True, True]
    reader.page.set_input_files("input[accept^=image]", picture)
    reader.page.wait_for_selector(".thumb")
    reader.page.click("button[aria-label='Take a photo']")
    reader.page.wait_for_function("() => document.querySelector('video')?.videoWidth > 0")
    reader.page.click("text=Take the photo")
    reader.page.wait_for_function("() => document.querySelectorAll('.thumb').length === 2")
    reader.ask("what is it?").answered()
    *images, text = endpoint.requests[0]["messages"][0]["content"]
    assert [i["image_url"]["url"][:23] for i in images] == ["data:image/jpeg;base64,"] * 2
    assert text == {"type": "text", "text": "what is it?"}


def test_a_chinese_browser_gets_a_chinese_page(chrome: Any, endpoint: Endpoint) -> None:
    context = context_of(chrome, locale="zh-CN", color_scheme="dark", viewport={"width": 390, "height": 780})
    reader = Reader(context, endpoint.url).open()
    page = reader.page
    assert page.get_attribute("html", "lang") == "zh"
    assert page.get_attribute("html", "data-theme") == "dark"
    assert page.get_attribute("textarea", "placeholder") == "问点什么"
    reader.ask("你好").answered()
    assert "词元/秒" in page.inner_text(".stats")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.click("button[aria-label='打开对话列表']")
    page.click("text=设置")
    page.select_option("label:has-text('语言') select", "en")
    page.wait_for_selector("dialog >> text=Appearance")
    page.select_option("label:has-text('Theme') select", "light")
    page.keyboard.press("Escape")
    page.reload()
    page.wait_for_selector("body[data-ready]")
    assert (page.get_attribute("html", "lang"), page.get_attribute("html", "data-theme")) == ("en", "light")
    context.close()
    assert reader.complaints == []


def test_an_input_method_keeps_its_enter(reader: Reader, endpoint: Endpoint) -> None:
    client = reader.context.new_cdp_session(reader.page)
    reader.page.focus("textarea")
    client.send("Input.imeSetComposition", {"text": "ni", "selectionStart": 2, "selectionEnd": 2})
    client.send(
        "Input.dispatchKeyEvent",
        {"type": "rawKeyDown", "windowsVirtualKeyCode": 229, "key": "Process", "code": "Enter"},
    )
    assert endpoint.requests == []
    client.send("Input.insertText", {"text": "你"})
    reader.page.keyboard.press("Enter")
    reader.answered()
    assert endpoint.requests[0]["messages"][0]["content"] == "你"
