//! What can be seen from outside of a process that cannot be frozen, and who made it.
//!
//! The agent looks for the same from inside, and knows better whose it is; this finds what it does
//! not look for, and what a thread made after it had looked.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::Path;

use super::error::Refusal;
use super::recipe::Engines;
use crate::agent;
use crate::sys::procfs::{Opened, ProcessDirectory, own_seccomp_filters};

/// Devices that hold a part of the program: a GPU's memory, or a connection to it.
const GPUS: [(&str, &str); 3] = [
    ("/dev/nvidia", "an initialised CUDA device"),
    ("/dev/kfd", "an initialised GPU"),
    ("/dev/dri/", "an initialised GPU"),
];

/// The descriptors of a process, and after which step each was there.
#[derive(Debug, Default)]
pub(super) struct Owners(HashMap<(i32, OsString), Option<String>>);

impl Owners {
    /// Notes what is there and was not before. The process may be a bit further already: what it is
    /// told of at the end is "there since", not "made by".
    pub(super) fn note(&mut self, process: &ProcessDirectory, step: Option<&str>) {
        // It may be about to end, which is noticed elsewhere.
        for descriptor in process.descriptors().unwrap_or_default() {
            self.0.entry(descriptor).or_insert_with(|| step.map(ToOwned::to_owned));
        }
    }

    /// Takes over what the agent knows of its own process: it has looked after each step, and nothing
    /// went on while it did.
    pub(super) fn tell(&mut self, opened: &[agent::Opened]) {
        for one in opened {
            let Ok(descriptor) = i32::try_from(one.descriptor) else { continue };
            let target = OsString::from(&one.target);
            self.0.insert((descriptor, target), Some(one.owner.clone()));
        }
    }

    fn of(&self, descriptor: i32, target: &OsStr) -> Option<String> {
        self.0.get(&(descriptor, target.to_owned())).cloned().flatten()
    }
}

/// Everything about the process that cannot be frozen.
///
/// # Errors
///
/// The kernel's reason why the process cannot be looked at.
pub(super) fn find(
    process: &ProcessDirectory,
    smaps: &str,
    owners: &Owners,
    engines: Engines,
) -> io::Result<Vec<Refusal>> {
    let mut refusals = Vec::new();
    let both = engines == Engines::Both;
    for (descriptor, target, what) in of_process(process, both)? {
        refusals.push(Refusal { what, owner: owners.of(descriptor, &target) });
    }
    if is_filtered(process)? {
        let what = "a seccomp filter".to_owned();
        refusals.push(Refusal { what, owner: None });
    }
    if let Some(what) = mapped_gpu(smaps)
        && !refusals.iter().any(|refusal| refusal.what.contains(what))
    {
        refusals.push(Refusal { what: what.to_owned(), owner: None });
    }
    if both {
        for child in process.children()? {
            refusals.push(Refusal { what: format!("a child process ({child})"), owner: None });
        }
    } else {
        for (child, other) in process.descendants()? {
            // It may have ended since.
            for (_, _, what) in of_process(&other, both).unwrap_or_default() {
                let what = format!("{what} of its child process {child}");
                refusals.push(Refusal { what, owner: None });
            }
        }
    }
    Ok(refusals)
}

/// Whether a seccomp filter was installed there: the process has the ones of this process from the start.
fn is_filtered(process: &ProcessDirectory) -> io::Result<bool> {
    Ok(process.seccomp_filters()? > own_seccomp_filters()?)
}

/// What is wrong with the descriptors of a process: number, target, and what it is in words.
fn of_process(
    process: &ProcessDirectory,
    sockets: bool,
) -> io::Result<Vec<(i32, OsString, String)>> {
    let mut found = Vec::new();
    // Whether a nameless socket's other end is in the process too, the dump tells.
    let nameless = if sockets { Vec::new() } else { nameless(&process.text("net/unix")?) };
    for (descriptor, target) in process.descriptors()? {
        let opened = process.opened(descriptor)?;
        if nameless.iter().any(|socket| target == socket.as_str()) {
            continue;
        }
        if let Some(what) = judge(descriptor, &target, opened) {
            found.push((descriptor, target, what));
        }
    }
    Ok(found)
}

/// The unix sockets that have no name and are connected, as targets of descriptors
/// (proc_net(5), `/proc/net/unix`; `SS_CONNECTED` of the kernel's `net.h`).
fn nameless(unix: &str) -> Vec<String> {
    let lines = unix.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    lines
        .filter(|line| line.len() == 7 && line[5] == "03")
        .map(|line| format!("socket:[{}]", line[6]))
        .collect()
}

fn judge(descriptor: i32, target: &OsStr, opened: Opened) -> Option<String> {
    let path = Path::new(target);
    if begins(target, "socket:") {
        return Some(format!("an open socket (descriptor {descriptor})"));
    }
    if let Some((_, what)) = GPUS.iter().find(|(name, _)| begins(target, name)) {
        return Some(format!("{what} ({}, descriptor {descriptor})", path.display()));
    }
    if opened.locked {
        return Some(format!("a lock on {} (descriptor {descriptor})", path.display()));
    }
    // Devices with no memory, and what is no file at all (pipes, epoll), are judged by what restores
    // them.
    if opened.writable()
        && path.is_absolute()
        && !path.starts_with("/dev")
        && !begins(target, "/memfd:")
    {
        return Some(format!("{}, open for writing (descriptor {descriptor})", path.display()));
    }
    if opened.deleted && path.is_absolute() && !begins(target, "/memfd:") {
        let name = target.to_string_lossy();
        let name = name.strip_suffix(" (deleted)").unwrap_or(&name);
        return Some(format!("{name}, open though deleted (descriptor {descriptor})"));
    }
    None
}

fn begins(target: &OsStr, start: &str) -> bool {
    target.as_encoded_bytes().starts_with(start.as_bytes())
}

fn mapped_gpu(smaps: &str) -> Option<&'static str> {
    let found = |name: &str| {
        smaps.lines().any(|line| line.split_once(name).is_some_and(|(head, _)| head.ends_with(' ')))
    };
    GPUS.iter().find(|(name, _)| found(name)).map(|(_, what)| *what)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::{judge, mapped_gpu, nameless};
    use crate::sys::procfs::Opened;

    fn see(target: &str, flags: i32, locked: bool) -> Option<String> {
        judge(
            7,
            OsStr::new(target),
            Opened { flags, locked, deleted: target.ends_with(" (deleted)") },
        )
    }

    #[test]
    fn what_is_bound_to_the_machine_is_refused() {
        let (read, write) = (libc::O_RDONLY, libc::O_RDWR);
        assert_eq!(
            see("socket:[99]", write, false).as_deref(),
            Some("an open socket (descriptor 7)")
        );
        assert!(see("/dev/nvidia0", write, false).is_some_and(|what| what.contains("CUDA")));
        assert!(
            see("/var/log/x", write, false).is_some_and(|what| what.contains("open for writing"))
        );
        assert!(see("/var/log/x", read, true).is_some_and(|what| what.contains("a lock on")));
        assert_eq!(see("/var/log/x", read, false), None);
        assert_eq!(
            see("/tmp/x (deleted)", read, false).as_deref(),
            Some("/tmp/x, open though deleted (descriptor 7)")
        );
        assert_eq!(see("/memfd:x (deleted)", read, false), None);
        assert_eq!(see("/dev/null", write, false), None);
        assert_eq!(see("pipe:[3]", write, false), None);
    }

    #[test]
    fn nameless_sockets_are_told_from_those_that_others_reach() {
        let unix = "Num       RefCount Protocol Flags    Type St Inode Path\n\
                    0000000000000000: 00000002 00000000 00010000 0001 01 17 /run/x\n\
                    0000000000000000: 00000003 00000000 00000000 0001 03 18\n\
                    0000000000000000: 00000003 00000000 00000000 0001 03 19 /run/x\n\
                    0000000000000000: 00000002 00000000 00000000 0002 01 20\n";
        assert_eq!(nameless(unix), ["socket:[18]"]);
    }

    #[test]
    fn a_mapped_gpu_is_seen() {
        let smaps = "7f00-7f01 rw-s 00000000 00:06 431 /dev/nvidiactl\nRss: 4 kB\n";
        assert_eq!(mapped_gpu(smaps), Some("an initialised CUDA device"));
        assert_eq!(mapped_gpu("7f00-7f01 r--p 00000000 00:06 431 /home/dev/nvidia/lib.so\n"), None);
    }
}
