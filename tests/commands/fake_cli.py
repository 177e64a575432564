"""The real command line over the fake model: `python fake_cli.py chat ...`, for tests in a process of its own.

FAKE_REPLIES (JSON list) is what the model says turn by turn, without it the real engine is used; FAKE_DELAY seconds a
token; FAKE_TTY=1 makes stdin the
controlling terminal, so that Ctrl-C arrives as a signal.
"""

import fcntl
import json
import os
import sys
import termios
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent.parent))

from gangpao import cli
from gangpao.commands.model import loading
from gangpao.commands.terminal import screen
from gangpao.text.thoughts import KNOWN
from tests.engine.fakes import fake_engine

real_load_engine = loading.load_engine


def load_engine(model, *, options=loading.DEFAULT, yes=False, adapters=None, mmproj="none"):
    if "FAKE_REPLIES" in os.environ:
        engine = fake_engine(*json.loads(os.environ["FAKE_REPLIES"]), context=options.context or 512)
        engine.name = model or "fake"
        engine.template.thoughts = KNOWN[0]
    else:
        engine = real_load_engine(model, options=options, yes=yes, adapters=adapters, mmproj=mmproj)
    delay = float(os.environ.get("FAKE_DELAY", "0"))
    forward = engine.model.forward

    def slow(ids, cache, **kw):
        time.sleep(delay)
        return forward(ids, cache, **kw)

    engine.model.forward = slow
    return engine


if __name__ == "__main__":
    if os.environ.get("FAKE_TTY"):
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    loading.load_engine = load_engine
    if "FAKE_REPLIES" in os.environ:
        screen.kernels_line = lambda: "fake kernels"
    sys.exit(cli.main())
