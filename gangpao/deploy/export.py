"""`gangpao export`: a checkpoint of the lab for everybody else, as GGUF or as a plain Llama for transformers and vLLM.

A folder of a model that sees becomes two files: the language model, and mmproj-NAME beside it with the encoder of pictures.
"""

import sys
from pathlib import Path
from typing import Annotated

import torch
import typer

from gangpao.deploy import pair
from gangpao.deploy.plan import whole
from gangpao.formats.blocks import WRITTEN
from gangpao.model import weights
from gangpao.model.config import ModelConfig
from gangpao.text.hf_folder import tokenizer_files
from gangpao.units import show_bytes


def export(
    folder: Annotated[Path, typer.Argument(help="A Hugging Face folder: config.json, weights and tokenizer.")],
    target: Annotated[Path, typer.Argument(help="A new .gguf file, or a new folder for Llama's form.")],
    kind: Annotated[
        str, typer.Option("--type", help=f"Type of the matrices in a .gguf file: {', '.join(WRITTEN)}.")
    ] = "Q8_0",
    sight: Annotated[
        str | None,
        typer.Option(
            "--mmproj-type",
            help="Type of the encoder of a model that sees. [as the model where that has floats, else Q8_0]",
        ),
    ] = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check/--no-check",
            help="Read the .gguf file back and compare ids, ends, template, sampling, weights and logits with the folder; it "
            "appears only if they are the same. Takes about as long as writing.",
        ),
    ] = True,
) -> None:
    """Write a Hugging Face folder as GGUF, or folded into Llama's form."""
    if target.suffix == ".gguf":
        eyes = sight and sight.upper()
        for path in pair.export(folder, target, kind.upper(), sight=eyes, progress=_show, on_note=_note, check=check):
            print(f"{path} ({show_bytes(path.stat().st_size)})")
        return
    if sight is not None:
        raise ValueError(f"--mmproj-type {sight}: a folder in Llama's form has no encoder; leave it out")
    print(fold(folder, target))


def _show(done: int, total: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{100 * done // total} %", end="\n" if done == total else "", file=sys.stderr, flush=True)


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)


def fold(folder: Path, target: Path) -> Path:
    """The same model without MiniCPM's scales, with the tokenizer's files beside it.

    Raises ValueError when tensors are missing or left over, and for a value that its type cannot hold once it is scaled.
    """
    config = ModelConfig.from_file(folder / "config.json")
    plain, folded = weights.fold_to_llama(config, whole(config, dict(weights.tensors(folder))))
    for name, tensor in folded.items():
        if not torch.isfinite(tensor).all():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise ValueError(
                f"tensor {name} holds a value that is no finite number in {kind} with the scales multiplied in"
            )
    return weights.save(target, plain, folded, extra=tokenizer_files(folder))
