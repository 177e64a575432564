"""Certificates of our own for --tls: browsers give a camera, threads and storage only to pages that came over TLS.

    ca.pem, ca-key.pem    an authority of this machine, made once. A device that is told to trust it (/ca.crt) trusts the
                          server from then on, and only then a browser keeps a page for the time without a network
    cert.pem, key.pem     the server's certificate, signed by it; made again for other names and before it runs out

The authority can sign for private addresses and the names it was made for, nothing else (name constraints), so whoever
steals its key cannot speak for a bank. The keys never leave the user's configuration folder and are readable by their owner only.
What it gives up: nobody else knows the authority; use --tls-cert and --tls-key with a real certificate where there is one.
"""

import datetime
import ipaddress
import os
import socket
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gangpao.atomic import Busy, locked
from gangpao.config import config_dir

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

DAYS = 397  # the longest that browsers accept of a server
CA_DAYS = 3650
RENEW_DAYS = 14
_POLL_SECONDS = 0.05
PRIVATE = (
    "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16",
    "::1/128", "fc00::/7", "fe80::/10",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Files:
    """What a server speaks TLS with, in PEM. authority: whose word the certificate is, where it is ours."""

    cert: Path
    key: Path
    authority: Path | None = None


def notice(files: Files, url: str) -> list[str]:
    """What a server at `url` prints about them: the lines by which its certificate can be known."""
    lines = [f"certificate {files.cert}, SHA-256 {fingerprint(files.cert)}"]
    if files.authority:
        lines.append(
            f"a device that installs {url}/ca.crt trusts this server without a warning; compare first: "
            f"SHA-256 {fingerprint(files.authority)}"
        )
    return lines


def local(hosts: list[str]) -> Files:
    """A certificate for these hosts and this machine, by this machine's authority; both are made where they are missing.

    Raises ValueError where the package `cryptography` is missing.
    """
    _need_cryptography()
    folder = config_dir() / "tls"
    files = Files(folder / "cert.pem", folder / "key.pem", folder / "ca.pem")
    ca_key = folder / "ca-key.pem"
    here = socket.gethostname()
    names = sorted({"localhost", "127.0.0.1", "::1", *([here] if here.isascii() else []), *hosts})
    while True:
        try:
            with locked(config_dir()):
                _make_missing(files, ca_key, names)
            return files
        except Busy:
            time.sleep(_POLL_SECONDS)  # another server makes the same


def _make_missing(files: Files, ca_key: Path, names: list[str]) -> None:
    assert files.authority is not None
    known, wanted = _permitted(files.authority, ca_key), {_network(n) or n for n in names}
    if not wanted <= known:
        ca_key.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        made, key = _make_authority(sorted({*PRIVATE, *known, *wanted}))
        _write(ca_key, _pem(key))
        _write(files.authority, made)
    if not _covers(files, names):
        made, key = _make(names, files.authority, ca_key)
        _write(files.key, _pem(key))
        _write(files.cert, made)


def fingerprint(cert: Path) -> str:
    """SHA-256 of a file's first certificate as browsers and telephones show it. Raises ValueError for a file without one."""
    import hashlib
    import ssl

    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    try:
        text = cert.read_text(encoding="ascii")
        der = ssl.PEM_cert_to_DER_cert(text[text.index(begin) : text.index(end) + len(end)])
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


def _need_cryptography() -> None:
    import importlib.util

    if importlib.util.find_spec("cryptography") is None:
        raise ValueError("--tls makes a certificate with the package cryptography: pip install 'gangpao[tls]'")


def _load(path: Path, key: Path) -> "x509.Certificate | None":
    """A certificate that has some time left and belongs to this key; None for any other, which is made again."""
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization

    try:
        cert = x509.load_pem_x509_certificate(path.read_bytes())
        own = serialization.load_pem_private_key(key.read_bytes(), None).public_key() == cert.public_key()
    except (ValueError, TypeError, OSError):
        return None
    until = cert.not_valid_after_utc - datetime.timedelta(days=RENEW_DAYS)
    return cert if own and datetime.datetime.now(datetime.UTC) < until else None


def _permitted(authority: Path, ca_key: Path) -> set[str]:
    """Networks and names that the authority may sign for; none where it has to be made."""
    from cryptography import x509

    cert = _load(authority, ca_key)
    try:
        found = cert and cert.extensions.get_extension_for_class(x509.NameConstraints).value.permitted_subtrees
    except x509.ExtensionNotFound:
        return set()
    return {str(n.value) for n in found or ()}


def _network(name: str) -> str | None:
    """The network that an address is permitted with: a private one, else its own. None for a name."""
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return None
    return next((n for n in PRIVATE if address in ipaddress.ip_network(n)), str(ipaddress.ip_network(address)))


def _covers(files: Files, names: list[str]) -> bool:
    """Whether the certificate is the authority's and for all of the names."""
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature

    assert files.authority is not None
    cert = _load(files.cert, files.key)
    if cert is None:
        return False
    try:
        cert.verify_directly_issued_by(x509.load_pem_x509_certificate(files.authority.read_bytes()))
        found = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return False
    return set(names) <= {str(n.value) for n in found}


def _make_authority(permitted: list[str]) -> tuple[bytes, "ec.EllipticCurvePrivateKey"]:
    """permitted: networks, which have a slash, and names."""
    from cryptography import x509

    trees = [x509.IPAddress(ipaddress.ip_network(n)) if "/" in n else x509.DNSName(n) for n in permitted]
    usage = dict.fromkeys(
        ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
         "encipher_only", "decipher_only"), False,
    )  # fmt: skip
    subject = f"gangpao on {socket.gethostname()}"[:64]
    return _signed(
        subject,
        CA_DAYS,
        (x509.BasicConstraints(ca=True, path_length=0), True),
        (x509.KeyUsage(key_cert_sign=True, crl_sign=True, **usage), True),
        (x509.NameConstraints(trees, None), True),
    )


def _make(names: list[str], authority: Path, ca_key: Path) -> tuple[bytes, "ec.EllipticCurvePrivateKey"]:
    """The server's certificate, its authority's behind it in the same file, and its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization
    from cryptography.x509.oid import ExtendedKeyUsageOID

    pem = authority.read_bytes()
    by = (x509.load_pem_x509_certificate(pem), serialization.load_pem_private_key(ca_key.read_bytes(), None))
    cert, key = _signed(
        "gangpao",
        DAYS,
        (x509.SubjectAlternativeName([_alternative(n) for n in names]), False),
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False),
        by=by,
    )
    return cert + pem, key


def _signed(
    subject: str, days: int, *extensions: "tuple[x509.ExtensionType, bool]", by: tuple[Any, Any] | None = None
) -> tuple[bytes, "ec.EllipticCurvePrivateKey"]:
    """A certificate and its key, signed by (certificate, key), or by itself."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)])
    issuer, signer = (name, key) if by is None else (by[0].subject, by[1])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    return builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM), key


def _pem(key: "ec.EllipticCurvePrivateKey") -> bytes:
    from cryptography.hazmat.primitives import serialization

    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _alternative(name: str) -> "x509.GeneralName":
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _write(path: Path, data: bytes) -> None:
    """A new file that only its owner may read, put in place at once."""
    number, part = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    with open(number, "wb") as file:
        file.write(data)
    os.replace(part, path)
