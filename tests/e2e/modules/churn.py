"""Memory of every allocator at hand, and a sequence of operations on it that a seed decides.

What is printed depends on the seed alone: where an operation finds other bytes than it would in a
process that was never frozen, the lines differ.
"""

import ctypes
import ctypes.util
import mmap
import os
import random
import threading
import zlib

PAGE = 4096
MB = 1 << 20

libc = ctypes.CDLL(None, use_errno=True)
for _name, _result, *_arguments in (
    ("malloc", ctypes.c_void_p, ctypes.c_size_t),
    ("calloc", ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t),
    ("realloc", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t),
    ("aligned_alloc", ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t),
    ("free", None, ctypes.c_void_p),
    ("malloc_trim", ctypes.c_int, ctypes.c_size_t),
    ("sbrk", ctypes.c_void_p, ctypes.c_ssize_t),
    ("mprotect", ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int),
    ("msync", ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int),
    ("mlock", ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t),
    ("munlock", ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t),
    ("madvise", ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int),
):
    _function = getattr(libc, _name, None)
    if _function is not None:
        _function.restype, _function.argtypes = _result, _arguments

DONTNEED, FREE, HUGEPAGE, NOHUGEPAGE, COLD, POPULATE_WRITE = 4, 8, 14, 15, 20, 23


def filled(size, seed):
    """Bytes in which no page is like another, of any size, at once."""
    page = random.Random(seed).randbytes(PAGE - 8)
    count = size // PAGE + 1
    return b"".join(number.to_bytes(8, "little") + page for number in range(count))[:size]


class Block:
    """A block of C's; `content` says how much of it was written."""

    def __init__(self, address, size):
        self.address, self.size = address, size

    def write(self, at, data):
        """Puts bytes into it."""
        ctypes.memmove(self.address + at, data, len(data))

    def read(self):
        """All its bytes."""
        return ctypes.string_at(self.address, self.size)


def sizes(dice):
    """Sizes around every threshold of malloc and of CPython."""
    low, high = dice.choice([(1, 600), (600, 5000), (5000, 140_000), (140_000, MB), (MB, 6 * MB)])
    return dice.randint(low, high)


class Churn:
    """The memory, and what can be done to it."""

    def __init__(self, seed):
        dice = random.Random(seed)
        self.arrays = [bytearray(filled(sizes(dice), n)) for n in range(40)]
        self.blocks = []
        for number in range(120):
            size = sizes(dice)
            block = Block(libc.aligned_alloc(64, size) if number % 5 == 0 else libc.malloc(size), size)
            block.write(0, filled(size, number))
            self.blocks.append(block)
        # Holes: free chunks full of dirt, in the middle of the heap.
        for number in range(0, 120, 7):
            libc.free(self.blocks[number].address)
        self.blocks = [block for number, block in enumerate(self.blocks) if number % 7]
        self.areas = []
        for number in range(6):
            area = mmap.mmap(-1, (number + 1) * MB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            area[:] = filled(len(area), number)
            self.areas.append(area)
        self.objects = [[str(n) * (n % 50) for n in range(3000)] for _ in range(8)]
        # The same in an arena of a thread's own, which lives on with its thread.
        self.jobs, self.results = [], []
        self.wake, self.done = threading.Semaphore(0), threading.Semaphore(0)
        self.theirs = []
        threading.Thread(target=self._serve, daemon=True).start()
        self.elsewhere(lambda: self._fill(self.theirs))

    def _fill(self, blocks):
        dice = random.Random(5)
        for number in range(150):
            size = dice.randint(20, 120_000)
            block = Block(libc.malloc(size), size)
            block.write(0, filled(size, number))
            blocks.append(block)

    def _serve(self):
        while self.wake.acquire():
            self.results.append(self.jobs.pop()())
            self.done.release()

    def elsewhere(self, job):
        """Runs a function in the other thread."""
        self.jobs.append(job)
        self.wake.release()
        assert self.done.acquire(timeout=60)
        return self.results.pop()

    # Operations: each returns what is to be compared.

    def array_grows(self, dice):
        """bytearray: realloc to more, with mremap for what is large."""
        array = dice.choice(self.arrays)
        array.extend(filled(sizes(dice), 1) if dice.random() < 0.5 else bytes(sizes(dice)))
        return zlib.crc32(array)

    def array_shrinks(self, dice):
        """bytearray: realloc to less, then to more again."""
        array = dice.choice(self.arrays)
        size = len(array)
        del array[dice.randint(0, size) :]
        cut = zlib.crc32(array)
        if dice.random() < 0.5:
            array.extend(bytes(size - len(array)))
        return cut, zlib.crc32(array)

    def array_is_written(self, dice):
        """A write to some pages only."""
        array = dice.choice(self.arrays)
        for _ in range(5):
            if array:
                array[dice.randrange(len(array))] ^= 0xFF
        return zlib.crc32(array)

    def block_is_resized(self, dice, blocks=None):
        """realloc of C's, by little and by much."""
        block = dice.choice(self.blocks if blocks is None else blocks)
        size = dice.choice([block.size + PAGE, block.size // 2 + 1, sizes(dice), block.size * 3])
        size = min(size, 30 * MB)
        kept = min(size, block.size)
        block.address = libc.realloc(block.address, size)
        block.size = kept
        found = zlib.crc32(block.read())
        block.size = size
        block.write(kept, filled(size - kept, size))
        return found

    def block_is_replaced(self, dice, blocks=None):
        """free, then calloc, whose zeros are looked at."""
        blocks = self.blocks if blocks is None else blocks
        number = dice.randrange(len(blocks))
        gone, size = blocks[number], sizes(dice)
        found = zlib.crc32(gone.read())
        libc.free(gone.address)
        block = blocks[number] = Block(libc.calloc(1, size), size)
        clean = not any(block.read())
        block.write(0, filled(size, size))
        return found, clean

    def many_are_freed(self, dice, blocks=None):
        """A stretch of the heap becomes free, is given back, and is taken again."""
        blocks = self.blocks if blocks is None else blocks
        size = dice.randint(10, 200_000)
        many = [Block(libc.malloc(size), size) for _ in range(60)]
        for block in many:
            block.write(0, b"\xa5" * size)
        half = len(blocks) // 2
        found = [zlib.crc32(block.read()) for block in blocks[half:]]
        for block in many + blocks[half:]:
            libc.free(block.address)
        libc.malloc_trim(0)
        clean = True
        for number in range(half, len(blocks)):
            size = sizes(dice)
            block = blocks[number] = Block(libc.calloc(1, size), size)
            clean = clean and not any(block.read())
            block.write(0, filled(size, number))
        return zlib.crc32(repr(found).encode()), clean

    def thread_works(self, dice):
        """The same in the other thread's arena."""
        job = dice.choice([self.block_is_resized, self.block_is_replaced, self.many_are_freed, self.block_is_emptied])
        return self.elsewhere(lambda: job(dice, self.theirs))

    def area_is_emptied(self, dice):
        """MADV_DONTNEED: zeros."""
        area = dice.choice(self.areas)
        start = dice.randrange(len(area) // PAGE) * PAGE
        area.madvise(mmap.MADV_DONTNEED, start, dice.randint(1, len(area) - start))
        found = zlib.crc32(area)
        area[start : start + 10] = b"x" * 10
        return found

    def area_is_resized(self, dice):
        """mremap to less, then to more: zeros."""
        area = dice.choice(self.areas)
        size = len(area)
        area.resize(dice.randint(1, size // PAGE) * PAGE)
        cut = zlib.crc32(area)
        area.resize(dice.randint(size // PAGE, 2 * size // PAGE % (16 * MB // PAGE) + size // PAGE) * PAGE % (24 * MB) + PAGE)
        return cut, zlib.crc32(area)

    def area_is_advised(self, dice):
        """Advice that changes no byte: whether it is taken, and that it does not."""
        area = dice.choice(self.areas)
        advice = dice.choice([HUGEPAGE, NOHUGEPAGE, COLD, POPULATE_WRITE])
        address = ctypes.addressof(ctypes.c_char.from_buffer(area))
        taken = libc.madvise(address, len(area), advice)
        synced = libc.msync(address, len(area), 4)
        return taken, synced, zlib.crc32(area)

    def area_is_protected(self, dice):
        """mprotect to read-only and back, mlock and back."""
        area = dice.choice(self.areas)
        address = ctypes.addressof(ctypes.c_char.from_buffer(area))
        results = [libc.mprotect(address, PAGE, 1), zlib.crc32(area), libc.mprotect(address, PAGE, 3)]
        results += [libc.mlock(address, PAGE), libc.munlock(address, PAGE)]
        area[0:4] = b"abcd"
        return results

    def heap_moves(self, dice):
        """The break goes up and down again: what is above it is new each time."""
        size = dice.randint(1, 300) * PAGE
        start = libc.sbrk(size)
        clean = not any(ctypes.string_at(start, size))
        ctypes.memset(start, 7, size)
        if libc.sbrk(0) == start + size:
            libc.sbrk(-size)
        return clean

    def advice_to_malloc(self, dice):
        """Advice that changes no byte, to memory of malloc's; locks on it."""
        block = dice.choice([block for block in self.blocks if block.size > 3 * PAGE] or self.blocks)
        start = -(-block.address // PAGE) * PAGE
        length = (block.address + block.size - start) // PAGE * PAGE
        results = []
        if length > 0:
            results = [libc.madvise(start, length, advice) for advice in (HUGEPAGE, NOHUGEPAGE, COLD, POPULATE_WRITE)]
            results += [libc.mlock(start, PAGE), libc.munlock(start, PAGE), libc.msync(start, length, 4)]
        return results, zlib.crc32(block.read())

    def block_is_emptied(self, dice, blocks=None):
        """MADV_DONTNEED and MADV_FREE inside of a block of malloc's: zeros; what is free may be either."""
        blocks = self.blocks if blocks is None else blocks
        large = [block for block in blocks if block.size > 4 * PAGE]
        if not large:
            return None
        block, one, other = dice.choice(large), dice.random(), dice.random()
        # Where its pages begin is not the same in every process: what is compared must not tell.
        start = -block.address % PAGE
        count = (block.size - start) // PAGE
        first = int(one * count)
        begin = start + first * PAGE
        end = begin + int(1 + other * (count - first - 1)) * PAGE
        place, before = block.address + begin, block.read()
        results = [libc.madvise(place, end - begin, DONTNEED)]
        after = block.read()
        results += [after[:begin] == before[:begin], not any(after[begin:end]), after[end:] == before[end:]]
        block.write(begin, before[begin:end])
        results += [libc.madvise(place, end - begin, FREE)]
        block.write(begin, before[begin:end])
        return results, zlib.crc32(block.read())

    def objects_change(self, dice):
        """Arenas of small objects come and go."""
        number = dice.randrange(len(self.objects))
        found = zlib.crc32("".join(self.objects[number]).encode())
        self.objects[number] = [str(n) * (n % 70) for n in range(dice.randint(1, 20_000))]
        return found

    def child_writes(self, dice):
        """fork: what the child writes and frees, the parent does not see."""
        reader, writer = os.pipe()
        state = dice.getrandbits(32)
        pid = os.fork()
        if not pid:
            other = random.Random(state)
            told = [operation(other) for operation in (self.array_grows, self.block_is_resized, self.area_is_emptied)]
            os.write(writer, repr(told).encode())
            os._exit(0)
        os.close(writer)
        told = os.read(reader, 4096)
        os.close(reader)
        os.waitpid(pid, 0)
        return told, self.digest()

    def digest(self):
        """One number for every byte there is."""
        total = 0
        for part in self.arrays:
            total = zlib.crc32(part, total)
        for block in self.blocks + self.theirs:
            total = zlib.crc32(block.read(), total)
        for area in self.areas:
            total = zlib.crc32(area, total)
        return zlib.crc32(repr(self.objects).encode(), total)

    def run(self, seed, count):
        """Prints what `count` operations find, then a number for all memory."""
        dice = random.Random(seed)
        operations = [
            self.array_grows, self.array_shrinks, self.array_is_written, self.block_is_resized, self.block_is_replaced,
            self.many_are_freed, self.thread_works, self.area_is_emptied, self.area_is_resized, self.area_is_advised,
            self.area_is_protected, self.heap_moves, self.advice_to_malloc, self.block_is_emptied, self.objects_change,
            self.child_writes,
        ]  # fmt: skip
        print(self.digest())
        for number in range(count):
            operation = dice.choice(operations)
            print(number, operation.__name__, operation(dice), flush=True)
            # What was grown does not grow for ever.
            for array in self.arrays:
                if len(array) > 20 * MB:
                    del array[100:]
        print(self.digest())


memory = Churn(1)
