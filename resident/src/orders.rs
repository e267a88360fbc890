//! A process that CRIU itself has restored wakes up in the system call that it was frozen in, with its
//! threads and signal actions in place. What is the caller's comes over the socket that it reads from:
//! arguments, environment, working directory, and the descriptors, which travel as such (unix(7),
//! `SCM_RIGHTS`), so that they share offset and flags with the caller's.

use core::mem::offset_of;
use core::ptr::{null, null_mut};

use restore_plan::{GREETING, Greeting, Layout, Orders};

use crate::syscall::{self, call};
use crate::thaw::{MmMap, PR_SET_MM, PR_SET_MM_MAP, THAWED, Thawed, fail};

const EINTR: isize = -4;
const PROT_READ_WRITE: usize = 3;
const PRIVATE_ANONYMOUS: usize = 0x22;
const SOL_SOCKET: i32 = 1;
const SCM_RIGHTS: i32 = 1;
const RECEIVE_CLOSE_ON_EXEC: usize = 0x4000_0000;

/// `struct iovec`.
#[repr(C)]
struct Part {
    base: *mut u8,
    length: usize,
}

/// `struct msghdr` (recvmsg(2)).
#[repr(C)]
struct Message {
    name: usize,
    name_length: usize,
    parts: *mut Part,
    part_count: usize,
    control: *mut Control,
    control_length: usize,
    flags: usize,
}

/// `struct cmsghdr` (cmsg(3)) with room for two descriptors.
#[repr(C)]
struct Control {
    length: usize,
    level: i32,
    kind: i32,
    descriptors: [i32; 2],
}

/// Takes the caller's orders, if it is a launcher that has greeted. The process is not changed where
/// it is not: a native restore has done all this before, and a plain `criu restore` has no caller.
///
/// # Safety
///
/// One thread, at the sync point.
pub(crate) unsafe fn receive(greeting: &[u8; 8], length: isize) {
    let word = |at: usize| {
        u32::from_le_bytes([greeting[at], greeting[at + 1], greeting[at + 2], greeting[at + 3]])
    };
    if length != size_of::<Greeting>().cast_signed()
        || word(offset_of!(Greeting, magic)) != GREETING
    {
        return;
    }
    let socket = word(offset_of!(Greeting, descriptor)) as usize;
    // SAFETY: the launcher is our own; everything that it says is checked as far as memory depends
    // on it.
    unsafe {
        let mut orders = Orders::default();
        let [strings, directory] = packet(socket, &mut orders);
        if strings < 0 {
            fail(b"the launcher does not send the caller's strings");
        }
        adopt_strings(strings, &orders);
        if directory >= 0 {
            let _ = call(syscall::FCHDIR, [directory as usize, 0, 0, 0, 0, 0]);
        }
        for descriptor in [strings, directory] {
            let _ = call(syscall::CLOSE, [descriptor as usize, 0, 0, 0, 0, 0]);
        }
        for _ in 0..orders.descriptors {
            let mut number = 0_u64;
            let [descriptor, _] = packet(socket, &mut number);
            place(descriptor, number);
        }
        let _ = call(syscall::CLOSE, [socket, 0, 0, 0, 0, 0]);
    }
}

/// Receives one packet of a known length, and up to two descriptors.
///
/// # Safety
///
/// Any bytes make a `T`.
unsafe fn packet<T>(socket: usize, content: &mut T) -> [i32; 2] {
    let mut control = Control { length: 0, level: 0, kind: 0, descriptors: [-1; 2] };
    let mut part = Part { base: core::ptr::from_mut(content).cast(), length: size_of::<T>() };
    let mut message = Message {
        name: 0,
        name_length: 0,
        parts: &raw mut part,
        part_count: 1,
        control: &raw mut control,
        control_length: size_of::<Control>(),
        flags: 0,
    };
    let arguments = [socket, &raw mut message as usize, RECEIVE_CLOSE_ON_EXEC, 0, 0, 0];
    // SAFETY: the message and what it points to live until the call has returned.
    let length = unsafe {
        loop {
            match call(syscall::RECVMSG, arguments) {
                EINTR => {}
                length => break length,
            }
        }
    };
    if length != size_of::<T>().cast_signed() {
        fail(b"the launcher is gone");
    }
    let is_rights = message.control_length > offset_of!(Control, descriptors)
        && control.level == SOL_SOCKET
        && control.kind == SCM_RIGHTS;
    if is_rights { control.descriptors } else { [-1; 2] }
}

/// Copies arguments and environment into memory of their own and lets `/proc` show them.
unsafe fn adopt_strings(file: i32, orders: &Orders) {
    let pointers = (orders.arguments + orders.environment + 2) as usize;
    let strings = (orders.argument_bytes + orders.environment_bytes) as usize;
    let content = strings + orders.numbers as usize * size_of::<[u32; 2]>();
    let size = pointers * size_of::<usize>() + content;
    // SAFETY: new memory, written within its length.
    unsafe {
        let memory =
            call(syscall::MMAP, [0, size, PROT_READ_WRITE, PRIVATE_ANONYMOUS, usize::MAX, 0]);
        if memory < 0 {
            fail(b"there is no memory for the arguments and the environment");
        }
        let argv = memory as *mut *mut u8;
        let envp = argv.add(orders.arguments as usize + 1);
        let first = argv.add(pointers).cast::<u8>();
        let mut filled = 0;
        while filled < content {
            let arguments =
                [file as usize, first.add(filled) as usize, content - filled, filled, 0, 0];
            match call(syscall::PREAD, arguments) {
                EINTR => {}
                ..=0 => fail(b"the arguments and the environment cannot be read"),
                count => filled += count as usize,
            }
        }
        let end = first.add(strings);
        let next = point(argv, orders.arguments, first, end);
        point(envp, orders.environment, next, end);
        let arg_end = first.add(orders.argument_bytes as usize);
        describe(&orders.layout, first, arg_end, end);
        THAWED = Thawed {
            argv,
            envp,
            env_end: end,
            ignored: orders.ignored,
            options: orders.options,
            numbers: end,
            number_count: orders.numbers as usize,
            executed: null(),
        };
    }
}

/// Fills a vector with pointers to strings that lie one after the other; returns the end of the last.
unsafe fn point(vector: *mut *mut u8, count: u64, first: *mut u8, end: *mut u8) -> *mut u8 {
    let mut next = first;
    // SAFETY: the vector has room for `count` pointers and a null; strings are read up to the end.
    unsafe {
        for index in 0..count as usize {
            vector.add(index).write(next);
            while next < end && next.read() != 0 {
                next = next.add(1);
            }
            if next == end {
                fail(b"the launcher's strings make no sense");
            }
            next = next.add(1);
        }
        vector.add(count as usize).write(null_mut());
    }
    next
}

unsafe fn describe(layout: &Layout, first: *mut u8, arg_end: *mut u8, end: *mut u8) {
    let map = MmMap {
        start_code: layout.start_code,
        end_code: layout.end_code,
        start_data: layout.start_data,
        end_data: layout.end_data,
        start_brk: layout.start_brk,
        brk: layout.brk,
        start_stack: layout.start_stack,
        arg_start: first as u64,
        arg_end: arg_end as u64,
        env_start: arg_end as u64,
        env_end: end as u64,
        auxv: core::ptr::null(),
        auxv_size: 0,
        exe_fd: u32::MAX,
    };
    let arguments = [PR_SET_MM, PR_SET_MM_MAP, &raw const map as usize, size_of::<MmMap>(), 0, 0];
    // SAFETY: the kernel reads the structure and checks it.
    if unsafe { call(syscall::PRCTL, arguments) } < 0 {
        fail(b"the kernel refused PR_SET_MM_MAP");
    }
}

/// Gives a descriptor the number that it has with the caller, open over an exec.
fn place(descriptor: i32, number: u64) {
    const F_SETFD: usize = 2;
    // SAFETY: takes no address.
    unsafe {
        if descriptor < 0 {
            fail(b"the launcher does not send a descriptor");
        }
        let (from, to) = (descriptor as usize, number as usize);
        let done = if from == to {
            call(syscall::FCNTL, [from, F_SETFD, 0, 0, 0, 0])
        } else {
            let placed = call(syscall::DUP3, [from, to, 0, 0, 0, 0]);
            let _ = call(syscall::CLOSE, [from, 0, 0, 0, 0, 0]);
            placed
        };
        if done < 0 {
            fail(b"a descriptor cannot be given its number");
        }
    }
}
