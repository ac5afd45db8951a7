"""Processes chunks of files in pools of actors on Ray Data. Chunks of a lost machine are processed again.

Each row of the dataset is a whole chunk, and each block one row. A chunk therefore moves on as soon as it is read, to any actor. Ray
repeats the work of a dead process, so an actor must write the same files whenever it gets the same chunk.
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
    """A result that carries the number of its chunk."""

    @property
    def number(self) -> int:
        """Number of the chunk in the corpus."""
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
    context = _context()
    while left := files(done):
        finished: set[int] = set()
        try:
            for result in _results(left, chunk_rows, done, pools(done), context):
                finished.add(result.number)
                yield result
        except ExecutionTimeoutError:
            logger.warning("%s: no progress for %g s; the remaining chunks start again", name, context.execution_no_progress_timeout_s)
            context.execution_no_progress_timeout_s *= 2
        done |= finished


def light_pool_size() -> int:
    """Return the number of actors or tasks for light work: half of the cluster's CPUs."""
    return max(1, int(ray.cluster_resources().get("CPU", 0)) // 2)


def _results(
    files: Sequence[CorpusFile], chunk_rows: int, done: frozenset[int], pools: Sequence[Pool], context: DataContext
) -> Iterator[Any]:
    """One execution of the dataset."""
    with DataContext.current(context):
        rows = iter(_dataset(files, chunk_rows, done, pools).iter_rows())
    try:
        for row in rows:
            yield pickle.loads(row["value"])
    except ExecutionTimeoutError:
        raise
    except Exception as error:
        raise error_of(error) from None


def _dataset(files: Sequence[CorpusFile], chunk_rows: int, done: frozenset[int], pools: Sequence[Pool]) -> Dataset:
    rows = [{"value": pickle.dumps(file)} for file in files]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).flat_map(
        _read,  # type: ignore[arg-type]  # Ray's type hints allow functions of one argument only
        fn_args=(chunk_rows, done),
        compute=TaskPoolStrategy(light_pool_size()),
        num_cpus=READING_CPUS,
    )
    for pool in pools:
        dataset = dataset.map(
            pool.actor,  # type: ignore[arg-type]  # Ray accepts callable classes
            fn_constructor_args=pool.args,
            compute=ActorPoolStrategy(size=pool.size),
            num_cpus=pool.cpus,
            num_gpus=pool.gpus,
        )
    return dataset


def _read(row: Row, chunk_rows: int, done: frozenset[int]) -> Iterator[Row]:
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
