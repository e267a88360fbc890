use std::error::Error;
use std::fs;
use std::io;

use proptest::prelude::*;

use super::messages::files::{Fd_types, Remap_file_path_entry};
use super::smaps::VmFlags;
use super::testing::{Dump, EXE, PID};
use super::vma::status;
use super::*;

const RW: i32 = libc::PROT_READ | libc::PROT_WRITE;

fn load(dump: &Dump) -> Result<Process, ProcessError> {
    Process::load(dump.write().path())
}

/// Why it failed: the last sentence of the chain.
fn reason(result: Result<Process, ProcessError>) -> String {
    let error = result.expect_err("it must not load");
    let mut error: &dyn Error = &error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

struct NoFiles;

impl FileContent for NoFiles {
    fn read_at(&self, _: &Path, _: u64, _: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::NotFound.into())
    }
}

/// Every file holds its own page numbers, and ends after `0` pages.
struct Counting(u64);

impl FileContent for Counting {
    fn read_at(&self, _: &Path, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let count = (self.0 * PAGE).saturating_sub(offset).min(buffer.len() as u64) as usize;
        for (at, byte) in (offset..).zip(&mut buffer[..count]) {
            *byte = (at / PAGE) as u8 + 1;
        }
        Ok(count)
    }
}

#[test]
fn a_process_is_read_as_it_was_dumped() {
    let mut dump = Dump::new();
    dump.anonymous(0x10_0000, 4);
    let stack = dump.vma(0x7f_0000, 2, RW, status::ANON_PRIVATE);
    stack.set_flags((libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_GROWSDOWN) as u32);
    dump.vma(0x20_0000, 1, libc::PROT_READ, status::FILE_PRIVATE).set_shmid(u64::from(EXE));
    dump.vma(0x30_0000, 1, libc::PROT_READ, status::VVAR | status::ANON_PRIVATE);
    dump.content(0x10_1000, &[1; 4096]);
    dump.mm.mm_saved_auxv = vec![3, 0x40_0040, 6, 4096, 0, 0];
    dump.thread(PID + 1, 0x10_0800);
    dump.object(5, 9, Fd_types::EVENTFD);
    dump.descriptor(3, EXE, Fd_types::REG);
    let process = load(&dump).expect("it loads");
    assert_eq!((process.pid, &process.comm[..]), (PID, &b"program"[..]));
    assert_eq!(process.exe, Path::new("/bin/program"));
    assert_eq!(process.threads.iter().map(|t| t.tid).collect::<Vec<_>>(), [PID, PID + 1]);
    assert_eq!(process.threads[1].registers.sp, 0x10_0800);
    assert_eq!(process.threads[1].signal_stack, None);
    assert_eq!(process.threads[1].robust, Some((0x2000, 24)));
    let starts: Vec<_> = process.vmas.iter().map(|vma| vma.range.start).collect();
    assert_eq!(starts, [0x10_0000, 0x20_0000, 0x30_0000, 0x7f_0000]);
    assert_eq!(process.vmas[2].kind, VmaKind::Vvar);
    assert!(process.vmas[3].growsdown);
    assert_eq!(process.pages.bytes(), PAGE);
    assert_eq!((process.layout.aux(3), process.layout.aux(7)), (Some(0x40_0040), None));
    let signals: Vec<_> = process.signals.iter().map(|signal| signal.number).collect();
    assert_eq!((signals.len(), signals[8], signals[17]), (62, 10, 20));
    assert_eq!(process.descriptors[0].number, 3);
    assert_eq!(process.descriptors[1].kind, DescriptorKind::Events("an eventfd"));
    assert_eq!(process.vma_at(0x10_3fff).map(|vma| vma.range.start), Some(0x10_0000));
    assert_eq!(process.vma_at(0x10_4000), None);
}

#[test]
fn guards_are_no_mappings() {
    let mut dump = Dump::new();
    dump.anonymous(0x10_0000, 4);
    dump.vma(0x10_1000, 1, 0, status::GUARD);
    let process = load(&dump).expect("it loads");
    assert_eq!(process.vmas.len(), 1);
    assert_eq!(process.guards.first(), Some(&(0x10_1000..0x10_2000)));
}

#[test]
fn a_file_without_a_name_is_told_from_others() {
    let mut dump = Dump::new();
    dump.vma(0x20_0000, 1, RW, status::FILE_PRIVATE).set_shmid(u64::from(EXE));
    let mut remap = Remap_file_path_entry::new();
    remap.set_orig_id(EXE);
    remap.set_remap_id(7);
    dump.remaps.push(remap);
    let process = load(&dump).expect("it loads");
    assert!(matches!(process.vmas[0].kind, VmaKind::File { nameless: true, .. }));
}

#[test]
fn dumps_that_do_not_hold_together_are_refused() {
    let good = {
        let mut dump = Dump::new();
        dump.anonymous(0x10_0000, 4);
        dump.content(0x10_0000, &[1]);
        dump
    };
    assert!(load(&good).is_ok());
    let broken = |change: &dyn Fn(&mut Dump)| {
        let mut dump = good.clone();
        change(&mut dump);
        reason(load(&dump))
    };
    assert!(broken(&|dump| dump.inventory.set_img_version(3)).contains("version 3"));
    assert!(broken(&|dump| dump.cores[0].1.set_mtype(3)).contains("x86-64"));
    assert!(broken(&|dump| dump.tree.clear()).contains("process is missing"));
    assert!(broken(&|dump| dump.task().sigactions.truncate(61)).contains("61 entries"));
    assert!(broken(&|dump| dump.mm.set_exe_file_id(8)).contains("file 8"));
    assert!(
        broken(&|dump| {
            dump.anonymous(0x10_3000, 4);
        })
        .contains("0x103000")
    );
    assert!(
        broken(&|dump| {
            dump.anonymous(0x30_0010, 4);
        })
        .contains("impossible")
    );
    assert!(broken(&|dump| dump.mm.vmas[0].set_end(0x10_0000)).contains("impossible"));
    assert!(
        broken(&|dump| {
            dump.content(0x50_0000, &[1]);
        })
        .contains("no mapping")
    );
    assert!(
        broken(&|dump| {
            dump.content(0x10_3000, &[1; 8192]);
        })
        .contains("no mapping")
    );
    assert!(
        broken(&|dump| {
            dump.content(0x10_0000, &[1]);
        })
        .contains("impossible")
    );
    assert!(
        broken(&|dump| {
            dump.content(0x10_2000, &[1]).set_flags(2);
        })
        .contains("not written")
    );
    assert!(
        broken(&|dump| {
            dump.content(0x10_2000, &[1]).set_flags(5);
        })
        .contains("not written")
    );
    assert!(
        broken(&|dump| {
            dump.content(0x10_2000, &[1]).set_in_parent(true);
        })
        .contains("not written")
    );
    assert!(
        broken(&|dump| {
            dump.content(0x10_2000, &[1]).set_nr_pages(2);
        })
        .contains("8192 are there")
    );
    assert!(
        broken(&|dump| {
            dump.content(0x10_2000, &[1]).set_nr_pages(u64::MAX);
        })
        .contains("impossible")
    );
}

#[test]
fn pages_that_could_come_later_but_are_here_are_here() {
    let mut dump = Dump::new();
    dump.anonymous(0x10_0000, 4);
    dump.content(0x10_0000, &[1]).set_flags(6);
    assert_eq!(load(&dump).expect("it loads").pages.bytes(), PAGE);
}

#[test]
fn missing_and_foreign_files_are_named() {
    let folder = Dump::new().write();
    fs::remove_file(folder.path().join("pstree.img")).expect("it is there");
    assert!(matches!(Process::load(folder.path()), Err(ProcessError::Read { .. })));
    fs::write(folder.path().join("pstree.img"), b"something else").expect("it takes files");
    assert!(matches!(Process::load(folder.path()), Err(ProcessError::Damaged { .. })));
}

#[test]
fn a_file_that_is_adopted_becomes_memory_with_all_its_pages() {
    let mut dump = Dump::new();
    let text = dump.vma(0x20_0000, 2, libc::PROT_READ | libc::PROT_EXEC, status::FILE_PRIVATE);
    text.set_shmid(u64::from(EXE));
    let data = dump.vma(0x20_2000, 3, RW, status::FILE_PRIVATE);
    data.set_shmid(u64::from(EXE));
    data.set_pgoff(2 * PAGE);
    dump.content(0x20_2000, &[9; 4096]);
    let folder = dump.write();
    let mut process = Process::load(folder.path()).expect("it loads");
    process.adopt(Path::new("/bin/program"), &[5; 3 * 4096 + 10]);
    assert_eq!(process.adopted, [0x20_0000..0x20_2000, 0x20_2000..0x20_5000]);
    assert!(process.vmas.iter().all(|vma| vma.kind == VmaKind::Anonymous));
    assert_eq!(process.pages.bytes(), 4 * PAGE);
    let memory = Memory::open(&process, &NoFiles).expect("the pages are there");
    let mut bytes = vec![0xff; 5 * PAGE as usize];
    assert!(memory.read(0x20_0000, &mut bytes).expect("it reads"));
    assert!(bytes[..0x2000].iter().all(|byte| *byte == 5));
    assert!(bytes[0x2000..0x3000].iter().all(|byte| *byte == 9));
    assert!(bytes[0x3000..0x300a].iter().all(|byte| *byte == 5));
    assert!(bytes[0x300a..].iter().all(|byte| *byte == 0));
}

#[test]
fn smaps_add_what_criu_does_not_write_down() {
    let mut dump = Dump::new();
    dump.anonymous(0x10_0000, 1);
    dump.anonymous(0x20_0000, 1);
    let mut process = load(&dump).expect("it loads");
    let text =
        b"100000-101000 rw-p 0 0 0\nVmFlags: rd dp wf\n200000-201000 rw-p 0 0 0\nVmFlags: rd\n";
    process.annotate(&Smaps::parse(text).expect("it is right")).expect("it fits");
    assert!(process.vmas[0].special.contains(VmFlags::DROPPABLE));
    assert_eq!(process.vmas[1].special, VmFlags::default());
    assert!(process.annotated);
    let other = Smaps::parse(b"100000-101000 rw-p 0 0 0\n").expect("it is right");
    assert!(process.annotate(&other).is_err());
}

proptest! {
    #[test]
    fn memory_is_files_under_pages_over_nothing(dumped in prop::collection::btree_set(0_u64..8, 0..8), start in 0_u64..40_000, length in 0_usize..20_000) {
        // Four pages of a file from its third page on, which has five in all; then four without.
        let mut dump = Dump::new();
        let file = dump.vma(0x10_0000, 4, RW, status::FILE_PRIVATE);
        file.set_shmid(u64::from(EXE));
        file.set_pgoff(2 * PAGE);
        dump.anonymous(0x10_4000, 4);
        for page in &dumped {
            dump.content(0x10_0000 + page * PAGE, &[0x80 + *page as u8; 4096]);
        }
        let folder = dump.write();
        let process = Process::load(folder.path()).expect("it loads");
        let memory = Memory::open(&process, &Counting(5)).expect("the pages are there");
        let mut bytes = vec![0xff; length];
        let all = memory.read(0x10_0000 + start, &mut bytes).expect("it reads");
        prop_assert_eq!(all, start + length as u64 <= 8 * PAGE || length == 0);
        if all {
            for (at, byte) in (start..).zip(bytes) {
                let page = at / PAGE;
                let expected = match page {
                    page if dumped.contains(&page) => 0x80 + page as u8,
                    0..3 => page as u8 + 3,
                    _ => 0,
                };
                prop_assert_eq!(byte, expected);
            }
        }
    }
}
