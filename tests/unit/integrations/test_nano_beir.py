"""An evaluator over several small collections, for training."""

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.evaluate import EvaluateConfig, evaluate
from ray_lir import ConfigError, Encoder, FormatError, Index
from ray_lir.corpus.datasets import load_dataset
from ray_lir.corpus.records import read_documents
from ray_lir.integrations import nano_beir
from ray_lir.integrations.nano_beir import NANO_BEIR, NanoBeirEvaluator
from tests.support.repository import REPOSITORY

DATA = REPOSITORY / "examples" / "data"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Index:
    return Index.create(tmp_path_factory.mktemp("nano") / "index", DATA)


@pytest.fixture(scope="module")
def parquet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The collection of the examples in the layout of NanoBEIR's repositories."""
    folder, judged = tmp_path_factory.mktemp("parquet"), load_dataset(DATA)
    rows = {
        "corpus": [{"_id": each.doc_id, "text": f"{each.title} {each.text}"} for each in read_documents(DATA)],
        "queries": [{"_id": query_id, "text": text} for query_id, text in judged.queries.items()],
        "qrels": [{"query-id": query, "corpus-id": doc} for query, grades in judged.qrels.items() for doc in grades],
    }
    for name, each in rows.items():
        (folder / name).mkdir()
        pq.write_table(pa.Table.from_pylist(each), folder / name / "train-00000-of-00001.parquet")
    return folder


def test_folders_and_names_are_measured_like_the_index(trained: Index, parquet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shutil.copytree(DATA, tmp_path / "copy")
    monkeypatch.setattr(nano_beir, "_download", lambda name: parquet)
    found = NanoBeirEvaluator([DATA, str(tmp_path / "copy"), "NanoSciFact"])(trained.encoder)
    job = evaluate(EvaluateConfig(index=trained.path, dataset=str(DATA), engine="exact", latency_queries=0))
    assert set(found) == {"data", "copy", "NanoSciFact", "mean"}
    assert found["data"] == found["copy"] == found["NanoSciFact"] == pytest.approx(found["mean"])
    assert found["data"] == pytest.approx(job["nDCG@10"], abs=0.02)  # the index compresses the vectors


def test_there_are_13_collections():
    assert len(set(NANO_BEIR)) == 13


def test_what_is_missing_is_one_line(tmp_path: Path, parquet: Path):
    with pytest.raises(ConfigError, match="NanoNQ cannot be downloaded .*check the network"):
        NanoBeirEvaluator(["NanoNQ"])  # the tests are offline
    with pytest.raises(ConfigError, match="at least one"):
        NanoBeirEvaluator([])
    with pytest.raises(FormatError, match="Parquet files"):
        nano_beir.read_nano_beir(tmp_path)
    shutil.copytree(parquet, tmp_path / "other")
    pq.write_table(pa.table({"_id": ["1"]}), tmp_path / "other" / "corpus" / "train-00000-of-00001.parquet")
    with pytest.raises(FormatError, match="a column text"):
        nano_beir.read_nano_beir(tmp_path / "other")


def test_an_encoder_is_measured_before_it_is_indexed(trained: Index):
    assert NanoBeirEvaluator([DATA])(Encoder.load())["mean"] > 0.9
