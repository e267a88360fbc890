//! Mappings.

use std::ops::Range;
use std::path::PathBuf;

use super::smaps::VmFlags;

/// A mapping of the frozen process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vma {
    /// Its addresses, page-aligned.
    pub range: Range<u64>,
    /// `PROT_` bits of mmap(2).
    pub prot: u32,
    /// What is mapped.
    pub kind: VmaKind,
    /// A stack that the kernel extends downwards (`MAP_GROWSDOWN`).
    pub growsdown: bool,
    /// Bit N for advice N of madvise(2), as far as CRIU notes advice.
    pub advice: u64,
    /// What is special about it. CRIU tells of locked memory and huge pages; the rest comes with
    /// [`Process::annotate`](super::Process::annotate).
    pub special: VmFlags,
    /// The kernel's `[heap]` lies in it.
    pub heap: bool,
}

/// What is mapped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VmaKind {
    /// Private memory without a file.
    Anonymous,
    /// A file.
    File {
        /// The file's path.
        path: PathBuf,
        /// Offset of the mapping's first byte in the file.
        offset: u64,
        /// `MAP_SHARED`.
        shared: bool,
        /// Opened so that a shared mapping may be written to, now or after an mprotect(2).
        writable: bool,
        /// The file has no name any more, or never had one (`memfd_create(2)`).
        nameless: bool,
    },
    /// Shared memory without a file, by CRIU's number for it.
    SharedAnonymous {
        /// CRIU's number for the memory.
        shmid: u64,
    },
    /// The kernel's code page for each process.
    Vdso,
    /// The kernel's data pages that go with it.
    Vvar,
    /// The legacy page at the top of the address space.
    Vsyscall,
    /// Anything else, with CRIU's status bits (criu/include/image.h, `VMA_AREA_`).
    Other(u32),
}

impl Vma {
    /// Private memory, with or without a file: what a page of can be the process's own.
    #[must_use]
    pub fn is_private(&self) -> bool {
        matches!(self.kind, VmaKind::Anonymous | VmaKind::File { shared: false, .. })
    }

    /// Length in bytes.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.range.end - self.range.start
    }
}

/// CRIU's status bits (criu/include/image.h).
pub(crate) mod status {
    pub(crate) const VSYSCALL: u32 = 1 << 2;
    pub(crate) const VDSO: u32 = 1 << 3;
    pub(crate) const HEAP: u32 = 1 << 5;
    pub(crate) const FILE_PRIVATE: u32 = 1 << 6;
    pub(crate) const FILE_SHARED: u32 = 1 << 7;
    pub(crate) const ANON_SHARED: u32 = 1 << 8;
    pub(crate) const ANON_PRIVATE: u32 = 1 << 9;
    pub(crate) const SYSVIPC: u32 = 1 << 10;
    pub(crate) const SOCKET: u32 = 1 << 11;
    pub(crate) const VVAR: u32 = 1 << 12;
    pub(crate) const AIORING: u32 = 1 << 13;
    pub(crate) const MEMFD: u32 = 1 << 14;
    pub(crate) const SHADOW_STACK: u32 = 1 << 15;
    /// Not a mapping: a range that `MADV_GUARD_INSTALL` made inaccessible (CRIU 4.2).
    pub(crate) const GUARD: u32 = 1 << 16;
    pub(crate) const PLUGIN: u32 = 1 << 27;

    /// What makes a mapping one that is not understood, whatever else is set.
    pub(crate) const STRANGE: u32 =
        SYSVIPC | SOCKET | AIORING | SHADOW_STACK | PLUGIN | !(KNOWN | PLUGIN);

    const KNOWN: u32 = 1 // regular
        | 1 << 1 // stack
        | VSYSCALL | VDSO | HEAP | FILE_PRIVATE | FILE_SHARED | ANON_SHARED | ANON_PRIVATE
        | SYSVIPC | SOCKET | VVAR | AIORING | MEMFD | SHADOW_STACK | GUARD;
}
