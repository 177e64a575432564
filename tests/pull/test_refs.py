"""Models by their address on a hub: what an address means, which file is taken, what it is called here, split files."""

import hashlib
import json
import shutil
import struct

import pytest

from gangpao import catalog
from gangpao.commands.list import listing
from gangpao.commands.model.find import file_state, usable
from gangpao.commands.model.sight import sight_of
from gangpao.progress import Silent
from gangpao.pull import PullError, pull_ref
from gangpao.pull.hubs import text_in
from gangpao.pull.refs import Ref, choose, groups, label, match, parse, sight_among, store_name
from gangpao.pull.staging import SourceError
from tests.engine.tiny import write_tiny
from tests.formats.clip import clip
from tests.pull.fakes import QUICK, visible

ARCHITECTURE = "general.architecture"
BOTH, HF, MS = ("huggingface", "modelscope"), ("huggingface",), ("modelscope",)


@pytest.mark.parametrize(
    ("text", "ref"),
    [
        ("o/r", Ref("o/r", BOTH)),
        ("o/r:Q8_0", Ref("o/r", BOTH, "Q8_0")),
        ("o/r:latest", Ref("o/r", BOTH)),
        ("hf.co/o/r:q4_k_m", Ref("o/r", HF, "q4_k_m")),
        ("HF.co/O/R", Ref("O/R", HF)),
        ("hf://o/r", Ref("o/r", HF)),
        ("https://huggingface.co/o/r", Ref("o/r", HF)),
        ("https://huggingface.co/o/r/", Ref("o/r", HF)),
        ("https://huggingface.co/o/r/tree/main", Ref("o/r", HF, revision="main")),
        (
            "https://huggingface.co/o/r/resolve/main/a/x-Q4_0.gguf?download=true",
            Ref("o/r", HF, "", "a/x-Q4_0.gguf", "main"),
        ),
        ("https://huggingface.co/o/r/blob/main/x.gguf", Ref("o/r", HF, "", "x.gguf", "main")),
        ("hf.co/o/r/x.gguf", Ref("o/r", HF, "", "x.gguf")),
        ("modelscope.cn/o/r:Q4_0", Ref("o/r", MS, "Q4_0")),
        ("https://www.modelscope.cn/models/o/r/files", Ref("o/r", MS)),
        ("smollm2-135m", None),
        ("folder/x.gguf", None),
        ("./o/r", None),
        ("../r", None),
        ("~/r", None),
        ("/a/b", None),
        ("a/b/c", None),
        ("a b/c", None),
    ],
)
def test_addresses(text, ref):
    assert parse(text) == ref


@pytest.mark.parametrize(
    "text",
    [
        "hf.co/o",
        "hf.co/o/r:",
        "hf.co/o/r:a b",
        "https://example.com/o/r",
        "hf.co/o/r/README.md",
        "hf.co/o/../r",
        "https://hf-mirror.com/o/r",
        "hf.co",
    ],
)
def test_half_an_address_is_an_error_that_shows_a_whole_one(text):
    with pytest.raises(ValueError, match=r"hf\.co|not a \.gguf file"):
        parse(text)


@pytest.mark.parametrize(
    ("file", "quant"),
    [
        ("Qwen3-0.6B-Q4_K_M.gguf", "Q4_K_M"), ("SmolLM2-135M-Instruct.Q4_1.gguf", "Q4_1"), ("m-q8_0.gguf", "Q8_0"),
        ("MiniCPM4-0.5B-QAT-Int4_gptq_aware_q4_0.gguf", "Q4_0"), ("a/b/X-UD-Q4_K_XL-00001-of-00002.gguf", "UD-Q4_K_XL"),
        ("ggml-model-fp16.gguf", "F16"), ("x-BF16.gguf", "BF16"), ("x-IQ3_XXS.gguf", "IQ3_XXS"), ("x-Q6_K-imat.gguf", "Q6_K"),
        ("x.TQ2_0.gguf", "TQ2_0"), ("model.gguf", ""), ("Qwen3-8B.gguf", ""), ("q-model.gguf", ""), ("gpt-oss-MXFP4.gguf", "MXFP4"),
    ],
)  # fmt: skip
def test_quantizations_are_read_off_names(file, quant):
    assert label(file) == quant


FILES = [
    "README.md", "m-Q8_0.gguf", "m-Q4_K_M.gguf", "m-Q4_0.gguf", "m-IQ2_M.gguf", "mmproj-m-F16.gguf", "imatrix-m.gguf",
    "big/m-F16-00001-of-00002.gguf", "big/m-F16-00002-of-00002.gguf", "lost/m-F32-00001-of-00002.gguf",
]  # fmt: skip


@pytest.mark.parametrize(
    ("ref", "files"),
    [
        (Ref("o/r", BOTH), ["m-Q4_K_M.gguf"]),
        (Ref("o/r", BOTH, "q8_0"), ["m-Q8_0.gguf"]),
        (Ref("o/r", BOTH, "fp16"), ["big/m-F16-00001-of-00002.gguf", "big/m-F16-00002-of-00002.gguf"]),
        (Ref("o/r", BOTH, "", "m-IQ2_M.gguf"), ["m-IQ2_M.gguf"]),
        (Ref("o/r", BOTH, "", "big/m-F16-00002-of-00002.gguf"), FILES[7:9]),
    ],
)
def test_the_preferred_or_the_asked_file_is_taken(ref, files):
    assert choose(ref, FILES) == files


def test_what_is_missing_or_open_is_said_with_what_there_is():
    with pytest.raises(SourceError, match=r"has no Q5_0; it has F16, IQ2_M, Q4_0, Q4_K_M, Q8_0"):
        choose(Ref("o/r", BOTH, "Q5_0"), FILES)
    with pytest.raises(SourceError, match=r"holds no \.gguf model; look for a repository whose name ends in -GGUF"):
        choose(Ref("o/r", BOTH), ["model.safetensors", "mmproj-x.gguf"])
    two = ["a-Q4_K_M.gguf", "b-Q4_K_M.gguf"]
    with pytest.raises(
        SourceError, match=r"2 models fit Q4_K_M; name the file: hf\.co/o/r/a-Q4_K_M\.gguf, hf\.co/o/r/b"
    ):
        choose(Ref("o/r", HF), two)
    assert choose(Ref("o/r", HF), ["only.gguf"]) == ["only.gguf"]
    with pytest.raises(SourceError, match="no quantization that we prefer; name one"):
        choose(Ref("o/r", HF), ["a.gguf", "b.gguf"])
    assert "lost/m-F32-00001-of-00002.gguf" not in groups(FILES)  # its second part is not there


def test_names_in_the_store_are_names_and_differ():
    assert (
        store_name("Qwen/Qwen3-0.6B-GGUF", "Qwen3-0.6B-Q8_0.gguf", ["Qwen3-0.6B-Q8_0.gguf"]) == "qwen--qwen3-0.6b--q8_0"
    )
    two = ["a-Q4_K_M.gguf", "b-Q4_K_M.gguf"]
    assert {store_name("o/r", file, two) for file in two} == {"o--r--a-q4_k_m", "o--r--b-q4_k_m"}
    long = [f"{'n' * 80}-{x}-Q4_K_M.gguf" for x in "ab"]
    names = {store_name(f"{'o' * 90}/{'r' * 90}{y}", file, long) for file in long for y in "cd"}
    assert len(names) == 4
    assert all(catalog.check_name(name) for name in names)
    assert store_name("O_o/R..r", "X.gguf", ["X.gguf"]) == "o_o--r-r--x"


def test_architecture_is_read_off_the_first_bytes(tmp_path):
    head = write_tiny(tmp_path / "t.gguf").read_bytes()[:400]
    assert text_in(head, ARCHITECTURE) == "llama"
    for cut in range(0, 400, 7):
        assert text_in(head[:cut], ARCHITECTURE) in ("", "llama")
    assert (
        text_in(b"GGUF" + struct.pack("<Q", 20) + b"general.architecture" + b"\x08\0\0\0" + b"\xff" * 20, ARCHITECTURE)
        == ""
    )


# --- through a hub


@pytest.fixture
def repo(world, hub, tmp_path):
    """o/r on the hub with a whole model (Q4_K_M by its name) and a split one (Q8_0); returns the folder of the files."""
    folder = tmp_path / "repo"
    (folder / "parts").mkdir(parents=True)
    write_tiny(folder / "Tiny-Q4_K_M.gguf")
    write_tiny(folder / "parts" / "Tiny-Q8_0.gguf", part_tensors=8)
    serve(hub, folder)
    return folder


def serve(hub, folder, change=None):
    rows, listed = [], []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name, body = path.relative_to(folder).as_posix(), path.read_bytes()
        digest = hashlib.sha256(body).hexdigest()
        rows.append(
            {
                "type": "file",
                "path": name,
                "oid": "0" * 40,
                "size": len(body),
                "lfs": {"oid": digest, "size": len(body)},
            }
        )
        listed.append({"Path": name, "Type": "blob", "Size": len(body), "Sha256": digest})
        hub.files[f"/o/r/resolve/main/{name}"] = body
        hub.files[f"/models/o/r/resolve/master/{name}"] = body
    hub.files["/api/models/o/r/tree/main?recursive=true"] = json.dumps(rows[:1]).encode()
    hub.headers["/api/models/o/r/tree/main?recursive=true"] = {
        "Link": '</api/models/o/r/tree/main?cursor=2>; rel="next"'
    }
    hub.files["/api/models/o/r/tree/main?cursor=2"] = json.dumps(rows[1:]).encode()
    hub.files["/api/v1/models/o/r/repo/files?Revision=master&Recursive=true"] = json.dumps(
        {"Data": {"Files": listed}}
    ).encode()


def test_an_address_becomes_an_installed_model(repo, hub):
    offers = []
    name, path = pull_ref(parse("hf.co/o/r"), agree=offers.append, limits=QUICK)
    assert path.read_bytes() == (repo / "Tiny-Q4_K_M.gguf").read_bytes()
    assert (name, path.name) == ("o--r--q4_k_m", "o--r--q4_k_m.gguf")
    (offer,) = offers
    assert (offer.architecture, offer.quantization, offer.bytes) == ("llama", "Q4_K_M", path.stat().st_size)
    record = catalog.read_record(name)
    assert record["source"] == {"kind": "huggingface", "repo": "o/r", "file": "Tiny-Q4_K_M.gguf", "revision": "main"}
    assert record["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert catalog.installed() == {name: path}
    row = next(r for r in listing() if r["name"] == name)
    assert (row["title"], row["quantization"], row["bytes"]) == ("o/r", "Q4_K_M", path.stat().st_size)
    assert match(parse("O/R:q4_k_m"), catalog.records()) == name
    assert match(parse("modelscope.cn/o/r"), catalog.records()) is None
    catalog.remove(name)
    assert catalog.installed() == {}


@pytest.mark.parametrize("text", ["hf.co/o/r", "modelscope.cn/o/r"])
def test_what_a_model_sees_with_comes_with_it(repo, hub, text):
    for kind in ("f16", "Q8_0"):
        clip(repo / f"mmproj-model-{kind}.gguf")
    serve(hub, repo)
    offers = []
    name, path = pull_ref(parse(text), agree=offers.append, limits=QUICK)
    eyes = catalog.installed()["o--r--mmproj-model-f16"]
    assert eyes.read_bytes() == (repo / "mmproj-model-f16.gguf").read_bytes()
    assert (offers[0].sight, offers[0].sight_bytes) == ("mmproj-model-f16.gguf", eyes.stat().st_size)
    assert sight_of(path) == eyes
    assert sight_of(path, given="none") is None
    # Other quantizations share it, and an address without one does not mean it.
    other, split = pull_ref(parse(f"{text}:Q8_0"), limits=QUICK)
    assert sight_of(split) == eyes
    assert match(parse(text), catalog.records()) == name
    assert match(parse(f"{text}:F16"), catalog.records()) is None
    assert sorted(usable()) == sorted([name, other])
    assert file_state(eyes) == "for pictures"
    # Somebody deletes it, and the same address brings it again.
    catalog.remove("o--r--mmproj-model-f16")
    assert sight_of(path) is None
    assert pull_ref(parse(text), limits=QUICK) == (name, path)
    assert sight_of(path) == eyes


def test_eyes_that_the_engine_does_not_run_are_left_where_they_are(repo, hub):
    clip(repo / "mmproj-model-f16.gguf", projector="gemma3")
    serve(hub, repo)
    offers = []
    name, path = pull_ref(parse("o/r"), agree=offers.append, limits=QUICK)
    assert list(catalog.installed()) == [name]
    assert offers[0].sight == "mmproj-model-f16.gguf (gemma3, which our engine does not run)"
    assert not offers[0].sight_bytes
    assert sight_of(path) is None


def test_a_model_whose_eyes_do_not_come_reads_text(repo, hub):
    clip(repo / "mmproj-model-f16.gguf")
    serve(hub, repo)
    bad = "/o/r/resolve/main/mmproj-model-f16.gguf"
    hub.files[bad] = hub.files[bad][:-32] + b"\1" * 32
    notes = []
    progress = Silent()
    progress.note = notes.append
    path = pull_ref(parse("hf.co/o/r"), limits=QUICK, progress=progress)[1]
    assert path.is_file()
    assert "reads text only until `gangpao pull hf.co/o/r` has brought what it sees with" in notes[-1]


def test_an_encoder_is_pulled_by_its_own_address(repo, hub):
    clip(repo / "mmproj-model-f16.gguf")
    serve(hub, repo)
    name, path = pull_ref(parse("hf.co/o/r/mmproj-model-f16.gguf"), limits=QUICK)
    assert name == "o--r--mmproj-model-f16"
    assert path.read_bytes() == (repo / "mmproj-model-f16.gguf").read_bytes()
    assert match(parse("hf.co/o/r/mmproj-model-f16.gguf"), catalog.records()) == name


def test_which_encoder_belongs_to_a_model():
    one = ["a-Q4_K_M.gguf", "sub/mmproj-a-f32.gguf", "sub/mmproj-a-Q8_0.gguf", "b-Q8_0.gguf"]
    assert sight_among("a-Q4_K_M.gguf", one) == "sub/mmproj-a-Q8_0.gguf"
    assert sight_among("b-Q8_0.gguf", one) == "sub/mmproj-a-Q8_0.gguf"  # the only one of the repository
    two = [*one, "mmproj-b-BF16.gguf"]
    assert sight_among("b-Q8_0.gguf", two) == "mmproj-b-BF16.gguf"
    assert sight_among("c-Q8_0.gguf", two) == ""


def test_a_split_model_comes_whole_from_either_hub(repo, hub):
    from gangpao.formats.gguf import GGUF

    for text in ("o/r:q8_0", "modelscope.cn/o/r:Q8_0"):
        name, path = pull_ref(parse(text), limits=QUICK)
        assert (name, path.name) == ("o--r--q8_0", "o--r--q8_0-00001-of-00003.gguf")
        with GGUF.open(path) as model, GGUF.open(repo / "Tiny-Q4_K_M.gguf") as whole:
            assert len(model.paths) == 3
            assert all((model.raw(n) == whole.raw(n)).all() for n in whole.tensors)
        assert catalog.bytes_of(path) == sum(p.stat().st_size for p in (repo / "parts").iterdir())
        hub.log.clear()
        assert pull_ref(parse(text), limits=QUICK) == (name, path)  # present: the hub is asked for its list only
        assert not any(path.endswith(".gguf") and "bytes=0-65535" not in str(h) for _, path, h in hub.log)
        catalog.remove(name)


def test_a_part_that_is_not_as_announced_shows_nothing(repo, hub, tmp_path):
    bad = "/o/r/resolve/main/parts/Tiny-Q8_0-00002-of-00003.gguf"
    hub.files[bad] = hub.files[bad][::-1]
    with pytest.raises(PullError, match="is not the file it should be"):
        pull_ref(parse("hf.co/o/r:Q8_0"), limits=QUICK)
    assert visible(tmp_path / "home" / "models") == []


def test_the_second_hub_is_asked_where_the_first_has_it_not(repo, hub):
    del hub.files["/api/models/o/r/tree/main?recursive=true"]
    name, _ = pull_ref(parse("o/r"), limits=QUICK)
    assert catalog.read_record(name)["source"]["kind"] == "modelscope"
    with pytest.raises(PullError, match=r"hf\.co/o/r: could not be had.*404.*installed here: o--r--q4_k_m"):
        pull_ref(parse("hf.co/o/r"), limits=QUICK)


def test_a_list_that_goes_on_elsewhere_is_refused(repo, hub):
    hub.headers["/api/models/o/r/tree/main?recursive=true"] = {"Link": '<https://example.com/x>; rel="next"'}
    with pytest.raises(PullError, match="goes on at another host"):
        pull_ref(parse("hf.co/o/r"), limits=QUICK)


@pytest.mark.parametrize("name", ["GANGPAO_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_asks_nothing(repo, hub, name, monkeypatch):
    monkeypatch.setenv(name, "1")
    from gangpao.pull import pull

    for call in (lambda: pull_ref(parse("o/r"), limits=QUICK), lambda: pull("tiny", limits=QUICK)):
        with pytest.raises(PullError, match=r"GANGPAO_OFFLINE or HF_HUB_OFFLINE is set"):
            call()
    assert hub.log == []
    monkeypatch.setenv(name, "0")
    shutil.rmtree(catalog.models_dir(), ignore_errors=True)
    assert pull_ref(parse("o/r"), limits=QUICK)[1].is_file()


def test_a_source_is_asked_whether_it_answers(world, hub, monkeypatch):
    from gangpao.pull import can_be_had

    assert can_be_had("tiny")
    hub.rule = lambda request: {"status": 404}
    assert not can_be_had("tiny")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert not can_be_had("tiny")
    monkeypatch.setenv("GANGPAO_SOURCES", "modelscope")
    assert not can_be_had("tiny")
