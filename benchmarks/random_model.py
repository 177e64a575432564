"""A random model in the shape of MiniCPM-2B, as a Q4_0 GGUF: speed does not depend on what the weights say.

Same layout as `llama-quantize model Q4_0` gives for the released model: 40 layers of Q4_0, norms in F32, and the tied
embedding, which is the head too, in Q6_K. The blocks are drawn directly (random nibbles under scales that keep the
activations near one), so no 5 GB file in between is needed. The vocabulary is made up, 122,753 pieces long.

`python benchmarks/random_model.py` writes it once into $XDG_CACHE_HOME/gangpao/benchmarks (1.6 GB) and prints the path.
"""

import os
import sys
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

HIDDEN, FFN, LAYERS, HEADS, VOCAB = 2304, 5760, 40, 36, 122_753
SCALE_EMB, SCALE_DEPTH, DIM_MODEL_BASE = 12.0, 1.4, 256
NAME = "minicpm-2b-random-q4_0"
REVISION = 1  # part of the file's name: raise it when the content changes


def minicpm_2b() -> Path:
    """The path of the file, written first if need be."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gangpao" / "benchmarks"
    path = cache / f"{NAME}-{REVISION}.gguf"
    if not path.exists():
        print(f"writing {path.name} (1.6 GB, once)", file=sys.stderr, flush=True)
        cache.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        write(part)
        part.rename(path)
    return path


def write(path: Path) -> None:
    """Write the model file at `path`."""
    writer = gguf.GGUFWriter(path, "minicpm")
    writer.add_name(NAME)
    writer.add_context_length(4096)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FFN)
    writer.add_block_count(LAYERS)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_rope_freq_base(10_000.0)
    writer.add_embedding_scale(SCALE_EMB)
    writer.add_residual_scale(SCALE_DEPTH / LAYERS**0.5)
    writer.add_logit_scale(HIDDEN / DIM_MODEL_BASE)
    writer.add_vocab_size(VOCAB)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    add_vocabulary(writer)
    tensors = layout()
    for name, (type_, rows, columns) in tensors.items():
        shape, dtype = (rows, columns), np.dtype(np.uint8)
        if type_ is Type.F32:
            writer.add_tensor_info(name, (columns,), np.dtype(np.float32), columns * 4)
            continue
        block, nbytes = gguf.GGML_QUANT_SIZES[type_]
        shape = (rows, columns // block * nbytes)
        writer.add_tensor_info(name, shape, dtype, rows * shape[1], type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    rng = np.random.default_rng(0)
    for type_, rows, columns in tensors.values():
        writer.write_tensor_data(draw(rng, type_, rows, columns))
    writer.close()


def layout() -> dict[str, tuple[Type, int, int]]:
    """Tensor name -> (type, rows, columns)."""
    tensors = {"token_embd.weight": (Type.Q6_K, VOCAB, HIDDEN), "output_norm.weight": (Type.F32, 1, HIDDEN)}
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            tensors[f"{block}.{name}.weight"] = (Type.Q4_0, HIDDEN, HIDDEN)
        for name in ("ffn_gate", "ffn_up"):
            tensors[f"{block}.{name}.weight"] = (Type.Q4_0, FFN, HIDDEN)
        tensors[f"{block}.ffn_down.weight"] = (Type.Q4_0, HIDDEN, FFN)
        for name in ("attn_norm", "ffn_norm"):
            tensors[f"{block}.{name}.weight"] = (Type.F32, 1, HIDDEN)
    return tensors


def draw(rng: np.random.Generator, type_: Type, rows: int, columns: int) -> np.ndarray:
    """Random blocks of a tensor with a weight deviation of about 1 / sqrt(columns); ones for a norm."""
    if type_ is Type.F32:
        return np.ones(columns, np.float32)
    block, nbytes = gguf.GGML_QUANT_SIZES[type_]
    # The deviation of what a block stores, in units of its fp16 scale: 4-bit values -8..7; 6-bit times an int8 scale.
    unit = {Type.Q4_0: 4.6, Type.Q6_K: 18.5 * 74.0}[type_]
    scales = (rng.uniform(0.8, 1.2, (rows, columns // block)) / (unit * columns**0.5)).astype(np.float16)
    blocks = np.frombuffer(rng.bytes(rows * (columns // block) * nbytes), np.uint8).reshape(rows, -1, nbytes).copy()
    place = slice(0, 2) if type_ is Type.Q4_0 else slice(nbytes - 2, nbytes)
    blocks[:, :, place] = scales[..., None].view(np.uint8)
    return blocks.reshape(rows, -1)


def add_vocabulary(writer: gguf.GGUFWriter, size: int = VOCAB) -> None:
    """A SentencePiece vocabulary of `size` pieces: three controls, 256 bytes, ASCII characters, then made-up words."""
    controls = ["<unk>", "<s>", "</s>"]
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    characters = ["\u2581", *map(chr, range(33, 127))]
    words = [f"\u2581w{i}" for i in range(size - len(controls) - len(bytes_) - len(characters))]
    kinds = gguf.TokenType
    types = [kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL] + [kinds.BYTE] * 256
    tokens = [*controls, *bytes_, *characters, *words]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(types) + [-float(i) for i in range(size - len(types))])
    writer.add_token_types(types + [kinds.NORMAL] * (size - len(types)))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)


if __name__ == "__main__":
    print(minicpm_2b())
