//! Program headers of mapped objects: which private changes are a library's data, and how far its
//! zero-initialised data reaches beyond the file.
//!
//! Facts: elf(5).

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::process::pages::PAGE;
use crate::process::{FileContent, Memory, ProcessError, Vma, VmaKind};

const HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
const PT_LOAD: u32 = 1;
/// No object of the real world has more; a longer table is not read.
const MOST_HEADERS: usize = 64;

/// One `PT_LOAD` entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segment {
    offset: u64,
    address: u64,
    in_file: u64,
    in_memory: u64,
}

/// The objects that the process has mapped.
pub(super) struct Objects<'a> {
    vmas: &'a [Vma],
    segments: HashMap<PathBuf, Vec<Segment>>,
}

impl<'a> Objects<'a> {
    pub(super) fn load(memory: &Memory<'a>) -> Result<Self, ProcessError> {
        let vmas = &memory.process().vmas;
        let mut segments = HashMap::new();
        for vma in vmas {
            let VmaKind::File { path, nameless: false, shared: false, .. } = &vma.kind else {
                continue;
            };
            if segments.contains_key(path) {
                continue;
            }
            match read_segments(memory.files(), path) {
                Ok(found) => segments.insert(path.clone(), found),
                Err(source) => {
                    return Err(ProcessError::MappedFile { path: path.clone(), source });
                }
            };
        }
        Ok(Self { vmas, segments })
    }

    /// The mapping shows nothing but segments of an object that is mapped as a loader maps it.
    pub(super) fn is_segment(&self, vma: &Vma) -> bool {
        self.loaded(vma).is_some()
    }

    /// Where the zero-initialised data of mapped objects lies that is not in their files' mappings.
    pub(super) fn zero_initialised(&self) -> Vec<Range<u64>> {
        let mut ranges: Vec<Range<u64>> = self
            .vmas
            .iter()
            .filter_map(|vma| self.loaded(vma))
            .flat_map(|(bias, segments)| segments.iter().filter_map(move |one| one.zeros(bias)))
            .collect();
        ranges.sort_unstable_by_key(|range| (range.start, range.end));
        ranges.dedup();
        ranges
    }

    /// What the object's addresses are moved by, and all its segments. The mapping may show several
    /// segments: the kernel joins mappings that continue each other.
    fn loaded(&self, vma: &Vma) -> Option<(u64, &[Segment])> {
        let VmaKind::File { path, offset, shared: false, nameless: false, .. } = &vma.kind else {
            return None;
        };
        let segments = self.segments.get(path)?;
        let end = offset.checked_add(vma.length())?;
        segments.iter().map(Segment::shift).find_map(|shift| {
            let mut at = *offset;
            while at < end {
                let next = segments.iter().filter(|segment| segment.shift() == shift);
                at = next.map(Segment::file_pages).find(|file| file.contains(&at))?.end;
            }
            // A page of the file can belong to two segments, so that the mapping alone does not
            // tell which of them it shows.
            let bias = vma.range.start.wrapping_sub(offset.wrapping_add(shift));
            let whole = segments.iter().all(|segment| self.is_mapped(path, segment, bias));
            whole.then_some((bias, segments.as_slice()))
        })
    }

    /// The first page of the segment is where it has to be.
    fn is_mapped(&self, path: &Path, segment: &Segment, bias: u64) -> bool {
        let page = segment.file_pages().start;
        let wanted = bias.wrapping_add(page).wrapping_add(segment.shift());
        let index = self.vmas.partition_point(|vma| vma.range.end <= wanted);
        let Some(vma) = self.vmas.get(index).filter(|vma| vma.range.contains(&wanted)) else {
            return segment.in_file == 0;
        };
        match &vma.kind {
            VmaKind::File { path: mapped, offset, .. } => {
                mapped == path && offset + (wanted - vma.range.start) == page
            }
            _ => segment.in_file == 0,
        }
    }
}

impl Segment {
    /// From a page's offset in the file to where it wants to be.
    fn shift(&self) -> u64 {
        (self.address - self.address % PAGE).wrapping_sub(self.offset - self.offset % PAGE)
    }

    fn file_pages(&self) -> Range<u64> {
        let start = self.offset - self.offset % PAGE;
        start..self.offset.saturating_add(self.in_file).next_multiple_of(PAGE)
    }

    /// Whole pages after the file's last one.
    fn zeros(&self, bias: u64) -> Option<Range<u64>> {
        let address = bias.wrapping_add(self.address);
        let filled = if self.in_file == 0 {
            address - address % PAGE
        } else {
            address.checked_add(self.in_file)?.checked_next_multiple_of(PAGE)?
        };
        let end = address.checked_add(self.in_memory)?.checked_next_multiple_of(PAGE)?;
        (filled < end).then_some(filled..end)
    }
}

/// The loaded segments; none where the file is not an ELF file of x86-64.
fn read_segments(files: &dyn FileContent, path: &Path) -> io::Result<Vec<Segment>> {
    let mut header = [0; HEADER];
    let count = files.read_at(path, 0, &mut header)?;
    // 64-bit, little-endian, x86-64.
    if count < HEADER || !header.starts_with(b"\x7fELF\x02\x01") || number(&header, 18, 2) != 62 {
        return Ok(Vec::new());
    }
    let entries = number(&header, 56, 2) as usize;
    if number(&header, 54, 2) as usize != PROGRAM_HEADER || entries > MOST_HEADERS {
        return Ok(Vec::new());
    }
    let mut table = vec![0; entries * PROGRAM_HEADER];
    let count = files.read_at(path, number(&header, 32, 8), &mut table)?;
    Ok(table[..count]
        .chunks_exact(PROGRAM_HEADER)
        .filter(|entry| number(entry, 0, 4) == u64::from(PT_LOAD))
        .map(|entry| Segment {
            offset: number(entry, 8, 8),
            address: number(entry, 16, 8),
            in_file: number(entry, 32, 8),
            in_memory: number(entry, 40, 8),
        })
        .filter(|segment| segment.offset < 1 << 48 && segment.in_file < 1 << 48)
        .collect())
}

fn number(bytes: &[u8], offset: usize, length: usize) -> u64 {
    bytes[offset..offset + length].iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An ELF file with these segments: offset, address, length in the file, length in memory.
    pub(in crate::process::placement) fn object(segments: &[(u64, u64, u64, u64)]) -> Vec<u8> {
        let mut file = vec![0; HEADER];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[18] = 62;
        file[32] = HEADER as u8;
        file[54] = PROGRAM_HEADER as u8;
        file[56] = segments.len() as u8;
        for (offset, address, in_file, in_memory) in segments {
            let words = [1, *offset, *address, *address, *in_file, *in_memory, PAGE];
            file.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        }
        file
    }

    struct One(Vec<u8>);

    impl FileContent for One {
        fn read_at(&self, _: &Path, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
            let from = self.0.len().min(usize::try_from(offset).unwrap_or(usize::MAX));
            let count = buffer.len().min(self.0.len() - from);
            buffer[..count].copy_from_slice(&self.0[from..from + count]);
            Ok(count)
        }
    }

    #[test]
    fn loaded_segments_are_found() {
        let file = object(&[(0, 0, 0x1234, 0x1234), (0x1e00, 0x3e00, 0x300, 0x5000)]);
        let segments = read_segments(&One(file), Path::new("/lib")).expect("it reads");
        assert_eq!(segments.len(), 2);
        assert_eq!(segments[1].file_pages(), 0x1000..0x3000);
        // 0x3e00 + 0x300 ends in the page of 0x4000; 0x3e00 + 0x5000 in that of 0x8000.
        assert_eq!(segments[1].zeros(0x10_0000), Some(0x10_5000..0x10_9000));
        assert_eq!(segments[0].zeros(0x10_0000), None);
    }

    #[test]
    fn a_segment_without_bytes_in_the_file_is_all_zeros() {
        let segment = Segment { offset: 0x2000, address: 0x5800, in_file: 0, in_memory: 0x1000 };
        assert_eq!(segment.zeros(0), Some(0x5000..0x7000));
    }

    #[test]
    fn other_files_have_no_segments() {
        for file in [b"".to_vec(), b"\x7fELF".to_vec(), vec![0; 4096]] {
            assert_eq!(read_segments(&One(file), Path::new("/x")).expect("it reads"), []);
        }
    }

    #[test]
    fn a_mapping_may_show_segments_that_continue_each_other() {
        let file = object(&[
            (0, 0, 0x1000, 0x1000),
            (0x1e00, 0x3e00, 0x1200, 0x1200),
            (0x3000, 0x5000, 0x800, 0x2800),
        ]);
        let path = PathBuf::from("/lib");
        let segments = read_segments(&One(file), &path).expect("it reads");
        let segments = HashMap::from([(path.clone(), segments)]);
        let vma = |start: u64, pages: u64, offset: u64| Vma {
            range: start..start + pages * PAGE,
            prot: 3,
            kind: VmaKind::File {
                path: path.clone(),
                offset,
                shared: false,
                writable: false,
                nameless: false,
            },
            growsdown: false,
            advice: 0,
            special: crate::process::smaps::VmFlags::default(),
            heap: false,
        };
        let vmas = [vma(0x10_0000, 1, 0), vma(0x10_3000, 3, 0x1000)];
        let objects = Objects { vmas: &vmas, segments: segments.clone() };
        assert!(objects.is_segment(&vmas[0]));
        assert!(objects.is_segment(&vmas[1]));
        assert_eq!(objects.zero_initialised().first(), Some(&(0x10_6000..0x10_8000)));
        assert_eq!(objects.zero_initialised().len(), 1);
        // Not as a loader maps it: a segment elsewhere, something behind the last, nothing but data.
        for vmas in [
            vec![vma(0x10_0000, 3, 0)],
            vec![vma(0x10_0000, 1, 0), vma(0x10_3000, 4, 0x1000)],
            vec![vma(0x10_3000, 3, 0x1000)],
        ] {
            let objects = Objects { vmas: &vmas, segments: segments.clone() };
            assert!(!objects.is_segment(vmas.last().expect("there is one")));
        }
    }

    #[test]
    fn a_page_of_the_file_that_two_segments_share_does_not_mislead() {
        // The page at 0x1000 is the end of the first segment and the start of the second, which has
        // zeros behind it.
        let file = object(&[(0, 0, 0x1800, 0x1800), (0x1800, 0x2800, 0x100, 0x2000)]);
        let path = PathBuf::from("/lib");
        let segments = read_segments(&One(file), &path).expect("it reads");
        let vma = |start: u64, pages: u64, offset: u64| Vma {
            range: start..start + pages * PAGE,
            prot: 3,
            kind: VmaKind::File {
                path: path.clone(),
                offset,
                shared: false,
                writable: false,
                nameless: false,
            },
            growsdown: false,
            advice: 0,
            special: crate::process::smaps::VmFlags::default(),
            heap: false,
        };
        // The first segment's pages were given different protections.
        let vmas = [vma(0x10_0000, 1, 0), vma(0x10_1000, 1, 0x1000), vma(0x10_2000, 1, 0x1000)];
        let objects = Objects { vmas: &vmas, segments: HashMap::from([(path.clone(), segments)]) };
        assert_eq!(objects.zero_initialised().first(), Some(&(0x10_3000..0x10_5000)));
        assert_eq!(objects.zero_initialised().len(), 1);
    }

    proptest! {
        #[test]
        fn no_file_makes_it_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..400), elf in any::<bool>()) {
            if elf && bytes.len() >= HEADER {
                bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
                bytes[18..20].copy_from_slice(&[62, 0]);
                bytes[32..40].copy_from_slice(&64_u64.to_le_bytes());
                bytes[54..58].copy_from_slice(&[56, 0, 4, 0]);
            }
            for segment in read_segments(&One(bytes), Path::new("/x")).expect("it reads") {
                let _ = (segment.file_pages(), segment.zeros(0x7f00_0000_0000));
            }
        }
    }
}
