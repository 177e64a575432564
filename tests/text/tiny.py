"""Small vocabularies as GGUF metadata: byte-level BPE and SentencePiece, with control and user-defined pieces."""

from gangpao.text.vocabulary import BYTE_LEVEL

CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>", "<unused1>")


def byte_level(pre="qwen2", **extra):
    """256 bytes, a few merges, five control pieces, one user-defined piece, one unused."""
    alphabet = list(BYTE_LEVEL)
    merges = ["h e", "l l", "he ll", "hell o", "Ġ hello", "ä ½", "ä½ ł", "Ċ Ċ", "< /", "</ s", "</s >"]
    products = [merge.replace(" ", "") for merge in merges]
    tokens = [*alphabet, *products, *CONTROL, "<tool>", "[PAD7]"]
    types = [1] * (len(alphabet) + len(products)) + [3] * len(CONTROL) + [4, 5]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": tokens.index("<|endoftext|>"),
        "tokenizer.ggml.eos_token_id": tokens.index("<|im_end|>"),
        **extra,
    }


def sentencepiece(**extra):
    """Byte pieces, letters, runs of a, a few words; "</" and "s>" merge to the control piece's text if allowed to."""
    words = [
        "▁", "a", "aa", "aaa", "aaaa", "h", "e", "l", "o", "he", "ll", "hell", "hello", "▁hello", "你", "好", "你好", "▁▁",
        "<", "/", "s", ">", "</", "s>", "|", "im",
    ]  # fmt: skip
    tokens = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{b:02X}>" for b in range(256)),
        *words,
        "<|im_start|>",
        "<|im_end|>",
        "<tool>",
    ]
    types = [2, 3, 3, *[6] * 256, *[1] * len(words), 3, 3, 4]
    scores = [0.0] * 259 + [-float(i) for i in range(len(words))] + [0.0] * 3
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.scores": scores,
        **extra,
    }
