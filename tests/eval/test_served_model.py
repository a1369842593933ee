"""A server on loopback that speaks the completions API: scores and answers are those of the model behind it."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from char_tokenizer import build_char_tokenizer
from exam_takers import local
from tiny_models import build_llama

from keju.encoding.encoder import Encoder
from keju.eval.scoring import Question
from keju.eval.served_model import ServedModel, check_url

QUESTIONS = [
    Question([1, 5, 6], [[7], [8, 9]]),
    Question([1, 5], [[7, 9, 11]], num_scored=1),
    Question([1, 20, 21, 22], [[7], [8], [9], [10]]),
]


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(build_char_tokenizer(), 256)


@pytest.fixture(scope="module")
def model(encoder):
    return build_llama(vocab_size=len(encoder.tokenizer))


@contextmanager
def serving(answer):
    """A server that answers each request's JSON with `answer(body)`: (status, JSON)."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, content = answer(body) if self.path == "/v1/completions" else (404, {"error": self.path})
            data = json.dumps(content).encode("utf-8")
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()


@torch.no_grad()
def complete(model, tokenizer, row: list[int], body: dict) -> dict:
    """One prompt, row by row and token by token, as a plain server would."""
    ids, room = list(row), body["max_tokens"]
    for _ in range(room):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    choice = {"text": tokenizer.decode(ids[len(row) :])}
    if body.get("echo"):
        logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        sums = [None, *(logprobs[place - 1, ids[place]].item() for place in range(1, len(ids)))]
        choice["logprobs"] = {"token_logprobs": sums}
    return choice


def answering(model, tokenizer, seen: list):
    def answer(body):
        seen.append(body)
        choices = [{"index": n, **complete(model, tokenizer, row, body)} for n, row in enumerate(body["prompt"])]
        return 200, {"choices": choices[::-1]}  # servers promise no order

    return answer


def test_scores_are_those_of_the_model(model, encoder):
    seen, told = [], []
    with serving(answering(model, encoder.tokenizer, seen)) as url:
        served = ServedModel(url, "m", batch_size=2).score(QUESTIONS, lambda done, tokens: told.append(done))
    here = local(model, encoder).score(QUESTIONS, lambda done, tokens: None)
    for got, expected in zip(served, here, strict=True):
        assert got == pytest.approx(expected, abs=1e-4)
    assert [len(body["prompt"]) for body in seen] == [3, 4]
    assert all(body["model"] == "m" and body["temperature"] == 0 for body in seen)
    assert {index: sums for done in told for index, sums in done.items()} == dict(enumerate(served))


def test_answers_are_those_of_the_model(model, encoder):
    prompts = [[1, 5, 6], [1, 30], [1, 40, 41, 42]]
    with serving(answering(model, encoder.tokenizer, [])) as url:
        texts = ServedModel(url + "/", "m", batch_size=2).write(prompts, 4, lambda done, tokens: None)
    here = [complete(model, encoder.tokenizer, row, {"max_tokens": 4})["text"] for row in prompts]
    assert texts == here


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda body: (400, {"error": "no such model"}), "the server refused .400.: .*no such model"),
        (lambda body: (200, choices(2, logprobs=None)), "the server gives no log-probabilities"),
        (lambda body: (200, {"detail": "?"}), "no answer with choices"),
        (lambda body: (200, []), "no answer with choices"),
        (lambda body: (200, {"choices": None}), "no answer with choices"),
        (lambda body: (200, {"choices": [1, 2]}), "no answer with choices"),
        (lambda body: (200, {"choices": []}), "0 choices for 2 prompts"),
        (lambda body: (200, choices(2, index=0)), "2 choices for 2 prompts, numbered .0."),
        (lambda body: (200, choices(2, index="0")), "2 choices for 2 prompts"),
        (lambda body: (200, choices(3)), "3 choices for 2 prompts"),
        (lambda body: (200, choices(2, text=None)), 'a choice without "text"'),
        (lambda body: (200, choices(2, logprobs=[])), "the server gives no log-probabilities"),
        (lambda body: (200, choices(2, logprobs={"token_logprobs": {}})), "the server gives no log-probabilities"),
        (lambda body: (200, choices(2, token=None)), "the server gives log-probabilities that are none"),
        (lambda body: (200, choices(2, token="-1")), "the server gives log-probabilities that are none"),
        (lambda body: (200, choices(2, token=float("nan"))), "the server gives log-probabilities that are none"),
        (lambda body: (200, choices(2, token=float("-inf"))), "the server gives log-probabilities that are none"),
        (lambda body: (200, choices(2, token=0.5)), "the server gives log-probabilities that are none"),
    ],
)
def test_servers_that_cannot_are_named(answer, message):
    with serving(answer) as url, pytest.raises(ValueError, match=f"^server_url: {url}: {message}"):
        ServedModel(url, "m", tries=1).score(QUESTIONS[:1], lambda done, tokens: None)


def choices(count: int, token=-1.0, **fields) -> dict:
    logprobs = {"token_logprobs": [None, *[token] * 9]}
    return {"choices": [{"index": n, "text": "", "logprobs": logprobs, **fields} for n in range(count)]}


def test_keys_in_the_url_are_not_said():
    with pytest.raises(ValueError, match="^server_url: http://<hidden>@127.0.0.1:9/v1: no answer") as error:
        ServedModel("http://me:SECRET@127.0.0.1:9/v1", "m", timeout=5, tries=1).write([[1]], 4, lambda *_: None)
    assert "SECRET" not in str(error.value)


def test_nobody_there():
    with pytest.raises(ValueError, match="^server_url: http://127.0.0.1:9/v1: no answer"):
        ServedModel("http://127.0.0.1:9/v1", "m", timeout=5, tries=1).write([[1]], 4, lambda done, tokens: None)
    for url in ("127.0.0.1:8000", "file:///etc/passwd", "ftp://x/v1"):
        with pytest.raises(ValueError, match=f"^server_url: {url}: expected something like http"):
            check_url(url)
