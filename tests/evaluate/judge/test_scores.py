"""Scores, their errors, and agreement of judges: equal to what others compute."""

import math

import numpy as np
import pytest

from gangpao.evaluate.judge import agreement, scores
from gangpao.evaluate.judge.marking import Asking, Judgment
from gangpao.evaluate.judge.questions import Question
from gangpao.evaluate.models.protocol import Prompt

PLACE = scores.Place("set", 160, "judge j", "v", "d")


def judgment(question, turn, value, swapped=False, category="math"):
    asking = Asking(Question(question, category, ("a", "b")), turn, swapped, Prompt())
    return Judgment(asking, value, (), "" if value is not None else "no_verdict")


def test_marks():
    given = [
        judgment("1", 1, 8.0), judgment("1", 2, 6.0), judgment("2", 1, 4.0, category="writing"),
        judgment("2", 2, None, category="writing"), judgment("3", 1, 9.0),
    ]  # fmt: skip
    main, first, second = scores.results("single", given, PLACE, main=True)
    assert (main.metric, main.value, main.items, main.of, main.scale) == ("score", 6.75, 4, 160, 10)
    assert main.stderr == pytest.approx(np.std([7, 4, 9], ddof=1) / math.sqrt(3))
    assert main.parts == {"math": pytest.approx(23 / 3), "writing": 4}
    assert main.left_out == {"no_verdict": 1}
    assert (first.metric, first.value, second.metric, second.value) == ("score_turn_1", 7, "score_turn_2", 6)
    assert not first.main
    with pytest.raises(ValueError, match="none of 1 judgments holds a verdict"):
        scores.results("single", [judgment("1", 1, None)], PLACE, main=True)


def test_pairs_win_in_both_orders_or_not_at_all():
    values = [(1, 1), (1, -1), (-1, -1), (0, 0), (1, 0), (1, None)]
    given = [judgment(str(n), 1, v, swapped) for n, pair in enumerate(values) for swapped, v in enumerate(pair)]
    found = {r.metric: r.value for r in scores.results("pair", given, PLACE, main=True)}
    assert found["win_rate"] == (1 + 0.5 + 0 + 0.5 + 0.5) / 5
    assert (found["wins"], found["ties"], found["losses"]) == (0.2, 0.6, 0.2)
    assert found["order_agreement"] == 3 / 5
    # (1, 1): first, second; (1, -1): first, first; (-1, -1): second, first; (1, 0): first; (1, None): first
    assert found["first_preferred"] == 6 / 8


def test_an_arena_counts_much_better_as_three_games():
    given = [judgment("1", 1, 2), judgment("1", 1, -1, True), judgment("2", 1, 0), judgment("2", 1, -2, True)]
    result = scores.results("arena", given, PLACE, main=True)[0]
    assert result.value == pytest.approx((3 * 1 + 0 + 0.5 + 3 * 0) / 8)
    assert result.items == 4
    low, high = scores.interval(scores.outcomes("arena", given))
    assert (low, high) == (pytest.approx(0.5 / 4), pytest.approx(0.75))


def test_the_interval_of_a_win_rate_is_that_of_shares():
    rng = np.random.default_rng(0)
    given = [judgment(str(n), 1, 1 if rng.random() < 0.7 else -1, s) for n in range(200) for s in (False,)]
    given += [judgment(j.asking.question.id, 1, j.value, True) for j in given]
    result = scores.results("pair", given, PLACE, main=True)[0]
    p = result.value
    assert result.stderr == pytest.approx(math.sqrt(p * (1 - p) / 200), rel=0.1)
    low, high = scores.interval(scores.outcomes("pair", given))
    assert high - low == pytest.approx(2 * 1.96 * result.stderr, rel=0.1)


def test_agreement_is_what_textbooks_compute():
    a = [1.0] * 25 + [0.0] * 25
    b = [1.0] * 20 + [0.0] * 5 + [1.0] * 10 + [0.0] * 15
    assert agreement.kappa(a, b) == pytest.approx(0.4)  # 20, 5, 10, 15 of 50
    assert agreement.exact(a, b) == 0.7
    iq = [106, 100, 86, 101, 99, 103, 97, 113, 112, 110]
    tv = [7, 27, 2, 50, 28, 29, 20, 12, 6, 17]
    assert agreement.spearman(iq, tv) == pytest.approx(-29 / 165)
    # ties share their mean rank: 1.5, 1.5, 3, 4 against 1, 2, 3.5, 3.5
    ranks = np.corrcoef([1.5, 1.5, 3, 4], [1, 2, 3.5, 3.5])[0, 1]
    assert agreement.spearman([4, 4, 7, 9], [1, 3, 5, 5]) == pytest.approx(ranks)
    assert agreement.within([1, 2, 3], [2, 4, 3], 1) == pytest.approx(2 / 3)


def test_agreement_where_there_is_none_to_speak_of():
    assert agreement.spearman([5, 5, 5], [1, 2, 3]) is None
    assert agreement.kappa([1, 1], [1, 1]) is None
    assert agreement.kappa([0, 1, 0, 1], [0, 1, 1, 0]) == 0
    assert agreement.spearman([1, 2, 3], [1, 4, 9]) == pytest.approx(1)
    given = [judgment("1", 1, None), judgment("1", 2, 3.0)]
    assert scores.agreements("single", given, given[::-1], PLACE) == []
    found = {r.metric: r.value for r in scores.agreements("single", given, given, PLACE)}
    assert found == {"agreement_exact": 1, "agreement_within_1": 1}
