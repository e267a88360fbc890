//! A dump directory made by hand, for tests.

use std::fmt::Write;
use std::fs;
use std::ops::Range;
use std::path::Path;

use protobuf::{EnumOrUnknown, Message, MessageField};
use tempfile::TempDir;

use super::messages::files::{
    Fd_types, Fdinfo_entry, File_entry, File_lock_entry, Fown_entry, Reg_file_entry,
    Remap_file_path_entry,
};
use super::messages::inventory::Inventory_entry;
use super::messages::mm::{Mm_entry, Vma_entry};
use super::messages::pagemap::{Pagemap_entry, Pagemap_head};
use super::messages::pstree::Pstree_entry;
use super::messages::registers::{
    Thread_info_x86, User_x86_fpregs_entry, User_x86_regs_entry, User_x86_xsave_entry,
};
use super::messages::task::{
    Core_entry, Itimer_entry, Sa_entry, Task_core_entry, Task_kobj_ids_entry, Task_timers_entry,
    Thread_core_entry, Thread_sas_entry,
};
use super::pages::PAGE;
use super::smaps::Smaps;
use super::vma::status;
use super::{Process, Vma};

/// What is to be dumped; [`Dump::write`] makes CRIU's files of it.
#[derive(Clone)]
pub(crate) struct Dump {
    pub(crate) inventory: Inventory_entry,
    pub(crate) tree: Vec<Pstree_entry>,
    pub(crate) cores: Vec<(u32, Core_entry)>,
    pub(crate) mm: Mm_entry,
    pub(crate) pages: Vec<(Pagemap_entry, Vec<u8>)>,
    pub(crate) files: Vec<File_entry>,
    pub(crate) descriptors: Vec<Fdinfo_entry>,
    pub(crate) remaps: Vec<Remap_file_path_entry>,
    pub(crate) locks: Vec<File_lock_entry>,
}

pub(crate) const PID: u32 = 4711;
pub(crate) const EXE: u32 = 1;

impl Dump {
    /// One thread that runs `/bin/program`, no mapping and no descriptor.
    pub(crate) fn new() -> Self {
        let mut ids = Task_kobj_ids_entry::new();
        ids.set_vm_id(1);
        ids.set_files_id(2);
        ids.set_fs_id(1);
        ids.set_sighand_id(1);
        let mut inventory = Inventory_entry::new();
        inventory.set_img_version(2);
        let mut process = Pstree_entry::new();
        process.set_pid(PID);
        process.set_ppid(0);
        process.set_pgid(1);
        process.set_sid(1);
        process.threads = vec![PID];
        let mut mm = Mm_entry::new();
        for set in [
            Mm_entry::set_mm_start_code,
            Mm_entry::set_mm_end_code,
            Mm_entry::set_mm_start_data,
            Mm_entry::set_mm_end_data,
            Mm_entry::set_mm_start_stack,
            Mm_entry::set_mm_start_brk,
            Mm_entry::set_mm_brk,
            Mm_entry::set_mm_arg_start,
            Mm_entry::set_mm_arg_end,
            Mm_entry::set_mm_env_start,
            Mm_entry::set_mm_env_end,
        ] {
            set(&mut mm, 0);
        }
        mm.set_exe_file_id(EXE);
        let mut main = core(0);
        main.tc = MessageField::some(task());
        main.ids = MessageField::some(ids);
        let mut dump = Self {
            inventory,
            tree: vec![process],
            cores: vec![(PID, main)],
            mm,
            pages: Vec::new(),
            files: Vec::new(),
            descriptors: Vec::new(),
            remaps: Vec::new(),
            locks: Vec::new(),
        };
        dump.file(EXE, "/bin/program");
        dump
    }

    /// Another thread, whose stack pointer is `sp`.
    pub(crate) fn thread(&mut self, tid: u32, sp: u64) -> &mut Core_entry {
        self.tree[0].threads.push(tid);
        self.cores.push((tid, core(sp)));
        &mut self.cores.last_mut().expect("it was just pushed").1
    }

    /// A file that mappings and descriptors can refer to.
    pub(crate) fn file(&mut self, id: u32, path: &str) -> &mut Reg_file_entry {
        let mut owner = Fown_entry::new();
        owner.set_uid(0);
        owner.set_euid(0);
        owner.set_signum(0);
        owner.set_pid_type(0);
        owner.set_pid(0);
        let mut regular = Reg_file_entry::new();
        regular.set_id(id);
        regular.set_flags(0);
        regular.set_pos(0);
        regular.fown = MessageField::some(owner);
        regular.set_name(path.as_bytes().to_vec());
        let mut file = File_entry::new();
        file.type_ = Some(EnumOrUnknown::new(Fd_types::REG));
        file.set_id(id);
        file.reg = MessageField::some(regular);
        self.files.push(file);
        self.files.last_mut().and_then(|file| file.reg.as_mut()).expect("it was just pushed")
    }

    /// A descriptor.
    pub(crate) fn descriptor(&mut self, number: u32, id: u32, kind: Fd_types) {
        let mut info = Fdinfo_entry::new();
        info.set_id(id);
        info.set_flags(0);
        info.type_ = Some(EnumOrUnknown::new(kind));
        info.set_fd(number);
        self.descriptors.push(info);
    }

    /// An object without a path, and a descriptor for it.
    pub(crate) fn object(&mut self, number: u32, id: u32, kind: Fd_types) {
        let mut file = File_entry::new();
        file.type_ = Some(EnumOrUnknown::new(kind));
        file.set_id(id);
        self.files.push(file);
        self.descriptor(number, id, kind);
    }

    /// A mapping; the caller changes what it wants otherwise.
    pub(crate) fn vma(&mut self, start: u64, pages: u64, prot: i32, kind: u32) -> &mut Vma_entry {
        let mut vma = Vma_entry::new();
        vma.set_start(start);
        vma.set_end(start + pages * PAGE);
        vma.set_pgoff(0);
        vma.set_shmid(0);
        vma.set_prot(prot.cast_unsigned());
        vma.set_flags(libc::MAP_PRIVATE.cast_unsigned());
        vma.set_status(1 | kind);
        vma.set_fd(-1);
        self.mm.vmas.push(vma);
        self.mm.vmas.last_mut().expect("it was just pushed")
    }

    /// Private memory that can be read and written.
    pub(crate) fn anonymous(&mut self, start: u64, pages: u64) -> &mut Vma_entry {
        self.vma(start, pages, libc::PROT_READ | libc::PROT_WRITE, status::ANON_PRIVATE)
    }

    /// Dumped pages; `bytes` is padded to whole ones.
    pub(crate) fn content(&mut self, address: u64, bytes: &[u8]) -> &mut Pagemap_entry {
        let mut bytes = bytes.to_vec();
        bytes.resize(bytes.len().next_multiple_of(PAGE as usize), 0);
        let mut entry = Pagemap_entry::new();
        entry.set_vaddr(address);
        entry.set_compat_nr_pages((bytes.len() as u64 / PAGE) as u32);
        self.pages.push((entry, bytes));
        &mut self.pages.last_mut().expect("it was just pushed").0
    }

    /// The process-wide part of the main thread.
    pub(crate) fn task(&mut self) -> &mut Task_core_entry {
        self.cores[0].1.tc.as_mut().expect("the main thread has it")
    }

    /// Makes the directory.
    pub(crate) fn write(&self) -> TempDir {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let at = folder.path();
        let mut head = Pagemap_head::new();
        head.set_pages_id(1);
        let mut map = vec![encode(&head)];
        let mut pages: Vec<_> = self.pages.iter().collect();
        pages.sort_by_key(|(entry, _)| entry.vaddr());
        map.extend(pages.iter().map(|(entry, _)| encode(entry)));
        let bytes: Vec<u8> = pages.iter().flat_map(|(_, bytes)| bytes.clone()).collect();
        put(at, "pages-1.img", &bytes);
        put(at, "inventory.img", &image(&[0x5831_3116], &[encode(&self.inventory)]));
        entries(at, "pstree.img", 0x5027_3030, &self.tree);
        for (tid, core) in &self.cores {
            entries(at, &format!("core-{tid}.img"), 0x5505_3847, std::slice::from_ref(core));
        }
        entries(at, &format!("mm-{PID}.img"), 0x5749_2820, std::slice::from_ref(&self.mm));
        put(at, &format!("pagemap-{PID}.img"), &image(&[0x5456_4319, 0x5608_4025], &map));
        entries(at, "fdinfo-2.img", 0x5621_3732, &self.descriptors);
        entries(at, "files.img", 0x5630_3138, &self.files);
        if !self.remaps.is_empty() {
            entries(at, "remap-fpath.img", 0x5913_3954, &self.remaps);
        }
        if !self.locks.is_empty() {
            entries(at, "filelocks.img", 0x5432_3616, &self.locks);
        }
        folder
    }
}

/// What the kernel would list for the process, with these flags for each mapping.
pub(crate) fn smaps<'a>(process: &Process, flags: impl Fn(&Vma) -> &'a str) -> Smaps {
    let mut text = String::new();
    for vma in &process.vmas {
        let Range { start, end } = vma.range;
        writeln!(text, "{start:x}-{end:x} rw-p 0 0 0\nVmFlags: {}", flags(vma))
            .expect("a string takes all");
    }
    Smaps::parse(text.as_bytes()).expect("it is right")
}

fn core(sp: u64) -> Core_entry {
    let mut general = User_x86_regs_entry::new();
    for set in [
        User_x86_regs_entry::set_r15,
        User_x86_regs_entry::set_r14,
        User_x86_regs_entry::set_r13,
        User_x86_regs_entry::set_r12,
        User_x86_regs_entry::set_bp,
        User_x86_regs_entry::set_bx,
        User_x86_regs_entry::set_r11,
        User_x86_regs_entry::set_r10,
        User_x86_regs_entry::set_r9,
        User_x86_regs_entry::set_r8,
        User_x86_regs_entry::set_ax,
        User_x86_regs_entry::set_cx,
        User_x86_regs_entry::set_dx,
        User_x86_regs_entry::set_si,
        User_x86_regs_entry::set_di,
        User_x86_regs_entry::set_orig_ax,
        User_x86_regs_entry::set_ip,
        User_x86_regs_entry::set_cs,
        User_x86_regs_entry::set_flags,
        User_x86_regs_entry::set_ss,
        User_x86_regs_entry::set_fs_base,
        User_x86_regs_entry::set_gs_base,
        User_x86_regs_entry::set_ds,
        User_x86_regs_entry::set_es,
        User_x86_regs_entry::set_fs,
        User_x86_regs_entry::set_gs,
    ] {
        set(&mut general, 0);
    }
    general.set_sp(sp);
    let mut xsave = User_x86_xsave_entry::new();
    xsave.set_xstate_bv(7);
    xsave.ymmh_space = (0..64).collect();
    let mut floating = User_x86_fpregs_entry::new();
    for set in [
        User_x86_fpregs_entry::set_cwd,
        User_x86_fpregs_entry::set_swd,
        User_x86_fpregs_entry::set_twd,
        User_x86_fpregs_entry::set_fop,
        User_x86_fpregs_entry::set_mxcsr,
        User_x86_fpregs_entry::set_mxcsr_mask,
    ] {
        set(&mut floating, 0);
    }
    floating.set_rip(0);
    floating.set_rdp(0);
    floating.st_space = (0..32).collect();
    floating.xmm_space = (0..64).collect();
    floating.xsave = MessageField::some(xsave);
    let mut info = Thread_info_x86::new();
    info.set_clear_tid_addr(0x1234);
    info.gpregs = MessageField::some(general);
    info.fpregs = MessageField::some(floating);
    let mut stack = Thread_sas_entry::new();
    stack.set_ss_sp(0);
    stack.set_ss_size(0);
    stack.set_ss_flags(2);
    let mut state = Thread_core_entry::new();
    state.set_futex_rla(0x2000);
    state.set_futex_rla_len(24);
    state.set_blk_sigset(0);
    state.sas = MessageField::some(stack);
    state.set_comm(b"worker".to_vec());
    let mut core = Core_entry::new();
    core.set_mtype(1);
    core.thread_info = MessageField::some(info);
    core.thread_core = MessageField::some(state);
    core
}

fn task() -> Task_core_entry {
    let timer = || {
        let mut timer = Itimer_entry::new();
        timer.set_isec(0);
        timer.set_iusec(0);
        timer.set_vsec(0);
        timer.set_vusec(0);
        MessageField::some(timer)
    };
    let mut timers = Task_timers_entry::new();
    timers.real = timer();
    timers.virt = timer();
    timers.prof = timer();
    let mut action = Sa_entry::new();
    action.set_sigaction(0);
    action.set_flags(0);
    action.set_restorer(0);
    action.set_mask(0);
    let mut task = Task_core_entry::new();
    task.set_task_state(1);
    task.set_exit_code(0);
    task.set_personality(0);
    task.set_flags(0);
    task.set_blk_sigset(0);
    task.set_comm(b"program".to_vec());
    task.timers = MessageField::some(timers);
    task.sigactions = vec![action; 62];
    task
}

fn encode(message: &impl Message) -> Vec<u8> {
    message.write_to_bytes().expect("all required fields are set")
}

fn entries<M: Message>(folder: &Path, name: &str, magic: u32, messages: &[M]) {
    let messages: Vec<_> = messages.iter().map(encode).collect();
    put(folder, name, &image(&[0x5456_4319, magic], &messages));
}

fn image(magics: &[u32], messages: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes: Vec<u8> = magics.iter().flat_map(|magic| magic.to_le_bytes()).collect();
    for message in messages {
        bytes.extend((message.len() as u32).to_le_bytes());
        bytes.extend(message);
    }
    bytes
}

fn put(folder: &Path, name: &str, bytes: &[u8]) {
    fs::write(folder.join(name), bytes).expect("the temporary directory takes files");
}
