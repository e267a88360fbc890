//! To come.

/// To come.
#[must_use]
pub fn main() -> i32 {
    125
}
