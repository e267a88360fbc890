//! The native restore: the caller's own process becomes the frozen one.

pub mod frame;
pub mod xsave;
