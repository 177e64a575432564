"""Tasks that lm-eval brings itself: its prompts, data and metrics, and of every item what our own tasks say of theirs."""

from __future__ import annotations

import difflib
import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from gangpao.evaluate import harnessed
from gangpao.evaluate.results import Answer, Item, TaskResult
from gangpao.evaluate.settings import Settings
from gangpao.evaluate.tasks.table import TASKS

if TYPE_CHECKING:
    from gangpao.evaluate.models.harness import Harness
    from gangpao.evaluate.models.protocol import Generated

Note = Callable[[str], None]


def manager_for(name: str) -> Any:
    """lm-eval's TaskManager, where it has that task or group. Raises ValueError with names that are near it."""
    manager = _manager()
    if name not in manager.all_tasks:
        near = difflib.get_close_matches(name, [*TASKS, *manager.all_tasks], 4)
        raise ValueError(f"no task {name!r:.60}" + (f"; near it: {', '.join(near)}" if near else "") + "; see --list")
    return manager


@functools.cache
def _manager() -> Any:
    """One, because it reads some ten thousand files."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def foreign_task(
    name: str, harness: Harness, settings: Settings, note: Note
) -> Iterator[tuple[TaskResult, list[Item]]]:
    """One of lm-eval's own, or a group of them. note: told of tasks without a score.

    Raises ValueError for an unknown name.
    """
    found = harnessed.run(name, harness, settings, settings.chat, manager_for(name))
    for task, samples in found["samples"].items():
        filters = list(dict.fromkeys(sample["filter"] for sample in samples))
        kept = [sample for sample in samples if sample["filter"] == filters[0]]
        items = [_item(sample, harness) for sample in kept]
        written = [answer for sample in kept for answer in _written(sample, harness)]
        left_out = dict(Counter(flag for item in items for flag in set(item.flags) & harnessed.LEFT_OUT))
        config = found["configs"][task]
        values = {key: value for key, value in found["results"][task].items() if "," in key and "_stderr" not in key}
        if not values:
            note(f"{task}: no score, since no item of it could be asked ({left_out or 'lm-eval gives none'})")
        for key, value in values.items():
            metric, _, by = key.partition(",")
            stderr = found["results"][task].get(f"{metric}_stderr,{by}")
            yield TaskResult(
                task=task, metric=metric, value=float(value), stderr=stderr if isinstance(stderr, float) else None,
                items=sum(metric in sample["metrics"] for sample in samples if sample["filter"] == by),
                of=found["n-samples"][task]["original"],
                higher_is_better=found["higher_is_better"][task].get(metric) is not False,
                mode="generation" if config["output_type"] == "generate_until" else "loglikelihood",
                shots=found["n-shot"].get(task) or 0, main=key == next(iter(values)),
                prompt_version=f"lm-eval {task} {found['versions'].get(task)}", grader=f"lm-eval, {by}",
                stop=_stop(kept[0]), data=str(config.get("dataset_path") or ""), left_out=left_out,
                thinking=harnessed.thinking_of(written),
            ), items  # fmt: skip
            items = []


def _requests(sample: Mapping[str, Any]) -> Iterator[tuple[Any, int]]:
    """The arguments of each request of an item, and how many answers it has."""
    for arguments, responses in zip(sample["arguments"], sample["resps"], strict=True):
        yield arguments, len(responses)


def _written(sample: Mapping[str, Any], harness: Harness) -> list[Generated]:
    return [
        answer for arguments, count in _requests(sample) if len(arguments) > 1 and isinstance(arguments[1], Mapping)
        for answer in harnessed.written(arguments, count, harness)
    ]  # fmt: skip


def _stop(sample: Mapping[str, Any]) -> list[str]:
    """The strings that ended a written answer."""
    from gangpao.evaluate.models.harness import stops_of

    options = [a[1] for a, _ in _requests(sample) if len(a) > 1 and isinstance(a[1], Mapping)]
    return stops_of(options[0]) if options else []


def _item(sample: Mapping[str, Any], harness: Harness) -> Item:
    scores = {name: float(sample[name]) for name in sample["metrics"] if isinstance(sample[name], (int, float))}
    answers: list[Answer] = []
    flags: list[str] = []
    for arguments, _ in _requests(sample):
        if len(arguments) > 1 and not isinstance(arguments[1], Mapping):
            answer, said = harnessed.scored_answer(arguments, harness)
            answers.append(answer)
            flags += said
    for made in _written(sample, harness):
        answer, said = harnessed.written_answer(made)
        answers.append(answer)
        flags += said
    if not answers:  # whole texts
        answers = [Answer(text="", logprob=float(responses[0])) for responses in sample["resps"]]
    contexts = [str(arguments[0]) for arguments in sample["arguments"]]
    return Item(
        item=str(sample["doc_id"]), prompt=harnessed.prompt_of(contexts), ids=_ids(sample, contexts, harness), answers=answers,
        target=str(sample["target"]), scores=scores, flags=sorted(set(flags)), extra=harnessed.thoughts(_written(sample, harness)),
    )  # fmt: skip


def _ids(sample: Mapping[str, Any], contexts: list[str], harness: Harness) -> list[int] | None:
    """Of the one prompt; None where the item has several."""
    if len(set(contexts)) > 1:
        return None
    first = sample["arguments"][0]
    if len(first) > 1 and isinstance(first[1], Mapping):
        return harness.ids_of(first[0], first[1])
    return harness.ids_of(contexts[0].rstrip())
