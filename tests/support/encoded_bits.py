"""Encode the same texts in many ways with every checkpoint of tests/fixtures, and print the ways that gave other bits.

Usage: `python -m tests.support.encoded_bits FOLDER`. tests/unit/encoder/test_reproducible_bits.py runs it in one process for each
instruction set, because torch reads the choice when it starts.
FOLDER/vectors.npz then holds the documents' vectors, so that instruction sets can be compared.
"""

import logging
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from ray_lir import Encoder, EncoderConfig
from ray_lir.embeddings.token_embeddings import concatenate
from tests.support.checkpoints import put_together

CHECKPOINTS = {
    ("sentence_transformers", "fixed"): ("attention", "trial"),
    ("sentence_transformers", "bare"): ("attention", "trial"),
    ("pylate", "expansion"): ("attention",),
    ("pylate", "attended_expansion"): (),
    ("pylate", "two_dense"): (),
    ("stanford", "default"): ("trial",),
    ("xtr", "checkpoint"): (),
}
TEXTS = ["", *(f"the text of document {number} " * (number % 5) + " ".join(map(str, range(number % 7))) for number in range(15))]


def encoded(encode: Callable, size: int) -> list[np.ndarray]:
    """Return vectors and weights of all texts, encoded `size` at a time."""
    parts = [encode(TEXTS[start : start + size]) for start in range(0, len(TEXTS), size)]
    arrays = [np.concatenate([part.values for part in parts])]
    return arrays if parts[0].weights is None else [*arrays, np.concatenate([part.weights for part in parts])]


def differences(encoder: Encoder) -> list[str]:
    """Return the ways of encoding with other bits than one text after another on one thread."""
    found = []
    for kind, encode in {"documents": encoder.encode_documents, "queries": encoder.encode_queries}.items():
        torch.set_num_threads(1)
        expected = encoded(encode, 1)

        def check(way: str, arrays: list[np.ndarray], expected: list[np.ndarray] = expected, kind: str = kind) -> None:
            if not all(np.array_equal(*pair) for pair in zip(arrays, expected, strict=True)):
                found.append(f"{kind}, {way}")

        for threads, size in ((1, len(TEXTS)), (2, len(TEXTS)), (2, 5), (4, 1)):
            torch.set_num_threads(threads)
            check(f"{threads} threads, {size} at a time", encoded(encode, size))
            if torch.get_num_threads() != threads:
                found.append(f"{kind}, {threads} threads: not restored")
        with ThreadPoolExecutor(4) as pool:
            for arrays in pool.map(lambda size, encode=encode: encoded(encode, size), (1, 3, len(TEXTS), 7)):
                check("concurrent calls", arrays)
    return found + score_differences(encoder)


def score_differences(encoder: Encoder) -> list[str]:
    """Return whether a pair's score depends on threads or on other pairs."""
    torch.set_num_threads(1)
    documents = [encoder.encode_documents([text]) for text in TEXTS if text]
    queries = [encoder.encode_queries([text]) for text in TEXTS[1:6]]
    expected = np.block([[encoder.scores(query, document) for document in documents] for query in queries])
    together = concatenate(queries), concatenate(documents)
    found = []
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        if not np.array_equal(encoder.scores(*together), expected):
            found.append(f"scores, {threads} threads")
    return found


def main() -> int:
    logging.disable()
    wrong, vectors = [], {}
    for (library, variant), scorers in CHECKPOINTS.items():
        checkpoint = put_together(library, variant, Path(sys.argv[1]) / library / variant)
        for precision in ("float32", "bfloat16", "int8") if variant == "fixed" else ("float32", "bfloat16"):
            encoder = Encoder.load(EncoderConfig(checkpoint=checkpoint, precision=precision, device="cpu"))
            vectors[f"{library} {variant} {precision}"] = encoder.encode_documents(TEXTS).values
            torch.manual_seed(0)
            for each in [encoder, *(encoder.with_scorer(scorer) for scorer in scorers)]:
                wrong += [f"{library}/{variant} {precision} {each.contract.scorer}: {way}" for way in differences(each)]
    np.savez(Path(sys.argv[1]) / "vectors.npz", **vectors)
    print(*wrong, sep="\n")
    return len(wrong)


if __name__ == "__main__":
    sys.exit(main() > 0)
