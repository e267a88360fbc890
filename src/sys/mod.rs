//! The operating system behind small safe types: with the crates that run inside the interpreter,
//! the only place with `unsafe`.
#![allow(unsafe_code)]

mod explain;
mod vdso;

pub use explain::Explain;
pub use vdso::vdso;
