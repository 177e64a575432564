#!/bin/sh
# torch 2.13.0 (CPU): the number of threads that a Python thread sets for itself is lost at its first operation, if another thread
# sets a number in between, even the one that it has already.
#
# Expected: torch.set_num_threads is a matter of the calling thread (OpenMP's number of threads is), so a worker that sets 1 has 1.
# Seen: the number is also kept in one place for the whole process, and a thread that has not computed yet takes it from there at its
# first operation, or at its first torch.get_num_threads, over what it has set for itself. A thread that asks once before it sets keeps
# its own. Who gives workers one thread each and the main thread several gets several in all, without a word.
#
# What gangpao does about it: gangpao/train/step/lanes.py asks before it sets; tests/train/step/test_lanes.py.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip --disable-pip-version-check -q install torch==2.13.0
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import threading

import torch

begun, go_on, seen = threading.Event(), threading.Event(), {}


def worker(ask_first):
    if ask_first:
        torch.get_num_threads()
    torch.set_num_threads(1)
    begun.set()
    go_on.wait()
    seen[ask_first] = torch.get_num_threads()


torch.set_num_threads(2)
for ask_first in (False, True):
    begun.clear()
    go_on.clear()
    thread = threading.Thread(target=worker, args=(ask_first,))
    thread.start()
    begun.wait()
    torch.set_num_threads(2)
    go_on.set()
    thread.join()
print(f"torch {torch.__version__}: a worker that set 1 has {seen[False]}; one that asked before it set 1 has {seen[True]}")
raise SystemExit(0 if seen == {False: 2, True: 1} else "this has changed")
PYTHON
