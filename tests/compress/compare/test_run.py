"""Comparisons of tiny models from end to end."""

import json

import numpy as np
import pytest

from gangpao import cli
from gangpao.commands import bench
from gangpao.compress.compare import page, run
from gangpao.compress.compare.prompts import read_prompts
from gangpao.compress.compare.run import Settings, as_json
from gangpao.engine.memory import EngineOptions
from gangpao.evaluate.journal import Journal
from gangpao.evaluate.models.gguf import EngineModel
from gangpao.evaluate.perplexity.run import run_perplexity
from gangpao.evaluate.perplexity.scorers import open_scorer
from gangpao.evaluate.perplexity.windows import Windowing
from gangpao.evaluate.report.page.document import as_text
from gangpao.formats import gguf_write
from gangpao.formats.blocks import BY_NAME, quantize
from gangpao.formats.gguf import GGUF, TensorInfo
from tests.engine import tiny

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
OPTIONS = EngineOptions(context=512, threads=1)
SETTINGS = Settings(max_tokens=12, limit=2, speed=False)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A model, and the same in Q4_0."""
    folder = tmp_path_factory.mktemp("models")
    whole = tiny.write_tiny(folder / "whole.gguf", template=TEMPLATE)
    return whole, rewritten(whole, folder / "small.gguf", "Q4_0")


def rewritten(source, target, kind):
    with GGUF.open(source) as gguf, target.open("wb") as file:
        raw = source.read_bytes()[24 : gguf.metadata_end]
        infos = []
        for info in gguf.tensors.values():
            new = kind if len(info.shape) > 1 else info.type
            size = int(np.prod(info.shape[:-1], dtype=int)) * BY_NAME[new].row_bytes(info.shape[-1])
            infos.append(TensorInfo(info.name, info.shape, new, 0, size))
        file.write(gguf_write.header(infos, raw, len(gguf.metadata)))
        for info in infos:
            values = gguf.array(info.name).reshape(-1, info.shape[-1])
            file.write(quantize(values, info.type).tobytes() + bytes(gguf_write.padding(info.nbytes)))
    return target


@pytest.fixture(scope="module")
def compared(models, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    return run.run(list(map(str, models)), SETTINGS, OPTIONS, measure_speed=None, out=out), out


def test_the_figures_are_those_of_an_evaluation(models, compared) -> None:
    found, out = compared
    whole, small = found.models
    assert [q.part for q in small.quality] == ["en", "zh", "code", "all"]
    scorers = [open_scorer(str(model), OPTIONS) for model in reversed(models)]
    wanted = run_perplexity(
        scorers[0], [out / "texts" / "zh.jsonl"], windowing=Windowing(512, 256), against=scorers[1], limit=2
    )
    scores = {task.metric: task for task in wanted.tasks}
    zh = small.quality[1]
    assert (zh.divergence.value, zh.divergence.error) == (scores["kl_divergence"].value, scores["kl_divergence"].stderr)
    assert zh.divergence_99 == scores["kl_divergence_p99"].value
    assert zh.perplexity.value == scores["perplexity"].value
    assert zh.growth.value == pytest.approx(zh.perplexity.value / whole.quality[1].perplexity.value)
    assert whole.quality[1].divergence is None
    everything = small.quality[-1]
    assert everything.tokens == sum(q.tokens for q in small.quality[:-1])
    assert min(q.divergence.value for q in small.quality) < everything.divergence.value
    assert small.bits < 6 < 30 < whole.bits


def test_a_model_beside_itself_lost_nothing(models) -> None:
    found = run.run([str(models[0])] * 2, SETTINGS, OPTIONS, measure_speed=None)
    whole, again = found.models
    for q in again.quality:
        assert q.divergence.value == pytest.approx(0, abs=1e-6)
        assert (q.same_top.value, q.growth.value) == (1, 1)
    assert [s.text for s in whole.said] == [s.text for s in again.said]
    encode = open_scorer(str(models[0]), OPTIONS).tokenizer.encode
    assert [s.same for s in again.said] == [len(encode(s.text)) if s.how == "greedy" else None for s in again.said]
    assert "No model ends fewer" in as_text(page.tables(found, "en"))


def test_another_vocabulary_has_bits_a_byte_only(models, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(tiny, "SPECIAL", ["<end>", "<|im_start|>", "<|im_end|>"])
    other = tiny.write_tiny(tmp_path / "other.gguf", template=TEMPLATE)
    settings = Settings(answers=False, speed=False, limit=1)
    found = run.run([str(models[0]), str(other)], settings, OPTIONS, measure_speed=None)
    quality = found.models[1].quality[-1]
    assert quality.divergence is quality.growth is None
    assert quality.bits_per_byte.value > 0
    assert "different vocabularies" in found.models[1].no_divergence
    assert "bits a byte are comparable" in as_text(page.tables(found, "en"))


def test_a_killed_comparison_goes_on(models, tmp_path, monkeypatch) -> None:
    names = list(map(str, models))
    put, count = Journal.put, 0

    class Killed(Exception):
        pass

    def dying(self, key, answer):
        nonlocal count
        count += 1
        if count > 6 + 4 + 6 + 2:  # texts and answers of the first, texts of the second, two of its answers
            raise Killed
        put(self, key, answer)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "put", dying)
        with pytest.raises(Killed):
            run.run(names, SETTINGS, OPTIONS, measure_speed=None, out=tmp_path)
    asked = []
    generate = EngineModel.generate
    monkeypatch.setattr(EngineModel, "generate", lambda self, p: (asked.append(len(p)), generate(self, p))[1])
    found = as_json(run.run(names, SETTINGS, OPTIONS, measure_speed=None, out=tmp_path))
    assert sum(asked) < 4
    whole = as_json(run.run(names, SETTINGS, OPTIONS, measure_speed=None))
    assert found["models"] == whole["models"]


def test_the_page_holds_what_was_said(compared) -> None:
    found, out = compared
    for language, heading in (("en", "In short"), ("zh", "概要")):
        paths = page.write(found, language, read_prompts(None), out)
        html = paths[0].read_text(encoding="utf-8")
        assert heading in html
        assert "small" in html
        assert "<script" not in html
        assert paths[1].read_text(encoding="utf-8").count("\n| ") > 10
    assert (out / "divergence.en.svg").is_file()
    saved = json.loads((out / "compare.json").read_text(encoding="utf-8"))
    assert [m["facts"]["name"] for m in saved["models"]] == ["whole", "small"]


def test_the_command_prints_one_object(models, tmp_path, capsys) -> None:
    text = tmp_path / "river.txt"
    text.write_text("The river rises in the hills. " * 8, encoding="utf-8")
    prompts = tmp_path / "p.txt"
    prompts.write_text("Hello?\n", encoding="utf-8")
    arguments = [
        "--text",
        f"river={text}",
        "--prompts",
        str(prompts),
        "--max-tokens",
        "6",
        "--threads",
        "1",
        "--context",
        "512",
    ]
    assert cli.main(["compare", *map(str, models), *arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [q["part"] for q in found["models"][1]["quality"]] == ["river"]
    assert not found["own_texts"]
    assert found["models"][1]["speed"]["decode_tps"] > 0
    assert found["models"][0]["speed"]["times"] == 1


def test_one_model_alone_is_refused(models) -> None:
    with pytest.raises(ValueError, match="two models at least"):
        run.run([str(models[0])], SETTINGS, OPTIONS, measure_speed=bench.measure)
