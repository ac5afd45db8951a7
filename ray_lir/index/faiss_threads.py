"""One OpenMP thread for each call of FAISS. Where a call can be split, `ray_lir.parallel.threads` splits it instead.

OpenMP keeps the threads of a call waiting for the next one. A forked process does not have them, and its first call would wait for
them for ever. They also spin while they wait, which slows down everything else on busy cores.
"""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def one_faiss_thread() -> Iterator[None]:
    """Let the calling thread's calls of FAISS compute in that thread alone."""
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
