from __future__ import annotations

import io
import json
from dataclasses import dataclass

import pytest
from rich.console import Console
from rich.progress import track

from keju.records.url_keys import url_without_key
from keju.training.progress import Progress
from keju.training.provenance import plain_arguments, without_secrets
from keju.training.tee import LogFile, Tee
from keju.training.terminal import Terminal, visible

HOSTILE = [
    "\x1b]0;title\x07",
    "\x1b]52;c;Y2xpcGJvYXJk\x07",
    "\x1b]8;;http://x\x1b\\\\link",
    "\x1b[2J\x1b[H",
    "\x1b[999;1H",
    "\x1bP+q544e\x1b\\\\",
    "\x9b2J",
    "\x9d0;title\x9c",
    "\x07\x08\x7f\x0c\x0b\x00",
    "\u202egpj.exe\u2066",
    "\x1bc",
    "\x1b",
]


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_a_text_cannot_command_the_terminal(text):
    stream = io.StringIO()
    Terminal(stream).write(f"before {text} 后\n")
    for shown in (stream.getvalue(), visible(f"before {text} 后\n")):
        assert shown.startswith("before ") and shown.endswith(" 后\n")
        assert all(character.isprintable() or character == "\n" for character in shown)


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_nor_whoever_reads_the_log(text, tmp_path):
    log = LogFile(tmp_path / "log")
    Tee(io.StringIO(), log).write(f"{text}\n")
    log.close()
    assert all(character.isprintable() or character == "\n" for character in (tmp_path / "log").read_text())


def test_a_line_cannot_be_written_over():
    assert visible("good\rbad\r\nnext\tone") == "good\\rbad\nnext\tone"
    assert visible("\x1b[1A\x1b[2K\x1b[8m") == "\\x1b[1A\\x1b[2K\\x1b[8m"


def test_our_own_tables_and_bars_are_as_they_were():
    shown = []
    for wrap in (lambda stream: stream, Terminal):
        stream = io.StringIO()
        console = Console(file=wrap(stream), force_terminal=True, width=40)
        console.print("[bold red]text[/]")
        list(track(range(3), console=console, description="x", transient=True, update_period=60))
        shown.append(stream.getvalue())
    assert shown[1].startswith(shown[0][:20]) and "\\x1b" not in shown[1]


@pytest.mark.parametrize("encoding", ["ascii", "gbk", "latin-1", "utf-8"])
def test_any_encoding_takes_any_text(encoding, monkeypatch):
    raw = io.BytesIO()
    stream = Terminal(io.TextIOWrapper(raw, encoding=encoding, write_through=True))
    stream.write("文本 \U0001f600 \udc80 ä\n")
    assert raw.getvalue().endswith(b"\n")
    monkeypatch.setattr("sys.stderr", stream)
    stream.isatty = lambda: True
    with Progress(4, "数据") as bar:
        bar.advance(2)
    assert (b"0/4" in raw.getvalue()) and (b"...." in raw.getvalue()) == (encoding != "utf-8")


@pytest.mark.parametrize("columns", [1, 2, 10, 40])
def test_a_bar_is_no_wider_than_the_terminal(columns, monkeypatch):
    from rich.cells import cell_len

    monkeypatch.setenv("COLUMNS", str(columns))
    stream = io.StringIO()
    stream.isatty = lambda: True
    monkeypatch.setattr("sys.stderr", stream)
    with Progress(4, "编码 数据集.jsonl"):
        drawn = stream.getvalue().removeprefix("\r\x1b[K")
    assert cell_len(drawn) <= max(1, columns - 1) or columns < 3


@dataclass
class Arguments:
    server_url: str
    hub_token: str = "secret1"
    api_key: str = "secret2"
    urls: tuple = ("https://x/v1?key=secret3",)


@pytest.mark.parametrize(
    "url",
    [
        "https://user:SECRET@host:80/v1",
        "https://SECRET@host/v1",
        "http://host/v1?api_key=SECRET",
        "http://host/v1?a=1&access_token=SECRET&b=2",
        "http://host/v1?X-Amz-Signature=SECRET",
        "http://host/v1#token=SECRET",
    ],
)
def test_keys_in_urls_are_not_written_down(url):
    assert "SECRET" not in url_without_key(url) and url_without_key(url).partition("://")[2][:4] in ("host", "<hid")
    argv = ["--server_url", url, f"--server_url={url}"]
    kept = json.dumps([plain_arguments([Arguments(url)]), without_secrets(argv)])
    assert "SECRET" not in kept and "secret" not in kept


def test_other_texts_stay():
    for text in ("http://host:8000/v1?b=2", "a@b", "s3://bucket/key=1", "runs/sft", "x=1&token"):
        assert url_without_key(text) == text
    assert without_secrets(["--label_key", "x", "--seed", "1"]) == ["--label_key", "<hidden>", "--seed", "1"]
