"""What llama.cpp's mtmd makes of a picture, through the xllamacpp wheel.

Its server gives the last hidden state of a prompt behind a picture. With a language model of one layer that attends to everything
equally, and whose tokens of text are zeros, this is the mean of the picture's rows, each divided by its root mean square.
"""

import base64
import http.client
import io
import json
from pathlib import Path
from urllib.parse import urlsplit

import gguf
import numpy as np
import pytest
from PIL import Image

from tests.engine.tiny import byte_pieces


def write_averaging(path: Path, width: int) -> Path:
    """A llama whose last hidden state is the mean of the embeddings, each divided by its root mean square, and so is the mean."""
    w = gguf.GGUFWriter(path, "llama")
    marks = ["<|endoftext|>", "<image>", "</image>", "<slice>", "</slice>"]
    pieces = [*byte_pieces(), *marks]
    w.add_name("averaging")
    w.add_context_length(2048)
    w.add_embedding_length(width)
    w.add_block_count(1)
    w.add_feed_forward_length(32)
    w.add_head_count(2)
    w.add_head_count_kv(2)
    w.add_layer_norm_rms_eps(1e-6)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("qwen2")
    w.add_token_list(pieces)
    w.add_token_types([1] * 256 + [3] * len(marks))
    w.add_token_merges(["a b"])
    w.add_bos_token_id(256)
    w.add_eos_token_id(256)
    w.add_add_bos_token(False)
    ones, eye, none = np.ones(width), np.eye(width), np.zeros((width, width))
    tensors = {
        "token_embd": np.zeros((len(pieces), width)), "output_norm": ones, "blk.0.attn_norm": ones, "blk.0.attn_q": none,
        "blk.0.attn_k": none, "blk.0.attn_v": eye, "blk.0.attn_output": eye, "blk.0.ffn_norm": ones,
        "blk.0.ffn_gate": none[:32], "blk.0.ffn_up": none[:32], "blk.0.ffn_down": none[:, :32],
    }  # fmt: skip
    for name, values in tensors.items():
        w.add_tensor(f"{name}.weight", values.astype(np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return path


def normalised(rows: np.ndarray) -> np.ndarray:
    return rows / np.sqrt(np.mean(rows**2, axis=-1, keepdims=True))


def mean_of_rows(mmproj: Path, width: int, pixels: np.ndarray) -> np.ndarray:
    """normalised(mean of normalised rows) [width] of a picture uint8 [H, W, 3] that mtmd does not cut."""
    x = pytest.importorskip("xllamacpp", reason="xllamacpp (llama.cpp) is not installed")
    p = x.CommonParams()
    p.model.path = str(write_averaging(mmproj.parent / f"averaging-{mmproj.stem}.gguf", width))
    p.mmproj.path = str(mmproj)
    p.mmproj_use_gpu = p.warmup = p.ctx_shift = p.fit_params = False
    p.n_ctx = p.n_batch = p.n_ubatch = 2048
    p.n_parallel, p.n_gpu_layers, p.cache_ram_mib, p.verbosity = 1, 0, 0, -1
    p.cpuparams.n_threads = p.cpuparams_batch.n_threads = 1
    p.flash_attn_type = x.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    p.cache_type_k = p.cache_type_v = x.ggml_type.GGML_TYPE_F32
    p.embedding, p.pooling_type = True, x.llama_pooling_type.LLAMA_POOLING_TYPE_NONE
    server = x.Server(p)
    address = urlsplit(server.listening_address)
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=60)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    connection.request("GET", "/props")
    marker = json.loads(connection.getresponse().read())["media_marker"]
    prompt = {"prompt_string": f"a{marker}a", "multimodal_data": [base64.b64encode(file.getvalue()).decode()]}
    connection.request("POST", "/embeddings", json.dumps({"content": prompt}), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    assert answer.status == 200, text[:500]
    return np.array(json.loads(text)[0]["embedding"], np.float32)[-1]
