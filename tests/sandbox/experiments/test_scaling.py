"""The scaling study against a planted law, and predictions that are made before the targets run."""

import hashlib
import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest

from gangpao import machine
from gangpao.atomic import write_json
from gangpao.sandbox.experiments import scaling
from gangpao.sandbox.experiments.scaling import Ladder
from gangpao.sandbox.experiments.study import predictions
from gangpao.sandbox.experiments.study import study as studies
from gangpao.sandbox.experiments.text import page as pages
from gangpao.sandbox.trials.config import Size
from gangpao.sandbox.trials.trial import RESULT, Result, cost_of, key_of
from tests.sandbox.makers import markdown, said

E, A, B, ALPHA, BETA = 0.6, 12.0, 60.0, 0.35, 0.4
SIZES = tuple(Ladder(width=w, layers=n) for w, n in ((32, 1), (48, 2), (64, 3), (96, 4)))
TOKENS = (51_200, 102_400, 204_800, 409_600)
TARGET = Size(width=128, layers=6)


def loss(N, D, schedule="wsd"):
    return E + A * N**-ALPHA + B * D**-BETA + (0.003 if schedule == "cosine" else 0.0)


def result_of(lab, spec, *, noise=0.0, state="done", shift=0.0):
    N, total, flops = cost_of(lab, spec)
    key = key_of(lab, spec)
    rng = np.random.default_rng(list(spec.model_dump_json().encode()))  # not of the key: it changes with the rules
    bpb = loss(N, spec.tokens, spec.schedule) + noise * rng.standard_normal() + shift
    return Result(
        key=key, spec=spec, state=state, N=N, N_total=total, D=spec.tokens, flops=flops,
        bpb=bpb if state == "done" else None, busy=flops / 1e9, seconds=flops / 1e9, workers=2.0,
    )  # fmt: skip


class Fake:
    """submit(specs): results by the plant, written where trials lie as the real one does; remembers the calls."""

    def __init__(self, lab, **options):
        self.lab, self.options, self.calls, self.before = lab, options, [], None

    def __call__(self, specs):
        self.calls.append(list(specs))
        path = self.lab.out / "scaling" / predictions.FILE
        if any(s.width == TARGET.width for s in specs):
            self.before = path.read_bytes() if path.exists() else None
        results = [self.result(spec) for spec in specs]
        for r in results:
            folder = self.lab.folder(r.spec)
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / RESULT, r.model_dump(mode="json"))
        return results

    def result(self, spec):
        return result_of(self.lab, spec, **self.options)


def with_config(lab, **changes):
    table = {"sizes": SIZES, "tokens": TOKENS, "seeds": (0,)} | changes
    common = lab.config.common.model_copy(update={"decay": 0.1, "warmup": 0.02})
    scaling_ = lab.config.scaling.model_copy(update=table)
    return replace(lab, config=lab.config.model_copy(update={"scaling": scaling_, "common": common, "workers": 2}))


def numbers(text):
    return sorted(re.findall(r"\d[\d,.]*\d|\d", text))


def test_one_stable_run_a_size_with_decays_at_every_count(lab):
    lab = with_config(lab, cosine=True, seeds=(0, 1))
    specs = scaling.specs_of(lab)
    assert len(specs["stable"]) == 2 * len(SIZES)
    assert len(specs["branch"]) == len(specs["cosine"]) == 2 * len(SIZES) * len(TOKENS)
    for stable in specs["stable"]:
        mine = [s for s in specs["branch"] if s.parent == stable]
        assert {s.tokens for s in mine} == set(TOKENS)
        assert {s.parent_step for s in mine} == set(stable.marks) == {180, 360, 720, 1440}
        assert stable.steps == max(stable.marks)
    assert {round(s.warmup * s.steps) for s in (*specs["stable"], *specs["cosine"])} == {32}
    assert {(s.width, s.layers, s.seed, s.tokens) for s in specs["branch"]} == {
        (s.width, s.layers, s.seed, s.tokens) for s in specs["cosine"]
    }


def test_the_law_is_recovered_without_noise(lab):
    out = scaling.run(with_config(lab), Fake(lab))
    law = studies.fits_of(study_of(with_config(lab)))["wsd"].law
    for r in out.results:
        if not r.spec.marks:
            assert law.predict(r.N, r.D) == pytest.approx(r.bpb, rel=1e-4)
    assert (law.law.alpha, law.law.beta) == pytest.approx((ALPHA, BETA), abs=0.03)
    json.dumps(out.facts)


def study_of(lab, **options):
    specs = scaling.specs_of(lab)
    return studies.Study(**{kind: [result_of(lab, s, **options) for s in group] for kind, group in specs.items()})


def test_costs_are_linear_and_not_quadratic(lab):
    lab = with_config(lab)
    study = study_of(lab)
    each = {size: cost_of(lab, lab.spec(width=size.width, layers=size.layers, tokens=TOKENS[-1]))[2] for size in SIZES}
    share = 0.9 + 0.1 * sum(TOKENS) / TOKENS[-1]
    assert study.flops == pytest.approx(share * sum(each.values()))
    assert study.separate_flops == pytest.approx(sum(TOKENS) / TOKENS[-1] * sum(each.values()))


def test_the_equal_cost_fit_costs_no_more_and_sees_every_direction(lab):
    lab = with_config(lab, cosine=True)
    study = study_of(lab, noise=0.001)
    fits = studies.fits_of(study)
    chosen = fits["equal"].results
    assert sum(r.flops for r in chosen) <= study.flops < sum(r.flops for r in study.cosine)
    assert len({r.N for r in chosen}) >= 3
    assert len({r.D for r in chosen}) >= 3
    left = min(r.flops for r in study.cosine if r not in chosen)
    assert sum(r.flops for r in chosen) + left > study.flops  # nothing more fits
    law = fits["wsd"].law.law
    rows = np.array([studies._sensitivity(law, r) for r in study.cosine])
    picked = [study.cosine.index(r) for r in chosen]
    worth = np.linalg.slogdet(rows[picked].T @ rows[picked])[1]
    rng = np.random.default_rng(0)
    for _ in range(200):  # no random choice of that cost tells more
        order = rng.permutation(len(rows))
        spent, picked = 0.0, []
        for i in order:
            if spent + study.cosine[i].flops <= study.flops:
                spent, picked = spent + study.cosine[i].flops, [*picked, i]
        sign, value = np.linalg.slogdet(rows[picked].T @ rows[picked])
        assert sign <= 0 or value <= worth + 0.5


def test_targets_are_predicted_before_they_are_submitted(lab):
    lab = with_config(lab, cosine=True, targets=(TARGET,), target_tokens=(819_200,), seeds=(0, 1))
    submit = Fake(lab, noise=0.0003)
    out = scaling.run(lab, submit)
    assert len(submit.calls) == 2
    assert [s.tokens for s in submit.calls[1]] == [819_200]
    assert all(s.width != TARGET.width for s in submit.calls[0])
    path = lab.out / "scaling" / predictions.FILE
    assert submit.before == path.read_bytes()
    record = json.loads(submit.before)
    assert {p["unknown_then"] for p in record["predictions"]} == {True}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", record["written"])
    assert [p["law"] for p in record["predictions"]] == ["wsd", "cosine", "equal"]
    points = {name: sorted([N, D, bpb] for N, _, D, bpb in rows) for name, rows in out.facts["points"].items()}
    assert record["points_sha256"] == hashlib.sha256(json.dumps(points, sort_keys=True).encode()).hexdigest()
    ours = next(t for t in out.facts["targets"] if t["law"] == "wsd")
    N = ours["N"]
    assert ours["predicted"] == pytest.approx(loss(N, 819_200), rel=0.01)
    assert ours["error"] == pytest.approx(100 * (ours["predicted"] / ours["actual"] - 1))
    assert ours["inside"] == (ours["low"] <= ours["actual"] <= ours["high"])
    assert out.facts["noise"] == pytest.approx(0.0003, rel=0.5)
    assert f"error {ours['error']:+.2f} %" in said(out)
    assert numbers(said(out)) == numbers(said(out, "zh"))


def test_predictions_are_never_rewritten(lab):
    lab = with_config(lab, targets=(TARGET,), target_tokens=(819_200,))
    path = lab.out / "scaling" / predictions.FILE
    first = scaling.run(lab, Fake(lab)).facts["predictions"]
    kept = path.read_bytes(), path.stat().st_mtime_ns
    assert scaling.run(lab, Fake(lab)).facts["predictions"] == first
    assert (path.read_bytes(), path.stat().st_mtime_ns) == kept
    # Other points, after the target ran: said to be late, and the old file stays.
    late = scaling.run(lab, Fake(lab, shift=0.01))
    assert (path.read_bytes(), path.stat().st_mtime_ns) == kept
    assert not any(p["unknown_then"] for p in late.facts["predictions"]["predictions"])
    assert "no prediction" in said(late)
    # A further target is predicted, what was said of the old one stays, and the old file is kept beside the new one.
    more = with_config(lab, targets=(TARGET, Size(width=160, layers=6)), target_tokens=(819_200,))
    both = scaling.run(more, Fake(lab))
    said_of_both = both.facts["predictions"]["predictions"]
    assert all(p["unknown_then"] for p in said_of_both)
    assert [p for p in said_of_both if p["target"]["size"] == "128x6"] == first["predictions"]
    assert json.loads(path.read_text())["predictions"][-1]["target"]["size"] == "160x6"
    aside = list(path.parent.glob("predictions-*.json"))
    assert [p.read_bytes() for p in aside] == [kept[0]]


def test_another_floor_is_another_prediction(lab):
    def at(floor, sizes=(TARGET,)):
        return with_config(lab, targets=sizes, target_tokens=(819_200,), floor=floor)

    def targets(out, law="coupled"):
        return [(t["predicted"], t["unknown_then"], t["floor"]) for t in out.facts["targets"] if t["law"] == law]

    path = lab.out / "scaling" / predictions.FILE
    first = scaling.run(at((0.6, 0.05)), Fake(lab))
    kept = path.read_bytes()
    [(low, _, _)] = targets(first)
    assert targets(first) == [(low, True, [0.6, 0.05])]
    assert targets(first, "wsd")[0][1:] == (True, None)
    assert re.search(r"\(said 20\d\d-[-\dT:+]* with E taken to be 0.6 ± 0.05\)", said(first))
    # The target has run: under another floor its law says something else, too late; that of the other law stays.
    other = scaling.run(at((0.1, 0.01)), Fake(lab))
    [(high, before, floor)] = targets(other)
    assert (before, floor) == (False, [0.1, 0.01])
    assert abs(high / low - 1) > 1e-6
    assert targets(other, "wsd") == targets(first, "wsd")
    assert said(other).count("no prediction") == 1
    assert path.read_bytes() == kept
    assert targets(scaling.run(at((0.6, 0.05)), Fake(lab))) == targets(first)
    # A further target under another floor: each keeps what was said of it, and the old file stays beside the new one.
    more = scaling.run(at((0.1, 0.01), (TARGET, Size(width=160, layers=6))), Fake(lab))
    assert targets(more)[0] == (high, False, [0.1, 0.01])
    assert targets(more)[1][1:] == (True, [0.1, 0.01])
    assert targets(more, "wsd")[0] == targets(first, "wsd")[0]
    assert [p.read_bytes() for p in path.parent.glob("predictions-*.json")] == [kept]
    assert numbers(said(more)) == numbers(said(more, "zh"))


def test_predictions_of_another_version_are_refused_and_stay(lab):
    lab = with_config(lab, targets=(TARGET,), target_tokens=(819_200,))
    path = lab.out / "scaling" / predictions.FILE
    path.parent.mkdir(parents=True)
    path.write_text('{"written": "2026-11-24T16:41:24+00:00", "targets": []}')
    with pytest.raises(ValueError, match=r"predictions.json: not predictions of this version .*move it elsewhere"):
        scaling.run(lab, Fake(lab))
    assert "16:41:24" in path.read_text()


def test_a_crash_between_prediction_and_target_changes_nothing(lab):
    lab = with_config(lab, targets=(TARGET,), target_tokens=(819_200,))

    class Dies(Fake):
        def __call__(self, specs):
            if any(s.width == TARGET.width for s in specs):
                raise KeyboardInterrupt
            return super().__call__(specs)

    with pytest.raises(KeyboardInterrupt):
        scaling.run(lab, Dies(lab))
    path = lab.out / "scaling" / predictions.FILE
    kept = path.read_bytes()
    scaling.run(lab, Fake(lab))
    assert path.read_bytes() == kept


def test_what_diverged_is_left_out_and_said(lab):
    class Bad(Fake):
        def result(self, spec):
            bad = spec.parent is not None and spec.width == 96 and spec.tokens == TOKENS[0]
            return result_of(self.lab, spec, state="diverged" if bad else "done")

    lab = with_config(lab, targets=(TARGET,))
    out = scaling.run(lab, Bad(lab))
    assert len(out.facts["points"]["wsd"]) == len(SIZES) * len(TOKENS) - 1
    assert f"Left out: 96x4 {TOKENS[0]:,} wsd seed 0 (diverged)" in markdown(out, "en")


def test_a_target_that_diverges_has_no_error(lab):
    class Bad(Fake):
        def result(self, spec):
            return result_of(self.lab, spec, state="diverged" if spec.width == TARGET.width else "done")

    out = scaling.run(with_config(lab, targets=(TARGET,)), Bad(lab))
    assert [(t["actual"], t["error"], t["inside"]) for t in out.facts["targets"]] == [(None, None, None)]
    assert "did not end well" in said(out)
    pages.picture(out.record(), "en")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": (256, 51_200)}, "no stable part or no decay"),
        ({"tokens": (2560, 409_600)}, "within the 32 steps of warmup"),
        ({"sizes": SIZES[:1]}, "1 sizes with 4 token counts in all are too few"),
        ({"targets": (TARGET, TARGET), "target_tokens": (1, 2, 3)}, "3 numbers for 2 targets"),
    ],
)
def test_impossible_studies_are_refused_before_anything_runs(lab, changes, message):
    submit = Fake(lab)
    with pytest.raises(ValueError, match=message):
        scaling.run(with_config(lab, **changes), submit)
    assert submit.calls == []


def test_the_speed_is_that_of_the_trials_whatever_workers_are_now(lab, monkeypatch):
    """Each trial makes a billion a second."""
    monkeypatch.setattr(machine, "physical_cores", lambda: 3)

    def speed(workers):
        class Recorded(Fake):
            def result(self, spec):
                return super().result(spec).model_copy(update={"workers": workers})

        there = with_config(lab)
        there = replace(there, config=there.config.model_copy(update={"workers": 4}))
        return scaling.run(there, Recorded(there)).facts["speed"]

    assert speed(1.0) == pytest.approx(1e9)
    assert speed(2.0) == pytest.approx(2e9)
    assert speed(16.0) == pytest.approx(3e9)  # never more than there are cores


def test_everything_is_written_in_both_languages(lab, tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "physical_cores", lambda: 2)
    lab = with_config(lab, cosine=True, targets=(TARGET,))
    out = scaling.run(lab, Fake(lab, noise=0.001))
    pages.write(out, tmp_path / "scaling")
    assert len(list((tmp_path / "scaling").iterdir())) == 5
    assert out.facts["speed"] == pytest.approx(2e9)  # two trials at a time, each a billion a second
    assert math.isfinite(out.facts["flops"]["equal"])
    assert out.facts["aspects"] == [64 / 3, 32.0]
