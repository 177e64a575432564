"""What the proof of a written file finds, stage by stage, and that nothing is left when it finds something."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers import processors

from gangpao.deploy import gguf as writer
from gangpao.deploy import plan as planning
from gangpao.deploy.proof_numbers import Difference, prove, steps
from gangpao.engine import exact
from gangpao.engine import transformer as transformer_module
from gangpao.engine.generate import Engine
from gangpao.engine.transformer import Transformer, forward_by_layer
from gangpao.engine.weights import weights_by_layer
from gangpao.formats.gguf import GGUF
from gangpao.model import weights
from gangpao.model.config import RopeScaling
from tests.model.test_transformer import build
from tests.text.hf_folder import byte_level, save

GENERATION = {"eos_token_id": [1, 2], "do_sample": True, "temperature": 0.6, "top_k": 20, "repetition_penalty": 1.1}
TEMPLATE = "{% for m in messages %}{{ m['content'] }}<|stop|>{% endfor %}"


@pytest.fixture
def folder(tmp_path):
    model = build("minicpm").float()
    path = weights.save(tmp_path / "in" / "m", model.config, weights.state(model))
    return save(path, byte_level(), generation=GENERATION, config={"chat_template": TEMPLATE})


def test_a_whole_folder_is_proved_and_told(folder, tmp_path):
    seen, notes = [], []
    path = writer.export(folder, tmp_path / "m.gguf", "F32", progress=lambda *at: seen.append(at), on_note=notes.append)
    with GGUF.open(path) as gguf:
        total = len(gguf.tensors) + 4
    assert seen == [(i, total) for i in range(1, total + 1)]
    assert notes == []
    engine = Engine.load(path, context=64)
    assert engine.tokenizer.end_ids == {1, 2}
    assert engine.sampling == pytest.approx({"temperature": 0.6, "top_k": 20, "repetition_penalty": 1.1})
    assert engine.template.source == TEMPLATE


def test_one_layer_at_a_time_has_the_same_bits(folder, tmp_path):
    path = writer.export(folder, tmp_path / "m.gguf", "Q4_0", check=False)
    ids = [5, 17, 300, 42, 7]
    with GGUF.open(path) as gguf:
        whole = Transformer.load(gguf)
        logits = whole.forward(ids, whole.new_cache(len(ids)), all_logits=True)
        *hidden, last = forward_by_layer(gguf, ids)
        steps_taken = forward_by_layer(gguf, ids)
        next(steps_taken)
        assert np.array_equal(steps_taken.send(hidden[0]), hidden[1])
        sizes = [w.nbytes for w in weights_by_layer(gguf, whole.config)]
        assert max(sizes) < whole.nbytes / 2
        del whole
    assert len(hidden) == 3
    assert np.array_equal(last, logits)


def change(key, value):
    def spoil(monkeypatch):
        real = writer.gguf_metadata

        def changed(folder, on_note):
            out = real(folder, on_note)
            return {k: v for k, v in out.items() if k != key} | ({} if value is None else {key: value})

        monkeypatch.setattr(writer, "gguf_metadata", changed)

    return spoil


def shift(key, value):
    def spoil(monkeypatch):
        real = writer.metadata
        monkeypatch.setattr(writer, "metadata", lambda *a: real(*a) | {key: value})

    return spoil


def swapped_rows(monkeypatch):
    real = planning.Planned.data

    def data(self):
        for piece in real(self):
            yield piece[::-1].copy() if self.name == "blk.1.ffn_up.weight" else piece

    monkeypatch.setattr(planning.Planned, "data", data)


def another_head(monkeypatch):
    """The engine forgets a scale after the header was read."""
    real = transformer_module.ModelConfig.from_gguf

    def forgetful(gguf):
        config = real(gguf)
        return replace(config, logit_scale=1.0)

    monkeypatch.setattr(transformer_module, "ModelConfig", SimpleNamespace(from_gguf=forgetful))


def another_order(monkeypatch):
    """A wrong graph with right weights: q and k are taken for halves by the writer and the proof alike."""
    for name in ("pairs_side_by_side", "pairs_apart"):
        monkeypatch.setattr(f"gangpao.deploy.changes.{name}", lambda rows, heads: rows)


SPOILED = [
    ("F32", spoil, says)
    for spoil, says in (
        (change("tokenizer.ggml.merges", ["h e", "l l"]), "token ids: .* is .* from position .* by the file"),
        (change("tokenizer.ggml.add_bos_token", True), "token ids: BOS in front is True in the file and False in the folder"),
        (change("tokenizer.ggml.eot_token_id", 7), r"end tokens: \[1, 2, 7\] in the file and \[1, 2\]"),
        (change("tokenizer.chat_template", "{{ x }}"), "chat template: that of the file"),
        (change("tokenizer.chat_template", None), "chat template: that of the file"),
        (change("general.sampling.top_k", 40), "sampling defaults: top_k is 40 in the file and 20"),
        (change("general.sampling.top_p", 0.5), "sampling defaults: top_p is 0.5 in the file and None"),
        (shift("minicpm.logit_scale", 3.0), "header: logit_scale is 0.3333333333333333 in the file and 0.25"),
        (shift("minicpm.rope.freq_base", 5001.0), "header: rope_theta is 5001.0 in the file and 5000.0"),
    )
]  # fmt: skip
WRONG_NUMBERS = [
    (kind, spoil, says)
    for kind in ("F32", "Q4_0", "Q5_1")
    for spoil, says in (
        (swapped_rows, r"weights: model.layers.1.mlp.up_proj.weight, row 0, column \d+ is .* in the file and .* in the checkpoint"),
        (another_head, "log-probabilities: that of token .* is .* by the file and .* by the torch model"),
        (another_order, "layer 0: what it adds to the hidden states .* is .* off, and rounding explains"),
    )
]  # fmt: skip


@pytest.mark.parametrize(("kind", "spoil", "says"), SPOILED + WRONG_NUMBERS)
def test_what_differs_is_named_and_nothing_is_left(kind, spoil, says, folder, tmp_path, monkeypatch):
    spoil(monkeypatch)
    with pytest.raises(Difference, match=says):
        writer.export(folder, tmp_path / "m.gguf", kind)
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("rope_type", ["yarn", "longrope", "linear"])
def test_angles_of_long_contexts_are_compared(rope_type, tmp_path, monkeypatch):
    factors = {"short_factor": (1.0,) * 8, "long_factor": tuple(2.0 + i for i in range(8))}
    rope = RopeScaling(
        rope_type=rope_type,
        factor=4.0,
        original_max_position_embeddings=64,
        **(factors if rope_type == "longrope" else {}),
    )
    model = build("llama", rope_scaling=rope).float()
    arguments = model.config, weights.state(model)
    tokenizer = {"tokenizer.ggml.tokens": [f"t{i}" for i in range(320)]}
    writer.write(tmp_path / "good.gguf", *arguments, tokenizer)
    shift("llama.rope.scaling.attn_factor", 1.03)(monkeypatch)
    with pytest.raises(Difference, match="rotary angles: the factor at"):
        writer.write(tmp_path / "bad.gguf", *arguments, tokenizer)
    monkeypatch.undo()
    real = writer.plan

    def longer(*given):
        tensors = real(*given)
        for t in tensors:
            if t.name == "rope_factors_long.weight":
                t.sources[0][1][3] += 0.5
        return tensors

    monkeypatch.setattr(writer, "plan", longer)
    if rope_type == "longrope":
        with pytest.raises(Difference, match=r"rotary angles: at 65 positions pair 3 turns by"):
            writer.write(tmp_path / "bad.gguf", *arguments, tokenizer)


def test_what_stands_around_every_text_is_said_or_refused(folder, tmp_path):
    def exported(single):
        library = byte_level()
        pieces = [("<s>", 0), ("</s>", 1), ("<|stop|>", 3)]
        library.post_processor = processors.TemplateProcessing(single=single, special_tokens=pieces)
        save(folder, library, generation=GENERATION, config={"add_bos_token": single.startswith("<s>")})
        notes = []
        writer.export(folder, tmp_path / f"{len(list(tmp_path.iterdir()))}.gguf", on_note=notes.append)
        return notes

    assert exported("<s> $A") == []
    assert exported("$A </s>") == [
        "tokenizer.json ends every text; left out, since a prompt that has ended gets no answer"
    ]
    with pytest.raises(
        Difference, match=r"token ids: tokenizer.json puts \[3\] in front of every text and \[\] behind it"
    ):
        exported("<|stop|> $A")


def test_an_end_that_no_row_stands_for_is_refused(folder, tmp_path):
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 320]}))
    with pytest.raises(Difference, match=r"generation_config.json names 320, and the model has 320 tokens"):
        writer.export(folder, tmp_path / "m.gguf")


def test_experts_are_proved_by_what_they_compute(tmp_path, monkeypatch):
    """Also where rounding changes which experts some tokens meet; another choice is found."""
    model = build("moe").float()
    arguments = model.config, weights.state(model), {"tokenizer.ggml.tokens": [f"t{i}" for i in range(320)]}
    notes = []
    for kind in ("F32", "Q8_0", "Q4_0"):
        writer.write(tmp_path / f"{kind}.gguf", *arguments, kind, on_note=notes.append)
    assert notes == []
    real = exact.top_softmax
    for wrong in (
        lambda logits, k: real(-logits, k),
        lambda logits, k: real(logits, 1),
        lambda logits, k: real(logits, k + 1),
    ):
        monkeypatch.setattr(exact, "top_softmax", wrong)
        with pytest.raises(Difference, match="layer 0: what it adds"):
            writer.write(tmp_path / "wrong.gguf", *arguments, "Q8_0")


def test_what_our_engine_does_not_run_is_compared_by_its_weights(tmp_path, monkeypatch):
    model = build("moe", head_dim=24).float()
    arguments = model.config, weights.state(model), {"tokenizer.ggml.tokens": [f"t{i}" for i in range(320)]}
    notes = []
    path = writer.write(tmp_path / "m.gguf", *arguments, on_note=notes.append)
    assert len(notes) == 1
    assert "weights were compared, but not what is computed" in notes[0]
    tensors = planning.plan(*arguments[:2], "Q8_0")
    with GGUF.open(path) as gguf:
        calls = []
        prove(gguf, model.config, tensors, "Q8_0", notes.append, lambda: calls.append(1))
        assert len(calls) == steps(model.config)
        expert = next(t for t in tensors if t.name == "blk.2.ffn_up_exps.weight")
        expert.sources[2][1][7] = torch.flip(expert.sources[2][1][7], [0])
        with pytest.raises(Difference, match=r"weights: model.layers.2.mlp.experts.2.w3.weight, row 7, column"):
            prove(gguf, model.config, tensors, "Q8_0", notes.append)
