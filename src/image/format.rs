//! The first page of an image: what it is and where its sections lie.
//!
//! ```text
//!   0  magic "PCRIUIMG"
//!   8  format version            u32
//!  12  number of sections        u32
//!  16  checksum of this page     u64   xxh3, over the page with this field zero
//!  24  length of the file        u64
//!  32  sections                  {kind u32, zero u32, offset u64, length u64, checksum u64} each
//! ```
//!
//! All numbers are little-endian. Sections start at multiples of the page. The first 24 bytes and
//! the length of the page stay as they are in every later format, so that any version can tell a
//! newer image from a damaged one.

use std::ops::Range;

use xxhash_rust::xxh3::xxh3_64;

use super::bytes::Cursor;
use super::error::{Fault, Part};

/// Length of the header, and what sections are aligned to.
pub(super) const PAGE: u64 = 4096;
/// [`PAGE`] as a length in memory.
pub(super) const PAGE_BYTES: usize = PAGE as usize;

/// The format that this program writes and reads.
pub const FORMAT_VERSION: u32 = 5;

pub(super) const MAGIC: &[u8; 8] = b"PCRIUIMG";
const CHECKSUM_AT: Range<usize> = 16..24;
const TABLE_AT: usize = 32;
const ENTRY: usize = 32;

/// What a section holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SectionKind {
    /// The dumped pages, page-aligned, to be mapped; pages of zeros are holes.
    Memory,
    /// What must be as it was when the image was made ([`super::Check`]).
    Check,
    /// The restore plan (crate `restore-plan`).
    Plan,
    /// The manifest, as JSON.
    Manifest,
    /// CRIU's files but the pages.
    Criu,
    /// Where each dumped page lies in the memory section.
    Pages,
}

impl SectionKind {
    /// All kinds, in the order in which they lie in the file.
    pub const ALL: [Self; 6] =
        [Self::Memory, Self::Check, Self::Plan, Self::Manifest, Self::Criu, Self::Pages];

    /// Its name in messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Check => "list of checks",
            Self::Plan => "restore plan",
            Self::Manifest => "manifest",
            Self::Criu => "archive of CRIU's files",
            Self::Pages => "index of pages",
        }
    }

    fn number(self) -> u32 {
        match self {
            Self::Memory => 1,
            Self::Check => 2,
            Self::Plan => 3,
            Self::Manifest => 4,
            Self::Criu => 5,
            Self::Pages => 6,
        }
    }
}

/// Where a section lies, and what its bytes hash to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Section {
    /// Offset in the file, a multiple of the page.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
    /// xxh3 (64 bits) of the bytes.
    pub checksum: u64,
}

impl Section {
    /// The bytes of the file that are the section's.
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        self.offset..self.offset + self.length
    }
}

/// The sections of a whole file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Header {
    /// Length of the file.
    pub(super) length: u64,
    sections: [Section; SectionKind::ALL.len()],
}

impl Header {
    pub(super) fn new(length: u64) -> Self {
        Self { length, ..Self::default() }
    }

    pub(super) fn section(&self, kind: SectionKind) -> Section {
        self.sections[kind as usize]
    }

    pub(super) fn set(&mut self, kind: SectionKind, section: Section) {
        self.sections[kind as usize] = section;
    }

    pub(super) fn encode(&self) -> [u8; PAGE_BYTES] {
        let mut page = Vec::with_capacity(PAGE_BYTES);
        page.extend(MAGIC);
        page.extend(FORMAT_VERSION.to_le_bytes());
        page.extend((SectionKind::ALL.len() as u32).to_le_bytes());
        page.extend(0_u64.to_le_bytes());
        page.extend(self.length.to_le_bytes());
        for kind in SectionKind::ALL {
            let section = self.section(kind);
            page.extend(u64::from(kind.number()).to_le_bytes());
            page.extend(section.offset.to_le_bytes());
            page.extend(section.length.to_le_bytes());
            page.extend(section.checksum.to_le_bytes());
        }
        let mut whole = [0; PAGE_BYTES];
        whole[..page.len()].copy_from_slice(&page);
        let checksum = xxh3_64(&whole);
        whole[CHECKSUM_AT].copy_from_slice(&checksum.to_le_bytes());
        whole
    }

    /// Reads the first page (or less: all that the file has) of a file of `length` bytes.
    pub(super) fn decode(page: &[u8], length: u64) -> Result<Self, Fault> {
        if page.is_empty() {
            return Err(Fault::Empty);
        }
        if !page.starts_with(&MAGIC[..MAGIC.len().min(page.len())]) {
            return Err(Fault::Foreign);
        }
        let Ok(mut whole) = <[u8; PAGE_BYTES]>::try_from(page) else {
            return Err(Fault::CutOff { is: length });
        };
        let damaged = || Fault::Damaged(Part::Header);
        let mut cursor = Cursor::new(&page[MAGIC.len()..]);
        let version = cursor.u32().ok_or_else(damaged)?;
        let count = cursor.u32().ok_or_else(damaged)?;
        let checksum = cursor.u64().ok_or_else(damaged)?;
        if version > FORMAT_VERSION {
            return Err(Fault::Newer { found: version, known: FORMAT_VERSION });
        }
        if version < FORMAT_VERSION {
            return Err(Fault::Older { found: version, known: FORMAT_VERSION });
        }
        // Only now: another version may compute it in another way.
        whole[CHECKSUM_AT].fill(0);
        if xxh3_64(&whole) != checksum {
            return Err(damaged());
        }
        let should = cursor.u64().ok_or_else(damaged)?;
        if should != length {
            return Err(Fault::WrongLength { is: length, should });
        }
        if count as usize != SectionKind::ALL.len() {
            return Err(malformed("the number of sections"));
        }
        let mut header = Self::new(length);
        // Sections follow each other in the file, so none can lie over another.
        let mut end = PAGE;
        let mut table = Cursor::new(&page[TABLE_AT..TABLE_AT + ENTRY * SectionKind::ALL.len()]);
        for kind in SectionKind::ALL {
            let number = table.u64().ok_or_else(damaged)?;
            let section = Section {
                offset: table.u64().ok_or_else(damaged)?,
                length: table.u64().ok_or_else(damaged)?,
                checksum: table.u64().ok_or_else(damaged)?,
            };
            if number != u64::from(kind.number()) {
                return Err(malformed("the kind of a section"));
            }
            let fits = section.offset.checked_add(section.length).filter(|end| *end <= length);
            let Some(section_end) = fits.filter(|_| section.offset >= end) else {
                return Err(malformed("the place of a section"));
            };
            if !section.offset.is_multiple_of(PAGE) {
                return Err(malformed("the alignment of a section"));
            }
            end = section_end;
            header.set(kind, section);
        }
        if !header.section(SectionKind::Memory).length.is_multiple_of(PAGE) {
            return Err(malformed("the length of the memory"));
        }
        Ok(header)
    }
}

fn malformed(what: &str) -> Fault {
    Fault::Malformed { part: Part::Header, what: format!("{what} is wrong") }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header() -> Header {
        let mut header = Header::new(20 * PAGE);
        for (place, kind) in (1..).zip(SectionKind::ALL) {
            let length = if kind == SectionKind::Memory { PAGE } else { 100 * place };
            header.set(kind, Section { offset: place * PAGE, length, checksum: place });
        }
        header
    }

    /// The page with `change` made to it and a checksum that is right again.
    fn forged(change: impl FnOnce(&mut [u8])) -> [u8; PAGE_BYTES] {
        let mut page = header().encode();
        change(&mut page);
        page[CHECKSUM_AT].fill(0);
        let checksum = xxh3_64(&page);
        page[CHECKSUM_AT].copy_from_slice(&checksum.to_le_bytes());
        page
    }

    #[test]
    fn a_header_is_read_as_it_was_written() {
        assert_eq!(Header::decode(&header().encode(), 20 * PAGE).unwrap(), header());
    }

    #[test]
    fn each_wrong_file_is_told_from_the_others() {
        let page = header().encode();
        let decode = |page: &[u8]| Header::decode(page, 20 * PAGE).unwrap_err();
        assert!(matches!(decode(b""), Fault::Empty));
        assert!(matches!(decode(b"#!/bin/sh\n"), Fault::Foreign));
        assert!(matches!(decode(&[0; PAGE_BYTES]), Fault::Foreign));
        assert!(matches!(decode(&page[..7]), Fault::CutOff { .. }));
        assert!(matches!(decode(&page[..PAGE_BYTES - 1]), Fault::CutOff { .. }));
        assert!(matches!(
            decode(&forged(|page| page[8] = 9)),
            Fault::Newer { found: 9, known: FORMAT_VERSION }
        ));
        assert!(matches!(decode(&forged(|page| page[8] = 0)), Fault::Older { found: 0, .. }));
        assert!(matches!(
            Header::decode(&page, 19 * PAGE).unwrap_err(),
            Fault::WrongLength { is: 77824, should: 81920 }
        ));
    }

    #[test]
    fn any_flipped_bit_is_noticed() {
        let page = header().encode();
        for bit in 0..PAGE_BYTES * 8 {
            let mut flipped = page;
            flipped[bit / 8] ^= 1 << (bit % 8);
            Header::decode(&flipped, 20 * PAGE).unwrap_err();
        }
    }

    proptest! {
        #[test]
        fn a_forged_table_stays_inside_the_file(at in 24..TABLE_AT + 6 * ENTRY, byte: u8) {
            let page = forged(|page| page[at] = byte);
            if let Ok(header) = Header::decode(&page, 20 * PAGE) {
                for kind in SectionKind::ALL {
                    prop_assert!(header.section(kind).range().end <= 20 * PAGE);
                }
            }
        }

        #[test]
        fn foreign_bytes_are_no_header(page in proptest::collection::vec(any::<u8>(), 0..5000), length: u64) {
            prop_assert!(Header::decode(&page, length).is_err());
        }
    }
}
