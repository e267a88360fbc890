"""A directory, seen through FUSE: each open and each read takes longer. Usage: STORE PLACE SECONDS"""

from __future__ import annotations

import os
import sys
import time

try:  # Debian's name of it, then its own.
    from fusepy import FUSE, FuseOSError, Operations
except ImportError:
    from fuse import FUSE, FuseOSError, Operations


class Slow(Operations):
    """Reads only."""

    def __init__(self, store: str, delay: float) -> None:
        self._store, self._delay = store, delay

    def _real(self, path: str) -> str:
        return os.path.join(self._store, path.lstrip("/"))

    def getattr(self, path, fh=None):  # noqa: D102
        # One link of ours leads out of the store: what is behind it belongs to this file system.
        real = self._real(path)
        try:
            status = os.stat(real) if path.count("/") == 1 else os.lstat(real)
        except OSError as error:
            raise FuseOSError(error.errno) from None
        names = ("atime", "ctime", "gid", "mode", "mtime", "nlink", "size", "uid", "ino")
        return {f"st_{name}": getattr(status, f"st_{name}") for name in names}

    def readdir(self, path, fh):  # noqa: D102
        return [".", "..", *os.listdir(self._real(path))]

    def readlink(self, path):  # noqa: D102
        return os.readlink(self._real(path))

    def access(self, path, mode):  # noqa: D102
        if not os.access(self._real(path), mode):
            raise FuseOSError(13)

    def open(self, path, flags):  # noqa: D102
        time.sleep(self._delay)
        return os.open(self._real(path), flags & os.O_ACCMODE)

    def read(self, path, size, offset, fh):  # noqa: D102
        time.sleep(self._delay)
        return os.pread(fh, size, offset)

    def release(self, path, fh):  # noqa: D102
        os.close(fh)


if __name__ == "__main__":
    store, place, delay = sys.argv[1:]
    FUSE(Slow(store, float(delay)), place, foreground=True, ro=True, attr_timeout=60, entry_timeout=60)
