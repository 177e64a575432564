"""A whole line of seconds, for tests: made-up text, a model of some ten thousand weights."""

from pathlib import Path

CONFIGS = Path(__file__).resolve().parent.parent.parent / "configs"
_TRAIN = [
    "seq_len=64", "batch_tokens=512", "micro_batch_size=4", "threads=1", "schedule.warmup_steps=2", "save.every_steps=4",
    "model.change.hidden_size=32", "model.change.head_dim=16", "model.change.intermediate_size=64",
    "stages=[{name='stable', steps=8}, {name='decay', steps=4, decay=true}]",
]  # fmt: skip
_DATA = [
    "sources.stories.documents=300", "sources.sums.documents=200", "sources.talks.documents=200", "tokenizer.train.vocab_size=512",
]  # fmt: skip
_SFT = {
    "data": {"files": [str(CONFIGS / "forge-talks.jsonl")]}, "method": {"kind": "full"}, "optimizer": {"lr": 1e-3}, "seq_len": 128,
    "batch_tokens": 1024, "micro_batch_size": 8, "steps": 6, "threads": 1, "save": {"every_steps": 2},
}  # fmt: skip
_DPO = {
    "data": {"files": [str(CONFIGS / "forge-preferred.jsonl")]}, "objective": {"kind": "dpo"},
    "method": {"kind": "lora", "rank": 8}, "seq_len": 128, "steps": 3, "threads": 1, "save": {"every_steps": 1},
}  # fmt: skip
_SANDBOX = {
    "data": str(CONFIGS / "data-tiny.toml"), "seq_len": 128, "shuffle_rows": 1_000_000, "head_dim": 16, "heldout_tokens": 2048,
    "micro_tokens": 2048, "precision": "fp32", "base": {"width": 32, "layers": 2, "batch_tokens": 512},
    "common": {"width": 16, "layers": 2, "lr": 0.01, "batch_tokens": 512, "tokens": 10_240, "decay": 0.2, "warmup": 0.05},
    "lr": {"widths": [16, 32], "rates": [0.005, 0.01, 0.02, 0.04], "rules": ["minicpm"]},
    "scaling": {
        "sizes": [{"width": 16, "layers": 2}, {"width": 32, "layers": 2}, {"width": 48, "layers": 2}], "tokens": [10_240, 20_480],
        "floor": [0.45, 0.05],
    },
}  # fmt: skip
_COMPRESS = {
    "step": [{"kind": "quantize", "to": "Q4_0", "pure": True}], "report": {"answers": False, "speed": False, "windows": 2},
}  # fmt: skip


def small_line(*, whole: bool = False) -> dict[str, object]:
    """The tables of a line; whole: planned by a sandbox, with preferences, compression and an evaluation, else what the fast tests
    have time for."""
    found: dict[str, object] = {
        "name": "small",
        "data": {"config": str(CONFIGS / "data-tiny.toml"), "set": _DATA},
        "train": {"config": str(CONFIGS / "train-tiny.toml"), "set": _TRAIN},
        "tune": {"sft": {"config": _SFT}},
        "export": {"type": "Q8_0"},
        "check": {"prompts": ["In the morning Anna", "早上，小明"], "max_tokens": 12},
    }
    if whole:
        found |= {"sandbox": {"config": _SANDBOX}, "plan": {"budget": "1e10 flops", "force": True}, "train": {}}
        found["tune"] = {"sft": {"config": _SFT}, "preference": {"config": _DPO}}
        found["compress"] = {"config": _COMPRESS}
        found["evaluate"] = {"texts": [f"stories={CONFIGS / 'forge-stories.txt'}"], "limit": 2}
    return found
