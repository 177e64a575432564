"""The model that gangpao brings itself: the file of the catalog, answering without a network what it was taught."""

import hashlib
import json
from pathlib import Path

import pytest

from gangpao import catalog, cli
from gangpao.engine.generate import Engine
from gangpao.engine.sample import SamplingParams

NAME = "gangpao-nano"
TALKS = Path(__file__).resolve().parent.parent / "configs" / "nano-talks.jsonl"


def test_the_file_is_the_one_of_the_catalog():
    entry = catalog.entry(NAME)
    data = (catalog.BUNDLED / entry.file).read_bytes()
    assert (len(data), hashlib.sha256(data).hexdigest()) == (entry.bytes, entry.sha256)
    assert len(data) < 20_000_000
    assert catalog.load().defaults[-1] == NAME
    with Engine.load(catalog.BUNDLED / entry.file).gguf as gguf:
        assert gguf.get_int("minicpm.context_length", 0) == entry.context_length


@pytest.mark.usefixtures("nowhere")
def test_without_a_network_chat_and_run_answer_and_say_who_does(capsys):
    assert cli.main(["chat"]) == 0
    out, err = capsys.readouterr()
    assert "> What can you do?" in out
    assert "tell you the commands of gangpao" in out
    assert f"until then {NAME}, which gangpao brings itself." in err
    assert "nothing else it says is reliable" in err
    assert cli.main(["run", "你是谁？"]) == 0
    assert "由 gangpao 在两个处理器核上从零训练出来" in capsys.readouterr().out


def test_it_has_learned_its_talks():
    engine = Engine.load(catalog.BUNDLED / catalog.entry(NAME).file)
    params = SamplingParams(temperature=0, repetition_penalty=1.0, max_tokens=120)
    right = 0
    rows = [json.loads(line)["messages"] for line in TALKS.read_text(encoding="utf-8").splitlines()]
    for question, answer in rows:
        run = engine.generate(engine.prompt_with([question]), params)
        list(run)
        right += run.text.strip() == answer["content"]
    print(f"{right} of {len(rows)}")
    assert right / len(rows) > 0.9
