"""A sandbox that trains for a second: the made-up corpus, one thread."""

from types import SimpleNamespace

import pytest

from gangpao.sandbox.experiments.config import config_type
from gangpao.sandbox.trials.queue import join_study, open_storage, work
from gangpao.sandbox.trials.trial import Lab
from tests.train.conftest import CONFIGS, SMALL, data_dir

__all__ = ["data_dir"]


@pytest.fixture
def config(data_dir):
    return config_type().model_validate(
        {
            "data": str(CONFIGS / "data-tiny.toml"),
            "data_dir": str(data_dir),
            "data_set": SMALL,
            "seq_len": 32,
            "head_dim": 16,
            "precision": "fp32",
            "heldout_tokens": 2000,
            "base": {"width": 32, "layers": 2, "batch_tokens": 256},
            "common": {"width": 32, "layers": 2, "batch_tokens": 256, "tokens": 5120, "decay": 0.25, "warmup": 0.1},
        }
    )


@pytest.fixture
def lab(config, tmp_path):
    return Lab.open(config, tmp_path / "sandbox")


@pytest.fixture
def workers_here(monkeypatch):
    """A driver's workers are no processes but done before it looks."""

    def start(config_file, out, storage, name, threads, core, log):
        lab = Lab.open(config_type().model_validate_json(config_file.read_text()), out)
        work(lab, *join_study(open_storage(storage), lab, name))
        return SimpleNamespace(poll=lambda: 0, wait=lambda: 0, returncode=0)

    monkeypatch.setattr("gangpao.sandbox.trials.driver.start_worker", start)
