"""What the tests of the training room share: one thread, so that sums come in one order, and a run of seconds."""

import json
from pathlib import Path

import pytest
import torch

from gangpao.data.build import build, load_data_config

torch.set_num_threads(1)

CONFIGS = Path(__file__).resolve().parent.parent.parent / "configs"
SMALL = (
    "sources.stories.documents=200", "sources.sums.documents=150", "sources.talks.documents=150",
    "tokenizer.train.vocab_size=600",
)  # fmt: skip


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    build(load_data_config(CONFIGS / "data-tiny.toml", SMALL), folder)
    return folder


@pytest.fixture(scope="session")
def configured(data_dir):
    """overrides(...): those of a run of seconds."""
    fixed = [
        f"data_set={json.dumps(SMALL)}", f'data_dir="{data_dir}"', "seq_len=64", "batch_tokens=512", "micro_batch_size=4",
        "threads=1", "peak_tflops=0.1", "save.every_steps=5", "evaluation.every_steps=100", "evaluation.limit_tokens=1000",
        "model.change.hidden_size=32", "model.change.head_dim=16", "model.change.intermediate_size=48",
    ]  # fmt: skip
    stages = (
        'stages=[{name="stable", steps=8}, {name="decay", steps=4, decay=true}]',
        'stages=[{name="decay", steps=4, decay=true}]',
    )
    return lambda *more, branch=False: [*fixed, stages[branch], "schedule.warmup_steps=2", *more]
