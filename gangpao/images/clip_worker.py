"""The process that decodes a video of a request: its bytes on stdin, chosen frames as PNG files on stdout, each behind its size.

Exit code 2: stdout says what is wrong with it. `gangpao.images.clips` starts it, and ends it when it takes too long.
"""

from __future__ import annotations

import contextlib
import resource
import sys
from io import BytesIO

from gangpao.images import clips, video

_MEMORY = 4 << 30  # of addresses: frames of 40 million pixels and what libraries map
_FORMATS = {"mp4": "mp4", "webm": "matroska"}


def main(kind: str) -> int:
    """Decode stdin."""
    with contextlib.suppress(ValueError, OSError):  # macOS refuses this limit
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    data = sys.stdin.buffer.read()
    out = sys.stdout.buffer
    try:
        frames = [clips.png(frame) for frame in clips.chosen(video.of_bytes(BytesIO(data), _FORMATS[kind]))]
    except (ValueError, MemoryError) as error:
        out.write(str(error or "the video takes more memory than it may").encode())
        return 2
    for one in frames:
        out.write(len(one).to_bytes(4, "little") + one)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
