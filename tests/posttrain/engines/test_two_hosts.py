"""The whole run over two hosts that share nothing but a network, which is cut and mended."""

import json
import shutil
import sys
import time
from pathlib import Path

import pytest

from posttrain.storage.run_dir import RunDir
from tests.posttrain.engines import two_hosts
from tests.posttrain.engines.two_hosts import TwoHosts, address

STEPS = 8
JOB = Path(__file__).with_name("two_hosts_job.py")
SECRETS = {"POSTTRAIN_ROLLOUT_TOKEN": "rollouts", "POSTTRAIN_LEARNER_TOKEN": "ranks"}
LISTEN = f"{address(0, 0)}:29400"
CLI = (sys.executable, "-m", "posttrain.cli")
HOME, FAR = 0, 1
LEARNER_LINK, ROLLOUT_LINK = 0, 1


@pytest.fixture
def hosts(tmp_path, checkpoint):
    pytest.importorskip("vllm")
    two_hosts.require()
    with TwoHosts(tmp_path) as both:
        for folder in both.folders:
            shutil.copytree(checkpoint, folder / "model")
        yield both


def start_server(hosts, host):
    arguments = ("--host", address(host, ROLLOUT_LINK), "--port", "8000")
    small = ("--dtype", "float32", "--kv-cache-gib", "0.1", "--max-concurrency", "16")
    model = hosts.folders[host] / "model"
    return hosts.start(
        host, "server.out", *CLI, "rollout-server", model, *arguments, *small, "--threads", "1",
        **SECRETS,
    )  # fmt: skip


def start_ranks_with_torchrun(hosts, host):
    launcher = (sys.executable, "-m", "torch.distributed.run", "--nnodes", "2")
    launcher += ("--node-rank", str(host), "--nproc-per-node", "1", "--max-restarts", "0")
    launcher += ("--master-addr", address(0, LEARNER_LINK), "--master-port", "29500")
    rank = ("-m", "posttrain.learner.rank", "--connect", LISTEN, "--model", "model")
    return hosts.start(
        host, "ranks.out", *launcher, *rank, **SECRETS, GLOO_SOCKET_IFNAME=f"link{LEARNER_LINK}"
    )


def start_ranks(hosts, host):
    learner = ("learner", "--connect", LISTEN, "--model", "model")
    return hosts.start(host, "ranks-2.out", *CLI, *learner, **SECRETS)


def start_run(hosts, log):
    settings = {
        "steps": STEPS,
        "prompts_per_step": 4,
        "group_size": 4,
        "startup_timeout_s": 90.0,
        "rollout": {
            "engine": "vllm", "max_tokens": 12, "dtype": "float32",
            "urls": [f"http://{address(host, ROLLOUT_LINK)}:8000" for host in (HOME, FAR)],
        },
        "learner": {
            "ranks": 2, "zero_stage": 2, "dtype": "float32", "threads": 1, "learning_rate": 1e-3,
        },
        "evaluation": {"tasks": 0},
        "checkpoint": {"every": 2},
    }  # fmt: skip
    return hosts.start(
        HOME, log, sys.executable, JOB, "model", json.dumps(settings),
        **SECRETS, POSTTRAIN_LEARNER_LISTEN=LISTEN,
    )  # fmt: skip


def wait_for(condition, what, seconds, *alive):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"no {what} within {seconds} s"
        for process in alive:
            assert process.poll() is None, f"a process ended before: {what}"
        time.sleep(0.1)


HUNG_RANK = """
import time
from posttrain.learner import rank as learner_rank

def hang(self, **rest):
    print("in a collective", flush=True)
    time.sleep(600)

learner_rank._Service._build = hang
learner_rank.main()
"""
ORCHESTRATOR = """
import asyncio, time
from pathlib import Path
from posttrain.learner import process as learner_process
from posttrain.config import GrpoConfig

learner_process.SILENT_S = 2.0
learner = learner_process.ProcessLearner(GrpoConfig(model="m", env="e"), range(3), Path("run"))
asyncio.run(learner.start())
"""


def test_a_cut_ends_both_ends_of_a_connection_that_says_nothing(tmp_path):
    """The rank hangs as in a collective; neither end is told that the other is out of reach."""
    two_hosts.require()
    with TwoHosts(tmp_path) as hosts:
        run = hosts.start(
            HOME, "run.out", sys.executable, "-c", ORCHESTRATOR,
            **SECRETS, POSTTRAIN_LEARNER_LISTEN=LISTEN,
        )  # fmt: skip
        rank = hosts.start(
            FAR, "rank.out", sys.executable, "-c", HUNG_RANK, "--connect", LISTEN, **SECRETS
        )
        wait_for(lambda: "collective" in hosts.log(FAR, "rank.out"), "command", 30, run, rank)
        time.sleep(3)  # silent for longer than SILENT_S, and well
        assert (run.poll(), rank.poll()) == (None, None)
        hosts.cut(LEARNER_LINK)
        began = time.monotonic()
        assert run.wait(15) == 1
        assert rank.wait(15) == 1
        assert time.monotonic() - began < 12
        output = hosts.log(HOME, "run.out")
        assert "learner, build: rank 0 on far failed: its connection broke" in output
        assert "posttrain resume run" in output
        assert "the orchestrator is gone: this rank ends" in hosts.log(FAR, "rank.out")
        assert list((hosts.folders[FAR] / "tmp").iterdir()) == []  # nothing of the rank is left


FAKE_SERVER = """
import asyncio, sys
from tests.posttrain.engines.fake_vllm import FakeVllm

async def main():
    fake = FakeVllm()
    fake._address = (sys.argv[1], 8000)
    fake.release = asyncio.Event()
    await fake.start()
    print("ready", flush=True)
    while True:  # a completion takes up to a second
        await asyncio.sleep(1)
        fake.release.set()
        await asyncio.sleep(0)
        fake.release.clear()

asyncio.run(main())
"""
ENGINE = """
import asyncio, sys
from pathlib import Path
import numpy as np
from posttrain.engines import replica, vllm_engine
from posttrain.config import make_config
from posttrain.types import Request, Sampling, Snapshot

replica.HEALTH_TIMEOUT_S = 5.0
vllm_engine._MONITOR_EVERY_S = 0.2
config = make_config({"model": "model", "env": "e", "rollout": {"urls": sys.argv[1:]}})
prompt = np.array([5, 6], dtype=np.int64)

def snapshot(version):
    probe = np.array([5, 6, 7], dtype=np.int64)
    return Snapshot(version, Path("weights.safetensors"), probe, np.zeros(2, np.float32))

async def main():
    engine = vllm_engine.VllmEngine(config, Path("logs"))
    await engine.start()
    await engine.sync(snapshot(1))
    requests = [Request(str(i), prompt, Sampling(4, 1.0, ()), i) for i in range(8)]
    running = [asyncio.create_task(engine.generate(request)) for request in requests]
    await asyncio.sleep(0)  # each has chosen its server
    print("asked", [replica.in_flight for replica in engine._replicas], flush=True)
    done = await asyncio.gather(*running)
    print("answered", {int(version) for one in done for version in one.weight_versions}, flush=True)
    report = await engine.sync(snapshot(2))
    again = await asyncio.gather(*(engine.generate(request) for request in requests))
    versions = {int(version) for one in again for version in one.weight_versions}
    print("synced", report.version, engine.restarts, versions, flush=True)
    await engine.close()

asyncio.run(main())
"""


def test_requests_to_a_server_that_was_cut_off_are_answered_by_the_other_one(tmp_path, checkpoint):
    two_hosts.require()
    with TwoHosts(tmp_path) as hosts:
        shutil.copytree(checkpoint, hosts.folders[HOME] / "model")
        fakes = [
            hosts.start(
                host, "fake.out", sys.executable, "-c", FAKE_SERVER, address(host, ROLLOUT_LINK)
            )
            for host in (HOME, FAR)
        ]
        for host in (HOME, FAR):
            wait_for(lambda h=host: "ready" in hosts.log(h, "fake.out"), "fake", 60, *fakes)
        urls = [f"http://{address(host, ROLLOUT_LINK)}:8000" for host in (HOME, FAR)]
        engine = hosts.start(HOME, "engine.out", sys.executable, "-c", ENGINE, *urls)

        def told(word):
            return lambda: word in hosts.log(HOME, "engine.out")

        wait_for(told("asked [4, 4]"), "request", 60, engine)
        hosts.cut(ROLLOUT_LINK)
        wait_for(told("answered {1}"), "answer to all", 60, engine)
        hosts.mend(ROLLOUT_LINK)
        wait_for(told("synced 2 1 {2}"), "sync of both", 60)
        assert engine.wait(10) == 0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_over_two_hosts_outlives_a_cut_to_a_server_and_resumes_after_one_to_a_rank(hosts):
    run_dir = hosts.folders[HOME] / "run"
    servers = [start_server(hosts, host) for host in (HOME, FAR)]
    for host in (HOME, FAR):
        wait_for(lambda h=host: "http://" in hosts.log(h, "server.out"), "server", 150, *servers)
    torchruns = [start_ranks_with_torchrun(hosts, host) for host in (HOME, FAR)]
    run = start_run(hosts, "run.out")

    def steps_done():
        records = RunDir(run_dir).read_metrics() if run_dir.exists() else []
        return sum(record["kind"] == "step" for record in records)

    def refits():
        return [r for r in RunDir(run_dir).read_metrics() if r.get("event") == "restart"]

    # Nothing of one host can be seen on the other.
    assert hosts.output_of(FAR, "test", "-e", hosts.folders[HOME] / "model")[0] == 1
    assert hosts.output_of(HOME, "test", "-e", hosts.folders[FAR] / "model")[0] == 1

    wait_for(lambda: steps_done() >= 1, "step", 120, run)
    status = json.loads(hosts.output_of(HOME, *CLI, "status", "run", "--json")[1])
    elsewhere = {p["name"]: p["state"] for p in status["processes"] if p["pid"] is None}
    assert elsewhere["learner rank 1"] == "on far"
    assert elsewhere[f"rollout server http://{address(FAR, ROLLOUT_LINK)}:8000"] == "on far"

    # The server on far is out of reach for a while, with requests to it under way.
    wait_for((hosts.folders[HOME] / "asking").exists, "request to far", 60, run)
    hosts.cut(ROLLOUT_LINK)
    (hosts.folders[HOME] / "cut").touch()
    wait_for(lambda: answers(hosts, "run.out", "2-") == 16, "answer to each from home", 30, run)
    hosts.mend(ROLLOUT_LINK)
    wait_for(refits, "refit", 60, run)
    after_the_cut = steps_done()
    wait_for(lambda: steps_done() >= after_the_cut + 2, "step after the cut", 60, run)

    # The rank on far is out of reach for good: the run stops, and no rank waits for ever.
    hosts.cut(LEARNER_LINK)
    assert run.wait(60) == 1
    output = hosts.log(HOME, "run.out")
    assert "rank 1 on far failed" in output
    assert "posttrain resume" in output
    wait_for(lambda: not hosts.ranks(FAR), "end of far's rank", 20)
    hosts.mend(LEARNER_LINK)  # torchrun itself waits for its other half
    for torchrun in torchruns:
        assert torchrun.wait(60) != 0

    # Numbered by the orchestrator, "far" comes first: now the snapshots and the model are its own.
    ranks = [start_ranks(hosts, host) for host in (HOME, FAR)]
    again = start_run(hosts, "again.out")
    assert again.wait(150) == 0, hosts.log(HOME, "again.out")
    assert [rank.wait(20) for rank in ranks] == [0, 0]
    for server in servers:
        server.terminate()
    assert [server.wait(30) for server in servers] == [0, 0]
    check_that_nothing_is_lost_or_twice(run_dir)
    check_that_both_servers_wrote(hosts)


def answers(hosts, log, step):
    """Requests of the step that were answered."""
    return hosts.log(HOME, log).count(f'"request": "{step}')


def check_that_nothing_is_lost_or_twice(run_dir):
    run = RunDir(run_dir)
    records = run.read_metrics()
    steps = [record["step"] for record in records if record["kind"] == "step"]
    assert steps == list(range(STEPS))
    for step in range(STEPS):
        groups = run.load_step(step)
        assert sorted(group.prompt_index for group in groups) == list(range(4))
        assert [len(group.rollouts) for group in groups] == [4] * 4
    syncs = [record for record in records if record["kind"] == "sync" and not record["canary"]]
    assert [record["version"] for record in syncs][-1] == STEPS
    assert max(record["probe_gap"] for record in syncs) < 0.01
    assert (run_dir / "model" / "model.safetensors").is_file()


def check_that_both_servers_wrote(hosts):
    lines = [
        json.loads(line)
        for log in ("run.out", "again.out")
        for line in hosts.log(HOME, log).splitlines()
        if line.startswith('{"server"')
    ]
    by_server = {}
    for line in lines:
        by_server[line["server"]] = by_server.get(line["server"], 0) + 1
    assert len(by_server) == 2
    assert min(by_server.values()) > len(lines) / 5
