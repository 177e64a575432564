"""What will be learned is shown: on a terminal, in a pipe, on a page, in two languages."""

import json
from html.parser import HTMLParser

import pytest

from gangpao.tune.data.show import data_page, facts, show
from tests.tune.data.test_prepare import BPE, PAIR, ready, rows, talk

BAD = [talk("a", ""), talk("<script>", "b" * 200), talk("\x1b[31m<b>Red?", "No </pre> & none.")]


class Reader(HTMLParser):
    """Texts by the tags around them, and whether every tag is closed."""

    VOID = ("meta", "br", "rect")

    def __init__(self):
        super().__init__()
        self.open, self.texts, self.links = [], {}, []

    def handle_starttag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in self.VOID:
            return
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.setdefault(self.open[-1] if self.open else "", []).append(data)


def test_a_pipe_gets_marks_and_a_terminal_colours(tmp_path):
    prepared = ready(tmp_path, [*rows(10), *BAD], heldout=2)
    text = show(prepared, BPE, rows=20)
    assert "»Answer 1 xxxxxx<|im_end|>«" in text
    assert "\x1b" not in text
    assert "turn 2 is an empty answer" in text
    assert "2 of 13 rows are not used" in text
    assert "»No </pre> & none.<|im_end|>«" in text or prepared.report.files[0].heldout == 2
    colored = show(prepared, BPE, rows=20, color=True)
    assert "\x1b[32mAnswer 1 xxxxxx<|im_end|>\x1b[0m" in colored
    assert "\x1b[31m" not in colored
    assert sum(line.count("█") > 0 for line in text.splitlines()) >= 1
    chinese = show(prepared, BPE, language="zh")
    assert "训练" in chinese
    assert "rows.jsonl：13 行中有 2 行没有使用（1 问题或回答为空，1 太长）" in chinese


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_page_is_whole_and_holds_what_there_is(tmp_path, language):
    prepared = ready(tmp_path, [*rows(10), *BAD], heldout=0)
    page = tmp_path / "data.html"
    show(prepared, BPE, rows=3, language=language, page=page)
    assert page.read_text("utf-8") == data_page(prepared, BPE, rows=30, language=language)
    reader = Reader()
    reader.feed(page.read_text("utf-8"))
    assert reader.open == []
    assert reader.links == []  # needs no network
    assert any("No </pre> & none.<|im_end|>" in text for text in reader.texts["b"])
    assert f"{tmp_path}/rows.jsonl line 11" in reader.texts["td"]
    assert ("问题或回答为空" if language == "zh" else "empty question or answer") in reader.texts["td"]
    assert "script" not in reader.texts
    whole = data_page(ready(tmp_path, rows(5), heldout=0), BPE, language=language)
    assert ("每一行都完整使用" if language == "zh" else "every row is used whole") in whole


def test_pairs_show_both_answers(tmp_path):
    prepared = ready(tmp_path, [PAIR], heldout=0)
    text = show(prepared, BPE)
    assert "[chosen]" in text
    assert "»bad answer<|im_end|>«" in text
    assert "1 comparisons an epoch" in text


def test_facts_are_json(tmp_path):
    prepared = ready(tmp_path, [*rows(10), *BAD], heldout=0)
    told = json.loads(json.dumps(facts(prepared, BPE, 2)))
    assert told["files"][0]["dropped"] == {"empty": 1, "long": 1}
    assert told["named"][0]["reason"] == "empty"
    assert len(told["rows"]) == 2
    assert told["rows"][0]["sequences"][0][1]["learned"]
    assert told["lengths"]["longest"] <= 128
