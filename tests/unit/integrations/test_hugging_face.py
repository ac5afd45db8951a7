"""Encoders and indexes are published with cards on a hub on this machine, and as folders; both are opened again."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from jobs.cli import parse
from jobs.push import PushJob, run
from ray_lir import ConfigError, Encoder, FormatError, Index
from ray_lir.embeddings.cards import CardFacts, model_card
from ray_lir.embeddings.contract import EncoderContract
from ray_lir.storage.manifest import write_manifest
from ray_lir.training.manifest import TrainingManifest
from tests.support.hub_server import Hub, hub_server
from tests.support.repository import REPOSITORY
from tests.unit.integrations.conftest import QUERY

EVALUATION = {"dataset": "scifact", "split": "test", "queries": 300, "nDCG@10": 0.7391, "R@100": 0.95, "k": 100, "engine": "plaid"}
OPENS = """
import sys, ray_lir
index = ray_lir.Index.open(sys.argv[1])
print([[hit.doc_id, hit.score] for hit in index.search(sys.argv[2])])
try:
    index.delete(["sea"])
except ray_lir.ConfigError as error:
    print(error)
index.refresh()
encoder = ray_lir.Encoder.load(sys.argv[3])
print(encoder.contract.fingerprint)
try:
    ray_lir.Index.open("hf://datasets/me/nothing")
except ray_lir.RayLirError as error:
    print("error:", error)
"""


@pytest.fixture
def hub() -> Iterator[Hub]:
    with hub_server() as hub:
        yield hub


def python(hub: Hub, home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A process with its own caches that takes `hub` for the Hugging Face hub."""
    variables = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(home), "XDG_CACHE_HOME": str(home), "HF_TOKEN": "hf_secret"}
    return subprocess.run([sys.executable, *words], cwd=REPOSITORY, env=os.environ | variables, capture_output=True, text=True, timeout=200)


def push(hub: Hub, home: Path, *words: str) -> dict:
    done = python(hub, home, "-m", "jobs", "push", *words)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_hub_has_what_was_pushed_and_opens_again(index: Index, hub: Hub, tmp_path: Path):
    (tmp_path / "scifact.json").write_text(json.dumps(EVALUATION))
    checkpoint = index.manifest.contract.checkpoint
    facts = ("--evaluations", str(tmp_path / "scifact.json"), "--license", "apache-2.0", "--training_data", "msmarco,nq")
    pushed = push(hub, tmp_path, "--encoder", checkpoint, "--repo", "me/encoder", *facts)
    assert pushed["kind"] == "encoder" and pushed["url"] == f"{hub.url}/me/encoder"
    pushed = push(hub, tmp_path, "--index", index.path, "--repo", "me/index")
    assert (pushed["kind"], pushed["num_docs"]) == ("index", 4)
    assert hub.tokens == {"Bearer hf_secret"}
    assert {"README.md", "ray_lir.json", "model.safetensors", "modules.json"} <= set(hub.repos["models/me/encoder"])
    assert {"README.md", "LATEST", "versions/1/manifest.json", "encoder/model.safetensors"} <= set(hub.repos["datasets/me/index"])
    card = ModelCard(hub.repos["models/me/encoder"]["README.md"].decode())
    assert {"multi-vector", "late-interaction"} <= set(card.data.tags)
    assert (card.data.license, card.data.datasets) == ("apache-2.0", ["msmarco", "nq"])
    measured = {each.metric_type: each.metric_value for each in card.data.eval_results}
    assert measured == {"ndcg_at_10": 0.7391, "recall_at_100": 0.95}
    assert index.manifest.contract.fingerprint in hub.repos["datasets/me/index"]["README.md"].decode()

    done = python(hub, tmp_path / "other", "-c", OPENS, "hf://datasets/me/index", QUERY, "me/encoder")
    assert done.returncode == 0, done.stderr
    found, refused, fingerprint, missing = done.stdout.splitlines()
    expected = {hit.doc_id: hit.score for hit in index.search(QUERY)}
    assert dict(json.loads(found.replace("'", '"'))) == expected
    assert "cannot be changed here" in refused
    assert fingerprint == json.loads(hub.repos["models/me/encoder"]["ray_lir.json"])["fingerprint"]
    assert missing.startswith("error: ") and "hf://datasets/me/nothing" in missing


def test_a_hub_that_refuses_is_one_line(index: Index, hub: Hub, tmp_path: Path):
    hub.refuse = 403
    done = python(hub, tmp_path, "-m", "jobs", "push", "--index", index.path, "--repo", "me/index")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert "error: cannot upload to me/index" in done.stderr and "hf_secret" not in done.stderr


def test_a_folder_has_the_same_files(index: Index, tmp_path: Path):
    index.push_to_hub(folder=tmp_path / "index", facts=CardFacts(description="Four documents."))
    opened = Index.open(tmp_path / "index")
    assert opened.search(QUERY) == index.search(QUERY) and opened.checkpoint == str(tmp_path / "index" / "encoder")
    opened.add([{"_id": "new", "text": "a tower"}])  # a folder may be changed
    assert len(opened) == 5 and "Four documents." in (tmp_path / "index" / "README.md").read_text()
    encoder = Encoder.load(index.checkpoint)
    encoder.push_to_hub(folder=tmp_path / "encoder")
    saved = json.loads((tmp_path / "encoder" / "ray_lir.json").read_text())
    loaded = Encoder.load(tmp_path / "encoder").contract
    assert saved["fingerprint"] == loaded.fingerprint and saved["contract"]["checkpoint"] == "encoder"
    with pytest.raises(ConfigError, match="exists already"):
        encoder.push_to_hub(folder=tmp_path / "encoder")


def test_a_training_describes_itself(index: Index, tmp_path: Path):
    shutil.copytree(index.checkpoint, tmp_path / "trained" / "checkpoint")
    contract = index.manifest.contract.model_copy(update={"checkpoint": "checkpoint"})
    made = {"training_data": ["/data/scifact"], "base_model": "all-MiniLM-L6-v2", "seconds": 7}
    (tmp_path / "trained" / "provenance.json").write_text(json.dumps(made))
    manifest = TrainingManifest(contract=contract, num_steps=6, final_loss=0.5, config={"scorer": "maxsim"})
    write_manifest(str(tmp_path / "trained" / "manifest.json"), manifest)
    run(PushJob(encoder=str(tmp_path / "trained"), output=str(tmp_path / "pushed")))
    card = ModelCard.load(tmp_path / "pushed" / "README.md")
    assert (card.data.base_model, card.data.datasets) == ("all-MiniLM-L6-v2", ["scifact"])
    assert "final_loss | 0.5" in card.text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--repo me/x", "give either --encoder or --index"),
        ("--index x --encoder y --repo me/x", "give either --encoder or --index"),
        ("--index x", "give either --repo or --output"),
    ],
)
def test_a_wrong_command_is_one_line(words: str, message: str):
    with pytest.raises(ConfigError, match=message):
        parse(PushJob, words.split())


def test_a_wrong_name_or_evaluation_is_one_line(index: Index, tmp_path: Path):
    with pytest.raises(ConfigError, match="'x' is not the name of a repository; write OWNER/NAME"):
        index.push_to_hub("x")
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(FormatError, match="a result of ray-lir evaluate"):
        run(PushJob(index=index.path, output=str(tmp_path / "out"), evaluations=(str(tmp_path / "other.json"),)))
    assert not (tmp_path / "out").exists()


def test_text_in_a_card_stays_text():
    contract = EncoderContract(checkpoint="x", weights_digest="0", dim=8, query_length=8, document_length=8, query_prompt="a | b: ")
    facts = CardFacts(training_data=('a "set": # 1',), license="mit", provenance={"note": "x | y"})
    text = model_card(contract, "me/it's: #1", facts)
    metadata = yaml.safe_load(text.split("---\n")[1])
    assert metadata["datasets"] == ['a "set": # 1'] and "x \\| y" in text and "a \\| b: " in text
