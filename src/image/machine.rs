//! What of a machine a frozen process depends on: the kernel's vDSO, into which the C library holds
//! pointers, and the processor, for which libraries have already chosen their code.

use std::arch::x86_64::__cpuid_count;

use xxhash_rust::xxh3::xxh3_64;

use crate::sys;

/// A machine, as far as it matters to a frozen process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// xxh3 of the vDSO; 0 where there is none.
    pub vdso: u64,
    /// The processor.
    pub cpu: Cpu,
}

impl Machine {
    /// This machine. Costs 10 to 50 µs in a virtual machine, which each identification leaves.
    #[must_use]
    pub fn here() -> Self {
        Self { vdso: sys::vdso().map_or(0, xxh3_64), cpu: Cpu::here() }
    }
}

/// What a processor can do for programs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cpu {
    /// Feature words (CPUID, Intel SDM volume 2A), in the order of [`Word`], only bits of
    /// [`FEATURES`].
    pub words: [u32; WORDS],
    /// Register states that XSAVE knows (CPUID leaf 0xD: EDX and EAX).
    pub states: u64,
    /// Bytes that XSAVE needs for those that the kernel has enabled (CPUID leaf 0xD: EBX).
    pub state_bytes: u32,
}

/// How many feature words there are.
pub(super) const WORDS: usize = 7;

#[derive(Clone, Copy)]
enum Word {
    Leaf1Ecx,
    Leaf1Edx,
    Leaf7Ebx,
    Leaf7Ecx,
    Leaf7Edx,
    Leaf71Eax,
    ExtendedEcx,
}

/// Features that compiled code asks for, with the names of `/proc/cpuinfo`. What only a kernel or a
/// hypervisor uses is left out: it may differ from one machine to the next and does not matter.
const FEATURES: [(Word, u32, &str); 67] = [
    (Word::Leaf1Ecx, 0, "sse3"),
    (Word::Leaf1Ecx, 1, "pclmulqdq"),
    (Word::Leaf1Ecx, 9, "ssse3"),
    (Word::Leaf1Ecx, 12, "fma"),
    (Word::Leaf1Ecx, 13, "cx16"),
    (Word::Leaf1Ecx, 19, "sse4_1"),
    (Word::Leaf1Ecx, 20, "sse4_2"),
    (Word::Leaf1Ecx, 22, "movbe"),
    (Word::Leaf1Ecx, 23, "popcnt"),
    (Word::Leaf1Ecx, 25, "aes"),
    (Word::Leaf1Ecx, 26, "xsave"),
    (Word::Leaf1Ecx, 27, "osxsave"),
    (Word::Leaf1Ecx, 28, "avx"),
    (Word::Leaf1Ecx, 29, "f16c"),
    (Word::Leaf1Ecx, 30, "rdrand"),
    (Word::Leaf1Edx, 8, "cx8"),
    (Word::Leaf1Edx, 15, "cmov"),
    (Word::Leaf1Edx, 23, "mmx"),
    (Word::Leaf1Edx, 24, "fxsr"),
    (Word::Leaf1Edx, 25, "sse"),
    (Word::Leaf1Edx, 26, "sse2"),
    (Word::Leaf7Ebx, 0, "fsgsbase"),
    (Word::Leaf7Ebx, 3, "bmi1"),
    (Word::Leaf7Ebx, 5, "avx2"),
    (Word::Leaf7Ebx, 8, "bmi2"),
    (Word::Leaf7Ebx, 9, "erms"),
    (Word::Leaf7Ebx, 11, "rtm"),
    (Word::Leaf7Ebx, 16, "avx512f"),
    (Word::Leaf7Ebx, 17, "avx512dq"),
    (Word::Leaf7Ebx, 18, "rdseed"),
    (Word::Leaf7Ebx, 19, "adx"),
    (Word::Leaf7Ebx, 21, "avx512ifma"),
    (Word::Leaf7Ebx, 23, "clflushopt"),
    (Word::Leaf7Ebx, 24, "clwb"),
    (Word::Leaf7Ebx, 26, "avx512pf"),
    (Word::Leaf7Ebx, 27, "avx512er"),
    (Word::Leaf7Ebx, 28, "avx512cd"),
    (Word::Leaf7Ebx, 29, "sha_ni"),
    (Word::Leaf7Ebx, 30, "avx512bw"),
    (Word::Leaf7Ebx, 31, "avx512vl"),
    (Word::Leaf7Ecx, 1, "avx512vbmi"),
    (Word::Leaf7Ecx, 4, "ospke"),
    (Word::Leaf7Ecx, 5, "waitpkg"),
    (Word::Leaf7Ecx, 6, "avx512_vbmi2"),
    (Word::Leaf7Ecx, 8, "gfni"),
    (Word::Leaf7Ecx, 9, "vaes"),
    (Word::Leaf7Ecx, 10, "vpclmulqdq"),
    (Word::Leaf7Ecx, 11, "avx512_vnni"),
    (Word::Leaf7Ecx, 12, "avx512_bitalg"),
    (Word::Leaf7Ecx, 14, "avx512_vpopcntdq"),
    (Word::Leaf7Ecx, 22, "rdpid"),
    (Word::Leaf7Ecx, 27, "movdiri"),
    (Word::Leaf7Ecx, 28, "movdir64b"),
    (Word::Leaf7Edx, 4, "fsrm"),
    (Word::Leaf7Edx, 8, "avx512_vp2intersect"),
    (Word::Leaf7Edx, 14, "serialize"),
    (Word::Leaf7Edx, 22, "amx_bf16"),
    (Word::Leaf7Edx, 23, "avx512_fp16"),
    (Word::Leaf7Edx, 24, "amx_tile"),
    (Word::Leaf7Edx, 25, "amx_int8"),
    (Word::Leaf71Eax, 4, "avx_vnni"),
    (Word::Leaf71Eax, 5, "avx512_bf16"),
    (Word::Leaf71Eax, 23, "avx_ifma"),
    (Word::ExtendedEcx, 0, "lahf_lm"),
    (Word::ExtendedEcx, 5, "abm"),
    (Word::ExtendedEcx, 11, "xop"),
    (Word::ExtendedEcx, 16, "fma4"),
];

impl Cpu {
    /// This processor.
    #[must_use]
    pub fn here() -> Self {
        let last = __cpuid_count(0, 0).eax;
        let leaf = |leaf: u32, sub: u32| (leaf <= last).then(|| __cpuid_count(leaf, sub));
        let mut words = [0; WORDS];
        if let Some(one) = leaf(1, 0) {
            words[Word::Leaf1Ecx as usize] = one.ecx;
            words[Word::Leaf1Edx as usize] = one.edx;
        }
        if let Some(seven) = leaf(7, 0) {
            words[Word::Leaf7Ebx as usize] = seven.ebx;
            words[Word::Leaf7Ecx as usize] = seven.ecx;
            words[Word::Leaf7Edx as usize] = seven.edx;
            if seven.eax >= 1 {
                words[Word::Leaf71Eax as usize] = __cpuid_count(7, 1).eax;
            }
        }
        // Which says that the processor has 64 bits.
        words[Word::ExtendedEcx as usize] = __cpuid_count(0x8000_0001, 0).ecx;
        for (word, known) in words.iter_mut().zip(known_bits()) {
            *word &= known;
        }
        let state = leaf(0xD, 0);
        Self {
            words,
            states: state.map_or(0, |state| u64::from(state.edx) << 32 | u64::from(state.eax)),
            state_bytes: state.map_or(0, |state| state.ebx),
        }
    }

    /// The names of what it can.
    #[must_use]
    pub fn features(&self) -> Vec<&'static str> {
        let has = |word: Word, bit: u32| self.words[word as usize] >> bit & 1 == 1;
        FEATURES.iter().filter(|(word, bit, _)| has(*word, *bit)).map(|feature| feature.2).collect()
    }

    /// The names of what this processor cannot and `other` can.
    #[must_use]
    pub fn lacks(&self, other: &Self) -> Vec<&'static str> {
        let mut missing = *other;
        for (word, own) in missing.words.iter_mut().zip(self.words) {
            *word &= !own;
        }
        missing.features()
    }

    /// Whether both save their registers in the same layout: signal frames and what the dynamic
    /// loader saves on its way into a function have the layout of the processor that they were
    /// made for.
    #[must_use]
    pub fn saves_like(&self, other: &Self) -> bool {
        (self.states, self.state_bytes) == (other.states, other.state_bytes)
    }
}

fn known_bits() -> [u32; WORDS] {
    let mut known = [0; WORDS];
    for (word, bit, _) in FEATURES {
        known[word as usize] |= 1 << bit;
    }
    known
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_the_kernel_names_is_found() {
        let info = fs::read_to_string("/proc/cpuinfo").unwrap();
        let flags = info.lines().find(|line| line.starts_with("flags")).unwrap();
        let features = Cpu::here().features();
        assert!(features.contains(&"sse2"));
        // The other way round need not hold: a kernel can be told to ignore a feature.
        for (_, _, name) in FEATURES {
            if flags.split_whitespace().any(|flag| flag == name) {
                assert!(features.contains(&name), "{name}");
            }
        }
    }

    #[test]
    fn a_lesser_processor_lacks_what_it_lacks() {
        let here = Cpu::here();
        let mut lesser = here;
        lesser.words[Word::Leaf1Ecx as usize] &= !(1 << 20);
        assert_eq!(lesser.lacks(&here), ["sse4_2"]);
        assert_eq!(here.lacks(&lesser), Vec::<&str>::new());
        assert!(here.saves_like(&lesser));
        lesser.states ^= 1 << 9;
        assert!(!here.saves_like(&lesser));
    }

    #[test]
    fn one_machine_is_like_itself() {
        assert_eq!(Machine::here(), Machine::here());
        assert_ne!(Machine::here().vdso, 0);
    }
}
