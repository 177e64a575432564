"""A stand-in for vLLM: its command line (`vllm serve FOLDER --option ...`) and the part of its API that our tests look at.

Like vLLM it listens only once the model is loaded, asks for VLLM_API_KEY under /v1 and nowhere else, answers /health with an
empty 200, and stops an answer whose client is gone. It knows the options of vLLM that we write or document, and ends with
argparse's code 2 for others. What it sees goes to the file FAKE_VLLM_LOG, one JSON object a line; FAKE_VLLM says what to do:
"slow" (load for a second), "die" (say why, exit 3), "stubborn" (ignore SIGTERM), "crash" (killed at the first question).
"""

import argparse
import json
import os
import signal
import socket
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODE = os.environ.get("FAKE_VLLM", "")


def log(**what: Any) -> None:
    with open(os.environ["FAKE_VLLM_LOG"], "a", encoding="utf-8") as file:
        file.write(json.dumps(what) + "\n")


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="vllm")
    serve = parser.add_subparsers(dest="command", required=True).add_parser("serve")
    serve.add_argument("model_tag")
    for name in ("host", "served-model-name", "load-format", "dtype", "distributed-executor-backend", "kv-cache-dtype"):
        serve.add_argument(f"--{name}")
    for name in ("port", "max-model-len", "max-num-seqs"):
        serve.add_argument(f"--{name}", type=int)
    serve.add_argument("--tensor-parallel-size", "-tp", type=int, default=1)
    serve.add_argument("--pipeline-parallel-size", "-pp", type=int, default=1)
    serve.add_argument("--gpu-memory-utilization", type=float, default=0.9)
    serve.add_argument("--enable-prefix-caching", action="store_true")
    return parser.parse_args()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    args: argparse.Namespace

    def do_GET(self) -> None:
        log(path=self.path)
        if self.path == "/health":
            return self.reply(200, b"")
        if self.path == "/metrics":
            return self.reply(200, b"vllm:num_requests_running 0.0\n", "text/plain; version=0.0.4")
        if self.path == "/sleep":  # administration, without a key
            return self.reply(200, b"{}")
        if not self.allowed():
            return None
        if self.path.startswith("/v1/models"):
            name = self.args.served_model_name
            model = {"id": name, "object": "model", "owned_by": "vllm", "root": self.args.model_tag}
            return self.reply(200, json.dumps({"object": "list", "data": [model]}).encode())
        return self.reply(404, b'{"detail":"Not Found"}')

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        log(path=self.path, body=body, headers={k.lower(): v for k, v in self.headers.items()})
        if not self.allowed():
            return None
        if MODE == "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        if body.get("model") != self.args.served_model_name:
            error = {
                "message": f"The model `{body.get('model')}` does not exist.",
                "type": "NotFoundError",
                "code": 404,
            }
            return self.reply(404, json.dumps({"error": error}).encode())
        if body.get("stream"):
            return self.stream(body)
        message = {"role": "assistant", "content": "from vllm"}
        whole = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": {"total_tokens": 3}}
        return self.reply(200, json.dumps(whole).encode())

    do_DELETE = do_GET

    def allowed(self) -> bool:
        if self.headers.get("authorization") == f"Bearer {os.environ['VLLM_API_KEY']}":
            return True
        self.reply(401, b'{"error":"Unauthorized"}')
        return False

    def reply(self, status: int, body: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def stream(self, body: dict[str, Any]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        tokens = body.get("max_tokens", 3)
        try:
            for i in range(tokens):
                delta = {"content": f"word{i} "}
                self.event({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
                time.sleep(0.02)
                if body.get("die_at") == i:
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
            self.event({"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]})
            self.event(
                {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": tokens, "total_tokens": 5 + tokens}}
            )
            self.event("[DONE]")
            self.wfile.write(b"0\r\n\r\n")
            log(finished=tokens)
        except OSError:
            log(aborted=True)
            self.close_connection = True

    def event(self, data: Any) -> None:
        raw = f"data: {data if isinstance(data, str) else json.dumps(data)}\n\n".encode()
        self.wfile.write(f"{len(raw):x}\r\n".encode() + raw + b"\r\n")
        self.wfile.flush()

    def log_message(self, *_: Any) -> None:
        pass


def main() -> None:
    log(argv=sys.argv[1:], offline=os.environ.get("HF_HUB_OFFLINE"), pid=os.getpid())
    args = options()
    print("INFO 11-24 12:00:00 [api_server.py] vLLM API server version 0.0.0 (a stand-in)", flush=True)
    if MODE == "die":
        print("Traceback (most recent call last):\nRuntimeError: no GPU was found", file=sys.stderr, flush=True)
        sys.exit(3)
    if MODE == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, lambda *_: (log(terminated=True), os._exit(0)))
    time.sleep(1.0 if MODE == "slow" else 0.0)
    Handler.args = args
    server = ThreadingHTTPServer((args.host, args.port), Handler)
    server.daemon_threads = True
    server.serve_forever(poll_interval=0.02)


if __name__ == "__main__":
    main()
