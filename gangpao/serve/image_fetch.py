"""Fetch an image for a request, from hosts that the server's owner named and from nowhere else.

The address is looked up once, must be a public one, and is the one that is connected to: a name that answers differently the
second time gains nothing. TLS checks the certificate against the name. No redirects, no proxies, no cookies; size and time
are bounded. What it gives up: images behind a redirect.
"""

import http.client
import ipaddress
import socket
import ssl
from collections.abc import Collection
from urllib.parse import urlsplit

TIMEOUT_S = 10.0


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
    return _get(host, public_address(host, 443 if tls else 80), tls, path, limit)


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
    try:
        raw = socket.create_connection((address, 443 if tls else 80), TIMEOUT_S)
        connection.sock = ssl.create_default_context().wrap_socket(raw, server_hostname=host) if tls else raw
        connection.request("GET", path, headers={"Accept": "image/*", "User-Agent": "gangpao"})
        response = connection.getresponse()
        if response.status != 200:
            raise ValueError(f"the image's host answered {response.status}")
        data = response.read(limit + 1)
    except (OSError, http.client.HTTPException):
        raise ValueError("the image could not be fetched") from None
    finally:
        connection.close()
    if len(data) > limit:
        raise ValueError(f"the image is larger than the {limit:,} bytes that are allowed")
    return data
