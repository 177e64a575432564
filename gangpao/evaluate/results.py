"""What a run of an evaluation leaves in its folder, in one form for benchmarks, conversations, perplexity and speed.

    results.json        a RunResult: who answered, what was asked, how, and every score with its standard error
    items-TASK.jsonl    one Item a line: the prompt, the answers and the scores of everything that was asked
    journal.jsonl       requests as they are answered, for a run that goes on after it was killed

Whoever measures writes these and whoever reports reads nothing else. The schema has a number; a file of another number is
refused with a reason.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

import gangpao
from gangpao import atomic, machine
from gangpao.config import Frozen
from gangpao.units import utc_now

SCHEMA = 1

Kind = Literal["gguf", "checkpoint", "endpoint"]
Mode = Literal["loglikelihood", "generation", "perplexity", "judge", "program", "speed"]


class ModelFacts(Frozen):
    """Who answered."""

    name: str
    kind: Kind
    sha256: str = Field("", description="Of the file, or of the weight files in order; empty for an endpoint.")
    bytes: int = Field(0, ge=0, description="Of the file or files.")
    parameters: int = Field(0, ge=0, description="Weights, embeddings included; 0 where unknown.")
    architecture: str = ""
    quantization: str = Field("", description="Weight type as the file says it, for example Q4_K_M or BF16.")
    context: int = Field(0, ge=0, description="Most tokens of prompt and answer together; 0 where unknown.")
    mmproj_sha256: str = Field("", description="Of the file that it sees with; empty where it was not asked to see.")
    url: str = Field("", description="Of an endpoint, without key and query.")


class Thinking(Frozen):
    """What a thinking model did with its tokens, over the answers of one task."""

    answers: int = Field(ge=0, description="Answers that held a thought.")
    mean_tokens: float = Field(ge=0, description="Tokens of a thought, mean over those answers.")
    at_limit: float = Field(
        ge=0, le=1, description="Share of all answers that the token limit ended within the thought."
    )
    empty: float = Field(ge=0, le=1, description="Share of all answers with nothing behind the thought.")


class TaskResult(Frozen):
    """One score of one task. A task with two metrics, or in two modes, is two of these."""

    task: str
    metric: str = Field(
        description="acc, acc_norm, exact_match, pass@1, perplexity, bits_per_byte, kl_divergence, score ..."
    )
    value: float
    stderr: float | None = Field(None, description="Standard error of value, in its unit; None where there is none.")
    items: int = Field(ge=0, description="Items that the value is over.")
    of: int = Field(ge=0, description="Items that the task has without --limit.")
    higher_is_better: bool = True
    scale: float = Field(1.0, gt=0, description="The best possible value: 1 for shares, 10 for marks.")
    mode: Mode
    shots: int = 0
    main: bool = Field(True, description="Whether this is the score that tables show for the task.")
    parts: dict[str, float] = Field({}, description="The same metric by subject, category or language.")
    prompt_version: str = Field("", description="Version of the task file that made the prompts.")
    grader: str = Field("", description="What decided right or wrong, with its version.")
    stop: list[str] = Field([], description="Strings that ended answers.")
    items_in: str = Field("", description="items-NAME.jsonl has the items; empty where NAME is the task.")
    data: str = Field("", description="Where the rows are from, and their sha256.")
    left_out: dict[str, int] = Field(
        {}, description="Items without an ordinary score, by reason, for example too_long."
    )
    thinking: Thinking | None = None
    contaminated: int | None = Field(
        None, description="Items that a document of --corpus holds; None where none was given."
    )
    not_searched: int | None = Field(
        None, description="Items too short to be looked for in --corpus: neither in it nor known to be clean."
    )
    clean_value: float | None = Field(
        None, description="The value over the items that were looked for and not found, where those are not all."
    )


class Speed(Frozen):
    """What the run, or a bench beside it, measured."""

    prefill_tps: float | None = Field(None, description="Tokens of prompts a second.")
    decode_tps: float | None = Field(None, description="Tokens of one answer a second.")
    batch_tps: float | None = Field(None, description="Tokens a second of all answers together, at `batch`.")
    batch: int | None = None
    rss_mb: float | None = Field(None, description="Resident memory, 1e6 bytes.")


class RunResult(Frozen):
    """The whole of results.json."""

    schema_version: int = SCHEMA
    created: str = Field(description="UTC, ISO 8601.")
    gangpao: str = Field(description="Version, and the commit where there is a checkout.")
    harness: str = Field("", description="lm-eval and its version where it asked the questions.")
    hardware: dict[str, Any] = Field({}, description="cpu, cores, memory bytes, kernels.")
    model: ModelFacts
    suite: str = ""
    limit: int | None = None
    settings: dict[str, Any] = Field(
        {}, description="Options that change scores: bos, chat template, thinking, seed ..."
    )
    tasks: list[TaskResult]
    speed: Speed | None = None
    seconds: float = Field(0.0, ge=0, description="Of machine time, resumed parts together.")
    tokens: dict[str, int] = Field(
        {}, description="prompt, cached, completion: what was computed, taken from before, written."
    )
    yuan: float | None = Field(None, description="Price of those seconds by the cost profile in settings.")
    notes: list[str] = Field([], description="What a reader has to know beside the numbers.")


class Answer(Frozen):
    """One of the answers of an item: a choice that was scored or a text that was written."""

    text: str
    logprob: float | None = None
    greedy: bool | None = Field(None, description="Whether greedy decoding would have said it.")
    tokens: int | None = None
    finish: str = ""


class Item(Frozen):
    """One line of items-TASK.jsonl."""

    item: str = Field(description="Name or number within the task.")
    prompt: str | list[dict[str, Any]] = Field(description="Text, or messages.")
    ids: list[int] | None = Field(None, description="Token ids of the prompt, where we made them.")
    answers: list[Answer]
    target: Any = None
    scores: dict[str, float]
    flags: list[str] = Field([], description="too_long, empty_choice, at_limit, empty_answer ...")
    extra: dict[str, Any] = Field({}, description="What else a grader or a judge said.")


def provenance() -> dict[str, Any]:
    """The fields of a RunResult that say when, by which code and on which machine it came to be."""
    from gangpao import kernels

    commit = machine.git_commit()
    return {
        "created": utc_now(),
        "gangpao": gangpao.__version__ + (f", commit {commit}" if commit else ""),
        "hardware": {
            "cpu": machine.cpu_name(), "cores": machine.physical_cores(), "memory": machine.total_memory(),
            "kernels": kernels.isa_name(),
        },
    }  # fmt: skip


def write_run(folder: Path, result: RunResult) -> None:
    """results.json, whole or not at all."""
    atomic.write_json(folder / "results.json", result.model_dump(mode="json"))


def read_run(folder: Path) -> RunResult:
    """The result in a folder, or of a results.json. Raises ValueError naming the file and what is wrong."""
    path = folder / "results.json" if folder.is_dir() else folder
    if not path.is_file():
        raise ValueError(f"{folder}: no results.json there; `gangpao eval` writes one when a run ends")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}); run the evaluation again") from error
    if not isinstance(data, dict) or data.get("schema_version") != SCHEMA:
        found = data.get("schema_version") if isinstance(data, dict) else None
        raise ValueError(f"{path}: schema {found!r:.20}, and this version reads {SCHEMA}; run the evaluation again")
    try:
        return RunResult.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def write_items(folder: Path, task: str, items: Iterable[Item]) -> Path:
    """items-TASK.jsonl, whole or not at all."""
    path = folder / f"items-{task}.jsonl"
    with atomic.new_file(path) as temporary, temporary.open("w", encoding="utf-8") as out:
        for item in items:
            out.write(json.dumps(item.model_dump(mode="json", exclude_none=True), ensure_ascii=False) + "\n")
    return path


def read_items(folder: Path, task: str) -> Iterator[Item]:
    """The items of a task, in the order in which they were asked. Raises ValueError naming a line that is not one."""
    path = folder / f"items-{task}.jsonl"
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield Item.model_validate_json(line)
            except ValidationError as error:
                raise ValueError(f"{path}:{number}: {error.errors()[0]['msg']}") from error


def sha256_of(files: Sequence[Path]) -> str:
    """Of files one after the other."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as data:
            while piece := data.read(1 << 20):
                digest.update(piece)
    return digest.hexdigest()
