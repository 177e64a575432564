"""Documents out of files, data sets of a hub, text that `gangpao data fetch` brought, and our own generator.

`resolve` finds the files of a source and, from their first rows, the form of its rows; `read` then yields a document for every
row, or what is wrong with it and where it stands, so that the caller can say what was lost. files.py reads bytes, forms.py rows.

What it gives up: rows that need a program to become text or a conversation.
"""

import glob
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gangpao.data.config import Source
from gangpao.data.sources.files import Row, format_of, read_rows, read_text
from gangpao.data.sources.forms import Document, Malformed, detect, keys_of, parse
from gangpao.data.sources.generated import chats, texts
from gangpao.data.sources.public import path_of
from gangpao.optional import need

_FIRST_ROWS = 50


class Resolved(NamedTuple):
    """A source whose form is known, its files in order, and what was found out about its rows ("" where nothing was)."""

    source: Source
    files: tuple[Path, ...]
    note: str = ""


def resolve(source: Source, root: Path) -> Resolved:
    """Find the files behind a source and the form of their rows. Fetches those of a hub's data set.

    Raises ValueError when there are no files, or none that can be read.
    """
    files = tuple(files_of(source, root))
    given = source.model_fields_set
    settled = source.form == "auto" and (source.messages or "text" in given)
    if settled or source.format == "generated" or all(format_of(path, source.format) == "txt" for path in files):
        return Resolved(source.model_copy(update={"form": source.known_form}), files)
    found = detect(first_rows(source, files), source.form)
    if found is None:
        unknown = {"form": source.known_form, "messages": source.messages or "messages"}
        return Resolved(source.model_copy(update=unknown), files)
    update: dict[str, Any] = {"form": found.form if source.form == "auto" else source.form}
    if found.form == "messages":
        update["messages"] = source.messages or found.key
    elif found.form == "text" and "text" not in given:
        update["text"] = found.key
    plain = found.form == "text" and found.key == Source.model_fields["text"].default
    note = "" if plain else f'rows hold {found.what}, read as form = "{update["form"]}"'
    return Resolved(source.model_copy(update=update), files, note)


def first_rows(source: Source, files: Sequence[Path]) -> list[Any]:
    """Values of the first rows of the first file of rows, as far as they could be read."""
    for path in files:
        form = format_of(path, source.format)
        if form != "txt":
            found = itertools.islice(read_rows(path, form, source.encoding), _FIRST_ROWS)
            return [row.value for row in found if not row.wrong]
    return []


def files_of(source: Source, root: Path) -> list[Path]:
    """The files behind a source, in order. Raises ValueError when there are none."""
    if source.format == "generated":
        return []
    if source.format == "huggingface":
        return _from_hub(source)
    if source.format == "public":
        return [path_of(source.path)]
    return matching(root, source.path)


def matching(root: Path, pattern: str) -> list[Path]:
    """Files below `root` that a relative path or pattern names. Raises ValueError when there are none."""
    given = Path(pattern).expanduser()
    base = given if given.is_absolute() else root / pattern
    if base.is_file():  # first, so that a name with brackets in it needs no escaping
        return [base]
    found = sorted(Path(name) for name in glob.glob(str(base), recursive=True))
    files = [path for path in found if path.is_file()]
    if not files:
        raise ValueError(_missing(root, given, base))
    return files


def _missing(root: Path, given: Path, base: Path) -> str:
    """What is there instead of a file that is not."""
    if base.is_dir():
        return f"{base}: is a folder; name files in it, for example path = '{given}/*.jsonl'"
    there = next(folder for folder in base.parents if folder.is_dir())
    names = sorted(path.name + "/" * path.is_dir() for path in there.iterdir() if not path.name.startswith("."))
    shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "") or "nothing"
    text = f"{base}: there is no such file; {there.absolute()} has {shown}"
    if not given.is_absolute():
        text += f". Relative paths start at root, which is {root.absolute()} here: change it in the configuration"
    return f"{text}. Text that everybody can have: gangpao data fetch"


def read(source: Source, files: Iterable[Path]) -> Iterator[Document | Malformed]:
    """All documents of a source in order, and what is wrong with rows that are none."""
    if source.format == "generated":
        if source.kind == "chat":
            yield from (Document(messages=tuple(chat)) for chat in chats(source.documents, source.seed))
        else:
            yield from (Document(text) for text in texts(source.kind, source.documents, source.seed))
        return
    source = source.model_copy(update={"form": source.known_form})
    columns = {"text": [source.text], "messages": [source.messages, "tools", "system"]}.get(source.form)
    key, told = columns[0] if columns else "", False
    for where, row in placed_rows(source, files, columns):
        found = row.wrong or (row.value if isinstance(row.value, Document) else parse(row.value, source))
        if isinstance(found, str) and not told and isinstance(row.value, dict) and key not in row.value:
            found, told = f"{found}; it has {keys_of(row.value)}", True
        if isinstance(found, Document) and found.images:
            found = "has pictures, and a corpus is text: tune on it (gangpao tune)"
        yield Malformed(where, found, row.encoding) if isinstance(found, str) else found


def placed_rows(
    source: Source, files: Iterable[Path], columns: Sequence[str] | None = None
) -> Iterator[tuple[str, Row]]:
    """Every row of some files with the words for where it stands ("a.jsonl line 7"); a file of text is one row, a Document."""
    for path in files:
        form = format_of(path, source.format)
        if form == "txt":
            row = read_text(path, source.encoding)
            yield str(path), row if row.wrong else row._replace(value=Document(row.value))
            continue
        unit = "row" if form == "parquet" else "line"
        for row in read_rows(path, form, source.encoding, columns):
            yield f"{path} row {row.element}" if row.element else f"{path} {unit} {row.number}", row


def explain(source: Source, files: Sequence[Path], rows: int) -> str:
    """Why none of a source's rows was a document: what they hold, and which setting reads them."""
    values = first_rows(source, files)
    wanted = f"no text under {source.text!r:.40}" if source.form == "text" else f"not the form {source.form!r}"
    if source.form == "messages":
        wanted = f"no conversation under {source.messages!r:.40}"
    text = f"{rows} of {rows} rows have {wanted}"
    if not values:
        return text
    text += f"; the first has {keys_of(values[0])}"
    found = detect(values)
    if found is not None and (found.form, found.key) != (source.form, source.text):
        return f'{text}; leave out text and messages, and set form = "auto": it finds {found.what}'
    return f'{text}; set text = "KEY" for the key of a text, messages = "KEY" for that of a conversation'


def _from_hub(source: Source) -> list[Path]:
    """Files of a data set on the Hugging Face hub, through its client's cache; nothing in them is executed."""
    hub = need("huggingface_hub", f"the data set {source.path}")
    try:
        folder = hub.snapshot_download(
            source.path, repo_type="dataset", revision=source.revision, allow_patterns=[source.files]
        )
    except Exception as error:  # the client's own errors have no common base and change with its version
        raise ValueError(
            f"the data set {source.path} could not be fetched: {str(error).strip().rstrip('.')}. It needs a network that "
            "reaches the hub; $HF_ENDPOINT names a mirror of it. Text that comes in packages: gangpao data fetch"
        ) from error
    return matching(Path(folder), source.files)
