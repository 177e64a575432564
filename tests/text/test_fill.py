"""Prompts with a hole: the marks of a model, and their order, as llama.cpp has them."""

import pytest

from gangpao.engine.generate import Engine
from gangpao.engine.sample import SamplingParams
from gangpao.text.fill import FillMarks, fill_marks, fill_prompt
from tests.llama_oracle import LlamaOracle


class Letters:
    """One token a letter, and marks."""

    bos_id, adds_bos = 300, False

    def __init__(self, *marks: str) -> None:
        self.marks = {mark: 400 + i for i, mark in enumerate(marks)}
        self.vocab_size = 500

    def id_of(self, piece):
        return self.marks.get(piece)

    def encode(self, text, start=True):
        assert not start
        return list(text.encode())


QWEN = ("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>")


def test_marks_are_known_by_their_spelling_and_by_metadata():
    assert fill_marks(Letters(), {}) is None
    assert fill_marks(Letters("<|fim_prefix|>", "<|fim_suffix|>"), {}) is None
    assert fill_marks(Letters(*QWEN), {}) == FillMarks(400, 402, 401, 404, 405, frozenset({403, 404, 405}))
    assert fill_marks(Letters("▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>"), {}) == FillMarks(
        400, 401, 402, ends=frozenset({403})
    )
    named = {f"tokenizer.ggml.fim_{name}_token_id": i for i, name in enumerate(("pre", "suf", "mid"))}
    assert fill_marks(Letters(), named) == FillMarks(0, 1, 2)
    assert fill_marks(Letters(), named | {"tokenizer.ggml.fim_mid_token_id": 500}) is None


def test_the_order_is_prefix_suffix_middle_behind_other_files():
    tokenizer = Letters(*QWEN)
    marks = fill_marks(tokenizer, {})
    assert fill_prompt(tokenizer, marks, "ab", "c") == [400, *b"ab", 402, *b"c", 401]
    tokenizer.adds_bos = True
    assert fill_prompt(tokenizer, marks, "", "") == [300, 400, 402, 401]
    assert fill_prompt(tokenizer, marks, "a", "b", [("x.py", "X")]) == [
        404, *b"myproject\n", 405, *b"x.py\n", *b"X", 405, *b"filename\n", 300, 400, *b"a", 402, *b"b", 401,
    ]  # fmt: skip


@pytest.mark.slow
def test_a_coder_fills_a_hole_as_in_llama_cpp(model_path):
    path = model_path("qwen2.5-coder-0.5b")
    engine = Engine.load(path, context=512)
    before, after = "def add(a, b):\n    return", "\n\nprint(add(1, 2))\n"
    ids = fill_prompt(engine.tokenizer, engine.fill, before, after)
    spelled = f"<|fim_prefix|>{before}<|fim_suffix|>{after}<|fim_middle|>"
    with LlamaOracle(path, n_ctx=512) as oracle:
        assert ids == oracle.tokenize(spelled, parse_special=True)
        body = {
            "input_prefix": before,
            "input_suffix": after,
            "n_predict": 8,
            "temperature": 0.0,
            "samplers": ["temperature"],
        }
        theirs = oracle._post("/infill", body)
    # Its header has as much room as its context has beyond a batch, which is none here but for the last tokens.
    headed = engine.tokenizer.decode(fill_prompt(engine.tokenizer, engine.fill, before, after, []), keep_special=True)
    assert headed.endswith(theirs["prompt"])
    run = engine.generate(ids, SamplingParams(temperature=0, max_tokens=4), continues=True)
    list(run)
    assert run.text.startswith(" a + b")
    assert theirs["content"].startswith(" a + b")
