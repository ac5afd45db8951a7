"""Writing small corpora."""

import json
from pathlib import Path


def write_rows(path: Path, rows: list) -> str:
    """JSON lines; a row that is bytes is written as it is. Returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows))
    return str(path)
