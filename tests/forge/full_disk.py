"""A line on a small disk of its own that is filled before each stage: run as a program inside its own namespace of mounts."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from gangpao.forge.config import load_forge_config

_OWN = ["unshare", "--user", "--map-root-user", "--mount"]
_LEFT = (0, 12_000, 120_000)  # bytes
_CALL = [sys.executable, "-P", "-c", "import sys; from gangpao.cli import main; sys.exit(main())"]
_PATIENCE = 600  # seconds of a call; one that takes longer hangs


def can_mount():
    """Whether a user may have a disk of its own here."""
    if shutil.which("unshare") is None:
        return False
    done = subprocess.run([*_OWN, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, check=False)
    return done.returncode == 0


def drill(line, disk, kept):
    """Rows of stage, bytes left, exit code, what was said last: each stage with a full disk and, at the end, with room.

    The file that comes out is copied to `kept`, because the disk ends with the program."""
    here = Path(__file__).resolve().parent.parent.parent
    words = [*_OWN, sys.executable, "-m", "tests.forge.full_disk", str(line), str(disk), str(kept)]
    done = subprocess.run(
        words, cwd=here, env=os.environ | {"PYTHONPATH": ""}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def _main(line, disk, kept):
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100m", "tmpfs", str(disk)], check=True)
    told = []
    for stage in load_forge_config(line).stages():
        for left in _LEFT:
            _fill(disk / "ballast", left)
            told.append((stage, left, *_forged(line, disk, stage)))
            (disk / "ballast").unlink()
            if told[-1][2] == 0:
                break
        else:
            told.append((stage, shutil.disk_usage(disk).free, *_forged(line, disk, stage)))
    shutil.copyfile(disk / "run" / "export" / "small.gguf", kept)
    print(json.dumps(told))


def _forged(line, disk, stage):
    words = [*_CALL, "forge", str(line), "--out", str(disk / "run"), "--until", stage]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=_PATIENCE)
    return done.returncode, done.stderr if "Traceback" in done.stderr else done.stderr.strip().splitlines()[-1]


def _fill(ballast, left):
    with ballast.open("wb") as file:
        for _ in range(max(0, shutil.disk_usage(ballast.parent).free - left) // 4096):
            file.write(bytes(4096))


if __name__ == "__main__":
    _main(*map(Path, sys.argv[1:]))
