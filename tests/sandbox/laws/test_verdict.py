"""Yes, no or cannot tell: every question of every experiment, decided by its interval, against planted truths and noise."""

import json
import math
import re

import pytest

from gangpao.sandbox.bilingual import Text
from gangpao.sandbox.experiments import batch, lr, mix, optim, scaling, schedule
from gangpao.sandbox.experiments.check import Slope
from gangpao.sandbox.experiments.text.page import answered
from gangpao.sandbox.laws import doubts
from gangpao.sandbox.laws.scaling_law import ScalingLaw
from gangpao.sandbox.laws.verdict import UNKNOWN, Verdict, about, all_of, decide
from tests.sandbox.experiments import test_batch, test_lr, test_mix, test_optim, test_scaling, test_schedule
from tests.sandbox.makers import Trials, markdown, page, said


@pytest.mark.parametrize(
    ("interval", "allowed", "answer"),
    [
        ((0.8, 1.2), (0.5, 2.0), "yes"), ((0.2, 4.14), (0.5, 2.0), "cannot tell"), ((0.1, 0.4), (0.5, 2.0), "no"),
        ((0.4, 0.6), (0.5, 2.0), "cannot tell"), ((3.0, math.inf), (0.5, 2.0), "no"), (UNKNOWN, (0.5, 2.0), "cannot tell"),
        ((math.nan, math.nan), (0.5, 2.0), "cannot tell"), ((-0.2, -0.1), (-math.inf, 0.0), "yes"),
        ((-0.1, 0.1), (-math.inf, 0.0), "cannot tell"), ((0.0, 0.0), (-math.inf, 0.0), "yes"),
        ((math.inf, math.inf), (-math.inf, 0.3), "no"), ((21.0, 900.0), (20.0, math.inf), "yes"),
    ],
)  # fmt: skip
def test_the_interval_decides(interval, allowed, answer):
    assert decide(*interval, allowed) == answer
    found = Verdict("is", 1.0, interval, allowed).json()
    assert found["answer"] == answer
    if not all(map(math.isnan, interval)):
        json.dumps(found, allow_nan=False)
    en, zh = answered(Text("Is it?", "是否？"), found).line
    assert en.startswith(f"Is it? {answer.capitalize()} (")
    assert ({"yes": "是", "no": "否", "cannot tell": "无法判断"}[answer] + "（") in zh
    assert sorted(re.findall(r"\d[\d.]*", en)) == sorted(re.findall(r"\d[\d.]*", zh))


def test_what_nothing_tells_is_not_decided():
    assert about(1.0, None) == about(None, 1.0) == UNKNOWN
    assert [all_of(answers) for answers in (["yes", "yes"], ["yes", "cannot tell"], ["cannot tell", "no"], [])] == [
        "yes", "cannot tell", "no", "cannot tell",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("slope", "half", "answer"),
    [
        (0.1, 0.05, "yes"),
        (0.19, 0.05, "cannot tell"),
        (0.3, 0.05, "no"),
        (0.3, 0.2, "cannot tell"),
        (math.nan, 0.05, "no"),
    ],
)
def test_a_slope_of_the_check_is_decided_by_its_interval(slope, half, answer):
    found = Slope(coordinate="mlp", quantity="change", step=1, slope=slope, error=None, half=half, low=-0.2, high=0.2)
    assert found.answer == answer


# --- every experiment: how to run it with planted noise, and what is true of the plant


def run_lr(lab, tmp_path, noise, i):
    return lr.run(test_lr.make(tmp_path, widths=(64, 256)), Trials(test_lr.loss, noise=noise, salt=str(i)))


def run_batch(lab, tmp_path, noise, i):
    return batch.run(test_batch.make(tmp_path), Trials(test_batch.loss, noise=noise, salt=str(i)))


def run_mix(lab, tmp_path, noise, i):
    return mix.run(test_mix.make(tmp_path), test_mix.planted(noise=noise, salt=str(i)))


def run_optim(lab, tmp_path, noise, i):
    submit = Trials(test_optim.loss, noise=noise, busy=test_optim.seconds, salt=str(i))
    return optim.run(test_optim.make(tmp_path), submit)


def run_schedule(lab, tmp_path, noise, i):
    lab = test_schedule.with_config(lab, seeds=(3 * i, 3 * i + 1, 3 * i + 2))
    return schedule.run(lab, test_schedule.fake(lab, noise))


def run_scaling(lab, tmp_path, noise, i):
    lab = test_scaling.with_config(lab, seeds=(i,))
    return scaling.run(lab, test_scaling.Fake(lab, noise=noise))


def best_ratio(out):
    plant = test_scaling
    law = ScalingLaw(plant.E, plant.A, plant.B, plant.ALPHA, plant.BETA)
    C = max(6 * N * D for N, _, D, _ in out.facts["points"]["wsd"])
    return "yes" if law.ratio(C) > doubts.PUBLISHED[0] else "no"


# experiment: how to run it, its noises (small, between, huge), question -> truth (others lie on their threshold), and what its
# paragraph says only where an answer is sure
TABLE = {
    "lr": (
        run_lr, (0.0003, 0.01, 0.5), {"minicpm": "yes", "standard": "no"},
        {"yes": "yes, it stays within a step", "no": "no, it moves by more than a step"},
    ),
    "batch": (
        run_batch, (0.0003, 0.01, 0.5), {"grow as the loss falls": "yes", "law of loss": "yes"},
        {"yes": "is met", "no": "is missed"},
    ),
    "mix": (
        run_mix, (0.00005, 0.002, 0.5), {"Total": "yes", "Chinese": "no", "Code": "yes"},
        {"yes": "(lower)", "no": "(higher)"},
    ),
    "optim": (run_optim, (0.001, 0.05, 2.0), {"tokens": "yes", "seconds": "yes"}, {"yes": "; less.", "no": "; more."}),
    "schedule": (
        run_schedule, (0.0003, 0.002, 0.5),
        {"the best cosine": "yes", "2.5%": "no", "5.0%": "no", "10.0%": "yes", "20.0%": "yes"},
        {"yes": "better than cosine", "no": "worse than cosine"},
    ),
    "scaling": (run_scaling, (0.0001, 0.01, 0.2), {"the loss E": "yes", "above Chinchilla's": best_ratio}, {}),
}  # fmt: skip


def truth_of(question, truths, out):
    found = next((truth for word, truth in truths.items() if word in question), None)
    return found(out) if callable(found) else found


@pytest.mark.parametrize("name", TABLE)
def test_no_answer_where_the_interval_holds_both(name, lab, tmp_path):
    run, noises, truths, phrases = TABLE[name]
    wrong, sure = 0, {noise: [] for noise in noises}
    for noise in noises:
        for i in range(1 if name in ("schedule", "scaling") else 2):  # these take seconds
            out = run(lab, tmp_path, noise, i)
            assert out.verdicts
            for v, question in zip(out.verdicts, page(out).questions, strict=True):
                (low, high), (least, most) = v.interval, v.allowed
                both = low < least <= high or low <= most < high
                assert (v.answer == "cannot tell") == both, v
                truth = truth_of(question.question.en, truths, out)
                if truth is not None:
                    sure[noise].append(v.answer != "cannot tell")
                    wrong += v.answer not in (truth, "cannot tell")
            answers = [v.answer for v in out.verdicts]
            for answer, phrase in phrases.items():
                assert said(out).count(phrase) <= answers.count(answer), (answer, said(out))
            text = markdown(out, "en")
            assert text.count("? Cannot tell (") == answers.count("cannot tell")
            assert markdown(out, "zh").count("无法判断（") >= answers.count("cannot tell")
    small, _, huge = noises
    total = sum(map(len, sure.values()))
    assert wrong <= 0.05 * total
    assert all(sure[small]), sure  # what can be told is told
    assert sum(sure[huge]) <= 0.15 * len(sure[huge]) + 1, sure
