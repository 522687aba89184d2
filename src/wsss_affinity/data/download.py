"""Folders of unpacked archives, which are there whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from wsss_affinity.errors import WSSSError
from wsss_affinity.files import make_directory


def fetch_folder(target: Path, fetch: Callable[[Path], Path], archive: str) -> None:
    """Download and unpack into a folder beside ``target``, then rename it into place.

    After an interruption archives that had arrived are used again, and what was unpacked of them
    is not.

    Args:
        target: The folder that is to be; nothing is done if it exists.
        fetch: Downloads and unpacks into the folder it is given and returns the folder there that
            becomes ``target``.
        archive: Name of what is downloaded, for the message.

    Raises:
        WSSSError: If the download fails.
    """
    if target.is_dir():
        return
    partial = make_directory(target.with_name(f".{target.name}.part"))
    for left in partial.iterdir():
        if left.is_dir():
            shutil.rmtree(left)
    try:
        os.replace(fetch(partial), target)
    except Exception as error:  # of the network, the archive or the disk, each with its own kinds
        raise WSSSError(
            f"cannot download {archive} ({error}); run the same command again, or fetch it "
            f"yourself and unpack it as {target}"
        ) from error
    shutil.rmtree(partial, ignore_errors=True)
