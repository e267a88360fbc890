//! The program's entry point, without the standard library's own.
//!
//! Rust's runtime opens `/dev/null` for each closed standard descriptor and ignores SIGPIPE before
//! `main` (library/std/src/sys/pal/unix/mod.rs, `init`). Both are inherited by the program that we
//! become, which must find its descriptors and signals as the caller left them.

/// Defines C's `main` as a call of the given `fn() -> i32`; its result is the exit status.
#[macro_export]
macro_rules! entry {
    ($main:path) => {
        /// C's `main`; the arguments reach `std::env::args_os` by glibc's constructor arguments.
        #[allow(unsafe_code, reason = "the symbol is the C library's contract")]
        #[unsafe(no_mangle)]
        pub extern "C" fn main(
            _: std::ffi::c_int,
            _: *const *const std::ffi::c_char,
        ) -> std::ffi::c_int {
            let main: fn() -> i32 = $main;
            main()
        }
    };
}
