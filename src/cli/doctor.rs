//! To come.

use super::args;
use super::report::Failure;

pub(super) fn doctor(_: &args::Doctor) -> Result<i32, Failure> {
    Ok(0)
}
