"""What decides who may reach a server and how: where it listens, and whom it answers."""

from dataclasses import dataclass
from pathlib import Path

from gangpao.machine import is_loopback
from gangpao.options import option

_KEY = "key "


@dataclass(frozen=True, kw_only=True)
class Listen:
    """Where a server listens. authority: the certificate that a device has to trust, where it is ours; served at /ca.crt."""

    host: str = option("127.0.0.1", "Address to listen on; others than loopback need an API key.")
    port: int = option(8000, "Port to listen on; 0 takes a free one.", 0, 65535)
    tls: bool = False
    authority: Path | None = None

    @property
    def any_address(self) -> bool:
        """Whether it is bound to all addresses of this machine."""
        return self.host in ("0.0.0.0", "::")


@dataclass(frozen=True, kw_only=True)
class Access:
    """Whom a server answers, and how much it takes. api_keys: also those of api_key_file once the record is made.

    Raises ValueError for a key that no HTTP header can carry, and for a file without one.
    """

    api_keys: tuple[str, ...] = option((), "A key that opens the API; repeatable.", flag="--api-key")
    api_key_file: Path | None = option(None, "A file with one key a line.")
    allow_hosts: tuple[str, ...] = option(
        (), "A host name under which this server is reached; repeatable.", flag="--allow-host"
    )
    allow_origins: tuple[str, ...] = option(
        (), "A web page's origin that may call the API; repeatable.", flag="--allow-origin"
    )
    allow_image_hosts: tuple[str, ...] = option(
        (), "A host that images may be fetched from; repeatable.", flag="--allow-image-host"
    )
    max_body: int = option(32_000_000, "Most bytes of a request.", 1_000, 1 << 40)
    log_requests: bool = option(False, "A line for each request: path, status, seconds; never what was asked.")

    def __post_init__(self) -> None:
        keys = self.api_keys
        if self.api_key_file is not None:
            lines = self.api_key_file.read_text(encoding="utf-8").splitlines()
            more = tuple(line.strip() for line in lines if line.strip())
            if not more:
                raise ValueError(f"{self.api_key_file}: there is no key in it; write one a line")
            keys += more
        for key in keys:
            if not key or not key.isascii() or not key.isprintable() or " " in key:
                raise ValueError("an API key is one word of printable ASCII characters")
        object.__setattr__(self, "api_keys", keys)
        object.__setattr__(self, "api_key_file", None)
        object.__setattr__(self, "allow_origins", tuple(origin.rstrip("/") for origin in self.allow_origins))


def check_binding(listen: Listen, access: Access) -> None:
    """Raises ValueError for an address that others can reach without a key."""
    if not is_loopback(listen.host) and not access.api_keys:
        raise ValueError(
            f"--host {listen.host}: others can reach this address, so the server needs a key: add --api-key KEY or "
            "--api-key-file FILE (or stay on 127.0.0.1)"
        )


def client_of_key(digest: bytes) -> str:
    """The client of a request that came with the API key of this sha256."""
    return _KEY + digest.hex()[:16]


def is_key(client: str) -> bool:
    """Whether a client is an API key, and not an address, which several people may have."""
    return client.startswith(_KEY)
