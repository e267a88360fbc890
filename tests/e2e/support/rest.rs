//! Whether a process waits: what a test does next must not come too early.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until a process sleeps, and goes on sleeping.
pub(super) fn asleep(process: impl Fn() -> Option<u32>) {
    let deadline = Instant::now() + PATIENCE;
    let mut last = None;
    let mut unchanged = 0;
    while unchanged < 4 && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(4));
        let now = process().and_then(done_so_far);
        unchanged = if now.is_some() && now == last { unchanged + 1 } else { 0 };
        last = now;
    }
}

/// The process in the foreground of the terminal of a session's leader.
pub(super) fn foreground(leader: u32) -> Option<u32> {
    stat(leader)?.get(5)?.parse().ok()
}

/// What the main thread and those of its child processes have done, if it sleeps and they rest: a script
/// may be a child of its launcher.
fn done_so_far(pid: u32) -> Option<String> {
    let own = done_alone(pid, &["S"])?;
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    let numbers = children.split_whitespace().filter_map(|number| number.parse().ok());
    let theirs = numbers.map(|child| done_alone(child, &["S", "T", "Z"]));
    Some(theirs.collect::<Option<Vec<_>>>()?.join(" ") + &own)
}

/// What the main thread has done, if it is in one of these states.
fn done_alone(pid: u32, allowed: &[&str]) -> Option<String> {
    let stat = stat(pid)?;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let switches = status.split_once("voluntary_ctxt_switches").map(|(_, switches)| switches);
    // Its state, and the time that it has used.
    let [state, used, system] = [0, 11, 12].map(|field| stat.get(field));
    allowed.contains(&state?.as_str()).then(|| format!("{pid} {used:?} {system:?} {switches:?}"))
}

/// The fields after the name (proc(5)).
fn stat(pid: u32) -> Option<Vec<String>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(stat.rsplit_once(')')?.1.split_whitespace().map(str::to_owned).collect())
}
