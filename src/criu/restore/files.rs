//! CRIU's files for one run: the image's own, with the caller's identity, new numbers, and memory that
//! is mapped from the image file.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use protobuf::Message;

use super::{Content, Copied, FilesError, ORDERS_NAME, Restore, memory};
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
use crate::process::{Damage, PAGE};
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
}

pub(super) fn write(restore: &Restore<'_>, directory: &Path) -> Result<(), FilesError> {
    let mut writer = Writer { restore, directory, done: Vec::new() };
    let old = writer.tree()?;
    let new = |tid: u32| {
        let place = old.iter().position(|known| *known == tid);
        place.map_or(tid, |place| restore.numbers[place])
    };
    let pid = old.first().copied().unwrap_or_default();
    let mut words = BTreeMap::new();
    let mut files_id = None;
    for tid in &old {
        let (address, ids) = writer.core(*tid, new(*tid), pid)?;
        words.insert(address, new(*tid));
        files_id = files_id.or(ids);
    }
    let ids = format!("ids-{pid}.img");
    if restore.archive.get(&ids).is_some() {
        let all: Vec<Task_kobj_ids_entry> = writer.read(&ids, directory::IDS)?;
        files_id = all.first().map(Task_kobj_ids_entry::files_id).or(files_id);
        writer.copy(&ids, &format!("ids-{}.img", new(pid)))?;
    }
    let files_id = files_id.ok_or(FilesError::Missing(ids))?;
    let image_file = writer.files(files_id)?;
    writer.file_system(pid, new(pid))?;
    writer.memory(pid, new(pid), image_file, &words)?;
    writer.rest()
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
        let fail = |source| FilesError::Write { name: name.to_owned(), source };
        let mut options = OpenOptions::new();
        let options = options.write(true).create_new(true).mode(0o600);
        let mut file = options.open(self.directory.join(name)).map_err(fail)?;
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

    /// The numbers of the threads in the image, the process's own first.
    fn tree(&mut self) -> Result<Vec<u32>, FilesError> {
        let name = "pstree.img";
        let mut root: Pstree_entry = self.one(name, directory::PSTREE)?;
        let pid = root.pid();
        let others = root.threads.iter().copied().filter(|tid| *tid != pid);
        let old: Vec<u32> = std::iter::once(pid).chain(others).collect();
        let numbers = &self.restore.numbers;
        let Some(first) = numbers.first().filter(|_| numbers.len() == old.len()) else {
            return Err(FilesError::Threads(old.len()));
        };
        root.set_pid(*first);
        root.threads.clone_from(numbers);
        root.set_pgid(self.restore.caller.group);
        root.set_sid(self.restore.caller.session);
        self.write(name, directory::PSTREE, &[root])?;
        Ok(old)
    }

    /// A thread; returns where the C library keeps its number, and the number of its descriptor table.
    fn core(&mut self, tid: u32, new: u32, pid: u32) -> Result<(u64, Option<u32>), FilesError> {
        let name = format!("core-{tid}.img");
        let mut core: Core_entry = self.one(&name, directory::CORE)?;
        let caller = self.restore.caller;
        if let Some(thread) = core.thread_core.as_mut() {
            thread.creds = Some(identity(caller)).into();
            thread.set_blk_sigset(thread.blk_sigset() | caller.mask);
            thread.set_sched_nice(caller.nice);
            thread.set_sched_policy(caller.scheduling.0);
            thread.set_sched_prio(caller.scheduling.1);
            if tid == pid {
                thread.set_pdeath_sig(DIES_WITH_LAUNCHER);
            }
        }
        if let Some(task) = core.tc.as_mut() {
            task.set_blk_sigset(task.blk_sigset() | caller.mask);
            task.clear_loginuid();
            task.clear_oom_score_adj();
            task.rlimits.mut_or_insert_default().rlimits =
                caller.limits.iter().map(|limit| rlimit(*limit)).collect();
            let timers = task.timers.mut_or_insert_default();
            let [real, virtual_time, profiling] = caller.timers.map(timer);
            timers.real = Some(real).into();
            timers.virt = Some(virtual_time).into();
            timers.prof = Some(profiling).into();
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
        let info = core.thread_info.as_mut().ok_or_else(|| damaged(&name, Damage::Empty))?;
        let orders = u64::from(self.restore.orders);
        if let Some(registers) = info.gpregs.as_mut().filter(|_| tid == pid) {
            registers.set_di(orders);
        }
        let address = info.clear_tid_addr();
        self.write(&format!("core-{new}.img"), directory::CORE, &[core])?;
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
        let next = files.iter().map(File_entry::id).max().unwrap_or(0) + 1;
        let image_path = self.restore.image_path.to_string_lossy().into_owned();
        files.push(file(next, ORDERS_NAME));
        files.push(file(next + 1, &image_path));
        let mut orders = Fdinfo_entry::new();
        orders.set_id(next);
        orders.set_flags(0);
        orders.set_type(Fd_types::REG);
        orders.set_fd(self.restore.orders);
        descriptors.push(orders);
        self.write(&table, directory::FDINFO, &descriptors)?;
        self.write("files.img", directory::FILES, &files)?;
        Ok(next + 1)
    }

    /// Working directory and file mode mask. The directory is given by descriptor, later: it may have
    /// no name.
    fn file_system(&mut self, pid: u32, new: u32) -> Result<(), FilesError> {
        let mut entry: Fs_entry = self.one(&format!("fs-{pid}.img"), directory::FS)?;
        entry.set_cwd_id(entry.root_id());
        entry.set_umask(self.restore.caller.umask);
        self.write(&format!("fs-{new}.img"), directory::FS, &[entry])
    }

    fn memory(
        &mut self,
        pid: u32,
        new: u32,
        image_file: u32,
        words: &BTreeMap<u64, u32>,
    ) -> Result<(), FilesError> {
        let restore = self.restore;
        let pages: BTreeSet<u64> = words.keys().map(|address| address / PAGE * PAGE).collect();
        let mut mm: Mm_entry = self.one(&format!("mm-{pid}.img"), directory::MM)?;
        mm.vmas = memory::split(&mm.vmas, &restore.parts, &pages, &restore.advice, image_file);
        self.write(&format!("mm-{new}.img"), directory::MM, &[mm])?;

        let mut copies = restore.copies.clone();
        for page in &pages {
            let part = restore.parts.iter().find(|part| part.range.contains(page));
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
        head.set_pages_id(1);
        let fail = |source| damaged(&name, source);
        let mut bytes = encode(directory::PAGEMAP, &[head]).map_err(fail)?;
        for copy in &copies {
            directory::append(&mut bytes, &rewrite::entry(&copy.range)).map_err(fail)?;
        }
        self.put(&name, &bytes)?;

        let name = "pages-1.img";
        let fail = |source| FilesError::Write { name: name.to_owned(), source };
        let mut options = OpenOptions::new();
        let options = options.write(true).create_new(true).mode(0o600);
        let mut target = options.open(self.directory.join(name)).map_err(fail)?;
        memory::write_pages(restore.image, &copies, words, &mut target).map_err(fail)
    }

    /// Everything that is as it was.
    fn rest(&self) -> Result<(), FilesError> {
        for (name, content) in self.restore.archive.files() {
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
