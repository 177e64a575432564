"""Whose answers may foresee whose: those of one API key, and nobody's without one."""

import hashlib

from gangpao.engine.generate import Engine
from gangpao.engine.sample import SamplingParams
from gangpao.engine.scheduler import Scheduler
from gangpao.serve.http.access import client_of_key, is_key
from tests.engine.company import ask
from tests.engine.tiny import write_tiny

PARAMS = SamplingParams(temperature=0, max_tokens=20, logit_bias={258: -100.0})


def test_answers_are_pooled_by_key_and_not_by_address(tmp_path):
    engine = Engine.load(write_tiny(tmp_path / "m.gguf"), context=128, num_threads=1)
    keys = [client_of_key(hashlib.sha256(key).digest()) for key in (b"a", b"b")]
    assert all(map(is_key, keys))
    assert not any(map(is_key, ("", "127.0.0.1", "::1", "localhost", "fe80::1")))
    scheduler = Scheduler(engine, batch=2, pools=is_key)
    ids = [*b"what comes behind this?"]
    try:
        for client in (keys[0], "127.0.0.1", ""):
            ask(scheduler, ids, PARAMS, client=client).wait()
        ask(scheduler, ids, PARAMS, client=keys[1], speculate=False).wait()
    finally:
        scheduler.close()
    owners = {owner[0]: len(pool) for owner, pool in engine.speculation.pools._pools.items()}
    assert owners == {keys[0]: 21}  # 20 tokens and the end; who wants no drafts gives none
