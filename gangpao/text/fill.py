"""Fill in the middle: the marks that some models have for a hole in a text, and the prompt that is made with them.

    <prefix> what comes before <suffix> what comes after <middle> the model writes what lies between

The marks are named in a file's metadata, or known by their spelling; the order is the one that llama.cpp takes (prefix
first). Other files of the same project may stand in front.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gangpao.text.tokenizer import Tokenizer

# What a mark is called in metadata (tokenizer.ggml.fim_NAME_token_id), and how vocabularies spell it.
_SPELLED = {
    "pre": ("<|fim_prefix|>", "<fim_prefix>", "<fim-prefix>", "<｜fim▁begin｜>", "<PRE>", "▁<PRE>"),
    "suf": ("<|fim_suffix|>", "<fim_suffix>", "<fim-suffix>", "<｜fim▁hole｜>", "<SUF>", "▁<SUF>"),
    "mid": ("<|fim_middle|>", "<fim_middle>", "<fim-middle>", "<｜fim▁end｜>", "<MID>", "▁<MID>"),
    "pad": ("<|fim_pad|>", "<fim_pad>", "<fim-pad>", "<PAD>"),
    "rep": ("<|repo_name|>", "<|fim_repo|>", "<repo_name>", "<reponame>", "<fim-repo>", "<REPO>"),
    "sep": ("<|file_sep|>", "<file_sep>"),
    "eot": ("<EOT>", "▁<EOT>"),
}
_REPOSITORY = "myproject\n"  # what llama.cpp writes where nobody says a name
_FILE = "filename\n"


@dataclass(frozen=True, slots=True)
class FillMarks:
    """Ids of a model's marks. ends: those that end what is filled in, beside the model's own ends."""

    prefix: int
    suffix: int
    middle: int
    repository: int | None = None
    file: int | None = None
    ends: frozenset[int] = frozenset()


def fill_marks(tokenizer: Tokenizer, metadata: Mapping[str, Any]) -> FillMarks | None:
    """The marks of a model; None where it does not have all three."""
    found: dict[str, int] = {}
    for name, spellings in _SPELLED.items():
        token = metadata.get(f"tokenizer.ggml.fim_{name}_token_id")
        if isinstance(token, int) and not isinstance(token, bool) and 0 <= token < tokenizer.vocab_size:
            found[name] = token
        elif (known := next((i for s in spellings if (i := tokenizer.id_of(s)) is not None), None)) is not None:
            found[name] = known
    if not {"pre", "suf", "mid"} <= set(found):
        return None
    ends = frozenset(found[name] for name in ("pad", "rep", "sep", "eot") if name in found)
    return FillMarks(found["pre"], found["suf"], found["mid"], found.get("rep"), found.get("sep"), ends)


def fill_prompt(
    tokenizer: Tokenizer, marks: FillMarks, prefix: str, suffix: str, files: Sequence[tuple[str, str]] | None = None
) -> list[int]:
    """Ids of a prompt whose answer lies between prefix and suffix. files: names and texts of others that may help; with a list,
    also an empty one, the prompt says that it is a file of a project, as llama-server's /infill does.

    Marks that are spelled in these texts are ordinary text.
    """

    def ids_of(text: str) -> list[int]:
        return tokenizer.encode(text, start=False)

    def head(name: str) -> list[int]:
        return [] if marks.file is None else [marks.file, *ids_of(name)]

    out: list[int] = []
    if files is not None:
        out += [] if marks.repository is None else [marks.repository, *ids_of(_REPOSITORY)]
        for name, text in files:
            out += [*head(f"{name}\n"), *ids_of(text)]
        out += head(_FILE)
    if tokenizer.adds_bos and tokenizer.bos_id is not None:
        out.append(tokenizer.bos_id)
    return [*out, marks.prefix, *ids_of(prefix), marks.suffix, *ids_of(suffix), marks.middle]
