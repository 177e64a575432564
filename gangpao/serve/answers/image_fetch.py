"""Fetch an image for a request, from hosts that the server's owner named and from nowhere else.

The address is looked up once, must be a public one, and is the one that is connected to: a name that answers differently the
second time gains nothing. TLS checks the certificate against the name. No redirects, no proxies, no cookies; size and time
are bounded. What it gives up: images behind a redirect.
"""

import contextlib
import http.client
import ipaddress
import re
import socket
import ssl
import threading
from collections.abc import Collection, Iterator
from urllib.parse import urlsplit

from gangpao.images import clips, look
from gangpao.images.look import Picture

TIMEOUT_S = 10.0  # for one read
TOTAL_S = 20.0
AT_ONCE = 8  # the threads that wait for other servers prepare prompts otherwise
_places = threading.BoundedSemaphore(AT_ONCE)


def load(url: str, hosts: Collection[str] = (), encoded: str = "", *, clip: bool = False) -> Picture:
    """The picture of a URL: data: always, https: and http: only from `hosts`; or of its bytes in base64 (`encoded`), where there is
    no URL. clip: a video. Raises ValueError saying what is wrong."""
    if not url:
        return look.from_base64(encoded)
    read = clips.read if clip else look.look
    if re.match(r"https?://", url[:10], re.IGNORECASE):
        return read(fetch(url, hosts, look.MAX_BYTES))
    return read(look.in_data_url(url))


def fetch(url: str, hosts: Collection[str], limit: int) -> bytes:
    """The body of a URL, `limit` bytes at most. Raises ValueError saying why not."""
    if len(url) > 4096 or not url.isascii() or any(c <= " " or c == "\\" for c in url):
        raise ValueError("the image's URL is not a plain https: URL")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError("the image's URL is not a plain https: URL") from None
    host = (parts.hostname or "").lower()
    if parts.scheme.lower() not in ("https", "http") or parts.username is not None or parts.password is not None:
        raise ValueError("the image's URL is not a plain https: URL")
    if host not in {h.lower() for h in hosts}:
        raise ValueError("this server does not fetch images from there: send it as a data: URL")
    tls = parts.scheme.lower() == "https"
    if port not in (None, 443 if tls else 80):
        raise ValueError("images are fetched from the usual ports only")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if not _places.acquire(blocking=False):
        raise ValueError("the server is fetching as many images as it may: try again, or send it as a data: URL")
    try:
        return _get(host, public_address(host, 443 if tls else 80), tls, path, limit)
    finally:
        _places.release()


def public_address(host: str, port: int) -> str:
    """The one address of a host to connect to. Raises ValueError unless all that it has are public."""
    try:
        found = [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    except OSError:
        raise ValueError("the image's host is not known") from None
    for text in found:
        address = ipaddress.ip_address(text.split("%")[0])
        mapped = getattr(address, "ipv4_mapped", None)
        if not address.is_global or address.is_multicast or (mapped is not None and not mapped.is_global):
            raise ValueError("the image's host is not a public one")
    return found[0]


def _get(host: str, address: str, tls: bool, path: str, limit: int) -> bytes:
    connection = http.client.HTTPConnection(host, timeout=TIMEOUT_S)
    late = threading.Event()
    try:
        raw = socket.create_connection((address, 443 if tls else 80), TIMEOUT_S)
        sock = _wrapped(raw, host) if tls else raw
        connection.sock = sock
        with _ended_after(TOTAL_S, sock, late):
            if isinstance(sock, ssl.SSLSocket):
                sock.do_handshake()
            connection.request("GET", path, headers={"Accept": "image/*", "User-Agent": "gangpao"})
            response = connection.getresponse()
            if response.status != 200:
                raise ValueError(f"the image's host answered {response.status}")
            data = response.read(limit + 1)
    except (OSError, http.client.HTTPException):
        if not late.is_set():
            raise ValueError("the image could not be fetched") from None
    finally:
        connection.close()
    if late.is_set():
        raise ValueError(f"the image did not come within {TOTAL_S:.0f} s")
    if len(data) > limit:
        raise ValueError(f"the image is larger than the {limit:,} bytes that are allowed")
    return data


def _wrapped(raw: socket.socket, host: str) -> ssl.SSLSocket:
    context = ssl.create_default_context()
    return context.wrap_socket(raw, server_hostname=host, do_handshake_on_connect=False)


@contextlib.contextmanager
def _ended_after(seconds: float, sock: socket.socket, late: threading.Event) -> Iterator[None]:
    """Shut a socket down from outside when the time is over: each read of it may wait for as long as one read may."""

    def end() -> None:
        late.set()
        with contextlib.suppress(OSError):  # it was closed by the other side
            sock.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
