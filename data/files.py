"""Where the files of public data sets come from.

A data set's file is looked for in the data folder; what is not there is downloaded from its public
address, verified by SHA-256 and moved into place whole.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import shutil
import sys
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

CACHE = Path(__file__).parent / "cache"


class DataError(ValueError):
    """A data file is missing, damaged or not what it should be. The message is one line."""


@dataclass(frozen=True)
class RemoteFile:
    """One file of a data set.

    path: place inside the data folder.  url: public address; what ends in .gz where the path does
    not is unpacked.  sha256: of the file itself.  member: name inside the archive, where the address
    is a zip file.
    """

    path: str
    url: str
    sha256: str
    member: str | None = None


def data_folder(data_dir: str | None = None) -> Path:
    """`data_dir`, else the environment variable BSDL_DATA, else data/cache."""
    return Path(data_dir or os.environ.get("BSDL_DATA") or CACHE)


def locate(remote: RemoteFile, data_dir: str | None = None) -> Path:
    """Path of the file, downloaded first if need be.

    A file that is already there is used even if its checksum differs (a user may have put another
    edition there), with a note on standard error.

    Raises:
        DataError: no connection, or the download is not the published file.
    """
    import pooch

    path = data_folder(data_dir) / remote.path
    if path.is_file():
        if pooch.file_hash(str(path)) != remote.sha256:
            print(f"note: {path} is not the published file (SHA-256 differs); using it as it is", file=sys.stderr)
        return path
    with tempfile.TemporaryDirectory() as folder:
        file = _download(remote, folder, path)
        found = pooch.file_hash(str(file))
        if found != remote.sha256:
            raise DataError(
                f"{remote.url} gave a truncated or altered {path.name} "
                f"(SHA-256 {found[:12]}..., expected {remote.sha256[:12]}...); nothing was kept"
            )
        partial = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, partial)
            os.replace(partial, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise DataError(f"cannot write the data folder {path.parent}: {error.strerror}") from error
    return path


def _download(remote: RemoteFile, folder: str, path: Path) -> Path:
    """Fetch the file into `folder`; `path` is where the message tells a user without a connection to put it."""
    import pooch
    import requests

    logger = pooch.get_logger()
    logger.setLevel("WARNING")
    try:
        file = Path(pooch.retrieve(remote.url, known_hash=None, fname="download", path=folder))
        if remote.member is not None:
            with zipfile.ZipFile(file) as archive:
                file = Path(archive.extract(remote.member, folder))
        elif remote.url.endswith(".gz") and not remote.path.endswith(".gz"):
            packed, file = file, Path(folder) / "unpacked"
            with gzip.open(packed) as source, file.open("wb") as target:
                shutil.copyfileobj(source, target)
    except requests.exceptions.RequestException as error:
        raise DataError(
            f"{path.name} is not in the data folder and {remote.url} cannot be reached "
            f"({type(error).__name__}); put the file at {path}"
        ) from error
    except (zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError, KeyError) as error:
        raise DataError(f"{remote.url} gave a truncated or altered archive; nothing was kept") from error
    return file
