"""Which documents of a prepared source stay, which of them are held out, and their tokens.

Held out are the documents with the smallest hashes of their own text, so that most stay so when documents are added. Of
conversations those go together whose first questions begin alike, since they are about one passage; where that is a large
part of a source (a prompt with examples in front of every question), what distinguishes them decides: the whole question,
else the whole conversation.

What it gives up: exact shares. Hashes fall as they fall, and groups stay whole; `advice` says when a share came out far off.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gangpao.data.cleaning import dedup_pass
from gangpao.data.cleaning.prepare import PLACES, Prepared
from gangpao.data.sources.forms import Document, said
from gangpao.data.tokens.encode import Encoder
from gangpao.data.tokens.shards import ShardWriter
from gangpao.progress import Progress

_BATCH_BYTES = 4 << 20
_LARGEST_GROUP = 0.02  # of the documents that stay, and
_SMALLEST_LIMIT = 8  # at least so many: questions about one passage
_FAR_OFF, _NOT_FAR = 0.5, 5  # of what was asked for; documents


@dataclass(frozen=True, slots=True)
class Chosen:
    """A prepared source and which of its documents are copies."""

    prepared: Prepared
    flags: npt.NDArray[np.uint8]

    def heldout(self) -> npt.NDArray[np.bool_]:
        """Which documents are held out."""
        stays: npt.NDArray[np.bool_] = self.flags == dedup_pass.STAYS
        places = self._places(stays)
        wanted = self.prepared.source.heldout
        if isinstance(wanted, float):
            limit = int(wanted * 2**64)
        else:
            mine = np.sort(places[stays])
            limit = int(mine[min(wanted, len(mine)) - 1]) + 1 if wanted and len(mine) else 0
        return np.logical_and(stays, places < np.uint64(limit)) if limit < 1 << 64 else stays

    def _places(self, stays: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint64]:
        """The hash that decides about each document: of as much of it as keeps groups small."""
        levels = self.prepared.places()
        chosen = levels[:, 0].copy()
        limit = max(_SMALLEST_LIMIT, _LARGEST_GROUP * int(stays.sum()))
        for finer in range(1, PLACES):
            _, group, sizes = np.unique(chosen, return_inverse=True, return_counts=True)
            large = sizes[group.reshape(-1)] > limit
            chosen[large] = levels[large, finer]
        return chosen

    def advice(self) -> Iterator[str]:
        """What somebody should know about the share that is held out."""
        wanted = self.prepared.source.heldout
        count = int((self.flags == dedup_pass.STAYS).sum())
        held = int(self.heldout().sum())
        expected = wanted * count if isinstance(wanted, float) else min(wanted, count)
        if not count or not wanted:
            return
        if held == count:
            yield f"all of its {count} documents are held out, and none is left to train on; lower heldout = {wanted}"
        elif not held:
            yield f"none of its {count} documents is held out; for a few of them write a whole number, heldout = 5"
        elif abs(held - expected) > max(_FAR_OFF * expected, _NOT_FAR):
            yield f"{held} of {count} documents are held out where heldout = {wanted} asks for about {expected:.0f}"

    def documents(self) -> Iterator[tuple[Document, bool]]:
        """Those that stay, and whether they are held out."""
        for document, flag, held in zip(self.prepared.documents(), self.flags, self.heldout(), strict=True):
            if flag == dedup_pass.STAYS:
                yield document, bool(held)

    def sample(self, share: float) -> Iterator[Document]:
        """A share of the training documents, by hash."""
        limit = share * 2.0**64
        first = self.prepared.digests()[:, 0]
        numbers = np.flatnonzero(self.flags == dedup_pass.STAYS)
        for i, (document, held) in zip(numbers, self.documents(), strict=True):
            if not held and float(first[i]) < limit:
                yield document


def encode(chosen: Chosen, encoder: Encoder, folder: Path, progress: Progress) -> dict[str, Any]:
    """Write train and heldout shards of one source; returns their sizes."""
    source = chosen.prepared.source
    size = encoder.tokenizer.vocab_size
    about = {"source": chosen.prepared.name, "language": source.language}
    supervised, done, refused = source.supervised, 0, 0
    with (
        ShardWriter(folder / "train", size, supervised=supervised, about=about) as train,
        ShardWriter(folder / "heldout", size, supervised=supervised, about=about) as heldout,
    ):
        for batch in _batches(chosen.documents()):
            if supervised:
                for document, held in batch:
                    try:
                        ids, mask = encoder.chat(document.messages, document.tools)
                    except ValueError:  # an order of roles that the chat format does not have
                        refused += 1
                        continue
                    answers = sum(len(said(m).encode()) for m in document.messages if m["role"] == "assistant")
                    (heldout if held else train).add(ids, answers, mask)
            else:
                encoded = encoder.texts([document.text for document, _ in batch])
                for (document, held), ids in zip(batch, encoded, strict=True):
                    (heldout if held else train).add(ids, len(document.text.encode()))
            done += sum(len(document.contents().encode()) for document, _ in batch)
            progress.update(done)
    sizes = {
        name: {"documents": w.num_documents, "tokens": w.num_tokens, "bytes": w.num_bytes}
        for name, w in (("train", train), ("heldout", heldout))
    }
    return {**sizes, "dropped": {"refused by chat format": refused}}


def _batches(documents: Iterable[tuple[Document, bool]]) -> Iterator[list[tuple[Document, bool]]]:
    batch: list[tuple[Document, bool]] = []
    size = 0
    for item in documents:
        batch.append(item)
        size += len(item[0].contents())
        if size >= _BATCH_BYTES // 2:  # characters; Chinese ones have three bytes
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
