//! Looks up a symbol in the dynamic loader, to find what it registered for the first thread.

use core::slice;

const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const DT_STRTAB: usize = 5;
const DT_SYMTAB: usize = 6;
const DT_GNU_HASH: usize = 0x6fff_fef5;

/// A shared object that is mapped in this process and has been relocated by itself.
pub(crate) struct Object {
    base: usize,
    strings: *const u8,
    symbols: *const Symbol,
    hash: *const u32,
}

#[repr(C)]
struct Symbol {
    name: u32,
    info: u8,
    other: u8,
    section: u16,
    value: u64,
    size: u64,
}

#[repr(C)]
struct ProgramHeader {
    kind: u32,
    flags: u32,
    offset: u64,
    address: u64,
    physical: u64,
    file_size: u64,
    memory_size: u64,
    align: u64,
}

/// Length in the file of the first segment of the ELF object mapped at `base`: text and read-only
/// data, from the file's first byte on.
///
/// # Safety
///
/// An ELF object is mapped at `base`.
pub(crate) unsafe fn first_segment(base: usize) -> usize {
    // SAFETY: the caller's promise.
    let headers = unsafe { program_headers(base) };
    headers
        .iter()
        .find(|header| header.kind == PT_LOAD)
        .map_or(0, |header| header.file_size as usize)
}

/// # Safety
///
/// An ELF object is mapped at `base`, its program headers in its first segment (elf(5)).
unsafe fn program_headers<'a>(base: usize) -> &'a [ProgramHeader] {
    // SAFETY: e_phoff and e_phnum of the ELF header, which is mapped and never written to.
    unsafe {
        let offset = ((base + 32) as *const u64).read() as usize;
        let count = ((base + 56) as *const u16).read();
        slice::from_raw_parts((base + offset) as *const ProgramHeader, usize::from(count))
    }
}

impl Object {
    /// # Safety
    ///
    /// A shared object is mapped at `base`.
    pub(crate) unsafe fn at(base: usize) -> Option<Self> {
        // SAFETY: the caller's promise.
        let headers = unsafe { program_headers(base) };
        let dynamic = headers.iter().find(|header| header.kind == PT_DYNAMIC)?;
        let mut entry = (base + dynamic.address as usize) as *const usize;
        let (mut strings, mut symbols, mut hash) = (0, 0, 0);
        loop {
            // SAFETY: the dynamic section ends with DT_NULL, where this stops.
            let (tag, value) = unsafe { (entry.read(), entry.add(1).read()) };
            match tag {
                0 => break,
                DT_STRTAB => strings = value,
                DT_SYMTAB => symbols = value,
                DT_GNU_HASH => hash = value,
                _ => {}
            }
            // SAFETY: not the last entry.
            entry = unsafe { entry.add(2) };
        }
        // glibc's loader has relocated its own section by then, others keep offsets.
        let absolute = |value: usize| if value < base { base + value } else { value };
        (strings != 0 && symbols != 0 && hash != 0).then(|| Self {
            base,
            strings: absolute(strings) as *const u8,
            symbols: absolute(symbols) as *const Symbol,
            hash: absolute(hash) as *const u32,
        })
    }

    /// Address of a symbol, by the object's GNU hash table.
    pub(crate) fn find(&self, name: &[u8]) -> Option<usize> {
        let wanted = name
            .iter()
            .fold(5381_u32, |hash, byte| hash.wrapping_mul(33).wrapping_add(u32::from(*byte)));
        // SAFETY: the layout of a DT_GNU_HASH section: four words, the bloom filter of 64-bit
        // words, the buckets, the chains; indices stay within what these words say.
        unsafe {
            let (buckets, first, filter) =
                (self.hash.read(), self.hash.add(1).read(), self.hash.add(2).read());
            let table = self.hash.add(4 + 2 * filter as usize);
            let chains = table.add(buckets as usize);
            let mut index = table.add((wanted % buckets) as usize).read();
            if index < first {
                return None;
            }
            loop {
                let hash = chains.add((index - first) as usize).read();
                let symbol = &*self.symbols.add(index as usize);
                if hash | 1 == wanted | 1 && self.is_named(symbol, name) {
                    return Some(self.base + symbol.value as usize);
                }
                if hash & 1 == 1 {
                    return None;
                }
                index += 1;
            }
        }
    }

    /// # Safety
    ///
    /// `symbol` is one of this object's.
    unsafe fn is_named(&self, symbol: &Symbol, name: &[u8]) -> bool {
        // SAFETY: a symbol's name is a NUL-terminated string of the string table; the comparison
        // stops at the first difference, its NUL at the latest.
        unsafe {
            let found = self.strings.add(symbol.name as usize);
            for (place, byte) in name.iter().enumerate() {
                if found.add(place).read() != *byte {
                    return false;
                }
            }
            found.add(name.len()).read() == 0
        }
    }
}
