//! CRIU's image files: one or two magic numbers, then entries that are a length and a message.
//!
//! Facts: criu/include/magic.h (`IMG_COMMON_MAGIC` and one magic for each kind of file; only the
//! inventory lacks the common one) and criu/protobuf.c (length as a 32-bit little-endian number).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use protobuf::Message;

use super::error::{Damage, ProcessError};

const COMMON: u32 = 0x5456_4319;

/// A kind of image file, by its magic.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kind(u32);

impl Kind {
    /// How a file of this kind begins.
    pub(crate) fn magic(self) -> Vec<u8> {
        [COMMON.to_le_bytes(), self.0.to_le_bytes()].concat()
    }
}

pub(crate) const INVENTORY: Kind = Kind(0x5831_3116);
pub(crate) const PSTREE: Kind = Kind(0x5027_3030);
pub(crate) const CORE: Kind = Kind(0x5505_3847);
pub(crate) const IDS: Kind = Kind(0x5443_2030);
pub(crate) const MM: Kind = Kind(0x5749_2820);
pub(crate) const PAGEMAP: Kind = Kind(0x5608_4025);
pub(crate) const FDINFO: Kind = Kind(0x5621_3732);
pub(crate) const FILES: Kind = Kind(0x5630_3138);
pub(crate) const REMAP_FPATH: Kind = Kind(0x5913_3954);
pub(crate) const FS: Kind = Kind(0x5140_3912);
pub(crate) const FILE_LOCKS: Kind = Kind(0x5432_3616);

/// A directory that CRIU dumped into.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Directory<'a> {
    path: &'a Path,
}

impl<'a> Directory<'a> {
    pub(crate) fn new(path: &'a Path) -> Self {
        Self { path }
    }

    pub(crate) fn path(&self) -> &'a Path {
        self.path
    }

    /// The file's only entry.
    pub(crate) fn one<M: Message>(&self, name: &str, kind: Kind) -> Result<M, ProcessError> {
        let file = self.open(name, kind)?;
        let first = file.entries()?.into_iter().next();
        file.decode(first.ok_or_else(|| file.damaged(Damage::Empty))?)
    }

    /// All entries of the file.
    pub(crate) fn all<M: Message>(&self, name: &str, kind: Kind) -> Result<Vec<M>, ProcessError> {
        let file = self.open(name, kind)?;
        file.entries()?.into_iter().map(|entry| file.decode(entry)).collect()
    }

    /// All entries of a file that CRIU writes only where it has something to say.
    pub(crate) fn any<M: Message>(&self, name: &str, kind: Kind) -> Result<Vec<M>, ProcessError> {
        match self.all(name, kind) {
            Err(ProcessError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Ok(Vec::new())
            }
            other => other,
        }
    }

    /// A file whose first entry is of another type than the rest.
    pub(crate) fn headed<H: Message, M: Message>(
        &self,
        name: &str,
        kind: Kind,
    ) -> Result<(H, Vec<M>), ProcessError> {
        let file = self.open(name, kind)?;
        let mut entries = file.entries()?.into_iter();
        let head = entries.next().ok_or_else(|| file.damaged(Damage::Empty))?;
        let rest = entries.map(|entry| file.decode(entry)).collect::<Result<_, _>>()?;
        Ok((file.decode(head)?, rest))
    }

    fn open(&self, name: &str, kind: Kind) -> Result<ImageFile, ProcessError> {
        let path = self.path.join(name);
        match fs::read(&path) {
            Ok(bytes) => Ok(ImageFile { path, bytes, kind }),
            Err(source) => Err(ProcessError::Read { path, source }),
        }
    }
}

struct ImageFile {
    path: PathBuf,
    bytes: Vec<u8>,
    kind: Kind,
}

impl ImageFile {
    fn entries(&self) -> Result<Vec<&[u8]>, ProcessError> {
        split(&self.bytes, self.kind).map_err(|damage| self.damaged(damage))
    }

    fn decode<M: Message>(&self, entry: &[u8]) -> Result<M, ProcessError> {
        M::parse_from_bytes(entry).map_err(|error| self.damaged(error.into()))
    }

    fn damaged(&self, source: Damage) -> ProcessError {
        ProcessError::Damaged { path: self.path.clone(), source }
    }
}

/// The messages in the bytes of a file.
pub(crate) fn decode<M: Message>(bytes: &[u8], kind: Kind) -> Result<Vec<M>, Damage> {
    let entries = split(bytes, kind)?;
    entries.into_iter().map(|entry| M::parse_from_bytes(entry).map_err(Into::into)).collect()
}

/// The first message in the bytes of a file, whatever follows.
pub(crate) fn first<M: Message>(bytes: &[u8], kind: Kind) -> Result<M, Damage> {
    let entry = split(bytes, kind)?.into_iter().next().ok_or(Damage::Empty)?;
    Ok(M::parse_from_bytes(entry)?)
}

/// A file with messages of one type.
pub(crate) fn encode<M: Message>(kind: Kind, messages: &[M]) -> Result<Vec<u8>, Damage> {
    let mut bytes = kind.magic();
    for message in messages {
        append(&mut bytes, message)?;
    }
    Ok(bytes)
}

/// Adds a message to a file.
pub(crate) fn append<M: Message>(bytes: &mut Vec<u8>, message: &M) -> Result<(), Damage> {
    let message = message.write_to_bytes()?;
    bytes.extend((message.len() as u32).to_le_bytes());
    bytes.extend(message);
    Ok(())
}

fn split(bytes: &[u8], kind: Kind) -> Result<Vec<&[u8]>, Damage> {
    let mut rest = bytes;
    if kind.0 != INVENTORY.0 {
        magic(&mut rest, COMMON)?;
    }
    magic(&mut rest, kind.0)?;
    let mut entries = Vec::new();
    while !rest.is_empty() {
        let length = number(&mut rest)? as usize;
        let (entry, after) = rest.split_at_checked(length).ok_or(Damage::Truncated)?;
        entries.push(entry);
        rest = after;
    }
    Ok(entries)
}

fn magic(rest: &mut &[u8], expected: u32) -> Result<(), Damage> {
    let found = number(rest)?;
    if found == expected { Ok(()) } else { Err(Damage::Magic { expected, found }) }
}

fn number(rest: &mut &[u8]) -> Result<u32, Damage> {
    let (bytes, after) = rest.split_first_chunk().ok_or(Damage::Truncated)?;
    *rest = after;
    Ok(u32::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{COMMON, Damage, INVENTORY, PSTREE, split};

    fn file(magics: &[u32], entries: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes: Vec<u8> = magics.iter().flat_map(|magic| magic.to_le_bytes()).collect();
        for entry in entries {
            bytes.extend((entry.len() as u32).to_le_bytes());
            bytes.extend(entry);
        }
        bytes
    }

    proptest! {
        #[test]
        fn entries_come_back_as_written(entries in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..8)) {
            let bytes = file(&[COMMON, PSTREE.0], &entries);
            prop_assert_eq!(split(&bytes, PSTREE).ok(), Some(entries.iter().map(Vec::as_slice).collect()));
        }

        #[test]
        fn a_cut_file_is_damaged_or_ends_between_entries(cut in 0_usize..60) {
            let bytes = file(&[COMMON, PSTREE.0], &[vec![7; 20], vec![8; 16]]);
            let cut = cut.min(bytes.len());
            let whole = [8, 32, 52].contains(&cut);
            prop_assert_eq!(split(&bytes[..cut], PSTREE).is_ok(), whole);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = split(&bytes, PSTREE);
            let _ = split(&bytes, INVENTORY);
        }
    }

    #[test]
    fn the_inventory_has_one_magic_and_the_others_two() {
        assert!(split(&file(&[INVENTORY.0], &[]), INVENTORY).is_ok());
        assert!(matches!(
            split(&file(&[PSTREE.0], &[]), PSTREE),
            Err(Damage::Magic { expected: COMMON, .. })
        ));
    }
}
