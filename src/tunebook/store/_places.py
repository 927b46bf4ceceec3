"""What kind of place a directory is: whether other hosts may write there, whom this host's locks do not hold back."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Final

#: File systems of which one kernel has sole charge, so that its locks exclude everybody. All others may be shared.
LOCAL: Final = frozenset(
    {"bcachefs", "btrfs", "erofs", "exfat", "ext2", "ext3", "ext4", "f2fs", "jfs", "ntfs3", "overlay", "tmpfs", "vfat",
     "xfs", "zfs"}
)  # fmt: skip
_MOUNTS: Final = Path("/proc/self/mountinfo")


def host_name() -> str:
    """This host's name as a part of a file name: 1 to 32 letters, digits and ``-``."""
    return re.sub(r"[^A-Za-z0-9-]+", "-", platform.node())[:32] or "host"


def may_be_shared(directory: Path) -> bool:
    """Whether hosts may share a directory. True for whatever is not known to be local, which is all that is not Linux."""
    try:
        kind = filesystem_of(os.path.realpath(directory), _MOUNTS.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return True
    return kind not in LOCAL


def filesystem_of(directory: str, mounts: str) -> str:
    """The type of the file system that holds `directory`, out of the text of ``/proc/self/mountinfo``; "" if unknown.

    Of the mount points that lead to it the longest counts, and of those that are alike the last, which covers the others.
    """
    longest, kind = -1, ""
    for line in mounts.splitlines():
        fields, _, rest = line.partition(" - ")
        columns, after = fields.split(" "), rest.split(" ")
        if len(columns) < 5 or not after[0]:
            continue
        point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), columns[4]).rstrip("/")
        if len(point) >= longest and (directory == point or directory.startswith(f"{point}/")):
            longest, kind = len(point), after[0]
    return kind
