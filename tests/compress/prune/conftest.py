"""One thread, so that sums come in one order, and windows of ids in place of texts."""

import numpy as np
import pytest
import torch

from gangpao.compress.prune import source

torch.set_num_threads(1)


@pytest.fixture
def random_windows(monkeypatch):
    """Calibration ids from a generator: what a model of random weights has to say depends on no text."""

    def windows(tokenizer, config):
        rng = np.random.default_rng(config.windows)
        return tuple(
            rng.integers(0, 300, (count, config.length)).astype(np.int64) for count in (config.windows, config.measured)
        )

    monkeypatch.setattr(source, "windows", windows)
