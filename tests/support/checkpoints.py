"""The small checkpoints of tests/fixtures, each assembled in its own folder."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from tests.support.repository import FIXTURES

VARIANTS = {
    "pylate": ("expansion", "attended_expansion", "no_expansion", "no_prefix", "two_dense"),
    "sentence_transformers": ("fixed", "min_attended", "bare"),
    "stanford": ("default", "attended"),
    "xtr": ("checkpoint",),
}
"""The variants of each library; the first is complete, and the others hold only the files that differ."""


def all_variants() -> Iterator[tuple[str, str]]:
    return ((library, variant) for library, variants in VARIANTS.items() for variant in variants)


def put_together(library: str, variant: str, folder: Path) -> str:
    """Write the checkpoint into `folder` as the library saved it."""
    for part in dict.fromkeys((VARIANTS[library][0], variant)):
        shutil.copytree(FIXTURES / library / part, folder, dirs_exist_ok=True)
    return str(folder)


def plain(folder: Path) -> str:
    """Write a plain Hugging Face folder: transformer and tokenizer, without conventions."""
    put_together("sentence_transformers", "fixed", folder)
    for name in ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"):
        (folder / name).unlink()
    for part in ("1_Dense", "2_MultiVectorMask", "3_Normalize"):
        shutil.rmtree(folder / part)
    return str(folder)
