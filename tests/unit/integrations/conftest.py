"""What the tests of the integrations search: a small index, opened here and behind a service."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_lir import Index
from ray_lir.integrations.source import Source
from tests.support.checkpoints import put_together
from tests.support.local_service import local_service, served

DOCUMENTS = [
    {"_id": "atp", "title": "Cells", "text": "The mitochondrion makes the energy of a cell.", "metadata": {"year": 2019, "lang": "en"}},
    {
        "_id": "zinc",
        "text": "Zinc fingers bind to the genes of a cell.",
        "metadata": {"year": 2021, "lang": "en", "tags": ["dna", "metal"]},
    },
    {"_id": "sea", "text": "The sea is deep and blue.", "metadata": {"year": 2024, "lang": "de", "score": 7}},
    {"_id": "river", "text": "The bridge on the river of the city.", "metadata": {"year": 2020, "lang": "de", "tags": ["city"]}},
]
QUERY = "the energy of a cell"


@pytest.fixture(scope="session")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    folder = tmp_path_factory.mktemp("integrations")
    return Index.create(folder / "index", DOCUMENTS, encoder=put_together("sentence_transformers", "fixed", folder / "checkpoint"))


@pytest.fixture(scope="session")
def url(index: Index) -> Iterator[str]:
    """The address of a service for the index."""
    with served(local_service(Path(index.path), 1)[0]) as url:
        yield url


@pytest.fixture(scope="session", params=["index", "service"])
def place(request: pytest.FixtureRequest, index: Index) -> str:
    """A folder, and an address: each test runs with both."""
    return index.path if request.param == "index" else request.getfixturevalue("url")


@pytest.fixture
def source(place: str) -> Source:
    return Source.of(place)
