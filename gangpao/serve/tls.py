"""A certificate of our own for --tls, made once and kept: browsers give a camera only to pages that came over TLS.

It is self-signed, so a browser asks once whether to trust it; the fingerprint that the server prints is what to compare. The key
never leaves the user's configuration folder and is readable by its owner only. What it gives up: a chain of trust; use --tls-cert
and --tls-key with a real certificate where there is one.
"""

import datetime
import ipaddress
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from gangpao.config import config_dir

if TYPE_CHECKING:
    from cryptography import x509

DAYS = 397  # the longest that browsers accept
RENEW_DAYS = 14


def self_signed(hosts: list[str]) -> tuple[Path, Path]:
    """Paths of a certificate for these hosts and of its key, made where there is none or it runs out soon.

    Raises ValueError where the package `cryptography` is missing.
    """
    folder = config_dir() / "tls"
    cert, key = folder / "cert.pem", folder / "key.pem"
    names = sorted({"localhost", "127.0.0.1", "::1", socket.gethostname(), *hosts})
    if not (cert.is_file() and key.is_file() and _covers(cert.read_bytes(), names)):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        made_cert, made_key = _make(names)
        _write(key, made_key)
        _write(cert, made_cert)
    return cert, key


def fingerprint(cert: Path) -> str:
    """SHA-256 of a certificate as browsers show it. Raises ValueError for a file that holds none."""
    import hashlib
    import ssl

    try:
        der = ssl.PEM_cert_to_DER_cert(cert.read_text(encoding="ascii").strip())
    except ValueError as error:
        raise ValueError(f"{cert}: not a certificate in PEM form: {error}") from None
    digest = hashlib.sha256(der).hexdigest().upper()
    return ":".join(digest[i : i + 2] for i in range(0, len(digest), 2))


def addresses() -> list[str]:
    """Addresses of this machine that others on its network can reach, as far as the system tells."""
    found = set()
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("192.0.2.1", 9))  # sends nothing: it only asks which address would be used
            found.add(probe.getsockname()[0])
    except OSError:
        pass  # no network: then nobody can reach us
    return sorted(a for a in found if not ipaddress.ip_address(a).is_loopback)


def _covers(pem: bytes, names: list[str]) -> bool:
    from cryptography import x509

    try:
        cert = x509.load_pem_x509_certificate(pem)
        found = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound):
        return False
    known = {str(n.value) for n in found}
    until = cert.not_valid_after_utc - datetime.timedelta(days=RENEW_DAYS)
    return set(names) <= known and datetime.datetime.now(datetime.UTC) < until


def _make(names: list[str]) -> tuple[bytes, bytes]:
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
    except ModuleNotFoundError:
        raise ValueError(
            "--tls makes a certificate with the package cryptography: pip install 'gangpao[tls]'"
        ) from None
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "gangpao")])
    now = datetime.datetime.now(datetime.UTC)
    cert = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=DAYS))
        .add_extension(x509.SubjectAlternativeName([_alternative(n) for n in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return cert.public_bytes(serialization.Encoding.PEM), secret


def _alternative(name: str) -> "x509.GeneralName":
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _write(path: Path, data: bytes) -> None:
    """A new file that only its owner may read, put in place at once."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
    part.replace(path)
