"""The peers' virtual environments, each made on first use from its own pinned requirements."""

import subprocess
import sys
import venv
from pathlib import Path

REQUIREMENTS = Path(__file__).parents[1] / "peers" / "requirements"
MARK = "installed.txt"
"""File with a copy of the installed requirements, written last."""
PLATFORM = "# platform: "
THIS = "this"
"""Name of the environment that runs the comparison."""


class NotInstallable(Exception):
    """File with pip's output."""


def python_of(name: str, work: Path, base: str | None = None) -> Path:
    """Return the interpreter of the environment of requirements/NAME.txt.

    Args:
        name: Name of the requirements file.
        work: Work folder; environments are in `envs`.
        base: Another environment. Its packages are visible in this one too, so that peers share one copy of torch. THIS: the running one.

    Raises:
        NotInstallable: if pip cannot install the requirements here.
    """
    folder, requirements = work / "envs" / name, REQUIREMENTS / f"{name}.txt"
    python = folder / "bin" / "python"
    shared = [path for path in sys.path if path.endswith("site-packages")] if base == THIS else []
    if base and base != THIS:
        shared = [str(site_packages(python_of(base, work)))]
    if (folder / MARK).exists() and (folder / MARK).read_text() == requirements.read_text():
        return python
    print(f"installing {name}", file=sys.stderr, flush=True)
    venv.create(folder, clear=True)
    if shared:
        (site_packages(python) / "base.pth").write_text("\n".join(shared) + "\n")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-cache-dir", "--disable-pip-version-check"]
    pip += [*platform_options(requirements.read_text(), python), "-r", requirements]
    done = subprocess.run(pip, check=False, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()[-1:]
        raise NotInstallable(f"pip cannot install {requirements.name}: {' '.join(errors)[:300]}")
    (folder / MARK).write_text(requirements.read_text())
    return python


def platform_options(requirements: str, python: Path) -> list[str]:
    """Return pip's options for requirements with a line `# platform: TAG`: wheels of this platform are installed, whatever this machine is.

    Args:
        requirements: Text of the requirements file.
        python: Interpreter of the environment.
    """
    tags = [line.removeprefix(PLATFORM) for line in requirements.splitlines() if line.startswith(PLATFORM)]
    if not tags:
        return []
    options = ["--only-binary", ":all:", "--no-deps", "--target", str(site_packages(python))]
    return [*options, *(word for tag in tags for word in ("--platform", tag))]


def site_packages(python: Path) -> Path:
    """Return the site-packages folder of an environment."""
    (folder,) = (python.parent.parent / "lib").glob("python3.*/site-packages")
    return folder.absolute()
