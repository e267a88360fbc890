//! Open descriptors.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use super::directory::{Directory, FILES, REMAP_FPATH};
use super::error::{Inconsistency, ProcessError};
use super::messages::files::{
    Fd_types, Fdinfo_entry, File_entry, Inet_sk_entry, Pipe_entry, Reg_file_entry,
    Remap_file_path_entry, Unix_sk_entry,
};

/// An open descriptor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Its number.
    pub number: u32,
    /// Closed by exec.
    pub close_on_exec: bool,
    /// What it refers to.
    pub kind: DescriptorKind,
}

/// What a descriptor refers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DescriptorKind {
    /// Something with a path: a file, a directory, a device of memory's like `/dev/null`.
    File(OpenFile),
    /// One end of a pipe.
    Pipe {
        /// Its number, the same for both ends (`pipe:[NUMBER]`).
        number: u32,
    },
    /// An IP socket, with its local port (0 for none) and whether it listens.
    InternetSocket {
        /// Local port.
        port: u32,
        /// Waits for connections.
        listening: bool,
    },
    /// A unix socket.
    UnixSocket {
        /// The other one is in the dump, and neither has a name: socketpair(2).
        paired: bool,
    },
    /// An object that notifies of events, in words: eventfd(2), epoll(7), timerfd_create(2),
    /// signalfd(2).
    Events(&'static str),
    /// Anything else, in words.
    Other(&'static str),
}

/// An open file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenFile {
    /// Its path.
    pub path: PathBuf,
    /// `O_` flags.
    pub flags: u32,
    /// Current offset.
    pub position: u64,
    /// `st_mode`, where CRIU noted it.
    pub mode: Option<u32>,
    /// It has no name any more.
    pub deleted: bool,
}

/// Devices that are the same on every machine and keep nothing of who opens them or writes to them.
const COMMON_DEVICES: [&str; 5] =
    ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"];

/// Flags of open(2) with which nothing is written or made: `O_RDONLY`, `O_NOCTTY`, `O_APPEND`,
/// `O_NONBLOCK`, `O_SYNC`, `O_DIRECT`, `O_LARGEFILE`, `O_DIRECTORY`, `O_NOFOLLOW`, `O_NOATIME`, `O_CLOEXEC`.
const READING: u64 = 0o400
    | 0o2000
    | 0o4000
    | 0o401_0000
    | 0o4_0000
    | 0o10_0000
    | 0o20_0000
    | 0o40_0000
    | 0o100_0000
    | 0o200_0000;
/// `O_WRONLY`, `O_RDWR`.
const WRITING: u64 = 0o3;

/// Whether a path is that of a device that keeps nothing of who opens it or writes to it.
#[must_use]
pub fn is_common_device(path: &Path) -> bool {
    COMMON_DEVICES.iter().any(|device| path == Path::new(device))
}

/// Whether nothing can come of it that a file is opened with these flags of open(2).
#[must_use]
pub fn only_reads(path: &Path, flags: u64) -> bool {
    let allowed = if is_common_device(path) { READING | WRITING } else { READING };
    flags & !allowed == 0
}

/// `FD_CLOEXEC` of fcntl(2).
const FD_CLOEXEC: u32 = 1;
/// `TCP_LISTEN` of the kernel's `tcp_states.h`.
const TCP_LISTEN: u32 = 10;

/// What descriptors and mappings refer to by number.
pub(crate) struct FileTable {
    files: HashMap<u32, File_entry>,
    nameless: HashSet<u32>,
}

impl FileTable {
    pub(crate) fn load(directory: Directory<'_>) -> Result<Self, ProcessError> {
        let files = directory.any::<File_entry>("files.img", FILES)?;
        let nameless = directory.any::<Remap_file_path_entry>("remap-fpath.img", REMAP_FPATH)?;
        Ok(Self {
            files: files.into_iter().map(|file| (file.id(), file)).collect(),
            nameless: nameless.iter().map(Remap_file_path_entry::orig_id).collect(),
        })
    }

    /// The file with a path that has this number, if it is one.
    pub(crate) fn regular(&self, id: u32) -> Result<Option<OpenFile>, Inconsistency> {
        let file = self.files.get(&id).ok_or(Inconsistency::UnknownFile(id))?;
        Ok(file.reg.as_ref().map(|file| self.open_file(file)))
    }

    pub(crate) fn descriptor(&self, info: &Fdinfo_entry) -> Result<Descriptor, Inconsistency> {
        let file = self.files.get(&info.id()).ok_or(Inconsistency::UnknownFile(info.id()))?;
        let kind = match info.type_.map(|kind| kind.enum_value()) {
            Some(Ok(Fd_types::REG)) => match file.reg.as_ref() {
                Some(file) => DescriptorKind::File(self.open_file(file)),
                None => return Err(Inconsistency::Missing("the path of an open file")),
            },
            Some(Ok(Fd_types::INETSK)) => internet_socket(file.isk.as_ref()),
            Some(Ok(Fd_types::PIPE)) => {
                DescriptorKind::Pipe { number: file.pipe.as_ref().map_or(0, Pipe_entry::pipe_id) }
            }
            Some(Ok(Fd_types::UNIXSK)) => DescriptorKind::UnixSocket {
                paired: file.usk.as_ref().is_some_and(|socket| self.paired(socket)),
            },
            Some(Ok(kind)) => in_words(kind),
            _ => DescriptorKind::Other("an object of an unknown kind"),
        };
        let close_on_exec = info.flags() & FD_CLOEXEC != 0;
        Ok(Descriptor { number: info.fd(), close_on_exec, kind })
    }

    fn paired(&self, socket: &Unix_sk_entry) -> bool {
        let mut sockets = self.files.values().filter_map(|file| file.usk.as_ref());
        let other = sockets.find(|other| other.ino() == socket.peer());
        socket.name().is_empty()
            && socket.state() != TCP_LISTEN
            && other.is_some_and(|other| other.peer() == socket.ino() && other.name().is_empty())
    }

    fn open_file(&self, file: &Reg_file_entry) -> OpenFile {
        OpenFile {
            path: absolute(file.name()),
            flags: file.flags(),
            position: file.pos(),
            mode: file.mode,
            deleted: self.nameless.contains(&file.id()),
        }
    }
}

/// CRIU leaves the first slash out where it dumps from another mount namespace.
fn absolute(name: &[u8]) -> PathBuf {
    let name = name.strip_prefix(b".").filter(|rest| rest.starts_with(b"/")).unwrap_or(name);
    let mut path = if name.starts_with(b"/") { Vec::new() } else { b"/".to_vec() };
    path.extend_from_slice(name);
    PathBuf::from(OsString::from_vec(path))
}

fn internet_socket(socket: Option<&Inet_sk_entry>) -> DescriptorKind {
    DescriptorKind::InternetSocket {
        port: socket.map_or(0, Inet_sk_entry::src_port),
        listening: socket.is_some_and(|socket| socket.state() == TCP_LISTEN),
    }
}

fn in_words(kind: Fd_types) -> DescriptorKind {
    match kind {
        Fd_types::FIFO => DescriptorKind::Other("a named pipe"),
        Fd_types::EVENTFD => DescriptorKind::Events("an eventfd"),
        Fd_types::EVENTPOLL => DescriptorKind::Events("an epoll set"),
        Fd_types::INOTIFY => DescriptorKind::Other("an inotify watch"),
        Fd_types::FANOTIFY => DescriptorKind::Other("a fanotify watch"),
        Fd_types::SIGNALFD => DescriptorKind::Events("a signalfd"),
        Fd_types::TIMERFD => DescriptorKind::Events("a timerfd"),
        Fd_types::PIDFD => DescriptorKind::Other("a pidfd"),
        Fd_types::MEMFD => DescriptorKind::Other("a memfd"),
        Fd_types::PACKETSK => DescriptorKind::Other("a packet socket"),
        Fd_types::NETLINKSK => DescriptorKind::Other("a netlink socket"),
        Fd_types::TTY => DescriptorKind::Other("a terminal"),
        Fd_types::NS => DescriptorKind::Other("a namespace"),
        Fd_types::TUNF => DescriptorKind::Other("a network tunnel"),
        Fd_types::BPFMAP => DescriptorKind::Other("a BPF map"),
        Fd_types::EXT => DescriptorKind::Other("an external file"),
        Fd_types::REG | Fd_types::PIPE | Fd_types::UNIXSK | Fd_types::INETSK | Fd_types::UND => {
            DescriptorKind::Other("an object of an unknown kind")
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::absolute;

    #[test]
    fn paths_are_absolute_however_they_were_written() {
        for name in ["/lib/libc.so", "lib/libc.so", "./lib/libc.so"] {
            assert_eq!(absolute(name.as_bytes()), Path::new("/lib/libc.so"));
        }
        assert_eq!(absolute(b".hidden"), Path::new("/.hidden"));
        assert_eq!(absolute(b"/"), Path::new("/"));
    }
}
