"""The mixture that is solved for against all mixtures, one by one."""

import itertools

import numpy as np
import pytest

from gangpao.compress.budget.amount import parse_bytes
from gangpao.compress.budget.solver import Option, best, frontier, hull, limits, nested


def random_groups(seed: int, groups: int = 5, options: int = 4, unit: int = 12) -> list[list[Option]]:
    rng = np.random.default_rng(seed)
    return [
        [
            Option(int(b) * unit, float(x))
            for b, x in zip(rng.integers(1, 30, options), rng.random(options), strict=True)
        ]
        for _ in range(groups)
    ]


def cost(groups: list[list[Option]], chosen: list[int]) -> Option:
    picked = [groups[g][i] for g, i in enumerate(chosen)]
    return Option(sum(o.nbytes for o in picked), sum(o.loss for o in picked))


@pytest.mark.parametrize("seed", range(6))
def test_the_best_mixture_is_the_best_of_all(seed: int) -> None:
    groups = random_groups(seed)
    every = [cost(groups, list(pick)) for pick in itertools.product(range(4), repeat=5)]
    least, most = limits(groups)
    assert least == min(o.nbytes for o in every)
    before = np.inf
    for budget in np.linspace(least, most + 30, 9).astype(int):
        found = cost(groups, best(groups, int(budget)))
        assert found.nbytes <= budget
        assert found.loss == pytest.approx(min(o.loss for o in every if o.nbytes <= budget))
        assert found.loss <= before + 1e-12
        before = found.loss
    assert before == pytest.approx(min(o.loss for o in every))


@pytest.mark.parametrize("seed", range(4))
def test_with_too_many_bytes_to_count_the_budget_holds_and_little_is_lost(seed: int) -> None:
    groups = random_groups(seed, groups=40, options=6, unit=1013)
    least, most = limits(groups)
    for share in (0.05, 0.3, 0.6, 0.95):
        budget = int(least + share * (most - least))
        exact, coarse = (cost(groups, best(groups, budget, steps)) for steps in (1 << 20, 500))
        assert coarse.nbytes <= budget
        assert exact.loss - 1e-9 <= coarse.loss <= exact.loss + 0.03 * (cost(groups, [0] * 40).loss)


@pytest.mark.parametrize("seed", range(4))
def test_more_bytes_make_no_tensor_of_a_nested_mixture_worse(seed: int) -> None:
    groups = random_groups(seed, groups=12)
    least, most = limits(groups)
    before = nested(groups, least)
    for budget in [*range(least, most, 7), most]:
        chosen = nested(groups, budget)
        assert cost(groups, chosen).nbytes <= budget
        for options, old, new in zip(groups, before, chosen, strict=True):
            assert options[new].loss <= options[old].loss
        before = chosen
    assert cost(groups, before).loss == pytest.approx(sum(min(o.loss for o in options) for options in groups))


def test_what_another_option_beats_is_not_on_the_frontier() -> None:
    options = [Option(10, 5.0), Option(12, 6.0), Option(20, 4.9), Option(30, 1.0), Option(30, 2.0), Option(40, 1.0)]
    assert frontier(options) == [0, 2, 3]
    assert hull(options) == [0, 3]  # 20 bytes save less a byte than the way past them


def test_a_budget_below_the_smallest_mixture_is_refused() -> None:
    groups = random_groups(0)
    least, _ = limits(groups)
    for solve in (best, nested):
        with pytest.raises(ValueError, match="more than the budget"):
            solve(groups, least - 1)
    assert cost(groups, best(groups, least)).nbytes == least


@pytest.mark.parametrize(
    ("text", "amount"),
    [("900MB", 900_000_000), ("1.2GiB", 1_288_490_188), ("1.2 GB", 1_200_000_000), ("943_718_400", 943_718_400),
     ("96k", 96_000), ("64 KiB", 65_536), ("1,000", 1000)],
)  # fmt: skip
def test_amounts_of_bytes(text: str, amount: int) -> None:
    assert parse_bytes(text) == amount


@pytest.mark.parametrize("text", ["", "MB", "-1MB", "900 Mbit", "1e9", "0", "0.2", "4.25 bits"])
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="900MB"):
        parse_bytes(text)
