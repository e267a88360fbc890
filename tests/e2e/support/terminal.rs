//! A terminal with a person at it.

use std::cell::Cell;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{self, Child, ExitStatus};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{PtyMaster, grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::rest::{asleep, foreground};
use super::run::{Command, lossy};

const PATIENCE: Duration = Duration::from_secs(30);
/// A byte that no program in a test writes.
const MARK: u8 = 0x1e;

/// The terminal. What the programs in it write is read all the time. Dropping it hangs it up, as
/// closing a window does.
pub(crate) struct Terminal {
    master: Arc<PtyMaster>,
    name: PathBuf,
    /// The programs' side, so that it is never closed for good while the master is read.
    side: Option<File>,
    screen: Arc<(Mutex<Vec<u8>>, Condvar)>,
    seen: usize,
    leader: Cell<u32>,
}

impl Terminal {
    /// Of 24 lines with 80 columns.
    pub(crate) fn open() -> Self {
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let master = posix_openpt(flags).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = PathBuf::from(ptsname_r(&master).unwrap());
        let mut terminal = Self {
            master: Arc::new(master),
            name,
            side: None,
            screen: Arc::default(),
            seen: 0,
            leader: Cell::new(0),
        };
        terminal.side = Some(terminal.side());
        terminal.set_lines(24);
        terminal.set_columns(80);
        terminal
    }

    /// The name of the programs' side.
    pub(crate) fn name(&self) -> &Path {
        &self.name
    }

    /// The programs' side.
    pub(crate) fn side(&self) -> File {
        OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOCTTY)
            .open(&self.name)
            .unwrap()
    }

    /// Starts a command as the leader of a session with this terminal.
    pub(crate) fn start(&self, command: &Command<'_>) -> Session {
        let mut command = command.prepare(&["setsid", "--ctty"]);
        let child = command
            .stdin(self.side())
            .stdout(self.side())
            .stderr(self.side())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        drop(command);
        self.leader.set(child.id());
        self.read();
        Session { child, ended: false }
    }

    fn read(&self) {
        // The master must close when the test lets go of it, even while the thread waits.
        let (master, screen) = (Arc::downgrade(&self.master), Arc::clone(&self.screen));
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Some(master) = master.upgrade() {
                let mut wanted = [PollFd::new(master.as_fd(), PollFlags::POLLIN)];
                if poll(&mut wanted, PollTimeout::from(20_u8)) == Ok(0) {
                    continue;
                }
                // Reading fails when the last program has closed its side.
                let Ok(count @ 1..) = (&*master).read(&mut buffer) else { break };
                let mut text = screen.0.lock().unwrap_or_else(PoisonError::into_inner);
                text.extend(&buffer[..count]);
                screen.1.notify_all();
            }
        });
    }

    /// Types, when the program in the foreground waits: a key that comes too early is another one.
    pub(crate) fn press(&self, keys: &str) {
        asleep(|| foreground(self.leader.get()));
        (&*self.master).write_all(keys.as_bytes()).unwrap();
    }

    /// Waits until this is written, after what was waited for before.
    #[track_caller]
    pub(crate) fn wait_for(&mut self, text: &str) {
        let guard = self.screen.0.lock().unwrap_or_else(PoisonError::into_inner);
        let find = |screen: &[u8]| {
            let rest = screen.get(self.seen..)?;
            rest.windows(text.len()).position(|window| window == text.as_bytes())
        };
        let (guard, _) = self
            .screen
            .1
            .wait_timeout_while(guard, PATIENCE, |screen| find(screen).is_none())
            .unwrap_or_else(PoisonError::into_inner);
        match find(&guard) {
            Some(at) => self.seen += at + text.len(),
            None => panic!("{text:?} did not come, but\n{}", lossy(&guard[self.seen..])),
        }
    }

    /// Everything that was written until now, when nothing more comes.
    pub(crate) fn transcript(&self) -> String {
        // What was written before it is on the screen when the mark is, however slow this machine is.
        self.side.as_ref().unwrap().write_all(&[MARK]).unwrap();
        let guard = self.screen.0.lock().unwrap_or_else(PoisonError::into_inner);
        let missing = |screen: &mut Vec<u8>| !screen.contains(&MARK);
        let waited = self.screen.1.wait_timeout_while(guard, PATIENCE, missing);
        let (mut guard, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        assert!(!waited.timed_out(), "the terminal takes nothing more");
        guard.retain(|byte| *byte != MARK);
        drop(guard);
        let screen = || lossy(&self.screen.0.lock().unwrap_or_else(PoisonError::into_inner));
        let mut transcript = screen();
        // It is read in another thread.
        loop {
            thread::sleep(Duration::from_millis(40));
            let more = screen();
            if more == transcript {
                return transcript;
            }
            transcript = more;
        }
    }

    /// Changes the window's size.
    pub(crate) fn set_lines(&self, lines: u32) {
        self.stty(&["rows", &lines.to_string()]);
    }

    /// Changes the window's size.
    pub(crate) fn set_columns(&self, columns: u32) {
        self.stty(&["columns", &columns.to_string()]);
    }

    /// The terminal's modes.
    pub(crate) fn modes(&self) -> String {
        self.stty(&["-g"])
    }

    fn stty(&self, arguments: &[&str]) -> String {
        let output =
            process::Command::new("stty").args(arguments).stdin(self.side()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        lossy(&output.stdout)
    }
}

/// A command in a terminal.
pub(crate) struct Session {
    child: Child,
    ended: bool,
}

impl Session {
    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for its end.
    pub(crate) fn finish(mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().unwrap() {
                self.ended = true;
                return status;
            }
            thread::sleep(Duration::from_millis(2));
        }
        panic!("the program in the terminal does not end");
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if !self.ended {
            let _ = kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), Signal::SIGKILL);
            let _ = self.child.wait();
        }
    }
}
