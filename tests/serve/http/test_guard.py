"""Who may talk to the server: names, origins, keys and sizes, over real sockets."""

import os
import socket
import ssl
from concurrent.futures import ThreadPoolExecutor

import anthropic
import httpx2
import ollama
import pytest
from anthropic import Anthropic
from starlette.routing import Route

from gangpao.serve.app import listen, make_app, running, uvicorn_config
from gangpao.serve.http import guard, tls
from gangpao.serve.http.access import Access, Listen
from gangpao.serve.pages import routes
from gangpao.serve.server import Server, Settings

KEYS = ("first-key", "second-key")
PAGE = "https://page.example"
STATIC = tuple(prefix for prefix in routes.PUBLIC if prefix.endswith("/") and prefix != "/")


@pytest.fixture(scope="module")
def locked(tiny_path):
    """A server with keys and one allowed origin."""
    settings = Settings(
        {"tiny": tiny_path}, port=0, threads=1, api_keys=KEYS, allow_origins=(PAGE,), allow_hosts=("box.lan",),
        max_body=100_000,
    )  # fmt: skip
    server = Server(settings)
    with running(server) as url:
        yield url, server


def message_of(path, response):
    """What an error says, whose form must be that of the path's API."""
    body = response.json()
    if path.startswith("/api/"):
        assert list(body) == ["error"]
        return body["error"]
    if path.startswith("/v1/messages"):
        assert body["type"] == "error"
        assert set(body["error"]) == {"type", "message"}
    else:
        assert set(body["error"]) == {"message", "type", "param", "code"}
    return body["error"]["message"]


def raw(url, *lines, body=b""):
    """The status and the head of an answer to a request written by hand."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body)
        data = b""
        while b"\r\n\r\n" not in data and (more := connection.recv(65536)):
            data += more
    head = data.split(b"\r\n\r\n")[0].decode("latin-1").lower()
    return int(head.split(" ")[1]), head


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200), ("127.0.0.1:9", 200), ("[::1]:80", 200), ("LOCALHOST:80", 200), ("evil.example", 403),
        ("localhost.evil.example", 403), ("127.0.0.1.evil.example", 403), ("localhost@evil.example", 400), ("", 400),
        ("10.0.0.1", 403), ("2130706433", 403), ("localhost/x", 400), ("local host", 400), ("[::ffff:127.0.0.1]", 403),
    ],
)  # fmt: skip
def test_only_names_of_this_machine_are_answered(tiny_server, host, status):
    assert raw(tiny_server.base_url, "GET /health HTTP/1.1", f"Host: {host}")[0] == status


def test_a_request_needs_exactly_one_host(tiny_server):
    assert raw(tiny_server.base_url, "GET /health HTTP/1.1", "X: y")[0] == 400
    assert raw(tiny_server.base_url, "GET /health HTTP/1.1", "Host: localhost", "Host: evil.example")[0] == 400
    assert raw(tiny_server.base_url, "GET http://evil.example/health HTTP/1.1", "Host: evil.example")[0] == 403


def test_every_route_but_health_needs_a_key(locked, wire):
    url, server = locked
    app = make_app(server)._app
    ours = [r for r in app.routes if isinstance(r, Route)]
    assert len(ours) >= 10
    for route in ours:
        for method in sorted(route.methods - {"HEAD"}):
            path = route.path.replace("{name:path}", "tiny")
            response = wire.request(method, url + path, content=b"{}")
            public = path == "/health" or path in routes.PUBLIC or path.startswith(STATIC)
            assert (response.status_code == 401) == (not public), path
            if not public:
                assert "a valid API key is needed" in message_of(path, response)
                assert response.headers["www-authenticate"] == "Bearer"
    assert wire.get(f"{url}/nope").status_code == 401
    for headers in (
        {"authorization": f"Bearer {KEYS[1]}"},
        {"x-api-key": KEYS[0]},
        {"authorization": f"bearer  {KEYS[0]}"},
    ):
        assert wire.get(f"{url}/v1/models", headers=headers).status_code == 200
    for wrong in (f"Basic {KEYS[0]}", KEYS[0], "Bearer", f"Bearer {KEYS[0]}x", "Bearer first-key second-key"):
        assert wire.get(f"{url}/v1/models", headers={"authorization": wrong}).status_code == 401


def test_other_peoples_pages_are_refused(tiny_server, locked, wire):
    open_url, (url, _) = tiny_server.base_url, locked
    body = {"prompt": "a", "max_tokens": 1}
    for origin in ("https://evil.example", "null", "http://localhost:1", "http://127.0.0.1"):
        response = wire.post(f"{open_url}/v1/completions", json=body, headers={"origin": origin})
        assert (response.status_code, response.json()["error"]["code"]) == (403, "origin_not_allowed")
        assert "access-control-allow-origin" not in response.headers
    assert wire.post(f"{open_url}/v1/completions", json=body, headers={"origin": open_url}).status_code == 200
    key = {"authorization": f"Bearer {KEYS[0]}"}
    response = wire.get(f"{url}/v1/models", headers={"origin": PAGE, **key})
    assert (response.status_code, response.headers["access-control-allow-origin"]) == (200, PAGE)
    assert "access-control-allow-credentials" not in response.headers
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization, x-stainless-os"}
    allowed = wire.options(f"{url}/v1/chat/completions", headers={"origin": PAGE, **asked})
    assert allowed.status_code == 204
    assert allowed.headers["access-control-allow-headers"] == "authorization, x-stainless-os"
    assert wire.options(f"{url}/v1/models", headers={"origin": "https://evil.example", **asked}).status_code == 403


def test_bodies_are_bounded(locked, wire):
    url, _ = locked
    key = {"authorization": f"Bearer {KEYS[0]}"}
    declared = raw(
        url, "POST /v1/completions HTTP/1.1", "Host: localhost", f"Authorization: Bearer {KEYS[0]}",
        "Content-Length: 99999999999",
    )  # fmt: skip
    assert declared[0] == 413
    chunks = (b"x" * 10_000 for _ in range(20))  # no length is declared
    response = wire.post(f"{url}/v1/completions", content=chunks, headers=key)
    assert (response.status_code, response.json()["error"]["code"]) == (413, "body_too_large")


def test_refusals_have_the_form_of_each_api(locked, wire, monkeypatch):
    url, server = locked
    key = {"authorization": f"Bearer {KEYS[0]}"}
    monkeypatch.setattr(server.models, "name_of", lambda *_: 1 / 0)
    monkeypatch.setattr(server.models, "use", lambda *_: 1 / 0)
    asked = {"/v1/messages": {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}, "/api/chat": {},
             "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}]}}  # fmt: skip
    for path, good in asked.items():
        for headers, more, status, why in [
            ({}, {"json": good}, 401, "a valid API key"),
            ({"host": "evil.example"}, {"json": good}, 403, "does not answer to the name"),
            ({"origin": "https://evil.example"}, {"json": good}, 403, "origin is not allowed"),
            (key, {"content": b"x" * 200_000}, 413, "larger than"),
            (key, {"content": b"["}, 400, "not JSON"),
            (key, {"json": good}, 500, "its log says why"),
        ]:
            found = wire.post(url + path, headers=headers, **more)
            assert found.status_code == status, (path, why, found.text)
            assert why in message_of(path, found)
        assert "Method Not Allowed" in message_of(path, wire.delete(url + path, headers=key))
        assert "there is no" in message_of(path, wire.get(f"{url}{path}/nope", headers=key))


def test_clients_of_other_apis_see_the_reason(locked):
    url, _ = locked
    with Anthropic(base_url=url, api_key="wrong", max_retries=0) as client:
        with pytest.raises(anthropic.AuthenticationError, match="a valid API key is needed") as error:
            client.messages.create(model="tiny", max_tokens=1, messages=[{"role": "user", "content": "a"}])
        assert error.value.body["error"]["type"] == "authentication_error"
    with ollama.Client(host=url, trust_env=False) as client:
        with pytest.raises(ollama.ResponseError, match=r"^a valid API key is needed") as refused:
            client.chat(model="tiny", messages=[{"role": "user", "content": "a"}])
        assert refused.value.status_code == 401
    with ollama.Client(host=url, trust_env=False, headers={"x-api-key": KEYS[0]}) as client:
        with pytest.raises(ollama.ResponseError, match=r"^there is no /api/pull here"):
            client.pull("tiny")
        with pytest.raises(ollama.ResponseError, match=r"^the body is larger than"):
            client.generate(model="tiny", prompt="a" * 200_000)


def test_a_body_that_does_not_come_is_not_waited_for(tiny_path, monkeypatch):
    monkeypatch.setattr(guard, "BODY_S", 0.2)
    with running(Server(Settings({"tiny": tiny_path}, port=0, threads=1))) as url:
        head = ("POST /v1/completions HTTP/1.1", "Host: localhost", "Content-Length: 100")
        assert raw(url, *head, body=b"{")[0] == 408


def test_headers_of_every_answer(tiny_server, wire):
    for path in ("/health", "/nope", "/v1/models"):
        headers = wire.get(tiny_server.base_url + path, headers={"x-request-id": "mine-1"}).headers
        assert headers["x-request-id"] == "mine-1"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert "server" not in headers
    _, head = raw(tiny_server.base_url, "GET /health HTTP/1.1", "Host: localhost", "x-request-id: not <one>")
    assert "not <one>" not in head
    assert "x-request-id: " in head


def test_a_bug_of_ours_tells_nothing(tiny_path, wire, caplog):
    server = Server(Settings({"tiny": tiny_path}, port=0, threads=1))
    with running(server) as url:
        server.models.names = lambda: 1 / 0  # type: ignore[method-assign]
        response = wire.get(f"{url}/v1/models")
    assert response.status_code == 500
    assert "division" not in response.text
    assert response.json()["error"]["type"] == "server_error"
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "example.com"])
def test_others_can_reach_us_only_with_a_key(host):
    with pytest.raises(ValueError, match="needs a key"):
        listen(Listen(host=host, port=0), Access())


def test_a_port_in_use_is_said():
    with listen(Listen(port=0), Access()) as taken:
        taken.listen()
        with pytest.raises(ValueError, match="in use by another program"):
            listen(Listen(port=taken.getsockname()[1]), Access())


def test_the_certificate_made_here(tmp_path, monkeypatch, tiny_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    files = tls.local(["192.168.1.7", "box.local"])
    cert, key = files.cert, files.key
    assert files == tls.local([])  # kept
    assert {p.stat().st_mode & 0o077 for p in key.parent.iterdir()} == {0}
    before, trusted = cert.read_bytes(), files.authority.read_bytes()
    assert tls.local(["192.168.1.8"]).cert.read_bytes() != before
    assert files.authority.read_bytes() == trusted  # a new address in the home needs no new trust
    assert tls.fingerprint(files.authority).count(":") == 31
    context = ssl.create_default_context(cafile=str(files.authority))
    server = Server(Settings({"tiny": tiny_path}, port=0, threads=1, tls=True, authority=files.authority))
    with running(server, cert=tls.Files(cert, key)) as url:
        assert url.startswith("https://")
        with httpx2.Client(verify=context, trust_env=False) as client:
            assert client.get(f"{url}/health").status_code == 200
            own = {"origin": url}
            assert client.get(f"{url}/v1/models", headers=own).status_code == 200


def test_the_authority_is_served_and_signs_for_private_names_only(tmp_path, monkeypatch, tiny_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    files = tls.local(["192.168.1.7"])
    server = Server(Settings({"tiny": tiny_path}, port=0, threads=1, api_keys=("k",), authority=files.authority))
    with running(server) as url:
        found = httpx2.get(f"{url}/ca.crt", trust_env=False)
        assert found.status_code == 200
        assert found.headers["content-type"] == "application/x-x509-ca-cert"
        assert found.content == files.authority.read_bytes()
    with running(Server(Settings({"tiny": tiny_path}, port=0, threads=1))) as url:
        assert httpx2.get(f"{url}/ca.crt", trust_env=False).status_code == 404

    cert, key = tls._make(["bank.example", "127.0.0.1"], files.authority, files.authority.with_name("ca-key.pem"))
    (tmp_path / "cert.pem").write_bytes(cert)
    (tmp_path / "key.pem").write_bytes(tls._pem(key))
    context = ssl.create_default_context(cafile=str(files.authority))
    stolen = tls.Files(tmp_path / "cert.pem", tmp_path / "key.pem")
    with (
        running(Server(Settings({"tiny": tiny_path}, port=0, threads=1, tls=True)), cert=stolen) as url,
        pytest.raises(httpx2.ConnectError, match="permitted subtree violation"),
    ):
        httpx2.get(f"{url}/health", verify=context, trust_env=False)
    before = files.authority.read_bytes()
    assert tls.local(["8.8.8.8", "home.example"]).authority.read_bytes() != before  # it needs another one for these
    known = files.authority.read_bytes()
    files.cert.write_text("damaged")
    assert tls.local(["8.8.8.8"]).authority.read_bytes() == known
    assert tls._covers(files, ["8.8.8.8", "localhost"])


def trusted(files):
    """A context that trusts the authority, and a server's that loads certificate and key: raises where these do not match."""
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(files.cert, files.key)
    assert tls._covers(files, ["localhost"])
    return files.authority.read_bytes()


def test_half_written_and_mixed_up_certificates_are_made_again(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    files = tls.local([])
    ca_key, other = files.authority.with_name("ca-key.pem"), tls._pem(tls._make_authority(["localhost"])[1])
    before = trusted(files)
    files.key.write_bytes(other)  # killed between the key and its certificate
    assert trusted(tls.local([])) == before
    ca_key.write_bytes(other)
    assert trusted(tls.local([])) != before
    ca_key.write_text("damaged")
    trusted(tls.local([]))
    ca_key.unlink()
    for path in (files.cert, files.key, files.authority, ca_key):  # of a process that was killed and had our number
        path.with_name(f".{path.name}.{os.getpid()}").write_text("half")
    trusted(tls.local([]))


def test_an_authority_knows_the_names_of_before(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    tls.local(["a.example"])
    both = trusted(tls.local(["b.example", "8.8.8.8"]))
    assert trusted(tls.local(["a.example"])) == both
    assert trusted(tls.local(["8.8.8.8", "b.example"])) == both


def test_two_servers_that_start_together_have_one_authority(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: trusted(tls.local([])), range(8)))
    assert len(set(found)) == 1


def test_what_is_served_is_what_uvicorn_is_told():
    assert uvicorn_config(lambda *_: None).ws == "none"
