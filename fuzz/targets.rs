//! What is done to bytes that somebody else has written. Each target is run by cargo-fuzz
//! (`scripts/fuzz`), and by `tests/parsers.rs` with its seeds and with changes of them.
#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "a program uses one target; a panic is a finding"
)]

use std::cell::OnceCell;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

use preloaded_criu::agent::{Event, Job};
use preloaded_criu::criu::Log;
use preloaded_criu::criu::restore::{Restore, descriptors, numbers};
use preloaded_criu::image::{self, Archive, Check, Image, Manifest, SectionKind, decode_pages};
use preloaded_criu::native::builder::{Facts, build};
use preloaded_criu::native::view::PlanView;
use preloaded_criu::native::xsave::XsaveLayout;
use preloaded_criu::process::placement::placement;
use preloaded_criu::process::smaps::Smaps;
use preloaded_criu::process::{FileContent, Memory, PageSource, Process};
use preloaded_criu::run::criu_terms::{memory, yielding};
use preloaded_criu::sys::caller::{Caller, Capabilities};
use restore_plan::{HANDOVER_TEXT, Handover, PROTECT, SOURCE_FILE, SOURCE_IMAGE};
use tempfile::TempDir;
use xxhash_rust::xxh3::xxh3_64;

/// A target: panics where the bytes do what they must not; none where they were refused on the way.
type Target = fn(&[u8]) -> Option<()>;

/// All targets by their names.
pub(crate) const TARGETS: [(&str, Target); 7] = [
    ("check", check),
    ("container", container),
    ("manifest", manifest),
    ("orders", orders),
    ("plan", plan),
    ("process", process),
    ("restore", restore),
];

const PAGE: usize = 4096;
/// One past the highest address of a process.
const ADDRESSES: u64 = 1 << 47;
/// The memory of an image that has all that a plan asks for.
const ROOM: Range<u64> = PAGE as u64..1 << 30;

/// A private directory in memory.
fn folder() -> TempDir {
    let base = Path::new("/dev/shm");
    let folder = tempfile::Builder::new().prefix("parsed-").tempdir_in(base).unwrap();
    fs::set_permissions(folder.path(), Permissions::from_mode(0o700)).unwrap();
    folder
}

thread_local! {
    static FOLDER: OnceCell<TempDir> = const { OnceCell::new() };
}

fn in_folder<T>(work: impl FnOnce(&Path) -> T) -> T {
    FOLDER.with(|cell| work(cell.get_or_init(folder).path()))
}

/// The container: the file as a whole. Checksums are made right first, or nothing would get past them.
pub(crate) fn container(bytes: &[u8]) -> Option<()> {
    let mut bytes = bytes.to_vec();
    seal(&mut bytes);
    in_folder(|folder| {
        let path = folder.join("image");
        let file = OpenOptions::new().write(true).create(true).truncate(true).open(&path).unwrap();
        file.set_permissions(Permissions::from_mode(0o600)).unwrap();
        file.write_all_at(&bytes, 0).unwrap();
        let image = Image::open(&path).ok()?;
        for kind in SectionKind::ALL {
            let range = image.section(kind).range();
            assert!(
                range.start <= range.end && range.end <= bytes.len() as u64,
                "{kind:?} {range:?}"
            );
        }
        let manifest = image.manifest();
        let archive = image.criu_files();
        let _ = archive.as_ref().inspect(|archive| names_stay_in_their_directory(archive));
        let pages = image.pages();
        for run in pages.iter().flatten() {
            let memory = image.memory();
            assert!(run.offset >= memory.start && run.offset + run.length <= memory.end);
        }
        let verified = image.verify();
        if let Ok(view) = PlanView::new(image.plan(), image.length(), image.memory()) {
            is_sound(&view, &image.memory());
        }
        manifest.and(archive).and(pages).and(verified).ok()
    })
}

/// Gives every section, and then the header, the checksum that it has to have (`src/image/format.rs`).
fn seal(bytes: &mut [u8]) {
    if bytes.len() < PAGE {
        return;
    }
    let number =
        |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    for entry in (32..32 + 32 * SectionKind::ALL.len()).step_by(32) {
        let (offset, length) = (number(bytes, entry + 8), number(bytes, entry + 16));
        let end = offset.checked_add(length).filter(|end| *end <= bytes.len() as u64);
        let (Ok(start), Some(end)) = (usize::try_from(offset), end) else { continue };
        let Some(section) = bytes.get(start..usize::try_from(end).unwrap()) else { continue };
        let sum = xxh3_64(section).to_le_bytes();
        bytes[entry + 24..entry + 32].copy_from_slice(&sum);
    }
    bytes[16..24].fill(0);
    let sum = xxh3_64(&bytes[..PAGE]).to_le_bytes();
    bytes[16..24].copy_from_slice(&sum);
}

fn names_stay_in_their_directory(archive: &Archive) {
    for (name, _) in archive.files() {
        let path = Path::new(name);
        assert_eq!(path.file_name(), Some(path.as_os_str()), "{name:?}");
        assert!(!name.contains(['/', '\0']) && name != "." && name != "..", "{name:?}");
    }
}

/// The restore plan, for an image whose memory has room for what the usual offsets name.
pub(crate) fn plan(bytes: &[u8]) -> Option<()> {
    let view = PlanView::new(bytes, ROOM.end, ROOM).ok()?;
    is_sound(&view, &ROOM);
    Some(())
}

/// What the restorer relies on, said once more in the plainest way.
fn is_sound(view: &PlanView<'_>, memory: &Range<u64>) {
    let inside =
        |range: Range<u64>| assert!(memory.start <= range.start && range.end <= memory.end);
    let mut mapped: Vec<Range<u64>> = Vec::new();
    for source in view.sources() {
        assert!(source.kind != SOURCE_FILE || view.path(&source).is_some_and(Path::is_absolute));
        for mapping in view.mappings_of(&source) {
            let end = mapping.start.checked_add(mapping.length).unwrap();
            assert!(mapping.length > 0 && end <= ADDRESSES);
            if source.kind == SOURCE_IMAGE {
                inside(mapping.offset..mapping.offset.checked_add(mapping.length).unwrap());
            }
            mapped.push(mapping.start..end);
        }
    }
    assert_eq!(mapped.len(), view.mappings().len());
    mapped.sort_unstable_by_key(|range| range.start);
    assert!(mapped.windows(2).all(|pair| pair[0].end <= pair[1].start), "mappings lie over others");
    for copy in view.copies() {
        inside(copy.offset..copy.offset.checked_add(copy.length).unwrap());
        assert!(copy.address.checked_add(copy.length).unwrap() <= ADDRESSES);
    }
    for hole in view.holes() {
        let touches = |range: &Range<u64>| range.start < hole.end && hole.start < range.end;
        assert!(hole.start < hole.end && !mapped.iter().any(touches), "a hole is none");
    }
    let covers = |address: u64| mapped.iter().any(|range| range.contains(&address));
    for range in view.touched().map(|touched| touched.start..touched.end) {
        assert!(range.start < range.end && range.end <= ADDRESSES);
        assert!(range.step_by(PAGE).take(1 << 12).all(covers), "memory is touched that is none");
    }
    for advice in view.advices() {
        assert!(covers(advice.start) && covers(advice.start + advice.length - 1));
        // Nothing that throws memory away: madvise(2), MADV_DONTNEED, FREE and REMOVE.
        assert!(advice.call == PROTECT || ![4, 8, 9].contains(&advice.value), "{advice:?}");
    }
    for special in view.specials() {
        let end = special.start.checked_add(special.length).unwrap();
        assert!(!mapped.iter().any(|range| range.start < end && special.start < range.end));
    }
    assert!(covers(view.header().thaw));
    for thread in view.threads() {
        assert!(thread.clear_tid == 0 || covers(thread.clear_tid));
    }
    for signal in view.signals() {
        assert!((1..=64).contains(&signal.number) && signal.number != 9 && signal.number != 19);
    }
    for descriptor in view.descriptors() {
        assert!(descriptor.number > 2 && view.name(descriptor.name).is_some_and(Path::is_absolute));
    }
}

/// CRIU's files, as an archive has them: read into a process, and made a plan of.
///
/// The archive has no pages, only words of them (entry `words`: offset and word, of eight bytes each), and
/// mapped files by the last part of their names. All that is not said is zero, and what the kernel says of
/// the mappings (entry `smaps`) is usual.
pub(crate) fn process(bytes: &[u8]) -> Option<()> {
    let archive = Archive::decode(bytes.to_vec())?;
    names_stay_in_their_directory(&archive);
    let folder = folder();
    for (name, content) in archive.files().take(48) {
        if name.len() < 255 {
            fs::write(folder.path().join(name), content).unwrap();
        }
    }
    let _ = Log::read(folder.path());
    let pages = folder.path().join("pages-1.img");
    let pages = OpenOptions::new().create(true).truncate(false).write(true).open(pages).unwrap();
    pages.set_len(MOST_DUMPED).unwrap();
    for record in archive.get("words").unwrap_or_default().as_chunks::<16>().0.iter().take(4096) {
        let (offset, word) = record.split_at(8);
        let offset = u64::from_le_bytes(offset.try_into().unwrap());
        pages.write_all_at(word, offset % (MOST_DUMPED - 8)).unwrap();
    }
    let (mut process, others) = Process::load_tree(folder.path()).ok()?;
    let smaps = match archive.get("smaps") {
        Some(text) => Smaps::parse(text).ok()?,
        None => usual(&process),
    };
    process.annotate(&smaps).ok()?;
    let own = [202];
    let refusals = process.refusals(&own);
    let _ = refusals.iter().map(ToString::to_string).count();
    for other in &others {
        let _ = other.refusals_as_other(&own).iter().map(ToString::to_string).count();
    }
    let files = Mapped(&archive);
    let memory = Memory::open(&process, &files).ok()?;
    let placements = placement(&memory, 16, &|_| bytes.len() % 2 == 1).ok()?;
    // Only what is not refused becomes an image.
    refusals.is_empty().then_some(())?;
    let code = process.vmas.iter().find(|vma| vma.prot & PROT_EXEC != 0)?;
    let facts = Facts { thaw: code.range.start, default_sigint: true, own_descriptors: own.into() };
    let built = build(&memory, &placements, &facts, &XsaveLayout::of_this_machine()?, PAGE as u64);
    // What a run would not accept does not become an image either.
    let plan = built.ok()?.plan(&[]).ok()?;
    process.rewrite(folder.path(), &[]).ok()?;
    plan.starts_with(&restore_plan::MAGIC.to_le_bytes()).then_some(())
}

/// No dump has more pages than this.
const MOST_DUMPED: u64 = 64 << 20;
const PROT_EXEC: u32 = 4;

/// What the kernel says of ordinary mappings.
fn usual(process: &Process) -> Smaps {
    let mut text = String::new();
    for Range { start, end } in process.vmas.iter().map(|vma| &vma.range) {
        writeln!(text, "{start:x}-{end:x} rw-p 0 0 0\nVmFlags: rd wr").unwrap();
    }
    Smaps::parse(text.as_bytes()).unwrap()
}

/// The files of an archive, by the last part of their names. What is not there is one system call after the
/// other: a thread must have been frozen in one.
struct Mapped<'a>(&'a Archive);

impl FileContent for Mapped<'_> {
    fn read_at(&self, path: &Path, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let name = path.file_name().and_then(OsStr::to_str);
        let Some(content) = name.and_then(|name| self.0.get(name)) else {
            let call = [0x0f, 0x05];
            let bytes = call.iter().cycle().skip((offset % 2) as usize);
            buffer.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
            return Ok(buffer.len());
        };
        let from = content.len().min(usize::try_from(offset).unwrap_or(usize::MAX));
        let count = buffer.len().min(content.len() - from);
        buffer[..count].copy_from_slice(&content[from..from + count]);
        Ok(count)
    }
}

/// CRIU's files, as an archive has them, a plan (entry `plan`) and the index of the pages (`pages`): made
/// into the files of one run by CRIU. With an entry `eager`, everything is copied.
pub(crate) fn restore(bytes: &[u8]) -> Option<()> {
    let archive = Archive::decode(bytes.to_vec())?;
    let view = PlanView::new(archive.get("plan")?, ROOM.end, ROOM).ok()?;
    let pages = decode_pages(archive.get("pages")?, &ROOM)?;
    let memory = memory(&view, pages, archive.get("eager").is_some());
    let others = memory.others.values().flatten();
    let copied = memory.copies.iter().chain(others).map(|copy| copy.range.end - copy.range.start);
    // What is copied is written, however often.
    (copied.fold(0, u64::saturating_add) <= MOST_DUMPED / 8).then_some(())?;
    let numbers = numbers(&archive).ok()?;
    let _ = descriptors(&archive).ok()?;
    let folder = folder();
    let directory = folder.path().join("files");
    fs::create_dir(&directory).unwrap();
    let image = File::create_new(folder.path().join("image")).unwrap();
    image.set_len(ROOM.end).unwrap();
    let image = File::open(folder.path().join("image")).unwrap();
    let restore = Restore {
        archive: &archive,
        image: &image,
        image_path: "/image".into(),
        memory,
        yielding: yielding(&view),
        caller: &caller(),
        numbers: (1000..).take(numbers.len()).collect(),
        frozen_orders: 202,
        orders: 203,
    };
    let written = restore.write(&directory);
    let _ = restore.request();
    let beside = fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(beside, 2, "a file was written elsewhere");
    written.ok()
}

fn caller() -> Caller {
    Caller {
        users: [1000; 4],
        groups: [1000; 4],
        supplementary: vec![4, 24],
        capabilities: Capabilities::default(),
        secure_bits: 0,
        no_new_privileges: true,
        no_huge_pages: false,
        umask: 0o22,
        limits: vec![(1024, 4096); 16],
        nice: 0,
        scheduling: (0, 0),
        mask: 1 << 11,
        ignored: 1,
        timers: [(0, 0); 3],
        session: 77,
        group: 78,
    }
}

/// The manifest.
pub(crate) fn manifest(bytes: &[u8]) -> Option<()> {
    let manifest = serde_json::from_slice::<Manifest>(bytes).ok()?;
    let text = serde_json::to_vec(&manifest).unwrap();
    assert_eq!(serde_json::from_slice::<Manifest>(&text).unwrap(), manifest);
    Some(())
}

/// What an image depends on.
pub(crate) fn check(bytes: &[u8]) -> Option<()> {
    let check = Check::decode(bytes)?;
    assert_eq!(check.encode(), bytes);
    assert!(check.interpreter.is_absolute());
    assert!(check.files.iter().all(|file| file.path.is_absolute()));
    Some(())
}

/// What is said between launcher, restorer and agent.
pub(crate) fn orders(bytes: &[u8]) -> Option<()> {
    let text = bytes.get(..HANDOVER_TEXT).unwrap_or(bytes);
    let handover = Handover::from_text(text);
    if let Some(handover) = &handover {
        assert_eq!(handover.to_text(), text);
    }
    let mut said = None;
    for line in bytes.split(|byte| *byte == b'\n') {
        said = said.or(serde_json::from_slice::<Event>(line).map(drop).ok());
        if let Ok(job) = serde_json::from_slice::<Job>(line) {
            let text = serde_json::to_vec(&job).unwrap();
            assert_eq!(serde_json::from_slice::<Job>(&text).unwrap(), job);
            said = Some(());
        }
    }
    said.or(handover.map(drop))
}

/// Makes seeds of an image: what each target would read of it.
pub(crate) fn seeds(image: &Path, folder: &Path) {
    let opened = Image::open(image).unwrap();
    let section = |kind| {
        let range = opened.section(kind).range();
        let mut bytes = vec![0; usize::try_from(range.end - range.start).unwrap()];
        opened.file().read_exact_at(&mut bytes, range.start).unwrap();
        bytes
    };
    let put = |target: &str, bytes: &[u8]| {
        fs::create_dir_all(folder.join(target)).unwrap();
        fs::write(folder.join(target).join("image"), bytes).unwrap();
    };
    put("check", &section(SectionKind::Check));
    put("plan", &section(SectionKind::Plan));
    put("manifest", &section(SectionKind::Manifest));
    let files = section(SectionKind::Criu);
    let mut restored = Archive::decode(files.clone()).unwrap();
    restored.push("plan", &section(SectionKind::Plan));
    restored.push("pages", &section(SectionKind::Pages));
    put("restore", restored.as_bytes());
    put("process", with_sync_point(&opened, files).as_bytes());
    put("container", &small(&opened, &section));
}

/// CRIU's files, and the words of the pages at which the main thread was frozen.
fn with_sync_point(image: &Image, files: Vec<u8>) -> Archive {
    let mut archive = Archive::decode(files).unwrap();
    let folder = folder();
    for (name, content) in archive.files() {
        fs::write(folder.path().join(name), content).unwrap();
    }
    let pages = File::create_new(folder.path().join("pages-1.img")).unwrap();
    pages.set_len(MOST_DUMPED).unwrap();
    let process = Process::load(folder.path()).unwrap();
    let at = process.threads[0].registers.ip & !7;
    let run = process.pages.within(at..at + 8).next().unwrap();
    let PageSource::Dump(offset) = run.source else { panic!("{run:?}") };
    let here = |run: &&image::PageRun| (run.address..run.address + run.length).contains(&at);
    let runs = image.pages().unwrap();
    let kept = runs.iter().find(here).unwrap();
    let mut words = Vec::new();
    for address in [at - 8, at, at + 8] {
        let mut word = [0; 8];
        image.file().read_exact_at(&mut word, kept.offset + (address - kept.address)).unwrap();
        words.extend((offset + address - run.range.start).to_le_bytes());
        words.extend(word);
    }
    archive.push("words", &words);
    archive
}

/// An image without its memory: what a parser has to do with, in few bytes.
fn small(image: &Image, section: &dyn Fn(SectionKind) -> Vec<u8>) -> Vec<u8> {
    let mut file = vec![0; PAGE];
    File::open(image.path()).unwrap().read_exact_at(&mut file, 0).unwrap();
    for (index, kind) in SectionKind::ALL.into_iter().enumerate() {
        let bytes = match kind {
            SectionKind::Memory => vec![1; PAGE],
            // Tables in full would be most of it.
            SectionKind::Criu | SectionKind::Pages => Vec::new(),
            kind => section(kind),
        };
        let entry = 32 + 32 * index;
        let offset = file.len() as u64;
        file.extend(&bytes);
        file.resize(file.len().next_multiple_of(PAGE), 0);
        file[entry + 8..entry + 16].copy_from_slice(&offset.to_le_bytes());
        file[entry + 16..entry + 24].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
    }
    let length = file.len() as u64;
    file[24..32].copy_from_slice(&length.to_le_bytes());
    seal(&mut file);
    file
}
