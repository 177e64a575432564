"""LLaMA-Factory's dataset_info.json means here what it means there."""

import json

import pytest

from gangpao.data.sources.llama_factory import entry
from gangpao.text.templates.chat import ChatTemplate
from gangpao.tune.data.config import TuneData, TuneFile
from gangpao.tune.data.prepare import prepare
from gangpao.tune.data.rows import open_file
from tests.data import makers

ALPACA = {"instruction": "Add.", "input": "1, 2", "output": "3"}
SHAREGPT = {"conversations": [{"from": "human", "value": "Add."}, {"from": "gpt", "value": "3"}], "system": "Brief."}
TURNS = [{"role": "user", "content": "Add."}, {"role": "assistant", "content": "3"}]
OPENAI_TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "system_tag": "system",
}


def opened(tmp_path, said, rows):
    makers.jsonl(tmp_path / "rows.jsonl", rows)
    (tmp_path / "dataset_info.json").write_text(json.dumps({"mine": {"file_name": "rows.jsonl", **said}}))
    return open_file(TuneFile(path="dataset_info.json#mine"), tmp_path)


def found(tmp_path, said, row):
    one = opened(tmp_path, said, [row])
    ((where, example),) = one.examples()
    assert where == f"{tmp_path}/rows.jsonl line 1"
    return one.kind, example


def spoken(document):
    return [(turn["role"], turn["content"]) for turn in document.messages]


@pytest.mark.parametrize(
    ("said", "row", "expected"),
    [
        ({}, ALPACA, [("user", "Add.\n1, 2"), ("assistant", "3")]),
        (
            {"columns": {"prompt": "q", "response": "a"}}, {"q": "Add.", "a": "3", "input": "not read"},
            [("user", "Add."), ("assistant", "3")],
        ),
        (
            {"columns": {"prompt": "instruction", "query": "input", "response": "output", "system": "s", "history": "h"}},
            {**ALPACA, "s": "Brief.", "h": [["a", "b"]]},
            [("system", "Brief."), ("user", "a"), ("assistant", "b"), ("user", "Add.\n1, 2"), ("assistant", "3")],
        ),
        ({"formatting": "sharegpt"}, SHAREGPT, [("user", "Add."), ("assistant", "3")]),  # system: no column without its name
        (
            {"formatting": "sharegpt", "columns": {"messages": "conversations", "system": "system"}}, SHAREGPT,
            [("system", "Brief."), ("user", "Add."), ("assistant", "3")],
        ),
        (
            {"formatting": "sharegpt", "columns": {"messages": "talk"}, "tags": OPENAI_TAGS}, {"talk": TURNS},
            [("user", "Add."), ("assistant", "3")],
        ),
    ],
)  # fmt: skip
def test_columns_and_tags(tmp_path, said, row, expected):
    kind, document = found(tmp_path, said, row)
    assert kind == "answers"
    assert spoken(document) == expected


def test_ranking_and_labels(tmp_path):
    kind, pair = found(
        tmp_path, {"ranking": True, "columns": {"prompt": "q", "chosen": "good", "rejected": "bad"}},
        {"q": "Why?", "good": "a", "bad": "b"},
    )  # fmt: skip
    assert (kind, spoken(pair.chosen), spoken(pair.rejected)[1]) == (
        "pairs",
        [("user", "Why?"), ("assistant", "a")],
        ("assistant", "b"),
    )
    said = {
        "ranking": True,
        "formatting": "sharegpt",
        "columns": {"messages": "c", "chosen": "chosen", "rejected": "rejected"},
    }
    sides = {"chosen": {"from": "gpt", "value": "a"}, "rejected": {"from": "gpt", "value": "b"}}
    kind, pair = found(tmp_path, said, {"c": [{"from": "human", "value": "Why?"}], **sides})
    assert (kind, pair.prompt, spoken(pair.rejected)[1]) == ("pairs", 1, ("assistant", "b"))
    said = {"columns": {"prompt": "instruction", "response": "output", "kto_tag": "tag"}}
    kind, labelled = found(tmp_path, said, {**ALPACA, "tag": False})
    assert (kind, labelled.desirable, spoken(labelled.document)[0]) == ("labelled", False, ("user", "Add."))


def test_a_prompt_without_a_response_is_a_text(tmp_path):
    kind, document = found(tmp_path, {"columns": {"prompt": "content"}}, {"content": "words"})
    assert (kind, document.text) == ("texts", "words")


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"hf_hub_url": "a/b"}, "hf_hub_url: data sets elsewhere are not fetched"),
        ({"split": "validation"}, "split: parts of a data set are not read"),
        ({"num_samples": 5}, "num_samples: parts"),
        ({"formatting": "odd"}, "formatting is 'odd'"),
        ({"columns": {"videos": "x", "prompt": "a"}}, "videos: only text and pictures"),
        ({"formatting": "sharegpt", "columns": {"system": "s"}}, "columns does not name messages, and naming one"),
        ({"formatting": "sharegpt", "tags": {"role_tag": "role"}}, "tags does not name content_tag, and naming one"),
        ({"ranking": True}, "columns does not name chosen"),
        ({"columns": {"response": "a"}}, "columns does not name prompt"),
        ({"file_name": "other.json"}, "there is no file"),
    ],
)
def test_what_means_nothing_is_refused(tmp_path, said, why):
    with pytest.raises(ValueError, match=f"mine: .*{why}"):
        opened(tmp_path, said, [ALPACA])


def test_a_row_that_does_not_fit_the_entry_says_why(tmp_path):
    _, fault = found(tmp_path, {"formatting": "sharegpt"}, {"conversations": TURNS})
    assert "turn 1 has the role None under 'from', and the tags name human, gpt" in fault.detail
    _, fault = found(tmp_path, {"columns": {"prompt": "q", "response": "a"}}, {"q": "x"})
    assert "no text under 'a'" in fault.detail
    opened(tmp_path, {}, [ALPACA])
    with pytest.raises(ValueError, match="no data set 'other' in it; it has mine"):
        entry(tmp_path / "dataset_info.json", "other")


def test_a_run_names_it_in_its_files(tmp_path):
    from tests.tune.data.test_prepare import BPE

    opened(tmp_path, {"formatting": "sharegpt"}, [SHAREGPT])
    config = TuneData(files="dataset_info.json#mine", root=str(tmp_path), heldout=0)
    prepared = prepare(config, BPE, ChatTemplate.named("chatml"), 64)
    assert prepared.report.files[0].note == "rows hold answers, as dataset_info.json says of mine"
    assert prepared.report.label_tokens == 2
