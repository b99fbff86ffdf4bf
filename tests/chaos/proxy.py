"""A faulty network in front of an S3 endpoint: an HTTP proxy on loopback with seeded errors, stalls and cut bodies."""

from __future__ import annotations

import http.client
import random
import re
import socket
import threading
import time
import urllib.parse
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.chaos.processes import kill

STALL = 2.5  # seconds without an answer: longer than the clients of these tests wait
SLOW = (0.1, 0.6)  # seconds before a slow answer
CHANGES = ("PUT", "POST", "DELETE")
ERRORS = {
    500: ("InternalError", "We encountered an internal error. Please try again."),
    503: ("SlowDown", "Please reduce your request rate."),
    403: ("AccessDenied", "Access Denied"),
}


@dataclass
class Rule:
    """Which calls fail, and how; one rule per fault. `struck` counts the failed calls."""

    kind: str = "none"
    seed: int = 0
    share: float = 0.1  # of the calls, for the kinds that hit some
    at: int = 0  # index of the first write, or the only one, that is hit
    seconds: float = 0.0  # for how long new objects are not listed
    pid: int | None = None  # of the client, where it is to be killed
    struck: int = 0
    first: float | None = None  # monotonic, of the first strike
    writes: int = 0
    draw: random.Random = field(init=False)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.draw = random.Random(self.seed)

    def choose(self, method: str, listing: bool) -> str:
        """Return the name of the fault that hits this call, or ''."""
        with self.lock:
            write = method in CHANGES
            number, self.writes = self.writes, self.writes + write
            hits = {
                "500": self.draw.random() < self.share,
                "503": self.draw.random() < self.share,
                "timeout": self.draw.random() < self.share / 2,
                "slow": self.draw.random() < self.share,
                "torn PUT": method == "PUT" and number >= self.at and self.struck < 2,
                "torn GET": method == "GET" and not listing and self.draw.random() < self.share,
                "lost answer": write and number >= self.at and self.struck < 2,
                "stale listing": listing,
                "revoked": number >= self.at,
                "read-only": write and number >= self.at,
                "kill before": write and number == self.at,
                "kill after": write and number == self.at,
            }.get(self.kind, False)
            if not hits:
                return ""
            if self.kind != "stale listing":
                self.note()
            return self.kind

    def note(self) -> None:
        self.struck += 1
        self.first = self.first or time.monotonic()


class Proxy:
    """The proxy of one upstream; `rule` may change at any time."""

    def __init__(self, upstream: str) -> None:
        self.host, self.port = upstream.removeprefix("http://").split(":")
        self.rule = Rule()
        self.born: dict[str, float] = {}  # key -> monotonic of its first PUT
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": self}))
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def forget(self, listing: bytes) -> bytes:
        """Return a listing without the objects that are younger than the rule's seconds."""
        rule, now = self.rule, time.monotonic()

        def old(match: re.Match[bytes]) -> bytes:
            name = re.search(rb"<Key>(.*?)</Key>", match[0], re.DOTALL)
            key = urllib.parse.unquote_plus(name[1].decode()) if name else ""
            if now - self.born.get(key, -1e9) > rule.seconds:
                return match[0]
            rule.note()
            return b""

        return re.sub(rb"<Contents>.*?</Contents>", old, listing, flags=re.DOTALL)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: Proxy

    def do_GET(self) -> None:
        self.relay()

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass

    def relay(self) -> None:
        rule, listing = self.proxy.rule, self.command == "GET" and "list-type=2" in self.path
        fault = rule.choose(self.command, listing)
        if fault == "torn PUT":
            self.rfile.read(int(self.headers.get("Content-Length") or 2) // 2)
            return self.cut()
        body = self.body()
        if fault == "kill before" and rule.pid:
            kill(rule.pid)
            return self.cut()
        if fault == "timeout":
            time.sleep(STALL)
            return self.cut()
        if fault == "slow":
            time.sleep(rule.draw.uniform(*SLOW))
        code = {"500": 500, "503": 503, "revoked": 403, "read-only": 403}.get(fault)
        if code:
            name, message = ERRORS[code]
            text = f"<Error><Code>{name}</Code><Message>{message}</Message></Error>".encode()
            return self.reply(code, [("Content-Type", "application/xml")], text)
        status, headers, answer = self.upstream(body)
        if self.command == "PUT" and status < 300:
            self.proxy.born.setdefault(_key(self.path), time.monotonic())
        if fault == "kill after" and rule.pid:
            kill(rule.pid)
        if fault in ("lost answer", "kill after"):
            return self.cut()
        if fault == "stale listing":
            answer = self.proxy.forget(answer)
        self.reply(status, headers, answer, torn=fault == "torn GET")

    def body(self) -> bytes:
        if "chunked" not in (self.headers.get("Transfer-Encoding") or ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(parts)

    def upstream(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        dropped = ("transfer-encoding", "connection", "expect", "content-length")
        headers = {name: value for name, value in self.headers.items() if name.lower() not in dropped}
        connection = http.client.HTTPConnection(self.proxy.host, int(self.proxy.port), timeout=60)
        try:
            connection.request(self.command, self.path, body, {**headers, "Content-Length": str(len(body))})
            response = connection.getresponse()
            return response.status, response.getheaders(), response.read()
        finally:
            connection.close()

    def reply(self, status: int, headers: list[tuple[str, str]], body: bytes, torn: bool = False) -> None:
        length = str(len(body))
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() == "content-length" and self.command == "HEAD":
                length = value
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if torn else body)
        if torn:
            self.cut()

    def cut(self) -> None:
        """Close the connection."""
        self.close_connection = True
        try:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
        except OSError:  # the client has closed it
            pass


def _key(path: str) -> str:
    """Return the key in an object's path, without bucket and query."""
    return urllib.parse.unquote(path.partition("?")[0].lstrip("/").partition("/")[2])
