"""Servers on loopback that are busy, send elsewhere, send no end, or break off."""

from __future__ import annotations

import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from keju.eval.http_json import NoAnswer, is_loopback, post_json


@contextmanager
def serving(answer):
    """A server whose handler is `answer(handler, number of the request from 0)`."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            asked.append(self.path)
            try:
                answer(self, len(asked) - 1)
            except OSError:
                self.close_connection = True  # the client had enough

        do_GET = do_POST

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", asked
    finally:
        server.shutdown()
        server.server_close()


def send(handler, status: int, data: bytes = b"", length: int | None = None, **headers) -> None:
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(data) if length is None else length))
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(data)


def ask(url: str, **settings):
    return post_json(url, {"x": 1}, **{"timeout": 10, "wait": 0.01, **settings})


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_busy_server_is_asked_again(status):
    with serving(lambda handler, n: send(handler, *((status,) if n < 2 else (200, b"[1]")))) as (url, asked):
        assert ask(url) == [1] and len(asked) == 3


def test_it_is_given_the_time_that_it_asks_for():
    def answer(handler, n):
        send(handler, 200, b"2") if n else send(handler, 503, Retry_After="1")

    start = time.monotonic()
    with serving(answer) as (url, _):
        assert ask(url) == 2
    assert time.monotonic() - start >= 1


def test_but_not_for_ever():
    with serving(lambda handler, n: send(handler, 503, b"later \n on")) as (url, asked):
        with pytest.raises(NoAnswer, match="the server refused .503.: later on"):
            ask(url, tries=3)
        assert len(asked) == 3


@pytest.mark.parametrize("status", [400, 401, 404, 422])
def test_a_refusal_is_taken_at_once(status):
    with serving(lambda handler, n: send(handler, status, b"no")) as (url, asked):
        with pytest.raises(NoAnswer, match=f"the server refused .{status}.: no"):
            ask(url)
        assert len(asked) == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(status):
    with (
        serving(lambda handler, n: send(handler, 200, b"1")) as (elsewhere, seen),
        serving(lambda handler, n: send(handler, status, Location=elsewhere)) as (url, _),
    ):
        with pytest.raises(NoAnswer, match=f"the server sends elsewhere .{status}, to '{elsewhere}'"):
            ask(url)
        assert not seen


def test_an_answer_without_end_is_cut():
    def answer(handler, n):
        handler.send_response(200)
        handler.end_headers()
        while True:
            handler.wfile.write(b" " * 65536)

    with serving(answer) as (url, _), pytest.raises(NoAnswer, match="longer than 1,000,000 bytes"):
        ask(url, max_bytes=10**6)


def test_an_answer_that_trickles_is_given_up():
    def answer(handler, n):
        handler.send_response(200)
        handler.end_headers()
        for _ in range(100):
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.1)

    start = time.monotonic()
    with serving(answer) as (url, _), pytest.raises(NoAnswer, match="no whole answer within 1 seconds"):
        ask(url, timeout=1)
    assert time.monotonic() - start < 8


@pytest.mark.parametrize("broken", ["cut", "closed"])
def test_a_connection_that_breaks_is_tried_again(broken):
    def answer(handler, n):
        if n:
            send(handler, 200, b"[3]")
        elif broken == "cut":
            send(handler, 200, b"[", length=100)
            handler.close_connection = True
        else:
            handler.connection.close()

    with serving(answer) as (url, asked):
        assert ask(url) == [3] and len(asked) == 2


@pytest.mark.parametrize("data", [b"", b"<html>", b"\xff", b"[" * 200_000], ids=lambda data: repr(data[:6]))
def test_no_json(data):
    with serving(lambda handler, n: send(handler, 200, data)) as (url, asked):
        with pytest.raises(NoAnswer, match="the answer is no JSON"):
            ask(url)
        assert len(asked) == 1


def test_a_proxy_is_not_asked_about_this_machine(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    with serving(lambda handler, n: send(handler, 200, json.dumps({"a": "\u4e00"}).encode())) as (url, _):
        assert ask(url, tries=1) == {"a": "一"}


HERE = ("127.0.0.1/", "127.9.9.9:1", "[::1]:8000/v1", "localhost", "a.localhost")
ELSEWHERE = ("10.0.0.1", "localhost.example.org", "example.org/127.0.0.1", "1.127.0.0.1.com")


def test_hosts():
    assert all(is_loopback(f"http://{host}") for host in HERE)
    assert not any(is_loopback(f"http://{host}") for host in ELSEWHERE)
