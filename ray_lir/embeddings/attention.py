"""ColBERT-Att's document weights from stored attention, so that another length l or other sides need no new encoding.

Source: docs/algorithms.md#6-colbert-att
"""

from dataclasses import replace
from typing import Literal

import numpy as np

from ray_lir.base.config import AttentionChanges
from ray_lir.base.errors import ConfigError, IncompatibleError
from ray_lir.embeddings.contract import EncoderContract
from ray_lir.embeddings.token_embeddings import TokenEmbeddings

SIDES: dict[str, tuple[Literal["queries", "documents"], ...]] = {
    "both": ("queries", "documents"),
    "queries": ("queries",),
    "documents": ("documents",),
}
"""Sides with weights, by `AttentionChanges.sides`."""


def weighted_contract(contract: EncoderContract, changes: AttentionChanges) -> EncoderContract:
    """Return the contract with changed settings of the scorer attention.

    Args:
        contract: Contract of the embeddings.
        changes: The changes; the same contract is returned if there are none.

    Raises:
        ConfigError: The scorer is not attention, or document weights are added without their length l.
    """
    if not changes:
        return contract
    if contract.scorer != "attention":
        raise ConfigError(f"the settings of attention need embeddings of the scorer attention, not {contract.scorer}; leave them out")
    weighs = SIDES[changes.sides] if changes.sides else contract.weighs
    if "documents" in weighs and "documents" not in contract.weighs and changes.delta_length is None:
        raise ConfigError("these embeddings have no document weights yet; set --attention.delta_length too (150 in the paper)")
    known = {name: value for name, value in contract.attention.model_dump().items() if value is not None}
    merged = AttentionChanges(**known | {name: value for name, value in changes.model_dump().items() if value is not None})
    return contract.model_copy(update={"attention": merged, "weighs": weighs})


def weighted(embeddings: TokenEmbeddings, contract: EncoderContract, changes: AttentionChanges) -> TokenEmbeddings:
    """Return token embeddings with the document weights of changed settings.

    Args:
        embeddings: Token embeddings of documents.
        contract: `weighted_contract` of their contract and the changes.
        changes: The changes; the same embeddings are returned if there are none.

    Raises:
        IncompatibleError: The weights change, and the embeddings hold no attention.
    """
    if not changes:
        return embeddings
    if "documents" not in contract.weighs:
        return replace(embeddings, weights=None)
    if changes.delta_length is None:
        return embeddings
    if embeddings.attention is None:
        raise IncompatibleError(
            "these embeddings hold no attention, which other weights need; encode the corpus again with this version of ray_lir"
        )
    return replace(embeddings, weights=document_weights(embeddings.attention, changes.delta_length))


def document_weights(attention_T2: np.ndarray, delta_length: int) -> np.ndarray:
    """Return e^(delta A) with delta = min(1, tokens / l), [T] float32.

    Args:
        attention_T2: `TokenEmbeddings.attention`, [T, 2].
        delta_length: l; 0: delta is 1.

    Source: docs/algorithms.md#61-score
    """
    received, lengths = attention_T2.astype(np.float64).T
    delta = np.minimum(1.0, lengths / delta_length) if delta_length else 1.0
    return np.exp(received * delta).astype(np.float32)
