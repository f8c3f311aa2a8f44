"""The disk that an emulated machine boots from: this Python, a wheel with all it needs, and a model.

Invariant: what comes from this machine keeps its path, so interpreter and shared libraries find each other.
There is no init system: the interpreter is the first process. Nothing here needs root.
"""

import compileall
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from py_compile import PycInvalidationMode

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HERE = Path(__file__).parent
PROGRAMS = ("guest.py", "scenarios.py", "batches.py", "observe.py", "readers.py")
GUEST = "/guest"
SITE = f"{GUEST}/site"
MODEL = f"{GUEST}/model"
INTERPRETER = Path(sys.executable).resolve()
# What no program in the guest imports.
LEFT_OUT = ("test", "tests", "idlelib", "tkinter", "lib2to3", "ensurepip", "site-packages", "config-*", "*.a")
# Room for the file system itself and for what a program may write.
SPARE_MIB = 64


def build(image: Path, wheel: Path, model: Path) -> None:
    """Write a raw ext4 image. Raises CalledProcessError when mke2fs cannot."""
    root = image.with_suffix(".root")
    shutil.rmtree(root, ignore_errors=True)
    for directory in ("proc", "sys", "dev", "tmp"):
        (root / directory).mkdir(parents=True)
    _keep_path(INTERPRETER, root)
    library = Path(sysconfig.get_path("stdlib"))
    shutil.copytree(library, _inside(root, library), ignore=shutil.ignore_patterns(*LEFT_OUT))
    site = _inside(root, SITE)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    for name in sorted(closure("lsg")):
        _copy_package(name, site)
    for program in PROGRAMS:
        shutil.copy2(HERE / program, _inside(root, GUEST))
    for shared in _shared_libraries(root):
        _keep_path(shared, root)
    # The disk is read-only there, and an emulated machine would compile everything again in each process.
    compileall.compile_dir(
        site,
        quiet=1,
        stripdir=str(root),
        prependdir="/",
        invalidation_mode=PycInvalidationMode.UNCHECKED_HASH,
    )
    # Hard links: a model is the larger part of the image.
    shutil.copytree(model, _inside(root, MODEL), copy_function=_link_or_copy)
    used = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
    image.unlink(missing_ok=True)
    size = f"{(used * 21 // 20 >> 20) + SPARE_MIB}M"
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-b", "4096", "-d", root, image, size], check=True)
    shutil.rmtree(root)


def closure(name: str) -> set[str]:
    """Distributions that `name` needs, those that they need and so on; not itself."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        for text in distribution(waiting.pop()).requires or ():
            requirement = Requirement(text)
            needed = canonicalize_name(requirement.name)
            if needed in found or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
                continue
            found.add(needed)
            waiting.append(needed)
    return found


def _copy_package(name: str, site: Path) -> None:
    package = distribution(name)
    if package.files is None:
        raise PackageNotFoundError(name)
    for file in package.files:
        # Not what lies outside of site-packages, such as programs.
        if ".." not in file.parts and "tests" not in file.parts:
            target = site / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(package.locate_file(file), target)


def _shared_libraries(root: Path) -> set[Path]:
    """Absolute paths of what the programs and extension modules in `root` are linked against."""
    objects = [path for path in root.rglob("*.so*") if path.is_file()]
    listing = subprocess.run(
        ["ldd", _inside(root, INTERPRETER), *objects], capture_output=True, text=True, check=True
    ).stdout
    paths = {Path(word) for word in listing.split() if word.startswith("/") and not word.endswith(":")}
    return {path for path in paths if not path.is_relative_to(root)}


def _inside(root: Path, path: Path | str) -> Path:
    return root / str(path).lstrip("/")


def _keep_path(path: Path, root: Path) -> None:
    target = _inside(root, path)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(path, target)


def _link_or_copy(source: str, target: str) -> None:
    try:
        Path(target).hardlink_to(source)
    except OSError:
        shutil.copy2(source, target)
