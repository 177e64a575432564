"""The line that long work shows."""

import io

from gangpao.progress import Progress


def test_what_the_line_begins_with_may_change() -> None:
    stream = io.StringIO()
    with Progress(stream, line_seconds=0) as progress:
        progress.start("texts", 1000)
        progress.describe("texts, 0.0012 yuan")
        progress.update(500)
    assert stream.getvalue().startswith("texts, 0.0012 yuan: 500 bytes of 1 kB (50 %)")
