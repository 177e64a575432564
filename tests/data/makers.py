"""Small inputs for the tests of data: shards from lists, files of rows, texts with a wanted overlap."""

import json

import numpy as np

from gangpao.data.tokens.shards import Shards, ShardWriter


def shards(path, documents, *, vocab_size=50_000, masks=None):
    with ShardWriter(path, vocab_size, supervised=masks is not None) as writer:
        for i, document in enumerate(documents):
            writer.add(document, 3 * len(document), None if masks is None else masks[i])
    return Shards.open(path)


def numbered(path, lengths, *, start=0, vocab_size=1 << 20):
    """Documents in which every token is another number, so that each says where it comes from."""
    ends = np.cumsum(lengths)
    return shards(
        path, [np.arange(end - n, end) + start for n, end in zip(lengths, ends, strict=True)], vocab_size=vocab_size
    )


def jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def words(random, count):
    """`count` words that no other text is likely to have in this order."""
    return [f"w{random.integers(20_000)}" for _ in range(count)]
