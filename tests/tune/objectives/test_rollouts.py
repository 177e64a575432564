"""Answers of the model itself, rewarded by a program: what is asked, what comes back, and that a model learns from it."""

import dataclasses

import numpy as np
import pytest
import torch

from gangpao.model.transformer import Transformer
from gangpao.train.loop import Stage
from gangpao.train.progress import read_metrics
from gangpao.tune.objectives.build import objective_of
from gangpao.tune.objectives.config import ObjectiveConfig
from gangpao.tune.objectives.logps import Settings, label_logps
from gangpao.tune.objectives.reference import spans_of
from gangpao.tune.objectives.rewards import REWARDS, reward_of
from gangpao.tune.objectives.rollouts import Prompt, Rollouts
from tests.train.tiny import fit, job, shape

PROMPTS = [Prompt((1, 2)), Prompt((3, 4, 5)), Prompt((6,)), Prompt((7, 8, 9, 10)), Prompt((11, 12))]


def sampled(model, length=4):
    """Answers to prompts of one length, drawn by torch."""

    @torch.no_grad()
    def generate(prompts, n, seed):
        generator = torch.Generator().manual_seed(seed)
        ids = torch.tensor([list(prompt) for prompt in prompts for _ in range(n)])
        for _ in range(length):
            probabilities = model.logits(model(ids).hidden[:, -1]).softmax(-1)
            ids = torch.cat([ids, torch.multinomial(probabilities, 1, generator=generator)], dim=1)
        answers = ids[:, -length:].tolist()
        return [answers[i : i + n] for i in range(0, len(answers), n)]

    return generate


def fixed(prompts, n, seed):
    """Answers of different lengths that tell their prompt, their number and the seed."""
    return [[[p[0], k + 20, *([seed % 50] * k)] for k in range(n)] for p in prompts]


def small(answer, expected):
    """The share of tokens below 25."""
    ids = [int(word) for word in answer.split()]
    return sum(i < 25 for i in ids) / len(ids)


def words(ids):
    return " ".join(map(str, ids))


def rollouts(generate=fixed, **options):
    return Rollouts(PROMPTS, generate, small, words, **{"answers": 3, "row_length": 16, **options})


def test_what_a_batch_is():
    source = rollouts()
    batch = source.take(2)
    asked = [source.prompt(i) for i in range(2)]
    drawn = fixed([p.ids for p in asked], 3, 0)
    spans = spans_of(batch)
    assert len(spans) == len(batch.rewards) == len(batch.advantages) == 6
    for i, (row, begin, _, first, last) in enumerate(spans):
        prompt, answer = list(asked[i // 3].ids), drawn[i // 3][i % 3]
        assert batch.ids[row, begin : first + 1].tolist() == prompt
        assert batch.labels[row, first : first + 2].tolist() == answer[:2]
        assert last - first + 1 == len(answer)
    grouped = batch.advantages.reshape(2, 3)
    np.testing.assert_allclose(grouped.sum(1), 0, atol=1e-5)
    assert batch.old is None


def test_every_prompt_once_and_again_the_same():
    source = rollouts()
    assert sorted(source.prompt(i).ids for i in range(5)) == sorted(p.ids for p in PROMPTS)
    first = source.take(2)
    state = source.state()
    second = source.take(2)
    other = rollouts()
    other.restore(state)
    again = other.take(2)
    assert all(np.array_equal(getattr(second, f), getattr(again, f)) for f in ("ids", "labels", "rewards"))
    assert not np.array_equal(first.ids, second.ids)
    with pytest.raises(ValueError, match="has answers 3, this run 4"):
        rollouts(answers=4).restore(state)


def test_ranks_share_the_prompts():
    one, two = rollouts(), rollouts()
    parts = [one.take(4, 0, 2), two.take(4, 1, 2)]
    assert one.position == two.position == 4
    firsts = {int(p.ids[row, begin]) for p in parts for row, begin, *_ in spans_of(p)}
    assert firsts == {rollouts().prompt(i).ids[0] for i in range(4)}


def test_a_model_learns_what_is_rewarded(tmp_path):
    """The one loop: 30 steps, rewards rise."""
    made = job(tmp_path, rows=5, micro_rows=5)
    prompts = [Prompt((i, i + 1)) for i in range(5)]

    def source(before):
        return Rollouts(prompts, sampled(made.model), small, words, answers=6, row_length=60)

    objective = objective_of(ObjectiveConfig(kind="grpo"), Settings())
    fit(dataclasses.replace(made, stages=[Stage("grpo", 30, source)], objective=objective))
    found = [line["reward"] for line in read_metrics(tmp_path) if "reward" in line]
    assert len(found) == 30
    assert np.mean(found[:5]) < 0.6
    assert np.mean(found[-5:]) > 0.85


def test_the_first_ratio_is_one():
    """What the model says in training is what it was drawn by, so nothing is clipped at the first look."""
    model = Transformer.build(shape(), seed=1)
    prompts = [Prompt((1, 2)), Prompt((3, 4))]
    batch = Rollouts(prompts, sampled(model), small, words, answers=3, row_length=16).take(2)
    values = objective_of(ObjectiveConfig(kind="grpo"), Settings())(model, batch, 1.0).values
    assert float(values["clipped"]) == 0.0
    assert label_logps(model, batch, Settings()).logps.isfinite().all()


@pytest.mark.parametrize(
    ("name", "answer", "expected", "worth"),
    [
        ("number", "7 + 5 = 12", "12", 1),
        ("number", "so it is 1,234.50", "1234.5", 1),
        ("number", "-3", "3", 0),
        ("number", "3/4", "0.75", 1),
        ("number", "1/0", "0", 0),
        ("number", "nothing", "3", 0),
        ("exact", " yes\n", "yes", 1),
        ("exact", "yes.", "yes", 0),
        ("contains", "the capital is Paris.", "Paris", 1),
        ("thought", "<think>\n2 and 2\n</think>\n\n4", "", 1),
        ("thought", "<think></think>4", "", 0),
        ("thought", "<think>a</think>", "", 0),
        ("thought", "4", "", 0),
        ("listed", "- a\n- b", "", 1),
        ("listed", "1. a", "", 0),
        ("short", "ab", "abcd", 1),
        ("short", "abcdef", "abcd", 0.5),
        ("short", "abcdefghi", "abcd", 0),
        ("ended", "It is so. ", "", 1),
        ("ended", "好。", "", 1),
        ("ended", "It is", "", 0),
        ("ended", "", "", 0),
    ],
)
def test_rewards(name, answer, expected, worth):
    assert REWARDS[name](answer, expected) == worth


def test_rewards_by_name():
    both = reward_of({"number": 1.0, "ended": 0.25})
    assert both("It is 4.", "4") == 1.25
    with pytest.raises(ValueError, match="did you mean number"):
        reward_of({"numbers": 1.0})
    with pytest.raises(ValueError, match=r"there is no os\.system"):
        reward_of({"os.system": 1.0})
    with pytest.raises(ValueError, match="none is named"):
        reward_of({})
    with pytest.raises(ValueError, match="has no number"):
        reward_of({"number": 1.0})("4", "four")


def test_rollouts_that_cannot_be():
    with pytest.raises(ValueError, match="no prompts"):
        Rollouts([], fixed, small, words)
    with pytest.raises(ValueError, match="at least 2"):
        rollouts(answers=1)
    with pytest.raises(ValueError, match="prompt 0 is empty"):
        Rollouts([Prompt(())], fixed, small, words)
    with pytest.raises(ValueError, match="none of them empty"):
        rollouts(lambda prompts, n, seed: [[[]] * n for _ in prompts]).take(1)
