"""Log-likelihoods are those of lm-eval's own Hugging Face path on the same (dequantized) weights; other decisions are listed."""

import os
from pathlib import Path

import pytest

from gangpao.evaluate.models.gguf import EngineModel
from gangpao.evaluate.models.harness import Harness
from gangpao.evaluate.models.load import load_engine
from gangpao.evaluate.tasks.build import ask, harness_task
from gangpao.evaluate.tasks.data import DataSource
from gangpao.evaluate.tasks.table import TASKS
from tests.evaluate import samples

LIMIT = 2e-2  # of a continuation: natural logarithms


class Theirs:
    """lm-eval's model of a GGUF file's weights."""

    def __init__(self, path: Path):
        import torch
        from lm_eval.models.huggingface import HFLM
        from transformers import AutoModelForCausalLM, AutoTokenizer

        folder, name = str(path.parent), path.name
        model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
        self.model = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4, device="cpu", backend="causal")

    def score(self, pairs):
        from lm_eval.api.instance import Instance

        requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
        return self.model.loglikelihood(requests, disable_tqdm=True)


class Memory:
    """A journal that forgets nothing and writes nothing."""

    def __init__(self):
        self.get, self.put, self.take = {}.get, lambda *_: None, lambda *_: None


def compare(path, source, count, tmp_path):
    """Requests of `count` items, as lm-eval builds them for us, scored by both; returns (compared, decisions that differ)."""
    from gangpao.engine.memory import EngineOptions

    ours = EngineModel(*load_engine(str(path), EngineOptions(context=1024, threads=2), float32=True), float32=True)
    harness = Harness(ours, Memory(), lambda *_: None)
    theirs = Theirs(path)
    compared, differing = 0, []
    for name in ("hellaswag", "arc_easy"):
        asked = ask(TASKS[name], source, limit=count)
        task = harness_task(asked, None)
        task.set_config(key="num_fewshot", value=0)
        task.build_all_requests(limit=None)
        requests = task.instances
        mine = harness.loglikelihood(requests)
        other = theirs.score([request.args for request in requests])
        for a, b in zip(mine, other, strict=True):
            assert a[0] == pytest.approx(b[0], abs=LIMIT)
        by_item = {}
        for request, a, b in zip(requests, mine, other, strict=True):
            by_item.setdefault(request.doc_id, []).append((a[0], b[0]))
        compared += len(by_item)
        for item, pairs in by_item.items():
            one, two = (max(range(len(pairs)), key=lambda i, side=side: pairs[i][side]) for side in (0, 1))
            if one != two:
                differing.append((name, item, pairs))
    ours.close()
    return compared, differing


def test_a_few_items_have_the_scores_of_the_hugging_face_path(model_path, tmp_path):
    source = DataSource(samples.write(tmp_path / "data"))
    compared, differing = compare(model_path("smollm2-135m"), source, 3, tmp_path)
    assert (compared, differing) == (6, [])


@pytest.mark.slow
def test_500_items_have_the_scores_of_the_hugging_face_path(model_path, tmp_path):
    folder = Path(os.environ.get("GANGPAO_SHARED", Path(__file__).resolve().parents[3] / "shared")) / "data" / "eval"
    if not folder.is_dir():
        pytest.skip("data/eval is not there: set GANGPAO_SHARED to the folder that holds it")
    compared, differing = compare(model_path("smollm2-135m"), DataSource(folder), 250, tmp_path)
    assert compared == 500
    for name, item, pairs in differing:
        print(name, item, pairs)
    assert len(differing) <= 2
