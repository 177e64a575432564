"""The client behind chat --connect: addresses, keys, refusals, a busy server, server-sent events, certificates."""

import datetime
import socket
import ssl
from email.utils import format_datetime

import pytest

from gangpao import openai_client as client
from gangpao.commands.terminal import remote
from gangpao.openai_client import RemoteError, address, events
from tests import seams
from tests.commands.fake_server import answer, fake, streamed
from tests.commands.remote import GOOD, no_key, say, server_at, talk  # noqa: F401


@pytest.fixture
def naps(monkeypatch):
    """Seconds that would have been slept."""
    taken: list[float] = []
    seams.replace(monkeypatch, client, "time", sleep=taken.append)
    return taken


# --- addresses


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("127.0.0.1:8000", "http://127.0.0.1:8000/v1"),
        ("http://host", "http://host/v1"),
        ("http://host:1/", "http://host:1/v1"),
        ("https://host/api/v3/", "https://host/api/v3"),
        ("https://host/v1/chat/completions", "https://host/v1"),
        (" http://[::1]:8 ", "http://[::1]:8/v1"),
    ],
)
def test_address(url, base):
    assert address(url) == base


@pytest.mark.parametrize("url", ["", "ftp://host", "http://", "http://host?x=1", "http://host:x", "http://h/#a"])
def test_a_wrong_address_is_said(url):
    with pytest.raises(ValueError, match="--connect"):
        address(url)


# --- keys


def test_a_key_of_the_environment_is_for_this_machine_and_for_tls(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-env")
    with fake(lambda _: streamed(*GOOD)) as server:
        talk(server.url)
        talk(server.url, api_key="sk-given")
    assert [a.headers["authorization"] for a in server.asked] == ["Bearer sk-env", "Bearer sk-given"]
    assert server_at("http://192.0.2.1", None, True).withheld
    assert server_at("https://192.0.2.1", None, True).keyed
    assert server_at("http://192.0.2.1", "sk", True).keyed
    with pytest.raises(ValueError, match="characters that no key has"):
        client.Server("http://host", "sk-\n", True)


def test_401_says_what_is_missing(monkeypatch):
    body = {"error": {"message": "no", "type": "x", "code": "invalid_api_key"}}
    with fake(lambda _: answer(401, body), models=None) as server:
        with pytest.raises(RemoteError, match="wants an API key: give it with --api-key, or in OPENAI_API_KEY"):
            talk(server.url, "m")
        with pytest.raises(RemoteError, match="refuses this API key"):
            talk(server.url, "m", api_key="wrong")


# --- refusals


def test_an_unknown_model_is_answered_with_the_known_ones():
    body = {"error": {"message": "no model 'mine'", "code": "model_not_found"}}
    with (
        fake(lambda _: answer(404, body)) as server,
        pytest.raises(RemoteError, match=r"no model 'mine'; the server has one"),
    ):
        talk(server.url, "mine").ask("hi")


def test_404_of_another_kind_of_server():
    script = lambda a: answer(404, b"nothing here") if a.method == "POST" else answer(500, b"")  # noqa: E731
    with fake(script, models=None) as server, pytest.raises(RemoteError, match="is this an OpenAI-compatible address"):
        remote.Remote(server_at(server.url, None, True), "m", {}).ask("hi")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"error": {"message": "bad\x1b[31m thing"}}, r"answers 400: bad\[31m thing"),
        ({"error": "just text"}, "answers 400: just text"),
        ({"detail": "from FastAPI"}, "answers 400: from FastAPI"),
        (["odd"], r"answers 400: \['odd'\]"),
        (b"plain\n  text", "answers 400: plain text"),
        (b"", "answers 400: x"),
        (b"[" * 100_000, "answers 400: "),
        ({"error": {"message": "y" * 5000}}, "answers 400: y{400}$"),
    ],
)
def test_refusals_are_quoted_short_and_plain(body, said):
    with fake(lambda _: answer(400, body)) as server, pytest.raises(RemoteError, match=said):
        talk(server.url).ask("hi")


def test_a_redirect_is_said_and_not_followed():
    with fake(lambda _: answer(301, b"", Location="https://else.where/v1")) as server:
        with pytest.raises(RemoteError, match=r"moved to https://else\.where/v1"):
            talk(server.url).ask("hi")
        assert len(server.chats()) == 1


def test_nobody_there():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    with pytest.raises(RemoteError, match=r"nothing answers at http://127.0.0.1:\d+/v1 .*gangpao serve"):
        talk(f"127.0.0.1:{port}")


# --- a busy server


def test_a_busy_server_is_asked_again_when_it_says(naps):
    soon = format_datetime(datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=30))
    left = [
        answer(429, {"error": {"message": "busy"}}, Retry_After="2"),
        answer(503, b"loading", Retry_After=soon),
        answer(429, b"", Retry_After_Ms="250", Retry_After="9"),
        answer(502, b""),
        answer(418, b"", X_Should_Retry="true", Retry_After="nan"),
        streamed(*GOOD),
    ]
    with fake(lambda _: left.pop(0)) as server:
        assert say(talk(server.url))[0] == "Hello"
        assert len(server.chats()) == 6
    assert naps[0] == 2
    assert naps[1] == pytest.approx(30, abs=3)
    assert naps[2:] == [0.25, 8.0, 8.0]


@pytest.mark.parametrize(
    ("status", "body", "headers"),
    [
        (429, {"error": {"message": "m", "code": "insufficient_quota"}}, {"Retry_After": "1"}),
        (503, {"error": {"message": "m"}}, {"X_Should_Retry": "false", "Retry_After": "1"}),
        (500, {"error": {"message": "m"}}, {}),
        (429, {"error": {"message": "m"}}, {"Retry_After": "3600"}),
    ],
)
def test_waiting_that_is_pointless_is_not_done(naps, status, body, headers):
    with (
        fake(lambda _: answer(status, body, **headers)) as server,
        pytest.raises(RemoteError, match=f"answers {status}: m"),
    ):
        talk(server.url).ask("hi")
    assert naps == []


def test_patience_ends(naps):
    with fake(lambda _: answer(503, b"loading", Retry_After="25")) as server, pytest.raises(RemoteError, match="busy"):
        talk(server.url).ask("hi")
    assert naps == [25] * 4


def test_loading_is_waited_for_at_the_start(naps):
    left = [answer(503, {"error": {"message": "loading"}}, Retry_After="1"), answer(200, {"data": [{"id": "late"}]})]
    with fake(lambda _: left.pop(0), models=None) as server:
        assert talk(server.url).model == "late"
    assert naps == [1]


# --- TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A self-signed certificate of 127.0.0.1: (certificate path, server context)."""
    x509 = pytest.importorskip("cryptography.x509")
    import ipaddress

    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    cert = (
        x509.CertificateBuilder()
        .subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("tls")
    pem = cert.public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "cert.pem").write_bytes(pem)
    (folder / "both.pem").write_bytes(pem + private)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "both.pem")
    return folder / "cert.pem", context


def test_a_self_signed_certificate(certificate, tmp_path):
    path, context = certificate
    with fake(lambda _: streamed(*GOOD), context=context) as server:
        with pytest.raises(RemoteError, match=r"not trusted \(.*--ca FILE, or --insecure"):
            talk(server.url)
        assert say(talk(server.url, ca=path))[0] == "Hello"
        assert say(talk(server.url, insecure=True))[0] == "Hello"
        with pytest.raises(RemoteError, match=r"does not speak plain HTTP"):
            talk(server.url.replace("https", "http"))
    (tmp_path / "x.pem").write_text("no certificate")
    with pytest.raises(ValueError, match="not a certificate in PEM"):
        talk(server.url, ca=tmp_path / "x.pem")
    with pytest.raises(ValueError, match=r"missing\.pem: No such file"):
        talk(server.url, ca=tmp_path / "missing.pem")


def test_tls_to_a_plain_server():
    with fake(lambda _: streamed(*GOOD)) as server, pytest.raises(RemoteError, match="try http://"):
        talk(server.url.replace("http", "https"))


# --- events


def parsed(raw: bytes, step: int) -> list[str]:
    return list(events(raw[i : i + step] for i in range(0, len(raw), step)))


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_events_are_the_same_however_they_are_cut(end):
    text = ': ping\n\nevent: x\ndata: {"a":\n\ndata:two\ndata:  three \n\nid: 4\nretry: 1\n\n\n\n'
    text += "data: 中\u2028\x85文\n\ndata: last"
    raw = text.encode().replace(b"\n", end)
    want = ['{"a":', "two\n three ", "中\u2028\x85文", "last"]
    for step in (1, 2, 3, 7, len(raw)):
        assert parsed(raw, step) == want


def test_events_have_a_bound(monkeypatch):
    monkeypatch.setattr(client, "MAX_EVENT", 1000)
    with pytest.raises(RemoteError, match="a line of more than"):
        list(events([b"data: " + b"x" * 600] * 2))
    with pytest.raises(RemoteError, match="an event of more than"):
        list(events([b"data: " + b"x" * 100 + b"\n"] * 20))
    assert len(list(events([b"data: " + b"x" * 600 + b"\n\n"] * 9))) == 9
