"""Registers the models with timm now, or as soon as somebody imports timm."""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

REGISTRY = "smallbatch.models.registry"


class _ThenRegister(Loader):
    """Loads timm with its own loader, then imports the module that registers our models."""

    def __init__(self, loader: Loader, finder: MetaPathFinder) -> None:
        self.loader = loader
        self.finder = finder

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # timm must see its own loader: it offers more than this interface (resources, source).
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        if self.finder in sys.meta_path:
            sys.meta_path.remove(self.finder)
        importlib.import_module(REGISTRY)


class _WaitForTimm(MetaPathFinder):
    """Finds timm as the other finders do and adds the registration to its loading."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "timm":
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(fullname, path, target)
            if spec is not None and spec.loader is not None:
                spec.loader = _ThenRegister(spec.loader, self)
                return spec
        return None


def register_with_timm() -> None:
    """Register at once if timm is already imported, else when it is."""
    if "timm" in sys.modules:
        importlib.import_module(REGISTRY)
    elif not any(isinstance(finder, _WaitForTimm) for finder in sys.meta_path):
        sys.meta_path.insert(0, _WaitForTimm())
