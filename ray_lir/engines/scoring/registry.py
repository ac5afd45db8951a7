"""The search side of each scorer, by name. To add a scorer, see docs/extending.md."""

from dataclasses import replace

from ray_lir import storage
from ray_lir.base.errors import IncompatibleError
from ray_lir.embeddings.manifest import EmbeddingsManifest
from ray_lir.engines.scoring.scorer import SearchScorer
from ray_lir.engines.scoring.trial import TrialScorer
from ray_lir.index.codec import ResidualCodec
from ray_lir.index.manifest import IndexManifest

SEARCH_SCORERS: dict[str, SearchScorer] = {
    "maxsim": SearchScorer(),
    "xtr": SearchScorer(),
    "trial": TrialScorer(),
    "attention": SearchScorer(requires_weights=True),
}


def scorer_of(manifest: EmbeddingsManifest | IndexManifest) -> SearchScorer:
    """Return the scorer of an index or of embeddings.

    Raises:
        IncompatibleError: this version does not know the scorer.
    """
    name = manifest.contract.scorer
    if name not in SEARCH_SCORERS:
        raise IncompatibleError(f"the {manifest.kind} is for scorer {name!r}, which this version of ray_lir does not know; upgrade ray_lir")
    scorer = SEARCH_SCORERS[name]
    if scorer.file is None and manifest.scorer_file is not None:
        # Embeddings held in memory may come with a relation encoder and no contract, and then without token weights.
        return replace(SEARCH_SCORERS["trial"], requires_weights=False)
    return scorer


def check_complete(manifest: EmbeddingsManifest | IndexManifest) -> None:
    """Check that an index or embeddings have all that their scorer needs in search beside the vectors.

    Raises:
        IncompatibleError: token weights or the scorer's file are missing.
    """
    contract, scorer, missing = manifest.contract, scorer_of(manifest), None
    if scorer.requires_weights and not contract.weighs:
        missing = "token weights"
    elif scorer.file is not None and manifest.scorer_file is None:
        missing = scorer.file
    elif isinstance(manifest, IndexManifest) and "documents" in contract.weighs:
        without = [shard.name for shard in manifest.shards if f"{shard.name}/weights.npy" not in {file.name for file in shard.files}]
        missing = f"the document weights in {without[0]}" if without else None
    if missing:
        raise IncompatibleError(
            f"the {manifest.kind} of scorer {contract.scorer} (checkpoint {contract.checkpoint}) lacks {missing}, which search needs; "
            "encode the corpus and build the index anew with this version (from embeddings held in memory: give build_index the "
            "encoder's contract and relation)"
        )


def with_scorer_data(codec: ResidualCodec, root: str, manifest: IndexManifest) -> ResidualCodec:
    """Return the codec of an index, completed by what its scorer needs.

    Args:
        codec: as read from the index.
        root: of the index.
        manifest: of the version.

    Raises:
        FormatError: the scorer's file is damaged or for other vectors.
    """
    if manifest.scorer_file is None:
        return codec
    return replace(codec, scorer_data=scorer_of(manifest).load(storage.join(root, manifest.scorer_file.name), codec))
