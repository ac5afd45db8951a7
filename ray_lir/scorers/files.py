"""A scorer's folder inside a checkpoint: scorer/config.json, and scorer/model.safetensors if the scorer has weights.

config.json holds the scorer's name and settings. model.safetensors holds its weights in float32 under their names in the module, such as
`relation.inner.weight`. A checkpoint without this folder is for maxsim.
"""

import json
from pathlib import Path

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ray_lir.base.config import Config, parse_json
from ray_lir.base.errors import ConfigError
from ray_lir.scorers import SCORERS
from ray_lir.scorers.maxsim import MaxSim
from ray_lir.scorers.scorer import Scorer

FOLDER, CONFIG, WEIGHTS = "scorer", "config.json", "model.safetensors"


def save_scorer(checkpoint: Path, scorer: Scorer) -> None:
    """Write the scorer's folder into a checkpoint; maxsim has none."""
    if scorer.name == "maxsim":
        return
    folder = checkpoint / FOLDER
    folder.mkdir()
    settings = {"scorer": scorer.name, **scorer.settings.model_dump(mode="json")}
    (folder / CONFIG).write_text(json.dumps(settings, indent=2) + "\n")
    weights = {name: tensor.float().contiguous().cpu() for name, tensor in scorer.state_dict().items()}
    if weights:
        save_file(weights, folder / WEIGHTS)


def load_scorer(checkpoint: Path, dim: int) -> Scorer:
    """Return the scorer of a checkpoint.

    Args:
        checkpoint: Folder of the checkpoint.
        dim: Dimensions of its token embeddings.

    Raises:
        ConfigError: The scorer's folder is damaged, or a newer version of ray_lir wrote it.
    """
    folder = checkpoint / FOLDER
    if not folder.is_dir():
        return MaxSim(dim, Config())
    try:
        settings = parse_json((folder / CONFIG).read_text())
        kind = SCORERS[settings.pop("scorer")]
        scorer = kind(dim, kind.Settings.model_validate(settings))
        if scorer.state_dict():
            scorer.load_state_dict(load_file(folder / WEIGHTS))
    except (OSError, ValueError, KeyError, AttributeError, RuntimeError, SafetensorError, ValidationError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ConfigError(
            f"cannot load the scorer in {folder} ({type(error).__name__}: {reason}); copy the checkpoint again, or upgrade ray_lir"
        ) from None
    return scorer
