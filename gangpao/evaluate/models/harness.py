"""A Model as lm-eval sees it, with the journal in between: nothing is asked twice, in one run or after a crash.

lm-eval asks for one continuation at a time; here those of one context become a Group again, and what the journal knows is taken
from it. Every request's fault and tokens are kept, so that items can be listed with what happened to them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from gangpao.evaluate.journal import Journal, key_of
from gangpao.evaluate.models.protocol import Generated, Group, Model, Prompt, Score

Progress = Callable[[str, int, int], None]  # what, requests done, of
UNSCORED = -1e9  # for lm-eval, which computes with it; nothing that is scored comes near
MAX_NEW_TOKENS = 256  # where a task does not say, as lm-eval's own models have it


class ChatText(str):
    """A rendered conversation that still knows its messages: a server wants those."""

    messages: tuple[Mapping[str, Any], ...]
    rendered: bool  # whether the text is what the model will see

    @classmethod
    def of(cls, text: str, messages: Sequence[Mapping[str, Any]], *, rendered: bool) -> ChatText:
        """The text where it is known, else what was said last."""
        chat = cls(text)
        chat.messages, chat.rendered = tuple(messages), rendered
        return chat


class Harness(LM):  # type: ignore[misc]  # lm_eval has no types
    """The adapter. think, think_budget, temperature, max_tokens: over what tasks say, where they are given."""

    def __init__(
        self,
        model: Model,
        journal: Journal,
        progress: Progress,
        *,
        think: bool | None = None,
        think_budget: int | None = None,
        max_tokens: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.model = model
        self.scores: dict[tuple[str, str], Score] = {}
        self.answers: dict[str, Generated] = {}  # by key
        self._journal = journal
        self._progress = progress
        self._think, self._think_budget = think, think_budget
        self._max_tokens = max_tokens
        self._seed = seed

    # --- choices

    def loglikelihood(self, requests: Sequence[Instance], **_: Any) -> list[tuple[float, bool]]:
        """(log-probability, greedy) of every continuation. What has no score gets UNSCORED, and is in `scores` with its fault."""
        for request in requests:
            if isinstance(request.args[0], ChatText) and not request.args[0].rendered:
                self.model.prompt_of(request.args[0].messages)  # says why there is none
        pairs = [moved(*request.args) for request in requests]
        groups: dict[str, list[str]] = {}
        for context, continuation in dict.fromkeys(pairs):
            if (known := self._journal.take(key_of("score", context, continuation), Score.stored)) is None:
                groups.setdefault(context, []).append(continuation)
            else:
                self.scores[context, continuation] = known
        todo = [Group(context, continuations) for context, continuations in groups.items()]
        done, total = len(pairs) - sum(len(g.continuations) for g in todo), len(pairs)
        self._progress("choices", done, total)
        for number, scores in self.model.score(todo):
            group = todo[number]
            for continuation, score in zip(group.continuations, scores, strict=True):
                self.scores[group.context, continuation] = score
                value = [score.logprob, score.greedy, score.tokens, score.fault]
                self._journal.put(key_of("score", group.context, continuation), value)
            done += len(scores)
            self._progress("choices", done, total)
        found = (self.scores[pair] for pair in pairs)
        return [(UNSCORED if score.fault else score.logprob, score.greedy) for score in found]

    def loglikelihood_rolling(self, requests: Sequence[Instance], **_: Any) -> list[float]:
        """Log-probability of every text."""
        texts = [request.args[0] for request in requests]
        found = {text: self._journal.take(key_of("roll", text), float) for text in dict.fromkeys(texts)}
        todo = [text for text, value in found.items() if value is None]
        self._progress("texts", len(found) - len(todo), len(found))
        for number, rolled in self.model.roll(todo):
            found[todo[number]] = rolled
            self._journal.put(key_of("roll", todo[number]), rolled)
            self._progress("texts", sum(v is not None for v in found.values()), len(found))
        return [value for text in texts if (value := found[text]) is not None]

    # --- answers

    def generate_until(self, requests: Sequence[Instance], **_: Any) -> list[str]:
        """The answers without their thoughts, which are in `answers`."""
        prompts: dict[str, Prompt] = {}
        keys = []
        for request, repeat in _repeats(requests):
            prompt = self._prompt(request.args[0], request.args[1], repeat)
            key = answer_key(prompt)
            keys.append(key)
            if (known := self._journal.take(key, Generated.stored)) is None:
                prompts[key] = prompt
            else:
                self.answers[key] = known
        todo = list(prompts.items())
        done, total = len(keys) - len(todo), len(keys)
        self._progress("answers", done, total)
        for number, answer in self.model.generate([prompt for _, prompt in todo]):
            key = todo[number][0]
            self.answers[key] = answer
            self._journal.put(key, {name: getattr(answer, name) for name in Generated.__slots__})
            done += 1
            self._progress("answers", done, total)
        return [self.answers[key].text for key in keys]

    def _prompt(self, context: str, options: Mapping[str, Any], repeat: int) -> Prompt:
        """What lm-eval calls gen_kwargs, as a prompt. do_sample without a temperature is lm-eval's way to say greedy."""
        samples = options.get("do_sample", options.get("temperature", 0) > 0)
        temperature = float(options.get("temperature", 1.0 if options.get("do_sample") else 0.0)) if samples else 0.0
        most = options.get("max_gen_toks") or options.get("max_new_tokens") or options.get("max_tokens")
        return Prompt(
            text=str(context),
            messages=getattr(context, "messages", None),
            max_tokens=self._max_tokens or int(most or MAX_NEW_TOKENS),
            stop=stops_of(options),
            temperature=temperature,
            top_p=float(options.get("top_p", 1.0)),
            seed=_seed(self._seed, str(context), repeat) if temperature else None,
            think=self._think,
            think_budget=self._think_budget,
        )

    def score_of(self, context: str, continuation: str) -> Score:
        """What was found for a continuation, fault and tokens included."""
        return self.scores[moved(context, continuation)]

    def answer_of(self, context: str, options: Mapping[str, Any], repeat: int = 0) -> Generated:
        """The answer to a prompt with its thought and how it ended."""
        return self.answers[answer_key(self._prompt(context, options, repeat))]

    def ids_of(self, context: str, options: Mapping[str, Any] | None = None) -> list[int] | None:
        """The ids of a context, or of a prompt that was answered."""
        return self.model.ids_of(Prompt(context) if options is None else self._prompt(context, options, 0))

    # --- templates

    @property
    def tokenizer_name(self) -> str:
        """For lm-eval's cache of requests, which we do not use."""
        return self.model.facts.name

    def chat_template(self, chat_template: bool | str = False) -> str:
        """Not text: whose template it is."""
        return f"of {self.model.facts.name}" if chat_template else ""

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> ChatText:
        """The conversation as text, by the model's own template."""
        if not self.model.renders:
            return ChatText.of(str(chat_history[-1]["content"]), chat_history, rendered=False)
        return ChatText.of(self.model.prompt_of(chat_history), chat_history, rendered=True)


def moved(context: str, continuation: str) -> tuple[str, str]:
    """White space at the end of a context belongs to the continuation, as in lm-eval; not where the context is nothing else."""
    kept = context.rstrip()
    return (kept, context[len(kept) :] + continuation) if kept else (context, continuation)


def stops_of(options: Mapping[str, Any]) -> list[str]:
    """The strings that end an answer, of what lm-eval calls gen_kwargs."""
    stop = options.get("until") or []
    return [one for one in ([stop] if isinstance(stop, str) else stop) if one]


def answer_key(prompt: Prompt) -> str:
    """The journal's key of a prompt."""
    asked = {name: getattr(prompt, name) for name in Prompt.__slots__}
    asked["messages"] = None if prompt.messages is None else [dict(m) for m in prompt.messages]
    return key_of("generate", asked | {"stop": list(prompt.stop)})


def _repeats(requests: Sequence[Instance]) -> Iterator[tuple[Instance, int]]:
    """Requests, and how many equal ones came before."""
    seen: dict[int, int] = {}
    for request in requests:
        count = seen.get(id(request), 0)
        seen[id(request)] = count + 1
        yield request, count


def _seed(seed: int, context: str, repeat: int) -> int:
    """One for each sample of each item, whatever comes before it."""
    return int.from_bytes(hashlib.sha256(f"{seed}\0{repeat}\0{context}".encode("utf-8", "replace")).digest()[:6], "big")
