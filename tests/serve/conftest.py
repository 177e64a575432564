"""A real server on a free port, shared by all tests of a session."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

from gangpao.engine.generate import Engine
from gangpao.engine.sample import SamplingParams
from gangpao.serve.app import running
from gangpao.serve.server import Server, Settings
from tests.engine.tiny import write_tiny

MODEL = "smollm2-135m"
# As Qwen3's: without thinking the answer begins behind an empty thought.
THINKER = (
    "{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{%- if reasoning_effort is defined %}"
    "{{ reasoning_effort }}{%- endif %}{%- if enable_thinking is defined and enable_thinking is false %}"
    "{{ '<think>\n\n</think>\n\n' }}{%- endif %}{%- endif %}"
)


@dataclass
class Live:
    """A running server; engine is the one it uses (read it, do not generate with it while the server answers)."""

    base_url: str
    server: Server
    model: str = MODEL

    @property
    def engine(self) -> Engine:
        return self.server.models.loaded()[self.model].engine


@pytest.fixture(scope="session")
def live_server(model_path: Callable[[str], Path]) -> Iterator[Live]:
    """One server with smollm2-135m for the whole session. Leave it as it was: no keys, no unloading."""
    server = Server(Settings({MODEL: model_path(MODEL)}, port=0, context=2048, batch=4, queue=16))
    with running(server) as base_url:
        yield Live(base_url, server)


@dataclass
class Reference:
    """The same model in an engine of its own, one answer at a time."""

    engine: Engine

    def prompt(self, messages: list[dict[str, str]]) -> list[int]:
        return self.engine.template.encode(self.engine.tokenizer, messages)

    def greedy(self, messages: list[dict[str, str]], max_tokens: int) -> str:
        """What temperature 0 and repetition_penalty 1 must answer."""
        return self.text(messages, SamplingParams(temperature=0, repetition_penalty=1, max_tokens=max_tokens))

    def text(self, messages: list[dict[str, str]], params: SamplingParams) -> str:
        run = self.engine.generate(self.prompt(messages), params, stop=self.engine.template.stop)
        for _ in run:
            pass
        return run.text


@pytest.fixture(scope="session")
def reference(model_path: Callable[[str], Path]) -> Reference:
    """What the server's answers are compared with."""
    return Reference(Engine.load(model_path(MODEL), context=2048))


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of some hundred kilobytes."""
    return write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture(scope="session")
def tiny_server(tiny_path: Path) -> Iterator[Live]:
    """One server with that model for the whole session: nonsense, and fast."""
    server = Server(Settings({"tiny": tiny_path}, port=0, batch=4, queue=8, threads=1))
    with running(server) as base_url:
        yield Live(base_url, server, "tiny")


@pytest.fixture(scope="session")
def wide_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """The same with a context of 40,000 tokens, other names for its model, short paths, and a switch for thinking."""
    path = write_tiny(tmp_path_factory.mktemp("wide") / "wide.gguf", template=THINKER, context=40_000)
    more = {"aliases": {"claude-small": "wide", "*": "wide"}, "short_paths": True}
    server = Server(Settings({"wide": path}, port=0, context=40_000, batch=2, queue=8, threads=2, **more))
    with running(server) as base_url:
        yield Live(base_url, server, "wide")


@pytest.fixture(scope="session")
def wire() -> Iterator[httpx2.Client]:
    """A plain HTTP client."""
    with httpx2.Client(timeout=60, trust_env=False) as client:
        yield client
