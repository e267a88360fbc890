//! What `/proc` says of another process (proc(5)).

use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::signal::Signal;
use nix::sys::stat::{Mode, fstatat};
use nix::unistd::Pid;

use super::spawn::signal_process;

/// A process by its directory in `/proc`, held open: no other process can take its place here, and
/// it can be passed to where the process has another number.
#[derive(Debug)]
pub struct ProcessDirectory(OwnedFd);

impl ProcessDirectory {
    /// Opens the directory of a process that has this number here.
    ///
    /// # Errors
    ///
    /// The kernel's reason; `ENOENT` where there is no such process.
    pub fn open(pid: Pid) -> io::Result<Self> {
        let path = format!("/proc/{pid}");
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(Self(nix::fcntl::open(path.as_str(), flags, Mode::empty())?))
    }

    pub(super) fn adopt(directory: OwnedFd) -> Self {
        Self(directory)
    }

    pub(super) fn into_descriptor(self) -> OwnedFd {
        self.0
    }

    /// A file of the directory.
    ///
    /// # Errors
    ///
    /// The kernel's reason; `ESRCH` or `ENOENT` where the process has ended.
    pub fn file(&self, name: &str) -> io::Result<File> {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        Ok(openat(&self.0, name, flags, Mode::empty())?.into())
    }

    /// The whole content of a file of the directory.
    ///
    /// # Errors
    ///
    /// As [`Self::file`].
    pub fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        self.file(name)?.read_to_end(&mut content)?;
        Ok(content)
    }

    /// Its content as text; what is no UTF-8 in it (names of files) is replaced.
    ///
    /// # Errors
    ///
    /// As [`Self::file`].
    pub fn text(&self, name: &str) -> io::Result<String> {
        Ok(String::from_utf8_lossy(&self.read(name)?).into_owned())
    }

    /// Reads the process's memory.
    ///
    /// # Errors
    ///
    /// The kernel's reason: the address is not mapped, or the process is not ours to read.
    pub fn memory(&self, address: u64, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.file("mem")?.read_exact_at(&mut bytes, address)?;
        Ok(bytes)
    }

    /// The open descriptors, each with what it is (`socket:[1]`, a path).
    ///
    /// # Errors
    ///
    /// As [`Self::file`].
    pub fn descriptors(&self) -> io::Result<Vec<(i32, OsString)>> {
        let numbers = self.names("fd")?;
        let mut descriptors = Vec::with_capacity(numbers.len());
        for number in numbers.iter().filter_map(|name| name.to_str().ok()?.parse::<i32>().ok()) {
            match readlinkat(&self.0, format!("fd/{number}").as_str()) {
                Ok(target) => descriptors.push((number, target)),
                // Closed since the directory was read.
                Err(Errno::ENOENT) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        descriptors.sort_by_key(|(number, _)| *number);
        Ok(descriptors)
    }

    /// What there is to know of a descriptor but its target.
    ///
    /// # Errors
    ///
    /// As [`Self::file`].
    pub fn opened(&self, descriptor: i32) -> io::Result<Opened> {
        let file = fstatat(&self.0, format!("fd/{descriptor}").as_str(), AtFlags::empty());
        Ok(Opened {
            deleted: file.is_ok_and(|file| file.st_nlink == 0),
            ..Opened::parse(&self.text(&format!("fdinfo/{descriptor}"))?)
        })
    }

    /// The processes that it has started and that are there still, by their numbers in the process
    /// namespace that this `/proc` shows.
    ///
    /// # Errors
    ///
    /// As [`Self::file`]; `ENOENT` where the kernel does not tell (`CONFIG_PROC_CHILDREN`).
    pub fn children(&self) -> io::Result<Vec<i32>> {
        let mut children = Vec::new();
        for task in self.names("task")? {
            let name = format!("task/{}/children", task.to_string_lossy());
            let text = self.text(&name)?;
            children.extend(text.split_whitespace().filter_map(|pid| pid.parse::<i32>().ok()));
        }
        Ok(children)
    }

    /// The processes that it has started, and those that these have started, each with its number in
    /// its own process namespace. One that ends meanwhile may be left out.
    ///
    /// # Errors
    ///
    /// As [`Self::children`].
    pub fn descendants(&self) -> io::Result<Vec<(u32, Self)>> {
        let mut found = Vec::new();
        for pid in self.children()? {
            // The number is one of the namespace that this /proc shows, which need not be ours.
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            let child = openat(&self.0, format!("../{pid}").as_str(), flags, Mode::empty());
            let Ok(child) = child.map(Self) else { continue };
            let further = child.descendants();
            let own = child.text("status").ok();
            // proc_pid_status(5): from the reader's namespace to the process's own.
            let own = own.as_deref().and_then(|status| {
                let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
                numbers?.split_whitespace().last()?.parse().ok()
            });
            found.extend(own.map(|number| (number, child)));
            found.extend(further.into_iter().flatten());
        }
        Ok(found)
    }

    /// How many seccomp filters judge what a thread of it does, at most.
    ///
    /// # Errors
    ///
    /// As [`Self::file`].
    pub fn seccomp_filters(&self) -> io::Result<u32> {
        let mut most = 0;
        for task in self.names("task")? {
            let name = format!("task/{}/status", task.to_string_lossy());
            // A thread may end meanwhile.
            most = most.max(self.text(&name).as_deref().map_or(0, seccomp_filters));
        }
        Ok(most)
    }

    /// Ends the process at once.
    ///
    /// # Errors
    ///
    /// `ESRCH` where it has ended.
    pub fn kill(&self) -> io::Result<()> {
        signal_process(&self.0, Signal::SIGKILL)
    }

    fn names(&self, folder: &str) -> io::Result<Vec<CString>> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let mut folder = Dir::openat(&self.0, folder, flags, Mode::empty())?;
        let mut names = Vec::new();
        for entry in folder.iter() {
            let name = entry?.file_name().to_owned();
            if name.as_c_str() != c"." && name.as_c_str() != c".." {
                names.push(name);
            }
        }
        Ok(names)
    }
}

/// How many seccomp filters judge what this process does: those that it was started with.
///
/// # Errors
///
/// The kernel's reason; `/proc` is needed.
pub fn own_seccomp_filters() -> io::Result<u32> {
    Ok(seccomp_filters(&std::fs::read_to_string("/proc/self/status")?))
}

/// Of `/proc/PID/status` (proc_pid_status(5)): the number of filters, which Linux tells since 5.9, else
/// whether there are any.
fn seccomp_filters(status: &str) -> u32 {
    let field = |name: &str| -> Option<u32> {
        status.lines().find_map(|line| line.strip_prefix(name))?.trim().parse().ok()
    };
    field("Seccomp_filters:").or_else(|| field("Seccomp:")).unwrap_or(0)
}

/// What `/proc` says of an open descriptor.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Opened {
    /// The flags of open(2).
    pub flags: i32,
    /// Whether the process holds a lock through it.
    pub locked: bool,
    /// Whether its file has no name any more.
    pub deleted: bool,
}

impl Opened {
    fn parse(text: &str) -> Self {
        let flags = text.lines().find_map(|line| line.strip_prefix("flags:"));
        let flags = flags.and_then(|flags| i32::from_str_radix(flags.trim(), 8).ok());
        let locked = text.lines().any(|line| line.starts_with("lock:"));
        Self { flags: flags.unwrap_or(0), locked, deleted: false }
    }

    /// Whether it can be written to.
    #[must_use]
    pub fn writable(self) -> bool {
        self.flags & libc::O_ACCMODE != libc::O_RDONLY
    }
}

#[cfg(test)]
mod tests {
    use nix::unistd::Pid;

    use super::{Opened, ProcessDirectory};

    #[test]
    fn fdinfo_tells_the_flags_and_locks() {
        let text = "pos:\t0\nflags:\t02100002\nmnt_id:\t29\nino:\t7\nlock:\t1: FLOCK  ADVISORY  WRITE 9 00:01:7 0 EOF\n";
        assert_eq!(
            Opened::parse(text),
            Opened { flags: 0o2_100_002, locked: true, deleted: false }
        );
        assert!(Opened::parse(text).writable());
        assert!(!Opened::parse("flags:\t0100000\n").writable());
    }

    #[test]
    fn status_tells_the_filters() {
        let status = "NoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t3\nSpeculation:\tx\n";
        assert_eq!(super::seccomp_filters(status), 3);
        assert_eq!(super::seccomp_filters("NoNewPrivs:\t1\nSeccomp:\t2\n"), 2);
        assert_eq!(super::seccomp_filters("Name:\tpython3\n"), 0);
    }

    #[test]
    fn this_process_can_be_read() {
        let me = ProcessDirectory::open(Pid::this()).expect("/proc has this process");
        let text = me.text("status").expect("status can be read");
        assert!(text.starts_with("Name:"));
        let word = 0x1122_3344_5566_7788_u64;
        let address = std::ptr::from_ref(&word) as u64;
        let bytes = me.memory(address, 8).expect("one's own memory can be read");
        assert_eq!(bytes, word.to_ne_bytes());
        assert!(me.descriptors().expect("descriptors").len() >= 3);
    }
}
