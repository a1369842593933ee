"""Asking a server that may be down for a moment, lie, or never end: JSON there and back, within bounds."""

from __future__ import annotations

import ipaddress
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from http.client import HTTPException
from typing import Any

BUSY = (429, 500, 502, 503, 504)  # answers after which it is worth asking again
LONGEST_WAIT = 60.0  # seconds between two tries, whatever the server asks for
PIECE = 1 << 16


class NoAnswer(ValueError):
    """What a server gave instead of JSON, in one line."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would send prompts, and what the URL carries, to wherever the server says."""

    def redirect_request(self, request, file, code, message, headers, newurl):
        return None


def post_json(
    url: str, body: Any, *, timeout: float, tries: int = 5, max_bytes: int = 1 << 30, wait: float = 1.0
) -> Any:
    """The JSON that a server answers to `body`.

    A server that is busy or not there yet is asked again, `tries` times in all, after `wait` seconds and then twice as
    long each time, or as long as its Retry-After says. Redirects are not followed. Proxies of the environment are used,
    but not for this machine.

    Args:
        timeout: seconds for the whole of one answer.
        max_bytes: the longest answer.
    Raises:
        NoAnswer: nothing came that is JSON, for all tries; or an answer that says why not.
    """
    request = urllib.request.Request(url, json.dumps(body).encode("utf-8"), {"Content-Type": "application/json"})
    proxies = [urllib.request.ProxyHandler({})] if is_loopback(url) else []
    opener = urllib.request.build_opener(_NoRedirect, *proxies)
    for left in reversed(range(tries)):
        pause = wait * 2 ** (tries - 1 - left)
        try:
            return _answer(opener, request, timeout, max_bytes)
        except urllib.error.HTTPError as error:
            if error.code not in BUSY or not left:
                raise NoAnswer(_refusal(error)) from error
            pause = max(pause, _retry_after(error))
        except NoAnswer:
            raise
        except (OSError, HTTPException, ValueError) as error:  # also a URL that is none
            is_timeout = isinstance(error, TimeoutError)
            if not left or is_timeout or not isinstance(error, (OSError, HTTPException)):
                raise NoAnswer(f"no answer ({error or type(error).__name__})") from error
        time.sleep(min(pause, LONGEST_WAIT))
    raise AssertionError("tries is at least 1")


def is_loopback(url: str) -> bool:
    """Whether a URL is of this machine."""
    host = urllib.parse.urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _answer(
    opener: urllib.request.OpenerDirector, request: urllib.request.Request, timeout: float, max_bytes: int
) -> Any:
    end = time.monotonic() + timeout
    data = bytearray()
    with opener.open(request, timeout=timeout) as response:
        while piece := response.read1(PIECE):
            data += piece
            if len(data) > max_bytes:
                raise NoAnswer(f"the answer is longer than {max_bytes:,} bytes")
            if time.monotonic() > end:
                raise NoAnswer(f"no whole answer within {timeout:g} seconds")
        length = response.headers.get("Content-Length")
    if length is not None and length.isdigit() and len(data) < int(length):
        raise ConnectionError(f"the answer ended after {len(data):,} of {int(length):,} bytes")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise NoAnswer(f"the answer is no JSON: {bytes(data[:200]).decode('utf-8', 'replace')!r}") from error


def _refusal(error: urllib.error.HTTPError) -> str:
    if 300 <= error.code < 400:
        return f"the server sends elsewhere ({error.code}, to {error.headers.get('Location')!r}), which is not followed"
    try:
        reason = error.read(500).decode("utf-8", "replace")
    except (OSError, HTTPException):
        reason = ""
    return f"the server refused ({error.code}): {' '.join(reason.split())}"


def _retry_after(error: urllib.error.HTTPError) -> float:
    value = error.headers.get("Retry-After", "")
    return float(value) if value.isdigit() else 0.0  # or a date, for which our own pause is good enough
