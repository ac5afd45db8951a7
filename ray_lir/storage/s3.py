"""How the library uses S3: block sizes, retries, and a log line for each failed request.

botocore retries a request that gets a server error or no answer (AWS_MAX_ATTEMPTS times; 5 by default). s3fs retries 5 more times, with
pauses, when the connection breaks, also in the middle of a body. Neither retries when the server answers every one of botocore's attempts
with an error. This module makes s3fs retry in that case too.
"""

import logging
from typing import Any

import s3fs
import s3fs.core
from botocore.exceptions import ClientError

logger = logging.getLogger(__name__)

BLOCK_BYTES = 8 << 20
"""Bytes of one read. s3fs's default of 50 MiB would read a whole part of the embeddings to get one column."""
PART_BYTES = 16 << 20
"""Bytes of one part of a multipart upload. A file of less than twice this size is uploaded by one request."""
PARTS_AT_ONCE = 4
MAX_PARTS = 10_000
OPTIONS = {"default_block_size": BLOCK_BYTES, "max_concurrency": PARTS_AT_ONCE, "use_listings_cache": False}
"""Options of the file system. There is no listing cache, so files that other processes wrote are visible at once."""


def prepare(fs: s3fs.S3FileSystem) -> None:
    """Retry and log failures of this file system's store. Calling it again has no further effect.

    Raises:
        botocore.exceptions.BotoCoreError: The environment names an unknown profile or an invalid setting.
    """
    if s3fs.core.CUSTOM_ERROR_HANDLER is not _should_retry:
        s3fs.core.set_custom_error_handler(_should_retry)
    fs.s3.meta.events.register("needs-retry.s3", _log_failure, unique_id="ray_lir")


def upload_options(num_bytes: int) -> dict[str, int]:
    """Return the options of s3fs's `put_file` and `pipe_file` for a file of this size."""
    return {"chunksize": max(PART_BYTES, -(-num_bytes // MAX_PARTS))}


def _should_retry(error: Exception) -> bool:
    """Return whether s3fs should retry a request that botocore gave up."""
    if not isinstance(error, ClientError):
        return False
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if status < 500 and status != 429:
        return False
    logger.warning("s3: %s still answers %d (%s); retrying", error.operation_name, status, error.response["Error"].get("Code"))
    return True


def _log_failure(operation: Any, attempts: int, response: Any = None, caught_exception: Exception | None = None, **_: Any) -> None:
    """Log a failed attempt; botocore calls this after each attempt at a request."""
    status = response[0].status_code if response else 0
    if caught_exception or status >= 500 or status == 429:
        why = f"answered {status}" if status else " ".join(str(caught_exception).split())[:160]
        logger.info("s3: %s, attempt %d: %s", operation.name, attempts, why)
