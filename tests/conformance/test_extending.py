"""docs/extending.md: an engine and a scorer built from its code blocks search and explain without any other change."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.repository import REPOSITORY

PROGRAM = """
import sys
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder
sys.meta_path[:] = [BuiltinImporter, FrozenImporter, PathFinder]  # an editable installation would find the repository instead of the copy
import numpy as np
from ray_lir.base.config import ClusteringConfig, CodecConfig, IndexConfig
from ray_lir.building.build import build_index
from ray_lir.embeddings.token_embeddings import TokenEmbeddings

from ray_lir.engines import ENGINES, SERVED
from ray_lir.scorers import SCORERS
from ray_lir.scorers.batches import padded
from ray_lir.base.config import Config
from ray_lir.search.explain import explain
from ray_lir.search.searcher import Searcher

import ray_lir
assert ray_lir.__file__.startswith(sys.argv[1]), ray_lir.__file__
assert "centroids" in SERVED

rng = np.random.default_rng(1)
def unit(n):
    vectors = rng.normal(size=(n, 32)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
documents = TokenEmbeddings.of([unit(int(n)) for n in rng.integers(5, 30, 120)])
queries = TokenEmbeddings.of([documents[number][:4].astype(np.float32) for number in (3, 60)])

def searcher(name, num_shards, scorer):
    path = f"{sys.argv[1]}/{name}"
    contract = CONTRACT.model_copy(update={"scorer": scorer})
    config = IndexConfig(num_shards=num_shards, clustering=ClusteringConfig(num_centroids=16), codec=CodecConfig(nbits=8))
    build_index(documents, path, config, contract=contract, texts=["text"] * 120)
    return Searcher.open(path)

from ray_lir.embeddings.contract import EncoderContract
CONTRACT = EncoderContract(checkpoint="none", weights_digest="0", dim=32, query_length=32, document_length=32)

whole, sharded = searcher("one", 1, "maxsim"), searcher("three", 3, "maxsim")
params = ENGINES["centroids"].params(ncandidates=20)
for left, right in zip(whole.search(queries, 5, params), sharded.search(queries, 5, params), strict=True):
    assert (left.documents == right.documents).all() and (left.scores == right.scores).all()
everything = ENGINES["centroids"].params(ncandidates=120)
for left, right in zip(whole.search(queries, 5, "exact"), whole.search(queries, 5, everything), strict=True):
    assert (left.documents == right.documents).all() and (left.scores == right.scores).all()
trace, _ = explain(whole, queries.slice(0, 1), 3, 5, params)
assert [stage.name for stage in trace.stages] == ["score_centroids", "rescore"] and trace.rank == 1

squared = searcher("squared", 2, "squared")
scorer = SCORERS["squared"](32, Config())
torch_scores = scorer(padded(queries, "cpu"), padded(documents, "cpu")).numpy()
for row, top in zip(torch_scores, squared.search(queries, 10, "exact"), strict=True):
    np.testing.assert_allclose(top.scores, row[top.documents], atol=0.02)
    assert (squared.search(queries, 10, "scan")[0].documents[:1] == [3]).all()
_, matches = explain(squared, queries.slice(0, 1), 3, 5, "exact")
assert abs(matches.contributions.sum() - squared.search(queries, 1, "exact")[0].scores[0]) < 1e-4
print("built")
"""


def test_the_extending_examples_work_with_only_the_named_files(tmp_path: Path) -> None:
    package = tmp_path / "ray_lir"
    shutil.copytree(REPOSITORY / "ray_lir", package, ignore=shutil.ignore_patterns("native", "__pycache__"))
    page = (REPOSITORY / "docs" / "extending.md").read_text()
    blocks = re.findall(r"^```python\n# (ray_lir/\S+\.py)\n(.*?)^```", page, re.M | re.S)
    assert len(blocks) == 6
    for name, code in blocks:
        path = tmp_path / name
        path.write_text(f"{path.read_text()}\n{code}" if path.exists() else code)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], cwd=tmp_path, capture_output=True, text=True, env={"PYTHONPATH": str(tmp_path)}
    )
    assert done.returncode == 0 and done.stdout.endswith("built\n"), done.stderr[-3000:]
