//! The vDSO: the code that the kernel maps into every process (vdso(7)).

use std::slice;

/// One page: what the kernel maps at least.
const PAGE: usize = 4096;

/// Sizes of an ELF-64 header and of one entry of its program header table (elf(5)).
const ELF_HEADER: usize = 64;

/// The bytes of this process's vDSO, `None` where the kernel gave it none (`vdso=0`).
///
/// Every process of one kernel and one machine is given the same bytes.
#[must_use]
pub fn vdso() -> Option<&'static [u8]> {
    // SAFETY: getauxval only reads the auxiliary vector.
    let address = unsafe { libc::getauxval(libc::AT_SYSINFO_EHDR) } as usize;
    if address == 0 {
        return None;
    }
    // SAFETY: AT_SYSINFO_EHDR is where the kernel mapped the vDSO, which is at least one page,
    // readable, never written to and never unmapped by this program.
    let header = unsafe { slice::from_raw_parts(address as *const u8, PAGE) };
    let length = elf_length(header)?;
    // SAFETY: as above; the kernel maps the whole file, whose own header says that it goes so far.
    Some(unsafe { slice::from_raw_parts(address as *const u8, length) })
}

/// How long the ELF file is that starts so: the end of its section header table, which linkers put
/// last.
fn elf_length(header: &[u8]) -> Option<usize> {
    if header.len() < ELF_HEADER || header.get(..4) != Some(b"\x7fELF") {
        return None;
    }
    let table = u64::from_le_bytes(header.get(40..48)?.try_into().ok()?);
    let entry = u16::from_le_bytes(header.get(58..60)?.try_into().ok()?);
    let count = u16::from_le_bytes(header.get(60..62)?.try_into().ok()?);
    let end = usize::try_from(table).ok()?.checked_add(usize::from(entry) * usize::from(count))?;
    (end >= ELF_HEADER).then_some(end)
}

#[cfg(test)]
mod tests {
    use super::{elf_length, vdso};

    #[test]
    fn the_vdso_is_an_elf_file_with_the_clock_in_it() {
        let bytes = vdso().expect("this kernel has a vDSO");
        assert!(bytes.starts_with(b"\x7fELF"));
        assert!(bytes.windows(20).any(|name| name == b"__vdso_clock_gettime"));
    }

    #[test]
    fn what_is_no_elf_file_has_no_length() {
        assert_eq!(elf_length(&[0; 64]), None);
        assert_eq!(elf_length(b"\x7fELF"), None);
    }
}
