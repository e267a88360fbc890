//! The code that replaces a new interpreter's memory by a frozen one's.
//!
//! The launcher execs the interpreter with this object as `LD_AUDIT` (ld.so(8)): an audit object is
//! loaded before anything else, so nothing of the new interpreter has run. Its constructor maps the
//! object's own text a second time, into a hole of the image's address space, and goes on there:
//! everything else is unmapped, the image is mapped by its plan, and the resident, which is part of
//! the image, takes over.
//!
//! There is no C library here, no allocation, no static that is written to, and no relocation that
//! the code on the way needs: it runs at two addresses.
#![no_std]
#![allow(unsafe_code, reason = "this crate is the restorer")]
#![allow(clippy::missing_panics_doc, clippy::similar_names)]

mod builtins;
mod descriptors;
mod loader;
mod memory;
mod report;
mod start;
mod syscall;

use core::arch::asm;

use report::{Failure, fail};
use restore_plan::{ATTEMPTS, Header, PAGE, Range};
use start::Start;
use syscall::{Errno, call};

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    fail(&Failure::plain("the restorer met a state that it does not know"))
}

/// The dynamic loader calls constructors with the program's arguments and environment.
#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: unsafe extern "C" fn(i32, *const *const u8, *mut *mut u8) = construct;

/// What an audit object must define (rtld-audit(7)): no interest, so the loader drops the object
/// again. Reached only where the constructor found nothing to do.
#[unsafe(no_mangle)]
extern "C" fn la_version(_: u32) -> u32 {
    0
}

const PROT_NONE: usize = 0;
const PROT_READ: usize = 1;
const PROT_EXEC: usize = 4;
const MAP_PRIVATE: usize = 2;
const MAP_FIXED: usize = 0x10;
const MAP_ANONYMOUS: usize = 0x20;
const MAP_NORESERVE: usize = 0x4000;
const MAP_FIXED_NOREPLACE: usize = 0x10_0000;
const SIG_BLOCK: usize = 0;
const SIG_SETMASK: usize = 2;
const RLIMIT_STACK: usize = 3;

/// How much of the stack below the current frame stays mapped while the restorer runs.
const SCRATCH: usize = 64 * 1024;
/// Room that the frozen stack gets to grow at least, where the limit allows it to.
const GROWTH: usize = 64 << 20;

/// Everything that the second half needs, on the stack that stays.
pub(crate) struct Job {
    pub(crate) start: Start,
    pub(crate) region: Range,
    pub(crate) plan: *const Header,
    /// The stack that stays for now.
    pub(crate) stack: Range,
    /// The vDSO and its data pages as they are mapped now.
    pub(crate) vdso: Range,
    pub(crate) mask: u64,
}

unsafe extern "C" fn construct(_: i32, argv: *const *const u8, envp: *mut *mut u8) {
    // SAFETY: a constructor's arguments.
    let Some(start) = (unsafe { Start::find(argv, envp) }) else { return };
    let all = u64::MAX;
    let mut mask = 0_u64;
    // SAFETY: two words of this frame; no handler of this process can run from here on, since its
    // code is about to go.
    let blocked = unsafe {
        call(
            RT_SIGPROCMASK_CALL,
            [SIG_BLOCK, &raw const all as usize, &raw mut mask as usize, 8, 0, 0],
        )
    };
    if let Err(errno) = blocked {
        fail(&Failure::new("rt_sigprocmask failed", errno));
    }
    match prepare(start, mask) {
        Ok(job) => {
            let own = own_base();
            let second = job.region.start as usize + (memory::replace as *const () as usize - own);
            // SAFETY: the same text, mapped a second time; position independent.
            let second: unsafe extern "C" fn(*const Job) -> ! =
                unsafe { core::mem::transmute(second) };
            // SAFETY: the job lies on the stack that stays, and is checked as far as it can be.
            unsafe { second(&raw const job) }
        }
        Err(Obstacle::Taken(start)) => again(start, mask),
        Err(Obstacle::Failed(failure)) => fail(&failure),
    }
}

use syscall::RT_SIGPROCMASK as RT_SIGPROCMASK_CALL;

enum Obstacle {
    /// An address that the image needs is taken by what must stay: other addresses, other luck.
    Taken(Start),
    Failed(Failure),
}

/// Makes everything ready that can be made ready while the process is still a whole interpreter.
fn prepare(mut start: Start, mask: u64) -> Result<Job, Obstacle> {
    let length = start.handover.plan_length as usize;
    // SAFETY: a new mapping, wherever the kernel likes.
    let plan = unsafe {
        call(
            syscall::MMAP,
            [
                0,
                length,
                PROT_READ,
                MAP_PRIVATE,
                start.handover.image as usize,
                start.handover.plan_offset as usize,
            ],
        )
    }
    .map_err(|errno| Obstacle::Failed(Failure::new("the plan cannot be mapped", errno)))?
        as *const Header;
    // SAFETY: the launcher has checked the plan, and the descriptor is the one that it checked.
    let header = unsafe { &*plan };

    let own = own_base();
    // SAFETY: this object's own ELF header.
    let text = unsafe { loader::first_segment(own) }.next_multiple_of(PAGE as usize);
    let size = text + length.next_multiple_of(PAGE as usize);
    let here = &raw const start as usize;
    let stack =
        Range { start: (here - SCRATCH) as u64 & !(PAGE - 1), end: start.stack_top() as u64 };
    let vdso = vdso_now(&start, header);
    if collides(plan, stack, vdso) {
        return Err(Obstacle::Taken(start));
    }
    let reserved = reserve(plan, size).map_err(|errno| {
        Obstacle::Failed(Failure::new("there is no room for the restorer", errno))
    })?;
    let Some(base) = reserved else { return Err(Obstacle::Taken(start)) };
    let handover = start.handover;
    let map = |address: usize, length: usize, prot: usize, file: u64, offset: u64| {
        // SAFETY: within the region that was just reserved.
        unsafe {
            call(
                syscall::MMAP,
                [address, length, prot, MAP_PRIVATE | MAP_FIXED, file as usize, offset as usize],
            )
        }
        .map_err(|errno| Obstacle::Failed(Failure::new("the restorer cannot be mapped", errno)))
    };
    map(base, text, PROT_READ | PROT_EXEC, handover.restorer, 0)?;
    map(base + text, length, PROT_READ, handover.image, handover.plan_offset)?;
    descriptors::open_all(plan).map_err(Obstacle::Failed)?;
    unregister_rseq(&start, plan).map_err(Obstacle::Failed)?;
    start.repair_environment(stack.start as usize..stack.end as usize);
    start.cut_environment();
    Ok(Job {
        start,
        region: Range { start: base as u64, end: (base + size) as u64 },
        plan: (base + text) as *const Header,
        stack,
        vdso,
        mask,
    })
}

/// The vDSO's pages follow its data pages; the image tells how many there are, which the launcher
/// found to hold for this kernel too.
fn vdso_now(start: &Start, header: &Header) -> Range {
    let plan: *const Header = header;
    // SAFETY: the plan's own table.
    let specials = unsafe { memory::table::<restore_plan::Special>(plan, header.specials) };
    let data: u64 = specials.iter().filter(|one| one.is_vdso == 0).map(|one| one.length).sum();
    let code: u64 = specials.iter().filter(|one| one.is_vdso != 0).map(|one| one.length).sum();
    let vdso = start.vdso() as u64;
    if vdso == 0 || code == 0 {
        return Range::default();
    }
    Range { start: vdso - data, end: vdso + code }
}

fn overlap(one: Range, other: Range) -> bool {
    one.start < other.end && other.start < one.end
}

/// Whether something that must stay lies where the image, or its stack when it grows, must lie.
fn collides(plan: *const Header, stack: Range, vdso: Range) -> bool {
    // SAFETY: the plan's own tables.
    let (header, mappings, specials) = unsafe {
        let header = &*plan;
        (
            header,
            memory::table::<restore_plan::Mapping>(plan, header.mappings),
            memory::table::<restore_plan::Special>(plan, header.specials),
        )
    };
    let mut limit = [0_u64; 2];
    // SAFETY: a struct rlimit is two words.
    let known =
        unsafe { call(syscall::GETRLIMIT, [RLIMIT_STACK, &raw mut limit as usize, 0, 0, 0, 0]) };
    let growth = if known.is_ok() { limit[0].min(GROWTH as u64) } else { GROWTH as u64 };
    let frozen = Range { start: header.stack.start.saturating_sub(growth), end: header.stack.end };
    let target = specials.first().zip(specials.last()).map_or(Range::default(), |(first, last)| {
        Range { start: first.start, end: last.start + last.length }
    });
    overlap(frozen, stack)
        || overlap(target, stack)
        || (overlap(target, vdso) && target != vdso)
        || mappings
            .iter()
            .any(|one| overlap(Range { start: one.start, end: one.start + one.length }, stack))
}

/// Finds room for the restorer itself: in a hole of the image that is free in this process too. `None`
/// where all are taken, which a new exec may change; it changes nothing about a limit.
fn reserve(plan: *const Header, size: usize) -> Result<Option<usize>, Errno> {
    // SAFETY: the plan's own table.
    let holes = unsafe { memory::table::<Range>(plan, (*plan).holes) };
    for hole in holes {
        let room = (hole.end - hole.start) as usize;
        if room < size + 2 * PAGE as usize {
            continue;
        }
        for part in 1..8 {
            let address = (hole.start as usize + (room - size) / 8 * part) & !(PAGE as usize - 1);
            // SAFETY: a new mapping that replaces none.
            let reserved = unsafe {
                call(
                    syscall::MMAP,
                    [
                        address,
                        size,
                        PROT_NONE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE,
                        usize::MAX,
                        0,
                    ],
                )
            };
            match reserved {
                Ok(at) if at == address => return Ok(Some(address)),
                Err(errno) if errno.0 == Errno::ENOMEM => return Err(errno),
                _ => {}
            }
        }
    }
    Ok(None)
}

/// The kernel writes to a registered rseq area whenever it likes (rseq(2)); the C library has
/// registered one for this thread in memory that is about to go.
fn unregister_rseq(start: &Start, plan: *const Header) -> Result<(), Failure> {
    // SAFETY: the dynamic loader runs this constructor, so it is mapped where the kernel says.
    let Some(object) = (unsafe { loader::Object::at(start.loader()) }) else { return Ok(()) };
    let (Some(offset), Some(size)) = (object.find(b"__rseq_offset"), object.find(b"__rseq_size"))
    else {
        return Ok(());
    };
    // SAFETY: both are variables of the loader: a ptrdiff_t and an unsigned int (glibc manual,
    // "Restartable Sequences").
    let (offset, size) = unsafe { ((offset as *const isize).read(), (size as *const u32).read()) };
    if size == 0 {
        return Ok(());
    }
    let thread: usize;
    // SAFETY: on x86-64 the word at the thread pointer is its own address.
    unsafe { asm!("mov {}, fs:0", out(reg) thread, options(nostack, readonly)) };
    let area = thread.wrapping_add_signed(offset);
    // SAFETY: the plan's own table, and the main thread's landing is not needed for its length.
    let length = unsafe { (*plan).rseq_length } as usize;
    let signature = unsafe { (*plan).rseq_signature } as usize;
    const UNREGISTER: usize = 1;
    let mut last = syscall::Errno(0);
    for length in [length, 32] {
        // SAFETY: takes the area away from the kernel; touches no memory.
        match unsafe { call(syscall::RSEQ, [area, length, UNREGISTER, signature, 0, 0]) } {
            Ok(_) => return Ok(()),
            Err(errno) => last = errno,
        }
    }
    Err(Failure::new("the C library's rseq area cannot be unregistered", last))
}

/// Execs the same program again: the kernel chooses new addresses each time.
fn again(mut start: Start, mask: u64) -> ! {
    if start.handover.attempt >= ATTEMPTS {
        fail(&Failure::plain("an address that the image needs was taken each time"));
    }
    start.count_attempt();
    // SAFETY: the mask is a word of this frame; path and vectors are the kernel's own of this very
    // process.
    unsafe {
        let _ = call(syscall::RT_SIGPROCMASK, [SIG_SETMASK, &raw const mask as usize, 0, 8, 0, 0]);
        let result = call(
            syscall::EXECVE,
            [start.executed() as usize, start.argv as usize, start.envp as usize, 0, 0, 0],
        );
        match result {
            Err(errno) => fail(&Failure {
                what: "cannot start again",
                path: start.executed(),
                errno: errno.0,
            }),
            Ok(_) => fail(&Failure::plain("exec returned")),
        }
    }
}

/// Where this object is mapped: its ELF header.
fn own_base() -> usize {
    let base: usize;
    // SAFETY: the linker defines the symbol at the object's first byte.
    unsafe {
        asm!(
            ".hidden __ehdr_start",
            "lea {}, [rip + __ehdr_start]",
            out(reg) base,
            options(nostack, nomem, preserves_flags)
        );
    }
    base
}
