"""A folder as MODEL: the training room's run, or a Hugging Face checkpoint, becomes the .gguf file that the engine reads.

    RUN                  its export/ is meant
    RUN/export, FOLDER   exported to the cache on first use and again when it changed (gangpao.deploy.cached)

Only writing the file needs the lab; a device that has it already runs it without torch. What it gives up: a folder takes its
size once more in the cache; `gangpao export` writes the file where one wants it.
"""

import sys
from collections.abc import Callable
from pathlib import Path

from gangpao.atomic import Busy
from gangpao.units import show_bytes

Progress = Callable[[int, int], None]
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")


def is_model_folder(name: str) -> bool:
    """Whether this is a run or a Hugging Face folder, also when its name has no separator in it."""
    return any((Path(name) / file).is_file() for file in ("config.json", "run.json"))


def gguf_of(path: Path, progress: Progress) -> Path:
    """The file to run for a path that exists: itself, or what a folder is exported to, with progress(done, total) in tensors.

    Raises ValueError saying what to do.
    """
    if path.is_file():
        if path.suffix in _WEIGHTS and (path.parent / "config.json").is_file():
            raise ValueError(f"{path}: weights without their configuration; give the folder: -m {path.parent}")
        return path
    return _exported(folder_of(path), progress)


def folder_of(path: Path) -> Path:
    """The Hugging Face folder that is meant by a folder. Raises ValueError for one that is or has none."""
    if (path / "config.json").is_file():
        return path
    if (path / "export" / "config.json").is_file():
        return path / "export"
    if (path / "run.json").is_file():
        raise ValueError(
            f"{path}: this run has no export/ yet, which it gets at its end: go on with `gangpao train CONFIG --out {path}`"
        )
    run = next((parent for parent in path.absolute().parents if (parent / "run.json").is_file()), None)
    if run is not None:
        raise ValueError(f"{path}: a part of a run; what can be asked is its export: -m {run}")
    files = sorted(path.glob("*.gguf"))
    if files:
        raise ValueError(f"{path}: a folder of .gguf files; give one of them: -m {files[0]}")
    raise ValueError(
        f"{path}: a folder that is no model: a run has run.json and export/, a Hugging Face folder config.json and weights"
    )


def _exported(folder: Path, progress: Progress) -> Path:
    """The .gguf file of a Hugging Face folder, written now if it is not in the cache; stderr says so.

    Raises ValueError when it cannot be, with the reason and what else can be done.
    """
    announced = False

    def announce(done: int, total: int) -> None:
        nonlocal announced
        if not announced:
            size = show_bytes(sum(p.stat().st_size for p in folder.iterdir() if p.suffix in _WEIGHTS))
            print(f"{folder}: a Hugging Face folder ({size}), exporting it to the cache as .gguf", file=sys.stderr)
            announced = True
        progress(done, total)

    try:
        from gangpao.deploy.cached import cached_export

        return cached_export(folder, announce)
    except ImportError as error:
        if (error.name or "").startswith("gangpao"):
            raise
        raise ValueError(
            f"{folder}: a Hugging Face folder has to be exported to .gguf first, and that needs the lab "
            f"({error.name or error} is not installed): pip install 'gangpao[lab]'"
        ) from error
    except Busy:
        raise
    except ValueError as error:
        raise ValueError(
            f"{folder} cannot become the .gguf file that the engine runs: {error}. On a GPU, vLLM may serve the folder as "
            f"it is: gangpao serve --engine vllm -m {folder}"
        ) from error
