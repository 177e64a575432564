"""Fixtures: a store and a catalog of our own with a hub on the loopback interface, and an index for pip."""

import json
import os

import pytest

from gangpao import catalog
from tests.pull.fakes import DATA, HF, SHA, Hub


@pytest.fixture
def hub():
    hub = Hub()
    yield hub
    hub.server.shutdown()
    hub.server.server_close()


@pytest.fixture
def world(tmp_path, monkeypatch, hub):
    """A store and a catalog of our own, and the hub at both endpoints. world(sources=..., ...) writes the model `tiny`."""
    for name in ("HF_TOKEN", "GANGPAO_SOURCES", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GANGPAO_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", hub.url)
    hub.files["/o/hf/resolve/main/t.gguf"] = DATA
    folder = tmp_path / "config" / "gangpao"
    folder.mkdir(parents=True)

    def write(sources=(HF,), **fields):
        values = {"title": "Tiny", "family": "llama", "file": "tiny.gguf", "bytes": len(DATA), "sha256": SHA, **fields}
        lines = [f"{key} = {json.dumps(value)}" for key, value in values.items() if value is not None]
        (folder / "catalog.toml").write_text(
            "[models.tiny]\n" + "\n".join(lines) + "\nsources = [" + ", ".join(sources) + "]\n"
        )
        catalog._load.cache_clear()
        return tmp_path / "home" / "models"

    write()
    return write


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that pip takes as its only index."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return folder
