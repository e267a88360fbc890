//! Heavy Python programs that start at once: CPython frozen by CRIU, thawed in the caller's own
//! process. ARCHITECTURE.md has the map of the house.

pub mod agent;
pub mod bench;
pub mod cli;
pub mod cpython;
pub mod criu;
pub mod doctor;
pub mod image;
pub mod native;
pub mod process;
pub mod run;
pub mod snapshot;
pub mod starter;
pub mod sys;
