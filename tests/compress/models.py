"""Small models with a tokenizer, as folders, and texts to train them on."""

import json

from gangpao.model import weights
from gangpao.model.transformer import Transformer
from tests.model.tiny import tiny
from tests.text.hf_folder import byte_level, save

WORDS = ("red", "blue", "green", "grey", "one", "two", "three", "four")


def folder_of(path, *, kind="llama", seed=3, **fields):
    """A random model at `path`."""
    model = Transformer.build(tiny(kind, **{"max_position_embeddings": 512, **fields}), seed=seed)
    weights.save(path, model.config, weights.state(model))
    return save(path, byte_level(), generation={"eos_token_id": 1})


def texts_at(path, count=60):
    """Short texts, one a line."""
    lines = [{"text": " ".join(WORDS[(i * k + k) % 8] for k in range(1, 14)) + f" {i}"} for i in range(count)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path
