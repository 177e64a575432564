"""From a picture to rows of the language model: ours against llama.cpp's mtmd, interleaved on the machine at hand.

The encoder has SigLIP-400M's shape (27 layers of 1152, random weights) and MiniCPM-V's resampler, 1,024 wide. Pictures of
448 x 448 (one piece) and 1344 x 1344 (ten pieces); files in F16 and Q8_0, and F16 rounded to bytes when it is loaded, which
llama.cpp does not have. Each sample is a process of its own, never two at once, A B A B, with llama.cpp's flash attention on and
off (the faster counts). Time is that from pixels to rows: ours is measured around cutting and encoding, llama.cpp's is what it says
itself of each slice, without cutting. Reported are medians, the median of the ratios round by round, and peak memory.

    python benchmarks/vision.py --mtmd-cli PATH [--rounds 5] [--layers 27] [--threads 2]

Prints a table and one JSON line last.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

TEXT_SIZE = 1024
SIZES = (448, 1344)
_ENCODED = re.compile(r"(?:encoding done|slice encoded) in (\d+) ms")


def main() -> None:
    args = _arguments()
    if args.worker:
        _ours(Path(args.worker), args.size, args.threads, args.int8)
        return
    folder = Path(args.folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = {kind: _mmproj(folder, kind, args.layers) for kind in ("F16", "Q8_0")}
    found = []
    for size in args.sizes:
        picture = _picture(folder, size)
        for kind, file in files.items():
            found.append(_compare(args, folder, file, picture, kind, size))
    print(
        "| picture | file | ours s | ours, bytes s | llama.cpp s | ratio | ours MB | llama.cpp MB |\n|-|-|-|-|-|-|-|-|"
    )
    for row in found:
        print(
            f"| {row['size']} | {row['kind']} | {row['ours']:.2f} | {row['int8']:.2f} | {row['mtmd']:.2f} | {row['ratio']:.2f} | "
            f"{row['ours_mb']:.0f} | {row['mtmd_mb']:.0f} |"
        )
    print(json.dumps({"layers": args.layers, "threads": args.threads, "rounds": args.rounds, "rows": found}))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mtmd-cli", default="llama-mtmd-cli", help="llama.cpp's program")
    parser.add_argument("--folder", default="/tmp/gangpao-vision", help="where the files are made and kept")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=27)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="sides of the pictures, in pixels")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--int8", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def _compare(
    args: argparse.Namespace, folder: Path, file: Path, picture: Path, kind: str, size: int
) -> dict[str, object]:
    """Rounds of ours, ours with bytes, llama.cpp's with and without flash attention."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ("ours", "int8", "on", "off")}
    for _ in range(args.rounds):
        for name, samples in times.items():
            if name in ("ours", "int8"):
                samples.append(_run_ours(args, file, size, name == "int8"))
            else:
                samples.append(_run_mtmd(args, folder, file, picture, name))
    seconds = {name: statistics.median(t for t, _ in samples) for name, samples in times.items()}
    best = min(("on", "off"), key=seconds.__getitem__)
    fastest = min(("ours", "int8"), key=seconds.__getitem__)
    ratios = [theirs[0] / ours[0] for ours, theirs in zip(times[fastest], times[best], strict=True)]
    return {
        "size": size, "kind": kind, "ours": seconds["ours"], "int8": seconds["int8"], "mtmd": seconds[best], "flash": best,
        "ratio": statistics.median(ratios), "ours_mb": max(m for _, m in times[fastest]), "mtmd_mb": max(m for _, m in times[best]),
    }  # fmt: skip


def _run_ours(args: argparse.Namespace, file: Path, size: int, int8: bool) -> tuple[float, float]:
    """Seconds and peak megabytes of a process."""
    command = [
        sys.executable,
        "-P",
        __file__,
        "--worker",
        str(file),
        "--size",
        str(size),
        "--threads",
        str(args.threads),
    ]
    out = subprocess.run([*command, *(["--int8"] if int8 else [])], capture_output=True, text=True, check=True).stdout
    sample = json.loads(out.splitlines()[-1])
    return sample["seconds"], sample["mb"]


def _ours(file: Path, size: int, threads: int, int8: bool) -> None:
    """The worker: one picture, cut and encoded."""
    from gangpao import kernels
    from gangpao.engine.vision.sight import Sight
    from gangpao.images import slices

    kernels.set_num_threads(threads)
    sight, pixels = Sight.open(file, int8=int8), _pixels(size)
    start = time.perf_counter()
    for piece in slices.pieces(pixels, sight.vision).pieces:
        sight.encode(piece)
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "mb": _peak_mb("self")}))


def _run_mtmd(args: argparse.Namespace, folder: Path, file: Path, picture: Path, flash: str) -> tuple[float, float]:
    """The same of llama.cpp's program, by its own log."""
    command = [
        args.mtmd_cli, "-m", str(_language_model(folder)), "--mmproj", str(file), "--image", str(picture), "-p", "a", "-n", "1",
        "-t", str(args.threads), "-fa", flash, "--chat-template", "chatml", "-c", "2048", "--no-warmup", "--no-mmproj-offload",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    assert process.stdout is not None
    log, peak = "", 0.0
    for line in process.stdout:
        log += line
        peak = max(peak, _peak_mb(str(process.pid)))
    status = process.wait()
    found = [int(ms) for ms in _ENCODED.findall(log)]
    if status or not found:
        raise RuntimeError(f"{' '.join(command)}: status {status}\n{log[-2000:]}")
    return sum(found) / 1e3, peak


def _peak_mb(process: str) -> float:
    """The most memory that a process had, in MB; 0 when it has ended.

    Not `ru_maxrss`: that of a child begins with what its parent held when the child was started.
    """
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM")), 0.0)


def _pixels(size: int) -> np.ndarray:
    return np.random.default_rng(size).integers(0, 256, (size, size, 3)).astype(np.uint8)


def _picture(folder: Path, size: int) -> Path:
    from PIL import Image

    path = folder / f"{size}.png"
    if not path.exists():
        Image.fromarray(_pixels(size)).save(path)
    return path


def _mmproj(folder: Path, kind: str, layers: int) -> Path:
    from gangpao.deploy.mmproj import write
    from gangpao.formats.vision import VISION
    from gangpao.model.vision.tower import VisionTower

    path = folder / f"mmproj-siglip-{layers}-{kind}.gguf"
    if not path.exists():
        row = VISION["minicpm-v-2.6"]
        vision = replace(row, encoder=replace(row.encoder, layers=layers))
        write(vision, VisionTower.build(vision, TEXT_SIZE).state_dict(), path, kind)
    return path


def _language_model(folder: Path) -> Path:
    """A llama of one layer as wide as the rows; what it says does not matter."""
    import gguf

    path = folder / "language.gguf"
    if path.exists():
        return path
    w, size = gguf.GGUFWriter(path, "llama"), TEXT_SIZE
    marks = ["<|endoftext|>", "<image>", "</image>", "<slice>", "</slice>"]
    pieces = [*(chr(0x100 + i) for i in range(256)), *marks]
    w.add_context_length(2048)
    w.add_embedding_length(size)
    w.add_block_count(1)
    w.add_feed_forward_length(32)
    w.add_head_count(8)
    w.add_head_count_kv(8)
    w.add_layer_norm_rms_eps(1e-6)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("qwen2")
    w.add_token_list(pieces)
    w.add_token_types([1] * 256 + [3] * len(marks))
    w.add_token_merges(["\u0100 \u0101"])
    w.add_bos_token_id(256)
    w.add_eos_token_id(256)
    shapes = {
        "token_embd": (len(pieces), size), "output_norm": (size,), "blk.0.attn_norm": (size,), "blk.0.attn_q": (size, size),
        "blk.0.attn_k": (size, size), "blk.0.attn_v": (size, size), "blk.0.attn_output": (size, size), "blk.0.ffn_norm": (size,),
        "blk.0.ffn_gate": (32, size), "blk.0.ffn_up": (32, size), "blk.0.ffn_down": (size, 32),
    }  # fmt: skip
    for name, shape in shapes.items():
        w.add_tensor(f"{name}.weight", np.ones(shape, np.float32) / size)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return path


if __name__ == "__main__":
    main()
