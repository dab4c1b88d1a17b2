"""What the documents tell a reader to type, open or import exists and is accepted.

Commands are resolved, not run to their end: a make target must exist, a script must take the
arguments, a `posttrain` line must parse and its settings be valid. Python blocks are run: those
that need no model as they are, the README's job up to the point where it asks for the model.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from data_gen.cli import _parser as data_gen_parser
from posttrain.cli import _parser
from posttrain.config import GrpoConfig, load_config
from posttrain.trainers.sft_settings import load_sft_config
from pretrain.cli import _parser as pretrain_parser

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in ROOT.glob("docs/*.md"))]


def blocks(document: str, language: str) -> list[str]:
    text = (ROOT / document).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def commands() -> list[tuple[str, list[str]]]:
    """(document, words) of every line of every shell block; a comment ends a line."""
    found = []
    for document in DOCUMENTS:
        for block in blocks(document, "sh"):
            block = block.replace("\\\n", " ")  # one command over several lines
            lines = (shlex.split(line, comments=True) for line in block.splitlines())
            found += [(document, words) for words in lines if words]
    return found


def check_make(arguments: list[str]) -> None:
    for target in arguments:
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M), f"target {target}"


def check_posttrain(arguments: list[str]) -> None:
    options = _parser().parse_args(arguments)  # exits with 2 when it does not parse
    if options.command == "grpo":
        load_config(ROOT / options.config, options.overrides)
    if options.command == "sft" and options.config:
        load_sft_config(ROOT / options.config, options.overrides)


def check_data_gen(arguments: list[str]) -> None:
    data_gen_parser().parse_args(arguments)


def check_pretrain(arguments: list[str]) -> None:
    pretrain_parser().parse_args(arguments)  # exits with 2 when it does not parse


def check_python(arguments: list[str]) -> None:
    script, *rest = arguments
    if script == "-m":
        assert importlib.util.find_spec(rest[0]) is not None, rest[0]
        return
    source = (ROOT / script).read_text()
    for option in (word for word in rest if word.startswith("-")):
        assert f'"{option}"' in source, f"{script} has no option {option}"


def check_pip(arguments: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for word in arguments:
        for extra in re.findall(r"^\.\[(.*)\]$", word):
            assert set(extra.split(",")) <= set(project["optional-dependencies"]), extra
        assert "/" not in word or (ROOT / word).is_file(), word


def check_launcher(arguments: list[str]) -> None:
    """torchrun's ``-m`` and DeepSpeed's ``--module``; the flags before them are the launcher's."""
    at = next(i for i, word in enumerate(arguments) if word in ("-m", "--module"))
    module, *rest = arguments[at + 1 :]
    source = importlib.util.find_spec(module).origin  # type: ignore[union-attr]
    for option in (word for word in rest if word.startswith("--")):
        assert f'"{option}"' in Path(source).read_text(), f"{module} has no option {option}"


def check_files(arguments: list[str]) -> None:
    for word in arguments:
        assert word.startswith("-") or (ROOT / word).is_file(), word


CHECKS = {
    "torchrun": check_launcher,
    "deepspeed": check_launcher,
    "sbatch": check_files,
    "make": check_make,
    "posttrain": check_posttrain,
    "data_gen": check_data_gen,
    "pretrain": check_pretrain,
    "python": check_python,
    "pip": check_pip,
}


@pytest.mark.parametrize(
    ("document", "words"), commands(), ids=[f"{d}: {' '.join(w)}" for d, w in commands()]
)
def test_a_command_can_be_typed(document: str, words: list[str]) -> None:
    while words and re.match(r"[A-Z_]+=", words[0]):  # variables for this command
        words = words[1:]
    if words[0] == "export":
        return
    program, *arguments = words
    if program.startswith("scripts/"):
        assert os.access(ROOT / program, os.X_OK), f"{program} can't be run"
        return
    assert program in CHECKS, f"{document}: no check for {program}"
    CHECKS[program](arguments)


def test_the_readme_has_its_two_commands() -> None:
    typed = [words[:2] for document, words in commands() if document == "README.md"]
    assert ["make", "quickstart"] in typed
    assert ["make", "test"] in typed


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    text = (ROOT / document).read_text()
    targets = re.findall(r"\]\(([^)#]+)", text)
    dead = [t for t in targets if not ((ROOT / document).parent / t).exists()]
    assert not dead


@pytest.mark.parametrize("document", DOCUMENTS)
def test_paths_in_code_marks_exist(document: str) -> None:
    """`posttrain/losses.py` and the like; a pattern or a user's own path has no such beginning."""
    text = (ROOT / document).read_text()
    named = re.findall(
        r"`((?:posttrain|envs|rewards|pretrain|scripts|tests|docs|requirements)/[\w./]+)`", text
    )
    gone = [path for path in named if not (ROOT / path).exists()]
    assert not gone


def run_block(source: str, folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / "block.py").write_text(source)
    return subprocess.run(
        [sys.executable, "block.py"], cwd=folder, capture_output=True, text=True, timeout=120
    )


def test_the_readmes_job_is_right_up_to_its_model(tmp_path: Path) -> None:
    """Settings, environment and reward are accepted; then the placeholder is not a checkpoint."""
    script, _ = blocks("README.md", "python")
    assert 'model="path/or/hub-name"' in script
    script = script.replace("path/or/hub-name", "./no-such-folder")
    done = run_block(script, tmp_path)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert re.match(r"[\w.]+\.UsageError: ", last)
    assert "no-such-folder" in last
    assert not (tmp_path / "runs").exists()  # bad input writes nothing


def test_the_readmes_rewards_say_what_it_says(tmp_path: Path) -> None:
    _, script = blocks("README.md", "python")
    done = run_block(script, tmp_path)
    expected = re.findall(r"\)  # (\S+)$", script, flags=re.MULTILINE)
    assert done.stdout.split() == expected == ["correct", "1.0"], done.stderr


def test_the_examples_of_a_reward_and_an_environment_work(tmp_path: Path) -> None:
    reward, environment = blocks("CONTRIBUTING.md", "python")
    check = """
assert ends_politely("Here you are, thank you.") == 1.0
assert ends_politely("No.") == 0.0
report = envs.check(envs.load("guess"), n=20)
print(report)
assert report.ok
"""
    done = run_block(f"{reward}\n{environment}\n{check}", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def written_out(node: ast.AST) -> dict[str, ast.expr]:
    """The values of a dictionary or of a call of ``grpo``, by name."""
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("grpo"):
        return {keyword.arg or "": keyword.value for keyword in node.keywords}
    if isinstance(node, ast.Dict):
        named = zip(node.keys, node.values, strict=True)
        return {str(key.value): value for key, value in named if isinstance(key, ast.Constant)}
    return {}


def test_scripts_name_settings_that_exist() -> None:
    tables = {
        name: set(field.annotation.model_fields)
        for name, field in GrpoConfig.model_fields.items()
        if hasattr(field.annotation, "model_fields")
    }
    unknown, seen = [], 0
    for script in sorted((ROOT / "scripts").rglob("*.py")):
        for node in ast.walk(ast.parse(script.read_text())):
            for table, value in written_out(node).items():
                if table in tables and isinstance(value, ast.Dict):
                    seen += 1
                    wrong = written_out(value).keys() - tables[table]
                    unknown += [f"{script.name}: {table}.{name}" for name in wrong]
    assert seen > 15
    assert not unknown


def test_no_document_names_a_package_host() -> None:
    for document in [*DOCUMENTS, "Makefile", "pyproject.toml", "scripts/setup.sh", "CHANGELOG.md"]:
        text = (ROOT / document).read_text()
        own = r"(?!127\.0\.0\.1|10\.0\.0\.|\.\.\.)"  # a server of the reader's own
        assert not re.search(rf"https?://{own}|index-url|find-links", text), document
