//! Where XSAVE puts the state components, on this machine.
//!
//! Facts: Intel SDM volume 1, chapter 13 (standard format of the XSAVE area), and CPUID leaf 0xD.

use std::arch::x86_64::{__cpuid, __cpuid_count};

/// Length of the area that FXSAVE writes, with which every XSAVE area starts.
pub const LEGACY: usize = 512;

/// Length of the header that follows it.
pub const HEADER: usize = 64;

/// Components that may be in a signal frame of ours: what CRIU dumps. AMX and APX state is not among
/// them and comes back in its initial state, as it is for a thread that has never used it.
pub const DUMPED: u64 = 0b10_1111_1111;

/// x87 and SSE, which are in the legacy area.
pub const IN_LEGACY: u64 = 0b11;

/// The XSAVE area's standard (not compacted) format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct XsaveLayout {
    /// The components that the area has place for: bit N for component N.
    pub features: u64,
    /// Length of the area in bytes.
    pub size: usize,
    /// Place of each component beyond x87 and SSE, by number.
    pub components: Vec<Place>,
}

/// Place of one component.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Number of the component.
    pub number: u8,
    /// Offset in the area.
    pub offset: usize,
    /// Length in bytes.
    pub length: usize,
}

impl XsaveLayout {
    /// The format on this machine; none where the kernel has not switched XSAVE on.
    #[must_use]
    pub fn of_this_machine() -> Option<Self> {
        const OSXSAVE: u32 = 1 << 27;
        const LEAF: u32 = 0xd;
        if __cpuid(0).eax < LEAF || __cpuid(1).ecx & OSXSAVE == 0 {
            return None;
        }
        let state = __cpuid_count(LEAF, 0);
        let places = (2..63).map(|number| {
            let place = __cpuid_count(LEAF, number);
            Place { number: number as u8, offset: place.ebx as usize, length: place.eax as usize }
        });
        let features = u64::from(state.eax) | u64::from(state.edx) << 32;
        Some(Self::new(features, state.ebx as usize, places))
    }

    /// From CPUID's answers: the components that the processor has, the length of an area for those
    /// that the kernel has switched on, and the place of each.
    #[must_use]
    pub fn new(features: u64, enabled: usize, places: impl Iterator<Item = Place>) -> Self {
        // A frame that is longer than the kernel's own is taken for one without XSAVE state, in
        // silence. A component that the kernel has not switched on lies past the enabled length, or
        // below it and then costs no length.
        let components: Vec<Place> = places
            .filter(|place| DUMPED & features & (1 << place.number) != 0)
            .filter(|place| place.length != 0 && place.offset + place.length <= enabled)
            .collect();
        let size = components.iter().map(|place| place.offset + place.length).max();
        let features = components.iter().fold(IN_LEGACY, |bits, place| bits | 1 << place.number);
        Self { features, size: size.unwrap_or(LEGACY + HEADER), components }
    }

    /// The place of a component.
    #[must_use]
    pub fn place(&self, number: u8) -> Option<Place> {
        self.components.iter().copied().find(|place| place.number == number)
    }
}

#[cfg(test)]
mod tests {
    use super::{HEADER, LEGACY, Place, XsaveLayout};

    const AVX: Place = Place { number: 2, offset: 576, length: 256 };
    const OPMASK: Place = Place { number: 5, offset: 1088, length: 64 };
    const PKRU: Place = Place { number: 9, offset: 2688, length: 8 };
    const TILE_CONFIG: Place = Place { number: 17, offset: 2752, length: 64 };
    const TILE_DATA: Place = Place { number: 18, offset: 2816, length: 8192 };

    #[test]
    fn what_criu_does_not_dump_has_no_place() {
        let features = 0b110_0000_0010_0010_0111;
        let places = [AVX, OPMASK, PKRU, TILE_CONFIG, TILE_DATA];
        let layout = XsaveLayout::new(features, 11008, places.into_iter());
        assert_eq!(layout.features, 0b10_0010_0111);
        assert_eq!(layout.size, 2696);
        assert_eq!(layout.place(2), Some(AVX));
        assert_eq!(layout.place(17), None);
    }

    #[test]
    fn what_the_kernel_has_not_switched_on_has_no_place() {
        let layout = XsaveLayout::new(0b10_0010_0111, 832, [AVX, OPMASK, PKRU].into_iter());
        assert_eq!((layout.features, layout.size), (0b111, 832));
    }

    #[test]
    fn without_vector_extensions_only_the_fixed_part_is_left() {
        let layout = XsaveLayout::new(3, LEGACY + HEADER, std::iter::empty());
        assert_eq!((layout.features, layout.size), (3, LEGACY + HEADER));
    }

    #[test]
    fn this_machine_has_a_format_that_holds_together() {
        let Some(layout) = XsaveLayout::of_this_machine() else { return };
        assert!(layout.size >= LEGACY + HEADER);
        for place in &layout.components {
            assert!(place.offset >= LEGACY + HEADER && place.offset + place.length <= layout.size);
        }
    }
}
