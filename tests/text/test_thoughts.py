"""Thoughts are told from answers wherever the text is cut, and only where they are thoughts."""

import random

import pytest

from gangpao.text.templates.chat import ChatTemplate
from gangpao.text.thoughts import KNOWN, Marks, Said, Splitter, marks_of, split
from gangpao.text.tokenizer import Tokenizer
from tests.text import tiny

THINK = KNOWN[0]
CASES = [
    # text, opened, thought, answer
    ("<think>\nTwo and two.\n</think>\n\nFour.", False, "Two and two.", "Four."),
    ("\n <think>a  b</think>c", False, "a  b", "c"),
    ("Two and two.\n</think>\n\nFour.", True, "Two and two.", "Four."),
    ("<think>\nonce more</think>Four.", True, "once more", "Four."),
    ("Four.", False, "", "Four."),
    ("\n\nFour.\n", False, "", "\n\nFour.\n"),
    ("", False, "", ""),
    ("<think>\n\n</think>\n\nFour.", False, "", "Four."),
    ("<think>cut off in the middle\n", False, "cut off in the middle", ""),
    ("cut off </thin", True, "cut off </thin", ""),
    ("<thi", False, "", "<thi"),
    ("<think", False, "", "<think"),
    ("<thinker> is no mark", False, "", "<thinker> is no mark"),
    ("Write `<think>` and `</think>`:\n```\n<think>so</think>\n```", False, "", None),
    ("x <think>late</think> y", False, "", None),
    ("<think>About `</think>`: what?</think>It ends a thought.", False, "About `</think>`: what?", "It ends a thought."),
    ("<think>an open tick `</think>Then words.", False, "an open tick `", "Then words."),
    ("<think>an open tick `</think>", False, "an open tick `", ""),
    ("<think>`</think>`</think>`x`", False, "`</think>`", "`x`"),
    ("<think>a</think>b <think>c</think>", False, "a", "b <think>c</think>"),
    ("<think>a < b </ c </think>d", False, "a < b </ c", "d"),
    ("<think>泰山很高。</think>是的。", False, "泰山很高。", "是的。"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "opened", "thought", "answer"), CASES)
def test_a_text_is_split_wherever_it_is_cut(text: str, opened: bool, thought: str, answer: str | None) -> None:
    expected = (thought, text if answer is None else answer)
    assert split(text, Splitter(THINK, opened=opened)) == expected
    for seed in range(20):
        cuts, splitter, said = random.Random(seed), Splitter(THINK, opened=opened), []
        rest = text
        while rest:
            size = 1 if seed == 0 else cuts.randint(1, 9)
            said += splitter.push(rest[:size])
            rest = rest[size:]
        said += splitter.finish()
        assert all(s.text for s in said)
        assert sorted(said, key=lambda s: not s.thought) == said  # no thought behind words
        assert tuple("".join(s.text for s in said if s.thought is kind) for kind in (True, False)) == expected


@pytest.mark.parametrize("marks", KNOWN)
def test_every_pair_of_marks(marks: Marks) -> None:
    text = f"{marks.begin}\nhm\n{marks.end}\nyes"
    assert split(text, Splitter(marks)) == ("hm", "yes")
    assert split(text, Splitter(None)) == ("", text)


def test_words_go_out_at_once() -> None:
    splitter = Splitter(THINK)
    assert splitter.push("H") == [Said("H")]
    assert splitter.push("i <") == [Said("i <")]
    splitter = Splitter(THINK, opened=True)
    assert splitter.thinking
    assert splitter.push("So ") == [Said("So", thought=True)]
    assert splitter.push("far.</think>\nY") == [Said(" far.", thought=True), Said("Y")]
    assert not splitter.thinking


def test_marks_are_read_off_template_and_vocabulary() -> None:
    def none(_: str) -> None:
        return None

    assert marks_of(None, none) is None
    assert marks_of("{{ messages }}", none) is None
    assert marks_of("... content.split('</think>')[-1] ...", none) is None
    assert marks_of("... '<think>\\n' ... '</think>' ...", none) == THINK
    assert marks_of(None, {"<think>": 5, "</think>": 6}.get) == THINK
    assert marks_of("'</think>'", {"<think>": 5}.get) == THINK
    assert marks_of(None, {"[THINK]": 5, "[/THINK]": 6}.get) == Marks("[THINK]", "[/THINK]")


@pytest.mark.parametrize("kind", [3, 4])  # control, user-defined
def test_marks_stay_in_the_text_whatever_a_file_calls_them(kind: int) -> None:
    metadata = tiny.byte_level()
    tokens, types = list(metadata["tokenizer.ggml.tokens"]), list(metadata["tokenizer.ggml.token_type"])
    more = {"tokenizer.ggml.tokens": [*tokens, *THINK], "tokenizer.ggml.token_type": [*types, kind, kind]}
    tokenizer = Tokenizer.from_gguf({**metadata, **more})
    template = ChatTemplate.for_model(None, tokenizer=tokenizer)
    assert template.thoughts == THINK
    ids = [tokenizer.id_of("<think>"), *tokenizer.encode("hello"), tokenizer.id_of("</think>")]
    stream = tokenizer.stream()
    assert "".join(map(stream.push, ids)) == "<think>hello</think>"
    asked = template.encode(tokenizer, [{"role": "user", "content": "<think>hello</think>"}])
    assert not tokenizer.control_ids & set(asked[1:-1]) & {ids[0], ids[-1]}


def test_a_family_by_name_has_no_thoughts() -> None:
    assert ChatTemplate.named("chatml").thoughts is None
