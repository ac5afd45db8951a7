"""The report of bench.papers.scorers: tables of measurements, and the papers' claims beside the results."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.papers.claims import Way, claims
from ray_lir.evaluation.significance import ALPHA, compare, holm


def write_report(about: dict[str, Any], pieces: dict[str, Any], output: Path) -> None:
    """Write scorers.json and scorers.md from all existing measurements.

    Args:
        about: Profile, machine and settings of the measurements.
        pieces: Results of `bench.papers.scorers.read_pieces`.
        output: Folder of the report.
    """
    answers = Answers(pieces["answers"])
    trained = [(model, "exact") for model in pieces["trainings"]]
    against = {base: answers.compare([(way, (base, "exact")) for way in trained if way[0] != base]) for base in ("untrained", "maxsim")}
    expected = claims(about["settings"]["k_train"])
    found = answers.compare([(claim.first, claim.second) for claim in expected])
    report = about | {
        "trainings": pieces["trainings"],
        "means": {measure: answers.means(measure) for measure in ("nDCG@10", "R@100")},
        "by_collection": {measure: answers.by_collection(measure) for measure in ("nDCG@10", "R@100")},
        "sizes": answers.sizes(),
        "seconds": answers.seconds(),
        "against": against,
        "claims": [vars(claim) | {"found": result} for claim, result in zip(expected, found, strict=True)],
    }
    output.mkdir(parents=True, exist_ok=True)
    (output / "scorers.json").write_text(json.dumps(report, indent=1) + "\n")
    (output / "scorers.md").write_text(markdown(report))


class Answers:
    """The measures of every way of searching, as model -> collection -> engine -> measurement."""

    def __init__(self, pieces: dict[str, dict[str, dict[str, Any]]]):
        self.pieces = pieces
        self.collections = list(next(iter(pieces.values())))
        self.engines = list(dict.fromkeys(engine for of in pieces.values() for each in of.values() for engine in each))

    def values(self, way: Way, measure: str) -> list[np.ndarray] | None:
        """Return the values of the queries of each collection; None if a collection is not measured yet."""
        model, engine = way
        found = [self.pieces[model][collection].get(engine) for collection in self.collections]
        return None if None in found else [np.array(list(each["values"][measure].values())) for each in found]

    def compare(self, pairs: Sequence[tuple[Way, Way]], measure: str = "nDCG@10") -> list[dict[str, Any] | None]:
        """Return means, difference and corrected p of each pair; None for a pair that is not measured."""
        values = [(self.values(first, measure), self.values(second, measure)) for first, second in pairs]
        there = [number for number, (first, second) in enumerate(values) if first and second]
        tested = [compare(second, first) for first, second in (values[number] for number in there) if first and second]
        corrected = holm([found.p for found in tested])
        equivalences = holm([found.equivalence_p for found in tested])
        result: list[dict[str, Any] | None] = [None] * len(pairs)
        for number, found, p_holm, equivalence_p_holm in zip(there, tested, corrected, equivalences, strict=True):
            result[number] = {
                "first": [*pairs[number][0], round(found.second, 4)],
                "second": [*pairs[number][1], round(found.first, 4)],
                "difference": round(found.difference, 4),
                "interval": [round(found.low, 4), round(found.high, 4)],
                "p": round(found.p, 4),
                "p_holm": round(p_holm, 4),
                "equivalence_p_holm": round(equivalence_p_holm, 4),
                "minimum_detectable": round(found.minimum_detectable, 4),
            }
        return result

    def means(self, measure: str) -> dict[str, dict[str, float]]:
        """Return model -> engine -> mean over collections, for ways that were measured on all collections."""
        return self._each(lambda way: self.values(way, measure), lambda values: round(float(np.mean([each.mean() for each in values])), 4))

    def by_collection(self, measure: str) -> dict[str, dict[str, dict[str, float]]]:
        """Return model -> collection -> engine -> mean over queries."""
        return {
            model: {
                collection: {engine: round(float(np.mean(list(piece["values"][measure].values()))), 4) for engine, piece in each.items()}
                for collection, each in of.items()
            }
            for model, of in self.pieces.items()
        }

    def seconds(self) -> dict[str, dict[str, float]]:
        """Return model -> engine -> processor seconds of all queries of all collections."""

        def pieces(way: Way) -> list[dict[str, Any]] | None:
            found = [self.pieces[way[0]][collection].get(way[1]) for collection in self.collections]
            return None if None in found else found

        return self._each(pieces, lambda found: round(sum(piece["cpu_seconds"] for piece in found), 2))

    def sizes(self) -> dict[str, dict[str, int]]:
        """Return queries, documents and tokens of each collection, as encoded by the first measured model."""
        found = {}
        for collection in self.collections:
            piece = next((piece for of in self.pieces.values() for piece in of[collection].values()), None)
            if piece:
                queries = len(piece["values"]["nDCG@10"])
                found[collection] = {"queries": queries, "documents": piece["documents"], "tokens": piece["tokens"]}
        return found

    def _each(self, look: Callable[[Way], Any], sum_up: Callable[[Any], float]) -> dict[str, dict[str, float]]:
        return {
            model: {engine: sum_up(found) for engine in self.engines if (found := look((model, engine))) is not None}
            for model in self.pieces
        }


def verdict(claim: dict[str, Any]) -> str:
    """Return the verdict of the measurement on a claim."""
    found = claim["found"]
    if found is None:
        return "not measured yet"
    significant = found["p_holm"] <= ALPHA
    equivalent = found.get("equivalence_p_holm", 1.0) <= ALPHA
    if claim["equal"]:
        if equivalent:
            return "holds: equivalent within .01"
        return "does not hold: they differ" if significant else "not decided"
    if significant:
        return "holds" if found["difference"] > 0 else "does not hold: the reverse"
    if equivalent:
        return "does not hold: equivalent within .01"
    return "not decided: " + ("the same direction" if found["difference"] > 0 else "the other direction")


def markdown(report: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    return "\n\n".join([_head(report), _trainings(report), _collections(report), _engines(report), _claims(report)]) + "\n"


def _head(report: dict[str, Any]) -> str:
    settings, machine = report["settings"], report["machine"]
    sizes = "; ".join(f"{name} {of['queries']} / {of['documents']:,} / {of['tokens']:,}" for name, of in report["sizes"].items())
    return (
        f"# Scorers under equal training and search (profile {report['profile']})\n\n"
        f"{machine['cpu']}, {machine['cores']} cores ({', '.join(machine['instructions'])}). Training: {settings['steps']} steps of "
        f"{settings['batch_size']} pairs of squad and nq_qed, passages of {settings['passage_length']} tokens at most, learning rate "
        f"{settings['learning_rate']:g}, seed {settings['seed']}, {settings['dim']} dimensions, no hard negatives and no teacher. Search: "
        f"queries of {settings['query_length']} and documents of {settings['document_length']} tokens at most; "
        f"queries / documents / tokens: {sizes}. One seed: differences smaller than those between seeds mean nothing."
    )


def _trainings(report: dict[str, Any]) -> str:
    columns = ("seconds", "cpu_seconds", "examples_per_cpu_second", "first_loss", "last_loss")
    rows = [f"| {model} | {' | '.join(str(cost[name]) for name in columns)} |" for model, cost in report["trainings"].items()]
    head = [
        "| model | seconds | processor seconds | pairs a processor second | loss, first tenth | loss, last tenth |",
        "|---|---|---|---|---|---|",
    ]
    return "\n".join(["## Cost of training", "", *head, *rows])


def _collections(report: dict[str, Any]) -> str:
    collections = list(report["sizes"])
    columns = [*collections, "mean", "against untrained", "against maxsim"]
    lines = ["## nDCG@10 of exact search", "", f"| model | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    changes = {base: {found["first"][0]: found for found in each if found} for base, each in report["against"].items()}
    for model, of in report["by_collection"]["nDCG@10"].items():
        cells = [_number(of[collection].get("exact")) for collection in collections]
        cells.append(_number(report["means"]["nDCG@10"][model].get("exact")))
        cells += [_change(changes[base].get(model)) for base in ("untrained", "maxsim")]
        lines.append(f"| {model} | {' | '.join(cells)} |")
    lines.append(
        "\nIn brackets the p value of a paired randomisation test over all queries, corrected for the models of its column (Holm)."
    )
    return "\n".join(lines)


def _engines(report: dict[str, Any]) -> str:
    parts = []
    for measure, means in report["means"].items():
        engines = list(dict.fromkeys(engine for of in means.values() for engine in of))
        lines = [
            f"## {measure} by engine, mean over the collections",
            "",
            f"| model | {' | '.join(engines)} |",
            "|---" * (len(engines) + 1) + "|",
        ]
        lines += [f"| {model} | {' | '.join(_number(of.get(engine)) for engine in engines)} |" for model, of in means.items()]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _claims(report: dict[str, Any]) -> str:
    lines = [
        "## The papers' claims",
        "",
        "| source | claim | published | compared here | nDCG@10 here | difference | p (Holm) | here |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for claim in report["claims"]:
        found = claim["found"]
        values = (
            " | | "
            if found is None
            else f"{found['first'][2]:.4f} / {found['second'][2]:.4f} | {found['difference']:+.4f} | {found['p_holm']:.3f}"
        )
        ways = " / ".join(f"{model} ({engine})" for model, engine in (claim["first"], claim["second"]))
        lines.append(f"| {claim['source']} | {claim['text']} | {claim['published']} | {ways} | {values} | {verdict(claim)} |")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _change(found: dict[str, Any] | None) -> str:
    return "" if found is None else f"{found['difference']:+.4f} ({found['p_holm']:.3f})"
