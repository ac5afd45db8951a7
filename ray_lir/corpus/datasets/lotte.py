"""The LoTTE layout: <topic>/<split>/ with collection.tsv, questions.{search,forum}.tsv and qas.{search,forum}.jsonl.

A folder has two sets of questions, search and forum, so it is two data sets: <topic>.search and <topic>.forum.
"""

from typing import Any

from ray_lir import storage
from ray_lir.base.config import parse_json
from ray_lir.base.errors import ConfigError, FormatError
from ray_lir.base.ids import BadId, check_id
from ray_lir.corpus.datasets.dataset import Dataset, judged_texts
from ray_lir.corpus.datasets.query_texts import read_queries
from ray_lir.corpus.text_lines import read_text_lines

KINDS = ("search", "forum")
SPLITS = ("dev", "test")
FIX = "get the whole LoTTE archive again, or give the missing file"


def matches(folder: str) -> bool:
    """Return whether a folder is a topic of LoTTE, or one of its splits."""
    return _is_split(folder) or any(_is_split(storage.join(folder, split)) for split in SPLITS)


def load(folder: str, split: str) -> list[Dataset]:
    """Return the data sets of a folder: one for each kind of question.

    Args:
        folder: Folder or URL of a topic, or of one of its splits.
        split: dev or test; with a kind (test.search) or the kind alone (search), only that kind is read.

    Raises:
        ConfigError: There is no such split or kind.
        FormatError: A file is missing or malformed, or an answered question has no text.
    """
    name, _, kind = split.rpartition(".") if split.endswith(KINDS) else (split, "", "")
    leaf, leaf_split = _split_folder(folder, name)
    names = storage.list_names(leaf)
    kinds = [each for each in KINDS if f"questions.{each}.tsv" in names or f"qas.{each}.jsonl" in names]
    if kind and kind not in kinds:
        raise ConfigError(f"no split {split!r} in {leaf}: it has the questions {', '.join(kinds)}")
    topic = storage.base_name(folder.rstrip("/").rpartition("/")[0] if _is_split(folder) and _named_as_split(folder) else folder)
    return [_load(leaf, f"{topic}.{each}", leaf_split, each, names) for each in ([kind] if kind else kinds)]


def query_files(folder: str) -> list[str]:
    """Return the files with the questions of a split's folder.

    Raises:
        ConfigError: The folder is not that of one split.
    """
    if not _is_split(folder):
        raise ConfigError(f"{folder} holds several splits of LoTTE; give one of them, such as {storage.join(folder, 'test')}")
    names = storage.list_names(folder)
    return [storage.join(folder, name) for name in names if name in {f"questions.{kind}.tsv" for kind in KINDS}]


def _is_split(folder: str) -> bool:
    names = set(storage.list_names(folder))
    return any(f"questions.{kind}.tsv" in names or f"qas.{kind}.jsonl" in names for kind in KINDS)


def _named_as_split(folder: str) -> bool:
    return storage.base_name(folder) in SPLITS


def _split_folder(folder: str, split: str) -> tuple[str, str]:
    """The folder of a split, and the split's name."""
    if _is_split(folder):
        own = storage.base_name(folder) if _named_as_split(folder) else split or "test"
        if split and split != own:
            raise ConfigError(f"no split {split!r} in {folder}: it is the split {own}; set --split {own}")
        return folder, own
    found = [each for each in SPLITS if _is_split(storage.join(folder, each))]
    if (split or "test") not in found:
        raise ConfigError(f"no split {split!r} in {folder}; it has {', '.join(found)}")
    return storage.join(folder, split or "test"), split or "test"


def _load(folder: str, name: str, split: str, kind: str, names: list[str]) -> Dataset:
    questions, answers = f"questions.{kind}.tsv", f"qas.{kind}.jsonl"
    for file in (questions, answers):
        if file not in names:
            raise FormatError(folder, file, "no such file", FIX)
    questions, answers = storage.join(folder, questions), storage.join(folder, answers)
    qrels: dict[str, dict[str, int]] = {}
    for number, line in read_text_lines(answers):
        where = f"{answers} line {number}"
        try:
            query_id, documents = _answer(parse_json(line))
        except (ValueError, KeyError, TypeError):
            raise FormatError(where, "a JSON object with qid and answer_pids, which lists document ids", f"{line:.80}") from None
        if query_id in qrels:
            raise FormatError(where, "each qid once", f"{query_id!r} twice")
        qrels[query_id] = dict.fromkeys(documents, 1)
    if not qrels:
        raise FormatError(answers, "judgements", "none", FIX)
    texts = judged_texts(qrels, read_queries([questions]), questions, f"qas.{kind}.jsonl")
    return Dataset(name, split, texts, qrels, folder)


def _answer(fields: Any) -> tuple[str, list[str]]:
    """The id of a question and its relevant documents. BadId is a ValueError."""
    if not isinstance(fields["answer_pids"], list):
        raise BadId("is not a list")
    return check_id(fields["qid"]), [check_id(each) for each in fields["answer_pids"]]
