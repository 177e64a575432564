"""A random but complete GGUF model of a few hundred kilobytes: llama architecture, byte-level vocabulary, ChatML."""

from pathlib import Path

import gguf
import numpy as np

HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, FFN = 64, 2, 4, 2, 16, 128
CONTEXT = 512
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def byte_pieces() -> list[str]:
    """The 256 printable characters that byte-level BPE writes for bytes (the GPT-2 table)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    extra = iter(range(256, 512))
    return [chr(b) if b in plain else chr(next(extra)) for b in range(256)]


def write_tiny(
    path: Path,
    seed: int = 0,
    template: str = "",
    part_tensors: int = 0,
    context: int = CONTEXT,
    marks: tuple[str, ...] = (),
) -> Path:
    """Write the model and return its path. Weights are normal noise in F32, so every id can come. template: jinja2, for
    chats. part_tensors: split into files of that many tensors, path-00001-of-0000N.gguf; the first one is returned. marks: further
    pieces that are found in every text, such as <think>."""
    rng = np.random.default_rng(seed)
    pieces = [*byte_pieces(), *SPECIAL, *marks]
    w = gguf.GGUFWriter(path, "llama", split_max_tensors=part_tensors)
    w.add_name("tiny")
    w.add_context_length(context)
    w.add_embedding_length(HIDDEN)
    w.add_block_count(LAYERS)
    w.add_feed_forward_length(FFN)
    w.add_head_count(HEADS)
    w.add_head_count_kv(KV_HEADS)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_rope_freq_base(10000.0)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("qwen2")
    w.add_token_list(pieces)
    w.add_token_types([1] * 256 + [3] * len(SPECIAL) + [4] * len(marks))
    w.add_token_merges(["a b"])
    w.add_bos_token_id(256)
    w.add_eos_token_id(258)
    w.add_add_bos_token(False)
    if template:
        w.add_chat_template(template)

    def put(name: str, *shape: int) -> None:
        values = rng.standard_normal(shape) * (0.6 if len(shape) == 2 else 0.1) + (len(shape) == 1)
        w.add_tensor(name, values.astype(np.float32))

    put("token_embd.weight", len(pieces), HIDDEN)
    put("output_norm.weight", HIDDEN)
    for i in range(LAYERS):
        put(f"blk.{i}.attn_norm.weight", HIDDEN)
        put(f"blk.{i}.attn_q.weight", HEADS * HEAD_DIM, HIDDEN)
        put(f"blk.{i}.attn_k.weight", KV_HEADS * HEAD_DIM, HIDDEN)
        put(f"blk.{i}.attn_v.weight", KV_HEADS * HEAD_DIM, HIDDEN)
        put(f"blk.{i}.attn_output.weight", HIDDEN, HEADS * HEAD_DIM)
        put(f"blk.{i}.ffn_norm.weight", HIDDEN)
        put(f"blk.{i}.ffn_gate.weight", FFN, HIDDEN)
        put(f"blk.{i}.ffn_up.weight", FFN, HIDDEN)
        put(f"blk.{i}.ffn_down.weight", HIDDEN, FFN)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return next(iter(sorted(path.parent.glob(f"{path.stem}-00001-of-*.gguf")))) if part_tensors else path
