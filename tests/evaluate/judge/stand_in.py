"""Stand-ins: a judge that marks by a rule over real HTTP, and a model that answers by one in this process."""

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from gangpao.evaluate.journal import key_of
from gangpao.evaluate.models.endpoint import Endpoint
from gangpao.evaluate.models.protocol import Generated, Prompt
from gangpao.evaluate.results import ModelFacts
from gangpao.openai_client import Patience
from tests.commands.fake_server import Asked, answer, fake


def part(text: str, tag: str) -> str:
    """What stands between two tags of a prompt of ours."""
    found = re.search(f"<{tag}>\n(.*?)\n</{tag}>", text, re.DOTALL)
    return found[1] if found else ""


def judged_text(prompt: str) -> str:
    """The answer that a single grading is about."""
    return next((t for tag in ("assistants_second_answer", "second_answer", "answer") if (t := part(prompt, tag))), "")


def mark_by_length(prompt: str) -> str:
    """1 to 10 by the answer's length."""
    return f"It has its length. Mark: [[{len(judged_text(prompt)) % 10 + 1}]]"


@dataclass
class Rule:
    """What the server answers to a chat: `say` makes it of the last message; `before` may answer in another way first."""

    say: Callable[[str], str] = mark_by_length
    before: Callable[[Asked], list[bytes | None] | None] = lambda _: None
    answered: list[str] = field(default_factory=list)  # digests of the bodies
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, asked: Asked) -> list[bytes | None]:
        other = self.before(asked)
        if other is not None:
            return other
        text = self.say(asked.body["messages"][-1]["content"])
        with self.lock:
            self.answered.append(key_of(asked.path, asked.body))
        usage = {"prompt_tokens": 100, "completion_tokens": 10}
        return answer(200, {"choices": [{"message": {"content": text}, "finish_reason": "stop"}], "usage": usage})


@contextmanager
def judge_at(rule: Rule) -> Iterator[Endpoint]:
    """A judge that answers by the rule."""
    with fake(rule) as server:
        endpoint = Endpoint(server.url, concurrency=4, patience=Patience(silence_s=10, wait_s=20, broken=3))
        try:
            yield endpoint
        finally:
            endpoint.close()


def _text(prompt: Prompt) -> str:
    last = prompt.messages[-1]["content"]
    return f"{len(prompt.messages)} at {prompt.temperature}: {last[: 20 + len(last) % 7]}"


@dataclass
class Talker:
    """Answers with the number of messages, the temperature, and the beginning of what was asked."""

    say: Callable[[Prompt], Generated] = lambda p: Generated(_text(p), "stop", 5, 7)
    asked: list[Prompt] = field(default_factory=list)
    facts: ModelFacts = field(default_factory=lambda: ModelFacts(name="talker", kind="gguf", sha256="0" * 64))
    settings: dict = field(default_factory=dict)

    def generate(self, prompts):
        for i, prompt in reversed(list(enumerate(prompts))):
            self.asked.append(prompt)
            yield i, self.say(prompt)
