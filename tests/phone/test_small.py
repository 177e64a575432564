"""run, chat, serve and bench where no compiled package but numpy is there: the same answers, errors that say what is missing."""

import json
from pathlib import Path

import pytest

from gangpao import optional
from tests.engine.tiny import write_tiny
from tests.phone.small import LEFT_OUT, Serving, command, names_asked_for, python

GREEDY = ("--json", "--max-tokens", "12", "--temperature", "0")
QUESTION = "Wie heißt das? 12345 words, don't  stop\n\nαβγ 中文 🙂 "


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


def test_what_is_left_out_is_what_android_is_not_asked_for() -> None:
    asked = {system: names_asked_for(system) for system in ("linux", "android")}
    assert asked["linux"] - asked["android"] == {"tokenizers", "pydantic", "llguidance", "pillow"}
    assert asked["android"] < asked["linux"]
    assert {optional.PACKAGES[name][0] for name in LEFT_OUT if name in optional.PACKAGES} - {"segno"} == (
        asked["linux"] - asked["android"]
    )


def test_run_answers_the_same(tiny: Path) -> None:
    args = ("run", "-m", str(tiny), *GREEDY, QUESTION)
    small, whole = (json.loads(command(*args, small=small)) for small in (True, False))
    assert small["text"] == whole["text"]
    assert small["prompt_tokens"] == whole["prompt_tokens"] > 10


def test_a_real_model_answers_the_same(model_path) -> None:
    path = str(model_path("smollm2-135m"))
    args = ("run", "-m", path, "--json", "--max-tokens", "8", "--temperature", "0", "--threads", "1", QUESTION)
    small, whole = (json.loads(command(*args, small=small)) for small in (True, False))
    assert (small["text"], small["prompt_tokens"]) == (whole["text"], whole["prompt_tokens"])


def test_chat_answers(tiny: Path) -> None:
    assert command("chat", "-m", str(tiny), "--max-tokens", "5", "--temperature", "0", stdin="hello\n") != ""


def test_bench_measures(tiny: Path) -> None:
    out = command("bench", str(tiny), "--prompt-tokens", "16", "--decode-tokens", "2", "--repeat", "1", "--share")
    assert json.loads(out.splitlines()[-1])["decode_tps"] > 0


def test_the_other_commands_of_a_device_start(tiny: Path) -> None:
    assert "tok/s" in command("doctor", "--threads", "1")
    assert "smollm2-135m" in command("list")
    assert command("show", str(tiny)) != ""


def test_serve_answers_and_says_what_is_missing(tiny: Path) -> None:
    messages = [{"role": "user", "content": "hello"}]
    asked = {"messages": messages, "max_tokens": 4, "temperature": 0}
    offered = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    with Serving(tiny) as server, Serving(tiny, small=False) as whole:
        for path, body in (
            ("/v1/chat/completions", asked),
            ("/v1/completions", {"prompt": "hello", "max_tokens": 4, "temperature": 0}),
            ("/v1/messages", asked),
            ("/api/chat", {"messages": messages, "stream": False, "options": {"num_predict": 4, "temperature": 0}}),
            ("/v1/responses", {"input": "hello", "max_output_tokens": 4, "temperature": 0}),
        ):
            status, found = server.post(path, body)
            assert status == 200, found
            assert _words(found) == _words(whole.post(path, body)[1])
        wrong = asked | {"temperature": "hot"}
        assert server.post("/v1/chat/completions", wrong) == whole.post("/v1/chat/completions", wrong)
        status, found = server.post("/v1/chat/completions", asked | {"response_format": {"type": "json_object"}})
        assert status == 501
        assert "an answer in a given form needs llguidance, which is not installed" in found["error"]["message"]
        status, _ = server.post("/v1/chat/completions", asked | {"tools": [offered], "tool_choice": "required"})
        assert status == 501
        status, found = server.post("/v1/chat/completions", asked | {"tools": [offered]})
        assert status == 200, found
        assert server.get("/openapi.json") == 501
        assert server.get("/") == server.get("/phone") == 200


def _words(answer: object) -> list[str]:
    """All texts of an answer that an engine made, wherever an API puts them."""
    if isinstance(answer, dict):
        found = [w for key in ("content", "text", "message", "output", "choices") for w in _words(answer.get(key))]
    elif isinstance(answer, list):
        found = [w for one in answer for w in _words(one)]
    else:
        found = [answer] if isinstance(answer, str) else []
    return found


MISSING = """
from gangpao.optional import MissingPackage
from gangpao.text import hf_folder, normalizers
from gangpao.images import slices
import numpy as np
for call in (
    lambda: normalizers.normalizer_of([{"type": "NFC"}]),
    lambda: slices.resized(np.zeros((4, 4, 3), np.uint8), 2, 2),
):
    try:
        call()
    except MissingPackage as error:
        print(error)
"""


def test_what_is_missing_is_named_with_what_to_install() -> None:
    assert python(MISSING).splitlines() == [
        "a tokenizer that normalizes texts needs tokenizers, which is not installed: pip install tokenizers",
        "a picture needs pillow, which is not installed: pip install pillow",
    ]


def test_termux_has_packages_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optional.sys, "platform", "android")
    assert optional.missing("PIL", "a picture").endswith("not installed: pkg install python-pillow")


def test_a_fault_inside_of_a_package_is_no_missing_package() -> None:
    with pytest.raises(ImportError, match="inner"), optional.needed("outer", "x"):
        raise ModuleNotFoundError("No module named 'inner'", name="inner")


def test_a_lab_command_says_what_it_needs(tmp_path: Path) -> None:
    code = "code = __import__('gangpao.cli').cli.main(['cost'])\nsys.exit(0 if code == 2 else 1)\n"
    assert python(code) == ""
