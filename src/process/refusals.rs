//! What the native restore cannot bring back. Whatever is not understood is refused: a program that
//! misses something that it had is worse than none.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;

use super::smaps::VmFlags;
use super::vma::status;
use super::{
    Descriptor, DescriptorKind, OpenFile, Process, Thread, Vma, VmaKind, is_common_device,
};

/// One thing that the native restore cannot bring back. `Display` is a sentence without a full stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// [`Process::annotate`] was not called.
    NotLookedAt,
    /// There are other processes in the dump.
    Processes(Vec<u32>),
    /// The process is stopped.
    Stopped,
    /// Something that one thread has.
    Thread {
        /// The thread's number.
        tid: u32,
        /// The thread's name.
        name: String,
        /// What it has.
        what: ThreadRefusal,
    },
    /// Signals that were sent and not delivered.
    PendingSignals(usize),
    /// Timers that are running.
    Timers(usize),
    /// Asynchronous I/O contexts.
    AsynchronousIo(usize),
    /// A lock on a file, by descriptor.
    FileLock(i32),
    /// The process adopts orphans (`PR_SET_CHILD_SUBREAPER`).
    Subreaper,
    /// The process has registered with membarrier(2).
    Membarrier,
    /// A personality(2) other than the usual.
    Personality(u32),
    /// A mapping.
    Mapping {
        /// Its addresses.
        range: Range<u64>,
        /// The file, if one is mapped.
        path: Option<PathBuf>,
        /// What is wrong with it.
        what: MappingRefusal,
    },
    /// An open descriptor.
    Descriptor {
        /// Its number.
        number: u32,
        /// The file, if it is one.
        path: Option<PathBuf>,
        /// What it is, in words.
        what: String,
        /// CRIU makes another one like it, for its ends are all in the process.
        remade: bool,
    },
    /// Something of another process in the dump.
    Other {
        /// Its number.
        pid: u32,
        /// Its name.
        name: String,
        /// What it is.
        what: Box<Refusal>,
    },
}

/// What a thread may not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThreadRefusal {
    /// 32-bit code.
    Compat,
    /// A shadow stack.
    ShadowStack,
    /// A seccomp filter.
    Seccomp,
    /// Segments of its own.
    Segments,
    /// A wish to be told of its parent's death.
    ParentDeathSignal,
}

/// What a mapping may not be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MappingRefusal {
    /// A file that others see the changes of.
    SharedFile,
    /// Memory that is shared with children.
    SharedMemory,
    /// System V shared memory.
    SystemV,
    /// Memory that the kernel writes asynchronous results to.
    AsynchronousIo,
    /// A file without a name.
    Nameless,
    /// Huge pages of a pool.
    HugePages,
    /// Memory that must not be swapped out.
    Locked,
    /// Memory whose faults a program handles.
    Userfault,
    /// Memory of a device.
    Device,
    /// A shadow stack.
    ShadowStack,
    /// Not known.
    Unknown,
}

impl Refusal {
    /// Whether CRIU itself can restore it, so that what has it is an image for that engine only.
    #[must_use]
    pub fn restorable_by_criu(&self) -> bool {
        match self {
            Self::Processes(_)
            | Self::PendingSignals(_)
            | Self::Timers(_)
            | Self::Subreaper
            | Self::Membarrier => true,
            Self::Descriptor { remade, .. } => *remade,
            Self::Other { what, .. } => what.restorable_by_criu(),
            Self::NotLookedAt
            | Self::Stopped
            | Self::Thread { .. }
            | Self::AsynchronousIo(_)
            | Self::FileLock(_)
            | Self::Personality(_)
            | Self::Mapping { .. } => false,
        }
    }

    /// Whom it belongs to, as far as the dump tells: a file or a thread.
    #[must_use]
    pub fn owner(&self) -> Option<String> {
        match self {
            Self::Mapping { path: Some(path), .. } | Self::Descriptor { path: Some(path), .. } => {
                Some(path.display().to_string())
            }
            Self::Thread { tid, name, .. } => Some(format!("thread {name} ({tid})")),
            _ => None,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotLookedAt => write!(f, "the flags of its mappings are not known"),
            Self::Processes(pids) => write!(
                f,
                "it has {} running",
                count(pids.len(), "child process", "child processes")
            ),
            Self::Stopped => write!(f, "it is stopped by a signal"),
            Self::Thread { tid, name, what } => write!(f, "thread {name} ({tid}) {what}"),
            Self::PendingSignals(number) => {
                write!(f, "{} not yet delivered", count(*number, "signal is", "signals are"))
            }
            Self::Timers(number) => {
                write!(f, "{} running", count(*number, "timer is", "timers are"))
            }
            Self::AsynchronousIo(number) => {
                write!(f, "it has {} of asynchronous I/O", count(*number, "context", "contexts"))
            }
            Self::FileLock(number) => write!(f, "descriptor {number} holds a file lock"),
            Self::Subreaper => write!(f, "it has made itself the reaper of orphaned processes"),
            Self::Membarrier => write!(f, "it has registered with membarrier(2)"),
            Self::Personality(bits) => write!(f, "it has the unusual personality {bits:#x}"),
            Self::Mapping { range, path, what } => {
                write!(f, "the memory at {:#x}-{:#x} is {what}", range.start, range.end)?;
                path.as_ref().map_or(Ok(()), |path| write!(f, ": {}", path.display()))
            }
            Self::Descriptor { number, path, what, .. } => {
                write!(f, "descriptor {number} is {what}")?;
                path.as_ref().map_or(Ok(()), |path| write!(f, ": {}", path.display()))
            }
            Self::Other { pid, name, what } => {
                write!(f, "in its child process {name} ({pid}), {what}")
            }
        }
    }
}

impl fmt::Display for ThreadRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Compat => "runs 32-bit code",
            Self::ShadowStack => "has a shadow stack",
            Self::Seccomp => "is under a seccomp filter",
            Self::Segments => "uses segments of set_thread_area(2)",
            Self::ParentDeathSignal => "asked for a signal when its parent dies",
        })
    }
}

impl fmt::Display for MappingRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SharedFile => "a file that is shared for writing",
            Self::SharedMemory => "shared with other processes",
            Self::SystemV => "System V shared memory",
            Self::AsynchronousIo => "a ring of asynchronous I/O",
            Self::Nameless => "a file that has no name any more",
            Self::HugePages => "made of reserved huge pages",
            Self::Locked => "locked into memory",
            Self::Userfault => "watched by a userfaultfd",
            Self::Device => "memory of a device",
            Self::ShadowStack => "a shadow stack",
            Self::Unknown => "of a kind that is not known",
        })
    }
}

fn count(number: usize, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// `ADDR_NO_RANDOMIZE` of personality(2): where things are is no matter of taste in a restored process.
const NO_RANDOM_ADDRESSES: u32 = 0x004_0000;

impl Process {
    /// All that the native restore cannot bring back; nothing where it takes the process. `ours` are
    /// the descriptors that the snapshot gave to the process and takes care of itself.
    #[must_use]
    pub fn refusals(&self, ours: &[u32]) -> Vec<Refusal> {
        let mut refusals = self.of_process();
        refusals.extend(self.threads.iter().flat_map(of_thread));
        refusals.extend(self.vmas.iter().filter_map(of_mapping));
        let descriptors = self.descriptors.iter().filter(|one| !ours.contains(&one.number));
        refusals.extend(descriptors.filter_map(of_descriptor));
        refusals
    }

    /// What of this process keeps an image from being made of the one that has started it; `ours` are
    /// numbers of pipes of the snapshot's.
    #[must_use]
    pub fn refusals_as_other(&self, ours: &[u32]) -> Vec<Refusal> {
        let is_ours = |one: &&Descriptor| matches!(&one.kind, DescriptorKind::Pipe { number } if ours.contains(number));
        let own: Vec<u32> = self.descriptors.iter().filter(is_ours).map(|one| one.number).collect();
        let refusals = self.refusals(&own).into_iter().filter(|one| !one.restorable_by_criu());
        let name = String::from_utf8_lossy(&self.comm).into_owned();
        let named =
            |what| Refusal::Other { pid: self.pid, name: name.clone(), what: Box::new(what) };
        refusals.map(named).collect()
    }

    fn of_process(&self) -> Vec<Refusal> {
        let state = &self.state;
        let timers = state.interval_timers + state.posix_timers;
        let pending =
            state.pending + self.threads.iter().map(|thread| thread.pending).sum::<usize>();
        let compat = self.signals.iter().any(|action| action.compat);
        let checks = [
            (!self.annotated, Refusal::NotLookedAt),
            (!state.others.is_empty(), Refusal::Processes(state.others.clone())),
            (state.stopped, Refusal::Stopped),
            (pending != 0, Refusal::PendingSignals(pending)),
            (timers != 0, Refusal::Timers(timers)),
            (state.aio_rings != 0, Refusal::AsynchronousIo(state.aio_rings)),
            (state.subreaper, Refusal::Subreaper),
            (state.membarrier != 0, Refusal::Membarrier),
            (
                state.personality & !NO_RANDOM_ADDRESSES != 0,
                Refusal::Personality(state.personality),
            ),
        ];
        let locks = state.locks.iter().map(|number| Refusal::FileLock(*number));
        let main = self.threads.first().filter(|_| compat);
        let compat = main.map(|thread| refusal(thread, ThreadRefusal::Compat));
        let found = checks.into_iter().filter(|(wrong, _)| *wrong).map(|(_, refusal)| refusal);
        found.chain(locks).chain(compat).collect()
    }
}

fn of_thread(thread: &Thread) -> Vec<Refusal> {
    [
        (thread.compat, ThreadRefusal::Compat),
        (thread.shadow_stack, ThreadRefusal::ShadowStack),
        (thread.seccomp != 0, ThreadRefusal::Seccomp),
        (thread.segments, ThreadRefusal::Segments),
        (thread.parent_death_signal != 0, ThreadRefusal::ParentDeathSignal),
    ]
    .into_iter()
    .filter(|(wrong, _)| *wrong)
    .map(|(_, what)| refusal(thread, what))
    .collect()
}

fn refusal(thread: &Thread, what: ThreadRefusal) -> Refusal {
    let name = String::from_utf8_lossy(&thread.comm).into_owned();
    Refusal::Thread { tid: thread.tid, name, what }
}

fn of_mapping(vma: &Vma) -> Option<Refusal> {
    let path = match &vma.kind {
        VmaKind::File { path, .. } => Some(path.clone()),
        _ => None,
    };
    let what = mapping(vma)?;
    Some(Refusal::Mapping { range: vma.range.clone(), path, what })
}

fn mapping(vma: &Vma) -> Option<MappingRefusal> {
    let writable = vma.prot & libc::PROT_WRITE.cast_unsigned() != 0;
    match &vma.kind {
        VmaKind::Vdso | VmaKind::Vvar | VmaKind::Vsyscall => return None,
        VmaKind::SharedAnonymous { .. } => return Some(MappingRefusal::SharedMemory),
        VmaKind::Other(bits) => return Some(unusual(*bits)),
        VmaKind::File { nameless: true, .. } => return Some(MappingRefusal::Nameless),
        VmaKind::File { shared: true, writable: opened, .. } if writable || *opened => {
            return Some(MappingRefusal::SharedFile);
        }
        VmaKind::File { .. } | VmaKind::Anonymous => {}
    }
    [
        (VmFlags::HUGETLB, MappingRefusal::HugePages),
        (VmFlags::LOCKED, MappingRefusal::Locked),
        (VmFlags::USERFAULT, MappingRefusal::Userfault),
        (VmFlags::DEVICE, MappingRefusal::Device),
        (VmFlags::SHADOW_STACK, MappingRefusal::ShadowStack),
    ]
    .into_iter()
    .find(|(flag, _)| vma.special.intersects(*flag))
    .map(|(_, what)| what)
}

fn unusual(bits: u32) -> MappingRefusal {
    [
        (status::SYSVIPC, MappingRefusal::SystemV),
        (status::AIORING, MappingRefusal::AsynchronousIo),
        (status::SHADOW_STACK, MappingRefusal::ShadowStack),
        (status::PLUGIN, MappingRefusal::Device),
        (status::MEMFD | status::FILE_SHARED, MappingRefusal::SharedMemory),
        (status::MEMFD, MappingRefusal::Nameless),
    ]
    .into_iter()
    .find(|(bit, _)| bits & bit == *bit)
    .map_or(MappingRefusal::Unknown, |(_, what)| what)
}

fn of_descriptor(descriptor: &Descriptor) -> Option<Refusal> {
    let mut remade = false;
    let (path, what) = match &descriptor.kind {
        DescriptorKind::File(file) => (Some(file.path.clone()), open_file(file)?.to_owned()),
        DescriptorKind::Pipe { .. } => {
            remade = true;
            (None, "a pipe".to_owned())
        }
        DescriptorKind::UnixSocket { paired: true } => {
            remade = true;
            (None, "one of a pair of sockets".to_owned())
        }
        DescriptorKind::UnixSocket { paired: false } => (None, "a unix socket".to_owned()),
        DescriptorKind::InternetSocket { port, listening: true } => {
            (None, format!("a socket that listens on port {port}"))
        }
        DescriptorKind::InternetSocket { port: 0, .. } => (None, "a network socket".to_owned()),
        DescriptorKind::InternetSocket { port, .. } => {
            (None, format!("a network socket with local port {port}"))
        }
        DescriptorKind::Events(what) => {
            remade = true;
            (None, (*what).to_owned())
        }
        DescriptorKind::Other(what) => (None, (*what).to_owned()),
    };
    Some(Refusal::Descriptor { number: descriptor.number, path, what, remade })
}

/// What is wrong with an open file.
fn open_file(file: &OpenFile) -> Option<&'static str> {
    let flags = file.flags.cast_signed();
    let kind = file.mode.map(|mode| mode & libc::S_IFMT);
    if is_common_device(&file.path) {
        None
    } else if file.deleted {
        Some("a file that has no name any more")
    } else if flags & libc::O_PATH != 0 {
        Some("a mere reference to a file")
    } else if flags & libc::O_ACCMODE != libc::O_RDONLY {
        Some("a file that is open for writing")
    } else if kind.is_none_or(|kind| kind == libc::S_IFREG || kind == libc::S_IFDIR) {
        None
    } else {
        Some("a device or another special file")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::messages::files::{
        Fd_types, File_lock_entry, Inet_sk_entry, Remap_file_path_entry, Unix_sk_entry,
    };
    use crate::process::messages::pstree::Pstree_entry;
    use crate::process::messages::registers::{User_desc_t, User_x86_cet_entry};
    use crate::process::messages::task::{Posix_timer_entry, Siginfo_entry};
    use crate::process::testing::{Dump, EXE, PID, smaps};
    use protobuf::MessageField;

    const RW: i32 = libc::PROT_READ | libc::PROT_WRITE;

    /// The sentences of a process that was dumped with this change; `flags` is said of all mappings.
    fn sentences_with(flags: &str, change: impl FnOnce(&mut Dump)) -> Vec<String> {
        let mut dump = Dump::new();
        dump.anonymous(0x10_0000, 1);
        dump.vma(0x20_0000, 1, libc::PROT_READ, status::FILE_PRIVATE).set_shmid(u64::from(EXE));
        dump.vma(0x30_0000, 1, libc::PROT_READ, status::VVAR);
        dump.file(2, "/dev/null");
        dump.descriptor(0, 2, Fd_types::REG);
        change(&mut dump);
        let mut process = Process::load(dump.write().path()).expect("it loads");
        let list = smaps(&process, |vma| if vma.kind == VmaKind::Vvar { "io pf" } else { flags });
        process.annotate(&list).expect("it fits");
        process.refusals(&[200]).iter().map(ToString::to_string).collect()
    }

    fn sentences(change: impl FnOnce(&mut Dump)) -> Vec<String> {
        sentences_with("rd wr", change)
    }

    #[test]
    fn an_ordinary_process_is_taken() {
        let none: [String; 0] = [];
        assert_eq!(sentences(|_| {}), none);
        assert_eq!(
            sentences(|dump| {
                dump.file(3, "/etc/passwd").set_mode(libc::S_IFREG | 0o644);
                dump.descriptor(5, 3, Fd_types::REG);
                dump.object(200, 4, Fd_types::PIPE);
                dump.task().set_personality(NO_RANDOM_ADDRESSES);
                let cache = dump.vma(0x40_0000, 1, libc::PROT_READ, status::FILE_SHARED);
                cache.set_shmid(3);
                cache.set_fdflags(0);
            }),
            none
        );
        assert_eq!(sentences_with("rd wr dp wf dc nh", |_| {}), none);
    }

    #[test]
    fn a_process_that_was_not_looked_at_is_not_taken() {
        let process = Process::load(Dump::new().write().path()).expect("it loads");
        assert_eq!(process.refusals(&[]), [Refusal::NotLookedAt]);
    }

    type Case<'a> = (&'a dyn Fn(&mut Dump), &'a str);

    #[test]
    fn what_belongs_to_the_process_is_named() {
        let cases: [Case<'_>; 9] = [
            (
                &|dump| {
                    let mut child = Pstree_entry::new();
                    child.set_pid(PID + 7);
                    child.set_ppid(PID);
                    child.set_pgid(1);
                    child.set_sid(1);
                    dump.tree.push(child);
                },
                "it has 1 child process running",
            ),
            (&|dump| dump.task().set_task_state(3), "it is stopped by a signal"),
            (
                &|dump| {
                    dump.task()
                        .timers
                        .mut_or_insert_default()
                        .real
                        .mut_or_insert_default()
                        .set_vsec(1);
                },
                "1 timer is running",
            ),
            (
                &|dump| {
                    let mut timer = Posix_timer_entry::new();
                    timer.set_it_id(0);
                    timer.set_clock_id(0);
                    timer.set_si_signo(14);
                    dump.task().timers.mut_or_insert_default().posix = vec![timer.clone(), timer];
                },
                "2 timers are running",
            ),
            (
                &|dump| {
                    let mut signal = Siginfo_entry::new();
                    signal.set_siginfo(vec![0; 128]);
                    dump.task().signals_s.mut_or_insert_default().signals.push(signal);
                },
                "1 signal is not yet delivered",
            ),
            (
                &|dump| {
                    let mut lock = File_lock_entry::new();
                    lock.set_flag(1);
                    lock.set_type(1);
                    lock.set_pid(1);
                    lock.set_fd(9);
                    lock.set_start(0);
                    lock.set_len(0);
                    dump.locks.push(lock);
                },
                "descriptor 9 holds a file lock",
            ),
            (
                &|dump| dump.task().set_child_subreaper(true),
                "it has made itself the reaper of orphaned processes",
            ),
            (
                &|dump| dump.task().set_membarrier_registration_mask(8),
                "it has registered with membarrier(2)",
            ),
            (&|dump| dump.task().set_personality(8), "it has the unusual personality 0x8"),
        ];
        for (change, sentence) in cases {
            assert_eq!(sentences(change), [sentence]);
        }
    }

    #[test]
    fn what_belongs_to_a_thread_is_named() {
        let thread = |change: &dyn Fn(&mut crate::process::messages::task::Core_entry)| {
            sentences(|dump| change(dump.thread(PID + 1, 0x10_0800)))
        };
        let name = format!("thread worker ({}) ", PID + 1);
        assert_eq!(
            thread(&|core| core
                .thread_info
                .mut_or_insert_default()
                .gpregs
                .mut_or_insert_default()
                .set_mode(2)),
            [name.clone() + "runs 32-bit code"]
        );
        assert_eq!(
            thread(&|core| core.thread_core.mut_or_insert_default().set_seccomp_mode(2)),
            [name.clone() + "is under a seccomp filter"]
        );
        assert_eq!(
            thread(&|core| core.thread_core.mut_or_insert_default().set_pdeath_sig(9)),
            [name.clone() + "asked for a signal when its parent dies"]
        );
        assert_eq!(
            thread(&|core| {
                let mut shadow = User_x86_cet_entry::new();
                shadow.set_cet(1);
                shadow.set_ssp(0x1000);
                let floating =
                    core.thread_info.mut_or_insert_default().fpregs.mut_or_insert_default();
                floating.xsave.mut_or_insert_default().cet = MessageField::some(shadow);
            }),
            [name.clone() + "has a shadow stack"]
        );
        assert_eq!(
            thread(&|core| {
                let mut segment = User_desc_t::new();
                segment.set_entry_number(12);
                segment.set_base_addr(0);
                segment.set_limit(0);
                segment.set_seg_32bit(true);
                segment.set_contents_h(false);
                segment.set_contents_l(false);
                segment.set_read_exec_only(false);
                segment.set_limit_in_pages(false);
                segment.set_seg_not_present(false);
                segment.set_usable(true);
                core.thread_info.mut_or_insert_default().tls = vec![segment];
            }),
            [name + "uses segments of set_thread_area(2)"]
        );
    }

    #[test]
    fn mappings_that_are_more_than_memory_are_named() {
        let at = "the memory at 0x400000-0x401000 is ";
        let mapping = |prot: i32, kind: u32, opened: u32| {
            sentences(|dump| {
                let vma = dump.vma(0x40_0000, 1, prot, kind);
                vma.set_shmid(u64::from(EXE));
                vma.set_fdflags(opened);
            })
        };
        let shared = format!("{at}a file that is shared for writing: /bin/program");
        assert_eq!(mapping(RW, status::FILE_SHARED, 2), std::slice::from_ref(&shared));
        assert_eq!(mapping(libc::PROT_READ, status::FILE_SHARED, 2), [shared]);
        assert_eq!(
            mapping(RW, status::ANON_SHARED, 2),
            [format!("{at}shared with other processes")]
        );
        assert_eq!(
            mapping(RW, status::ANON_SHARED | status::SYSVIPC, 2),
            [format!("{at}System V shared memory")]
        );
        assert_eq!(mapping(RW, status::AIORING, 2), [format!("{at}a ring of asynchronous I/O")]);
        assert_eq!(
            mapping(RW, status::SHADOW_STACK | status::ANON_PRIVATE, 2),
            [format!("{at}a shadow stack")]
        );
        assert_eq!(mapping(RW, 1 << 17, 2), [format!("{at}of a kind that is not known")]);
        assert_eq!(
            mapping(RW, status::FILE_PRIVATE | status::MEMFD, 2),
            [format!("{at}a file that has no name any more: /bin/program")]
        );
        for (flag, what) in [
            ("lo", "locked into memory"),
            ("ht", "made of reserved huge pages"),
            ("um", "watched by a userfaultfd"),
            ("pf", "memory of a device"),
            ("ss", "a shadow stack"),
        ] {
            let found = sentences_with(flag, |_| {});
            assert_eq!(found.len(), 2, "{found:?}");
            assert!(found[0].ends_with(what), "{found:?}");
        }
    }

    #[test]
    fn descriptors_that_somebody_else_opened_are_named() {
        let file = |path: &str, flags: i32, mode: u32| {
            sentences(|dump| {
                let file = dump.file(3, path);
                file.set_flags(flags.cast_unsigned());
                file.set_mode(mode);
                dump.descriptor(5, 3, Fd_types::REG);
            })
        };
        let log = ["descriptor 5 is a file that is open for writing: /var/log/x"];
        assert_eq!(file("/var/log/x", libc::O_WRONLY, libc::S_IFREG), log);
        assert_eq!(file("/var/log/x", libc::O_RDWR, libc::S_IFREG), log);
        let device = ["descriptor 5 is a device or another special file: /dev/nvidia0"];
        assert_eq!(file("/dev/nvidia0", libc::O_RDONLY, libc::S_IFCHR), device);
        let reference = ["descriptor 5 is a mere reference to a file: /etc"];
        assert_eq!(file("/etc", libc::O_PATH, libc::S_IFDIR), reference);
        let object = |kind: Fd_types| sentences(|dump| dump.object(5, 3, kind));
        assert_eq!(object(Fd_types::PIPE), ["descriptor 5 is a pipe"]);
        assert_eq!(object(Fd_types::UNIXSK), ["descriptor 5 is a unix socket"]);
        assert_eq!(object(Fd_types::EVENTPOLL), ["descriptor 5 is an epoll set"]);
        assert_eq!(object(Fd_types::INETSK), ["descriptor 5 is a network socket"]);
        let listening = sentences(|dump| {
            dump.object(5, 3, Fd_types::INETSK);
            let mut socket = Inet_sk_entry::new();
            for set in [
                Inet_sk_entry::set_id,
                Inet_sk_entry::set_ino,
                Inet_sk_entry::set_family,
                Inet_sk_entry::set_type,
                Inet_sk_entry::set_proto,
                Inet_sk_entry::set_dst_port,
            ] {
                set(&mut socket, 0);
            }
            socket.set_state(10);
            socket.set_src_port(8080);
            dump.files.last_mut().expect("it was just pushed").isk = MessageField::some(socket);
        });
        assert_eq!(listening, ["descriptor 5 is a socket that listens on port 8080"]);
    }

    #[test]
    fn what_criu_restores_is_told_from_what_nobody_does() {
        let all = |change: &dyn Fn(&mut Dump)| {
            let mut dump = Dump::new();
            change(&mut dump);
            let mut process = Process::load(dump.write().path()).expect("it loads");
            process.annotated = true;
            let refusals = process.refusals(&[]);
            assert_eq!(refusals.len(), 1, "{refusals:?}");
            refusals[0].restorable_by_criu()
        };
        for kind in [Fd_types::PIPE, Fd_types::EVENTFD, Fd_types::EVENTPOLL, Fd_types::TIMERFD] {
            assert!(all(&|dump| dump.object(5, 3, kind)));
        }
        for kind in [Fd_types::UNIXSK, Fd_types::INETSK, Fd_types::INOTIFY, Fd_types::TTY] {
            assert!(!all(&|dump| dump.object(5, 3, kind)));
        }
        assert!(all(&|dump| dump.task().set_child_subreaper(true)));
        assert!(!all(&|dump| dump.task().set_task_state(3)));
    }

    #[test]
    fn a_pair_of_sockets_is_told_from_one_that_others_reach() {
        let pair = |peer: u32, name: &[u8]| {
            let mut dump = Dump::new();
            for (number, id, ino, peer) in [(5, 3, 11, peer), (6, 4, 12, 11)] {
                dump.object(number, id, Fd_types::UNIXSK);
                let mut socket = Unix_sk_entry::new();
                for set in [
                    Unix_sk_entry::set_type,
                    Unix_sk_entry::set_state,
                    Unix_sk_entry::set_flags,
                    Unix_sk_entry::set_uflags,
                    Unix_sk_entry::set_backlog,
                ] {
                    set(&mut socket, 1);
                }
                socket.set_id(id);
                socket.set_ino(ino);
                socket.set_peer(peer);
                socket.fown = dump.files[0].reg.fown.clone();
                socket.set_name(name.to_vec());
                dump.files.last_mut().expect("just pushed").usk = MessageField::some(socket);
            }
            let mut process = Process::load(dump.write().path()).expect("it loads");
            process.annotated = true;
            process.refusals(&[]).iter().all(Refusal::restorable_by_criu)
        };
        assert!(pair(12, b""));
        assert!(!pair(0, b""));
        assert!(!pair(12, b"/run/x"));
    }

    #[test]
    fn a_deleted_file_is_named_with_its_owner() {
        let mut dump = Dump::new();
        dump.file(3, "/tmp/gone");
        dump.descriptor(5, 3, Fd_types::REG);
        let mut remap = Remap_file_path_entry::new();
        remap.set_orig_id(3);
        remap.set_remap_id(7);
        dump.remaps.push(remap);
        let mut process = Process::load(dump.write().path()).expect("it loads");
        process.annotated = true;
        let refusals = process.refusals(&[]);
        assert_eq!(refusals.len(), 1);
        assert_eq!(refusals[0].owner().as_deref(), Some("/tmp/gone"));
        assert_eq!(
            refusals[0].to_string(),
            "descriptor 5 is a file that has no name any more: /tmp/gone"
        );
    }
}
