//! The operating system behind small safe types: with the crates that run inside the interpreter,
//! the only place with `unsafe`.

mod explain;

pub use explain::Explain;
