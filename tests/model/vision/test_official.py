"""Each stage equal to transformers' classes on random weights, and folders that go both ways."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gangpao.formats.vision import VISION
from gangpao.images.canvas import Crop, MarkIds, canvas
from gangpao.images.slices import sizes
from gangpao.model.vision.load import load_encoder, load_vision, save_vision
from gangpao.model.vision.splice import VisionLanguage
from gangpao.model.vision.tower import VisionTower
from tests.model.vision.peers import VISION as SHAPE
from tests.model.vision.peers import llava, minicpm_v, randomized, saved
from tests.model.vision.pictures import Piece, piece, small

# Width, height of pictures; the worst aspects, powers of two, odd numbers, and what cameras and screens give.
SIZES = (
    (1, 1), (1, 2), (2, 1), (3, 7), (13, 13), (14, 14), (15, 29), (28, 28), (56, 56), (57, 55), (64, 48), (100, 100), (100, 30),
    (112, 224), (127, 255), (200, 200), (224, 224), (256, 256), (300, 200), (333, 517), (336, 336), (384, 384), (447, 447),
    (448, 448), (449, 448), (497, 500), (500, 500), (512, 300), (600, 400), (640, 360), (640, 480), (672, 448), (720, 1280),
    (800, 600), (900, 100), (1024, 768), (1080, 1920), (1344, 1344), (3000, 300), (4000, 300),
)  # fmt: skip


def close(ours: Tensor, theirs: Tensor, where: str = "") -> None:
    """Equal to 1e-4 of the largest number."""
    assert ours.shape == theirs.shape, where
    scale = float(theirs.abs().max())
    assert float((ours - theirs).abs().max()) <= 1e-4 * max(scale, 1.0), where


def packed(pieces: Sequence[Piece], patch: int) -> tuple[Tensor, Tensor]:
    """pixel_values and target_sizes as MiniCPM-V's processor packs them."""
    pixels = torch.cat([torch.from_numpy(one.values).view(-1, 3, patch, patch) for one in pieces])
    return pixels.permute(1, 2, 0, 3).reshape(3, patch, -1)[None], torch.tensor([one.grid for one in pieces])


def picture(one: Piece, patch: int) -> Tensor:
    """[3, height, width]."""
    rows, columns = one.grid
    values = torch.from_numpy(one.values).view(rows, columns, 3, patch, patch)
    return values.permute(2, 0, 3, 1, 4).reshape(3, rows * patch, columns * patch)


def grids(width: int, height: int, name: str) -> list[tuple[int, int]]:
    """Grid of a slice, or of the overview where there is none: overviews of large pictures are as those of small ones."""
    return list(sizes(width, height, VISION[name]).grids[-1:])


@pytest.mark.parametrize(
    ("version", "some"),
    [("4_6", SIZES[::8]), ("4_7", SIZES[3::12]), pytest.param("4_6", SIZES, marks=pytest.mark.slow, id="4_6-all")],
)
def test_minicpm_v_stage_by_stage(version: str, some: Sequence[tuple[int, int]], tmp_path: Path) -> None:
    """Embedding, every layer, window merger, merger, for 40 sizes; the encoder is small, its 70 x 70 table is not."""
    peer = minicpm_v(version, insert_layer_id=0)
    vision, tower, _ = load_vision(saved(peer, tmp_path / "peer"), language=False)
    assert vision.name == f"minicpm-v-{version.replace('_', '.')}"
    model = peer.model
    names = [model.vision_tower.embeddings, *model.vision_tower.encoder.layers]
    seen: list[Tensor] = []
    hooks = [
        part.register_forward_hook(lambda _m, _i, out: seen.append(out[0] if isinstance(out, tuple) else out))
        for part in names
    ]
    for width, height in some:
        pieces = [piece(*grid) for grid in grids(width, height, vision.name)]
        pixels, targets = packed(pieces, 14)
        seen.clear()
        with torch.no_grad():
            theirs = model.get_image_features(pixels, targets)
            states: list[Tensor] = []
            values = torch.cat([torch.from_numpy(one.values) for one in pieces])
            hidden, left = tower.encoder(values, [one.grid for one in pieces], states)
            rows = tower.merger(hidden, left)
        assert len(states) == len(seen) == 5
        merge_after = vision.encoder.merge_after
        assert merge_after == 1
        for i, (mine, other) in enumerate(zip(states, seen, strict=True)):
            if i != merge_after:  # ours is behind the window merger already, which the next layer then shows
                close(mine, other.flatten(0, -2), f"{width} x {height}, layer {i}")
        close(hidden, theirs.last_hidden_state[0], f"{width} x {height}, encoder")
        for mine, other in zip(rows, theirs.pooler_output, strict=True):
            close(mine, other, f"{width} x {height}, merger")
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize(
    "changes", [{"downsample_mode": "4x"}, {"merger_times": 2}, {"insert_layer_id": 3}], ids=["4x", "twice", "last"]
)
def test_minicpm_v_in_its_other_forms(changes: dict[str, Any], tmp_path: Path) -> None:
    peer = minicpm_v("4_6", **changes)
    vision, tower, _ = load_vision(saved(peer, tmp_path / "peer"), language=False)
    pieces = [piece(8, 16), piece(24, 8)]
    with torch.no_grad():
        theirs = peer.model.get_image_features(*packed(pieces, 14)).pooler_output
        for mine, other in zip(tower(pieces), theirs, strict=True):
            close(mine, other)
    assert vision.encoder.merge_skipped == ("downsample_mode" in changes)


@pytest.mark.parametrize("version", ["4_6", "4_7"])
def test_minicpm_v_goes_there_and_back(version: str, tmp_path: Path) -> None:
    """Logits of transformers' folder, and transformers' logits of ours."""
    peer = minicpm_v(version)
    vision, tower, language = load_vision(saved(peer, tmp_path / "peer"))
    assert language is not None
    both = VisionLanguage(tower, language).eval()
    pieces = [piece(4, 8), piece(8, 8)]
    ids = torch.tensor([[1, 5, 99, 99, 7, 99, 99, 99, 99, 8, 9]])
    pixels, targets = packed(pieces, 14)
    line = {"position_ids": torch.arange(11)[None, None].expand(3, 1, -1)} if version == "4_7" else {}
    save_vision(tmp_path / "ours", tower, language, about={"image_token_id": 99})
    again, report = type(peer).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    with torch.no_grad():
        mine = language.logits(both(ids, pieces, [(0, 2), (0, 5)]).hidden)
        for model in (peer, again.eval()):
            close(mine, model(input_ids=ids, pixel_values=pixels, target_sizes=targets, **line).logits)
    assert load_vision(tmp_path / "ours", language=False)[0] == vision


def test_minicpm_v_4_7_on_its_canvas(tmp_path: Path) -> None:
    """Logits of a sliced picture with positions of rows and columns, from pixels on."""
    marks = {
        f"{name}_id": i for i, name in enumerate(("image_start", "image_end", "slice_start", "slice_end", "newline"), 1)
    }
    peer = minicpm_v("4_7", **marks)
    _, tower, language = load_vision(saved(peer, tmp_path / "peer"))
    assert language is not None
    pieces = [piece(4, 8), piece(8, 4), piece(8, 4, seed=1)]
    ids = [50, 1, 99, 99, 2, 3, 99, 99, 4, 5, 3, 99, 99, 4, 51, 52]
    crops = [Crop(2, 1, 2), Crop(6, 2, 1), Crop(11, 2, 1)]
    positions = torch.from_numpy(canvas(ids, crops, MarkIds(1, 2, 3, 4, 5)))[:, None]
    pixels, targets = packed(pieces, 14)
    batch = torch.tensor([ids])
    with torch.no_grad():
        theirs = peer(
            input_ids=batch, pixel_values=pixels, target_sizes=targets, mm_token_type_ids=(batch == 99).int()
        ).logits
        both = VisionLanguage(tower, language)
        hidden = both(batch, pieces, [(0, crop.start) for crop in crops], positions_3BT=positions).hidden
        close(language.logits(hidden), theirs)


@pytest.mark.parametrize("encoder", ["clip", "siglip"])
def test_llava_goes_there_and_back(encoder: str, tmp_path: Path) -> None:
    peer = llava(encoder)
    vision, tower, language = load_vision(saved(peer, tmp_path / "peer"))
    assert language is not None
    both = VisionLanguage(tower, language)
    pieces = [piece(4, 4, patch=7, seed=i) for i in range(2)]
    ids = torch.tensor([[1, 5] + [99] * 16 + [7] + [99] * 16 + [8, 9], [3] + [99] * 16 + [7] * 20])
    three = [*pieces, piece(4, 4, patch=7, seed=9)]
    pixels = torch.stack([picture(one, 7) for one in three])
    save_vision(tmp_path / "ours", tower, language, about={"image_token_index": 99})
    again, report = type(peer).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    with torch.no_grad():
        mine = language.logits(both(ids, three, [(0, 2), (0, 19), (1, 1)]).hidden)
        for model in (peer, again.eval()):
            close(mine, model(input_ids=ids, pixel_values=pixels).logits)
    assert load_vision(tmp_path / "ours", language=False)[0] == vision


def test_siglip_as_an_encoder(tmp_path: Path) -> None:
    """Layer by layer; its table at another grid as its own code stretches it (a = -0.75)."""
    transformers = pytest.importorskip("transformers")
    config = transformers.SiglipVisionConfig(**SHAPE, image_size=28, patch_size=7)
    peer = randomized(transformers.SiglipVisionModel(config))
    shape, tensors = load_encoder(saved(peer, tmp_path / "peer"))
    row = small("llava")
    tower = VisionTower.build(replace(row, encoder=shape), 64)
    tower.load_state_dict(tensors, strict=False)
    for grid in ((4, 4), (4, 6), (9, 3), (2, 2), (1, 1)):
        one = piece(*grid, patch=7)
        with torch.no_grad():
            theirs = peer(picture(one, 7)[None], interpolate_pos_encoding=True, output_hidden_states=True)
            states: list[Tensor] = []
            hidden, _ = tower.encoder(torch.from_numpy(one.values), [grid], states)
        for mine, other in zip(states, theirs.hidden_states, strict=True):
            close(mine, other[0], str(grid))
        close(hidden, theirs.last_hidden_state[0], str(grid))


def test_siglip2_as_an_encoder(tmp_path: Path) -> None:
    """Its patches have the channels last, its table is stretched bilinearly; pieces of all sizes in one padded batch of theirs."""
    transformers = pytest.importorskip("transformers")
    config = transformers.Siglip2VisionConfig(**SHAPE, num_patches=256, patch_size=7)
    peer = randomized(transformers.Siglip2VisionModel(config))
    shape, tensors = load_encoder(saved(peer, tmp_path / "peer"))
    tower = VisionTower.build(replace(small("llava"), encoder=shape), 64)
    tower.load_state_dict(tensors, strict=False)
    pieces = [piece(*grid, patch=7) for grid in ((16, 16), (4, 9), (20, 3), (1, 1))]
    longest = max(len(one.values) for one in pieces)
    pixels = torch.zeros(len(pieces), longest, 147)
    mask = torch.zeros(len(pieces), longest, dtype=torch.long)
    for i, one in enumerate(pieces):
        values = torch.from_numpy(one.values).view(-1, 3, 7, 7).permute(0, 2, 3, 1).flatten(1)
        pixels[i, : len(values)], mask[i, : len(values)] = values, 1
    with torch.no_grad():
        theirs = peer(pixels, mask, torch.tensor([one.grid for one in pieces])).last_hidden_state
        for mine, other in zip(tower.encode(pieces), theirs, strict=True):
            close(mine, other[: len(mine)])


def test_a_pair_of_siglips_gives_its_encoder(tmp_path: Path) -> None:
    """A folder with a text model and a pooling head beside the encoder: they are left out."""
    transformers = pytest.importorskip("transformers")
    text = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 99,
    }
    config = transformers.SiglipConfig(
        text_config={**text, "bos_token_id": 1, "eos_token_id": 2},
        vision_config={**SHAPE, "image_size": 28, "patch_size": 7},
    )
    peer = randomized(transformers.SiglipModel(config))
    shape, tensors = load_encoder(saved(peer, tmp_path / "peer"))
    assert shape.layers == 4
    assert all(name.startswith("encoder.") for name in tensors)
