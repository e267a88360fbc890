//! Functions of the agent's that Python has no words for.
//!
//! `_swap` exchanges the contents of two dictionaries without looking at them: the agent hides thousands of frozen modules from finalization, and moving them one by one would count
//! references, which writes to the memory of each. `_native_id` says which TID a thread has now.

use core::ffi::{c_char, c_int};
use core::ptr::null_mut;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::python::{METH_O, METH_VARARGS, Method, Object, Python};
use crate::thaw::TID_OFFSET;

/// `swap(one, other)` in Python.
static SWAP: Method =
    Method { name: c"swap".as_ptr(), function: swap, flags: METH_VARARGS, doc: core::ptr::null() };

/// `native_id(ident)` in Python.
static NATIVE_ID: Method = Method {
    name: c"native_id".as_ptr(),
    function: native_id,
    flags: METH_O,
    doc: core::ptr::null(),
};

/// Address of `PyLong_AsLong`.
static AS_LONG: AtomicU64 = AtomicU64::new(0);
/// Address of `PyTuple_GetItem`, and of `Py_BuildValue`.
static GET_ITEM: AtomicU64 = AtomicU64::new(0);
static BUILD: AtomicU64 = AtomicU64::new(0);

/// `PyDictObject` behind its header (Include/cpython/dictobject.h, 3.10 to 3.13): how many, version,
/// keys, values.
type Contents = [u64; 4];
/// `PyObject_HEAD` of an interpreter with a global lock: reference count and type.
const HEAD: usize = 16;

/// Gives the agent the functions; the first only where this interpreter's dictionaries are known.
///
/// # Safety
///
/// CPython is initialised, this thread holds the GIL, and `agent` is the agent's module.
pub(crate) unsafe fn offer(python: &Python, agent: Object, minor: u64) {
    // SAFETY: the caller's promise.
    unsafe {
        BUILD.store(python.Py_BuildValue as *const () as u64, Ordering::Relaxed);
        AS_LONG.store(python.PyLong_AsLong as *const () as u64, Ordering::Relaxed);
        let function = (python.PyCFunction_NewEx)(&raw const NATIVE_ID, null_mut(), null_mut());
        (python.PyObject_SetAttrString)(agent, c"_native_id".as_ptr(), function);
        (python.Py_DecRef)(function);
        let version = (python.Py_GetVersion)();
        if !(10..=13).contains(&minor) || contains(version, b"free-threading") {
            return;
        }
        GET_ITEM.store(python.PyTuple_GetItem as *const () as u64, Ordering::Relaxed);
        let function = (python.PyCFunction_NewEx)(&raw const SWAP, null_mut(), null_mut());
        (python.PyObject_SetAttrString)(agent, c"_swap".as_ptr(), function);
        (python.Py_DecRef)(function);
    }
}

/// Whether a NUL-terminated string contains another one.
unsafe fn contains(text: *const c_char, wanted: &[u8]) -> bool {
    let mut start = text;
    // SAFETY: reading stops at the first difference, the string's NUL at the latest.
    unsafe {
        while start.read() != 0 {
            let same = |(place, byte): (usize, &u8)| start.add(place).read() as u8 == *byte;
            if wanted.iter().enumerate().all(same) {
                return true;
            }
            start = start.add(1);
        }
    }
    false
}

unsafe extern "C" fn swap(_: Object, arguments: Object) -> Object {
    // SAFETY: the agent calls it with two plain dictionaries that are no object's `__dict__`; the GIL
    // is held, so nobody looks at either meanwhile.
    unsafe {
        let get_item: unsafe extern "C" fn(Object, isize) -> Object =
            core::mem::transmute(GET_ITEM.load(Ordering::Relaxed) as *const ());
        let contents =
            |index: c_int| get_item(arguments, index as isize).byte_add(HEAD).cast::<Contents>();
        core::ptr::swap(contents(0), contents(1));
        let none: unsafe extern "C" fn(*const c_char, ...) -> Object =
            core::mem::transmute(BUILD.load(Ordering::Relaxed) as *const ());
        none(c"".as_ptr())
    }
}

/// The TID of a thread of this process by its `pthread_t`, which Python calls its identifier: glibc
/// keeps it there, at the same offset in all threads, and the restore has put the new one in its
/// place.
unsafe extern "C" fn native_id(_: Object, ident: Object) -> Object {
    // SAFETY: the agent calls it with the identifier of a living thread.
    unsafe {
        let as_long: unsafe extern "C" fn(Object) -> core::ffi::c_long =
            core::mem::transmute(AS_LONG.load(Ordering::Relaxed) as *const ());
        let build: unsafe extern "C" fn(*const c_char, ...) -> Object =
            core::mem::transmute(BUILD.load(Ordering::Relaxed) as *const ());
        let thread = as_long(ident).cast_unsigned().wrapping_add(TID_OFFSET);
        build(c"i".as_ptr(), (thread as *const c_int).read())
    }
}
