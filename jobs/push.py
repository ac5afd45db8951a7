"""Publishes an encoder or an index on the Hugging Face hub, or as a local folder, with a card."""

from typing import Annotated, Any, Self

from pydantic import BeforeValidator, model_validator

from ray_lir import storage
from ray_lir.base.config import Config, parse_json
from ray_lir.base.errors import FormatError
from ray_lir.embeddings.cards import CardFacts
from ray_lir.storage.manifest import MANIFEST, PROVENANCE

from .cli import main
from .hits import names


class PushJob(Config):
    """Publishes an encoder or an index on the Hugging Face hub, or as a local folder, with a card.

    An encoder becomes a repository of type model with its checkpoint; PyLate and sentence-transformers load it too. An index becomes a
    repository of type dataset; `Index.open("hf://datasets/OWNER/NAME")` opens it. It holds the texts of its documents. The token is the one
    of `hf auth login`, or of the environment variable HF_TOKEN.
    """

    encoder: str | None = None
    """Name or folder of a checkpoint, or the output folder of a training."""
    index: str | None = None
    """Folder of an index."""
    repo: str | None = None
    """Name of the repository, OWNER/NAME; it is made if it does not exist."""
    output: str | None = None
    """In place of --repo: a new local folder for the same files."""
    private: bool = False
    """Make a new repository private."""
    description: str = ""
    """First paragraph of the card."""
    license: str | None = None
    """Licence, such as apache-2.0."""
    base_model: str | None = None
    """Checkpoint that the training of the encoder started from. None: the one in the training's manifest."""
    training_data: Annotated[tuple[str, ...], BeforeValidator(names)] = ()
    """Names of the data that the encoder was trained on. Empty: the data set in the training's manifest."""
    evaluations: Annotated[tuple[str, ...], BeforeValidator(names)] = ()
    """Files with results of `ray-lir evaluate`, as JSON; their measures become the model-index of the card."""

    @model_validator(mode="after")
    def _one_of_each(self) -> Self:
        if (self.encoder is None) == (self.index is None):
            raise ValueError("give either --encoder or --index")
        if (self.repo is None) == (self.output is None):
            raise ValueError("give either --repo or --output")
        return self


def run(job: PushJob) -> dict[str, Any]:
    """Publish the encoder or the index.

    Raises:
        ConfigError: A setting or a path is wrong, or the hub refuses the upload.
        FormatError: A file is missing or damaged.
    """
    evaluations = tuple(map(_read_evaluation, job.evaluations))
    facts = CardFacts(
        description=job.description,
        license=job.license,
        base_model=job.base_model,
        training_data=job.training_data,
        evaluations=evaluations,
    )
    if job.index is not None:
        from ray_lir.text_index import Index

        index = Index.open(job.index)
        url = index.push_to_hub(job.repo, folder=job.output, facts=facts, private=job.private)
        return {"url": url, "kind": "index", "num_docs": len(index), "version": index.version}
    from ray_lir.encoder.encoder import Encoder  # torch takes seconds to load

    assert job.encoder is not None
    checkpoint, facts = _training(job.encoder, facts)
    encoder = Encoder.load(checkpoint)
    url = encoder.push_to_hub(job.repo, folder=job.output, facts=facts, private=job.private)
    return {"url": url, "kind": "encoder", "fingerprint": encoder.contract.fingerprint}


def _read_evaluation(path: str) -> dict[str, Any]:
    with storage.wrap_errors("read", path):
        text = storage.read_bytes(path)
    try:
        found = parse_json(text.strip().splitlines()[-1])
    except (ValueError, IndexError):
        found = None
    if not isinstance(found, dict) or "nDCG@10" not in found:
        raise FormatError(path, "a result of ray-lir evaluate", "something else", "write one with `ray-lir evaluate ... > FILE`")
    return found


def _training(folder: str, facts: CardFacts) -> tuple[str, CardFacts]:
    """Return the checkpoint of a training's output, and the facts with what its manifest says. Other folders are checkpoints."""
    from ray_lir.storage.manifest import manifest_digest, read_manifest
    from ray_lir.training.manifest import TrainingManifest

    url = storage.join(folder, MANIFEST)
    if not storage.is_local(folder) or not storage.exists(url):
        return folder, facts
    manifest = read_manifest(url, TrainingManifest, "jobs.train")
    made = _read_provenance(folder)
    base, data = made.get("base_model"), made.get("training_data") or ()
    settings = {"manifest": manifest_digest(manifest), "num_steps": manifest.num_steps, "final_loss": manifest.final_loss}
    known = {
        "base_model": facts.base_model or (storage.base_name(base) if base else None),
        "training_data": facts.training_data or tuple(map(storage.base_name, data)),
        "provenance": {**settings, **made, **manifest.config},
    }
    return storage.join(folder, manifest.contract.checkpoint), facts.model_copy(update=known)


def _read_provenance(folder: str) -> dict[str, Any]:
    """Return the training's provenance.json; nothing if it is missing or damaged, because it is not part of the result."""
    try:
        found = parse_json(storage.read_bytes(storage.join(folder, PROVENANCE)))
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


if __name__ == "__main__":
    main(PushJob, run)
