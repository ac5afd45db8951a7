"""Saved encoders give the same embeddings, loaded here and by sentence-transformers. Fitted projections."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ray_lir.base.config import EncoderConfig
from ray_lir.base.errors import ConfigError
from ray_lir.encoder.encoder import Encoder
from ray_lir.encoder.projection import fit_projection
from tests.fixtures.tiny import DOCUMENTS, QUERIES
from tests.support.checkpoints import plain, put_together

SAVED = {
    "minilm": lambda folder: load("all-MiniLM-L6-v2"),
    "plain": lambda folder: load(plain(folder)),
    "expanded": lambda folder: load(plain(folder), query_expansion=True, query_length=24, skip_punctuation=True),
    "projected": lambda folder: fit_projection(load(plain(folder)), DOCUMENTS, "pca:16"),
    "pylate": lambda folder: load(put_together("pylate", "attended_expansion", folder)),
    "two_dense": lambda folder: load(put_together("pylate", "two_dense", folder)),
    "stanford": lambda folder: load(put_together("stanford", "default", folder)),
    "xtr": lambda folder: load(put_together("xtr", "checkpoint", folder)),
}


def load(checkpoint: str | Path, **changes: object) -> Encoder:
    return Encoder.load(EncoderConfig(checkpoint=str(checkpoint), precision="float32", **changes))


@pytest.mark.parametrize("make", SAVED.values(), ids=SAVED.keys())
def test_saving_and_loading_changes_neither_contract_nor_vectors(make: Callable, tmp_path: Path) -> None:
    encoder = make(tmp_path / "source")
    encoder.save(tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert again.contract.fingerprint == encoder.contract.fingerprint
    assert np.array_equal(again.encode_documents(DOCUMENTS).values, encoder.encode_documents(DOCUMENTS).values)
    assert np.array_equal(again.encode_queries(QUERIES).values, encoder.encode_queries(QUERIES).values)


@pytest.mark.parametrize("make", SAVED.values(), ids=SAVED.keys())
def test_sentence_transformers_gives_the_same_embeddings_with_a_saved_checkpoint(make: Callable, tmp_path: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers", minversion="6")
    encoder = make(tmp_path / "source")
    encoder.save(tmp_path / "saved")
    model = sentence_transformers.MultiVectorEncoder(str(tmp_path / "saved"), device="cpu")
    for ours, theirs in (
        (encoder.encode_queries(QUERIES), model.encode_query(QUERIES)),
        (encoder.encode_documents(DOCUMENTS), model.encode_document(DOCUMENTS)),
    ):
        assert ours.lengths.tolist() == [len(rows) for rows in theirs]
        np.testing.assert_allclose(ours.values.astype(np.float32), np.concatenate(theirs), rtol=0, atol=1e-3)


def test_an_encoder_is_never_saved_over_existing_files(tmp_path: Path) -> None:
    encoder = load(put_together("pylate", "expansion", tmp_path / "source"))
    (tmp_path / "taken").mkdir()
    encoder.save(tmp_path / "taken")
    before = sorted((path.name, path.stat().st_mtime_ns) for path in (tmp_path / "taken").iterdir())
    with pytest.raises(ConfigError, match="exists already"):
        encoder.save(tmp_path / "taken")
    assert sorted((path.name, path.stat().st_mtime_ns) for path in (tmp_path / "taken").iterdir()) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "taken"]


def test_conventions_that_a_layout_cannot_hold_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    encoder = load(put_together("sentence_transformers", "min_attended", tmp_path / "source"))
    with pytest.raises(ConfigError, match="expansion_length=12 cannot be saved"):
        encoder.save(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_a_projection_to_all_dimensions_keeps_every_dot_product(tmp_path: Path) -> None:
    encoder = load(plain(tmp_path))
    rotated = fit_projection(encoder, DOCUMENTS, "pca:32").encode_documents(DOCUMENTS).values.astype(np.float32)
    original = encoder.encode_documents(DOCUMENTS).values.astype(np.float32)
    np.testing.assert_allclose(rotated @ rotated.T, original @ original.T, rtol=0, atol=5e-3)


def test_a_fitted_projection_keeps_dot_products_better_than_random_ones_of_its_size(tmp_path: Path) -> None:
    encoder = load(plain(tmp_path))
    fitted = fit_projection(encoder, DOCUMENTS, "pca:8")
    assert fitted.contract.dim == 8 and fitted.contract.fingerprint != encoder.contract.fingerprint
    rows = fitted.model.projections[-1].linear.weight.detach().numpy()
    np.testing.assert_allclose(rows @ rows.T, np.eye(8), atol=1e-5)
    vectors = encoder.encode_documents(DOCUMENTS).values.astype(np.float32)

    def lost(basis: np.ndarray) -> float:
        projected = vectors @ basis.T
        return float(np.square(vectors @ vectors.T - projected @ projected.T).sum())

    centred = np.linalg.svd(vectors - vectors.mean(0), full_matrices=False)[2][:8]
    random = np.linalg.qr(np.random.default_rng(0).normal(size=(32, 8)))[0].T
    assert lost(rows) < lost(centred) < lost(random)


def test_equal_samples_give_equal_projections(tmp_path: Path) -> None:
    encoder = load(put_together("pylate", "expansion", tmp_path))
    assert fit_projection(encoder, DOCUMENTS, "pca:8").contract == fit_projection(encoder, DOCUMENTS, "pca:8").contract


@pytest.mark.parametrize("projection", ["pca", "pca:", "pca:0", "pca:17", "pca:8.5", "pca:-1", "svd:8", "pca:²", ""])
def test_an_invalid_projection_is_refused(projection: str, tmp_path: Path) -> None:
    encoder = load(put_together("pylate", "expansion", tmp_path))
    with pytest.raises(ConfigError, match="must be pca:DIM with DIM from 1 to 16"):
        fit_projection(encoder, DOCUMENTS, projection)


def test_fitting_a_projection_needs_texts(tmp_path: Path) -> None:
    encoder = load(put_together("pylate", "expansion", tmp_path))
    with pytest.raises(ConfigError, match="needs documents"):
        fit_projection(encoder, [], "pca:8")
