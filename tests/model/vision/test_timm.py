"""The encoders of 2024 equal timm's classes on random weights: SigLIP-400M of MiniCPM-V 1.0 and 2.0, EVA-02 of OmniLMM, each with
its last block left out, at grids that are not the table's."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from gangpao.formats.vision import VISION
from gangpao.model.vision.names import NAMES, to_ours
from gangpao.model.vision.tower import VisionTower
from tests.model.vision.peers import randomized
from tests.model.vision.pictures import piece

timm = pytest.importorskip("timm", exc_type=ImportError)  # it needs torchvision, too


@pytest.mark.parametrize(
    ("row", "model", "prefix"),
    [
        ("minicpm-v-2", "vit_so400m_patch14_siglip_384", "vpm."),
        ("omnilmm-12b", "eva02_enormous_patch14_clip_224", "model.vision_tower."),
    ],
)
def test_the_encoder_is_timms(row: str, model: str, prefix: str) -> None:
    vision = VISION[row]
    peer: Any = timm.create_model(
        model,
        pretrained=False,
        num_classes=0,
        dynamic_img_size=True,
        dynamic_img_pad=True,
        depth=3,
        embed_dim=64,
        num_heads=4,
    )
    if getattr(peer, "attn_pool", None) is not None:
        peer.attn_pool = torch.nn.Identity()
    peer.blocks = peer.blocks[:-1]
    randomized(peer)
    inner = peer.blocks[0].mlp.fc1.out_features
    shape = replace(vision.encoder, layers=2, hidden_size=64, heads=4, intermediate_size=inner)
    vision = replace(vision, encoder=shape, merger=replace(vision.merger, head_dim=16))
    tower = VisionTower.build(vision, 64)
    ours = dict(to_ours(NAMES[row], ((prefix + name, tensor) for name, tensor in peer.state_dict().items())))
    missing, left = tower.load_state_dict(ours, strict=False)
    assert all(name.startswith("merger.") for name in missing)
    assert left == []
    blocks: list[Tensor] = []
    hooks = [block.register_forward_hook(lambda _m, _i, out: blocks.append(out)) for block in peer.blocks]
    for grid in ((32, 32), vision.encoder.table, (39, 26), (11, 96), (45, 23), (8, 8), (1, 1)):
        one = piece(*grid)
        values = torch.from_numpy(one.values)
        picture = values.view(*grid, 3, 14, 14).permute(2, 0, 3, 1, 4).reshape(1, 3, grid[0] * 14, grid[1] * 14)
        blocks.clear()
        with torch.no_grad():
            theirs = peer.forward_features(picture)[0, shape.prefix_tokens :]
            states: list[Tensor] = []
            hidden, _ = tower.encoder(values, [grid], states)
        for mine, other in zip([*states[1:], hidden], [block[0] for block in blocks] + [theirs], strict=True):
            assert float((mine - other).abs().max()) <= 1e-4 * max(1.0, float(other.abs().max())), grid
    for hook in hooks:
        hook.remove()
