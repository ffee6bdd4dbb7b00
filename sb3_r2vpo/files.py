"""Files that are whole or not there, and folders that belong to one process."""

import io
import os
import re
import zipfile
import zlib
from pathlib import Path

#: What every model saved by SB3 has in it
SB3_ENTRY = "_stable_baselines3_version"


def write_file(path: str | Path, content: bytes) -> None:
    """
    Write a file beside, sync it to the disk, and put it in the place of the old one: whatever happens on the way, there
    is either the old file or the new one, whole.

    :param path: The file. Its folder is created
    :param content: What shall be in it
    :raises OSError: When it cannot be written, e.g. because the disk is full; the old file is unchanged
    """
    # A link stays one
    path = Path(os.path.realpath(path))
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        _sync_folder(path.parent)
    except OSError as e:
        raise OSError(e.errno, f"{path} cannot be written ({e.strerror}): what was there before is unchanged") from e
    finally:
        partial.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    # The new name is in the folder; on Windows folders cannot be opened
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_partial_files(folder: Path) -> None:
    """
    :param folder: A folder in which nobody writes; what killed processes have left in it is removed
    """
    for partial in folder.glob(".*.partial"):
        partial.unlink(missing_ok=True)


def claim_folder(parent: Path, name: str) -> Path:
    """
    Create the next of the folders ``name_1``, ``name_2``, ... Of processes that do so at the same moment each gets its own.

    :param parent: Where they are
    :param name: What they are called, without number
    :return: The new folder
    """
    parent.mkdir(parents=True, exist_ok=True)
    numbers = [int(m[1]) for path in parent.iterdir() if (m := re.fullmatch(re.escape(name) + r"_(\d+)", path.name))]
    number = max(numbers, default=0)
    while True:
        number += 1
        folder = parent / f"{name}_{number}"
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder


def check_model_file(file: str | Path | io.BufferedIOBase) -> None:
    """
    :param file: A saved model; as for SB3 its ``.zip`` may be left out
    :raises ValueError: When it is damaged, or something else
    """
    if isinstance(file, (str, Path)):
        file = Path(file) if Path(file).exists() else Path(f"{file}.zip")
    name = file if isinstance(file, Path) else "The file"
    try:
        with zipfile.ZipFile(file) as archive:
            unreadable, entries = archive.testzip(), archive.namelist()
    except (zipfile.BadZipFile, EOFError, zlib.error) as e:
        raise ValueError(f"{name} is damaged or no saved model ({e})") from e
    finally:
        if isinstance(file, io.IOBase):
            file.seek(0)
    if unreadable is not None:
        raise ValueError(f"{name} is damaged: its entry {unreadable} cannot be read")
    # What is left of a truncated file can end with the end of one of its entries, which are zip files too
    if SB3_ENTRY not in entries:
        raise ValueError(f"{name} is damaged or no saved model ({SB3_ENTRY} is not in it)")
