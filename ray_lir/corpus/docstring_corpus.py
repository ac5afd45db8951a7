"""The docstring corpus: documentation of installed Python packages, a real collection that exists on every machine.

Sources are parsed, never imported. A document is the docstring of a public module, class or function: its id is the qualified name, its
title the name with the signature, its text the docstring. Its metadata is module, file and line.
"""

import ast
import hashlib
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

from ray_lir.corpus.records import Document

STDLIB = tuple(sorted(name for name in sys.stdlib_module_names if not name.startswith("_") and name not in ("antigravity", "this")))
PACKAGES = ("numpy", "pandas", "pyarrow", "pydantic")
NO_LIBRARY = ("test", "tests", "testing", "conftest", "idlelib", "lib2to3", "turtledemo", "_vendor", "thirdparty_files")
MIN_CHARS = 60
MAX_CHARS = 2000
MAX_SIGNATURE = 120
Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def collect(num_docs: int, first: Sequence[str] = STDLIB, then: Sequence[str] = PACKAGES) -> list[Document]:
    """Return at most `num_docs` documents: all of `first` if they fit, then documents of `then`.

    If not all fit, the digests of the ids decide which documents are taken. So the choice is even and reproducible, and a smaller corpus is
    part of a larger one. Of documents with equal texts or ids, the first is kept. The order is the order of the packages.

    Args:
        num_docs: Maximum number of documents.
        first: Package names that are used first.
        then: Package names that are used if documents are still missing.
    """
    chosen: list[Document] = []
    seen: set[str] = set()
    for packages in (first, then):
        documents = list(_unseen(chain.from_iterable(map(package_documents, packages)), seen))
        kept = {document.doc_id for document in sorted(documents, key=_lot)[: num_docs - len(chosen)]}
        chosen += [document for document in documents if document.doc_id in kept]
        if len(chosen) == num_docs:
            break
    return chosen


def package_documents(package: str) -> Iterator[Document]:
    """Yield the docstrings of an installed module or package; none if it is not installed or has no Python source."""
    for module, file in _sources(package):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                tree = ast.parse(file.read_bytes())
            except (SyntaxError, ValueError):
                continue
        where = {"module": module, "file": "/".join(file.parts[-len(module.split(".")) - (file.stem == "__init__") :])}
        if text := ast.get_docstring(tree):
            yield Document(module, module, text[:MAX_CHARS], {**where, "line": 1})
        yield from _definitions(tree, module, where)


def known_items(documents: Iterable[Document], num_queries: int) -> tuple[list[Document], dict[str, str]]:
    """Return a known-item collection: a docstring's summary is the query, and the rest of the docstring is its one relevant document.

    Returns:
        `num_queries` documents without their summaries, and document id -> summary. Equal summaries are used once.
    """
    items: dict[str, Document] = {}
    for document in sorted(documents, key=_lot):
        summary, _, rest = document.text.partition("\n\n")
        query = " ".join(summary.split())
        if len(query.split()) >= 5 and len(rest) >= 200 and query not in items:
            items[query] = Document(document.doc_id, document.doc_id, rest, document.metadata)
        if len(items) == num_queries:
            break
    return list(items.values()), {document.doc_id: query for query, document in items.items()}


def _unseen(documents: Iterable[Document], seen: set[str]) -> Iterator[Document]:
    for document in documents:
        if len(document.text) >= MIN_CHARS and seen.isdisjoint((document.doc_id, document.text)):
            seen.update((document.doc_id, document.text))
            yield document


def _lot(document: Document) -> str:
    return hashlib.sha256(document.doc_id.encode()).hexdigest()


def _sources(package: str) -> Iterator[tuple[str, Path]]:
    """Yield (module name, source file) of a package's modules, in order."""
    spec = find_spec(package)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return
    origin = Path(spec.origin)
    if not spec.submodule_search_locations:
        yield package, origin
        return
    for file in sorted(origin.parent.rglob("*.py")):
        parts = file.relative_to(origin.parent.parent).with_suffix("").parts
        if not any(part in NO_LIBRARY or part.startswith("test_") for part in parts):
            yield ".".join(part for part in parts if part != "__init__"), file


def _definitions(parent: ast.AST, prefix: str, where: dict[str, str]) -> Iterator[Document]:
    for node in ast.iter_child_nodes(parent):
        if isinstance(node, Definition) and not node.name.startswith("_"):
            name = f"{prefix}.{node.name}"
            if text := ast.get_docstring(node):
                yield Document(name, name + _signature(node), text[:MAX_CHARS], {**where, "line": node.lineno})
            if isinstance(node, ast.ClassDef):
                yield from _definitions(node, name, where)


def _signature(node: Definition) -> str:
    if isinstance(node, ast.ClassDef):
        return ""
    names = [argument.arg for argument in chain(node.args.posonlyargs, node.args.args, node.args.kwonlyargs)]
    text = f"({', '.join(name for name in names if name not in ('self', 'cls'))})"
    return text if len(text) <= MAX_SIGNATURE else text[: MAX_SIGNATURE - 4] + "...)"
