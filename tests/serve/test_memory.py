"""What the server says it will take is what it takes when its cache is full (R9), twelve times."""

import re
import sys
from pathlib import Path

import httpx2
import pytest

from tests.commands.test_serve import Process

BATCH = 2
UNITS = {"kB": 1e3, "MB": 1e6, "GB": 1e9}


def anonymous(pid):
    """Bytes of a process that no file backs."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"RssAnon:\s+(\d+) kB", text)[1]) * 1024


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
@pytest.mark.parametrize(
    ("name", "context", "kv"),
    [
        ("smollm2-135m", 512, "f16"), ("smollm2-135m", 2048, "f16"), ("smollm2-135m", 2048, "int8"),
        ("smollm2-135m", 4096, "int8"), ("qwen2.5-coder-0.5b", 512, "f16"), ("qwen2.5-coder-0.5b", 1024, "int8"),
        ("qwen2.5-coder-0.5b", 2048, "f16"), ("qwen2.5-coder-0.5b", 4096, "f16"), ("qwen2.5-coder-0.5b", 4096, "int8"),
        ("qwen2.5-coder-1.5b", 512, "f16"), ("qwen2.5-coder-1.5b", 1024, "f16"), ("qwen2.5-coder-1.5b", 1024, "int8"),
    ],
)  # fmt: skip
def test_the_figure_at_the_start_is_what_a_full_cache_takes(model_path, name, context, kv):
    server = Process("-m", str(model_path(name)), "--batch", str(BATCH), "--context", str(context), "--kv", kv)
    try:
        said = re.search(r"up to ([\d.]+) (kB|MB|GB) of memory", server.ready)
        with httpx2.Client(timeout=600, trust_env=False) as client:
            for i in range(BATCH + 1):  # one more, so that no page is left
                ids = [(k * (i + 7)) % 1000 + 100 for k in range(context - 8)]
                body = {"prompt": ids, "max_tokens": 7, "temperature": 0}
                client.post(f"{server.url}/v1/completions", json=body).raise_for_status()
        taken = anonymous(server.process.pid)
    finally:
        server.end(2)
    print(f"{name} {context} {kv}: said {said[1]} {said[2]}, took {taken / 1e6:.0f} MB")
    assert float(said[1]) * UNITS[said[2]] == pytest.approx(taken, rel=0.1)
