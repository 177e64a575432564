"""Decontamination finds what quotes an item and nothing else, checked against a slow search."""

import numpy as np
import pytest

from gangpao.data.cleaning.decontaminate import Findings, Index, leaves
from gangpao.data.cleaning.ngrams import units
from tests.data import makers
from tests.data.cleaning.test_dedup import slow_runs

QUESTION = (
    "Which of the following statements about the weathering of limestone in humid climates is correct according to the "
    "passage given above, if any?"
)
CHINESE = "在农业生产中被当作极其重要的劳动对象发挥作用，最主要的不可替代的基本生产资料是什么？"


def index(*rows, **options):
    return Index.build([("set", rows)], **options)


def hit(found, text):
    return bool(found.hits(units(text)))


@pytest.mark.parametrize("item", [QUESTION, CHINESE])
def test_quotes_are_found_and_lookalikes_are_not(item):
    found = index({"question": item, "answer": "B"})
    around = "Some text before it. {} And some text behind it."
    assert hit(found, around.format(item))
    assert hit(found, around.format(item.upper().replace(" ", "\n* ").replace("，", "、")))
    part = len(item) * 17 // 20  # half of the runs are in less than this
    assert hit(found, around.format(item[:part]))
    assert not hit(found, around.format(item[: len(item) // 3]))
    assert not hit(found, around)
    half = len(item) // 2
    assert not hit(found, around.format(item[half:] + " " + item[:half]).replace(item[half : half + 6], "zzz"))


def test_a_name_longer_than_a_run_is_no_quote():
    name = "全国人民代表大会常务委员会"
    found = index({"question": f"下列各项中，属于{name}行使的职权而不属于国务院职权的是哪一项，为什么？"})
    assert hit(found, f"下列各项中，属于{name}行使的职权而不属于国务院职权的是哪一项，为什么？")
    assert not hit(found, f"{name}关于修改法律的决定已经通过，现予公布。{name}办公厅。")


def test_a_long_item_needs_a_long_quote_not_half_of_it():
    random = np.random.default_rng(0)
    passage = makers.words(random, 2000)
    found = index(" ".join(passage))
    before, after = makers.words(random, 100), makers.words(random, 100)
    assert hit(found, " ".join([*before, *passage[500:537], *after]))  # 37 words have 25 runs of 13
    assert not hit(found, " ".join([*before, *passage[500:536], *after]))


def test_the_wording_of_a_test_is_not_its_content():
    frame = "Read the following passage carefully and then choose the one answer that fits it best of all: {}"
    random = np.random.default_rng(1)
    rows = [frame.format(" ".join(makers.words(random, 20))) for _ in range(30)]
    assert not hit(index(*rows), frame.format("nothing"))
    assert hit(index(*rows), rows[3])
    assert hit(index(*rows[:5], max_items=10), frame.format("nothing") + rows[2])


def test_every_text_of_a_row_counts_and_short_ones_are_counted():
    row = {
        "question": "Which one?",
        "choices": ["red", QUESTION],
        "deep": {"er": [{"x": CHINESE}]},
        "n": 3,
        "none": None,
    }
    found = index(row, None, 7)
    assert sorted(leaves(row)) == sorted(["Which one?", "red", QUESTION, CHINESE])
    assert found.sizes() == {"set": {"items": 2, "too_short": 2}}
    assert hit(found, QUESTION)
    assert hit(found, CHINESE)
    nested = "deep"
    for _ in range(10_000):
        nested = [nested]
    assert list(leaves(nested)) == []


def test_against_a_slow_search():
    random = np.random.default_rng(2)
    items = [" ".join(makers.words(random, int(n))) for n in random.integers(10, 120, 80)]
    found = Index.build([("a", items[:40]), ("b", items[40:])])
    sets = [slow_runs(item, 13) for item in items]
    long = [i for i, s in enumerate(sets) if s]
    assert len(found.need) == len(long)
    for _ in range(300):
        at = int(random.integers(80))
        text = items[at].split()
        start = int(random.integers(len(text)))
        quote = text[start : start + int(random.integers(1, 60))]
        document = " ".join([*makers.words(random, 30), *quote, *makers.words(random, 30)])
        mine = slow_runs(document, 13)
        expected = [n for n, i in enumerate(long) if len(mine & sets[i]) >= max(1, min(np.ceil(len(sets[i]) / 2), 25))]
        assert found.hits(units(document)) == expected


def test_saved_is_loaded(tmp_path):
    found = Index.build([("a", [QUESTION]), ("b", [{"x": CHINESE}, "short"])])
    found.save(tmp_path)
    loaded = Index.load(tmp_path)
    for text in (QUESTION, CHINESE, "something else entirely"):
        assert loaded.hits(units(text)) == found.hits(units(text))
    assert loaded.sizes() == found.sizes()
    assert loaded.where(1) == "b row 0"
    findings = Findings()
    findings.add(loaded, loaded.hits(units(QUESTION + CHINESE)), QUESTION)
    assert findings.report(loaded)["documents"] == {"a": 1, "b": 1}
    assert findings.report(loaded)["examples"][0]["item"] == "a row 0"


def test_no_files_no_hits():
    assert not hit(Index.build([]), QUESTION)
    assert not hit(index("too short"), QUESTION)
