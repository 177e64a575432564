"""What a run keeps of its items is what a report needs to compare two of them."""

from gangpao.evaluate import scored
from gangpao.evaluate.report.runs import subject_of
from gangpao.evaluate.results import Item


def test_an_item_says_its_subject():
    item = Item(item="3", prompt="", answers=[], scores={}, extra={"thinking_tokens": 5})
    assert subject_of(scored._with_subject(item, {"subject": "law"})) == "law"
    assert scored._with_subject(item, {"subject": "law"}).extra["thinking_tokens"] == 5
    assert subject_of(scored._with_subject(item, {"subject": ""})) == ""
    assert subject_of(scored._with_subject(item, {})) == ""
