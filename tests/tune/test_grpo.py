"""GRPO, whole: the engine answers with the adapter as it stands, a program rewards, the model learns, and a run goes on."""

import io
import json
import os
import re
import signal

import numpy as np
import pytest

from gangpao.engine.generate import Engine
from gangpao.engine.sample import SamplingParams
from gangpao.text.templates.chat import ChatTemplate
from gangpao.train.progress import read_metrics
from gangpao.tune.admission import plan_of
from gangpao.tune.base.load import load_base
from gangpao.tune.data.prepare import prepare
from gangpao.tune.methods import apply
from gangpao.tune.methods.config import MethodConfig
from gangpao.tune.objectives.asking import Answers, prompts_of
from gangpao.tune.objectives.config import ObjectiveConfig
from gangpao.tune.run import run_config
from tests.tune.test_run import COLOURS, folder, gguf, rows, trained  # noqa: F401
from tests.tune.test_run import config_of as basic

LETTER = (
    'objective.kind="grpo"',
    "objective.rewards.contains=1.0",
    "objective.max_answer_tokens=16",
    "objective.answers=8",
)


def config_of(model, rows, *more):  # noqa: F811
    return basic(model, rows, "batch_answers=32", "steps=24", "evaluation.every_steps=8", *LETTER, *more)


def asked(gguf, rows):  # noqa: F811
    base = load_base(gguf)
    config = config_of(gguf, rows)
    prepared = prepare(
        config.data, base.tokenizer, base.chat_template, 64, kind="answers", architecture=base.config.model_type
    )
    return base, prepared


def test_a_row_is_a_prompt_and_what_is_expected(gguf, rows):  # noqa: F811
    base, prepared = asked(gguf, rows)
    prompts, end = prompts_of(prepared.parts, base.tokenizer)
    template = ChatTemplate.for_model(base.chat_template, tokenizer=base.tokenizer, architecture="llama")
    wanted = {
        tuple(template.encode(base.tokenizer, [{"role": "user", "content": f"colour {i}"}])): COLOURS[i % 4]
        for i in range(40)
    }
    assert prompts
    assert all(wanted[p.ids] == p.expected for p in prompts)
    assert end in base.tokenizer.end_ids


def test_answers_are_those_of_the_adapter_as_it_stands(gguf, rows):  # noqa: F811
    base, prepared = asked(gguf, rows)
    applied = apply(base.model, MethodConfig(kind="lora", rank=4), seed=1)
    prompts, end = prompts_of(prepared.parts, base.tokenizer)
    objective = ObjectiveConfig(kind="grpo", rewards={"short": 1.0}, max_answer_tokens=8)
    answers = Answers(gguf, applied.adapter, objective, longest=64, end=end, threads=1)
    ids = [p.ids for p in prompts[:3]]

    def engine_says():
        engine = Engine.load(gguf, context=128, num_threads=1, adapters={"one": applied.adapter()})
        engine.use({"one": None})
        params = SamplingParams(temperature=0.0, max_tokens=8)
        return [[i for piece in engine.generate(one, params) for i in piece.ids] for one in ids]

    def without_end(found):
        return [[i for i in group[0] if i != end] for group in found]

    first = without_end(answers.ask(ids, 1, 0, temperature=0.0))
    assert first == engine_says()
    for parameter in applied.trainable.values():
        parameter.data.normal_(0, 0.3)
    second = without_end(answers.ask(ids, 1, 0, temperature=0.0))
    assert second == engine_says()
    assert second != first
    drawn = answers(ids, 4, 7)
    assert [len(group) for group in drawn] == [4, 4, 4]
    assert drawn == answers(ids, 4, 7)
    assert drawn != answers(ids, 4, 8)


@pytest.fixture(scope="module")
def letters(tmp_path_factory):
    """Questions whose answers shall have an x, which one in five of a random model has."""
    path = tmp_path_factory.mktemp("letters") / "rows.jsonl"
    lines = [
        {"messages": [{"role": "user", "content": f"say {i}"}, {"role": "assistant", "content": "x"}]}
        for i in range(40)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_it_learns_and_a_stopped_run_goes_on_to_the_same_bits(gguf, letters, tmp_path):  # noqa: F811
    config, said = config_of(gguf, letters), io.StringIO()
    run_config(config, gguf, tmp_path / "whole", stream=said)
    assert re.search(r"tune 24/24  reward [\d.]+  loss ", said.getvalue())
    rewards = [line["reward"] for line in read_metrics(tmp_path / "whole") if "reward" in line]
    assert len(rewards) == 24
    assert np.mean(rewards[-4:]) > np.mean(rewards[:4]) + 0.4
    out = tmp_path / "parts"
    stopped = run_config(config_of(gguf, letters), gguf, out, watch=_stop_at(6))
    assert stopped.signal is not None
    run_config(config, gguf, out)
    a, b = trained(tmp_path / "whole"), trained(out)
    assert a.keys() == b.keys()
    assert all(np.array_equal(a[name], b[name]) for name in a)


def _stop_at(step):
    """Ends a run as a signal does, at its next step."""

    def watch(line):
        if line.get("step") == step:
            os.kill(os.getpid(), signal.SIGTERM)

    return watch


def test_the_plan_counts_the_engine(gguf, rows):  # noqa: F811
    grpo, sft = config_of(gguf, rows), config_of(gguf, rows, 'objective.kind="sft"')
    answering = next(row for row in plan_of(grpo, gguf).rows if row.name == "engine")
    assert answering.bytes > gguf.stat().st_size * 0.9
    assert plan_of(grpo, gguf).need > plan_of(sft, gguf).need + answering.bytes


def test_what_cannot_be_is_refused(folder, gguf, rows, tmp_path):  # noqa: F811
    with pytest.raises(ValueError, match="none is named"):
        basic(gguf, rows, "batch_answers=32", 'objective.kind="grpo"')
    with pytest.raises(ValueError, match="did you mean contains"):
        config_of(gguf, rows, "objective.rewards={contain=1.0}")
    with pytest.raises(ValueError, match=r"no multiple of objective\.answers 8"):
        config_of(gguf, rows, "batch_answers=6")
    with pytest.raises(ValueError, match="kind lora, not dora"):
        config_of(gguf, rows, "method.kind=dora")
    with pytest.raises(ValueError, match=r"max_answer_tokens 500 behind a prompt of \d+ tokens .* 512 positions"):
        run_config(config_of(gguf, rows, "objective.max_answer_tokens=500"), gguf, tmp_path / "long")
    assert not (tmp_path / "long").exists()
    with pytest.raises(ValueError, match="gangpao export"):
        run_config(config_of(folder, rows), folder, tmp_path / "run")
