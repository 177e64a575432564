"""Numbers do not depend on company or order, and a checkpoint's are the ones that transformers computes."""

import random

import numpy as np
import pytest

from gangpao.engine.generate import Engine
from gangpao.engine.sample import logprobs_of
from gangpao.evaluate.perplexity.scorers import blocks, check_same_vocabulary, norms, open_scorer
from gangpao.evaluate.perplexity.windows import Window, Windowing, windows_of
from gangpao.formats.adapters import read_adapter, write_peft
from gangpao.model import weights
from tests.deploy.test_gguf import hf_tokenizer
from tests.engine.adapters import random_adapter
from tests.evaluate.perplexity.conftest import OPTIONS, RIVER
from tests.model.test_transformer import build


def random_windows(rng, count):
    """Windows of every length from 2 to 512."""
    made = []
    for _ in range(count):
        length = rng.choice([2, 3, 17, 64, 65, 255, 256, 257, 300, 512, rng.randint(2, 512)])
        ids = np.array([rng.randrange(256) for _ in range(length)], np.int64)
        made.append(Window(ids, rng.randint(1, length - 1), int(ids[0])))
    return made


def alone(scorer, window):
    model = scorer._engine.model
    logits = model.forward(window.ids, model.new_cache(512), all_logits=True)
    places = range(window.first, len(window.ids))
    return [logprobs_of(logits[at - 1], int(window.ids[at]), 0).logprob for at in places]


def test_a_window_has_the_same_bits_in_any_company_and_order(scorer):
    windows = random_windows(random.Random(0), 24)
    expected = [alone(scorer, window) for window in windows]
    assert [found.tolist() for found in scorer.log_probs(windows)] == expected
    assert [found.tolist() for found in scorer.log_probs(reversed(windows))] == expected[::-1]


def test_a_step_holds_many_small_windows(scorer):
    windows = [Window(np.array([i, i + 1, i + 2], np.int64), 1, i) for i in range(200)]
    assert [found.tolist() for found in scorer.log_probs(windows)] == [alone(scorer, window) for window in windows]


def test_an_adapter_counts_in_scores_and_in_rows(model_file, scorer, tmp_path):
    engine = Engine.load(model_file, context=512, num_threads=1)
    write_peft(tmp_path / "a", random_adapter(engine.model.config, 3))
    adapted = open_scorer(str(model_file), OPTIONS, adapters={"a": (tmp_path / "a", 0.5)})
    engine.model.add_adapter("a", read_adapter(tmp_path / "a"))
    for window in random_windows(random.Random(4), 4):
        cache = engine.model.new_pool(512, engine.kv_dtype).new(engine.mix({"a": 0.5}))
        logits = engine.model.forward(window.ids, cache, all_logits=True)
        places = range(window.first, len(window.ids))
        expected = [logprobs_of(logits[at - 1], int(window.ids[at]), 0).logprob for at in places]
        assert [found.tolist() for found in adapted.log_probs([window])] == [expected]
        assert by_rows(adapted, window) == expected
        assert alone(scorer, window) != expected


def by_rows(scorer, window):
    found = []
    for block, logits in zip(blocks(window, scorer.vocab_size), scorer.rows(window), strict=True):
        targets = window.ids[block.start : block.stop]
        found.append(logits[np.arange(len(targets)), targets] - norms(logits))
    return np.concatenate(found).tolist()


def test_rows_of_logits_give_the_same_bits(scorer, monkeypatch):
    for window in random_windows(random.Random(2), 6):
        expected = alone(scorer, window)
        assert by_rows(scorer, window) == expected
        monkeypatch.setattr("gangpao.evaluate.perplexity.scorers._ROW_BYTES", 1)
        assert max(map(len, blocks(window, scorer.vocab_size))) <= 16
        assert by_rows(scorer, window) == expected
        monkeypatch.undo()


def test_logits_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="not finite"):
        norms(np.array([[1.0, np.nan]], np.float32))


@pytest.fixture
def checkpoint(tmp_path):
    model = build("llama").float()
    folder = weights.save(tmp_path / "hf", model.config, weights.state(model))
    hf_tokenizer(folder)
    return folder


def test_a_checkpoint_gives_transformers_losses(checkpoint):
    """Hugging Face's own loop over its own model: the losses of each window are ours."""
    import torch
    from transformers import AutoModelForCausalLM

    scorer = open_scorer(str(checkpoint))
    windows = windows_of(RIVER, len(RIVER), scorer.tokenizer, Windowing(24, 9))
    theirs = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    assert len(windows) > 3
    for window, ours in zip(windows, scorer.log_probs(windows), strict=True):
        labels = torch.from_numpy(window.ids)[None].clone()
        labels[:, : window.first] = -100
        with torch.no_grad():
            loss = theirs(torch.from_numpy(window.ids)[None], labels=labels).loss
        assert -ours.mean() == pytest.approx(float(loss), abs=1e-5)
        assert by_rows(scorer, window) == ours.tolist()


def test_a_run_is_its_export(checkpoint, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text("{}")
    checkpoint.rename(run / "export")
    scorer = open_scorer(str(run))
    assert (scorer.facts.kind, scorer.facts.architecture, len(scorer.facts.sha256)) == ("checkpoint", "llama", 64)


def test_vocabularies_that_differ_are_refused_with_the_reason(scorer, other, checkpoint):
    check_same_vocabulary(scorer, other)
    with pytest.raises(ValueError, match=r"vocabularies of 259 and 320 tokens.*bits per byte"):
        check_same_vocabulary(scorer, open_scorer(str(checkpoint)))
    other.tokenizer.vocabulary.pieces[7] = "é"
    with pytest.raises(ValueError, match=r"1 of 259 ids mean different pieces, the first is 7, 'ć' and 'é'"):
        check_same_vocabulary(scorer, other)


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"without config.json"):
        open_scorer(str(tmp_path))
    with pytest.raises(ValueError, match="nobody-knows-this"):
        open_scorer("nobody-knows-this")
