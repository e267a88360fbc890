//! What is done to bytes that somebody else has written. Each target is run by cargo-fuzz
//! (`scripts/fuzz`), and by `tests/parsers.rs` with its seeds and with changes of them.
#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "a program uses one target; a panic is a finding"
)]

use std::cell::OnceCell;
use std::fs::{self, File, OpenOptions, Permissions};
use std::ops::Range;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

use preloaded_criu::agent::{Event, Job};
use preloaded_criu::image::{Archive, Check, Image, Manifest, SectionKind};
use preloaded_criu::native::builder::{Facts, build};
use preloaded_criu::native::view::PlanView;
use preloaded_criu::native::xsave::XsaveLayout;
use preloaded_criu::process::placement::placement;
use preloaded_criu::process::smaps::Smaps;
use preloaded_criu::process::{Memory, OnDisk, Process};
use restore_plan::{HANDOVER_TEXT, Handover, SOURCE_FILE, SOURCE_IMAGE};
use tempfile::TempDir;
use xxhash_rust::xxh3::xxh3_64;

/// A target: panics where the bytes do what they must not.
type Target = fn(&[u8]);

/// All targets by their names.
pub(crate) const TARGETS: [(&str, Target); 6] = [
    ("check", check),
    ("container", container),
    ("manifest", manifest),
    ("orders", orders),
    ("plan", plan),
    ("process", process),
];

const PAGE: usize = 4096;
/// One past the highest address of a process.
const ADDRESSES: u64 = 1 << 47;

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
pub(crate) fn container(bytes: &[u8]) {
    let mut bytes = bytes.to_vec();
    seal(&mut bytes);
    in_folder(|folder| {
        let path = folder.join("image");
        let file = OpenOptions::new().write(true).create(true).truncate(true).open(&path).unwrap();
        file.set_permissions(Permissions::from_mode(0o600)).unwrap();
        file.write_all_at(&bytes, 0).unwrap();
        let Ok(image) = Image::open(&path) else { return };
        for kind in SectionKind::ALL {
            let range = image.section(kind).range();
            assert!(
                range.start <= range.end && range.end <= bytes.len() as u64,
                "{kind:?} {range:?}"
            );
        }
        let _ = image.manifest();
        if let Ok(archive) = image.criu_files() {
            names_stay_in_their_directory(&archive);
        }
        if let Ok(pages) = image.pages() {
            for run in pages {
                let memory = image.memory();
                assert!(run.offset >= memory.start && run.offset + run.length <= memory.end);
            }
        }
        let _ = image.verify();
        if let Ok(view) = PlanView::new(image.plan(), image.length(), image.memory()) {
            is_sound(&view, &image.memory());
        }
    });
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
pub(crate) fn plan(bytes: &[u8]) {
    let memory = PAGE as u64..1 << 30;
    if let Ok(view) = PlanView::new(bytes, memory.end, memory.clone()) {
        is_sound(&view, &memory);
    }
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
pub(crate) fn process(bytes: &[u8]) {
    let Some(archive) = Archive::decode(bytes.to_vec()) else { return };
    names_stay_in_their_directory(&archive);
    let folder = folder();
    for (name, content) in archive.files().take(32) {
        if name.len() < 255 {
            fs::write(folder.path().join(name), content).unwrap();
        }
    }
    if let Some(text) = archive.get("smaps") {
        let _ = Smaps::parse(text);
    }
    let Ok(mut process) = Process::load(folder.path()) else { return };
    let smaps = archive.get("smaps").and_then(|text| Smaps::parse(text).ok());
    if let Some(smaps) = smaps {
        let _ = process.annotate(&smaps);
    }
    let _ = process.refusals(&[202]).iter().map(ToString::to_string).count();
    let files = OnDisk::default();
    let Ok(memory) = Memory::open(&process, &files) else { return };
    let Ok(placements) = placement(&memory, 16, &|_| bytes.len() % 2 == 1) else { return };
    // Only what is not refused becomes an image.
    if !process.refusals(&[202]).is_empty() {
        return;
    }
    let facts =
        Facts { thaw: 0, default_sigint: true, own_descriptors: vec![202], touched: vec![] };
    let Some(xsave) = XsaveLayout::of_this_machine() else { return };
    let _ = build(&memory, &placements, &facts, &xsave, PAGE as u64);
}

/// The manifest.
pub(crate) fn manifest(bytes: &[u8]) {
    if let Ok(manifest) = serde_json::from_slice::<Manifest>(bytes) {
        let text = serde_json::to_vec(&manifest).unwrap();
        assert_eq!(serde_json::from_slice::<Manifest>(&text).unwrap(), manifest);
    }
}

/// What an image depends on.
pub(crate) fn check(bytes: &[u8]) {
    if let Some(check) = Check::decode(bytes) {
        assert_eq!(check.encode(), bytes);
        assert!(check.interpreter.is_absolute());
        assert!(check.files.iter().all(|file| file.path.is_absolute()));
    }
}

/// What is said between launcher, restorer and agent.
pub(crate) fn orders(bytes: &[u8]) {
    let text = bytes.get(..HANDOVER_TEXT).unwrap_or(bytes);
    if let Some(handover) = Handover::from_text(text) {
        assert_eq!(handover.to_text(), text);
    }
    for line in bytes.split(|byte| *byte == b'\n') {
        let _ = serde_json::from_slice::<Event>(line);
        if let Ok(job) = serde_json::from_slice::<Job>(line) {
            let text = serde_json::to_vec(&job).unwrap();
            assert_eq!(serde_json::from_slice::<Job>(&text).unwrap(), job);
        }
    }
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
    put("process", &section(SectionKind::Criu));
    put("container", &small(&opened, &section));
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
