"""Model cards: the README of an encoder on the Hugging Face hub, with tags, training data, metrics, contract and provenance."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ray_lir.base.config import Config
from ray_lir.embeddings.contract import EncoderContract

TAGS = ("multi-vector", "late-interaction", "ColBERT", "PyLate", "sentence-transformers", "feature-extraction", "ray_lir")
MEASURE = re.compile(r"([A-Za-z]+)@(\d+)|AP|RR")
METRIC_TYPES = {"nDCG": "ndcg", "RR": "mrr", "R": "recall", "P": "precision", "AP": "map", "Success": "accuracy"}
"""Measures of ir-measures, and the names that model cards use for them."""


class CardFacts(Config):
    """Facts for a card that a checkpoint or an index does not hold."""

    description: str = ""
    base_model: str | None = None
    """Name of the checkpoint that the training started from."""
    training_data: tuple[str, ...] = ()
    """Names of the data sets that it was trained on."""
    evaluations: tuple[dict[str, Any], ...] = ()
    """Results of jobs.evaluate: their measures become the model-index."""
    license: str | None = None
    provenance: dict[str, Any] = {}
    """How the encoder was made, such as the settings of its training."""


def model_card(contract: EncoderContract, name: str, facts: CardFacts = CardFacts()) -> str:
    """Return the README of an encoder: YAML metadata that the hub reads, then text.

    Args:
        contract: Contract of the encoder.
        name: Name of the model, such as OWNER/NAME.
        facts: What else is known about it.
    """
    metadata: dict[str, Any] = {
        "library_name": "PyLate",
        "pipeline_tag": "sentence-similarity",
        "tags": list(TAGS),
        **({"license": facts.license} if facts.license else {}),
        **({"base_model": facts.base_model} if facts.base_model else {}),
        **({"datasets": list(facts.training_data)} if facts.training_data else {}),
        **({"model-index": model_index(name, facts.evaluations)} if facts.evaluations else {}),
    }
    conventions = contract.model_dump(mode="json", exclude={"checkpoint", "skip_tokens", "query_skip_tokens"}, exclude_defaults=True)
    parts = [
        f"# {name}",
        facts.description
        or "A multi-vector (late-interaction) text encoder: one vector for each token, scored by "
        f"{'MaxSim' if contract.scorer == 'maxsim' else contract.scorer}.",
        f'```python\nimport ray_lir\n\nindex = ray_lir.Index.create("my-index", documents, encoder="{name}")\n'
        'index.search("your question")\n```',
        "## Contract\n\nVectors of encoders with equal fingerprints can be compared.",
        table({"fingerprint": contract.fingerprint, **conventions}),
    ]
    if facts.evaluations:
        parts += ["## Evaluation", *(measured(each) for each in facts.evaluations)]
    if facts.training_data:
        parts += ["## Training data", "\n".join(f"* {each}" for each in facts.training_data)]
    if facts.provenance:
        parts += ["## Provenance", table(facts.provenance)]
    return with_front_matter(metadata, parts)


def with_front_matter(metadata: Mapping[str, Any], parts: Sequence[str]) -> str:
    """Return a README with YAML metadata before its paragraphs."""
    import yaml

    text = yaml.safe_dump(dict(metadata), sort_keys=False, allow_unicode=True)
    return "\n\n".join([f"---\n{text}---", *parts]) + "\n"


def model_index(name: str, evaluations: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the results of jobs.evaluate as the model-index of a card."""
    results = []
    for each in evaluations:
        metrics = [{"type": _metric_type(measure), "value": value, "name": measure} for measure, value in measures_in(each).items()]
        task = {"type": "information-retrieval", "name": "Information Retrieval"}
        dataset = {
            "type": str(each.get("dataset", "unknown")),
            "name": str(each.get("dataset", "unknown")),
            "split": each.get("split", "test"),
        }
        results.append({"task": task, "dataset": dataset, "metrics": metrics})
    return [{"name": name, "results": results}]


def measures_in(evaluation: Mapping[str, Any]) -> dict[str, float]:
    """Return the measures in a result of jobs.evaluate, by their ir-measures names."""
    return {name: value for name, value in evaluation.items() if MEASURE.fullmatch(name) and isinstance(value, float | int)}


def table(values: Mapping[str, Any]) -> str:
    """Return a Markdown table of names and values."""
    rows = [f"| {name} | {str(value).replace('|', chr(92) + '|')} |" for name, value in values.items()]
    return "\n".join(["| | |", "|---|---|", *rows])


def _metric_type(measure: str) -> str:
    name, _, cutoff = measure.partition("@")
    return METRIC_TYPES.get(name, name.lower()) + (f"_at_{cutoff}" if cutoff else "")


def measured(evaluation: Mapping[str, Any]) -> str:
    """Return a result of jobs.evaluate as a line and a Markdown table."""
    measures = measures_in(evaluation)
    head = f"{evaluation.get('dataset', 'unknown')} ({evaluation.get('split', 'test')}, engine {evaluation.get('engine', 'unknown')})"
    return f"{head}:\n\n{table({name: round(value, 4) for name, value in measures.items()})}"
