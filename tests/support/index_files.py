"""The files of an index, to compare two of them."""

from pathlib import Path


def tree(root: Path) -> dict[str, bytes]:
    """Return the content of every file of an index except the timings."""
    files = [path for path in sorted(root.rglob("*")) if path.is_file() and path.name != "provenance.json"]
    return {str(path.relative_to(root)): path.read_bytes() for path in files}
