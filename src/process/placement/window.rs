//! Words of the frozen memory, read in large pieces.

use std::ops::Range;

use crate::process::pages::PAGE;
use crate::process::{Memory, ProcessError};

/// How much is read at once: walks go mostly forwards.
const LENGTH: u64 = 1 << 16;

/// A reader that keeps the piece it read last.
pub(super) struct Window<'a> {
    memory: &'a Memory<'a>,
    range: Range<u64>,
    bytes: Vec<u8>,
}

impl<'a> Window<'a> {
    pub(super) fn new(memory: &'a Memory<'a>) -> Self {
        Self { memory, range: 0..0, bytes: Vec::new() }
    }

    /// The 64-bit number at an address that is a multiple of eight; none where nothing is mapped.
    pub(super) fn word(&mut self, address: u64) -> Result<Option<u64>, ProcessError> {
        if !address.is_multiple_of(8) {
            return Ok(None);
        }
        if !self.range.contains(&address) && !self.load(address)? {
            return Ok(None);
        }
        let at = (address - self.range.start) as usize;
        Ok(self.bytes[at..].first_chunk().map(|bytes| u64::from_le_bytes(*bytes)))
    }

    fn load(&mut self, address: u64) -> Result<bool, ProcessError> {
        let Some(vma) = self.memory.process().vma_at(address) else { return Ok(false) };
        let start = address - address % PAGE;
        let end = vma.range.end.min(start.saturating_add(LENGTH));
        self.bytes.resize((end - start) as usize, 0);
        let there = self.memory.read(start, &mut self.bytes)?;
        self.range = if there { start..end } else { 0..0 };
        Ok(there)
    }
}
