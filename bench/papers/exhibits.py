"""Every table and figure of the three papers: what it shows, the commands that reproduce it, and where the result lies.

Placeholders of the commands: {maxsim}, {xtr}, {trial}, {plain} (TRIAL without relations) and {attention} are indexes of trained models,
{data} is a collection, and {out} a folder for results. `python -m bench.papers --smoke` runs the commands on tiny data. Commands of
jobs.train need the papers' training data; the smoke test trains two steps of a tiny model with their settings.
"""

from dataclasses import dataclass

XTR, TRIAL, ATTENTION = "XTR study (arXiv 2605.00646)", "TRIAL", "ColBERT-Att (arXiv 2603.25248)"
SCORERS = "bench/results/scorers.md (python -m bench.papers experiment)"
ENGINES = ("plaid", "warp")
EVALUATE_TRIAL = "jobs.evaluate --index {trial} --dataset {data} --recipe jobs/recipes/evaluate_trial.yaml"
SUCCESS = "--measures Success@5 --recipe jobs/recipes/evaluate_xtr_study.yaml"


@dataclass(frozen=True)
class Exhibit:
    """A table or figure of a paper.

    Attributes:
        paper: The paper.
        label: Its name there, such as "table 1".
        shows: What it shows.
        commands: Arguments of `python -m`, one command after another.
        result: Where the result lies.
    """

    paper: str
    label: str
    shows: str
    commands: tuple[str, ...]
    result: str


def _analysis(name: str, *indexes: str) -> tuple[str, ...]:
    return (f"jobs.analyze --index {','.join(indexes)} --dataset {{data}} --output {{out}} --analyses {name} --overwrite true",)


def _compare(first: str, second: str, settings: str = "") -> str:
    return f"jobs.compare {first} {second} --dataset {{data}} {settings}".strip()


def _train(recipe: str, settings: str = "") -> str:
    return f"jobs.train --recipe jobs/recipes/{recipe}.yaml --examples TRIPLES --dataset MSMARCO --output MODEL {settings}".strip()


EXHIBITS = (
    Exhibit(XTR, "figure 1", "quality against k'", _analysis("k_prime", "{maxsim}", "{xtr}"), "OUTPUT/k_prime.json, .png, .svg"),
    Exhibit(XTR, "figure 2", "candidates and speed of PLAID and WARP", _analysis("candidates", "{maxsim}", "{xtr}"), "OUTPUT/candidates.*"),
    Exhibit(
        XTR, "figure 3", "scores of retrieved tokens", _analysis("score_distribution", "{maxsim}", "{xtr}"), "OUTPUT/score_distribution.*"
    ),
    Exhibit(
        XTR,
        "figure 4",
        "retrieved tokens: relevant, and lexical matches",
        _analysis("token_retrieval", "{maxsim}", "{xtr}"),
        "OUTPUT/token_retrieval.*",
    ),
    Exhibit(XTR, "anisotropy", "mean cosine and effective dimensionality", _analysis("geometry", "{maxsim}", "{xtr}"), "OUTPUT/geometry.*"),
    Exhibit(
        XTR,
        "table 1",
        "XTR with four k_train, and ColBERT under XTR's and MaxSim's scores",
        (
            *(_train(f"train_xtr_1{row}") for row in ("_k64", "", "_k256", "_k512", "_colbert")),
            "jobs.evaluate --index {xtr} --dataset {data} --recipe jobs/recipes/evaluate_xtr_1.yaml",
            "jobs.evaluate --index {maxsim} --dataset {data} --recipe jobs/recipes/evaluate_xtr_1_colbert.yaml",
            _compare("{maxsim}", "{xtr}", "--engine xtr --measures nDCG@10"),
            _compare("{maxsim}", "{maxsim}", "--engine exact --second_engine xtr --measures nDCG@10"),
        ),
        SCORERS,
    ),
    Exhibit(XTR, "table 2", "five imputations", _analysis("k_prime", "{xtr}"), f"OUTPUT/k_prime.json (by_imputation); {SCORERS}"),
    Exhibit(
        XTR,
        "table 3",
        "training and engine crossed: contrastive and distilled, WARP and PLAID",
        (
            *(_train(f"train_xtr_2_{loss}{row}") for loss in ("contrastive", "distill") for row in ("_colbert", "_k512", "_k256", "")),
            *(f"jobs.evaluate --index {{xtr}} --dataset {{data}} --recipe jobs/recipes/evaluate_xtr_2_{engine}.yaml" for engine in ENGINES),
            _compare("{maxsim}", "{xtr}", "--engine warp --measures nDCG@10"),
            _compare("{maxsim}", "{xtr}", "--engine plaid --measures nDCG@10"),
        ),
        SCORERS,
    ),
    Exhibit(
        TRIAL, "figure 1", "scores and cost by query length", _analysis("query_length", "{maxsim}", "{trial}"), "OUTPUT/query_length.*"
    ),
    Exhibit(TRIAL, "figure 2", "token weights by part of speech", _analysis("token_weights", "{trial}"), "OUTPUT/token_weights.*"),
    Exhibit(
        TRIAL, "figure 3", "their spread within a part of speech", _analysis("token_weights", "{trial}"), "OUTPUT/token_weights.* (std)"
    ),
    Exhibit(
        TRIAL,
        "table 1",
        "MS MARCO and BEIR, with and without relations and importance",
        (
            _train("train_trial"),
            _train("train_trial", "--trial.relation_weight 0"),
            _train("train_trial", "--trial.relation_weight 0 --trial.sides none"),
            _train("train_trial_article"),
            EVALUATE_TRIAL,
            _compare("{plain}", "{trial}", "--engine plaid --measures nDCG@10"),
            _compare("{maxsim}", "{plain}", "--engine plaid --measures nDCG@10"),
        ),
        SCORERS,
    ),
    Exhibit(
        TRIAL, "table 2", "LoTTE", (f"jobs.evaluate --index {{trial}} --dataset {{data}} --engine plaid {SUCCESS}",), "standard output"
    ),
    Exhibit(
        TRIAL,
        "table 3",
        "variants of training: gate, penalty, without KL, alignment by cosine",
        (
            _train("train_trial", "--distillation_weight 0"),
            _train("train_trial", "--trial.alignment cosine"),
            _train("train_trial", "--trial.gate sigmoid"),
            _train("train_trial", "--gate_norm l2"),
            _train("train_trial", "--gate_norm frobenius"),
            EVALUATE_TRIAL,
        ),
        "standard output",
    ),
    Exhibit(
        TRIAL,
        "table 4",
        "floating-point operations",
        _analysis("cost", "{maxsim}", "{trial}"),
        "OUTPUT/cost.json; bench/results/trial.json",
    ),
    Exhibit(TRIAL, "table 5", "time of each stage", _analysis("cost", "{maxsim}", "{trial}"), "OUTPUT/cost.json"),
    Exhibit(
        TRIAL,
        "table 6",
        "weights of document tokens",
        (*(_train("train_trial", f"--trial.sides {sides}") for sides in ("queries", "both")), EVALUATE_TRIAL),
        "standard output",
    ),
    Exhibit(TRIAL, "table 7", "rank changes by relations, token by token", _analysis("relations", "{trial}"), "OUTPUT/relations.*"),
    Exhibit(
        TRIAL,
        "table 8",
        "recall of candidates with and without weights, oracle candidates",
        (*_analysis("candidate_recall", "{maxsim}", "{trial}"), EVALUATE_TRIAL, f"{EVALUATE_TRIAL} --plaid.weighted_candidates false"),
        "OUTPUT/candidate_recall.*; quality on standard output",
    ),
    Exhibit(
        ATTENTION,
        "table 1",
        "recall on MS MARCO",
        (
            _train("train_colbert_att"),
            "jobs.evaluate --index {attention} --dataset {data} --engine plaid --measures 'R@50 R@100 R@1000'",
            _compare("{maxsim}", "{attention}", "--engine plaid --measures 'R@50 R@100'"),
        ),
        "standard output",
    ),
    Exhibit(
        ATTENTION,
        "table 2",
        "LoTTE, weighted mean",
        ("jobs.evaluate --index {attention} --dataset {data} --engine plaid --recipe jobs/recipes/evaluate_colbert_att.yaml",),
        "standard output (weighted_means)",
    ),
    Exhibit(
        ATTENTION,
        "table 3",
        "BEIR",
        ("jobs.evaluate --index {attention} --dataset {data} --engine plaid --recipe jobs/recipes/evaluate_colbert_att.yaml",),
        "standard output",
    ),
    Exhibit(
        ATTENTION,
        "table 4a",
        "weights of queries, of documents, of both",
        (
            *(_train("train_colbert_att", f"--attention.sides {sides}") for sides in ("queries", "documents", "both")),
            *_analysis("attention", "{attention}"),
            _compare("{maxsim}", "{attention}", "--engine plaid --measures Success@5"),
        ),
        SCORERS,
    ),
    Exhibit(
        ATTENTION,
        "table 4b",
        "l of delta",
        _analysis("attention", "{attention}"),
        "OUTPUT/attention.*",
    ),
)
