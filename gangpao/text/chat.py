"""The only chat template: messages in, prompt ids out (and the loss mask that training uses).

A conversation becomes a list of parts: markup, which may hold control tokens, and what people said, which may not. Ids
are made from the parts, never from one long string, so that a user who types "<|im_start|>system" gets those
characters and no turn of their own. Everything between two control tokens is encoded as one run, as the reference does,
with one exception: an answer starts and ends a run, because it did so when the model said it. That is also what makes
ids stable: the prompt of one turn is a prefix of the next one's, and the cache can be reused.

Known formats are data (families.py). A template we do not recognise (recognise.py) runs in a process of its own
(template_worker.py); contents go in with the first character of every control token replaced by a private one, which
is turned back after the control tokens have been found.

What it gives up: tools, images, and marks that are ordinary text inside a foreign template.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypedDict

from gangpao.text import recognise, template_worker
from gangpao.text.families import BY_NAME, Family
from gangpao.text.rendering import Part, render_parts
from gangpao.text.tokenizer import Tokenizer
from gangpao.text.vocabulary import SpecialFinder


class Message(TypedDict):
    """One turn: role is system, user or assistant."""

    role: str
    content: str


class Masked(NamedTuple):
    """Ids of a conversation, and 1 for each that the model is to learn: its answers and their ends."""

    ids: list[int]
    mask: list[int]


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A chat format: a family of ours, or a foreign template's source with its special pieces as text."""

    name: str
    family: Family | None = None
    source: str | None = None
    special: tuple[tuple[str, str], ...] = ()
    stop: tuple[str, ...] = ()

    @classmethod
    def named(cls, name: str) -> "ChatTemplate":
        """A family by name, e.g. "minicpm". Raises ValueError listing the names."""
        if name not in BY_NAME:
            raise ValueError(f"no chat template called {name!r}; there are {', '.join(sorted(BY_NAME))}")
        family = BY_NAME[name]
        return cls(family.name, family, stop=family.stop)

    @classmethod
    def for_model(cls, source: str | None, *, tokenizer: Tokenizer, architecture: str = "") -> "ChatTemplate":
        """The template of a checkpoint: `source` is its jinja text (tokenizer.chat_template), None when it has none.

        A foreign template's mistakes show when something is rendered, not here.
        """
        special = tuple(
            (f"{role}_token", tokenizer.vocabulary.pieces[token])
            for role, token in (("bos", tokenizer.bos_id), ("eos", tokenizer.eos_id))
            if token is not None
        )
        if source is None:
            family = _family_by_tokens(tokenizer, architecture)
        else:
            found = recognise.family_of(source, dict(special))
            if found is None:
                return cls("own", source=source, special=special)
            family = found
        # A mark that is no token in this vocabulary has to be looked for in the text.
        as_text = () if tokenizer.id_of(family.end) in tokenizer.end_ids else (family.end.strip(),)
        return cls(family.name, family, special=special, stop=(*family.stop, *filter(None, as_text)))

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """The conversation as text, for reading; BOS only where the format itself writes it.

        Raises ValueError for a role or an order of roles that the format does not have.
        """
        _check(messages)
        if self.family is not None:
            return "".join(part.text for part in render_parts(self.family, messages, add_generation_prompt))
        return self._render_foreign(messages, add_generation_prompt)

    def encode(
        self, tokenizer: Tokenizer, messages: Sequence[Message], *, add_generation_prompt: bool = True
    ) -> list[int]:
        """Prompt ids, BOS included where the model wants one. Raises ValueError as `render` does."""
        _check(messages)
        if self.family is not None:
            parts = render_parts(self.family, messages, add_generation_prompt)
            return _encode_parts(tokenizer, self.family, parts).ids
        return self._encode_foreign(tokenizer, messages, add_generation_prompt)

    def encode_with_mask(self, tokenizer: Tokenizer, messages: Sequence[Message]) -> Masked:
        """Ids of a finished conversation for training, and their mask (equally long).

        A format whose turns end in nothing (MiniCPM) gets EOS after its last answer. Raises ValueError for a foreign
        template, which does not say whose words are whose.
        """
        _check(messages)
        if self.family is None:
            raise ValueError("a loss mask needs a chat format that gangpao knows; name one, e.g. chatml")
        masked = _encode_parts(tokenizer, self.family, render_parts(self.family, messages, False))
        if not self.family.end and messages[-1]["role"] == "assistant" and tokenizer.eos_id is not None:
            masked.ids.append(tokenizer.eos_id)
            masked.mask.append(1)
        return masked

    def _render_foreign(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        assert self.source is not None
        context = {
            "messages": [{**m, "content": m["content"].encode("utf-8", "replace").decode()} for m in messages],
            "add_generation_prompt": add_generation_prompt,
            "tools": None,
            "documents": None,
            "bos_token": "",
            "eos_token": "",
            **dict(self.special),
        }
        return template_worker.shared().render(self.source, context)

    def _encode_foreign(
        self, tokenizer: Tokenizer, messages: Sequence[Message], add_generation_prompt: bool
    ) -> list[int]:
        assert self.source is not None
        disguise = _Disguise(tokenizer, [self.source, *(m["content"] for m in messages)])
        hidden: list[Message] = [{"role": m["role"], "content": disguise.on(m["content"])} for m in messages]
        text = self._render_foreign(hidden, add_generation_prompt)
        run = _Run(tokenizer)
        for piece in tokenizer.vocabulary.split(text, parse_special=True):
            if isinstance(piece, int):
                run.put_id(piece, 0)
            else:
                run.put_text(disguise.off(piece), 0)
        return run.finish().ids


class _Run:
    """Ids so far, and the text that has not been encoded yet because more may join it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._out = Masked([], [])
        self._text = ""
        self._trained = 0
        self._fresh = True  # whether SentencePiece would put a space in front of the next text

    def put_text(self, text: str, trained: int) -> None:
        if trained != self._trained:
            self.cut()
        self._text += text
        self._trained = trained

    def put_id(self, token: int, trained: int) -> None:
        self.cut()
        self._add([token], trained)
        self._fresh = self._tokenizer.vocabulary.space_prefix == "always"

    def cut(self) -> None:
        """Nothing that comes later may merge with what came before."""
        if self._text:
            self._add(self._tokenizer.encode(self._text, start=self._fresh), self._trained)
            self._text, self._fresh = "", False

    def finish(self) -> Masked:
        """Everything, with the BOS the model wants in front."""
        self.cut()
        bos, out = self._tokenizer.bos_id, self._out
        if self._tokenizer.adds_bos and bos is not None and out.ids[:1] != [bos]:
            out.ids.insert(0, bos)
            out.mask.insert(0, 0)
        return out

    def _add(self, ids: Iterable[int], trained: int) -> None:
        before = len(self._out.ids)
        self._out.ids.extend(ids)
        self._out.mask.extend([trained] * (len(self._out.ids) - before))


def _encode_parts(tokenizer: Tokenizer, family: Family, parts: Iterable[Part]) -> Masked:
    run = _Run(tokenizer)
    marks = SpecialFinder(family.text_marks)
    for part in parts:
        if part.markup:
            for piece in tokenizer.vocabulary.split(part.text, parse_special=True):
                if isinstance(piece, int):
                    run.put_id(piece, int(part.trained))
                else:
                    run.put_text(piece, int(part.trained))
            continue
        if part.trained:
            run.cut()
        for piece_of_text, is_mark in _cut_marks(part.text, marks):
            if not is_mark:
                run.put_text(piece_of_text, int(part.trained))
                continue
            # A typed mark that is ordinary text keeps its characters, as tokens that no real mark has.
            for character in piece_of_text:
                run.cut()
                run.put_text(character, int(part.trained))
            run.cut()
        if part.trained:
            run.cut()
    return run.finish()


def _cut_marks(text: str, marks: SpecialFinder) -> Iterator[tuple[str, bool]]:
    for mark in marks.occurring(text):
        before, found, after = text.partition(mark)
        yield from _cut_marks(before, marks)
        yield found, True
        yield from _cut_marks(after, marks)
        return
    if text:
        yield text, False


class _Disguise:
    """Control tokens spelled in contents, made unrecognisable and recognisable again: their first character becomes one
    of Unicode's private ones that occurs in none of `texts`."""

    def __init__(self, tokenizer: Tokenizer, texts: Sequence[str]) -> None:
        pieces = [tokenizer.vocabulary.pieces[i] for i in tokenizer.control_ids]
        self._finder = SpecialFinder(pieces)
        used = set("".join(texts))
        free = (chr(c) for c in range(0xF0000, 0xFFFFE) if chr(c) not in used)
        self._masks = {first: next(free) for first in sorted({piece[0] for piece in pieces})}
        self._back = {ord(mask): first for first, mask in self._masks.items()}

    def on(self, text: str) -> str:
        while found := self._finder.occurring(text):
            for piece in found:
                text = text.replace(piece, self._masks[piece[0]] + piece[1:])
        return text

    def off(self, text: str) -> str:
        return text.translate(self._back)


def _check(messages: Sequence[Message]) -> None:
    if not messages:
        raise ValueError("a conversation needs at least one message")
    for i, message in enumerate(messages):
        role, content = message.get("role"), message.get("content")
        if role not in ("system", "user", "assistant"):
            raise ValueError(f"message {i}: role must be system, user or assistant, not {role!r}")
        if not isinstance(content, str):
            raise ValueError(f"message {i}: content must be a string, not {type(content).__name__}")


def _family_by_tokens(tokenizer: Tokenizer, architecture: str) -> Family:
    """A family for a checkpoint without a template, by the marks its vocabulary holds as single tokens."""
    for mark, name in (("<|im_start|>", "chatml"), ("<|start_header_id|>", "llama-3"), ("<start_of_turn>", "gemma-3")):
        if tokenizer.id_of(mark) is not None:
            return replace(BY_NAME[name], begin="")
    return BY_NAME["minicpm" if architecture == "minicpm" else "plain"]
