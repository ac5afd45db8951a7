"""Builds, updates and compactions on Ray write the bytes of a build in one process."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from jobs import compact, update
from ray_lir.base.config import ClusteringConfig, IndexConfig
from ray_lir.building.build import build_index
from ray_lir.building.compact import compact_index
from ray_lir.building.update import update_index
from ray_lir.embeddings.folder import save_embeddings
from ray_lir.embeddings.token_embeddings import TokenEmbeddings
from tests.fixtures.tiny import WORDS
from tests.support.corpora import write_rows
from tests.support.index_files import tree
from tests.support.served_index import make_index
from tests.support.synthetic import collection

pytestmark = pytest.mark.usefixtures("ray_cluster")

ROWS = [{"_id": f"new-{i}", "text": " ".join(np.random.default_rng(i).choice(WORDS, 12))} for i in range(40)]
ROWS += [{"_id": "doc-7", "text": "the doc that was replaced"}, {"_id": "bad"}]


def test_a_build_on_ray_writes_the_bytes_of_a_build_in_one_process(tmp_path: Path) -> None:
    from ray_lir.distributed.ray_map import ray_map

    save_embeddings(str(tmp_path / "embeddings"), collection(1200))
    build_index(str(tmp_path / "embeddings"), str(tmp_path / "here"), map=map)
    build_index(str(tmp_path / "embeddings"), str(tmp_path / "ray"), map=ray_map)
    assert tree(tmp_path / "here") == tree(tmp_path / "ray")


def test_update_and_compaction_on_ray_write_the_bytes_of_one_process(tmp_path: Path) -> None:
    from ray_lir.distributed.ray_map import ray_map

    documents = collection(300)
    ids = [f"doc-{number}" for number in range(300)]
    first, added = (TokenEmbeddings.of([documents[n] for n in part], [ids[n] for n in part]) for part in (range(200), range(190, 300)))
    save_embeddings(str(tmp_path / "add"), added)
    config = IndexConfig(num_shards=2, clustering=ClusteringConfig(num_centroids=64))
    build_index(first, str(tmp_path / "here"), config, texts=[f"text {number}" for number in range(200)])
    shutil.copytree(tmp_path / "here", tmp_path / "ray")

    def change(index: str, spread: Callable) -> None:
        update_index(index, str(tmp_path / "add"), ["doc-1", "doc-150"], map=spread, allow_empty_texts=True)
        compact_index(index, 3, map=spread)

    change(str(tmp_path / "here"), map)
    change(str(tmp_path / "ray"), ray_map)
    assert (tmp_path / "here" / "LATEST").read_text().strip() == "3"
    assert tree(tmp_path / "here") == tree(tmp_path / "ray")


def test_update_and_compact_jobs_on_ray_write_the_bytes_of_one_process(one_thread: None, tmp_path: Path) -> None:
    make_index(tmp_path, num_docs=120, num_shards=2)
    rows = write_rows(tmp_path / "new.jsonl", ROWS)
    (tmp_path / "gone.txt").write_text('doc-1\n\n{"_id": "doc-2"}\nnobody\n')
    here, on_ray = tmp_path / "index", Path(shutil.copytree(tmp_path / "index", tmp_path / "ray"))
    for index, where in ((here, "here"), (on_ray, "ray")):
        update.run(update.UpdateJob(index=str(index), add=rows, delete=str(tmp_path / "gone.txt"), where=where, docs_per_part=8))
    compact.run(compact.CompactJob(index=str(here), where="here"))
    compact.run(compact.CompactJob(index=str(on_ray)))
    assert tree(here) == tree(on_ray)
