"""Every token counts once, as in Hugging Face's recipe; llama.cpp's windows are llama-perplexity's."""

import random

import pytest

from gangpao.evaluate.perplexity.windows import Windowing, windows_of
from gangpao.text.tokenizer import Tokenizer
from tests.evaluate.perplexity.conftest import RIVER


def hugging_face(length, context, stride):
    """The places that the loop of transformers' documentation counts, window by window: [begin, end, first counted]."""
    found, before = [], 0
    for begin in range(0, length, stride):
        end = min(begin + context, length)
        target = end - before
        # labels[:, :-target] = -100, and the loss never looks at labels[:, 0]
        first = max(end - target, begin + 1)
        if first < end:
            found.append((begin, end, first))
        before = end
        if end == length:
            break
    return found


@pytest.mark.parametrize("seed", range(40))
def test_strided_windows_are_the_recipe_s_and_count_all_but_the_first_token(seed):
    rng = random.Random(seed)
    context = rng.randint(4, 40)
    stride, length = rng.randint(1, context - 1), rng.randint(0, 150)
    spans = list(Windowing(context, stride).spans(length))
    assert spans == hugging_face(length, context, stride)
    counted = [at for begin, end, first in spans for at in range(first, end)]
    assert counted == list(range(1, length))
    assert all(begin < first < end <= begin + context for begin, end, first in spans)


@pytest.mark.parametrize(("length", "context", "windows"), [(31, 32, 0), (32, 32, 1), (100, 32, 3), (99, 33, 3)])
def test_llama_cpp_s_windows_count_their_second_half(length, context, windows):
    spans = list(Windowing(context).spans(length))
    assert len(spans) == windows
    for number, (begin, end, first) in enumerate(spans):
        assert (begin, end - begin) == (number * context, context)
        assert end - first == context - 1 - context // 2  # n_ctx - 1 - first in perplexity.cpp


@pytest.mark.parametrize("adds_bos", [False, True])
@pytest.mark.parametrize("windowing", [Windowing(16), Windowing(16, 8), Windowing(40, 39)])
def test_bos_stands_where_the_peer_puts_it(scorer, adds_bos, windowing):
    scorer.tokenizer.vocabulary.adds_bos = adds_bos
    ids = ([256] if adds_bos else []) + list(RIVER.encode())
    windows = windows_of(RIVER, len(RIVER), scorer.tokenizer, windowing)
    assert windows
    for window in windows:
        own = ids[window.start : window.start + len(window.ids)]
        assert window.original == own[0]
        every = adds_bos and windowing.stride is None
        assert window.ids.tolist() == [256, *own[1:]] if every else own
        assert window.bytes == window.counted  # one id a byte
    if windowing.stride:
        assert sum(window.bytes for window in windows) == len(RIVER) - (not adds_bos)


class Pieces:
    """A tokenizer whose pieces are longer than what they stand for, as where a space is put in front."""

    adds_bos = False

    def encode(self, text: str, *, add_bos: bool) -> list[int]:
        return [1] * (len(text) // 2)

    def token_bytes(self, token: int) -> bytes:
        return b"\xe2\x96\x81"


def test_bytes_are_the_raw_text_s_even_where_pieces_are_not():
    windows = windows_of("x" * 30, 30, Pieces(), Windowing(5, 2))  # type: ignore[arg-type]
    assert sum(window.bytes for window in windows) == 28  # all but those of the first piece


def test_a_lone_surrogate_and_an_empty_text(scorer):
    assert windows_of("", 0, scorer.tokenizer, Windowing(8, 4)) == []
    assert windows_of("a", 1, scorer.tokenizer, Windowing(8, 4)) == []
    (window,) = windows_of("\ud800a", 4, scorer.tokenizer, Windowing(8, 4))
    assert window.bytes == 3


@pytest.mark.parametrize(
    ("context", "stride", "says"), [(3, None, "context: 3"), (8, 8, "stride: 8; give 1 to 7"), (8, 0, "stride: 0")]
)
def test_numbers_that_make_no_sense_are_refused(context, stride, says):
    with pytest.raises(ValueError, match=says):
        Windowing(context, stride)


def test_real_tokenizers_count_the_bytes_of_the_text(model_path):
    from gangpao.formats.gguf import GGUF

    with GGUF.open(model_path("smollm2-135m")) as file:
        tokenizer = Tokenizer.from_gguf(file.metadata)
    text = "你好, wörld: 1 + 1 = 2\n\n" * 20
    size = len(text.encode())
    windows = windows_of(text, size, tokenizer, Windowing(32, 16))
    first = len(tokenizer.token_bytes(int(windows[0].ids[0])))
    assert sum(window.bytes for window in windows) == size - first
