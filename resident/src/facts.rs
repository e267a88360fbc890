//! What the agent asks of the process, and Python has no function for. A module that has (`ctypes`) would
//! leave more behind than it takes here.

use core::ffi::{CStr, c_char, c_int, c_void};
use core::mem::transmute;
use core::ptr::{null, null_mut};
use core::sync::atomic::{AtomicPtr, Ordering};

use crate::libc;
use crate::python::{METH_NOARGS, METH_O, Method, Object, Python};
use crate::syscall::{self, call};
use crate::variables::{bytes, content};

static PRCTL: Method =
    Method { name: c"prctl".as_ptr(), function: prctl, flags: METH_O, doc: null() };
static FIND_SQLITE: Method =
    Method { name: c"find_sqlite".as_ptr(), function: find_sqlite, flags: METH_O, doc: null() };
static RESET_SQLITE: Method = Method {
    name: c"reset_sqlite".as_ptr(),
    function: reset_sqlite,
    flags: METH_NOARGS,
    doc: null(),
};

/// `sqlite3_randomness`, or null.
static RANDOMNESS: AtomicPtr<c_void> = AtomicPtr::new(null_mut());

/// The Python functions: [`prctl`], [`find_sqlite`] and [`reset_sqlite`].
///
/// # Safety
///
/// After `variables::begin`, in a thread that holds the GIL.
pub(crate) unsafe fn functions(python: &Python) -> [Object; 3] {
    // SAFETY: the records never change.
    [&PRCTL, &FIND_SQLITE, &RESET_SQLITE]
        .map(|method| unsafe { (python.PyCFunction_NewEx)(method, null_mut(), null_mut()) })
}

/// `prctl(options)` in Python: what prctl(2) says to each option (a byte) without arguments, in 64 bits
/// each.
unsafe extern "C" fn prctl(_: Object, options: Object) -> Object {
    const MOST: usize = 32;
    let mut said = [0_isize; MOST];
    // SAFETY: called by CPython, which holds the GIL, with options that only tell.
    unsafe {
        let options = content(options);
        let options = options.get(..MOST).unwrap_or(options);
        for (option, place) in options.iter().zip(&mut said) {
            *place = call(syscall::PRCTL, [(*option).into(), 0, 0, 0, 0, 0]);
        }
        bytes(said.as_ptr().cast(), size_of::<isize>() * options.len())
    }
}

/// `find_sqlite(path)` in Python: finds the function by which SQLite's generator is reset, of the SQLite
/// that this loaded object uses; without a path, that of the program itself. Empty where there is none.
unsafe extern "C" fn find_sqlite(_: Object, path: Object) -> Object {
    const RTLD_NOW: c_int = 2;
    const RTLD_NOLOAD: c_int = 4;
    const NAME: &CStr = c"sqlite3_randomness";
    // SAFETY: called by CPython, which holds the GIL; a bytes object has a NUL at its end. What is loaded
    // already stays loaded when the handle is given back.
    unsafe {
        let path = content(path);
        let function = if path.is_empty() {
            libc::dlsym(libc::RTLD_DEFAULT, NAME.as_ptr())
        } else {
            let object = libc::dlopen(path.as_ptr().cast::<c_char>(), RTLD_NOW | RTLD_NOLOAD);
            if object.is_null() {
                null_mut()
            } else {
                let function = libc::dlsym(object, NAME.as_ptr());
                libc::dlclose(object);
                function
            }
        };
        RANDOMNESS.store(function, Ordering::Relaxed);
        bytes(NAME.as_ptr(), if function.is_null() { 0 } else { NAME.count_bytes() })
    }
}

/// `reset_sqlite()` in Python: SQLite's generator is seeded from the operating system when it is next used
/// (<https://sqlite.org/c3ref/randomness.html>).
unsafe extern "C" fn reset_sqlite(_: Object, _: Object) -> Object {
    let function = RANDOMNESS.load(Ordering::Relaxed);
    // SAFETY: the function that was found has this type; no bytes are asked for.
    unsafe {
        if !function.is_null() {
            let randomness: unsafe extern "C" fn(c_int, *mut c_void) = transmute(function);
            randomness(0, null_mut());
        }
        bytes(c"".as_ptr(), 0)
    }
}
