"""Catalog: the names of a service's indexes, and the folder or URL of each."""

import difflib
import re
from collections.abc import Collection, Mapping

from ray_lir import storage
from ray_lir.base.errors import ConfigError, NotFound
from ray_lir.storage.manifest import LATEST

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""Names of indexes. They contain no slash, so a name in a request cannot lead out of the folder."""


class Catalog:
    """The indexes directly inside a folder, or of a mapping. New indexes in the folder are found without a restart.

    Args:
        source: Folder or URL of the indexes, or the folder or URL of each index by name.
    """

    def __init__(self, source: str | Mapping[str, str]):
        self.source = source

    def check(self) -> None:
        """Check that the names are valid and that there is at least one index.

        Raises:
            ConfigError: A name is invalid, or the catalog is empty.
        """
        if isinstance(self.source, str):
            if storage.exists(storage.join(self.source, LATEST)):
                raise ConfigError(f"{self.source} is an index, not a folder of indexes; set index to it instead of indexes")
            if not self.names():
                raise ConfigError(f"{self.source} holds no index; give the folder that contains the folders of the indexes")
            return
        for name in self.source:
            if not NAME.fullmatch(name):
                raise ConfigError(f"{name!r} cannot be the name of an index; use letters, digits, '.', '_' and '-', at most 100")
        if not self.source:
            raise ConfigError("indexes is empty; name a folder of indexes, or each index as name=path")

    def names(self) -> list[str]:
        """Return the names of all indexes, sorted."""
        if not isinstance(self.source, str):
            return sorted(self.source)
        return [name for name in storage.list_names(self.source) if NAME.fullmatch(name) and self._holds_index(self.source, name)]

    def root(self, name: str, visible: Collection[str] | None = None) -> str:
        """Return the folder or URL of an index.

        Args:
            name: Name of the index.
            visible: Names that an error message may contain. None: all.

        Raises:
            NotFound: There is no such index. The message has the nearest name.
        """
        if isinstance(self.source, str):
            if NAME.fullmatch(name) and self._holds_index(self.source, name):
                return storage.join(self.source, name)
        elif name in self.source:
            return self.source[name]
        near = difflib.get_close_matches(name, [each for each in self.names() if visible is None or each in visible], n=1, cutoff=0.5)
        raise NotFound(f"there is no index {name!r}; {f'did you mean {near[0]!r}?' if near else 'GET /indexes lists the indexes'}")

    @staticmethod
    def _holds_index(folder: str, name: str) -> bool:
        return storage.exists(storage.join(folder, name, LATEST))
