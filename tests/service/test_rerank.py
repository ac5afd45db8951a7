"""POST /rerank: texts are scored like documents of the index, with every scorer."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient

from ray_lir.base.config import ClusteringConfig, CodecConfig, EncoderConfig, IndexConfig
from ray_lir.building.build import build_index
from ray_lir.encoder.corpus_encoder import encode_corpus
from ray_lir.encoder.encoder import Encoder
from serving.http.routes import routes
from tests.fixtures.tiny import DOCUMENTS, bert
from tests.support.local_service import local_service

QUERY = "what is the bridge on the river?"


@pytest.mark.parametrize("scorer", ["maxsim", "xtr", "trial", "attention"])
def test_a_reranked_text_scores_like_an_indexed_document_with_the_same_text(scorer: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    bert(tmp_path / "bare")
    encoder = Encoder.load(EncoderConfig(checkpoint=str(tmp_path / "bare"), precision="float32")).with_scorer(scorer)
    encoder.save(tmp_path / "checkpoint")
    texts = [f"{text} {number}" for number, text in enumerate(DOCUMENTS * 3)]
    rows = [{"_id": f"d{number}", "text": text} for number, text in enumerate(texts)]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = EncoderConfig(checkpoint=str(tmp_path / "checkpoint"), precision="float32")
    encode_corpus(str(tmp_path / "corpus.jsonl"), str(tmp_path / "embeddings"), config)
    index = IndexConfig(num_shards=2, codec=CodecConfig(nbits=8), clustering=ClusteringConfig(num_centroids=16))
    build_index(str(tmp_path / "embeddings"), str(tmp_path / "index"), index)
    service, _ = local_service(tmp_path / "index", num_groups=2)
    with TestClient(routes(service)) as client:
        of_texts = reranked(client, texts=texts)
        of_documents = reranked(client, doc_ids=[row["_id"] for row in rows])
    np.testing.assert_allclose(of_texts, of_documents, atol=5e-3 * max(of_texts))
    [query] = encoder.encode_queries([QUERY])
    plain = [float((query.astype(float) @ text.astype(float).T).max(axis=1).sum()) for text in encoder.encode_documents(texts)]
    weighed = scorer in ("trial", "attention")
    assert (np.abs(np.subtract(of_texts, plain)).max() > 0.05 * max(plain)) == weighed


def reranked(client: TestClient, **candidates: list[str]) -> list[float]:
    reply = client.post("/rerank", json={"query": QUERY, "k": 100, **candidates}).json()
    return [each["score"] for each in sorted(reply["results"], key=lambda each: each["position"])]
