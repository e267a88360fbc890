//! The part of CPython's C API that the resident calls, found at run time: which interpreter it will
//! live in is not known before.

use core::ffi::{CStr, c_char, c_int, c_long, c_void};

use crate::libc;

/// A `PyObject *`.
pub(crate) type Object = *mut c_void;

/// `PyStatus` (Include/cpython/initconfig.h).
#[repr(C)]
pub(crate) struct Status {
    kind: c_int,
    function: *const c_char,
    message: *const c_char,
    exit_code: c_int,
}

impl Status {
    /// `PyStatus_Exception`: an error, or the wish to exit.
    pub(crate) fn failed(&self) -> bool {
        self.kind != 0
    }

    /// What went wrong, for people.
    pub(crate) fn message(&self) -> &CStr {
        if self.message.is_null() {
            return c"CPython cannot start";
        }
        // SAFETY: CPython's messages are static strings.
        unsafe { CStr::from_ptr(self.message) }
    }
}

/// `PyMethodDef` (Include/methodobject.h).
#[repr(C)]
pub(crate) struct Method {
    pub(crate) name: *const c_char,
    pub(crate) function: unsafe extern "C" fn(Object, Object) -> Object,
    pub(crate) flags: c_int,
    pub(crate) doc: *const c_char,
}

// SAFETY: it points to what never changes.
unsafe impl Sync for Method {}

/// `METH_NOARGS`: no argument.
pub(crate) const METH_NOARGS: c_int = 4;
/// `METH_O`: one argument.
pub(crate) const METH_O: c_int = 8;

/// `PyDictObject` (Include/cpython/dictobject.h), the same from CPython 3.10 to 3.13 where an object's
/// head is a count and a type.
#[repr(C)]
pub(crate) struct Dictionary {
    head: [u64; 2],
    used: isize,
    version: u64,
    keys: *mut c_void,
    values: *mut c_void,
}

impl Dictionary {
    /// Gives each of two dictionaries what the other one holds.
    ///
    /// # Safety
    ///
    /// Both are dictionaries of exactly that type, nobody iterates over them, and this thread holds
    /// the GIL.
    pub(crate) unsafe fn exchange(one: *mut Self, other: *mut Self) {
        // SAFETY: the caller's promise. What refers to the dictionaries' content are these fields
        // alone; the version stays with the dictionary that it counts the changes of.
        unsafe {
            core::ptr::swap(&raw mut (*one).used, &raw mut (*other).used);
            core::ptr::swap(&raw mut (*one).keys, &raw mut (*other).keys);
            core::ptr::swap(&raw mut (*one).values, &raw mut (*other).values);
        }
    }
}

/// `PyCompilerFlags` (Include/cpython/compile.h).
#[repr(C)]
pub(crate) struct Flags {
    pub(crate) flags: c_int,
    pub(crate) feature_version: c_int,
}

/// Room for a `PyConfig`, whose size differs between versions (about 400 bytes in 3.13).
#[repr(C, align(16))]
pub(crate) struct Config([u8; 8192]);

impl Config {
    pub(crate) const EMPTY: Self = Self([0; 8192]);
}

impl Config {
    /// The field `filesystem_encoding` in the configuration of CPython 3.`minor`
    /// (Include/cpython/initconfig.h; the structure does not change within a minor version).
    pub(crate) fn filesystem_encoding(this: *mut Self, minor: u64) -> Option<*mut *mut c_void> {
        let offset = match minor {
            10 => 56,
            11 => 72,
            12 | 13 => 80,
            _ => return None,
        };
        // SAFETY: within the room that a configuration has here.
        Some(unsafe { this.byte_add(offset).cast() })
    }
}

macro_rules! api {
    ($($name:ident: $type:ty;)*) => {
        /// The functions, by their names in the C API.
        #[allow(non_snake_case, reason = "the names are CPython's")]
        pub(crate) struct Python { $(pub(crate) $name: $type,)* }

        impl Python {
            /// Looks them all up; the name of the first one that is missing otherwise.
            #[allow(clippy::useless_transmute, clippy::transmute_ptr_to_ptr, clippy::crosspointer_transmute, reason = "one way for functions and variables")]
            pub(crate) fn find() -> Result<Self, &'static CStr> {
                Ok(Self { $($name: {
                    const NAME: &CStr = match CStr::from_bytes_with_nul(
                        concat!(stringify!($name), "\0").as_bytes()) {
                        Ok(name) => name,
                        Err(_) => c"",
                    };
                    // SAFETY: a search in the objects that are loaded.
                    let address = unsafe { libc::dlsym(libc::RTLD_DEFAULT, NAME.as_ptr()) };
                    if address.is_null() {
                        return Err(NAME);
                    }
                    // SAFETY: the symbol of that name has that type since CPython 3.8.
                    unsafe { core::mem::transmute::<*mut c_void, $type>(address) }
                },)* })
            }
        }
    };
}

api! {
    PyConfig_InitPythonConfig: unsafe extern "C" fn(*mut Config);
    PyConfig_SetBytesArgv: unsafe extern "C" fn(*mut Config, isize, *const *mut c_char) -> Status;
    PyConfig_SetBytesString: unsafe extern "C" fn(*mut Config, *mut *mut c_void, *const c_char) -> Status;
    PyConfig_Clear: unsafe extern "C" fn(*mut Config);
    Py_InitializeFromConfig: unsafe extern "C" fn(*const Config) -> Status;
    Py_GetVersion: unsafe extern "C" fn() -> *const c_char;
    Py_RunMain: unsafe extern "C" fn() -> c_int;
    Py_ExitStatusException: unsafe extern "C" fn(Status) -> !;
    Py_CompileString: unsafe extern "C" fn(*const c_char, *const c_char, c_int) -> Object;
    PyImport_ExecCodeModule: unsafe extern "C" fn(*const c_char, Object) -> Object;
    PyObject_GetAttrString: unsafe extern "C" fn(Object, *const c_char) -> Object;
    PyObject_CallFunction: unsafe extern "C" fn(Object, *const c_char, ...) -> Object;
    PyBytes_FromStringAndSize: unsafe extern "C" fn(*const c_char, isize) -> Object;
    PyBool_FromLong: unsafe extern "C" fn(c_long) -> Object;
    PyErr_Clear: unsafe extern "C" fn();
    PyObject_Size: unsafe extern "C" fn(Object) -> isize;
    PyMarshal_WriteObjectToString: unsafe extern "C" fn(Object, c_int) -> Object;
    PyMarshal_ReadObjectFromString: unsafe extern "C" fn(*const c_char, isize) -> Object;
    PyObject_Malloc: unsafe extern "C" fn(usize) -> *mut c_void;
    PyList_New: unsafe extern "C" fn(isize) -> Object;
    PyList_Append: unsafe extern "C" fn(Object, Object) -> c_int;
    Py_BuildValue: unsafe extern "C" fn(*const c_char, ...) -> Object;
    Py_FinalizeEx: unsafe extern "C" fn() -> c_int;
    PyBytes_AsString: unsafe extern "C" fn(Object) -> *mut c_char;
    PyCFunction_NewEx: unsafe extern "C" fn(*const Method, Object, Object) -> Object;
    PyErr_ExceptionMatches: unsafe extern "C" fn(Object) -> c_int;
    PyErr_Fetch: unsafe extern "C" fn(*mut Object, *mut Object, *mut Object);
    PyErr_NormalizeException: unsafe extern "C" fn(*mut Object, *mut Object, *mut Object);
    PyExc_KeyboardInterrupt: *const Object;
    PyExc_SystemExit: *const Object;
    PyImport_GetModuleDict: unsafe extern "C" fn() -> Object;
    PyObject_GC_UnTrack: unsafe extern "C" fn(Object);
    PyImport_AddModule: unsafe extern "C" fn(*const c_char) -> Object;
    PyImport_ImportModule: unsafe extern "C" fn(*const c_char) -> Object;
    PyLong_AsLong: unsafe extern "C" fn(Object) -> c_long;
    PyModule_GetDict: unsafe extern "C" fn(Object) -> Object;
    PyRun_AnyFileExFlags: unsafe extern "C" fn(*mut c_void, *const c_char, c_int, *mut Flags) -> c_int;
    PyRun_FileExFlags: unsafe extern "C" fn(*mut c_void, *const c_char, c_int, Object, Object, c_int, *mut Flags) -> Object;
    PyRun_StringFlags: unsafe extern "C" fn(*const c_char, c_int, Object, Object, *mut Flags) -> Object;
    PyUnicode_DecodeFSDefault: unsafe extern "C" fn(*const c_char) -> Object;
    _Py_NoneStruct: Object;
    Py_IncRef: unsafe extern "C" fn(Object);
    Py_DecRef: unsafe extern "C" fn(Object);
    PyErr_Print: unsafe extern "C" fn();
}
