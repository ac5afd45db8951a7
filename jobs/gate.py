"""Where a promotion finds and searches the two versions of an index: a running service, or a folder."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from ray_lir import storage
from ray_lir.api.search import MAX_QUERIES
from ray_lir.base.errors import ConfigError, Conflict, Overloaded
from ray_lir.evaluation.promotion import VersionFacts
from ray_lir.index.versions import latest_version, read_version, version_numbers
from ray_lir.storage.manifest import LATEST, manifest_digest

if TYPE_CHECKING:
    from ray_lir.api.admin import IndexFacts
    from ray_lir.api.client import Client

Rankings = dict[str, list[tuple[str, float]]]
"""Query id -> ids and scores of its best documents, best first."""
QUERIES_PER_CALL = 16
"""Small, so that the measurement does not delay the service's own requests for long."""
TRIES = 20
"""Attempts of a call that the service refuses because of load."""


class Versions(Protocol):
    """The two versions of an index that a promotion compares."""

    @property
    def current(self) -> VersionFacts:
        """The version that answers requests."""
        ...

    @property
    def candidate(self) -> VersionFacts:
        """The version that may replace it."""
        ...

    @property
    def root(self) -> str:
        """Folder or URL of the index."""
        ...

    def rank(self, version: int, queries: Mapping[str, str], k: int) -> Rankings:
        """Return the best documents of each query.

        Args:
            version: Number of the version to search.
            queries: Query id -> text.
            k: Documents to find for each query.
        """
        ...

    def promote(self) -> dict[str, Any]:
        """Let the candidate answer requests, and return the new state."""
        ...


def _facts(found: "IndexFacts") -> VersionFacts:
    return VersionFacts(version=found.version, num_docs=found.num_docs, fingerprint=found.fingerprint, manifest=found.manifest)


@dataclass
class ServedVersions:
    """Two versions that a service has open: the candidate is a canary.

    Attributes:
        client: Client with an admin token.
        root: Folder or URL of the index, as the service sees it.
        current: The version that answers requests.
        candidate: The canary.
    """

    client: "Client"
    root: str
    current: VersionFacts
    candidate: VersionFacts
    promoted: bool = field(default=False, init=False)

    @classmethod
    @contextmanager
    def open(cls, client: "Client", version: int) -> Iterator["ServedVersions"]:
        """Load a version as a canary without traffic, and end the canary afterwards, unless it has been promoted.

        Args:
            client: Client with an admin token.
            version: Number of the version.

        Raises:
            ConfigError: The version is served already.
            Conflict: The version cannot be opened, or another canary is served.
        """
        before = client.index()
        if before.version == version:
            raise ConfigError(f"version {version} answers all requests already; give another version")
        if before.canary not in (None, version):
            raise Conflict(f"version {before.canary} is a canary already; end it with `ray-lir rollback`, or promote it, first")
        if before.canary is None:
            client.load_version(version, 0.0)
        opened = None
        try:
            opened = cls(client, before.index, _facts(before), _facts(client.index(version)))
            yield opened
        finally:
            if before.canary is None and not (opened and opened.promoted) and client.index().canary == version:
                client.roll_back()

    def rank(self, version: int, queries: Mapping[str, str], k: int) -> Rankings:
        """See `Versions.rank`.

        Args:
            version: Number of the version to search.
            queries: Query id -> text.
            k: Documents to find for each query.
        """
        found: Rankings = {}
        ids = list(queries)
        for start in range(0, len(ids), min(QUERIES_PER_CALL, MAX_QUERIES)):
            block = ids[start : start + QUERIES_PER_CALL]
            results = self._search([queries[query_id] for query_id in block], k, version)
            for query_id, hits in zip(block, results, strict=True):
                found[query_id] = [(hit.doc_id, hit.score) for hit in hits]
        return found

    def _search(self, texts: Sequence[str], k: int, version: int) -> Any:
        for attempt in range(TRIES):
            try:
                return self.client.search(texts, k=k, version=version, include=()).results
            except Overloaded as error:
                if attempt == TRIES - 1:
                    raise
                time.sleep(error.retry_after_s)
        raise AssertionError

    def set_traffic(self, fraction: float) -> None:
        """Let the candidate answer a fraction of the requests."""
        self.client.load_version(self.candidate.version, fraction)

    def promote(self) -> dict[str, Any]:
        """See `Versions.promote`.

        Raises:
            Conflict: Someone else has changed the served versions meanwhile.
        """
        now = self.client.index()
        if (now.version, now.canary) != (self.current.version, self.candidate.version):
            raise Conflict("the served versions were changed meanwhile; promote again")
        state = self.client.promote()
        self.promoted = True
        return state.model_dump(mode="json", exclude_none=True)


class LocalVersions:
    """Two versions in the folder of an index, searched in this process.

    Args:
        index: Folder of the index.
        version: Number of the candidate.
        current: Number of the current version. None: the one in LATEST, or the version before the candidate if that is the candidate.

    Raises:
        ConfigError: There is no other version to compare with.
        FormatError: There is no such version.
    """

    def __init__(self, index: str, version: int, current: int | None = None):
        self.root = storage.absolute(index)
        if not storage.is_local(self.root):
            raise ConfigError(f"{self.root} is not on a local disk; give a copy, or a service with --service")
        number = current or latest_version(self.root)
        if number == version and current is None:
            earlier = [each for each in version_numbers(self.root) if each < version]
            if not earlier:
                raise ConfigError(f"{self.root} has no version before {version} to compare with; give --current")
            number = earlier[-1]
        if number == version:
            raise ConfigError(f"version {version} is the current version already; give another --version")
        self.current, self.candidate = self._facts(number), self._facts(version)

    def rank(self, version: int, queries: Mapping[str, str], k: int) -> Rankings:
        """See `Versions.rank`.

        Args:
            version: Number of the version to search.
            queries: Query id -> text.
            k: Documents to find for each query.
        """
        from ray_lir.encoder.encoder import Encoder
        from ray_lir.search.searcher import Searcher

        searcher = Searcher.open(self.root, version)
        encoder = Encoder.for_contract(searcher.manifest.contract)
        answers = searcher.search(encoder.encode_queries(list(queries.values()), list(queries)), k)
        return {
            query_id: list(zip(searcher.doc_ids(answer.documents), answer.scores.tolist(), strict=True))
            for query_id, answer in zip(queries, answers, strict=True)
        }

    def promote(self) -> dict[str, Any]:
        """See `Versions.promote`. Writes LATEST."""
        storage.write_bytes(storage.join(self.root, LATEST), f"{self.candidate.version}\n".encode())
        return {"version": self.candidate.version, "previous": self.current.version}

    def _facts(self, version: int) -> VersionFacts:
        manifest = read_version(self.root, version)
        return VersionFacts(
            version=version, num_docs=manifest.num_docs, fingerprint=manifest.contract.fingerprint, manifest=manifest_digest(manifest)
        )
