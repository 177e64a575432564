"""Pictures in conversations: where their marks and rows stand, in our families and in templates of others."""

import pytest

from gangpao.engine.pictures.prompts import on_own_lines, placed
from gangpao.images.look import Picture
from gangpao.text.templates.chat import ChatTemplate
from gangpao.text.templates.pictures import free_characters, image_mark_of
from gangpao.text.tokenizer import Tokenizer
from tests.text import tiny

MARKS = ("<image>", "</image>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
A, B = free_characters(2, "")
LAYOUT = {A: ["<image>", range(1000, 1003), "</image>"], B: ["<image>", range(2000, 2002), "</image>\n"]}

STRINGS = "{% for m in messages %}{{ '<|im_start|>' + m.role + ': ' + m.content | trim + '<|im_end|>' }}{% endfor %}"
QWEN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{% if part.type == 'image' or 'image_url' in part %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAVA = (
    "{% for m in messages %}{{ m.role | upper }}: {% if m.content is string %}{{ m.content }}{% else %}"
    "{% for p in m.content | selectattr('type', 'equalto', 'image') %}<image>\n{% endfor %}"
    "{% for p in m.content | selectattr('type', 'equalto', 'text') %}{{ p.text }}{% endfor %}{% endif %}<|im_end|>{% endfor %}"
)
NUMBERED = QWEN.replace("<|vision_start|>", "Picture {{ loop.index }}: <|vision_start|>")
BLIND = QWEN.replace("<|vision_start|><|image_pad|><|vision_end|>", "")


@pytest.fixture(scope="module")
def tokenizer():
    data = tiny.byte_level()
    tokens, types = data["tokenizer.ggml.tokens"], data["tokenizer.ggml.token_type"]
    data |= {"tokenizer.ggml.tokens": [*tokens, *MARKS], "tokenizer.ggml.token_type": [*types, *[3] * len(MARKS)]}
    return Tokenizer.from_gguf(data)


def ids_of(tokenizer, text, layouts=LAYOUT):
    """Ids of a text in which control tokens count and characters stand for pictures; what lies between two of them is one run."""
    out = []
    for character in layouts:
        assert text.count(character) <= 1
    begin = 0
    places = sorted((text.index(c), c) for c in layouts if c in text)
    for at, c in [*places, (len(text), None)]:
        out.append(text[begin:at])
        begin = at + 1
        if c is not None:
            out += layouts[c]
    ids, run = [], ""
    for part in out:
        if isinstance(part, str):
            run += part
            continue
        ids += tokenizer.encode(run, parse_special=True)
        ids += part
        run = ""
    return ids + tokenizer.encode(run, parse_special=True)


def user(content):
    return {"role": "user", "content": content}


def test_in_our_families(tokenizer):
    found = ChatTemplate.named("minicpm").encode(tokenizer, [user(f"{B}what is it?")], pictures=LAYOUT)
    assert found == ids_of(tokenizer, f"<用户>{B}what is it?<AI>")
    turns = [user(f"one {A} two"), {"role": "assistant", "content": "hello"}, user(f"and {B}")]
    found = ChatTemplate.named("chatml").encode(tokenizer, turns, pictures=LAYOUT)
    text = (
        f"<|im_start|>user\none {A} two<|im_end|>\n<|im_start|>assistant\nhello<|im_end|>\n"
        f"<|im_start|>user\nand {B}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert found == ids_of(tokenizer, text)


def test_a_template_of_texts_gets_a_character(tokenizer):
    template = ChatTemplate("own", source=STRINGS)
    assert not template.writes_images
    found = template.encode(tokenizer, [user(f"  {A}what? <|im_end|>")], pictures=LAYOUT)
    begin = ids_of(tokenizer, f"<|im_start|>user: {A}what? ")
    assert found[: len(begin)] == begin
    assert found[-1] == tokenizer.id_of("<|im_end|>")
    assert found.count(tokenizer.id_of("<|im_end|>")) == 1  # what was typed is none


def test_a_template_of_parts_sets_its_own_places(tokenizer):
    template = ChatTemplate("own", source=QWEN)
    assert image_mark_of(QWEN, ()) == "<|vision_start|><|image_pad|><|vision_end|>"
    turns = [user(f"a{A}b{B}"), {"role": "assistant", "content": "hello"}, user("c <|image_pad|>")]
    found = template.encode(tokenizer, turns, pictures=LAYOUT)
    head = f"<|im_start|>user\na{A}b{B}<|im_end|>\n<|im_start|>assistant\nhello<|im_end|>\n<|im_start|>user\nc "
    begin = ids_of(tokenizer, head)
    assert found[: len(begin)] == begin
    assert tokenizer.id_of("<|image_pad|>") not in found
    assert not any(tokenizer.id_of(mark) in found for mark in ("<|vision_start|>", "<|vision_end|>"))
    assert template.encode(tokenizer, turns[1:]) == ChatTemplate("own", source=QWEN).encode(tokenizer, turns[1:])


def test_a_family_whose_template_writes_images_is_rendered_by_it(tokenizer):
    template = ChatTemplate.for_model(QWEN, tokenizer=tokenizer)
    assert template.family is not None
    assert template.writes_images
    found = template.encode(tokenizer, [user(f"a{A}")], pictures=LAYOUT)
    assert found == ids_of(tokenizer, f"<|im_start|>user\na{A}<|im_end|>\n<|im_start|>assistant\n")


def test_a_template_may_put_pictures_in_front(tokenizer):
    template = ChatTemplate("own", source=LLAVA)
    assert image_mark_of(LLAVA, ()) == "<image>"
    found = template.encode(tokenizer, [user(f"what {A} is {B} it?")], pictures=LAYOUT)
    assert found == ids_of(tokenizer, f"USER: {A}\n{B}\nwhat  is  it?<|im_end|>")


@pytest.mark.parametrize("source", [NUMBERED, BLIND])
def test_templates_that_cannot_be_read_off_get_the_character(tokenizer, source):
    template = ChatTemplate("own", source=source)
    assert not template.writes_images
    found = template.encode(tokenizer, [user(f"a{A}b")], pictures=LAYOUT)
    assert found == ids_of(tokenizer, f"<|im_start|>user\na{A}b<|im_end|>\n<|im_start|>assistant\n")


def test_a_picture_that_a_template_leaves_out_is_told(tokenizer):
    source = QWEN.replace("{% for m in messages %}", "{% for m in messages[-2:] %}")
    turns = [user(f"a{A}"), {"role": "assistant", "content": "b"}, user("c")]
    with pytest.raises(ValueError, match="writes 0 pictures of a conversation that has 1"):
        ChatTemplate("own", source=source).encode(tokenizer, turns, pictures=LAYOUT)


def test_pictures_with_tools(tokenizer):
    tools = [{"type": "function", "function": {"name": "shot", "parameters": {"type": "object"}}}]
    call = {"id": "1", "type": "function", "function": {"name": "shot", "arguments": {}}}
    turns = [
        user("take one"),
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": f"here: {A}", "tool_call_id": "1"},
    ]
    for template in (ChatTemplate.named("chatml"), ChatTemplate("own", source=STRINGS)):
        found = template.encode(tokenizer, turns, tools=tools, pictures=LAYOUT)
        at = found.index(1000)
        assert found[at : at + 3] == [1000, 1001, 1002]
        assert (found[at - 1], found[at + 3]) == tuple(map(tokenizer.id_of, ("<image>", "</image>")))


def test_messages_with_pictures_become_characters():
    one, two = (Picture(bytes([i]), "png", 1, 1) for i in range(2))
    turns = [
        {"role": "user", "content": f"see {A}", "pictures": [(4, one), (0, two)]},
        {"role": "assistant", "content": "ok"},
        {"role": "user", "content": "", "pictures": [(0, one)]},
    ]
    messages, found = placed(turns)
    first, second, third = found
    assert A not in found  # somebody wrote it
    assert [m["content"] for m in messages] == [f"{second}see {first}{A}", "ok", third]
    assert list(found.values()) == [one, two, one]
    assert all("pictures" not in m for m in messages)
    assert placed(turns[1:2]) == (turns[1:2], {})


@pytest.mark.parametrize(
    ("content", "expected"),
    [(f"{A}what", f"{A}\nwhat"), (f"what{A}", f"what\n{A}"), (f"a{A}b", f"a\n{A}\nb"), (f"{A}{B}x", f"{A}\n{B}\nx"),
     (f"a\n{A}\nb", f"a\n{A}\nb"), (A, A), ("", "")],
)  # fmt: skip
def test_parts_on_lines_of_their_own(content, expected):
    assert on_own_lines([user(content)], LAYOUT) == [user(expected)]


def test_private_characters_that_were_typed_stay_what_they_are(tokenizer):
    """The first of those that a foreign template gets in place of control tokens' first letters."""
    typed = "\U000f0000im_start|> and <|im_start|>"
    found = ChatTemplate("own", source=STRINGS).encode(tokenizer, [user(typed)])
    assert tokenizer.decode(found, keep_special=True) == f"<|im_start|>user: {typed}<|im_end|>"
