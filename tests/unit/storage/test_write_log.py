"""The write log: durable, in one order for all appenders, each idempotency key applied once, damage reported."""

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from ray_lir import storage
from ray_lir.base.errors import ConfigError, Conflict, FormatError
from ray_lir.storage import write_log
from ray_lir.storage.write_log import FRESH_S, KEPT_S, Appended, LoggedWrite, WriteLog, batch_url, read_batches
from tests.unit.storage.test_s3 import bucket  # noqa: F401


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def write(doc_id: str = "a", key: str | None = None, text: str = "some text") -> LoggedWrite:
    return LoggedWrite(key=key, body_digest=doc_id + text, answer={"accepted": 1}, documents=({"_id": doc_id, "text": text},))


def make_log(index: Path | str, published: Callable[[], int] = lambda: 0, clock: Clock | None = None) -> WriteLog:
    return WriteLog(str(index), published, clock or Clock())


def logged(index: Path | str, after: int = 0) -> list[str]:
    """Ids of the documents in the log, in order."""
    _, batches = read_batches(str(index), after, 10**6)
    return [document["_id"] for batch in batches for each in batch.writes for document in each.documents]


def positions(results: list[Appended | Conflict]) -> list[int]:
    return [each.position for each in results if isinstance(each, Appended)]


def test_batches_are_read_in_the_order_in_which_they_were_appended(tmp_path):
    log = make_log(tmp_path)
    assert positions(log.append([write("a"), write("b")])) == [1, 1] and positions(log.append([write("c")])) == [2]
    assert logged(tmp_path) == ["a", "b", "c"] and logged(tmp_path, 1) == ["c"] and read_batches(str(tmp_path), 2, 9) == (2, [])
    assert read_batches(str(tmp_path), 0, 1)[0] == 1  # reading ends after the batch that reaches the limit
    assert log.unpublished()[0] == 3
    log.note_published(1)
    assert log.unpublished()[0] == 1


def test_appenders_of_several_processes_never_share_or_skip_a_position(tmp_path):
    logs = [make_log(tmp_path) for _ in range(4)]
    found: list[list[int]] = [[] for _ in logs]

    def append(number: int) -> None:
        for count in range(15):
            found[number] += positions(logs[number].append([write(f"{number}-{count}")]))

    threads = [threading.Thread(target=append, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(position for each in found for position in each) == list(range(1, 61))
    assert len(set(logged(tmp_path))) == len(logged(tmp_path)) == 60
    for number in range(4):  # each appender's writes keep their order
        assert [doc_id for doc_id in logged(tmp_path) if doc_id.startswith(f"{number}-")] == [f"{number}-{count}" for count in range(15)]


def test_a_key_is_applied_once_for_all_appenders_and_after_a_restart(tmp_path):
    first, second = make_log(tmp_path), make_log(tmp_path)
    second.look()
    assert first.append([write("a", "key"), write("a", "key")]) == [Appended(1, {"accepted": 1}, True), Appended(1, {"accepted": 1}, False)]
    assert second.append([write("a", "key"), write("b")]) == [Appended(1, {"accepted": 1}, False), Appended(2, {"accepted": 1}, True)]
    [conflict, other] = make_log(tmp_path).append([write("a", "key", "another text"), write("c", "other")])
    assert isinstance(conflict, Conflict) and "was used with another request" in str(conflict)
    assert other == Appended(3, {"accepted": 1}, True) and logged(tmp_path) == ["a", "b", "c"]


def test_a_killed_append_leaves_nothing(tmp_path):
    log = make_log(tmp_path)
    log.append([write("a")])
    (tmp_path / "writes" / ".00000000000000000002.json.0123").write_bytes(b"half of a bat")
    assert logged(tmp_path) == ["a"] and positions(make_log(tmp_path).append([write("b")])) == [2]


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-7], lambda data: data[:30], lambda data: b"", lambda data: data.replace(b"some", b"SOME")]
)
def test_a_truncated_or_altered_batch_stops_readers_and_appenders_until_it_is_skipped_by_hand(tmp_path, damage):
    log = make_log(tmp_path)
    for doc_id in "abc":
        log.append([write(doc_id)])
    file = Path(batch_url(str(tmp_path / "writes"), 2))
    file.write_bytes(damage(file.read_bytes()))
    for use in (lambda: logged(tmp_path, 1), lambda: make_log(tmp_path).append([write("d")])):
        with pytest.raises(FormatError, match="00002.json: expected a batch of writes, .*write the word skip into it"):
            use()
    file.write_text("skip\n")
    assert logged(tmp_path) == ["a", "c"] and positions(make_log(tmp_path).append([write("d")])) == [4]


def test_a_missing_batch_is_reported(tmp_path):
    log = make_log(tmp_path)
    for doc_id in "abc":
        log.append([write(doc_id)])
    os.remove(batch_url(str(tmp_path / "writes"), 2))
    assert read_batches(str(tmp_path), 0, 99)[0] == 1
    for use in (lambda: logged(tmp_path, 1), lambda: make_log(tmp_path).look()):
        with pytest.raises(FormatError, match="00002.json: expected a batch of writes, found no such file"):
            use()


def test_a_full_disk_refuses_the_write_and_the_next_one_succeeds(tmp_path, monkeypatch):
    log = make_log(tmp_path)
    log.append([write("a")])

    def full(url: str, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), url)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_bytes", full)
        with pytest.raises(ConfigError, match="No space left on device"):
            log.append([write("b", "key")])
    assert logged(tmp_path) == ["a"]
    assert log.append([write("b", "key")]) == [Appended(2, {"accepted": 1}, True)]


def test_a_stored_write_is_found_by_its_key_although_its_append_failed(tmp_path, monkeypatch):
    log = make_log(tmp_path)

    def lost(root: str) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), root)

    with monkeypatch.context() as patch:
        patch.setattr(write_log, "_sync_folder", lost)
        with pytest.raises(ConfigError, match="Input/output error"):
            log.append([write("a", "key")])
    assert log.append([write("a", "key")]) == [Appended(1, {"accepted": 1}, False)] and logged(tmp_path) == ["a"]


def test_published_batches_are_removed_after_a_while_and_their_keys_stay(tmp_path):
    clock = Clock()
    log = make_log(tmp_path, clock=clock)
    for doc_id in "abc":
        log.append([write(doc_id, f"key-{doc_id}")])
    log.note_published(2)
    clock.now += KEPT_S - 1
    assert log.remove_published() == 0
    clock.now += 2
    assert log.remove_published() == 2 and logged(tmp_path, 2) == ["c"]
    again = make_log(tmp_path, lambda: 2)
    assert again.append([write("a", "key-a"), write("c", "key-c"), write("d")]) == [
        Appended(1, {"accepted": 1}, False),
        Appended(3, {"accepted": 1}, False),
        Appended(4, {"accepted": 1}, True),
    ]


def test_an_appender_that_slept_does_not_use_a_removed_position_again(tmp_path):
    clock, published = Clock(), 0
    sleeper, other = (make_log(tmp_path, lambda: published, clock) for _ in range(2))
    sleeper.append([write("a")])
    other.append([write("b")])
    published = 2
    other.note_published(2)
    clock.now += KEPT_S + 1
    assert other.remove_published() == 2
    assert positions(sleeper.append([write("c")])) == [3]


def test_an_append_that_took_too_long_is_not_confirmed(tmp_path, monkeypatch):
    clock = Clock()
    log = make_log(tmp_path, clock=clock)

    def slow(root: str) -> None:
        clock.now += KEPT_S - FRESH_S + 1

    monkeypatch.setattr(write_log, "_sync_folder", slow)
    with pytest.raises(ConfigError, match="it is unknown whether the write was kept"):
        log.append([write("a")])


def test_writes_that_a_lost_version_held_are_skipped_with_a_warning(tmp_path, caplog):
    """LATEST was set back by hand, and the log no longer holds what the newer version held."""
    clock = Clock()
    log = make_log(tmp_path, clock=clock)
    for doc_id in "abc":
        log.append([write(doc_id)])
    log.note_published(2)
    clock.now += KEPT_S + 1
    log.remove_published()
    assert logged(tmp_path, 0) == ["c"] and "writes 1 to 2 were published in a version that is no longer there" in caplog.text
    assert positions(make_log(tmp_path, lambda: 0).append([write("d")])) == [4]


def test_a_new_log_continues_after_the_published_position(tmp_path):
    """The folder of the log was lost, and the versions were not."""
    assert positions(make_log(tmp_path, lambda: 7).append([write("a")])) == [8]


def test_the_log_on_an_object_store_is_the_same(bucket):  # noqa: F811
    index = f"{bucket}/index"
    clock = Clock()
    logs = [make_log(index, lambda: 0, clock) for _ in range(2)]
    assert positions(logs[0].append([write("a", "key"), write("b")])) == [1, 1]
    assert positions(logs[1].append([write("c")])) == [2] and positions(logs[0].append([write("d")])) == [3]
    assert logs[1].append([write("a", "key")]) == [Appended(1, {"accepted": 1}, False)]
    assert logged(index) == ["a", "b", "c", "d"]
    logs[0].note_published(2)
    clock.now += KEPT_S + 1
    assert logs[0].remove_published() == 2 and logged(index, 2) == ["d"]
    assert make_log(index, lambda: 2).append([write("a", "key")]) == [Appended(1, {"accepted": 1}, False)]
