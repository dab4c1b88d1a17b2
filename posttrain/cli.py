"""``posttrain <command>``: the Python API written down for the shell.

Exit codes: 0 done, 1 the run had to stop, 2 bad input (nothing was written), 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from posttrain import check_env
from posttrain.engines import rollout_server
from posttrain.errors import RunError, UsageError
from posttrain.evaluation.arena import add_parser as add_arena_parser
from posttrain.evaluation.command import add_parsers as add_evaluation_parsers
from posttrain.evaluation.decontaminate import add_parser as add_decontaminate_parser
from posttrain.evaluation.judge_pairs import add_parser as add_judge_pairs_parser
from posttrain.evaluation.vote_page import add_parser as add_vote_parser
from posttrain.export.command import add_parsers as add_export_parsers
from posttrain.learner import remote as learner_remote
from posttrain.report.command import add_parsers as add_report_parsers
from posttrain.serving.command import add_parsers as add_serving_parsers
from posttrain.trainers import preference_commands, sft_command
from rewards.judge.command import add_arguments as add_judge_arguments
from rewards.judge.command import run as run_judge_audit


def main(arguments: list[str] | None = None) -> int:
    """Parse, then import what the command needs."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        return int(options.run(options))
    except UsageError as error:
        print(f"posttrain: {error}", file=sys.stderr)
        return 2
    except RunError as error:
        print(f"posttrain: the run stopped. {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as interrupt:
        print(f"posttrain: interrupted. {interrupt}".rstrip(". "), file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="posttrain", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    grpo = commands.add_parser("grpo", help="train with GRPO from a TOML file")
    grpo.add_argument("config", nargs="?", help="TOML file; may be left out when overrides say all")
    grpo.add_argument("overrides", nargs="*", help="section.key=value, e.g. grpo.steps=50")
    grpo.add_argument("--quiet", action="store_true", help="no progress")
    grpo.set_defaults(run=_grpo)

    _plan_parser(commands)

    sft_command.add_parser(commands)
    preference_commands.add_parser(commands)

    resume = commands.add_parser("resume", help="go on with an interrupted run")
    resume.add_argument("run_dir", type=Path)
    resume.add_argument(
        "overrides", nargs="*", help="other placement or more steps, e.g. learner.ranks=2"
    )
    resume.add_argument("--quiet", action="store_true", help="no progress")
    resume.set_defaults(run=_resume)

    add_report_parsers(commands)

    status = commands.add_parser("status", help="why is it waiting? of a run, live or over")
    status.add_argument("run_dir", type=Path)
    status.add_argument("--json", action="store_true", help="for machines")
    status.add_argument("--watch", action="store_true", help="again and again until it is over")
    status.set_defaults(run=_status)

    settings = commands.add_parser("settings", help="list every setting, its default and meaning")
    settings.set_defaults(run=_settings)

    check_env.add_parser(commands)
    add_evaluation_parsers(commands)
    add_arena_parser(commands)
    add_judge_pairs_parser(commands)
    add_vote_parser(commands)
    add_decontaminate_parser(commands)
    add_export_parsers(commands)
    add_serving_parsers(commands)
    rollout_server.add_parser(commands)
    learner_remote.add_parser(commands)
    _audit_parser(commands)
    _sandbox_parser(commands)

    doctor = commands.add_parser("doctor", help="what is installed, what is broken, how to fix it")
    doctor.add_argument("--json", action="store_true", help="for machines")
    doctor.set_defaults(run=_doctor)
    return parser


def _plan_parser(commands: Any) -> None:
    plan = commands.add_parser("plan", help="what a run will take: batches, memory, time, cost")
    plan.add_argument("config", nargs="?", help="TOML file; may be left out")
    plan.add_argument("overrides", nargs="*", help="section.key=value, e.g. learner.zero_stage=2")
    plan.add_argument("--calibrate", action="store_true", help="load the model, measure one step")
    plan.add_argument("--price", type=float, default=0.0, help="of one GPU hour")
    plan.add_argument(
        "--answer-tokens", type=int, default=0, help="expected length (default: the longest)"
    )
    plan.add_argument("--json", action="store_true", help="for machines")
    plan.set_defaults(run=_plan)


def _audit_parser(commands: Any) -> None:
    audit = commands.add_parser("audit", help="measure a verifier or a judge on labelled rows")
    kinds = audit.add_subparsers(dest="kind", required=True, metavar="kind")
    math = kinds.add_parser("math", help="the math verifier")
    math.add_argument("files", nargs="+", metavar="FILE", help="JSON lines: gold, pred, equal")
    math.add_argument("--show", action="store_true", help="every miss, on stderr")
    math.set_defaults(run=_audit_math)
    judge = kinds.add_parser("judge", help="an LLM judge: agreement, biases, consistency")
    add_judge_arguments(judge)
    judge.set_defaults(run=run_judge_audit)


def _sandbox_parser(commands: Any) -> None:
    sandbox = commands.add_parser("sandbox", help="where untrusted programs run")
    verbs = sandbox.add_subparsers(dest="verb", required=True, metavar="verb")
    build = verbs.add_parser("build", help="make the image for the Docker backend")
    build.add_argument("--host", action="append", default=[], help="engine's URL; may be repeated")
    build.add_argument("--languages", default="python,bash", help="python,bash,cpp,javascript,java")
    build.add_argument("--packages", default="", help="further Debian packages, by comma")
    build.add_argument("--method", default="auto", help="auto, dockerfile or debootstrap")
    build.add_argument("--force", action="store_true", help="also where the image is there")
    build.set_defaults(run=_sandbox_build)


def _grpo(options: argparse.Namespace) -> int:
    from posttrain.api import run_config
    from posttrain.config import load_config

    run = run_config(load_config(*_given(options)), quiet=options.quiet)
    return _print_summary(run.path)


def _given(options: argparse.Namespace) -> tuple[str | None, list[str]]:
    """The TOML file, if there is one, and the overrides."""
    path, overrides = options.config, options.overrides
    if path is not None and "=" in path:
        return None, [path, *overrides]
    return path, overrides


def _plan(options: argparse.Namespace) -> int:
    from posttrain.planning.plan import Wishes
    from posttrain.planning.plan_text import show_plan

    wishes = Wishes(options.calibrate, options.price, options.answer_tokens)
    return show_plan(*_given(options), wishes, as_json=options.json)


def _resume(options: argparse.Namespace) -> int:
    from posttrain.api import resume
    from posttrain.config import override_tree

    changes = override_tree(options.overrides)
    return _print_summary(resume(options.run_dir, quiet=options.quiet, **changes).path)


def _print_summary(run: Path) -> int:
    """The run's one line of JSON; an interrupted run has none."""
    summary = run / "summary.json"
    if not summary.exists():
        return 130
    print(json.dumps(json.loads(summary.read_text())))
    return 0


def _status(options: argparse.Namespace) -> int:
    from posttrain.status_text import show_status

    return show_status(options.run_dir, as_json=options.json, watch=options.watch)


def _settings(options: argparse.Namespace) -> int:
    from posttrain.config import settings_table

    for name, default, description in settings_table():
        print(f"{name:32} {default!r:>12}  {description}")
    return 0


def _audit_math(options: argparse.Namespace) -> int:
    from rewards.math.audit import audit

    print(json.dumps(audit(options.files, show=options.show)))
    return 0


def _sandbox_build(options: argparse.Namespace) -> int:
    from rewards.sandbox.image.image import build
    from rewards.sandbox.protocol import SandboxError

    def listed(text: str) -> list[str]:
        return [part.strip() for part in text.split(",") if part.strip()]

    try:
        languages, packages = listed(options.languages), listed(options.packages)
        name = build(
            options.host, languages, packages=packages, method=options.method, force=options.force
        )
    except SandboxError as error:
        print(f"posttrain: {error}", file=sys.stderr)
        return 1
    print(name)
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from posttrain.doctor import run_doctor

    return run_doctor(options.json)


if __name__ == "__main__":
    sys.exit(main())
