//! The C library's locales, without a change of the process's own.

use std::ffi::{CStr, CString};

/// The character encoding of a locale, as `nl_langinfo(CODESET)` would name it were `LC_CTYPE` set to
/// it (newlocale(3), nl_langinfo(3)). `None` where there is no such locale.
#[must_use]
pub fn codeset(name: &[u8]) -> Option<String> {
    let name = CString::new(name).ok()?;
    // SAFETY: a NUL-terminated name, and no locale to be modified.
    let locale =
        unsafe { libc::newlocale(libc::LC_CTYPE_MASK, name.as_ptr(), std::ptr::null_mut()) };
    if locale.is_null() {
        return None;
    }
    // SAFETY: the locale was made above; the string is copied before the locale is freed.
    unsafe {
        let text = libc::nl_langinfo_l(libc::CODESET, locale);
        let text = CStr::from_ptr(text).to_string_lossy().into_owned();
        libc::freelocale(locale);
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::codeset;

    #[test]
    fn locales_have_encodings() {
        assert_eq!(codeset(b"C.UTF-8").as_deref(), Some("UTF-8"));
        assert_eq!(codeset(b"no_SUCH.locale"), None);
        assert_eq!(codeset(b"with\0nul"), None);
    }
}
