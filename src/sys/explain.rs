//! How an error tells its reader what to do.

/// An error that a user may see: its `Display` is one sentence of what failed, its sources say why,
/// and this says what to do about it.
pub trait Explain: std::error::Error {
    /// What to do, as one sentence; printed after `hint:`.
    fn hint(&self) -> String;
}

/// What to do where a process cannot be started.
pub const PROCESS_LIMITS: &str = "look at the limits on processes (ulimit -u; of a container: --pids-limit; \
                          sysctl kernel.pid_max) and on memory";
