"""Chunks of files through pools of actors on Ray Data: read, processed and acknowledged one by one, repeated when a machine is lost.

A row of the dataset is a whole chunk and a block one row, so chunks flow on as soon as they are read and spread over all actors. Ray
repeats the work of a process that died; the function of an actor must give the same files for the same chunk.
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
"""CPUs that a reading task counts as."""
PATIENCE_S = 120.0
"""Seconds without any progress after which the rest begins anew. Calls of an actor wait for the actor to restart, which never happens
if its machine is lost and no other machine has room. Doubled after each time."""


class Numbered(Protocol):
    """A result that carries the number of its chunk."""

    @property
    def number(self) -> int:
        """Number of the chunk in the corpus."""
        ...


class ChunkActor(ABC, Generic[Item, Result]):
    """An actor that processes one item at a time. It stays between items, so what its constructor loads is loaded once."""

    @abstractmethod
    def process(self, item: Item) -> Result:
        """Return the next pool's item, or the result."""

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
            logger.warning("%s: no progress for %g s; the rest begins anew", name, context.execution_no_progress_timeout_s)
            context.execution_no_progress_timeout_s *= 2
        done |= finished


def light_pool_size() -> int:
    """Actors or tasks of a light stage: half of the cluster's CPUs."""
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
        _read,  # type: ignore[arg-type]  # Ray types functions of one argument only
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
    """Ray Data's settings: one chunk a block; no progress bars and messages of its own beside ours."""
    context = DataContext.get_current().copy()
    context.target_max_block_size = 1
    context.enable_progress_bars = False
    context.raise_original_map_exception = True
    context.execution_no_progress_timeout_s = min(PATIENCE_S, context.execution_no_progress_timeout_s)
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.CRITICAL + 1)  # the log files of the Ray session have these messages
    return context
