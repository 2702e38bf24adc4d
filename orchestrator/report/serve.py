"""The page of runs that go on, on the loopback: it is made anew when the files of a run have changed.

    /          the page
    /status    how the runs stand now, and a stamp of their files; the page asks every other second
    /payload   what the page shows, for a page whose stamp is older

A site in the reader's browser could have its own name lead here: only requests for the loopback are answered.
"""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Protocol
from urllib.parse import urlsplit

HOST = "127.0.0.1"
OWN_NAMES = ("127.0.0.1", "localhost", "[::1]")


class Pages(Protocol):
    """What is served. *stamp* changes with the files of the runs."""

    def stamp(self) -> str: ...

    def status(self) -> object:
        """To be written as JSON."""
        ...

    def page(self, stamp: str) -> bytes: ...

    def payload(self, stamp: str) -> bytes:
        """Gzipped JSON."""
        ...


class PageServer(ThreadingHTTPServer):
    """Listens on *port* of the loopback, or on one that is free for 0. Raises OSError."""

    daemon_threads = True

    def __init__(self, pages: Pages, port: int) -> None:
        super().__init__((HOST, port), _Handler)
        self.pages = pages
        self.making = threading.Lock()
        self._made: dict[str, tuple[str, bytes]] = {}

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.server_address[1]}/"

    def made(self, what: str, make: Callable[[str], bytes]) -> tuple[str, bytes]:
        """The stamp, and what *make* gives: it is asked once for each stamp, however many read."""
        with self.making:
            stamp = self.pages.stamp()
            if self._made.get(what, ("", b""))[0] != stamp:
                self._made[what] = (stamp, make(stamp))
            return self._made[what]


class _Handler(BaseHTTPRequestHandler):
    server: PageServer

    def do_GET(self) -> None:
        if self.headers.get("Host", "").rpartition(":")[0] not in OWN_NAMES:
            self.send_error(403, "only the loopback is served")
            return
        pages = self.server.pages
        match urlsplit(self.path).path:
            case "/":
                stamp, body = self.server.made("page", pages.page)
                self._answer("text/html; charset=utf-8", stamp, body)
            case "/payload":
                stamp, body = self.server.made("payload", pages.payload)
                self._answer("application/json", stamp, body, ("Content-Encoding", "gzip"))
            case "/status":
                stamp = pages.stamp()
                body = json.dumps({"stamp": stamp, "runs": pages.status()}).encode()
                self._answer("application/json", stamp, body)
            case _:
                self.send_error(404)

    def _answer(self, kind: str, stamp: str, body: bytes, *headers: tuple[str, str]) -> None:
        self.send_response(200)
        for name, value in (("Content-Type", kind), ("Content-Length", str(len(body))), ("X-Stamp", stamp), *headers):
            self.send_header(name, value)
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the terminal is the reader's."""
