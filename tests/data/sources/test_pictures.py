"""Pictures in rows, in every form that people publish them in: where each stands, what it is, and what is wrong with it."""

import json

import pytest

from gangpao.data.config import Source
from gangpao.data.sources.forms import Document, parse
from gangpao.data.sources.pictures import cut, mark, marks_in
from gangpao.data.sources.source import read

MESSAGES = Source(path="-", form="messages", messages="messages")
TALK = Source(path="-", form="messages", messages="conversations")
ANSWER = {"role": "assistant", "content": "a cat"}
SOURCE = {"type": "base64", "media_type": "image/jpeg", "data": "QQ=="}
URL = {"type": "image_url", "image_url": {"url": "data:,1"}}


def user(content):
    return {"role": "user", "content": content}


def seen(row, source=MESSAGES):
    """The pieces of the first question, and the pictures."""
    found = parse(row, source)
    assert isinstance(found, Document), found
    return cut(found.messages[0]["content"]), found.images


@pytest.mark.parametrize(
    ("row", "pieces", "images"),
    [
        # LLaMA-Factory
        ({"messages": [user("<image>what?"), ANSWER], "images": ["a.png"]}, [0, "what?"], ("a.png",)),
        ({"messages": [user("<image><image>same?"), ANSWER], "images": ["a.png", "b.png"]}, [0, 1, "same?"], ("a.png", "b.png")),
        # the data sets of Hugging Face
        ({"messages": [user("<image>?"), ANSWER], "images": [{"bytes": b"x", "path": None}]}, [0, "?"], (b"x",)),
        # OpenAI
        (
            {"messages": [user([{"type": "text", "text": "see "}, URL]), ANSWER]},
            ["see ", 0], ("data:,1",),
        ),
        ({"messages": [user([{"type": "input_image", "image_url": "a.png"}, "what?"]), ANSWER]}, [0, "what?"], ("a.png",)),
        # Anthropic
        (
            {"messages": [user([{"type": "image", "source": SOURCE}]), ANSWER]},
            [0], ("data:image/jpeg;base64,QQ==",),
        ),
        # parts of transformers, the picture beside
        ({"messages": [user([{"type": "image"}, "?"]), ANSWER], "images": ["a.png"]}, [0, "?"], ("a.png",)),
        # no place: in front of the first question
        ({"messages": [user("what?"), ANSWER], "image": "a.png"}, [0, "\nwhat?"], ("a.png",)),
        ({"messages": [user("what?"), ANSWER], "images": []}, ["what?"], ()),
        # words, where there is no picture
        ({"messages": [user("write <image> in HTML"), ANSWER]}, ["write <image> in HTML"], ()),
    ],
)  # fmt: skip
def test_forms(row, pieces, images):
    assert seen(row) == (pieces, images)


def test_minicpm_v_names_places():
    row = {
        "image": {"<image_00>": "a.png", "<image_01>": "b.png"},
        "conversations": [user("<image_01> or <image_00>?"), ANSWER, user("and <image_00>?"), ANSWER],
    }
    assert seen(row, TALK) == ([0, " or ", 1, "?"], ("b.png", "a.png", "a.png"))
    one = {
        "image": "a.png",
        "conversations": [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "x"}],
    }
    assert seen(one, TALK) == ([0, "\nwhat?"], ("a.png",))


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"messages": [user("<image>?"), ANSWER], "images": ["a", "b"]}, "has 2 images, and places <image> for 1"),
        ({"messages": [user("<image><image>?"), ANSWER], "images": ["a"]}, "has 1 images, and more places"),
        (
            {"messages": [user("?"), {"role": "assistant", "content": "<image>"}], "images": ["a"]},
            "turn 2 is an answer that shows",
        ),
        ({"messages": [user([{"type": "image_url"}]), ANSWER]}, "part of type image_url without a picture"),
        ({"messages": [user("?"), ANSWER], "images": [7]}, "images: 0 is no path"),
        ({"messages": [user(f"{mark(3)}?"), ANSWER]}, "private character"),
        ({"messages": [user("?"), ANSWER], "images": ["a"] * 300}, "at most 256"),
        ({"messages": [user([{"type": "video", "video": "a"}]), ANSWER]}, "turn 1 has no content"),
        ({"messages": [user("<video>?"), ANSWER], "videos": ["a.mp4"]}, "has videos, which is not read"),
        (
            {"messages": [user("<image>?"), ANSWER], "images": ["a"], "audios": ["a.wav"]},
            "has audios, which is not read",
        ),
        ({"messages": [user("<image>?"), ANSWER], "images": []}, "says <image>, and its list of images is empty"),
    ],
)
def test_what_is_wrong_is_said(row, why):
    found = parse(row, MESSAGES)
    assert isinstance(found, str)
    assert why in found


def test_a_corpus_of_text_takes_no_pictures(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"messages": [user("<image>?"), ANSWER], "images": ["a.png"]}) + "\n")
    (found,) = read(Source(path=str(path), form="messages", messages="messages"), [path])
    assert "has pictures, and a corpus is text" in found.why


def test_marks_are_found_again():
    text = f"a{mark(0)}{mark(255)}b"
    assert marks_in(text) == [0, 255]
    assert cut(text) == ["a", 0, 255, "b"]
