"""The number of threads changes no result and is restored."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_limits

from ray_lir.base.config import EncoderConfig
from ray_lir.building.clustering import Assigner
from ray_lir.embeddings.pooling import pool_tokens
from ray_lir.encoder.encoder import Encoder
from ray_lir.encoder.projection import fit_projection
from ray_lir.encoder.torch_threads import one_torch_thread, spread
from ray_lir.index.codec import random_rotation
from ray_lir.scorers.batches import apply_with_padded_rows
from tests.support.checkpoints import put_together
from tests.support.synthetic import collection

NUM_THREADS = (1, 2, 3, 4)


@pytest.fixture(autouse=True)
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_every_thread_restores_its_number_of_threads_in_any_order() -> None:
    inside, leave, found = threading.Event(), threading.Event(), []

    def other() -> None:
        with one_torch_thread():
            inside.set()
            leave.wait(30)
        found.append(torch.get_num_threads())

    thread = threading.Thread(target=other)
    with one_torch_thread() as first:
        thread.start()
        assert inside.wait(30)
    assert (first, torch.get_num_threads()) == (3, 3)
    with one_torch_thread() as again:
        leave.set()
        thread.join()
    assert (again, found, torch.get_num_threads()) == (3, [3], 3)


def test_spread_runs_items_on_threads_with_one_torch_thread_each() -> None:
    together = threading.Barrier(3)

    def work(item: int) -> tuple[int, int, bool]:
        together.wait(30)
        return item, torch.get_num_threads(), torch.is_inference_mode_enabled()

    assert list(spread(work, range(6), torch.device("cpu"))) == [(item, 1, True) for item in range(6)]
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("width", [1, 3, 16, 48, 50])
@pytest.mark.parametrize("activation", [torch.nn.functional.gelu, torch.nn.functional.mish, torch.tanh, torch.exp])
def test_a_row_of_a_narrow_layer_does_not_depend_on_the_number_of_rows(activation, width: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer, rows = torch.nn.Linear(24, width).to(dtype), torch.randn(150, 24, dtype=dtype)
    with one_torch_thread(), torch.inference_mode():
        expected = apply_with_padded_rows(lambda x: activation(layer(x)), rows)
        for start, stop in ((0, 1), (1, 3), (3, 10), (70, 87), (1, 150)):
            assert torch.equal(apply_with_padded_rows(lambda x: activation(layer(x)), rows[start:stop].clone()), expected[start:stop])


@pytest.mark.parametrize("dim", [96, 384, 768])
def test_the_rotation_does_not_depend_on_threads(dim: int) -> None:
    assert same_with_every_number_of_threads(lambda: random_rotation(dim, 0))


def test_clusters_of_centroids_do_not_depend_on_threads() -> None:
    vectors = collection(250, dim=128, max_tokens=60).values.astype(np.float32)
    assert len(vectors) > 4096
    assert same_with_every_number_of_threads(lambda: Assigner.over(vectors, 8, 0).cells)


def test_pooling_does_not_depend_on_threads() -> None:
    documents = collection(20, dim=128, max_tokens=300)
    assert same_with_every_number_of_threads(lambda: pool_tokens(documents, 2).values)


def test_a_fitted_projection_does_not_depend_on_threads(tmp_path: Path) -> None:
    checkpoint = put_together("sentence_transformers", "fixed", tmp_path)
    encoder = Encoder.load(EncoderConfig(checkpoint=checkpoint, device="cpu", precision="float32"))
    texts = [f"the text of document {number} is about {number % 7} rivers" for number in range(300)]

    def rows() -> np.ndarray:
        return fit_projection(encoder, texts, "pca:8").model.projections[-1].linear.weight.detach().numpy()

    assert same_with_every_number_of_threads(rows)


def same_with_every_number_of_threads(make) -> bool:
    found = []
    for number in NUM_THREADS:
        torch.set_num_threads(number)
        with threadpool_limits(number):
            found.append(np.ascontiguousarray(make()).tobytes())
    return len(set(found)) == 1
