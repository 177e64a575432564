"""The memory plan: against live tensors on configurations of all kinds, the issue's figures, and the refusal."""

import numpy as np
import pytest
import torch

from gangpao.data.tokens.pack import Batch
from gangpao.formats.blocks import quantize
from gangpao.model import tiles
from gangpao.model.config import PRESETS
from gangpao.model.layers import replace_linears
from gangpao.model.transformer import Transformer
from gangpao.train.step.loss import NextToken
from gangpao.tune import admission
from gangpao.tune.base import nf4
from gangpao.tune.base.quantized import Blocks, QuantizedLinear
from gangpao.tune.config import TuneConfig
from gangpao.tune.memory import ADAMW, STORAGE_BYTES, OptimizerMemory, Step, plan
from gangpao.tune.methods import MethodConfig, apply
from tests.model.tiny import tiny
from tests.tune.live import Live

SHAPE = {
    "hidden_size": 128, "intermediate_size": 320, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 32, "vocab_size": 1000,
}  # fmt: skip
FLOAT, BRAIN = torch.float32, torch.bfloat16
QV = ("q_proj", "v_proj")


def stored(model, storage):
    """(model in a storage, bytes of its frozen weights)."""
    if storage in ("fp32", "bf16"):
        model = model.to(FLOAT if storage == "fp32" else BRAIN)
    else:
        model = model.to(BRAIN)

        def replace(name, linear):
            weight = linear.weight.detach().float()
            if name == "lm_head":
                return None
            if storage == "nf4":
                return QuantizedLinear(nf4.quantize(weight))
            return QuantizedLinear(Blocks(quantize(weight.numpy(), storage), storage, linear.in_features))

        replace_linears(model, replace)
    blocks = sum(m.tiles.nbytes for m in model.modules() if isinstance(m, QuantizedLinear))
    return model, blocks, blocks + sum(p.nbytes for p in model.parameters())


def peak(config, method, step, storage):
    """Most bytes alive in the second of two steps, and of them the base."""
    model, blocks, base = stored(Transformer.build(config, seed=1), storage)
    applied = apply(model, method, seed=1)
    optimizer = torch.optim.AdamW(applied.trainable.values(), lr=1e-4, fused=True)
    ids = np.random.default_rng(1).integers(0, config.vocab_size, (step.tokens // step.length, step.length))
    documents = np.zeros_like(ids)
    documents[:, step.length // 2 :] = step.packed
    objective, live = NextToken(dtype=step.dtype, recompute=step.recompute), Live()
    tiles.forget()  # what a larger model before this one needed
    live.count(*model.parameters(), *model.buffers())
    with live:
        for _ in range(2):
            live.peak = live.now
            for i in range(step.passes):
                if i == 0:
                    optimizer.zero_grad()
                objective(model, Batch(ids, ids, documents), 1 / ids.size).loss.backward()
            optimizer.step()
    return live.peak + blocks, base


LORA, DORA = MethodConfig(rank=8), MethodConfig(kind="dora", rank=8)
ONE, FOUR = {"tokens": 512, "length": 512}, {"tokens": 512, "length": 128, "packed": True}


@pytest.mark.parametrize(
    ("kind", "method", "storage", "step"),
    [
        ("minicpm", LORA, "fp32", Step(**ONE)),
        ("minicpm", LORA, "fp32", Step(**FOUR, recompute=True)),
        ("minicpm", LORA, "bf16", Step(**ONE, dtype=BRAIN, recompute=True)),
        ("qwen2", LORA, "bf16", Step(**FOUR)),
        ("llama", LORA, "Q4_0", Step(**ONE)),
        ("qwen3", LORA, "Q8_0", Step(**FOUR, recompute=True)),
        ("llama", MethodConfig(rank=8, targets=QV), "nf4", Step(**ONE)),
        ("llama", MethodConfig(rank=8, targets=("q_proj", "lm_head")), "fp32", Step(**ONE, recompute=True)),
        ("llama", DORA, "nf4", Step(**FOUR, recompute=True)),
        ("llama", MethodConfig(rank=64), "Q4_0", Step(**FOUR, dtype=BRAIN, recompute=True, passes=2)),
        ("minicpm", MethodConfig(kind="full"), "fp32", Step(**ONE)),
        ("minicpm", MethodConfig(kind="full"), "bf16", Step(**FOUR, dtype=BRAIN, recompute=True)),
        ("llama", MethodConfig(kind="ia3"), "fp32", Step(**ONE, recompute=True)),
        ("llama", MethodConfig(kind="parallel_adapter", rank=16), "fp32", Step(**ONE)),
    ],
)
def test_the_plan_is_within_a_tenth_of_what_lives(kind, method, storage, step):
    config = tiny(kind, **SHAPE)
    measured, base = peak(config, method, step, storage)
    planned = plan(config, method, step, storage=storage if storage in STORAGE_BYTES else base)
    assert planned.need == pytest.approx(measured, rel=0.1), planned.text()
    rows = {row.name: row.bytes for row in planned.rows}
    assert rows["weights"] == pytest.approx(base, rel=0.005)
    assert sum(rows.values()) == planned.need == planned.as_json()["need"]


TWO_B, ROW = PRESETS["minicpm-2b"], {"tokens": 1024, "length": 1024}
Q4_BYTES = round((2_442_057_984 * 4.5 + 122_753 * 2304 * 6.5625) / 8)  # Q4_0 in the layers, a head in Q6_K


@pytest.mark.parametrize(
    ("method", "dtype", "storage", "optimizer", "most"),
    [
        (MethodConfig(), BRAIN, "bf16", ADAMW, 6370),
        (MethodConfig(), BRAIN, Q4_BYTES, ADAMW, 2600),
        (MethodConfig(rank=16), FLOAT, "bf16", ADAMW, 6370),
        (MethodConfig(rank=16), FLOAT, Q4_BYTES, ADAMW, 2600),
        # stochastic rounding, 8-bit first moment, factored second one, gradients released
        (MethodConfig(kind="full"), BRAIN, "bf16", OptimizerMemory(bytes=1 + 4 / 256, released=True), 10.5 * 1024),
    ],
)
def test_minicpm_2b_on_a_small_card(method, dtype, storage, optimizer, most):
    found = plan(TWO_B, method, Step(**ROW, dtype=dtype, recompute=True), storage=storage, optimizer=optimizer)
    assert found.need <= most * 2**20, found.text()


def test_counts_are_the_models():
    rows = {row.name: row.bytes for row in plan(TWO_B, MethodConfig(rank=8, targets=QV), Step(**ROW)).rows}
    assert rows["adapter"] == 4 * 2_949_120  # as PEFT prints it
    assert rows["optimizer"] == 8 * 2_949_120
    assert rows["weights"] == 2 * 2_724_880_896


def config(**options):
    return TuneConfig(model="x", data={"files": ["rows.jsonl"]}, seq_len=512, **options)


@pytest.fixture
def folder(tmp_path):
    from gangpao.model import weights

    model = Transformer.build(tiny("llama", **SHAPE, max_position_embeddings=512), seed=1)
    return weights.save(tmp_path / "base", model.config, weights.state(model))


def test_a_refusal_names_need_have_and_ways_out(folder, monkeypatch):
    admission.admit(config(), folder, torch.device("cpu"))
    monkeypatch.setattr("gangpao.machine.available_memory", lambda: 20 << 20)
    with pytest.raises(ValueError, match="not enough memory to tune") as refused:
        admission.admit(config(precision="fp32", threads=2), folder, torch.device("cpu"))
    said = str(refused.value)
    assert "20 MiB are available" in said
    assert "activations" in said
    for way in ("--set recompute=true (then ", "--set micro_batch_size=1 (then ", "--set seq_len=256 (then "):
        assert way in said


def test_ways_out_are_options_that_a_run_can_have():
    full = config(method=MethodConfig(kind="full"), recompute=True, micro_batch_size=1)
    assert admission.changes(full) == ["optimizer.kind=lean", "method.kind=lora", "seq_len=256"]
    lean = admission.changed(full, "optimizer.kind=lean")
    assert admission.changes(lean) == ["method.kind=lora", "seq_len=256"]
    assert "storage=nf4" in admission.changes(config())
    for change in admission.changes(config()):
        assert admission.changed(config(), change) != config()


def test_a_plan_says_whether_the_run_fits(folder, monkeypatch, tmp_path):
    from typer.testing import CliRunner

    from gangpao.commands.tune import app

    (tmp_path / "rows.jsonl").write_text("{}")
    given = ["plan", "-m", str(folder), "--data", str(tmp_path / "rows.jsonl"), "--set", "device=cpu"]
    done = CliRunner().invoke(app, [*given, "--set", "seq_len=64", "--set", "batch_tokens=128"])
    assert (done.exit_code, "MiB: the run fits" in done.output) == (0, True), done.output
    monkeypatch.setattr("gangpao.machine.available_memory", lambda: 1 << 20)
    done = CliRunner().invoke(
        app, [*given, "--set", "seq_len=64", "--set", "batch_tokens=128", "--set", "method.kind=bitfit"]
    )
    assert done.exit_code == 1
    assert "have 1 MiB: the run does not fit. Ways out:\n  --set recompute=true (then " in done.output
    assert "note: bitfit can be trained and compared, but not used afterwards" in done.output
    run = ["run", *given[1:], "--set", "seq_len=64", "--set", "batch_tokens=128", "--out", str(tmp_path / "run")]
    done = CliRunner().invoke(app, run)
    assert done.exit_code == 2
    assert "\nweights" in done.output
    assert not (tmp_path / "run").exists()


def test_rows_longer_than_the_context_are_refused_with_both_numbers(folder):
    most = 512
    with pytest.raises(ValueError, match=rf"seq_len is {2 * most:,}, and .*base reads {most:,} tokens at most"):
        admission.admit(
            TuneConfig(
                model="x", data={"files": ["rows.jsonl"]}, seq_len=2 * most, batch_tokens=2 * most, micro_batch_size=1
            ),
            folder,
            torch.device("cpu"),
        )
