"""A full disk: a one-line error names the place, no partial output is visible, and the command continues once there is space."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ray_lir.base.config import ClusteringConfig, EncoderConfig, IndexConfig
from ray_lir.base.errors import ConfigError
from ray_lir.building.build import build_index
from ray_lir.encoder.corpus_encoder import encode_corpus
from ray_lir.storage.manifest import MANIFEST
from tests.support.checkpoints import put_together
from tests.support.corpora import write_rows

ROWS = [{"_id": f"d{number}", "text": f"the text of document {number} " * 8} for number in range(400)]
INDEX = IndexConfig(clustering=ClusteringConfig(num_centroids=64, num_iterations=2))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a corpus, a checkpoint, embeddings and an index."""
    folder = tmp_path_factory.mktemp("made")
    put_together("sentence_transformers", "fixed", folder / "checkpoint")
    encode(write_rows(folder / "corpus.jsonl", ROWS), folder / "checkpoint", folder / "embeddings")
    build_index(str(folder / "embeddings"), str(folder / "index"), INDEX)
    return folder


def encode(corpus: str | Path, checkpoint: Path, output: Path) -> None:
    encode_corpus(str(corpus), str(output), EncoderConfig(checkpoint=str(checkpoint)), docs_per_part=32)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Yield a separate file system of changeable size."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def resize(disk: Path, size: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size // 1024}k", str(disk)], check=True)


def used(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
@pytest.mark.parametrize("step", ["embeddings", "index"])
def test_a_full_disk_is_a_one_line_error_and_the_repeated_command_continues(made: Path, disk: Path, step: str, share: float):
    runs: dict[str, Callable[[], object]] = {
        "embeddings": lambda: encode(made / "corpus.jsonl", made / "checkpoint", disk / "embeddings"),
        "index": lambda: build_index(str(made / "embeddings"), str(disk / "index"), INDEX),
    }
    manifest = {"embeddings": MANIFEST, "index": f"versions/1/{MANIFEST}"}[step]
    resize(disk, int(share * used(made / step)))
    with pytest.raises(ConfigError, match=f"cannot write to {disk / step}: .*No space left on device: '{disk}/.*the free space") as caught:
        runs[step]()
    assert "\n" not in str(caught.value)
    assert not (disk / step / manifest).exists()
    assert not list(disk.rglob(".attempt-*")) and not list(disk.rglob(".*.json*"))  # no temporary files that keep it full
    resize(disk, 64 << 20)
    runs[step]()
    assert (disk / step / manifest).read_bytes() == (made / step / manifest).read_bytes()
