"""The resampler against torch's own attention, written down once more from its definition; tables of positions by their values."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gangpao.formats.vision import Merger
from gangpao.formats.vision.positions import nearest, sines, sines_2d, windows
from gangpao.model.vision.merger import Resampler
from gangpao.model.vision.position import stretched

GRIDS = ((3, 5), (8, 8), (11, 2))


def by_definition(part: Resampler, x: Tensor, table: Tensor) -> Tensor:
    """x: hidden states of one set of patches; table: positions of its keys. Everything by torch's own modules."""
    width = part.query.shape[1]
    attention = nn.MultiheadAttention(width, part.attn.heads)
    products = (part.attn.q_proj, part.attn.k_proj, part.attn.v_proj)
    attention.load_state_dict(
        {
            "in_proj_weight": torch.cat([p.weight for p in products]), "in_proj_bias": torch.cat([p.bias for p in products]),
            "out_proj.weight": part.attn.out_proj.weight, "out_proj.bias": part.attn.out_proj.bias,
        }
    )  # fmt: skip
    x = x if part.kv_proj is None else F.linear(x, part.kv_proj.weight)
    x = F.layer_norm(x, (width,), part.ln_kv.weight, part.ln_kv.bias, 1e-6)
    q = F.layer_norm(part.query, (width,), part.ln_q.weight, part.ln_q.bias, 1e-6)
    if part.shape.query_table:
        assert part.pos_embed is not None
        q = q + part.pos_embed
    out = attention(q, x + table, x)[0]
    return F.layer_norm(out, (width,), part.ln_post.weight, part.ln_post.bias, 1e-6) @ part.proj.weight.T


def resampler(m: Merger) -> Resampler:
    part = Resampler(replace(m, head_dim=16, queries=16), 24, 64)
    generator = torch.Generator().manual_seed(3)
    for parameter in part.parameters():
        parameter.data.normal_(0.0, 0.3, generator=generator)
    if part.pos_embed is not None:
        part.pos_embed.data = torch.from_numpy(sines_2d(64, 4, 4).copy())
    return part


@pytest.mark.parametrize(
    "m",
    [
        Merger(key_table="stored", query_table=True),
        Merger(query_table=True),
        Merger(),
        Merger(key_table="computed_time"),
    ],
    ids=["1.0", "2.0", "2.6", "4.5"],
)
def test_the_resampler_is_its_definition(m: Merger) -> None:
    part = resampler(m)
    xs = [torch.randn(rows * columns, 24) for rows, columns in GRIDS]
    with torch.no_grad():
        found = part(torch.cat(xs), GRIDS)
        for x, grid, rows in zip(xs, GRIDS, found, strict=True):
            if m.key_table == "stored":
                assert part.pos_embed is not None
                picture = part.pos_embed.view(1, 4, 4, 64).permute(0, 3, 1, 2)
                table = F.interpolate(picture, size=grid, mode="bicubic", align_corners=False).flatten(2)[0].T
            else:
                table = torch.from_numpy(sines_2d(64, *grid).copy())
            torch.testing.assert_close(rows, by_definition(part, x, table), rtol=1e-4, atol=1e-5)


def test_frames_of_a_video_are_one_set_of_keys() -> None:
    """V 4.5: keys of a group's frames stand one after another, each with its place and its time; values have neither."""
    part = resampler(Merger(key_table="computed_time"))
    xs = [torch.randn(6, 24) for _ in range(3)]
    place = torch.from_numpy(sines_2d(64, 2, 3).copy())
    moment = [torch.from_numpy(sines(64, np.array([time], np.float32)))[0] for time in (4, 9)]
    with torch.no_grad():
        picture, video = part(torch.cat(xs), [(2, 3)] * 3, [[-1], [4, 9]])
        expected = by_definition(part, torch.cat(xs[1:]), torch.cat([place + moment[0], place + moment[1]]))
        torch.testing.assert_close(video, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(picture, by_definition(part, xs[0], place), rtol=1e-4, atol=1e-5)


def test_values_of_the_computed_table() -> None:
    """Of MiniCPM-V 2.0's own resampler.py at D = 2304, run in 2026 (numpy 2): channels, sums of rows, of a grid, of 8 x 8."""
    table = sines_2d(2304, 28, 37).reshape(28, 37, 2304)
    near = {0: 0.9092974, 1: 0.9220403, 575: 0.00020322, 576: -0.4161468, 1152: 0.8414710, 1728: 0.5403023}
    far = {0: -0.9917789, 1: -0.7652393, 1152: 0.9563760}
    for row, column, values, total in ((1, 2, near, 1243.4897), (27, 36, far, 845.8050)):
        for channel, value in values.items():
            assert table[row, column, channel] == pytest.approx(value, abs=2e-7)
        assert float(table[row, column].astype(np.float64).sum()) == pytest.approx(total, abs=1e-3)
    assert float(table.astype(np.float64).sum()) == pytest.approx(1001373.055, abs=0.5)
    assert float(sines_2d(2304, 8, 8).astype(np.float64).sum()) == pytest.approx(72256.276, abs=0.05)


@pytest.mark.parametrize(("rows", "columns"), [(27, 27), (32, 32), (39, 26), (11, 96), (5, 3), (1, 1)])
@pytest.mark.parametrize("a", [-0.5, -0.75])
def test_both_cubic_filters(rows: int, columns: int, a: float) -> None:
    """The stretched table against the cubic written down: with antialias a is -0.5 and the filter widens where it shrinks, without
    a is -0.75 and it never does."""
    rng = np.random.default_rng(5)
    table = rng.standard_normal((27, 27, 4)).astype(np.float32)

    def weights(size: int, grid: int) -> np.ndarray:  # type: ignore[type-arg]
        scale = size / grid
        wide = max(scale, 1.0) if a == -0.5 else 1.0
        out = np.zeros((grid, size))
        for i in range(grid):
            middle = (i + 0.5) * scale - 0.5
            for j in range(int(np.floor(middle - 2 * wide)) - 1, int(np.ceil(middle + 2 * wide)) + 2):
                x = abs(middle - j) / wide
                near, far = (a + 2) * x**3 - (a + 3) * x**2 + 1, a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
                w = near if x <= 1 else far if x < 2 else 0.0
                if a == -0.75:  # past the border the last entry stands again; with antialias it is left out
                    out[i, min(max(j, 0), size - 1)] += w
                elif 0 <= j < size:
                    out[i, j] += w
        return out / out.sum(axis=1, keepdims=True)

    expected = np.einsum("ia,jb,abd->ijd", weights(27, rows), weights(27, columns), table.astype(np.float64))
    how = "bicubic_antialias" if a == -0.5 else "bicubic"
    found = stretched(torch.from_numpy(table).view(729, 4), (27, 27), (rows, columns), how)
    np.testing.assert_allclose(found.numpy(), expected.reshape(-1, 4), atol=2e-5)


def test_nearest_places_are_those_of_the_official_code() -> None:
    """MiniCPM-V 4.6 compares float32 fractions with borders: the same for a table of 70 and every grid up to 400; the code of 2.6
    steps through the fractions and is off by one entry where a place is whole, at most."""
    borders = torch.arange(1 / 70, 1.0, 1 / 70)
    for grid in range(1, 400):
        ours = torch.from_numpy(nearest(70, grid))
        assert torch.equal(ours, torch.bucketize(torch.arange(grid) / grid, borders, right=True)), grid
        steps = torch.bucketize(torch.arange(0, 1 - 1e-6, 1 / grid), borders, right=True)
        assert int((ours - steps).abs().max()) <= 1
        differ = (ours != steps).nonzero().flatten()
        assert all(int(i) * 70 % grid == 0 for i in differ), grid


def test_windows_are_row_by_row() -> None:
    assert windows(2, 4).tolist() == [0, 1, 4, 5, 2, 3, 6, 7]
    with pytest.raises(ValueError, match="3 x 4"):
        windows(3, 4)


@pytest.mark.parametrize(
    ("changes", "said"), [({"head_dim": 48}, "no whole heads"), ({"queries": 15, "query_table": True}, "no square")]
)
def test_shapes_that_cannot_be_are_refused(changes: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Resampler(replace(Merger(head_dim=16), **changes), 24, 64)  # type: ignore[arg-type]
