//! Runs the program as CPython's own main does (Modules/main.c, pymain_run_python), with no Python
//! frame below it, and ends the process when nothing of the program is left.
//!
//! That main finalizes the whole interpreter, which visits memory that no program of this run has
//! ever used. The agent has finalization call [`leave`] where the program's own modules, objects and
//! files are gone, in CPython's order; what would follow is the frozen interpreter's alone.

use core::ffi::{c_char, c_int, c_void};
use core::ptr::null_mut;
use core::sync::atomic::{AtomicI32, AtomicU64, Ordering};

use crate::python::{Dictionary, Flags, METH_O, Method, Object, Python};
use crate::{libc, variables};

/// `Py_file_input` (Include/compile.h).
const FILE_INPUT: c_int = 257;
/// The agent's `INTERRUPTED`.
const INTERRUPTED: c_int = -2;
/// What CPython makes of a failing flush of the standard streams at exit.
const FLUSH_FAILED: c_int = 120;
const SIGINT: c_int = 2;

/// Addresses of the functions that [`leave`] and [`hide`] call.
static AS_LONG: AtomicU64 = AtomicU64::new(0);
static MODULES: AtomicU64 = AtomicU64::new(0);
static UNTRACK: AtomicU64 = AtomicU64::new(0);
static NOTHING: AtomicU64 = AtomicU64::new(0);
static COUNT: AtomicU64 = AtomicU64::new(0);
static TRUTH: AtomicU64 = AtomicU64::new(0);
/// How many objects the dynamic loader had loaded when the process was frozen.
static LOADED: AtomicU64 = AtomicU64::new(0);
/// Process that runs the program: a child of its own must not leave on its behalf.
static PROCESS: AtomicI32 = AtomicI32::new(0);

static LEAVE: Method = Method {
    name: c"leave".as_ptr(),
    function: leave_from_python,
    flags: METH_O,
    doc: core::ptr::null(),
};

static HIDE: Method =
    Method { name: c"hide".as_ptr(), function: hide, flags: METH_O, doc: core::ptr::null() };

/// Notes what is loaded at the sync point.
pub(crate) fn note_loaded() {
    LOADED.store(loaded(), Ordering::Relaxed);
}

/// Runs what the agent says is to be run, an empty string for what CPython's own main does better,
/// and ends the process.
///
/// # Safety
///
/// CPython is initialised, and this thread holds the GIL.
pub(crate) unsafe fn run(python: &Python, agent: Object, program: Object, minor: u64) -> ! {
    // SAFETY: the caller's promise; CPython's functions are called as its documentation says.
    unsafe {
        let text = (python.PyBytes_AsString)(program);
        if text.is_null() || text.read() == 0 {
            libc::exit((python.Py_RunMain)());
        }
        let rest = text.add(1);
        let main = (python.PyModule_GetDict)((python.PyImport_AddModule)(c"__main__".as_ptr()));
        let mut flags = Flags { flags: 0, feature_version: minor as c_int };
        let result = match text.read() as u8 {
            b'c' => (python.PyRun_StringFlags)(rest, FILE_INPUT, main, main, &raw mut flags),
            b'm' => run_module(python, rest),
            _ => {
                let file = libc::fopen(rest, c"rb".as_ptr());
                if file.is_null() {
                    libc::exit((python.Py_RunMain)());
                }
                (python.PyRun_FileExFlags)(file, rest, FILE_INPUT, main, main, 1, &raw mut flags)
            }
        };
        let (error, status) = outcome(python, result);
        let inspect = variables::getenv(c"PYTHONINSPECT".as_ptr());
        if !inspect.is_null() && inspect.read() != 0 && libc::isatty(0) == 1 {
            // A program may ask for the prompt after it (python(1)).
            (python.PyRun_AnyFileExFlags)(libc::stdin, c"<stdin>".as_ptr(), 0, &raw mut flags);
        }
        finish(python, agent, error, status)
    }
}

unsafe fn run_module(python: &Python, name: *const c_char) -> Object {
    // SAFETY: as `run`.
    unsafe {
        let runpy = (python.PyImport_ImportModule)(c"runpy".as_ptr());
        if runpy.is_null() {
            return null_mut();
        }
        let function = (python.PyObject_GetAttrString)(runpy, c"_run_module_as_main".as_ptr());
        let name = (python.PyUnicode_DecodeFSDefault)(name);
        if function.is_null() || name.is_null() {
            return null_mut();
        }
        (python.PyObject_CallFunction)(function, c"Oi".as_ptr(), name, 1 as c_int)
    }
}

/// What a program ended with: the SystemExit that it raised or null, and its status otherwise. Any
/// other exception is printed.
unsafe fn outcome(python: &Python, result: Object) -> (Object, c_int) {
    // SAFETY: as `run`.
    unsafe {
        if !result.is_null() {
            (python.Py_DecRef)(result);
            return (null_mut(), 0);
        }
        if (python.PyErr_ExceptionMatches)(python.PyExc_SystemExit.read()) == 1 {
            let (mut kind, mut error, mut trace) = (null_mut(), null_mut(), null_mut());
            (python.PyErr_Fetch)(&raw mut kind, &raw mut error, &raw mut trace);
            (python.PyErr_NormalizeException)(&raw mut kind, &raw mut error, &raw mut trace);
            for object in [kind, trace] {
                if !object.is_null() {
                    (python.Py_DecRef)(object);
                }
            }
            return (error, 0);
        }
        let interrupted =
            (python.PyErr_ExceptionMatches)(python.PyExc_KeyboardInterrupt.read()) == 1;
        (python.PyErr_Print)();
        (null_mut(), if interrupted { INTERRUPTED } else { 1 })
    }
}

unsafe fn finish(python: &Python, agent: Object, error: Object, status: c_int) -> ! {
    // SAFETY: as `run`.
    unsafe {
        AS_LONG.store(python.PyLong_AsLong as *const () as u64, Ordering::Relaxed);
        PROCESS.store(libc::getpid(), Ordering::Relaxed);
        MODULES.store(python.PyImport_GetModuleDict as *const () as u64, Ordering::Relaxed);
        UNTRACK.store(python.PyObject_GC_UnTrack as *const () as u64, Ordering::Relaxed);
        NOTHING.store(python._Py_NoneStruct as u64, Ordering::Relaxed);
        TRUTH.store(python.PyBool_FromLong as *const () as u64, Ordering::Relaxed);
        COUNT.store(python.Py_IncRef as *const () as u64, Ordering::Relaxed);
        let leave = (python.PyCFunction_NewEx)(&raw const LEAVE, null_mut(), null_mut());
        let hide = (python.PyCFunction_NewEx)(&raw const HIDE, null_mut(), null_mut());
        let finish = (python.PyObject_GetAttrString)(agent, c"finish".as_ptr());
        let given = if error.is_null() { python._Py_NoneStruct } else { error };
        let done =
            (python.PyObject_CallFunction)(finish, c"OiOO".as_ptr(), given, status, leave, hide);
        let mut status = status;
        if done.is_null() {
            (python.PyErr_Print)();
        } else {
            status = (python.PyLong_AsLong)(done) as c_int;
            (python.Py_DecRef)(done);
        }
        for object in [leave, hide, finish, error] {
            if !object.is_null() {
                (python.Py_DecRef)(object);
            }
        }
        // Comes back only where finalization did not reach the agent's last object.
        if (python.Py_FinalizeEx)() < 0 {
            status = FLUSH_FAILED;
        }
        end(status)
    }
}

/// `leave(status)` in Python; `leave(None)` says whether the program has loaded no C code of its own,
/// which could want to be called at exit.
unsafe extern "C" fn leave_from_python(_: Object, status: Object) -> Object {
    // SAFETY: called by CPython with one object; the address was stored by `finish`.
    unsafe {
        if status as u64 == NOTHING.load(Ordering::Relaxed) {
            let truth = TRUTH.load(Ordering::Relaxed) as *const ();
            let truth: unsafe extern "C" fn(core::ffi::c_long) -> Object =
                core::mem::transmute(truth);
            let alone = loaded() == LOADED.load(Ordering::Relaxed);
            return truth(alone.into());
        }
        let as_long = AS_LONG.load(Ordering::Relaxed) as *const ();
        let as_long: unsafe extern "C" fn(Object) -> core::ffi::c_long =
            core::mem::transmute(as_long);
        leave(as_long(status) as c_int)
    }
}

/// `hide(modules)` in Python: gives the interpreter these modules in place of those that it has, and
/// these the old ones. Neither visits a module, nor does the garbage collector from now on: the
/// dictionary that holds the old ones is no longer tracked.
unsafe extern "C" fn hide(_: Object, other: Object) -> Object {
    // SAFETY: called by CPython, which holds the GIL, with one object: the agent gives a dictionary
    // of its own, and has made sure of the layout. The addresses were stored by `finish`; None is
    // returned as an own reference.
    unsafe {
        let modules = MODULES.load(Ordering::Relaxed) as *const ();
        let modules: unsafe extern "C" fn() -> Object = core::mem::transmute(modules);
        let untrack = UNTRACK.load(Ordering::Relaxed) as *const ();
        let untrack: unsafe extern "C" fn(Object) = core::mem::transmute(untrack);
        Dictionary::exchange(modules().cast(), other.cast());
        untrack(other);
        let nothing = NOTHING.load(Ordering::Relaxed) as Object;
        let count = COUNT.load(Ordering::Relaxed) as *const ();
        let count: unsafe extern "C" fn(Object) = core::mem::transmute(count);
        count(nothing);
        nothing
    }
}

/// Ends the process. What the C library has buffered is written. Functions that C code wants to be
/// called at exit (atexit(3), destructors) are the frozen libraries' as long as the program has loaded
/// none of its own.
fn leave(status: c_int) -> ! {
    // SAFETY: ends the process.
    unsafe {
        if status == INTERRUPTED || loaded() != LOADED.load(Ordering::Relaxed) {
            end(status);
        }
        libc::fflush(null_mut());
        libc::_exit(status)
    }
}

/// Ends the process of SIGINT.
pub(crate) fn end_of_interrupt() -> ! {
    // SAFETY: ends the process.
    unsafe { end(INTERRUPTED) }
}

/// Ends the process as a C program ends, or of SIGINT.
unsafe fn end(status: c_int) -> ! {
    // SAFETY: ends the process.
    unsafe {
        if status == INTERRUPTED {
            libc::fflush(null_mut());
            libc::signal(SIGINT, 0);
            libc::kill(libc::getpid(), SIGINT);
            // Blocked: what CPython makes of it then.
            libc::exit(128 + SIGINT);
        }
        libc::exit(status)
    }
}

/// How many objects the dynamic loader has loaded so far (dl_iterate_phdr(3), `dlpi_adds`).
fn loaded() -> u64 {
    unsafe extern "C" fn first(info: *const c_void, _: usize, adds: *mut c_void) -> c_int {
        /// Offset of `dlpi_adds` in `struct dl_phdr_info`: two pointers, a pointer, a half word with
        /// its padding.
        const ADDS: usize = 32;
        // SAFETY: the structure is the loader's, the number the caller's.
        unsafe { adds.cast::<u64>().write(info.byte_add(ADDS).cast::<u64>().read()) };
        1
    }
    let mut adds = 0_u64;
    // SAFETY: the function writes to the number that is handed over, and stops at the first object.
    unsafe { libc::dl_iterate_phdr(first, (&raw mut adds).cast()) };
    adds
}
