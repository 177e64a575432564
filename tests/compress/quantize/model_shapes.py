"""Models of many shapes whose mixtures are compared with llama-quantize's, and how that program was asked.

`LLAMA_QUANTIZE=PATH python -m tests.compress.quantize.model_shapes` writes models without data (their files are holes), has the
program say with --dry-run which type each tensor gets, and writes mixtures.json.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gangpao.compress.quantize.mixtures import MIXTURES, ModelShape
from gangpao.formats import gguf_write

GOLDEN = Path(__file__).with_name("mixtures.json")
VOCABULARY = 64


# What the program asks of an architecture besides.
_KEYS: dict[str, dict[str, object]] = {
    "minicpm3": {"attention.q_lora_rank": 256, "attention.kv_lora_rank": 256},
    "qwen35": {
        "ssm.conv_kernel": 4, "ssm.state_size": 32, "ssm.group_count": 8, "ssm.time_step_rank": 8, "ssm.inner_size": 256,
        "rope.dimension_sections": [4, 4, 4, 0], "full_attention_interval": 4,
    },
    "gemma3": {"attention.sliding_window": 512},
}  # fmt: skip


class Spec(NamedTuple):
    """A model's numbers."""

    architecture: str
    layers: int
    hidden: int
    ff: int
    heads: int
    kv_heads: int
    tied: bool
    experts: int = 0

    @property
    def name(self) -> str:
        head = "tied" if self.tied else "untied"
        experts = f"-{self.experts}experts" if self.experts else ""
        return f"{self.architecture}-{self.layers}x{self.hidden}x{self.ff}-{self.heads}/{self.kv_heads}-{head}{experts}"

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of all tensors."""
        d, f, kv = self.hidden, self.ff, self.hidden // self.heads * self.kv_heads
        out: dict[str, tuple[int, ...]] = {"token_embd.weight": (VOCABULARY, d), "output_norm.weight": (d,)}
        if not self.tied:
            out["output.weight"] = (VOCABULARY, d)
        for i in range(self.layers):
            layer: dict[str, tuple[int, ...]] = {"attn_norm": (d,), "ffn_norm": (d,), **self._mixer(i, kv)}
            if self.experts:
                n = self.experts
                layer |= {"ffn_gate_inp": (n, d), "ffn_gate_exps": (n, f, d), "ffn_up_exps": (n, f, d)}
                layer["ffn_down_exps"] = (n, d, f)
            else:
                layer |= {"ffn_gate": (f, d), "ffn_up": (f, d), "ffn_down": (d, f)}
            out |= {f"blk.{i}.{part}.weight": shape for part, shape in layer.items()}
        return out

    def _mixer(self, number: int, kv: int) -> dict[str, tuple[int, ...]]:
        """What mixes tokens in a layer: attention, latent attention, or Gated DeltaNet in three of four layers."""
        d = self.hidden
        if self.architecture == "minicpm3":
            return {
                "attn_q_a": (256, d), "attn_q_b": (2 * d, 256), "attn_kv_a_mqa": (288, d), "attn_kv_b": (2 * d, 256),
                "attn_output": (d, d),
            }  # fmt: skip
        if self.architecture == "qwen35" and (number + 1) % 4:
            return {
                "attn_qkv": (3 * d, d), "attn_gate": (d, d), "ssm_alpha": (8, d), "ssm_beta": (8, d), "ssm_conv1d": (3 * d, 4),
                "ssm_out": (d, d),
            }  # fmt: skip
        q = 2 * d if self.architecture == "qwen35" else d
        return {"attn_q": (q, d), "attn_k": (kv, d), "attn_v": (kv, d), "attn_output": (d, d)}

    def model(self) -> ModelShape:
        """As `mixture` takes it."""
        return ModelShape(self.architecture, self.layers, self.heads, self.kv_heads, self.experts, self.shapes())

    def fields(self) -> dict[str, object]:
        """The header's keys."""
        a = self.architecture
        out: dict[str, object] = {
            "general.architecture": a, f"{a}.block_count": self.layers, f"{a}.context_length": 512,
            f"{a}.embedding_length": self.hidden, f"{a}.feed_forward_length": self.ff, f"{a}.attention.head_count": self.heads,
            f"{a}.attention.head_count_kv": self.kv_heads, f"{a}.attention.layer_norm_rms_epsilon": 1e-5,
        }  # fmt: skip
        out |= {f"{a}.{key}": value for key, value in _KEYS.get(a, {}).items()}
        if self.experts:
            out |= {f"{a}.expert_count": self.experts, f"{a}.expert_used_count": 2}
        return out


SPECS = (
    Spec("llama", 2, 256, 512, 4, 4, True),
    Spec("llama", 5, 256, 512, 8, 2, False),
    Spec("llama", 16, 256, 512, 8, 1, True),
    Spec("llama", 30, 576, 1536, 9, 3, True),
    Spec("llama", 32, 256, 512, 4, 1, False),
    Spec("llama", 40, 512, 256, 8, 8, True),
    Spec("llama", 42, 256, 768, 16, 2, False),
    Spec("llama", 3, 80, 144, 4, 4, False),
    Spec("qwen2", 24, 896, 4864, 14, 2, True),
    Spec("qwen2", 28, 256, 1280, 6, 1, False),
    Spec("qwen3", 28, 1024, 3072, 16, 8, True),
    Spec("minicpm", 8, 256, 768, 4, 4, True),
    Spec("minicpm", 40, 768, 5760, 12, 12, True),
    Spec("llama", 8, 256, 512, 8, 2, False, 8),
    Spec("minicpm", 12, 256, 320, 4, 4, True, 8),
    Spec("llama", 18, 256, 512, 8, 2, False, 4),
    Spec("llama", 80, 256, 512, 8, 1, False),
    Spec("llama", 80, 256, 512, 4, 4, False),
    Spec("qwen2", 80, 256, 512, 8, 8, False),
    Spec("minicpm3", 8, 256, 512, 4, 4, True),
    Spec("minicpm3", 62, 512, 768, 8, 8, True),
    Spec("qwen35", 8, 256, 512, 4, 2, True),
    Spec("qwen35", 24, 512, 768, 8, 2, False),
    Spec("gemma3", 18, 640, 2048, 4, 1, True),
    Spec("smollm3", 36, 256, 512, 8, 2, True),
)


def summary(types: dict[str, str]) -> dict[str, str]:
    """Types of tensors, by their part of a layer: "Q6_K*2 Q4_K" in the order of the layers; a part alone in its type is left out
    where that is the commonest of all."""
    usual = Counter(types.values()).most_common(1)[0][0] if types else ""
    parts: dict[str, list[str]] = {}
    for name in sorted(types, key=lambda t: (int(t.split(".")[1]) if t.startswith("blk.") else -1, t)):
        parts.setdefault(re.sub(r"^blk\.\d+\.", "", name).removesuffix(".weight"), []).append(types[name])
    out = {"": usual}
    for part, kinds in sorted(parts.items()):
        runs = [(kind, len(list(run))) for kind, run in groupby(kinds)]
        said = " ".join(kind if n == 1 else f"{kind}*{n}" for kind, n in runs)
        if runs != [(usual, len(kinds))]:
            out[part] = said
    return out


class _Tensor(NamedTuple):
    name: str
    shape: tuple[int, ...]
    type: str
    nbytes: int


def write_hole(spec: Spec, path: Path) -> Path:
    """A file of the model in which the data is a hole."""
    tensors = []
    for name, shape in spec.shapes().items():
        tensors.append(_Tensor(name, shape, "F32", 4 * int(np.prod(shape))))
    fields = spec.fields()
    header = gguf_write.header(tensors, gguf_write.metadata(fields), len(fields))
    path.write_bytes(header)
    os.truncate(path, len(header) + sum(t.nbytes + gguf_write.padding(t.nbytes) for t in tensors))
    return path


_LINE = re.compile(r"\[ *\d+/ *\d+\] +(\S+) +- \[.*?\], type = +f32, .*?-> +\S+ MiB \((\w+)\)")


def asked(program: str, model: Path, mixture: str, imatrix: Path | None) -> dict[str, str]:
    """What the program answers: the type of every tensor whose type changes."""
    options = [*(["--imatrix", str(imatrix)] if imatrix else []), "--dry-run"]
    done = subprocess.run([program, *options, str(model), mixture], capture_output=True, text=True, check=True)
    return {name: kind.upper() for name, kind in _LINE.findall(done.stdout + done.stderr)}


def main() -> None:
    """Record mixtures.json."""
    from gangpao.formats.imatrix import Importance, write_imatrix

    program, out = os.environ["LLAMA_QUANTIZE"], {}
    with tempfile.TemporaryDirectory() as folder:
        for spec in SPECS:
            model = write_hole(spec, Path(folder) / "model.gguf")
            imatrix = Path(folder) / "imatrix.gguf"
            sums = {"blk.0.attn_q.weight": np.ones(spec.hidden, np.float32)}
            write_imatrix(imatrix, Importance(sums, {name: np.array([1]) for name in sums}, 1, ("none",), 1))
            for mixture in list(MIXTURES)[1:]:  # the files are F32 already
                for mark, given in (("", None), ("+imatrix", imatrix)):
                    found = summary(asked(program, model, mixture, given))
                    if mark and found == out.get(f"{spec.name} {mixture}"):
                        continue
                    out[f"{spec.name} {mixture}{mark}"] = found
            print(spec.name, file=sys.stderr)
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in out.items())
    GOLDEN.write_text("{\n" + lines + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
