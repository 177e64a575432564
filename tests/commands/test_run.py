"""`gangpao run` in process: what goes to stdout."""

import os
import re
import sys
from pathlib import Path

from gangpao import cost
from gangpao.commands import run
from gangpao.commands.terminal import screen
from gangpao.engine.generate import Engine
from gangpao.engine.sample import SamplingParams
from gangpao.text.thoughts import KNOWN
from tests.engine.fakes import fake_engine


def test_a_thought_does_not_go_to_stdout(capsys, monkeypatch):
    engine = fake_engine("<think>\nTwo and two.\n</think>\n\nFour.")
    engine.template.thoughts = KNOWN[0]
    for terminal in (False, True):
        monkeypatch.setattr(sys.stderr, "isatty", lambda answer=terminal: answer)
        generation = run.start(engine, "2 + 2?", SamplingParams())
        run._consume(generation, None, quiet=False)
        out, err = capsys.readouterr()
        assert out == "Four.\n"
        assert ("Two and two." in re.sub(r"\x1b\[\d+m", "", err)) is terminal
    monkeypatch.setattr(screen, "kernels_line", lambda: "")
    found = run.document(engine, generation, cost.Meter())
    assert (found["text"], found["reasoning"]) == ("Four.", "Two and two.")
    raw = run.start(engine, "2 + 2?", SamplingParams(max_tokens=9), raw=True)
    run._consume(raw, None, quiet=True)
    assert "reasoning" not in run.document(engine, raw, cost.Meter())


def test_the_way_from_a_prompt_to_its_tokens_is_short(tiny_path, capsys):
    """Python files of ours that a reader has to open: those whose functions run, once the model is there."""
    engine, meter, used = Engine.load(tiny_path), cost.Meter(), set()

    def watch(frame, event, argument):
        if event == "call" and frame.f_code.co_name != "<module>":
            used.add(frame.f_code.co_filename)

    sys.setprofile(watch)
    try:
        generation = run.start(engine, "hello", SamplingParams(max_tokens=4))
        run._answer(generation, engine, meter, as_json=False, logprobs=False)
    finally:
        sys.setprofile(None)
    ours = {Path(name) for name in used if f"{os.sep}gangpao{os.sep}" in name and f"{os.sep}tests{os.sep}" not in name}
    assert capsys.readouterr().out
    assert {"run.py", "generate.py", "transformer.py", "sample.py", "tokenizer.py"} <= {path.name for path in ours}
    assert len(ours) <= 23, sorted(ours)
