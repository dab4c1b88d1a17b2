"""The console on a terminal, in a log, and quiet."""

import io
import re
import subprocess
import sys

from posttrain.console import COLUMNS, Console, evaluation_text, fitting

STEP = {
    "kind": "step",
    "step": 3,
    "reward_mean": 0.5,
    "accuracy": 0.25,
    "completion_length_mean": 12.34,
    "entropy": 0.75,
    "kl": None,
    "logprob_gap": 0.0021,
    "lag_mean": 1.0,
    "time_generation_s": 0.5,
    "time_train_s": 1.25,
    "time_sync_s": 0.125,
    "completion_tokens_per_s": 3123.4,
}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def lines_of(*calls: tuple[str, object], stream: io.StringIO, quiet: bool = False) -> list[str]:
    with Console(25, quiet, stream=stream) as console:
        for name, argument in calls:
            getattr(console, name)(argument)
    return stream.getvalue().splitlines()


def test_a_log_gets_one_plain_line_per_step_and_phases_only_before_the_first() -> None:
    found = lines_of(
        ("phase", "starting vLLM server"),
        ("phase", "starting vLLM server"),
        ("step", STEP),
        ("phase", "generating"),
        ("event", "server 0 restarted"),
        stream=io.StringIO(),
    )
    assert found == [
        "starting vLLM server ...",
        "step 3/25 | reward 0.500 | correct 25.0 % | length 12.3 | entropy 0.750 | gap 0.0021 | "
        "lag 1.0 | gen s 0.50 | train s 1.25 | sync s 0.12 | tok/s 3,123",
        "! server 0 restarted",
    ]


def test_quiet_says_nothing() -> None:
    calls = [("phase", "x"), ("step", STEP), ("event", "x"), ("evaluation", {"accuracy": 1.0})]
    assert lines_of(*calls, stream=Terminal(), quiet=True) == []


def test_a_terminal_gets_a_table_with_a_heading_every_twenty_rows_and_a_bar(monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm-256color")
    stream = Terminal()
    calls = [("step", STEP | {"step": step}) for step in range(25)]
    lines_of(("phase", "proving [the] sync"), *calls, stream=stream)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue())
    assert text.count("entropy       kl") == 2
    assert "    3   0.500   25.0 %    12.3    0.750            0.0021  1.0   0.50" in text
    assert "25/25" in text
    assert "proving [the] sync" in text


def test_the_table_fits_the_terminal() -> None:
    assert fitting(200) == list(COLUMNS)
    for width in (60, 80, 100):
        assert sum(column.width + 1 for column in fitting(width)) <= width
    assert [c.title for c in fitting(40)] == ["step", "reward", "correct", "gap", "tok/s"]


def test_markup_in_a_message_is_shown_as_it_is(monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    stream = Terminal()
    lines_of(("event", "bad [red]reward[/nothing]"), stream=stream)
    assert "! bad [red]reward[/nothing]" in stream.getvalue()


def test_an_evaluation_is_one_line() -> None:
    record = {
        **{"phase": "before", "step": 0, "n_tasks": 500, "mean_reward": 0.4125},
        **{"accuracy": 0.41, "accuracy_low": 0.3675, "accuracy_high": 0.4538},
        "pass_at_k": {1: 0.41, 4: 0.625},
    }
    assert evaluation_text(record) == (
        "evaluation before (step 0): 41.0 % correct [36.8, 45.4] of 500, "
        "mean reward 0.412 pass@4 62.5 %"
    )
    assert evaluation_text({"mean_reward": 0.5}) == "evaluation  (step ?): mean reward 0.500"


def test_rich_and_plotly_are_not_imported_before_they_are_needed() -> None:
    code = (
        "import sys, posttrain.console, posttrain.trackers, posttrain.report\n"
        "print(sorted({'rich', 'plotly', 'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
