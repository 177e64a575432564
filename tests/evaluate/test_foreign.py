"""lm-eval's own tasks: what does not fit is wrong and counted, and their items say what those of our tasks say."""

import json
import math

import pytest

from gangpao.evaluate import foreign
from gangpao.evaluate.models.protocol import Generated
from gangpao.evaluate.results import read_items
from tests.evaluate.test_run import Said, data, model_of, run, tiny  # noqa: F401

YAML = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {rows}
  cache_dir: {cache}
test_split: train
doc_to_text: "{{{{question}}}}"
{more}
"""
MULTIPLE = """
output_type: multiple_choice
doc_to_choice: ["yes", "no"]
doc_to_target: gold
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
WORD = """
output_type: loglikelihood
doc_to_target: " yes"
metric_list:
  - {metric: perplexity, aggregation: perplexity, higher_is_better: false}
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""
WRITTEN = """
output_type: generate_until
doc_to_target: "4"
generation_kwargs: {until: ["Q:", ""], max_gen_toks: 9}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
ROWS = [{"question": "Is it so?", "gold": 1}, {"question": "far " * 300, "gold": 0}]


@pytest.fixture
def theirs(tmp_path, monkeypatch):
    """Puts tasks in lm-eval's form where lm-eval's own would be looked for."""
    from lm_eval.tasks import TaskManager

    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for name, more in (("their_choice", MULTIPLE), ("their_word", WORD), ("their_written", WRITTEN)):
        text = YAML.format(name=name, rows=folder / "rows.jsonl", cache=tmp_path / "cache", more=more)
        (folder / f"{name}.yaml").write_text(text)
    monkeypatch.setattr(
        foreign, "manager_for", lambda name: TaskManager(include_path=str(folder), include_defaults=False)
    )


@pytest.mark.usefixtures("theirs")
def test_choices_that_do_not_fit_are_wrong_even_where_the_first_is_right(tiny, tmp_path):  # noqa: F811
    result = run(model_of(tiny, context=320), None, tmp_path / "out", ("their_choice",))
    task = result.tasks[0]
    first, second = read_items(tmp_path / "out", "their_choice")
    assert (task.items, task.of, task.left_out) == (2, 2, {"too_long": 1})
    assert task.value == first.scores["acc"] / 2
    assert (second.flags, second.scores) == (["too_long"], {"acc": 0.0})
    assert [answer.logprob for answer in second.answers] == [None, None]
    assert second.prompt == "far " * 300
    assert first.flags == []
    assert all(answer.logprob < 0 and answer.tokens >= 1 for answer in first.answers)
    assert model_of(tiny).engine.tokenizer.decode(first.ids) == "Is it so?"


@pytest.mark.usefixtures("theirs")
def test_a_perplexity_is_over_what_fits(tiny, tmp_path):  # noqa: F811
    result = run(model_of(tiny, context=320), None, tmp_path / "out", ("their_word",))
    by_name = {task.metric: task for task in result.tasks}
    assert by_name["perplexity"].items == 1
    first = next(read_items(tmp_path / "out", "their_word"))
    assert by_name["perplexity"].value == pytest.approx(math.exp(-first.answers[0].logprob))
    assert (by_name["acc"].items, by_name["acc"].left_out) == (2, {"too_long": 1})


@pytest.mark.usefixtures("theirs")
def test_written_answers_have_their_thoughts_tokens_and_ends(tiny, tmp_path):  # noqa: F811
    said = {
        "so?": Generated("4", "stop", 12, 3, thinking="2 and 2", thinking_tokens=8),
        "far": Generated("", "too_long"),
    }
    (tmp_path / "corpus.txt").write_text("Is it so?")
    result = run(Said(tiny, said), None, tmp_path / "out", ("their_written",), corpus=tmp_path / "corpus.txt")
    task = result.tasks[0]
    assert (task.value, task.left_out, task.stop) == (0.5, {"too_long": 1}, ["Q:"])
    assert (task.thinking.answers, task.thinking.mean_tokens, task.thinking.empty) == (1, 8.0, 0.0)
    first, second = read_items(tmp_path / "out", "their_written")
    assert (first.answers[0].tokens, first.answers[0].finish, first.ids) == (12, "stop", [7])
    assert first.extra == {"thinking": "2 and 2", "thinking_tokens": 8}
    assert (second.flags, second.scores) == (["too_long"], {"exact_match": 0.0})
    assert (task.contaminated, len(result.notes)) == (None, 1)
    assert result.notes[0].startswith("--corpus was not searched for items of their_written")


def test_a_task_that_nobody_has_is_refused_before_anything_is_asked(tiny, data, tmp_path):  # noqa: F811
    model = model_of(tiny)
    with pytest.raises(ValueError, match=r"no task 'hellaswagg'; near it: hellaswag"):
        run(model, data, tmp_path / "out", ("hellaswag", "hellaswagg"))
    assert model.usage.prompt == 0
