"""Files to documents: texts, JSON lines with {"text"}, folders of them, each with the part that its score is counted in.

A file is read as a stream, and memory holds one document. What it gives up: formats without a text in every row; `gangpao data`
turns those into ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from gangpao.data.cleaning.kinds import is_code
from gangpao.data.cleaning.language import identify
from gangpao.data.sources import files

_CODE = {
    ".c", ".cc", ".cpp", ".cs", ".css", ".cu", ".cuh", ".go", ".h", ".hpp", ".java", ".js", ".kt", ".lua", ".m", ".php", ".pl",
    ".py", ".r", ".rb", ".rs", ".scala", ".sh", ".sql", ".swift", ".ts", ".tsx", ".vue",
}  # fmt: skip
_ROWS = {".jsonl", ".json", ".ndjson", ".parquet"}
_PACKED = {".gz", ".bz2", ".xz", ".zst"}


class TextFile(NamedTuple):
    """A file and the part that its documents belong to."""

    part: str
    path: Path


class Document(NamedTuple):
    """One text: where it is from (file, and row where it has rows), its part, and what it says."""

    name: str
    part: str
    text: str
    code: bool  # by the file's suffix

    @property
    def language(self) -> str:
        """code, zh, en, de ...; und where nothing is clear."""
        return "code" if self.code or is_code(self.text) else identify(self.text).language

    @property
    def nbytes(self) -> int:
        """Bytes of the text in UTF-8."""
        return len(self.text.encode("utf-8", "surrogatepass"))


def text_files(given: Sequence[str | Path]) -> list[TextFile]:
    """The files that are meant by paths, folders and NAME=PATH, in order; a folder's are sorted by name.

    A file's part is the given name, else its own without suffixes. Raises ValueError for what is not there.
    """
    found: list[TextFile] = []
    for one in given:
        name, path = _named(one)
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.is_file() and not _hidden(p.relative_to(path)))
            if not inside:
                raise ValueError(f"{path}: a folder without files; give texts (.txt, .md, code) or .jsonl files")
            found += [TextFile(name or _stem(p), p) for p in inside]
        elif path.is_file():
            found.append(TextFile(name or _stem(path), path))
        else:
            raise ValueError(f"{path}: there is no such file or folder; give a text, a .jsonl file or a folder of them")
    return found


def _named(one: str | Path) -> tuple[str, Path]:
    text = str(one)
    name, equals, path = text.partition("=")
    if equals and name and path and "/" not in name and not Path(text).expanduser().exists():
        return name, Path(path).expanduser()
    return "", Path(text).expanduser()


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _stem(path: Path) -> str:
    return path.name.partition(".")[0] or path.name


def has_rows(path: Path) -> bool:
    """Whether a file is read row by row: JSON lines, parquet, packed or not."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _PACKED:
        return files.format_of(path) != "txt"
    return bool(suffixes) and suffixes[-1] in _ROWS


def documents(given: Sequence[TextFile]) -> Iterator[Document]:
    """Their documents in order. Raises ValueError naming file and row where there is no text to read."""
    for part, path in given:
        if has_rows(path):
            yield from _rows(part, path)
            continue
        whole = files.read_text(path)
        if whole.wrong:
            raise ValueError(f"{path}: not a text in UTF-8: {whole.wrong}")
        yield Document(path.name, part, whole.value, path.suffix.lower() in _CODE)


def _rows(part: str, path: Path) -> Iterator[Document]:
    for row in files.read_rows(path, files.format_of(path), columns=["text"]):
        text = row.value.get("text") if isinstance(row.value, dict) else None
        if row.wrong or not isinstance(text, str):
            reason = row.wrong or 'has no string under "text"; convert it first, for example with `gangpao data build`'
            raise ValueError(f"{path}, row {row.number}: {reason}")
        yield Document(f"{path.name}:{row.number}", part, text, code=False)
