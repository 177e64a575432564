"""A Chinese report is Chinese: each experiment's, with trials that were left out, has no English word but terms and names."""

import html
import inspect
import json
import math
import re

import pytest

from gangpao.sandbox import report
from gangpao.sandbox.experiments import batch, lr, mix, optim, outcome, scaling, scaling_text, schedule
from gangpao.sandbox.experiments.chinese import chinese
from gangpao.sandbox.laws import fit
from gangpao.sandbox.trials import queue, trial
from gangpao.train import loop
from tests.sandbox.makers import DECAY, Trials, make_lab, noise_of

TERMS = {  # names of what a configuration may say stay, as do signs and units
    "adamw", "cosine", "AdamW", "Muon", "muon", "minicpm", "standard", "wsd", "wsd_linear", "WSD", "bpb", "token", "FLOPs", "nat",
    "alpha", "beta", "inf", "nan", "min", "en-", "zh-", "code-", "ND", "guard.on_bad_step", "seq_len", "batch.batches",
    "batch.check", "batch.tokens", "lr.rates", "optim.rates", "optim.tokens", "schedule.cosine_rates", "schedule.decays",
    "Chinchilla", "scaling.floor", "scaling.targets", "lr.seeds", "batch.seeds", "mix.seeds", "optim.seeds", "schedule.seeds",
}  # fmt: skip
ENDS = [
    ("diverged", "step 13: loss nan, gradient norm 3.5; stopped as guard.on_bad_step says; nothing is saved yet"),
    ("diverged", "step 9: loss 9.12 is more than 3 times the median 2.2; stopped as guard.on_bad_step says; "
                 "the last checkpoint is 000000000008"),
    ("diverged", "step 7: a weight is not finite any more; nothing was saved over the last checkpoint"),
    ("diverged", "its parent 0123456789abcdef is diverged"),
    ("pruned", "its loss at step 12 is worse than that of most others"), ("pruned", ""),
]  # fmt: skip
SIZES = [{"width": w, "layers": 2} for w in (32, 48, 64)]
TOKENS = (409_600, 819_200, 1_638_400)
TABLES = {
    "lr": {"widths": (64, 128), "layers": (2, 8), "rates": (0.005, 0.01, 0.02, 0.04), "seeds": (0, 1)},
    "batch": {
        "sizes": SIZES, "tokens": TOKENS, "check": [{"width": 96, "layers": 2}], "seeds": (0, 1),
        "batches": (1024, 2048, 4096, 8192),
    },
    "schedule": {"horizons": TOKENS, "decays": (0.1, 0.2), "cosine_rates": (0.5, 1.0, 2.0), "seeds": (0, 1)},
    "scaling": {"sizes": SIZES, "tokens": TOKENS, "cosine": True, "floor": (1.0, 0.2), "seeds": (0, 1)},
    "mix": {"seeds": (0, 1, 2)}, "optim": {"rates": (0.005, 0.01, 0.02), "tokens": TOKENS, "seeds": (0, 1)},
}  # fmt: skip
RUN = {"lr": lr, "batch": batch, "schedule": schedule, "scaling": scaling, "mix": mix, "optim": optim}


def loss(spec):
    t, u = math.log(spec.lr / 0.01), math.log(spec.batch_tokens / 3000)
    return 1 + 8 / spec.width**0.5 + 40 * spec.tokens**-0.3 + 0.02 * (t * t + u * u) + 0.01 * noise_of(spec)


def end(spec):
    """Some of the trials, no stable run and only one seed, end badly: in each way that there is."""
    at = int(1000 * abs(noise_of(spec)))
    return ENDS[at // 3 % len(ENDS)] if spec.seed == 1 and not spec.marks and at % 3 == 0 else None


def heldout(spec):
    return {f"{name}_bpb": 2.0 for name in ("zh-laws", "en-books", "code-python", "wiki")} | {"sft_zh_nats": 3.0}


def words(text):
    """Words of two Latin letters or more; hexadecimal names and numbers are none."""
    found = re.findall(r"[A-Za-z][A-Za-z_.-]*[A-Za-z-]", re.sub(r"\b[0-9a-f]{16}\b|\d(e[-+]?\d+)?", "", text))
    return {word for word in found if word not in TERMS}


def made(name, tmp_path, **options):
    lab = make_lab(tmp_path, **{name: TABLES[name]}, common={"tokens": 409_600, "decay": 0.1, "width": 64})
    return RUN[name].run(lab, Trials(loss, heldout=heldout, **options))


@pytest.mark.parametrize("name", RUN)
def test_a_chinese_report_has_no_english_words(name, tmp_path):
    lacking = made(name, tmp_path, end=end)
    assert lacking.excluded
    for out in (lacking, made(name, tmp_path)):
        assert words(outcome.markdown(out, "zh")) == set()
        assert words(outcome.markdown(out, "en")) != set()


def test_the_page_of_all_has_none_either(tmp_path):
    for name in ("batch", "mix"):
        outcome.write(made(name, tmp_path, end=end), tmp_path / name)
    page, text = report.write(tmp_path, "zh")
    assert words(html.unescape(re.sub(r"<[^>]*>", " ", page.read_text().partition("</style>")[2]))) == set()
    assert words(re.sub(r"\(\w+/plot.zh.png\)", "", text.read_text())) == set()


def test_words_in_cells_are_those_of_the_language(tmp_path):
    out = made("lr", tmp_path)
    assert out.rows[0]["axis"] == {"en": "width", "zh": "宽度"}
    assert "| 宽度 |" in outcome.markdown(out, "zh")
    assert "| width |" in outcome.markdown(out, "en")
    assert out.facts["rows"][0]["axis"] == "width"  # for programs
    assert {"是", "否"} == {row["check"]["zh"] for row in made("batch", tmp_path).rows}
    cells = made("mix", tmp_path).rows
    assert {"不含监督数据", "含监督数据"} == {row["mixture"]["zh"] for row in cells}
    assert "总计" in {row["group"]["zh"] for row in cells}
    assert {"更低", "更高", "无法判断"} >= {row["verdict"]["zh"] for row in cells if row["verdict"]} != set()
    target = {
        "predicted": 1.0,
        "low": 0.9,
        "high": 1.1,
        "actual": 1.0,
        "size": "8x1",
        "N": 9,
        "D": 9,
        "error": 0.0,
        "flops": 1.0,
    }
    kinds = [scaling_text._target_row({"law": law, **target})["kind"] for law in ("wsd", "coupled", "cosine", "equal")]
    assert kinds[0] == {"en": "target, law wsd", "zh": "目标（退火规律）"}
    assert not any(words(kind["zh"]) for kind in kinds)


def test_a_mixture_that_was_left_out_has_its_name_in_both(tmp_path):
    lost = made("mix", tmp_path, end=lambda q: ("diverged", "nan") if q.mixture == DECAY and q.seed == 2 else None)
    assert "未计入：含监督数据：64x4，minicpm" in outcome.markdown(lost, "zh")
    assert "Left out: with supervised data: 64x4, minicpm" in outcome.markdown(lost, "en")


def test_an_outcome_of_before_is_still_shown(tmp_path):
    outcome.write(made("batch", tmp_path, end=end), tmp_path / "batch")
    path = tmp_path / "batch" / "outcome.json"
    old = json.loads(path.read_text())
    for row in old["rows"]:
        row["check"] = row["check"]["en"]
    old["excluded"] = [["32x2, lr 0.01, seed 1", "diverged: step 3: loss nan, gradient norm nan"]]
    path.write_text(json.dumps(old))
    page, _ = report.write(tmp_path, "zh")
    assert "<td>yes</td>" in page.read_text()
    assert "未计入：32x2，学习率 0.01，种子 1（发散：第 3 步：损失 nan，梯度范数 nan）" in page.read_text()
    assert "Left out: 32x2, lr 0.01, seed 1 (diverged: step 3" in report.write(tmp_path, "en")[0].read_text()


def test_reasons_of_a_law_are_said_in_chinese():
    one = [fit.Point(N=1e6, D=1e7 * k, loss=2.0 / k) for k in range(1, 8)]
    same = [fit.Point(N=1e6 * k, D=1e7, loss=2.0 / k) for k in range(1, 8)]
    few = [fit.Point(N=n, D=d, loss=3.0) for n in (1e5, 1e6) for d in (1e7, 2e7)]
    bad = [fit.Point(N=1e6, D=1e7, loss=math.nan)]
    for points in (one, same, few, one + bad, same + bad, few + bad, []):
        with pytest.raises(ValueError, match=r"law") as raised:
            fit.fit_scaling(points)
        assert words(chinese(str(raised.value))) == set()
    points = [fit.Point(N=n, D=d, loss=1 + n**-0.3 + d**-0.3) for n in (1e3, 1e4, 1e5, 1e6) for d in (1e4, 1e5, 1e6)]
    wild = fit.Point(N=1e5, D=3e5, loss=9.0)
    left = fit.fit_scaling([*points, wild, *bad, fit.Point(N=1e5, D=1e5, loss=-1.0)]).excluded
    assert len(left) == 3
    for point, why in left:
        assert words(chinese(f"{point} in law wsd")) == set()
        assert words(chinese(why)) == set()
    assert chinese("something new") == "something new"


def test_what_trials_say_of_their_end_is_still_what_is_known_here():
    """The texts above are copies; this is where they come from."""
    sources = "".join(inspect.getsource(module) for module in (loop, trial, queue))
    for part in (
        "gradient norm {norm}", "times the median", "is more than", "stopped as guard.on_bad_step says", "nothing is saved yet",
        "the last checkpoint is {", "is not finite any more; ", "nothing was saved over the last checkpoint", "its parent {",
        "its loss at step {line['step']} is worse than that of most others",
    ):  # fmt: skip
        assert part in sources, part
