//! Child processes that are the same interpreter start from the same image.
//!
//! This object stands before the C library in the search for symbols (ld.so(8), `LD_PRELOAD`), so the
//! exec(3) functions that CPython calls are these. Where a program is about to execute the very path
//! that the frozen interpreter goes by (`sys.executable`), the launcher is executed in its place and
//! told what was wanted; everything else is the C library's business as ever. `sys.executable` stays
//! what it is, and so does everything that is made from it: scripts' first lines, virtual
//! environments, a child's idea of its own name.
//!
//! exec is called between vfork(2) and the end of the child, on the parent's stack and in its memory:
//! nothing here allocates, takes a lock, or leaves anything behind.

use core::ffi::{c_char, c_int, c_void};
use core::mem::transmute;
use core::ptr::{null, null_mut};
use core::sync::atomic::{AtomicPtr, Ordering};

use restore_plan::{CHILD_COMMAND, IMAGE_NAME, LAUNCHER_NAME};

use crate::libc;
use crate::syscall::{self, call};

type Strings = *const *const c_char;
type Spawn = unsafe extern "C" fn(
    *mut c_int,
    *const c_char,
    *const c_void,
    *const c_void,
    Strings,
    Strings,
) -> c_int;

const AT_FDCWD: usize = (-100_isize).cast_unsigned();
const X_OK: usize = 1;
/// What stands before the caller's arguments: the launcher's name, its command, image, program.
const OURS: usize = 4;

/// The path that the frozen interpreter goes by; null as long as children are as they are.
static PROGRAM: AtomicPtr<c_char> = AtomicPtr::new(null_mut());
static LAUNCHER: AtomicPtr<c_char> = AtomicPtr::new(null_mut());
static IMAGE: AtomicPtr<c_char> = AtomicPtr::new(null_mut());

/// From now on children of the path `program` start from the image. `strings` are the two that the
/// launcher has sent for that.
///
/// # Safety
///
/// `program` is NUL-terminated, `strings` two such strings, one after the other; both stay for good.
pub(crate) unsafe fn adopt(program: *const c_char, strings: *const c_char) {
    // SAFETY: the caller's promise; each string begins with its variable's name.
    unsafe {
        let image = strings.add(libc::strlen(strings) + 1).add(IMAGE_NAME.len());
        LAUNCHER.store(strings.add(LAUNCHER_NAME.len()).cast_mut(), Ordering::Relaxed);
        IMAGE.store(image.cast_mut(), Ordering::Relaxed);
        PROGRAM.store(program.cast_mut(), Ordering::Relaxed);
    }
}

/// execve(2).
///
/// # Safety
///
/// As the C library's function of that name.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn execve(path: *const c_char, argv: Strings, envp: Strings) -> c_int {
    // SAFETY: the caller's strings and vectors.
    unsafe {
        instead(path, argv, |launcher, argv| execute(launcher, argv, envp));
        let result = execute(path, argv, envp);
        libc::__errno_location().write(-result as c_int);
        -1
    }
}

/// execv(3).
///
/// # Safety
///
/// As the C library's function of that name.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn execv(path: *const c_char, argv: Strings) -> c_int {
    // SAFETY: the caller's strings and vectors, and the C library's environment.
    unsafe { execve(path, argv, libc::environ as Strings) }
}

/// posix_spawn(3).
///
/// # Safety
///
/// As the C library's function of that name.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posix_spawn(
    pid: *mut c_int,
    path: *const c_char,
    actions: *const c_void,
    attributes: *const c_void,
    argv: Strings,
    envp: Strings,
) -> c_int {
    // SAFETY: the next definition of that name is the C library's, which has this type.
    unsafe {
        let real = libc::dlsym(libc::RTLD_NEXT, c"posix_spawn".as_ptr());
        let real = transmute::<*mut c_void, Spawn>(real);
        let started = instead(path, argv, |launcher, argv| {
            real(pid, launcher, actions, attributes, argv, envp) as isize
        });
        if started == Some(0) { 0 } else { real(pid, path, actions, attributes, argv, envp) }
    }
}

unsafe fn execute(path: *const c_char, argv: Strings, envp: Strings) -> isize {
    // SAFETY: the caller's strings and vectors; on success nothing is left to care for.
    unsafe { call(syscall::EXECVE, [path as usize, argv as usize, envp as usize, 0, 0, 0]) }
}

/// Calls `start` with the launcher and its arguments, if this is a start of the frozen interpreter's
/// own path. What it returns is a failure then, or nothing that was started instead.
unsafe fn instead(
    path: *const c_char,
    argv: Strings,
    start: impl FnOnce(*const c_char, Strings) -> isize,
) -> Option<isize> {
    // SAFETY: the caller's strings and vectors.
    unsafe {
        let program = PROGRAM.load(Ordering::Relaxed);
        if program.is_null()
            || path.is_null()
            || argv.is_null()
            || argv.read().is_null()
            || !same(path, program)
        {
            return None;
        }
        // A program that cannot be started is the kernel's to complain of.
        if call(syscall::FACCESSAT, [AT_FDCWD, path as usize, X_OK, 0, 0, 0]) != 0 {
            return None;
        }
        let mut count = 0;
        while !argv.add(count).read().is_null() {
            count += 1;
        }
        // The stack is the caller's, and may be small. Very long command lines start cold.
        match OURS + count + 1 {
            0..=64 => Some(fill::<64>(program, argv, count, start)),
            65..=1024 => Some(fill::<1024>(program, argv, count, start)),
            _ => None,
        }
    }
}

#[inline(never)]
unsafe fn fill<const ROOM: usize>(
    program: *const c_char,
    argv: Strings,
    count: usize,
    start: impl FnOnce(*const c_char, Strings) -> isize,
) -> isize {
    let launcher = LAUNCHER.load(Ordering::Relaxed).cast_const();
    let mut vector = [null::<c_char>(); ROOM];
    vector[0] = launcher;
    vector[1] = CHILD_COMMAND.as_ptr();
    vector[2] = IMAGE.load(Ordering::Relaxed);
    vector[3] = program;
    for index in 0..count {
        // SAFETY: the caller has counted so many, and seen that there is room.
        unsafe { *vector.get_unchecked_mut(OURS + index) = argv.add(index).read() };
    }
    start(launcher, vector.as_ptr())
}

/// Whether two strings are equal.
unsafe fn same(one: *const c_char, other: *const c_char) -> bool {
    let mut place = 0;
    loop {
        // SAFETY: both are NUL-terminated, and equal up to here.
        let (left, right) = unsafe { (one.add(place).read(), other.add(place).read()) };
        if left != right {
            return false;
        }
        if left == 0 {
            return true;
        }
        place += 1;
    }
}
