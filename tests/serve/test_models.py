"""Several models: loaded when asked for, unloaded when idle or when another one needs the memory."""

import asyncio
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from gangpao import machine
from gangpao.commands import serve
from gangpao.engine import memory
from gangpao.engine.config import ModelConfig
from gangpao.formats import gguf as gguf_reader
from gangpao.formats.gguf import GGUF
from gangpao.serve import models as models_module
from gangpao.serve.app import running
from gangpao.serve.http.errors import ApiError
from gangpao.serve.models import Limits, Models
from gangpao.serve.server import Server, Settings
from tests.engine.speculate.heads import write_head


@pytest.fixture
def files(tiny_path, tmp_path):
    """Three models that differ in name only."""
    return {name: shutil.copy(tiny_path, tmp_path / f"{name}.gguf") for name in ("a", "b", "c")}


def need(path, batch=1):
    """What the models counts for one of them."""
    gguf = GGUF.open(path)
    config = ModelConfig.from_gguf(gguf)
    found = memory.estimate(gguf, config, config.max_position_embeddings, "f16")
    return found.total + (batch - 1) * found.cache


def run(models, *steps):
    """Run coroutines one after the other in one loop, then close the models."""

    async def all_of_them():
        try:
            return [await step for step in steps]
        finally:
            await models.close()

    return asyncio.run(all_of_them())


async def touch(models, name):
    async with models.use(name) as found:
        return found.name


def test_a_model_is_loaded_when_first_asked_for_and_once(files, monkeypatch):
    models = Models(files, Limits(batch=1, threads=1))
    opened = []
    real = models._open
    monkeypatch.setattr(models, "_open", lambda name, *rest: (opened.append(name), real(name, *rest))[1])

    async def many():
        return await asyncio.gather(*(touch(models, "b") for _ in range(5)), touch(models, None))

    (names,) = run(models, many())
    assert names == ["b"] * 5 + ["a"]
    assert sorted(opened) == ["a", "b"]


def test_serve_opens_a_file_once(files, monkeypatch):
    """What the command opened to look at is what is loaded; a file that was replaced meanwhile is opened again."""
    seen = []
    real = gguf_reader._Part.open
    monkeypatch.setattr(gguf_reader._Part, "open", lambda path: (seen.append(path.name), real(path))[1])
    paths, opened = serve.find_models([str(path) for path in files.values()])
    assert seen == ["a.gguf", "b.gguf", "c.gguf"]
    shutil.copy(paths["c"], paths["c"].with_name("new"))
    paths["c"].with_name("new").rename(paths["c"])
    models = Server(Settings(paths, batch=1, threads=1), opened).models
    run(models, touch(models, "b"), touch(models, None), touch(models, "c"), touch(models, "b"))
    assert seen == ["a.gguf", "b.gguf", "c.gguf", "c.gguf"]


def test_idle_models_make_room_the_longest_unused_first(files):
    size = need(files["a"])
    models = Models(files, Limits(batch=1, threads=1, memory=2 * size + 1000))

    async def story():
        await touch(models, "a")
        await touch(models, "b")
        await touch(models, "a")
        await touch(models, "c")
        first = set(models.loaded())
        async with models.use("a"), models.use("c"):
            with pytest.raises(ApiError) as caught:
                await touch(models, "b")
        return first, caught.value

    ((first, refused),) = run(models, story())
    assert first == {"a", "c"}
    assert (refused.status, refused.code) == (503, "out_of_memory")
    assert "in use: a (" in refused.message
    assert "are free" in refused.message
    assert int(refused.headers["retry-after"]) >= 1


def test_what_never_fits_says_so_and_is_not_to_be_tried_again(files):
    models = Models(files, Limits(batch=1, threads=1, memory=need(files["a"]) // 2))

    async def story():
        with pytest.raises(ApiError) as caught:
            await touch(models, "a")
        return caught.value

    (refused,) = run(models, story())
    assert (refused.status, refused.headers["x-should-retry"]) == (503, "false")
    assert "--memory" in refused.message


def test_the_pool_takes_what_the_budget_leaves(files):
    size = need(files["a"])
    cache = need(files["a"], 2) - size
    models = Models(files, Limits(batch=8, threads=1, memory=size + 3 * cache))

    async def story():
        async with models.use("a") as found:
            return found.need, found.scheduler.pool.nbytes

    ((total, pool),) = run(models, story())
    assert total <= size + 3 * cache
    assert pool >= 4 * cache * 0.9


def test_idle_models_leave_and_busy_ones_stay(files, monkeypatch):
    monkeypatch.setattr(models_module, "SWEEP_S", 0.01)
    models = Models(files, Limits(batch=1, threads=1, idle_unload_s=0.05))

    async def story():
        sweeper = asyncio.create_task(models.sweep())
        async with models.use("a"):
            await touch(models, "b")
            await asyncio.sleep(0.3)
            during = set(models.loaded())
        await asyncio.sleep(0.3)
        sweeper.cancel()
        return during, set(models.loaded())

    assert run(models, story()) == [({"a"}, set())]


def test_a_damaged_file_is_one_error_and_the_others_go_on(files, tmp_path, wire):
    bad = tmp_path / "secret-place" / "bad.gguf"
    bad.parent.mkdir()
    bad.write_bytes(b"GGUF" + b"\xff" * 100)
    with running(Server(Settings({"bad": bad, "a": files["a"]}, port=0, threads=1))) as url:
        assert wire.get(f"{url}/health").status_code == 503
        broken = wire.post(f"{url}/v1/completions", json={"prompt": "x"})
        assert (broken.status_code, broken.headers["x-should-retry"]) == (500, "false")
        assert "secret-place" not in broken.text
        good = wire.post(f"{url}/v1/completions", json={"model": "a", "prompt": "x", "max_tokens": 2})
        assert good.status_code == 200
        assert wire.get(f"{url}/health").status_code == 200


def test_health_says_loading_and_requests_wait_for_it(files, wire, monkeypatch):
    gate = threading.Event()
    server = Server(Settings(files, port=0, threads=1))
    real = server.models._open

    def slow(*args):
        assert gate.wait(20)
        return real(*args)

    monkeypatch.setattr(server.models, "_open", slow)
    with running(server, ready=False) as url, ThreadPoolExecutor() as threads:
        health = wire.get(f"{url}/health")
        assert (health.status_code, health.json()["status"]) == (503, "loading")
        answer = threads.submit(wire.post, f"{url}/v1/completions", json={"prompt": "x", "max_tokens": 1})
        assert wire.get(f"{url}/v1/models").json()["data"][0]["meta"]["loaded"] is False
        gate.set()
        assert answer.result(20).status_code == 200
        assert wire.get(f"{url}/health").json()["models"] == ["a"]


def test_a_scheduler_that_died_is_replaced(files):
    models = Models(files, Limits(batch=1, threads=1))

    async def story():
        async with models.use("a") as found:
            first = found.scheduler
        await asyncio.to_thread(first.close)
        async with models.use("a") as found:
            return found.scheduler is not first, found.scheduler.alive

    assert run(models, story()) == [(True, True)]


def test_memory_free_now_counts_caches_that_are_not_full_yet(files, monkeypatch):
    models = Models(files, Limits(batch=4, threads=1))

    async def story():
        async with models.use("a") as found:
            monkeypatch.setattr(machine, "available_memory", lambda: found.unfilled + 1000)
            return models._free_bytes()

    assert run(models, story()) == [1000]


def test_a_draft_head_is_counted_with_what_it_keeps_of_all_positions(tiny_path, tmp_path):
    """And drafts for the model that it belongs to only."""
    files = {name: shutil.copy(tiny_path, tmp_path / f"{name}.gguf") for name in ("a", "b")}
    head = write_head(tmp_path / "head.gguf", tiny_path)

    async def used(models, name):
        async with models.use(name) as found:
            pool = found.scheduler.pool
            return found.need, pool.beside and pool.beside.native.nbytes, pool.pages, found.engine.speculation.draft

    models = Models(files, Limits(batch=3, threads=1), drafts={"a": head})
    (need_a, kept, pages, draft), (need_b, none, pages_b, no_draft) = run(models, used(models, "a"), used(models, "b"))
    assert (draft.name, no_draft, none) == ("head", None, None)
    assert pages == pages_b
    assert kept + draft.nbytes < need_a - need_b < kept + draft.nbytes + 10_000_000


def test_a_head_of_another_model_is_refused_before_anything_is_loaded(tiny_path, tmp_path):
    head = write_head(tmp_path / "head.gguf", tiny_path, target_layers=[0, 9])
    paths, opened = serve.find_models([str(tiny_path)])
    with pytest.raises(ValueError, match=r"head cannot draft .* layer 9, and this model has 2"):
        serve.find_drafts(paths, str(head), opened)
