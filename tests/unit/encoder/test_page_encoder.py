"""Image pages: a tiny random ColPali through sentence-transformers, an index of pages, matches as boxes, and the page of the service."""

from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

import ray_lir
from ray_lir.base.errors import ConfigError, IncompatibleError
from ray_lir.embeddings.page_grid import PageGrid

pytest.importorskip("sentence_transformers", reason="image pages need the extra images")

from ray_lir.encoder.page_encoder import PageEncoder
from tests.support.page_checkpoint import GRID, pages, write_checkpoint

QUERY = "red chart"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("colpali"))


@pytest.fixture(scope="module")
def encoder(checkpoint: Path) -> PageEncoder:
    return PageEncoder.load(str(checkpoint), "cpu")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory, encoder: PageEncoder) -> Path:
    folder = tmp_path_factory.mktemp("pages") / "index"
    encoded = encoder.encode_pages(pages(12), [f"page-{number}" for number in range(12)], [{"year": 2000 + each} for each in range(12)])
    titles = [f"Page {number}" for number in range(12)]
    ray_lir.build_index(encoded.embeddings, folder, contract=encoder.contract, titles=titles, metadata=encoded.metadata)
    return folder


def test_a_page_has_a_vector_for_each_patch_and_its_grid_in_the_metadata(encoder):
    [image] = pages(1)
    encoded = encoder.encode_pages([image], ["a"], [{"year": 2024}])
    page = encoded.metadata[0]["page"]
    grid = PageGrid.of(encoded.metadata[0])
    assert encoded.metadata[0]["year"] == 2024 and page["thumbnail"].startswith("data:image/webp;base64,")
    assert grid is not None and (grid.rows, grid.columns) == (GRID, GRID)
    assert encoded.embeddings.lengths[0] >= grid.first + GRID * GRID
    expected = encoder._model.encode_document([image], show_progress_bar=False)[0]
    np.testing.assert_allclose(encoded.embeddings.values, np.asarray(expected), atol=2e-3)


def test_only_the_patch_that_changes_has_another_first_layer_input(encoder):
    """The order of the patches is row by row: a change at the lower right changes the last patch the most."""
    [image] = pages(1)
    changed = image.copy()
    changed.paste((255, 0, 0), (48, 72, 64, 96))  # the lower right of the 4 by 4 grid
    before, after = (encoder.encode_pages([each]).embeddings.values.astype(np.float32) for each in (image, changed))
    grid = PageGrid.of(encoder.encode_pages([image]).metadata[0])
    assert grid is not None
    difference = np.linalg.norm(before - after, axis=1)[grid.first : grid.first + GRID * GRID]
    assert difference.argmax() == GRID * GRID - 1
    assert grid.box(grid.first + GRID * GRID - 1) == (0.75, 0.75, 1.0, 1.0)


def test_an_index_of_pages_is_searched_with_text_and_matches_are_boxes(index, encoder):
    opened = ray_lir.Index.open(index)
    [hit, *_] = opened.search(QUERY, k=3, where="year >= 2003")
    assert int(hit.doc_id.removeprefix("page-")) >= 3
    assert {match.token for match in hit.matches} >= {"red", "chart"}
    boxes = [match.box for match in hit.matches if match.box]
    assert boxes and all(0 <= left < right <= 1 and 0 <= top < bottom <= 1 for left, top, right, bottom in boxes)
    assert sum(match.contribution for match in hit.matches) == pytest.approx(hit.score, abs=0.05)
    queries = encoder.encode_queries([QUERY])
    assert [each.doc_id for each in opened.search(QUERY, k=5, engine="exact")] == opened.searcher.doc_ids(
        opened.searcher.search(queries, 5, "exact")[0].documents
    )


def test_the_service_answers_with_boxes_and_thumbnails(index):
    from serving.http.routes import routes
    from tests.support.local_service import local_service

    with TestClient(routes(local_service(index, 1)[0])) as client:
        answer = client.post("/search", json={"query": QUERY, "k": 2, "explain": True, "highlight": True}).json()
        [hit, _] = answer["results"][0]
        assert any("box" in match for match in hit["matches"]) and hit["metadata"]["page"]["thumbnail"].startswith("data:image/webp")
        assert [field["path"] for field in client.get("/index").json()["fields"]] == [["year"]]
        assert any("box" in match for match in client.post("/explain", json={"query": QUERY, "doc_id": "page-1"}).json()["matches"])
        refused = client.post("/rerank", json={"query": QUERY, "texts": ["a text"]})
        assert refused.status_code == 400 and "images" in refused.json()["error"]["message"]


def test_tokens_of_the_query_are_located_in_its_text(encoder):
    spans = encoder.query_spans("red chart")
    assert len(spans.pieces) == encoder.encode_queries(["red chart"]).lengths[0]
    located = [(piece, tuple(span)) for piece, span in zip(spans.pieces, spans.spans.tolist(), strict=True) if span[0] >= 0]
    assert located == [("red", (0, 3)), ("chart", (4, 9))]


def test_other_weights_and_checkpoints_without_images_are_refused(encoder, checkpoint, tmp_path):
    contract = encoder.contract.model_copy(update={"weights_digest": "0" * 64})
    with pytest.raises(IncompatibleError, match="has other weights"):
        PageEncoder.for_contract(contract)
    with pytest.raises(ConfigError, match="not a checkpoint"):
        PageEncoder.load(str(tmp_path))
    with pytest.raises(ConfigError, match="2 images and 1 dicts"):
        encoder.encode_pages(pages(2), metadata=[{}])
    with pytest.raises(ConfigError, match="are images"):
        encoder.encode_documents(["text"])


@pytest.mark.parametrize("stored", [None, 3, {}, {"rows": 0, "columns": 4}, {"rows": "4", "columns": 4}, {"rows": 4.0, "columns": 4}])
def test_metadata_that_is_no_grid_gives_no_boxes(stored):
    assert PageGrid.of({"page": stored}) is None and PageGrid.of(None) is None


def test_boxes_of_a_grid():
    grid = PageGrid(rows=2, columns=4, first=3)
    assert grid.box(2) is None and grid.box(11) is None
    assert grid.box(3) == (0.0, 0.0, 0.25, 0.5) and grid.box(10) == (0.75, 0.5, 1.0, 1.0)


def test_a_text_contract_keeps_its_fingerprint(encoder):
    assert encoder.contract.documents == "images"
    text = encoder.contract.model_copy(update={"documents": "text"})
    assert "documents" not in text.model_dump(mode="json", exclude_defaults=True) and text.fingerprint != encoder.contract.fingerprint
