//! Which environment variables C code asks for while an image is made: what it was told then is part of
//! the image.
//!
//! This object stands before the C library in the search for symbols, so the getenv(3) that libraries
//! call is this one. It asks the C library's, and as long as a record is kept, notes the name of each
//! variable that was found as the process was given it, or not found. What C code of the program itself
//! has put there is no concern of the image.

use core::ffi::{c_char, c_void};
use core::mem::transmute;
use core::ptr::null_mut;
use core::slice;
use core::sync::atomic::{AtomicPtr, AtomicU16, AtomicU64, AtomicUsize, Ordering};

use crate::libc;
use crate::python::{METH_NOARGS, METH_O, Method, Object, Python};
use crate::syscall::{self, call};

type Get = unsafe extern "C" fn(*const c_char) -> *mut c_char;

/// Room for the record. It is memory of its own, and gone before the process is frozen.
const ROOM: usize = 1 << 20;
/// The length before each name, and the alignment of an entry.
const HEAD: usize = size_of::<u16>();

static REAL: AtomicPtr<c_void> = AtomicPtr::new(null_mut());
static REAL_SECURE: AtomicPtr<c_void> = AtomicPtr::new(null_mut());
/// The record: entries of a length and so many bytes, aligned; null where none is kept.
static RECORD: AtomicPtr<u8> = AtomicPtr::new(null_mut());
static USED: AtomicUsize = AtomicUsize::new(0);
/// How many threads are about to look at the record.
static BUSY: AtomicUsize = AtomicUsize::new(0);
/// Where the environment lies that the process was given.
static GIVEN: [AtomicUsize; 2] = [AtomicUsize::new(0), AtomicUsize::new(0)];
static BYTES: AtomicU64 = AtomicU64::new(0);

static FORGET: Method = Method {
    name: c"variables".as_ptr(),
    function: finish,
    flags: METH_NOARGS,
    doc: core::ptr::null(),
};

static WIPE: Method =
    Method { name: c"wipe".as_ptr(), function: wipe, flags: METH_O, doc: core::ptr::null() };
static WIPE_GIVEN: Method = Method {
    name: c"wipe_given".as_ptr(),
    function: wipe_given,
    flags: METH_O,
    doc: core::ptr::null(),
};
static AS_BYTES: AtomicU64 = AtomicU64::new(0);
static LENGTH: AtomicU64 = AtomicU64::new(0);

/// Finds the C library's functions.
pub(crate) fn find_real() {
    for (place, name) in [(&REAL, c"getenv"), (&REAL_SECURE, c"secure_getenv")] {
        // SAFETY: a search in the objects that are loaded.
        place.store(unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) }, Ordering::Release);
    }
}

/// Begins a record, and returns the Python function that ends it: called, it gives the names, each with
/// a NUL behind it.
///
/// # Safety
///
/// This thread holds the GIL, and the C library's environment is the one that the process was given.
pub(crate) unsafe fn begin(python: &Python) -> Object {
    const READ_WRITE: usize = 3;
    const PRIVATE_ANONYMOUS: usize = 0x22;
    // SAFETY: the kernel chooses the address; the strings are those of the process's own stack.
    unsafe {
        BYTES.store(python.PyBytes_FromStringAndSize as *const () as u64, Ordering::Relaxed);
        AS_BYTES.store(python.PyBytes_AsString as *const () as u64, Ordering::Relaxed);
        LENGTH.store(python.PyObject_Size as *const () as u64, Ordering::Relaxed);
        let mut given = [usize::MAX, 0];
        // The kernel's strings are at the end of the stack, above all that is called. CPython may have added
        // one of its own to the environment, or taken one's place, somewhere below.
        let here = (&raw const given) as usize;
        let mut next = libc::environ;
        while !next.is_null() && !next.read().is_null() {
            let string = next.read() as usize;
            if string > here {
                given = [given[0].min(string), given[1].max(string)];
            }
            next = next.add(1);
        }
        if given[1] != 0 {
            given[1] += libc::strlen(given[1] as *const c_char);
        }
        GIVEN[0].store(given[0], Ordering::Relaxed);
        GIVEN[1].store(given[1], Ordering::Relaxed);
        let room = call(syscall::MMAP, [0, ROOM, READ_WRITE, PRIVATE_ANONYMOUS, usize::MAX, 0]);
        if room > 0 {
            RECORD.store(room as *mut u8, Ordering::Release);
        }
        (python.PyCFunction_NewEx)(&raw const FORGET, null_mut(), null_mut())
    }
}

/// The Python functions that take values out of the memory: `wipe` for those that are bytes objects, and
/// `wipe_given` for those that the kernel has put there.
///
/// # Safety
///
/// After [`begin`], in a thread that holds the GIL.
pub(crate) unsafe fn wipers(python: &Python) -> [Object; 2] {
    // SAFETY: the records never change.
    [&WIPE, &WIPE_GIVEN]
        .map(|method| unsafe { (python.PyCFunction_NewEx)(method, null_mut(), null_mut()) })
}

/// getenv(3).
///
/// # Safety
///
/// As the C library's function of that name.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getenv(name: *const c_char) -> *mut c_char {
    // SAFETY: the caller's string.
    unsafe { ask(&REAL, name) }
}

/// secure_getenv(3).
///
/// # Safety
///
/// As the C library's function of that name.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn secure_getenv(name: *const c_char) -> *mut c_char {
    // SAFETY: the caller's string.
    unsafe { ask(&REAL_SECURE, name) }
}

unsafe fn ask(real: &AtomicPtr<c_void>, name: *const c_char) -> *mut c_char {
    // SAFETY: the C library's function of that type; the caller's string.
    unsafe {
        let real = real.load(Ordering::Acquire);
        // Constructors run before the program does.
        if real.is_null() {
            return search(name);
        }
        let value = transmute::<*mut c_void, Get>(real)(name);
        if !RECORD.load(Ordering::Relaxed).is_null() && (value.is_null() || is_given(value)) {
            BUSY.fetch_add(1, Ordering::SeqCst);
            let record = RECORD.load(Ordering::SeqCst);
            if !record.is_null() {
                note(record, slice::from_raw_parts(name.cast(), libc::strlen(name)));
            }
            BUSY.fetch_sub(1, Ordering::SeqCst);
        }
        value
    }
}

fn is_given(value: *const c_char) -> bool {
    let [first, last] = [&GIVEN[0], &GIVEN[1]].map(|place| place.load(Ordering::Relaxed));
    (first..=last).contains(&(value as usize))
}

/// What getenv(3) does.
unsafe fn search(name: *const c_char) -> *mut c_char {
    // SAFETY: the environment is a vector of strings with a null pointer at its end.
    unsafe {
        let length = libc::strlen(name);
        let mut next = libc::environ;
        while !next.is_null() && !next.read().is_null() {
            let string = next.read();
            let same = (0..length).all(|place| string.add(place).read() == name.add(place).read());
            if same && string.add(length).read() as u8 == b'=' {
                return string.add(length + 1);
            }
            next = next.add(1);
        }
        null_mut()
    }
}

/// Puts a name into the record, once. Several threads may do so at a time: a length is written when the
/// name is complete, and what is not complete is the end for whoever looks.
unsafe fn note(record: *mut u8, name: &[u8]) {
    if name.is_empty() || name.len() > 1024 {
        return;
    }
    // SAFETY: places below `USED` belong to whoever has reserved them, and are read when they are
    // complete; all of them lie within the record.
    unsafe {
        let mut place = 0;
        while let Some(entry) = entry(record, place) {
            if entry == name {
                return;
            }
            place += size(entry.len());
        }
        let place = USED.fetch_add(size(name.len()), Ordering::Relaxed);
        if place + size(name.len()) > ROOM {
            return;
        }
        let head = record.add(place);
        core::ptr::copy_nonoverlapping(name.as_ptr(), head.add(HEAD), name.len());
        AtomicU16::from_ptr(head.cast()).store(name.len() as u16, Ordering::Release);
    }
}

/// The bytes of an entry for a name of that length.
const fn size(length: usize) -> usize {
    (HEAD + length).next_multiple_of(HEAD)
}

unsafe fn entry<'a>(record: *mut u8, place: usize) -> Option<&'a [u8]> {
    if place + HEAD > ROOM {
        return None;
    }
    // SAFETY: within the record, and aligned; where there is a length, so many bytes are complete.
    unsafe {
        let length = AtomicU16::from_ptr(record.add(place).cast()).load(Ordering::Acquire);
        (length != 0).then(|| slice::from_raw_parts(record.add(place + HEAD), length.into()))
    }
}

/// `variables()` in Python.
unsafe extern "C" fn finish(_: Object, _: Object) -> Object {
    // SAFETY: called by CPython, which holds the GIL; the address was stored by `begin`. The names are
    // moved to the front, where each takes no more than it did.
    unsafe {
        let record = RECORD.swap(null_mut(), Ordering::SeqCst);
        if record.is_null() {
            return bytes(c"".as_ptr(), 0);
        }
        while BUSY.load(Ordering::SeqCst) != 0 {
            core::hint::spin_loop();
        }
        let (mut place, mut filled) = (0, 0);
        while let Some(entry) = entry(record, place) {
            let length = entry.len();
            core::ptr::copy(entry.as_ptr(), record.add(filled), length);
            record.add(filled + length).write(0);
            filled += length + 1;
            place += size(length);
        }
        let names = bytes(record.cast(), filled);
        call(syscall::MUNMAP, [record as usize, ROOM, 0, 0, 0, 0]);
        names
    }
}

/// The content of a bytes object.
///
/// # Safety
///
/// After [`begin`], in a thread that holds the GIL; it is a bytes object, which outlives its content.
pub(crate) unsafe fn content<'a>(object: Object) -> &'a mut [u8] {
    // SAFETY: the functions that `begin` has stored, of these types; the agent hands a bytes object, which
    // lives as long as the call.
    unsafe {
        let as_bytes = AS_BYTES.load(Ordering::Relaxed) as *const ();
        let as_bytes: unsafe extern "C" fn(Object) -> *mut c_char = transmute(as_bytes);
        let length = LENGTH.load(Ordering::Relaxed) as *const ();
        let length: unsafe extern "C" fn(Object) -> isize = transmute(length);
        let (first, length) = (as_bytes(object), length(object));
        if first.is_null() || length < 0 {
            return &mut [];
        }
        slice::from_raw_parts_mut(first.cast(), length as usize)
    }
}

/// A bytes object.
///
/// # Safety
///
/// After [`begin`], in a thread that holds the GIL; so many bytes can be read there.
pub(crate) unsafe fn bytes(first: *const c_char, length: usize) -> Object {
    let bytes = BYTES.load(Ordering::Relaxed) as *const ();
    // SAFETY: the function that `begin` has stored, of that type.
    unsafe {
        let bytes: unsafe extern "C" fn(*const c_char, isize) -> Object = transmute(bytes);
        bytes(first, length.cast_signed())
    }
}

unsafe fn done() -> Object {
    // SAFETY: called by CPython, which holds the GIL.
    unsafe { bytes(c"".as_ptr(), 0) }
}

/// `wipe(value)` in Python.
unsafe extern "C" fn wipe(_: Object, value: Object) -> Object {
    // SAFETY: called by CPython, which holds the GIL; the agent holds the only reference to the value.
    unsafe {
        content(value).fill(0);
        done()
    }
}

/// `wipe_given(names)` in Python: each name has a NUL behind it.
unsafe extern "C" fn wipe_given(_: Object, names: Object) -> Object {
    let [first, last] = [&GIVEN[0], &GIVEN[1]].map(|place| place.load(Ordering::Relaxed));
    // SAFETY: called by CPython, which holds the GIL. The strings that the kernel has put there follow each
    // other; they stay strings, whose values are empty.
    unsafe {
        let names = content(names);
        let mut at = first;
        while at < last {
            let string =
                slice::from_raw_parts_mut(at as *mut u8, libc::strlen(at as *const c_char));
            if let Some(equals) = string.iter().position(|byte| *byte == b'=') {
                let (name, value) = string.split_at_mut(equals);
                if names.split(|byte| *byte == 0).any(|one| one == name) {
                    value[1..].fill(0);
                }
            }
            at += string.len() + 1;
        }
        done()
    }
}
