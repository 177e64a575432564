"""Rows of people's files as examples, each with the words for where it stands; what is none is a fault that says why.

The idea: what a file holds is found out from its first rows, then one function turns a row of it into an example. The readers of
files and forms are those of gangpao/data; here they are chosen, and what tuning asks for besides (an answer that says something, no
half characters) is checked.

What it gives up: a file whose rows are of several kinds; write two.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from gangpao.data.config import Source
from gangpao.data.sources import llama_factory
from gangpao.data.sources.forms import LISTS, TEXTS, Document, parse
from gangpao.data.sources.preferences import Labelled, Pair, detect_preferences, parse_labelled, parse_pair, unpaired
from gangpao.data.sources.source import explain, first_rows, matching, placed_rows, resolve
from gangpao.tune.data.config import Kind, TuneFile

Reason = Literal[
    "encoding", "json", "role", "unanswered", "content", "turns", "order", "malformed", "empty", "template", "long", "duplicate",
    "heldout", "unwanted", "picture",
]  # fmt: skip
# What the words of a form's reader begin or end with -> the reason that is counted; others are "malformed".
_SAID: dict[str, Reason] = {
    "has the role": "role", "has no answer to learn from": "unanswered", "the last turn is no answer": "unanswered",
    "its last turn is no answer": "unanswered", "has no content": "content", "has no list of turns": "turns",
}  # fmt: skip
UNREAD: tuple[Reason, ...] = (
    "json",
    "role",
    "unanswered",
    "content",
    "turns",
    "malformed",
)  # rows in no form that is read
Example = Document | Pair | Labelled


class Fault(NamedTuple):
    """Why a row is no example: a reason that is counted, and what exactly."""

    reason: Reason
    detail: str


@dataclass(slots=True)
class Opened:
    """Files of one kind, ready to be read. note: what was found out about them, in words. folder: of the file whose rows are being
    read; left: what was left out of the row that was read last, in words."""

    name: str
    weight: float
    kind: Kind
    source: Source
    files: tuple[Path, ...]
    parse: Callable[[Any], Example | str]
    note: str = ""
    folder: Path = Path()
    left: str = ""

    def examples(self) -> Iterator[tuple[str, Example | Fault]]:
        """Every row in order: where it stands, and what it is."""
        for path in self.files:
            self.folder = path.parent  # where the paths of its pictures begin
            for where, row in placed_rows(self.source, (path,)):
                if row.wrong:
                    yield where, Fault("encoding" if row.encoding else "json", row.wrong)
                    continue
                found = row.value if isinstance(row.value, Document) else self.parse(row.value)
                self.left = ""
                if isinstance(found, Document):  # pairs and labelled answers are judged whole
                    found, self.left = trimmed(found)
                fault = _unread(found) if isinstance(found, str) else _fault(found)
                yield where, fault or found  # type: ignore[misc]

    def explain(self, rows: int) -> str:
        """Why none of its rows was read."""
        return explain(self.source, self.files, rows)


def open_file(file: TuneFile, root: Path) -> Opened:
    """Find a file, or the files of a pattern, and what their rows hold. Raises ValueError where there are none."""
    path, cut, data_set = file.path.partition("#")
    if Path(path).name == llama_factory.FILE_NAME or (cut and path.endswith(".json")):
        return _from_llama_factory(file, matching(root, path)[0], data_set)
    given = {key for key in ("text", "messages") if getattr(file, key) != TuneFile.model_fields[key].default}
    source = Source(path=file.path, encoding=file.encoding, **{key: getattr(file, key) for key in given})
    files = tuple(matching(root, file.path))
    kind = file.form if file.form in ("pairs", "labelled") else None
    if file.form == "auto" and not given:
        kind = detect_preferences(first_rows(source, files))
    if kind in ("pairs", "labelled"):
        return Opened(file.path, file.weight, kind, source, files, _PARSERS[kind], _NOTES[kind])
    if file.form != "auto":
        source = source.model_copy(update={"form": file.form})
    found = resolve(source, root)
    source = found.source
    if file.form == "auto" and not given and source.form == "text" and (key := _turns_under(first_rows(source, files))):
        source = source.model_copy(
            update={"form": "messages", "messages": key}
        )  # so that what is wrong with turns is said
    known: Kind = "texts" if source.form == "text" else "answers"
    return Opened(file.path, file.weight, known, source, found.files, partial(parse, source=source), found.note)


def _turns_under(rows: Sequence[Any]) -> str:
    """The key of a list in rows that have no text: conversations of which not even the first turns are in a form we know."""
    for row in rows:
        if isinstance(row, dict) and not any(isinstance(row.get(key), str) for key in TEXTS):
            return next((key for key in LISTS if isinstance(row.get(key), list)), "")
    return ""


_PARSERS: dict[str, Callable[[Any], Example | str]] = {"pairs": parse_pair, "labelled": parse_labelled}
_NOTES = {"pairs": "rows hold a chosen and a rejected answer", "labelled": "rows hold an answer and its label"}


def _from_llama_factory(file: TuneFile, path: Path, name: str) -> Opened:
    found = llama_factory.entry(path, name)
    source = Source(path=file.path, encoding=file.encoding)

    def read(row: Any) -> Example | str:
        row = found.rewrite(row)
        if isinstance(row, str):
            return row
        if found.kind in _PARSERS:
            return _PARSERS[found.kind](row)
        form = "text" if found.kind == "texts" else "messages" if "messages" in row else "alpaca"
        return parse(row, source.model_copy(update={"form": form, "messages": "messages"}))

    note = f"rows hold {found.kind}, as {path.name} says of {name}"
    return Opened(file.path, file.weight, found.kind, source, found.files, read, note)


def converted(example: Example, kind: Kind) -> tuple[Example, ...] | Fault:
    """What a row gives to an objective that needs `kind`; nothing where only another kind of row does."""
    if isinstance(example, Pair) and kind == "answers":
        return (example.chosen,)
    if isinstance(example, Pair) and kind == "labelled":
        return unpaired(example)
    if isinstance(example, Labelled) and kind == "answers":
        return (example.document,) if example.desirable else Fault("unwanted", "is labelled as a bad answer")
    return (example,)


_GIVES: dict[Kind, tuple[Kind, ...]] = {
    "texts": ("texts",), "answers": ("answers",), "pairs": ("pairs", "answers", "labelled"), "labelled": ("labelled", "answers"),
}  # fmt: skip


def refuse_other_kinds(opened: Opened, kind: Kind) -> None:
    """Raises ValueError where a file cannot give what is needed."""
    if kind not in _GIVES[opened.kind]:
        names = {
            "texts": "texts",
            "answers": "conversations",
            "pairs": "chosen and rejected answers",
            "labelled": "labelled answers",
        }
        raise ValueError(
            f"{opened.name}: its rows hold {names[opened.kind]}, and {names[kind]} are needed; take another file or objective"
        )


def _unread(words: str) -> Fault:
    """What a form's reader said of a row that it did not read, with the reason that is counted."""
    return Fault(next((reason for said, reason in _SAID.items() if said in words), "malformed"), words)


def _fault(example: Example) -> Fault | None:
    if isinstance(example, Pair):
        for name, side in (("chosen", example.chosen), ("rejected", example.rejected)):
            if (fault := _fault_of(side)) is not None:
                return fault._replace(detail=f"{name}: {fault.detail}")
        return None
    return _fault_of(example.document if isinstance(example, Labelled) else example)


def _fault_of(document: Document) -> Fault | None:
    """What is wrong with a document that has the right form."""
    if _has_half_characters(document.contents()):
        return Fault("encoding", "holds half a character (a lone surrogate): its file was written wrongly")
    if not document.messages:
        return None if document.text.strip() else Fault("empty", "is an empty text")
    if (wrong := _order(document)) is not None:
        return Fault("order", wrong)
    for number, turn in enumerate(document.messages, 1):
        said = turn["content"].strip() or turn.get("tool_calls")
        if not said and turn["role"] in ("user", "assistant"):
            return Fault(
                "empty", f"turn {number} is an empty {'answer' if turn['role'] == 'assistant' else 'question'}"
            )
    return None


def trimmed(document: Document) -> tuple[Document, str]:
    """A conversation from its first question to its last answer, and in words what is left out; as it is where it has no such part,
    and where pictures belong to its turns."""
    if document.images:
        return document, ""
    roles = [turn["role"] for turn in document.messages]
    head = next((i for i, role in enumerate(roles) if role != "system"), 0)
    begin = next((i for i in range(head, len(roles)) if roles[i] != "assistant"), head)
    end = max((i + 1 for i, role in enumerate(roles) if role == "assistant"), default=0)
    if end <= begin or (begin, end) == (head, len(roles)):
        return document, ""
    words = ["the answer that no question opens"] if begin > head else []
    words += ["the question behind the last answer"] if end < len(roles) and roles[-1] == "user" else []
    words += [f"the {roles[-1]} turn behind the last answer"] if end < len(roles) and roles[-1] != "user" else []
    return replace(document, messages=(*document.messages[:head], *document.messages[begin:end])), " and ".join(words)


def _order(document: Document) -> str | None:
    """What is wrong with the order of turns, which templates such as ChatML would write all the same."""
    roles = [turn["role"] for turn in document.messages]
    late = next((i for i, role in enumerate(roles) if role == "system" and i), None)
    if late is not None:
        return f"turn {late + 1} is a system turn, which stands first or not at all"
    first = next((i for i, role in enumerate(roles) if role != "system"), 0)
    if roles[first] == "assistant":
        return f"turn {first + 1} is an answer that no question opens"
    if roles[-1] != "assistant":
        what = "question" if roles[-1] == "user" else f"{roles[-1]} turn"
        return f"turn {len(roles)}, the last one, is a {what} without an answer"
    return None


def _has_half_characters(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False
