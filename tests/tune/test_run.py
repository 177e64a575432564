"""A tuning run, whole: it learns, goes on as if it had never stopped, refuses another base, and writes what was trained."""

import json
import shutil

import numpy as np
import pytest
import torch

from gangpao.deploy.gguf import export
from gangpao.engine.generate import Engine
from gangpao.engine.sample import SamplingParams
from gangpao.formats.adapters import read_adapter
from gangpao.model import weights
from gangpao.model.transformer import Transformer
from gangpao.train.progress import read_metrics
from gangpao.tune import output, summary
from gangpao.tune.base.load import load_base
from gangpao.tune.config import load_tune_config, typed_config
from gangpao.tune.run import run_config
from tests.model.tiny import tiny
from tests.text.hf_folder import byte_level, save

TEMPLATE = (
    "{% for m in messages %}{{ '<s>' + m['role'] + '\n' + m['content'] + '</s>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}"
)
COLOURS = ("red", "blue", "green", "grey")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random Llama with a tokenizer and a chat template."""
    path = tmp_path_factory.mktemp("base") / "base"
    model = Transformer.build(tiny("llama", max_position_embeddings=512), seed=3)
    weights.save(path, model.config, weights.state(model))
    return save(path, byte_level(), generation={"eos_token_id": 1}, **{"chat_template.jinja": TEMPLATE})


@pytest.fixture(scope="module")
def gguf(folder):
    path = folder.with_name("base.gguf")
    export(folder, path, "Q8_0")
    return path


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    lines = [
        {"messages": [{"role": "user", "content": f"colour {i}"}, {"role": "assistant", "content": COLOURS[i % 4]}]}
        for i in range(40)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


SAID = (
    "seq_len=64", "batch_tokens=256", "micro_batch_size=2", "steps=12", "method.rank=4", "optimizer.lr=0.02", "save.every_steps=4",
    "evaluation.every_steps=6", "threads=1", 'precision="fp32"',
)  # fmt: skip


def config_of(model, rows, *more):
    named = f"model={json.dumps(str(model))}", f"data.files={json.dumps([str(rows)])}"
    return typed_config((*named, *SAID, *more))


def losses(out):
    return [m["loss"] for m in read_metrics(out) if "loss" in m]


def trained(out):
    adapter = read_adapter(out / output.ADAPTER)
    return {f"{name}.{k}": v for name, part in adapter.parts.items() for k, v in (("a", part.a), ("b", part.b))}


@pytest.mark.parametrize("kind", ["folder", "gguf"])
def test_it_learns_and_a_stopped_run_goes_on_to_the_same_bits(kind, request, rows, tmp_path):
    model = request.getfixturevalue(kind)
    config = config_of(model, rows)
    whole = run_config(config, model, tmp_path / "whole")
    assert (whole.step, whole.signal) == (12, None)
    found = losses(tmp_path / "whole")
    assert found[-1] < 0.75 * found[0]

    class Stop(Exception):
        pass

    def watch(line):
        if line.get("step") == 6 and "loss" in line:
            raise Stop

    with pytest.raises(Stop):
        run_config(config, model, tmp_path / "parts", watch=watch)
    assert run_config(config, model, tmp_path / "parts").begun == 4
    assert losses(tmp_path / "parts") == found
    one, other = trained(tmp_path / "whole"), trained(tmp_path / "parts")
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_threads_that_take_rows_of_their_own_and_one_thread_agree(gguf, rows, tmp_path):
    run_config(config_of(gguf, rows, "steps=3"), gguf, tmp_path / "one")
    run_config(config_of(gguf, rows, "steps=3", "threads=2"), gguf, tmp_path / "two")
    assert losses(tmp_path / "one") == pytest.approx(losses(tmp_path / "two"), rel=1e-5)


def test_the_engine_with_the_adapter_says_what_was_trained(gguf, tmp_path):
    """The folder, llama.cpp's form and the run itself are one adapter, and its answers end as they were taught to."""
    run, few = tmp_path / "run", tmp_path / "few.jsonl"
    row = {"messages": [{"role": "user", "content": "colour 2"}, {"role": "assistant", "content": COLOURS[2]}]}
    few.write_text((json.dumps(row) + "\n") * 32)  # one answer, so that every machine learns it by heart
    run_config(config_of(gguf, few, 'data.duplicates="keep"', "data.heldout=0", "steps=80"), gguf, run)
    assert losses(run)[-1] > 0.99 * losses(run)[-20]  # nothing is left to learn
    assert load_base(gguf).sha256 == read_adapter(run).base_sha256
    ways = {"run": run, "folder": run / output.ADAPTER, "gguf": run / output.GGUF_ADAPTER}
    engine = Engine.load(gguf, context=64, float32=True, num_threads=1, adapters=ways)
    prompt = engine.template.encode(engine.tokenizer, [{"role": "user", "content": "colour 2"}])
    greedy = SamplingParams(temperature=0.0, max_tokens=16, repetition_penalty=1.0)

    def answer(*adapters):
        said = engine.generate(prompt, greedy, session=engine.session(dict.fromkeys(adapters)))
        return "".join(piece.text for piece in said), said.finish_reason

    assert {answer(name) for name in ways} == {answer("run")}
    assert answer("run") == (COLOURS[2], "stop")
    assert answer()[0] not in COLOURS


def test_another_base_under_the_same_name_is_refused(folder, rows, tmp_path):
    mine = tmp_path / "base"
    shutil.copytree(folder, mine)
    run_config(config_of(mine, rows, "steps=2", "save.every_steps=1"), mine, tmp_path / "run")
    model = Transformer.build(tiny("llama", max_position_embeddings=512), seed=4)
    weights.save(tmp_path / "other", model.config, weights.state(model))
    shutil.copy(tmp_path / "other" / "model.safetensors", mine)
    with pytest.raises(ValueError, match="the file has changed since"):
        run_config(config_of(mine, rows, "steps=2", "save.every_steps=1"), mine, tmp_path / "run")


def test_another_configuration_is_refused_by_name(gguf, rows, tmp_path):
    run_config(config_of(gguf, rows, "steps=2"), gguf, tmp_path)
    with pytest.raises(ValueError, match=r"method.rank: 4 there, 8 now"):
        run_config(config_of(gguf, rows, "steps=2", "method.rank=8"), gguf, tmp_path)


def test_a_checkpoint_holds_no_copy_of_the_base(gguf, rows, tmp_path):
    outcome = run_config(config_of(gguf, rows, "steps=2", "method.rank=1"), gguf, tmp_path)
    files = sum(p.stat().st_size for p in (tmp_path / "checkpoints").rglob("model*") if p.is_file())
    assert outcome.step == 2
    assert 0 < files < gguf.stat().st_size / 4


def test_full_tuning_writes_a_folder_that_runs(folder, rows, tmp_path):
    config = config_of(folder, rows, 'method.kind="full"', "optimizer.lr=0.002")
    outcome = run_config(config, folder, tmp_path / "run")
    found = summary.facts(tmp_path / "run", outcome)
    assert found["export"]
    assert found["adapter"] is None
    exported, base = weights.load(tmp_path / "run" / "export"), weights.load(folder)
    assert exported.config == base.config
    moved = [n for n, p in exported.named_parameters() if not torch.equal(p, base.get_parameter(n))]
    assert "model.layers.0.mlp.up_proj.weight" in moved  # not the base's own file, which lies beside its tokenizer
    assert losses(tmp_path / "run")[-1] < losses(tmp_path / "run")[0]
    assert (tmp_path / "run" / "export" / "chat_template.jinja").read_text() == TEMPLATE


def test_full_tuning_of_a_file_in_blocks_is_refused_before_it_is_loaded(gguf, rows, tmp_path):
    with pytest.raises(ValueError, match="name its Hugging Face folder"):
        run_config(config_of(gguf, rows, 'method.kind="full"'), gguf, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_toml_and_the_command_line_say_the_same(gguf, rows, tmp_path):
    toml = tmp_path / "tune.toml"
    toml.write_text(f'model = "{gguf}"\nseq_len = 64\nbatch_tokens = 256\n[data]\nfiles = ["{rows}"]\n')
    said = typed_config(
        (f"model={json.dumps(str(gguf))}", f"data.files={json.dumps([str(rows)])}", "seq_len=64", "batch_tokens=256"),
    )
    assert load_tune_config(toml).model_dump(exclude={"data"}) == said.model_dump(exclude={"data"})
    assert load_tune_config(toml).data.below("/") == said.data.model_copy(update={"root": str(tmp_path)})


def test_mistakes_name_the_key(rows):
    with pytest.raises(ValueError, match="batch_tokens 100 is not a multiple of seq_len 64"):
        config_of("m.gguf", rows, "batch_tokens=100")
    with pytest.raises(ValueError, match=r"did you mean method\.rank"):
        config_of("m.gguf", rows, "rank=4")


def test_roles_that_nobody_knows_are_named_with_their_line_and_no_folder_stays(gguf, tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"messages": [{"role": "usr", "content": "x"}, {"role": "bot", "content": "y"}]}\n')
    with pytest.raises(ValueError, match=r'bad.jsonl line 1: turn 1 has the role "usr"'):
        run_config(config_of(gguf, bad), gguf, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_step_is_tokens_or_answers(gguf, rows):
    """batch_tokens says nothing where pairs or answers are counted, so it refuses nothing there."""
    with pytest.raises(ValueError, match=r"batch_tokens 256 is not a multiple of seq_len 96"):
        config_of(gguf, rows, "seq_len=96")
    assert config_of(gguf, rows).step_size == "256 tokens"
    pairs = config_of(gguf, rows, "seq_len=96", "objective.kind=dpo", "batch_answers=4")
    assert (pairs.step_size, pairs.rows) == ("4 pairs", 4)
    labelled = config_of(gguf, rows, "seq_len=96", "objective.kind=kto", "batch_answers=4")
    assert (labelled.step_size, labelled.rows) == ("4 answers", 4)
