//! The part of preloaded-criu that lives in the frozen process.
//!
//! At snapshot time it is preloaded into the interpreter (ld.so(8), `LD_PRELOAD`) and takes the
//! place of `main`: it starts CPython, lets the agent do the imports, and stops at the sync point
//! with no Python frame on the stack. There the process is frozen. In a restored process it gives
//! the process its threads back, then runs CPython's own main function with the caller's arguments,
//! so that what a run does with them is what `python3` does with them.
#![no_std]
#![allow(unsafe_code, reason = "this crate runs inside another program")]

mod children;
mod facts;
mod fresh;
mod libc;
mod madvise;
mod orders;
mod program;
mod python;
mod syscall;
mod thaw;
mod variables;

use core::ffi::{CStr, c_char, c_int, c_void};
use core::ptr::{null, null_mut};

use python::{Config, Object, Python, Status};
use thaw::THAWED;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(OWN_FAILURE) }
}

/// Exit status of preloaded-criu's own failures.
const OWN_FAILURE: c_int = 125;
/// `Py_file_input` (Include/compile.h).
const FILE_INPUT: c_int = 257;
const FREEZE: &CStr = c"PRELOADED_CRIU_FREEZE";
const PRELOAD: &CStr = c"LD_PRELOAD";

type Main = unsafe extern "C" fn(c_int, *mut *mut c_char, *mut *mut c_char) -> c_int;
type Hook = unsafe extern "C" fn();
type StartMain = unsafe extern "C" fn(
    Main,
    c_int,
    *mut *mut c_char,
    Option<Hook>,
    Option<Hook>,
    Option<Hook>,
    *mut c_void,
) -> c_int;

/// Stands before the C library's function of that name, which the program's entry point calls
/// (Linux Standard Base, `__libc_start_main`): the only place where `main` can be replaced.
///
/// # Safety
///
/// Called by the program's entry point only.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __libc_start_main(
    main: Main,
    argc: c_int,
    argv: *mut *mut c_char,
    init: Option<Hook>,
    fini: Option<Hook>,
    rtld_fini: Option<Hook>,
    stack_end: *mut c_void,
) -> c_int {
    // SAFETY: the next definition is the C library's; its environment is set up before it is called.
    unsafe {
        variables::find_real();
        let real = libc::dlsym(libc::RTLD_NEXT, c"__libc_start_main".as_ptr());
        if real.is_null() {
            libc::_exit(OWN_FAILURE);
        }
        let real = core::mem::transmute::<*mut c_void, StartMain>(real);
        let asked = !variables::getenv(FREEZE.as_ptr()).is_null();
        let main = if asked { frozen_main } else { main };
        real(main, argc, argv, init, fini, rtld_fini, stack_end)
    }
}

/// The descriptors that the snapshot hands over.
struct Channels {
    /// The agent's source and its job.
    agent: c_int,
    /// Where the agent reports.
    report: c_int,
    /// Where a restore through CRIU sends its orders.
    orders: c_int,
}

impl Channels {
    /// Reads three numbers, separated by commas, and takes the variable out of the environment.
    unsafe fn take() -> Self {
        // SAFETY: the caller found the variable; strtol stops at what is no digit.
        unsafe {
            let mut text = variables::getenv(FREEZE.as_ptr());
            let mut next = || {
                let mut end = null_mut();
                let number = libc::strtol(text, &raw mut end, 10) as c_int;
                text = if end.read() == 0 { end } else { end.add(1) };
                number
            };
            let channels = Self { agent: next(), report: next(), orders: next() };
            libc::unsetenv(FREEZE.as_ptr());
            channels
        }
    }
}

/// Leaves in `LD_PRELOAD` what the user had there: our object is its first entry.
unsafe fn restore_preload() {
    // SAFETY: setenv copies the value before it lets the old one go.
    unsafe {
        let value = variables::getenv(PRELOAD.as_ptr());
        if value.is_null() {
            return;
        }
        let rest = libc::strchr(value, c_int::from(b':'));
        if rest.is_null() {
            libc::unsetenv(PRELOAD.as_ptr());
        } else {
            libc::setenv(PRELOAD.as_ptr(), rest.add(1), 1);
        }
    }
}

unsafe extern "C" fn frozen_main(
    argc: c_int,
    argv: *mut *mut c_char,
    _: *mut *mut c_char,
) -> c_int {
    // SAFETY: what main is given; CPython's functions are called as its documentation says, all
    // from this one thread, which holds the GIL from the initialisation on.
    unsafe {
        let channels = Channels::take();
        restore_preload();
        let python = match Python::find() {
            Ok(python) => python,
            Err(missing) => give_up(c"this python does not export", missing),
        };
        initialise(&python, argc, argv);
        let agent = load_agent(&python, &channels);
        let thaw = (python.PyObject_GetAttrString)(agent, c"thaw".as_ptr());
        if thaw.is_null() {
            give_up(c"the agent has no function", c"thaw");
        }
        let encoding = file_name_encoding();
        program::note_loaded();
        fresh::use_up(&python);
        libc::fflush(null_mut());
        let mut greeting = [0_u8; 8];
        let length = wait(channels.orders, &mut greeting);
        orders::receive(&greeting, length);
        let (argc, argv) = arguments(channels.orders, argc, argv);
        // What Py_BytesMain does (Modules/main.c, pymain_main), with the agent in between: parsed is
        // the caller's command line, run is what it says.
        let status = configure(&python, argc, argv, encoding);
        if status.failed() {
            (python.Py_ExitStatusException)(status);
        }
        match wake(&python, thaw, argc, argv) {
            Some(program) => program::run(&python, agent, program, minor_version(&python)),
            None => libc::exit((python.Py_RunMain)()),
        }
    }
}

/// The sync point. CRIU freezes the process in this system call, and a native restore ends it with
/// end of file. Restored by CRIU, it goes on with whatever the descriptor has become.
fn wait(orders: c_int, buffer: &mut [u8]) -> isize {
    const EINTR: isize = -4;
    loop {
        // SAFETY: the buffer is writable for its length.
        let length = unsafe {
            syscall::call(
                syscall::READ,
                [orders as usize, buffer.as_mut_ptr() as usize, buffer.len(), 0, 0, 0],
            )
        };
        if length != EINTR {
            return length;
        }
    }
}

unsafe fn initialise(python: &Python, argc: c_int, argv: *mut *mut c_char) {
    // SAFETY: as `configure`.
    let status = unsafe { configure(python, argc, argv, null()) };
    if status.failed() {
        // SAFETY: ends the process.
        unsafe { give_up(c"python cannot start:", status.message()) }
    }
}

/// Starts CPython with a command line, or tells the CPython that runs already of another one (that
/// `Py_Main` may be called in an initialised interpreter is an old promise, and tested:
/// Lib/test/test_embed.py, `test_initialize_pymain`).
///
/// # Safety
///
/// The arguments are strings that stay; one thread, which holds the GIL if there is one.
unsafe fn configure(
    python: &Python,
    argc: c_int,
    argv: *mut *mut c_char,
    encoding: *const c_char,
) -> Status {
    static mut CONFIG: Config = Config::EMPTY;
    // SAFETY: the configuration is CPython's own to fill in and to clear.
    unsafe {
        let config = &raw mut CONFIG;
        (python.PyConfig_InitPythonConfig)(config);
        let mut status = (python.PyConfig_SetBytesArgv)(config, argc as isize, argv);
        // CPython writes the encoding's name its own way when it starts, and the C library's way
        // when it is told of another command line.
        if !status.failed()
            && !encoding.is_null()
            && let Some(field) = Config::filesystem_encoding(config, minor_version(python))
        {
            status = (python.PyConfig_SetBytesString)(config, field, encoding);
        }
        if !status.failed() {
            status = (python.Py_InitializeFromConfig)(config);
        }
        (python.PyConfig_Clear)(config);
        status
    }
}

/// The name of the encoding of file names, or null (`Py_FileSystemDefaultEncoding`, a variable of the
/// C API up to 3.13).
unsafe fn file_name_encoding() -> *const c_char {
    // SAFETY: a variable of that name holds a pointer to a string that stays.
    unsafe {
        let variable = libc::dlsym(libc::RTLD_DEFAULT, c"Py_FileSystemDefaultEncoding".as_ptr());
        if variable.is_null() { null() } else { variable.cast::<*const c_char>().read() }
    }
}

/// The 11 of 3.11.
unsafe fn minor_version(python: &Python) -> u64 {
    // SAFETY: the version is a string that begins as in "3.11.2 (main".
    unsafe {
        let version = (python.Py_GetVersion)();
        libc::strtol(version.add(2), null_mut(), 10).unsigned_abs()
    }
}

/// Compiles the agent, and lets it do the snapshot's job.
unsafe fn load_agent(python: &Python, channels: &Channels) -> Object {
    // SAFETY: the document is a length of eight bytes, so much source, and the job; both strings
    // get a NUL of their own.
    unsafe {
        let size = libc::lseek(channels.agent, 0, 2) as usize;
        libc::lseek(channels.agent, 0, 0);
        let document = libc::malloc(size + 1).cast::<u8>();
        let mut filled = 0;
        while filled < size {
            let count = libc::read(channels.agent, document.add(filled).cast(), size - filled);
            if count <= 0 {
                give_up(c"cannot read", c"the agent");
            }
            filled += count as usize;
        }
        libc::close(channels.agent);
        let length = document.cast::<u64>().read_unaligned() as usize;
        let source = document.add(8);
        let job = (python.PyBytes_FromStringAndSize)(
            source.add(length).cast(),
            (size - 8 - length) as isize,
        );
        source.add(length).write(0);
        let code =
            (python.Py_CompileString)(source.cast(), c"<preloaded-criu>".as_ptr(), FILE_INPUT);
        libc::free(document.cast());
        if code.is_null() || job.is_null() {
            (python.PyErr_Print)();
            libc::_exit(OWN_FAILURE);
        }
        let code = together(python, code);
        let module = (python.PyImport_ExecCodeModule)(c"_preloaded_criu".as_ptr(), code);
        if module.is_null() {
            (python.PyErr_Print)();
            libc::_exit(OWN_FAILURE);
        }
        (python.Py_DecRef)(code);
        let thaw = thaw::thaw as *const () as usize as u64;
        let (start, end) = own_range();
        let variables = variables::begin(python);
        let [wipe, wipe_given] = variables::wipers(python);
        let [prctl, find_sqlite, reset_sqlite] = facts::functions(python);
        let facts = (python.Py_BuildValue)(
            c"{s:K,s:[KK],s:i,s:N,s:N,s:N,s:N,s:(NN)}".as_ptr(),
            c"thaw".as_ptr(),
            thaw,
            c"resident".as_ptr(),
            start,
            end,
            c"orders".as_ptr(),
            channels.orders,
            c"variables".as_ptr(),
            variables,
            c"wipe".as_ptr(),
            wipe,
            c"wipe_given".as_ptr(),
            wipe_given,
            c"prctl".as_ptr(),
            prctl,
            c"sqlite".as_ptr(),
            find_sqlite,
            reset_sqlite,
        );
        let prepare = (python.PyObject_GetAttrString)(module, c"prepare".as_ptr());
        let done =
            (python.PyObject_CallFunction)(prepare, c"OiO".as_ptr(), job, channels.report, facts);
        if done.is_null() {
            // A failing import has been reported; this is for what the agent did not expect.
            (python.PyErr_Print)();
            libc::_exit(OWN_FAILURE);
        }
        for object in [job, facts, prepare, done] {
            (python.Py_DecRef)(object);
        }
        module
    }
}

/// The same code in one piece: what a compiler makes lies between what it needed to make it.
unsafe fn together(python: &Python, code: Object) -> Object {
    /// `Py_MARSHAL_VERSION` (Include/marshal.h) of CPython 3.10 to 3.13.
    const VERSION: c_int = 4;
    // SAFETY: as `load_agent`; the string is read as long as it lives.
    unsafe {
        let text = (python.PyMarshal_WriteObjectToString)(code, VERSION);
        if text.is_null() {
            (python.PyErr_Clear)();
            return code;
        }
        (python.Py_DecRef)(code);
        fresh::use_up(python);
        let length = (python.PyObject_Size)(text);
        let code = (python.PyMarshal_ReadObjectFromString)((python.PyBytes_AsString)(text), length);
        (python.Py_DecRef)(text);
        if code.is_null() {
            (python.PyErr_Print)();
            libc::_exit(OWN_FAILURE);
        }
        code
    }
}

/// First address of this object, and one past its last.
fn own_range() -> (u64, u64) {
    let (start, end): (u64, u64);
    // SAFETY: the linker defines both symbols, at the object's first byte and after its last.
    unsafe {
        core::arch::asm!(
            ".hidden __ehdr_start",
            ".hidden _end",
            "lea {}, [rip + __ehdr_start]",
            "lea {}, [rip + _end]",
            out(reg) start,
            out(reg) end,
            options(nostack, nomem, preserves_flags)
        );
    }
    (start, end.next_multiple_of(restore_plan::PAGE))
}

/// The caller's arguments: those of the process that a native restore has made of the caller's, or
/// the frozen process's own. C's environment is the caller's from here on.
unsafe fn arguments(
    orders: c_int,
    argc: c_int,
    argv: *mut *mut c_char,
) -> (c_int, *mut *mut c_char) {
    // SAFETY: the vectors lie on the new process's stack, which stays for good; the orders'
    // descriptor is the frozen process's own, and no number of the caller's in a native restore.
    unsafe {
        let thawed = &raw const THAWED;
        if (*thawed).argv.is_null() {
            libc::close(orders);
            return (argc, argv);
        }
        libc::environ = (*thawed).envp.cast();
        let argv = (*thawed).argv.cast::<*mut c_char>();
        name_program(argv.read());
        if (*thawed).options & restore_plan::OPTION_CHILDREN != 0 && !(*thawed).executed.is_null() {
            children::adopt((*thawed).executed.cast(), (*thawed).env_end.cast());
        }
        let mut argc = 0;
        while !argv.add(argc).read().is_null() {
            argc += 1;
        }
        (argc as c_int, argv)
    }
}

/// Lets the agent make fresh what a new process would have fresh; it says what is to be run. None
/// where CRIU has restored the process and nobody has asked for anything.
unsafe fn wake(
    python: &Python,
    thaw: Object,
    argc: c_int,
    argv: *mut *mut c_char,
) -> Option<Object> {
    // SAFETY: the vectors lie on the new process's stack, which stays for good.
    unsafe {
        let thawed = &raw const THAWED;
        if (*thawed).argv.is_null() {
            return None;
        }
        let list = (python.PyList_New)(0);
        for index in 0..argc as usize {
            let text = argv.add(index).read();
            let bytes = (python.PyBytes_FromStringAndSize)(text, libc::strlen(text) as isize);
            (python.PyList_Append)(list, bytes);
            (python.Py_DecRef)(bytes);
        }
        let first = (*thawed).envp.read().cast_const();
        let length = if first.is_null() { 0 } else { (*thawed).env_end as usize - first as usize };
        let block = (python.PyBytes_FromStringAndSize)(first.cast(), length as isize);
        let numbers = (python.PyBytes_FromStringAndSize)(
            (*thawed).numbers.cast(),
            ((*thawed).number_count * size_of::<[u32; 2]>()).cast_signed(),
        );
        let done = (python.PyObject_CallFunction)(
            thaw,
            c"OOKKO".as_ptr(),
            block,
            list,
            (*thawed).ignored,
            (*thawed).options,
            numbers,
        );
        if done.is_null() {
            if (python.PyErr_ExceptionMatches)(python.PyExc_KeyboardInterrupt.read()) == 1 {
                // Nothing of the script has run: an interpreter that starts ends of it too.
                program::end_of_interrupt();
            }
            (python.PyErr_Print)();
            libc::exit(OWN_FAILURE);
        }
        for object in [block, list, numbers] {
            (python.Py_DecRef)(object);
        }
        Some(done)
    }
}

/// What the C library calls the program in its own messages.
unsafe fn name_program(name: *mut c_char) {
    if name.is_null() {
        return;
    }
    // SAFETY: a NUL-terminated string that stays for good.
    unsafe {
        libc::program_invocation_name = name;
        let mut short = name;
        let mut place = name;
        while place.read() != 0 {
            if place.read() as u8 == b'/' {
                short = place.add(1);
            }
            place = place.add(1);
        }
        libc::program_invocation_short_name = short;
    }
}

unsafe fn give_up(what: &CStr, which: &CStr) -> ! {
    // SAFETY: the bytes are alive; ends the process.
    unsafe {
        for part in [c"preloaded-criu: ", what, c" ", which, c"\n"] {
            libc::write(2, part.as_ptr().cast(), part.to_bytes().len());
        }
        libc::_exit(OWN_FAILURE)
    }
}

/// Named by the unwind tables of the core library; nothing unwinds here.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}
