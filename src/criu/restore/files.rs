//! CRIU's files for one run: the image's own, with the caller's identity, new numbers, and memory that
//! is mapped from the image file.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use protobuf::Message;

use super::{Content, Copied, FilesError, ORDERS_NAME, Restore, memory};
use crate::image::Archive;
use crate::process::directory::{self, Kind, decode, encode};
use crate::process::messages::files::{
    Fd_types, Fdinfo_entry, File_entry, Fown_entry, Reg_file_entry,
};
use crate::process::messages::mm::Mm_entry;
use crate::process::messages::pagemap::Pagemap_head;
use crate::process::messages::pstree::Pstree_entry;
use crate::process::messages::task::{
    Core_entry, Creds_entry, Fs_entry, Itimer_entry, Rlimit_entry, Task_kobj_ids_entry,
};
use crate::process::rewrite;
use crate::process::{Damage, PAGE, only_reads};
use crate::sys::caller::Caller;

/// `PR_SET_PDEATHSIG` of the script: it does not outlive a launcher that is killed.
const DIES_WITH_LAUNCHER: u32 = 9;
const IGNORE: u64 = 1;
/// Signals that the C library keeps for itself (nptl(7)).
const LIBRARYS_OWN: [u32; 2] = [32, 33];

struct Writer<'a> {
    restore: &'a Restore<'a>,
    directory: &'a Path,
    /// Names of the image's files that were written changed, or are not wanted.
    done: Vec<String>,
    /// The new number for each one of the image.
    new: BTreeMap<u32, u32>,
}

pub(super) fn write(restore: &Restore<'_>, directory: &Path) -> Result<(), FilesError> {
    let mut writer = Writer { restore, directory, done: Vec::new(), new: BTreeMap::new() };
    let tree = writer.tree()?;
    let mut image_file = None;
    for (place, process) in tree.iter().enumerate() {
        let frozen = place == 0;
        let pid = process.pid();
        let mut words = BTreeMap::new();
        let mut files_id = None;
        for tid in threads(process) {
            let (address, ids) = writer.core(tid, pid, frozen)?;
            words.insert(address, writer.renumbered(tid));
            files_id = files_id.or(ids);
        }
        let ids = format!("ids-{pid}.img");
        if restore.archive.get(&ids).is_some() {
            let all: Vec<Task_kobj_ids_entry> = writer.read(&ids, directory::IDS)?;
            files_id = all.first().map(Task_kobj_ids_entry::files_id).or(files_id);
            writer.copy(&ids, &format!("ids-{}.img", writer.renumbered(pid)))?;
        }
        if frozen {
            let files_id = files_id.ok_or(FilesError::Missing(ids))?;
            image_file = Some(writer.files(files_id)?);
        } else if restore.archive.get(&format!("mm-{pid}.img")).is_none() {
            // It has ended, and waits for its parent to ask how.
            continue;
        }
        writer.file_system(pid, frozen)?;
        match image_file.filter(|_| frozen) {
            Some(image_file) => writer.memory(pid, image_file, &words)?,
            None => writer.memory_of_other(pid, &words)?,
        }
    }
    writer.rest()
}

/// The numbers of the descriptors that the frozen process has, but for the standard ones.
pub(super) fn descriptors(archive: &Archive) -> Result<Vec<u32>, FilesError> {
    let read = |name: &str| archive.get(name).ok_or_else(|| FilesError::Missing(name.to_owned()));
    let tree: Vec<Pstree_entry> = messages("pstree.img", read("pstree.img")?, directory::PSTREE)?;
    let pid = tree.first().map_or(0, Pstree_entry::pid);
    let name = format!("core-{pid}.img");
    let cores: Vec<Core_entry> = messages(&name, read(&name)?, directory::CORE)?;
    let mut ids = cores.into_iter().next().and_then(|core| core.ids.into_option());
    if ids.is_none() {
        let name = format!("ids-{pid}.img");
        ids = messages(&name, read(&name)?, directory::IDS)?.into_iter().next();
    }
    let name = format!("fdinfo-{}.img", ids.unwrap_or_default().files_id());
    let all: Vec<Fdinfo_entry> = messages(&name, read(&name)?, directory::FDINFO)?;
    Ok(all.iter().map(Fdinfo_entry::fd).filter(|number| *number > 2).collect())
}

fn messages<M: Message>(name: &str, bytes: &[u8], kind: Kind) -> Result<Vec<M>, FilesError> {
    decode(bytes, kind).map_err(|source| damaged(name, source))
}

/// The numbers of a process's threads, its own first.
fn threads(process: &Pstree_entry) -> Vec<u32> {
    let pid = process.pid();
    let others = process.threads.iter().copied().filter(|tid| *tid != pid);
    std::iter::once(pid).chain(others).collect()
}

/// The numbers of the processes and threads in an image.
pub(super) fn numbers(archive: &Archive) -> Result<Vec<u32>, FilesError> {
    let name = "pstree.img";
    let bytes = archive.get(name).ok_or_else(|| FilesError::Missing(name.to_owned()))?;
    let tree: Vec<Pstree_entry> = messages(name, bytes, directory::PSTREE)?;
    let numbers: Vec<u32> = tree.iter().flat_map(threads).collect();
    // Each is going to be a process, before more is known of it.
    let absent = |number: &&u32| archive.get(&format!("core-{number}.img")).is_none();
    match numbers.iter().find(absent) {
        Some(number) => Err(FilesError::Missing(format!("core-{number}.img"))),
        None => Ok(numbers),
    }
}

impl Writer<'_> {
    fn read<M: Message>(&mut self, name: &str, kind: Kind) -> Result<Vec<M>, FilesError> {
        let bytes = self.restore.archive.get(name);
        let bytes = bytes.ok_or_else(|| FilesError::Missing(name.to_owned()))?;
        let messages = decode(bytes, kind).map_err(|source| damaged(name, source))?;
        self.done.push(name.to_owned());
        Ok(messages)
    }

    fn one<M: Message>(&mut self, name: &str, kind: Kind) -> Result<M, FilesError> {
        let first = self.read(name, kind)?.into_iter().next();
        first.ok_or_else(|| damaged(name, Damage::Empty))
    }

    fn put(&self, name: &str, bytes: &[u8]) -> Result<(), FilesError> {
        let path = self.directory.join(name);
        let fail = |source| FilesError::Write { path: path.clone(), source };
        let mut options = OpenOptions::new();
        let options = options.write(true).create_new(true).mode(0o600);
        let mut file = options.open(&path).map_err(fail)?;
        file.write_all(bytes).map_err(fail)
    }

    fn write<M: Message>(&self, name: &str, kind: Kind, all: &[M]) -> Result<(), FilesError> {
        self.put(name, &encode(kind, all).map_err(|source| damaged(name, source))?)
    }

    fn copy(&mut self, from: &str, to: &str) -> Result<(), FilesError> {
        let bytes = self.restore.archive.get(from);
        self.put(to, bytes.ok_or_else(|| FilesError::Missing(from.to_owned()))?)?;
        self.done.push(from.to_owned());
        Ok(())
    }

    /// The number that stands for one of the image.
    fn renumbered(&self, number: u32) -> u32 {
        self.new.get(&number).copied().unwrap_or(number)
    }

    /// The processes as they are in the image. In the files of the run they have their new numbers;
    /// session and group are the caller's, where they are not a process's of the image.
    fn tree(&mut self) -> Result<Vec<Pstree_entry>, FilesError> {
        let name = "pstree.img";
        let tree: Vec<Pstree_entry> = self.read(name, directory::PSTREE)?;
        let root = tree.first().ok_or_else(|| damaged(name, Damage::Empty))?;
        let old: Vec<u32> = tree.iter().flat_map(threads).collect();
        let numbers = &self.restore.numbers;
        if numbers.len() != old.len() {
            return Err(FilesError::Threads(old.len()));
        }
        self.new = old.into_iter().zip(numbers.iter().copied()).collect();
        let caller = self.restore.caller;
        self.new.insert(0, 0);
        let group = |number: u32| {
            if number == root.pgid() { caller.group } else { self.renumbered(number) }
        };
        let session = |number: u32| {
            if number == root.sid() { caller.session } else { self.renumbered(number) }
        };
        let renumbered = tree.iter().map(|process| {
            let mut entry = process.clone();
            entry.set_pid(self.renumbered(process.pid()));
            entry.set_ppid(self.renumbered(process.ppid()));
            entry.set_pgid(group(process.pgid()));
            entry.set_sid(session(process.sid()));
            entry.threads = threads(process).into_iter().map(|tid| self.renumbered(tid)).collect();
            entry
        });
        let renumbered: Vec<Pstree_entry> = renumbered.collect();
        self.write(name, directory::PSTREE, &renumbered)?;
        Ok(tree)
    }

    /// A thread; returns where the C library keeps its number, and the number of its descriptor table.
    fn core(&mut self, tid: u32, pid: u32, frozen: bool) -> Result<(u64, Option<u32>), FilesError> {
        let name = format!("core-{tid}.img");
        let mut core: Core_entry = self.one(&name, directory::CORE)?;
        let caller = self.restore.caller;
        if let Some(thread) = core.thread_core.as_mut() {
            thread.creds = Some(identity(caller)).into();
            thread.set_blk_sigset(thread.blk_sigset() | caller.mask);
            thread.set_sched_nice(caller.nice);
            thread.set_sched_policy(caller.scheduling.0);
            thread.set_sched_prio(caller.scheduling.1);
            if tid == pid && frozen {
                thread.set_pdeath_sig(DIES_WITH_LAUNCHER);
            }
        }
        if let Some(task) = core.tc.as_mut() {
            task.set_blk_sigset(task.blk_sigset() | caller.mask);
            task.clear_loginuid();
            task.clear_oom_score_adj();
            task.rlimits.mut_or_insert_default().rlimits =
                caller.limits.iter().map(|limit| rlimit(*limit)).collect();
            if frozen {
                let timers = task.timers.mut_or_insert_default();
                let [real, virtual_time, profiling] = caller.timers.map(timer);
                for (own, callers) in [
                    (&mut timers.real, real),
                    (&mut timers.virt, virtual_time),
                    (&mut timers.prof, profiling),
                ] {
                    // One that the imports have set has taken the place of the caller's.
                    if own.vsec() == 0 && own.vusec() == 0 {
                        *own = Some(callers).into();
                    }
                }
            }
            let numbers = (1..=64_u32).filter(|number| ![9, 19].contains(number));
            for (number, action) in numbers.zip(&mut task.sigactions) {
                let bit = 1_u64 << (number - 1);
                if LIBRARYS_OWN.contains(&number) && action.sigaction() == IGNORE {
                    // Nobody could undo what the snapshot's caller had chosen.
                    action.set_sigaction(0);
                }
                let ours = action.sigaction() == 0 || self.restore.yielding & bit != 0;
                if caller.ignored & bit != 0 && ours {
                    action.set_sigaction(IGNORE);
                }
            }
        }
        let ids = core.ids.as_ref().map(Task_kobj_ids_entry::files_id);
        let orders = u64::from(self.restore.orders);
        let info = core.thread_info.as_mut();
        let address = info.as_ref().map_or(0, |info| info.clear_tid_addr());
        if frozen && tid == pid {
            let info = info.ok_or_else(|| damaged(&name, Damage::Empty))?;
            if let Some(registers) = info.gpregs.as_mut() {
                registers.set_di(orders);
            }
        }
        self.write(&format!("core-{}.img", self.renumbered(tid)), directory::CORE, &[core])?;
        Ok((address, ids))
    }

    /// Open files and descriptors; returns the number of the image file.
    fn files(&mut self, files_id: u32) -> Result<u32, FilesError> {
        let table = format!("fdinfo-{files_id}.img");
        let mut descriptors: Vec<Fdinfo_entry> = self.read(&table, directory::FDINFO)?;
        let gone = |one: &Fdinfo_entry| one.fd() <= 2 || one.fd() == self.restore.frozen_orders;
        let dropped: Vec<u32> =
            descriptors.iter().filter(|one| gone(one)).map(Fdinfo_entry::id).collect();
        descriptors.retain(|one| !gone(one));
        let mut files: Vec<File_entry> = self.read("files.img", directory::FILES)?;
        // Files stay: they may be mapped. The pipe of the orders does not.
        files.retain(|file| file.type_() == Fd_types::REG || !dropped.contains(&file.id()));
        if let Some(file) = files.iter().filter_map(|file| file.reg.as_ref()).find(|file| {
            let path = Path::new("/").join(OsStr::from_bytes(file.name()));
            !only_reads(&path, file.flags().into())
        }) {
            let path = String::from_utf8_lossy(file.name()).into_owned();
            return Err(FilesError::Writes { path });
        }
        let last = files.iter().map(File_entry::id).max().unwrap_or(0);
        let image_file =
            last.checked_add(2).ok_or_else(|| damaged("files.img", Damage::Nonsense))?;
        let next = last + 1;
        let image_path = self.restore.image_path.to_string_lossy().into_owned();
        files.push(file(next, ORDERS_NAME));
        files.push(file(image_file, &image_path));
        let mut orders = Fdinfo_entry::new();
        orders.set_id(next);
        orders.set_flags(0);
        orders.set_type(Fd_types::REG);
        orders.set_fd(self.restore.orders);
        descriptors.push(orders);
        self.write(&table, directory::FDINFO, &descriptors)?;
        self.write("files.img", directory::FILES, &files)?;
        Ok(image_file)
    }

    /// Working directory and file mode mask. The frozen process's directory is given by descriptor,
    /// later: it may have no name. The others keep theirs.
    fn file_system(&mut self, pid: u32, frozen: bool) -> Result<(), FilesError> {
        let mut entry: Fs_entry = self.one(&format!("fs-{pid}.img"), directory::FS)?;
        if frozen {
            entry.set_cwd_id(entry.root_id());
        }
        entry.set_umask(self.restore.caller.umask);
        self.write(&format!("fs-{}.img", self.renumbered(pid)), directory::FS, &[entry])
    }

    /// The memory of a process that the imports have started: as it was, and copied.
    fn memory_of_other(&mut self, pid: u32, words: &BTreeMap<u64, u32>) -> Result<(), FilesError> {
        let new = self.renumbered(pid);
        self.copy(&format!("mm-{pid}.img"), &format!("mm-{new}.img"))?;
        let pages_id = self.pages_id(pid)?;
        self.copy(&format!("pagemap-{pid}.img"), &format!("pagemap-{new}.img"))?;
        let copies = self.restore.memory.others.get(&pages_id).map_or(&[][..], Vec::as_slice);
        self.pages(pages_id, copies, words)
    }

    /// The N of the `pages-N.img` of a process.
    fn pages_id(&mut self, pid: u32) -> Result<u32, FilesError> {
        let name = format!("pagemap-{pid}.img");
        let bytes = self.restore.archive.get(&name);
        let bytes = bytes.ok_or_else(|| FilesError::Missing(name.clone()))?;
        let first = directory::first(bytes, directory::PAGEMAP).map_err(|why| damaged(&name, why));
        first.map(|head: Pagemap_head| head.pages_id())
    }

    fn pages(
        &self,
        pages_id: u32,
        copies: &[Copied],
        words: &BTreeMap<u64, u32>,
    ) -> Result<(), FilesError> {
        let path = self.directory.join(format!("pages-{pages_id}.img"));
        let fail = |source| FilesError::Write { path: path.clone(), source };
        let mut options = OpenOptions::new();
        let options = options.write(true).create_new(true).mode(0o600);
        let mut target = options.open(&path).map_err(fail)?;
        memory::write_pages(self.restore.image, copies, words, &mut target).map_err(fail)
    }

    fn memory(
        &mut self,
        pid: u32,
        image_file: u32,
        words: &BTreeMap<u64, u32>,
    ) -> Result<(), FilesError> {
        let restore = self.restore;
        let new = self.renumbered(pid);
        let pages_id = self.pages_id(pid)?;
        let pages: BTreeSet<u64> = words.keys().map(|address| address / PAGE * PAGE).collect();
        let name = format!("mm-{pid}.img");
        let mut mm: Mm_entry = self.one(&name, directory::MM)?;
        let vmas = memory::split(&mm.vmas, &restore.memory, &pages, image_file);
        mm.vmas = vmas.ok_or_else(|| damaged(&name, Damage::Nonsense))?;
        mm.set_thp_disabled(restore.caller.no_huge_pages);
        self.write(&format!("mm-{new}.img"), directory::MM, &[mm])?;

        let mut copies = restore.memory.copies.clone();
        for page in &pages {
            let part = restore.memory.parts.iter().find(|part| part.range.contains(page));
            if let Some(part) = part
                && let Content::Image(offset) = part.content
            {
                let offset = offset + (page - part.range.start);
                copies.push(Copied { range: *page..page + PAGE, offset });
            }
        }
        copies.sort_unstable_by_key(|copy| copy.range.start);
        self.done.push(format!("pagemap-{pid}.img"));
        let name = format!("pagemap-{new}.img");
        let mut head = Pagemap_head::new();
        head.set_pages_id(pages_id);
        let fail = |source| damaged(&name, source);
        let mut bytes = encode(directory::PAGEMAP, &[head]).map_err(fail)?;
        for copy in &copies {
            directory::append(&mut bytes, &rewrite::entry(&copy.range)).map_err(fail)?;
        }
        self.put(&name, &bytes)?;

        self.pages(pages_id, &copies, words)
    }

    /// Everything that is as it was.
    fn rest(&self) -> Result<(), FilesError> {
        let images = |(name, _): &(&str, &[u8])| {
            let is_image = Path::new(name).extension().is_some_and(|kind| kind == "img");
            is_image && !name.starts_with("pages-")
        };
        for (name, content) in self.restore.archive.files().filter(images) {
            if !self.done.iter().any(|done| done == name) {
                self.put(name, content)?;
            }
        }
        Ok(())
    }
}

fn damaged(name: &str, source: Damage) -> FilesError {
    FilesError::Damaged { name: name.to_owned(), source }
}

fn file(id: u32, name: &str) -> File_entry {
    let mut owner = Fown_entry::new();
    owner.set_uid(0);
    owner.set_euid(0);
    owner.set_signum(0);
    owner.set_pid_type(0);
    owner.set_pid(0);
    let mut regular = Reg_file_entry::new();
    regular.set_id(id);
    regular.set_flags(libc::O_RDONLY.cast_unsigned());
    regular.set_pos(0);
    regular.fown = Some(owner).into();
    regular.set_name(name.as_bytes().to_vec());
    let mut entry = File_entry::new();
    entry.set_type(Fd_types::REG);
    entry.set_id(id);
    entry.reg = Some(regular).into();
    entry
}

fn identity(caller: &Caller) -> Creds_entry {
    let halves = |set: u64| vec![set as u32, (set >> 32) as u32];
    let capabilities = &caller.capabilities;
    let (users, groups) = (caller.users, caller.groups);
    let mut creds = Creds_entry::new();
    creds.set_uid(users[0]);
    creds.set_gid(groups[0]);
    creds.set_euid(users[1]);
    creds.set_egid(groups[1]);
    creds.set_suid(users[2]);
    creds.set_sgid(groups[2]);
    creds.set_fsuid(users[3]);
    creds.set_fsgid(groups[3]);
    creds.cap_inh = halves(capabilities.inheritable);
    creds.cap_prm = halves(capabilities.permitted);
    creds.cap_eff = halves(capabilities.permitted);
    creds.cap_amb = halves(capabilities.ambient);
    // The bounding set is inherited. CRIU takes away what is not in here, for which it would need
    // CAP_SETPCAP, also where it is gone already.
    creds.cap_bnd = halves(u64::MAX);
    creds.set_secbits(caller.secure_bits);
    creds.groups.clone_from(&caller.supplementary);
    creds.set_no_new_privs(caller.no_new_privileges.into());
    creds
}

fn timer((left, interval): (u64, u64)) -> Itimer_entry {
    const SECOND: u64 = 1_000_000;
    let mut entry = Itimer_entry::new();
    entry.set_isec(interval / SECOND);
    entry.set_iusec(interval % SECOND);
    entry.set_vsec(left / SECOND);
    entry.set_vusec(left % SECOND);
    entry
}

fn rlimit((soft, hard): (u64, u64)) -> Rlimit_entry {
    let mut entry = Rlimit_entry::new();
    entry.set_cur(soft);
    entry.set_max(hard);
    entry
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::criu::restore::Memory;
    use crate::process::testing::{Dump, EXE, PID};
    use crate::sys::caller::Capabilities;

    fn caller() -> Caller {
        Caller {
            users: [0; 4],
            groups: [0; 4],
            supplementary: Vec::new(),
            capabilities: Capabilities::default(),
            secure_bits: 0,
            no_new_privileges: false,
            no_huge_pages: false,
            umask: 0o22,
            limits: vec![(1024, 1024); 16],
            nice: 0,
            scheduling: (0, 0),
            mask: 0,
            ignored: 0,
            timers: [(0, 0); 3],
            session: 1,
            group: 1,
        }
    }

    /// The names of the files that are written for a run.
    fn written(dump: &Dump, change: impl FnOnce(&mut Archive)) -> Result<Vec<String>, FilesError> {
        let mut archive = Archive::from_directory(dump.write().path()).unwrap();
        // What a dump by CRIU has too.
        archive.push(&format!("fs-{PID}.img"), &file_system());
        change(&mut archive);
        let folder = tempfile::tempdir().unwrap();
        let image = tempfile::tempfile().unwrap();
        let restore = Restore {
            archive: &archive,
            image: &image,
            image_path: "/image".into(),
            memory: Memory::default(),
            yielding: 0,
            caller: &caller(),
            numbers: (1000..).take(numbers(&archive)?.len()).collect(),
            frozen_orders: 202,
            orders: 203,
        };
        restore.write(folder.path())?;
        let names = fs::read_dir(folder.path()).unwrap();
        let mut names: Vec<String> =
            names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        Ok(names)
    }

    fn file_system() -> Vec<u8> {
        let mut entry = Fs_entry::new();
        entry.set_cwd_id(EXE);
        entry.set_root_id(EXE);
        encode(directory::FS, &[entry]).unwrap()
    }

    #[test]
    fn the_files_have_the_new_numbers() {
        let names = written(&Dump::new(), |_| {}).unwrap();
        assert!(names.contains(&"core-1000.img".to_owned()), "{names:?}");
        assert!(!names.iter().any(|name| name.contains(&PID.to_string())), "{names:?}");
    }

    #[test]
    fn nothing_is_opened_for_more_than_reading() {
        let opened = |path: &str, flags: i32| {
            let mut dump = Dump::new();
            dump.file(9, path).set_flags(flags.cast_unsigned());
            written(&dump, |_| {})
        };
        for flags in [libc::O_WRONLY, libc::O_RDWR, libc::O_CREAT, libc::O_TRUNC, libc::O_PATH] {
            let fault = opened("/etc/passwd", flags).unwrap_err();
            assert!(
                matches!(&fault, FilesError::Writes { path } if path == "/etc/passwd"),
                "{fault}"
            );
        }
        assert!(opened("/etc/passwd", libc::O_RDONLY | libc::O_CLOEXEC).is_ok());
        assert!(opened("/dev/null", libc::O_RDWR).is_ok());
    }

    #[test]
    fn only_criu_s_own_files_are_handed_on() {
        let names = written(&Dump::new(), |archive| {
            for name in ["criu.conf", "-rf", "seccomp.img", "pages-7.img"] {
                archive.push(name, b"");
            }
        });
        let names = names.unwrap();
        let foreign = |name: &str| names.iter().any(|each| each == name);
        assert!(foreign("seccomp.img"));
        assert!(!["criu.conf", "-rf", "pages-7.img"].into_iter().any(foreign), "{names:?}");
    }

    #[test]
    fn a_thread_that_is_only_named_is_none() {
        let mut dump = Dump::new();
        dump.tree[0].threads.extend(5000..9000);
        let fault = written(&dump, |_| {}).unwrap_err();
        assert!(matches!(&fault, FilesError::Missing(name) if name == "core-5000.img"), "{fault}");
    }

    #[test]
    fn mappings_that_no_process_has_are_refused() {
        for (start, end, offset) in [(0x2000, 0x1000, 0), (0, 0, 0), (0x1000, 0x2000, u64::MAX)] {
            let mut dump = Dump::new();
            let vma = dump.anonymous(0x1000, 1);
            vma.set_start(start);
            vma.set_end(end);
            vma.set_pgoff(offset);
            let fault = written(&dump, |_| {}).unwrap_err();
            assert!(matches!(fault, FilesError::Damaged { .. }), "{fault}");
        }
    }
}
