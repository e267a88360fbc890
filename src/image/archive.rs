//! CRIU's files, but the pages, as one section.
//!
//! One record after the other: length of the name (u64), name, length of the content (u64), content.

use std::fs;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::str;

use super::bytes::{Cursor, put_bytes};

/// The files of a CRIU directory in memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: Vec<Entry>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    name: Range<usize>,
    content: Range<usize>,
}

impl Archive {
    /// Takes the files of a directory that CRIU dumped into, in the order of their names: all that
    /// end in `.img` except `pages-*.img`, whose content is the image's memory.
    pub fn from_directory(directory: &Path) -> io::Result<Self> {
        let mut names: Vec<String> = Vec::new();
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            let name = entry.file_name();
            if let Some(name) = name.to_str()
                && entry.file_type()?.is_file()
                && Path::new(name).extension().is_some_and(|extension| extension == "img")
                && !name.starts_with("pages-")
            {
                names.push(name.to_owned());
            }
        }
        names.sort();
        let mut archive = Self::default();
        for name in names {
            archive.push(&name, &fs::read(directory.join(&name))?);
        }
        Ok(archive)
    }

    /// Adds a file. The name must be one that [`Archive::decode`] takes.
    pub fn push(&mut self, name: &str, content: &[u8]) {
        put_bytes(&mut self.bytes, name.as_bytes());
        let name = self.bytes.len() - name.len()..self.bytes.len();
        put_bytes(&mut self.bytes, content);
        let content = self.bytes.len() - content.len()..self.bytes.len();
        self.entries.push(Entry { name, content });
    }

    /// Names and contents, in the order in which they were added.
    pub fn files(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.entries.iter().map(|entry| {
            let name = str::from_utf8(&self.bytes[entry.name.clone()]).unwrap_or_default();
            (name, &self.bytes[entry.content.clone()])
        })
    }

    /// The content of one file.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.files().find(|(each, _)| *each == name).map(|(_, content)| content)
    }

    /// The section's bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Reads a section. `None` unless every name is that of a file in a directory (no slash, no
    /// dots) and there only once.
    #[must_use]
    pub fn decode(bytes: Vec<u8>) -> Option<Self> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut cursor = Cursor::new(&bytes);
        let mut at = 0;
        let mut field = |cursor: &mut Cursor<'_>| {
            let length = cursor.bytes()?.len();
            let start = at + size_of::<u64>();
            at = start + length;
            Some(start..at)
        };
        while !cursor.is_at_end() {
            let name = field(&mut cursor)?;
            let content = field(&mut cursor)?;
            is_file_name(&bytes[name.clone()]).then_some(())?;
            entries.push(Entry { name, content });
        }
        let mut names: Vec<&[u8]> =
            entries.iter().map(|entry| &bytes[entry.name.clone()]).collect();
        names.sort_unstable();
        if names.windows(2).any(|pair| pair[0] == pair[1]) {
            return None;
        }
        Some(Self { bytes, entries })
    }
}

fn is_file_name(name: &[u8]) -> bool {
    !name.is_empty()
        && name.len() <= 255
        && name != b"."
        && name != b".."
        && name.iter().all(|byte| byte.is_ascii_graphic() && *byte != b'/')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn archive() -> Archive {
        let mut archive = Archive::default();
        archive.push("core-5.img", b"core");
        archive.push("empty.img", b"");
        archive.push("mm-5.img", &[7; 300]);
        archive
    }

    #[test]
    fn it_is_read_as_it_was_made() {
        let archive = archive();
        let read = Archive::decode(archive.as_bytes().to_vec()).unwrap();
        assert_eq!(read, archive);
        assert_eq!(read.get("core-5.img"), Some(&b"core"[..]));
        assert_eq!(read.get("absent.img"), None);
        assert_eq!(read.files().count(), 3);
    }

    #[test]
    fn a_directory_is_taken_without_its_pages() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["pstree.img", "core-1.img", "pages-1.img", "dump.log", "stats-dump"] {
            fs::write(folder.path().join(name), name).unwrap();
        }
        fs::create_dir(folder.path().join("directory.img")).unwrap();
        let archive = Archive::from_directory(folder.path()).unwrap();
        let names: Vec<_> = archive.files().map(|(name, _)| name).collect();
        assert_eq!(names, ["core-1.img", "pstree.img"]);
    }

    #[test]
    fn names_that_lead_out_of_the_directory_are_refused() {
        for name in ["", ".", "..", "a/b", "/etc/passwd", "../x", "a\0b", "a\nb", "\u{202e}"] {
            let mut archive = Archive::default();
            archive.push(name, b"");
            assert_eq!(Archive::decode(archive.bytes), None, "{name:?}");
        }
        let mut twice = archive();
        twice.push("core-5.img", b"another");
        assert_eq!(Archive::decode(twice.bytes), None);
    }

    proptest! {
        #[test]
        fn damaged_bytes_do_no_harm(at in 0_usize..360, byte: u8, cut in 0_usize..360) {
            let mut bytes = archive().bytes;
            let length = bytes.len();
            bytes[at % length] = byte;
            bytes.truncate(cut);
            if let Some(archive) = Archive::decode(bytes) {
                let total: usize = archive.files().map(|(name, content)| name.len() + content.len()).sum();
                prop_assert!(total <= cut);
            }
        }

        #[test]
        fn foreign_bytes_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Archive::decode(bytes);
        }
    }
}
