//! Which engine brings processes back: the tests of `run` are the same for both.

use std::env;
use std::sync::OnceLock;

/// Who brings a frozen process back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Engine {
    /// The caller's process becomes the frozen one.
    Native,
    /// CRIU restores it as a child.
    Criu,
}

impl Engine {
    /// The one that this run of the tests is about, by `PRELOADED_CRIU_TEST_ENGINE`.
    pub(crate) fn tested() -> Self {
        static TESTED: OnceLock<Engine> = OnceLock::new();
        *TESTED.get_or_init(|| match env::var("PRELOADED_CRIU_TEST_ENGINE").as_deref() {
            Ok("criu") => Self::Criu,
            Ok("native") | Err(env::VarError::NotPresent) => Self::Native,
            other => panic!("PRELOADED_CRIU_TEST_ENGINE is {other:?}"),
        })
    }

    /// The option of `preloaded-criu run`.
    pub(crate) fn option(self) -> [&'static str; 2] {
        match self {
            Self::Native => ["--engine", "native"],
            Self::Criu => ["--engine", "criu"],
        }
    }
}

/// Whether a test is about what only the native engine does. `difference` is the heading under which
/// docs/engines.md says so.
pub(crate) fn native_only(difference: &str) -> bool {
    static TOLD: &str = include_str!("../../../docs/engines.md");
    let heading = format!("## {difference}\n");
    assert!(TOLD.contains(&heading), "docs/engines.md has no {heading:?}");
    Engine::tested() == Engine::Criu
}
