"""Training for every scorer: it learns, micro-batches and workers add up to a batch, it continues, and heads have their own rate."""

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
from ray_lir.scorers import SCORERS
from ray_lir.training import collectives
from ray_lir.training.data import TrainingData
from ray_lir.training.dev_set import DevSet, ndcg_at_10
from ray_lir.training.frozen_layers import FrozenLayers
from ray_lir.training.trainer import Training, load_encoder
from tests.support import translated_words
from tests.support.training_jobs import advance
from tests.support.translated_words import load_pairs

pytestmark = pytest.mark.usefixtures("one_thread")
SETTINGS = {
    "maxsim": {},
    "xtr": {"xtr": {"k_train": [32, 16]}, "temperature": 0.05},
    "trial": {"temperature": 1.0, "head_learning_rate": 1e-3},
    "attention": {"attention": {"sides": "both"}},
}
DISTILLED = {"num_negatives": 3, "distillation_weight": 1.0}
each_scorer = pytest.mark.parametrize("scorer", SCORERS)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return translated_words.write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return translated_words.write_collection(tmp_path_factory.mktemp("collection") / "words")


@pytest.fixture(scope="module")
def pairs(folder) -> TrainingData:
    return load_pairs(folder)


def with_negatives(pairs: TrainingData) -> TrainingData:
    """Every query with three negatives and a teacher that ranks better than the student."""
    rng = np.random.default_rng(0)
    lists = []
    for ((own,),) in pairs.lists_by_query():
        others = rng.choice([number for number in range(len(pairs.documents)) if number != own], 3, replace=False)
        lists.append(((own, *others.tolist()),))
    return TrainingData.of(pairs.queries, pairs.documents, lists, [((5.0, 1.0, 0.5, 0.0),)] * len(lists))


def configure(scorer: str, **changes: object) -> TrainingConfig:
    return TrainingConfig(scorer=scorer, **({"max_steps": 60, "batch_size": 16, "learning_rate": 3e-3} | SETTINGS[scorer] | changes))


def start(
    checkpoint: Path, data: TrainingData, config: TrainingConfig, dropout: float = 0.0, products: torch.dtype = torch.float32
) -> Training:
    training = Training(load_encoder(EncoderConfig(checkpoint=str(checkpoint)), config.seed, "cpu"), data, config, products)
    for module in training.encoder.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout
    return training


def weights(training: Training) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in training.encoder.model.state_dict().items()}


def gradients(training: Training) -> dict[str, torch.Tensor]:
    """Return the gradients of the latest step."""
    return {name: each.grad.clone() for name, each in training.encoder.model.named_parameters() if each.grad is not None}


def dev_set(pairs: TrainingData) -> DevSet:
    return DevSet(
        {f"q{number}": text for number, text in enumerate(pairs.queries)},
        {f"d{number}": text for number, text in enumerate(pairs.documents)},
        {f"q{number}": {f"d{document}": 1 for document in found} for number, (found,) in enumerate(pairs.lists_by_query())},
    )


@each_scorer
def test_training_learns_pairs_that_an_untrained_encoder_fails(scorer, checkpoint, pairs, tmp_path):
    training, dev = start(checkpoint, pairs, configure(scorer)), dev_set(pairs)
    assert training.evaluate(dev) < 0.35
    advance(training, training.config.max_steps)
    assert training.evaluate(dev) > 0.75
    training.encoder.save(tmp_path / "trained")
    again = Encoder.load(EncoderConfig(checkpoint=str(tmp_path / "trained"), precision="float32", device="cpu"))
    assert again.contract.scorer == scorer
    assert ndcg_at_10(again, dev) == pytest.approx(training.evaluate(dev), abs=1e-6)


@each_scorer
def test_micro_batches_give_the_gradient_of_the_whole_batch(scorer, checkpoint, pairs):
    """With texts of several lengths, dropout, hard negatives and a teacher; the pool of xtr is the whole batch."""
    data = with_negatives(pairs)
    whole, pieces = (start(checkpoint, data, configure(scorer, **DISTILLED, micro_batch=size)) for size in (None, 5))
    assert advance(pieces, 1)[0].loss == pytest.approx(advance(whole, 1)[0].loss, rel=1e-5)
    torch.testing.assert_close(gradients(pieces), gradients(whole), rtol=1e-3, atol=1e-5)


def test_a_micro_batch_has_the_same_dropout_when_it_is_embedded_again(checkpoint, pairs):
    training = start(checkpoint, pairs, configure("maxsim", micro_batch=5, learning_rate=1e-12), dropout=0.3)
    (batch,) = next(training.remaining())
    pieces = training._micro_batches(["mot1 mot2"] * 6, training.encoder.batch_queries, training.encoder.embed_queries, [0, 0])
    training.encoder.model.train()
    first, second = ([piece().vectors for piece in pieces] for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    assert not torch.equal(first[0][:1], first[1][:1])


def test_accumulated_batches_are_averaged(checkpoint, pairs):
    one = start(checkpoint, pairs, configure("maxsim", max_steps=6))
    two = start(checkpoint, pairs, configure("maxsim", max_steps=3, accumulate=2))
    first, second = (batches[0] for batches in islice(one.remaining(), 2))
    steps = list(two.remaining())
    assert len(steps) == 3 and [batch.queries.tolist() for batch in steps[0]] == [first.queries.tolist(), second.queries.tolist()]
    losses = []
    for batch in (first, second):
        alone = start(checkpoint, pairs, configure("maxsim"))
        losses.append(alone.run_step(batch).loss)
    assert two.run_step(first, second).loss == pytest.approx(sum(losses) / 2, rel=1e-5)
    same = start(checkpoint, pairs, configure("maxsim", max_steps=3))
    same.run_step(first, first)
    again = start(checkpoint, pairs, configure("maxsim", max_steps=3))
    again.run_step(first)
    torch.testing.assert_close(weights(same), weights(again), rtol=1e-4, atol=1e-5)


@each_scorer
def test_a_training_that_continues_reaches_the_uninterrupted_result(scorer, checkpoint, pairs, tmp_path):
    config, data = configure(scorer, accumulate=2, **DISTILLED), with_negatives(pairs)
    whole = start(checkpoint, data, config, dropout=0.1)
    curve = advance(whole, 4)
    half = start(checkpoint, data, config, dropout=0.1)
    advance(half, 2)
    half.save(tmp_path / "state.pt")
    torch.rand(5)
    again = start(checkpoint, data, config, dropout=0.1)
    again.load(tmp_path / "state.pt")
    assert advance(again, 2) == curve[2:]
    assert all(torch.equal(weights(again)[name], tensor) for name, tensor in weights(whole).items())


@each_scorer
def test_a_training_restores_the_number_of_threads(scorer, checkpoint, pairs, tmp_path, request):
    request.addfinalizer(lambda: torch.set_num_threads(1))
    config = configure(scorer, batch_size=32)
    torch.set_num_threads(2)
    whole = start(checkpoint, pairs, config)
    advance(whole, 1)
    whole.save(tmp_path / "state.pt")
    whole.evaluate(dev_set(pairs))
    curve = advance(whole, 2)
    torch.set_num_threads(1)
    again = start(checkpoint, pairs, config)
    assert again.load(tmp_path / "state.pt") == [
        "uses 2 threads a worker, as in its first run, and not 1, so that the result stays the same"
    ]
    assert advance(again, 2) == curve
    assert all(torch.equal(weights(again)[name], tensor) for name, tensor in weights(whole).items())
    torch.set_num_threads(2)
    assert again.load(tmp_path / "state.pt") == []


def test_continuing_a_training_with_another_number_of_workers_is_reported(checkpoint, pairs, tmp_path, monkeypatch):
    training = start(checkpoint, pairs, configure("maxsim"))
    training.save(tmp_path / "state.pt")
    monkeypatch.setattr(collectives, "num_workers", lambda: 3)
    assert training.load(tmp_path / "state.pt") == [
        "had 1 workers in its first run and has 3 now: the result differs by the rounding of sums"
    ]


def test_heads_and_temperatures_have_their_own_learning_rates(checkpoint, pairs):
    before = weights(start(checkpoint, pairs, configure("trial")))
    still = start(checkpoint, pairs, configure("trial", learning_rate=1e-12, head_learning_rate=1e-3))
    curve = advance(still, 3)
    after = weights(still)
    moved = {name for name in before if (after[name] - before[name]).abs().max() > 1e-6}
    assert moved and all(name.startswith("scorer.") for name in moved)
    assert {name.split(".")[1] for name in moved} == {"relation", "gate"}
    assert abs(curve[-1].temperature - curve[0].temperature) > 1e-4


@pytest.mark.parametrize("relation_weight", [0.0, 0.5])
def test_a_frozen_encoder_keeps_its_weights_while_heads_learn(checkpoint, pairs, relation_weight):
    settings = {"trial": {"relation_weight": relation_weight, "sides": "both"}, "freeze_encoder": True, "head_learning_rate": 1e-2}
    curves, moved = [], set()
    for micro_batch in (None, 5):
        training = start(checkpoint, pairs, configure("trial", micro_batch=micro_batch, **settings), dropout=0.3)
        before = weights(training)
        curves.append([record.loss for record in advance(training, 3)])
        moved = {name for name, tensor in weights(training).items() if not torch.equal(tensor, before[name])}
        assert all(name.startswith("scorer.") for name in moved) and moved
        assert all(name.startswith("scorer.") for name in gradients(training))
    assert {name.split(".")[1] for name in moved} == {"gate", "document_gate"} | ({"relation"} if relation_weight else set())
    assert curves[1] == pytest.approx(curves[0], rel=1e-4) and curves[0][-1] < curves[0][0]


def test_freezing_the_encoder_needs_a_scorer_with_heads(checkpoint, pairs):
    with pytest.raises(ConfigError, match="scorer maxsim has no heads to train with --freeze_encoder"):
        start(checkpoint, pairs, configure("maxsim", freeze_encoder=True))
    with pytest.raises(ConfigError, match="leave --projection_dim out"):
        start(checkpoint, pairs, configure("trial", freeze_encoder=True, projection_dim=8))


@pytest.mark.parametrize("products", [torch.bfloat16, torch.float16])
def test_training_with_short_dot_products_reaches_nearly_the_same_loss(checkpoint, pairs, products):
    for scorer in SCORERS:
        exact, rounded = (start(checkpoint, pairs, configure(scorer), products=dtype) for dtype in (torch.float32, products))
        assert advance(rounded, 1)[0].loss == pytest.approx(advance(exact, 1)[0].loss, rel=0.05)
        assert {tensor.dtype for tensor in weights(rounded).values() if tensor.is_floating_point()} == {torch.float32}


def test_a_step_with_overflowing_float16_gradients_is_skipped_and_the_scale_is_saved(checkpoint, pairs, tmp_path):
    training = start(checkpoint, pairs, configure("maxsim", max_steps=4), products=torch.float16)
    training._scaler.load_state_dict(training._scaler.state_dict() | {"scale": 2.0**60})
    before = weights(training)
    assert np.isfinite(advance(training, 1)[0].loss) and training.step == 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(training).items())
    training._scaler.load_state_dict(training._scaler.state_dict() | {"scale": 2.0**11})
    training.save(tmp_path / "state")
    again = start(checkpoint, pairs, configure("maxsim", max_steps=4), products=torch.float16)
    again.load(tmp_path / "state")
    assert again._scaler.get_scale() == 2.0**11
    curves = [advance(each, 3) for each in (training, again)]
    assert curves[0] == curves[1]
    after = weights(training)
    assert any(not torch.equal(tensor, before[name]) for name, tensor in after.items())
    assert all(torch.equal(tensor, after[name]) for name, tensor in weights(again).items())


def test_the_reported_loss_leaves_out_the_float16_scale(checkpoint, pairs):
    """Gradients are unscaled before clipping, so a step equals that of float32 except for rounding."""
    small = configure("maxsim", max_gradient_norm=1e-3, max_steps=1)
    exact, scaled = (start(checkpoint, pairs, small, products=dtype) for dtype in (torch.float32, torch.float16))
    assert scaled._scaler.get_scale() > 1000
    assert advance(scaled, 1)[0].loss == pytest.approx(advance(exact, 1)[0].loss, rel=0.05)
    ours, theirs = (torch.cat([each.flatten() for each in gradients(training).values()]) for training in (exact, scaled))
    assert torch.nn.functional.cosine_similarity(ours, theirs, dim=0) > 0.99 and 0 < theirs.norm() < 1.01e-3


def test_closed_gates_end_training_with_a_one_line_error(checkpoint, pairs):
    training = start(checkpoint, pairs, configure("trial"))
    record = advance(training, 1)[0]
    assert 0.5 < record.query_weight < 1.5
    with torch.no_grad():
        training.encoder.model.scorer.gate.outer.bias.fill_(-100)
    with pytest.raises(ConfigError, match="all gates are 0 at step 2, .*start again with a lower --head_learning_rate"):
        advance(training, 1)


def test_a_too_small_pool_ends_training_with_a_one_line_error(checkpoint, pairs):
    training = start(checkpoint, pairs, configure("xtr", xtr={"k_train": [500]}))
    with pytest.raises(ConfigError, match="--xtr.k_train 500 exceeds the 128 document tokens of a batch"):
        advance(training, 1)


def test_a_checkpoint_of_another_scorer_cannot_start_a_training(checkpoint, pairs):
    encoder = load_encoder(EncoderConfig(checkpoint=str(checkpoint)), 0, "cpu").with_scorer("trial")
    with pytest.raises(ConfigError, match="was trained for scorer trial"):
        Training(encoder, pairs, configure("attention"))


def test_two_workers_train_like_one_with_every_scorer(checkpoint, pairs, tmp_path):
    """The pool of xtr, the attention weights, the gradient cache and the dev set span all workers."""
    data, expected = with_negatives(pairs), {}
    for scorer in SCORERS:
        alone = start(checkpoint, data, configure(scorer, **DISTILLED))
        ndcg = alone.evaluate(dev_set(pairs))
        expected[scorer] = (advance(alone, 1)[0].loss, gradients(alone), ndcg)
    mp.spawn(_work, (2, str(tmp_path), str(checkpoint), pairs), nprocs=2)
    shared = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in (0, 1)]
    for scorer, (loss, tensors, ndcg) in expected.items():
        for worker in shared:
            assert worker[scorer][0] == pytest.approx(loss, rel=1e-5)
            torch.testing.assert_close(worker[scorer][1], tensors, rtol=1e-3, atol=1e-5)
            assert worker[scorer][2] == pytest.approx(ndcg, abs=0.01)
        assert shared[0][scorer][2] == shared[1][scorer][2]
        assert all(torch.equal(shared[0][scorer][3][name], tensor) for name, tensor in shared[1][scorer][3].items())


def _work(rank: int, num_workers: int, folder: str, checkpoint: str, pairs: TrainingData) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=num_workers)
    found = {}
    for scorer in SCORERS:
        training = start(Path(checkpoint), with_negatives(pairs), configure(scorer, **DISTILLED, micro_batch=5))
        ndcg = training.evaluate(dev_set(pairs))
        found[scorer] = (advance(training, 1)[0].loss, gradients(training), ndcg, weights(training))
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_a_dev_set_counts_what_an_exact_search_finds(checkpoint, pairs):
    encoder = start(checkpoint, pairs, configure("maxsim")).encoder
    dev = dev_set(pairs)
    queries, documents = encoder.encode_queries(list(pairs.queries)), encoder.encode_documents(list(pairs.documents))
    gains = []
    for query, ((own,),) in zip(queries, pairs.lists_by_query(), strict=True):
        scores = np.array([(query.astype(np.float32) @ document.T.astype(np.float32)).max(1).sum() for document in documents])
        place = int((scores > scores[own]).sum())
        gains.append(1 / np.log2(place + 2) if place < 10 else 0.0)
    assert ndcg_at_10(encoder, dev) == pytest.approx(np.mean(gains), abs=0.01)


def test_a_fresh_projection_is_trained_saved_and_the_same_for_a_seed(checkpoint, pairs, tmp_path):
    config = configure("trial", projection_dim=8)
    one, two = (start(checkpoint, pairs, config) for _ in range(2))
    assert one.encoder.contract.dim == 8 and one.encoder.contract.fingerprint == two.encoder.contract.fingerprint
    before = weights(one)
    advance(one, 1)
    assert not torch.equal(weights(one)["projections.0.linear.weight"], before["projections.0.linear.weight"])
    one.encoder.save(tmp_path / "saved")
    assert start(tmp_path / "saved", pairs, config).encoder.contract.dim == 8
    with pytest.raises(ConfigError, match="has a trained projection to 8 dimensions; set --projection_dim 8 or none"):
        start(tmp_path / "saved", pairs, configure("trial", projection_dim=4))


@pytest.mark.parametrize(("sides", "heads"), [("both", {"gate", "document_gate"}), ("documents", {"document_gate"}), ("none", set())])
def test_every_gate_of_trial_learns(sides, heads, checkpoint, pairs):
    training = start(checkpoint, pairs, configure("trial", trial={"sides": sides}, max_steps=1))
    advance(training, 1)
    moved = {name.split(".")[1] for name, each in gradients(training).items() if name.startswith("scorer.") and each.any()}
    assert moved - {"relation"} == heads


def test_closed_document_gates_stop_a_training(checkpoint, pairs):
    training = start(checkpoint, pairs, configure("trial", trial={"sides": "documents"}))
    torch.nn.init.constant_(training.encoder.model.scorer.document_gate.outer.bias, -100)
    with pytest.raises(ConfigError, match="all gates are 0"):
        advance(training, 1)


def frozen_names(training: Training, trained_layers: int) -> set[str]:
    """Names of the weights of the embedding layer and of all but the last layers."""
    backbone = training.encoder.model.backbone
    first = len(backbone.encoder.layer) - trained_layers
    parts = {"backbone.embeddings": backbone.embeddings, **{f"backbone.encoder.layer.{n}": backbone.encoder.layer[n] for n in range(first)}}
    return {f"{prefix}.{name}" for prefix, part in parts.items() for name, _ in part.named_parameters()}


@pytest.mark.parametrize("trained_layers", [0, 1])
@each_scorer
def test_training_the_last_layers_equals_a_full_pass_through_frozen_layers(scorer, trained_layers, checkpoint, pairs):
    settings = {**DISTILLED, "projection_dim": 8, "micro_batch": 5}
    data = with_negatives(pairs)
    part = start(checkpoint, data, configure(scorer, trained_layers=trained_layers, **settings))
    whole = start(checkpoint, data, configure(scorer, **settings))
    frozen, before = frozen_names(part, trained_layers), weights(part)
    for name, parameter in whole.encoder.model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    losses = [[record.loss for record in advance(training, 3)] for training in (part, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    after, reference = weights(part), weights(whole)
    assert frozen and all(torch.equal(after[name], before[name]) for name in frozen)
    assert any(name.startswith("projections") for name in after if not torch.equal(after[name], before[name]))
    assert trained_layers == any("encoder.layer.1." in name for name in after if not torch.equal(after[name], before[name]))
    torch.testing.assert_close(after, reference, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("scorer", ["maxsim", "attention"])
def test_hidden_states_that_are_kept_equal_those_computed_again(scorer, checkpoint, pairs, tmp_path):
    config = configure(scorer, trained_layers=1, accumulate=2)
    keeping, whole = (start(checkpoint, pairs, config, dropout=0.1) for _ in range(2))
    forgetful = start(checkpoint, pairs, config, dropout=0.1)
    network = forgetful.encoder.model
    forgetful._frozen._max_bytes = 0
    assert network.transformer.func is forgetful._frozen
    curve = advance(whole, 4)
    assert advance(forgetful, 4) == curve
    advance(keeping, 2)
    keeping.save(tmp_path / "state.pt")
    again = start(checkpoint, pairs, config, dropout=0.1)
    again.load(tmp_path / "state.pt")
    assert advance(again, 2) == curve[2:]
    for other in (again, forgetful):
        assert all(torch.equal(weights(other)[name], tensor) for name, tensor in weights(whole).items())
    assert whole._frozen._kept and not forgetful._frozen._kept


def test_frozen_layers_of_one_training_serve_another(checkpoint, pairs):
    config = configure("attention", trained_layers=0, projection_dim=8)
    alone = start(checkpoint, pairs, config)
    curve = advance(alone, 2)
    maxsim = start(checkpoint, pairs, configure("maxsim", trained_layers=0, projection_dim=8))
    shared = FrozenLayers(maxsim.encoder.model, 0, attention=True)
    for settings in (maxsim.config, config):
        encoder = load_encoder(EncoderConfig(checkpoint=str(checkpoint)), settings.seed, "cpu")
        training = Training(encoder, pairs, settings, frozen=shared)
        assert (advance(training, 2) == curve) == (settings is config)


def test_trained_layers_that_do_not_fit_the_model_are_refused(checkpoint, pairs):
    with pytest.raises(ConfigError, match="--trained_layers 2 freezes no layer: the model has 2; give fewer"):
        start(checkpoint, pairs, configure("maxsim", trained_layers=2))
    with pytest.raises(ConfigError, match="--trained_layers 0 leaves nothing to train: the model has no projection; add --projection_dim"):
        start(checkpoint, pairs, configure("maxsim", trained_layers=0))
    with pytest.raises(ValueError, match="freeze_encoder trains the scorer's heads only; leave trained_layers out"):
        configure("trial", trained_layers=1, freeze_encoder=True)
    encoder = load_encoder(EncoderConfig(checkpoint=str(checkpoint)), 0, "cpu")
    encoder.model.backbone.encoder = torch.nn.Identity()
    with pytest.raises(ConfigError, match="--trained_layers needs a model with layers like BERT's, and bert has others; leave it out"):
        FrozenLayers(encoder.model, 1)
