//! What must not be left when a test is over.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long what is on its way out may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// The machine before a test.
pub(crate) struct Before {
    mounts: BTreeSet<String>,
    files: BTreeSet<PathBuf>,
}

impl Before {
    pub(crate) fn now() -> Self {
        Self { mounts: mounts(), files: files() }
    }

    /// What a test with that folder has left behind, in words.
    pub(crate) fn left(&self, folder: &Path) -> Vec<String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let last = Instant::now() > deadline;
            let left = self.look(folder, last);
            if left.is_empty() || last {
                return left;
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// What is there and was not; at the `last` look without the files that a test beside this one may
    /// be using.
    fn look(&self, folder: &Path, last: bool) -> Vec<String> {
        let processes = processes(folder).into_iter().map(describe);
        let mounts = mounts();
        let mounts = mounts.difference(&self.mounts).map(|mount| format!("a mount: {mount}"));
        let mut files: Vec<PathBuf> = files().difference(&self.files).cloned().collect();
        files.retain(|file| !(last && may_be_anothers(file, folder)));
        let temporary = entries(&folder.join("tmp"));
        let files = files.iter().chain(&temporary);
        let files = files.map(|file| format!("a file: {}", file.display()));
        processes.chain(mounts).chain(files).collect()
    }
}

/// Whether a process that does not come from this test, but from another one or from another run of
/// the tests, was there before the file and is there still.
fn may_be_anothers(file: &Path, folder: &Path) -> bool {
    const ANYTHING_OF_OURS: [&str; 4] = ["preloaded-criu", "criu", "python", "podman"];
    let Ok(made) = fs::symlink_metadata(file).and_then(|metadata| metadata.created()) else {
        return false;
    };
    entries(Path::new("/proc")).iter().any(|process| {
        let pid = process.file_name().and_then(|name| name.to_str()?.parse::<i32>().ok());
        let program = fs::read_link(process.join("exe")).unwrap_or_default();
        let program = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        pid.is_some_and(|pid| !comes_from(pid, folder))
            && ANYTHING_OF_OURS.iter().any(|name| program.starts_with(name))
            && started(process).is_some_and(|started| started <= made)
    })
}

/// When a process was started, to the second (proc(5), `starttime` of `/proc/PID/stat`; `btime`).
fn started(process: &Path) -> Option<SystemTime> {
    const TICKS: u64 = 100;
    const FIELD_AFTER_NAME: usize = 19;
    let stat = fs::read_to_string(process.join("stat")).ok()?;
    let ticks: u64 = stat.rsplit_once(") ")?.1.split(' ').nth(FIELD_AFTER_NAME)?.parse().ok()?;
    let machine = fs::read_to_string("/proc/stat").ok()?;
    let boot: u64 =
        machine.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    Some(SystemTime::UNIX_EPOCH + Duration::from_secs(boot + ticks / TICKS))
}

/// Ends whatever a test has left running.
pub(crate) fn end_processes(folder: &Path) {
    for pid in processes(folder) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

fn describe(pid: i32) -> String {
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let command = String::from_utf8_lossy(&command).replace('\0', " ");
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let state = status.lines().find(|line| line.starts_with("State")).unwrap_or_default();
    format!("process {pid} ({state}): {command}")
}

/// The processes that come from a test: its folder is in their environment, or is where they are, or
/// they have a file of it open.
fn processes(folder: &Path) -> Vec<i32> {
    let own = i32::try_from(std::process::id()).unwrap();
    let pids = entries(Path::new("/proc"))
        .into_iter()
        .filter_map(|entry| entry.file_name()?.to_str()?.parse::<i32>().ok());
    pids.filter(|pid| *pid != own && comes_from(*pid, folder)).collect()
}

fn comes_from(pid: i32, folder: &Path) -> bool {
    let process = PathBuf::from(format!("/proc/{pid}"));
    let mark = folder.as_os_str().as_encoded_bytes();
    let environment = fs::read(process.join("environ")).unwrap_or_default();
    if environment.windows(mark.len()).any(|window| window == mark) {
        return true;
    }
    let points_there =
        |link: &Path| fs::read_link(link).is_ok_and(|target| target.starts_with(folder));
    points_there(&process.join("cwd"))
        || entries(&process.join("fd")).iter().any(|link| points_there(link))
}

fn mounts() -> BTreeSet<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().map(str::to_owned).collect()
}

/// Files that we or Python could have left where programs leave such things. `criu.kdat` is CRIU's
/// own cache, which is meant to stay.
fn files() -> BTreeSet<PathBuf> {
    let of_ours = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        (name.contains("criu") && name != "criu.kdat") || name.contains("snap")
    };
    let mut files: BTreeSet<PathBuf> = entries(Path::new("/run")).into_iter().collect();
    files.retain(of_ours);
    files.extend(entries(Path::new("/dev/shm")));
    // What CRIU knows about the kernel is kept there for each user, until the machine starts anew.
    files.retain(|path| !is_cache(path));
    files
}

fn is_cache(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.strip_prefix("preloaded-criu-").is_some_and(|user| user.parse::<u32>().is_ok())
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}
