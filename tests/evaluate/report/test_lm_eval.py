"""lm-eval's files: read as it writes them, written so that it reads them. The real lm-eval is asked where it is installed."""

import json
import math
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from gangpao.evaluate.report import compare, lm_eval, runs
from gangpao.evaluate.report.published import load_published
from gangpao.evaluate.results import read_run
from tests.evaluate.report.makers import TASKS, a_run, changed

# A choice with an example, a generation with two filters, and a group; asked of a model that knows nothing.
REAL = r"""
import json, sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
import lm_eval
from lm_eval.api.model import LM
from lm_eval.loggers import EvaluationTracker
from lm_eval.tasks import TaskManager

here = Path(sys.argv[1])
asked = (("1+1", ["2", "3"], 0), ("sky", ["red", "blue"], 1), ("一", ["1", "no"], 0))
rows = [{"question": q, "choices": c, "label": n} for q, c, n in asked]
(here / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
base = {
    "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(here / "rows.jsonl"), "dev": str(here / "rows.jsonl")}},
    "test_split": "test", "fewshot_split": "dev", "doc_to_text": "Q: {{question}}\nA:",
}
choice = base | {
    "task": "tiny_choice", "output_type": "multiple_choice", "doc_to_choice": "choices", "doc_to_target": "label", "num_fewshot": 1,
    "metric_list": [{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in ("acc", "acc_norm")],
    "metadata": {"version": 2.0},
}
written = base | {
    "task": "tiny_gen", "output_type": "generate_until", "doc_to_target": "{{choices[label]}}",
    "generation_kwargs": {"until": ["\n"], "do_sample": False},
    "filter_list": [
        {"name": name, "filter": [{"function": "regex", "regex_pattern": p}, {"function": "take_first"}]}
        for name, p in (("strict-match", "(\\w+)"), ("flexible-extract", "(\\d|no)"))
    ],
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}
group = {"group": "tiny_group", "task": ["tiny_choice"], "aggregate_metric_list": [{"metric": "acc", "aggregation": "mean"}]}
(here / "tasks").mkdir()
for name, one in (("choice", choice), ("written", written), ("group", group)):
    (here / "tasks" / f"{name}.yaml").write_text(json.dumps(one))

class Nobody(LM):
    def loglikelihood(self, requests):
        return [(-float(len(r.args[1])), False) for r in requests]
    def loglikelihood_rolling(self, requests):
        return [-1.0 for _ in requests]
    def generate_until(self, requests):
        return ["2 apples" for _ in requests]

tasks = TaskManager(include_path=str(here / "tasks"), include_defaults=False)
for name, asked in (("grouped", ["tiny_group", "tiny_gen"]), ("plain", ["tiny_choice", "tiny_gen"])):
    tracker = EvaluationTracker(output_path=str(here / name))
    found = lm_eval.simple_evaluate(
        model=Nobody(), model_args={"pretrained": "org/tiny:x"}, tasks=asked, task_manager=tasks, evaluation_tracker=tracker,
        log_samples=True, limit=2, bootstrap_iters=10,
    )
    samples = found.pop("samples")
    tracker.save_results_aggregated(results=found, samples=samples)
    for task, rows in samples.items():
        tracker.save_results_samples(task, rows)
"""


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Folders that the real lm-eval wrote: with a group, and without."""
    if find_spec("lm_eval") is None:
        pytest.skip("lm-eval is not installed: pip install 'gangpao[eval]'")
    here = tmp_path_factory.mktemp("real")
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(here / "cache")}
    done = subprocess.run(
        [sys.executable, "-P", "-c", REAL, str(here)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **offline},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return here


@pytest.mark.slow
def test_a_real_run_is_read(real):
    (run,) = runs.read([real / "grouped"])
    assert (run.label, run.result.harness[:14], run.result.limit) == ("org/tiny:x", "lm-eval 0.4.13", 2)
    scores = {(s.task, s.metric): s for s in run.result.tasks}
    group = scores["tiny_group", "acc"]
    assert (group.value, group.stderr, group.items, group.of, group.shots, group.mode) == (
        0.5,
        0.5,
        2,
        3,
        1,
        "loglikelihood",
    )
    assert group.parts == {"tiny_choice": 0.5}
    assert ("tiny_choice", "acc") not in scores
    strict, flexible = (
        scores["tiny_gen", "exact_match,strict-match"],
        scores["tiny_gen", "exact_match,flexible-extract"],
    )
    assert (strict.main, flexible.main, strict.mode, strict.stop) == (True, False, "generation", ["\n"])
    assert {*run.result.hardware} <= {"cpu", "cores", "gpu"}


@pytest.mark.slow
def test_a_real_run_s_items_are_read(real):
    (run,) = runs.read([real / "grouped"])
    items = list(run.items(run.result.tasks[0]))
    assert [i.item for i in items] == ["tiny_choice/0", "tiny_choice/1"]
    assert [a.text for a in items[0].answers] == [" 2", " 3"]
    assert [a.logprob for a in items[0].answers] == [-2.0, -2.0]
    assert items[0].scores == {"acc": 1.0, "acc_norm": 1.0}
    written = list(run.items(next(s for s in run.result.tasks if s.task == "tiny_gen")))
    assert {*written[0].scores} == {"exact_match,strict-match", "exact_match,flexible-extract"}
    assert [a.text for a in written[0].answers] == ["2 apples"]
    main = next(s for s in run.result.tasks if s.metric == "exact_match,strict-match")
    assert len(run.scores(main)) == 2


@pytest.mark.slow
def test_what_we_write_has_the_keys_and_types_that_it_writes(real, tmp_path):
    theirs = json.loads(lm_eval.newest(real / "plain" / "org__tiny__x").read_text())
    (run,) = runs.read([real / "plain"])
    results, *samples = lm_eval.write(
        run.result, {t: list(run.items(t)) for t in ("tiny_choice", "tiny_gen")}, tmp_path
    )
    ours = json.loads(results.read_text())
    assert {*ours} == {*theirs}
    assert results.parent.name == "org__tiny__x" == ours["model_name_sanitized"]
    for table in ("group_subtasks", "higher_is_better", "n-shot", "n-samples"):
        assert ours[table] == theirs[table], table
    assert ours["results"] == theirs["results"]
    assert {*ours["config"]} == {*theirs["config"]}
    assert {*ours["task_hashes"]} == {*theirs["task_hashes"]}
    for path in samples:
        mine = json.loads(path.read_text().splitlines()[0])
        name = path.name.rpartition("_")[0]
        sample = json.loads(next((real / "plain" / "org__tiny__x").glob(f"{name}_*")).read_text().splitlines()[0])
        assert {*sample} - {*mine} in (set(), {"exact_match"})
        for key in ("arguments", "target", "resps", "prompt_hash", "target_hash"):
            if key != "arguments" or "choice" in name:
                assert mine[key] == sample[key], key


def test_real_lm_eval_reads_what_we_write(tmp_path):
    utils = pytest.importorskip("lm_eval.utils", reason="lm-eval is not installed: pip install 'gangpao[eval]'")
    (run,) = runs.read([a_run(tmp_path / "a", "org/model", 5)])
    results, *samples = lm_eval.write(run.result, run.items, tmp_path / "out")
    table = utils.make_table(json.loads(results.read_text()))
    for score in run.result.tasks:
        assert f"{score.value:.4f}" in table
        assert f"{score.stderr:.4f}" in table
    names = [str(p) for p in (results, *samples)]
    assert utils.get_results_filenames(names) == [str(results)]
    assert utils.get_sample_results_filenames(names) == [str(p) for p in samples]
    assert utils.get_file_datetime(results.name.removesuffix(".json")) == utils.get_file_datetime(samples[0].name)
    assert utils.sanitize_model_name("org/model") == results.parent.name
    for text in ("a:b<c>", "x|y\\z", "[q]*?"):
        assert lm_eval._sanitized(text) == utils.sanitize_model_name(text)


def test_a_run_comes_back(tmp_path):
    (run,) = runs.read([a_run(tmp_path / "a", "org/model", 5)])
    lm_eval.write(run.result, run.items, tmp_path / "out")
    (back,) = runs.read([tmp_path / "out"])
    assert back.foreign
    for before, after in zip(run.result.tasks, back.result.tasks, strict=True):
        same = ("task", "metric", "value", "stderr", "items", "of", "shots", "higher_is_better", "main", "stop", "data")
        assert [getattr(before, name) for name in same] == [getattr(after, name) for name in same]
        ours = [one.score for one in run.scores(before).values()]
        assert [one.score for one in back.scores(after).values()] == ours
    found = compare.between(run, back, load_published())
    assert {c.difference.how for c in found} <= {"mcnemar", "clustered"}
    assert {c.difference.value for c in found} == {0.0}


def test_a_task_in_two_modes_is_two_tasks_there(tmp_path):
    folder = a_run(tmp_path / "a", "m", 5, TASKS[:1])
    score = read_run(folder).tasks[0]
    result = read_run(changed(folder, tasks=[score, score.model_copy(update={"mode": "generation", "main": False})]))
    data = json.loads(lm_eval.write(result, lambda _: (), tmp_path / "run.json")[0].read_text())
    assert [*data["results"]] == ["hellaswag", "hellaswag_generation"]
    assert data["configs"]["hellaswag_generation"]["output_type"] == "generate_until"


def test_a_json_file_is_beside_its_samples(tmp_path):
    folder = a_run(tmp_path / "a", "m", 5, TASKS[:1])
    (ours,) = runs.read([folder])
    results, samples = lm_eval.write(ours.result, ours.items, tmp_path / "out" / "mine.json")
    assert results.name.startswith("mine_2")
    assert results.parent == samples.parent == tmp_path / "out"
    (run,) = runs.read([results])
    assert len(list(run.items(run.result.tasks[0]))) == 120


def theirs(path: Path, **over) -> Path:
    data = {
        "results": {"t": {"alias": "t", "acc,none": 0.5, "acc_stderr,none": "N/A", " ": "x"}},
        "configs": {"t": {"output_type": "multiple_choice"}}, "n-samples": {"t": {"original": 9, "effective": 9}},
        "config": {"model_args": "pretrained=m,dtype=float", "limit": None}, **over,
    }  # fmt: skip
    path.write_text(json.dumps(data))
    return path


def test_an_error_that_is_not_there_is_none(tmp_path):
    score = lm_eval.read_results(theirs(tmp_path / "r.json")).tasks[0]
    assert (score.stderr, score.value, score.items) == (None, 0.5, 9)


def test_a_score_that_is_no_number_is_left_out_and_said(tmp_path):
    row = {"acc,none": math.nan, "acc_norm,none": 0.25}
    result = lm_eval.read_results(theirs(tmp_path / "r.json", results={"t": row}))
    assert [s.metric for s in result.tasks] == ["acc_norm"]
    assert result.notes == ["t: acc,none is nan, left out"]


@pytest.mark.parametrize(
    "over",
    [
        {"results": {"t": {"acc,none": 0.5}}, "date": "yesterday"},
        {"configs": [1]},
        {"results": {"t": 3}},
        {"n-samples": {"t": 3}},
    ],
)
def test_a_damaged_file_is_named(tmp_path, over):
    with pytest.raises(ValueError, match=r"r\.json: not as lm-eval"):
        lm_eval.read_results(theirs(tmp_path / "r.json", **over))


def test_a_damaged_sample_is_named(tmp_path):
    path = theirs(tmp_path / "results_2026-11-29T10-00-00.json")
    (tmp_path / "samples_t_2026-11-29T10-00-00.jsonl").write_text('{"doc_id": 1}\n')
    (run,) = runs.read([path])
    with pytest.raises(ValueError, match=r"samples_t_.*:1: not a sample"):
        list(run.items(run.result.tasks[0]))


def test_halves_of_surrogates_do_not_stop_a_report(tmp_path):
    path = theirs(tmp_path / "results_2026-11-29T10-00-00.json")
    row = {
        "doc_id": 0, "target": "\ud800", "arguments": {"gen_args_0": {"arg_0": "\udc00", "arg_1": {}}}, "resps": [["\ud800"]],
        "filter": "none", "metrics": ["acc"], "acc": 1.0,
    }  # fmt: skip
    (tmp_path / "samples_t_2026-11-29T10-00-00.jsonl").write_text(json.dumps(row) + "\n")
    (run,) = runs.read([path])
    (item,) = run.items(run.result.tasks[0])
    assert (item.target, item.prompt, item.answers[0].text) == ("?", "?", "?")
