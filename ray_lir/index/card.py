"""Index cards: the README of an index on the Hugging Face hub."""

from typing import Any

from ray_lir import storage
from ray_lir.embeddings.cards import CardFacts, measured, table, with_front_matter
from ray_lir.index.manifest import IndexManifest
from ray_lir.storage.manifest import manifest_digest


def index_card(manifest: IndexManifest, version: int, name: str, facts: CardFacts = CardFacts()) -> str:
    """Return the README of an index: YAML metadata that the hub reads, then text.

    Args:
        manifest: Manifest of the version.
        version: Number of the version.
        name: Name of the repository, such as OWNER/NAME.
        facts: What else is known about it.
    """
    contract = manifest.contract
    metadata: dict[str, Any] = {
        "tags": ["index", "multi-vector", "late-interaction", "ray_lir"],
        "task_categories": ["text-retrieval"],
        **({"license": facts.license} if facts.license else {}),
    }
    sizes = {name: getattr(manifest, name) for name in ("num_docs", "num_tokens", "dim", "nbits", "num_centroids")}
    encoder = {"encoder": storage.base_name(contract.checkpoint), "fingerprint": contract.fingerprint, "scorer": contract.scorer}
    parts = [
        f"# {name}",
        facts.description or "A compressed multi-vector (late-interaction) index of texts.",
        f'```python\nimport ray_lir\n\nindex = ray_lir.Index.open("hf://datasets/{name}")\nindex.search("your question")\n```',
        table({"version": version, **sizes, **encoder, "manifest": manifest_digest(manifest)}),
    ]
    if facts.evaluations:
        parts += ["## Evaluation", *(measured(each) for each in facts.evaluations)]
    if facts.provenance:
        parts += ["## Provenance", table(facts.provenance)]
    return with_front_matter(metadata, parts)
