"""A synthetic collection with judged queries, and an index of it with versions that are worse in known ways."""

import json
import shutil
from pathlib import Path

import numpy as np
import torch

from ray_lir.base.config import ClusteringConfig, CodecConfig, EncoderConfig, IndexConfig
from ray_lir.building.build import build_index
from ray_lir.encoder.corpus_encoder import encode_corpus
from ray_lir.encoder.encoder import Encoder
from tests.fixtures.tiny import WORDS, bert

NUM_DOCS = 160
CONFIG = IndexConfig(num_shards=1, clustering=ClusteringConfig(num_centroids=8), codec=CodecConfig(nbits=4))
WRONG_PROMPT = " ".join(WORDS[20:60])


def make_collection(folder: Path) -> Path:
    """Write a dataset in the BEIR layout and a log of queries below `folder`, and return the dataset's folder.

    A query is a passage of its relevant document, with one word replaced.
    """
    rng = np.random.default_rng(0)
    texts = [[str(word) for word in rng.choice(WORDS, 24)] for _ in range(NUM_DOCS)]
    dataset = folder / "dataset"
    (dataset / "qrels").mkdir(parents=True)
    write_corpus(dataset / "corpus.jsonl", texts)
    queries, judgements = [], ["query-id\tcorpus-id\tscore"]
    for number, words in enumerate(texts):
        start = int(rng.integers(0, 18))
        passage = words[start : start + 6]
        passage[int(rng.integers(6))] = str(rng.choice(WORDS))
        queries.append({"_id": f"q{number}", "text": " ".join(passage)})
        judgements.append(f"q{number}\tdoc-{number}\t1")
    (dataset / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in queries))
    (dataset / "qrels" / "test.tsv").write_text("\n".join(judgements) + "\n")
    (folder / "log.txt").write_text("".join(" ".join(rng.choice(WORDS, 5)) + "\n" for _ in range(60)))
    return dataset


def lexical_encoder(folder: Path) -> EncoderConfig:
    """Save an encoder with vectors that depend on the word more than on its neighbours, so that passages find their documents."""
    plain = folder.with_name("plain-checkpoint")
    bert(plain)
    encoder = Encoder.load(EncoderConfig(checkpoint=str(plain)))
    with torch.no_grad():
        for name, weights in encoder.model.backbone.named_parameters():
            if name.endswith("output.dense.weight") or "position_embeddings" in name or "token_type" in name:
                weights.mul_(0.2)
    encoder.save(folder)
    return EncoderConfig(checkpoint=str(folder))


def write_corpus(path: Path, texts: list[list[str]], every: int = 1) -> None:
    """Write every n-th document as JSON lines."""
    rows = [{"_id": f"doc-{number}", "text": " ".join(words)} for number, words in enumerate(texts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[::every]))


def build(folder: Path, name: str, corpus: Path, encoder: EncoderConfig, config: IndexConfig = CONFIG) -> Path:
    """Encode a corpus, build an index below `folder`, and return its folder."""
    encode_corpus(str(corpus), str(folder / f"{name}-embeddings"), encoder)
    build_index(str(folder / f"{name}-embeddings"), str(folder / name), config)
    return folder / name


def add_version(index: Path, other: Path, version: int) -> None:
    """Add version 1 of another index as a version of an index; LATEST stays. File names carry digests, so they do not collide."""
    shutil.copytree(other, index, dirs_exist_ok=True, ignore=shutil.ignore_patterns("versions", "LATEST", "_work"))
    shutil.copytree(other / "versions" / "1", index / "versions" / str(version))


def make_versions(folder: Path) -> tuple[Path, Path]:
    """Return an index and its dataset. Version 1 is good; VERSIONS names the others."""
    dataset = make_collection(folder)
    encoder = lexical_encoder(folder / "checkpoint")
    wrong_prompt = shutil.copytree(folder / "checkpoint", folder / "wrong-prompt")
    settings = json.loads((wrong_prompt / "config_sentence_transformers.json").read_text())
    settings["prompts"]["document"] = WRONG_PROMPT
    (wrong_prompt / "config_sentence_transformers.json").write_text(json.dumps(settings))
    bert(folder / "other-checkpoint", seed=1)
    corpus = dataset / "corpus.jsonl"
    index = build(folder, "index", corpus, encoder)
    rows = corpus.read_text().splitlines(keepends=True)
    (folder / "half.jsonl").write_text("".join(rows[::2]))
    variants = {
        2: build(folder, "two-shards", corpus, encoder, CONFIG.model_copy(update={"num_shards": 2})),
        3: build(folder, "one-bit", corpus, encoder, CONFIG.model_copy(update={"codec": CodecConfig(nbits=1)})),
        4: build(folder, "half", folder / "half.jsonl", encoder),
        5: build(folder, "prompt", corpus, EncoderConfig(checkpoint=str(wrong_prompt))),
        6: build(folder, "other", corpus, EncoderConfig(checkpoint=str(folder / "other-checkpoint"))),
    }
    for version, other in variants.items():
        add_version(index, other, version)
    return index, dataset


VERSIONS = {2: "as good", 3: "1-bit codec", 4: "half of the documents missing", 5: "wrong prompt", 6: "another encoder"}
