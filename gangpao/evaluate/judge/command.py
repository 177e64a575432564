"""`gangpao eval judge`: a model's conversations marked by another model."""

from __future__ import annotations

import re
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from gangpao.engine.memory import EngineOptions
from gangpao.evaluate.judge import prompts, questions
from gangpao.evaluate.judge.run import Settings, run
from gangpao.evaluate.judge.talk import Manner
from gangpao.evaluate.models import load
from gangpao.evaluate.models.price import Price
from gangpao.evaluate.models.protocol import Model
from gangpao.evaluate.results import RunResult, TaskResult
from gangpao.openai_client import Flags, address
from gangpao.options import Fields, command_of, option


@dataclass(frozen=True, slots=True)
class Judges:
    """Who judges, and how it writes."""

    judge_model: str | None = option(None, "The judge's name on its server, if that has several.")
    judge_key: str | None = option(None, "The judge's API key; OPENAI_API_KEY without it.")
    second_judge: str | None = option(None, "Another judge's address, to see how far the two agree.")
    second_judge_model: str | None = option(None, "The second judge's name there.")
    second_judge_key: str | None = option(None, "The second judge's API key.")
    judge_prompts: Path | None = option(None, "A TOML file with other words for the judge.")
    judge_tokens: int = option(2048, "Most tokens of a judgment.", 16)
    judge_temperature: float = option(0.0, "At which judges write.", 0, 2)
    judge_price: str | None = option(None, "IN,OUT: yuan per million tokens, to see what it costs.")


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked, and what answers are compared with."""

    questions: Path | None = option(
        None, "A folder with mt_bench.jsonl or question.jsonl, or a file; 8 of ours without."
    )
    references: Path | None = option(None, "Reference answers, if they are not beside the questions.")
    limit: int | None = option(None, "Ask only so many questions, of all categories in turn.", 1)
    pairwise: bool = option(False, "Compare with --baseline in both orders; a win needs both.")
    arena: bool = option(False, "Compare single prompts with --baseline by five verdicts, A>>B to B>>A.")
    baseline: Path | None = option(None, "What to compare with: a run's folder, or a file of answers.")


@command_of()
def judge(
    model: Annotated[str, typer.Option("-m", "--model", help="Who is judged: name, .gguf file, or a server's URL.")],
    judge: Annotated[str, typer.Option("--judge", help="Who judges: the address of any OpenAI-compatible server.")],
    judges: Judges,
    asked: Asked,
    manner: Manner,
    options: Annotated[EngineOptions, Fields(EngineOptions)],
    batch: Annotated[int, typer.Option("--batch", min=1, max=256, help="Answers of our engine at a time.")] = 8,
    concurrency: Annotated[
        int, typer.Option("--concurrency", min=1, max=256, help="Requests to a server at a time.")
    ] = 4,
    server_model: Annotated[str | None, typer.Option("--server-model", help="Name of the model at its server.")] = None,
    api_key: Annotated[str | None, typer.Option("--api-key", help="Key of the model's server.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="The run's folder; without it, eval/judge-MODEL-QUESTIONS here.")
    ] = None,
    language: Annotated[Literal["en", "zh"], typer.Option("--language", help="Of the plot.")] = "en",
) -> None:
    """Have a model's answers to MT-Bench, or to prompts of your own, marked by another model."""
    if asked.pairwise and asked.arena:
        raise ValueError("--pairwise and --arena: take one of them")
    if (asked.pairwise or asked.arena) != (asked.baseline is not None):
        raise ValueError("--baseline goes with --pairwise or --arena: give both, or none to mark answers by themselves")
    chosen = questions.load(asked.questions, asked.references)
    settings = Settings(
        kind="pair" if asked.pairwise else "arena" if asked.arena else "single", limit=asked.limit,
        judge_tokens=judges.judge_tokens, judge_temperature=judges.judge_temperature, language=language, manner=manner,
        price=Price.read(judges.judge_price, "--judge-price") if judges.judge_price else None,
    )  # fmt: skip
    words = prompts.load(judges.judge_prompts)
    other = questions.read_answers(asked.baseline) if asked.baseline else None
    with ExitStack() as closing:
        first = _server(closing, judge, judges.judge_model, judges.judge_key, concurrency, "--judge", judge)
        servers = [first]
        if judges.second_judge:
            second = judges.second_judge, judges.second_judge_model, judges.second_judge_key
            servers.append(_server(closing, *second, concurrency, "--second-judge", judge))
        if load.is_url(model):
            talker: Model = _server(closing, model, server_model, api_key, concurrency, "--model", judge)
        else:
            talker = load.load(model, options, batch=batch)
            closing.callback(talker.close)
        folder = out or Path("eval") / re.sub(r"[^\w.-]+", "-", f"judge-{talker.facts.name}-{chosen.name}")
        result = run(talker, servers, chosen, words, settings, folder, baseline=other)
    print(table(result))
    print(f"\nEverything is in {folder}.")


def _server(
    closing: ExitStack, url: str, name: str | None, key: str | None, concurrency: int, flag: str, judge: str
) -> Model:
    """A key in OPENAI_API_KEY is the judge's: it goes to no other address."""
    from gangpao.evaluate.models.endpoint import Endpoint

    named = ("--api-key", "--server-model") if flag == "--model" else (f"{flag}-key", f"{flag}-model")
    at_judge = address(url, flag) == address(judge, "--judge")
    flags = Flags(flag, *named) if at_judge else Flags(flag, *named, environment=False)
    server = Endpoint(url, name, key, concurrency=concurrency, flags=flags)
    closing.callback(server.close)
    return server


def table(result: RunResult) -> str:
    """The scores as lines of text, and what has to be known beside them."""
    lines = []
    for task in result.tasks:
        error = f" ± {_number(task, task.stderr)}" if task.stderr is not None else ""
        lines.append(
            f"{task.task:16} {task.metric:28} {_number(task, task.value)}{error}  over {task.items} of {task.of}"
        )
        lines += [f"{'':16}   {name:26} {_number(task, value)}" for name, value in task.parts.items()]
    return "\n".join([*lines, "", *result.notes])


def _number(task: TaskResult, value: float) -> str:
    return f"{value:.2f}" if task.scale == 10 else f"{value:.3f}"
