"""Items are found in a corpus of their own rows, and those that cannot be looked for are never called clean."""

import json

import pytest

from gangpao.evaluate.contamination import contaminated
from gangpao.evaluate.tasks import docs
from gangpao.progress import Silent
from tests.evaluate.test_run import data, model_of, run, tiny  # noqa: F401

WINOGRANDE = [
    {"sentence": "Ian ate the soup that Dennis had made because _ was very hungry after the long walk.", "option1": "Ian",
     "option2": "Dennis", "answer": "1"},
    {"context_options": ["The long blue boat hit the old pier so the boat", "The long blue boat hit the old pier so the old pier"],
     "continuation": "broke in two.", "gold": 0},
    {"sentence": "It _ ran.", "option1": "dog", "option2": "cat", "answer": "2"},
]  # fmt: skip
PIQA = [
    {"goal": "how do you shake a bottle?", "sol1": "move it up and down quickly", "sol2": "leave it on the shelf", "label": 0},
    {"goal": "open a jar", "sol1": "twist it", "sol2": "look at it", "label": 0},
    {"goal": "dry wet shoes", "label": 1, "sol1": "eat them",
     "sol2": "fill them with old newspaper and leave them in a warm place for one whole night"},
]  # fmt: skip


def found(read, rows, corpus):
    searched = contaminated({"task": [read(row) for row in rows]}, corpus, Silent())["task"]
    return searched.found, searched.too_short


@pytest.mark.parametrize(("read", "rows", "short"), [(docs.winogrande, WINOGRANDE, {2}), (docs.piqa, PIQA, {1})])
def test_every_item_is_found_in_its_own_rows_or_counted_as_too_short(tmp_path, read, rows, short):
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert found(read, rows, path) == (set(range(len(rows))) - short, short)


def test_part_of_a_short_item_is_not_the_item(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text(
        "How do you shake a bottle? Leave it on the shelf. The long blue boat hit the old pier so the rope was lost."
    )
    assert found(docs.piqa, PIQA, path) == (set(), {1})
    assert found(docs.winogrande, WINOGRANDE, path) == (set(), {2})
    path.write_text(
        "Fill them with old newspaper and leave them in a warm place for one whole night, as with all things wet."
    )
    assert found(docs.piqa, PIQA, path) == (set(), {1})


def test_in_running_text_too(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text(
        "Ian ate the soup that Dennis had made, because Ian was very hungry after the long walk. HOW DO YOU SHAKE A BOTTLE? - move "
        "it up and down, quickly"
    )
    assert found(docs.winogrande, WINOGRANDE, path) == ({0}, {2})
    assert found(docs.piqa, PIQA, path) == ({0}, {1})


def test_a_corpus_without_text_is_refused(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text("")
    with pytest.raises(ValueError, match=r"corpus.jsonl: no text in it \(1 files were read\)"):
        found(docs.piqa, PIQA, path)


def test_items_that_are_too_short_are_told_and_not_clean(tiny, tmp_path):  # noqa: F811
    (tmp_path / "data").mkdir()
    text = "".join(json.dumps(row) + "\n" for row in PIQA)
    (tmp_path / "data" / "piqa.jsonl").write_text(text)
    (tmp_path / "corpus.jsonl").write_text(text.splitlines()[0] + "\n")
    result = run(model_of(tiny), str(tmp_path / "data"), tmp_path / "out", ("piqa",), corpus=tmp_path / "corpus.jsonl")
    from gangpao.evaluate.results import read_items

    last = list(read_items(tmp_path / "out", "piqa"))[2]
    for task in result.tasks:
        assert (task.contaminated, task.not_searched) == (1, 1)
        assert task.clean_value == last.scores[task.metric]
