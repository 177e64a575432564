"""Collected sums are those of the same model in torch; a killed run goes on to the same bits; what stands out is shown."""

from collections import Counter

import numpy as np
import pytest
import torch

from gangpao.compress.importance import collect as collecting
from gangpao.compress.importance.collect import READERS, collect
from gangpao.compress.importance.show import half_share, show
from gangpao.compress.quantize.write import write
from gangpao.engine.generate import Engine
from gangpao.formats.architectures import DELTA_TENSORS, EXPERT_TENSORS, LAYER_TENSORS
from gangpao.formats.imatrix import Importance
from gangpao.model import weights
from gangpao.model.config import DeltaConfig, MLAConfig
from gangpao.tune.base.load import load_base
from tests.compress.models import folder_of
from tests.formats.gguf_maker import random_model

IDS = np.random.default_rng(4).integers(0, 300, (3, 300))


def engine_of(path, **options) -> Engine:
    return Engine.load(path, context=512, num_threads=1, **options)


def same(a: Importance, b: Importance) -> bool:
    kept = (a.sums.keys() == b.sums.keys(), a.counts.keys() == b.counts.keys())
    return all(kept) and all(
        np.array_equal(a.sums[x], b.sums[x]) and np.array_equal(a.counts[x], b.counts[x]) for x in a.sums
    )


@pytest.mark.parametrize(("arch", "tied"), [("llama", True), ("qwen2", False), ("minicpm", True)])
def test_sums_are_those_of_torch(arch, tied, tmp_path) -> None:
    path = random_model(tmp_path / "m.gguf", arch, tied=tied)
    head = "token_embd.weight" if tied else "output.weight"
    found = collect(engine_of(path), IDS, head=head, datasets=["random"])
    assert (found.chunks, found.chunk_size, found.datasets) == (3, 300, ("random",))
    base = load_base(path, storage="fp32").model
    sums: dict[str, torch.Tensor] = {}

    def hook(name):
        def add(module, inputs, output):
            x = inputs[0].detach().double().reshape(-1, inputs[0].shape[-1])
            sums[name] = sums.get(name, 0) + (x * x).sum(0)

        return add

    inner = {f"{part}.": gguf for part, gguf in LAYER_TENSORS.items()}
    for i, layer in enumerate(base.layers if hasattr(base, "layers") else base.model.layers):
        for part, gguf in LAYER_TENSORS.items():
            named = part.startswith(("self_attn.", "mlp.")) and "norm" not in part and part != "mlp.gate"
            if named and part in dict(layer.named_modules()):
                layer.get_submodule(part).register_forward_hook(hook(f"blk.{i}.{gguf}.weight"))
    assert inner
    with torch.no_grad():
        for row in IDS:
            base(torch.from_numpy(row)[None])
    assert found.sums.keys() == sums.keys() | {head}
    for name, expected in sums.items():
        np.testing.assert_allclose(found.sums[name], expected.numpy(), rtol=1e-3, err_msg=name)
        assert found.counts[name].tolist() == [900]


LATENT = MLAConfig(q_lora_rank=24, kv_lora_rank=32, qk_nope_head_dim=16, qk_rope_head_dim=16, v_head_dim=16)
DELTA = DeltaConfig(linear_key_head_dim=16, linear_value_head_dim=16, linear_num_key_heads=2, linear_num_value_heads=2)


def place_of(name) -> tuple[str, int] | None:
    """The tensor of a GGUF file that a matrix of the lab lies in, and which expert of it it is."""
    _, _, layer, part = (*name.split(".", 3), "", "", "")[:4]
    if part.startswith("mlp.experts."):
        expert, matrix = part.split(".")[2:]
        return f"blk.{layer}.{EXPERT_TENSORS[matrix]}.weight", int(expert)
    found = LAYER_TENSORS.get(part) or DELTA_TENSORS.get(f"{part}.weight")
    return None if found is None or part == "mlp.gate" else (f"blk.{layer}.{found.removesuffix('.weight')}.weight", 0)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [("window", {}), ("moe", {}), ("mla", {"head_dim": 32, "mla": LATENT}), ("delta", {"delta": DELTA})],
    ids=["window", "experts", "latent", "recurrent"],
)
def test_every_kind_of_layer_has_the_sums_of_the_lab(kind, fields, tmp_path) -> None:
    folder = folder_of(tmp_path / "hf", kind=kind, **fields)
    write(folder, tmp_path / "m.gguf", {})
    found = collect(engine_of(tmp_path / "m.gguf", float32=True), IDS[:1])
    model, sums, counts = weights.load(folder, dtype=torch.float32), {}, Counter()

    def hook(place):
        def add(module, inputs, output):
            x = inputs[0].detach().double().reshape(-1, inputs[0].shape[-1])
            sums[place] = (x * x).sum(0).numpy()
            counts[place] = len(x)

        return add

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and (place := place_of(name)):
            module.register_forward_hook(hook(place))
    with torch.no_grad():
        model(torch.from_numpy(IDS[:1]))
    assert found.sums.keys() == {tensor for tensor, _ in sums}
    for (tensor, expert), expected in sums.items():
        rows = found.sums[tensor].reshape(len(found.counts[tensor]), -1)
        assert found.counts[tensor][expert] == counts[tensor, expert]
        np.testing.assert_allclose(rows[expert], expected, rtol=1e-3, atol=1e-6, err_msg=tensor)


def test_packed_weights_give_nearly_the_same(tmp_path) -> None:
    path = random_model(tmp_path / "m.gguf", "llama", kind="Q8_0")
    exact = collect(engine_of(path, float32=True), IDS)
    packed = collect(engine_of(path), IDS)
    for name, values in exact.sums.items():
        np.testing.assert_allclose(packed.sums[name], values, rtol=0.1, err_msg=name)
        assert abs(packed.sums[name].sum() / values.sum() - 1) < 0.02


@pytest.mark.parametrize("experts", [None, (4, 2)])
def test_a_killed_run_goes_on_to_the_same_bits(experts, tmp_path, monkeypatch) -> None:
    path, state = random_model(tmp_path / "m.gguf", "llama", experts=experts), tmp_path / ".state"
    whole = collect(engine_of(path), IDS)
    monkeypatch.setattr(collecting, "SAVE_SECONDS", 0.0)
    real, steps = collecting.Segment, []

    def segment(*arguments):
        steps.append(arguments)
        if len(steps) == 5:  # in the third window; one has two steps
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(collecting, "Segment", segment)
    with pytest.raises(KeyboardInterrupt):
        collect(engine_of(path), IDS, state=state, identity="m")
    monkeypatch.setattr(collecting, "Segment", lambda *a: steps.append(a) or real(*a))
    del steps[:]
    assert same(collect(engine_of(path), IDS, state=state, identity="m"), whole)
    assert len(steps) == 2
    assert not state.exists()


def test_what_another_model_left_is_not_taken(tmp_path) -> None:
    path, state = random_model(tmp_path / "m.gguf", "llama"), tmp_path / ".state"
    whole = collect(engine_of(path), IDS[:1])
    collecting._save(state, "another key", 1, {"0.qkv": collecting._Sum(np.zeros((1, 64)), np.array([300]))})
    assert same(collect(engine_of(path), IDS[:1], state=state), whole)
    state.write_bytes(b"damaged")
    assert same(collect(engine_of(path), IDS[:1], state=state), whole)


def test_windows_longer_than_the_context_are_refused(tmp_path) -> None:
    engine = engine_of(random_model(tmp_path / "m.gguf", "llama"))
    with pytest.raises(ValueError, match="load the model with a wider one"):
        collect(engine, np.zeros((1, 513), np.int64))


def test_which_columns_matter_is_shown() -> None:
    flat, peaked = np.ones(100, np.float32), np.ones(100, np.float32)
    peaked[7] = 300.0
    assert half_share(flat) == 0.5
    assert half_share(peaked) == 0.01
    places = ("qkv", "o", "gate_up", "down")
    sums = {f"blk.0.{reader}.weight": flat for place in places for reader in READERS[place]}
    sums |= {
        "blk.1.ffn_down.weight": peaked,
        "output.weight": flat,
        "blk.2.ffn_up_exps.weight": np.stack([flat, peaked * 9]),
    }
    counts = {name: np.array([1] * (1 if values.ndim == 1 else len(values))) for name, values in sums.items()}
    text = show(Importance(sums, counts, 2, ("a.txt",), 512))
    lines = [line.split() for line in text.splitlines()]
    assert ["0", "50", "%", "50", "%", "50", "%", "50", "%"] in lines
    assert ["1", "-", "-", "-", "1", "%"] in lines
    assert ["2", "-", "-", "0.5", "%", "-"] in lines
    assert ["blk.1.ffn_down.weight", "7", "75"] in lines
    assert ["blk.2.ffn_up_exps.weight,", "expert", "1", "7", "75"] in lines
    assert text.startswith("10 tensors, 2 chunks of 512 tokens: a.txt")
