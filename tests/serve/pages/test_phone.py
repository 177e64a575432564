"""Models in pieces for a phone: llama.cpp joins them again, any range is what it says, and the notice is right."""

import itertools
import re
from pathlib import Path

import gguf
import httpx2
import numpy as np
import pytest

from gangpao.formats import gguf_split
from gangpao.formats.gguf import GGUF
from gangpao.serve.app import running
from gangpao.serve.pages import phone, routes
from gangpao.serve.server import Server, Settings
from tests.engine.tiny import write_tiny
from tests.llama_oracle import LlamaOracle


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "tiny.gguf")


def split_files(path: Path, limit: int, folder: Path) -> list[Path]:
    """The pieces of a model, written down."""
    folder.mkdir()
    with GGUF.open(path) as model:
        pieces = gguf_split.split(model, limit)
    for piece in pieces:
        data = b"".join(gguf_split.read(path, piece, 0, piece.size))
        assert len(data) == piece.size
        (folder / piece.name).write_bytes(data)
    return [folder / piece.name for piece in pieces]


def test_the_pieces_have_every_tensor_once_and_the_metadata_first(tiny: Path, tmp_path: Path) -> None:
    whole = gguf.GGUFReader(tiny)
    files = split_files(tiny, tiny.stat().st_size // 3, tmp_path / "pieces")
    assert len(files) > 2
    assert [re.fullmatch(r"tiny-(\d{5})-of-(\d{5})\.gguf", file.name)[1] for file in files] == [  # type: ignore[index]
        f"{n:05}" for n in range(1, len(files) + 1)
    ]
    readers = [gguf.GGUFReader(file) for file in files]
    found = [tensor for reader in readers for tensor in reader.tensors]
    assert sorted(t.name for t in found) == sorted(t.name for t in whole.tensors)
    for tensor in found:
        (twin,) = (t for t in whole.tensors if t.name == tensor.name)
        assert (tensor.tensor_type, list(tensor.shape)) == (twin.tensor_type, list(twin.shape))
        np.testing.assert_array_equal(tensor.data, twin.data)
    keys = [set(reader.fields) for reader in readers]
    split = {"split.no", "split.count", "split.tensors.count"}
    own = {"GGUF.version", "GGUF.tensor_count", "GGUF.kv_count"}
    assert keys[0] == set(whole.fields) | split
    assert all(k == split | own for k in keys[1:])
    for number, reader in enumerate(readers):
        values = [reader.fields[key].contents() for key in ("split.no", "split.count", "split.tensors.count")]
        assert values == [number, len(files), len(found)]


def test_no_piece_is_larger_than_the_limit_unless_a_tensor_is(tiny: Path) -> None:
    with GGUF.open(tiny) as model:
        largest = max(tensor.nbytes for tensor in model.tensors.values())
        for limit in (1, largest + 5000, 2 * largest, 10 * tiny.stat().st_size):
            pieces = gguf_split.split(model, limit)
            room = [piece.size for piece in pieces if piece.size > limit and len(piece.spans) > 1]
            assert room == [] or limit < model.metadata_end + largest


def test_any_range_is_that_part_of_the_whole(tiny: Path) -> None:
    with GGUF.open(tiny) as model:
        pieces = gguf_split.split(model, tiny.stat().st_size // 2)
    random = np.random.default_rng(0)
    for piece in pieces:
        whole = b"".join(gguf_split.read(tiny, piece, 0, piece.size))
        header = len(piece.header)
        edges = [0, 1, header - 1, header, header + 1, piece.size - 1, piece.size]
        for start, stop in [
            *itertools.pairwise(edges),
            *np.sort(random.integers(0, piece.size, (200, 2))).tolist(),
        ]:
            assert b"".join(gguf_split.read(tiny, piece, start, stop)) == whole[start:stop]


def test_llama_cpp_reads_the_pieces_as_it_reads_the_file(model_path, tmp_path: Path) -> None:
    path = model_path("smollm2-135m")
    files = split_files(path, 40_000_000, tmp_path / "pieces")
    assert [file.stat().st_size <= 40_000_000 for file in files] == [True] * len(files)
    assert len(files) == 3
    prompt = [1, 4093, 198, 1780, 314, 260]
    answers: list[dict[int, float]] = []
    for file in (path, files[0]):
        with LlamaOracle(file, n_ctx=64) as oracle:
            answers.append(oracle.next_logprobs(prompt, 200))
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None), ("", None), ("bytes=0-", (0, 100)), ("bytes=0-9", (0, 10)), ("bytes=90-200", (90, 100)),
        ("bytes=-5", (95, 100)), ("bytes=-500", (0, 100)), ("bytes=99-99", (99, 100)), ("bytes=5-3", None),
        ("bytes=0-1,4-5", None), ("items=0-5", None), ("bytes=-", None), ("bytes=a-b", None), (f"bytes={'9' * 40}-", None),
    ],
)  # fmt: skip
def test_range_headers(header: str | None, expected: tuple[int, int] | None) -> None:
    assert phone.byte_range(header, 100) == expected


@pytest.mark.parametrize("header", ["bytes=100-", "bytes=100-200", "bytes=-0"])
def test_a_range_outside_is_an_error(header: str) -> None:
    with pytest.raises(ValueError, match="outside of the 100 bytes"):
        phone.byte_range(header, 100)


def test_the_server_gives_models_in_ranges(tiny: Path) -> None:
    server = Server(Settings({"tiny": tiny, "none": tiny.with_name("gone.gguf")}, port=0))
    with running(server) as url, httpx2.Client(base_url=url) as http:
        (model,) = http.get("/phone/models").json()["models"]
        assert (model["name"], model["bytes"], model["architecture"]) == ("tiny", tiny.stat().st_size, "llama")
        (piece,) = model["pieces"]
        data, etag = tiny.read_bytes(), f'"{piece["etag"]}"'
        whole = http.get(piece["url"])
        assert (whole.status_code, whole.content, whole.headers["etag"]) == (200, data, etag)
        assert whole.headers["accept-ranges"] == "bytes"
        part = http.get(piece["url"], headers={"Range": "bytes=10-99", "If-Range": etag})
        assert (part.status_code, part.content) == (206, data[10:100])
        assert part.headers["content-range"] == f"bytes 10-99/{len(data)}"
        assert http.get(piece["url"], headers={"Range": "bytes=10-99", "If-Range": '"old"'}).content == data
        head = http.head(piece["url"], headers={"Range": "bytes=0-6"})
        assert (head.status_code, head.content, head.headers["content-length"]) == (206, b"", "7")
        assert http.get(piece["url"], headers={"If-None-Match": etag}).status_code == 304
        outside = http.get(piece["url"], headers={"Range": f"bytes={len(data)}-"})
        assert (outside.status_code, outside.headers["content-range"]) == (416, f"bytes */{len(data)}")
        for path in (
            "/phone/models/tiny/0",
            "/phone/models/tiny/2",
            "/phone/models/none/1",
            "/phone/models/..%2Ftiny/1",
        ):
            assert http.get(path).status_code == 404, path


def test_a_model_that_changes_has_another_etag(tiny: Path) -> None:
    before = phone.offer(tiny).etag(1)
    assert phone.offer(tiny).etag(1) == before
    with tiny.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x07")
    assert phone.offer(tiny).etag(1) != before


def test_what_is_no_model_is_left_out(tiny: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF" + bytes(100))
    assert [name for name, _ in phone.offers({"bad": bad, "tiny": tiny, "gone": tmp_path / "gone.gguf"})] == ["tiny"]


def test_the_notice_has_a_code_the_address_and_the_size(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(Settings({"tiny": tiny}))
    text = routes.phone_notice("https://192.0.2.7:8000/", server)
    assert "https://192.0.2.7:8000/phone\n" in text
    assert re.search(r"tiny: a download of 3\.\d+ MB, once", text)
    assert "plain http" not in text
    rows = [line for line in text.splitlines() if re.fullmatch(r"[█▀▄ ]+", line)]
    assert len({len(row) for row in rows}) == 1
    assert len(rows) >= 15
    assert "start with --tls" in routes.phone_notice("http://192.0.2.7:8000", server)
    monkeypatch.setattr(phone, "MAX_PIECE", 5000)
    assert " files, once" in routes.phone_notice("https://192.0.2.7:8000", server)
