//! An image: one file that holds a frozen process.
//!
//! ```text
//! header     4096 bytes: magic, version, checksum, where the sections lie
//! memory     the dumped pages, page-aligned, holes where they are zero
//! check      what must be as it was: kernel, processor, files
//! plan       how the memory, threads and signals come back (crate `restore-plan`)
//! manifest   what it is, as JSON
//! criu       CRIU's files but the pages
//! pages      where each dumped page lies in the memory
//! ```
//!
//! Sections start at multiples of the page and have checksums (xxh3). The memory comes first, at an
//! offset that never changes, because the plan and the index name offsets in the file and are only
//! complete when the memory is written. A file is never written to once it has its name: running
//! processes map it.
//!
//! A run reads the header, the checks and the plan, in three reads, and parses no text.

mod archive;
mod bytes;
mod check;
mod error;
mod format;
mod machine;
mod manifest;
mod pages;
mod reader;
mod trust;
mod variables;
mod writer;

pub use archive::Archive;
pub use check::{Check, Depth, FileStamp, Stale, Time};
pub use error::{Fault, ImageError, Part, WriteFault};
pub use format::{FORMAT_VERSION, Section, SectionKind};
pub use machine::{Cpu, Machine};
pub use manifest::{Again, Host, Manifest, Memory, MemoryKind, Module, Python, Recipe};
pub use pages::{PageRun, decode as decode_pages};
pub use reader::Image;
pub use variables::Variables;
pub use writer::{Contents, MEMORY_OFFSET, Writer};

#[cfg(test)]
mod tests;
