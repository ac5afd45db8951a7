"""Default configurations are written with the fields of release 0.2.0 only, so that finished outputs are found again after an upgrade."""

import json

import pytest

from ray_lir.base.config import Config, EncoderConfig, IndexConfig, TrainingConfig

ENCODER = {
    "checkpoint": "all-MiniLM-L6-v2",
    **dict.fromkeys(("projection", "query_length", "document_length", "query_expansion", "attend_to_expansion", "skip_punctuation")),
    "device": "auto",
    "precision": "auto",
    "batch_tokens": None,
}
INDEX = {
    "num_shards": None,
    "clustering": {
        "method": "k_means",
        "num_centroids": None,
        "num_iterations": 4,
        "points_per_centroid": 64,
        "assign_nprobe": 8,
        "seed": 0,
    },
    "codec": {"nbits": 4, "buckets": "lloyd_max", "rotation": True, "token_scale": True},
}
TRAINING = {
    "scorer": "maxsim",
    "xtr": {"k_train": [256]},
    "trial": {"relation_weight": 0.5, "alignment": "combined"},
    "attention": {"reading": "column_mean", "sides": "both", "delta_length": 150, "detach": False},
    "projection_dim": None,
    "max_steps": 1000,
    "batch_size": 32,
    "num_negatives": 0,
    "accumulate": 1,
    "micro_batch": None,
    "learning_rate": 1e-05,
    "head_learning_rate": None,
    "warmup_fraction": 0.1,
    "weight_decay": 0.01,
    "max_gradient_norm": 1.0,
    "contrastive_weight": 1.0,
    "temperature": 0.2,
    "distillation_weight": 0.0,
    "distillation_temperature": 1.0,
    "normalize_student": True,
    "normalize_teacher": True,
    "gate_weight": 0.01,
    "gate_norm": "l1",
    "evaluate_every": 100,
    "seed": 0,
}


@pytest.mark.parametrize(("config", "written"), [(EncoderConfig(), ENCODER), (IndexConfig(), INDEX), (TrainingConfig(), TRAINING)])
def test_a_default_configuration_is_written_with_the_fields_of_its_first_release(config: Config, written: dict[str, object]):
    """A new field needs `exclude_if` for its default."""
    assert json.loads(config.model_dump_json()) == written
