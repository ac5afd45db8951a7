"""The package: cheap imports, import contracts, complete requirements, one command line, a clean wheel."""

import ast
import importlib
import importlib.metadata
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import ray_lir
from jobs.__main__ import VERBS, summary
from ray_lir.base.extras import package_of
from tests.support.repository import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
INDEX_LAYER = tuple("base storage corpus embeddings index api evaluation kernels engines building search planning".split())


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)


def requirement_name(requirement: str) -> str:
    return normal(re.split(r"[\[<>=~! ]", requirement)[0])


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_importing_ray_lir_imports_nothing_heavy():
    done = python("-c", "import ray_lir, sys; print(sorted({'torch', 'ray', 'numpy', 'pyarrow', 'faiss'} & set(sys.modules)))")
    assert done.stdout == "[]\n", done.stderr


def test_every_module_of_the_index_layer_runs_without_torch_and_ray():
    names = []
    for name in INDEX_LAYER:
        path = REPOSITORY / "ray_lir" / name
        names += [f"ray_lir.{name}"] + [f"ray_lir.{name}.{file.stem}" for file in sorted(path.glob("*.py")) if file.stem != "__init__"]
    code = (
        f"import importlib, sys; [importlib.import_module(name) for name in {names}]; print(sorted({{'torch', 'ray'}} & set(sys.modules)))"
    )
    done = python("-c", code)
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize("name", ray_lir.__all__)
def test_every_public_name_can_be_imported(name: str):
    assert getattr(ray_lir, name).__name__ == name
    assert name in dir(ray_lir)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Sercher'"):
        ray_lir.Sercher  # noqa: B018


def test_import_contracts_hold():
    done = subprocess.run([Path(sys.executable).with_name("lint-imports"), "--no-logo"], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_every_imported_package_is_a_requirement():
    extras = PROJECT["optional-dependencies"]
    used = [
        *PROJECT["dependencies"],
        *(requirement for name in extras.keys() - {"all", "bench", "dev", "docs"} for requirement in extras[name]),
    ]
    declared = {requirement_name(requirement) for requirement in used}
    homes = importlib.metadata.packages_distributions()
    imported = set()
    for file in (file for folder in ("ray_lir", "jobs", "serving") for file in (REPOSITORY / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                imported.add(node.module.partition(".")[0])
    others = imported - set(sys.stdlib_module_names) - {"ray_lir", "ray_lir_native", "jobs", "serving"}
    missing = {name for name in others if not declared & {normal(home) for home in homes.get(name, [package_of(name)])}}
    assert not missing, f"imported, but not in pyproject.toml's dependencies: {sorted(missing)}"


def test_constraints_pin_every_requirement():
    lines = [line for line in (REPOSITORY / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9A-Za-z.]*", line) for line in lines)
    pinned = {normal(line.partition("==")[0]) for line in lines}
    requirements = [*PROJECT["dependencies"], *(text for extra in PROJECT["optional-dependencies"].values() for text in extra)]
    assert {requirement_name(requirement) for requirement in requirements} - {"ray-lir"} <= pinned


def test_every_job_is_listed_with_what_it_does():
    jobs = {file.stem for file in (REPOSITORY / "jobs").glob("*.py") if 'if __name__ == "__main__":' in file.read_text()} - {"__main__"}
    assert jobs | {"serve"} == set(VERBS)
    listed = python("-m", "jobs").stdout
    for verb in VERBS:
        assert summary(verb)
        assert re.search(rf"^  {verb} +{re.escape(summary(verb))}$", listed, re.MULTILINE)


def test_an_unknown_job_is_one_line_and_exit_code_2():
    done = python("-m", "jobs", "build-indx")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: unknown command 'build-indx'; did you mean build_index?\n"


def test_a_job_runs_by_its_name():
    done = python("-m", "jobs", "build-index", "--embeddings", "nowhere", "--output", "nothing", "--nbits", "3")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--codec.nbits" in done.stderr and done.stderr.count("\n") == 1


def test_the_wheel_installs_no_common_names(wheel: Path):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names if not name.startswith("ray_lir_native.")}  # present only if a compiler is
    assert tops == {"ray_lir", "ray_lir_apps", f"ray_lir-{ray_lir.__version__}.dist-info"}
    sources = {"ray_lir": "ray_lir", "jobs": "ray_lir_apps/jobs", "serving": "ray_lir_apps/serving"}
    for folder, target in sources.items():
        files = [file.relative_to(REPOSITORY / folder) for file in (REPOSITORY / folder).rglob("*") if file.is_file()]
        files = [file for file in files if file.suffix not in (".pyc", ".cpp", ".h")]
        assert {f"{target}/{file.as_posix()}" for file in files} <= set(names)


def test_ray_accepts_the_cluster_file():
    util = importlib.import_module("ray.autoscaler._private.util")
    config = yaml.safe_load((REPOSITORY / "cluster.yaml").read_text())
    util.validate_config(util.prepare_config(config))
    images = [config["docker"]["image"], config["available_node_types"]["gpu"]["docker"]["worker_image"]]
    assert all(importlib.metadata.version("ray") in image for image in images)
    config["available_node_types"]["gpu"]["max_worker"] = 1
    with pytest.raises(Exception, match="max_worker"):
        util.validate_config(util.prepare_config(config))


def test_the_reference_lists_every_public_name():
    text = (REPOSITORY / "docs" / "reference.md").read_text()
    missing = [name for name in ray_lir.__all__ if f"ray_lir.{name}" not in text and not re.search(rf"^::: [\w.]+\.{name}$", text, re.M)]
    assert all(getattr(ray_lir, name).__module__ == "ray_lir.base.errors" for name in missing), missing
