"""Runs are compared item by item where they can be, and never where a score is not made of its items."""

import math

import numpy as np
import pytest

from gangpao.evaluate.report import compare, runs
from gangpao.evaluate.report.published import load_published
from gangpao.evaluate.results import Item, read_run, write_items
from tests.evaluate.report.makers import TASKS, a_run, changed, items_of, score_of


@pytest.fixture
def published(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "nobody"))
    return load_published()


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("runs")
    return runs.read([a_run(tmp_path / "a", "small", 5), a_run(tmp_path / "b", "large", 6)])


def test_two_runs_item_by_item(two, published):
    found = compare.between(*two, published)
    assert [c.first.task for c in found] == [row[0] for row in TASKS]
    for c in found:
        ours, theirs = (list(run.items(c.first)) for run in two)
        d = np.array([b.scores[c.first.metric] - a.scores[c.first.metric] for a, b in zip(ours, theirs, strict=True)])
        assert c.difference.value == pytest.approx(d.mean()) == pytest.approx(c.second.value - c.first.value)
        assert c.difference.items == len(d)
        if c.difference.how == "mcnemar":
            assert c.difference.error == pytest.approx(d.std(ddof=1) / math.sqrt(len(d)))
    assert {c.first.task: c.difference.how for c in found if c.difference.how != "mcnemar"} == {
        "mmlu": "clustered", "cmmlu": "clustered",
    }  # fmt: skip
    assert found[-1].difference.word == "better"
    assert all(c.difference.holm >= c.difference.p for c in found)


def test_the_other_way_round_is_the_opposite(two, published):
    there, back = compare.between(*two, published), compare.between(*reversed(two), published)
    opposite = {"better": "worse", "worse": "better", "cannot tell": "cannot tell"}
    assert [opposite[c.difference.word] for c in there] == [c.difference.word for c in back]
    assert [-c.difference.value for c in there] == pytest.approx([c.difference.value for c in back])


def test_common_items_only(tmp_path, published):
    a, b = a_run(tmp_path / "a", "m", 5, TASKS[:1], count=100), a_run(tmp_path / "b", "m", 6, TASKS[:1], count=60)
    (one,) = compare.between(*runs.read([a, b]), published)
    assert (one.difference.items, one.difference.how) == (60, "mcnemar")
    assert "items" in one.differ


def test_items_with_other_answers_are_other_items(tmp_path, published):
    a, b = a_run(tmp_path / "a", "m", 5, TASKS[:1]), a_run(tmp_path / "b", "n", 6, TASKS[:1])
    other = [i.model_copy(update={"target": "another"}) for i in items_of("hellaswag", 0.47, 120, 6)]
    write_items(b, "hellaswag", other)
    (one,) = compare.between(*runs.read([a, b]), published)
    assert one.difference.how == "unpaired"


def test_a_score_that_is_not_the_mean_of_its_items_is_not_paired(tmp_path, published):
    a, b = a_run(tmp_path / "a", "m", 5, TASKS[:1]), a_run(tmp_path / "b", "n", 6, TASKS[:1])
    score = read_run(b).tasks[0]
    changed(b, tasks=[score.model_copy(update={"value": score.value + 0.01})])
    (one,) = compare.between(*runs.read([a, b]), published)
    assert one.difference.how == "unpaired"
    assert one.difference.error == pytest.approx(math.hypot(read_run(a).tasks[0].stderr, score.stderr))


def test_without_items_and_errors_nothing_can_be_told(tmp_path, published):
    folders = [a_run(tmp_path / n, n, c, TASKS[:1]) for n, c in (("a", 5), ("b", 6))]
    for folder in folders:
        (folder / "items-hellaswag.jsonl").unlink()
        score = read_run(folder).tasks[0]
        over = {
            "metric": "perplexity",
            "mode": "perplexity",
            "value": 20 * score.value,
            "stderr": None,
            "higher_is_better": False,
        }
        changed(folder, tasks=[score.model_copy(update=over)])
    (one,) = compare.between(*runs.read(folders), published)
    assert (one.difference.error, one.difference.word) == (None, "cannot tell")


def test_conditions_that_differ_are_named(tmp_path, published):
    a, b = a_run(tmp_path / "a", "m", 5, TASKS[:1]), a_run(tmp_path / "b", "n", 6, TASKS[:1])
    changed(b, tasks=[read_run(b).tasks[0].model_copy(update={"shots": 5, "stop": ["x"]})])
    (one,) = compare.between(*runs.read([a, b]), published)
    assert one.differ == ("shots", "stop")


def test_against_published(two, published):
    found = {a.task: a for a in compare.against(two[0], "minicpm-2b", published)}
    hellaswag = found["hellaswag"]
    assert set(hellaswag.differ) == {"limit", "mode"}
    assert hellaswag.difference.value == pytest.approx(hellaswag.score.value - 0.6825)
    both = math.hypot(hellaswag.score.stderr, hellaswag.cell.stderr)
    assert (hellaswag.difference.how, hellaswag.difference.error) == ("unpaired", pytest.approx(both))
    assert hellaswag.difference.word == "worse"
    smollm = {a.task: a.differ for a in compare.against(two[0], "smollm2-135m", published)}
    assert smollm == dict.fromkeys(("hellaswag", "arc_challenge", "arc_easy", "piqa"), ("limit",))


def test_a_published_score_stands_beside_the_same_metric(tmp_path, published):
    folder = a_run(tmp_path / "a", "m", 5, TASKS[:1])
    main = read_run(folder).tasks[0]
    plain = main.model_copy(update={"metric": "acc", "value": 0.33, "main": False})
    changed(folder, tasks=[main.model_copy(update={"metric": "acc_norm"}), plain])
    (run,) = runs.read([folder])
    (one,) = compare.against(run, "mistral-7b", published)
    assert (one.score.metric, one.differ) == ("acc_norm", ("limit",))
    assert compare.closest([plain, main], published.cell("smollm2-135m", "arc_easy"), published) is None


def test_both_modes_are_shown_and_other_metrics_are_not(tmp_path):
    items = items_of("arc_easy", 0.5, 20, 5)
    row = TASKS[1]
    scores = [
        score_of(row, items),
        score_of(row, items, metric="acc_norm", main=False),
        score_of(row, items, mode="generation", metric="exact_match", main=False),
        score_of(row, items, mode="speed"),
    ]
    (run,) = runs.read([changed(a_run(tmp_path / "a", "m", 5, TASKS[:1]), tasks=scores)])
    assert [(s.mode, s.metric) for s in compare.shown(run)] == [("loglikelihood", "acc"), ("generation", "exact_match")]


def test_items_of_a_second_mode_have_a_file_of_their_own(tmp_path, published):
    folders = []
    for name, column in (("a", 5), ("b", 6)):
        folder = a_run(tmp_path / name, name, column, TASKS[1:2])
        written = items_of("arc_easy", (0.3, 0.5)[column - 5], 80, column)
        write_items(folder, "arc_easy_written", written)
        more = score_of(TASKS[1], written, mode="generation", items_in="arc_easy_written")
        folders.append(changed(folder, tasks=[*read_run(folder).tasks, more]))
    both = compare.between(*runs.read(folders), published)
    assert [(c.first.mode, c.difference.how, c.difference.items) for c in both] == [
        ("loglikelihood", "mcnemar", 120), ("generation", "mcnemar", 80),
    ]  # fmt: skip


def test_errors_over_subjects(two):
    mmlu = next(s for s in two[0].result.tasks if s.task == "mmlu")
    error, count = compare.clustered(two[0], mmlu)
    assert count == 24
    assert error > 0
    assert compare.clustered(two[0], two[0].result.tasks[0]) is None


def test_labels_tell_runs_apart(tmp_path):
    folders = [
        a_run(tmp_path / "one", "m", 5, TASKS[:1]),
        a_run(tmp_path / "two", "m", 5, TASKS[:1]),
        a_run(tmp_path / "three", "n", 5, TASKS[:1]),
        a_run(tmp_path / "four", "m", 5, TASKS[:1], suite="full"),
    ]
    changed(folders[1], model=read_run(folders[1]).model.model_copy(update={"quantization": "Q8_0"}))
    labels = [run.label for run in runs.read(folders)]
    assert len(set(labels)) == 4
    assert labels[1:3] == ["m Q8_0", "n"]
    assert labels[0] == "m Q4_1 quick"
    same = [run.label for run in runs.read([folders[0], folders[0]])]
    assert len(set(same)) == 2


def test_a_path_that_is_no_run(tmp_path):
    with pytest.raises(ValueError, match=r"no results\.json there"):
        runs.read([tmp_path])
    with pytest.raises(ValueError, match="nothing"):
        runs.read([tmp_path / "nothing"])


def test_items_that_are_damaged_are_named(tmp_path, published):
    a, b = a_run(tmp_path / "a", "m", 5, TASKS[:1]), a_run(tmp_path / "b", "n", 6, TASKS[:1])
    with (b / "items-hellaswag.jsonl").open("a") as file:
        file.write("{\n")
    with pytest.raises(ValueError, match=r"items-hellaswag\.jsonl:121"):
        compare.between(*runs.read([a, b]), published)


def test_an_error_from_items_where_the_run_says_none(tmp_path):
    folder = a_run(tmp_path / "a", "m", 5, TASKS[:1])
    score = read_run(folder).tasks[0]
    items = [Item(item=str(i), prompt="", answers=[], scores={"score": float(i)}) for i in (3, 5, 10)]
    write_items(folder, "mt_bench", items)
    marks = score.model_copy(
        update={
            "task": "mt_bench",
            "metric": "score",
            "mode": "judge",
            "scale": 10.0,
            "value": 6.0,
            "stderr": None,
            "items": 3,
        }
    )
    (run,) = runs.read([changed(folder, tasks=[marks])])
    assert compare.stderr_of(run, run.result.tasks[0]) == pytest.approx(np.std([3, 5, 10], ddof=1) / math.sqrt(3))
