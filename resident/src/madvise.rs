//! Advice about memory that came from the image, as it is about memory without a file.
//!
//! What a private mapping of a file makes of `MADV_DONTNEED` is the file's bytes, not zeros, and it
//! refuses `MADV_FREE` and `MADV_WIPEONFORK` (madvise(2)). The owners of what is mapped from the
//! image do without these (`placement` in the launcher says why), but a library may give such advice
//! about a block that it got from malloc. This object stands before the C library in the search for
//! symbols, so its calls come here, and the pages in question become memory without a file first. The
//! C library's own calls do not come here.
//!
//! What is mapped from the image is known by its file, which is that of this very code.

use core::ffi::{c_int, c_void};

use restore_plan::PAGE;

use crate::libc;
use crate::syscall::{self, call};
use crate::thaw::THAWED;

/// Advice of <asm-generic/mman-common.h>.
const DONTNEED: c_int = 4;
const FREE: c_int = 8;
const WIPEONFORK: c_int = 18;
const DONTNEED_LOCKED: c_int = 24;
const GUARD_INSTALL: c_int = 102;

const ENOMEM: isize = -12;
const ENOTTY: isize = -25;

const PROT_READ: usize = 1;
const PROT_WRITE: usize = 2;
const PROT_EXEC: usize = 4;
const MAP_PRIVATE: usize = 2;
const MAP_FIXED: usize = 0x10;
const MAP_ANONYMOUS: usize = 0x20;
const MREMAP_MAYMOVE: usize = 1;
const MREMAP_FIXED: usize = 2;
const O_CLOEXEC: usize = 0o2_000_000;
const AT_FDCWD: usize = (-100_isize).cast_unsigned();

/// madvise(2).
///
/// # Safety
///
/// As the C library's function of that name.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn madvise(address: *mut c_void, length: usize, advice: c_int) -> c_int {
    // SAFETY: the caller's memory and the caller's advice; what is put in the place of its pages has
    // the content that the advice asks for.
    unsafe {
        let range = pages(address as usize, length);
        if let (Some(range), FREE | WIPEONFORK | GUARD_INSTALL) = (&range, advice) {
            // The kernel may still refuse it: nothing may be lost before it does not.
            detach(range, Content::Kept);
        }
        let words = [address as usize, length, advice as usize, 0, 0, 0];
        let result = call(syscall::MADVISE, words);
        // Where a part of the range is not mapped, the rest has been dealt with all the same.
        if let (Some(range), DONTNEED | DONTNEED_LOCKED, 0 | ENOMEM) = (&range, advice, result) {
            detach(range, Content::Forgotten);
        }
        if result < 0 {
            libc::__errno_location().write(-result as c_int);
            return -1;
        }
        result as c_int
    }
}

/// Addresses of whole pages.
struct Range {
    start: usize,
    end: usize,
}

/// What is advised about; nothing where the kernel will refuse it, or nothing has been restored.
fn pages(start: usize, length: usize) -> Option<Range> {
    const SIZE: usize = PAGE as usize;
    // SAFETY: written before the process has a second thread or runs anything but our own code.
    let is_restored = unsafe { !THAWED.argv.is_null() };
    let end = start.checked_add(length.checked_next_multiple_of(SIZE)?)?;
    (is_restored && start.is_multiple_of(SIZE) && start < end).then_some(Range { start, end })
}

/// What becomes of the content of pages that lose their file.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Content {
    Kept,
    Forgotten,
}

/// Puts memory without a file in the place of every page in the range that is mapped from the image.
///
/// # Safety
///
/// The range is the caller's, who does not write to it meanwhile; it may be forgotten if that is said.
unsafe fn detach(range: &Range, content: Content) {
    // SAFETY: the path is NUL-terminated; only pages of the image within the range are replaced.
    unsafe {
        let words = [AT_FDCWD, c"/proc/self/maps".as_ptr() as usize, O_CLOEXEC, 0, 0, 0];
        let maps = call(syscall::OPENAT, words);
        if maps < 0 {
            return;
        }
        let maps = maps.cast_unsigned();
        if let Some(image) = area_at(maps, madvise as *const () as usize)
            && image.inode != 0
        {
            let mut place = range.start;
            while place < range.end
                && let Some(area) = area_at(maps, place)
                && area.start < range.end
            {
                if area.is_private && (area.device, area.inode) == (image.device, image.inode) {
                    let part = Range { start: area.start.max(place), end: area.end.min(range.end) };
                    replace(&part, area.protection, content);
                }
                place = area.end;
            }
        }
        call(syscall::CLOSE, [maps, 0, 0, 0, 0, 0]);
    }
}

/// Where it cannot be done, for lack of memory or because the content cannot be read, everything
/// stays as it is.
unsafe fn replace(range: &Range, protection: usize, content: Content) {
    const NEW: usize = MAP_PRIVATE | MAP_ANONYMOUS;
    let length = range.end - range.start;
    // SAFETY: the caller's promise about the range; the new memory is put in place as a whole, when
    // it is complete.
    unsafe {
        if content == Content::Forgotten {
            let words = [range.start, length, protection, NEW | MAP_FIXED, usize::MAX, 0];
            call(syscall::MMAP, words);
            return;
        }
        if protection & PROT_READ == 0 {
            return;
        }
        let words = [0, length, PROT_READ | PROT_WRITE, NEW, usize::MAX, 0];
        let copy = call(syscall::MMAP, words);
        if copy < 0 {
            return;
        }
        let copy = copy.cast_unsigned();
        (copy as *mut u8).copy_from_nonoverlapping(range.start as *const u8, length);
        call(syscall::MPROTECT, [copy, length, protection, 0, 0, 0]);
        let flags = MREMAP_MAYMOVE | MREMAP_FIXED;
        if call(syscall::MREMAP, [copy, length, length, flags, range.start, 0]) < 0 {
            call(syscall::MUNMAP, [copy, length, 0, 0, 0, 0]);
        }
    }
}

/// A mapping.
struct Area {
    start: usize,
    end: usize,
    protection: usize,
    is_private: bool,
    device: (u32, u32),
    /// 0 where there is no file.
    inode: u64,
}

/// The mapping at this address, or else the next one.
unsafe fn area_at(maps: usize, address: usize) -> Option<Area> {
    /// `PROCMAP_QUERY` and `struct procmap_query` (<linux/fs.h>, Linux 6.11).
    const QUERY: usize = 0xc068_6611;
    const COVERING_OR_NEXT: u64 = 0x10;
    const SHARED: u64 = 8;
    #[derive(Default)]
    #[repr(C)]
    struct Query {
        size: u64,
        query_flags: u64,
        query_addr: u64,
        vma_start: u64,
        vma_end: u64,
        vma_flags: u64,
        vma_page_size: u64,
        vma_offset: u64,
        inode: u64,
        dev_major: u32,
        dev_minor: u32,
        vma_name_size: u32,
        build_id_size: u32,
        vma_name_addr: u64,
        build_id_addr: u64,
    }
    let mut query = Query {
        size: size_of::<Query>() as u64,
        query_flags: COVERING_OR_NEXT,
        query_addr: address as u64,
        ..Query::default()
    };
    // SAFETY: the kernel fills in the structure, whose size it is told.
    match unsafe { call(syscall::IOCTL, [maps, QUERY, (&raw mut query) as usize, 0, 0, 0]) } {
        0 => Some(Area {
            start: query.vma_start as usize,
            end: query.vma_end as usize,
            // The first three flags are those of mmap(2).
            protection: query.vma_flags as usize & (PROT_READ | PROT_WRITE | PROT_EXEC),
            is_private: query.vma_flags & SHARED == 0,
            device: (query.dev_major, query.dev_minor),
            inode: query.inode,
        }),
        ENOTTY => Text::open(maps).find(|area| area.end > address),
        _ => None,
    }
}

/// The lines of `/proc/PID/maps` (proc(5)).
struct Text {
    maps: usize,
    buffer: [u8; 1024],
    length: usize,
    place: usize,
    offset: usize,
}

impl Text {
    fn open(maps: usize) -> Self {
        Self { maps, buffer: [0; 1024], length: 0, place: 0, offset: 0 }
    }

    fn byte(&mut self) -> Option<u8> {
        if self.place == self.length {
            let buffer = self.buffer.as_mut_ptr() as usize;
            let words = [self.maps, buffer, self.buffer.len(), self.offset, 0, 0];
            // SAFETY: the buffer is writable for its length.
            let count = unsafe { call(syscall::PREAD, words) };
            self.length = usize::try_from(count).ok()?;
            self.offset += self.length;
            self.place = 0;
        }
        let byte = self.buffer[..self.length].get(self.place).copied();
        self.place += 1;
        byte
    }

    /// Up to the first byte that is no digit, which is taken too; with that byte.
    fn number(&mut self, base: u32) -> Option<(u64, u8)> {
        let mut number = 0_u64;
        loop {
            let byte = self.byte()?;
            match char::from(byte).to_digit(base) {
                Some(digit) => number = number * u64::from(base) + u64::from(digit),
                None => return Some((number, byte)),
            }
        }
    }
}

impl Iterator for Text {
    type Item = Area;

    fn next(&mut self) -> Option<Area> {
        let (start, end) = (self.number(16)?.0 as usize, self.number(16)?.0 as usize);
        let mut protection = 0;
        for bit in [PROT_READ, PROT_WRITE, PROT_EXEC] {
            protection |= if self.byte()? == b'-' { 0 } else { bit };
        }
        let is_private = self.byte()? == b'p';
        self.byte()?;
        self.number(16)?;
        let device = (self.number(16)?.0 as u32, self.number(16)?.0 as u32);
        let (inode, mut last) = self.number(10)?;
        while last != b'\n' {
            last = self.byte()?;
        }
        Some(Area { start, end, protection, is_private, device, inode })
    }
}
