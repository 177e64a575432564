"""Tuning with pictures, end to end: a model that sees is put together, learns, goes on, and comes out as others load it."""

import base64
import io
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from gangpao.train.progress import read_metrics
from gangpao.tune import output
from gangpao.tune.base.load import load_base
from gangpao.tune.config import typed_config
from gangpao.tune.data.config import TuneData
from gangpao.tune.data.prepare import prepare
from gangpao.tune.pictures import load as sight
from gangpao.tune.pictures.table import PictureTable, in_batch
from gangpao.tune.run import run_config

COLOURS = {"red": (220, 30, 30), "blue": (30, 30, 220), "green": (30, 180, 30), "white": (250, 250, 250)}
NEW = (
    "new.resolution=16", "new.patch_size=8", "new.layers=1", "new.hidden_size=32", "new.heads=1",
    "new.intermediate_size=64", "new.shape.vocab_size=320", "new.shape.hidden_size=32", "new.shape.intermediate_size=64",
    "new.shape.num_hidden_layers=2", "new.shape.num_attention_heads=1", "new.shape.num_key_value_heads=1",
)  # fmt: skip


def picture(colour, seed):
    noise = np.random.default_rng(seed).integers(-20, 21, (16, 16, 3))
    out = io.BytesIO()
    Image.fromarray(np.clip(np.array(COLOURS[colour]) + noise, 0, 255).astype(np.uint8)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """The same task in all three forms: a plain picture, and its colour."""
    folder = tmp_path_factory.mktemp("rows")
    lines = []
    for i in range(48):
        colour = list(COLOURS)[i % 4]
        data = picture(colour, i)
        (folder / f"{i}.png").write_bytes(data)
        answer = {"role": "assistant", "content": colour}
        url = "data:image/png;base64," + base64.b64encode(data).decode()
        parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "colour?"}]
        lines.append((
            {"messages": [{"role": "user", "content": "<image>colour?"}, answer], "images": [f"{i}.png"]},
            {"messages": [{"role": "user", "content": "<image_00>colour?"}, answer], "image": {"<image_00>": f"{i}.png"}},
            {"messages": [{"role": "user", "content": parts}, answer]},
        )[i % 3])  # fmt: skip
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def config_of(rows, *more):
    said = (
        f"data.files={json.dumps([str(rows)])}", "data.heldout=4", "seq_len=64", "batch_tokens=256", "micro_batch_size=4",
        "save.every_steps=4", "evaluation.every_steps=1000", "threads=1", 'precision="fp32"', 'method.kind="full"',
        "optimizer.lr=0.01", "vision.encoder_rate=1.0",
    )  # fmt: skip
    return typed_config((*said, *more))


ALL = 'vision.train=["merger","text","encoder"]'


@pytest.fixture(scope="module")
def trained(rows, tmp_path_factory):
    """A run from nothing that has learned to see."""
    out = tmp_path_factory.mktemp("run") / "run"
    run_config(config_of(rows, *NEW, ALL, "steps=70"), rows, out)
    return out


def losses(out):
    return [line["loss"] for line in read_metrics(out) if "loss" in line]


def weights_of(folder):
    tower, language = sight.load(folder)
    named = {f"vision.{n}": p for n, p in tower.named_parameters()}
    return named | dict(language.named_parameters())


def test_it_sees_and_transformers_says_the_same(trained):
    transformers = pytest.importorskip("transformers", minversion="5.0")
    assert losses(trained)[-1] < 0.05
    processor = transformers.AutoProcessor.from_pretrained(trained / "export", use_fast=False, backend="pil")
    model = transformers.LlavaForConditionalGeneration.from_pretrained(trained / "export", dtype=torch.float32)
    for number, colour in enumerate(COLOURS):
        shown = Image.open(io.BytesIO(picture(colour, 900 + number)))  # never trained on
        asked = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "colour?"}]}]
        prompt = processor.apply_chat_template(asked, add_generation_prompt=True)
        inputs = processor(images=shown, text=prompt, return_tensors="pt")
        with torch.no_grad():
            out = model.generate(**inputs, max_new_tokens=8, do_sample=False)
        said = processor.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        assert said.strip() == colour


def test_our_logits_are_those_of_transformers(trained):
    transformers = pytest.importorskip("transformers", minversion="5.0")
    base = load_base(trained / "export", dtype=torch.float32)
    table = PictureTable(base.tower.vision, base.tokenizer.vocab_size)
    table.add(picture("red", 5), trained)
    (rows,) = (part for part in table.layout(0, 0) if not isinstance(part, str))
    text = base.tokenizer.encode("colour?")
    ids = np.array([*rows, *text])
    from gangpao.tune.sight.model import SeeingModel

    ours = SeeingModel(base.model, base.tower, table)
    with torch.no_grad():
        mine = ours.logits(ours(torch.from_numpy(ids)[None]).hidden)[0]
    model = transformers.LlavaForConditionalGeneration.from_pretrained(trained / "export", dtype=torch.float32)
    filler = base.tokenizer.id_of("<image>")
    theirs_ids = torch.tensor([[filler] * len(rows) + text])
    piece = table.pieces(0).pieces[0]
    pixels = torch.from_numpy(piece.values).view(2, 2, 3, 8, 8).permute(2, 0, 3, 1, 4).reshape(1, 3, 16, 16)
    with torch.no_grad():
        theirs = model(input_ids=theirs_ids, pixel_values=pixels).logits[0]
    assert torch.allclose(mine, theirs, atol=1e-4)


@pytest.mark.parametrize("more", [(ALL,), ('vision.train=["merger"]',), ('method.kind="lora"', "method.rank=4")])
def test_a_stopped_run_goes_on_to_the_same_bits(trained, rows, tmp_path, more):
    base = trained / "export"
    config = config_of(rows, f"model={json.dumps(str(base))}", "steps=7", *more)
    run_config(config, base, tmp_path / "whole")

    class Stop(Exception):
        pass

    def watch(line):
        if line.get("step") == 6 and "loss" in line:
            raise Stop

    with pytest.raises(Stop):
        run_config(config, base, tmp_path / "parts", watch=watch)
    assert run_config(config, base, tmp_path / "parts").begun == 4
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    one, other = (weights_of(tmp_path / name / "export") for name in ("whole", "parts"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    before = weights_of(base)
    moved = {name for name in one if not torch.equal(one[name], before[name])}
    if more == ('vision.train=["merger"]',):
        assert moved == {name for name in one if name.startswith("vision.merger.")}
        assert (tmp_path / "whole" / "features" / "features.bin").is_file()
    elif "method.rank=4" in more:
        assert (tmp_path / "whole" / output.ADAPTER).is_dir()
        assert any("vision.merger" in name for name in moved)
        assert not any("vision.encoder" in name for name in moved)
        assert all("_proj" in name or "vision.merger" in name for name in moved)
    else:
        assert any("vision.encoder" in name for name in moved)


def test_kept_features_are_the_encoder(trained, rows, tmp_path):
    base = trained / "export"
    config = config_of(rows, f"model={json.dumps(str(base))}", "steps=3", 'vision.train=["merger"]')
    run_config(config, base, tmp_path / "kept")
    run_config(
        config.model_copy(update={"vision": config.vision.model_copy(update={"features": False})}),
        base,
        tmp_path / "anew",
    )
    assert losses(tmp_path / "kept") == pytest.approx(losses(tmp_path / "anew"), rel=2e-3)
    record = json.loads((tmp_path / "kept" / "features" / "features.json").read_text())
    assert record["done"] == 48
    # begun again with half of them there, it ends with the same bytes
    whole = (tmp_path / "kept" / "features" / "features.bin").read_bytes()
    (tmp_path / "kept" / "features" / "features.json").write_text(json.dumps(record | {"done": 20}))
    shutil.rmtree(tmp_path / "kept" / "export")
    run_config(config, base, tmp_path / "kept")
    assert (tmp_path / "kept" / "features" / "features.bin").read_bytes() == whole


def _prepared(base, path):
    table = PictureTable(base.tower.vision, base.tokenizer.vocab_size)
    data = TuneData(files=(str(path),), heldout=0)
    return table, prepare(data, base.tokenizer, base.chat_template, 64, pictures=table)


def test_all_forms_are_the_same_ids_and_pictures_are_never_learned(trained, rows, tmp_path):
    base = load_base(trained / "export", dtype=torch.float32)
    table, prepared = _prepared(base, rows)
    assert len(table.entries) == 48
    assert table.rows == 48 * 4
    batch = prepared.train().take(8)
    seen = batch.ids >= base.tokenizer.vocab_size
    assert seen.any()
    assert not (batch.labels >= base.tokenizer.vocab_size).any()
    places, numbers, _which = in_batch(batch.ids.ravel(), table)
    assert len(places) == seen.sum() == 4 * len(numbers)
    text = base.tokenizer.decode([int(i) for i in batch.ids[0] if i < base.tokenizer.vocab_size], keep_special=True)
    assert "<|im_start|>user\ncolour?<|im_end|>" in text


@pytest.mark.parametrize(
    ("name", "data", "why"),
    [
        ("none.png", None, "none.png: there is no such picture"),
        ("text.png", b"no picture", "text.png: the image is not a PNG"),
        ("cut.png", picture("red", 1)[:90], "cut.png: "),
        ("https://example.com/a.png", None, "not fetched"),
    ],
)
def test_a_bad_picture_is_said_with_its_line(trained, rows, tmp_path, name, data, why):
    base = load_base(trained / "export", dtype=torch.float32)
    path = tmp_path / "rows.jsonl"
    lines = rows.read_text().splitlines()[2:3]  # a data: URL, which needs no file
    answer = {"role": "assistant", "content": "red"}
    lines.append(json.dumps({"messages": [{"role": "user", "content": "<image>?"}, answer], "images": [name]}))
    path.write_text("\n".join(lines) + "\n")
    if data is not None:
        (tmp_path / name).write_bytes(data)
    _, prepared = _prepared(base, path)
    (named,) = prepared.report.named
    assert named.where == f"{path} line 2"
    assert named.reason == "picture"
    assert why in named.detail


def test_a_model_that_does_not_see_says_so(trained, rows):
    base = load_base(trained / "export", dtype=torch.float32)
    with pytest.raises(ValueError, match="does not see"):
        prepare(TuneData(files=(str(rows),)), base.tokenizer, base.chat_template, 64)


def test_a_picture_that_changed_is_refused(trained, tmp_path):
    base = load_base(trained / "export", dtype=torch.float32)
    table = PictureTable(base.tower.vision, base.tokenizer.vocab_size)
    (tmp_path / "a.png").write_bytes(picture("red", 1))
    table.add("a.png", tmp_path)
    (tmp_path / "a.png").write_bytes(picture("red", 2))
    with pytest.raises(ValueError, match=r"a\.png: the picture has changed"):
        table.pieces(0)
