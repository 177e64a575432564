"""lm-eval's own result files: other people's runs read as ours, ours written as theirs.

    FOLDER/MODEL/results_DATE.json            scores under "metric,filter", shots, counts, configurations
    FOLDER/MODEL/samples_TASK_DATE.jsonl      a line for each item and filter

The form is that of lm-eval 0.4.13, and nothing of lm-eval is needed for it. A metric of the filter "none" has its own name here,
one of another filter is "exact_match,strict-match". Where lm-eval gives a group of tasks a value of its own (MMLU's subjects), the
group is the task and its members are its parts.

What it gives up: written back, parts stay out, because nothing says how many items each has; thinking, speed and price, too.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gangpao import atomic
from gangpao.evaluate.results import Answer, Item, Kind, Mode, ModelFacts, RunResult, TaskResult

_DATE = re.compile(r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(\.\d+)?")
_NOT_METRICS = ("name", "alias", "sample_len", "sample_count")
_MODES: dict[str, Mode] = {
    "multiple_choice": "loglikelihood",
    "loglikelihood": "loglikelihood",
    "loglikelihood_rolling": "perplexity",
    "generate_until": "generation",
}
_OUTPUT_TYPES: dict[Mode, str] = {
    "loglikelihood": "multiple_choice",
    "perplexity": "loglikelihood_rolling",
    "generation": "generate_until",
    "program": "generate_until",
    "judge": "generate_until",
}
_MAIN = ("acc_norm,none", "acc,none", "exact_match,strict-match", "exact_match,flexible-extract", "exact_match,none")
_LOWER_IS_BETTER = ("perplexity", "bits_per_byte", "bleurt_diff", "mse", "kl_divergence")

# --- reading


def is_lm_eval(data: Any) -> bool:
    """Whether a JSON file is one of lm-eval's results."""
    return isinstance(data, dict) and "schema_version" not in data and isinstance(data.get("results"), dict)


def newest(folder: Path) -> Path | None:
    """The results file in a folder that was written last, by the date in its name."""
    found = [path for path in folder.glob("results_*.json") if _DATE.search(path.name)]
    return max(found, key=lambda path: path.name) if found else None


def read_results(path: Path) -> RunResult:
    """A results file as a run. Raises ValueError naming the file and what is wrong in it."""
    data = atomic.read_json(path)
    if not is_lm_eval(data):
        raise ValueError(f"{path}: not a results file of lm-eval: it has no table `results`")
    try:
        return _run(data)
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise ValueError(f"{path}: not as lm-eval 0.4.13 writes it: {error!r:.200}") from error


def _run(data: dict[str, Any]) -> RunResult:
    config = data.get("config") or {}
    members = _members(data)
    parts = {leaf for leaves in members.values() for leaf in leaves}
    tasks: list[TaskResult] = []
    notes: list[str] = []
    for task in data["results"]:
        if task not in parts:
            tasks += _scores(data, task, members.get(task, []), notes)
    started = datetime.datetime.fromtimestamp(float(data.get("date") or 0), datetime.UTC)
    limit = config.get("limit")
    return RunResult(
        created=started.isoformat(timespec="seconds"),
        gangpao="",
        harness=_harness(data),
        hardware=_hardware(str(data.get("pretty_env_info") or "")),
        model=_model(data, config),
        limit=int(limit) if isinstance(limit, int | float) and limit == int(limit) else None,
        settings=_settings(data, config),
        tasks=tasks,
        seconds=max(0.0, float(data.get("total_evaluation_time_seconds") or 0)),
        notes=notes,
    )


def _members(data: dict[str, Any]) -> dict[str, list[str]]:
    """Groups that have a value of their own, with the tasks below them; a group within such a group is no entry."""
    below: dict[str, list[str]] = data.get("group_subtasks") or {}

    def leaves(name: str, above: tuple[str, ...] = ()) -> list[str]:
        inner = [n for n in below.get(name, []) if n not in above]
        return [leaf for n in inner for leaf in [n, *leaves(n, (*above, name))]]

    scored = [name for name in below if below[name] and _metrics(data["results"].get(name, {}))]
    inside = {leaf for name in scored for leaf in leaves(name)}
    return {name: leaves(name) for name in scored if name not in inside}


def _metrics(row: Mapping[str, Any]) -> dict[str, float]:
    """Scores by lm-eval's name, without their errors and what is no number."""
    return {
        key: float(value)
        for key, value in row.items()
        if key not in _NOT_METRICS
        and not key.partition(",")[0].endswith("_stderr")
        and isinstance(value, int | float)
        and not isinstance(value, bool)
    }


def _scores(data: dict[str, Any], task: str, leaves: list[str], notes: list[str]) -> list[TaskResult]:
    row, results = data["results"][task], data["results"]
    tasks = [leaf for leaf in leaves if leaf in data.get("configs", {})] or [task]
    config = data.get("configs", {}).get(tasks[0]) or {}
    metrics = _metrics(row)
    for key in [key for key, value in metrics.items() if not math.isfinite(value)]:
        notes.append(f"{task}: {key} is {metrics.pop(key)}, left out")
    main = next((key for key in _MAIN if key in metrics), next(iter(metrics), None))
    counts = [data.get("n-samples", {}).get(leaf) or {} for leaf in tasks]
    items = sum(int(c.get("effective", 0)) for c in counts) or int(row.get("sample_len") or 0)
    out = []
    for key, value in metrics.items():
        name, _, filter_ = key.partition(",")
        error = row.get(f"{name}_stderr,{filter_}")
        better = (data.get("higher_is_better", {}).get(task) or {}).get(name)
        out.append(
            TaskResult(
                task=task,
                metric=_our_metric(name, filter_),
                value=value,
                stderr=float(error) if isinstance(error, int | float) and math.isfinite(error) else None,
                items=items,
                of=sum(int(c.get("original", 0)) for c in counts) or items,
                higher_is_better=better if isinstance(better, bool) else not name.startswith(_LOWER_IS_BETTER),
                mode=_MODES.get(config.get("output_type", ""), "generation"),
                shots=_shots(data, task, tasks),
                main=key == main,
                parts={leaf: float(results[leaf][key]) for leaf in tasks if leaf != task and key in results[leaf]},
                prompt_version=f"lm-eval {data.get('versions', {}).get(tasks[0], '')}".strip(),
                grader=f"lm-eval, filter {filter_ or 'none'}",
                stop=_stop(config),
                data=str(config.get("dataset_path") or ""),
            )
        )
    return out


def _our_metric(name: str, filter_: str) -> str:
    return name if filter_ in ("", "none") else f"{name},{filter_}"


def _shots(data: dict[str, Any], task: str, tasks: list[str]) -> int:
    found = data.get("n-shot") or {}
    return int(found.get(task) or found.get(tasks[0]) or 0)


def _stop(config: Mapping[str, Any]) -> list[str]:
    until = (config.get("generation_kwargs") or {}).get("until") or []
    return [until] if isinstance(until, str) else [str(text) for text in until]


def _harness(data: dict[str, Any]) -> str:
    commit = data.get("git_hash")
    return f"lm-eval {data.get('lm_eval_version') or ''}".strip() + (f", in a checkout at {commit}" if commit else "")


def _hardware(text: str) -> dict[str, Any]:
    """Processor and cores out of torch's description of a machine."""
    cpu, cores = re.search(r"^Model name: +(.+)$", text, re.M), re.search(r"^CPU\(s\): +(\d+)$", text, re.M)
    gpu = re.search(r"^GPU models and configuration: (?!Could not)(.+)$", text, re.M)
    found = {"cpu": cpu and cpu[1], "cores": cores and int(cores[1]), "gpu": gpu and gpu[1]}
    return {key: value for key, value in found.items() if value}


def _model(data: dict[str, Any], config: Mapping[str, Any]) -> ModelFacts:
    arguments = config.get("model_args") or {}
    if isinstance(arguments, str):
        arguments = dict(pair.split("=", 1) for pair in arguments.split(",") if "=" in pair)
    source = str(data.get("model_source") or config.get("model") or "")
    url = str(arguments.get("base_url") or "")
    kind: Kind = "endpoint" if url or "completions" in source else "checkpoint"
    if str(arguments.get("gguf_file") or "").endswith(".gguf"):
        kind = "gguf"
    name = data.get("model_name") or arguments.get("pretrained") or arguments.get("model") or source or "unnamed"
    return ModelFacts(
        name=str(name),
        kind=kind,
        parameters=max(0, int(config.get("model_num_parameters") or 0)),
        quantization=str(config.get("model_dtype") or "").removeprefix("torch."),
        context=max(0, int(data.get("max_length") or 0)),
        url=re.sub(r"//[^/@]*@", "//", url.partition("?")[0]),
    )


def _settings(data: dict[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    known = {key: value for key, value in config.items() if key != "model_args" and value not in (None, [], "")}
    for key in ("system_instruction", "chat_template_sha", "fewshot_as_multiturn", "model_source"):
        if data.get(key) is not None:
            known[key] = data[key]
    return known


def read_samples(results: Path, task: str) -> Iterator[Item]:
    """The items of a task, or of the members of a group, beside a results file; none where there is no file of them."""
    dated = _DATE.search(results.name)
    below = (atomic.read_json(results).get("group_subtasks") or {}) if dated else {}
    names, todo = [], [task]
    while todo:
        name = todo.pop(0)
        if name not in names:
            names.append(name)
            todo += below.get(name, [])
    for name in names:
        path = results.with_name(f"samples_{name}_{dated[0] if dated else ''}.jsonl")
        if path.is_file():
            yield from _samples(path, subject=name if name != task else "")


def _samples(path: Path, subject: str) -> Iterator[Item]:
    """Items with the scores of all filters together."""
    found: dict[Any, Item] = {}
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                item = _item(row, subject)
            except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
                raise ValueError(
                    f"{path}:{number}: not a sample as lm-eval 0.4.13 writes it: {error!r:.120}"
                ) from error
            before = found.get(row["doc_id"])
            if before is not None:
                item = before.model_copy(update={"scores": {**before.scores, **item.scores}})
            found[row["doc_id"]] = item
    yield from found.values()


def _item(row: dict[str, Any], subject: str) -> Item:
    filter_ = str(row.get("filter") or "none")
    scores = {m: row[m] for m in row.get("metrics", []) if isinstance(row.get(m), int | float)}
    arguments = [[a["arg_0"], a.get("arg_1")] for a in row["arguments"].values()]
    if all(isinstance(second, str) for _, second in arguments):
        answers = [
            Answer(text=_clean(choice), logprob=float(r[0][0]), greedy=str(r[0][1]) == "True")
            for (_, choice), r in zip(arguments, row["resps"], strict=True)
        ]
    else:
        answers = [Answer(text=_clean(text)) for text in row["resps"][0]]
    name = str(row["doc_id"])
    return Item(
        item=f"{subject}/{name}" if subject else name,
        prompt=_clean(arguments[0][0]),
        answers=answers,
        target=_clean(row.get("target")),
        scores={_our_metric(metric, filter_): float(value) for metric, value in scores.items()},
        extra={"subject": subject} if subject else {},
    )


def _clean(text: Any) -> str:
    """Text that can be written to a file: JSON may hold halves of surrogate pairs."""
    return str(text).encode("utf-8", "replace").decode("utf-8")


# --- writing


def write(result: RunResult, items: Callable[[TaskResult], Iterable[Item]], out: Path) -> list[Path]:
    """Results and samples as lm-eval would have named them; the paths, results first.

    out: a folder, in which they lie in one of the model's name, or a file FOLDER/NAME.json, beside which they lie with the date in
    their names. items: those behind a score; where there are none there is no samples file.
    """
    date = datetime.datetime.now().isoformat().replace(":", "-")
    folder = out.parent if out.suffix == ".json" else out / _sanitized(result.model.name)
    stem = out.stem if out.suffix == ".json" else "results"
    folder.mkdir(parents=True, exist_ok=True)
    tasks, paths, hashes = _names(result.tasks), [], {}
    for name, scores in tasks.items():
        rows = [_sample(number, item, scores) for number, item in enumerate(items(scores[0]))]
        rows = [row for row in rows if row["metrics"]]
        if rows:
            hashes[name] = _hash("".join(r["doc_hash"] + r["prompt_hash"] + r["target_hash"] for r in rows))
            paths.append(folder / f"samples_{name}_{date}.jsonl")
            with (
                atomic.new_file(paths[-1]) as temporary,
                temporary.open("w", encoding="utf-8", errors="replace") as file,
            ):
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    results = folder / f"{stem}_{date}.json"
    with atomic.new_file(results) as temporary:
        text = json.dumps(_results(result, tasks, hashes), ensure_ascii=False, indent=2)
        temporary.write_text(text, encoding="utf-8", errors="replace")
    return [results, *paths]


def _names(scores: Iterable[TaskResult]) -> dict[str, list[TaskResult]]:
    """Scores by a name for lm-eval: there a task has one mode, so the second mode of a task is a task of its own."""
    modes: dict[str, Mode] = {}
    out: dict[str, list[TaskResult]] = {}
    for score in scores:
        if score.mode in _OUTPUT_TYPES:
            first = modes.setdefault(score.task, score.mode) == score.mode
            out.setdefault(score.task if first else f"{score.task}_{score.mode}", []).append(score)
    return out


def _results(result: RunResult, tasks: dict[str, list[TaskResult]], hashes: dict[str, str]) -> dict[str, Any]:
    created = datetime.datetime.fromisoformat(result.created.replace("Z", "+00:00"))
    version = re.match(r"lm-eval ([\d.]+)", result.harness)
    name = result.model.name
    return {
        "results": {task: _row(task, scores) for task, scores in tasks.items()},
        "group_subtasks": {},
        "configs": {task: _config(task, scores) for task, scores in tasks.items()},
        "versions": {task: scores[0].prompt_version or "N/A" for task, scores in tasks.items()},
        "n-shot": {task: scores[0].shots for task, scores in tasks.items()},
        "higher_is_better": {
            task: {score.metric.partition(",")[0]: score.higher_is_better for score in scores}
            for task, scores in tasks.items()
        },
        "n-samples": {
            task: {"original": max(s.of for s in scores), "effective": max(s.items for s in scores)}
            for task, scores in tasks.items()
        },
        "config": {
            "model": f"gangpao-{result.model.kind}", "model_args": {"pretrained": name}, "batch_size": None, "batch_sizes": [],
            "device": "cpu", "use_cache": None, "limit": result.limit, "bootstrap_iters": None, "gen_kwargs": None,
            **{f"{key}_seed": None for key in ("random", "numpy", "torch", "fewshot")},
        },
        "git_hash": result.gangpao,
        "date": created.timestamp(),
        "pretty_env_info": "\n".join(f"{key}: {value}" for key, value in result.hardware.items()),
        "transformers_version": None,
        "lm_eval_version": version[1] if version else None,
        "upper_git_hash": None,
        "task_hashes": hashes,
        "model_source": "gangpao",
        "model_name": name,
        "model_name_sanitized": _sanitized(name),
        "system_instruction": None, "system_instruction_sha": None, "fewshot_as_multiturn": None,
        "chat_template": None, "chat_template_sha": None,
        "total_evaluation_time_seconds": str(result.seconds),
    }  # fmt: skip


def _row(task: str, scores: list[TaskResult]) -> dict[str, Any]:
    row: dict[str, Any] = {"name": task, "alias": task, "sample_len": max(s.items for s in scores)}
    for score in scores:
        name, _, filter_ = score.metric.partition(",")
        row[f"{name},{filter_ or 'none'}"] = score.value
        row[f"{name}_stderr,{filter_ or 'none'}"] = "N/A" if score.stderr is None else score.stderr
    return row


def _config(task: str, scores: list[TaskResult]) -> dict[str, Any]:
    first = scores[0]
    metrics = {s.metric.partition(",")[0]: s.higher_is_better for s in scores}
    generation = {"generation_kwargs": {"until": first.stop}} if _OUTPUT_TYPES[first.mode] == "generate_until" else {}
    return {
        "task": task, "dataset_path": first.data, "output_type": _OUTPUT_TYPES[first.mode], "num_fewshot": first.shots,
        "metric_list": [{"metric": m, "aggregation": "mean", "higher_is_better": h} for m, h in metrics.items()],
        **generation, "repeats": 1, "metadata": {"version": first.prompt_version, "grader": first.grader},
    }  # fmt: skip


def _sample(number: int, item: Item, scores: list[TaskResult]) -> dict[str, Any]:
    """One item in lm-eval's form: one line, whatever the filters, because ours are metrics."""
    prompt = item.prompt if isinstance(item.prompt, str) else json.dumps(item.prompt, ensure_ascii=False)
    choices = scores[0].mode == "loglikelihood"
    calls = [{"arg_0": prompt, "arg_1": a.text} for a in item.answers] if choices else []
    said = [[str(a.logprob), str(a.greedy)] for a in item.answers] if choices else [a.text for a in item.answers]
    doc = {"item": item.item, **item.extra}
    metrics = {s.metric: item.scores[s.metric] for s in scores if s.metric in item.scores}
    return {
        "doc_id": number,
        "doc": doc,
        "target": str(item.target),
        "arguments": {
            f"gen_args_{i}": call
            for i, call in enumerate(calls or [{"arg_0": prompt, "arg_1": {"until": scores[0].stop}}])
        },
        "resps": [[one] for one in said] if choices else [said],
        "filtered_resps": said,
        "filter": "none",
        "metrics": list(metrics),
        "doc_hash": _hash(json.dumps(doc, indent=2, ensure_ascii=False, default=str)),
        "prompt_hash": _hash(prompt),
        "target_hash": _hash(str(item.target)),
        **metrics,
    }


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def _sanitized(name: str) -> str:
    """A model's name as lm-eval makes a folder's name of it."""
    return re.sub(r'["<>:/|\\?*\[\]]+', "__", name)
