"""The report of the experiment: the papers' claims beside the measurements, tables of all measurements, and the missing cells."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.papers.claims import Cell, Claim, Finding, claims, verdict
from bench.papers.profiles import IN_DOMAIN, PROFILES, PROJECTED, UNTRAINED, models, untrained, ways_of
from bench.papers.profiles import trainings as every_training
from ray_lir.evaluation.significance import compare, holm

QUALITY = ("nDCG@10", "R@100")
NO_RESULT = "-"
DECIDED = ("holds", "contradicted", "equivalent within .01")
BEGIN, END = "<!-- claims: begin -->", "<!-- claims: end -->"
Measured = dict[str, Any]
"""The content of the file of one way of searching (`bench.papers.measuring`)."""


@dataclass(frozen=True)
class Answers:
    """All measurements, as model -> seed -> collection -> way of searching -> measurement."""

    by_model: dict[str, dict[str, dict[str, dict[str, Measured]]]]

    def seeds(self, *cells: Cell) -> list[str]:
        """Return the seeds for which all cells are measured on some collection; the untrained model has every seed."""
        trained = [model for model, _ in cells if not model.startswith(UNTRAINED)] or [cells[0][0]]
        return [seed for seed in self.by_model.get(trained[0], {}) if self.collections(seed, *cells)]

    def collections(self, seed: str, *cells: Cell) -> list[str]:
        """Return the collections on which all cells are measured with a seed."""
        found = self.by_model.get(cells[0][0], {}).get(_seed_of(cells[0], seed), {})
        return [each for each in found if all(self.measured(cell, seed, each) is not None for cell in cells)]

    def measured(self, cell: Cell, seed: str, collection: str) -> Measured | None:
        """Return a measurement; None if it is missing.

        Args:
            cell: Model and way of searching.
            seed: Seed of the model.
            collection: Name of the collection.
        """
        return self.by_model.get(cell[0], {}).get(_seed_of(cell, seed), {}).get(collection, {}).get(cell[1])

    def paired(self, first: Cell, second: Cell, measure: str, seed: str, collection: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the values of the queries that both cells have, in the same order.

        Args:
            first: One cell.
            second: The other cell.
            measure: The measure.
            seed: Seed of the models.
            collection: Name of the collection.

        Returns:
            [queries] float64 of each cell.
        """
        one, other = (self._values(cell, measure, seed, collection) for cell in (first, second))
        common = sorted(one.keys() & other.keys())
        return np.array([one[query] for query in common]), np.array([other[query] for query in common])

    def mean(self, cell: Cell, measure: str, seed: str, collection: str) -> float:
        """Return the mean over queries.

        Args:
            cell: Model and way of searching.
            measure: The measure.
            seed: Seed of the model.
            collection: Name of the collection.
        """
        return float(np.mean(list(self._values(cell, measure, seed, collection).values())))

    def _values(self, cell: Cell, measure: str, seed: str, collection: str) -> dict[str, float]:
        measured = self.measured(cell, seed, collection)
        assert measured is not None
        return measured["values"][measure]


def _seed_of(cell: Cell, seed: str) -> str:
    return "0" if cell[0].startswith(UNTRAINED) else seed


def compared(answers: Answers, first: Cell, second: Cell, measure: str, only: Sequence[str] | None = None) -> dict[str, Any] | None:
    """Return means, difference, interval and p values of two cells, over the collections that are measured with every seed.

    Values of a query are averaged over the seeds before they are tested, and collections count alike. With `only`, seeds without a
    measurement on its collections are left out.

    Args:
        answers: All measurements.
        first: The cell that is expected to be larger.
        second: The other cell.
        measure: The measure.
        only: Collections to use; None for all.

    Returns:
        None if no collection is measured for both.
    """
    seeds = [
        seed for seed in answers.seeds(first, second) if only is None or not set(only).isdisjoint(answers.collections(seed, first, second))
    ]
    shared = [
        each
        for each in (answers.collections(seeds[0], first, second) if seeds else ())
        if all(each in answers.collections(seed, first, second) for seed in seeds) and (only is None or each in only)
    ]
    if not shared:
        return None
    pairs = {(seed, each): answers.paired(first, second, measure, seed, each) for seed in seeds for each in shared}
    means = [[np.mean([pairs[seed, each][side] for seed in seeds], axis=0) for each in shared] for side in (0, 1)]
    found = compare(means[1], means[0])
    cells = [answers.measured(cell, seed, each) for cell in (first, second) for seed in seeds for each in shared]
    return {
        "first": round(found.second, 4),
        "second": round(found.first, 4),
        "difference": round(found.difference, 4),
        "interval": [round(found.low, 4), round(found.high, 4)],
        "p": round(found.p, 5),
        "equivalence_p": round(found.equivalence_p, 5),
        "minimum_detectable": round(found.minimum_detectable, 4),
        "by_seed": [round(float(np.mean([np.mean(a - b) for each in shared for a, b in [pairs[seed, each]]])), 4) for seed in seeds],
        "collections": shared,
        "queries": found.queries,
        "commits": sorted({_code(each) for each in cells if each and "commit" in each}),
    }


def judged(answers: Answers, every: Sequence[Claim]) -> list[dict[str, Any]]:
    """Return each claim with its comparison, the p values corrected for all measured claims, and the verdict."""
    found = [compared(answers, claim.first, claim.second, claim.measure) for claim in every]
    there = [each for each in found if each]
    for name in ("p", "equivalence_p"):
        for each, corrected in zip(there, holm([each[name] for each in there]), strict=True):
            each[f"{name}_holm"] = round(corrected, 5)
    return [
        vars(claim) | {"found": each, "verdict": verdict(claim.kind, _finding(each)), "missing": [] if each else missing(answers, claim)}
        for claim, each in zip(every, found, strict=True)
    ]


def split_by_collection(answers: Answers, every: Sequence[Claim], found: Sequence[dict[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Return claim -> collection -> its comparison on that collection alone, with p values corrected for all of them (Holm).

    Args:
        answers: All measurements.
        every: The claims.
        found: Results of `judged`, in the same order.
    """
    return corrected(
        {
            claim.text: {
                each: compared(answers, claim.first, claim.second, claim.measure, [each])
                for each in (result["found"]["collections"] if result["found"] else ())
            }
            for claim, result in zip(every, found, strict=True)
        }
    )


def most_measured(answers: Answers, models: Sequence[str], way: str) -> str:
    """Return the model that is searched in a way on the most collections; the first of several.

    Args:
        answers: All measurements.
        models: Names of models.
        way: Name of a way of searching.
    """
    return max(models, key=lambda model: len(answers.collections("0", (model, way))))


def _finding(found: dict[str, Any] | None) -> Finding | None:
    return found and Finding(found["difference"], found["p_holm"], found["equivalence_p_holm"], tuple(found["by_seed"]))


def missing(answers: Answers, claim: Claim) -> list[str]:
    """Return the cells that a claim needs and that no collection has."""
    return [f"{model} ({way})" for model, way in (claim.first, claim.second) if not answers.seeds((model, way))]


def write_report(about: dict[str, Any], results: dict[str, Any], output: Path, name: str = "scorers") -> None:
    """Write a report as JSON and as Markdown from all finished cells.

    Args:
        about: Name and settings of the profile, and the machine.
        results: Results of `bench.papers.experiment.read_results`.
        output: Folder of the report.
        name: Name of both files, without suffix.
    """
    answers, profile = Answers(results["answers"]), PROFILES[about["profile"]]
    trained = [name for name in models(profile) if answers.seeds((name, "scan"))]
    gains = {
        begin: corrected(
            {
                name: {each: compared(answers, (name, "scan"), (begin, "scan"), "nDCG@10", [each]) for each in profile.collections}
                for name in trained
            }
        )
        for begin in reversed(untrained(profile))
        if answers.seeds((begin, "scan"))
    }
    colbert = most_measured(answers, ("maxsim", UNTRAINED), "papers: exact")
    token_model = most_measured(answers, (f"xtr, k {profile.k_train[0]}", "maxsim", UNTRAINED), "xtr, zero")
    every = claims(profile, colbert, token_model)
    found = judged(answers, every)
    report = about | {
        "claims": found,
        "claims_by_collection": split_by_collection(answers, every, found),
        "against": gains,
        "sizes": sizes(answers, profile.collections),
        "means": {measure: tables(answers, measure) for measure in (*QUALITY, "candidates")},
        "stages": stages(answers),
        "cpu_ms_per_query": milliseconds(answers),
        "trainings": results["trainings"],
        "missing": missing_cells(answers, results["trainings"], about["profile"]),
    }
    output.mkdir(parents=True, exist_ok=True)
    (output / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")
    (output / f"{name}.md").write_text(markdown(report))


def update_document(document: Path, report: Path) -> None:
    """Replace the text between BEGIN and END in a document by the claims, what was found, and the collections.

    Args:
        document: Markdown file with one line BEGIN and one line END.
        report: scorers.json of `write_report`.
    """
    text, content = document.read_text(), json.loads(report.read_text())
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    decided = sum(claim["verdict"] in DECIDED for claim in content["claims"])
    lines = [
        f"{decided} of {len(content['claims'])} claims are decided.",
        "",
        "| claim | source | published | here | difference, 95% interval | p | verdict |",
        "|---" * 7 + "|",
        *(_summary(claim) for claim in content["claims"]),
    ]
    document.write_text("\n".join([f"{before}{BEGIN}", *lines, f"{END}{after}"]))


def _summary(claim: dict[str, Any]) -> str:
    found = claim["found"]
    numbers = [NO_RESULT] * 3
    if found:
        low, high = found["interval"]
        measure = "" if claim["measure"] == "nDCG@10" else f" {claim['measure']}"
        numbers = [
            f"{found['first']:.4f} / {found['second']:.4f}{measure}",
            f"{found['difference']:+.4f}, {low:+.4f} to {high:+.4f}",
            f"{found['p_holm']:.4f}",
        ]
    return "| " + " | ".join([claim["text"], claim["source"], claim["published"] or NO_RESULT, *numbers, claim["verdict"]]) + " |"


def corrected(gains: dict[str, dict[str, dict[str, Any] | None]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the measured comparisons with p values corrected for all of them (Holm)."""
    there = [each for of in gains.values() for each in of.values() if each]
    for each, p in zip(there, holm([each["p"] for each in there]), strict=True):
        each["p_holm"] = round(p, 5)
    return {name: {collection: each for collection, each in of.items() if each} for name, of in gains.items()}


def each_measured(answers: Answers) -> Iterator[tuple[str, str, str, str, Measured]]:
    """Yield model, seed, collection, way and measurement of everything that is measured."""
    for model, seeds in answers.by_model.items():
        for seed, collections in seeds.items():
            for collection, found in collections.items():
                for way, measured in found.items():
                    yield model, seed, collection, way, measured


def tables(answers: Answers, measure: str) -> dict[str, dict[str, dict[str, float]]]:
    """Return way -> model -> collection -> mean over queries and seeds."""
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    for model, seed, collection, way, measured in each_measured(answers):
        if measure in measured["values"]:
            value = answers.mean((model, way), measure, seed, collection)
            found.setdefault(way, {}).setdefault(model, {}).setdefault(collection, []).append(value)
    return {
        way: {model: {name: round(float(np.mean(values)), 4) for name, values in of.items()} for model, of in by_model.items()}
        for way, by_model in found.items()
    }


def stages(answers: Answers) -> list[dict[str, Any]]:
    """Return, for each measurement of stages, the mean fraction of the collection that each stage keeps."""
    return [
        {
            "model": model,
            "seed": seed,
            "collection": collection,
            "way": way,
            "documents": measured["documents"],
            "engine": measured["engine"],
        }
        | {"fractions": {name: round(float(np.mean(list(values.values()))), 5) for name, values in measured["values"].items()}}
        for model, seed, collection, way, measured in each_measured(answers)
        if "candidates" in measured["values"]
    ]


def milliseconds(answers: Answers) -> dict[str, dict[str, float]]:
    """Return way -> `model on collection` -> processor milliseconds of a query, of the first seed."""
    found: dict[str, dict[str, float]] = {}
    for model, seed, collection, way, measured in each_measured(answers):
        if seed == "0" and "cpu_seconds" in measured and "nDCG@10" in measured["values"]:
            per_query = 1000 * measured["cpu_seconds"] / len(measured["values"]["nDCG@10"])
            found.setdefault(way, {})[f"{model} on {collection}"] = round(per_query, 2)
    return found


def sizes(answers: Answers, collections: Iterable[str]) -> dict[str, dict[str, int]]:
    """Return queries, documents and tokens of each measured collection; tokens as a trained model encodes them."""
    found: dict[str, dict[str, int]] = {}
    for model, _, collection, _, measured in each_measured(answers):
        size = found.setdefault(collection, {"queries": 0, "documents": measured["documents"], "tokens": measured["tokens"]})
        size["queries"] = max(size["queries"], *map(len, measured["values"].values()))
        if not model.startswith(UNTRAINED):
            size["tokens"] = measured["tokens"]
    return {name: found[name] for name in collections if name in found}


def missing_cells(answers: Answers, trainings: dict[str, Any], profile_name: str) -> list[str]:
    """Return the trainings and searches that are not finished.

    Args:
        answers: All measurements.
        trainings: Model -> seed -> cost of the finished trainings.
        profile_name: Name of the profile.
    """
    profile = PROFILES[profile_name]
    found = [f"training of {name}, seed {seed}" for name, seed in every_training(profile) if str(seed) not in trainings.get(name, {})]
    for name, seed in (*((name, 0) for name in untrained(profile)), *every_training(profile)):
        by_collection = answers.by_model.get(name, {}).get(str(seed), {})
        for collection in profile.collections:
            left = [way for way in ways_of(name, profile) if way not in by_collection.get(collection, {})]
            if left:
                every = len(left) == len(ways_of(name, profile))
                found.append(f"{name}, seed {seed} on {collection}" + ("" if every else f": {', '.join(left)}"))
    return found


def markdown(report: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    parts = [
        _head(report),
        _claims(report),
        _by_collection(report),
        _gains(report),
        _engines(report),
        _xtr(report),
        _stages(report),
        _trainings(report),
        _missing(report),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(report: dict[str, Any]) -> str:
    settings, machine = report["settings"], report["machine"]
    sizes = ", ".join(f"{name} {of['queries']:,} / {of['documents']:,} / {of['tokens']:,}" for name, of in report["sizes"].items())
    layers, passages = settings.get("trained_layers"), settings.get("passages")
    trained = "all weights" if layers is None else f"the last {layers} layers, projection and heads" if layers else "projection and heads"
    projection = f"projected to {settings['dim']} dimensions by PCA" if settings["dim"] else "with its own dimensions"
    sentences = (
        f"{machine['cpu']}, {machine['cores']} cores ({', '.join(machine['instructions'])}).",
        f"Every model starts from {report['base']}, {projection}.",
        f"Training of {trained}: {settings['steps']} steps of {settings['batch_size']} question-passage pairs of squad and nq_qed"
        + (f" ({passages:,} passages)," if passages else ","),
        f"{settings['negatives']} BM25 negative each, passages of {settings['passage_length']} tokens at most,",
        f"learning rate {settings['learning_rate']:g}, seeds {', '.join(map(str, settings['seeds']))}.",
        f"Search: queries of {settings['query_length']} and documents of {settings['document_length']} tokens at most.",
        f"The untrained model is {report['base']} with its own dimensions and lengths.",
        f"Test queries / documents / tokens: {sizes}.",
        f"Engines that search single tokens answer {settings['token_queries'] or 'all'} queries of a collection.",
        "The section on the papers' claims in bench/README.md has the command that continues the experiment.",
    )
    return f"# The papers' claims (profile {report['profile']})\n\n{' '.join(sentences)}"


def _claims(report: dict[str, Any]) -> str:
    decided = sum(claim["verdict"] in DECIDED for claim in report["claims"])
    lines = [
        f"## Claims: {decided} of {len(report['claims'])} decided",
        "",
        "The difference is first less second, with its 95% interval. p belongs to a paired randomisation test, and p (.01) to the test",
        "that the difference lies within .01. Both are corrected for all measured claims (Holm). MDD is the difference that these",
        "queries show with probability .8. `holds` needs a significant difference in the claimed direction for every seed, or",
        "equivalence if the claim is that both are as good. Code: the commit that measured; + means that the code differed from",
        "the commit.",
        "",
        "| claim | source | published | compared | here | difference | p | p (.01) | MDD | collections | code | verdict |",
        "|---" * 12 + "|",
    ]
    return "\n".join([*lines, *(_claim(claim) for claim in report["claims"])])


def _by_collection(report: dict[str, Any]) -> str:
    columns = list(report["sizes"])
    lines = [
        "## Claims by collection",
        "",
        "Difference of each claim on each collection, over the seeds that are measured there, with its 95% interval. `*` marks p of at",
        "most .05, corrected for all cells of the table (Holm).",
        "",
        f"| claim | {' | '.join(f'{name} (in-domain)' if name in IN_DOMAIN else name for name in columns)} |",
        "|---" * (1 + len(columns)) + "|",
    ]
    for text, by_collection in report["claims_by_collection"].items():
        cells = [_difference(by_collection[name]) if name in by_collection else NO_RESULT for name in columns]
        if by_collection:
            lines.append(f"| {text} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _difference(found: dict[str, Any]) -> str:
    low, high = found["interval"]
    return f"{found['difference']:+.4f}{'*' * (found['p_holm'] <= 0.05)} ({low:+.4f} to {high:+.4f})"


def _claim(claim: dict[str, Any]) -> str:
    ways = " / ".join(f"{model} ({way})" for model, way in (claim["first"], claim["second"]))
    start = [claim["text"], claim["source"], claim["published"] or "no figures", ways]
    found = claim["found"]
    if not found:
        return (
            "| " + " | ".join([*start, *[NO_RESULT] * 7, f"not measured: {', '.join(claim['missing']) or 'no common collection'}"]) + " |"
        )
    measure = "" if claim["measure"] == "nDCG@10" else f" {claim['measure']}"
    low, high = found["interval"]
    seeds = f"; seeds {', '.join(f'{each:+.4f}' for each in found['by_seed'])}" if len(found["by_seed"]) > 1 else ""
    numbers = [
        f"{found['first']:.4f} / {found['second']:.4f}{measure}",
        f"{found['difference']:+.4f} ({low:+.4f} to {high:+.4f}){seeds}",
        f"{found['p_holm']:.4f}",
        f"{found['equivalence_p_holm']:.4f}",
        f"{found['minimum_detectable']:.4f}",
        ", ".join(found["collections"]),
        ", ".join(found["commits"]),
        claim["verdict"],
    ]
    return "| " + " | ".join([*start, *numbers]) + " |"


def _gains(report: dict[str, Any]) -> str:
    return "\n\n".join(_gains_over(report, begin, gains) for begin, gains in report["against"].items())


def _gains_over(report: dict[str, Any], begin: str, gains: dict[str, Any]) -> str:
    means = report["means"]["nDCG@10"].get("scan", {})
    columns = list(report["sizes"])
    lines = [
        f"## Trained models against `{begin}`: nDCG@10 of engine scan",
        "",
        f"| model | {' | '.join(f'{name} (in-domain)' if name in IN_DOMAIN else name for name in columns)} |",
        "|---" * (1 + len(columns)) + "|",
    ]
    for model, by_collection in means.items():
        changes = gains.get(model, {})
        cells = []
        for name in columns:
            change = changes.get(name)
            cells.append(_number(by_collection.get(name)) + (f" ({change['difference']:+.4f}, p {change['p_holm']:.4f})" if change else ""))
        lines.append(f"| {model} | {' | '.join(cells)} |")
    about = ", from which trainings start" if begin == PROJECTED else ", the base checkpoint with its own dimensions"
    return "\n".join(
        [*lines, "", f"In brackets: the difference from `{begin}`{about}, and its p value corrected for all cells of the table (Holm)."]
    )


def _engines(report: dict[str, Any]) -> str:
    columns = list(report["sizes"])
    lines = [
        "## The papers' settings beside today's defaults: nDCG@10 / R@100, and processor milliseconds a query",
        "",
        "The papers' settings: 2 bits with quantile buckets. PLAID rescores 256 of 1,024 documents (4 clusters, threshold .45). WARP",
        "probes 32 clusters and returns its own scores; t' is 100,000, scaled by the mean size of a cluster against the ColBERTv2 index of",
        "MS MARCO.",
        "Today's defaults: 4 bits with Lloyd-Max buckets.",
        "",
        f"| model | way | {' | '.join(columns)} |",
        "|---" * (2 + len(columns)) + "|",
    ]
    chosen = [way for way in report["means"]["nDCG@10"] if not way.startswith("xtr, ")]
    quality, recall = (report["means"][measure] for measure in QUALITY)
    for model in dict.fromkeys(model for way in chosen for model in quality.get(way, {})):
        for way in chosen:
            if found := quality.get(way, {}).get(model):
                cells = [
                    f"{found[name]:.4f} / {recall[way][model][name]:.4f}{_ms(report, way, model, name)}" if name in found else NO_RESULT
                    for name in columns
                ]
                lines.append(f"| {model} | {way} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _ms(report: dict[str, Any], way: str, model: str, collection: str) -> str:
    found = report["cpu_ms_per_query"].get(way, {}).get(f"{model} on {collection}")
    return "" if found is None else f", {found:.1f} ms"


def _xtr(report: dict[str, Any]) -> str:
    columns = list(report["sizes"])
    found = {way: of for way, of in report["means"]["nDCG@10"].items() if way.startswith("xtr, ")}
    if not found:
        return ""
    head = [f"| model | way | {' | '.join(columns)} |", "|---" * (2 + len(columns)) + "|"]
    lines = ["## XTR's retrieval: nDCG@10 by imputation and by k'", "", *head]
    for model in dict.fromkeys(model for of in found.values() for model in of):
        for way, of in found.items():
            if model in of:
                lines.append(f"| {model} | {way} | {' | '.join(_number(of[model].get(name)) for name in columns)} |")
    k_prime = report["settings"]["k_prime"][-1]
    return "\n".join([*lines, "", f"Imputations are compared at k' = {k_prime:,}; the curve over k' imputes the minimum."])


def _stages(report: dict[str, Any]) -> str:
    if not report["stages"]:
        return ""
    lines = [
        "## Documents that each stage keeps, in percent of the collection",
        "",
        "Means over queries that ask for 100 documents.",
        "",
        "| model | seed | collection | way | documents with a probed cluster | kept by each stage |",
        "|---" * 6 + "|",
    ]
    for row in report["stages"]:
        candidates = 100 * row["fractions"]["candidates"]
        kept = ", ".join(f"{name} {100 * value:.2f}" for name, value in row["fractions"].items() if name != "candidates")
        start = f"| {row['model']} | {row['seed']} | {row['collection']} | {row['way'].removesuffix(', stages')}"
        lines.append(f"{start} | {candidates:.2f} | {kept} |")
    return "\n".join(lines)


def _trainings(report: dict[str, Any]) -> str:
    lines = [
        "## Trainings",
        "",
        "| model | seed | steps | processor seconds | pairs a processor second | loss, first tenth | loss, last tenth | code |",
        "|---" * 8 + "|",
    ]
    columns = ("steps", "cpu_seconds", "pairs_per_cpu_second", "first_loss", "last_loss")
    rows = [
        f"| {model} | {seed} | {' | '.join(str(cost.get(name, NO_RESULT)) for name in columns)} | {_code(cost)} |"
        for model, by_seed in report["trainings"].items()
        for seed, cost in by_seed.items()
    ]
    return "\n".join([*lines, *rows])


def _missing(report: dict[str, Any]) -> str:
    if not report["missing"]:
        return "## Missing cells\n\nNone."
    return "\n".join([f"## Missing cells: {len(report['missing'])}", "", *(f"* {cell}" for cell in report["missing"])])


def _code(measured: Measured) -> str:
    return measured.get("commit", NO_RESULT) + "+" * measured.get("changed", False)


def _number(value: float | None) -> str:
    return NO_RESULT if value is None else f"{value:.4f}"
