"""The environments of ``envs.workspace`` and ``envs.sessions`` on a real Docker engine."""

from __future__ import annotations

import envs
from rewards import Outcome
from rewards.sandbox import Sandbox
from tests.envs.playing import call, play, told
from tests.envs.test_workspace import RIGHT, SUM


def test_a_workspace_in_a_container(docker_sandbox: Sandbox) -> None:
    environment = envs.load("workspace", tasks=[SUM], sandbox=docker_sandbox, call_s=2.0)
    for _ in range(3):  # more episodes than containers: each is given back
        steps = play(
            environment,
            [
                call("shell", command="cat notes/a.txt; ls /tmp/work; cd notes"),
                call("write_file", path="sum.py", content=RIGHT),
                call("shell", command="pwd; sleep 60"),
                "done",
            ],
        )
        assert told(steps[0]) == "hellonotes\n"
        assert "files are there; it wrote: /tmp/work/notes" in told(steps[2])
        assert steps[-1].score is not None
        assert steps[-1].score.outcome is Outcome.CORRECT, steps[-1].score
    wrong = play(environment, [call("shell", command="kill -9 -1"), "done"])
    assert wrong[-1].score is not None
    assert wrong[-1].score.outcome is Outcome.WRONG
