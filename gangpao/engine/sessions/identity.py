"""What keys and values were computed with, as far as that decides their bits.

A cache is of use to those only who would compute the same: the same weights and adapters, the same angles, the same kind of cache,
the same kernels. All of it is in one record whose fields can be named when they differ.

Weights are known by the header of their file, all of it, and by eight places of every tensor: two fine-tunings of a model differ
in all of those, and reading a gigabyte to start faster would be a poor trade. What it gives up: a single changed weight between
those places is not seen.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from gangpao import kernels
from gangpao.engine.cache import KVPool
from gangpao.engine.config import Mix
from gangpao.engine.transformer import Transformer
from gangpao.formats.gguf import GGUF

# Of what the kernels write into a page or a state, and of the bits they compute: raise it when either changes.
KERNELS_VERSION = 1
PLACES, PLACE_BYTES = 8, 512

Identity = dict[str, Any]
# What a field of an identity is, for a person who hears that it differs.
NAMES = {
    "kernels": "another version of the kernels",
    "model": "another model",
    "computed_in": "other arithmetic (float32)",
    "kv": "another type of KV cache (--kv)",
    "sparse": "another number of positions that a token looks at (--sparse)",
    "angles": "other rotary angles (another --context)",
    "adapters": "other adapters, or other scales of them",
}


def digest(*parts: bytes) -> str:
    """A name for bytes, 32 hexadecimal digits; where one part ends and the next begins counts."""
    found = hashlib.sha256()
    for part in parts:
        found.update(len(part).to_bytes(8, "little"))
        found.update(part)
    return found.hexdigest()[:32]


def model_digest(gguf: GGUF) -> str:
    """Of an open model file: its header, and places of each of its tensors."""
    with gguf.path.open("rb") as file:
        parts = [file.read(gguf.metadata_end)]
    for name, info in sorted(gguf.tensors.items()):
        data = gguf.raw(name).reshape(-1)
        parts.append(f"{name} {info.type} {info.shape}".encode())
        last = max(0, len(data) - PLACE_BYTES)
        parts += [data[at : at + PLACE_BYTES].tobytes() for at in range(0, last + 1, max(1, last // (PLACES - 1)))]
    return digest(*parts)


def identity_of(model: Transformer, model_id: str, pool: KVPool, mix: Mix) -> Identity:
    """Of a sequence in this pool that is computed with these adapters. model_id: model_digest of the model's file."""
    angles = [a for a in (pool.angles, pool.local_angles) if a is not None]
    adapters = {one.number: one.digest for one in model.adapters.loaded()}
    return {
        "kernels": f"{KERNELS_VERSION}, pages of {kernels.PAGE}",
        "model": model_id,
        "computed_in": "float32" if model.adapters.float32 else "int8",
        "kv": pool.dtype,
        "sparse": pool.sparse,
        "angles": digest(*(part for one in angles for part in one.identity())),
        "adapters": [[adapters[number], float(np.float32(scale))] for number, scale in mix],
    }


def difference(found: Identity, wanted: Identity) -> str:
    """What of a stored identity is not what is wanted, in words; "" where all is."""
    return ", ".join(said for name, said in NAMES.items() if found.get(name) != wanted[name])
