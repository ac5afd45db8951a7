"""Import paths of version 0.1. They still work, with a DeprecationWarning, and will be removed in version 0.4."""

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MODULES = {
    "ray_lir.build": "ray_lir.building.build",
    "ray_lir.client": "ray_lir.api.client",
    "ray_lir.compact": "ray_lir.building.compact",
    "ray_lir.config": "ray_lir.base.config",
    "ray_lir.encode": "ray_lir.encoder.corpus_encoder",
    "ray_lir.errors": "ray_lir.base.errors",
    "ray_lir.formats.contract": "ray_lir.embeddings.contract",
    "ray_lir.formats.embeddings": "ray_lir.embeddings.folder",
    "ray_lir.formats.manifest": "ray_lir.index.manifest",
    "ray_lir.formats.parquet": "ray_lir.embeddings.parquet",
    "ray_lir.formats.pooling": "ray_lir.embeddings.pooling",
    "ray_lir.formats.records": "ray_lir.corpus.records",
    "ray_lir.formats.storage": "ray_lir.storage.files",
    "ray_lir.formats.token_embeddings": "ray_lir.embeddings.token_embeddings",
    "ray_lir.evaluation.datasets": "ray_lir.corpus.datasets",
    "ray_lir.models.cross_encoder": "ray_lir.encoder.cross_encoder",
    "ray_lir.models.encoder": "ray_lir.encoder.encoder",
    "ray_lir.models.tokenization": "ray_lir.encoder.tokenization",
    "ray_lir.parallel": "ray_lir.base.parallel",
    "ray_lir.update": "ray_lir.building.update",
    "ray_lir.versions": "ray_lir.building.publishing",
}
PACKAGES = ("ray_lir.formats", "ray_lir.models")


class MovedModules(MetaPathFinder, Loader):
    """Imports a module by the name that it had in version 0.1."""

    def find_spec(self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return a spec for a module or package of version 0.1; None for any other name.

        Args: as in `importlib.abc.MetaPathFinder.find_spec`.
        """
        if fullname in MODULES or fullname in PACKAGES:
            return ModuleSpec(fullname, self, is_package=fullname in PACKAGES)
        return None

    def exec_module(self, module: ModuleType) -> None:
        """Warn, and put the module with the new name into `sys.modules`; packages stay empty."""
        name = module.__name__
        if name in MODULES:
            warnings.warn(f"{name} is now {MODULES[name]}", DeprecationWarning, stacklevel=3)
            sys.modules[name] = import_module(MODULES[name])


def install() -> None:
    """Add the finder of old names to `sys.meta_path`, after all other finders."""
    if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
        sys.meta_path.append(MovedModules())
