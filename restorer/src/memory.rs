//! The exchange of memory. From the first unmapping on there is no way back: whatever fails here
//! ends the process with its reason.

use core::slice;

use restore_plan::{
    ADVISE, Advice, Copy, Header, Mapping, OPTION_EAGER, PAGE, Range, SOURCE_FILE, SOURCE_IMAGE,
    Source, Special, Table, ThawArgs, ThawFn,
};

use crate::report::{Failure, fail};
use crate::syscall::{self, Errno, O_CLOEXEC, O_NOCTTY, O_NONBLOCK, call};
use crate::{Job, MAP_ANONYMOUS, MAP_FIXED_NOREPLACE, MAP_PRIVATE, PROT_READ};

const PROT_WRITE: usize = 2;
const MREMAP_MAYMOVE: usize = 1;
const MREMAP_FIXED: usize = 2;
const MADV_HUGEPAGE: u32 = 14;
const MADV_POPULATE_WRITE: usize = 23;
/// One past the highest address that a process can have (arch/x86/include/asm/page_64_types.h,
/// four-level paging; the five-level range is never used without asking for it).
const TASK_SIZE: u64 = 0x7fff_ffff_f000;

/// A table of the plan.
///
/// # Safety
///
/// The launcher has checked the plan: every table lies within it and is aligned.
pub(crate) unsafe fn table<'a, T>(plan: *const Header, table: Table) -> &'a [T] {
    // SAFETY: the caller's promise.
    unsafe {
        slice::from_raw_parts(
            plan.cast::<u8>().add(table.offset as usize).cast::<T>(),
            table.count as usize,
        )
    }
}

fn check(what: &'static str, result: Result<usize, Errno>) -> usize {
    match result {
        Ok(value) => value,
        Err(errno) => fail(&Failure::new(what, errno)),
    }
}

/// Replaces the process's memory and enters the resident.
///
/// # Safety
///
/// Runs in the copy of the text in `job.region`, with `job` on `job.stack`.
pub(crate) unsafe extern "C" fn replace(job: *const Job) -> ! {
    // SAFETY: the stack stays until the resident unmaps its lower part.
    let job = unsafe { &*job };
    let plan = job.plan;
    // SAFETY: the region's own copy of the checked plan.
    let header = unsafe { &*plan };
    // SAFETY: what goes is the interpreter that has not begun to run; what stays is this text, the
    // plan, the stack and the vDSO.
    unsafe {
        clear(job);
        move_specials(plan, job.vdso);
        map_sources(job, plan);
        for one in table::<Copy>(plan, header.copies) {
            read_exactly(job.start.handover.image as usize, one);
        }
        for one in table::<Advice>(plan, header.advices) {
            let number = if one.call == ADVISE { syscall::MADVISE } else { syscall::MPROTECT };
            let arguments = [one.start as usize, one.length as usize, one.value as usize, 0, 0, 0];
            let result = call(number, arguments);
            // A kernel without huge pages refuses advice about them, and nothing depends on it.
            if one.call != ADVISE || one.value != MADV_HUGEPAGE {
                check("memory cannot be given its properties", result);
            }
        }
        touch(table::<Range>(plan, header.touched));
        let handover = &job.start.handover;
        for descriptor in [handover.image, handover.restorer] {
            let _ = call(syscall::CLOSE, [descriptor as usize, 0, 0, 0, 0, 0]);
        }
        let thaw: ThawFn = core::mem::transmute(header.thaw as usize);
        let arguments = arguments(job);
        thaw(&raw const arguments)
    }
}

/// Makes this process's own what it is going to write to. Each of these pages would cost two faults
/// otherwise: it is mapped when one near it is read, and copied when it is written to.
fn touch(ranges: &[Range]) {
    for range in ranges {
        let length = (range.end - range.start) as usize;
        let arguments = [range.start as usize, length, MADV_POPULATE_WRITE, 0, 0, 0];
        // SAFETY: the launcher has checked that this is writable memory of the image; its content stays.
        if unsafe { call(syscall::MADVISE, arguments) }.is_err() {
            // Linux before 5.14: the pages come when they are written to, as all others do.
            return;
        }
    }
}

/// Unmaps all but what must stay.
unsafe fn clear(job: &Job) {
    let mut stays = [job.region, job.stack, job.vdso];
    // Three ranges: a sort that needs no memcpy and no comparison function.
    for (one, other) in [(0, 1), (1, 2), (0, 1)] {
        if stays[one].start > stays[other].start {
            stays.swap(one, other);
        }
    }
    let mut from = 0;
    let unmap = |start: u64, end: u64| {
        if start < end {
            // SAFETY: nothing that this code uses lies between the ranges that stay.
            let result = unsafe {
                call(syscall::MUNMAP, [start as usize, (end - start) as usize, 0, 0, 0, 0])
            };
            check("the new interpreter's memory cannot be unmapped", result);
        }
    };
    for range in stays {
        unmap(from, range.start);
        from = from.max(range.end);
    }
    unmap(from, TASK_SIZE);
}

/// Moves the vDSO and its data pages, which lie in one row, to where the image has them.
unsafe fn move_specials(plan: *const Header, now: Range) {
    // SAFETY: the checked plan.
    let specials = unsafe { table::<Special>(plan, (*plan).specials) };
    let mut from = now.start;
    for one in specials {
        if from != one.start {
            let length = one.length as usize;
            // SAFETY: the target is free: everything is unmapped but what was found not to overlap.
            let result = unsafe {
                call(
                    syscall::MREMAP,
                    [
                        from as usize,
                        length,
                        length,
                        MREMAP_MAYMOVE | MREMAP_FIXED,
                        one.start as usize,
                        0,
                    ],
                )
            };
            check("the vDSO cannot be moved", result);
        }
        from += one.length;
    }
}

unsafe fn map_sources(job: &Job, plan: *const Header) {
    /// Something else may have its name now: nobody waits for the other end of a pipe, which cannot be mapped.
    const FLAGS: usize = O_CLOEXEC | O_NONBLOCK | O_NOCTTY;
    // SAFETY: the checked plan.
    let (header, sources, mappings) = unsafe {
        let header = &*plan;
        (header, table::<Source>(plan, header.sources), table::<Mapping>(plan, header.mappings))
    };
    for source in sources {
        // SAFETY: names are NUL-terminated strings within the plan.
        let path =
            unsafe { plan.cast::<u8>().add(header.names.offset as usize + source.name as usize) };
        let path = if source.kind == SOURCE_FILE { path } else { core::ptr::null() };
        let failed = |what, errno: Errno| Failure { what, path, errno: errno.0 };
        let file = match source.kind {
            SOURCE_IMAGE => job.start.handover.image as usize,
            SOURCE_FILE => {
                // SAFETY: a NUL-terminated path.
                let opened = unsafe { call(syscall::OPEN, [path as usize, FLAGS, 0, 0, 0, 0]) };
                match opened {
                    Ok(file) => file,
                    Err(errno) => fail(&failed("cannot open", errno)),
                }
            }
            _ => usize::MAX,
        };
        let first = source.first as usize;
        let eager = source.kind == SOURCE_IMAGE && job.start.handover.options & OPTION_EAGER != 0;
        for one in mappings.iter().skip(first).take(source.count as usize) {
            let (prot, flags, from) = if eager {
                (PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, usize::MAX)
            } else {
                (one.prot as usize, one.flags as usize, file)
            };
            // SAFETY: an address that is free, or the call fails.
            let mapped = unsafe {
                call(
                    syscall::MMAP,
                    [
                        one.start as usize,
                        one.length as usize,
                        prot,
                        flags | MAP_FIXED_NOREPLACE,
                        from,
                        if eager { 0 } else { one.offset as usize },
                    ],
                )
            };
            match mapped {
                Ok(at) if at as u64 == one.start => {}
                Ok(_) => fail(&failed("memory was mapped elsewhere:", Errno(Errno::EEXIST))),
                Err(errno) => fail(&failed("cannot map memory of", errno)),
            }
            if eager {
                let Mapping { start: address, length, offset, .. } = *one;
                // SAFETY: the memory that was just mapped is writable and has that length.
                unsafe { read_exactly(file, &Copy { address, length, offset }) };
                if one.prot as usize != prot {
                    let arguments = [address as usize, length as usize, one.prot as usize, 0, 0, 0];
                    // SAFETY: as above.
                    let changed = unsafe { call(syscall::MPROTECT, arguments) };
                    check("memory cannot be given its properties", changed);
                }
            }
        }
        if source.kind == SOURCE_FILE {
            // SAFETY: the descriptor opened above.
            let _ = unsafe { call(syscall::CLOSE, [file, 0, 0, 0, 0, 0]) };
        }
    }
}

unsafe fn read_exactly(image: usize, copy: &Copy) {
    let (mut address, mut left, mut offset) = (copy.address, copy.length, copy.offset);
    while left > 0 {
        let arguments = [image, address as usize, left as usize, offset as usize, 0, 0];
        // SAFETY: the plan's copies lie in writable memory that it has just mapped.
        let read =
            check("cannot read the image", unsafe { call(syscall::PREAD64, arguments) }) as u64;
        if read == 0 {
            fail(&Failure::plain("the image is shorter than when it was checked"));
        }
        address += read;
        offset += read;
        left -= read;
    }
}

fn arguments(job: &Job) -> ThawArgs {
    let start = &job.start;
    // `argc` lies in the word below the first pointer.
    let low = (start.argv as u64 - 8) & !(PAGE - 1);
    ThawArgs {
        plan: job.plan as u64,
        region: job.region,
        arguments: Range { start: low, end: job.stack.end },
        scratch: Range { start: job.stack.start, end: low },
        argv: start.argv as u64,
        envp: start.envp as u64,
        env_end: start.env_end as u64,
        auxv: start.auxv as u64,
        mask: job.mask,
        ignored: start.handover.ignored,
        options: start.handover.options,
    }
}
