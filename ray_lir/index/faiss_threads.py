"""One OpenMP thread for each call of FAISS. Where a call can be split, `ray_lir.base.parallel.threads` splits it instead.

OpenMP keeps the threads of a call for the next call. A forked process does not have them, and its first call would wait for them
forever. Waiting threads also spin, which slows down other work on busy cores.
"""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def one_faiss_thread() -> Iterator[None]:
    """Limit FAISS calls of the calling thread to that thread."""
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
