"""Which GPU each server gets, and when weights may go over NCCL."""

import pytest

from posttrain import placement
from posttrain.config import GrpoConfig
from posttrain.engines import vllm_engine
from posttrain.errors import UsageError
from posttrain.placement import Placement, divide, only
from posttrain.preflight import check_settings


@pytest.mark.parametrize(
    ("gpus", "ranks", "servers", "chosen", "apart"),
    [
        (0, 2, 2, (), False),
        (1, 1, 1, (0,), False),
        (2, 1, 1, (1,), True),
        (8, 4, 4, (4, 5, 6, 7), True),
        (8, 6, 4, (6, 7, 6, 7), False),
        (2, 2, 3, (0, 1, 0), False),
        (4, 0, 4, (0, 1, 2, 3), True),  # the learner is elsewhere
        (4, 4, 0, (), True),  # the servers are
    ],
)
def test_servers_have_the_gpus_after_the_ranks(gpus, ranks, servers, chosen, apart):
    assert divide(gpus, ranks, servers) == Placement(chosen, apart)


def test_a_process_sees_one_of_the_gpus_that_we_see(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert only(3) == {"CUDA_VISIBLE_DEVICES": "3"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6,GPU-8932f937")
    assert [only(i)["CUDA_VISIBLE_DEVICES"] for i in (1, 2)] == ["6", "GPU-8932f937"]


@pytest.fixture
def four_gpus(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setattr(vllm_engine, "device_of_vllm", lambda: "cuda")
    monkeypatch.setattr(vllm_engine, "check_installed", lambda: None)


def job(model, servers, ranks, **more):
    return GrpoConfig.model_validate(
        {"model": str(model), "env": "none", "run_dir": "none", **more}
        | {"rollout": {"servers": servers}, "learner": {"ranks": ranks}}
    )


def test_servers_are_started_where_they_belong(four_gpus, checkpoint, tmp_path, monkeypatch):
    def started(servers, ranks):
        config = job(checkpoint, servers, ranks)
        made = vllm_engine._servers(config, tmp_path, 64, "extension", {"OURS": "1"}, None)
        assert {one.spec.env["OURS"] for one in made} == {"1"}
        return [(one.spec.env["CUDA_VISIBLE_DEVICES"], one.spec.transport) for one in made]

    assert started(2, 2) == [("2", "nccl"), ("3", "nccl")]
    assert started(2, 3) == [("3", "file"), ("3", "file")]
    assert started(1, 0) == [("1", "nccl")]  # a rank in this process
    monkeypatch.setenv(placement.LISTEN, "10.0.0.1:29400")
    assert started(4, 16) == [(str(i), "file") for i in range(4)]


def test_what_does_not_fit_is_bad_input(four_gpus, checkpoint, monkeypatch):
    assert vllm_engine.transport_of(job(checkpoint, 2, 2, sync={"transport": "nccl"})) == "nccl"
    assert vllm_engine.transport_of(job(checkpoint, 2, 2, sync={"transport": "file"})) == "file"
    with pytest.raises(UsageError, match="a GPU for each rank"):
        vllm_engine.transport_of(job(checkpoint, 2, 3, sync={"transport": "nccl"}))
    with pytest.raises(UsageError, match=r"learner.ranks = 5, and this machine has 4 GPU\(s\)"):
        check_settings(job(checkpoint, 1, 5))
    monkeypatch.setattr(vllm_engine, "device_of_vllm", lambda: "cpu")
    with pytest.raises(UsageError, match="vLLM for GPUs"):
        vllm_engine.transport_of(job(checkpoint, 1, 1, sync={"transport": "nccl"}))
