"""infra/aws: jobs run under their policy on a server that enforces it, and use every permission."""

import json
import os
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import boto3
import pytest

from ray_lir import storage
from ray_lir.base.config import ClusteringConfig, EncoderConfig, IndexConfig
from ray_lir.base.errors import ConfigError
from ray_lir.building.build import build_index
from ray_lir.encoder.corpus_encoder import encode_corpus
from ray_lir.index.versions import read_version
from ray_lir.storage import s3
from ray_lir.storage.manifest import check_file
from tests.support.checkpoints import put_together
from tests.support.corpora import write_rows
from tests.support.faulty_proxy import Faults, Request, faulty_proxy
from tests.support.repository import REPOSITORY
from tests.support.s3_servers import as_endpoint, make_bucket, moto_server

POLICIES = REPOSITORY / "infra" / "aws"
ROWS = [{"_id": f"d{number}", "text": f"the text of document {number}"} for number in range(12)]
NEVER_DENIED, AT_ONCE = 10**9, 0


@dataclass
class Shelf:
    """Yield a bucket with a corpus on a server that enforces a policy for everyone but the owner."""

    url: str
    bucket: str
    keys: dict[str, tuple[str, str]]
    faults: Faults


@pytest.fixture
def shelf(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Shelf]:
    faults = Faults()
    with moto_server() as server, faulty_proxy(server, faults) as url:
        with as_endpoint(url, monkeypatch):
            bucket = make_bucket()
            corpus = write_rows(tmp_path / "corpus.jsonl", ROWS)
            storage.write_bytes(f"{bucket}/corpus/corpus.jsonl", Path(corpus).read_bytes())
            keys = {name: make_user(server, name, bucket.removeprefix("s3://")) for name in ("jobs", "service")}
        deny_after(server, AT_ONCE)
        yield Shelf(url, bucket, keys, faults)
        deny_after(server, NEVER_DENIED)


def make_user(server: str, name: str, bucket: str) -> tuple[str, str]:
    """Return the key of a user with the permissions of a policy."""
    policy = read_policy(name, bucket)
    policy["Statement"] = [each for each in policy["Statement"] if each["Effect"] == "Allow"]  # the server has no TLS, nor conditions
    iam = boto3.client("iam", endpoint_url=server)
    user = f"{name}-{bucket}"  # moto keeps users after its server ends
    iam.create_user(UserName=user)
    iam.put_user_policy(UserName=user, PolicyName=name, PolicyDocument=json.dumps(policy))
    key = iam.create_access_key(UserName=user)["AccessKey"]
    return key["AccessKeyId"], key["SecretAccessKey"]


def deny_after(server: str, num_requests: int) -> None:
    """Let moto check keys, signatures and permissions from now on."""
    request = urllib.request.Request(f"{server}/moto-api/reset-auth", str(num_requests).encode(), {"Content-Type": "text/plain"})
    urllib.request.urlopen(request).close()


def read_policy(name: str, bucket: str = "BUCKET") -> dict[str, Any]:
    return json.loads((POLICIES / f"{name}-policy.json").read_text().replace("BUCKET", bucket))


def rights(name: str) -> set[str]:
    actions = [each["Action"] for each in read_policy(name)["Statement"] if each["Effect"] == "Allow"]
    return {action for each in actions for action in ([each] if isinstance(each, str) else each)}


def right_of(request: Request) -> str:
    """Return the S3 action of a request."""
    url = urlsplit(request.target)
    query = parse_qs(url.query, keep_blank_values=True)
    _, key = (url.path.lstrip("/") + "/").split("/", 1)
    if not key.strip("/"):
        return "s3:DeleteObject" if "delete" in query else {"GET": "s3:ListBucket"}[request.method]
    if request.method == "DELETE":
        return "s3:AbortMultipartUpload" if "uploadId" in query else "s3:DeleteObject"
    return {"GET": "s3:GetObject", "HEAD": "s3:GetObject", "PUT": "s3:PutObject", "POST": "s3:PutObject"}[request.method]


def test_jobs_use_every_s3_permission_of_their_policy_and_no_other(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(s3, "PART_BYTES", 5 << 20)
    checkpoint = put_together("sentence_transformers", "fixed", tmp_path / "checkpoint")
    (tmp_path / "large").write_bytes(os.urandom(11 << 20))
    shelf.faults.log.clear()
    with as_endpoint(shelf.url, monkeypatch, *shelf.keys["jobs"]):
        encode_corpus(f"{shelf.bucket}/corpus", f"{shelf.bucket}/embeddings", EncoderConfig(checkpoint=checkpoint), docs_per_part=4)
        config = IndexConfig(clustering=ClusteringConfig(num_centroids=4, num_iterations=1))
        build_index(f"{shelf.bucket}/embeddings", f"{shelf.bucket}/index", config)
        storage.publish(tmp_path / "large", f"{shelf.bucket}/checkpoints/large")
        shelf.faults.always = {"partNumber=2": "500"}
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        with as_endpoint(shelf.url, monkeypatch, *shelf.keys["jobs"]), pytest.raises(ConfigError, match="injected"):
            storage.publish(tmp_path / "large", f"{shelf.bucket}/checkpoints/again")
        assert {right_of(request) for request in shelf.faults.log} == rights("jobs")
        for place in ("corpus/more.jsonl", "elsewhere/file"):
            with pytest.raises(ConfigError, match="Access Denied"):
                storage.write_bytes(f"{shelf.bucket}/{place}", b"")
    with as_endpoint(shelf.url, monkeypatch, *shelf.keys["service"]):
        shelf.faults.log.clear()
        index = read_version(f"{shelf.bucket}/index")
        for file in (index.codec, *(file for shard in index.shards for file in shard.files)):
            check_file(f"{shelf.bucket}/index", file, content=True)
        assert storage.list_names(f"{shelf.bucket}/index")
        assert {right_of(request) for request in shelf.faults.log} == rights("service")
        with pytest.raises(ConfigError, match="Access Denied"):
            storage.write_bytes(f"{shelf.bucket}/index/LATEST", b"2\n")
        with pytest.raises(ConfigError, match="Forbidden"):
            storage.read_bytes(f"{shelf.bucket}/corpus/corpus.jsonl")


def test_an_unknown_access_key_and_a_wrong_secret_are_one_line_errors(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    checkpoint = put_together("sentence_transformers", "fixed", tmp_path / "checkpoint")
    key, _ = shelf.keys["jobs"]
    for used_key, reason in (("nobody", "Access Key Id you provided does not exist"), (key, "signature we calculated does not match")):
        with (
            as_endpoint(shelf.url, monkeypatch, used_key, "wrong"),
            pytest.raises(ConfigError, match=f"cannot list s3://.*{reason}") as caught,
        ):
            encode_corpus(f"{shelf.bucket}/corpus", f"{shelf.bucket}/embeddings", EncoderConfig(checkpoint=checkpoint))
        assert "\n" not in str(caught.value)
