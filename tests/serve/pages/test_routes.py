"""The pages as a browser gets them: policies, caching, what is public, and the rules that our own files keep."""

import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from gangpao.serve.pages import libraries, routes
from tests.serve.pages.web_fake import serving

WEB = Path(routes.__file__).with_name("web")
SCRIPTS = sorted(WEB.glob("*.js"))


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    with serving(tmp_path_factory.mktemp("pages")) as endpoint, httpx2.Client(base_url=endpoint.url) as client:
        yield client


def directives(policy: str) -> dict[str, list[str]]:
    return {name: values for name, *values in (part.split() for part in policy.split(";"))}


def test_the_chat_page_allows_itself_little(http: httpx2.Client) -> None:
    answer = http.get("/")
    policy = directives(answer.headers["content-security-policy"])
    assert policy["default-src"] == ["'none'"]
    assert policy["script-src"] == policy["connect-src"] == policy["style-src"] == ["'self'"]
    assert policy["require-trusted-types-for"] == ["'script'"]
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == ["'none'"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "camera=(self)" in answer.headers["permissions-policy"]


def test_the_phone_page_is_isolated_and_runs_webassembly(http: httpx2.Client) -> None:
    for path in (
        "/phone",
        "/phone/app/sw.js",
        "/phone/app/shell.json",
        "/web/phone.js",
        "/phone/models",
        "/phone/models/tiny/1",
    ):
        headers = http.get(path).headers
        assert headers["cross-origin-opener-policy"] == "same-origin", path
        if path != "/phone/app/shell.json":
            assert headers["cross-origin-embedder-policy"] == "require-corp", path
        assert headers["cross-origin-resource-policy"] == "same-origin", path
    policy = directives(http.get("/phone").headers["content-security-policy"])
    assert policy["script-src"] == ["'self'", "blob:", "'wasm-unsafe-eval'"]
    assert http.get("/phone/app/sw.js").headers["service-worker-allowed"] == "/phone"
    for name in ("'unsafe-inline'", "'unsafe-eval'", "*"):
        assert all(name not in values for values in policy.values())


def test_files_are_packed_and_asked_for_again_cheaply(http: httpx2.Client) -> None:
    answer = http.get("/web/app.js")
    assert answer.text == (WEB / "app.js").read_text(encoding="utf-8")
    assert answer.headers["content-encoding"] == "gzip"
    assert int(answer.headers["content-length"]) < len(answer.content) / 2
    again = http.get("/web/app.js", headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert http.get("/web/app.js", headers={"Accept-Encoding": "identity"}).content == answer.content


@pytest.mark.parametrize(
    "path",
    [
        "/web/", "/web/no.js", "/web/../pages.py", "/web/..%2Fpages.py", "/web/%2e%2e/pages.py", "/web//etc/passwd",
        "/parts/..%2F..%2Fx", "/parts/LICENCE.txt", "/parts/marked.js.gz", "/phone/app/other.js",
    ],
)  # fmt: skip
def test_other_paths_are_not_there(http: httpx2.Client, path: str) -> None:
    assert http.get(path).status_code == 404


def test_a_part_comes_packed_with_its_type(
    http: httpx2.Client, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GANGPAO_HOME", str(tmp_path))
    assert http.get("/parts/marked.js").status_code == 404
    (part,) = (part for part in libraries.LIBRARIES if part.package == "marked")
    folder = libraries.cache_dir() / part.folder
    folder.mkdir(parents=True)
    body = b"export class Marked {}\n" * 50
    (folder / "marked.js").write_bytes(body)
    (folder / "marked.js.gz").write_bytes(gzip.compress(body))
    answer = http.get("/parts/marked.js")
    assert (answer.content, answer.headers["content-encoding"]) == (body, "gzip")
    assert answer.headers["content-type"].startswith("text/javascript")
    assert http.get("/parts/marked.js", headers={"Accept-Encoding": "identity"}).content == body
    assert http.get("/parts/marked.js", headers={"If-None-Match": answer.headers["etag"]}).status_code == 304
    assert "/parts/marked.js" in http.get("/phone/app/shell.json").json()["urls"]


def test_parts_are_fetched_when_a_page_asks_and_failure_is_told(
    http: httpx2.Client, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GANGPAO_HOME", str(tmp_path))
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:1")
    monkeypatch.setattr(libraries, "_PATIENCE", libraries.Limits(attempts=1))
    assert http.get("/web/parts").status_code == 404  # only a page fetches, nobody who walks the routes
    for _ in range(200):
        state = http.post("/web/parts").json()
        if state["problem"]:
            break
    assert state["ready"] is False
    assert "marked: 127.0.0.1" in state["problem"]
    assert "(no text here)" in http.get("/licences").text


def test_the_shell_lists_everything_the_phone_page_needs(http: httpx2.Client) -> None:
    shell = http.get("/phone/app/shell.json").json()
    assert {"/phone", "/web/phone.js", "/web/icons.svg", "/phone/app/manifest.webmanifest"} <= set(shell["urls"])
    assert {http.get(url).status_code for url in shell["urls"]} == {200}
    assert re.fullmatch(r"[0-9a-f]{16}", shell["version"])
    asked = set(re.findall(r'(?:src|href)="(/[^"]+)"', (WEB / "phone.html").read_text(encoding="utf-8")))
    imported = {
        f"/web/{name}" for path in SCRIPTS for name in re.findall(r'from "\./([\w-]+\.js)"', path.read_text("utf-8"))
    }
    assert asked | imported <= set(shell["urls"])


def test_the_phone_page_can_be_installed(http: httpx2.Client) -> None:
    answer = http.get("/phone/app/manifest.webmanifest")
    assert answer.headers["content-type"].startswith("application/manifest+json")
    manifest = answer.json()
    assert (manifest["start_url"], manifest["scope"], manifest["display"]) == ("/phone", "/phone", "standalone")
    assert {"192x192", "512x512"} <= {icon["sizes"] for icon in manifest["icons"]}
    assert {http.get(icon["src"]).status_code for icon in manifest["icons"]} == {200}


def test_pages_have_nothing_inline_and_nothing_from_elsewhere() -> None:
    for path in [*WEB.glob("*.html"), *WEB.glob("*.css"), *SCRIPTS]:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"<script(?![^>]* src=)|<style|\sstyle=|\son\w+=\"", text), path.name
        foreign = re.findall(r"https?://[\w.-]+", text)
        assert set(foreign) <= {"http://www.w3.org"}, path.name  # the name of SVG, never fetched
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text), (
            path.name
        )


def test_modules_are_preloaded() -> None:
    for page in ("index.html", "phone.html", "watch.html"):
        text = (WEB / page).read_text(encoding="utf-8")
        todo = re.findall(r'type="module" src="/web/([\w-]+\.js)"', text)
        (entry,) = todo
        needed: set[str] = set()
        while todo:
            name = todo.pop()
            if name not in needed:
                needed.add(name)
                todo += re.findall(r'from "\./([\w-]+\.js)"', (WEB / name).read_text(encoding="utf-8"))
        assert needed - {entry} == set(re.findall(r'modulepreload" href="/web/([\w-]+\.js)"', text)), page


def strings(language: str) -> dict[str, str]:
    text = (WEB / "strings.js").read_text(encoding="utf-8")
    block = re.search(rf"const {language} = \{{(.*?)\n\}};", text, flags=re.S)
    assert block
    return {key: json.loads(f'"{value}"') for key, value in re.findall(r'(\w+): "((?:[^"\\]|\\.)*)"', block[1])}


def test_both_languages_say_everything() -> None:
    english, chinese = strings("en"), strings("zh")
    assert english.keys() == chinese.keys()
    for key, text in english.items():
        assert sorted(re.findall(r"\{\w+\}", text)) == sorted(re.findall(r"\{\w+\}", chinese[key])), key
    used: set[str] = set()
    patterns: set[str] = set()
    for path in SCRIPTS:
        text = path.read_text(encoding="utf-8")
        used |= set(re.findall(r"\bt\(\"(\w+)\"", text)) | set(
            re.findall(r'"((?:help|device|fine|greeting)\w*)"', text)
        )
        patterns |= {re.sub(r"\$\{[^}]*\}", r"\\w+", raw) for raw in re.findall(r"\bt\(`([^`]+)`", text)}
    assert {key for key in used if key not in english} <= {"device"}
    unused = [key for key in english if key not in used and not any(re.fullmatch(p, key) for p in patterns)]
    quoted = "\n".join(path.read_text(encoding="utf-8") for path in SCRIPTS if path.name != "strings.js")
    assert [key for key in unused if f'"{key}"' not in quoted] == []


def test_scripts_are_short_and_say_what_they_are() -> None:
    for path in SCRIPTS:
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 500, path.name
        assert text.startswith("//"), path.name


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb, as WCAG defines it."""
    parts_ = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts_)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_everything_can_be_read_on_both_themes(theme: str) -> None:
    colours: dict[str, str] = {}
    for name in ("base.css", "code.css"):
        text = (WEB / name).read_text(encoding="utf-8")
        for selector, body in re.findall(r"^(:root(?:\[[^\]]*\])?) \{(.*?)\}", text, flags=re.S | re.M):
            if selector == ":root" or f'"{theme}"' in selector:
                colours |= dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", body))
    for paper in ("paper", "panel", "card", "mine", "hover", "code"):
        assert contrast(colours["ink"], colours[paper]) >= 7, paper
        assert contrast(colours["soft"], colours[paper]) >= 4.5, paper
    for name in ("c-word", "c-text", "c-number", "c-name", "c-note"):
        assert contrast(colours[name], colours["code"]) >= 4.5, name
    assert contrast(colours["accent"], colours["paper"]) >= 4.5
    assert contrast(colours["accent-ink"], colours["accent"]) >= 4.5
    assert contrast(colours["danger"], colours["danger-paper"]) >= 4.5
