"""How many ARM instructions a token costs, ours and llama.cpp's own NEON code, on the same file; counted by a plugin of qemu-user.

No ARM machine is needed, and none is measured: a phone's time also depends on its memory and on how many instructions its cores
finish at once. For that, `gangpao bench` on the phone. What instructions say is how much there is to do.

Each program runs twice on one thread, with few ids and with more; the difference belongs to the ids. Ours counts whole, Python
included, and the part inside the kernels is shown too. llama.cpp is built from the source that peers.py knows, once for each
processor with all that it has (-march as below), its own repacking of weights on. The model has the layers of a 1.5 B model,
fewer of them and a small vocabulary, all matrices of one type: a token meets 100 million weights.

`python benchmarks/arm_instructions.py [--processor neoverse-n1] [--type Q4_0]` prints one row for each pair of the two.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import arm64
import gguf
import numpy as np
import peers
import random_model
from gguf import GGMLQuantizationType as Type

MARCH = {
    "cortex-a72": "armv8-a", "neoverse-n1": "armv8.2-a+dotprod+fp16", "max": "armv8.2-a+dotprod+fp16+i8mm",
}  # fmt: skip
PROMPTS, STEPS = (16, 80), (2, 10)  # few ids and more
HIDDEN, FFN, LAYERS, HEADS, KV_HEADS, VOCAB = 1536, 8960, 2, 12, 2, 4096
WEIGHTS = LAYERS * (2 * HIDDEN * HIDDEN + 2 * HIDDEN * (HIDDEN // HEADS * KV_HEADS) + 3 * HIDDEN * FFN) + VOCAB * HIDDEN
COMPILERS = (("C", "gcc"), ("CXX", "g++"))
GOALS = {"decode": 0.7, "prefill": 0.6}
SCALES = {
    Type.Q4_0: (0, 4.6),
    Type.Q4_1: (0, 4.6),
    Type.Q4_K: (0, 32 * 4.6),
    Type.Q6_K: (208, 18.5 * 74),
    Type.Q8_0: (0, 74),
}

OURS = """
import sys
from pathlib import Path
from gangpao import kernels
from gangpao.engine.transformer import Transformer, greedy
from gangpao.formats.gguf import GGUF
path, prompt, steps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
with GGUF.open(Path(path)) as file:
    model = Transformer.load(file)
    greedy(model, [(i * 37 + 5) % model.config.vocab_size for i in range(prompt)], steps, model.new_cache(512))
    print(f"read {prompt} and decoded {steps} with {kernels.isa_name()}")
"""


@dataclass(frozen=True)
class Row:
    """Instructions a token of one processor and type."""

    processor: str
    type: str
    work: str  # decode or prefill
    ours: float
    kernels: float  # of ours, those in the extension
    peer: float

    def line(self) -> str:
        """For the table; per 256 weights in brackets."""
        ratio, goal = self.ours / self.peer, GOALS[self.work]
        each = [f"{x / 1e6:8.2f} M ({x / WEIGHTS * 256:6.1f})" for x in (self.ours, self.kernels, self.peer)]
        verdict = "reached" if ratio <= goal else "missed"
        return (
            f"{self.processor:12} {self.type:5} {self.work:8} {'  '.join(each)}  {ratio:5.2f} (goal {goal}, {verdict})"
        )


def model_of(kind: str) -> Path:
    """A random model whose matrices are all of this type, written once."""
    path = arm64.root() / f"instructions-{kind}-2.gguf"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part, rng, type_ = path.with_suffix(".part"), np.random.default_rng(0), Type[kind]
    writer = gguf.GGUFWriter(part, "llama")
    writer.add_context_length(512)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FFN)
    writer.add_block_count(LAYERS)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(VOCAB)
    random_model.add_vocabulary(writer, VOCAB)
    kv = HIDDEN // HEADS * KV_HEADS
    shapes = {"token_embd": (VOCAB, HIDDEN)}
    for i in range(LAYERS):
        names = {
            "attn_q": (HIDDEN, HIDDEN),
            "attn_k": (kv, HIDDEN),
            "attn_v": (kv, HIDDEN),
            "attn_output": (HIDDEN, HIDDEN),
        }
        names |= {"ffn_gate": (FFN, HIDDEN), "ffn_up": (FFN, HIDDEN), "ffn_down": (HIDDEN, FFN)}
        shapes |= {f"blk.{i}.{name}": shape for name, shape in names.items()}
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{i}.{name}.weight", np.ones(HIDDEN, np.float32))
    writer.add_tensor("output_norm.weight", np.ones(HIDDEN, np.float32))
    for name, (rows, columns) in shapes.items():
        writer.add_tensor(f"{name}.weight", blocks(rng, type_, rows, columns), raw_dtype=type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.rename(path)
    return path


def blocks(rng: np.random.Generator, type_: Type, rows: int, columns: int) -> np.ndarray:
    """Random blocks, uint8 [rows, row bytes], whose weights are about 1 / sqrt(columns)."""
    weights, size = gguf.GGML_QUANT_SIZES[type_]
    place, unit = SCALES[type_]
    out = np.frombuffer(rng.bytes(rows * columns // weights * size), np.uint8).reshape(rows, -1, size).copy()
    scale = (rng.uniform(0.8, 1.2, out.shape[:2]) / (unit * columns**0.5)).astype(np.float16)
    out[..., place : place + 2] = scale[..., None].view(np.uint8)
    if type_ in (Type.Q4_1, Type.Q4_K):
        out[..., place + 2 : place + 4] = scale[..., None].view(np.uint8)  # the minimum
    return out.reshape(rows, -1)


# --- the peer -----------------------------------------------------------------------------------------------------


def peer(processor: str) -> Path:
    """The program peer_tokens with llama.cpp's kernels for a processor, built once."""
    source = peers.unpack(peers.download())
    driver = Path(__file__).with_name("peer_tokens.cpp")
    key = hashlib.sha256(
        f"{peers.VERSION} {MARCH[processor]} {driver.read_text(encoding='utf-8')}".encode()
    ).hexdigest()[:12]
    program = arm64.root() / f"peer_tokens-{key}"
    if program.exists():
        return program
    work = arm64.root() / f"peer-{peers.VERSION}"
    arm64.say(f"building llama.cpp {peers.VERSION} for {MARCH[processor]}; about ten minutes, the next one is quicker")
    compilers = [f"-DCMAKE_{name}_COMPILER={arm64.program(f'{arm64.TRIPLE}-{tool}')}" for name, tool in COMPILERS]
    compilers += [f"-DCMAKE_{name}_FLAGS={' '.join(arm64.sysroot())}" for name, _ in COMPILERS]
    off = ("OPENMP", "NATIVE", "LLAMAFILE")
    arm64.run([
        "cmake", "-S", source, "-B", work, "-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_SYSTEM_NAME=Linux", "-DBUILD_SHARED_LIBS=OFF",
        "-DCMAKE_SYSTEM_PROCESSOR=aarch64", *compilers, f"-DGGML_CPU_ARM_ARCH={MARCH[processor]}", "-DGGML_CPU_REPACK=ON",
        *(f"-DGGML_{name}=OFF" for name in off), "-DLLAMA_BUILD_COMMON=OFF", "-DLLAMA_BUILD_TESTS=OFF",
        "-DLLAMA_BUILD_TOOLS=OFF", "-DLLAMA_BUILD_SERVER=OFF", "-DLLAMA_BUILD_APP=OFF", "-DLLAMA_CURL=OFF",
        *(["-G", "Ninja"] if shutil.which("ninja") else []),
    ], env=arm64.tool_environment())  # fmt: skip
    jobs = str(len(os.sched_getaffinity(0)))
    arm64.run(["cmake", "--build", work, "-j", jobs, "--target", "llama"], env=arm64.tool_environment())
    headers = [f"-I{source / 'include'}", f"-I{source / 'ggml' / 'include'}"]
    libraries = [next(work.rglob(f"lib{name}.a")) for name in ("llama", "ggml", "ggml-cpu", "ggml-base")]
    arm64.run([
        arm64.program(f"{arm64.TRIPLE}-g++"), *arm64.sysroot(), "-O2", "-std=c++17", "-static", *headers,
        driver, "-Wl,--start-group", *libraries, "-Wl,--end-group", "-lpthread", "-ldl", "-o", program.with_suffix(".part"),
    ], env=arm64.tool_environment())  # fmt: skip
    program.with_suffix(".part").rename(program)
    return program


# --- counting -----------------------------------------------------------------------------------------------------


def plugin() -> Path:
    """The plugin for qemu, compiled for this machine."""
    source = Path(__file__).with_name("count_instructions.c")
    target = arm64.root() / f"count-{hashlib.sha256(source.read_bytes()).hexdigest()[:12]}.so"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_suffix(".part")
        arm64.run([shutil.which("cc") or "gcc", "-O2", "-shared", "-fPIC", source, "-o", part])
        part.rename(target)
    return target


def count(processor: str, command: list[str], env: dict[str, str], arm: bool = True) -> dict[str, int]:
    """Instructions of a program (for ARM, or for x86) by the name of the file that they lie in."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "counts"
        arm64.run(
            [*arm64.emulated(processor, "-plugin", f"{plugin()},out={out}", arm=arm), *command],
            env=arm64.tool_environment() | env,
        )
        if not out.exists():
            raise ValueError("qemu wrote no counts: is it built with plugins (Debian's qemu-user 7.2 is)?")
        found: dict[str, int] = {}
        for line in out.read_text(encoding="utf-8").splitlines():
            number, _, path = line.partition(" ")
            found[Path(path).name] = found.get(Path(path).name, 0) + int(number)
    return found


def per_token(processor: str, command: list[str], env: dict[str, str]) -> dict[str, dict[str, float]]:
    """Instructions a token by file, of decoding and of prefill."""

    def difference(a: tuple[int, int], b: tuple[int, int], tokens: int) -> dict[str, float]:
        few, more = (count(processor, [*command, str(x), str(y)], env) for x, y in (a, b))
        return {name: (n - few.get(name, 0)) / tokens for name, n in more.items()}

    prompt = PROMPTS[0]
    return {
        "decode": difference((prompt, STEPS[0]), (prompt, STEPS[1]), STEPS[1] - STEPS[0]),
        "prefill": difference((prompt, 0), (PROMPTS[1], 0), PROMPTS[1] - prompt),
    }


def rows(processor: str, kind: str, folder: Path) -> list[Row]:
    """Both kinds of work on one processor and weight type."""
    path = str(model_of(kind))
    env = {"PYTHONPATH": f"{folder}{os.pathsep}{arm64.site()}", "OPENBLAS_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    interpreter = str(arm64.arm_root() / "usr" / "bin" / "python3")
    ours = per_token(processor, [interpreter, "-c", OURS, path], env)
    theirs = per_token(processor, [str(peer(processor)), path], {})
    return [
        Row(
            processor,
            kind,
            work,
            sum(ours[work].values()),
            ours[work].get("_native.so", 0.0),
            sum(theirs[work].values()),
        )
        for work in GOALS
    ]


def main() -> int:
    """The table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--processor", choices=list(MARCH), action="append", help="of these only; can be given again")
    parser.add_argument("--type", choices=[t.name for t in SCALES], action="append", help="of these weight types only")
    args = parser.parse_args()
    if why := arm64.missing():
        arm64.say(f"error: {why}")
        return 2
    try:
        folder = arm64.stage(arm64.root() / "stage")
        print(f"{'processor':12} {'type':5} {'work':8} {'ours':>19}  {'of it kernels':>19}  {'llama.cpp':>19}  ratio")
        print("instructions a token, and of one token for 256 weights; no time on a phone was measured")
        for processor in args.processor or MARCH:
            for kind in args.type or ("Q4_0", "Q4_K"):
                for row in rows(processor, kind, folder):
                    print(row.line(), flush=True)
    except (ValueError, subprocess.SubprocessError) as error:
        arm64.say(f"error: {error}")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
