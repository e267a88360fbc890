//! Sees to it that what a run allocates lies together.
//!
//! Imports leave free blocks all over the memory that they have used. Each that a run is given costs it
//! a page of its own: a fault, and a copy of what is around it. So before the process is frozen all of
//! them are taken and never given back, and what a run allocates comes from memory that nothing has
//! used yet. What is taken is not written to, and costs no run anything.

use core::ffi::c_void;
use core::mem::MaybeUninit;

use crate::libc;
use crate::python::Python;

/// Uses up the free blocks of the C library's allocator and of CPython's own, as far as they are in use.
///
/// # Safety
///
/// CPython is initialised, and this thread holds the GIL.
pub(crate) unsafe fn use_up(python: &Python) {
    // SAFETY: the caller's promise.
    unsafe {
        if has_pools(python) {
            for size in (16..=512).step_by(16) {
                small_blocks(python, size);
            }
        }
        if is_glibc() {
            blocks();
        }
    }
}

/// `POOL_SIZE` of CPython 3.10 and later (Include/internal/pycore_obmalloc.h): blocks of one size lie
/// in pools of this length and alignment.
const POOL: usize = 16 << 10;
/// `POOL_OVERHEAD`: where the first block of a pool is.
const OVERHEAD: usize = 48;
/// Where a pool says which size it is for: multiples of 16, from 0 on (`szidx`).
const KIND: usize = 36;
/// How many blocks in a row tell a pool that is given out from its beginning.
const ROW: usize = 4;
/// Free memory in blocks of one size that is more than anybody leaves behind.
const MOST: usize = 8 << 20;

/// Whether small objects lie in pools: not with PYTHONMALLOC or in development mode.
unsafe fn has_pools(python: &Python) -> bool {
    const SIZE: usize = 256;
    // SAFETY: the pool is read only where its first page is mapped (mincore(2)); nobody unmaps it while
    // it has a block that is in use.
    unsafe {
        let block = (python.PyObject_Malloc)(SIZE) as usize;
        let pool = block & !(POOL - 1);
        let mut resident = 0_u8;
        block != 0
            && block > pool + OVERHEAD - 1
            && (block - pool - OVERHEAD).is_multiple_of(SIZE)
            && libc::mincore(pool as *mut c_void, 1, &raw mut resident) == 0
            && ((pool + KIND) as *const u32).read() as usize == SIZE / 16 - 1
    }
}

/// Takes blocks of one size until they come from a new pool.
unsafe fn small_blocks(python: &Python, size: usize) {
    let (mut last, mut row) = (0, 0);
    for _ in 0..MOST / size {
        // SAFETY: the caller's promise.
        let block = unsafe { (python.PyObject_Malloc)(size) } as usize;
        row = match block % POOL {
            OVERHEAD => 1,
            _ if row > 0 && block == last + size => row + 1,
            _ => 0,
        };
        last = block;
        if block == 0 || row == ROW {
            return;
        }
    }
}

/// Whether the C library's own malloc is in use.
unsafe fn is_glibc() -> bool {
    // SAFETY: the information is filled in where the function says so; both are functions.
    unsafe {
        // Not the first definition: that of an executable which takes the function's address can be
        // its own entry into it (the canonical PLT entry of the System V ABI).
        let object = |name: &core::ffi::CStr| {
            let mut info = MaybeUninit::<libc::DlInfo>::zeroed();
            let address = libc::dlsym(libc::RTLD_NEXT, name.as_ptr());
            let known = !address.is_null() && libc::dladdr(address, info.as_mut_ptr()) != 0;
            known.then(|| info.assume_init().base)
        };
        let library = object(c"gnu_get_libc_version");
        library.is_some() && library == object(c"malloc")
    }
}

/// Largest block that is taken: none that malloc would map by itself.
const LARGEST: usize = 64 << 10;
/// Up to here there is a list of free chunks for each size (malloc/malloc.c, `NSMALLBINS`).
const LISTED: usize = 1024;
/// Bytes in front of a block: the size of the chunk before it, and its own.
const HEADER: usize = 16;

/// Takes blocks of malloc's main heap, the large ones first, until they come from its end.
unsafe fn blocks() {
    let mut size = LARGEST;
    while size >= 24 {
        // SAFETY: malloc(3).
        while unsafe { is_inside(libc::malloc(size), size) } {}
        size -= if size > LISTED { (size / 8).next_multiple_of(16) } else { 16 };
    }
}

/// Most that a chunk is larger than what was asked for: its header, alignment, and a rest that would be
/// no chunk.
const SLACK: usize = HEADER + 16 + 32;

/// Whether a block of this size lies in the main heap, and more than the unused end of it follows.
unsafe fn is_inside(block: *const c_void, size: usize) -> bool {
    // SAFETY: where a block lies between the program breaks, its chunk's size precedes it, and the next
    // chunk follows (malloc/malloc.c, "malloc_chunk details"); the last one ends at the break.
    unsafe {
        let end = libc::sbrk(0) as usize;
        let start = block as usize;
        if block.is_null() || start >= end || end - start > 1 << 40 {
            return false;
        }
        let size_of = |chunk: usize| ((chunk + 8) as *const usize).read() & !7;
        let length = size_of(start - HEADER);
        if length < size || length > size + SLACK {
            // No chunk of glibc's: the executable has a malloc of its own.
            return false;
        }
        let next = start - HEADER + length;
        next + HEADER < end && next + size_of(next) < end & !0xf
    }
}
