"""Virtual environments with links to chosen distributions of this one, made quickly and offline."""

import subprocess
import sys
import venv
import zipfile
from collections import defaultdict
from collections.abc import Iterable
from importlib.metadata import Distribution, PackageNotFoundError, distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement


def closure(requirements: Iterable[str]) -> dict[str, Distribution]:
    """Return the installed distributions of the requirements and of their dependencies, by normalised name."""
    found: dict[str, Distribution] = {}
    todo, done = [Requirement(text) for text in requirements], set()
    while todo:
        requirement = todo.pop()
        key = (normal(requirement.name), frozenset(requirement.extras))
        if key in done or not _applies(requirement, ()):
            continue
        done.add(key)
        try:
            found[key[0]] = distribution(requirement.name)
        except PackageNotFoundError:
            raise LookupError(f"{requirement.name} is not installed here; run: make install") from None
        requirements = map(Requirement, found[key[0]].requires or [])
        todo += [each for each in requirements if _applies(each, requirement.extras)]
    return found


def make(folder: Path, requirements: Iterable[str], wheel: Path) -> Path:
    """Make an environment in `folder` with the closure of the requirements and the files of a wheel; return its Python."""
    venv.EnvBuilder(symlinks=True).create(folder)
    site = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    owners: dict[str, set[str]] = defaultdict(set)
    for each in distributions():
        for top in {file.parts[0] for file in each.files or []}:
            owners[top].add(normal(each.metadata["Name"]))
    chosen = closure(requirements)
    for each in chosen.values():
        for file in each.files or []:
            top = file.parts[0]
            if top == ".." or top == "__pycache__" or file.suffix == ".pth":
                continue
            # Several distributions share folders such as google/; these are created and filled with links.
            depth = 1 if owners[top] <= set(chosen) else 2
            link, target = (root.joinpath(*file.parts[:depth]) for root in (site, Path(str(each.locate_file("")))))
            if not link.is_symlink():
                link.parent.mkdir(exist_ok=True)
                link.symlink_to(target)
    with zipfile.ZipFile(wheel) as files:
        files.extractall(site)
    return folder / "bin" / "python"


def requirements_of(wheel: Path, *extras: str) -> list[str]:
    """Return what `pip install WHEEL[EXTRAS]` would install."""
    with zipfile.ZipFile(wheel) as files:
        metadata = next(name for name in files.namelist() if name.endswith(".dist-info/METADATA"))
        lines = files.read(metadata).decode().splitlines()
    requirements = [line.removeprefix("Requires-Dist: ") for line in lines if line.startswith("Requires-Dist: ")]
    return [text.partition(";")[0] if "extra ==" in text else text for text in requirements if _applies(Requirement(text), extras)]


def run(python: Path, *arguments: str, cwd: Path, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Run the Python of an environment without the environment variables of the tests."""
    variables = {"PATH": "/usr/bin:/bin", "HOME": str(cwd), "HF_HUB_OFFLINE": "1"}
    return subprocess.run([str(python), *arguments], cwd=cwd, env=variables, capture_output=True, text=True, timeout=timeout)


def normal(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def _applies(requirement: Requirement, extras: Iterable[str]) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras))
