"""The rule by which the texts of gangpao/compress/importance/texts are collected from this repository.

    zh, en    the beginning of every document in docs/ that there is in both languages
    code      the beginning of every twentieth source file of the package, by the checksum of its path

They are a snapshot, so that a document that is edited changes no model. `GANGPAO_WRITE_TEXTS=1 pytest
tests/compress/importance/test_calibration.py` takes a new one.
"""

import json
import zlib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
TEXTS = ROOT / "gangpao" / "compress" / "importance" / "texts"
SUFFIXES = {".py", ".cpp", ".h", ".js", ".css", ".html"}
MOST_BYTES = 4500  # of one document
EVERY = 20


def sources(language: str) -> list[Path]:
    """The files of a language, sorted by path."""
    if language == "code":
        files = [p for p in sorted((ROOT / "gangpao").rglob("*")) if p.suffix in SUFFIXES and p.stat().st_size > 200]
        return [p for p in files if zlib.crc32(str(p.relative_to(ROOT)).encode()) % EVERY == 0]
    pairs = [(p, p.with_suffix(".zh.md")) for p in sorted((ROOT / "docs").glob("*.md"))]
    return [zh if language == "zh" else en for en, zh in pairs if zh.is_file()]


def beginning(path: Path) -> str:
    """Whole lines of a file, at most MOST_BYTES."""
    raw = path.read_bytes()
    return raw[: raw.rfind(b"\n", 0, MOST_BYTES) + 1].decode() if len(raw) > MOST_BYTES else raw.decode()


def rows(language: str) -> Iterator[str]:
    """The lines of a language's file."""
    for path in sources(language):
        row = {"from": path.relative_to(ROOT).as_posix(), "text": beginning(path)}
        yield json.dumps(row, ensure_ascii=False) + "\n"
