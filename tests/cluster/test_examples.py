"""Examples that need Ray run and print the expected output."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.repository import REPOSITORY

EXAMPLES = REPOSITORY / "examples"


@pytest.mark.ray
@pytest.mark.parametrize(
    ("script", "lines"),
    [
        ("train_on_your_pairs.py", [r"trained on 24 pairs for 6 steps", r"12 other queries: 0\.\d+ before, [01]\.\d+ after"]),
        (
            "mine_and_distil.py",
            [r"one of 24 scored tuples", r"distilled for 6 steps", r"siren .* \(64 dimensions .* instead of 384\)"],
        ),
        (
            "serve_and_ask.py",
            [
                r"http://127\.0\.0\.1:\d+/ is ready",
                r"60 documents",
                r"The Nile: .*floods",
                r"matched words: .*floods",
                r"a mistake is one line: .*k",
            ],
        ),
        (
            "write_over_http.py",
            [
                r"http://127\.0\.0\.1:\d+/ is ready",
                r"2 documents added, version \d+",
                r"Kea: The kea is a parrot",
                r"replaced: .*New Zealand",
                r"deleted; 60 documents; a repeated call gets the first answer: True",
                r"a mistake is one line: 1 document is not usable \(document 0: no text\)",
            ],
        ),
    ],
)
def test_a_cluster_example_prints_what_it_did(script: str, lines: list[str], tmp_path: Path):
    done = subprocess.run([sys.executable, EXAMPLES / script], cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert [line for line in lines if not re.search(line, done.stdout)] == [], done.stdout
    assert list(tmp_path.iterdir()) == []
