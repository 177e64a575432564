"""A made-up sandbox for tests of experiments: a Lab without data, and a `submit` whose results follow a planted law.

    lab = make_lab(tmp_path, batch={"batches": (256, 512)}, common={"lr": 0.01})
    submit = Trials(lambda spec: 1 + spec.tokens**-0.3, noise=0.001)
    outcome = batch.run(lab, submit)         # submit.specs: what was asked for

Nothing is trained and nothing is read, so such a Lab knows no real keys and costs; N is counted here.
"""

import hashlib
import re
from types import SimpleNamespace

import numpy as np

from gangpao.sandbox.experiments.config import config_type
from gangpao.sandbox.experiments.text import page as pages
from gangpao.sandbox.experiments.text.page import page_of
from gangpao.sandbox.reasons import Reason
from gangpao.sandbox.trials.trial import Lab, Result

STABLE = {"zh-laws": 0.4, "zh-cook": 0.1, "en-books": 0.3, "code-python": 0.2}
DECAY = {"zh-laws": 0.3, "en-books": 0.2, "code-python": 0.1, "sft_zh": 0.4}


def make_lab(out, *, stable=STABLE, decay=DECAY, **tables):
    """A Lab; tables: those of SandboxConfig. Sources named sft* are supervised."""
    config = config_type().model_validate({"data": "data.toml", "seq_len": 64, **tables})
    sources = sorted({*stable, *decay})
    shards = {name: SimpleNamespace(supervised=name.startswith("sft"), num_tokens=1_000_000) for name in sources}
    built = SimpleNamespace(fingerprint="made-up", path=out / "data", vocab_size=512, train=shards, heldout=shards)
    return Lab(config, out, built, dict(stable), dict(decay))


def size_of(spec):
    """Non-embedding parameters."""
    return spec.layers * (4 * spec.width**2 + 3 * spec.width * round(2.5 * spec.width) + 2 * spec.width)


def noise_of(spec, *more):
    """A standard normal number that is always the same for a trial."""
    text = spec.model_dump_json() + "".join(map(str, more))
    return float(np.random.default_rng(list(hashlib.sha256(text.encode()).digest())).standard_normal())


class Trials:
    """submit(specs). loss(spec): the planted bits per byte. noise: of every trial by itself; shared: of a stable run, in all its
    branches. end(spec): None, or (state, reason or text) of a trial that did not end well. heldout(spec): name -> value.
    busy: seconds."""

    def __init__(self, loss, *, noise=0.0, shared=0.0, end=None, heldout=None, busy=None, salt=""):
        self.loss, self.noise, self.shared, self.salt = loss, noise, shared, salt
        self.end = end or (lambda spec: None)
        self.heldout = heldout or (lambda spec: {})
        self.busy = busy or (lambda spec: size_of(spec) * spec.tokens / 1e12)
        self.specs, self.calls = [], 0

    def __call__(self, specs):
        self.calls += 1
        self.specs += specs
        return [self.result(spec) for spec in specs]

    def wobble(self, spec, *more):
        """What noise adds to a loss of this trial."""
        above = self.shared * noise_of(spec.parent, self.salt, *more) if spec.parent else 0.0
        return self.noise * noise_of(spec, self.salt, *more) + above

    def result(self, spec):
        """What came out."""
        state, why = self.end(spec) or ("done", "")
        reason = Reason.of("other", text=why) if why and isinstance(why, str) else why or None
        good, N = state == "done", size_of(spec)
        heldout = {name: value + self.wobble(spec, name) for name, value in self.heldout(spec).items()} if good else {}
        return Result(
            key=hashlib.sha256(spec.model_dump_json().encode()).hexdigest()[:16], spec=spec, state=state, reason=reason, N=N,
            workers=1.0, N_total=N + 512 * spec.width, D=spec.tokens, heldout=heldout,
            flops=6.0 * N * spec.steps * spec.batch_tokens, bpb=self.loss(spec) + self.wobble(spec) if good else None,
            busy=self.busy(spec), seconds=self.busy(spec) + 1,
        )  # fmt: skip


def numbers(text):
    """All numbers of a text, sorted: both languages must say the same ones."""
    return sorted(re.findall(r"\d[\d,.]*\d|\d", text))


def page(outcome):
    """The words of an outcome, made from its facts as a file has them."""
    return page_of(outcome.record())


def said(outcome, language="en"):
    """Its sentences."""
    return page(outcome).words.said.of(language)


def rows(outcome):
    """Its table."""
    return page(outcome).words.rows


def markdown(outcome, language):
    """Its report, whose picture can be drawn too."""
    return pages.markdown(outcome.record(), language)


def same_numbers(outcome):
    """Do both languages say the same numbers?"""
    return numbers(said(outcome)) == numbers(said(outcome, "zh"))
