"""Writing small corpora."""

import json
from pathlib import Path


def write_rows(path: Path, rows: list) -> str:
    """Write JSON lines; a row of bytes is written unchanged. Return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows))
    return str(path)
