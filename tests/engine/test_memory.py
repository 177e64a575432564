"""Memory is estimated before loading: refusals name need, have and ways out, and the estimate is near the truth."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from gangpao import catalog, machine
from gangpao.engine import memory as memory_module
from gangpao.engine.cache import page_bytes
from gangpao.engine.config import ModelConfig
from gangpao.engine.generate import Engine
from gangpao.formats.gguf import GGUF
from tests.child import environment
from tests.engine.tiny import CONTEXT, write_tiny

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture
def memory(monkeypatch):
    return lambda size: monkeypatch.setattr(machine, "available_memory", lambda: size)


def need(path, context, kv="f16"):
    gguf = GGUF.open(path)
    return memory_module.estimate(gguf, ModelConfig.from_gguf(gguf), context, kv)


def test_refusal_names_need_have_and_ways_out(tiny, memory):
    total = need(tiny, CONTEXT)
    memory(total.weights + total.work + total.cache // 2)
    with pytest.raises(ValueError, match="not enough memory") as error:
        Engine.load(tiny, context=CONTEXT)
    text = str(error.value)
    assert re.search(r"needs \d+ MB \(.*weights.*KV cache for 512 tokens.*work space\) and \d+ MB are available", text)
    assert "a context of 256 (--context)" in text
    assert "--kv int8" in text
    assert "a smaller or more strongly quantized model" in text


def test_a_smaller_catalog_model_is_named(tiny, memory, monkeypatch):
    small = catalog.memory_needed(catalog.entry("smollm2-135m"))
    real = memory_module.estimate
    monkeypatch.setattr(
        memory_module, "estimate", lambda *a, **k: memory_module.Need(3 * small, real(*a).cache, real(*a).work)
    )
    memory(int(1.1 * small))
    with pytest.raises(ValueError, match="a smaller model: smollm2-135m"):
        Engine.load(tiny, context=64)


def test_without_a_wish_the_context_shrinks_to_fit(tiny, memory, monkeypatch):
    memory(10**10)
    assert Engine.load(tiny).context == CONTEXT
    monkeypatch.setattr(memory_module, "NARROWEST_DEFAULT", 64)
    total = need(tiny, CONTEXT)
    memory(total.total - total.cache // 2 - 1)
    assert Engine.load(tiny).context == CONTEXT // 4


@pytest.mark.parametrize("name", ["smollm2-135m", "qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b"])
def test_what_the_catalog_says_before_a_download_is_a_bound(model_path, name):
    """The catalog has no header to count from; it says at least what the engine then needs, and not half as much again."""
    path = model_path(name)
    counted = need(path, memory_module.NARROWEST_DEFAULT).total
    assert counted <= catalog.memory_needed(catalog.entry(name)) <= 1.5 * counted


def test_a_context_beyond_the_models_own_is_refused(tiny):
    with pytest.raises(ValueError, match="more than the 512 positions"):
        Engine.load(tiny, context=513)


def test_int8_takes_about_half(tiny):
    assert need(tiny, CONTEXT, "int8").cache < 0.6 * need(tiny, CONTEXT).cache


def test_int4_takes_four_bits_and_a_scale_for_32_and_keys_with_biases_stay_at_eight(tiny):
    gguf = GGUF.open(tiny)
    config = replace(ModelConfig.from_gguf(gguf), head_dim=64)
    whole = page_bytes(config, "f16")
    assert page_bytes(config, "int4") == whole * 4.5 / 16
    assert page_bytes(replace(config, key_bias=True), "int4") == whole * (9 + 4.5) / 32
    with pytest.raises(ValueError, match="use int8"):
        page_bytes(replace(config, head_dim=16), "int4")


MEASURE = """
import sys
from gangpao.engine.generate import Engine
from gangpao.engine.sample import SamplingParams
import gangpao.commands.chat
engine = Engine.load(sys.argv[1], context=int(sys.argv[2]), kv_dtype=sys.argv[3])
ids = [i % 1000 + 100 for i in range(int(sys.argv[2]) - 8)]
session = engine.session()  # held, so that its cache is still there when we look
list(engine.generate(ids, SamplingParams(max_tokens=8), session=session))
for line in open("/proc/self/status"):
    if line.startswith("RssAnon"):
        print(int(line.split()[1]) * 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
@pytest.mark.parametrize(
    ("name", "context", "kv"),
    [
        ("smollm2-135m", 512, "f16"),
        ("smollm2-135m", 2048, "f16"),
        ("smollm2-135m", 2048, "int8"),
        pytest.param("smollm2-135m", 4096, "int8", marks=pytest.mark.slow),
        ("qwen2.5-coder-0.5b", 512, "f16"),
        ("qwen2.5-coder-0.5b", 1024, "int8"),
        pytest.param("smollm2-135m", 8192, "f16", marks=pytest.mark.slow),
        pytest.param("qwen2.5-coder-0.5b", 4096, "f16", marks=pytest.mark.slow),
        pytest.param("qwen2.5-coder-0.5b", 8192, "int8", marks=pytest.mark.slow),
        pytest.param("qwen2.5-coder-1.5b", 1024, "f16", marks=pytest.mark.slow),
        pytest.param("qwen2.5-coder-1.5b", 4096, "f16", marks=pytest.mark.slow),
        pytest.param("qwen2.5-coder-1.5b", 2048, "int8", marks=pytest.mark.slow),
    ],
)
def test_the_estimate_is_within_a_tenth_of_what_is_taken(model_path, name, context, kv):
    path = model_path(name)
    out = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path), str(context), kv], capture_output=True, text=True, timeout=300,
        env=environment(), check=True,
    )  # fmt: skip
    assert need(path, context, kv).total == pytest.approx(int(out.stdout), rel=0.1)
