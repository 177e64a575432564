"""A checkpoint folder in torch as a model under evaluation: endings scored behind contexts, prompts gone on from.

    contexts go through in pieces of CHUNK ids, always cut at the same places, each behind the cache of those before it. The
    pieces that a context shares with the one before are kept, so examples in front of many questions are computed once.
    endings of one context go through together, padded on the right, behind copies of its cache; only rows that are scored meet
    the head.

Every pass has a shape that follows from the item alone, never from what else is asked, so on a CPU a result has the same bits
in any order and in any company (with the same number of threads). What it gives up: items do not share a pass, answers are
written one at a time, and on a GPU that is slow; equal bits between machines, which the engine has and torch has not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gangpao.engine.answer import Answer, Piece
from gangpao.engine.memory import EngineOptions
from gangpao.engine.sample import SamplingParams
from gangpao.engine.thinking.rule import ThoughtRule
from gangpao.evaluate.models.answer import ThoughtAndAnswer, prompt_ids, rule_for
from gangpao.evaluate.models.protocol import Generated, Group, Prompt, Score, Usage
from gangpao.evaluate.models.tokens import encode_group, first_id, scores_of, windows
from gangpao.evaluate.results import ModelFacts, sha256_of
from gangpao.text.templates.chat import ChatTemplate
from gangpao.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from gangpao.model.layers import LayerCache
    from gangpao.model.transformer import Transformer

CHUNK = 128  # ids of a context in one pass
TOGETHER = 8  # endings in one pass
WIDEST_DEFAULT = 8192  # as the engine's


class Continuation(NamedTuple):
    """What a prompt was gone on with. finish: "stop" (an end of the model's, or a stop string, which is left out) or "length"."""

    ids: list[int]
    text: str
    finish: str


class Checkpoint:
    """A model of Hugging Face's form (or a training run's export) with its tokenizer.

    limit: the most ids of context and ending, or of prompt and answer, together.
    """

    def __init__(self, model: Transformer, tokenizer: Tokenizer, limit: int) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.limit = limit
        self.computed = self.cached = 0  # ids of contexts and prompts, so far
        self._heads: dict[bool, _Head] = {}

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        context: int | None = None,
        device: str | None = None,
        dtype: str | None = None,
        threads: int | None = None,
    ) -> Checkpoint:
        """Load a folder. device: CUDA if there is one; dtype: float32 on a CPU and that of the file elsewhere.

        Raises ValueError naming what is missing, and a context that the model does not know.
        """
        import torch

        from gangpao.model import cpu, weights

        folder = folder / "export" if (folder / "run.json").is_file() else folder
        if threads:
            torch.set_num_threads(threads)
        cpu.use_full_width()
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        kind = _dtype(dtype) if dtype else (torch.float32 if device == "cpu" else None)
        tokenizer = Tokenizer.from_dir(folder)
        model = weights.load(folder, dtype=kind, device=device).eval().requires_grad_(False)
        known = model.config.max_position_embeddings
        if context is not None and not 1 <= context <= known:
            raise ValueError(f"{folder}: --context {context}: this model knows 1 to {known} positions")
        return cls(model, tokenizer, context or min(WIDEST_DEFAULT, known))

    def score(
        self, contexts: Sequence[Sequence[int]], endings: Sequence[Sequence[Sequence[int]]]
    ) -> list[list[tuple[float, bool]]]:
        """For each ending of each context its natural-log probability, and whether greedy decoding would have said it.

        Contexts that begin alike should be neighbours. Raises ValueError naming the item for an empty context or ending, one
        that does not fit the limit, and an id that is not in the vocabulary.
        """
        import torch

        for number, (context, those) in enumerate(zip(contexts, endings, strict=True)):
            self._check(f"item {number}", context, those)
        with torch.inference_mode():
            return [self._scored(context, those) for context, those in zip(contexts, endings, strict=True)]

    def _scored(self, context: Sequence[int], endings: Sequence[Sequence[int]]) -> list[tuple[float, bool]]:
        if not endings:
            return []
        head, hidden = self._read(context, len(context) + max(map(len, endings)) - 1)
        first = self._logits(hidden)
        logprobs = first.log_softmax(-1)
        best = int(first.argmax())
        scores = [(float(logprobs[ending[0]]), ending[0] == best) for ending in endings]
        longer = [i for i, ending in enumerate(endings) if len(ending) > 1]
        for at in range(0, len(longer), TOGETHER):
            group = longer[at : at + TOGETHER]
            for i, (logprob, greedy) in zip(group, self._behind(head, [endings[i] for i in group]), strict=True):
                scores[i] = scores[i][0] + logprob, scores[i][1] and greedy
        return scores

    def _behind(self, head: _Head, endings: Sequence[Sequence[int]]) -> list[tuple[float, bool]]:
        """Scores of all tokens of endings but the first, behind the context in a head's cache."""
        width = max(map(len, endings)) - 1
        rows = self._tensor([[*ending, *[0] * (width + 1 - len(ending))] for ending in endings])
        caches = head.copies(len(endings), width)
        found = [(0.0, True)] * len(endings)
        for at in range(0, width, CHUNK):
            hidden = self.model(rows[:, at : min(at + CHUNK, width)], caches=caches).hidden
            for i, ending in enumerate(endings):  # causal: what is padded on the right changes nothing before it
                count = min(CHUNK, len(ending) - 1 - at)
                if count > 0:
                    targets = rows[i, at + 1 : at + 1 + count]
                    logits = self._logits(hidden[i, :count])
                    logprobs = logits.log_softmax(-1).gather(-1, targets[:, None]).double()
                    greedy = bool((logits.argmax(-1) == targets).all())
                    found[i] = found[i][0] + float(logprobs.sum()), found[i][1] and greedy
        return found

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_tokens: int,
        stop: Iterable[str] = (),
        temperature: float = 0.0,
        seed: int = 0,
        top_p: float = 1.0,
    ) -> list[Continuation]:
        """Go on from each prompt, at most max_tokens, by the engine's own sampler: temperature 0 is greedy, and every prompt
        begins with the same seed. An answer that fills the limit ends with "length". Raises ValueError as `score` does."""
        params = SamplingParams(
            max_tokens=max_tokens, temperature=temperature, seed=seed, top_p=top_p, stop=tuple(stop)
        )
        return [self.answer(prompt, params) for prompt in prompts]

    def answer(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        *,
        marks: Sequence[str] = (),
        continues: bool = True,
        on_piece: Callable[[Piece], bool] = lambda _: False,
        thinking: ThoughtRule | None = None,
    ) -> Continuation:
        """Go on from one prompt. marks: strings that end it beside those of params. continues: a blank at its beginning is part of
        its text. on_piece is told what was written, and says whether that is the end ("stop"). thinking: how it
        may think."""
        import torch

        self._check("the prompt", prompt, [[0]])
        answer = Answer(
            self.tokenizer, self.model.config.vocab_size, prompt, params,
            stop=marks, continues=continues, capacity=self.limit, thinking=thinking,
        )  # fmt: skip
        room = min(params.max_tokens, self.limit + 1 - len(prompt))
        ids: list[int] = []
        with torch.inference_mode():
            head, hidden = self._read(prompt, len(prompt) + room - 1)
            caches = head.copies(1, room - 1)
            while True:
                logits = self._logits(hidden).cpu().numpy()
                token = answer.choose(logits)
                ids.append(token)
                piece = answer.take(token, logits)
                ended = on_piece(piece) if piece else False
                if ended or answer.finish_reason is not None:
                    return Continuation(ids, answer.text, answer.finish_reason or "stop")
                hidden = self.model(self._tensor([[token]]), caches=caches).hidden[0, -1]

    def _read(self, context: Sequence[int], positions: int) -> tuple[_Head, Tensor]:
        """A head that holds the context, and the hidden state behind its last id. positions: that will be looked at in all."""
        head = self._head(positions)
        kept = head.reuse(context)
        head.reserve(len(context))
        hidden = None
        for at in range(kept, len(context), CHUNK):
            piece = list(context[at : at + CHUNK])
            hidden = self.model(self._tensor([piece]), caches=head.caches).hidden[0, -1]
            head.ids += piece
        assert hidden is not None
        self.computed += len(context) - kept
        self.cached += kept
        return head, hidden

    def _head(self, positions: int) -> _Head:
        """The angles of some models depend on how much is looked at: past the length that they were trained with, another cache."""
        scaling = self.model.config.rope_scaling
        trained = (scaling and scaling.original_max_position_embeddings) or self.model.config.max_position_embeddings
        past = positions > trained
        if past not in self._heads:
            self._heads[past] = _Head(self.model, trained + 1 if past else 1, self.limit if past else trained)
        return self._heads[past]

    def forget(self) -> None:
        """Give back the caches; nothing is kept of what was read."""
        self._heads.clear()

    def _logits(self, hidden: Tensor) -> Tensor:
        return self.model.logits(hidden)

    def _tensor(self, ids: Sequence[int] | Sequence[Sequence[int]]) -> Tensor:
        import torch

        return torch.tensor(ids, device=self.model.model.embed_tokens.weight.device)

    def _check(self, what: str, context: Sequence[int], endings: Sequence[Sequence[int]]) -> None:
        if not context or not all(map(len, endings)):
            raise ValueError(f"{what}: an empty {'ending' if context else 'context'}: give at least one id")
        longest = len(context) + max(map(len, endings), default=1) - 1
        if longest > self.limit:
            raise ValueError(f"{what}: {longest} ids, and the context holds {self.limit}")
        size = self.model.config.vocab_size
        wild = next((i for ids in (context, *endings) for i in ids if not 0 <= i < size), None)
        if wild is not None:
            raise ValueError(f"{what}: id {wild} does not exist; this model has {size}")


class CheckpointModel:
    """See protocol.Model: a Checkpoint for text. batch is of no use here."""

    renders = True

    def __init__(self, checkpoint: Checkpoint, facts: ModelFacts, template: ChatTemplate) -> None:
        self.checkpoint = checkpoint
        self.facts = facts.model_copy(update={"context": checkpoint.limit})
        self.usage = Usage()
        self._template = template

    @classmethod
    def load(cls, folder: Path, options: EngineOptions, batch: int) -> CheckpointModel:
        """A Hugging Face folder, or a training run. Of the options context and threads count.

        Raises ValueError saying what to do.
        """
        from gangpao.model import weights
        from gangpao.model.count import parameters

        folder = folder / "export" if (folder / "run.json").is_file() else folder
        checkpoint = Checkpoint.load(folder, context=options.context, threads=options.threads)
        files, config = weights.weight_files(folder), checkpoint.model.config
        facts = ModelFacts(
            name=folder.parent.name if folder.name == "export" else folder.name, kind="checkpoint",
            sha256=sha256_of(files), bytes=sum(file.stat().st_size for file in files),
            parameters=parameters(config).total, architecture=config.model_type,
            quantization=str(next(weights.tensors(folder))[1].dtype).removeprefix("torch."),
        )  # fmt: skip
        tokenizer = checkpoint.tokenizer
        template = ChatTemplate.for_model(tokenizer.chat_template, tokenizer=tokenizer, architecture=config.model_type)
        return cls(checkpoint, facts, template)

    @property
    def thinks(self) -> bool:
        """Whether the folder's template has thoughts."""
        return self._template.thoughts is not None

    @property
    def settings(self) -> Mapping[str, Any]:
        """What of the set-up changes scores."""
        weight = self.checkpoint.model.model.embed_tokens.weight
        return {
            "bos": "once in front" if self.checkpoint.tokenizer.adds_bos else "none",
            "context": self.checkpoint.limit,
            "dtype": str(weight.dtype).removeprefix("torch."),
            "device": weight.device.type,
        }

    def score(self, groups: Sequence[Group]) -> Iterator[tuple[int, list[Score]]]:
        """Contexts that begin alike are read one after the other, and what they share once."""
        encoded = [encode_group(self.checkpoint.tokenizer, group, self.checkpoint.limit) for group in groups]
        for i in sorted(range(len(groups)), key=lambda i: encoded[i].context):
            yield i, scores_of(encoded[i], self._scored(encoded[i].context, encoded[i].endings))

    def roll(self, texts: Sequence[str]) -> Iterator[tuple[int, float]]:
        """Windows of the whole context, as lm-eval has them."""
        tokenizer = self.checkpoint.tokenizer
        begins = first_id(tokenizer, "a text cannot be scored from its beginning")
        for i, text in enumerate(texts):
            parts = windows(tokenizer.encode(text, parse_special=True), begins, self.checkpoint.limit)
            yield i, sum(self._scored(part.context, [part.ending])[0][0] for part in parts)

    def _scored(self, context: Sequence[int], endings: Sequence[Sequence[int]]) -> list[tuple[float, bool]]:
        found = self.checkpoint.score([context], [endings])[0] if endings else []
        self._count()
        return found

    def generate(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, Generated]]:
        """Prompts that begin alike one after the other."""
        limit = self.checkpoint.limit
        ids = [self.ids_of(prompt) for prompt in prompts]
        for i in sorted(range(len(prompts)), key=lambda i: ids[i]):
            if len(ids[i]) >= limit:
                yield i, Generated("", "too_long", prompt_tokens=len(ids[i]))
                continue
            yield i, self._answer(prompts[i], ids[i])

    def _answer(self, prompt: Prompt, ids: list[int]) -> Generated:
        checkpoint, chat = self.checkpoint, prompt.messages is not None
        splitter = self._template.splitter(checkpoint.tokenizer, ids)
        answer = ThoughtAndAnswer(splitter, prompt.stop, thinks=self._template.thoughts is not None)
        drawn: Mapping[str, Any] = {"temperature": prompt.temperature, "top_p": prompt.top_p, **prompt.sampling}
        most = min(prompt.max_tokens, checkpoint.limit - len(ids))
        params = SamplingParams(**drawn, seed=prompt.seed or 0, max_tokens=most, stop=answer.passed_on)
        written = checkpoint.answer(
            ids, params, marks=self._template.stop if chat else (), continues=not chat, on_piece=answer.push,
            thinking=rule_for(checkpoint.tokenizer, self._template, prompt, ids),
        )  # fmt: skip
        count = len(written.ids) - (written.ids[-1] in checkpoint.tokenizer.end_ids)
        self.usage.completion += count
        self._count()
        return answer.generated(count, len(ids))

    def _count(self) -> None:
        self.usage.prompt, self.usage.cached = self.checkpoint.computed, self.checkpoint.cached

    def prompt_of(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """By the folder's own template."""
        return self._template.render(list(messages))

    def ids_of(self, prompt: Prompt) -> list[int]:
        """As `generate` and `score` make them."""
        return prompt_ids(self.checkpoint.tokenizer, self._template, prompt)

    def close(self) -> None:
        """Give back the caches."""
        self.checkpoint.forget()


class _Head:
    """The cache of one context, and the ids that are in it. It grows in powers of two from `least` up to `most` positions."""

    def __init__(self, model: Transformer, least: int, most: int) -> None:
        self._model, self._least, self._most = model, least, most
        self.ids: list[int] = []
        self.caches: list[LayerCache] = []

    def reuse(self, context: Sequence[int]) -> int:
        """Cut back to the whole pieces shared with a context, of which at least one id is left to compute; their length."""
        shared, most = 0, min(len(self.ids), len(context) - 1)
        while shared + CHUNK <= most and self.ids[shared : shared + CHUNK] == list(context[shared : shared + CHUNK]):
            shared += CHUNK
        # Where one layer has no way back to there, all begin anew.
        if self.caches and any(cache.truncate(shared) < shared for cache in self.caches):
            shared = 0
            for cache in self.caches:
                cache.truncate(0)
        del self.ids[shared:]
        return shared

    def reserve(self, positions: int) -> None:
        """Make room for so many."""
        if not self.caches or self.caches[0].capacity < positions:
            self.caches = self._copied(1, self._capacity(positions))

    def copies(self, count: int, more: int) -> list[LayerCache]:
        """Caches of `count` rows that go on from this one, with room for `more` positions."""
        return self._copied(count, self._capacity(len(self.ids) + more))

    def _capacity(self, positions: int) -> int:
        return max(positions, min(max(1 << (positions - 1).bit_length(), self._least), self._most))

    def _copied(self, count: int, capacity: int) -> list[LayerCache]:
        caches = self._model.new_cache(count, capacity)
        for new, old in zip(caches, self.caches, strict=False):  # none yet at the beginning
            old.copy_to(new)
        return caches


def _dtype(name: str) -> torch.dtype:
    import torch

    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in known:
        raise ValueError(f"dtype {name!r:.30}: there are {', '.join(known)}")
    return known[name]
