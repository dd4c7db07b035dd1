"""`make gpu-bundle`: this project and the wheels that a bare GPU machine lacks, as a folder and an archive.

The machine has no network, and Python 3.12 with torch, transformers, peft and accelerate. What autofit and DeepSpeed need
beside those comes along in the versions of this environment; compiled packages only where that stack does not bring them.
No model weights: random ones are made on the device.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

from benchmarks.gpu.place import ROOT, commit

OUT = ROOT / ".gpu-bundle"
NAME = "autofit-gpu"
PYTHON = "3.12"
THERE = ("torch", "transformers", "peft", "accelerate")
LIMIT_BYTES = 60 * 10**6
BUILT = "deepspeed"
"""Published as a source archive only; its extensions are not built: nothing that is measured uses one."""
CARRIED = ("autofit", "benchmarks", "db", "search_spaces", "Makefile", "pyproject.toml", "README.md", "LICENSE")
_PLATFORMS = (
    "manylinux_2_28",
    "manylinux_2_27",
    "manylinux_2_26",
    "manylinux_2_24",
    "manylinux_2_17",
    "manylinux2014",
    "manylinux1",
)
_INSTALL = Path(__file__).with_name("install.sh")


def requirements() -> list[str]:
    """What autofit declares, and DeepSpeed."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    return [*declared, BUILT]


def closure(roots: Iterable[str], without: frozenset[str] = frozenset()) -> set[str]:
    """Names of the installed packages that `roots` need, themselves included, on Python 3.12 without extras.

    Args:
        without: packages that are neither taken nor followed.

    Raises:
        SystemExit: one of them is not installed here, so that its version is not known.
    """
    found: set[str] = set()
    waiting = [Requirement(root) for root in roots]
    while waiting:
        name = canonicalize_name(waiting.pop().name)
        if name in found or name in without:
            continue
        found.add(name)
        try:
            needs = [Requirement(text) for text in metadata.requires(name) or []]
        except metadata.PackageNotFoundError:
            raise SystemExit(f"gpu-bundle: {name} is not installed here; run make setup first") from None
        waiting += [need for need in needs if _applies(need)]
    return found


def _applies(need: Requirement) -> bool:
    environment = {"python_version": PYTHON, "python_full_version": f"{PYTHON}.0", "extra": ""}
    return need.marker is None or need.marker.evaluate(environment)


def lacking(wheels: Iterable[Path], there: set[str]) -> list[Path]:
    """The wheels to carry: all that are pure Python, and compiled ones of packages that are not `there`.

    Another version of a pure package does no harm in front of theirs; another of a compiled one may not fit what uses it.
    """
    chosen = []
    for wheel in wheels:
        name, _, _, tags = parse_wheel_filename(wheel.name)
        if all(tag.abi == "none" and tag.platform == "any" for tag in tags) or name not in there:
            chosen.append(wheel)
    return chosen


def fetch(names: Iterable[str], into: Path) -> None:
    """Downloads wheels for the machine, in the versions of this environment."""
    pinned = [f"{name}=={metadata.version(name)}" for name in sorted(names) if name != BUILT]
    platforms = [word for name in _PLATFORMS for word in ("--platform", f"{name}_x86_64")]
    _pip("download", "--no-deps", "--only-binary=:all:", "--python-version", PYTHON, *platforms, "--dest", str(into), *pinned)
    _pip("wheel", "--no-deps", "--wheel-dir", str(into), "--no-build-isolation", f"{BUILT}=={metadata.version(BUILT)}")


def _pip(*arguments: str) -> None:
    # DS_BUILD_OPS=0: no extension is compiled; on the machine, DeepSpeed's Python is all that is used.
    env = {**os.environ, "DS_BUILD_OPS": "0", "DS_ACCELERATOR": "cpu"}
    command = [sys.executable, "-m", "pip", arguments[0], "--quiet", "--disable-pip-version-check", *arguments[1:]]
    if subprocess.run(command, env=env, check=False).returncode:
        raise SystemExit(f"gpu-bundle: pip {arguments[0]} failed")


def gather(folder: Path) -> None:
    """The project's files, its commit and the script that installs it."""
    for name in CARRIED:
        source, target = ROOT / name, folder / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
        else:
            shutil.copy2(source, target)
    (folder / "COMMIT").write_text(commit() + "\n", encoding="utf-8")
    shutil.copy2(_INSTALL, folder / "install.sh")


def archive(folder: Path) -> Path:
    """`folder` as a tar archive beside it."""
    file = folder.with_name(f"{folder.name}.tar.gz")
    with tarfile.open(file, "w:gz", compresslevel=6) as tar:
        tar.add(folder, arcname=folder.name)
    return file


def main() -> int:
    """See the module."""
    folder, downloads = OUT / NAME, OUT / "downloads"
    shutil.rmtree(OUT, ignore_errors=True)
    (folder / "wheels").mkdir(parents=True)
    downloads.mkdir()
    there = closure(THERE)
    names = closure(requirements(), without=frozenset(THERE))
    fetch(names, downloads)
    for wheel in lacking(sorted(downloads.glob("*.whl")), there):
        shutil.copy2(wheel, folder / "wheels" / wheel.name)
    shutil.rmtree(downloads)
    gather(folder)
    file = archive(folder)
    print(f"{file.relative_to(ROOT)}: {file.stat().st_size / 10**6:.1f} MB, {len(list((folder / 'wheels').iterdir()))} wheels")
    if file.stat().st_size > LIMIT_BYTES:
        largest = max((folder / "wheels").iterdir(), key=lambda wheel: wheel.stat().st_size)
        sys.stderr.write(f"gpu-bundle: more than {LIMIT_BYTES / 10**6:.0f} MB; the largest wheel is {largest.name}\n")
        return 1
    print(f"there: tar xf {file.name}, then sh {NAME}/install.sh and, in {NAME}/, make gpu-evidence PART=accuracy")
    return 0


if __name__ == "__main__":
    sys.exit(main())
