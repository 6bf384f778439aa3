"""A digest of what code does, blind to comments, docstrings and layout.

A cached result is good while its inputs and the code that made it are the same. The code that counts is
a module and every module of this library that it imports, at the top or inside a function.
"""

import ast
import hashlib
import sys
from collections.abc import Iterable
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

PACKAGE = "calibration"

REGISTRIES = frozenset(
    f"{PACKAGE}.{name}" for name in ("backends", "engines", "jobs", "judges", "methods", "models", "sources")
)
"""Packages that only name their plug-ins. They are not followed: a result depends on the plug-ins among
its inputs, whose modules are added from the inputs themselves, and not on their neighbours."""


def code_digest(modules: Iterable[str]) -> str:
    """Hex digest of the named modules and of all they import from this library.

    Args:
        modules: Dotted names, such as "calibration.judges.exact".
    """
    lines = [f"{name} {module_digest(name)}" for name in sorted(closure(modules))]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def closure(modules: Iterable[str]) -> set[str]:
    """The named modules and every module of this library that they import, directly or not."""
    seen: set[str] = set()
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name not in seen and name not in REGISTRIES:
            seen.add(name)
            waiting.extend(_imports(name))
    return seen


def package_digest() -> str:
    """Hex digest of this whole library, to tell in a report which code made it."""
    root = Path(__file__).parent
    names = [
        ".".join((PACKAGE, *path.relative_to(root).with_suffix("").parts)) for path in root.rglob("*.py")
    ]
    lines = [f"{name} {module_digest(name.removesuffix('.__init__'))}" for name in sorted(names)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def library_versions(names: Iterable[str]) -> dict[str, str]:
    """Installed versions of the libraries that decide a stage's numbers."""
    return {name: version(name) for name in names}


@cache
def module_digest(name: str) -> str:
    """Hex digest of one module's syntax tree, without what does not run."""
    tree = _tree(name)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [item for item in body if not _is_bare_string(item)]  # type: ignore[attr-defined]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


@cache
def _imports(name: str) -> tuple[str, ...]:
    found: set[str] = set()
    for node in ast.walk(_tree(name)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    ours = {module for module in found if module.split(".")[0] == PACKAGE}
    return tuple(sorted(module for module in ours if _source(module) is not None))


def _tree(name: str) -> ast.Module:
    source = _source(name)
    if source is None:
        raise ModuleNotFoundError(
            f"module {name} must have its source at hand to be fingerprinted; found none"
        )
    return ast.parse(source.read_text(encoding="utf-8"))


@cache
def _source(name: str) -> Path | None:
    if name.split(".")[0] != PACKAGE:
        # A plug-in of somebody else's: its settings are among the inputs, so it has been imported.
        path = getattr(sys.modules.get(name), "__file__", None)
        if name not in sys.modules and (spec := find_spec(name)):
            path = spec.origin
        return Path(path) if path else None
    parent, _, leaf = name.rpartition(".")
    if parent:
        root = _source(parent)
        if root is None or root.name != "__init__.py":
            return None
        for candidate in (root.parent / f"{leaf}.py", root.parent / leaf / "__init__.py"):
            if candidate.is_file():
                return candidate
        return None
    spec = find_spec(name)
    return Path(spec.origin) if spec and spec.origin else None


def _is_bare_string(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
