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

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from gangpao.engine.answer import Answer
from gangpao.engine.sample import SamplingParams
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

        from gangpao.model import weights

        folder = folder / "export" if (folder / "run.json").is_file() else folder
        if threads:
            torch.set_num_threads(threads)
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
        import torch

        width = max(map(len, endings)) - 1
        rows = [[*ending[:-1], *[0] * (width + 1 - len(ending))] for ending in endings]
        hidden = self.model(self._tensor(rows), caches=head.copies(len(endings), width)).hidden
        out = []
        for row, ending in zip(hidden, endings, strict=True):  # causal: what is padded on the right changes nothing
            targets = self._tensor(list(ending[1:]))
            logits = self._logits(row[: len(targets)])
            logprobs = logits.log_softmax(-1).gather(-1, targets[:, None])
            out.append((float(logprobs.double().sum()), bool(torch.equal(logits.argmax(-1), targets))))
        return out

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
        import torch

        for number, prompt in enumerate(prompts):
            self._check(f"prompt {number}", prompt, [[0]])
        params = SamplingParams(
            max_tokens=max_tokens, temperature=temperature, seed=seed, top_p=top_p, stop=tuple(stop)
        )
        with torch.inference_mode():
            return [self._answer(prompt, params) for prompt in prompts]

    def _answer(self, prompt: Sequence[int], params: SamplingParams) -> Continuation:
        answer = Answer(
            self.tokenizer, self.model.config.vocab_size, prompt, params, continues=True, capacity=self.limit
        )
        room = min(params.max_tokens, self.limit + 1 - len(prompt))
        head, hidden = self._read(prompt, len(prompt) + room - 1)
        caches = head.copies(1, room - 1)
        ids: list[int] = []
        while True:
            logits = self._logits(hidden).cpu().numpy()
            token = answer.sampler.sample(logits)
            ids.append(token)
            answer.take(token, logits)
            if answer.finish_reason is not None:
                return Continuation(ids, answer.text, answer.finish_reason)
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
        del self.ids[shared:]
        for cache in self.caches:
            cache.length = shared
        return shared

    def reserve(self, positions: int) -> None:
        """Make room for so many."""
        if not self.caches or self.caches[0].keys.shape[2] < positions:
            self.caches = self._copied(1, self._capacity(positions))

    def copies(self, count: int, more: int) -> list[LayerCache]:
        """Caches of `count` rows that go on from this one, with room for `more` positions."""
        return self._copied(count, self._capacity(len(self.ids) + more))

    def _capacity(self, positions: int) -> int:
        return max(positions, min(max(1 << (positions - 1).bit_length(), self._least), self._most))

    def _copied(self, count: int, capacity: int) -> list[LayerCache]:
        caches = self._model.new_cache(count, capacity)
        for new, old in zip(caches, self.caches, strict=False):  # none yet at the beginning
            new.keys[:, :, : old.length] = old.keys[:, :, : old.length]
            new.values[:, :, : old.length] = old.values[:, :, : old.length]
            new.length = old.length
        return caches


def _dtype(name: str) -> torch.dtype:
    import torch

    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in known:
        raise ValueError(f"dtype {name!r:.30}: there are {', '.join(known)}")
    return known[name]
