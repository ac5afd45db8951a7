"""Training without Ray: data order, schedule, learning, continuation, and workers that add up to a batch."""

from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from ray_lir.base.config import EncoderConfig, TrainingConfig
from ray_lir.base.errors import ConfigError
from ray_lir.encoder.encoder import Encoder
from ray_lir.training import collectives
from ray_lir.training.data import TrainingData, batches
from ray_lir.training.judgements import from_judgements
from ray_lir.training.optimization import learning_rate_at
from ray_lir.training.trainer import Training, load_encoder
from tests.support import translated_words
from tests.support.training_jobs import advance
from tests.support.translated_words import load_pairs, success_at_1

QUERIES = {"q1": "one", "q2": "two", "q3": "three"}
QRELS = {"q1": {"a": 1, "b": 2}, "q2": {"b": 1, "c": 0}, "q3": {"a": 0}}
DOCUMENTS = [("c", "C"), ("b", "B"), ("a", "A")]
pytestmark = pytest.mark.usefixtures("one_thread")
CONFIG = TrainingConfig(max_steps=60, batch_size=16, learning_rate=3e-3)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return translated_words.write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> TrainingData:
    return load_pairs(translated_words.write_collection(tmp_path_factory.mktemp("collection") / "words"))


def start(checkpoint: Path, pairs: TrainingData, config: TrainingConfig = CONFIG, dropout: float = 0.0) -> Training:
    training = Training(load_encoder(EncoderConfig(checkpoint=str(checkpoint)), config.seed, "cpu"), pairs, config)
    for module in training.encoder.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout
    return training


def test_pairs_are_the_documents_judged_relevant():
    pairs = from_judgements(QUERIES, QRELS, DOCUMENTS)
    assert list(pairs.queries) == ["one", "two"]
    assert [[pairs.documents[number] for (number,) in lists] for lists in pairs.lists_by_query()] == [["A", "B"], ["B"]]
    assert list(pairs.documents) == ["B", "A"]


def test_a_relevant_document_that_the_corpus_lacks_is_named():
    with pytest.raises(ConfigError, match="1 of 2 documents that training needs are not in the corpus, for example 'b'"):
        from_judgements(QUERIES, QRELS, [("a", "A")])


def test_judgements_without_a_relevant_document_are_refused():
    with pytest.raises(ConfigError, match="no judgement"):
        from_judgements(QUERIES, {"q3": {"a": 0}}, DOCUMENTS)


def test_an_epoch_visits_every_query_once_and_another_epoch_in_another_order(pairs):
    drawn = [batch.queries.tolist() for batch in islice(batches(pairs, 16, seed=3), 12)]
    epochs = [sum(drawn[:6], []), sum(drawn[6:], [])]
    assert all(Counter(epoch) == Counter(range(96)) for epoch in epochs)
    assert epochs == [np.random.default_rng([3, epoch]).permutation(96).tolist() for epoch in (0, 1)]


def test_the_training_order_depends_on_the_seed_and_can_start_at_any_step(pairs):
    whole = [batch.queries.tolist() for batch in islice(batches(pairs, 20, seed=1), 12)]
    assert [batch.queries.tolist() for batch in islice(batches(pairs, 20, seed=1, first_batch=7), 5)] == whole[7:]
    assert next(batches(pairs, 20, seed=2)).queries.tolist() != whole[0]


def test_batches_cycle_through_the_positives_of_a_query():
    pairs = TrainingData.of(["x", "y"], ["a", "b", "c"], [((0,), (1,), (2,)), ((1,),)])
    drawn = {0: [], 1: []}
    for batch in islice(batches(pairs, 2, seed=0), 4):
        for query, document in zip(batch.queries.tolist(), batch.documents[:, 0].tolist(), strict=True):
            drawn[query].append(document)
    assert drawn == {0: [0, 1, 2, 0], 1: [1, 1, 1, 1]}


def test_a_batch_excludes_other_positives_but_not_the_one_drawn():
    pairs = TrainingData.of(["x", "y", "z"], ["a", "b"], [((0,), (1,)), ((1,),), ((0,),)])
    batch = next(batches(pairs, 3, seed=0))
    row = {int(query): number for number, query in enumerate(batch.queries)}
    assert batch.documents[[row[0], row[1], row[2]]].tolist() == [[0], [1], [0]]
    assert not batch.excluded.diagonal().any()
    assert batch.excluded[row[0], row[1]] and batch.excluded[row[0], row[2]] and batch.excluded[row[2], row[0]]
    assert batch.excluded.sum() == 3


def test_the_learning_rate_rises_during_the_warm_up_and_then_falls():
    config = TrainingConfig(max_steps=10, warmup_fraction=0.2, learning_rate=6.0)
    assert [learning_rate_at(step, config) for step in range(10)] == pytest.approx([2, 4, 6, 5.25, 4.5, 3.75, 3, 2.25, 1.5, 0.75])
    assert learning_rate_at(0, config.model_copy(update={"warmup_fraction": 0.0})) == 6.0


def test_training_learns_pairs_that_an_untrained_encoder_fails(checkpoint, pairs):
    training = start(checkpoint, pairs)
    assert success_at_1(training.encoder, pairs) < 0.2
    curve = advance(training, CONFIG.max_steps)
    assert np.mean([record.loss for record in curve[-10:]]) < 0.4 * curve[0].loss
    assert curve[-1].temperature != curve[0].temperature == pytest.approx(CONFIG.temperature)
    assert success_at_1(training.encoder, pairs) > 0.8


@pytest.mark.parametrize("num_threads", [1, 2, 4])
def test_a_training_that_continues_reaches_the_uninterrupted_result(checkpoint, pairs, tmp_path, num_threads, request):
    torch.set_num_threads(num_threads)
    request.addfinalizer(lambda: torch.set_num_threads(1))
    whole = start(checkpoint, pairs, dropout=0.1)
    curve = advance(whole, 6)
    half = start(checkpoint, pairs, dropout=0.1)
    advance(half, 3)
    half.save(tmp_path / "state.pt")
    torch.rand(5)
    again = start(checkpoint, pairs, dropout=0.1)
    again.load(tmp_path / "state.pt")
    assert advance(again, 3) == curve[3:]
    weights = again.encoder.model.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in whole.encoder.model.state_dict().items())


def test_dropout_differs_from_step_to_step(checkpoint, pairs):
    training = start(checkpoint, pairs, CONFIG.model_copy(update={"learning_rate": 1e-12}), dropout=0.3)
    batch = next(batches(pairs, 16, seed=0))
    assert training.run_step(batch).loss != training.run_step(batch).loss


def test_a_trained_encoder_is_saved_as_an_ordinary_checkpoint(checkpoint, pairs, tmp_path):
    training = start(checkpoint, pairs)
    advance(training, 2)
    training.encoder.save(tmp_path / "saved")
    loaded = Encoder.load(EncoderConfig(checkpoint=str(tmp_path / "saved"), precision="float32", device="cpu"))
    ours, theirs = training.encoder.encode_queries(pairs.queries[:5]), loaded.encode_queries(pairs.queries[:5])
    assert np.array_equal(ours.values, theirs.values)
    untrained = Encoder.load(EncoderConfig(checkpoint=str(checkpoint), precision="float32", device="cpu"))
    assert not np.array_equal(ours.values, untrained.encode_queries(pairs.queries[:5]).values)


def test_a_nan_loss_ends_training_with_a_one_line_error(checkpoint, pairs):
    training = start(checkpoint, pairs)
    with torch.no_grad():
        next(training.encoder.model.parameters()).fill_(torch.nan)
    with pytest.raises(ConfigError, match="the loss is nan at step 1"):
        advance(training, 1)


def test_two_workers_with_half_batches_train_like_one(checkpoint, pairs, tmp_path):
    alone = start(checkpoint, pairs)
    curve = advance(alone, 3)
    mp.spawn(_work, (2, str(tmp_path), str(checkpoint), pairs), nprocs=2)
    shared = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in (0, 1)]
    for losses, weights in shared:
        assert losses == pytest.approx([record.loss for record in curve], rel=1e-4)
        torch.testing.assert_close(weights, dict(alone.encoder.model.state_dict()), rtol=1e-3, atol=1e-4)
    assert all(torch.equal(shared[0][1][name], tensor) for name, tensor in shared[1][1].items())


def _work(rank: int, num_workers: int, folder: str, checkpoint: str, pairs: TrainingData) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=num_workers)
    training = start(Path(checkpoint), pairs)
    losses = [record.loss for record in advance(training, 3)]
    torch.save((losses, dict(training.encoder.model.state_dict())), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_gradients_of_embedding_tables_are_averaged_over_workers(tmp_path: Path) -> None:
    mp.spawn(_average, (str(tmp_path),), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    means = [(first + second) / 2 for first, second in zip(_gradients(0), _gradients(1), strict=True)]
    for worker in found:
        for gradient, mean in zip(worker, means, strict=True):
            assert torch.equal(gradient, mean)


def _gradients(rank: int) -> list[torch.Tensor]:
    """Tested with a table of which workers use different rows, a table that no worker uses, and a matrix."""
    generator = torch.Generator().manual_seed(rank)
    table = torch.zeros(collectives.TABLE_ROWS, 3)
    table[torch.randint(0, len(table), (50,), generator=generator)] = torch.randn(50, 3, generator=generator)
    return [table, torch.zeros(collectives.TABLE_ROWS + 1, 2), torch.randn(5, 4, generator=generator)]


def _average(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    parameters = [torch.nn.Parameter(torch.zeros_like(gradient)) for gradient in _gradients(rank)]
    for parameter, gradient in zip(parameters, _gradients(rank), strict=True):
        parameter.grad = gradient
    collectives.average_gradients([*parameters, torch.nn.Parameter(torch.zeros(2))])
    torch.save([parameter.grad for parameter in parameters], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_a_loss_record_has_gradient_norm_loss_terms_and_spread_of_gates(checkpoint, pairs):
    plain = advance(start(checkpoint, pairs), 1)[0]
    assert plain.contrastive_loss == pytest.approx(plain.loss) and plain.gradient_norm and plain.gradient_norm > 0
    assert plain.distillation_loss is None and plain.query_weight_penalty is None and plain.distillation_temperature is None
    assert (plain.query_weight, plain.query_weight_std, plain.closed_fraction) == (1.0, 0.0, 0.0)
    config = CONFIG.model_copy(update={"scorer": "trial", "gate_weight": 0.5})
    gated = advance(start(checkpoint, pairs, config), 1)[0]
    assert gated.query_weight_penalty is not None and gated.contrastive_loss is not None
    assert gated.loss == pytest.approx(gated.contrastive_loss + 0.5 * gated.query_weight_penalty, rel=1e-5)
    assert gated.query_weight_std > 0 and 0 <= gated.closed_fraction <= 1
    halves = advance(start(checkpoint, pairs, config.model_copy(update={"accumulate": 2})), 1)[0]
    assert halves.query_weight_penalty is not None and halves.contrastive_loss is not None
    assert halves.loss == pytest.approx(halves.contrastive_loss + 0.5 * halves.query_weight_penalty, rel=1e-5)
