//! stub
use super::smaps::VmFlags;
use super::{Memory, ProcessError, VmaKind};
use std::ops::Range;
/// stub
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// x
    File,
    /// x
    Zero,
    /// x
    Map,
    /// x
    Copy,
}
/// stub
#[derive(Clone, Debug)]
pub struct Placement {
    /// x
    pub range: Range<u64>,
    /// x
    pub how: How,
}
/// stub
pub fn place(memory: &Memory<'_>) -> Result<Vec<Placement>, ProcessError> {
    let p = memory.process();
    let mut v = Vec::new();
    for vma in &p.vmas {
        for run in p.pages.within(vma.range.clone()) {
            let how = if vma.special.intersects(VmFlags::DROPPABLE | VmFlags::WIPE_ON_FORK) {
                How::Zero
            } else if matches!(vma.kind, VmaKind::File { .. })
                || vma.heap
                || p.adopted.iter().any(|a| a.start <= run.range.start && run.range.start < a.end)
            {
                How::Map
            } else {
                How::Copy
            };
            v.push(Placement { range: run.range, how });
        }
    }
    Ok(v)
}
