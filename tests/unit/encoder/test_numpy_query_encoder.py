"""Queries encoded without torch equal the encoder's; unsupported checkpoints use the encoder."""

import json
from pathlib import Path

import numpy as np
import pytest

from ray_lir.base.config import EncoderConfig
from ray_lir.base.errors import ConfigError
from ray_lir.encoder.encoder import Encoder
from ray_lir.encoder.numpy_query_encoder import NumpyQueryEncoder
from tests.fixtures.tiny import QUERIES
from tests.support.checkpoints import all_variants, plain, put_together

TEXTS = [*QUERIES, "", "x", "Ünïcode and\tCAPITALS \ud800", "word " * 300]


def same(checkpoint: str, **changes: object) -> bool:
    """Return whether the NumPy encoder supports the checkpoint, and check its queries."""
    encoder = Encoder.load(EncoderConfig(checkpoint=checkpoint, device="cpu", precision="float32", **changes))
    light = NumpyQueryEncoder.load(encoder.contract, checkpoint)
    if light is None:
        return False
    expected, found = encoder.encode_queries(TEXTS), light.encode_queries(TEXTS)
    assert found.offsets.tolist() == expected.offsets.tolist()
    np.testing.assert_allclose(found.values.astype(np.float32), expected.values.astype(np.float32), atol=1e-3)
    return True


@pytest.mark.parametrize(("library", "variant"), all_variants())
def test_every_bert_checkpoint_gives_the_encoders_queries(library, variant, tmp_path):
    taken = same(put_together(library, variant, tmp_path / "checkpoint"))
    assert taken == (library != "xtr" and variant not in LEFT_TO_THE_ENCODER)


LEFT_TO_THE_ENCODER = {"two_dense"}
"""The checkpoint has a projection with an activation and a residual."""


def test_the_default_checkpoint_and_changed_conventions_are_used(tmp_path):
    assert same("all-MiniLM-L6-v2") and same("all-MiniLM-L6-v2", query_length=16, query_expansion=True)
    assert same(plain(tmp_path / "plain"))


def test_other_weights_and_scorers_are_left_to_the_encoder(tmp_path):
    checkpoint = put_together(*next(all_variants()), tmp_path / "checkpoint")
    contract = Encoder.load(checkpoint).contract
    assert NumpyQueryEncoder.load(contract.model_copy(update={"weights_digest": "0" * 64}), checkpoint) is None
    assert NumpyQueryEncoder.load(contract.model_copy(update={"scorer": "trial"}), checkpoint) is None
    for file in Path(checkpoint).rglob("model.safetensors"):
        file.write_bytes(file.read_bytes()[:100])
    assert NumpyQueryEncoder.load(contract, checkpoint) is None


def test_tokens_without_a_vector_are_refused(tmp_path):
    checkpoint = plain(tmp_path / "plain")
    file = tmp_path / "plain" / "tokenizer.json"
    serialized = json.loads(file.read_text())
    serialized["model"]["vocab"]["zebra"] = 184
    file.write_text(json.dumps(serialized))
    light = NumpyQueryEncoder.load(Encoder.load(checkpoint).contract, checkpoint)
    assert light is not None and len(light.encode_queries(["a river"])) == 1
    with pytest.raises(ConfigError, match="the token 'zebra' with id 184, but its model has 184 token vectors"):
        light.encode_queries(["a zebra"])


def test_tokenizers_that_make_no_token_of_a_text_are_left_to_the_encoder(tmp_path):
    checkpoint = plain(tmp_path / "plain")
    file = tmp_path / "plain" / "tokenizer.json"
    contract = Encoder.load(checkpoint).contract
    assert NumpyQueryEncoder.load(contract, checkpoint) is not None
    file.write_text(json.dumps(json.loads(file.read_text()) | {"post_processor": None}))
    assert NumpyQueryEncoder.load(contract, checkpoint) is None
