"""Processes chunks of files, or items in memory, in pools of actors on Ray Data. Chunks of a lost machine are processed again.

Each row of the dataset is a whole chunk (or item), and each block one row. A chunk therefore moves on as soon as it is read, to any actor.
Ray repeats the work of a dead process, so an actor must give the same result whenever it gets the same chunk.
"""

import logging
import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext, Dataset, TaskPoolStrategy
from ray.data.exceptions import ExecutionTimeoutError

from ray_lir.corpus.scan import CorpusFile, read_chunks
from ray_lir.distributed.runtime import error_of, portable_errors

logger = logging.getLogger(__name__)

Row = dict[str, Any]
Item = TypeVar("Item")
Result = TypeVar("Result")

READING_CPUS = 0.1
"""CPUs that Ray reserves for a reading task."""
PATIENCE_S = 120.0
"""Seconds without progress after which the remaining chunks start again; doubled after each restart. Calls of a lost actor wait until it
restarts, which never happens if no other machine has room for it."""


class Numbered(Protocol):
    """An item or a result with the number of its chunk."""

    @property
    def number(self) -> int:
        """Number of the chunk in the corpus, or of the item."""
        ...


class ChunkActor(ABC, Generic[Item, Result]):
    """An actor that processes one item at a time. It lives until the work ends, so its constructor loads the model once."""

    @abstractmethod
    def process(self, item: Item) -> Result:
        """Process an item and return the item for the next pool; the last pool returns the result."""

    def __call__(self, row: Row) -> Row:
        with portable_errors():
            return {"value": pickle.dumps(self.process(pickle.loads(row["value"])))}


@dataclass(frozen=True)
class Pool:
    """A pool of actors.

    Attributes:
        actor: Class of the actors.
        args: Arguments of its constructor.
        size: Number of actors.
        cpus: CPUs that Ray reserves for each.
        gpus: GPUs that Ray reserves for each.
    """

    actor: "type[ChunkActor[Any, Any]]"
    args: tuple[Any, ...]
    size: int
    cpus: float
    gpus: float = 0.0


def run_chunks(
    files: Callable[[frozenset[int]], Sequence[CorpusFile]],
    chunk_rows: int,
    done: frozenset[int],
    pools: Callable[[frozenset[int]], Sequence[Pool]],
    name: str,
) -> Iterator[Any]:
    """Send every chunk that is not done through the pools, one pool after another, and yield the results in any order.

    Args:
        files: The files that have chunks left, given the chunks that are done.
        chunk_rows: Rows of a chunk at most.
        done: Numbers of the chunks that are finished.
        pools: The pools, given the chunks that are done. The result of the last one has the chunk's number.
        name: Name of the work in the log.

    Raises:
        RayLirError: Raised by an actor.
    """

    def dataset(done: frozenset[int]) -> Dataset | None:
        left = files(done)
        return _read(left, chunk_rows, done) if left else None

    yield from _run(dataset, done, pools, name)


def run_items(items: Sequence[Numbered], pools: Callable[[frozenset[int]], Sequence[Pool]], name: str) -> Iterator[Any]:
    """Send items that are in memory through the pools, one pool after another, and yield the results in any order.

    Args:
        items: The items; all of them are in Ray's object store at once.
        pools: The pools, given the numbers of the items that are done. The result of the last one has the item's number.
        name: Name of the work in the log.

    Raises:
        RayLirError: Raised by an actor.
    """

    def dataset(done: frozenset[int]) -> Dataset | None:
        left = [item for item in items if item.number not in done]
        return _rows(left) if left else None

    yield from _run(dataset, frozenset(), pools, name)


def light_pool_size() -> int:
    """Return the number of actors or tasks for light work: half of the cluster's CPUs."""
    return max(1, int(ray.cluster_resources().get("CPU", 0)) // 2)


def _run(
    dataset: Callable[[frozenset[int]], Dataset | None],
    done: frozenset[int],
    pools: Callable[[frozenset[int]], Sequence[Pool]],
    name: str,
) -> Iterator[Any]:
    """Run the pools on the dataset of what is not done. Start the remaining chunks again when nothing makes progress."""
    context = _context()
    while True:
        with DataContext.current(context):
            left = dataset(done)
        if left is None:
            return
        finished: set[int] = set()
        try:
            for result in _results(left, pools(done), context):
                finished.add(result.number)
                yield result
        except ExecutionTimeoutError:
            logger.warning("%s: no progress for %g s; the remaining chunks start again", name, context.execution_no_progress_timeout_s)
            context.execution_no_progress_timeout_s *= 2
        done |= finished


def _results(dataset: Dataset, pools: Sequence[Pool], context: DataContext) -> Iterator[Any]:
    """One execution of the dataset."""
    with DataContext.current(context):
        for pool in pools:
            dataset = dataset.map(
                pool.actor,  # type: ignore[arg-type]  # Ray accepts callable classes
                fn_constructor_args=pool.args,
                compute=ActorPoolStrategy(size=pool.size),
                num_cpus=pool.cpus,
                num_gpus=pool.gpus,
            )
        rows = iter(dataset.iter_rows())
    try:
        for row in rows:
            yield pickle.loads(row["value"])
    except ExecutionTimeoutError:
        raise
    except Exception as error:
        raise error_of(error) from None


def _rows(values: Sequence[Any]) -> Dataset:
    """A dataset of one row, and so one block, for each value."""
    rows = [{"value": pickle.dumps(value)} for value in values]
    return ray.data.from_items(rows, override_num_blocks=len(rows))


def _read(files: Sequence[CorpusFile], chunk_rows: int, done: frozenset[int]) -> Dataset:
    """A dataset of the chunks that are not done."""
    return _rows(files).flat_map(
        _read_file,  # type: ignore[arg-type]  # Ray's type hints allow functions of one argument only
        fn_args=(chunk_rows, done),
        compute=TaskPoolStrategy(light_pool_size()),
        num_cpus=READING_CPUS,
    )


def _read_file(row: Row, chunk_rows: int, done: frozenset[int]) -> Iterator[Row]:
    with portable_errors():
        for chunk in read_chunks(pickle.loads(row["value"]), chunk_rows, done):
            yield {"value": pickle.dumps(chunk)}


def _context() -> DataContext:
    """Return settings of Ray Data with one chunk a block, and without its progress bars and messages, because the job logs its own."""
    context = DataContext.get_current().copy()
    context.target_max_block_size = 1
    context.enable_progress_bars = False
    context.raise_original_map_exception = True
    context.execution_no_progress_timeout_s = min(PATIENCE_S, context.execution_no_progress_timeout_s)
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.CRITICAL + 1)  # the log files of the Ray session have these messages
    return context
