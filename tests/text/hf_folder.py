"""Small tokenizers as transformers saves them: byte-level and SentencePiece-like, with whatever a test changes."""

import json

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from gangpao.text.pretokenizers import by_name

TEXT = [
    "hello world and again hello, 你好！ The quick brown fox; naïve café 1234",
    "def f(x):\n    return x + 1\n",
] * 30
SPECIAL = ["<s>", "</s>", "<|reply_end|>", "<|stop|>", "<|over|>"]


def byte_level(normalizer=None, added=()):
    """A trained tokenizer of 320 pieces and the added ones, cut by qwen2's rule."""
    library = Tokenizer(models.BPE())
    library.normalizer = normalizer
    cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in by_name("qwen2").patterns]
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    library.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    library.train_from_iterator(TEXT, trainer)
    library.add_tokens(list(added))
    return library


def sentencepiece_like(before=(), added=()):
    """Llama's form: normalizers put U+2581 in, bytes where a character is no piece. `before`: further normalizers."""
    specials = ["<unk>", "<s>", "</s>"]
    pieces = [*specials, *(f"<0x{b:02X}>" for b in range(256))]
    words = [*"▁helowrdA你好", "ll", "he", "hell", "hello", "▁hello", "or", "ld", "▁w", "▁wor", "▁world"]
    merges = [("l", "l"), ("h", "e"), ("he", "ll"), ("hell", "o"), ("▁", "hello"), ("o", "r"), ("l", "d"), ("▁", "w")]
    merges += [("▁w", "or"), ("▁wor", "ld")]
    vocab = {piece: i for i, piece in enumerate([*pieces, *words])}
    library = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    library.normalizer = normalizers.Sequence([*before, normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    library.add_special_tokens([AddedToken(piece, special=True, normalized=False) for piece in specials])
    library.add_tokens(list(added))
    return library


def save(folder, library, *, config=None, generation=None, **files):
    """The folder that transformers would save; None leaves generation_config.json away."""
    folder.mkdir(parents=True, exist_ok=True)
    library.save(str(folder / "tokenizer.json"))
    main = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": False} | (config or {})
    (folder / "tokenizer_config.json").write_text(json.dumps(main))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder
