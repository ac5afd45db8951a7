"""Two concurrent jobs on one output: the output of the successful job is complete, and the other job reports why it failed."""

import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from ray_lir import storage
from ray_lir.base.config import CodecConfig, EncoderConfig, IndexConfig
from ray_lir.base.errors import ConfigError, Conflict, RayLirError
from ray_lir.building.build import build_index
from ray_lir.building.compact import compact_index
from ray_lir.building.publishing import remove_versions, version_numbers
from ray_lir.building.update import update_index
from ray_lir.building.workspace import GARBAGE, WORKSPACES
from ray_lir.distributed.train import _claim
from ray_lir.embeddings.folder import content_digest, documents_table, external_contract, save_embeddings
from ray_lir.embeddings.manifest import EmbeddingsManifest
from ray_lir.embeddings.token_embeddings import TokenEmbeddings
from ray_lir.encoder.corpus_encoder import Plan, encode_corpus, encode_in_process
from ray_lir.index.manifest import listed_names
from ray_lir.index.versions import latest_version, read_version
from ray_lir.search.searcher import Searcher
from ray_lir.storage.concurrent_writes import OutputFile, sole_writer
from ray_lir.storage.manifest import MANIFEST, check_file, files_of, read_manifest
from tests.support.checkpoints import put_together
from tests.support.corpora import write_rows
from tests.support.s3_servers import as_endpoint, make_bucket, moto_server
from tests.support.synthetic import collection

REPETITIONS = 3
several_repetitions = pytest.mark.parametrize("repetition", range(REPETITIONS))


@pytest.fixture(scope="module", params=["disk", "s3"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], str]]:
    """Return a function that creates folders, on a disk or in a bucket."""
    numbers = count()
    if request.param == "disk":
        folder = tmp_path_factory.mktemp("outputs")
        yield lambda: str(folder / str(next(numbers)))
        return
    with pytest.MonkeyPatch.context() as patch, moto_server() as server, as_endpoint(server, patch):
        bucket = make_bucket()
        yield lambda: f"{bucket}/{next(numbers)}"


def documents(seed: int, num_docs: int = 60) -> TokenEmbeddings:
    plain = collection(num_docs, seed=seed, max_tokens=12)
    return TokenEmbeddings.of([plain[number] for number in range(num_docs)], [f"{seed}-{number}" for number in range(num_docs)])


def meeting(barrier: Barrier) -> Callable[..., Iterable[Any]]:
    """Return a map that waits for the other job in its first call."""
    met = []

    def meet(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterable[Any]:
        if not met:
            met.append(barrier.wait(60))
        return map(function, items)

    return meet


def at_once(*jobs: Callable[[], Any]) -> list[Any]:
    """Return each job's result or error."""

    def outcome(job: Callable[[], Any]) -> Any:
        try:
            return job()
        except RayLirError as error:
            return error

    with ThreadPoolExecutor(len(jobs)) as pool:
        return list(pool.map(outcome, jobs))


def is_error(outcome: Any) -> bool:
    return isinstance(outcome, RayLirError)


def check_whole(index: str) -> Searcher:
    """Assert that every file of every version exists."""
    for number in version_numbers(index):
        for entry in files_of(read_version(index, number)):
            check_file(index, entry, content=True)
    if storage.is_local(index):
        return Searcher.open(index, verify=True)
    with tempfile.TemporaryDirectory() as folder:
        storage.download(index, Path(folder))
        return Searcher.open(folder, verify=True)


@several_repetitions
def test_one_of_two_concurrent_builds_is_published_and_the_other_refused(place, repetition):
    index, barrier = place(), Barrier(2)
    seeds = (2 * repetition, 2 * repetition + 1)
    outcomes = at_once(*(lambda seed=seed: build_index(documents(seed), index, map=meeting(barrier)) for seed in seeds))
    assert sorted(map(is_error, outcomes)) == [False, True], outcomes
    (error,) = filter(is_error, outcomes)
    assert "another" in str(error) or "other embeddings" in str(error)
    winner = seeds[is_error(outcomes[0])]
    searcher = check_whole(index)
    assert len(searcher.find([f"{winner}-{number}" for number in range(60)])) == 60
    assert read_version(index).num_docs == 60
    assert WORKSPACES not in storage.list_names(index)


def test_one_of_two_concurrent_build_configurations_is_published(place):
    folder = place()
    save_embeddings(folder, documents(1))
    index, barrier = place(), Barrier(2)
    configs = [IndexConfig(codec=CodecConfig(nbits=nbits)) for nbits in (2, 4)]
    outcomes = at_once(*(lambda config=config: build_index(folder, index, config, map=meeting(barrier)) for config in configs))
    assert sorted(map(is_error, outcomes)) == [False, True], outcomes
    (manifest,) = (outcome for outcome in outcomes if not is_error(outcome))
    assert read_version(index) == manifest
    check_whole(index)
    listed = listed_names(manifest)
    assert {f"shards/{name}" for name in storage.list_names(storage.join(index, "shards"))} <= listed


@several_repetitions
def test_two_concurrent_equal_builds_both_return_the_index(place, repetition):
    index, barrier = place(), Barrier(2)
    outcomes = at_once(*(lambda: build_index(documents(1), index, map=meeting(barrier)) for _ in range(2)))
    assert outcomes[0] == outcomes[1] == read_version(index)
    check_whole(index)


def test_embeddings_in_memory_have_a_digest_of_everything_saved():
    plain, other_vectors = documents(1), documents(2)
    ids = plain.doc_ids
    tables = [documents_table(ids), documents_table(ids, texts=["text"] * 60), documents_table(ids, titles=["text"] * 60)]
    digests = [content_digest(plain, table) for table in tables]
    digests += [content_digest(other_vectors, tables[0]), content_digest(plain, tables[0], external_contract(plain.dim))]
    assert len(set(digests)) == 5 and content_digest(documents(1), documents_table(ids)) == digests[0]


def test_a_build_keeps_the_garbage_list_of_an_interrupted_removal(place):
    index = place()
    build_index(documents(1), index)
    storage.write_bytes(storage.join(index, WORKSPACES, GARBAGE), b'["codec/lost"]')
    build_index(documents(1), index)
    assert storage.exists(storage.join(index, WORKSPACES, GARBAGE))


@several_repetitions
@pytest.mark.parametrize("second", ["update", "compact"])
def test_one_of_two_concurrent_changes_is_published_and_the_other_refused(place, second, repetition):
    index, barrier = place(), Barrier(2)
    build_index(documents(1), index)
    update_index(index, delete=["1-0"])
    others = {
        "update": lambda: update_index(index, documents(3, 5), ["1-2"], map=meeting(barrier)),
        "compact": lambda: compact_index(index, map=meeting(barrier)),
    }
    outcomes = at_once(lambda: update_index(index, documents(2, 5), ["1-1"], map=meeting(barrier)), others[second])
    assert sorted(map(is_error, outcomes)) == [False, True], outcomes
    (error,) = filter(is_error, outcomes)
    assert isinstance(error, Conflict) and "another" in str(error)
    searcher = check_whole(index)
    assert latest_version(index) == 3
    found = set(searcher.find(["1-1", "1-2", "2-0", "3-0"]))
    assert found == ({"1-2", "2-0"} if not is_error(outcomes[0]) else {"1-1", "3-0"} if second == "update" else {"1-1", "1-2"})


@several_repetitions
def test_two_concurrent_equal_updates_from_memory_are_made_once(place, repetition):
    index = place()
    build_index(documents(1), index)
    barrier = Barrier(2)
    outcomes = at_once(*(lambda: update_index(index, documents(2, 5), map=meeting(barrier)) for _ in range(2)))
    assert not any(map(is_error, outcomes)), outcomes
    assert {"2-0", "2-4"} == set(check_whole(index).find(["2-0", "2-4"]))


def test_removing_old_versions_keeps_files_of_new_versions(place):
    index = place()
    build_index(documents(1), index)
    for _ in range(REPETITIONS):  # each repetition ends with the documents of the first version, so files of equal content return
        update_index(index, documents(2, 5))
        update_index(index, delete=[f"2-{number}" for number in range(5)])
        barrier = Barrier(3)

        def remove(barrier: Barrier = barrier) -> Any:
            barrier.wait(60)
            return remove_versions(index, keep=1)

        outcomes = at_once(remove, remove, lambda barrier=barrier: compact_index(index, map=meeting(barrier)))
        assert not any(map(is_error, outcomes)), outcomes
        check_whole(index)
        assert read_version(index).num_docs == 60


def test_one_of_two_concurrent_encodings_is_published_and_the_other_refused(place, tmp_path):
    checkpoint = put_together("sentence_transformers", "fixed", tmp_path / "checkpoint")
    corpora = [write_rows(tmp_path / f"{name}.jsonl", [{"_id": f"{name}-{n}", "text": f"text {n}"} for n in range(3)]) for name in "ab"]
    output, barrier = place(), Barrier(2)

    def spread(plan: Plan) -> Iterator[Any]:
        barrier.wait(60)
        return encode_in_process(plan)

    encode = [
        lambda corpus=str(corpus): encode_corpus(corpus, output, EncoderConfig(checkpoint=checkpoint), spread=spread) for corpus in corpora
    ]
    outcomes = at_once(*encode)
    assert sorted(map(is_error, outcomes)) == [False, True], outcomes
    (error,) = filter(is_error, outcomes)
    assert "another corpus or configuration" in str(error)
    (result,) = (outcome for outcome in outcomes if not is_error(outcome))
    manifest = read_manifest(storage.join(output, MANIFEST), EmbeddingsManifest, "jobs.encode")
    assert manifest == result.manifest
    for entry in files_of(manifest):
        check_file(output, entry, content=True)


def test_one_of_several_writers_of_an_output_file_succeeds(place):
    for overwrite in (False, True):
        url = place() + "/run.trec"
        if overwrite:
            if not storage.is_local(url):
                continue
            storage.write_bytes(url, b"before")
        outputs = [OutputFile.check(url, "--run", overwrite) for _ in range(8)]

        def write(number: int, outputs: list[OutputFile] = outputs) -> int:
            outputs[number].write(f"writer {number}".encode())
            return number

        outcomes = at_once(*(lambda number=number: write(number) for number in range(8)))
        (winner,) = (outcome for outcome in outcomes if not is_error(outcome))
        assert storage.read_bytes(url) == f"writer {winner}".encode()
        assert all("another job wrote" in str(error) for error in outcomes if is_error(error))


def test_an_unwritable_output_file_is_refused_before_the_search(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write to"):
        OutputFile.check(str(tmp_path / "file" / "run"), "--run")
    with pytest.raises(ConfigError, match="--run .* is a folder"):
        OutputFile.check(str(tmp_path), "--run")
    with pytest.raises(ConfigError, match="exists already; give another --run, or set --overwrite true"):
        OutputFile.check(str(tmp_path / "file"), "--run", False)
    with pytest.raises(ConfigError, match="shorter"):
        OutputFile.check(str(tmp_path / ("n" * 240)), "--run")
    with pytest.raises(ConfigError, match="cannot write to"):
        OutputFile.check("/proc/run", "--run")
    OutputFile.check(str(tmp_path / "new" / "folder" / "run"), "--run")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_missing_bucket_is_refused_before_encoding(place):
    url = place()
    if storage.is_local(url):
        pytest.skip("only object stores have buckets")
    with pytest.raises(ConfigError, match="cannot write to s3://no-such-bucket-here"):
        OutputFile.check("s3://no-such-bucket-here/run", "--run")
    OutputFile.check(f"{url}/run", "--run")
    assert storage.list_names(url) == []


def test_one_of_two_concurrent_trainings_claims_the_output(place):
    output = place()
    outcomes = at_once(*(lambda seed=seed: _claim(output, {"seed": seed}) for seed in range(6)))
    assert sum(outcome is False for outcome in outcomes) == 1, outcomes
    assert all("another training began at the same time" in str(error) for error in outcomes if is_error(error))
    assert _claim(output, {"seed": outcomes.index(False)}) is False  # it continues after a kill


def test_one_process_at_a_time_trains_into_a_folder(tmp_path: Path):
    with sole_writer(str(tmp_path)), pytest.raises(Conflict, match="another process is writing to"), sole_writer(str(tmp_path)):
        pass
    with sole_writer(str(tmp_path)):
        pass
