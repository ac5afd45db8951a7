"""The cache of training data: one process writes an entry once, entries in use stay, and no partial entry is visible."""

import os
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ray_lir.base.config import TrainingSource
from ray_lir.base.errors import ConfigError, FormatError
from ray_lir.storage.manifest import MANIFEST
from ray_lir.training import data_cache
from ray_lir.training.data_cache import UNUSED_S, cached_training_data
from tests.support.corpora import write_rows

ROWS = [{"query": f"query {number % 40}", "documents": [f"text {number} {'of a document ' * 30}", "another"]} for number in range(400)]


@pytest.fixture
def source(tmp_path: Path) -> TrainingSource:
    return TrainingSource(examples=write_rows(tmp_path / "examples.jsonl", ROWS))


@pytest.fixture
def writes(monkeypatch) -> list[str]:
    """Return a list that grows by one whenever a source is read."""
    calls: list[str] = []
    original = data_cache.write_training_data

    def counted(source, files, folder):
        calls.append(source.examples)
        time.sleep(0.2)
        return original(source, files, folder)

    monkeypatch.setattr(data_cache, "write_training_data", counted)
    return calls


def digest_of(source: TrainingSource, cache: Path) -> str:
    with cached_training_data(source, str(cache)) as cached:
        assert len(cached.open().queries) == cached.manifest.queries == 40
        return cached.open().digest()


def test_training_data_is_read_again_only_if_its_source_changes(tmp_path, source, writes):
    before = digest_of(source, tmp_path / "cache")
    assert digest_of(source, tmp_path / "cache") == before and len(writes) == 1
    write_rows(Path(source.examples), [*ROWS, ROWS[0]])
    assert digest_of(source, tmp_path / "cache") != before and len(writes) == 2


def test_one_of_several_processes_writes_while_the_others_wait(tmp_path, source, writes):
    with ThreadPoolExecutor(4) as pool:  # each call locks through its own file handle, like a process
        found = set(pool.map(lambda _: digest_of(source, tmp_path / "cache"), range(4)))
    assert len(found) == len(writes) == 1


def test_two_trainings_share_the_cached_data(tmp_path, source, writes):
    with cached_training_data(source, str(tmp_path / "cache")) as first, cached_training_data(source, str(tmp_path / "cache")) as second:
        assert first == second and len(writes) == 1


def test_a_damaged_file_is_written_again(tmp_path, source, writes, caplog):
    before = digest_of(source, tmp_path / "cache")
    (documents,) = (tmp_path / "cache").rglob("documents.arrow")
    content = documents.read_bytes()
    documents.write_bytes(content.replace(b"text 17 ", b"text 99 "))
    assert digest_of(source, tmp_path / "cache") == before and len(writes) == 2
    assert documents.read_bytes() == content and "are damaged and are written again" in caplog.text


def test_files_of_a_killed_writer_are_removed(tmp_path, source, writes):
    digest_of(source, tmp_path / "cache")
    (entry,) = (tmp_path / "cache").iterdir()
    (entry / MANIFEST).unlink()  # as if a process had been killed before the rename
    (entry / ".attempt-1").mkdir()
    (entry / ".attempt-1" / "documents.arrow").write_bytes(b"half")
    digest_of(source, tmp_path / "cache")
    assert len(writes) == 2 and not (entry / ".attempt-1").exists() and len(list(entry.iterdir())) == 2


def test_an_invalid_source_leaves_no_output(tmp_path, source):
    write_rows(Path(source.examples), [ROWS[0], {"query": "q"}])
    with pytest.raises(FormatError, match="examples.jsonl:2"):
        digest_of(source, tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_the_least_recently_used_cache_entries_are_evicted(tmp_path, source):
    cache, long_ago = tmp_path / "cache", time.time() - UNUSED_S - 60
    sources = [
        TrainingSource(examples=write_rows(tmp_path / f"{name}.jsonl", [*ROWS, row])) for name, row in zip("abcd", ROWS, strict=False)
    ]
    for old in sources[:3]:
        digest_of(old, cache)
    entries = {path.name for path in cache.iterdir()}
    with cached_training_data(sources[0], str(cache)) as used:
        for path in [*cache.iterdir(), *cache.glob(f"*/{MANIFEST}")]:
            os.utime(path, (long_ago, long_ago))
        digest_of(sources[1], cache)  # the entry exists: nothing is written or removed, and it counts as used
        assert {path.name for path in cache.iterdir()} == entries
        digest_of(sources[3], cache)
        assert used.folder.exists() and len(entries & {path.name for path in cache.iterdir()}) == 2
        assert len(used.open().documents) == 401


def test_a_full_disk_is_a_one_line_error_and_the_repeated_call_continues(tmp_path, source):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=120k", "tmpfs", str(disk)], capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small disk")
    try:
        with pytest.raises(
            ConfigError, match=f"cannot write training data to {disk}/.*No space left on device; free space.*--data_cache"
        ) as error:
            digest_of(source, disk)
        assert "\n" not in str(error.value) and not [path for path in disk.rglob("*") if path.is_file()]
        subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
        digest_of(source, disk)
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
