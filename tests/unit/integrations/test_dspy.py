"""The retriever for DSPy: passages, filters, saved programs and `dspy.Retrieve`."""

import pytest

dspy = pytest.importorskip("dspy", reason="dspy is not installed; run: pip install -c constraints.txt dspy")

from ray_lir import ConfigError, Index  # noqa: E402
from ray_lir.integrations.dspy import RayLirRetriever  # noqa: E402
from tests.unit.integrations.conftest import DOCUMENTS, QUERY  # noqa: E402


def test_passages_carry_ids_scores_and_metadata(index: Index, place: str):
    found = RayLirRetriever(place, k=2)(QUERY)
    hits = index.search(QUERY, k=2)
    assert (found.doc_ids, found.scores) == ([hit.doc_id for hit in hits], [hit.score for hit in hits])
    assert f"Cells | {DOCUMENTS[0]['text']}" in RayLirRetriever(place, k=4)(QUERY).passages
    assert found.metadata[0]["snippet"] and found.metadata[0]["highlights"]
    assert RayLirRetriever(place, where="year > 2021")(QUERY, k=4).doc_ids == ["sea"]
    assert RayLirRetriever(place)(QUERY, where={"year": 2020}).doc_ids == ["river"]


def test_it_is_a_module_of_a_program_and_a_retrieval_model(index: Index, tmp_path):
    class Program(dspy.Module):
        def __init__(self, k: int):
            super().__init__()
            self.retrieve = RayLirRetriever(index, k=k)

        def forward(self, question: str):
            return self.retrieve(question)

    Program(k=2).save(tmp_path / "program.json")
    program = Program(k=4)
    program.load(tmp_path / "program.json")
    assert program(question=QUERY).doc_ids == [hit.doc_id for hit in index.search(QUERY, k=2)]
    with dspy.context(rm=RayLirRetriever(index).rm):
        assert dspy.Retrieve(k=1)(QUERY).passages == RayLirRetriever(index, k=1)(QUERY).passages


def test_a_wrong_setting_is_one_line(index: Index):
    with pytest.raises(ConfigError, match="quality"):
        RayLirRetriever(index, quality="best")
    with pytest.raises(ConfigError, match="where"):
        RayLirRetriever(index)(QUERY, where="year >")
