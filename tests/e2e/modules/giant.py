"""Blocks of a megabyte, of a hundred, and of a gigabyte, of C's and of Python's."""

import ctypes
import zlib

MB = 1 << 20
SIZES = (1 * MB, 100 * MB, 1024 * MB)

libc = ctypes.CDLL(None)
libc.malloc.restype = libc.realloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.realloc.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]

_pattern = b"".join(number.to_bytes(8, "little") * 512 for number in range(1, 257))


def view(address, size):
    """The bytes of a block."""
    return memoryview((ctypes.c_char * size).from_address(address)).cast("B")


def fill(memory):
    """Writes all of it; no megabyte is like another."""
    for number, start in enumerate(range(0, len(memory), MB)):
        part = memory[start : start + MB]
        part[:] = _pattern[: len(part)]
        part[:8] = number.to_bytes(8, "little")


def sum_of(memory, size):
    """A number for the first bytes."""
    return zlib.crc32(memory[:size])


def touch(memory, start):
    """Writes to each page from there on."""
    for place in range(start, len(memory), 4096):
        memory[place] = 7


def blocks():
    """Each block with a function that changes its size, and with its bytes."""
    for size, address in zip(SIZES, addresses):
        yield size, CBlock(address, size)
    yield len(array), PythonBlock()


class CBlock:
    """A block of malloc's."""

    def __init__(self, address, size):
        self.address, self.size = address, size

    def resize(self, size):
        """realloc."""
        self.address, self.size = libc.realloc(self.address, size), size

    def memory(self):
        """Its bytes."""
        return view(self.address, self.size)

    def free(self):
        """Gives it back."""
        libc.free(self.address)


class PythonBlock:
    """A bytearray, which CPython gives a little more than it asks for."""

    def resize(self, size):
        """realloc, by CPython."""
        if size > len(array):
            array.extend(bytes(size - len(array)))
        else:
            del array[size:]

    def memory(self):
        """Its bytes."""
        return memoryview(array)

    def free(self):
        """Gives it back."""
        array.clear()


addresses = []
for _size in SIZES:
    addresses.append(libc.malloc(_size))
    fill(view(addresses[-1], _size))
array = bytearray(SIZES[-1] // 4)
fill(memoryview(array))
