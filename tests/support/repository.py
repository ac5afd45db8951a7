"""Folders of the repository that tests read."""

from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
FIXTURES = REPOSITORY / "tests" / "fixtures"
GOLDEN = REPOSITORY / "tests" / "golden"
