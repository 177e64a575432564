"""`gangpao export`: a checkpoint of the lab for everybody else, as GGUF or as a plain Llama for transformers and vLLM."""

from pathlib import Path
from typing import Annotated

import typer

from gangpao.deploy import gguf
from gangpao.deploy.quants import FILE_TYPES
from gangpao.log import show_bytes
from gangpao.model import weights
from gangpao.model.config import ModelConfig
from gangpao.text.folder import TOKENIZER_FILES


def export(
    folder: Annotated[Path, typer.Argument(help="A Hugging Face folder: config.json, weights and tokenizer.")],
    target: Annotated[Path, typer.Argument(help="A new .gguf file, or a new folder for Llama's form.")],
    kind: Annotated[
        str, typer.Option("--type", help=f"Type of the matrices in a .gguf file: {', '.join(FILE_TYPES)}.")
    ] = "Q8_0",
) -> None:
    """Write a Hugging Face folder as GGUF, or folded into Llama's form."""
    if target.suffix == ".gguf":
        path = gguf.export(folder, target, kind.upper())
        print(f"{path} ({show_bytes(path.stat().st_size)})")
        return
    print(fold(folder, target))


def fold(folder: Path, target: Path) -> Path:
    """The same model without MiniCPM's scales, with the tokenizer's files beside it."""
    config = ModelConfig.from_file(folder / "config.json")
    plain, folded = weights.fold_to_llama(config, dict(weights.tensors(folder)))
    extra = {name: (folder / name).read_bytes() for name in TOKENIZER_FILES if (folder / name).is_file()}
    return weights.save(target, plain, folded, extra=extra)
