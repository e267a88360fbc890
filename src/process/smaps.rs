//! The text of `/proc/PID/smaps`: what CRIU does not write down about mappings.
//!
//! Facts: Documentation/filesystems/proc.rst of the kernel, `VmFlags`.

use std::ops::{BitOr, Range};

use super::error::SmapsError;

/// What the kernel's `VmFlags` line says about a mapping, as far as it matters here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VmFlags(u32);

impl VmFlags {
    /// `dp`: the kernel may drop the pages at any time (`MAP_DROPPABLE`).
    pub const DROPPABLE: Self = Self(1);
    /// `wf`: empty in a forked child (`MADV_WIPEONFORK`).
    pub const WIPE_ON_FORK: Self = Self(1 << 1);
    /// `dc`: not there in a forked child (`MADV_DONTFORK`).
    pub const DONT_COPY: Self = Self(1 << 2);
    /// `dd`: left out of core dumps.
    pub const DONT_DUMP: Self = Self(1 << 3);
    /// `hg`: huge pages wanted (`MADV_HUGEPAGE`).
    pub const HUGE_PAGE: Self = Self(1 << 4);
    /// `nh`: huge pages not wanted (`MADV_NOHUGEPAGE`).
    pub const NO_HUGE_PAGE: Self = Self(1 << 5);
    /// `mg`: `MADV_MERGEABLE`.
    pub const MERGEABLE: Self = Self(1 << 6);
    /// `lo`: locked into memory.
    pub const LOCKED: Self = Self(1 << 7);
    /// `ht`: made of huge pages (`MAP_HUGETLB`).
    pub const HUGETLB: Self = Self(1 << 8);
    /// `ss`: a shadow stack.
    pub const SHADOW_STACK: Self = Self(1 << 9);
    /// `um`, `uw`, `ui`: watched by a userfaultfd.
    pub const USERFAULT: Self = Self(1 << 10);
    /// `io`, `pf`, `mm`: memory of a device.
    pub const DEVICE: Self = Self(1 << 11);
    /// `sl`: sealed (mseal(2)): cannot be unmapped or changed.
    pub const SEALED: Self = Self(1 << 12);
    /// `gu`: may hold guard regions (`MADV_GUARD_INSTALL`).
    pub const GUARDED: Self = Self(1 << 13);
    /// `gd`: grows downwards.
    pub const GROWS_DOWN: Self = Self(1 << 14);
    /// `nr`: no memory is set aside for it (`MAP_NORESERVE`).
    pub const NO_RESERVE: Self = Self(1 << 15);

    /// None of `other` is missing.
    #[must_use]
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// At least one of `other` is there.
    #[must_use]
    pub fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    fn of_word(word: &str) -> Self {
        match word {
            "dp" => Self::DROPPABLE,
            "wf" => Self::WIPE_ON_FORK,
            "dc" => Self::DONT_COPY,
            "dd" => Self::DONT_DUMP,
            "hg" => Self::HUGE_PAGE,
            "nh" => Self::NO_HUGE_PAGE,
            "mg" => Self::MERGEABLE,
            "lo" => Self::LOCKED,
            "ht" => Self::HUGETLB,
            "ss" => Self::SHADOW_STACK,
            "um" | "uw" | "ui" => Self::USERFAULT,
            "io" | "pf" | "mm" => Self::DEVICE,
            "sl" => Self::SEALED,
            "gu" => Self::GUARDED,
            "gd" => Self::GROWS_DOWN,
            "nr" => Self::NO_RESERVE,
            _ => Self::default(),
        }
    }
}

impl BitOr for VmFlags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// The mappings of `/proc/PID/smaps`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Smaps {
    entries: Vec<(Range<u64>, VmFlags)>,
}

impl Smaps {
    /// Reads the text of `/proc/PID/smaps`. It is bytes, since a path need not be UTF-8.
    pub fn parse(text: &[u8]) -> Result<Self, SmapsError> {
        let mut entries: Vec<(Range<u64>, VmFlags)> = Vec::new();
        for (index, line) in text.split(|byte| *byte == b'\n').enumerate() {
            if line.is_empty() {
                continue;
            }
            let fault = || SmapsError::Line(index + 1);
            if let Some(range) = mapping(line) {
                entries.push((range, VmFlags::default()));
            } else if let Some(words) = line.strip_prefix(b"VmFlags:") {
                let words = str::from_utf8(words).map_err(|_| fault())?;
                let flags = words.split_ascii_whitespace().map(VmFlags::of_word);
                entries.last_mut().ok_or_else(fault)?.1 =
                    flags.fold(VmFlags::default(), BitOr::bitor);
            } else if entries.is_empty() || !line.contains(&b':') {
                return Err(fault());
            }
        }
        entries.sort_unstable_by_key(|(range, _)| range.start);
        Ok(Self { entries })
    }

    /// All that is said about `range`; none where a part of it is not listed.
    #[must_use]
    pub fn flags(&self, range: &Range<u64>) -> Option<VmFlags> {
        let first = self.entries.partition_point(|(listed, _)| listed.end <= range.start);
        let mut flags = VmFlags::default();
        let mut at = range.start;
        for (listed, found) in &self.entries[first..] {
            if at >= range.end || listed.start > at {
                break;
            }
            flags = flags | *found;
            at = listed.end;
        }
        (at >= range.end).then_some(flags)
    }
}

/// `START-END PERMISSIONS …` in hexadecimal digits.
fn mapping(line: &[u8]) -> Option<Range<u64>> {
    let word = line.split(|byte| *byte == b' ').next()?;
    let (start, end) = str::from_utf8(word).ok()?.split_once('-')?;
    let range = u64::from_str_radix(start, 16).ok()?..u64::from_str_radix(end, 16).ok()?;
    (range.start < range.end).then_some(range)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Smaps, VmFlags};

    const TEXT: &[u8] = b"\
00945000-00946000 r--p 00544000 fe:00 247706                             /usr/bin/python3.11
Size:                  4 kB
THPeligible:           0
VmFlags: rd mr mw me ac\x20
00946000-00a85000 rw-p 00545000 fe:00 247706                             /tmp/a: \xff b-c
Size:                  4 kB
VmFlags: rd wr mr mw me dp wf\x20
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
VmFlags: ex\x20
";

    #[test]
    fn flags_are_found_by_address() {
        let smaps = Smaps::parse(TEXT).expect("the text is right");
        assert_eq!(smaps.flags(&(0x94_5000..0x94_6000)), Some(VmFlags::default()));
        let flags = smaps.flags(&(0x95_0000..0xa8_5000)).expect("it is listed");
        assert!(flags.contains(VmFlags::DROPPABLE | VmFlags::WIPE_ON_FORK));
        assert!(!flags.intersects(VmFlags::LOCKED));
        assert!(smaps.flags(&(0x94_5000..0xa8_5000)).is_some());
    }

    #[test]
    fn what_is_not_listed_has_no_flags() {
        let smaps = Smaps::parse(TEXT).expect("the text is right");
        assert_eq!(smaps.flags(&(0x94_4000..0x94_6000)), None);
        assert_eq!(smaps.flags(&(0x94_6000..0xa8_6000)), None);
        assert_eq!(smaps.flags(&(0x1000..0x2000)), None);
    }

    #[test]
    fn other_text_is_refused() {
        assert!(Smaps::parse(b"Size: 4 kB\n").is_err());
        assert!(Smaps::parse(b"1000-2000 r--p 0 0 0\nnonsense\n").is_err());
        assert!(Smaps::parse(b"").is_ok());
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Smaps::parse(&text);
        }
    }
}
