"""Windows of calibration: languages in equal parts, deterministic, our own texts by default, chats by the model's template."""

import json
import os

import numpy as np
import pytest

from gangpao.compress.importance.calibration import DEFAULTS, TEXTS, calibrate, calibration_ids
from gangpao.data.cleaning.language import identify
from gangpao.text.tokenizer import Tokenizer
from tests.compress.importance import own_texts
from tests.formats.gguf_maker import vocabulary

TEMPLATE = "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}</s>\n{% endfor %}"


@pytest.fixture
def tokenizer() -> Tokenizer:
    return Tokenizer.from_gguf(vocabulary(400) | {"tokenizer.chat_template": TEMPLATE})


def test_the_default_texts_are_parts_of_this_repository() -> None:
    if os.environ.get("GANGPAO_WRITE_TEXTS"):
        TEXTS.mkdir(exist_ok=True)
        for language in DEFAULTS:
            (TEXTS / f"{language}.jsonl").write_text("".join(own_texts.rows(language)), encoding="utf-8")
    sizes = {}
    for language in DEFAULTS:
        rows = [json.loads(line) for line in (TEXTS / f"{language}.jsonl").read_text(encoding="utf-8").splitlines()]
        sizes[language] = sum(len(row["text"].encode()) for row in rows)
        wanted = {path.relative_to(own_texts.ROOT).as_posix(): path for path in own_texts.sources(language)}
        both = [row for row in rows if row["from"] in wanted]
        assert len(both) > len(rows) / 2, language  # a snapshot: files come and go, their lines change
        lines = [(line, wanted[row["from"]]) for row in both for line in row["text"].splitlines() if line.strip()]
        there = {path: set(path.read_text(encoding="utf-8").splitlines()) for path in wanted.values()}
        assert sum(line in there[path] for line, path in lines) > len(lines) / 2, language
        if language != "code":
            assert {identify(row["text"]).language for row in rows} == {language}
    assert all(50_000 < size < 120_000 for size in sizes.values()), sizes


def test_languages_have_equal_parts_and_the_same_ids_come_again(tokenizer) -> None:
    found = calibrate(tokenizer, windows=7, length=32)
    assert found.ids.shape == (7, 32)
    assert found.ids.dtype == np.int64
    assert [(p.language, p.tokens) for p in found.parts] == [("zh", 96), ("en", 64), ("code", 64)]
    assert np.array_equal(found.ids, calibration_ids(tokenizer, windows=7, length=32))
    begin = json.loads((TEXTS / "en.jsonl").read_text(encoding="utf-8").splitlines()[0])["text"]
    assert tokenizer.encode(begin)[:32] == found.ids[1].tolist()
    assert str(found) == "224 tokens in 7 windows: zh 96, en 64, code 64"


def test_more_windows_are_beginnings_of_the_same(tokenizer) -> None:
    few, many = (calibration_ids(tokenizer, windows=n, length=16) for n in (9, 30))
    assert np.array_equal(few, many[:9])


def test_a_short_language_gives_what_it_has_then_all_begin_again(tokenizer, tmp_path) -> None:
    (tmp_path / "long.py").write_text("".join(f"x{i} = {i}\n" for i in range(60)))
    (tmp_path / "kurz.txt").write_text("天空是蓝色的，草是绿色的。" * 4, encoding="utf-8")
    found = calibrate(tokenizer, [tmp_path], windows=30, length=32)
    tokens = {part.language: part.tokens // 32 for part in found.parts}
    available = {part.language: part.available // 32 for part in found.parts}
    assert available == {"zh": 4, "code": 16}
    assert tokens == {"zh": 8, "code": 22}  # 20 windows once, then those again
    assert len(np.unique(found.ids, axis=0)) > 21  # windows of the second round are cut elsewhere
    assert "of " in str(found)


def test_own_texts_and_files_together(tokenizer, tmp_path) -> None:
    (tmp_path / "a.txt").write_text("The sky is blue and the sea is green. " * 40)
    own = calibrate(tokenizer, windows=9, length=32)
    found = calibrate(tokenizer, ["own", str(tmp_path / "a.txt")], windows=9, length=32)
    assert found.datasets == (*own.datasets, str(tmp_path / "a.txt"))
    more = {part.language: part.available for part in found.parts}
    less = {part.language: part.available for part in own.parts}
    assert more["en"] > less["en"]
    assert (more["zh"], more["code"]) == (less["zh"], less["code"])


def test_a_text_shorter_than_a_window_is_repeated(tokenizer, tmp_path) -> None:
    (tmp_path / "a.txt").write_text("sky")
    ids = calibration_ids(tokenizer, [tmp_path / "a.txt"], windows=1, length=8)[0]
    assert tokenizer.decode(ids) == "skyskysk"[: len(tokenizer.decode(ids))]


def test_conversations_are_written_by_the_model_s_template(tokenizer, tmp_path) -> None:
    turns = [{"role": "user", "content": "where are the stars"}, {"role": "assistant", "content": "in the sky <s>"}]
    rows = [{"messages": turns}, {"messages": []}, {"text": "no turns"}]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    length = calibrate(tokenizer, [tmp_path / "chat.jsonl"], windows=1, length=99).parts[0].available
    found = calibrate(tokenizer, [tmp_path / "chat.jsonl"], windows=1, length=length)
    text = tokenizer.decode(found.ids[0], keep_special=True)
    assert text.startswith("<s>user\nwhere are the stars</s>\n<s>assistant\nin the sky <s></s>\n")
    assert (found.ids[0] == tokenizer.bos_id).sum() == 2  # a mark that somebody typed is text
    assert found.skipped == 2


def test_bos_is_first_where_the_model_wants_it(tmp_path) -> None:
    tokenizer = Tokenizer.from_gguf(vocabulary(400) | {"tokenizer.ggml.add_bos_token": True})
    ids = calibration_ids(tokenizer, windows=3, length=16)
    assert (ids[:, 0] == tokenizer.bos_id).all()


@pytest.mark.parametrize("content", ["", '{"other": 1}\n'])
def test_nothing_to_read_is_an_error_with_the_file_s_name(tokenizer, tmp_path, content) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"x\.jsonl"):
        calibration_ids(tokenizer, [path], windows=1, length=8)


def test_no_windows_are_refused(tokenizer) -> None:
    with pytest.raises(ValueError, match="one at least"):
        calibration_ids(tokenizer, windows=0, length=8)
