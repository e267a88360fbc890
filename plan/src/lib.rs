//! The plan of a native restore, as bytes that can be used where they lie.
//!
//! `preloaded-criu` writes a plan when it makes an image; the restorer and the resident read it in
//! a process that has no allocator and, for a while, no libc. So every record is `repr(C)`, made of
//! plain integers, eight-byte aligned, in the byte order of x86-64, and refers to others by offset.
//!
//! Nothing here checks a plan: [`preloaded-criu` does](https://docs.rs/preloaded-criu) before it
//! execs the interpreter, and it is the only one that can say what is wrong.
#![no_std]

/// First eight bytes of a plan.
pub const MAGIC: u64 = u64::from_le_bytes(*b"pcriplan");

/// Page size of x86-64 (the only one that the project knows).
pub const PAGE: u64 = 4096;

/// A table in the plan: `count` records at `offset` bytes from the plan's first byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Table {
    /// Bytes from the start of the plan, a multiple of eight.
    pub offset: u64,
    /// Number of records.
    pub count: u64,
}

/// The first record of a plan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Header {
    /// [`MAGIC`].
    pub magic: u64,
    /// Length of the whole plan in bytes.
    pub length: u64,
    /// [`Source`] records: the files that mappings come from, opened one after the other.
    pub sources: Table,
    /// [`Mapping`] records, grouped by source in the order of `sources`.
    pub mappings: Table,
    /// [`Copy`] records.
    pub copies: Table,
    /// [`Advice`] records.
    pub advices: Table,
    /// [`Signal`] records: only those whose disposition is not the default.
    pub signals: Table,
    /// [`Thread`] records, the main thread first.
    pub threads: Table,
    /// [`Special`] records: the vDSO and its data pages, in address order.
    pub specials: Table,
    /// [`Range`] records: address ranges that no mapping of the image touches, largest first.
    pub holes: Table,
    /// [`Descriptor`] records: files that the frozen process had open.
    pub descriptors: Table,
    /// [`Range`] records: pages that every run writes to.
    pub touched: Table,
    /// NUL-terminated paths; `count` is bytes.
    pub names: Table,
    /// What `PR_SET_MM_MAP` is told (prctl(2)).
    pub layout: Layout,
    /// Address of the resident's thaw function (a [`ThawFn`]).
    pub thaw: u64,
    /// Lowest address of the frozen main stack's mapping, and one past its highest.
    pub stack: Range,
    /// Length with which this C library registers a thread's rseq area (rseq(2)).
    pub rseq_length: u64,
    /// Signature that goes with it.
    pub rseq_signature: u64,
}

/// A half-open range of addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Range {
    /// First address.
    pub start: u64,
    /// One past the last address.
    pub end: u64,
}

/// Where a group of mappings comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Source {
    /// One of the `SOURCE_` constants.
    pub kind: u64,
    /// Offset of the path in `names` (for [`SOURCE_FILE`]).
    pub name: u64,
    /// Index of the first mapping of this source, and how many there are.
    pub first: u64,
    /// Number of mappings of this source.
    pub count: u64,
}

/// Anonymous memory: no file.
pub const SOURCE_ANONYMOUS: u64 = 0;
/// The image file, by the descriptor that the launcher hands over.
pub const SOURCE_IMAGE: u64 = 1;
/// A file of the machine, opened read-only by its path.
pub const SOURCE_FILE: u64 = 2;

/// One mmap(2) call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Mapping {
    /// Address, page-aligned.
    pub start: u64,
    /// Length in bytes, a multiple of the page.
    pub length: u64,
    /// Offset in the source, page-aligned.
    pub offset: u64,
    /// `PROT_` bits.
    pub prot: u32,
    /// `MAP_` bits, without `MAP_FIXED_NOREPLACE`, which the restorer adds.
    pub flags: u32,
}

/// Bytes that are read from the image into memory that is already mapped and writable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Copy {
    /// Where to.
    pub address: u64,
    /// How many bytes.
    pub length: u64,
    /// Offset in the image file.
    pub offset: u64,
}

/// One madvise(2) or mprotect(2) call after all memory is in place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Advice {
    /// Address, page-aligned.
    pub start: u64,
    /// Length in bytes.
    pub length: u64,
    /// [`ADVISE`] or [`PROTECT`].
    pub call: u32,
    /// The advice, or the `PROT_` bits.
    pub value: u32,
}

/// [`Advice::value`] of guard regions: nobody can access the pages (madvise(2), `MADV_GUARD_INSTALL`, since
/// Linux 6.13).
pub const GUARD_INSTALL: u32 = 102;
/// [`Advice::call`]: madvise(2) with `value` as the advice.
pub const ADVISE: u32 = 0;
/// [`Advice::call`]: mprotect(2) with `value` as the protection.
pub const PROTECT: u32 = 1;

/// A signal's action, as rt_sigaction(2) of the kernel takes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Signal {
    /// Signal number.
    pub number: u64,
    /// Handler address, or 1 for `SIG_IGN`.
    pub handler: u64,
    /// `SA_` flags.
    pub flags: u64,
    /// The C library's sigreturn trampoline.
    pub restorer: u64,
    /// Signals blocked while the handler runs.
    pub mask: u64,
    /// Not zero where an inherited `SIG_IGN` wins over the handler: it is CPython's own default
    /// handler, which CPython does not install over an ignored signal either.
    pub yields: u64,
}

/// A frozen thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Thread {
    /// Where the C library keeps the thread's TID, cleared by the kernel at its end
    /// (set_tid_address(2)).
    pub clear_tid: u64,
    /// The FS base: the thread pointer.
    pub fs_base: u64,
    /// The GS base.
    pub gs_base: u64,
    /// Address of the [`Landing`] that the image holds below the thread's stack pointer.
    pub landing: u64,
}

/// What a thread does last before it is itself again. It lies in the image, below the frozen stack
/// pointer and its red zone, so it needs no memory of its own and nobody has to free it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Landing {
    /// Head of the robust futex list and its length; 0 for none (set_robust_list(2)).
    pub robust_list: u64,
    /// Length that goes with `robust_list`.
    pub robust_length: u64,
    /// Address of the thread's rseq area; 0 for none.
    pub rseq: u64,
    /// Length that the area was registered with.
    pub rseq_length: u64,
    /// Signature that the area was registered with.
    pub rseq_signature: u64,
    /// The thread's name, NUL-padded; empty to keep the process's.
    pub name: [u8; 16],
    /// Address of the signal frame's `ucontext`: what rt_sigreturn(2) is pointed at.
    pub context: u64,
    /// Address of the frame's signal mask: inherited bits are added to it.
    pub mask: u64,
}

/// A file that the frozen process had open for reading.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Descriptor {
    /// Its number, which the process knows it by.
    pub number: u64,
    /// Offset of the path in `names`.
    pub name: u64,
    /// Flags of open(2), with `O_CLOEXEC` where the descriptor has it.
    pub flags: u64,
    /// Offset of the next byte to be read.
    pub position: u64,
}

/// A mapping that the kernel makes for each process, moved and not made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Special {
    /// Where it was at dump time and must be again.
    pub start: u64,
    /// Length in bytes.
    pub length: u64,
    /// Not zero for the vDSO itself, zero for its data pages.
    pub is_vdso: u64,
}

/// The fields of `struct prctl_mm_map` (prctl(2), `PR_SET_MM_MAP`) that come from the image. The
/// arguments, the environment and most of the auxiliary vector are the new process's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Layout {
    /// Program text.
    pub start_code: u64,
    /// End of program text.
    pub end_code: u64,
    /// Initialised data.
    pub start_data: u64,
    /// End of initialised data.
    pub end_data: u64,
    /// Start of the heap.
    pub start_brk: u64,
    /// Program break.
    pub brk: u64,
    /// Address in the main stack, by which the kernel names it in `/proc/PID/maps`.
    pub start_stack: u64,
    /// `AT_PHDR` of the frozen process, where its program headers are mapped.
    pub at_phdr: u64,
    /// `AT_BASE`: the frozen process's dynamic loader.
    pub at_base: u64,
    /// `AT_ENTRY`: the frozen process's entry point.
    pub at_entry: u64,
    /// `AT_SYSINFO_EHDR`: the vDSO, after it is moved.
    pub at_sysinfo_ehdr: u64,
}

/// What the launcher tells the restorer, in an environment string (see [`HANDOVER_NAME`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Handover {
    /// Descriptor of the image, read-only.
    pub image: u64,
    /// Descriptor of the restorer's own shared object.
    pub restorer: u64,
    /// Where the plan lies in the image, page-aligned.
    pub plan_offset: u64,
    /// Its length.
    pub plan_length: u64,
    /// Signals that the caller ignored, bit N-1 for signal N.
    pub ignored: u64,
    /// Bits that the agent is to know (`OPTION_` constants).
    pub options: u64,
    /// How often the exec was tried already.
    pub attempt: u64,
}

/// Leave by the interpreter's own finalization.
pub const OPTION_FULL_EXIT: u64 = 1;
/// Two more strings come with the handover: what child processes are started with (see
/// [`LAUNCHER_NAME`]).
pub const OPTION_CHILDREN: u64 = 2;

/// What would be mapped from the image is copied.
pub const OPTION_EAGER: u64 = 4;

/// Nothing is said where the frozen interpreter starts an ordinary one in its place.
pub const OPTION_SILENT: u64 = 8;

/// Nothing of the user's is called: the run is only watched, to see which memory every run touches.
pub const OPTION_REHEARSAL: u64 = 16;

/// Name of the environment variable that holds the launcher's absolute path. It and the next,
/// [`IMAGE_NAME`], stand before `LD_AUDIT` where [`OPTION_CHILDREN`] says so. They are cut off as
/// the others are, but stay on the stack: from [`ThawArgs::env_end`] on, one after the other.
pub const LAUNCHER_NAME: &[u8] = b"PRELOADED_CRIU_LAUNCHER=";
/// Name of the environment variable that holds the image's absolute path.
pub const IMAGE_NAME: &[u8] = b"PRELOADED_CRIU_IMAGE=";
/// The launcher's command that stands in for an interpreter that a frozen one starts.
pub const CHILD_COMMAND: &core::ffi::CStr = c"child";

/// Name of the environment variable that holds the [`Handover`]; it and `LD_AUDIT` are the last two
/// strings of the environment and are cut off before the program sees it.
pub const HANDOVER_NAME: &[u8] = b"PRELOADED_CRIU_THAW=";

/// Length of the handover's text: seven numbers of sixteen hexadecimal digits.
pub const HANDOVER_TEXT: usize = 7 * 16;

/// How often the restorer execs anew when an address that the image needs is taken.
pub const ATTEMPTS: u64 = 16;

impl Handover {
    /// The handover as lower-case hexadecimal digits, so that it fits an environment string.
    #[must_use]
    pub fn to_text(&self) -> [u8; HANDOVER_TEXT] {
        let mut text = [0; HANDOVER_TEXT];
        for (field, digits) in self.fields().iter().zip(text.chunks_exact_mut(16)) {
            for (place, digit) in digits.iter_mut().enumerate() {
                let nibble = (field >> (60 - 4 * place)) & 15;
                *digit = if nibble < 10 { b'0' + nibble as u8 } else { b'a' + nibble as u8 - 10 };
            }
        }
        text
    }

    /// Reads what [`Handover::to_text`] wrote.
    #[must_use]
    pub fn from_text(text: &[u8]) -> Option<Self> {
        if text.len() != HANDOVER_TEXT {
            return None;
        }
        let mut fields = [0_u64; 7];
        for (field, digits) in fields.iter_mut().zip(text.chunks_exact(16)) {
            for digit in digits {
                let nibble = match digit {
                    b'0'..=b'9' => digit - b'0',
                    b'a'..=b'f' => digit - b'a' + 10,
                    _ => return None,
                };
                *field = (*field << 4) | u64::from(nibble);
            }
        }
        let [image, restorer, plan_offset, plan_length, ignored, options, attempt] = fields;
        Some(Self { image, restorer, plan_offset, plan_length, ignored, options, attempt })
    }

    fn fields(&self) -> [u64; 7] {
        let Self { image, restorer, plan_offset, plan_length, ignored, options, attempt } = *self;
        [image, restorer, plan_offset, plan_length, ignored, options, attempt]
    }
}

/// First packet that a launcher sends to a process that CRIU has restored. Such a process wakes up
/// in the read(2) that it was frozen in, and learns from this who has woken it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Greeting {
    /// [`GREETING`].
    pub magic: u32,
    /// Number of the descriptor that it came from: the caller may use the frozen one's.
    pub descriptor: u32,
}

/// [`Greeting::magic`].
pub const GREETING: u32 = u32::from_le_bytes(*b"pcri");

/// Second packet, with a descriptor of the caller's strings and one of its working directory. After
/// it come as many packets as `descriptors` says, in ascending order: a number of eight bytes, and
/// the descriptor that is to have it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Orders {
    /// Number of arguments, the program's name among them.
    pub arguments: u64,
    /// Length of the arguments, each with its NUL. They come first among the strings.
    pub argument_bytes: u64,
    /// Number of strings of the environment.
    pub environment: u64,
    /// Their length, each with its NUL.
    pub environment_bytes: u64,
    /// Number of pairs of u32 behind the strings: what the number of a process or thread was when it
    /// was frozen, and what it is now.
    pub numbers: u64,
    /// Number of descriptors that follow.
    pub descriptors: u64,
    /// As in [`Handover::ignored`].
    pub ignored: u64,
    /// As in [`Handover::options`].
    pub options: u64,
    /// As in the plan.
    pub layout: Layout,
}

/// Length of [`Orders`].
pub const ORDERS_LENGTH: usize = size_of::<Orders>();

impl Orders {
    /// The record's bytes.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; ORDERS_LENGTH] {
        let mut bytes = [0; ORDERS_LENGTH];
        for (field, place) in self.fields().iter().zip(bytes.chunks_exact_mut(8)) {
            place.copy_from_slice(&field.to_le_bytes());
        }
        bytes
    }

    fn fields(&self) -> [u64; ORDERS_LENGTH / 8] {
        let Layout {
            start_code,
            end_code,
            start_data,
            end_data,
            start_brk,
            brk,
            start_stack,
            at_phdr,
            at_base,
            at_entry,
            at_sysinfo_ehdr,
        } = self.layout;
        [
            self.arguments,
            self.argument_bytes,
            self.environment,
            self.environment_bytes,
            self.numbers,
            self.descriptors,
            self.ignored,
            self.options,
            start_code,
            end_code,
            start_data,
            end_data,
            start_brk,
            brk,
            start_stack,
            at_phdr,
            at_base,
            at_entry,
            at_sysinfo_ehdr,
        ]
    }
}

/// What the restorer tells the resident when the memory is in place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ThawArgs {
    /// Address of the plan, in the restorer's region.
    pub plan: u64,
    /// The restorer's region, to be unmapped.
    pub region: Range,
    /// The part of the new process's stack that stays: from the page of `argc` to the top.
    pub arguments: Range,
    /// The part below it, to be unmapped.
    pub scratch: Range,
    /// Address of the argument vector (`argv`); `argc` lies eight bytes below.
    pub argv: u64,
    /// Address of the environment vector, already cut.
    pub envp: u64,
    /// One past the environment's last byte, after the cut.
    pub env_end: u64,
    /// Address of the new process's auxiliary vector.
    pub auxv: u64,
    /// Signal mask that the caller had.
    pub mask: u64,
    /// As in [`Handover::ignored`].
    pub ignored: u64,
    /// As in [`Handover::options`].
    pub options: u64,
}

/// The resident's entry point for the restorer: never returns.
pub type ThawFn = unsafe extern "C" fn(*const ThawArgs) -> !;

#[cfg(test)]
mod tests {
    use super::{HANDOVER_TEXT, Handover};

    #[test]
    fn a_handover_survives_its_text() {
        let handover = Handover {
            image: 3,
            restorer: u64::MAX,
            plan_offset: 4096,
            plan_length: 0x1234_5678_9abc_def0,
            ignored: 1,
            options: 0,
            attempt: 15,
        };
        assert_eq!(Handover::from_text(&handover.to_text()), Some(handover));
    }

    #[test]
    fn a_broken_handover_is_no_handover() {
        assert_eq!(Handover::from_text(b""), None);
        assert_eq!(Handover::from_text(&[b'g'; HANDOVER_TEXT]), None);
        assert_eq!(Handover::from_text(&[b'0'; HANDOVER_TEXT - 1]), None);
    }
}
