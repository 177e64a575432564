"""JSON as it goes out: in one line for every client, and the same value when it is read."""

import json

import pytest

from gangpao.serve.http.stream import encoded, sse

SEPARATORS = "".join(map(chr, (0x0A, 0x0B, 0x0C, 0x0D, 0x1C, 0x1D, 0x1E, 0x85, 0x2028, 0x2029)))


def test_what_others_take_for_a_line_end_goes_out_as_an_escape() -> None:
    value = {"content": f"one{SEPARATORS}two \\u2028 山", SEPARATORS: 1}
    text = encoded(value).decode()
    assert len(text.splitlines()) == 1
    assert json.loads(text) == value
    assert "山" in text


@pytest.mark.parametrize("sign", SEPARATORS)
def test_an_event_is_two_lines_whatever_is_in_it(sign: str) -> None:
    assert sse({"text": sign}).decode().splitlines() == [
        f"data: {json.dumps({'text': sign}, separators=(',', ':'))}",
        "",
    ]
