//! The second half of a restore, in the image's own memory: what the kernel keeps for a process
//! (`/proc` fields, signal actions) and its threads.

use core::arch::asm;
use core::mem::offset_of;
use core::ptr::{null, null_mut};
use core::slice;

use restore_plan::{Header, Landing, Range, Signal, Table, ThawArgs, Thread};

use crate::syscall::{self, call};

/// What the main thread finds when it is itself again.
pub(crate) struct Thawed {
    pub(crate) argv: *mut *mut u8,
    pub(crate) envp: *mut *mut u8,
    pub(crate) env_end: *const u8,
    pub(crate) ignored: u64,
    pub(crate) options: u64,
    /// Pairs of u32: numbers of processes and threads, old and new; none in a native restore.
    pub(crate) numbers: *const u8,
    /// How many pairs.
    pub(crate) number_count: usize,
    /// The path that was given to execve(2) for this process.
    pub(crate) executed: *const u8,
}

/// Null pointers until a restore fills it in.
pub(crate) static mut THAWED: Thawed = Thawed {
    argv: null_mut(),
    envp: null_mut(),
    env_end: null(),
    ignored: 0,
    options: 0,
    numbers: null(),
    number_count: 0,
    executed: null(),
};

const PR_SET_NAME: usize = 15;
pub(crate) const PR_SET_MM: usize = 35;
pub(crate) const PR_SET_MM_MAP: usize = 14;
const ARCH_SET_GS: usize = 0x1001;
const ARCH_SET_FS: usize = 0x1002;
const AT_NULL: usize = 0;
const AT_PHDR: usize = 3;
const AT_BASE: usize = 7;
const AT_ENTRY: usize = 9;
const AT_EXECFN: usize = 31;
const AT_SYSINFO_EHDR: usize = 33;

/// clone(2): what pthread_create(3) asks for, but that the TID goes where the C library keeps it.
const THREAD_FLAGS: usize = 0x100 // CLONE_VM
    | 0x200 // CLONE_FS
    | 0x400 // CLONE_FILES
    | 0x800 // CLONE_SIGHAND
    | 0x1_0000 // CLONE_THREAD
    | 0x4_0000 // CLONE_SYSVSEM
    | 0x8_0000 // CLONE_SETTLS
    | 0x10_0000 // CLONE_PARENT_SETTID
    | 0x20_0000; // CLONE_CHILD_CLEARTID

/// `struct prctl_mm_map` (prctl(2), `PR_SET_MM_MAP`).
#[repr(C)]
pub(crate) struct MmMap {
    pub(crate) start_code: u64,
    pub(crate) end_code: u64,
    pub(crate) start_data: u64,
    pub(crate) end_data: u64,
    pub(crate) start_brk: u64,
    pub(crate) brk: u64,
    pub(crate) start_stack: u64,
    pub(crate) arg_start: u64,
    pub(crate) arg_end: u64,
    pub(crate) env_start: u64,
    pub(crate) env_end: u64,
    pub(crate) auxv: *const usize,
    pub(crate) auxv_size: u32,
    pub(crate) exe_fd: u32,
}

/// `struct sigaction` of the kernel (rt_sigaction(2)).
#[repr(C)]
struct KernelAction {
    handler: u64,
    flags: u64,
    restorer: u64,
    mask: u64,
}

/// Entered by the restorer when all memory is in place, on what is left of the new process's stack.
///
/// # Safety
///
/// The arguments are the restorer's.
pub(crate) unsafe extern "C" fn thaw(args: *const ThawArgs) -> ! {
    // SAFETY: the restorer's promise; the plan was checked before the exec.
    unsafe {
        let args = &*args;
        let plan = args.plan as *const Header;
        THAWED = Thawed {
            argv: args.argv as *mut *mut u8,
            envp: args.envp as *mut *mut u8,
            env_end: args.env_end as *const u8,
            ignored: args.ignored,
            options: args.options,
            numbers: null(),
            number_count: 0,
            executed: auxiliary(args.auxv, AT_EXECFN) as *const u8,
        };
        describe(args, &*plan);
        for signal in table::<Signal>(plan, (*plan).signals) {
            act(signal, args.ignored);
        }
        let [main, others @ ..] = table::<Thread>(plan, (*plan).threads) else {
            fail(b"the plan has no thread");
        };
        for thread in others {
            inherit_mask(thread, args.mask);
            start(thread);
        }
        inherit_mask(main, args.mask);
        let landing = main.landing as *const Landing;
        set_thread_pointer(main);
        leave(landing, args.region, args.scratch)
    }
}

/// An entry of the new process's auxiliary vector (getauxval(3)); 0 for none.
///
/// # Safety
///
/// The address is that of such a vector.
unsafe fn auxiliary(vector: u64, key: usize) -> usize {
    let mut entry = vector as *const usize;
    // SAFETY: the vector consists of pairs and ends with AT_NULL, where this stops.
    unsafe {
        while entry.read() != AT_NULL {
            if entry.read() == key {
                return entry.add(1).read();
            }
            entry = entry.add(2);
        }
    }
    0
}

/// # Safety
///
/// As [`thaw`].
unsafe fn table<'a, T>(plan: *const Header, table: Table) -> &'a [T] {
    // SAFETY: the launcher has checked that every table lies within the plan.
    unsafe {
        slice::from_raw_parts(
            plan.cast::<u8>().add(table.offset as usize).cast::<T>(),
            table.count as usize,
        )
    }
}

/// Tells the kernel what `/proc` is to show, and where the heap ends.
///
/// # Safety
///
/// As [`thaw`].
unsafe fn describe(args: &ThawArgs, plan: &Header) {
    let layout = &plan.layout;
    let mut entry = args.auxv as *mut usize;
    // SAFETY: the new process's own auxiliary vector ends with AT_NULL; the strings of the two
    // vectors lie in one row below it.
    unsafe {
        loop {
            let value = match entry.read() {
                AT_PHDR => Some(layout.at_phdr),
                AT_BASE => Some(layout.at_base),
                AT_ENTRY => Some(layout.at_entry),
                AT_SYSINFO_EHDR => Some(layout.at_sysinfo_ehdr),
                _ => None,
            };
            if let Some(value) = value {
                entry.add(1).write(value as usize);
            }
            let last = entry.read() == AT_NULL;
            entry = entry.add(2);
            if last {
                break;
            }
        }
        let argv = args.argv as *const *const u8;
        let envp = args.envp as *const *const u8;
        let first = argv.read();
        let environment = envp.read();
        let env_start = if environment.is_null() { args.env_end } else { environment as u64 };
        let map = MmMap {
            start_code: layout.start_code,
            end_code: layout.end_code,
            start_data: layout.start_data,
            end_data: layout.end_data,
            start_brk: layout.start_brk,
            brk: layout.brk,
            start_stack: layout.start_stack,
            arg_start: first as u64,
            arg_end: env_start,
            env_start,
            env_end: args.env_end,
            auxv: args.auxv as *const usize,
            auxv_size: (entry as usize - args.auxv as usize) as u32,
            exe_fd: u32::MAX,
        };
        let arguments =
            [PR_SET_MM, PR_SET_MM_MAP, &raw const map as usize, size_of::<MmMap>(), 0, 0];
        if call(syscall::PRCTL, arguments) < 0 {
            fail(b"the kernel refused PR_SET_MM_MAP");
        }
    }
}

/// Sets a signal's action; one that CPython would have left ignored stays so.
///
/// # Safety
///
/// As [`thaw`].
unsafe fn act(signal: &Signal, ignored: u64) {
    if signal.yields != 0 && ignored >> (signal.number - 1) & 1 == 1 {
        return;
    }
    let action = KernelAction {
        handler: signal.handler,
        flags: signal.flags,
        restorer: signal.restorer,
        mask: signal.mask,
    };
    let arguments = [signal.number as usize, &raw const action as usize, 0, size_of::<u64>(), 0, 0];
    // SAFETY: the handlers are the image's, which is in place; all signals are blocked.
    if unsafe { call(syscall::RT_SIGACTION, arguments) } < 0 {
        fail(b"the kernel refused a signal's action");
    }
}

/// A thread has the signals blocked that it had, and those that the caller had.
///
/// # Safety
///
/// As [`thaw`].
unsafe fn inherit_mask(thread: &Thread, mask: u64) {
    // SAFETY: the landing and its mask are the image's own private memory.
    unsafe {
        let word = (*(thread.landing as *const Landing)).mask as *mut u64;
        word.write(word.read() | mask);
    }
}

/// Starts a thread, which goes on with its landing as its stack.
///
/// # Safety
///
/// As [`thaw`].
unsafe fn start(thread: &Thread) {
    let result: isize;
    // SAFETY: the child runs on its own stack, at its landing, and never returns from `land_thread`.
    unsafe {
        asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "mov rdi, rsp",
            "xor ebp, ebp",
            "call {land}",
            "2:",
            land = sym land_thread,
            inlateout("rax") syscall::CLONE.cast_signed() => result,
            in("rdi") THREAD_FLAGS,
            in("rsi") thread.landing,
            in("rdx") thread.clear_tid,
            in("r10") thread.clear_tid,
            in("r8") thread.fs_base,
            lateout("rcx") _, lateout("r11") _,
        );
    }
    if result < 0 {
        fail(b"a thread cannot be started (ulimit -u, or the container's limit of processes)");
    }
    if thread.gs_base != 0 {
        // CPython and glibc leave GS alone on x86-64; a library that does not cannot be thawed.
        fail(b"a thread uses the GS base");
    }
}

unsafe extern "C" fn land_thread(landing: *const Landing) -> ! {
    // SAFETY: the landing lies below the frozen stack pointer and is this thread's alone.
    unsafe {
        if (*landing).name[0] != 0 {
            let name = (&raw const (*landing).name) as usize;
            let _ = call(syscall::PRCTL, [PR_SET_NAME, name, 0, 0, 0, 0]);
        }
        land(landing)
    }
}

/// # Safety
///
/// As [`thaw`].
unsafe fn set_thread_pointer(main: &Thread) {
    // SAFETY: the thread pointer is the frozen one, whose memory is in place.
    unsafe {
        let mut result =
            call(syscall::ARCH_PRCTL, [ARCH_SET_FS, main.fs_base as usize, 0, 0, 0, 0]);
        if main.gs_base != 0 {
            result |= call(syscall::ARCH_PRCTL, [ARCH_SET_GS, main.gs_base as usize, 0, 0, 0, 0]);
        }
        let tid = call(syscall::SET_TID_ADDRESS, [main.clear_tid as usize, 0, 0, 0, 0, 0]);
        if result < 0 || tid < 0 {
            fail(b"the main thread's pointer cannot be set");
        }
        (main.clear_tid as *mut i32).write(tid as i32);
    }
}

/// Moves the main thread to its own stack and goes on in [`land_main`].
///
/// # Safety
///
/// As [`thaw`]; `landing` is the main thread's.
unsafe fn leave(landing: *const Landing, region: Range, scratch: Range) -> ! {
    // SAFETY: below the landing the main thread's stack is free, and nothing on the old stack is
    // needed any more: the ranges travel in registers.
    unsafe {
        asm!(
            "mov rsp, rdi",
            "xor ebp, ebp",
            "call {land}",
            "ud2",
            land = sym land_main,
            in("rdi") landing,
            in("rsi") region.start,
            in("rdx") region.end - region.start,
            in("rcx") scratch.start,
            in("r8") scratch.end - scratch.start,
            options(noreturn)
        );
    }
}

unsafe extern "C" fn land_main(
    landing: *const Landing,
    region: usize,
    region_length: usize,
    scratch: usize,
    scratch_length: usize,
) -> ! {
    // SAFETY: nothing runs in the restorer's region or on the new stack's lower part any more.
    unsafe {
        if call(syscall::MUNMAP, [region, region_length, 0, 0, 0, 0]) < 0
            || call(syscall::MUNMAP, [scratch, scratch_length, 0, 0, 0, 0]) < 0
        {
            fail(b"the restorer cannot be unmapped");
        }
        land(landing)
    }
}

/// What is the kernel's per thread, then the frozen registers.
///
/// # Safety
///
/// `landing` is the calling thread's.
unsafe fn land(landing: *const Landing) -> ! {
    // SAFETY: robust list and rseq area are the thread's own; the frame was built of its registers.
    unsafe {
        let one = &*landing;
        if one.robust_list != 0 {
            let arguments = [one.robust_list as usize, one.robust_length as usize, 0, 0, 0, 0];
            if call(syscall::SET_ROBUST_LIST, arguments) < 0 {
                fail(b"a thread's robust list cannot be set");
            }
        }
        if one.rseq != 0 {
            let arguments =
                [one.rseq as usize, one.rseq_length as usize, 0, one.rseq_signature as usize, 0, 0];
            if call(syscall::RSEQ, arguments) < 0 {
                fail(b"a thread's rseq area cannot be registered");
            }
        }
        asm!(
            "mov rsp, {context}",
            "syscall",
            "ud2",
            context = in(reg) one.context,
            in("rax") syscall::RT_SIGRETURN,
            options(noreturn)
        );
    }
}

/// Ends a process that is only half restored: there is nothing else that is safe to do with it.
pub(crate) fn fail(why: &[u8]) -> ! {
    const BEFORE: &[u8] = b"preloaded-criu: the image could not be put into this process\n  ";
    const AFTER: &[u8] = b"\nhint: 'preloaded-criu doctor run' says what this machine allows\n";
    for part in [BEFORE, why, AFTER] {
        // SAFETY: the bytes are alive.
        unsafe { call(syscall::WRITE, [2, part.as_ptr() as usize, part.len(), 0, 0, 0]) };
    }
    loop {
        // SAFETY: takes no address.
        unsafe { call(syscall::EXIT_GROUP, [125, 0, 0, 0, 0, 0]) };
    }
}

const _: () =
    assert!(offset_of!(Landing, robust_list) == 0 && size_of::<Landing>().is_multiple_of(8));
