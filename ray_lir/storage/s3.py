"""How S3 is spoken: sizes of blocks, which faults are waited out, and a log line for each request that went wrong.

botocore sends a request again (AWS_MAX_ATTEMPTS times, 5 if that is not set) when it is answered with an error of the
server or not at all; s3fs does so 5 times more, with pauses, when the connection breaks, also in the middle of a body.
What neither covers, a server that answers with errors throughout botocore's attempts, s3fs is told to treat alike here.
"""

import logging
from typing import Any

import s3fs
import s3fs.core
from botocore.exceptions import ClientError

logger = logging.getLogger(__name__)

BLOCK_BYTES = 8 << 20
"""Bytes that are read at a time: s3fs's own 50 MiB would read a whole part of embeddings for a column of it."""
PART_BYTES = 16 << 20
"""Bytes of a part of an upload; a file of less than twice as many is uploaded by one request."""
PARTS_AT_ONCE = 4
MAX_PARTS = 10_000
OPTIONS = {"default_block_size": BLOCK_BYTES, "max_concurrency": PARTS_AT_ONCE, "use_listings_cache": False}
"""Of the file system: what somebody else wrote is seen, because no listing is kept."""


def prepare(fs: s3fs.S3FileSystem) -> None:
    """Has faults of this file system's store waited out and logged; once or often, it makes no difference.

    Raises:
        botocore.exceptions.BotoCoreError: if the environment names a profile or a setting that is none.
    """
    if s3fs.core.CUSTOM_ERROR_HANDLER is not _waits_out:
        s3fs.core.set_custom_error_handler(_waits_out)
    fs.s3.meta.events.register("needs-retry.s3", _log_fault, unique_id="ray_lir")


def upload_options(num_bytes: int) -> dict[str, int]:
    """Of s3fs's put_file and pipe_file, for a file of this size."""
    return {"chunksize": max(PART_BYTES, -(-num_bytes // MAX_PARTS))}


def _waits_out(error: Exception) -> bool:
    """Whether s3fs shall try again what botocore gave up."""
    if not isinstance(error, ClientError):
        return False
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if status < 500 and status != 429:
        return False
    logger.warning("s3: %s still answers %d (%s); waiting", error.operation_name, status, error.response["Error"].get("Code"))
    return True


def _log_fault(operation: Any, attempts: int, response: Any = None, caught_exception: Exception | None = None, **_: Any) -> None:
    """Called by botocore after each attempt at a request."""
    status = response[0].status_code if response else 0
    if caught_exception or status >= 500 or status == 429:
        why = f"answered {status}" if status else " ".join(str(caught_exception).split())[:160]
        logger.info("s3: %s, attempt %d: %s", operation.name, attempts, why)
