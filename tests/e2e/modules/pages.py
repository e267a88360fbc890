"""Pages of malloc's, of Python's and of one's own, and what the kernel can be asked to do with them."""

import ctypes
import mmap
import os

PAGE = 4096
SIZE = 64 * PAGE
NONE, READ, BOTH = 0, 1, 3

libc = ctypes.CDLL(None, use_errno=True)
libc.malloc.restype = libc.memalign.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.memalign.argtypes = [ctypes.c_size_t, ctypes.c_size_t]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.mlock.argtypes = libc.munlock.argtypes = [ctypes.c_void_p, ctypes.c_size_t]

DONTNEED, FREE, WIPEONFORK, KEEPONFORK, HUGEPAGE, NOHUGEPAGE = 4, 8, 18, 19, 14, 15
DONTNEED_LOCKED, GUARD_INSTALL, GUARD_REMOVE = 24, 102, 103


def _filled(address):
    ctypes.memset(address, 0x5A, SIZE)
    return address


_own = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
_array = bytearray(40 << 20)
_inside = ctypes.addressof(ctypes.c_char.from_buffer(_array))
# Whole pages inside of what owns them.
regions = {
    "heap": _filled(libc.memalign(PAGE, SIZE)),
    "large block": _filled(libc.malloc(30 << 20) + (10 << 20) & -PAGE),
    "bytearray": _filled(_inside + (20 << 20) & -PAGE),
    "mapping": _filled(ctypes.addressof(ctypes.c_char.from_buffer(_own))),
}
# A guard between two pages, as stacks have.
guarded = mmap.mmap(-1, 3 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
guarded[:] = b"g" * len(guarded)
guard = ctypes.addressof(ctypes.c_char.from_buffer(guarded)) + PAGE
libc.mprotect(guard, PAGE, NONE)


def advise(address, length, advice):
    """What madvise(2) says: 0 or an error's number."""
    return ctypes.get_errno() if libc.madvise(address, length, advice) else 0


def content(address, length=SIZE):
    """What is there, in few words."""
    kinds = {0: "zeros", 0x5A: "kept", 0x77: "written"}
    found = ctypes.string_at(address, length)
    return "/".join(kinds.get(byte, str(byte)) for byte in sorted(set(found)))


def in_child(job):
    """How a forked child that does this ends."""
    pid = os.fork()
    if not pid:
        job()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
