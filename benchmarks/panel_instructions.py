"""How many instructions each instruction set needs for 256 weights, of the matrix product alone: the table of docs/kernels.md.

A program of nothing but that product runs under qemu-user with a counting plugin, twice, with 1,024 and with 2,048 columns of two
panels; the difference is what columns cost. AVX-512 is nothing that qemu runs: its loops are unrolled by the compiler and
the instructions of 512 columns less those of 256 are read off the object code. AMX decodes with the same code.

`python benchmarks/panel_instructions.py` prints the table (about five minutes); --write puts it into docs/kernels.md and its twin.
"""

import argparse
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import arm64
import arm_instructions

SOURCES = arm64.ROOT / "gangpao" / "kernels" / "src"
TYPES = {"Q4_0": ("U4", "F16"), "Q4_K": ("U4", "K")}
TOKENS = (1, 64)  # decode, prefill
COLUMNS = (1024, 2048)
AVX2 = ("-mavx2", "-mfma", "-mf16c", "-fno-tree-ter", "-fno-tree-reassoc")
AVX512 = ("-mavx2", "-mfma", "-mf16c", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni")
ORDER = "-fno-schedule-insns"  # as CMakeLists.txt has it
WITHOUT_LIMITS = (
    "max-completely-peeled-insns", "max-completely-peel-times", "max-inline-insns-single", "max-inline-insns-auto",
    "inline-unit-growth", "large-function-growth", "large-function-insns", "large-stack-frame-growth",
)  # fmt: skip
PEEL = ("-DWHOLE", "-c", *(f"--param={name}=100000" for name in WITHOUT_LIMITS))


@dataclass(frozen=True)
class Set:
    """An instruction set: its SIMD layer, the compiler's flags, and the processor of qemu that runs it ("" where none does)."""

    name: str
    layer: str
    flags: tuple[str, ...]
    arm: bool
    processor: str


SETS = (
    Set("portable", "portable", (), False, "max"),
    Set("avx2", "avx2", AVX2, False, "max"),
    Set("avx512", "avx512", AVX512, False, ""),
    Set("neon", "neon", ("-march=armv8-a", ORDER), True, "cortex-a72"),
    Set("dotprod", "neon", ("-march=armv8.2-a+dotprod", ORDER), True, "neoverse-n1"),
    Set("i8mm", "neon", ("-march=armv8.2-a+dotprod+i8mm", "-DGANGPAO_I8MM", ORDER), True, "max"),
)


def compile_for(one: Set, kind: str, out: Path, more: tuple[str, ...]) -> None:
    """The counted program (or object) of an instruction set and weight type."""
    compiler = (
        [str(arm64.program(f"{arm64.TRIPLE}-g++")), *arm64.sysroot()] if one.arm else [shutil.which("g++") or "c++"]
    )
    values, style = TYPES[kind]
    flags = ["-std=c++17", "-O3", "-ffp-contract=off", *one.flags, *more, f"-DVALUES={values}", f"-DSTYLE={style}"]
    source = Path(__file__).with_name("panel_instructions.cpp")
    command = [*compiler, *flags, f'-DLAYER="simd_{one.layer}.h"', f"-I{SOURCES}", source, "-o", out]
    arm64.run(command, env=arm64.tool_environment() if one.arm else None)


def counted(one: Set, kind: str, folder: Path) -> list[float | None]:
    """Instructions for 256 weights and a token: of one token, and of each of 64. None: cannot be counted here."""
    if not one.processor:
        return [read_off(one, kind, folder), None]
    program = folder / f"{one.name}-{kind}"
    compile_for(one, kind, program, ("-static",))
    out: list[float | None] = []
    for tokens in TOKENS:
        few, more = (
            arm_instructions.count(one.processor, [str(program), str(c), str(tokens)], {}, one.arm) for c in COLUMNS
        )
        difference = sum(more.values()) - sum(few.values())
        out.append(difference / tokens / ((COLUMNS[1] - COLUMNS[0]) * 32 / 256))
    return out


def read_off(one: Set, kind: str, folder: Path) -> float:
    """Of one token, from the code of functions without loops."""
    target = folder / f"{one.name}-{kind}.o"
    compile_for(one, kind, target, PEEL)
    sizes = {}
    for columns in (256, 512):
        listing = arm64.run(["objdump", "-d", "--no-show-raw-insn", f"--disassemble=decode_{columns}", target])
        code = re.findall(r"^ +([0-9a-f]+):\t(\S+)(?: +([0-9a-f]+)\b)?", listing, flags=re.M)
        back = [
            name for at, name, to in code if name == "call" or (re.match("j[^m]", name) and int(to, 16) <= int(at, 16))
        ]
        if back:
            raise ValueError(f"{one.name} {kind}: the compiler left loops or calls, so instructions cannot be read off")
        sizes[columns] = len([name for _, name, _ in code if not name.startswith("nop")])
    return (sizes[512] - sizes[256]) / 16


def table() -> list[str]:
    """Markdown rows."""
    lines = [
        "| | " + " | ".join(f"{kind} decode | {kind} prefill" for kind in TYPES) + " |",
        "|-|" + "-:|" * 2 * len(TYPES),
    ]
    with tempfile.TemporaryDirectory() as folder:
        for one in SETS:
            cells: list[float | None] = []
            for kind in TYPES:
                cells += counted(one, kind, Path(folder))
            lines.append(f"| `{one.name}` | " + " | ".join("-" if x is None else f"{x:.1f}" for x in cells) + " |")
            arm64.say(lines[-1])
    return lines


def main() -> int:
    """The table, printed or written."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--write", action="store_true", help="put the table into docs/kernels.md and docs/kernels.zh.md"
    )
    args = parser.parse_args()
    try:
        lines = "\n".join(table())
    except ValueError as error:
        arm64.say(f"error: {error}")
        return 2
    print(lines)
    for name in ("kernels.md", "kernels.zh.md") if args.write else ():
        path = arm64.ROOT / "docs" / name
        text = path.read_text(encoding="utf-8")
        path.write_text(re.sub(r"^\| \| Q4_0 decode .*?(?=\n\n)", lines, text, flags=re.M | re.S), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
