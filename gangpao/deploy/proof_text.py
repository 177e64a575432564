"""Whether a written file reads and ends texts as the checkpoint's tokenizer does: ids, ends, chat template, sampling.

The truth about ids is Hugging Face's own library on the folder's tokenizer.json, special tokens and normalizer included;
where there is none, our reader of the folder. Texts are what tokenizers differ on: Chinese, code, numbers, white space,
decomposed and full-width characters, every added token between others, and words made of the vocabulary's own pieces.

What it gives up: pieces that no merge makes. SentencePiece's merging by scores finds them, the library's by rank does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from gangpao.deploy.proof_numbers import Difference
from gangpao.text.export import PROBE
from gangpao.text.hf_folder import id_list, read_object
from gangpao.text.tokenizer import Tokenizer
from gangpao.text.vocabulary import Kind

MAX_ADDED = 200  # added tokens that are tried
MAX_PIECES = 2000  # pieces that are tried
HARD = (
    *PROBE.splitlines(keepends=True), PROBE, "Hello World", "HELLO wORLD İstanbul ſtraße ΑΣ", "ｈｅｌｌｏ　ＷＯＲＬＤ １２３",
    "he\u0301llo cafe\u0301 n\u0303 A\u030a x\u0323\u0307", "naïve café Ünïcödé ﬁne ① ½ Ⅷ ㎏ ﷺ",
    "\u1112\u1161\u11ab 한국 が か\u3099", "  leading and trailing  ", "\t\ttabs\t", "\n\n", "\r\n x \r", " ", "a", "\u3000全角",
    "``quotes'' “中文” «fr»", "你好，世界！", "今天天气很好，我们去公园散步吧。", "x=[1,2,3]; y = x**2  # 注释",
    "for (int i = 0; i < n; ++i) {\n\ta[i] += b[i];\n}\r\n", "3.14159 1,000,000 2024-12-31", "😀👍🏽🧑‍🚀🇨🇳 1️⃣",
    "\u00a0nbsp\u200bzwsp\ufeffbom\u2028ls", "\x00\x01\x7f\x85", "𠀀𠮷 𝒜𝟘 \U0010ffff", "İıŞşĞğ ǅ ß ẞ",
    "a\u0308\u0323 \u212b \u2126 \u212a",
)  # fmt: skip
# generation_config.json -> general.sampling
_SAMPLING = {
    "temperature": "temp", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p", "repetition_penalty": "penalty_repeat",
}  # fmt: skip


def prove(folder: Path, metadata: Mapping[str, object], vocab_size: int, on_note: Callable[[str], None]) -> None:
    """Raises Difference for the first thing in which the file is not the folder. metadata: of the written file."""
    here, there = Tokenizer.from_dir(folder), Tokenizer.from_gguf(metadata)
    _compare_ids(folder, here, there, on_note)
    _compare_ends(folder, here, there, vocab_size)
    if here.chat_template != there.chat_template:
        raise Difference("chat template: that of the file is not the folder's")
    _compare_sampling(read_object(folder / "generation_config.json"), metadata)


def _compare_ids(folder: Path, here: Tokenizer, there: Tokenizer, on_note: Callable[[str], None]) -> None:
    texts = list(_texts(here))
    for special in (False, True):
        _compare("our reader of the folder", texts, partial(here.encode, parse_special=special), there, special)
    for text in texts:
        ids_of_text = there.encode(text, parse_special=True)
        if (a := here.decode(ids_of_text, keep_special=True)) != (b := there.decode(ids_of_text, keep_special=True)):
            raise Difference(f"text: {ids_of_text[:6]} is {b!r:.60} by the file and {a!r:.60} by the folder")
    if (here.adds_bos, here.adds_bos and here.bos_id) != (there.adds_bos, there.adds_bos and there.bos_id):
        raise Difference(f"token ids: BOS in front is {there.adds_bos} in the file and {here.adds_bos} in the folder")
    path = folder / "tokenizer.json"
    if not path.is_file():
        return
    from tokenizers import Tokenizer as Library

    library = Library.from_file(str(path))
    library.no_truncation()
    library.no_padding()

    def ids(text: str) -> Sequence[int]:
        found: list[int] = library.encode(text, add_special_tokens=False).ids
        return found

    _compare("tokenizer.json", texts, ids, there, True)
    if _compare_around(library.encode("a").ids, ids("a"), there):
        on_note("tokenizer.json ends every text; left out, since a prompt that has ended gets no answer")


def _compare(
    who: str, texts: Sequence[str], ids: Callable[[str], Sequence[int]], there: Tokenizer, special: bool
) -> None:
    for text in texts:
        expected, found = list(ids(text)), there.encode(text, parse_special=special)
        if expected != found:
            pairs = enumerate(zip(expected, found, strict=False))
            i = next((i for i, (a, b) in pairs if a != b), min(len(expected), len(found)))
            raise Difference(
                f"token ids: {text!r:.60} is {expected[i : i + 6]} from position {i} on by {who} and {found[i : i + 6]} by the "
                "file"
            )


def _compare_around(whole: Sequence[int], bare: Sequence[int], there: Tokenizer) -> bool:
    """What the post-processor puts around every text: nothing or BOS in front, and behind an end at most; whether there is one."""
    begin = next((i for i in range(len(whole)) if list(whole[i : i + len(bare)]) == list(bare)), 0)
    before, behind = list(whole[:begin]), list(whole[begin + len(bare) :])
    if before not in ([], [there.bos_id]) or not set(behind) <= there.end_ids:
        raise Difference(
            f"token ids: tokenizer.json puts {before} in front of every text and {behind} behind it, and a file can only say BOS"
        )
    return bool(behind)


def _texts(tokenizer: Tokenizer) -> Iterator[str]:
    v = tokenizer.vocabulary
    unmade = set()
    if not v.byte_level and v.merged:
        unmade = {
            p for p, k in zip(v.pieces, v.kinds, strict=True) if k == Kind.NORMAL and len(p) > 1 and p not in v.merged
        }
    for text in HARD:
        if not any(piece in text.replace(" ", "\u2581") for piece in unmade):
            yield text
    added = [p for p, k in zip(v.pieces, v.kinds, strict=True) if k in (Kind.CONTROL, Kind.USER_DEFINED)]
    for piece in added[:: -(-len(added) // MAX_ADDED) or 1]:
        yield from (f"hello {piece} world{piece}", f"{piece}\n 你好{piece}{piece} ", f"{piece.upper()} {piece.lower()}")
    if v.byte_level:
        for i in range(0, len(v.pieces), -(-len(v.pieces) // MAX_PIECES)):
            yield tokenizer.decode([i, i]) if v.kinds[i] == Kind.NORMAL else ""


def _compare_ends(folder: Path, here: Tokenizer, there: Tokenizer, vocab_size: int) -> None:
    if here.end_ids != there.end_ids:
        raise Difference(f"end tokens: {sorted(there.end_ids)} in the file and {sorted(here.end_ids)} in the folder")
    for name in ("generation_config.json", "config.json"):  # the first that names ends decides
        named = set(id_list(read_object(folder / name).get("eos_token_id")))
        if outside := sorted(named - set(range(vocab_size))):
            raise Difference(f"end tokens: {name} names {outside[0]}, and the model has {vocab_size} tokens")
        if not named <= there.end_ids:
            raise Difference(f"end tokens: {name} ends at {sorted(named)}, the file at {sorted(there.end_ids)}")
        if named:
            return


def _compare_sampling(config: Mapping[str, object], metadata: Mapping[str, object]) -> None:
    for name, key in _SAMPLING.items():
        found = metadata.get(f"general.sampling.{key}")
        wanted = 0.0 if name == "temperature" and config.get("do_sample") is False else config.get(name)
        same = found == wanted
        if isinstance(wanted, int | float) and isinstance(found, int | float):
            same = math.isclose(found, wanted, rel_tol=1e-6)  # the file has 32 bits
        if not same:
            raise Difference(f"sampling defaults: {name} is {found} in the file and {wanted} in generation_config.json")
