"""`gangpao quantize`: a smaller file of a model, in a type or a named mixture that every program reads.

Progress and notes are on stderr; the table (or with --json one JSON object) is on stdout.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from gangpao.commands.model.find import find_weights
from gangpao.compress.find import runnable
from gangpao.compress.folders.forms import FORMS
from gangpao.compress.importance.run import CollectOptions, collected
from gangpao.compress.line.file import KEPT, FileConfig, check_source, make_file, make_folder
from gangpao.compress.quantize.mixtures import MIXTURES
from gangpao.compress.quantize.report import facts, table
from gangpao.compress.quantize.run import Guide, use_threads
from gangpao.config import explained
from gangpao.engine.memory import EngineOptions
from gangpao.formats.imatrix import read_imatrix
from gangpao.long_command import say
from gangpao.options import Fields, command_of
from gangpao.progress import Progress
from gangpao.units import show_count


@command_of()
def quantize(
    model: Annotated[
        str,
        typer.Argument(help="Hugging Face folder, training run, .gguf file (of floats, best), name of the catalog."),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT.gguf", help="The new file; of int4 and int8 a new folder.")],
    to: Annotated[
        str,
        typer.Option("--to", help=f"Type or mixture: {', '.join(MIXTURES)}; for vLLM: {', '.join(FORMS)}."),
    ] = "Q4_K_M",
    bits: Annotated[
        float | None, typer.Option("--bits", help="A budget in bits a weight in place of --to: types are solved for.")
    ] = None,
    budget: Annotated[
        str, typer.Option("--bytes", help="A budget for the whole file in place of --to: 900MB, 1.2GiB.")
    ] = "",
    rounding: Annotated[
        str,
        typer.Option(
            "--rounding", help="plain: block by block; gptq: with texts in view, slower, loses less; learned: more so."
        ),
    ] = "plain",
    work: Annotated[
        Path | None,
        typer.Option("--work", help="Folder that keeps what a budget and rounding computed, to go on from. [OUT.work]"),
    ] = None,
    imatrix: Annotated[
        Path | None, typer.Option("--imatrix", help="An importance matrix of `gangpao imatrix` or llama-imatrix.")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            help="Texts, code, chats to make an importance matrix from; repeatable. own: those that ship with gangpao.",
        ),
    ] = None,
    tokens: Annotated[int, typer.Option("--tokens", min=32, help="Tokens of them to look at.")] = 65_536,
    pure: Annotated[bool, typer.Option("--pure", help="The same type for all matrices, no mixture.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object in place of the table.")] = False,
    *,
    engine: Annotated[EngineOptions, Fields(EngineOptions, ("threads",))],
) -> None:
    """Write a smaller file of a model: any type or mixture of llama-quantize, with an importance matrix or without."""
    config, source = _config(to, bits, budget, rounding, tokens, pure, data), find_weights(model)
    if out.exists():
        raise ValueError(f"{out} exists already; choose another name or delete it first")
    if imatrix is not None and data and not config.looks:
        raise ValueError("--imatrix and --data: one of the two is the importance matrix; leave out the other")
    if (config.to in FORMS) == (out.suffix == ".gguf"):
        wanted = "a folder: give a name without .gguf" if config.to in FORMS else "a file: end its name in .gguf"
        raise ValueError(f"{out}: {config.to} is {wanted}")
    check_source(config, source)
    looked = data or (["own"] if config.looks and imatrix is None else None)
    with _folder(work, out, needed=config.looks or bool(looked)) as folder:
        guide = _guide(source, imatrix, looked, tokens, engine.threads, folder / "importance.npz")
        use_threads(engine.threads)
        said, words = _made(config, source, out, guide, folder)
    print(json.dumps(said, ensure_ascii=False) if as_json else words)


def _made(
    config: FileConfig, source: Path, out: Path, guide: Guide | None, folder: Path
) -> tuple[dict[str, object], str]:
    """The file or folder, written: what became of it for programs, and for people."""
    with Progress() as progress:
        if config.to in FORMS:
            path = make_folder(source, out, config.to, None if guide is None else guide.importance, progress)
            return {"to": config.to, "folder": str(path)}, str(path)
        done, said = make_file(config, source, out, guide=guide, folder=folder, progress=progress, on_note=_note)
    return {"to": config.to, **facts(done), **said}, table(done)


@contextmanager
def _folder(work: Path | None, out: Path, *, needed: bool) -> Iterator[Path]:
    """The folder that a stopped command goes on from: the one that was named, or one beside OUT, which goes when OUT is there."""
    folder = work or out.with_name(f"{out.name}.work")
    if needed:
        folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder
    except KeyboardInterrupt:
        if needed and any(folder.iterdir()):
            say(f"{folder} keeps what is done: the same command goes on from there")
        raise
    else:
        if needed and work is None:
            _remove(folder / name for name in KEPT)
    finally:
        if needed and not any(folder.iterdir()):
            folder.rmdir()


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _config(
    to: str, bits: float | None, budget: str, rounding: str, tokens: int, pure: bool, data: list[str] | None
) -> FileConfig:
    """What the options say. Raises ValueError in their words."""
    told = {
        "to": to, "bits": bits, "bytes": budget, "tokens": tokens, "pure": pure, "data": data or ["own"],
        "rounding": {"kind": rounding},
    }  # fmt: skip
    try:
        return FileConfig.model_validate(told)
    except ValidationError as error:
        raise ValueError(explained(error, FileConfig, told, "gangpao quantize")) from error


def _guide(
    source: Path, imatrix: Path | None, data: list[str] | None, tokens: int, threads: int | None, state: Path
) -> Guide | None:
    if imatrix is not None:
        return Guide(read_imatrix(imatrix), imatrix.name)
    if not data:
        return None
    with Progress(show=show_count) as progress:
        found = collected(
            runnable(source), data, CollectOptions(tokens=tokens), threads=threads, progress=progress, state=state,
            keep=True, on_read=lambda read: print(read, file=sys.stderr),
        )  # fmt: skip
    return Guide(found, "made by gangpao quantize --data")


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)
