"""What is to be done once a module of another package has been imported, without importing it for that."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

Then = Callable[[ModuleType], None]


def after_import(name: str, then: Then) -> None:
    """Calls `then(module)` once: now if the module `name` has been imported, else right after it will have been."""
    if name in sys.modules:
        then(sys.modules[name])
    else:
        sys.meta_path.insert(0, _AfterImport(name, then))


def forget(name: str) -> None:
    """Nothing is done any more once the module `name` will have been imported."""
    sys.meta_path[:] = [
        finder for finder in sys.meta_path if not (isinstance(finder, _AfterImport) and finder.name == name)
    ]


class _AfterImport(MetaPathFinder):
    def __init__(self, name: str, then: Then) -> None:
        self.name = name
        self.then = then

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        if spec is None:  # it is not installed
            return None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            self.then(sys.modules[name])  # a module may put another in its place, as transformers does

        spec.loader.exec_module = exec_module
        return spec
