"""Decides how an algorithm is named, configured and found: by name, with settings, or by reference.

An algorithm is a plain function whose settings are its keyword-only parameters with defaults::

    @LOSSES.register("ppo_clip")
    def ppo_clip(tokens, *, low: Share = 0.2, high: NonNegative = 0.28): ...

It is chosen by name, ``"ppo_clip"``; with settings, ``{"name": "ppo_clip", "high": 0.3}``; and a
user's own, which has no name yet, by reference: ``"my_package.losses:mine"`` or
``"path/to/file.py:mine"``. All three are plain values, so a choice can be written to a file and
resolved again in another process. What the settings may be is said by their annotations, which
pydantic checks: a wrong one is found before any model is loaded.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Annotated, Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from posttrain.errors import UsageError
from rewards.errors import did_you_mean

F = TypeVar("F", bound=Callable[..., Any])
Choice = str | Mapping[str, Any]

# Annotations for settings.
Share = Annotated[float, Field(ge=0.0, le=1.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Positive = Annotated[float, Field(gt=0.0)]
AtLeastOne = Annotated[float, Field(ge=1.0)]
Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]


@dataclass(frozen=True, slots=True)
class Bound(Generic[F]):
    """A chosen function with all its settings fixed; called with what is not a setting."""

    name: str  # registered, or the reference
    function: F
    needs: frozenset[str] = frozenset()
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, *args: Any) -> Any:
        return self.function(*args, **self.arguments)

    def __str__(self) -> str:
        return f"{self.name}({', '.join(f'{k}={v!r}' for k, v in self.arguments.items())})"

    @property
    def choice(self) -> dict[str, Any]:
        """What ``resolve`` makes the same of in any process on this machine.

        The name of a user's function means nothing to a process that has not imported it, so it
        goes by reference.
        """
        own = self.function.__module__.partition(".")[0] == __name__.partition(".")[0]
        return {"name": self.name if own else choice_of(self.function), **self.arguments}


@dataclass(frozen=True, slots=True)
class _Entry(Generic[F]):
    function: F
    needs: frozenset[str]
    settings: type[BaseModel]


class Registry(Generic[F]):
    """The functions of one kind. ``kind`` names them in messages: "loss", "advantage"."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, _Entry[F]] = {}

    def register(self, name: str, needs: Iterable[str] = ()) -> Callable[[F], F]:
        """Decorator: make a function known under ``name``; it is returned unchanged.

        ``needs`` names what must be there beside the function's ordinary input, such as
        "values" for a critic's. Raises UsageError for a name that another function holds, and for
        settings without a default.
        """
        if isinstance(needs, str) or not name or ":" in name:
            raise UsageError(f'a {self.kind} is registered as register("name", needs=("a", "b"))')

        def keep(function: F) -> F:
            held = self._entries.get(name)
            if held is not None and _origin(held.function) != _origin(function):
                where = f"{held.function.__module__}.{held.function.__qualname__}"
                raise UsageError(f"{self.kind} {name!r} is already registered, by {where}")
            settings = _settings_model(function, name)
            self._entries[name] = _Entry(function, frozenset(needs), settings)
            return function

        return keep

    def resolve(self, choice: Choice) -> Bound[F]:
        """The chosen function with its settings. Raises UsageError for what cannot be."""
        name, given = self._read(choice)
        if ":" in name:
            entry = self._entry_of(name, self._referred(name))
        elif name in self._entries:
            entry = self._entries[name]
        else:
            raise UsageError(f"unknown {self.kind} {name!r}.{did_you_mean(name, self)}")
        arguments = self._checked(name, entry.settings, given)
        return Bound(name, entry.function, entry.needs, arguments)

    def describe(self) -> list[tuple[str, str, str]]:
        """(name, settings with their defaults, first line of the docstring), sorted by name."""
        return [
            (name, str(self.resolve(name))[len(name) + 1 : -1], _first_line(entry.function))
            for name, entry in sorted(self._entries.items())
        ]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))

    def __len__(self) -> int:
        return len(self._entries)

    def _read(self, choice: Choice) -> tuple[str, dict[str, Any]]:
        """The name and the settings of a choice."""
        if isinstance(choice, str):
            return choice, {}
        if not isinstance(choice, Mapping) or not isinstance(choice.get("name"), str):
            raise UsageError(
                f'a {self.kind} is a name or {{"name": ..., setting: value}}, got {choice!r}'
            )
        return choice["name"], {key: value for key, value in choice.items() if key != "name"}

    def _referred(self, reference: str) -> F:
        """The function that ``module:function`` or ``file.py:function`` means."""
        where, _, name = reference.rpartition(":")
        module = _loaded_file(where) if where.endswith(".py") else _imported(where)
        found: Any = module
        for part in name.split("."):
            found = getattr(found, part, None)
        if not callable(found):
            known = [key for key, value in vars(module).items() if inspect.isfunction(value)]
            raise UsageError(
                f"{self.kind} {reference!r}: {where} has no function {name!r}."
                f"{did_you_mean(name, known)}"
            )
        return typing.cast(F, found)

    def _entry_of(self, reference: str, function: F) -> _Entry[F]:
        """The function with the needs it was registered with, if it was."""
        needs: frozenset[str] = frozenset()
        for entry in self._entries.values():
            if _origin(entry.function) == _origin(function):
                needs = entry.needs
        return _Entry(function, needs, _settings_model(function, reference))

    def _checked(
        self, name: str, model: type[BaseModel], given: Mapping[str, Any]
    ) -> dict[str, Any]:
        """All settings by name, defaults filled in."""
        try:
            settings = model.model_validate(dict(given))
        except ValidationError as error:
            lines = [self._explain(name, model, dict(fault)) for fault in error.errors()]
            raise UsageError("\n".join(lines)) from error
        return {key: getattr(settings, key) for key in model.model_fields}

    def _explain(self, name: str, model: type[BaseModel], fault: Mapping[str, Any]) -> str:
        what = ".".join(map(str, fault["loc"]))
        if fault["type"] != "extra_forbidden":
            return f"{self.kind} {name!r}: {what} = {fault['input']!r}: {fault['msg']}"
        known = ", ".join(model.model_fields) or "none"
        return f"{self.kind} {name!r} has no setting {what!r}; its settings: {known}"


def choice_of(function: Callable[..., Any]) -> str:
    """The reference by which another process finds ``function``.

    A function of a package goes by its module; one of a script or of a lone file by the file's
    path, because the other process may look for modules elsewhere. Raises UsageError for what
    has no place of its own: a lambda, a function inside a function, one typed into a session.
    """
    name = getattr(function, "__qualname__", "")
    if not name or "<" in name:
        raise UsageError(f"{function!r} cannot be found by name: define it at the top of a module")
    module = sys.modules.get(function.__module__)
    file = getattr(module, "__file__", None)
    if file is None:
        raise UsageError(f"{name} is in no file: put it into one, and import it from there")
    if "." not in function.__module__ and not hasattr(module, "__path__"):  # __main__ included
        return f"{Path(file).resolve()}:{name}"
    return f"{function.__module__}:{name}"


def _imported(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # the module is there; something it imports is not
        raise UsageError(f"no module {name!r}; for a file write path/to/file.py:name") from error
    except (ValueError, TypeError) as error:  # an empty or relative name
        raise UsageError(f"{name!r} is no module") from error


def _loaded_file(text: str) -> ModuleType:
    """The module of a file, executed once per process, under a name nobody else uses."""
    path = Path(text).expanduser().resolve()
    if not path.is_file():
        raise UsageError(f"there is no file {path}")
    name = f"_posttrain_file_{hashlib.sha256(str(path).encode()).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs: dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _settings_model(function: Callable[..., Any], name: str) -> type[BaseModel]:
    """The keyword-only parameters as a pydantic model; without annotation the default's type."""
    fields: dict[str, Any] = {}
    for key, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is not parameter.KEYWORD_ONLY:
            continue
        if parameter.default is parameter.empty:
            raise UsageError(f"setting {key!r} of {name!r} needs a default")
        fields[key] = (_annotation(function, key, type(parameter.default)), parameter.default)
    strict = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    return create_model("Settings", __config__=strict, **fields)


def _annotation(function: Callable[..., Any], key: str, default: Any) -> Any:
    """Of one parameter. The others may name what is imported for type checking only."""
    own = inspect.unwrap(function)
    annotations = getattr(own, "__annotations__", {})
    if key not in annotations:
        return default
    one = SimpleNamespace(__annotations__={key: annotations[key]})
    try:
        hints = typing.get_type_hints(one, getattr(own, "__globals__", {}), include_extras=True)
    except NameError as error:
        raise UsageError(f"annotation of setting {key!r} of {own.__qualname__}: {error}") from error
    return hints[key]


def _origin(function: Callable[..., Any]) -> tuple[str, str]:
    """File and qualified name: the same for a module that was executed twice."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return getattr(code, "co_filename", repr(function)), getattr(function, "__qualname__", "")


def _first_line(function: Callable[..., Any]) -> str:
    return (inspect.getdoc(function) or "").partition("\n")[0]
