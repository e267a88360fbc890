//! CRIU, driven through its RPC (criu.org/RPC): which one to use, how it is asked, what its answers
//! and its log mean.

mod cache;
mod error;
mod find;
mod guard;
mod log;
mod request;
pub mod restore;
mod swrk;
mod version;

pub use cache::runtime_directory;
pub use error::{CriuError, Reason};
pub use find::{Criu, PREFIX_BINARY, can_check, check, find};
pub use log::Log;
pub use request::Dump;
pub use swrk::Worker;
pub use version::Version;
