"""Train a byte-level BPE vocabulary and write it as a Hugging Face folder.

The idea: the trainer of the tokenizers library, behind the pre-tokenizer that llama.cpp calls qwen2, so that a model with this
vocabulary can be exported to GGUF by that name: digits one by one, Chinese runs not cut by word lists, spaces with the
word behind them. All 256 bytes are pieces, so no text is unknown. The special pieces come first, at fixed ids: BOS, EOS,
then ChatML's two marks, which every vocabulary of ours has because its chat template is ChatML.

What it gives up: other models than BPE, and text normalisation; what is decoded is what was encoded.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gangpao.atomic import new_folder
from gangpao.data.config import TrainTokenizer
from gangpao.text.pretokenizers import by_name

PRE_TOKENIZER = "qwen2"  # the value of tokenizer.ggml.pre
CHAT_MARKS = ("<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def special_pieces(options: TrainTokenizer) -> list[str]:
    """In order of their ids. Raises ValueError when two are the same."""
    pieces = [options.bos, options.eos, *CHAT_MARKS, *options.special]
    if len(set(pieces)) != len(pieces):
        raise ValueError(f"tokenizer.train: a special piece is named twice in {', '.join(pieces)}")
    return pieces


def train(texts: Iterable[str], options: TrainTokenizer, folder: Path) -> int:
    """Train on texts and write `folder` whole. Returns the number of pieces, fewer than asked for when the texts are few."""
    from tokenizers import Regex, decoders, models, pre_tokenizers, processors, trainers
    from tokenizers import Tokenizer as Library

    special = special_pieces(options)
    library = Library(models.BPE())
    cuts = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in by_name(PRE_TOKENIZER).patterns]
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=options.vocab_size,
        min_frequency=options.min_frequency,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),  # sorted: it comes in a different order each time
        show_progress=False,
    )
    library.train_from_iterator(iter(texts), trainer=trainer)
    library.post_processor = processors.TemplateProcessing(
        single=f"{options.bos} $A",
        pair=f"{options.bos} $A {options.bos} $B",
        special_tokens=[(options.bos, library.token_to_id(options.bos))],
    )
    with new_folder(folder) as temporary:
        library.save(str(temporary / "tokenizer.json"))
        for name, value in _side_files(options, special, library).items():
            (temporary / name).write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return int(library.get_vocab_size())


def _side_files(options: TrainTokenizer, special: list[str], library: Any) -> dict[str, dict[str, Any]]:
    marks = {"bos_token": options.bos, "eos_token": options.eos}
    plain = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {
        "tokenizer_config.json": {
            **marks,
            "add_bos_token": True,
            "add_eos_token": False,
            "added_tokens_decoder": {str(library.token_to_id(p)): {"content": p, **plain} for p in special},
            "additional_special_tokens": special[2:],
            "chat_template": CHAT_TEMPLATE,
            "clean_up_tokenization_spaces": False,
            "tokenizer_class": "PreTrainedTokenizerFast",
            "ggml_pre": PRE_TOKENIZER,
        },
        "special_tokens_map.json": {**marks, "additional_special_tokens": special[2:]},
        # <|im_end|> ends an answer, EOS a document: a generation stops at either.
        "generation_config.json": {
            "bos_token_id": library.token_to_id(options.bos),
            "eos_token_id": [library.token_to_id(options.eos), library.token_to_id(CHAT_MARKS[1])],
        },
    }
