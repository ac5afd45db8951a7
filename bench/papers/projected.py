"""Embeddings of a model with the base checkpoint's transformer: the base's embeddings, projected. No text is encoded again."""

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from ray_lir import storage
from ray_lir.base.config import EncoderConfig
from ray_lir.embeddings.folder import publish_part, write_relation
from ray_lir.embeddings.manifest import EmbeddingsManifest
from ray_lir.embeddings.parquet import Block, read_blocks
from ray_lir.embeddings.token_embeddings import TokenEmbeddings
from ray_lir.encoder.encoder import Encoder
from ray_lir.storage.manifest import MANIFEST, read_manifest, write_manifest


@torch.inference_mode()
def project_embeddings(source: Path, folder: Path, config: EncoderConfig) -> None:
    """Write the embeddings that a model would give for the documents of a folder of embeddings.

    Projections without bias commute with the length of a vector, so the normalized vectors of the base are enough, up to float16.

    Args:
        source: Embeddings of the base checkpoint with scorer attention.
        folder: Folder to write.
        config: A checkpoint with the base's transformer and lengths. Its scorer may be maxsim, xtr, attention, or trial with weights of
            query tokens only.
    """
    encoder = Encoder.load(config.model_copy(update={"device": "cpu", "precision": "float32"}))
    base = read_manifest(str(source / MANIFEST), EmbeddingsManifest, made_by="jobs.encode")
    contract = encoder.contract
    assert contract.document_length == base.contract.document_length and not any(
        layer.linear.bias is not None for layer in encoder.model.layers
    )
    weighs, attends = "documents" in contract.weighs, contract.scorer == "attention"
    assert attends or not weighs

    def projected(block: Block) -> Block:
        values = torch.from_numpy(block.embeddings.values).float()
        for layer in encoder.model.layers:
            values = layer(values)
        values = functional.normalize(values, dim=-1).numpy().astype(np.float16)
        have = block.embeddings
        embeddings = TokenEmbeddings(
            doc_ids=have.doc_ids,
            values=values,
            offsets=have.offsets,
            token_ids=have.token_ids,
            weights=have.weights if weighs else None,
            attention=have.attention if attends else None,
        )
        return Block(embeddings, block.texts)

    parts = [
        publish_part(str(folder), number, map(projected, read_blocks(storage.join(str(source), part.name))), contract.fingerprint)
        for number, part in enumerate(base.parts)
    ]
    relation = write_relation(str(folder), encoder.relation)
    manifest = EmbeddingsManifest(
        contract=contract, dim=contract.dim, num_docs=base.num_docs, num_tokens=base.num_tokens, parts=tuple(parts), relation=relation
    )
    write_manifest(storage.join(str(folder), MANIFEST), manifest)
