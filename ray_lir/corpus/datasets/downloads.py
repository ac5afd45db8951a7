"""Collections that are downloaded by name, and kept in a cache folder."""

import logging
import os
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import httpx

from ray_lir import storage
from ray_lir.base.errors import ConfigError

logger = logging.getLogger(__name__)

BEIR_URL = "https://public.ukp.informatik.tu-darmstadt.de/thakur/BEIR/datasets/{}.zip"
LOTTE_URL = "https://downloads.cs.stanford.edu/nlp/data/colbert/colbertv2/{}"
MSMARCO_URL = "https://msmarco.z22.web.core.windows.net/msmarcoranking/{}"
TREC_URL = "https://trec.nist.gov/data/deep/{}"
BEIR_NAMES = (
    "arguana",
    "climate-fever",
    "cqadupstack",
    "dbpedia-entity",
    "fever",
    "fiqa",
    "hotpotqa",
    "msmarco",
    "nfcorpus",
    "nq",
    "quora",
    "scidocs",
    "scifact",
    "trec-covid",
    "webis-touche2020",
)
OTHER_NAMES = ("lotte", "msmarco-passage")
CONNECT_SECONDS, READ_SECONDS = 10, 60
UNCOMPRESSED = {"Accept-Encoding": "identity"}
"""Asks for files as they are stored; archives are compressed already."""
LOG_BYTES = 256 << 20
"""A download is logged after every so many bytes."""


@dataclass(frozen=True)
class Source:
    """Where a collection comes from.

    Attributes:
        kind: What it is called in messages.
        folder: Name of its folder in the cache.
        urls: Archives, which are unpacked, and single files.
    """

    kind: str
    folder: str
    urls: tuple[str, ...]


def source(name: str) -> Source | None:
    """Return where a collection comes from; None if its name is unknown."""
    if name in BEIR_NAMES:
        return Source("BEIR dataset", "beir", (BEIR_URL.format(name),))
    if name == "lotte":
        return Source("dataset", "colbert", (LOTTE_URL.format("lotte.tar.gz"),))
    if name == "msmarco-passage":
        marco = ("collectionandqueries.tar.gz", "qrels.dev.tsv", "msmarco-test2019-queries.tsv.gz", "msmarco-test2020-queries.tsv.gz")
        trec = ("2019qrels-pass.txt", "2020qrels-pass.txt")
        return Source("dataset", "msmarco", (*map(MSMARCO_URL.format, marco), *map(TREC_URL.format, trec)))
    return None


def cache_folder() -> Path:
    """Return the folder for downloaded collections: ray_lir in XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ray_lir"


def download(name: str, found: Source) -> str:
    """Return the cached folder of a collection; it is downloaded on the first call.

    Args:
        name: Name of the collection.
        found: Where it comes from.

    Raises:
        ConfigError: A download fails, or an archive is damaged. Nothing is left in the cache.
    """
    target = cache_folder() / found.folder / name
    if target.is_dir():
        return str(target)
    url = found.urls[0]
    with storage.attempt_folder(str(target.parent)) as attempt:
        content = attempt / "content"
        content.mkdir()
        try:
            for url in found.urls:
                _fetch(url, attempt / "file", content)
        except (OSError, httpx.HTTPError, zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
            raise ConfigError(
                f"cannot download the {found.kind} {name} from {url} ({type(error).__name__}); without network, give its folder"
            ) from error
        inside = list(content.iterdir())
        storage.publish(inside[0] if len(inside) == 1 and inside[0].is_dir() else content, str(target))
    return str(target)


def _fetch(url: str, file: Path, content: Path) -> None:
    """Download a file, and unpack it if it is an archive."""
    name = url.rpartition("/")[2]
    logger.info("download: %s", url)
    timeout = httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS)
    with httpx.stream("GET", url, follow_redirects=True, timeout=timeout, headers=UNCOMPRESSED) as response, file.open("wb") as output:
        response.raise_for_status()
        written, logged = 0, LOG_BYTES
        for block in response.iter_raw():
            written += output.write(block)
            if written >= logged:
                logger.info("download: %d MiB of %s", written >> 20, name)
                logged += LOG_BYTES
        expected = response.headers.get("content-length")
        if expected and int(expected) != written:
            raise OSError(f"{written} of {expected} bytes arrived")
    if name.endswith(".zip"):
        with zipfile.ZipFile(file) as archive:
            archive.extractall(content)
    elif name.endswith((".tar.gz", ".tgz")):
        with tarfile.open(file) as tar:
            tar.extractall(content, filter="data")
    else:
        os.replace(file, content / name)
