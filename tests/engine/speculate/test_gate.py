"""What a row costs, how often guesses are right, and how many are proposed for it."""

import random
import statistics

import pytest

from gangpao.engine.sample import Sampler, SamplingParams
from gangpao.engine.speculate.chances import Chances, first_belief
from gangpao.engine.speculate.drafters import Guess, Price
from gangpao.engine.speculate.speculation import ALONE, LOSS, MAX_DRAFT, PRIOR, Company, Speculation, StepCosts

REAL = {1: 1.0, 2: 1.15, 3: 1.3, 4: 1.5, 5: 2.1, 6: 2.2, 7: 2.4, 8: 2.6, 9: 3.0, 16: 4.6}  # of a machine, by rows


def real(rows):
    return REAL.get(rows) or 3.0 + 0.23 * (rows - 9)


def taught(cost=real, rows=16):
    """Costs that were measured."""
    costs = StepCosts()
    for _ in range(20):
        for n in range(1, rows + 1):
            costs.take(n, 0.01 * cost(n))
    return costs


def test_costs_are_what_steps_take_whatever_the_machine_does_meanwhile():
    rng = random.Random(1)
    costs = StepCosts()
    assert costs.of(1) == 1.0
    assert costs.of(4) == pytest.approx(1 + 3 * PRIOR)
    pace = 0.01
    for step in range(600):
        if step % 50 == 0:
            pace = rng.choice([0.01, 0.025])  # a neighbour comes and goes
        rows = rng.choice([1, 1, 1, 2, 4, 8])
        outlier = 8.0 if rng.random() < 0.05 else 1.0
        costs.take(rows, pace * real(rows) * rng.uniform(0.95, 1.1) * outlier)
    for rows in (2, 4, 8):
        assert costs.of(rows) == pytest.approx(real(rows), rel=0.12)
    assert costs.of(4) <= costs.of(5) <= costs.of(6) <= costs.of(8)  # between those that were measured
    assert costs.of(16) > costs.of(8)
    assert list(costs.measured()) == [1, 2, 4, 8]


def test_one_bad_sample_changes_little():
    costs = taught(rows=4)
    before = costs.of(3)
    costs.take(3, 10.0)
    assert costs.of(3) == pytest.approx(before, rel=0.02)
    fresh = StepCosts()
    fresh.take(1, 0.01)
    fresh.take(2, 1.0)
    assert fresh.of(2) < 2


def test_an_answer_is_soon_judged_by_its_own_guesses():
    shared = {}
    first = Chances(shared)
    assert first.of("text 3") == first_belief("text 3")
    for _ in range(200):
        first.learn("text 3", True)
    second = Chances(shared)
    assert second.of("text 3") > 0.9
    for _ in range(6):
        second.learn("text 3", False)
    assert second.of("text 3") < 0.5
    assert Chances(shared).of("text 3") > 0.8


@pytest.mark.parametrize(
    ("kind", "low", "high"), [("model 0.99", 0.9, 1), ("model 0.5", 0.4, 0.6), ("model 0.0", 0, 0.1)]
)
def test_a_small_models_certainty_is_believed_at_first(kind, low, high):
    assert low <= first_belief(kind) <= high


def answer(true_tokens, prompt, costs, company=ALONE):
    """Say true_tokens behind a prompt with proposals; steps of one row that it takes, and steps that it would take."""
    sampler = Sampler(SamplingParams(temperature=0), 1000)
    speculation = Speculation(costs=costs)
    speculator = speculation.begin(prompt, sampler)
    ids, left, took, counts = list(prompt), list(true_tokens), 0.0, []
    while left:
        drafts = speculator.propose(ids, len(left) - 1, company)
        counts.append(len(drafts))
        right = next((i for i, (a, b) in enumerate(zip(drafts, left, strict=False)) if a != b), len(drafts))
        took += real(company.rows + len(drafts)) - real(company.rows) + 1
        costs.take(1 + len(drafts), 0.01 * real(1 + len(drafts)))
        if drafts:
            speculator.learn(right)
        ids += left[: right + 1]
        del left[: right + 1]
    return took, len(true_tokens), counts


def test_copying_is_more_than_twice_as_fast():
    source = random.Random(0).sample(range(1000), 200)
    took, plain, counts = answer(source, [*source, 1, 2, *source[:3]], StepCosts())
    assert plain / took > 2.0
    assert max(counts) >= 3


def test_an_edit_is_nearly_as_fast_as_a_copy():
    rng = random.Random(1)
    source = rng.sample(range(900), 300)
    edited = [token if rng.random() > 0.04 else 900 + rng.randrange(100) for token in source]
    took, plain, _ = answer(edited, [*source, 1, 2, *source[:2]], taught())
    assert plain / took > 1.7


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("measured", [False, True])
def test_what_cannot_be_foreseen_costs_next_to_nothing(seed, measured):
    """Words that come again and again, each time followed by others: every guess is there, and few are right."""
    rng = random.Random(seed)
    text = [rng.randrange(12) for _ in range(400)]
    took, plain, _ = answer(text, [rng.randrange(12) for _ in range(60)], taught() if measured else StepCosts())
    assert plain / took >= 0.985


def test_a_machine_on_which_rows_are_dear_gets_no_drafts():
    def dear(rows):
        return float(rows)

    rng = random.Random(3)
    ids = [rng.randrange(8) for _ in range(300)]
    speculator = Speculation(costs=taught(dear)).begin(ids, Sampler(SamplingParams(temperature=0), 1000))
    tried = 0
    for token in ids[:100]:
        drafts = speculator.propose(ids, 10)
        tried += len(drafts)
        if drafts:
            speculator.learn(0)
        ids.append(token)
    assert tried <= 1 + 100 * LOSS


def test_in_company_a_row_has_to_be_worth_more_where_it_costs_the_others():
    ids = [*range(50), 60, 61, *range(20)]

    def proposed(company):
        speculation = Speculation(costs=taught())
        counts = [Chances(speculation.counts).learn("text 16+", True) for _ in range(20)]
        assert len(counts) == 20
        return len(speculation.begin(ids, Sampler(SamplingParams(temperature=0), 1000)).propose(ids, 30, company))

    alone, eight = proposed(Company()), proposed(Company(rows=8, tokens=8))
    with_a_prompt = proposed(Company(rows=33, tokens=1))
    assert alone >= 3
    assert eight <= alone
    assert with_a_prompt >= alone  # the step is long anyway, and says one token
    assert max(alone, with_a_prompt) <= MAX_DRAFT


class Priced:
    """Guesses at a price, all of them right as far as it can tell."""

    name, guesses_made, nbytes, plain_s, most = "head", 0, 0, 0.0, 15

    def __init__(self, price):
        self.price = price

    def drafter(self, sampler, cache):
        return self

    def seconds(self, ids, plain_s=0.0):
        return Price(*(steps * 0.01 for steps in self.price))

    def guesses(self, ids):
        for token in range(self.most):
            self.guesses_made += 1
            yield Guess(token, "head 0.95")


def test_a_block_is_paid_for_once():
    """Guesses of which the first is dear and the others are free are taken together, or not at all."""
    found = {}
    for price in ((0, 0.7, 0), (0, 0.7, 0.7), (0, 0.7, 5), (0, 0, 0), (0, 1.2, 0), (0, 5, 0)):
        draft = Priced(price)
        sampler = Sampler(SamplingParams(temperature=0), 1000)
        speculator = Speculation(draft, costs=taught(lambda rows: 0.96 + 0.04 * rows)).begin([900, 901], sampler)
        for _ in range(20):
            speculator._chances.learn("head", True)
            speculator._chances.learn("head 0.95", True)
        found[price] = len(speculator.propose([900, 901, 902], 30)), draft.guesses_made
    proposed, made = found[0, 0.7, 0]
    assert proposed == found[0, 0, 0][0] > found[0, 0.7, 0.7][0] >= 1
    assert made >= proposed
    assert found[0, 0.7, 5] == (1, 1)
    assert found[0, 1.2, 0][0] == proposed  # dearer than a step, and still the most tokens in the time
    assert found[0, 5, 0] == (0, 0)


def test_room_is_kept_to_and_steps_of_one_row_are_seen_now_and_then():
    ids = [*range(50), *range(40)]
    costs = taught()
    speculator = Speculation(costs=costs).begin(ids, Sampler(SamplingParams(temperature=0), 1000))
    assert len(speculator.propose(ids, 2)) <= 2
    assert speculator.propose(ids, 0) == []
    plain = 0
    for _ in range(300):
        drafts = speculator.propose(ids, 10)
        plain += not drafts
        costs.take(1 + len(drafts), 0.01 * real(1 + len(drafts)))
        if drafts:
            speculator.learn(len(drafts))
    assert 2 <= plain <= 6
    assert statistics.median(costs._plain) == pytest.approx(0.01, rel=0.05)
