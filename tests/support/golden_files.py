"""Expected values, computed by separate float64 code (tests/golden/*.npz)."""

import numpy as np

from tests.support.repository import GOLDEN


def golden(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}
