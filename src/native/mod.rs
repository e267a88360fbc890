//! The native restore: from the frozen process to a plan, and from a plan to the interpreter that
//! the restorer turns into the frozen one.

pub mod builder;
mod encode;
mod error;
pub mod exec;
pub mod frame;
pub mod layout;
pub mod view;
pub mod xsave;

pub use error::NativeError;
