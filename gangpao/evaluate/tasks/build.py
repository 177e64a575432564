"""A row of the table and its data, as a task that lm-eval runs: docs with their whole prompt, and how answers become scores."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gangpao.evaluate.tasks import prompts
from gangpao.evaluate.tasks.data import DataSource
from gangpao.evaluate.tasks.docs import LETTERS, Doc
from gangpao.evaluate.tasks.table import Task

Grade = Callable[[Doc, str], Mapping[str, float | str]]


@dataclass(frozen=True, slots=True)
class Asked:
    """A task with its docs, ready to be asked. of: docs without a limit. origin: of the data."""

    task: Task
    docs: list[Doc]
    of: int
    shots: int
    origin: str


def ask(
    task: Task, source: DataSource, *, limit: int | None = None, shots: int | None = None, chat: bool = False
) -> Asked:
    """limit: items; of a set with subjects as many of each as make that number. chat: the model answers instead of going on.

    Raises ValueError for data that are not there, and for more shots than there are examples.
    """
    shots = task.shots if shots is None else shots
    docs = docs_of(task, source)
    kept = limited(docs, limit)
    prompt = task.chat if chat and task.chat else task.prompt
    heads = _Heads(task, source, shots)
    out = [
        doc | {"prompt": heads.of(doc) + prompt(doc), "number": doc.get("number", at), "place": at} for at, doc in kept
    ]
    return Asked(task, out, len(docs), shots, source.rows(task.data).origin)


def docs_of(task: Task, source: DataSource) -> Sequence[Doc]:
    """All that a task can ask, in the order of their places. MBPP is one file of examples, tests and training."""
    docs = source.rows(task.data).docs
    return [doc for doc in docs if doc["number"] in _MBPP_TEST] if task.data == "mbpp" else docs


def limited(docs: Sequence[Doc], limit: int | None) -> list[tuple[int, Doc]]:
    """The first docs with their places; with subjects, the first of each."""
    numbered = list(enumerate(docs))
    if limit is None or limit >= len(docs):
        return numbered
    by_subject: dict[str, list[tuple[int, Doc]]] = defaultdict(list)
    for at, doc in numbered:
        by_subject[doc.get("subject", "")].append((at, doc))
    rounds = itertools.chain.from_iterable(itertools.zip_longest(*by_subject.values()))
    chosen = itertools.islice((pair for pair in rounds if pair is not None), limit)
    return sorted(chosen, key=lambda pair: pair[0])


class _Heads:
    """What stands in front of a doc's question."""

    def __init__(self, task: Task, source: DataSource, shots: int) -> None:
        self._task, self._source, self._shots = task, source, shots
        self._known: dict[str, str] = {}

    def of(self, doc: Doc) -> str:
        subject = doc.get("subject", "") if self._task.by_subject or self._task.shots_from == "bbh_examples" else ""
        if subject not in self._known:
            self._known[subject] = self._made(doc, subject)
        return self._known[subject]

    def _made(self, doc: Doc, subject: str) -> str:
        task = self._task
        head = task.head(doc) if task.head else ""
        if not self._shots:
            return head
        examples = self._examples(subject)
        if task.shots_from == "bbh_examples":
            text = prompts.bbh_first_examples(examples[0]["query"], self._shots)
            steps = task.prompt is prompts.bbh_steps
            return (text if steps else prompts.bbh_direct_examples(text)) + "\n\n"
        if len(examples) < self._shots:
            raise ValueError(f"{task.name}: {self._shots} examples wanted and {len(examples)} there: lower --shots")
        assert task.example is not None
        parts = (task.prompt(e) + task.delimiter + task.example(e) for e in examples[: self._shots])
        return head + "\n\n".join(parts) + "\n\n"

    def _examples(self, subject: str) -> Sequence[Doc]:
        task = self._task
        if task.shots_from == "own":
            return prompts.MATHS_EXAMPLES if task.data == "math" else _mbpp_examples(self._source)
        if task.shots_from == "bbh_examples":
            rows = self._source.rows("bbh_examples")
        elif task.shots_from:
            rows = self._source.rows(task.data, task.shots_from)
        else:
            raise ValueError(f"{task.name}: there are no examples for it: leave out --shots")
        found = [e for e in rows.docs if not subject or e.get("subject", "") == subject]
        if not found:
            raise ValueError(
                f"{task.name}: no examples of the subject {subject!r}; there are those of other subjects only"
            )
        return found


_MBPP_EXAMPLES = (2, 3, 4)  # tasks that the set's authors keep for prompts
_MBPP_TEST = range(11, 511)


def _mbpp_examples(source: DataSource) -> list[Doc]:
    return [doc for doc in source.rows("mbpp").docs if doc["number"] in _MBPP_EXAMPLES]


def harness_task(asked: Asked, grade: Grade | None, *, chat: bool = False) -> Any:
    """lm_eval's ConfigurableTask. grade: of a written answer. chat: the model ends its turn by itself, without stop strings."""
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask

    task = asked.task
    config: dict[str, Any] = {
        "task": task.name,
        "custom_dataset": lambda **_: {"test": Dataset.from_list(asked.docs)},
        "test_split": "test",
        "doc_to_text": lambda doc: doc["prompt"],
        "target_delimiter": task.delimiter,
        "num_fewshot": 0,
        "metadata": {"version": task.version},
    }
    how = _HOW[task.how](replace(task, stop=()) if chat else task, grade)
    return ConfigurableTask(config=config | how)


def _metrics(*names: str) -> list[dict[str, Any]]:
    return [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in names]


def _choice(task: Task, _: Grade | None) -> dict[str, Any]:
    choices = (lambda doc: list(LETTERS[: len(doc["choices"])])) if task.letters else (lambda doc: doc["choices"])
    return {
        "output_type": "multiple_choice",
        "doc_to_choice": choices,
        "doc_to_target": lambda doc: doc["gold"],
        "metric_list": _metrics("acc", *([] if task.letters else ["acc_norm"])),
    }


def _contexts(task: Task, _: Grade | None) -> dict[str, Any]:
    """lm-eval's way for several beginnings of one end: doc_to_text is the number of the right one."""
    return {
        "output_type": "multiple_choice",
        "doc_to_text": lambda doc: doc["gold"],
        "doc_to_choice": lambda doc: doc["choices"],
        "doc_to_target": lambda doc: doc["target"],
        "metric_list": _metrics("acc"),
    }


def _word(task: Task, _: Grade | None) -> dict[str, Any]:
    return {
        "output_type": "loglikelihood",
        "doc_to_target": lambda doc: task.delimiter + doc["target"],  # which lm-eval does not put in front here
        "metric_list": [
            {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
            {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
        ],
    }


def _written(task: Task, grade: Grade | None) -> dict[str, Any]:
    assert grade is not None
    return {
        "output_type": "generate_until",
        "doc_to_target": lambda doc: str(doc.get("target", doc.get("gold", ""))),
        "generation_kwargs": {"until": list(task.stop), "max_gen_toks": task.max_tokens, "do_sample": False},
        "process_results": lambda doc, answers: _numbers(grade, doc, answers[0]),
        "metric_list": _metrics(task.main),
    }


def _numbers(grade: Grade, doc: Doc, answer: str) -> dict[str, float]:
    """The scores alone: lm-eval takes the mean of whatever it is given."""
    return {name: value for name, value in grade(doc, answer).items() if not isinstance(value, str)}


_HOW: dict[str, Callable[[Task, Grade | None], dict[str, Any]]] = {
    "choice": _choice,
    "contexts": _contexts,
    "word": _word,
    "written": _written,
}
