"""The house rules that a machine can hold: who imports whom, sizes, start-up times, settings.

Everything to adapt when a module is added is at the top: ``ORDER`` for its place in ``posttrain``,
``HOMES`` for who may import a heavy package. ``ALLOWED`` may only shrink.
"""

from __future__ import annotations

import ast
import graphlib
import io
import resource
import statistics
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Package -> the packages of ours it may import.
PACKAGES = {
    "rewards": set(),
    "envs": {"rewards"},
    "data_gen": {"rewards", "envs"},
    "pretrain": set(),
    "posttrain": {"rewards", "envs"},
}

# posttrain from bottom to top: a module imports only those before it, lazily or not. A folder is
# one entry. Every module must be here, and nothing that is gone.
ORDER = [
    *("errors", "waits", "event_loop", "busy", "process_guard", "shadowing", "addresses"),
    *("types", "presets", "config", "seeds", "storage", "placement"),
    *("registry", "advantages", "token_tensors", "corrections", "losses", "algorithm"),
    *("model", "batching", "chat", "rollout", "buffer"),
    *("engines", "learner"),
    *("step", "held_out", "preflight", "evaluation"),
    *("console", "trackers", "trainers", "report"),
    *("tasks", "preparation", "run_evaluation", "job", "loop", "execution", "resumption"),
    *("planning", "status", "status_text", "doctor_probes", "doctor", "api", "check_env"),
    *("export", "serving", "cli"),
]

# Heavy package -> the only modules that import it.
HOMES = {
    "deepspeed": {
        "posttrain.learner.rank_setup",
        "posttrain.learner.state",
        "posttrain.model.sequence_parallel",
    }
    | {"pretrain.training.engine", "pretrain.training.pipeline"},
    "vllm": {"posttrain.engines.vllm_worker", "posttrain.learner.nccl_transport"},
    "trl": {"posttrain.trainers"},
    "docker": {"rewards.sandbox.docker_engine"},
    "math_verify": {"rewards.math.symbolic"},
    "verifiers": {"envs.adapters.verifiers"},
    "lm_eval": {"posttrain.evaluation.harness"},
}
LIGHT = ("rewards", "envs")  # neither torch nor what pulls it in, at import
TORCH_USERS = {"torch", "transformers", "datasets", "reasoning_gym", "sympy", "mpmath", *HOMES}
# In no extra: used where the user has installed them.
OPTIONAL = {"tensorboard", "tensorboardX", "trackio", "wandb", "flash_attn"}

LIMITS = {"function": 60, "file": 500, "parameters": 6, "nesting": 4}
# "path::function" or "path" -> {what: today's size}; a new entry needs a very good reason.
ALLOWED: dict[str, dict[str, int]] = {
    # The signature that transformers calls an attention function with.
    "posttrain/model/packed_attention.py::packed_attention": {"parameters": 8},
    # The settings of an algorithm are the keyword-only parameters of its function.
    "posttrain/advantages.py::gae": {"parameters": 7},
    # The signature that vLLM calls its operation with.
    "posttrain/engines/vllm_worker.py::_expand_slice": {"parameters": 7},
    # An autograd function sees only tensors that are arguments of their own.
    "posttrain/model/token_logprobs.py::_TiledLogprobs.forward": {"parameters": 7},
}

MAX_SETTINGS = 59
MAX_START_S = 1.0


@cache
def modules(*packages: str) -> dict[str, Path]:
    """Dotted name -> file, of every module of the packages."""
    found = {}
    for package in packages or tuple(PACKAGES):
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def imported(nodes: Iterator[ast.AST] | list[ast.stmt]) -> Iterator[str]:
    """Dotted names that the nodes import; for ``from a import b`` that is a.b if it is a module."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in modules() else str(node.module)


def every_import(path: Path) -> set[str]:
    return set(imported(ast.walk(parse(path))))


def top_level_imports(path: Path) -> set[str]:
    """What importing the module imports: not inside functions, not under TYPE_CHECKING."""
    statements: list[ast.stmt] = []

    def collect(body: list[ast.stmt]) -> None:
        for node in body:
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                continue
            statements.append(node)
            for field in ("body", "orelse", "finalbody"):
                if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    collect(getattr(node, field, []))
            for handler in getattr(node, "handlers", []):
                collect(handler.body)

    collect(parse(path).body)
    return set(imported(statements))


def unit(module: str) -> str:
    """posttrain.report.charts -> report."""
    return module.split(".")[1]


# imports


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_those_below_it(package: str) -> None:
    wrong = [
        f"{name} imports {target}"
        for name, path in modules(package).items()
        for target in every_import(path)
        if (top := target.split(".")[0]) in PACKAGES and top != package
        if top not in PACKAGES[package]
    ]
    assert not wrong, "\n".join(wrong)


def test_every_module_of_posttrain_has_its_place_in_the_order() -> None:
    existing = {unit(name) for name in modules("posttrain") if name != "posttrain"}
    assert len(ORDER) == len(set(ORDER)), "a name is twice in ORDER"
    new, gone = sorted(existing - set(ORDER)), sorted(set(ORDER) - existing)
    assert not new and not gone, f"to be placed in ORDER: {new}; to be taken out: {gone}"


def test_imports_go_down_only() -> None:
    place = {name: i for i, name in enumerate(ORDER)}
    wrong = []
    for name, path in modules("posttrain").items():
        if name == "posttrain":
            continue  # the public face: it may name everything
        for target in every_import(path):
            if not target.startswith("posttrain.") or unit(target) == unit(name):
                continue
            if place.get(unit(target), -1) > place.get(unit(name), len(place)):
                wrong.append(f"{name} imports {target}, which is above it")
    assert not wrong, "\n".join(sorted(wrong))


def test_no_module_imports_itself_by_a_round_about_way() -> None:
    """Also within a folder, and lazily. A package's face may name what is in it."""
    ours = {name for name, path in modules("posttrain").items() if path.name != "__init__.py"}
    graph = {name: every_import(modules()[name]) & ours for name in ours}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names them


@pytest.mark.parametrize("heavy", HOMES)
def test_a_heavy_package_is_imported_only_in_its_home(heavy: str) -> None:
    wrong = [
        name
        for name, path in modules().items()
        if any(target.split(".")[0] == heavy for target in every_import(path))
        if not any(name == home or name.startswith(home + ".") for home in HOMES[heavy])
    ]
    assert not wrong, f"{heavy} is imported in {wrong}, its home is {sorted(HOMES[heavy])}"


@pytest.mark.parametrize("package", LIGHT)
def test_no_torch_when_a_light_package_is_imported(package: str) -> None:
    wrong = [
        f"{name} imports {target}"
        for name, path in modules(package).items()
        for target in top_level_imports(path)
        if target.split(".")[0] in TORCH_USERS
    ]
    assert not wrong, "\n".join(wrong)


def test_every_third_party_import_is_a_declared_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    declared = {normal(line) for lines in (project["dependencies"], *extras) for line in lines}
    providers = metadata.packages_distributions()
    wrong = []
    for name, path in modules().items():
        for top in {target.split(".")[0] for target in every_import(path)}:
            if top in PACKAGES or top in sys.stdlib_module_names or top in OPTIONAL:
                continue
            if not {normal(one) for one in providers.get(top, [top])} & declared:
                wrong.append(f"{name} imports {top}")
    assert not wrong, "not declared in pyproject.toml: " + ", ".join(sorted(wrong))


def normal(requirement: str) -> str:
    """'Reasoning_Gym>=0.1,<2' -> 'reasoning-gym'."""
    for i, char in enumerate(requirement):
        if not (char.isalnum() or char in "-_."):
            requirement = requirement[:i]
            break
    return requirement.lower().replace("_", "-")


# sizes


def sources() -> list[Path]:
    return [*modules().values(), *sorted((ROOT / "scripts").rglob("*.py"))]


def code_lines(text: str) -> set[int]:
    """Numbers of the lines that hold code: no blank line, no comment."""
    skip = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in skip and token.type != tokenize.ENDMARKER:
            lines.update(range(token.start[0], token.end[0] + 1))
    return lines


def docstring_lines(node: ast.AST) -> set[int]:
    match getattr(node, "body", None):
        case [ast.Expr(value=ast.Constant(value=str())) as first, *_]:
            return set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return set()


BLOCKS = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try, ast.Match)
SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)


def nesting(node: ast.AST) -> int:
    """Blocks inside one another; ``elif`` is no deeper than its ``if``, a function starts anew."""
    deepest = 0
    for child in ast.iter_child_nodes(node):
        if isinstance(child, SCOPES):
            continue
        is_elif = isinstance(node, ast.If) and isinstance(child, ast.If) and child in node.orelse
        is_elif = is_elif and child.col_offset == getattr(node, "col_offset", -1)
        deepest = max(deepest, nesting(child) + (isinstance(child, BLOCKS) and not is_elif))
    return deepest


def functions(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.FunctionDef]]:
    """('Class.method', node) of every function, inner ones included."""
    for child in ast.iter_child_nodes(node):
        name = prefix
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{prefix}{child.name}."
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield name[:-1], child  # type: ignore[misc]
        yield from functions(child, name)


def sizes() -> Iterator[tuple[str, str, int]]:
    """(where, what, size) of everything that has a limit."""
    for path in sources():
        text, where = path.read_text(), str(path.relative_to(ROOT))
        yield where, "file", len(text.splitlines())
        lines = code_lines(text)
        for name, node in functions(parse(path)):
            own = set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
            yield f"{where}::{name}", "function", len((own & lines) - docstring_lines(node))
            given = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
            n_given = sum(arg.arg not in ("self", "cls", "ctx") for arg in given)
            yield f"{where}::{name}", "parameters", n_given
            yield f"{where}::{name}", "nesting", nesting(node)


RULED = '''
def outer(a, b, *, c):
    """Not code.

    Nor this.
    """
    # nor this

    if a:
        pass
    elif b:
        for one in c:
            pass
    else:
        if c:
            with b:
                def inner(self, d): pass
    return """two
lines"""
'''


def test_the_rulers_measure_right() -> None:
    tree = ast.parse(RULED)
    (name, outer), (inner_name, inner) = functions(tree)
    assert (name, inner_name) == ("outer", "outer.inner")
    own = set(range(outer.lineno, (outer.end_lineno or 0) + 1))
    assert len((own & code_lines(RULED)) - docstring_lines(outer)) == 12
    assert nesting(outer) == 3  # if, the if of its else, with; the elif and its for make 2
    assert nesting(inner) == 0


def test_sizes_stay_within_their_limits() -> None:
    wrong = []
    for where, what, size in sizes():
        limit = ALLOWED.get(where, {}).get(what, LIMITS[what])
        if size > limit:
            wrong.append(f"{where}: {what} {size} > {limit}")
    assert not wrong, "\n".join(wrong)


def test_the_allow_list_only_shrinks() -> None:
    largest: dict[tuple[str, str], int] = {}
    for where, what, size in sizes():
        largest[where, what] = max(size, largest.get((where, what), 0))
    wrong = [
        f"{where}: {what} is {largest.get((where, what), 0)} now, ALLOWED says {allowed}"
        for where, entry in ALLOWED.items()
        for what, allowed in entry.items()
        if largest.get((where, what), 0) <= LIMITS[what] or largest[where, what] < allowed
    ]
    assert not wrong, "take out or lower:\n" + "\n".join(wrong)


def test_every_module_says_what_it_decides() -> None:
    silent = [str(p.relative_to(ROOT)) for p in sources() if not ast.get_docstring(parse(p))]
    assert not silent, f"no module docstring: {silent}"


def test_no_file_is_a_drawer_for_everything() -> None:
    drawers = {"util", "utils", "helper", "helpers", "common", "misc"}
    tests = sorted((ROOT / "tests").rglob("*.py"))
    assert [str(p) for p in [*sources(), *tests] if p.stem in drawers] == []


def test_no_folder_of_scripts_hides_a_package() -> None:
    """Python puts a script's folder first in its path, before an editable install's finder."""
    from posttrain.shadowing import find_shadows

    folders = [path for path in (ROOT / "scripts").rglob("*") if path.is_dir()]
    for folder in [ROOT / "scripts", *folders]:
        assert find_shadows([str(folder)]) == []


def test_package_data_is_declared() -> None:
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    declared: dict[str, list[str]] = tool.get("package-data", {})
    wrong = []
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*"):
            if path.is_dir() or "__pycache__" in path.parts or path.suffix == ".py":
                continue
            where = path.relative_to(ROOT)
            patterns = [
                f"{owner.replace('.', '/')}/{one}"
                for owner, ones in declared.items()
                for one in ones
            ]
            if not any(fnmatch(str(where), pattern) for pattern in patterns):
                wrong.append(str(where))
    assert not wrong, f"a wheel would lack {wrong}: add them to [tool.setuptools.package-data]"


# start-up


def run_python(*arguments: str) -> tuple[float, str]:
    """Processor seconds, which bear a busy machine, and output of a fresh interpreter."""
    start = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    end = resource.getrusage(resource.RUSAGE_CHILDREN)
    return end.ru_utime + end.ru_stime - start.ru_utime - start.ru_stime, done.stdout


@pytest.mark.parametrize(
    "arguments",
    [("-m", "posttrain.cli", "--help"), ("-c", "import rewards, envs"), ("-c", "import posttrain")],
    ids=["help", "rewards-envs", "posttrain"],
)
def test_start_up_is_quick(arguments: tuple[str, ...]) -> None:
    run_python(*arguments)  # the first run writes the byte code
    assert statistics.median(run_python(*arguments)[0] for _ in range(3)) < MAX_START_S


def test_nothing_heavy_is_loaded_by_the_light_packages() -> None:
    code = "import sys, rewards, envs, posttrain, posttrain.cli; print(*sys.modules)"
    loaded = set(run_python("-c", code)[1].split())
    assert loaded & TORCH_USERS == set()


# settings


def leaves(model: type, prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():  # type: ignore[attr-defined]
        if isinstance(field.annotation, type) and hasattr(field.annotation, "model_fields"):
            yield from leaves(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name


def test_settings_are_few_and_each_has_a_sentence() -> None:
    from posttrain.config import GrpoConfig

    names = list(leaves(GrpoConfig))
    assert len(names) <= MAX_SETTINGS, f"{len(names)} settings"
    silent = []
    for name in names:
        model: type = GrpoConfig
        *sections, last = name.split(".")
        for section in sections:
            model = model.model_fields[section].annotation  # type: ignore[attr-defined]
        if not model.model_fields[last].description:  # type: ignore[attr-defined]
            silent.append(name)
    assert not silent, f"no description: {silent}"


CONFIGS = sorted((ROOT / "scripts" / "configs").glob("*.toml"))


def test_there_is_a_quickstart_config() -> None:
    assert "quickstart.toml" in [path.name for path in CONFIGS]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_toml_is_a_valid_job(path: Path) -> None:
    from posttrain.config import GrpoConfig
    from posttrain.trainers.preference_commands import JOBS, job
    from posttrain.trainers.sft_settings import SftConfig
    from pretrain.data.settings import DataSettings
    from pretrain.training.settings import TrainConfig

    kinds: dict[str, type] = {"sft": SftConfig, **{name: job(name)[0] for name in JOBS}}
    kinds |= {"pretrain": TrainConfig, "base-data": DataSettings}
    kind: Any = kinds.get(path.stem.replace("_", "-"), GrpoConfig)
    config = kind.model_validate(tomllib.loads(path.read_text()))
    given = {TrainConfig: "data", DataSettings: "steps"}.get(kind, "model")
    assert getattr(config, given)
