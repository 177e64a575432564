"""The block for datatrove keeps what `build` keeps; with its own local executor where it is installed."""

import dataclasses
import json
import sys

import pytest

from gangpao.data.cleaning.clean import normalise, reject
from gangpao.data.cleaning.cluster import clean_locally, cleaning_step
from gangpao.data.cleaning.decontaminate import Index
from gangpao.data.config import Clean
from tests.data import makers
from tests.data.cleaning.test_clean import CHINESE
from tests.data.test_build import ITEM, story


@dataclasses.dataclass
class Row:
    text: str


@pytest.fixture
def inputs(tmp_path):
    texts = [*map(story, range(30)), "tiny", CHINESE, f"{story(40)} {ITEM}", story(41) + "  \r\n"]
    (tmp_path / "index").mkdir()
    Index.build([("eval", [ITEM])]).save(tmp_path / "index")
    expected = [normalise(t) for t in texts if ITEM not in t and reject(normalise(t), Clean(), "en") is None]
    assert len(expected) == 31
    return texts, expected


def test_the_step_keeps_what_build_keeps(inputs, tmp_path):
    texts, expected = inputs
    step = cleaning_step(Clean(), "en", tmp_path / "index")
    assert [row.text for row in step([Row(t) for t in texts], 0, 1)] == expected
    assert list(step(None)) == []


@pytest.mark.filterwarnings("ignore")
def test_with_the_local_executor(inputs, tmp_path):
    pytest.importorskip("datatrove")
    texts, expected = inputs
    half = len(texts) // 2
    for name, part in (("a", texts[:half]), ("b", texts[half:])):
        makers.jsonl(tmp_path / "in" / f"{name}.jsonl", [{"text": t, "id": f"{name}{i}"} for i, t in enumerate(part)])
    clean_locally(tmp_path / "in", tmp_path / "out", Clean(), language="en", index=tmp_path / "index", tasks=2)
    found = [json.loads(line)["text"] for path in (tmp_path / "out").glob("*.jsonl") for line in path.open()]
    assert sorted(found) == sorted(expected)


def test_without_datatrove(tmp_path, monkeypatch):
    for name in ("datatrove", "datatrove.executor"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match="pip install datatrove"):
        clean_locally(tmp_path, tmp_path / "out", Clean())
