"""Torch files without unpickling: equal to torch.load for honest files, harmless and clear for the others (S2)."""

import io
import pickletools
import random
import zipfile

import pytest
import torch

from gangpao.model.torch_file import TorchFileError, load


def honest():
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    return {
        "a": base,
        "view": base[1:3, ::2],
        "turned": base.T,
        "half": torch.randn(3, 5).half(),
        "brain": torch.randn(7).bfloat16(),
        "whole": torch.tensor([[1, -2]], dtype=torch.int64),
        "flags": torch.tensor([True, False]),
        "scalar": torch.tensor(3.5, dtype=torch.float64),
        "empty": torch.empty(0, 4),
        "parameter": torch.nn.Parameter(torch.ones(2, 2)),
    }


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_honest_files_equal_what_was_saved(tmp_path, protocol):
    path = tmp_path / "x.bin"
    tensors = honest()
    torch.save(tensors, path, pickle_protocol=protocol)
    found = load(path)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor.detach()), name


def test_a_state_dict_and_a_nested_one(tmp_path):
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    torch.save(module.state_dict(), tmp_path / "a.bin")
    torch.save({"state_dict": module.state_dict(), "step": 3}, tmp_path / "b.bin")
    for name in ("a.bin", "b.bin"):
        found = load(tmp_path / name)
        assert all(torch.equal(found[k], v) for k, v in module.state_dict().items())


def archive(path, program, members=None):
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("archive/data.pkl", program)
        for name, data in (members or {}).items():
            z.writestr(f"archive/data/{name}", data)
    return path


def booby_traps(canary):
    """Programs that would write the canary if anything were called."""
    command = f"touch {canary}".encode()
    word = b"X" + len(command).to_bytes(4, "little") + command
    code = f"open({str(canary)!r}, 'w')".encode()
    script = b"X" + len(code).to_bytes(4, "little") + code
    return {
        "system": b"\x80\x02cos\nsystem\n" + word + b"\x85R.",
        "posix": b"\x80\x02cposix\nsystem\n" + word + b"\x85R.",
        "eval": b"\x80\x02cbuiltins\neval\n" + script + b"\x85R.",
        "exec through stack_global": b"\x80\x04\x8c\x08builtins\x8c\x04exec\x93" + script + b"\x85R.",
        "in a dictionary": b"\x80\x02}X\x01\x00\x00\x00acos\nsystem\n" + word + b"\x85Rs.",
        "inst": b"\x80\x02(" + word + b"ios\nsystem\n.",
        "obj": b"\x80\x02(cos\nsystem\n" + word + b"o.",
        "newobj": b"\x80\x02cos\nsystem\n" + word + b"\x85\x81.",
        "build": b"\x80\x02ccollections\nOrderedDict\n)R}X\x0a\x00\x00\x00__reduce__cos\nsystem\nsb.",
        "rebuild with a call": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(cos\nsystem\n" + word + b"\x85RK\x00))tR.",
        "torch.load itself": b"\x80\x02ctorch\nload\n" + word + b"\x85R.",
        "dotted name": b"\x80\x04\x8c\x05torch\x8c\x0eFloatStorage.x\x93)R.",
        "extension": b"\x80\x02\x82\x01.",
        "protocol 0": b"cos\nsystem\n(S'touch " + str(canary).encode() + b"'\ntR.",
    }


def test_booby_trapped_files_are_refused_and_run_nothing(tmp_path):
    canary = tmp_path / "canary"
    for name, program in booby_traps(canary).items():
        with pytest.raises(TorchFileError):
            load(archive(tmp_path / "x.bin", program))
        assert not canary.exists(), name


def test_the_traps_do_go_off_elsewhere(tmp_path):
    """They would prove nothing if they were broken; pickletools sees what Python would call."""
    for name, program in booby_traps(tmp_path / "canary").items():
        opcodes = {op.name for op, _, _ in pickletools.genops(program)}
        assert opcodes & {"REDUCE", "INST", "OBJ", "NEWOBJ", "BUILD", "EXT1"}, name


@pytest.mark.parametrize(
    ("program", "says"),
    [
        (b"", "damaged|no end"),
        (b"\x80\x02", "damaged|no end"),
        (b".", "damaged"),
        (b"\x80\x02t.", "damaged"),
        (b"\x80\x02h\x05.", "damaged"),
        (b"\x80\x02]." , "not a dictionary"),
        (b"\x80\x02}K\x01K\x02s.", "not a tensor"),
        (b"\x80\x02}X\x01\x00\x00\x00aK\x02s.", "'a' is not a tensor"),
    ],
)  # fmt: skip
def test_damaged_descriptions_are_said_to_be_so(program, says, tmp_path):
    with pytest.raises(TorchFileError, match=says):
        load(archive(tmp_path / "x.bin", program))


def test_files_of_another_kind(tmp_path):
    path = tmp_path / "x.bin"
    for data in (b"", b"nonsense", b"PK\x03\x04 cut off"):
        path.write_bytes(data)
        with pytest.raises(TorchFileError, match="not a torch file"):
            load(path)
    torch.save(honest(), path, _use_new_zipfile_serialization=False)
    with pytest.raises(TorchFileError, match=r"version 1\.6"):
        load(path)
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("readme", "no model")
    with pytest.raises(TorchFileError, match=r"no data\.pkl"):
        load(path)


def test_lies_about_storages(tmp_path):
    path = tmp_path / "x.bin"
    torch.save({"a": torch.ones(4, 4)}, path)
    with zipfile.ZipFile(path) as z:
        root = next(n for n in z.namelist() if n.endswith("data.pkl")).removesuffix("data.pkl")
        program = z.read(f"{root}data.pkl")
    with pytest.raises(TorchFileError, match="missing or not 64"):
        load(archive(path, program))
    with pytest.raises(TorchFileError, match="missing or not 64"):
        load(archive(path, program, {"0": b"short"}))
    stretched = program.replace(b"K\x04K\x04\x86", b"K\x04K\x7f\x86")
    assert stretched != program
    with pytest.raises(TorchFileError, match="reaches past"):
        load(archive(path, stretched, {"0": bytes(64)}))


def mutate(rng, data):
    raw = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        at = rng.randrange(len(raw))
        action = rng.randrange(4)
        if action == 0:
            raw[at] = rng.randrange(256)
        elif action == 1:
            raw[at] ^= 1 << rng.randrange(8)
        elif action == 2:
            del raw[at : at + rng.randrange(1, 9)]
        else:
            raw[at:at] = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 9)))
    return bytes(raw)


@pytest.mark.parametrize("count", [400, pytest.param(20_000, marks=pytest.mark.slow)])
def test_mutations_end_in_tensors_or_in_our_error(tmp_path, count):
    buffer = io.BytesIO()
    torch.save(honest(), buffer)
    with zipfile.ZipFile(buffer) as z:
        root = next(n for n in z.namelist() if n.endswith("data.pkl")).removesuffix("data.pkl")
        program = z.read(f"{root}data.pkl")
        members = {n.removeprefix(f"{root}data/"): z.read(n) for n in z.namelist() if "/data/" in n}
    rng, refused = random.Random(0), 0
    for _ in range(count):
        try:
            load(archive(tmp_path / "x.bin", mutate(rng, program), members))
        except TorchFileError:
            refused += 1
    assert refused > count / 2
