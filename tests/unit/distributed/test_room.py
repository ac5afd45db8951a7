"""The resources that a cluster lacks for a job, in one line."""

import pytest

from ray_lir.distributed.room import Demand, what_is_missing

NODES = [{"CPU": 4.0, "GPU": 1.0}, {"CPU": 2.0}]


@pytest.mark.parametrize(
    ("demands", "problem"),
    [
        ([Demand("worker", {"CPU": 2, "GPU": 1})], None),
        ([Demand("worker", {"CPU": 3}, 2)], None),
        ([Demand("encoder", {"GPU": 2})], "each encoder needs 2 GPUs, but the Ray cluster has 1"),
        ([Demand("encoder", {"CPU": 5})], "each encoder needs 5 CPUs, but the Ray cluster has 6, and no machine more than 4"),
        ([Demand("encoder", {"GPU": 0.6}, 2)], "1.2 GPUs are needed (2 x encoder with 0.6), but the Ray cluster has 1"),
        ([Demand("encoder", {"CPU": 4}), Demand("group", {"CPU": 1}, 3)], "7 CPUs are needed"),
        ([Demand("encoder", {"CPU": 0})], None),
    ],
)
def test_a_missing_dataset_file_is_named_with_the_existing_ones(demands, problem):
    found = what_is_missing(demands, NODES)
    assert (found is None) if problem is None else found.startswith(problem)


def test_large_fractions_need_a_card_each_and_small_ones_of_one_group_a_machine_each():
    assert what_is_missing([Demand("group", {"GPU": 0.6}, 3)], [{"GPU": 2.0}]) == (
        "3 x group with 0.6 GPUs need a card each, but the Ray cluster has 2"
    )
    assert what_is_missing([Demand("group", {"GPU": 0.6}, 2)], [{"GPU": 2.0}]) is None
    assert what_is_missing([Demand("group", {"GPU": 0.5}, 2, machines=2)], [{"GPU": 2.0}, {"CPU": 2.0}]) == (
        "the replicas of a group need 2 machines with 0.5 GPUs, but the Ray cluster has 1"
    )
    assert (
        what_is_missing([Demand("task", {"GPU": 1})], [{"GPU": 0.5}], "free") == "each task needs 1 GPUs, but the Ray cluster has 0.5 free"
    )


def test_a_gpu_is_refused_on_a_cluster_without_machines():
    assert what_is_missing([Demand("encoder", {"GPU": 0.5})], []) == "each encoder needs 0.5 GPUs, but the Ray cluster has 0"
