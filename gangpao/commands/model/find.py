"""Which model a command means: a name, a path, an address on a hub, or nothing, which means the best that is here.

What was named is what is taken, and it is pulled if it is not here: naming it is asking for it. Where nothing was named, an
installed model comes before any download, and a download is asked for first: name, size, licence, free disk. Without a terminal
to ask at, the command says what to type. A model that the engine does not run is refused before it is pulled.

Everything here speaks on stderr, so that stdout belongs to the answer.
"""

import functools
import re
import sys
from pathlib import Path

import typer

from gangpao import catalog, machine
from gangpao.commands.model import checkpoint
from gangpao.commands.terminal.screen import Percent
from gangpao.engine.config import ModelConfig
from gangpao.formats.architectures import by_gguf_name, models_and_heads
from gangpao.formats.blocks import BY_NAME
from gangpao.formats.gguf import GGUF
from gangpao.formats.split_names import stem_of
from gangpao.progress import Progress
from gangpao.pull import Offer, PullError, can_be_had, pull, pull_ref, refs
from gangpao.units import show_bytes

# Words that are hardly a whole question. 24/7 and 3/4 have no letters and are none of these; and/or has no digit.
_TAGGED = re.compile(r"[A-Za-z][\w.-]*:[\w.-]+")
_OWNED = re.compile(r"(?=.*[A-Za-z])(?=.*(?:\d|gguf))[\w.-]+/[\w.-]+", re.IGNORECASE)
_NUMBERED = re.compile(r"[A-Za-z](?=.*\d)[\w.-]*")


def find_model(model: str | None, *, yes: bool = False) -> tuple[str, Path]:
    """The name and the file of a model, pulled where it is not installed. yes: do not ask before a download.

    Raises ValueError saying what to do, and typer.Exit where the answer to the question was no.
    """
    if model is None:
        return _best(yes)
    path = Path(model).expanduser()
    if catalog.is_path(model) and path.exists():
        return _of_path(path)
    if model not in catalog.load().models and checkpoint.is_model_folder(model):
        return _of_path(path)
    ref = refs.parse(model)
    if ref is not None:
        return _of_hub(ref)
    if not catalog.is_path(model) and model not in catalog.installed():
        check_runs(model, catalog.entry(model))
        entry = catalog.entry(model)
        size = f", {show_bytes(entry.bytes)}" if entry.bytes else ""
        say(f"{model} is not on this machine yet, pulling it{size} ({entry.licence or 'licence unknown'})")
        with Progress() as progress:
            path = pull(model, progress=progress)
            if entry.mmproj:
                pull(entry.mmproj, progress=progress)
            return model, path
    return model, _of_path(catalog.resolve(model))[1]


def find_weights(model: str) -> Path:
    """The Hugging Face folder or the .gguf file that a name or path means: a run's export, floats where there are any.

    Raises ValueError and typer.Exit as find_model does.
    """
    path = Path(model).expanduser()
    if path.is_dir() and (catalog.is_path(model) or checkpoint.is_model_folder(model)):
        return checkpoint.folder_of(path)
    return find_model(model)[1]


def _of_path(path: Path) -> tuple[str, Path]:
    """The name and the file of a path; a run or a Hugging Face folder is exported first."""
    percent = Percent(f"exporting {path}")
    try:
        file = checkpoint.gguf_of(path, percent)
    finally:
        percent.clear()
    return stem_of(file.name), file


def installed_name(model: str) -> str:
    """The store's name of an installed model given by name or by an address on a hub. Raises ValueError."""
    ref = refs.parse(model) if "/" in model else None
    if ref is None:
        return model
    found = refs.match(ref, catalog.records())
    if found is None:
        raise ValueError(f"{model}: not on this machine; `gangpao list` shows what is")
    return found


def means_model(word: str) -> bool:
    """Whether a word of a command line is surely a model and not the beginning of a question."""
    if not word or word != word.strip() or any(c.isspace() for c in word):
        return False
    if word in catalog.load().models or word in catalog.installed():
        return True
    if word.lower().endswith(".gguf"):
        return True
    try:
        ref = refs.parse(word)
    except ValueError:  # half an address: its own message comes when it is looked for
        return True
    if ref is None:
        return False
    return len(ref.kinds) == 1 or "gguf" in ref.repo.lower() or refs.match(ref, catalog.records()) is not None


def looks_like_model(word: str) -> bool:
    """Whether a lone word that is no model here was most likely meant as one: NAME:TAG, OWNER/NAME7B, or nearly a known name."""
    if _TAGGED.fullmatch(word) or _OWNED.fullmatch(word):
        return True
    return _NUMBERED.fullmatch(word) is not None and bool(catalog.near(word))


def one_of(positional: str | None, option: str | None) -> str | None:
    """The model of `gangpao chat MODEL` or `gangpao chat -m MODEL`. Raises ValueError for two different ones."""
    if positional is not None and option is not None and positional != option:
        raise ValueError(f"two models, {positional!r:.60} and -m {option!r:.60}: name one")
    return option if positional is None else positional


def _of_hub(ref: refs.Ref) -> tuple[str, Path]:
    found = refs.match(ref, catalog.records())
    if found is not None:
        return found, catalog.installed()[found]

    def agree(offer: Offer) -> None:
        reason = cannot_run(offer.architecture, offer.quantization)
        if reason:
            raise ValueError(f"{ref}: {reason}, so it is not pulled ({show_bytes(offer.bytes)})")
        say(
            f"{ref} is not on this machine yet, pulling {offer.quantization}, {show_bytes(offer.bytes)}, as {offer.name}"
        )
        if offer.sight:
            say(sees_with(offer))

    with Progress() as progress:
        return pull_ref(ref, agree=agree, progress=progress)


def sees_with(offer: Offer) -> str:
    """What is said of the encoder of pictures of a model that is about to be pulled."""
    if not offer.sight_bytes:
        return f"it reads text only here: {offer.sight} is what it sees with"
    return f"with it comes what it sees with, {offer.sight}, {show_bytes(offer.sight_bytes)}"


def cannot_run(architecture: str, quantization: str) -> str:
    """Why the engine does not run such a file, as far as its head and its name tell; "" where nothing speaks against it."""
    if architecture and architecture not in models_and_heads():
        return f"our engine does not run the architecture {architecture} (it runs {', '.join(sorted(by_gguf_name()))})"
    kind = quantization.removeprefix("UD-")
    if kind.startswith(("IQ", "MXFP", "NVFP")) and kind not in BY_NAME:
        return f"our engine does not read the type {quantization} (take Q4_K_M or Q8_0)"
    return ""


def file_state(path: Path) -> catalog.State:
    """What the header of a file says of it: "untested" where the engine has all it needs, "for pictures" where it is what another
    model sees with."""
    try:
        found = path.stat()
    except OSError:
        return "cannot run"
    return _file_state(path, found.st_size, found.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _file_state(path: Path, size: int, stamp: int) -> catalog.State:
    try:
        with GGUF.open(path) as gguf:
            if gguf.get_str("general.architecture") == "clip":
                return "for pictures"
            ModelConfig.from_gguf(gguf)
    except (ValueError, OSError):  # the list goes on; `gangpao show` gives the reason
        return "cannot run"
    return "untested"


def check_runs(name: str, entry: catalog.Entry) -> None:
    """Raises ValueError, before gigabytes are pulled, where the engine would not run them."""
    if entry.format == "safetensors":
        raise ValueError(
            f"{name}: a folder of weights for training, and the engine runs .gguf files: `gangpao pull {name}` first, then "
            f"`-m {name}` exports it on first use"
        )
    if not entry.engine:
        raise ValueError(f"{name}: our engine does not run this model, so it is not pulled for that. {entry.note}")


def usable() -> dict[str, Path]:
    """The installed models that the engine runs."""
    models = catalog.load().models
    return {
        name: path
        for name, path in catalog.installed().items()
        if (models[name].engine if name in models else path.is_file() and file_state(path) == "untested")
    }


def _best(yes: bool) -> tuple[str, Path]:
    here = usable()
    memory, disk = machine.available_memory(), machine.free_disk(catalog.models_dir())
    name, why = catalog.default_model(memory, disk, here, can_be_had)
    models = catalog.load().models
    if name in here:
        note = f" {models[name].note}" if name in models else ""
        say(f"model: {why}.{note}{_better(name, memory, disk)}")
        return name, here[name]
    return _offered(name, why, "No installed model fits." if here else "There is no model here yet.", disk, yes)


def _offered(name: str, why: str, none: str, disk: int, yes: bool) -> tuple[str, Path]:
    """A default model that is not here, downloaded after the user agreed; the one that gangpao brings where that fails."""
    entry, command = catalog.load().models[name], f"gangpao pull {name}"
    if entry.bundled:
        return _brought(name, f"{none} {why}")
    offer = (
        f"{none} On offer: {why}. It is {entry.title} {entry.quantization}, licence {entry.licence}. {entry.note} "
        f"{show_bytes(entry.bytes)} to download, {show_bytes(disk)} free in {catalog.models_dir()}"
    )
    if not agreed(offer, yes, f"{offer}. There is no terminal to ask at: type `{command}`, or give --yes"):
        say(
            f"Nothing was downloaded. Later: {command}. Others: gangpao list. A file of your own: gangpao chat FILE.gguf"
        )
        raise typer.Exit(1)
    try:
        with Progress() as progress:
            return name, pull(name, progress=progress)
    except PullError as error:
        spare = next((name for name in catalog.load().defaults if catalog.entry(name).bundled), None)
        if spare is None:
            raise
        return _brought(spare, str(error))


def _brought(name: str, why: str) -> tuple[str, Path]:
    """The model that gangpao brings itself, and what may be expected of it."""
    say(f"{why}\nuntil then {name}, which gangpao brings itself. {catalog.load().models[name].note}")
    return name, pull(name)


def _better(name: str, memory: int, disk: int) -> str:
    """The default that would suit better than an installed model and would fit, in a sentence."""
    models, order = catalog.load().models, catalog.load().defaults
    for other in order[: order.index(name)] if name in order else order:
        if catalog.memory_needed(models[other]) <= memory and catalog.disk_needed(models[other]) <= disk:
            return f" Better for talk: gangpao pull {other} ({show_bytes(models[other].bytes)})."
    return ""


def agreed(question: str, yes: bool, no_terminal: str) -> bool:
    """Whether the user wants it: asked at the terminal unless `yes`. Raises ValueError(no_terminal) where nobody can be asked."""
    if yes:
        say(f"{question}.")
        return True
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise ValueError(no_terminal)
    print(f"{question}. Go on? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes", "是", "好")


def say(text: str) -> None:
    """A line on stderr."""
    print(text, file=sys.stderr, flush=True)
