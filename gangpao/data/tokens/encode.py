"""Documents to ids, many at a time: what stands in a shard for a text or a conversation.

A text becomes BOS (where the model wants one), its ids, EOS. A conversation is what text/chat.py renders, with its mask. The
ids are Tokenizer's; the batch encoder of the tokenizers library, which uses all cores, is only taken where it gives the same:
for folders with a tokenizer.json and texts that do not spell a special piece, which the library would obey and we do not.
The first text of every batch goes through both, and a difference ends the build.

What it gives up: speed for SentencePiece folders without a tokenizer.json, and for conversations.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gangpao.text.templates.chat import ChatTemplate, Masked, Messages
from gangpao.text.templates.tools import Tools
from gangpao.text.tokenizer import Tokenizer
from gangpao.text.vocabulary import Kind, SpecialFinder


class Encoder:
    """A tokenizer folder, ready for batches. Raises ValueError as Tokenizer.from_dir does."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = Tokenizer.from_dir(folder)
        vocabulary = self.tokenizer.vocabulary
        apart = (Kind.CONTROL, Kind.UNKNOWN, Kind.USER_DEFINED)
        special = [piece for piece, kind in zip(vocabulary.pieces, vocabulary.kinds, strict=True) if kind in apart]
        self._special = SpecialFinder(special)
        self._library = _library(folder)
        self._template: ChatTemplate | None = None
        bos, eos = self.tokenizer.bos_id, self.tokenizer.eos_id
        self._before = [bos] if self.tokenizer.adds_bos and bos is not None else []
        self._after = [eos] if eos is not None else []

    def texts(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text as a document: [BOS] ids [EOS]."""
        out: list[list[int]] = [[]] * len(texts)
        quick = []
        for i, text in enumerate(texts):
            if self._library is None or self._special.occurring(text):
                out[i] = self.tokenizer.encode(text)
            else:
                quick.append(i)
        if quick:
            assert self._library is not None
            found = self._library.encode_batch_fast([texts[i] for i in quick], add_special_tokens=False)
            for i, encoding in zip(quick, found, strict=True):
                out[i] = encoding.ids
            if out[quick[0]] != self.tokenizer.encode(texts[quick[0]]):
                raise AssertionError(f"two encoders disagree about {texts[quick[0]]!r:.200}; please report this text")
        return [self._before + ids + self._after for ids in out]

    def chat(self, messages: Messages, tools: Tools = ()) -> Masked:
        """A conversation's ids, and 1 for each that is learned. Raises ValueError where the chat format refuses it."""
        if self._template is None:
            self._template = ChatTemplate.for_model(self.tokenizer.chat_template, tokenizer=self.tokenizer)
        return self._template.encode_with_mask(self.tokenizer, messages, tools=tools or None)


def _library(folder: Path) -> Any:
    """The tokenizers library on the folder's own file, or None where there is none."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    from tokenizers import Tokenizer as Library

    library = Library.from_file(str(path))
    library.no_truncation()
    library.no_padding()
    return library
