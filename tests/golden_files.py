"""Expected values that separate float64 code computed (tests/golden/*.npz)."""

from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent / "golden"


def golden(name: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}
