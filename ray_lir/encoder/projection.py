"""Projections to fewer dimensions: fitted on a sample of a corpus (pca:DIM), or new, for training.

Shapes: T token vectors in total, D dimensions before and d after.
"""

from collections.abc import Sequence

import numpy as np
import torch

from ray_lir.base.arguments import text_list
from ray_lir.base.errors import ConfigError
from ray_lir.base.parallel import one_blas_thread
from ray_lir.encoder.encoder import Encoder, weights_digest
from ray_lir.encoder.network import Dense, Network
from ray_lir.encoder.tokenization import TextTokenizer

TEXTS_AT_ONCE = 1024  # bounds the vectors in memory


def fit_projection(encoder: Encoder, texts: Sequence[str], projection: str) -> Encoder:
    """Return the encoder with one more Dense layer, without bias, that preserves the dot products of token vectors as well as possible.

    The rows of the layer are eigenvectors of the uncentered second moment of the sample's token vectors. Of all linear maps to d
    dimensions, they preserve the dot products of the sample best (Eckart-Young). Centering would preserve distances to the mean instead,
    and would need a bias. `encoder.save` writes the result as an ordinary checkpoint.

    Args:
        encoder: The encoder; its transformer is shared with the result.
        texts: Documents of the corpus, at least one.
        projection: pca:DIM, with DIM from 1 to the encoder's dimensions.

    Raises:
        ConfigError: The projection has another form, the scorer has heads, or there are no texts.
    """
    texts = text_list("texts", texts)
    dim = parse_projection(projection, encoder.contract.dim)
    if encoder.contract.scorer != "maxsim":
        raise ConfigError(
            f"{projection} would not match the heads of scorer {encoder.contract.scorer}; fit the projection before training them"
        )
    if not texts:
        raise ConfigError(f"{projection} needs documents to be fitted on, and the corpus has none; give a corpus with documents")
    moment_DD = _second_moment(encoder, texts)
    with one_blas_thread():
        rows_dD = _leading_eigenvectors(moment_DD, dim)
    backbone = encoder.model.backbone
    layer = Dense(encoder.contract.dim, dim)
    layer.linear.weight.data = torch.from_numpy(rows_dD).to(encoder.device, next(backbone.parameters()).dtype)
    return _with_layer(encoder, layer)


def fresh_projection(encoder: Encoder, dim: int) -> Encoder:
    """Return the encoder with a new Dense layer to `dim` dimensions, without bias, initialized with torch's random numbers, for training.

    An encoder that has `dim` dimensions already is returned unchanged.

    Raises:
        ConfigError: The encoder has a trained projection to other dimensions, or heads.
    """
    if encoder.contract.dim == dim:
        return encoder
    if len(encoder.model.projections) or encoder.contract.scorer != "maxsim":
        raise ConfigError(
            f"{encoder.contract.checkpoint} has a trained projection to {encoder.contract.dim} dimensions; "
            f"set --projection_dim {encoder.contract.dim} or none"
        )
    layer = Dense(encoder.contract.dim, dim)
    return _with_layer(encoder, layer.to(encoder.device))


def _with_layer(encoder: Encoder, layer: Dense) -> Encoder:
    network = Network(encoder.model.backbone, [*encoder.model.layers, layer], encoder.model.normalize).eval()
    contract = encoder.contract.model_copy(update={"dim": network.dim, "weights_digest": weights_digest(network)})
    return Encoder(contract, TextTokenizer(contract, encoder.tokenizer.tokenizer), network, encoder.batch_tokens)


def parse_projection(projection: str, dim: int) -> int:
    """Return DIM of pca:DIM.

    Raises:
        ConfigError: The text has another form, or DIM is more than `dim`.
    """
    kind, _, number = projection.partition(":")
    if kind != "pca" or not number.isascii() or not number.isdigit() or not 1 <= int(number) <= dim:
        raise ConfigError(f"projection {projection!r} must be pca:DIM with DIM from 1 to {dim}, the encoder's dimensions")
    return int(number)


@one_blas_thread()
def _second_moment(encoder: Encoder, texts: Sequence[str]) -> np.ndarray:
    """Return the mean of x x^T over the token vectors, [D, D] float64."""
    total_DD, num_tokens = np.zeros((encoder.contract.dim,) * 2), 0
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        vectors_TD = encoder.encode_documents(texts[start : start + TEXTS_AT_ONCE]).values.astype(np.float32)
        with one_blas_thread():
            total_DD += vectors_TD.T @ vectors_TD
        num_tokens += len(vectors_TD)
    return total_DD / max(1, num_tokens)


@one_blas_thread()
def _leading_eigenvectors(moment_DD: np.ndarray, dim: int) -> np.ndarray:
    """Return [d, D] float32 unit rows, largest eigenvalue first. The largest entry of each row is positive, so that a fit is unique."""
    rows_dD = np.linalg.eigh(moment_DD)[1][:, ::-1][:, :dim].T
    largest = np.take_along_axis(rows_dD, np.abs(rows_dD).argmax(1)[:, None], axis=1)
    return np.ascontiguousarray(rows_dD * np.sign(largest), np.float32)
