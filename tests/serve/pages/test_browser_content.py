"""What goes into a question and what an answer shows, in a real browser: formulas, task lists, thoughts, text files, and
whether anything of it is kept."""

import json
import re
from pathlib import Path

import pytest

from gangpao.serve.pages import libraries
from tests.serve.pages.browser import TEXT_FILES, Reader, need_parts
from tests.serve.pages.web_fake import Endpoint


def say(endpoint: Endpoint, text: str, size: int = 7) -> None:
    endpoint.pieces = [text[at : at + size] for at in range(0, len(text), size)]


FORMULAS = r"""Inline \(a^2 + b^2 = c^2\) and $x_1 + x_2$, the $n$th, $x$。

\[
\int_0^1 x \, dx = \frac{1}{2}
\]

$$\sum_{i=1}^{n} i = \frac{n(n+1)}{2}$$

- in a list $\alpha_i$
- 中文$E = mc^2$公式，$$F = ma$$ inside a line

| $p$ | $q$ |
|-|-|
| $\lnot p$ | 1 |

Words \[y = 1\] around."""

NO_FORMULAS = [
    "It costs $5 and $10 more, or $5-$10.",
    "US$5 and HK$6, $20,000 and 30$ more.",
    "价格是$5到$8元，费用 $5，或者 $6。",
    "`$x$` and $HOME/$USER, $5 million or 6$.",
    r"\$x\$ and $ x $ and \\(x\\)",
]


def test_formulas_are_drawn_and_money_is_not(reader: Reader, endpoint: Endpoint) -> None:
    need_parts("chat")
    say(endpoint, FORMULAS + "\n\n" + "\n\n".join(NO_FORMULAS) + "\n\n```tex\n$$x$$ \\(y\\)\n```\n\nend")
    reader.ask("formulas").answered()
    page = reader.page
    drawn = page.evaluate("[...document.querySelectorAll('.katex annotation')].map(e => e.textContent.trim())")
    assert drawn == [
        "a^2 + b^2 = c^2", "x_1 + x_2", "n", "x", r"\int_0^1 x \, dx = \frac{1}{2}",
        r"\sum_{i=1}^{n} i = \frac{n(n+1)}{2}", r"\alpha_i", "E = mc^2", "F = ma", "p", "q", r"\lnot p", "y = 1",
    ]  # fmt: skip
    assert page.locator(".katex-display").count() == 4
    words = page.locator(".assistant .body > p:not(:has(.katex))").all_text_contents()
    assert words[: len(NO_FORMULAS)] == [
        *NO_FORMULAS[:3], "$x$ and $HOME/$USER, $5 million or 6$.", r"$x$ and $ x $ and \(x\)",
    ]  # fmt: skip
    assert page.inner_text(".code pre").strip() == "$$x$$ \\(y\\)"
    assert page.evaluate("document.fonts.ready.then(() => document.fonts.check('16px KaTeX_Math'))")
    assert page.evaluate(
        "[...document.fonts].filter(f => f.status === 'loaded').some(f => f.family.startsWith('KaTeX'))"
    )
    assert page.evaluate("getComputedStyle(document.querySelector('.katex-mathml')).position") == "absolute"


ATTACKS = [
    r"$\href{javascript:window.hit=1}{x}$", r"$\url{javascript:window.hit=1}$", r"$\includegraphics{https://example.com/x.png}$",
    r"$\htmlStyle{position:fixed}{x}$", r"$\htmlData{a=b}{x}$", r"$\html{<img src=x onerror='window.hit=1'>}$",
    r"$<img src=x onerror='window.hit=1'>$", r"\(\text{<script>window.hit=1</script>}\)", r"$\def\a{\a\a}\a$",
    r"$\frac{1}$", r"$\unknown{x}$", "$" + "x" * 6000 + "$", r"\[\pmb{x} \fcolorbox{red}{blue}{y}\]", r"$\rule{9999em}{9999em}$",
]  # fmt: skip


def test_a_formula_runs_and_fetches_nothing(reader: Reader, endpoint: Endpoint) -> None:
    need_parts("chat")
    foreign: list[str] = []
    reader.page.on("request", lambda r: None if r.url.startswith((endpoint.url, "blob:")) else foreign.append(r.url))
    say(endpoint, "\n\n".join([*ATTACKS, "end"]), size=500)
    assert reader.ask("attack").answered()[0].endswith("end")
    page = reader.page
    bad = page.evaluate(
        """[...document.querySelectorAll('.assistant .body *')].filter((e) => getComputedStyle(e).position === 'fixed' ||
            [...e.attributes].some((a) => /^(on|href|src)/.test(a.name)) ||
            ['a', 'img', 'script', 'iframe'].includes(e.localName)).map((e) => e.outerHTML)"""
    )
    assert bad == []
    text = page.inner_text(".assistant .body")
    assert r"$\unknown{x}$" in text  # what KaTeX does not know stays what it is
    assert r"$\frac{1}$" in text
    page.wait_for_timeout(100)
    assert page.evaluate("window.hit") is None
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert foreign == []


def test_without_katex_formulas_are_their_source_and_the_rest_is_formatted(
    visitor: Reader, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_parts("chat")
    monkeypatch.setattr(
        libraries, "present", lambda part, real=libraries.present: part.package != "katex" and real(part)
    )
    monkeypatch.setattr(
        libraries, "find", lambda name, real=libraries.find: None if "katex" in name.lower() else real(name)
    )
    monkeypatch.setattr(libraries, "fetch", lambda pages: (_ for _ in ()).throw(ValueError("no registry")))
    reader = visitor.open()
    say(endpoint, "A **bold** \\(x^2\\) and\n\n$$y$$\n")
    reader.ask("formula").answered()
    assert reader.page.inner_text(".assistant strong") == "bold"
    assert reader.page.locator(".assistant .source").all_inner_texts() == ["\\(x^2\\)", "$$y$$"]
    assert "plain text" not in reader.page.inner_text(".fine")


def test_task_lists_are_boxes(reader: Reader, endpoint: Endpoint) -> None:
    need_parts("chat")
    say(endpoint, "To do:\n\n- [x] wash **up**\n- [ ] cook\n\n  with salt\n1. [X] first\n2. second\n")
    reader.ask("tasks").answered()
    boxes = reader.page.locator(".assistant input[type=checkbox]")
    assert [(box.is_checked(), box.is_disabled()) for box in boxes.all()] == [(True, True), (False, True), (True, True)]
    assert "[ ]" not in reader.page.inner_text(".assistant .body")
    marks = reader.page.evaluate(
        "[...document.querySelectorAll('.assistant li:has(input)')].map(e => getComputedStyle(e).listStyleType)"
    )
    assert marks == ["none"] * 3
    names = reader.page.evaluate(
        "[...document.querySelectorAll('.assistant li:has(input)')].map(e => e.innerText.trim())"
    )
    assert names[0] == "wash up"


def test_a_thought_is_a_block_to_open(reader: Reader, endpoint: Endpoint) -> None:
    endpoint.thoughts, endpoint.pieces = ["Two and two", ", so\nfour."], ["Fo", "ur."]
    reader.ask("2 + 2?")
    assert reader.answered() == ["Four."]
    page = reader.page
    summary = page.locator(".thought summary")
    assert re.fullmatch(r"Thought( for \d+\.\d s)?", summary.inner_text())
    assert not page.is_visible("text=so four")
    summary.click()
    assert page.inner_text(".thought .plain") == "Two and two, so\nfour."
    endpoint.reset()
    endpoint.thoughts, endpoint.hold, endpoint.pieces = ["hm"], True, []
    reader.ask("and now?")
    page.wait_for_function(
        "() => document.querySelector('article:last-child .thought:not([hidden]) summary')?.textContent === 'Thinking …'"
    )
    page.keyboard.press("Escape")
    reader.answered(2)
    assert [m["content"] for m in endpoint.requests[0]["messages"]] == ["2 + 2?", "Four.", "and now?"]
    page.reload()
    page.wait_for_selector("body[data-ready]")
    assert page.locator(".thought .plain").first.text_content() == "Two and two, so\nfour."


PROGRAM = "def f():\n    return '```'\n"


def test_text_files_go_with_a_question(reader: Reader, endpoint: Endpoint, tmp_path: Path) -> None:
    page = reader.page
    (tmp_path / "f.PY").write_bytes(PROGRAM.replace("\n", "\r\n").encode())
    (tmp_path / "说明.txt").write_bytes("泰山很高。".encode("gb18030"))
    (tmp_path / "wide.csv").write_bytes(b"\xff\xfe" + "a,b".encode("utf-16-le"))
    (tmp_path / "big.log").write_bytes(b"x" * (256 * 1024 + 1))
    (tmp_path / "program.bin").write_bytes(bytes(range(256)))
    (tmp_path / "empty.md").write_bytes(b" \n")
    page.set_input_files(TEXT_FILES, [tmp_path / name for name in ("f.PY", "说明.txt", "wide.csv")])
    page.wait_for_function("() => document.querySelectorAll('.thumbs .file').length === 3")
    assert page.inner_text(".thumbs .file >> nth=0").split() == ["f.PY", "26", "B"]
    page.click("button[aria-label='Remove wide.csv']")
    for name, says in (
        ("big.log", "big.log has 262 kB; up to 262 kB can be attached"),
        ("program.bin", "program.bin is not a text file."),
        ("empty.md", "empty.md is empty."),
    ):
        page.set_input_files(TEXT_FILES, tmp_path / name)
        page.wait_for_selector(f".toast >> text={says}")
    page.set_input_files(TEXT_FILES, [tmp_path / "f.PY"] * 8)
    page.wait_for_selector(".toast >> text=At most 8 files go with one question.")
    while page.locator(".thumbs .file").count() > 2:
        page.click(".thumbs .file:last-child button")
    reader.ask("what is it?").answered()
    content = endpoint.requests[0]["messages"][0]["content"]
    assert content == f"f.PY:\n````py\n{PROGRAM}````\n\n说明.txt:\n```txt\n泰山很高。\n```\n\nwhat is it?"
    assert page.locator(".user details.file summary .name").all_inner_texts() == ["f.PY", "说明.txt"]
    assert page.locator(".thumbs > *").count() == 0
    page.click(".user details.file summary >> nth=1")
    assert page.inner_text(".user details.file pre >> nth=1") == "泰山很高。"
    page.hover(".user")
    page.click("button[aria-label=Edit]")
    assert page.input_value("textarea[aria-label='Edit the question']") == "what is it?"
    page.fill("textarea[aria-label='Edit the question']", "why?")
    page.press("textarea[aria-label='Edit the question']", "Enter")
    reader.answered()
    assert endpoint.requests[1]["messages"][0]["content"] == content.replace("what is it?", "why?")
    page.click("text=Settings")
    with page.expect_download() as saved:
        page.click("text=Export all")
    saved.value.save_as(tmp_path / "all.json")
    page.set_input_files("dialog input[type=file]", tmp_path / "all.json")
    page.wait_for_selector("text=1 conversations imported.")
    nodes = json.loads((tmp_path / "all.json").read_text(encoding="utf-8"))["conversations"][0]["nodes"].values()
    assert [f["name"] for node in nodes if node["role"] == "user" for f in node["files"]] == ["f.PY", "说明.txt"] * 2


def test_a_file_alone_is_a_question_and_can_be_dropped(reader: Reader, endpoint: Endpoint) -> None:
    page = reader.page
    transfer = page.evaluate_handle(
        """() => {
            const held = new DataTransfer();
            held.items.add(new File(['some notes'], 'notes.md', { type: 'text/markdown' }));
            return held;
        }"""
    )
    page.dispatch_event(".scroller", "dragenter", {"dataTransfer": transfer})
    assert "dropping" in (page.get_attribute("main", "class") or "")
    page.dispatch_event(".scroller", "drop", {"dataTransfer": transfer})
    page.wait_for_selector(".thumbs .file >> text=notes.md")
    assert "dropping" not in (page.get_attribute("main", "class") or "")
    page.click("button[aria-label=Send]")
    reader.answered()
    assert endpoint.requests[0]["messages"] == [{"role": "user", "content": "notes.md:\n```md\nsome notes\n```"}]
    assert page.title() == "notes.md · gangpao"


KEPT = """async () => {
    const open = indexedDB.open("gangpao");
    await new Promise((resolve) => { open.onsuccess = resolve; });
    const all = open.result.transaction("conversations").objectStore("conversations").getAll();
    await new Promise((resolve) => { all.onsuccess = resolve; });
    open.result.close();
    return JSON.stringify([all.result, { ...localStorage }]);
}"""


def test_what_is_not_to_be_kept_is_not(visitor: Reader, endpoint: Endpoint) -> None:
    endpoint.key, reader, page = "sesame", visitor, visitor.page
    page.goto(endpoint.url)
    page.fill("dialog input[type=password]", "sesame")
    page.press("dialog input[type=password]", "Enter")
    page.wait_for_selector("body[data-ready]")
    reader.ask("before").answered()
    assert "sesame" in page.evaluate(KEPT)
    page.click("text=Settings")
    page.click("text=Keep conversations and the API key in this browser")
    page.keyboard.press("Escape")
    reader.ask("secret").answered(2)
    page.click("text=New conversation")
    reader.ask("another secret").answered()
    assert page.locator(".conversation .title").all_inner_texts() == ["another secret", "before"]
    kept = page.evaluate(KEPT)
    assert "before" in kept
    assert "secret" not in kept
    assert "sesame" not in kept
    page.reload()
    page.wait_for_selector("body[data-ready]")  # the key lasts as long as the tab
    assert page.locator(".conversation .title").all_inner_texts() == ["before"]
    reader.ask("now kept").answered()
    page.click("text=Settings")
    page.click("text=Keep conversations and the API key in this browser")
    page.keyboard.press("Escape")
    page.wait_for_timeout(200)
    kept = page.evaluate(KEPT)
    assert "now kept" in kept
    assert "sesame" in kept
    assert ["401" in complaint for complaint in reader.complaints] == [True]
    reader.complaints.clear()
