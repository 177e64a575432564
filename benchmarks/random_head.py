"""A random draft head for a model, in the shape of MiniCPM5-2B's: what a head costs does not depend on what its weights say.

Five layers with 16 query and 2 key-value heads of 128 and an MLP three times as wide as the model, a block of 7, a Markov head of
rank 256 with a confidence, matrices in Q8_0; it reads five layers of the model, evenly spread. Its guesses are next to never right,
so with it the gate has to find out that it is not worth asking, and the rest of its price is what every step keeps for it.

`python benchmarks/random_head.py MODEL [FILE]` (a name of the catalog that is installed, or a GGUF file) writes FILE,
./random-head.gguf if not given, and prints its path.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gangpao import catalog, kernels
from gangpao.formats import gguf_write
from gangpao.formats.blocks import BY_NAME
from gangpao.formats.gguf import GGUF

LAYERS, HEADS, KV_HEADS, HEAD_DIM, WIDER, BLOCK, RANK, READS = 5, 16, 2, 128, 3, 7, 256, 5


@dataclass(frozen=True)
class Planned:
    """A tensor of the file. gain: deviation of its numbers, in units of 1 / sqrt(columns)."""

    name: str
    shape: tuple[int, ...]
    gain: float = 1.0

    @property
    def type(self) -> str:
        return "Q8_0" if len(self.shape) == 2 and self.shape[0] > 1 else "F32"

    @property
    def nbytes(self) -> int:
        rows = int(np.prod(self.shape[:-1], dtype=int))
        return rows * BY_NAME[self.type].row_bytes(self.shape[-1])


def layout(hidden: int, vocab: int) -> Iterator[Planned]:
    """The tensors of a head for hidden states of that width and so many tokens."""
    yield Planned("fc.weight", (hidden, READS * hidden))
    yield Planned("enc.output_norm.weight", (hidden,))
    yield Planned("output_norm.weight", (hidden,))
    for i in range(LAYERS):
        for name, rows, columns in (
            ("attn_q", HEADS * HEAD_DIM, hidden), ("attn_k", KV_HEADS * HEAD_DIM, hidden),
            ("attn_v", KV_HEADS * HEAD_DIM, hidden), ("attn_output", hidden, HEADS * HEAD_DIM),
            ("ffn_gate", WIDER * hidden, hidden), ("ffn_up", WIDER * hidden, hidden), ("ffn_down", hidden, WIDER * hidden),
        ):  # fmt: skip
            yield Planned(f"blk.{i}.{name}.weight", (rows, columns))
        for name, length in (("attn", hidden), ("ffn", hidden), ("attn_q", HEAD_DIM), ("attn_k", HEAD_DIM)):
            yield Planned(f"blk.{i}.{name}_norm.weight", (length,))
    yield Planned("markov_w1.weight", (vocab, RANK), 4.0)
    yield Planned("markov_w2.weight", (vocab, RANK), 4.0)
    yield Planned("conf_proj.weight", (1, hidden + RANK))
    yield Planned("conf_proj.bias", (1,))


def metadata(model: GGUF, hidden: int) -> dict[str, object]:
    """Keys of a head for a model; the vocabulary is the model's."""
    arch = model.get_str("general.architecture")
    layers = model.get_int(f"{arch}.block_count")
    own: dict[str, object] = {
        "block_count": LAYERS, "context_length": model.get_int(f"{arch}.context_length"), "embedding_length": hidden,
        "feed_forward_length": WIDER * hidden, "attention.head_count": HEADS, "attention.head_count_kv": KV_HEADS,
        "attention.key_length": HEAD_DIM, "attention.value_length": HEAD_DIM, "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.freq_base": 1e6, "block_size": BLOCK, "sample_from_anchor": True, "has_confidence_head": True,
        "target_layers": [(2 * i + 1) * layers // (2 * READS) for i in range(READS)],
    }  # fmt: skip
    tokens = {key: value for key, value in model.metadata.items() if key.startswith("tokenizer.")}
    mask = {"tokenizer.ggml.mask_token_id": 0}
    names = {"general.architecture": "dflash", "general.name": "random head"}
    return names | tokens | mask | {f"dflash.{key}": value for key, value in own.items()}


def draw(rng: np.random.Generator, tensor: Planned) -> npt.NDArray[np.uint8]:
    """The bytes of a tensor."""
    if tensor.type == "F32":
        around = 1.0 if tensor.name.endswith("norm.weight") else 0.0
        return rng.normal(around, 0.1, tensor.shape).astype(np.float32).reshape(-1).view(np.uint8)
    values = rng.standard_normal(tensor.shape, np.float32) * np.float32(tensor.gain / tensor.shape[1] ** 0.5)
    return kernels.quantize_rows(values, tensor.type)


def write(model: GGUF, path: Path) -> None:
    """Write the head of an open model. Raises ValueError for one whose hidden states are not whole blocks."""
    vocab, hidden = model.info("token_embd.weight").shape
    if hidden % 32:
        raise ValueError(f"{model.path}: hidden states of {hidden} numbers are no whole blocks of 32")
    fields, rng = metadata(model, hidden), np.random.default_rng(0)
    tensors = list(layout(hidden, vocab))
    with path.open("wb") as file:
        file.write(gguf_write.header(tensors, gguf_write.metadata(fields), len(fields)))
        for tensor in tensors:
            file.write(draw(rng, tensor).data)
            file.write(bytes(gguf_write.padding(tensor.nbytes)))


def main(argv: Sequence[str] | None = None) -> int:
    """Write the file and print its path."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("file", nargs="?", type=Path, default=Path("random-head.gguf"))
    arguments = parser.parse_args(argv)
    try:
        with GGUF.open(catalog.installed().get(arguments.model, Path(arguments.model))) as model:
            write(model, arguments.file)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(arguments.file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
