import json

import pytest

from gangpao.text.export import PROBE, gguf_metadata
from gangpao.text.tokenizer import Tokenizer
from gangpao.text.tokenizer_json import hugging_face_files
from tests.text.tiny import byte_level, sentencepiece


@pytest.mark.parametrize("pre", ["qwen2", "llama3", "smollm"])
@pytest.mark.parametrize("adds_bos", [False, True])
def test_a_file_and_the_folder_made_of_it_give_the_same_ids(pre, adds_bos, tmp_path):
    metadata = byte_level(
        pre, **{"tokenizer.ggml.add_bos_token": adds_bos, "tokenizer.chat_template": "{{ messages }}"}
    )
    for name, content in hugging_face_files(metadata).items():
        (tmp_path / name).write_bytes(content)
    file, folder = Tokenizer.from_gguf(metadata), Tokenizer.from_dir(tmp_path)
    for text in (PROBE, "hello <|im_end|> <tool>hello</s>\n\n你好", "<|im_start|>hello"):
        for special in (False, True):
            assert folder.encode(text, parse_special=special) == file.encode(text, parse_special=special)
    assert (folder.bos_id, folder.eos_id, folder.adds_bos) == (file.bos_id, file.eos_id, file.adds_bos)
    assert folder.chat_template == file.chat_template
    assert folder.end_ids == file.end_ids
    again = gguf_metadata(tmp_path)  # and back into a file
    assert again["tokenizer.ggml.pre"] == pre
    assert again["tokenizer.ggml.merges"] == metadata["tokenizer.ggml.merges"]


@pytest.mark.parametrize("adds_bos", [False, True])
def test_the_library_of_others_reads_it_the_same_way(adds_bos, tmp_path):
    transformers = pytest.importorskip("transformers")
    metadata = byte_level(**{"tokenizer.ggml.add_bos_token": adds_bos})
    for name, content in hugging_face_files(metadata).items():
        (tmp_path / name).write_bytes(content)
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    ours = Tokenizer.from_gguf(metadata)
    text = "<|im_start|>hello it's 123 你好<|im_end|>\n<tool>"
    assert theirs(text)["input_ids"] == ours.encode(text, add_bos=adds_bos, parse_special=True)
    assert theirs.decode(theirs(text)["input_ids"], skip_special_tokens=True) == "hello it's 123 你好\n<tool>"


def test_rows_that_only_fill_the_embedding_are_left_out():
    files = hugging_face_files(byte_level())
    assert "[PAD7]" not in json.loads(files["tokenizer.json"])["model"]["vocab"]


def test_scores_are_refused():
    with pytest.raises(ValueError, match="Hugging Face folder"):
        hugging_face_files(sentencepiece())
