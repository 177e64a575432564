"""lm-eval asked to run one task, and what became of every request: the same for our tasks and for its own.

lm-eval knows numbers and texts only. A request without an ordinary answer (too long, a choice without a token) is a very small
number or an empty text there, and some of its metrics would take that for an answer, or overflow. So an item with such a request
gets 0 in every metric that is better when it is higher, and is left out of the others.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from numbers import Number
from typing import TYPE_CHECKING, Any

from gangpao.evaluate.results import Answer, Thinking
from gangpao.evaluate.settings import Settings

if TYPE_CHECKING:
    from gangpao.evaluate.models.harness import Harness
    from gangpao.evaluate.models.protocol import Generated

LEFT_OUT = frozenset({"too_long", "empty_choice"})  # flags of items without an ordinary score


def run(task: Any, harness: Harness, settings: Settings, chat: bool, manager: Any = None) -> dict[str, Any]:
    """lm-eval's results of a task: ours, whose docs are limited and have their examples already, or by name with its manager.

    lm-eval's `simple_evaluate` would index all its tasks and gather facts about the machine first, some 12 s each time.
    """
    from lm_eval.evaluator import evaluate
    from lm_eval.tasks import TaskManager

    own = manager is None
    loaded = (TaskManager(include_defaults=False) if own else manager).load([task])
    for one in loaded["tasks"].values():
        if not own and settings.shots is not None:
            one.set_config(key="num_fewshot", value=settings.shots)
        elif one.get_config("num_fewshot") is None:
            one.set_config(key="num_fewshot", value=0)
        one.set_fewshot_seed(seed=settings.seed)
        _count_faults_as_wrong(one, harness)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        found = evaluate(
            harness, loaded, limit=None if own else settings.limit, bootstrap_iters=0 if own else 1000,
            apply_chat_template=chat, confirm_run_unsafe_code=settings.run_code,
        )  # fmt: skip
    assert found is not None
    results: dict[str, Any] = found
    return results


def _count_faults_as_wrong(task: Any, harness: Harness) -> None:
    """Put that between the task's answers and its metrics."""
    real, higher = task.process_results, task.higher_is_better()
    known: set[str] = set()

    def process(doc: Any, results: Any) -> Mapping[str, Any]:
        if not known:  # a first time, when everything has been answered
            known.add("")
            known.update(repr(i.doc) for i in task.instances if faults(i.args, i.repeats, harness))
        found: Mapping[str, Any] = real(doc, results)
        if repr(doc) not in known:
            return found
        return {n: 0.0 for n, value in found.items() if isinstance(value, Number) and higher.get(n) is not False}

    task.process_results = process


def faults(arguments: Sequence[Any], repeats: int, harness: Harness) -> list[str]:
    """Why a request, with so many answers wanted, has no ordinary one; nothing where it has."""
    if len(arguments) < 2:
        return []
    if isinstance(arguments[1], Mapping):
        return ["too_long" for answer in written(arguments, repeats, harness) if answer.finish == "too_long"]
    fault = harness.score_of(*arguments).fault
    return [fault] if fault else []


def written(arguments: Sequence[Any], repeats: int, harness: Harness) -> list[Generated]:
    """The answers to a prompt with its options, their thoughts included."""
    return [harness.answer_of(arguments[0], arguments[1], repeat) for repeat in range(repeats)]


def scored_answer(arguments: Sequence[Any], harness: Harness) -> tuple[Answer, list[str]]:
    """A continuation with its score, and its flags."""
    score = harness.score_of(*arguments)
    answer = Answer(
        text=str(arguments[1]), logprob=None if score.fault else score.logprob, greedy=score.greedy, tokens=score.tokens
    )
    return answer, [score.fault] if score.fault else []


def written_answer(answer: Generated) -> tuple[Answer, list[str]]:
    """An answer that was written, and its flags."""
    flags = []
    if answer.finish == "too_long":
        flags.append("too_long")
    if answer.in_thought:
        flags.append("at_limit_in_thought")
    elif answer.finish == "length":
        flags.append("at_limit")
    if not answer.text.strip() and answer.finish != "too_long":
        flags.append("empty_answer")
    return Answer(text=answer.text, tokens=answer.tokens, finish=answer.finish), flags


def thoughts(answers: Sequence[Generated]) -> dict[str, Any]:
    """What an item says of the thoughts in its answers: one text, or a list where there are several answers."""
    if not any(answer.thinking for answer in answers):
        return {}
    texts = [answer.thinking for answer in answers]
    return {
        "thinking": texts[0] if len(texts) == 1 else texts,
        "thinking_tokens": sum(answer.thinking_tokens for answer in answers),
    }


def thinking_of(answers: Sequence[Generated]) -> Thinking | None:
    """Over all answers of a task; None where none thought."""
    tokens = [answer.thinking_tokens for answer in answers if answer.thinking]
    if not tokens:
        return None
    return Thinking(
        answers=len(tokens),
        mean_tokens=sum(tokens) / len(tokens),
        at_limit=sum(answer.in_thought for answer in answers) / len(answers),
        empty=sum("empty_answer" in written_answer(answer)[1] for answer in answers) / len(answers),
    )


def prompt_of(contexts: Sequence[str]) -> str:
    """What an item says was asked: the text, or where the choices are beginnings all of them, a line each."""
    return "\n".join(dict.fromkeys(contexts))
