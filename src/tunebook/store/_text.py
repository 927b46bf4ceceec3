"""Text that is safe to print on one line: names and messages out of files come from other people."""

from __future__ import annotations

import errno


def one_line(text: object, limit: int = 300) -> str:
    """`text` without line breaks or control characters (they are spelt out), cut in its middle at `limit`."""
    raw = str(text)
    if len(raw) > limit:
        raw = f"{raw[: limit * 2 // 3]} … {raw[-limit // 4 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in raw)


_REMEDIES = {
    errno.ENOSPC: "free some space (or files, where `df -i` shows none left)",
    errno.EFBIG: "raise the limit on the size of files, ulimit -f",
    errno.EDQUOT: "free some of the quota",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "check the permissions of the directory",
    errno.EPERM: "check the permissions of the directory",
    errno.ENOTDIR: "a part of the path is a file",
    errno.EEXIST: "a part of the path is a file",
    errno.ENAMETOOLONG: "shorten the path",
    errno.ELOOP: "put a directory in the place of the symbolic link",
}


def cause(error: OSError) -> str:
    """What an operating system error says, without number and path."""
    return error.strerror or str(error) or type(error).__name__


def remedy(error: OSError) -> str:
    """What a user may do about it; every place can be changed, so that comes last."""
    known = _REMEDIES.get(error.errno or 0)
    other = "choose another place with --cache or TUNEBOOK_CACHE_DIR"
    return f"{known}, or {other}" if known else other
