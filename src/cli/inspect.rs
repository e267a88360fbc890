//! To come.

use super::args;
use super::report::Failure;

pub(super) fn inspect(_: &args::Inspect) -> Result<i32, Failure> {
    Ok(0)
}
