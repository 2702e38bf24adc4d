"""The server of a live page, asked over HTTP."""

import gzip
import http.client
import json
import threading
from collections.abc import Iterator

import pytest

from orchestrator.report.serve import PageServer


class Pages:
    """Counts what is made."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.now = "1"

    def stamp(self) -> str:
        return self.now

    def status(self) -> list[str]:
        return ["well"]

    def page(self, stamp: str) -> bytes:
        self.made.append(f"page {stamp}")
        return f"<p>{stamp}".encode()

    def payload(self, stamp: str) -> bytes:
        self.made.append(f"payload {stamp}")
        return gzip.compress(b"[1]")


@pytest.fixture
def server() -> Iterator[PageServer]:
    with PageServer(Pages(), 0) as made:
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def ask(server: PageServer, path: str, host: str = "localhost:1") -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection(*server.server_address)
    connection.request("GET", path, headers={"Host": host})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer, body


def test_page_status_and_payload_carry_their_stamp(server):
    assert ask(server, "/")[1] == b"<p>1"
    answer, body = ask(server, "/payload")
    assert (gzip.decompress(body), answer.headers["X-Stamp"]) == (b"[1]", "1")
    assert json.loads(ask(server, "/status")[1]) == {"stamp": "1", "runs": ["well"]}


def test_a_page_is_made_once_for_each_stamp(server):
    for _ in range(2):
        ask(server, "/")
    server.pages.now = "2"
    for _ in range(2):
        ask(server, "/")
    assert server.pages.made == ["page 1", "page 2"]


@pytest.mark.parametrize("host", ["evil.example:8400", "evil.example", "127.0.0.1.evil.example:1"])
def test_a_name_that_is_not_the_loopbacks_is_refused(server, host):
    assert ask(server, "/", host)[0].status == 403
    assert server.pages.made == []


@pytest.mark.parametrize("path", ["/other", "/../etc/passwd", "/status/x"])
def test_nothing_else_is_served(server, path):
    assert ask(server, path)[0].status == 404


def test_it_listens_on_the_loopback_alone(server):
    assert server.server_address[0] == "127.0.0.1"
