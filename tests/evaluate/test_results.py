"""A result comes back as it was written, and a damaged one says where."""

import json

import pytest

from gangpao.evaluate import results
from gangpao.evaluate.results import Answer, Item, ModelFacts, RunResult, TaskResult


def run(**over):
    task = TaskResult(task="arc_easy", metric="acc", value=0.5, stderr=0.01, items=10, of=2376, mode="loglikelihood")
    model = ModelFacts(name="smollm2-135m", kind="gguf")
    return RunResult(created="2026-11-29T00:00:00Z", gangpao="0.1.0", model=model, tasks=[task], **over)


def test_a_run_comes_back(tmp_path):
    results.write_run(tmp_path, run(suite="quick", limit=10))
    assert results.read_run(tmp_path) == results.read_run(tmp_path / "results.json") == run(suite="quick", limit=10)


def test_items_come_back(tmp_path):
    items = [
        Item(item=str(i), prompt="问\n", ids=[1, 2], answers=[Answer(text="a", logprob=-1.5)], scores={"acc": 1.0})
        for i in range(3)
    ]
    results.write_items(tmp_path, "t", items)
    assert list(results.read_items(tmp_path, "t")) == items


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda d: d.update(schema_version=99), "schema 99"),
        (lambda d: d["tasks"][0].update(value="x"), r"tasks\.0\.value"),
        (lambda d: d.update(more=1), "more"),
    ],
)
def test_a_damaged_result_names_the_place(tmp_path, change, match):
    data = run().model_dump(mode="json")
    change(data)
    (tmp_path / "results.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=match):
        results.read_run(tmp_path)


def test_nothing_and_no_json(tmp_path):
    with pytest.raises(ValueError, match="gangpao eval"):
        results.read_run(tmp_path)
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        results.read_run(tmp_path)
