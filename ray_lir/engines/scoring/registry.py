"""The registry of scorers for search. docs/extending.md shows how to add a scorer."""

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
    """Return the scorer of an index or of embeddings, from the name in their encoder contract.

    Raises:
        IncompatibleError: The scorer is not in the registry.
    """
    name = manifest.contract.scorer
    if name not in SEARCH_SCORERS:
        raise IncompatibleError(f"the {manifest.kind} is for scorer {name!r}, which this version of ray_lir does not know; upgrade ray_lir")
    scorer = SEARCH_SCORERS[name]
    if scorer.file is None and manifest.scorer_file is not None:
        return SEARCH_SCORERS["trial"]  # embeddings in memory can have a relation encoder but no contract
    return scorer


def check_complete(manifest: EmbeddingsManifest | IndexManifest) -> None:
    """Check that an index or embeddings have the token weights and the file that their scorer needs for search.

    Raises:
        IncompatibleError: Token weights or the scorer's file are missing.
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
    """Return the codec of an index with the `scorer_data` that its scorer needs.

    Args:
        codec: The codec, as read from the index.
        root: Path or URL of the index.
        manifest: Manifest of the index version.

    Returns:
        The codec; the same one if the index has no scorer file.

    Raises:
        FormatError: The scorer's file is damaged or does not fit the vectors.
        IncompatibleError: The scorer is not in the registry.
    """
    if manifest.scorer_file is None:
        return codec
    return replace(codec, scorer_data=scorer_of(manifest).load(storage.join(root, manifest.scorer_file.name), codec))
