//! The C library functions that the resident calls.

use core::ffi::{c_char, c_int, c_void};

pub(crate) const RTLD_DEFAULT: *mut c_void = core::ptr::null_mut();
pub(crate) const RTLD_NEXT: *mut c_void = usize::MAX as *mut c_void;

/// `Dl_info` (dladdr(3)).
#[repr(C)]
pub(crate) struct DlInfo {
    file: *const c_char,
    /// Where the object is loaded.
    pub(crate) base: *mut c_void,
    name: *const c_char,
    address: *mut c_void,
}

#[link(name = "c")]
unsafe extern "C" {
    pub(crate) fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void;
    pub(crate) fn dlopen(path: *const c_char, flags: c_int) -> *mut c_void;
    pub(crate) fn dlclose(handle: *mut c_void) -> c_int;
    pub(crate) fn setenv(name: *const c_char, value: *const c_char, overwrite: c_int) -> c_int;
    pub(crate) fn unsetenv(name: *const c_char) -> c_int;
    pub(crate) fn strtol(text: *const c_char, end: *mut *mut c_char, base: c_int) -> i64;
    pub(crate) fn strchr(text: *const c_char, byte: c_int) -> *mut c_char;
    pub(crate) fn strlen(text: *const c_char) -> usize;
    pub(crate) fn malloc(size: usize) -> *mut c_void;
    pub(crate) fn mincore(address: *mut c_void, length: usize, pages: *mut u8) -> c_int;
    pub(crate) fn sbrk(increment: isize) -> *mut c_void;
    pub(crate) fn dladdr(address: *const c_void, info: *mut DlInfo) -> c_int;
    pub(crate) fn free(pointer: *mut c_void);
    pub(crate) fn read(fd: c_int, buffer: *mut c_void, count: usize) -> isize;
    pub(crate) fn write(fd: c_int, buffer: *const c_void, count: usize) -> isize;
    pub(crate) fn lseek(fd: c_int, offset: i64, whence: c_int) -> i64;
    pub(crate) fn close(fd: c_int) -> c_int;
    pub(crate) fn fflush(stream: *mut c_void) -> c_int;
    pub(crate) fn fopen(path: *const c_char, mode: *const c_char) -> *mut c_void;
    pub(crate) fn isatty(fd: c_int) -> c_int;
    pub(crate) fn getpid() -> c_int;
    pub(crate) fn kill(process: c_int, signal: c_int) -> c_int;
    pub(crate) fn signal(signal: c_int, handler: usize) -> usize;
    pub(crate) fn dl_iterate_phdr(
        each: unsafe extern "C" fn(*const c_void, usize, *mut c_void) -> c_int,
        data: *mut c_void,
    ) -> c_int;
    pub(crate) static mut stdin: *mut c_void;
    pub(crate) fn __errno_location() -> *mut c_int;
    pub(crate) fn exit(status: c_int) -> !;
    pub(crate) fn _exit(status: c_int) -> !;
    pub(crate) static mut environ: *mut *mut c_char;
    /// glibc's `argv[0]`, as error(3) and err(3) print it (program_invocation_name(3)).
    pub(crate) static mut program_invocation_name: *mut c_char;
    pub(crate) static mut program_invocation_short_name: *mut c_char;
}
