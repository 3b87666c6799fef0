"""What the file system under a folder can and cannot do."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

FAT_LARGEST = (4 << 30) - 1  # bytes of one file
_FAT = frozenset({"vfat", "msdos", "fat", "fat32"})
# Their times are coarse, or another machine's, or their inodes are made up: a stamp says nothing there.
_LOOSE = _FAT | {
    "exfat",
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "smbfs",
    "9p",
    "afs",
    "fuseblk",
    "fuse.sshfs",
    "webdav",
}


def is_fat(folder: Path) -> bool:
    """Say whether a folder lies, or will lie, where no file may have 4 GiB."""
    return _kind(folder) in _FAT


def keeps_stamps(folder: Path) -> bool:
    """Say whether unchanged inode and times mean an unchanged file there."""
    return os.name == "posix" and _kind(folder) not in _LOOSE


def nearest_there(folder: Path) -> Path:
    """Return the folder, or the nearest one above it that exists."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def _kind(folder: Path) -> str:
    """Return the type of the nearest mount point above a folder, which need not exist yet."""
    try:
        mounts = psutil.disk_partitions(all=True)
    except OSError:
        return ""
    kinds = {Path(mount.mountpoint): mount.fstype.lower() for mount in mounts}
    target = folder.resolve()
    return next((kinds[path] for path in (target, *target.parents) if path in kinds), "")
