//! Memory that came from an image behaves as memory that did not.

use std::env;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::support::{Context, Engine, Recipe, everywhere, for_everyone, for_makers, once, shared};

fn blocks(it: &Context, code: &str, expected: &str) {
    check(
        it,
        Recipe::Blocks,
        &format!("import blocks, ctypes, os\nfrom blocks import *\n{code}"),
        expected,
    );
}

fn check(it: &Context, recipe: Recipe, code: &str, expected: &str) {
    let outcome = it.code(code).from(recipe).thaw();
    assert!(outcome.status.success(), "{outcome:?}");
    assert_eq!(outcome.text(), expected, "{outcome:?}");
}

#[test]
fn content_is_as_it_was() {
    for_everyone(|it| {
        let code = r"
print([array == blocks._pattern[:size] for array, size in zip(arrays, SIZES)])
print([string == blocks._pattern[:size] for string, size in zip(strings, SIZES)])
print([intact(*block) for block in chunks], all(intact(*block) for block in small))
print(lists[0] == list(range(len(lists[0]))), all(table[n] == str(n) for n in table), len(table))
print(private[:] == blocks._pattern[:4 * MB], growing[:] == blocks._pattern[:MB], blocks._pattern == pattern(100 * MB))
";
        blocks(
            it,
            code,
            "[True, True]\n[True, True]\n[True, True] True\nTrue True 100000\nTrue True True\n",
        );
    });
}

#[test]
fn memory_that_is_copied_at_once_is_no_mapping_of_the_image() {
    for_everyone(|it| {
        let code =
            "import json, os; print(json.dumps([1]), '.img' in open('/proc/self/maps').read())";
        for (options, expected) in [(&[][..], "[1] True\n"), (&["--eager"], "[1] False\n")] {
            let outcome = it.code(code).options(options).thaw().succeeds();
            assert_eq!(outcome.text(), expected, "{outcome:?}");
        }
    });
}

#[test]
fn blocks_of_python_grow_and_shrink() {
    for_everyone(|it| {
        let code = r"
for array, size in zip(arrays, SIZES):
    for more in (1, 4096, MB, 30 * MB, 100 * MB, 3 * size):
        old = len(array)
        array.extend(bytes(more))
        assert array[:size] == blocks._pattern[:size] and array.count(0, old) == more, (size, more)
    del array[size // 2:]
    assert array == blocks._pattern[:size // 2]
    array.extend(blocks._pattern[size // 2:size])
    assert array == blocks._pattern[:size]
    array.clear()
for items in lists:
    size = len(items)
    items.extend(range(size, 20 * size)); assert items == list(range(20 * size))
    del items[10:]; assert items == list(range(10))
table.update((n, str(n)) for n in range(100_000, 1_000_000)); print(all(table[n] == str(n) for n in range(1_000_000)))
";
        blocks(it, code, "True\n");
    });
}

#[test]
fn blocks_of_c_grow_and_shrink() {
    for_everyone(|it| {
        let code = r"
for address, size in chunks:
    for new in (size + 1, 2 * size, 2 * size + 4096, 4 * size + 123, size, size // 2):
        address = libc.realloc(address, new)
        assert address and intact(address, min(size, new)), (size, new)
        ctypes.memset(address + min(size, new), 0x11, max(0, new - size))
    libc.free(address)
for index, (address, size) in enumerate(small):
    address = libc.realloc(address, size * (1 + index % 5))
    assert intact(address, size)
    libc.free(address)
print(libc.malloc_trim(0) in (0, 1))
for size in (100, 5000, 60_000, 120_000, 500_000, 50_000_000):
    for _ in range(20):
        address = libc.calloc(1, size)
        assert ctypes.string_at(address, size).count(0) == size, size
        ctypes.memset(address, 0xEE, size)
        libc.free(address)
print('done')
";
        blocks(it, code, "True\ndone\n");
    });
}

#[test]
fn freed_memory_of_a_threads_arena_is_zero_again() {
    for_everyone(|it| {
        // glibc gives the end of an arena back with MADV_DONTNEED and relies on zeros after that.
        blocks(it, "print(stir())", "True\n");
    });
}

#[test]
fn the_heap_grows_and_shrinks() {
    for_everyone(|it| {
        let code = r"
start = libc.sbrk(0)
assert libc.sbrk(50 * MB) == start
assert ctypes.string_at(start, 50 * MB).count(0) == 50 * MB
ctypes.memset(start, 7, 50 * MB)
libc.sbrk(-50 * MB)
assert libc.sbrk(50 * MB) == start and ctypes.string_at(start, 50 * MB).count(0) == 50 * MB
libc.sbrk(-50 * MB)
many = [libc.malloc(1000) for _ in range(200_000)]
for address in many: ctypes.memset(address, 3, 1000)
for address in many: libc.free(address)
print(all(intact(*block) for block in small), [line.split()[-1] for line in open('/proc/self/maps')].count('[heap]'))
import gc
keep = [object() for _ in range(2_000_000)]; del keep; gc.collect()
print(sum(len(str(n)) for n in range(300_000)))
";
        blocks(it, code, "True 1\n1688890\n");
    });
}

#[test]
fn mappings_of_ones_own_keep_the_meaning_of_anonymous_memory() {
    for_everyone(|it| {
        let code = r"
import mmap
private.madvise(mmap.MADV_DONTNEED, 0, MB)
print(private[:MB].count(0) == MB, private[MB:] == blocks._pattern[MB:4 * MB])
private[:MB] = blocks._pattern[:MB]; print(private[:] == blocks._pattern[:4 * MB])
print(private.madvise(mmap.MADV_FREE, 0, MB))
growing.resize(8 * MB); print(growing[:MB] == blocks._pattern[:MB], growing[MB:].count(0) == 7 * MB)
growing.resize(MB // 2); growing.resize(MB); print(growing[:MB // 2] == blocks._pattern[:MB // 2], growing[MB // 2:].count(0) == MB // 2)
pid = os.fork()
if not pid:
    private[:10] = b'x' * 10; arrays[0][:10] = b'y' * 10; os._exit(0)
os.waitpid(pid, 0)
print(arrays[0] == blocks._pattern[:MB])
del private, growing
";
        blocks(it, code, "True True\nTrue\nNone\nTrue True\nTrue True\nTrue\n");
    });
}

#[test]
fn arrays_of_numpy_grow() {
    for_everyone(|it| {
        let code = r"
import numpy
from numeric import arrays, SIZES
for array, size in zip(arrays, SIZES):
    assert (array == numpy.arange(size)).all()
    for factor in (2, 4):
        array.resize(factor * size, refcheck=False)
        assert (array[:size] == numpy.arange(size)).all() and not array[size:].any(), (size, factor)
    array.resize(size // 3, refcheck=False)
    assert (array == numpy.arange(size // 3)).all()
print(numpy.zeros(5_000_000).any(), numpy.zeros((300, 300)).any())
";
        check(it, Recipe::Numeric, code, "False False\n");
    });
}

#[test]
fn volatile_mappings_come_back_empty_with_their_flags() {
    for_everyone(|it| {
        let code = r"
import volatile
for name, head, flags, content in volatile.look():
    what = {None: 'unread', b'\0' * volatile.SIZE: 'empty', b'\x5a' * volatile.SIZE: 'kept'}.get(content, 'other')
    print(name, head, name in flags or len(name) != 2 or name == 'ro', what)
print(volatile.call())
";
        let outcome = it.code(code).from(Recipe::Volatile).thaw().succeeds();
        let text = outcome.text();
        let lines: Vec<&str> = text.lines().collect();
        for expected in [
            "wf rw-p True empty",
            "dc rw-p True kept",
            "dd rw-p True kept",
            "hg rw-p True kept",
            "nh rw-p True kept",
            "ro r--p True kept",
            "none ---p True unread",
            "code rwxp True other",
            "42",
        ] {
            assert!(lines.contains(&expected), "{expected} is not among {lines:#?}");
        }
        if lines.iter().any(|line| line.starts_with("dp ")) {
            assert!(lines.contains(&"dp rw-p True empty"), "{lines:#?}");
        }
    });
}

#[test]
fn runs_share_what_they_do_not_write() {
    once(|it| {
        let code = "import blocks, re\ntext = open('/proc/self/smaps_rollup').read()\n\
                    print(sum(int(n) for n in re.findall(r'Private_Dirty: +(\\d+)', text)), sum(int(n) for n in re.findall(r'Rss: +(\\d+)', text)))";
        let outcome = it.code(code).from(Recipe::Blocks).thaw().succeeds();
        let text = outcome.text();
        let private: u64 = text.split_whitespace().next().unwrap().parse().unwrap();
        // 300 MB in the image, of which 5 MB are mappings that must be copied.
        assert!(private < 20_000, "{private} kB of a run are its own");
    });
}

#[test]
fn memory_of_other_kinds_after_the_thaw() {
    for_everyone(|it| {
        let code = r"
import ctypes, mmap, os, tempfile
for flags in (mmap.MAP_PRIVATE, mmap.MAP_SHARED):
    area = mmap.mmap(-1, 1 << 20, flags=flags | mmap.MAP_ANONYMOUS); area[5] = 1; print(area[:8])
with tempfile.TemporaryFile() as file:
    file.write(bytes(10000)); file.flush()
    area = mmap.mmap(file.fileno(), 0); area[9999] = 3; area.flush(); file.seek(9999); print(file.read())
callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_int), ctypes.POINTER(ctypes.c_int))
numbers = (ctypes.c_int * 5)(3, 1, 2, 5, 4)
ctypes.CDLL(None).qsort(numbers, 5, 4, callback(lambda a, b: a[0] - b[0])); print(list(numbers))
def deep(n): return n and deep(n - 1)
import sys; sys.setrecursionlimit(30000); print(deep(9000))
print(len(b'x' * (1 << 28)), sum(bytearray(1 << 26)))
";
        it.python(["script.py"]).file("script.py", code).is_as_stock().succeeds();
    });
}

/// The same random operations on memory that was frozen and on memory that was not: each finds the
/// same bytes. `PRELOADED_CRIU_TEST_SEED` repeats a sequence that failed (it is the first argument
/// of the command that the failure shows), `PRELOADED_CRIU_TEST_LONG` does more of them.
#[test]
fn random_operations_find_the_same_bytes() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let seed = env::var("PRELOADED_CRIU_TEST_SEED").map_or(now, |seed| seed.parse().unwrap());
    let long = env::var_os("PRELOADED_CRIU_TEST_LONG").is_some();
    let (rounds, operations) = if long { (20, "400") } else { (1, "200") };
    let code =
        "import sys\nfrom churn import memory\nmemory.run(int(sys.argv[1]), int(sys.argv[2]))";
    for_makers(|it| {
        for round in 0..rounds {
            let seed = (seed + round).to_string();
            eprintln!("seed {seed}");
            let python = it.python(["-c", code, &seed, operations]).from(Recipe::Churn);
            python.env("PYTHONPATH", shared().modules()).is_as_stock().succeeds();
        }
    });
}

/// Blocks of a megabyte, of a hundred and of a gigabyte: the bytes stay, also where a block grows past
/// what follows it in the image.
#[test]
fn blocks_of_every_size_grow_and_shrink() {
    once(|it| {
        let code = r"
import giant
for size, block in giant.blocks():
    known = {part: giant.sum_of(block.memory(), part) for part in (size // 2, size)}
    kept = size
    for new in (size + 4096, size + size // 16, size * 5 // 4, size, size // 2, size + 1):
        block.resize(new)
        kept = min(kept, new)
        assert giant.sum_of(block.memory(), kept) == known[kept], (size, new)
        giant.touch(block.memory(), kept)
    block.free()
print('right')
";
        check(it, Recipe::Giant, code, "right\n");
    });
}

const ADVICE: &str = r"
from pages import *
for name, address in regions.items():
    third = SIZE // 4
    told = [name, content(address)]
    told += [advise(address + third, third, DONTNEED), content(address, third), content(address + third, third), content(address + 2 * third, 2 * third)]
    ctypes.memset(address + third, 0x77, third)
    told += [content(address, 2 * third), advise(address + 1, third, DONTNEED), content(address, 2 * third)]
    told += [advise(address, third, FREE), set(content(address, third).split('/')) <= {'kept', 'zeros'}]
    ctypes.memset(address, 0x5A, SIZE)
    told += [advise(address, third, WIPEONFORK), content(address), in_child(lambda: os._exit(content(address, third) == 'zeros'))]
    told += [advise(address, third, KEEPONFORK), in_child(lambda: os._exit(content(address) == 'kept'))]
    told += [advise(address, SIZE, HUGEPAGE), advise(address, SIZE, NOHUGEPAGE), content(address)]
    print(*told)
";

/// What the kernel is asked about pages that were alive at the snapshot is answered as for memory that
/// never was in a file, whoever owns them.
#[test]
fn advice_about_frozen_pages_means_what_it_always_does() {
    for_everyone(|it| {
        let python = it.code(ADVICE).from(Recipe::Pages);
        python.env("PYTHONPATH", shared().modules()).is_as_stock().succeeds();
    });
}

/// Before Linux 6.11, `/proc/self/maps` could only be read as text.
#[test]
fn advice_means_the_same_to_older_kernels() {
    once(|it| {
        let python = it.code(ADVICE).from(Recipe::Pages).by(Engine::Native);
        let older = ["-o", "/dev/null", "-e", "trace=ioctl", "-e", "inject=ioctl:error=ENOTTY"];
        let python = python.through(["strace"].into_iter().chain(older));
        python.env("PYTHONPATH", shared().modules()).is_as_stock().succeeds();
    });
}

#[test]
fn frozen_pages_are_locked_protected_and_guarded() {
    for_everyone(|it| {
        let code = r"
from pages import *
def locked():
    return next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmLck'))
for name, address in regions.items():
    told = [name, libc.mlock(address, PAGE), locked(), libc.munlock(address, PAGE), locked()]
    told += [libc.mlock(address, PAGE), advise(address, PAGE, DONTNEED), content(address, PAGE)]
    told += [advise(address, PAGE, DONTNEED_LOCKED), content(address, PAGE), libc.munlock(address, PAGE)]
    told += [libc.mprotect(address, PAGE, READ), in_child(lambda: ctypes.memset(address, 1, 1))]
    told += [libc.mprotect(address, PAGE, NONE), in_child(lambda: ctypes.string_at(address, 1))]
    told += [libc.mprotect(address, PAGE, BOTH), content(address)]
    installed = advise(address + PAGE, PAGE, GUARD_INSTALL)
    told += [installed, installed or in_child(lambda: ctypes.string_at(address + PAGE, 1))]
    told += [installed or advise(address + PAGE, PAGE, GUARD_REMOVE), installed or content(address + PAGE, PAGE)]
    print(*told)
print(in_child(lambda: ctypes.memset(guard, 1, 1)), in_child(lambda: ctypes.string_at(guard, 1)))
print(libc.mprotect(guard, PAGE, BOTH), guarded[:] == b'g' * len(guarded))
ctypes.memset(guard, 0x77, PAGE); print(content(guard, PAGE), guarded[0], guarded[-1])
";
        let python = it.code(code).from(Recipe::Pages);
        python.env("PYTHONPATH", shared().modules()).is_as_stock().succeeds();
    });
}

/// Allocators that take malloc's place by `LD_PRELOAD`: all that they own is copied. Which they are,
/// `scripts/test` says: shared objects with colons between.
#[test]
fn other_allocators_are_frozen_too() {
    let allocators = env::var("PRELOADED_CRIU_TEST_ALLOCATORS").expect(
        "PRELOADED_CRIU_TEST_ALLOCATORS is not set: scripts/test installs the allocators and sets it",
    );
    once(|it| {
        for allocator in allocators.split(':') {
            eprintln!("with {allocator}");
            // Such settings hold for the interpreter from its start: a run must have them too, or it
            // is no run from the image.
            let settings = [("PYTHONMALLOC", "malloc"), ("LD_PRELOAD", allocator)];
            let set = settings.map(|(name, value)| format!("{name}={value}"));
            it.snapshot(["--import", "churn", "--output", "other.img", "--python"])
                .args([&it.seat.python.path])
                .args(set.iter().flat_map(|setting| ["--env", setting]))
                .env("PYTHONPATH", shared().modules())
                .run()
                .succeeds();
            let image = it.keep("other.img");
            let python = |code: &str| {
                let python = it.python(["-c", code, "1", "80"]).image(&image);
                let python = python.env("PYTHONPATH", shared().modules());
                settings.iter().fold(python, |python, (name, value)| python.env(name, value))
            };
            let restored = "import ctypes, os, preloaded_criu\nassert preloaded_criu.is_restored()\n\
                            ctypes.CDLL(os.environ['LD_PRELOAD'], os.RTLD_NOLOAD)";
            python(restored).thaw().succeeds();
            python("import sys\nfrom churn import memory\nmemory.run(int(sys.argv[1]), int(sys.argv[2]))")
                .is_as_stock()
                .succeeds();
        }
    });
}

#[test]
fn new_blocks_lie_where_no_import_has_had_one() {
    // Each page of the image that they lay on would be copied.
    everywhere(|it| {
        let code = "print(sum(libc.malloc(5000) in holes for _ in range(100)))";
        blocks(it, code, "0\n");
    });
}

#[test]
fn what_every_run_writes_to_is_known() {
    everywhere(|it| {
        let image = it.image(Recipe::Nothing);
        let told = it.program(["inspect".as_ref(), image.as_os_str()]).run().succeeds().text();
        let line = told.lines().find(|line| line.trim_start().starts_with("always touched"));
        let bytes = line.and_then(|line| line.split_whitespace().nth(2)?.parse::<f64>().ok());
        assert!(bytes.is_some_and(|bytes| bytes > 0.0), "{told}");
    });
}

#[test]
fn an_image_says_what_of_its_memory_is_mapped_and_why() {
    once(|it| {
        let image = it.image(Recipe::Blocks);
        let told = it.program(["inspect".as_ref(), image.as_os_str()]).run().succeeds().text();
        for kind in
            ["malloc's large blocks", "malloc's arenas of threads", "Python's small objects"]
        {
            let line = told.lines().find(|line| line.ends_with(kind));
            assert!(line.is_some(), "{kind} is not told in\n{told}");
        }
        let (_, copied) = told.split_once("\ncopied ").expect("something is copied");
        assert!(copied.contains("of an unknown owner"), "{told}");
    });
}

/// A block in which pages were made guard regions, and a thread, whose stack has one since glibc 2.42.
pub(crate) const GUARDED: &str = "import ctypes, os, threading, time
PAGE, PAGES, GUARD_INSTALL = 4096, 64, 102
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
block = libc.mmap(None, PAGES * PAGE, 3, 0x22, -1, 0)
ctypes.memset(block, 7, PAGES * PAGE)
installed = libc.madvise(block + 16 * PAGE, 4 * PAGE, GUARD_INSTALL) == 0
threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()

def touch(page):
    child = os.fork()
    if not child:
        ctypes.string_at(block + page * PAGE, 1)
        os._exit(0)
    return os.WTERMSIG(os.waitpid(child, 0)[1])

def guards():
    count = 0
    with open('/proc/self/maps') as maps, open('/proc/self/pagemap', 'rb') as pages:
        for line in maps:
            start, end = (int(word, 16) // PAGE for word in line.split()[0].split('-'))
            if start >> 47 - 12:
                continue
            pages.seek(start * 8)
            words = memoryview(pages.read((end - start) * 8)).cast('Q')
            count += sum(word >> 58 & 1 for word in words)
    return count

def check():
    print(installed, [touch(page) for page in (16, 15, 20, 19)])
    print(guards())
    assert ctypes.string_at(block + 20 * PAGE, 1) == bytes([7])
";

#[test]
fn guard_regions_are_there_again_or_refused_by_their_name() {
    for_makers(|it| {
        it.file("guarded.py", GUARDED);
        let stock = it.code("import guarded; guarded.check()").folder(it.work()).stock().run();
        if !stock.succeeds().text().starts_with("True") {
            // Linux before 6.13 has none.
            return;
        }
        let outcome = it.snapshot(["--import", "guarded"]).run();
        if !outcome.status.success() {
            outcome.is_refused(&["MADV_GUARD_INSTALL", "CRIU 4.2"]);
            return;
        }
        let image = it.keep("snap.img");
        let check =
            it.code("import guarded; print([guarded.touch(page) for page in (16, 15, 20, 19)])");
        assert_eq!(check.image(image).thaw().succeeds().text(), "[11, 0, 0, 11]\n");
    });
}
