"""Names in app/: a public name means one thing, and a leading underscore says that only its own module uses a name."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from tests.support.processes import ROOT

SHARED = {
    "logger": "every module's own",
    "T": "a type variable",
    "P": "a type variable",
    "add_parser": "what each command has",
    "run": "what each command has, and the command line itself",
}
"""Public names that several modules may define, and why."""

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "app").rglob("*.py"))
}
FOLDERS = ("app", "benchmarks", "demo", "grafana", "migrations", "tests")


def test_a_public_name_is_defined_in_one_module() -> None:
    places = defaultdict(list)
    for module, path in MODULES.items():
        for name in list_names(path):
            if not name.startswith("_"):
                places[name].append(module)

    repeated = {name: modules for name, modules in places.items() if len(modules) > 1}

    assert {name: repeated[name] for name in repeated.keys() - SHARED.keys()} == {}
    assert SHARED.keys() <= repeated.keys()


def test_a_function_begins_with_an_underscore_when_only_its_module_uses_it() -> None:
    used = list_used()

    public = [
        f"{module}.{name}"
        for module, path in MODULES.items()
        for name in list_functions(path)
        if not name.startswith("_") and (module, name) not in used and name not in SHARED
    ]

    assert public == []


def test_a_name_with_an_underscore_is_used_in_its_own_module_only() -> None:
    """Of another object's attributes, ruff says the same (SLF001)."""
    assert [(module, name) for module, name in list_used() if re.match("_[^_]", name)] == []


def list_names(path: Path) -> Iterator[str]:
    """Yield the functions, classes, constants and types that a module defines."""
    yield from list_functions(path)
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef):
            yield node.name
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        for target in targets:
            elements = target.elts if isinstance(target, ast.Tuple) else [target]
            yield from (element.id for element in elements if isinstance(element, ast.Name) and element.id[:2] != "__")


def list_functions(path: Path) -> Iterator[str]:
    """Yield the functions of a module, not those of its classes."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name


def list_used() -> set[tuple[str, str]]:
    """Return (module, name) of what other modules use: imported, also in a string of code, or as `module.name`."""
    used = set(re.findall(r'"(app[\w.]*):(\w+)"', (ROOT / "pyproject.toml").read_text()))
    for path in (path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")):
        text = path.read_text()
        for module, imported in re.findall(r"from (app[\w.]*) import (\([^)]*\)|[^\n;\"']*)", text):
            for name, alias in re.findall(r"(\w+)(?: as (\w+))?", imported):
                used.add((module, name))
                if f"{module}.{name}" in MODULES:
                    found = re.findall(rf"\b{alias or name}\.(\w+)", text)
                    used |= {(f"{module}.{name}", attribute) for attribute in found}
    return used
