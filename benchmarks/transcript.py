"""The prompts of the MiniCPM report put to our default model, for the README: docs/transcript.md and docs/images/chat.svg.

Greedy, so that the same model gives the same answers on every machine. Answers are printed as they came, wrong ones too.
"""

import argparse
import io
import json
import re
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

DOCS = Path(__file__).resolve().parent.parent / "docs"
PROMPTS = [
    (
        "mixed languages into French",
        "把下面这句话翻译成法语：Hello, 我今天要去 Beijing 开会，晚上和 friends 一起吃火锅。",
    ),
    ("an emoji put into a sentence", "在这句话里加上一个合适的 emoji：今天是我的生日，朋友们给我买了一个大蛋糕。"),
    ("a mountain of Shandong", "山东省最高的山是哪座山，它比黄山高还是矮？差距多少？"),
    (
        "code for a small model",
        "Write a PyTorch class for a two-layer perceptron with a ReLU and dropout. Only the code, no explanation.",
    ),
]


def ask(model: str, prompt: str) -> dict[str, object]:
    command = [
        sys.executable,
        "-m",
        "gangpao.cli",
        "run",
        "-m",
        model,
        "--json",
        "--temperature",
        "0",
        "--max-tokens",
        "400",
    ]
    done = subprocess.run([*command, prompt], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="qwen2.5-coder-1.5b")
    model = parser.parse_args(argv).model
    console = Console(record=True, width=96, file=io.StringIO(), force_terminal=True)
    lines = [
        f"# What {model} answers\n\n`python benchmarks/transcript.py {model}`, greedy decoding, answers as they came.\n"
    ]
    console.print(Text(f"$ gangpao chat -m {model}", "bold"))
    for title, prompt in PROMPTS:
        answer = ask(model, prompt)
        text = str(answer["text"]).strip()
        facts = f"{answer['completion_tokens']} tokens, {answer['decode_tps']:.1f} tok/s, {answer['yuan']:.6f} yuan"
        console.print(Text(f"\n> {prompt}", "bold cyan"))
        console.print(Text(text.replace("    ", "\N{NO-BREAK SPACE}" * 4)))  # SVG viewers drop plain leading spaces
        console.print(Text(facts, "dim"))
        lines.append(f"## {title}\n\n> {prompt}\n\n{text}\n\n*{facts}*\n")
        print(f"{title}: {facts}", file=sys.stderr)
    (DOCS / "transcript.md").write_text("\n".join(lines), encoding="utf-8")
    # Without the web fonts that rich names: a picture in a README loads nothing from elsewhere.
    svg = re.sub(r"@font-face\s*{[^}]*}", "", console.export_svg(title="gangpao"))
    (DOCS / "images" / "chat.svg").write_text(svg, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
