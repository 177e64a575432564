"""Real models: perplexity is llama-perplexity's, and bits per byte are those of the raw text.

LLAMA_PERPLEXITY is what llama-perplexity (llama.cpp b11549, `-c 512`) said of smollm2-135m, sha256 b179c952..., on the text of
WikiText-2's test set as the shared folder has it: its beginning, and 90,000 characters from the line behind character 400,000. So
few windows differ by noise: 0.4 % after the first eight, 0.26 % after 16 (docs/log.md).
"""

import pytest

from gangpao.engine.memory import EngineOptions
from gangpao.evaluate.perplexity.run import run_perplexity
from gangpao.evaluate.perplexity.scorers import open_scorer
from gangpao.evaluate.perplexity.windows import Windowing
from tests.engine.test_perplexity import wikitext

LLAMA_PERPLEXITY = [(0, 16, 28.9101), (400_000, 8, 29.3374)]  # from which character on, windows, perplexity


@pytest.mark.slow
@pytest.mark.parametrize(("begin", "windows", "theirs"), LLAMA_PERPLEXITY)
def test_smollm2_on_wikitext_is_llama_perplexity_s(model_path, tmp_path, begin, windows, theirs, record_property):
    text = wikitext()
    if begin:
        begin = text.index("\n", begin) + 1
        text = text[begin : begin + 90_000]
    (tmp_path / "wiki.raw").write_text(text, encoding="utf-8")
    scorer = open_scorer(str(model_path("smollm2-135m")), EngineOptions(context=512))
    result = run_perplexity(scorer, [tmp_path / "wiki.raw"], windowing=Windowing(512), limit=windows)
    ours = result.tasks[0].value
    record_property(
        "perplexity", f"{windows} windows: {ours:.4f}, llama-perplexity {theirs:.4f} ({ours / theirs - 1:+.3%})"
    )
    assert result.tasks[0].of == (40 if begin else 589)
    assert ours == pytest.approx(theirs, rel=0.003)


def test_a_short_english_text_has_about_one_bit_a_byte(model_path, tmp_path):
    """The scale is right: a model that knows English needs between half a bit and two bits for a byte of it."""
    path = tmp_path / "text.txt"
    path.write_text("The capital of France is Paris, and the capital of Italy is Rome. " * 2, encoding="utf-8")
    result = run_perplexity(
        open_scorer(str(model_path("smollm2-135m")), EngineOptions(context=64)), [path], windowing=Windowing(64, 32)
    )
    assert 0.2 < result.tasks[1].value < 2.0
