"""A sandbox that trains for a second: the made-up corpus, one thread."""

import pytest

from gangpao.sandbox.config import SandboxConfig
from gangpao.sandbox.trial import Lab
from tests.train.conftest import CONFIGS, SMALL, data_dir

__all__ = ["data_dir"]


@pytest.fixture
def config(data_dir):
    return SandboxConfig.model_validate(
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
