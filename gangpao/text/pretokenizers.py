"""How byte-level BPE vocabularies cut text into words before merging: one entry for each name a GGUF may carry.

A GGUF file names its pre-tokenizer (tokenizer.ggml.pre) and leaves the rule to the reader; a wrong rule still gives
valid ids, only worse ones, so an unknown name is refused instead of guessed. A rule is a list of regular expressions in
Oniguruma syntax, applied one after the other, each cutting the pieces of the one before it into matches and gaps; and
two switches: whole_words takes a word that is in the vocabulary as it is, before any merging; adds_bos is what holds
when the file does not say. The expressions are those of the models' own tokenizer.json files, with the
case-insensitive English contractions spelled out ((?i:'s) would also match U+017F, the long s).

What it gives up: names with hand-written splitters behind them (kimi-k2, afmoe, youtu) and the embedding models.
"""

from dataclasses import dataclass

_CONTRACTIONS = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+%s"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*%s"
    r"|%s| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + _SPACES
)
_DEEPSEEK_LETTERS = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373"
    "\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f"
    "\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    "\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-"
    "\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec"
    "\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-"
    "\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3"
    "\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17"
    "\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-"
    "\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_DEEPSEEK_CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_ASCII_PUNCTUATION = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"


def _gpt4(digits: str, contractions: str = _CONTRACTIONS) -> str:
    """The expression most models since GPT-4 share; they differ in how they cut numbers."""
    head = f"{contractions}|" if contractions else ""
    return head + rf"[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """One rule: see the module docstring."""

    patterns: tuple[str, ...]
    whole_words: bool = False
    adds_bos: bool = False


_LLAMA3 = PreTokenizer((_gpt4(r"\p{N}{1,3}"),), whole_words=True, adds_bos=True)
_GPT4_TRIPLES = PreTokenizer((_gpt4(r"\p{N}{1,3}"),))
_QWEN2 = PreTokenizer((_gpt4(r"\p{N}"),))
_DIGITS_GPT2 = PreTokenizer((r"\p{N}", _GPT2))
_PLAIN_GPT2 = PreTokenizer((_GPT2,))
_DEEPSEEK3 = PreTokenizer(
    (
        r"\p{N}{1,3}",
        "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
        _ASCII_PUNCTUATION + r"[A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|" + _SPACES,
    )
)

RULES: dict[PreTokenizer, tuple[str, ...]] = {
    PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")): ("default",),
    _LLAMA3: ("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"),
    _GPT4_TRIPLES: ("dbrx", "smaug-bpe", "chatglm-bpe"),
    PreTokenizer((_gpt4(r"\p{N}{1,3}"),), whole_words=True): ("glm4", "glm5"),
    _QWEN2: ("qwen2", "deepseek-r1-qwen", "stablelm2", "hunyuan", "megrez", "grok-2", "solar-open", "kormo"),
    PreTokenizer(
        (
            _CONTRACTIONS
            + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|"
            + _SPACES,
        )
    ): ("qwen35",),
    PreTokenizer((r"\p{N}{1,3}", _gpt4(r"\p{N}+")), whole_words=True): ("minicpm5",),
    PreTokenizer((r"[^\n]+|[\n]+", _gpt4(r"\p{N}"))): ("laguna",),
    PreTokenizer((_gpt4(r"\p{N}", contractions=""),)): ("ufakzeka",),
    PreTokenizer(
        (_CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}\r\n]+|" + _SPACES,)
    ): ("seed-coder",),
    PreTokenizer(
        (
            r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
        )
    ): ("bailingmoe", "bailingmoe2", "llada-moe"),
    _DIGITS_GPT2: (
        "smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2",
    ),
    _PLAIN_GPT2: (
        "gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling", "exaone4", "gigachat", "a.x-4.0",
        "mellum",
    ),
    PreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]")): ("falcon",),
    PreTokenizer(
        (
            "[\r\n]",
            rf"\s?[{_DEEPSEEK_LETTERS}]+",
            r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
            r"\s+$",
            _DEEPSEEK_CJK,
            r"\p{N}+",
        )
    ): ("deepseek-llm",),
    PreTokenizer(("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _DEEPSEEK_CJK, r"\p{N}")): ("deepseek-coder",),
    _DEEPSEEK3: ("deepseek-v3", "hunyuan-dense", "joyai-llm"),
    PreTokenizer((r" ?[^(\s|.,!?…。，、।۔،)]+",)): ("poro-chat", "bloom", "gpt3-finnish"),
    PreTokenizer((r" ?[^(\s|.,!?…。，、।۔،)]+", r"\p{N}")): ("viking",),
    PreTokenizer((_CASED % ("", "", r"\p{N}"),), whole_words=True, adds_bos=True): ("tekken",),
    PreTokenizer((_CASED % (f"{_CONTRACTIONS}?", f"{_CONTRACTIONS}?", r"\p{N}{1,3}"),)): (
        "gpt-4o", "llama4", "kanana2", "minimax-m2",
    ),
}  # fmt: skip

PRE_TOKENIZERS: dict[str, PreTokenizer] = {name: rule for rule, names in RULES.items() for name in names}


def by_name(name: str) -> PreTokenizer:
    """The rule called `name` in tokenizer.ggml.pre; raises ValueError for one we do not have."""
    if name not in PRE_TOKENIZERS:
        raise ValueError(
            f"tokenizer.ggml.pre names the pre-tokenizer {name!r}, which gangpao does not know; it knows "
            f"{', '.join(sorted(PRE_TOKENIZERS))}. Load the model's Hugging Face folder (tokenizer.json) instead."
        )
    return PRE_TOKENIZERS[name]
