"""Images in requests (S6) and where they may come from (S7)."""

import base64
import contextlib
import io
import socket
import struct
import threading
import time

import pytest
from PIL import Image

from gangpao.images import look as images
from gangpao.machine import rss_mb
from gangpao.serve.answers import image_fetch


def made(kind, size=(12, 7), frames=1, **options):
    """An image file as Pillow writes it."""
    pictures = [Image.new("RGB", size, (i * 37 % 256, i * 101 % 256, 0)) for i in range(frames)]
    out = io.BytesIO()
    if frames > 1:
        options |= {"save_all": True, "append_images": pictures[1:]}
    pictures[0].save(out, kind, **options)
    return out.getvalue()


def url(data, kind="image/png"):
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}), ("JPEG", {}), ("JPEG", {"progressive": True, "exif": b"Exif\0\0" + b"x" * 300}), ("GIF", {}),
        ("WEBP", {}), ("WEBP", {"lossless": True}), ("WEBP", {"exif": b"Exif\0\0abc"}),
    ],
)  # fmt: skip
def test_each_format_is_known_by_its_own_bytes(kind, options):
    data = made(kind, **options)
    found = image_fetch.load(url(data, "image/anything"))
    assert (found.kind, found.width, found.height, found.frames) == (kind.lower(), 12, 7, 1)
    assert found.data == data


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_frames_are_counted(kind):
    assert images.look(made(kind, frames=5)).frames == 5
    with pytest.raises(ValueError, match="frames"):
        images.look(made(kind, frames=images.MAX_FRAMES + 1))


def png(width, height):
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I4sIIBBBBBI", 13, b"IHDR", width, height, 8, 2, 0, 0, 0, 0)
        + b"\0\0\0\0IDAT"
    )


def gif(frames, width=1, height=1):
    one = b"\x2c" + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02\x44\x01\x00"
    return b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0, 0, 0) + one * frames + b"\x3b"


@pytest.mark.parametrize(
    ("head", "name"),
    [(b"\0\0\0\x18ftypheic", "HEIC"), (b"\0\0\0\x1cftypavif", "AVIF"), (b"MM\0*", "TIFF"), (b"%PDF-1.7", "PDF")],
)
def test_formats_that_people_have_are_named(head, name):
    """Phones write HEIC: who sends one is to know what to do."""
    with pytest.raises(ValueError, match=f"it is {name}, which has to be converted"):
        images.look(head + bytes(40))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (png(30000, 30000), "pixels"), (png(2**31, 1), "pixels"), (png(0, 5), "pixels"), (gif(10_000), "frames"),
        (gif(1, 60000, 60000), "pixels"), (b"", "not a PNG"), (b"<svg xmlns='x'/>", "not a PNG"), (b"%PDF-1.7", "not a PNG"),
        (b"BM" + bytes(60), "not a PNG"), (b"II*\0" + bytes(60), "not a PNG"), (b"\xff\xd8\xff", "damaged"),
        (b"\xff\xd8\xff\xe0" + b"\x00\x02" * 2_000_000, "damaged"), (b"\x89PNG\r\n\x1a\n", "damaged"), (b"GIF89a", "damaged"),
        (b"RIFF\xff\xff\xff\xffWEBPVP8X" + b"\xff" * 40, "pixels"), (b"RIFF\0\0\0\0WEBP", "damaged"),
    ],
)  # fmt: skip
def test_hostile_files_are_refused_quickly(data, words):
    began = time.perf_counter()
    with pytest.raises(ValueError, match=words):
        image_fetch.load(url(data))
    assert time.perf_counter() - began < 4


def test_half_files_never_do_more_than_say_so():
    for data in (made("PNG"), made("JPEG"), made("GIF", frames=3), made("WEBP"), made("WEBP", frames=3)):
        for end in range(0, len(data), 3):
            with contextlib.suppress(ValueError):
                assert images.look(data[:end]).frames < 10


def test_too_many_bytes_are_refused_before_they_are_decoded():
    text = "data:image/png;base64," + "A" * 200_000_000
    before, began = rss_mb(), time.perf_counter()
    with pytest.raises(ValueError, match="larger than"):
        image_fetch.load(text)
    assert time.perf_counter() - began < 4
    assert rss_mb() < before + 64


@pytest.mark.parametrize(
    "head",
    ["data:;base64,", "data:application/octet-stream;base64,", "data:image/png;name=a.png;charset=utf-8;base64,"],
)
def test_data_urls_as_programs_write_them(head):
    """Line breaks of `base64` and of mail, parameters, and a kind that is not what the file is."""
    data = made("PNG")
    lines = base64.encodebytes(data).decode().replace("\n", "\r\n")
    assert image_fetch.load(head + lines).data == data
    assert images.from_base64(lines).data == data


@pytest.mark.parametrize(
    "bad", ["data:image/png;base64,@@@@", "data:image/png;base64,é", "data:image/png,abc", "x", ""]
)
def test_what_is_no_data_url_is_refused(bad):
    with pytest.raises(ValueError, match="image"):
        image_fetch.load(bad)


# --- fetching


@pytest.fixture
def canary():
    """A listener on loopback that must never be spoken to; hits is what it heard."""
    hits = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)
        stop = threading.Event()

        def listen():
            while not stop.is_set():
                try:
                    hits.append(server.accept()[1])
                except TimeoutError:
                    continue

        thread = threading.Thread(target=listen)
        thread.start()
        yield server.getsockname()[1], hits
        stop.set()
        thread.join()


SSRF = [
    "http://127.0.0.1:{p}/", "http://localhost:{p}/", "http://[::1]:{p}/", "http://0.0.0.0:{p}/", "http://0:{p}/",
    "http://2130706433:{p}/", "http://0x7f000001:{p}/", "http://0177.0.0.1:{p}/", "http://127.1:{p}/", "http://127.0.1:{p}/",
    "http://[::ffff:127.0.0.1]:{p}/", "http://[::ffff:7f00:1]:{p}/", "http://[0:0:0:0:0:0:0:1]:{p}/", "http://[::]:{p}/",
    "http://good.example@127.0.0.1:{p}/", "http://127.0.0.1:{p}@good.example/", "http://good.example:{p}/",
    "http://127.0.0.1:{p}\\@good.example/", "http://good.example\\@127.0.0.1:{p}/", "http://127.0.0.1:{p}#@good.example/",
    "http://127.0.0.1:{p}?@good.example/", "https://127.0.0.1:{p}/", "HTTP://127.0.0.1:{p}/", "http:127.0.0.1:{p}/",
    "http:///127.0.0.1:{p}/", "http://good.example.:{p}/", "http://127.0.0.1.:{p}/", "http://①②⑦.⓪.⓪.①:{p}/",
    "http://localhost.:{p}/", "http://LOCALHOST:{p}/", "file:///etc/passwd", "ftp://127.0.0.1:{p}/", "gopher://127.0.0.1:{p}/",
    "dict://127.0.0.1:{p}/", "//127.0.0.1:{p}/", "http://169.254.169.254/latest/meta-data/", "http://metadata/",
    "http://good.example%00@127.0.0.1:{p}/", "http://127.0.0.1:{p}\r\nHost: good.example/", "http://good.example%2f@127.0.0.1:{p}/",
    "http://[127.0.0.1]:{p}/", "http://good.example:99999/",
]  # fmt: skip


@pytest.mark.parametrize("address", SSRF)
def test_no_way_of_writing_it_reaches_this_machine(canary, address, monkeypatch):
    port, hits = canary
    # The allowed name, too, leads to loopback, as an attacker's name server would say.
    real = socket.getaddrinfo

    def lookup(host, *rest, **more):
        return real("127.0.0.1" if host in ("good.example", "good.example.") else host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    for hosts in (
        (),
        ("good.example",),
        ("good.example", "localhost", "127.0.0.1", "::1", "0.0.0.0", "2130706433", "127.1"),
    ):
        with pytest.raises(ValueError, match="image"):
            image_fetch.load(address.format(p=port), hosts)
    time.sleep(0.06)
    assert hits == []


@pytest.mark.parametrize(
    "head", [b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 2"]
)
def test_a_host_that_drips_is_not_waited_for(monkeypatch, head):
    monkeypatch.setattr(image_fetch, "TOTAL_S", 0.3)
    real = socket.create_connection
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def drip():
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                connection.sendall(head)
                for _ in range(200):
                    connection.sendall(b"x")
                    time.sleep(0.02)

        thread = threading.Thread(target=drip)
        thread.start()
        monkeypatch.setattr(image_fetch, "public_address", lambda host, port: "127.0.0.1")
        monkeypatch.setattr(socket, "create_connection", lambda _, timeout: real(listener.getsockname(), timeout))
        began = time.monotonic()
        with pytest.raises(ValueError, match="did not come within"):
            image_fetch.fetch("http://good.example/x", {"good.example"}, 10**6)
        assert time.monotonic() - began < 3
        thread.join()


def test_only_so_many_images_are_fetched_at_once(monkeypatch):
    monkeypatch.setattr(image_fetch, "public_address", lambda host, port: "127.0.0.1")
    monkeypatch.setattr(image_fetch, "_places", threading.BoundedSemaphore(1))

    def second(*rest):
        return image_fetch.fetch("http://good.example/y", {"good.example"}, 10)

    monkeypatch.setattr(image_fetch, "_get", second)
    with pytest.raises(ValueError, match="as many images as it may"):
        image_fetch.fetch("http://good.example/x", {"good.example"}, 10)
    monkeypatch.setattr(image_fetch, "_get", lambda *rest: b"x")
    assert image_fetch.fetch("http://good.example/x", {"good.example"}, 10) == b"x"  # the place was given back


def test_a_public_address_is_looked_up_once_and_pinned(monkeypatch):
    calls = []

    def lookup(host, port, **more):
        calls.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.216.34", port))]

    asked = []

    def connect(address, timeout):
        asked.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    monkeypatch.setattr(socket, "create_connection", connect)
    with pytest.raises(ValueError, match="could not be fetched"):
        image_fetch.load("https://good.example/a.png?x=1", ["Good.Example"])
    assert (calls, asked) == (["good.example"], [("93.184.216.34", 443)])
    lookup_private = [(socket.AF_INET, 1, 6, "", ("93.184.216.34", 1)), (socket.AF_INET, 1, 6, "", ("10.0.0.1", 1))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: lookup_private)
    with pytest.raises(ValueError, match="not a public one"):
        image_fetch.public_address("good.example", 80)


class OneAnswer:
    """A server for one request; what it heard is in `request`."""

    def __init__(self, answer):
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self.request = b""
        self._answer = answer
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self):
        connection, _ = self._server.accept()
        with connection:
            self.request = connection.recv(65536)
            connection.sendall(self._answer)

    def close(self):
        self._thread.join()
        self._server.close()


@pytest.mark.parametrize(
    ("head", "body", "words"),
    [
        ("200 OK", made("PNG"), None), ("302 Found\r\nLocation: http://127.0.0.1/", b"", "answered 302"),
        ("404 No", b"", "answered 404"), ("200 OK", b"x" * 2000, "larger than"),
    ],
)  # fmt: skip
def test_a_fetch_takes_one_answer_and_follows_nothing(monkeypatch, head, body, words):
    server = OneAnswer(f"HTTP/1.1 {head}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
    real = socket.create_connection
    monkeypatch.setattr(image_fetch, "public_address", lambda host, port: "192.0.2.1")
    monkeypatch.setattr(socket, "create_connection", lambda a, t: real(("127.0.0.1", server.port), t))
    try:
        if words is None:
            assert image_fetch.fetch("http://good.example/p?q", ["good.example"], 1000) == body
            assert server.request.startswith(b"GET /p?q HTTP/1.1\r\nHost: good.example\r\n")
        else:
            with pytest.raises(ValueError, match=words):
                image_fetch.fetch("http://good.example/", ["good.example"], 1000)
    finally:
        server.close()
