"""Other people's browser libraries: what is fetched, what is refused, and that the cache never holds half of it."""

import base64
import gzip
import hashlib
import io
import re
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from gangpao import atomic
from gangpao.serve.pages import libraries

CODE = b"export const answer = 42;\n"
PART = libraries.Library(
    "@toys/ball", "1.2.3", "", {"package/dist/ball.js": "ball.js"}, "MIT", "package/LICENSE", "chat"
)


def archive(*members: tuple[str, bytes | str]) -> bytes:
    """A .tgz of files (bytes) and symbolic links (a string: where to)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


GOOD = archive(("package/dist/ball.js", CODE), ("package/LICENSE", b"Do as you like.\n"), ("../../evil.js", b"evil"))


def pinned(data: bytes) -> libraries.Library:
    return replace(PART, integrity="sha512-" + base64.b64encode(hashlib.sha512(data).digest()).decode())


class Registry(ThreadingHTTPServer):
    """Answers with `files` by path; remembers what was asked."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        registry = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                registry.asked.append(self.path)
                body = registry.files.get(self.path)
                self.send_response(404 if body is None else 200)
                self.send_header("content-length", str(len(body or b"")))
                self.end_headers()
                self.wfile.write(body or b"")

            def log_message(self, *args: object) -> None:
                return

        super().__init__(("127.0.0.1", 0), Handler)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Registry]:
    """A registry on the loopback interface, a cache of our own, and one part in the table."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "NPM_CONFIG_REGISTRY"):
        monkeypatch.delenv(name, raising=False)
    server = Registry()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    monkeypatch.setenv("GANGPAO_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("npm_config_registry", f"http://127.0.0.1:{server.server_port}/npm/")
    monkeypatch.setattr(libraries, "LIBRARIES", (pinned(GOOD),))
    server.files["/npm/@toys/ball/-/ball-1.2.3.tgz"] = GOOD
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {".lock"}


def test_a_part_is_fetched_once_checked_and_kept(registry: Registry, tmp_path: Path) -> None:
    assert libraries.find("ball.js") is None
    assert [library.package for library in libraries.missing()] == ["@toys/ball"]
    libraries.fetch()
    libraries.fetch()
    assert registry.asked == ["/npm/@toys/ball/-/ball-1.2.3.tgz"]
    folder = tmp_path / "home" / "web"
    names = ("ball.js", "ball.js.gz", "LICENCE.txt", "LICENCE.txt.gz")
    assert files(tmp_path) == {f"home/web/toys-ball-1.2.3/{name}" for name in names} | {"home/web/.lock"}
    found = libraries.find("ball.js")
    assert found == folder / "toys-ball-1.2.3" / "ball.js"
    assert found.read_bytes() == gzip.decompress(found.with_name("ball.js.gz").read_bytes()) == CODE
    assert libraries.missing() == []
    assert "@toys/ball 1.2.3, MIT" in libraries.licences()
    assert "Do as you like." in libraries.licences()


@pytest.mark.parametrize("name", ["../ball.js", "LICENCE.txt", "ball.js.gz", "", "ball"])
def test_only_names_of_the_table_are_found(registry: Registry, name: str) -> None:
    libraries.fetch()
    assert libraries.find(name) is None


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (GOOD[:-1] + bytes([GOOD[-1] ^ 1]), "damaged or changed"),
        (b"", "damaged or changed"),
    ],
)
def test_another_archive_is_refused(registry: Registry, data: bytes, says: str, tmp_path: Path) -> None:
    registry.files["/npm/@toys/ball/-/ball-1.2.3.tgz"] = data
    with pytest.raises(ValueError, match=says):
        libraries.fetch()
    assert files(tmp_path / "home" / "web") == set()


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ([("package/LICENSE", b"x")], "no package/dist/ball.js in its archive"),
        ([("package/dist/ball.js", "/etc/passwd"), ("package/LICENSE", b"x")], "not a plain file"),
        ([("package/dist/ball.js", CODE)], "no package/LICENSE in its archive"),
        ([("package/dist/ball.js", bytes(1 << 16)), ("package/LICENSE", b"x")], "at most 1000 bytes"),
    ],
)
def test_an_archive_that_is_not_as_described_leaves_nothing(
    registry: Registry,
    monkeypatch: pytest.MonkeyPatch,
    members: list[tuple[str, bytes | str]],
    says: str,
    tmp_path: Path,
) -> None:
    data = archive(*members)
    monkeypatch.setattr(libraries, "LIBRARIES", (pinned(data),))
    monkeypatch.setattr(libraries, "MAX_FILE", 1000)
    registry.files["/npm/@toys/ball/-/ball-1.2.3.tgz"] = data
    with pytest.raises(ValueError, match=says):
        libraries.fetch()
    assert files(tmp_path / "home" / "web") == set()


def test_a_registry_that_has_it_not_is_told(registry: Registry) -> None:
    registry.files.clear()
    with pytest.raises(ValueError, match=r"@toys/ball: .*HTTP 404.*plain text"):
        libraries.fetch()


def test_two_processes_do_not_fetch_together(registry: Registry) -> None:
    with atomic.locked(libraries.cache_dir()), pytest.raises(ValueError, match="another gangpao is fetching"):
        libraries.fetch()
    libraries.fetch()
    assert len(registry.asked) == 1


def test_the_registry_is_npms_choice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("npm_config_registry", "NPM_CONFIG_REGISTRY"):
        monkeypatch.delenv(name, raising=False)
    assert libraries.registry() == libraries.DEFAULT_REGISTRY
    (tmp_path / ".npmrc").write_text(
        "fund=false\nregistry = https://mirror.example/npm/\n@x:registry=https://no.example\n"
    )
    assert libraries.registry() == "https://mirror.example/npm"
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", "https://other.example")
    assert libraries.registry() == "https://other.example"
    for hostile in ("http://mirror.example", "file:///etc", "javascript:alert(1)"):
        monkeypatch.setenv("npm_config_registry", hostile)
        with pytest.raises(ValueError, match="set npm_config_registry to an https address"):
            libraries.registry()


def test_the_fetcher_works_beside_us_and_remembers_why_it_failed(registry: Registry) -> None:
    fetcher = libraries.Fetcher({"chat"})
    registry.files, kept = {}, registry.files
    fetcher.start(now=1.0)
    fetcher.wait(20)
    assert "HTTP 404" in fetcher.problem
    registry.files = kept
    fetcher.start(now=2.0)  # too soon after a failure
    fetcher.wait(20)
    assert libraries.find("ball.js") is None
    fetcher.start(now=2.0 + libraries.RETRY_S)
    fetcher.wait(20)
    assert (fetcher.problem, libraries.missing()) == ("", [])
    fetcher.start(now=1e9)
    assert len(registry.asked) == 2


def test_the_table_is_complete() -> None:
    names = [name for library in libraries.LIBRARIES for name in library.files.values()]
    assert len(set(names)) == len(names)
    assert len({library.folder for library in libraries.LIBRARIES}) == len(libraries.LIBRARIES)
    for library in libraries.LIBRARIES:
        assert len(base64.b64decode(library.integrity.removeprefix("sha512-"))) == 64
        assert library.page in ("chat", "phone")
        assert all(re.fullmatch(r"(?:fonts/)?[\w-]+\.\w+", name) for name in library.files.values())
