"""A real server on this machine that answers as a judge would, and misbehaves when told to."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

RATINGS = {
    "lexical": 1,
    "syntactic": 2,
    "conceptual_density": 3,
    "domain_specificity": 4,
    "logical_structure": 5,
    "contextual_dependencies": 6,
}
SCORE = 0.2 * 1 + 0.2 * 2 + 0.25 * 3 + 0.15 * 4 + 0.1 * 5 + 0.1 * 6


class Reply(NamedTuple):
    """What the server does with one request."""

    status: int = 200
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    delay: float = 0.0
    trickle: bool = False


def completion(content: Any) -> bytes:
    """A chat completion whose message is ``content``."""
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]}).encode()


def rated(**changes: Any) -> Reply:
    """A good answer, or one with some ratings changed (None leaves one out)."""
    ratings = {name: value for name, value in (RATINGS | changes).items() if value is not None}
    return Reply(body=completion(json.dumps(ratings)))


Behaviour = Callable[[str, int], Reply]


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client that was killed is no fault
            super().handle_error(request, client_address)


class JudgeServer:
    """Answers each request by ``behave(text, how often this text came before)``.

    Attributes:
        asked: how often each text came.
        requests: (arrival, headers, body) of every request.
        most: most requests under way at a time.
    """

    def __init__(self) -> None:
        self.behave: Behaviour = lambda text, before: rated()
        self.asked: Counter[str] = Counter()
        self.requests: list[tuple[float, dict[str, str], dict[str, Any]]] = []
        self.most = self._now = 0
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> JudgeServer:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                text = body["messages"][-1]["content"]
                with outer._lock:
                    before = outer.asked[text]
                    outer.asked[text] += 1
                    outer.requests.append((time.monotonic(), dict(self.headers), body))
                    outer._now += 1
                    outer.most = max(outer.most, outer._now)
                try:
                    good = self.path == "/v1/chat/completions"
                    self.reply(outer.behave(text, before) if good else Reply(404, b'{"error": "no such path"}'))
                except (BrokenPipeError, ConnectionResetError):  # the client went away
                    self.close_connection = True
                finally:
                    with outer._lock:
                        outer._now -= 1

            def reply(self, reply: Reply) -> None:
                time.sleep(reply.delay)
                self.send_response(reply.status)
                for name, value in reply.headers:
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(reply.body)))
                self.end_headers()
                for at in range(0, len(reply.body), 1 if reply.trickle else max(1, len(reply.body))):
                    self.wfile.write(reply.body[at : at + 1] if reply.trickle else reply.body)
                    time.sleep(0.02 if reply.trickle else 0)

            def log_message(self, *arguments: Any) -> None:
                pass

        return Handler
