"""The rows of the quick start are whole: small, in two languages, all of them used."""

from pathlib import Path

from gangpao.text.templates.chat import ChatTemplate
from gangpao.tune.data.config import TuneData
from gangpao.tune.data.prepare import prepare
from tests.tune.data.test_prepare import BPE

CONFIGS = Path(__file__).parents[3] / "configs"


def test_every_row_of_the_example_is_used():
    assert (CONFIGS / "tune-shell.jsonl").stat().st_size < 30_000
    config = TuneData(files="tune-shell.jsonl", heldout=0.1, strict=True).below(CONFIGS)
    prepared = prepare(config, BPE, ChatTemplate.named("chatml"), 512)
    (file,) = prepared.report.files
    assert (file.read, file.train, file.heldout) == (52, 47, 5)
    assert prepared.report.named == []
