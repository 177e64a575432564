"""The pages of a server: the chat at /, the camera at /watch, the phone page at /phone, their files, and the models for the phone.

The idea: everything in the folder `web` is read once when the routes are made and served from memory by exact name, so no
path of a request ever touches the disk. Every page forbids itself everything by its Content-Security-Policy but what it
needs: scripts and styles are files of ours, nothing inline, nothing from elsewhere. The phone page is cross-origin
isolated, because only then a browser gives threads to WebAssembly.

Pages and their files are public, there is nothing in them that is not in this repository; models are not.
"""

import gzip
import hashlib
import json
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from gangpao.formats import gguf_split
from gangpao.serve.http.errors import ApiError
from gangpao.serve.pages import libraries, phone

if TYPE_CHECKING:
    from gangpao.serve.server import Server

Handler = Callable[[Request], Awaitable[Response]]

# What needs no API key: exact paths, and prefixes that end in "/" (the path "/" itself is exact).
PUBLIC = frozenset({"/", "/ca.crt", "/favicon.ico", "/licences", "/phone", "/phone/app/", "/watch", "/web/", "/parts/"})

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".wasm": "application/wasm",
    ".webmanifest": "application/manifest+json",
    ".woff2": "font/woff2",
}
_SELF = (
    "default-src 'none'; style-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; font-src 'self'; "
    "manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# Trusted Types: the browser itself refuses to parse a string as HTML that DOMPurify has not seen.
CHAT_CSP = (
    f"{_SELF}; connect-src 'self'; script-src 'self'; require-trusted-types-for 'script'; trusted-types dompurify"
)
# The model runs as WebAssembly in workers that the library makes from blobs.
PHONE_CSP = f"{_SELF}; connect-src 'self' blob:; script-src 'self' blob: 'wasm-unsafe-eval'; worker-src 'self' blob:"
HEADERS = {
    "cache-control": "no-cache",  # ask again each time; the ETag makes that cheap
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(self), microphone=(), geolocation=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
# The browser's own speech recognition needs the microphone.
WATCH_HEADERS = {
    **HEADERS,
    "content-security-policy": CHAT_CSP,
    "permissions-policy": "camera=(self), microphone=(self), geolocation=()",
}
PHONE_HEADERS = {
    **HEADERS,
    "content-security-policy": PHONE_CSP,
    "cross-origin-embedder-policy": "require-corp",
    "service-worker-allowed": "/phone",
}
_NOT_OFFLINE = {
    "index.html", "phone.html", "sw.js", "phone.webmanifest", "watch.css", "watch.html", "watch.js",
}  # fmt: skip
_WORTH_PACKING = {".html", ".css", ".js", ".svg", ".webmanifest"}


@dataclass(frozen=True, slots=True)
class Asset:
    """A file of ours: body, gzip twin (empty where that is not worth it), type and ETag."""

    body: bytes
    packed: bytes
    type: str
    etag: str


def load_assets() -> dict[str, Asset]:
    """All files of the folder `web` by their name in it."""
    root = Path(__file__).with_name("web")
    out = {}
    for path in sorted(root.rglob("*")):
        if path.suffix in TYPES and path.is_file():
            body = path.read_bytes()
            packed = gzip.compress(body, 9, mtime=0) if path.suffix in _WORTH_PACKING else b""
            mark = hashlib.sha256(body).hexdigest()[:24]
            out[path.relative_to(root).as_posix()] = Asset(body, packed, TYPES[path.suffix], f'"{mark}"')
    return out


def routes(server: "Server") -> list[Route]:
    """The routes of both pages. Nothing is fetched from anywhere until a browser asks for it."""
    assets = load_assets()
    chat, both = libraries.Fetcher({"chat"}), libraries.Fetcher({"chat", "phone"})
    chat_headers = {**HEADERS, "content-security-policy": CHAT_CSP}

    def page(name: str, headers: Mapping[str, str]) -> Handler:
        async def handler(request: Request) -> Response:
            return _asset(request, assets[name], headers)

        return handler

    async def web(request: Request) -> Response:
        return _asset(request, _asset_named(assets, request.path_params["name"]), PHONE_HEADERS)

    async def state(request: Request) -> Response:
        fetcher = both if request.query_params.get("for") == "phone" else chat
        fetcher.start(time.monotonic())
        ready = not libraries.missing(fetcher.pages)
        # What is there can be used also where the rest cannot be fetched.
        found = {"ready": ready, "problem": "" if ready else fetcher.problem, "here": libraries.here(fetcher.pages)}
        return JSONResponse(found, headers=HEADERS)

    async def shell(request: Request) -> Response:
        return JSONResponse(_shell(assets), headers=HEADERS)

    return [
        Route("/", page("index.html", chat_headers)),
        Route("/watch", page("watch.html", WATCH_HEADERS)),
        Route("/favicon.ico", page("icon.svg", HEADERS)),
        Route("/web/parts", state, methods=["POST"]),
        Route("/web/{name:path}", web),
        Route("/parts/{name:path}", _library_file),
        Route("/licences", _licences),
        authority_route(server.settings.authority),
        Route("/phone", page("phone.html", PHONE_HEADERS)),
        Route("/phone/app/shell.json", shell),
        Route("/phone/app/sw.js", page("sw.js", PHONE_HEADERS)),
        Route("/phone/app/manifest.webmanifest", page("phone.webmanifest", HEADERS)),
        *_model_routes(server),
    ]


def authority_route(certificate: Path | None) -> Route:
    """/ca.crt: the certificate of the authority that a device may install, where the server has one of its own."""
    ca = certificate and certificate.read_bytes()

    async def authority(request: Request) -> Response:
        if ca is None:
            raise ApiError(404, "this server's certificate is not made by an authority of its own", code="not_found")
        return Response(ca, headers=HEADERS, media_type="application/x-x509-ca-cert")

    return Route("/ca.crt", authority)


def phone_notice(url: str, server: "Server") -> str:
    """What `gangpao serve --phone` prints: QR code, address of the page, and the size of the download."""
    return phone.notice(url, dict(server.settings.models), authority=server.settings.authority is not None)


def _asset(request: Request, asset: Asset, headers: Mapping[str, str]) -> Response:
    sent = {**headers, "etag": asset.etag, "vary": "accept-encoding"}
    if asset.etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=sent)
    if asset.packed and _takes_gzip(request):
        return Response(asset.packed, headers={**sent, "content-encoding": "gzip"}, media_type=asset.type)
    return Response(asset.body, headers=sent, media_type=asset.type)


def _takes_gzip(request: Request) -> bool:
    return "gzip" in request.headers.get("accept-encoding", "")


def _asset_named(assets: Mapping[str, Asset], name: str) -> Asset:
    if name not in assets:
        raise ApiError(404, "there is no such file here", code="not_found")
    return assets[name]


async def _library_file(request: Request) -> Response:
    """A file of somebody else's library, from the cache."""
    name = request.path_params["name"]
    path = libraries.find(name)
    if path is None:
        raise ApiError(404, "there is no such library here, or it is not fetched yet", code="not_found")
    etag = f'"{path.parent.name}"'
    sent = {**PHONE_HEADERS, "vary": "accept-encoding", "etag": etag}
    if etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=sent)
    if _takes_gzip(request):
        path, sent = path.with_name(path.name + ".gz"), {**sent, "content-encoding": "gzip"}
    return FileResponse(path, headers=sent, media_type=TYPES[Path(name).suffix])


async def _licences(request: Request) -> Response:
    return PlainTextResponse(await run_in_threadpool(libraries.licences), headers=HEADERS)


def _shell(assets: Mapping[str, Asset]) -> dict[str, object]:
    """What the phone page keeps for the time without a network; the version changes with any of it."""
    files = [
        (name, library.folder)
        for library in libraries.LIBRARIES
        for name in library.files.values()
        if libraries.find(name) and name != "wllama-compat.wasm" and name != "wllama-compat.js"
    ]
    names = [name for name in assets if name not in _NOT_OFFLINE]
    urls = [
        "/phone", "/phone/app/manifest.webmanifest", *(f"/web/{name}" for name in names),
        *(f"/parts/{name}" for name, _ in files),
    ]  # fmt: skip
    mark = json.dumps([[name, asset.etag] for name, asset in assets.items()] + [list(item) for item in files])
    return {"version": hashlib.sha256(mark.encode()).hexdigest()[:16], "urls": urls}


def _model_routes(server: "Server") -> list[Route]:
    models = dict(server.settings.models)

    async def listing(request: Request) -> Response:
        found = await run_in_threadpool(lambda: [phone.describe(*item) for item in phone.offers(models)])
        return JSONResponse({"models": found}, headers=PHONE_HEADERS)

    async def piece(request: Request) -> Response:
        name, index = request.path_params["name"], request.path_params["index"]
        offers = await run_in_threadpool(lambda: dict(phone.offers({name: models[name]} if name in models else {})))
        if name not in offers or not 1 <= index <= len(offers[name].pieces):
            raise ApiError(404, "there is no such model or piece here", code="model_not_found")
        return _model_piece(request, offers[name], index)

    return [Route("/phone/models", listing), Route("/phone/models/{name}/{index:int}", piece)]


def _model_piece(request: Request, offer: phone.Offer, number: int) -> Response:
    """A piece, or the range of it that is asked for; another ETag in If-Range gives the whole."""
    piece, etag = offer.pieces[number - 1], f'"{offer.etag(number)}"'
    sent = {**PHONE_HEADERS, "accept-ranges": "bytes", "etag": etag}
    if etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=sent)
    asked = request.headers.get("range")
    if request.headers.get("if-range", etag) != etag:
        asked = None
    try:
        span = phone.byte_range(asked, piece.size)
    except ValueError as error:
        raise ApiError(416, str(error), headers={"content-range": f"bytes */{piece.size}"}) from error
    start, stop = span or (0, piece.size)
    sent["content-length"] = str(stop - start)
    if span:
        sent["content-range"] = f"bytes {start}-{stop - 1}/{piece.size}"
    status, kind = 206 if span else 200, "application/octet-stream"
    if request.method == "HEAD":
        return Response(status_code=status, headers=sent, media_type=kind)
    body: Iterator[bytes] = gguf_split.read(offer.path, piece, start, stop)
    return StreamingResponse(body, status, headers=sent, media_type=kind)
