"""`gangpao run` in process: what goes to stdout."""

import re
import sys

from gangpao import cost
from gangpao.commands import run
from gangpao.commands.terminal import screen
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
