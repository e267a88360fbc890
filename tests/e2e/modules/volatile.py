"""Memory that the kernel was asked to treat in its own way."""

import ctypes
import mmap

SIZE = 4 * 4096
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

MAP_DROPPABLE = 0x08
PRIVATE = 0x02 | 0x20
# Advice of <sys/mman.h>, and what /proc/PID/smaps calls it.
ADVICE = {"wf": 18, "dc": 10, "dd": 16, "hg": 14, "nh": 15}

regions = {}


def _map(name, flags=PRIVATE, protection=3, size=SIZE):
    # Neighbours of one kind would become one mapping.
    _libc.mmap(None, 4096, 0, PRIVATE, -1, 0)
    address = _libc.mmap(None, size, protection, flags, -1, 0)
    if address in (None, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), name)
    regions[name] = address
    return address


for _name, _number in ADVICE.items():
    _address = _map(_name)
    ctypes.memset(_address, 0x5A, SIZE)
    if _libc.madvise(_address, SIZE, _number):
        raise OSError(ctypes.get_errno(), _name)
    ctypes.memset(_address, 0x5A, SIZE)

try:
    ctypes.memset(_map("dp", MAP_DROPPABLE | 0x20), 0x5A, SIZE)
except OSError:
    # Kernels before 6.11 do not know it.
    del regions["dp"]

ctypes.memset(_map("ro"), 0x5A, SIZE)
_libc.mprotect(regions["ro"], SIZE, 1)
ctypes.memset(_map("none"), 0x5A, SIZE)
_libc.mprotect(regions["none"], SIZE, 0)
# mov eax, 42; ret
_code = bytes.fromhex("b82a000000c3")
ctypes.memmove(_map("code", protection=7), _code, len(_code))


def look():
    """For each region: its protection, its flags in smaps, and whether it holds what was written."""
    with open("/proc/self/smaps") as file:
        lines = file.read().splitlines()
    seen, start, head = {}, None, None
    for line in lines:
        if "-" in line.split(" ")[0]:
            start, head = int(line.split("-")[0], 16), line.split()[1]
        elif line.startswith("VmFlags:"):
            seen[start] = head, line.split()[1:]
    for name, address in regions.items():
        head, flags = seen.get(address, ("gone", []))
        content = None if name == "none" else ctypes.string_at(address, SIZE)
        yield name, head, flags, content


def call():
    """Runs the code."""
    return ctypes.CFUNCTYPE(ctypes.c_int)(regions["code"])()
