"""Where the rows of a task are from: a folder, Hugging Face or ModelScope, all read by the same table.

A folder may hold files as `gangpao` documents them (hellaswag_val.jsonl.zst) or a copy of a hub's repository; JSON lines, JSON
and parquet are read, and zstd or gzip is taken off. What comes from a hub is kept in the cache with the sha256 that
the hub announces, and read from there next time.

What it gives up: data sets that are programs (a loading script of a repository is never run).
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gangpao.data.sources.files import format_of, read_rows
from gangpao.evaluate.graders.instructions.prompts import SET_VERSION
from gangpao.evaluate.graders.instructions.prompts import rows as instruction_rows
from gangpao.evaluate.tasks import docs
from gangpao.evaluate.tasks.docs import Doc, Reader
from gangpao.progress import Progress

if TYPE_CHECKING:
    from gangpao.pull.datasets import Hub

SUFFIXES = (".jsonl.zst", ".jsonl.gz", ".jsonl", ".json", ".parquet")


@dataclass(frozen=True, slots=True)
class Split:
    """Some rows of a set. stems: names of files in a folder; paths: patterns of files in a hub's repository, `*` within a name.

    subjects: whether the folders there are named after subjects.
    """

    stems: Sequence[str]
    paths: Sequence[str] = ()
    subjects: bool = False


@dataclass(frozen=True, slots=True)
class DataSet:
    """A published set: how its rows are read, which splits it has, and its names on the hubs."""

    name: str
    read: Reader
    splits: dict[str, Split]
    huggingface: str = ""
    modelscope: str = ""
    licence: str = ""


@dataclass(frozen=True, slots=True)
class Rows:
    """Docs of a split, and where they are from: the file's name and its sha256."""

    docs: list[Doc]
    origin: str


def _set(name: str, read: Reader, splits: dict[str, Split], **names: str) -> DataSet:
    return DataSet(name, read, splits, **names)


SETS = {
    s.name: s
    for s in (
        _set(
            "hellaswag", docs.hellaswag, {"test": Split(["hellaswag_val"], ["**/validation*"])},
            huggingface="Rowan/hellaswag", modelscope="modelscope/hellaswag", licence="MIT",
        ),
        _set(
            "arc_easy", docs.arc, {"test": Split(["arc_easy"], ["ARC-Easy/test*"])},
            huggingface="allenai/ai2_arc", modelscope="opencompass/ai2_arc", licence="CC BY-SA 4.0",
        ),
        _set(
            "arc_challenge", docs.arc, {"test": Split(["arc_challenge"], ["ARC-Challenge/test*"])},
            huggingface="allenai/ai2_arc", modelscope="opencompass/ai2_arc", licence="CC BY-SA 4.0",
        ),
        _set(
            "piqa", docs.piqa, {"test": Split(["piqa"], ["**/validation*"])},
            huggingface="baber/piqa", modelscope="opencompass/piqa",
        ),
        _set(
            "winogrande", docs.winogrande, {"test": Split(["winogrande"], ["winogrande_xl/validation*"])},
            huggingface="allenai/winogrande", modelscope="opencompass/winogrande",
        ),
        _set(
            "lambada", docs.lambada, {"test": Split(["lambada"], ["**/test*"])},
            huggingface="EleutherAI/lambada_openai",
        ),
        _set(
            "mmlu", docs.mmlu,
            {"test": Split(["mmlu_test"], ["all/test*"]), "dev": Split(["mmlu_dev"], ["all/dev*"])},
            huggingface="cais/mmlu", modelscope="opencompass/mmlu", licence="MIT",
        ),
        _set(
            "cmmlu", docs.mmlu,
            {"test": Split(["cmmlu_test"], ["*/test*"], subjects=True), "dev": Split(["cmmlu_dev"], ["*/dev*"], subjects=True)},
            huggingface="haonan-li/cmmlu", modelscope="opencompass/cmmlu", licence="CC BY-NC-SA 4.0",
        ),
        _set(
            "ceval", docs.mmlu,
            {
                "test": Split(["ceval_val", "ceval_valid"], ["*/val*"], subjects=True),
                "dev": Split(["ceval_dev"], ["*/dev*"], subjects=True),
            },
            huggingface="ceval/ceval-exam", modelscope="opencompass/ceval-exam", licence="CC BY-NC-SA 4.0",
        ),
        _set(
            "gsm8k", docs.gsm8k,
            {"test": Split(["gsm8k_test"], ["main/test*"]), "train": Split(["gsm8k_train"], ["main/train*"])},
            huggingface="openai/gsm8k", modelscope="modelscope/gsm8k", licence="MIT",
        ),
        _set(
            "math", docs.maths, {"test": Split(["math_test"], ["**/test*"])},
            huggingface="EleutherAI/hendrycks_math", modelscope="opencompass/competition_math", licence="MIT",
        ),
        _set(
            "bbh", docs.bbh, {"test": Split(["bbh"], ["**/test*"])},
            huggingface="lukaemon/bbh", modelscope="opencompass/bbh", licence="MIT",
        ),
        _set("bbh_examples", docs.bbh_examples, {"test": Split(["bbh_cot_prompts"])}, licence="MIT"),
        _set(
            "humaneval", docs.humaneval, {"test": Split(["humaneval"], ["**/test*"])},
            huggingface="openai/openai_humaneval", modelscope="opencompass/humaneval", licence="MIT",
        ),
        _set(
            "mbpp", docs.mbpp, {"test": Split(["mbpp"], ["full/*"])},
            huggingface="google-research-datasets/mbpp", modelscope="opencompass/mbpp", licence="CC BY 4.0",
        ),
    )
}  # fmt: skip


class DataSource:
    """A folder with data, or a hub. Splits are read once."""

    def __init__(self, where: str | Path | None) -> None:
        self.where = where
        self._read: dict[tuple[str, str], Rows] = {}

    def rows(self, name: str, split: str = "test") -> Rows:
        """Docs of a split. Raises ValueError naming what was looked for and where."""
        key = (name, split)
        if name == "instructions":
            return _instructions()
        if key not in self._read:
            self._read[key] = _read(SETS[name], SETS[name].splits[split], self._files(SETS[name], split))
        return self._read[key]

    def _files(self, data: DataSet, split: str) -> list[Path]:
        if self.where in ("huggingface", "modelscope"):
            return _from_hub(data, split, "modelscope" if self.where == "modelscope" else "huggingface")
        if self.where is None:
            raise ValueError(
                f"{data.name}: which data? Give --data FOLDER, or --data huggingface or --data modelscope to fetch "
                f"{data.huggingface or data.modelscope or 'it'}"
            )
        return _in_folder(Path(self.where), data, split)


@functools.cache
def _instructions() -> Rows:
    """The one set that is our own: made, not read."""
    made = [
        {
            "query": row["prompt"], "target": "", "subject": row["language"],
            "instructions": json.dumps(row["instructions"], ensure_ascii=False),
        }
        for row in instruction_rows()
    ]  # fmt: skip
    return Rows(made, f"made by gangpao, version {SET_VERSION}")


def _from_hub(data: DataSet, split: str, hub: Hub) -> list[Path]:
    repo = data.huggingface if hub == "huggingface" else data.modelscope
    if not repo or not data.splits[split].paths:
        raise ValueError(f"{data.name} ({split}) is on no hub that we know of; give --data FOLDER with its file")
    from gangpao.pull.datasets import fetch_dataset

    with Progress() as progress:
        return fetch_dataset(hub, repo, data.splits[split].paths, progress=progress)


def _in_folder(folder: Path, data: DataSet, split: str) -> list[Path]:
    if not folder.is_dir():
        raise ValueError(f"--data {folder}: no such folder")
    part = data.splits[split]
    for stem in part.stems:
        for suffix in SUFFIXES:
            if (path := folder / f"{stem}{suffix}").is_file():
                return [path]
    for root in (folder / data.name, folder / (data.huggingface or data.name).rpartition("/")[2]):
        found = sorted({p for pattern in part.paths for p in root.glob(pattern) if p.name.endswith(SUFFIXES)})
        if found:
            return found
    wanted = " or ".join(f"{stem}.jsonl[.zst]" for stem in part.stems)
    raise ValueError(
        f"{folder}: {data.name} ({split}) is not there: {wanted}, or a copy of {data.huggingface or data.name}"
    )


def _read(data: DataSet, split: Split, files: Sequence[Path]) -> Rows:
    found: list[Doc] = []
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.read_bytes())
        subject = path.parent.name if split.subjects and path.stem.partition("-")[0] not in split.stems else ""
        for row in read_rows(path, format_of(path)):
            if row.wrong or not isinstance(row.value, dict):
                raise ValueError(f"{path}:{row.number}: {row.wrong or 'not an object'}")
            try:
                doc = data.read(row.value)
            except (ValueError, KeyError, TypeError, IndexError) as error:
                raise ValueError(f"{path}:{row.number}: not a row of {data.name}: {error}") from error
            found.append(({"subject": subject} if subject else {}) | doc)
    if not found:
        raise ValueError(f"{files[0]}: no rows")
    names = files[0].name if len(files) == 1 else f"{len(files)} files"
    return Rows(found, f"{names}, sha256 {digest.hexdigest()[:16]}")
