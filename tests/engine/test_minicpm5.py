"""A file in the shape of MiniCPM5-2B, of one layer and a small vocabulary: it loads, answers, thinks and stops as its switch
says."""

from gangpao.engine.generate import Engine
from gangpao.engine.sample import SamplingParams
from gangpao.engine.thinking.options import Thinking
from gangpao.engine.thinking.rule import rule_of
from gangpao.model.config import PRESETS
from tests.formats.gguf_maker import random_model
from tests.text.templates import thinkers

SHAPE = PRESETS["minicpm5-2b"]


def test_a_file_of_that_shape_runs(tmp_path):
    path = random_model(
        tmp_path / "m.gguf", "llama", hidden_size=SHAPE.hidden_size, num_layers=1, num_heads=SHAPE.num_attention_heads,
        num_kv_heads=SHAPE.num_key_value_heads, head_dim=SHAPE.head_dim, intermediate_size=SHAPE.intermediate_size,
        vocab_size=512, tied=False, kind="Q4_0", extra={"tokenizer.chat_template": thinkers.MINICPM5},
    )  # fmt: skip
    engine = Engine.load(path, context=256, num_threads=1)
    assert engine.model.config.num_key_value_heads == 2
    assert engine.template.closing == "\n</think>\n\n"
    said = Thinking(think_budget=12)
    ids = engine.template.encode(engine.tokenizer, [{"role": "user", "content": "hi"}], variables=said.variables())
    rule = rule_of(engine.template, engine.tokenizer, ids, said)
    assert rule is not None
    assert rule.opened
    never = dict.fromkeys(engine.tokenizer.end_ids, -100.0)
    generation = engine.generate(ids, SamplingParams(seed=1, max_tokens=40, logit_bias=never), thinking=rule)
    assert sum(len(piece.ids) for piece in generation) == 40
    assert "</think>\n\n" in generation.text
    assert 0 < generation.stats.reasoning_tokens < 40
