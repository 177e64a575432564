"""Models of a hub by their address: `hf.co/owner/repo:Q4_K_M`, as Ollama and llama.cpp write it.

    owner/repo                          Hugging Face, then ModelScope; the quantization by the preference below
    hf.co/owner/repo:q8_0               that hub only, that quantization (capitals do not matter)
    https://huggingface.co/owner/repo/resolve/main/x.gguf     one file, as copied out of a browser
    modelscope.cn/owner/repo            the same on ModelScope

A repository holds one model in many quantizations, each one file or several (x-00001-of-00003.gguf); which belong together
is read off their names. What is chosen gets a name of the store, owner--repo--quantization.

What it gives up: where a repository holds two models in one quantization, the file has to be named.
"""

import hashlib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from gangpao import catalog
from gangpao.formats.split_names import parts_of, stem_of
from gangpao.formats.vision.files import is_mmproj, key, key_of_mmproj, rank
from gangpao.pull.staging import SourceError

Kind = Literal["huggingface", "modelscope"]

# The first that is there is taken when none is asked for. 4 bits first: half of 8 bits' size and time, and the loss is small.
PREFERENCE = (
    "Q4_K_M", "Q4_K_S", "Q4_0", "Q4_1", "Q4_K", "IQ4_XS", "IQ4_NL", "Q5_K_M", "Q5_K_S", "Q5_0", "Q5_1", "Q6_K", "Q8_0", "Q3_K_M",
    "Q3_K_L", "Q3_K_S", "F16", "BF16", "F32", "Q2_K", "TQ2_0", "TQ1_0",
)  # fmt: skip
_ALIASES = {"FP16": "F16", "FP32": "F32"}

_HOSTS: dict[str, Kind] = {
    "hf.co": "huggingface", "huggingface.co": "huggingface", "www.huggingface.co": "huggingface",
    "modelscope.cn": "modelscope", "www.modelscope.cn": "modelscope",
}  # fmt: skip
_QUANT = re.compile(
    r"(?:^|[-._])((?:UD-)?(?:I?Q|TQ)\d(?:_[A-Z0-9]+)*|B?F16|FP16|FP?32|MXFP4(?:_MOE)?)(?=$|[-.])", re.IGNORECASE
)
_ASKED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_PART = re.compile(r"(.+)-\d{5}-of-\d{5}")
# Files of a repository that are no language model: eyes, adapters, statistics.
_OTHER = re.compile(r"(?:^|[-._])(?:mmproj|imatrix|lora|adapter)(?:[-._]|$)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Ref:
    """An address. kinds: the hubs to ask, in this order. quant, file, revision: "" where the address has none."""

    repo: str
    kinds: tuple[Kind, ...]
    quant: str = ""
    file: str = ""
    revision: str = ""

    def __str__(self) -> str:
        host = {"huggingface": "hf.co/", "modelscope": "modelscope.cn/"}[self.kinds[0]] if len(self.kinds) == 1 else ""
        return f"{host}{self.repo}{f'/{self.file}' if self.file else ''}{f':{self.quant}' if self.quant else ''}"


def parse(text: str) -> Ref | None:
    """The address that a text is, or None for a name or a path. Raises ValueError for half of one."""
    bare = re.sub(r"^(?:https?://|hf://)", "", text.strip().partition("?")[0])
    host, _, rest = bare.partition("/")
    kinds: tuple[Kind, ...]
    if host.lower() in _HOSTS:
        kinds = (_HOSTS[host.lower()],)
    elif text.startswith("hf://"):
        kinds, rest = ("huggingface",), bare
    elif host.lower() == "hf-mirror.com":
        raise ValueError(
            f"{text[:100]}: set HF_ENDPOINT=https://hf-mirror.com, and write hf.co/ instead of hf-mirror.com/"
        )
    elif "://" in text:
        raise ValueError(
            f"{text[:100]}: models come from hf.co and modelscope.cn; pull a file yourself and give its path"
        )
    elif bare == text.strip() and bare.count("/") == 1 and not bare.lower().endswith(".gguf"):
        kinds, rest = ("huggingface", "modelscope"), bare
    else:
        return None
    parts = [part for part in rest.split("/") if part]
    if parts[:1] == ["models"] and kinds == ("modelscope",):
        del parts[0]
    return _ref(text, kinds, parts)


def _ref(text: str, kinds: tuple[Kind, ...], parts: list[str]) -> Ref | None:
    repo, colon, quant = "/".join(parts[:2]).partition(":")
    if not catalog.is_repo(repo) or (colon and not _ASKED.fullmatch(quant)):
        if len(kinds) > 1:
            return None  # a path that somebody mistyped, most likely
        raise ValueError(
            f"{text[:100]}: not an address of a model: hf.co/OWNER/REPOSITORY or hf.co/OWNER/REPOSITORY:Q4_K_M"
        )
    file, revision = parts[2:], ""
    if file and file[0] in ("resolve", "blob", "tree") and len(file) > 1:
        revision, file = file[1], file[2:]
    elif file and file[0] in ("files", "summary", "file"):  # pages of ModelScope around a repository
        file = []
    if file and not file[-1].lower().endswith(".gguf"):
        raise ValueError(f"{text[:100]}: {file[-1][:60]} is not a .gguf file")
    return Ref(repo, kinds, "" if quant.lower() == "latest" else quant, "/".join(file), revision)


def label(path: str) -> str:
    """The quantization in a file's name, in capitals; "" where there is none."""
    stem = path.rpartition("/")[2].rpartition(".")[0]
    found = _PART.fullmatch(stem)
    names = _QUANT.findall(found[1] if found else stem)
    name = names[-1].upper() if names else ""
    return _ALIASES.get(name, name)


def groups(paths: Iterable[str]) -> dict[str, list[str]]:
    """The models among the files of a repository: first file -> its files, in order. Models with a part missing are left out."""
    out: dict[str, list[str]] = {}
    there = {path for path in paths if path.lower().endswith(".gguf") and not _OTHER.search(path.rpartition("/")[2])}
    for path in sorted(there):
        parts = parts_of(path)
        if path == parts[0] and there.issuperset(parts):
            out[path] = parts
    return out


def sight_among(chosen: str, paths: Iterable[str]) -> str:
    """The encoder of pictures that belongs to a model of a repository: the one named after it, or the only one there is, F16 first;
    "" where there is none or nobody can tell."""
    there = [path for path in paths if is_mmproj(path)]
    named = [path for path in there if key_of_mmproj(path) == key(stem_of(chosen.rpartition("/")[2]))]
    found = named or there
    return min(found, key=rank) if len({key_of_mmproj(path) for path in found}) == 1 else ""


def choose(ref: Ref, paths: Iterable[str]) -> list[str]:
    """The files to take of a repository's. Raises SourceError naming what there is."""
    paths = list(paths)
    found = groups(paths)
    if not found:
        raise SourceError(f"{ref.repo}: holds no .gguf model; look for a repository whose name ends in -GGUF")
    if ref.file and is_mmproj(ref.file) and ref.file in paths:
        return [ref.file]
    if ref.file:
        for parts in found.values():
            if ref.file in parts:
                return parts
        raise SourceError(f"{ref.repo}: holds no {ref.file}; it holds {_some(found)}")
    labels = {first: label(first) for first in found}
    if ref.quant:
        wanted = _ALIASES.get(ref.quant.upper(), ref.quant.upper())
        fits = [first for first, name in labels.items() if name == wanted or name == f"UD-{wanted}"]
        fits = [first for first in fits if labels[first] == wanted] or fits
        what = f"no {ref.quant}; it has {', '.join(sorted({n for n in labels.values() if n})) or _some(found)}"
    else:
        best = next((name for name in PREFERENCE if name in labels.values()), None)
        fits = (
            [first for first, name in labels.items() if name == best]
            if best
            else list(found)
            if len(found) == 1
            else []
        )
        what = f"no quantization that we prefer; name one: {_some(found)}"
    if len(fits) == 1:
        return found[fits[0]]
    if not fits:
        raise SourceError(f"{ref.repo}: has {what}")
    raise SourceError(f"{ref.repo}: {len(fits)} models fit {ref.quant or best}; name the file: {_addresses(ref, fits)}")


def _some(names: Collection[str]) -> str:
    shown = sorted(names)
    return ", ".join(shown[:12]) + (f" and {len(shown) - 12} more" if len(shown) > 12 else "")


def _addresses(ref: Ref, files: Sequence[str]) -> str:
    host = "modelscope.cn" if ref.kinds[0] == "modelscope" else "hf.co"
    return _some([f"{host}/{ref.repo}/{file}" for file in files])


def store_name(repo: str, chosen: str, paths: Iterable[str]) -> str:
    """The name in the store of a file that was chosen among those of a repository, and of all parts of a split one."""
    stem = chosen.rpartition("/")[2].rpartition(".")[0].lower()
    stem = _PART.sub(r"\1", stem)
    same = [first for first in groups(paths) if label(first) == label(chosen)]
    mark = label(chosen).lower() if label(chosen) and len(same) == 1 and not is_mmproj(chosen) else stem
    front = re.sub(r"[-_.]gguf$", "", repo.lower()).replace("/", "--")
    full = f"{front}--{mark}"
    if len(full) > 64:  # the digest keeps apart what the cut makes alike
        digest = hashlib.sha256(f"{front} {stem}".encode()).hexdigest()[:8]
        full = f"{front[:30]}-{mark[-20:]}-{digest}"
    return catalog.check_name(re.sub(r"[^a-z0-9._-]|\.\.+", "-", full))


def file_name(name: str, file: str) -> str:
    """What a file of a hub is called in the store: the store's name, with the number of the part."""
    parts = parts_of(file)
    return (
        f"{name[:40]}-{parts.index(file) + 1:05d}-of-{len(parts):05d}.gguf" if len(parts) > 1 else f"{name[:59]}.gguf"
    )


def match(ref: Ref, records: Mapping[str, Mapping[str, object]]) -> str | None:
    """The installed model that an address means: the preferred one where it leaves the quantization open."""
    fits: dict[str, str] = {}
    for name, record in records.items():
        source = record.get("source")
        if not isinstance(source, dict) or source.get("kind") not in ref.kinds:
            continue
        file = str(source.get("file") or "")
        asked = _ALIASES.get(ref.quant.upper(), ref.quant.upper())
        if is_mmproj(file) and ref.file != file:
            continue
        wrong = (ref.file and ref.file not in parts_of(file)) or (asked and label(file) not in (asked, f"UD-{asked}"))
        if str(source.get("repo", "")).lower() == ref.repo.lower() and not wrong:
            fits[label(file)] = name
    order = [*PREFERENCE, *fits]
    return min(fits.items(), key=lambda item: order.index(item[0]))[1] if fits else None
