"""Indexes of all released format versions open and give the recorded answers."""

import json

import numpy as np
import pytest

from ray_lir.embeddings.token_embeddings import TokenEmbeddings
from ray_lir.engines import VECTOR_ENGINES
from ray_lir.engines.xtr import XtrParams
from ray_lir.search.searcher import Searcher
from ray_lir.storage.manifest import FORMAT_VERSION
from tests.support.repository import GOLDEN

VERSIONS = sorted(GOLDEN.glob("index_v*"))


def test_every_format_version_has_a_golden_index():
    assert [path.name for path in VERSIONS] == [f"index_v{version}" for version in range(1, FORMAT_VERSION + 1)]


@pytest.mark.parametrize(("kernels", "atol"), [("reference", 1e-5), ("auto", 1e-2)])
@pytest.mark.parametrize("folder", VERSIONS, ids=lambda path: path.name)
def test_an_index_of_an_older_version_opens_and_gives_the_same_answers(folder, kernels, atol):
    searcher = Searcher.open(str(folder / "index"), kernels=kernels, verify=True)
    with np.load(folder / "queries.npz") as file:
        queries = TokenEmbeddings(file["values"], file["offsets"], [str(i) for i in range(len(file["offsets"]) - 1)])
    golden = json.loads((folder / "answers.json").read_text())
    assert set(VECTOR_ENGINES) < set(golden)
    for name, answers in golden.items():
        engine = XtrParams.model_validate_json(name) if name.startswith("{") else name
        for top, expected in zip(searcher.search(queries, 5, engine), answers, strict=True):
            assert searcher.doc_ids(top.documents) == [doc_id for doc_id, _ in expected]
            np.testing.assert_allclose(top.scores, [score for _, score in expected], atol=atol)
    assert searcher.documents([7])[0]["text"] == "text of doc-7"
