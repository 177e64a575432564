"""Examples as ids: what the model is shown, and 1 for each id that it is to learn.

The idea: a conversation is written by the chat template that chat uses (gangpao/text/templates), so what is learned is what will be
asked for. A row that is too long is dropped or, where that is wanted, loses its oldest turns, then the end of its last answer; an
answer that was cut has no end to learn. Pictures are ids behind the vocabulary (gangpao/tune/pictures/table.py), never learned.
"""

import bisect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gangpao.data.sources.forms import Document, Turn
from gangpao.data.sources.preferences import Labelled, Pair
from gangpao.text.templates.chat import ChatTemplate, Masked
from gangpao.text.templates.pictures import Pictures
from gangpao.text.tokenizer import Tokenizer
from gangpao.tune.data.config import TuneData
from gangpao.tune.data.rows import Example, Fault
from gangpao.tune.pictures.render import with_pictures
from gangpao.tune.pictures.table import PictureTable

_Prepared = tuple[Sequence[Turn], Sequence[Any], Sequence[int]]  # turns, functions, numbers of pictures


class Rendered(NamedTuple):
    """One sequence for a text, a conversation or a labelled answer, two for a pair; what was cut, in words; how many turns had a
    thought that the model has no marks for."""

    sequences: tuple[Masked, ...]
    cut: str = ""
    thoughts_left_out: int = 0


class Renderer:
    """Turns examples into ids. template: None where only texts are rendered. limit: tokens of a conversation. pictures: of a model
    that sees."""

    def __init__(
        self,
        config: TuneData,
        tokenizer: Tokenizer,
        template: ChatTemplate | None,
        limit: int,
        pictures: PictureTable | None = None,
    ) -> None:
        self.config, self.tokenizer, self.template, self.limit = config, tokenizer, template, limit
        self.pictures = pictures
        self._folder = Path()

    def __call__(self, example: Example, folder: Path = Path()) -> Rendered | Fault:
        """The ids of an example, or why it has none. folder: where the paths of its pictures begin."""
        self._folder = folder
        try:
            if isinstance(example, Document) and not example.messages:
                return self._text(example.text)
            if isinstance(example, Pair):
                return self._conversations([example.chosen, example.rejected], example.prompt)
            if isinstance(example, Labelled):
                return self._conversations([example.document], example.prompt)
            return self._conversations([example], self._first_learned(example.messages))
        except ValueError as error:
            return Fault("template", str(error))

    def _first_learned(self, messages: Sequence[Turn]) -> int:
        if self.config.train_on != "last":
            return 0
        return max(i for i, turn in enumerate(messages) if turn["role"] == "assistant")

    def _text(self, text: str) -> Rendered | Fault:
        """A text as a document: [BOS] ids [EOS]. Longer ones go on in the next row; only a max_length of their own cuts them."""
        tokenizer, most = self.tokenizer, self.config.max_length
        ids = tokenizer.encode(text, add_bos=tokenizer.adds_bos)
        ids += [tokenizer.eos_id] if tokenizer.eos_id is not None else []
        cut = ""
        if most and len(ids) > most:
            if self.config.too_long == "drop":
                return Fault("long", f"has {len(ids):,} tokens, {most:,} may be in a text")
            ids, cut = ids[:most], f"the last {len(ids) - most:,} of {len(ids):,} tokens of the text"
        return Rendered((Masked(ids, [1] * len(ids)),), cut)

    def _conversations(self, documents: Sequence[Document], begin: int) -> Rendered | Fault:
        """Conversations that begin with the same `begin` turns, each with what is learned of it."""
        left_out = 0
        prepared: list[_Prepared] = []
        for document in documents:
            try:
                numbers = self._numbers(document)
            except ValueError as error:
                return Fault("picture", str(error))
            messages, missing = self._with_thoughts(document.messages)
            left_out += missing
            prepared.append((self._with_system(messages), document.tools, numbers))
        begin += begin and len(prepared[0][0]) - len(documents[0].messages)
        found = [self._encode(one, begin) for one in prepared]
        longest = max(len(masked.ids) for masked in found)
        cut = ""
        if longest > self.limit:
            if self.config.too_long == "drop":
                return Fault("long", f"has {longest:,} tokens, {self.limit:,} fit")
            shortened = self._shortened(prepared, begin, longest)
            if isinstance(shortened, Fault):
                return shortened
            found, cut = shortened
        return Rendered(tuple(found), cut, left_out)

    def _numbers(self, document: Document) -> list[int]:
        """Its pictures in the table. Raises ValueError for pictures that are none, or that nothing sees."""
        if document.images and self.pictures is None:
            raise ValueError(
                "has pictures, and the model that is tuned does not see: name one that does, or give it sight ([new])"
            )
        return [self.pictures.add(reference, self._folder) for reference in document.images] if self.pictures else []

    def _encode(self, prepared: _Prepared, begin: int) -> Masked:
        assert self.template is not None
        messages, tools, numbers = prepared
        shown: Sequence[Mapping[str, Any]] = messages
        pictures: Pictures = {}
        if numbers and self.pictures is not None:
            shown, pictures = with_pictures(messages, numbers, self.pictures, self.template)
        masked = self.template.encode_with_mask(
            self.tokenizer, shown, tools=tools or None, begin=begin, pictures=pictures
        )
        if self.config.train_on == "all" and not begin:
            text = self.tokenizer.vocab_size
            masked = Masked(masked.ids, [int(token < text) for token in masked.ids])
        return masked

    def _shortened(self, prepared: Sequence[_Prepared], begin: int, longest: int) -> tuple[list[Masked], str] | Fault:
        """Conversations without their oldest turns, as few as have to go, and then without the end of the answer."""
        messages = prepared[0][0]
        system = int(messages[0]["role"] == "system")
        last = begin or max(i for i, turn in enumerate(messages) if turn["role"] == "assistant")
        starts = [i for i in range(system, last) if messages[i]["role"] == "user"] or [system]

        def without(start: int) -> list[Masked]:
            kept = start - system
            return [self._encode(([*m[:system], *m[start:]], *rest), begin and begin - kept) for m, *rest in prepared]  # type: ignore[arg-type]

        at = bisect.bisect_left(range(len(starts) - 1), True, key=lambda i: self._fit(without(starts[i])))
        found, words = without(starts[at]), []
        if starts[at] > system:
            words.append(f"the {starts[at] - system} oldest turns")
        for i, masked in enumerate(found):
            over = len(masked.ids) - self.limit
            if over > 0:
                found[i] = masked = Masked(masked.ids[: self.limit], masked.mask[: self.limit])
                words.append(f"the last {over:,} tokens of {'an' if len(found) > 1 else 'the'} answer")
                if not any(masked.mask[1:]):
                    return Fault("long", f"has {longest:,} tokens, {self.limit:,} fit, and its question alone does not")
        return found, " and ".join(words)

    def _fit(self, found: Sequence[Masked]) -> bool:
        return all(len(masked.ids) <= self.limit for masked in found)

    def _with_system(self, messages: Sequence[Turn]) -> Sequence[Turn]:
        if not self.config.system or messages[0]["role"] == "system":
            return messages
        return [{"role": "system", "content": self.config.system}, *messages]

    def _with_thoughts(self, messages: Sequence[Turn]) -> tuple[Sequence[Turn], int]:
        """Turns whose thoughts are where the template looks for them, and how many are left out for want of marks."""
        template = self.template
        assert template is not None
        if not any("reasoning_content" in turn for turn in messages):
            return messages, 0
        if template.family is None and template.source is not None and "reasoning_content" in template.source:
            return messages, 0
        out, left_out = [], 0
        for turn in messages:
            thought = turn.get("reasoning_content")
            if thought is None:
                out.append(turn)
                continue
            rest = {key: value for key, value in turn.items() if key != "reasoning_content"}
            if template.thoughts is not None:
                begin, end = template.thoughts
                rest["content"] = f"{begin}\n{thought.strip()}\n{end}\n\n{rest['content']}"
            else:
                left_out += 1
            out.append(rest)
        return out, left_out
