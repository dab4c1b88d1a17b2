"""Scorers behind HTTP: the three wires, retries, deadlines, and answers that are none."""

import asyncio
import contextlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import rewards
import rewards.model
from rewards import Case, Outcome, UsageError
from rewards.model.remote import address

SAID = ({"role": "user", "content": "1 + 2 ?"}, {"role": "assistant", "content": "it is 3"})


class Server(ThreadingHTTPServer):
    """Answers by ``plan(path, body, number)`` -> (status, answer, headers); keeps the requests."""

    daemon_threads = True

    def __init__(self, plan):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.plan, self.asked, self.keys = plan, [], []
        self.now, self.most = 0, 0
        self.lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request, client_address):
        """A client that went away is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "null")
        with server.lock:
            server.asked.append((self.path, body))
            server.keys.append(self.headers.get("Authorization"))
            number = len(server.asked)
            server.now += 1
            server.most = max(server.most, server.now)
        try:
            planned = server.plan(self.path, body, number)
        finally:
            with server.lock:
                server.now -= 1
        if planned is None:  # hang up
            self.close_connection = True
            return
        status, answer, *headers = planned
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        for name, value in (headers[0] if headers else {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST

    def log_message(self, *args):
        """Quiet."""


@contextlib.contextmanager
def serving(plan):
    server = Server(plan)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


def length(path, body, number):
    """A scorer of the documented contract: the length of the completion."""
    return 200, {"scores": [len(one["completion"]) / 4 for one in body["inputs"]]}


def judged(reward, completion="it is 3", messages=(), timeout_s=30.0):
    async def run():
        case = Case("1 + 2 ?", completion, None, messages)
        score = await rewards.apply(reward, case, timeout_s=timeout_s)
        await reward.close()
        return score

    return asyncio.run(run())


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("rewards.http.FIRST_WAIT_S", 0.01)


def test_the_documented_contract():
    with serving(length) as server:
        reward = rewards.model.load(f"{server.url}/score", name="length")
        system = {"role": "system", "content": "be brief"}
        score = judged(reward, messages=(system, *SAID))
        assert (score.value, score.outcome) == (7 / 4, Outcome.WRONG)
        path, body = server.asked[-1]
        assert path == "/score"
        one = {"messages": [system, *SAID], "prompt": "1 + 2 ?", "completion": "it is 3"}
        assert body == {"inputs": [one]}


def test_openrlhf_is_sent_rendered_text(checkpoint):
    def serve_rm(path, body, number):
        return 200, {"rewards": [[float(len(text))] for text in body["query"]]}

    with serving(serve_rm) as server:
        with pytest.raises(UsageError, match="pass tokenizer="):
            rewards.model.load(f"{server.url}/get_reward")
        reward = rewards.model.load(f"{server.url}/get_reward", tokenizer=str(checkpoint))
        text = "<|im_start|>user\n1 + 2 ?<|im_end|>\n<|im_start|>assistant\nit is 3<|im_end|>\n"
        assert judged(reward).value == len(text)
        assert server.asked[-1] == ("/get_reward", {"query": [text]})


@pytest.mark.parametrize(
    "trouble",
    [(429, {}), (500, {"error": {"message": "busy"}}), (503, b"<html>"), None],
    ids=["429", "500", "503", "hang-up"],
)
def test_passing_trouble_is_tried_again(trouble):
    with serving(lambda path, body, n: trouble if n <= 3 else length(path, body, n)) as server:
        reward = rewards.model.load(f"{server.url}/score", check=False)
        assert judged(reward).value == 7 / 4
        assert len(server.asked) == 4


def test_lasting_trouble_is_an_error_and_never_a_zero():
    with serving(lambda *_: (503, {"error": {"message": "no GPU"}})) as server:
        reward = rewards.model.load(f"{server.url}/score", check=False, attempts=3)
        score = judged(reward)
        assert (score.value, score.outcome) == (None, Outcome.ERROR)
        assert "in 3 attempts" in score.detail and "status 503: no GPU" in score.detail
        assert len(server.asked) == 3 and reward.counts["unjudged"] == 1


def test_a_refusal_is_not_tried_again():
    with serving(lambda *_: (400, {"error": {"message": "too many tokens"}})) as server:
        score = judged(rewards.model.load(f"{server.url}/score", check=False))
        assert (score.value, score.outcome) == (None, Outcome.ERROR)
        assert "status 400: too many tokens" in score.detail and len(server.asked) == 1


def test_retry_after_is_kept():
    def busy(path, body, number):
        return (429, {}, {"Retry-After": "1"}) if number == 1 else length(path, body, number)

    with serving(busy) as server:
        began = time.monotonic()
        assert judged(rewards.model.load(f"{server.url}/score", check=False)).value == 7 / 4
        assert 1.0 <= time.monotonic() - began < 5.0


def test_a_deadline_names_itself_and_what_was_tried():
    release = threading.Event()

    def slow(path, body, number):
        if number == 1:
            return 503, {}
        release.wait(20)
        return 200, {"scores": [1.0]}

    with serving(slow) as server:
        reward = rewards.model.load(f"{server.url}/score", check=False, timeout_s=0.4)
        began = time.monotonic()
        score = judged(reward)
        assert time.monotonic() - began < 5.0
        assert (score.value, score.outcome) == (None, Outcome.TIMEOUT)
        assert "in 0.4 s (timeout_s): attempt 1: status 503" in score.detail
        release.set()


def test_the_number_of_requests_at_once_is_limited():
    def slow(path, body, number):
        time.sleep(0.02)
        return length(path, body, number)

    async def many(reward):
        found = await asyncio.gather(*(reward("p", "x" * i) for i in range(40)))
        await reward.close()
        return found

    with serving(slow) as server:
        reward = rewards.model.load(f"{server.url}/score", concurrency=4)
        for _ in range(2):  # a second event loop
            assert [s.value for s in asyncio.run(many(reward))] == [i / 4 for i in range(40)]
        assert 2 <= server.most <= 4


@pytest.mark.parametrize(
    "answer",
    [
        {},
        [],
        None,
        {"scores": []},
        {"scores": [1.0, 2.0]},
        {"scores": [None]},
        {"scores": ["1.0"]},
        {"scores": [True]},
        {"scores": [[1.0, 2.0]]},
        b'{"scores": [NaN]}',
        b'{"scores": [1e999]}',
        b'{"scores": [1' + b"0" * 400 + b"]}",
        b"scores: 1",
    ],
)
def test_an_answer_without_a_score_is_an_error(answer):
    with serving(lambda *_: (200, answer)) as server:
        score = judged(rewards.model.load(f"{server.url}/score", check=False))
        assert (score.value, score.outcome) == (None, Outcome.ERROR)
        assert "Traceback" not in score.detail
        with pytest.raises(UsageError, match=f"{server.url}/score"):
            rewards.model.load(f"{server.url}/score")


def test_the_key_is_sent_and_not_shown(monkeypatch):
    def refuses(path, body, number):
        return 403, {"error": {"message": "bad key sesame"}}

    monkeypatch.setenv("RM_KEY", "sesame")
    with serving(refuses) as server:
        reward = rewards.model.load(f"{server.url}/score", check=False, api_key_env="RM_KEY")
        score = judged(reward)
        assert server.keys == ["Bearer sesame"]
        assert "bad key ***" in score.detail and "sesame" not in score.detail
        with pytest.raises(UsageError, match=r"answered 403 .*bad key \*\*\*"):
            rewards.model.load(f"{server.url}/score", api_key_env="RM_KEY")


def test_nobody_there_says_what_was_tried():
    with serving(length) as server:
        url = server.url
    with pytest.raises(UsageError, match=f"POST {url}/score was tried and nobody answered"):
        rewards.model.load(f"{url}/score")
    score = judged(rewards.model.load(f"{url}/score", check=False, attempts=2))
    assert (score.value, score.outcome) == (None, Outcome.ERROR)
    assert "in 2 attempts" in score.detail


def test_no_vllm_behind_a_bare_address():
    why = "no vLLM server; .*api='scores'"
    with serving(lambda *_: (404, {})) as server, pytest.raises(UsageError, match=why):
        rewards.model.load(server.url)


def fake_vllm(version="0.32.0", *, labels=1, tokens=None, classify=200):
    """A plan; the real server is in test_model_vllm.py."""

    def plan(path, body, number):
        if path == "/v1/models":
            return 200, {"data": [{"id": "rm", "root": "/nowhere", "max_model_len": 64}]}
        if path == "/version":
            return 200, {"version": version}
        if path == "/tokenize":
            return (200, {"tokens": tokens}) if tokens else (404, {})
        return classify, {"data": [{"probs": [0.25 * i for i in range(labels)]}]}

    return plan


@pytest.mark.parametrize(
    ("plan", "why"),
    [
        ({"version": "0.11.1"}, "vLLM 0.11.1 gives no raw logits"),
        ({"labels": 2}, "2 labels; choose one"),
        ({"tokens": [1, 2, 3]}, "different tokens of one text"),
        ({"classify": 404}, "--runner pooling --convert classify"),
    ],
)
def test_a_vllm_that_does_not_fit(checkpoint, plan, why):
    with serving(fake_vllm(**plan)) as server, pytest.raises(UsageError, match=why):
        rewards.model.load(server.url, tokenizer=str(checkpoint))


def test_a_vllm_whose_tokenizer_is_elsewhere(checkpoint):
    with serving(fake_vllm(labels=3)) as server:
        with pytest.raises(UsageError, match=r"\(tokenizer=\): no tokenizer can be loaded from"):
            rewards.model.load(server.url)
        reward = rewards.model.load(server.url, tokenizer=str(checkpoint), label=2)
        assert judged(reward).value == 0.5
        path, body = server.asked[-1]
        assert path == "/classify" and body["use_activation"] is False and body["model"] == "rm"
        assert len(body["input"]) == 1 and body["input"][0][0] == 2  # <|im_start|>


def test_an_ensemble_of_servers_keeps_the_one_that_answered():
    with serving(length) as one, serving(lambda *_: (400, {})) as two:
        reward = rewards.model.load([f"{one.url}/score", f"{two.url}/score"], check=False)
        score = judged(reward)
        assert (score.value, score.outcome) == (None, Outcome.ERROR)
        assert score.parts == {f"{one.url}/score": 7 / 4}


@pytest.mark.parametrize(
    ("url", "api", "expected"),
    [
        ("http://h:1", "auto", ("http://h:1", "/classify", "vllm")),
        ("http://h:1/", "auto", ("http://h:1", "/classify", "vllm")),
        ("https://h/classify", "auto", ("https://h", "/classify", "vllm")),
        ("http://h:1/v1", "auto", ("http://h:1", "/classify", "vllm")),
        ("http://h/rm/classify", "vllm", ("http://h/rm", "/classify", "vllm")),
        ("http://h:5/get_reward", "auto", ("http://h:5", "/get_reward", "openrlhf")),
        ("http://h:5/v2/score", "auto", ("http://h:5", "/v2/score", "scores")),
        ("http://h:5", "scores", ("http://h:5", "", "scores")),
    ],
)
def test_the_path_tells_the_api(url, api, expected):
    assert address(url, api) == expected


@pytest.mark.parametrize(
    ("url", "options", "why"),
    [
        ("http://", {}, "is no URL"),
        ("http://[", {}, "is no URL"),
        ("http://h:70000", {}, "is no URL"),
        ("http://u:p@h", {}, "neither a password"),
        ("http://h/score?key=1", {}, "api_key_env"),
        ("http://h", {"api": "openai"}, "api = 'openai'"),
        ("http://h", {"timeout_s": 0}, "must be positive"),
        ("http://h/score", {"too_long": "truncate_left"}, "makes tokens itself"),
        ("http://h", {"device": "cpu"}, "no option 'device'"),
    ],
)
def test_bad_addresses_and_options(url, options, why):
    with pytest.raises(UsageError, match=why):
        rewards.model.load(url, **options)
