"""What protects and serves parts on other machines: gate, delivery, checks of a URL, places."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import httpx
import numpy as np
import pytest

from posttrain.engines import attached, client, server_gate
from posttrain.engines.attached import AttachedServer, check_servers
from posttrain.engines.client import ModelLimits, RequestTimedOut, ServerFailed, VllmClient
from posttrain.engines.delivery import deliver
from posttrain.engines.server import architecture, version_of_vllm
from posttrain.engines.server_gate import Gate
from posttrain.errors import RunError, UsageError
from posttrain.learner import rank_link
from posttrain.learner import remote as learner_remote
from posttrain.learner.process import ProcessLearner
from posttrain.learner.rank_link import RankFailed, RankLink
from posttrain.learner.rank_places import place

SHAPE = {"vocab_size": 500, "hidden_size": 128}


def vllm_state(**changes):
    """As vLLM hangs it on its application; the transformers config behind it is a plain one."""
    text = SimpleNamespace(**SHAPE)
    model = SimpleNamespace(
        model="theirs", max_model_len=256, logprobs_mode="processed_logprobs",
        hf_config=SimpleNamespace(get_text_config=lambda: text),
    )  # fmt: skip
    fields = dict(
        model_config=model,
        weight_transfer_config=SimpleNamespace(backend="posttrain_file"),
        lora_config=None,
    )
    return SimpleNamespace(state=SimpleNamespace(vllm_config=SimpleNamespace(**fields | changes)))


@pytest.fixture
def gate(monkeypatch, tmp_path):
    """A gate before an application that answers 200 (500 to /finish_weight_update?fail)."""
    (tmp_path / "spool").mkdir()
    monkeypatch.setenv("POSTTRAIN_ROLLOUT_TOKEN", "open sesame")
    monkeypatch.setenv("POSTTRAIN_ROLLOUT_SPOOL", str(tmp_path / "spool"))

    async def vllm(scope, receive, send):
        status = 500 if scope["query_string"] == b"fail" else 200
        await server_gate._answer(send, status, {"vllm": scope["path"]})

    inner = Gate(vllm)

    async def app(scope, receive, send):
        await inner({**scope, "app": vllm_state()}, receive, send)

    return app


@pytest.fixture
def ask_gate(gate):
    """``ask_gate(method, path)`` -> (status, answer); with the right token if no other is given."""

    def ask(method, path, token="open sesame", **rest):
        async def main():
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            transport = httpx.ASGITransport(gate)
            async with httpx.AsyncClient(transport=transport, base_url="http://x") as http:
                return await http.request(method, path, headers=headers, **rest)

        answer = asyncio.run(main())
        return answer.status_code, answer.json()

    return ask


@pytest.mark.parametrize("token", ["", "guess", "open sesame "])
def test_every_route_but_health_wants_the_token(ask_gate, token):
    paths = ["/update_weights", "/pause", "/collective_rpc", "/posttrain/restart", "/v1/models"]
    assert {ask_gate("POST", path, token)[0] for path in paths} == {401}
    assert ask_gate("GET", "/health", token) == (200, {"vllm": "/health"})


def test_the_right_token_opens_vllms_own_routes(ask_gate):
    assert ask_gate("POST", "/pause?mode=keep") == (200, {"vllm": "/pause"})


def test_an_update_that_was_not_finished_shows(ask_gate):
    def whole():
        return ask_gate("GET", "/posttrain/about")[1]["whole"]

    assert whole()
    ask_gate("POST", "/start_weight_update")
    assert not whole()
    ask_gate("POST", "/finish_weight_update?fail")
    assert not whole()
    ask_gate("POST", "/finish_weight_update")
    assert whole()


@pytest.mark.parametrize("name", ["../x", "a/b", "..%2fx", ""])
def test_a_file_can_only_be_put_into_the_spool(ask_gate, tmp_path, name):
    assert ask_gate("PUT", f"/posttrain/files/{'0' * 32}/{name}", content=b"x")[0] == 404
    assert list((tmp_path / "spool").iterdir()) == []


@pytest.fixture
def remote(gate, monkeypatch):
    """A client of the gate; paths of ours may mean nothing there."""
    transport = httpx.ASGITransport(gate)
    monkeypatch.setattr(
        client, "_connection",
        lambda url: httpx.AsyncClient(transport=transport, base_url=url, headers=client.bearer()),
    )  # fmt: skip
    return VllmClient("http://there", ModelLimits(64, 500), elsewhere=True)


def test_a_snapshot_in_a_shared_folder_is_named_and_not_sent(remote, tmp_path):
    snapshot = tmp_path / "weights-1.safetensors"
    snapshot.write_bytes(b"weights")
    assert asyncio.run(deliver(remote, snapshot, 5.0)) == str(snapshot)
    assert set(tmp_path.glob("*")) == {tmp_path / "spool", snapshot}  # no mark is left
    assert list((tmp_path / "spool").iterdir()) == []


def test_a_snapshot_out_of_sight_is_sent_and_the_newest_two_are_kept(remote, tmp_path, monkeypatch):
    monkeypatch.setattr(server_gate.os, "access", lambda path, mode: False)
    adapter = tmp_path / "adapter-2"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_bytes(b"{}")
    (adapter / "adapter_model.safetensors").write_bytes(os.urandom(3 * 2**20 + 7))

    async def main():
        return [await deliver(remote, adapter, 5.0) for _ in range(4)]

    there = [tmp_path / "spool" / os.path.basename(path) for path in asyncio.run(main())]
    assert len(set(there)) == 4
    assert set((tmp_path / "spool").iterdir()) == set(there[-2:])
    for file in adapter.iterdir():
        assert (there[-1] / file.name).read_bytes() == file.read_bytes()


def test_a_snapshot_that_arrives_changed_is_refused(remote, tmp_path, monkeypatch):
    monkeypatch.setattr(server_gate.os, "access", lambda path, mode: False)
    take = Gate._take

    async def damaged(self, *arguments):
        return await take(self, *arguments) | {"sha256": "0" * 64}

    monkeypatch.setattr(Gate, "_take", damaged)
    snapshot = tmp_path / "weights-1.safetensors"
    snapshot.write_bytes(b"weights")
    with pytest.raises(ServerFailed, match=r"weights-1\.safetensors: http://there received some"):
        asyncio.run(deliver(remote, snapshot, 5.0))


def test_what_was_asked_of_a_server_out_of_reach_can_be_abandoned(ask):
    async def main():
        silent = await asyncio.start_server(lambda reader, writer: asyncio.sleep(60), "127.0.0.1")
        port = silent.sockets[0].getsockname()[1]
        to_it = VllmClient(f"http://127.0.0.1:{port}", ModelLimits(64, 500))
        asked = asyncio.create_task(to_it.generate(ask("x"), salt="", timeout_s=600.0))
        await asyncio.sleep(0.2)
        to_it.abandon()
        to_it.abandon()  # a deadline that has passed already is left alone
        began = time.monotonic()
        with pytest.raises(RequestTimedOut):
            await asked
        silent.close()
        return time.monotonic() - began

    assert asyncio.run(main()) < 2


# the check of a URL


@pytest.fixture
def check(vllm_config, monkeypatch):
    """``check(about)``: the message of the refusal of servers that say this of themselves."""

    def run(*answers, window=256, **changes):
        good = {
            "vllm": version_of_vllm(), "model": "theirs", "window": 256, "lora_rank": 0,
            "logprobs_mode": "processed_logprobs", "transport": "posttrain_file", "whole": True,
        }  # fmt: skip
        config = vllm_config(urls=tuple(f"http://host-{i}:1" for i in range(len(answers))))
        from transformers import AutoConfig

        good["architecture"] = architecture(AutoConfig.from_pretrained(config.model))
        told = iter([a if isinstance(a, str) else good | a for a in answers])
        monkeypatch.setattr(attached, "_about", lambda url: next(told))
        check_servers(config.model_copy(update=changes), window)

    return run


def test_servers_that_fit_are_accepted(check):
    check({}, {})


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"vllm": "0.11.0"}, r"host-1:1: it runs vLLM 0\.11\.0, and here is 0\.32"),
        ({"architecture": {"hidden_size": 64}}, "another model .theirs.*hidden_size 64 instead of"),
        ({"window": 100}, "window is 100 tokens, the run's is 256: start it with --max-model-len"),
        ({"logprobs_mode": "raw_logprobs"}, "log-probs are raw_logprobs"),
        ({"transport": "nccl"}, "weights come by nccl: start it with --transport file"),
    ],
)
def test_a_server_that_does_not_fit_is_named_with_its_fault(check, about, message):
    with pytest.raises(UsageError, match=message) as caught:
        check({}, about)
    assert "host-0" not in str(caught.value)


def test_a_server_that_is_not_there_is_bad_input(vllm_config):
    with pytest.raises(UsageError, match=r"127\.0\.0\.1:9: no answer .*posttrain rollout-server"):
        check_servers(vllm_config(urls=("http://127.0.0.1:9",)), 256)


def test_a_missing_token_is_told_from_a_wrong_one(monkeypatch):
    refused = httpx.Response(401, json={})
    assert "is not set" in attached._read(refused)
    monkeypatch.setenv("POSTTRAIN_ROLLOUT_TOKEN", "guess")
    assert "not the one it was started with" in attached._read(refused)


def test_a_server_others_reach_needs_a_token(vllm_checkpoint):
    done = subprocess.run(
        [sys.executable, "-m", "posttrain.cli", "rollout-server", vllm_checkpoint, "--host", "::"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert "set a secret in POSTTRAIN_ROLLOUT_TOKEN" in done.stderr


# a server that was there before


class Remote:
    """A server's own routes; ``story`` is what it answers /posttrain/about with, the last again."""

    def __init__(self, *story):
        self.story = list(story)
        self.asked = []

    async def __call__(self, scope, receive, send):
        self.asked.append(scope["path"])
        if scope["path"] != "/posttrain/about":
            return await server_gate._answer(send, 200, {})
        answer = self.story.pop(0) if len(self.story) > 1 else self.story[0]
        if isinstance(answer, int):
            return await server_gate._answer(send, answer, {})
        if answer is None:
            raise httpx.ConnectError("no route to host")
        await server_gate._answer(send, 200, {"host": "far", "pid": 1, "whole": True} | answer)


@pytest.fixture
def attach(monkeypatch):
    """``attach(*story, unfit=)``: start a server that tells this story; what it was asked."""
    monkeypatch.setattr(attached, "_POLL_EVERY_S", 0.01)

    def run(*story, unfit=False, deadline_s=5.0):
        remote = Remote(*story)
        monkeypatch.setattr(
            attached, "_connection",
            lambda url: httpx.AsyncClient(transport=httpx.ASGITransport(remote), base_url=url),
        )  # fmt: skip

        async def main():
            server = AttachedServer("http://far:1", deadline_s)
            await server.stop(at_once=unfit)
            await server.start()

        asyncio.run(main())
        return [path for path in remote.asked if path != "/posttrain/about"]

    return run


def test_a_server_with_whole_weights_is_used_as_it_is_even_if_it_was_left_paused(attach):
    assert attach({}) == ["/resume"]


def test_a_server_that_was_away_is_waited_for(attach):
    assert attach(None, None, 503, {}) == ["/resume"]


def test_a_server_left_in_the_middle_of_an_update_starts_again(attach):
    again = {"whole": False}, {"whole": False}, None, {"pid": 2}
    assert attach(*again) == ["/posttrain/restart", "/resume"]


def test_a_server_that_failed_a_proof_starts_again(attach):
    assert attach({}, {}, {"pid": 2}, unfit=True) == ["/posttrain/restart", "/resume"]


def test_a_server_that_stays_away_ends_the_wait_at_its_deadline(attach):
    with pytest.raises(RunError, match=r"http://far:1 in 0\.1 s .*startup_timeout_s.*no route"):
        attach(None, deadline_s=0.1)


def test_a_server_that_wants_another_token_is_not_waited_for(attach):
    with pytest.raises(UsageError, match="http://far:1: it wants a token"):
        attach(401)


# ranks


def link(host, local_rank, address, number=-1, world_size=None):
    hello = {"host": host, "local_rank": local_rank, "port": 1000 + local_rank, "pid": 1}
    writer = SimpleNamespace(get_extra_info=lambda name: (address, 5))
    return RankLink(number, hello | {"world_size": world_size}, None, writer)


def test_ranks_are_numbered_machine_by_machine_and_meet_at_the_first():
    ranks = [link("b", 1, "10.0.0.2"), link("a", 0, "10.0.0.1"), link("b", 0, "10.0.0.2")]
    meeting = {"WORLD_SIZE": "3", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "1000"}
    assert place(ranks) == [{"RANK": str(number), **meeting} for number in range(3)]
    assert [(rank.host, rank.hello["local_rank"], rank.number) for rank in ranks] == [
        ("b", 1, 2), ("a", 0, 0), ("b", 0, 1),
    ]  # fmt: skip


def test_a_launchers_numbers_stay():
    ranks = [link("b", 0, "10.0.0.2", 0, 2), link("a", 0, "10.0.0.1", 1, 2)]
    assert place(ranks) == [{}, {}]
    assert [rank.number for rank in ranks] == [0, 1]


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        ([link("a", 0, "127.0.0.1"), link("b", 0, "10.0.0.2")], "ranks on a connected over loop"),
        ([link("a", 0, "x", 0, 4), link("b", 0, "x", 1, 4)], r"= 2, .* 0 of 4, 1 of 4"),
        ([link("a", 0, "x", 0, 2), link("b", 0, "x", 0, 2)], r"= 2, .* 0 of 2, 0 of 2"),
    ],
)
def test_ranks_that_can_not_work_together_are_bad_input(ranks, message):
    with pytest.raises(UsageError, match=message):
        place(ranks)


@pytest.fixture
def pair():
    """``pair(story)``: story(link, stream) with both ends of a socket, the rank's last."""

    def run(story):
        async def main():
            accepted = asyncio.Queue()
            listening = await asyncio.start_server(
                lambda reader, writer: accepted.put_nowait((reader, writer)), "127.0.0.1", 0
            )
            address = listening.sockets[0].getsockname()
            connection = await asyncio.to_thread(rank_link.connect, address, 1.0)
            reader, writer = await accepted.get()
            hello = {"host": "far", "local_rank": 0}
            with connection, connection.makefile("rwb") as stream:
                async with asyncio.timeout(20):
                    await story(RankLink(0, hello, reader, writer, sees_run=False), stream)
            writer.close()
            listening.close()

        asyncio.run(main())

    return run


def serve_one(stream, folder, make):
    """As a rank: take one command with its files, answer with those that ``make`` leaves."""
    message = json.loads(stream.readline())
    given = rank_link.take(stream, message.get("files", ()), folder)
    made = make(message)
    rank_link.send(stream, {"result": [file.name for file in given]}, made, folder)


def test_what_a_command_reads_goes_with_it_and_what_it_wrote_comes_back(pair, tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    contents = {"learner/a.pt": os.urandom(2 * 2**20 + 3), "learner/sub/b.npy": b""}
    for name, data in contents.items():
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_bytes(data)

    def work(message):
        assert message["folder"] == str(here / "learner")
        assert {n: (there / n).read_bytes() for n in contents} == contents
        (there / "learner/new.pt").write_bytes(b"optimizer" * 200_000)
        return [there / "learner/new.pt"]

    async def story(link, stream):
        asked = link.ask({"command": "load", "folder": str(here / "learner")})
        serving = asyncio.to_thread(serve_one, stream, there, work)
        answer, _ = await asyncio.gather(asked, serving)
        assert answer == ["a.pt", "b.npy"]

    pair(story)
    assert (here / "learner/new.pt").read_bytes() == b"optimizer" * 200_000


def test_a_rank_can_not_write_outside_of_the_folder(pair, tmp_path):
    async def story(link, stream):
        (tmp_path / "x").write_bytes(b"x")
        message = {"command": "save", "folder": str(tmp_path / "run" / "learner")}
        asked = asyncio.ensure_future(link.ask(message))
        await asyncio.to_thread(stream.readline)
        stream.write(json.dumps({"result": None, "files": [["../x", 1]]}).encode() + b"\n" + b"y")
        stream.flush()
        with pytest.raises(RankFailed, match=r"'\.\./x' leads out of"):
            await asked

    pair(story)
    assert (tmp_path / "x").read_bytes() == b"x"


@pytest.mark.parametrize(
    ("listen", "token", "message"),
    [("10.0.0.1", "x", "'10.0.0.1' is not HOST:PORT"), ("10.0.0.1:5", "", "TOKEN is not: no rank")],
)
def test_where_to_listen_is_checked_before_anything_starts(
    vllm_config, monkeypatch, tmp_path, listen, token, message
):
    monkeypatch.setenv("POSTTRAIN_LEARNER_LISTEN", listen)
    monkeypatch.setenv("POSTTRAIN_LEARNER_TOKEN", token)
    with pytest.raises(UsageError, match=message):
        ProcessLearner(vllm_config(), np.arange(3), tmp_path)


def test_the_learner_command_says_what_it_lacks(monkeypatch):
    options = SimpleNamespace(connect="here:1", ranks=1, model=None, log_folder=None)
    with pytest.raises(UsageError, match="set POSTTRAIN_LEARNER_TOKEN"):
        learner_remote.run(options)
    monkeypatch.setenv("POSTTRAIN_LEARNER_TOKEN", "x")
    monkeypatch.setattr(learner_remote, "WAIT_S", 0.0)
    options.connect = "127.0.0.1:9"
    with pytest.raises(RunError, match=r"no orchestrator at 127\.0\.0\.1:9 within 0 s"):
        learner_remote.run(options)


def test_a_rank_ends_when_its_orchestrator_does_also_in_the_middle_of_something(tmp_path):
    """The rank hangs in a command, as in a collective whose other half is gone."""
    import socket

    code = (
        "import sys, time; from posttrain.learner import rank as learner_rank; "
        "learner_rank._Service._place = lambda self, **rest: time.sleep(600); "
        "sys.argv = ['rank', '--connect', sys.argv[1]]; learner_rank.main()"
    )
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        rank = subprocess.Popen([sys.executable, "-c", code, address])
        try:
            connection, _ = listening.accept()
            connection.makefile("rb").readline()
            connection.sendall(b'{"command": "place"}\n')
            time.sleep(0.3)
            connection.close()
            assert rank.wait(60) == 1
        finally:
            if rank.poll() is None:
                rank.send_signal(signal.SIGKILL)
