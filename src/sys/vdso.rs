//! The vDSO: the code that the kernel maps into every process (vdso(7)).

use std::{fs, io, slice};

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

/// How many bytes of data and of code this process's vDSO has: `[vvar]`, which is in two parts since Linux
/// 6.13, and `[vdso]` of proc_pid_maps(5).
///
/// # Errors
///
/// The kernel's reason: no `/proc`, mostly.
pub fn vdso_lengths() -> io::Result<(u64, u64)> {
    let maps = fs::read("/proc/self/maps")?;
    let maps = String::from_utf8_lossy(&maps);
    let length = |name| maps.lines().filter_map(|line| mapped(line, name)).sum();
    Ok((length("[vvar"), length("[vdso]")))
}

/// The length of a mapping whose name begins so.
fn mapped(line: &str, name: &str) -> Option<u64> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    fields.nth(4)?.starts_with(name).then_some(())?;
    u64::from_str_radix(end, 16).ok()?.checked_sub(u64::from_str_radix(start, 16).ok()?)
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
    use super::{PAGE, elf_length, mapped, vdso, vdso_lengths};

    #[test]
    fn the_vdso_is_an_elf_file_with_the_clock_in_it() {
        let bytes = vdso().expect("this kernel has a vDSO");
        assert!(bytes.starts_with(b"\x7fELF"));
        assert!(bytes.windows(20).any(|name| name == b"__vdso_clock_gettime"));
    }

    #[test]
    fn its_code_is_as_long_as_the_kernel_says() {
        let (data, code) = vdso_lengths().unwrap();
        assert_eq!(code, vdso().unwrap().len().next_multiple_of(PAGE) as u64);
        assert!(data > 0 && data.is_multiple_of(PAGE as u64));
    }

    #[test]
    fn a_mapping_is_known_by_its_name() {
        let line =
            "7fab04dd7000-7fab04ddb000 r--p 00000000 00:00 0                          [vvar]";
        assert_eq!(mapped(line, "[vvar"), Some(0x4000));
        assert_eq!(mapped(line, "[vdso]"), None);
        for line in
            ["", " [vvar]", "1000 r--p 00000000 00:00 0 [vvar]", "2-1 r--p 0 00:00 0 [vvar]"]
        {
            assert_eq!(mapped(line, "[vvar"), None, "{line}");
        }
        // A file may be called so.
        let file = "1000-2000 r--p 00000000 fe:00 12                          /tmp/x [vdso]";
        assert_eq!(mapped(file, "[vdso]"), None);
    }

    #[test]
    fn what_is_no_elf_file_has_no_length() {
        assert_eq!(elf_length(&[0; 64]), None);
        assert_eq!(elf_length(b"\x7fELF"), None);
    }
}
