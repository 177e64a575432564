"""What is trained on is what will be asked: rows with pictures become the ids of the engine's prompts, line breaks included."""

import base64
from dataclasses import replace

import pytest

from gangpao.data.config import Source
from gangpao.data.sources.forms import Document, parse
from gangpao.engine.generate import Engine
from gangpao.engine.pictures.prompts import placed
from gangpao.text.templates.chat import ChatTemplate
from gangpao.tune.data.config import TuneData
from gangpao.tune.data.render import Rendered, Renderer
from gangpao.tune.pictures.table import PictureTable
from tests.engine.pictures.linear_sight import VISION, LinearSight, picture, png
from tests.engine.tiny import write_tiny

MARKS = {
    "plain": replace(VISION.marks, behind=""),
    "break behind": VISION.marks,
    "numbered": replace(VISION.marks, number=("<|im_start|>", "<|im_end|>")),
}
PARTS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for p in m.content %}{% if p.type == 'image' %}(picture)\n{% else %}{{ p.text }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("m") / "tiny.gguf", context=2048)


@pytest.fixture(params=[(marks, own) for marks in MARKS for own in (False, True)], ids=str)
def engine(request, path):
    marks, own = request.param
    vision = replace(VISION, marks=MARKS[marks])
    found = Engine.load(path, context=2048, num_threads=1, sight=LinearSight(vision=vision))
    if own:
        found.template = ChatTemplate.for_model(PARTS, tokenizer=found.tokenizer)
        assert found.template.writes_images
    return found


def part(seed, **size):
    url = "data:image/png;base64," + base64.b64encode(png(seed=seed, **size)).decode()
    return {"type": "image_url", "image_url": {"url": url}}


def trained(engine, tmp_path, row, **data):
    """Ids of a row as it is trained on, every row of a picture as -1, and what is learned of them."""
    document = parse(row, Source(path="-", form="messages", messages="messages"))
    assert isinstance(document, Document), document
    vocab = engine.model.config.vocab_size
    table = PictureTable(engine.seeing.sight.vision, vocab)
    limit = data.pop("limit", 2000)
    config = TuneData(files=("x.jsonl",), **data)
    found = Renderer(config, engine.tokenizer, engine.template, limit, table)(document, tmp_path)
    assert isinstance(found, Rendered), found
    (masked,) = found.sequences
    assert not any(learned for token, learned in zip(masked.ids, masked.mask, strict=True) if token >= vocab)
    return [token if token < vocab else -1 for token in masked.ids], masked.mask


def asked(engine, *turns):
    """The same of a prompt."""
    messages, shown = placed([{"role": role, "content": text, "pictures": found} for role, text, found in turns])
    return [i if i < engine.model.config.vocab_size else -1 for i in engine.prompt_with(messages, shown)]


FIRST = ("user", "what?", [(0, picture(seed=1))])
SECOND = ("user", "and  or ?", [(4, picture(seed=2, width=150)), (8, picture(seed=1))])
ROW = {
    "messages": [
        {"role": "user", "content": [part(1), {"type": "text", "text": "what?"}]},
        {"role": "assistant", "content": "noise"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "and "}, part(2, width=150), {"type": "text", "text": " or "}, part(1), "?",
            ],
        },
        {"role": "assistant", "content": "more"},
    ]
}  # fmt: skip


def test_rows_are_the_prompts_that_will_be_asked(engine, tmp_path):
    ids, mask = trained(engine, tmp_path, ROW)
    first, whole = asked(engine, FIRST), asked(engine, FIRST, ("assistant", "noise", []), SECOND)
    assert ids[: len(first)] == first
    assert ids[: len(whole)] == whole
    assert whole.count(-1) > 2 * first.count(-1)
    assert not any(mask[: len(first)])
    assert mask[len(first)] == 1
    assert all(mask[len(whole) : -1])
    last, learned = trained(engine, tmp_path, ROW, train_on="last")
    assert (last, sum(learned)) == (ids, sum(mask[len(whole) :]))


def test_pictures_of_what_was_cut_off_are_not_counted(engine, tmp_path):
    ids, _ = trained(engine, tmp_path, ROW, too_long="cut", limit=len(trained(engine, tmp_path, ROW)[0]) - 1)
    prompt = asked(engine, SECOND)
    assert ids[: len(prompt)] == prompt


def test_a_line_break_that_rows_write_behind_a_mark_is_there_once(engine, tmp_path):
    """<image>, a line break and the question, as LLaMA-Factory's and MiniCPM-V's rows have it; or no place at all."""
    url = part(1)["image_url"]["url"]
    answer = {"role": "assistant", "content": "noise"}
    forms = [
        {"messages": [{"role": "user", "content": text}, answer], "images": [url]}
        for text in ("<image>\nwhat?", "what?")
    ]
    found = [trained(engine, tmp_path, row) for row in forms]
    assert found[0] == found[1]
    if engine.seeing.sight.vision.marks.behind and not engine.template.writes_images:
        prompt = asked(engine, FIRST)
        assert found[0][0][: len(prompt)] == prompt
