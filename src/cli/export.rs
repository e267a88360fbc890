//! To come.

use super::args;
use super::report::Failure;

pub(super) fn export(_: &args::Export) -> Result<i32, Failure> {
    Ok(0)
}
