//! The python that is to be frozen, from its start to the sync point.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::fstat;

use super::error::{Refusal, SnapshotError};
use super::progress::{self, Progress};
use super::refusal::Owners;
use crate::agent::{self, Job, Ready};
use crate::sys::interrupts::Interrupts;
use crate::sys::keeper::{Keeper, Started};
use crate::sys::procfs::ProcessDirectory;
use crate::sys::spawn::Spawn;

/// The numbers of our descriptors in python: the agent and its job, the report, the orders. They are
/// high, so that what the imports open has the numbers that it always has.
pub(super) const DESCRIPTORS: [i32; 3] = [200, 201, 202];
/// The descriptor that the frozen process waits at.
pub(super) const ORDERS: i32 = DESCRIPTORS[2];

/// How much of what python prints is kept for the case that it fails.
const KEPT: usize = 256 * 1024;
/// How long a python that has reported its end may take to end.
const FAREWELL: Duration = Duration::from_secs(3);
/// Between two looks at a python that is on its way to the sync point.
const GLANCE: u16 = 2;

/// The python, and everything that it says.
pub(super) struct Target<'a> {
    keeper: &'a mut Keeper,
    interrupts: &'a Interrupts,
    progress: &'a mut dyn Progress,
    pid: i32,
    directory: ProcessDirectory,
    /// Held open: the end of it is what the process waits for.
    _orders: PipeWriter,
    report: Option<PipeReader>,
    unread: Vec<u8>,
    output: Option<PipeReader>,
    printed: VecDeque<u8>,
    pipes: Vec<u32>,
    story: Story,
}

/// What the report has told.
#[derive(Default)]
struct Story {
    step: Option<String>,
    imported: Vec<(String, f64)>,
    owners: Owners,
    failed: Option<(String, String)>,
    refused: Vec<Refusal>,
    ready: Option<Box<Ready>>,
}

/// What a look at everything has brought.
#[derive(Default)]
struct Turn {
    /// How a program has ended.
    ended: Option<(i32, ExitStatus)>,
    /// Whether the other descriptor can be read.
    other: bool,
}

impl<'a> Target<'a> {
    /// Starts python; `spawn` has no descriptors yet.
    pub(super) fn start(
        keeper: &'a mut Keeper,
        interrupts: &'a Interrupts,
        progress: &'a mut dyn Progress,
        mut spawn: Spawn,
        job: &Job,
    ) -> Result<Self, SnapshotError> {
        let system = |source| SnapshotError::System { what: "make a pipe", source };
        let job = document(job)
            .map_err(|source| SnapshotError::System { what: "hand the agent over", source })?;
        let (report, report_end) = io::pipe().map_err(system)?;
        let (orders_end, orders) = io::pipe().map_err(system)?;
        let (output, output_end) = io::pipe().map_err(system)?;
        spawn.descriptors = [&[1, 2], &DESCRIPTORS[..]].concat();
        let descriptors = [
            output_end.as_fd(),
            output_end.as_fd(),
            job.as_fd(),
            report_end.as_fd(),
            orders_end.as_fd(),
        ];
        let pipes = [report.as_fd(), orders.as_fd(), output.as_fd()];
        let pipes = pipes.into_iter().filter_map(|pipe| Some(fstat(pipe).ok()?.st_ino as u32));
        let pipes = pipes.collect();
        let Started { pid, directory } = keeper.spawn(&spawn, &descriptors)?;
        Ok(Self {
            keeper,
            interrupts,
            progress,
            pid,
            directory,
            _orders: orders,
            report: Some(report),
            unread: Vec::new(),
            output: Some(output),
            printed: VecDeque::new(),
            pipes,
            story: Story::default(),
        })
    }

    /// Follows it until it waits to be frozen.
    pub(super) fn follow(&mut self) -> Result<Box<Ready>, SnapshotError> {
        let ready = self.until_ready()?;
        self.until_still()?;
        Ok(ready)
    }

    fn until_ready(&mut self) -> Result<Box<Ready>, SnapshotError> {
        let mut farewell = None;
        loop {
            if let Some(ready) = self.story.ready.take() {
                return Ok(ready);
            }
            let bad = self.story.failed.is_some() || !self.story.refused.is_empty();
            if bad && farewell.is_none() {
                farewell = Some(Instant::now() + FAREWELL);
            }
            let wait = match farewell {
                Some(end) if end <= Instant::now() => return Err(self.verdict(None)),
                Some(_) => PollTimeout::from(100_u8),
                None => PollTimeout::NONE,
            };
            let turn = self.turn(None, wait)?;
            if let Some((pid, status)) = turn.ended
                && pid == self.pid
            {
                return Err(self.verdict(Some(status)));
            }
        }
    }

    /// Why there is no process to freeze.
    fn verdict(&mut self, status: Option<ExitStatus>) -> SnapshotError {
        if let Err(error) = self.drain() {
            return error;
        }
        let output = self.printed();
        if let Some((what, traceback)) = self.story.failed.take() {
            return SnapshotError::Failed { what, traceback, output, withheld: Vec::new() };
        }
        if !self.story.refused.is_empty() {
            return SnapshotError::Refused(std::mem::take(&mut self.story.refused));
        }
        let step = self.story.step.take();
        SnapshotError::Ended { status: status.unwrap_or_default(), step, output }
    }

    /// Takes in what has been said and not been read.
    fn drain(&mut self) -> Result<(), SnapshotError> {
        loop {
            let ready = self.ready(None, PollTimeout::ZERO)?;
            let (report, output) =
                (ready.contains(&Source::Report), ready.contains(&Source::Output));
            if report {
                self.read_report()?;
            }
            if output {
                self.read_output();
            }
            if !report && !output {
                return Ok(());
            }
        }
    }

    /// After its last word it still tidies up; it is still when it is in the system call.
    fn until_still(&mut self) -> Result<(), SnapshotError> {
        let there = format!("{} {ORDERS:#x} ", libc::SYS_read);
        loop {
            match self.directory.text("syscall") {
                Ok(call) if call.starts_with(&there) => return self.drain(),
                Err(source) if source.kind() == io::ErrorKind::PermissionDenied => {
                    return Err(SnapshotError::System { what: "trace python", source });
                }
                // On its way, or about to be reported as ended.
                Ok(_) | Err(_) => {}
            }
            let turn = self.turn(None, PollTimeout::from(GLANCE))?;
            if let Some((pid, status)) = turn.ended
                && pid == self.pid
            {
                return Err(self.verdict(Some(status)));
            }
        }
    }

    /// Waits until `other`, which a program writes to, can be read, and until then does what there is
    /// to do. False where that program has ended before: what it leaves running may hold the other
    /// end. The status of a program that ends meanwhile is returned by the keeper when it is asked.
    pub(super) fn wait_for(
        &mut self,
        other: BorrowedFd<'_>,
        program: i32,
    ) -> Result<bool, SnapshotError> {
        let mut ended = false;
        loop {
            let patience = if ended { PollTimeout::ZERO } else { PollTimeout::NONE };
            let turn = self.turn(Some(other), patience)?;
            // Whoever waits for the process itself later must still learn of its end.
            if let Some((pid, status)) = turn.ended {
                self.keeper.remember(pid, status);
            }
            if turn.other || ended {
                return Ok(turn.other);
            }
            ended = turn.ended.is_some_and(|(pid, _)| pid == program);
        }
    }

    /// Waits for anything to happen, and takes it in.
    fn turn(
        &mut self,
        other: Option<BorrowedFd<'_>>,
        wait: PollTimeout,
    ) -> Result<Turn, SnapshotError> {
        let mut turn = Turn::default();
        for source in self.ready(other, wait)? {
            match source {
                Source::Interrupts => {
                    if let Some(signal) = self.interrupts.take() {
                        return Err(SnapshotError::Interrupted(signal));
                    }
                }
                Source::Keeper => {
                    let ended = self.keeper.next_ended()?;
                    turn.ended = Some((ended.pid, ended.status));
                }
                Source::Report => self.read_report()?,
                Source::Output => self.read_output(),
                Source::Other => turn.other = true,
            }
        }
        Ok(turn)
    }

    fn ready(
        &self,
        other: Option<BorrowedFd<'_>>,
        wait: PollTimeout,
    ) -> Result<Vec<Source>, SnapshotError> {
        let sources = [
            (Source::Interrupts, Some(self.interrupts.as_fd())),
            (Source::Keeper, Some(self.keeper.as_fd())),
            (Source::Report, self.report.as_ref().map(AsFd::as_fd)),
            (Source::Output, self.output.as_ref().map(AsFd::as_fd)),
            (Source::Other, other),
        ];
        let sources: Vec<_> =
            sources.into_iter().filter_map(|(source, fd)| Some((source, fd?))).collect();
        let mut polled: Vec<PollFd<'_>> =
            sources.iter().map(|(_, fd)| PollFd::new(*fd, PollFlags::POLLIN)).collect();
        match poll(&mut polled, wait) {
            Ok(_) => {}
            Err(Errno::EINTR) => return Ok(Vec::new()),
            Err(errno) => {
                let what = "wait for python";
                return Err(SnapshotError::System { what, source: errno.into() });
            }
        }
        let happened = |polled: &PollFd<'_>| polled.any().unwrap_or(true);
        let ready = sources.iter().zip(&polled).filter(|(_, polled)| happened(polled));
        Ok(ready.map(|((source, _), _)| *source).collect())
    }

    fn read_output(&mut self) {
        let mut chunk = vec![0; 64 * 1024];
        let count = self.output.as_mut().map_or(Ok(0), |pipe| pipe.read(&mut chunk));
        match count {
            Ok(count) if count > 0 => {
                self.progress.event(progress::Event::Output(&chunk[..count]));
                self.printed.extend(&chunk[..count]);
                let surplus = self.printed.len().saturating_sub(KEPT);
                self.printed.drain(..surplus);
            }
            _ => self.output = None,
        }
    }

    fn read_report(&mut self) -> Result<(), SnapshotError> {
        let mut chunk = vec![0; 64 * 1024];
        let count = self.report.as_mut().map_or(Ok(0), |pipe| pipe.read(&mut chunk));
        match count {
            Ok(0) => self.report = None,
            Ok(count) => self.unread.extend(&chunk[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // What python has to say is lost, and it may wait for an answer.
            Err(source) => {
                return Err(SnapshotError::System { what: "read python's report", source });
            }
        }
        while let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.unread.drain(..=end).collect();
            let event = serde_json::from_slice(&line).map_err(SnapshotError::Report)?;
            self.take_in(event);
        }
        Ok(())
    }

    fn take_in(&mut self, event: agent::Event) {
        let story = &mut self.story;
        match event {
            agent::Event::Importing { module } => {
                self.progress.event(progress::Event::Importing { module: &module });
                story.step = Some(format!("import {module}"));
            }
            agent::Event::Imported { module, seconds } => {
                self.progress.event(progress::Event::Imported { module: &module, seconds });
                story.owners.note(&self.directory, story.step.as_deref());
                story.imported.push((module, seconds));
            }
            agent::Event::Exec { path } => {
                story.owners.note(&self.directory, story.step.as_deref());
                self.progress.event(progress::Event::Executing { path: &path });
                story.step = Some(format!("exec {path}"));
            }
            agent::Event::Failed { what, traceback } => story.failed = Some((what, traceback)),
            agent::Event::Refused { what, owner } => {
                story.refused.push(Refusal { what, owner: Some(owner) });
            }
            agent::Event::Ready(ready) => {
                story.owners.tell(&ready.descriptors);
                story.owners.note(&self.directory, story.step.as_deref());
                story.ready = Some(ready);
            }
        }
    }

    fn printed(&mut self) -> String {
        String::from_utf8_lossy(self.printed.make_contiguous()).into_owned()
    }

    /// What `/proc` says of it.
    pub(super) fn directory(&self) -> &ProcessDirectory {
        &self.directory
    }

    /// Its number for CRIU.
    pub(super) fn pid(&self) -> i32 {
        self.pid
    }

    /// The keeper that has started it.
    pub(super) fn keeper(&mut self) -> &mut Keeper {
        self.keeper
    }

    /// The numbers of the pipes between it and us (`pipe:[NUMBER]`).
    pub(super) fn pipes(&self) -> Vec<u32> {
        self.pipes.clone()
    }

    /// Tells how far we are.
    pub(super) fn tell(&mut self, event: progress::Event<'_>) {
        self.progress.event(event);
    }

    /// After which step each descriptor was there.
    pub(super) fn owners(&self) -> &Owners {
        &self.story.owners
    }

    /// The modules that were imported by name, with the seconds that each took.
    pub(super) fn imported(&mut self) -> Vec<(String, f64)> {
        std::mem::take(&mut self.story.imported)
    }
}

impl Drop for Target<'_> {
    fn drop(&mut self) {
        // The keeper ends it; this is for the case that the keeper itself was killed. It may have
        // ended long ago.
        let _ = self.directory.kill();
    }
}

/// Where something can happen.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Source {
    Interrupts,
    Keeper,
    Report,
    Output,
    Other,
}

/// The document for the resident: the length of the agent's source in eight bytes, the source, the
/// job.
fn document(job: &Job) -> io::Result<File> {
    let mut file = File::from(memfd_create("agent", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(&(agent::SOURCE.len() as u64).to_le_bytes())?;
    file.write_all(agent::SOURCE.as_bytes())?;
    file.write_all(&serde_json::to_vec(job)?)?;
    Ok(file)
}
