"""The browser libraries of other people that our pages use: pinned, fetched once from the npm registry, checked, kept.

Nothing of them is in this repository. The table below says for every package its version, the sha512 that the registry
published for it, which files of it we serve under which name, and its licence. A package comes as one archive; the
files named here are taken out of it in memory (no other name in the archive is ever used as a path), and appear in the
cache folder together or not at all, each with a gzip twin and the licence beside it.

The registry is the one that npm would ask: npm_config_registry, `registry=` in ~/.npmrc, else the public one. npm
itself is not needed.

What it gives up: registries that want a password; an archive is held in memory (a few MB) while it is unpacked.
"""

import base64
import gzip
import hashlib
import io
import os
import re
import tarfile
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from gangpao import atomic, catalog
from gangpao.pull.fetch import Web, check_hop
from gangpao.pull.staging import Limits, SourceError

DEFAULT_REGISTRY = "https://registry.npmjs.org"
MAX_FILE = 32 << 20
LICENCE = "LICENCE.txt"
RETRY_S = 60.0
_PATIENCE = Limits(connect_s=5.0, read_s=20.0, attempts=4)


@dataclass(frozen=True, slots=True)
class Library:
    """One package: its name on the registry, what is taken (path in the archive -> name here), and where it is used."""

    package: str
    version: str
    integrity: str  # "sha512-<base64>", as in the registry's own description
    files: Mapping[str, str]
    licence: str  # SPDX
    licence_file: str  # "": the package has none
    page: str  # "chat" or "phone"

    @property
    def folder(self) -> str:
        """Name of its folder in the cache."""
        return f"{self.package.lstrip('@').replace('/', '-')}-{self.version}"

    @property
    def tarball(self) -> str:
        """Path of the archive below the registry's address."""
        return f"{self.package}/-/{self.package.rpartition('/')[2]}-{self.version}.tgz"


# Of KaTeX's formats the one that every browser of today takes.
_KATEX_FONTS = (
    "AMS-Regular", "Caligraphic-Bold", "Caligraphic-Regular", "Fraktur-Bold", "Fraktur-Regular", "Main-Bold", "Main-BoldItalic",
    "Main-Italic", "Main-Regular", "Math-BoldItalic", "Math-Italic", "SansSerif-Bold", "SansSerif-Italic", "SansSerif-Regular",
    "Script-Regular", "Size1-Regular", "Size2-Regular", "Size3-Regular", "Size4-Regular", "Typewriter-Regular",
)  # fmt: skip

LIBRARIES = (
    Library(
        "marked", "18.2.1",
        "sha512-ii4bxCTCqqwpT86XZWgJNs+ZnAIZksmLGYMViWA7PDIXYIeNo1x6cDdX3JOip9NM/cI6p8z57FxliACboTruMA==",
        {"package/lib/marked.esm.js": "marked.js"}, "MIT", "package/LICENSE", "chat",
    ),
    Library(
        "dompurify", "3.4.18",
        "sha512-ofe3wI/uNm68HInABYFJYqQxRw1EaKAjNdrFVKqjUY+UZurvNd2L/HuQe097s/4RivWiZyP6tT7aoT8atjfhwg==",
        {"package/dist/purify.es.mjs": "dompurify.js"}, "MPL-2.0 OR Apache-2.0", "package/LICENSE", "chat",
    ),
    Library(
        "@highlightjs/cdn-assets", "11.12.0",
        "sha512-KvOKXODaiFmId9xaq3xc5xCL66wVLUuOngDbO9B/kewbFTqdGbn2nJxNhN3H5R1cgDTVj6R8vH0zgiNDEGjpDw==",
        {"package/es/highlight.min.js": "highlight.js"}, "BSD-3-Clause", "package/LICENSE", "chat",
    ),
    Library(
        "katex", "0.19.1",
        "sha512-jG8uKntjSEcm2EpQOh0XturpPuuC9r3Sq5HLHdsFdWZT27E672SF19QEi+of0/YeOy15lDgRhKvr5614uRrEfA==",
        {
            "package/dist/katex.min.js": "katex.js",
            "package/dist/katex.min.css": "katex.css",
            **{f"package/dist/fonts/KaTeX_{n}.woff2": f"fonts/KaTeX_{n}.woff2" for n in _KATEX_FONTS},
        },
        "MIT", "package/LICENSE", "chat",
    ),
    Library(
        "@wllama/wllama", "3.13.0",
        "sha512-ZvoRdQAn+E+18EvQ9qS036gudiI9rbZRBJgG/qNICPPwrA0Y6SMMdbziz/j7K/0WxcbJlhaRraVIYsnEy732NA==",
        {"package/esm/index.min.js": "wllama.js", "package/esm/wasm/wllama.wasm": "wllama.wasm"},
        "MIT", "package/LICENCE", "phone",
    ),
    # The same for browsers without JSPI or 64-bit memories, every iPhone among them. Its licence is its sister's.
    Library(
        "@wllama/wllama-compat", "3.13.0",
        "sha512-MSWwyzVXpwkstvIGzOsQ9jlRm8kY5S5J0Gdw4E6M9mXqhgO/5tj+YNfxSoqN1GvsAOwui95JPtwX3hO6VZkbzg==",
        {"package/wasm/wllama.js": "wllama-compat.js", "package/wasm/wllama.wasm": "wllama-compat.wasm"},
        "MIT", "", "phone",
    ),
)  # fmt: skip


def cache_dir() -> Path:
    """Where the parts lie, one folder a package and version: `web` beside the folder of the models. Not created."""
    return catalog.models_dir().parent / "web"


def registry() -> str:
    """Address of the npm registry, without a slash at its end. Raises ValueError where it is not https."""
    given = [os.environ.get(name) for name in ("npm_config_registry", "NPM_CONFIG_REGISTRY")]  # npm takes both
    address = next(filter(None, given), None) or _from_npmrc()
    try:
        return check_hop((address or DEFAULT_REGISTRY).strip().rstrip("/"))
    except SourceError as error:
        raise ValueError(f"the npm registry {error}; set npm_config_registry to an https address") from error


def _from_npmrc() -> str:
    """`registry=` of ~/.npmrc; empty where there is none."""
    try:
        text = (Path.home() / ".npmrc").read_text(encoding="utf-8", errors="replace")
    except OSError:  # most people have none
        return ""
    found = re.search(r"^\s*registry\s*=\s*[\"']?([^\"'\s;#]+)", text, flags=re.M)
    return found[1] if found else ""


def present(library: Library) -> bool:
    """Whether a library is in the cache; folders appear whole, so its own existence is enough."""
    return (cache_dir() / library.folder).is_dir()


def missing(pages: Iterable[str] = ("chat",)) -> list[Library]:
    """The libraries of these pages that still have to be fetched."""
    wanted = set(pages)
    return [library for library in LIBRARIES if library.page in wanted and not present(library)]


def here(pages: Iterable[str] = ("chat",)) -> list[str]:
    """Names of the files of these pages that are in the cache."""
    wanted = set(pages)
    return [name for library in LIBRARIES if library.page in wanted for name in library.files.values() if find(name)]


def find(name: str) -> Path | None:
    """The file that is served under this name; None where there is no such name, or it is not here yet."""
    for library in LIBRARIES:
        if name in library.files.values():
            path = cache_dir() / library.folder / name
            return path if path.is_file() else None
    return None


def licences() -> str:
    """Names, versions and licence texts of all libraries that are here, as plain text."""
    out = []
    for library in LIBRARIES:
        title = f"{library.package} {library.version}, {library.licence}"
        path = cache_dir() / library.folder / LICENCE
        text = path.read_text(encoding="utf-8") if path.is_file() else "(no text here)"
        out.append(f"{title}\n{'=' * len(title)}\n\n{text.strip()}\n")
    return "\n\n".join(out)


def fetch(pages: Iterable[str] = ("chat",)) -> None:
    """Fetch what these pages lack. Raises ValueError saying what failed; what came before that stays."""
    todo = missing(pages)
    if not todo:
        return
    folder = cache_dir()
    busy = "another gangpao is fetching the browser libraries; they will be there in a moment"
    with atomic.locked(folder, busy=busy), Web(_PATIENCE) as web:
        for library in [library for library in todo if not present(library)]:
            url = f"{registry()}/{library.tarball}"
            try:
                archive = web.ask("GET", url, {})[1]
            except SourceError as error:
                raise ValueError(
                    f"{library.package}: {error}; the pages show plain text until it can be fetched"
                ) from error
            unpack(library, archive, folder / library.folder)


def unpack(library: Library, archive: bytes, target: Path) -> None:
    """Check an archive and put the files of the library into `target`, which appears whole.

    Raises ValueError where the hash is another one, a file is missing, not a plain file, or too large.
    """
    found = "sha512-" + base64.b64encode(hashlib.sha512(archive).digest()).decode()
    if found != library.integrity:
        raise ValueError(
            f"{library.package} {library.version}: its archive has the hash {found[:30]}..., not {library.integrity[:30]}...: "
            "damaged or changed, nothing of it is used; try again, or ask another registry"
        )
    taken = {**library.files, **({library.licence_file: LICENCE} if library.licence_file else {})}
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar, atomic.new_folder(target) as folder:
        for inner, name in taken.items():
            data = _member(library, tar, inner)
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
            path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(data, 6, mtime=0))


def _member(library: Library, tar: tarfile.TarFile, inner: str) -> bytes:
    try:
        member = tar.getmember(inner)
    except KeyError:
        raise ValueError(f"{library.package} {library.version}: no {inner} in its archive") from None
    if not member.isreg() or member.size > MAX_FILE:
        raise ValueError(
            f"{library.package} {library.version}: {inner} is not a plain file of at most {MAX_FILE} bytes"
        )
    file = tar.extractfile(member)
    assert file is not None  # a plain file has content
    return file.read()


class Fetcher:
    """Fetches in a thread of its own, so that no page waits. `problem` says why libraries are missing, "" while all is well."""

    def __init__(self, pages: Iterable[str]) -> None:
        self.pages = frozenset(pages)
        self.problem = ""
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._again = 0.0

    def start(self, now: float) -> None:
        """Begin, unless all is here, it is under way, or it failed less than RETRY_S before `now` (seconds, monotonic)."""
        with self._lock:
            busy = self._thread is not None and self._thread.is_alive()
            if busy or now < self._again or not missing(self.pages):
                return
            self._again = now + RETRY_S
            self._thread = threading.Thread(target=self._run, name="parts", daemon=True)
            self._thread.start()

    def wait(self, timeout_s: float) -> None:
        """Wait until the thread has ended, at most that long."""
        thread = self._thread
        if thread is not None:
            thread.join(timeout_s)

    def _run(self) -> None:
        try:
            fetch(self.pages)
            self.problem = ""
        except (ValueError, OSError) as error:  # the pages go on without
            self.problem = str(error)
