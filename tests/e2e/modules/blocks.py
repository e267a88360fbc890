"""Memory of all kinds and sizes, with known content."""

import ctypes
import mmap
import threading

MB = 1 << 20
SIZES = (1 * MB, 100 * MB)


def pattern(size):
    """Bytes in which no page is like its neighbour."""
    page = 4096
    return b"".join((number * 2654435761 % (1 << 32)).to_bytes(4, "little") * (page // 4) for number in range(size // page))


_pattern = pattern(max(SIZES))

arrays = [bytearray(_pattern[:size]) for size in SIZES]
strings = [_pattern[:size] for size in SIZES]
lists = [list(range(size // 8)) for size in SIZES[:1]]
table = {number: str(number) for number in range(100_000)}

libc = ctypes.CDLL(None)
libc.malloc.restype = libc.calloc.restype = libc.realloc.restype = ctypes.c_void_p
libc.sbrk.restype = ctypes.c_void_p
libc.realloc.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.calloc.argtypes = [ctypes.c_size_t, ctypes.c_size_t]
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
libc.sbrk.argtypes = [ctypes.c_ssize_t]


def allocate(size):
    """A block of C's, filled."""
    address = libc.malloc(size)
    ctypes.memmove(address, _pattern, size)
    return address


chunks = [(allocate(size), size) for size in SIZES]
# Below the threshold from which malloc maps blocks: these lie in the heap.
small = [(allocate(60_000), 60_000) for _ in range(300)]
# Every other one is free again.
row = [libc.malloc(5000) for _ in range(400)]
holes = set(row[::2])
for address in holes:
    libc.free(address)

# Anonymous memory of our own.
private = mmap.mmap(-1, 4 * MB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
private[:] = _pattern[: 4 * MB]
growing = mmap.mmap(-1, 1 * MB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
growing[:] = _pattern[: 1 * MB]

# A malloc arena of a thread, full of dirt, whose blocks the thread frees after the freeze.
_go = threading.Event()
_done = threading.Event()
dirty = {}


def _fill_and_free():
    dirt = b"\xa5" * 100_000
    addresses = []
    for _ in range(300):
        address = libc.malloc(len(dirt))
        ctypes.memmove(address, dirt, len(dirt))
        addresses.append(address)
    dirty["blocks"] = addresses
    _go.wait()
    for address in reversed(addresses):
        libc.free(address)
    again = []
    for size in [100_000] * 400:
        address = libc.calloc(1, size)
        again.append((address, ctypes.string_at(address, size).count(0) == size))
    dirty["clean"] = [clean for _, clean in again]
    for address, _ in again:
        libc.free(address)
    _done.set()


_thread = threading.Thread(target=_fill_and_free, daemon=True)
_thread.start()
while "blocks" not in dirty:
    pass


def stir():
    """Lets the thread free its blocks and allocate zeroed ones: whether all were zero."""
    _go.set()
    assert _done.wait(60)
    return all(dirty["clean"])


def intact(address, size):
    """Whether a block of C's still has its content."""
    return ctypes.string_at(address, size) == _pattern[:size]
