"""Modules that a command imports at start: torch, transformers and Ray only if needed."""

import json
import os
import signal
import subprocess
import sys

import pytest

from jobs.__main__ import VERBS
from ray_lir.building.build import build_index
from ray_lir.corpus.records import ID_FIELDS
from ray_lir.encoder.encoder import Encoder
from tests.support.repository import REPOSITORY

HEAVY = ("torch", "transformers", "ray", "faiss", "scipy", "duckdb", "tyro")
REPORT = f"""
import atexit, json, os, sys
atexit.register(lambda: os.write(9, json.dumps([name for name in {HEAVY!r} if name in sys.modules]).encode()))
from jobs.__main__ import main
main(sys.argv[1:])
"""


def loaded(*words: str) -> tuple[int, list[str], str]:
    """Return the exit code, the imported heavy modules, and the output."""
    read, write = os.pipe()
    code = f"import os; os.dup2({write}, 9)\n" + REPORT
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        pass_fds=[write],
        timeout=120,
    )
    os.close(write)
    with os.fdopen(read) as pipe:
        return done.returncode, json.loads(pipe.read()), done.stdout


@pytest.mark.parametrize("words", [("--help",), ("--version",), *((verb, "--help") for verb in VERBS)])
def test_help_loads_neither_torch_nor_ray(words):
    code, modules, shown = loaded(*words)
    assert (code, modules) == (0, []), shown
    if len(words) == 2:
        assert shown.startswith(f"usage: ray-lir {words[0]} ")


@pytest.mark.parametrize("word", ["--help", "--version", "help", "encod"])
def test_the_list_of_commands_loads_no_package(word):
    names = ("numpy", "pyarrow", "pydantic", "tokenizers", "yaml", *HEAVY)
    code = f"import sys, jobs.__main__\ntry: jobs.__main__.main([{word!r}])\nexcept SystemExit: pass\n"
    code += f"print([name for name in {names!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("ask", "anything", "--url", "http://127.0.0.1:9"), 2),
        (("rollback", "--url", "http://127.0.0.1:9"), 2),
        (("plan", "--docs", "1e6"), 0),
        (("inspect", "tests/golden"), 2),
        (("export", "--source", "nowhere", "--output", "nothing"), 2),
        (("search", "--index", "nowhere", "anything"), 2),
        (("serve", "nowhere", "--prot", "80"), 2),
        (("encode", "--corpus", "nowhere", "--output", "nothing"), 2),
    ],
)
def test_commands_without_model_or_cluster_import_neither_torch_nor_ray(words, expected):
    code, modules, shown = loaded(*words)
    assert code == expected and modules == [], shown
    assert expected == 0 or shown.splitlines()[-1].startswith("error: ")


def test_opening_an_index_and_one_search_need_no_torch(tmp_path):
    encoder = Encoder.load()
    texts = ["The mitochondrion makes the energy of the cell.", "Aspirin thins the blood."]
    build_index(encoder.encode_documents(texts), str(tmp_path / "index"), contract=encoder.contract, texts=texts)
    code, modules, shown = loaded("search", "where does energy come from?", "--index", str(tmp_path / "index"))
    assert (code, modules) == (0, []), shown
    assert json.loads(shown.splitlines()[-1])["hits"][0]["text"] == texts[0]
    opened = f"import sys; from ray_lir import Index; Index.open({str(tmp_path / 'index')!r}).get('1'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", opened], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


def test_the_client_loads_no_array_library():
    names = (*HEAVY, "numpy", "pyarrow", "fsspec", "httpx")
    code = f"import sys, ray_lir.api.client; print([name for name in {names!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_closed_pipe_is_silent():
    done = subprocess.run(
        f"{sys.executable} -m jobs plan --help | head -1; {sys.executable} -m jobs --help | head -1",
        shell=True, cwd=REPOSITORY, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.count("\n") == 2 and done.stderr == ""


def test_an_interrupt_is_one_line_and_exit_code_130():
    code = (
        "import signal, time; signal.signal(signal.SIGINT, signal.default_int_handler); "  # a shell's background jobs ignore it
        "from jobs.cli import main; from ray_lir.base.config import Config; "
        "main(Config, lambda job: (print('started', flush=True), time.sleep(60)), [])"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "started\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130 and errors.startswith("interrupted") and errors.count("\n") == 1


def test_the_help_of_encode_says_what_a_row_of_the_corpus_holds():
    _, _, shown = loaded("encode", "--help")
    text = " ".join(shown.split())
    assert all(f"`{name}`" in text for name in (*ID_FIELDS, "text", "title", "metadata")) and "dead_letters/" in text
