//! Images written and read again, whole and damaged.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

const PAGE: usize = 4096;

struct Made {
    _folder: TempDir,
    path: PathBuf,
}

fn make() -> Made {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("snap.img");
    write(&path, false).unwrap();
    Made { _folder: folder, path }
}

fn memory() -> Vec<u8> {
    let mut memory = vec![0; 40 * PAGE];
    memory[..10].fill(1);
    memory[20 * PAGE..22 * PAGE].fill(2);
    memory
}

fn check() -> Check {
    Check {
        interpreter: "/proc/self/exe".into(),
        argv0: "python3".into(),
        machine: Machine::here(),
        ..Check::default()
    }
}

fn manifest() -> Manifest {
    Manifest { made_by: "0.1.0".into(), threads: vec!["python3".into()], ..Manifest::default() }
}

fn write(path: &Path, force: bool) -> Result<u64, ImageError> {
    let mut writer = Writer::create(path, force)?;
    assert_eq!(writer.append(&memory())?, MEMORY_OFFSET);
    fill(writer)
}

fn fill(writer: Writer) -> Result<u64, ImageError> {
    let mut criu = Archive::default();
    criu.push("pstree.img", b"tree");
    writer.finish(&Contents {
        check: &check(),
        plan: &[9; 5000],
        manifest: &manifest(),
        criu: &criu,
        pages: &[PageRun { pages_id: 1, address: 0x1000, length: 4096, offset: MEMORY_OFFSET }],
    })
}

fn fault(path: &Path) -> Fault {
    match Image::open(path).and_then(|image| image.verify()) {
        Err(ImageError::Unusable { why, .. }) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_image_is_read_as_it_was_written() {
    let made = make();
    let image = Image::open(&made.path).unwrap();
    image.compare(Depth::Quick).unwrap();
    image.verify().unwrap();
    assert_eq!(image.plan(), [9; 5000]);
    assert_eq!(image.check(), &check());
    assert_eq!(image.manifest().unwrap(), manifest());
    assert_eq!(image.criu_files().unwrap().get("pstree.img"), Some(&b"tree"[..]));
    assert_eq!(image.pages().unwrap().len(), 1);
    assert_eq!(image.memory(), 4096..41 * 4096);
    let mut bytes = vec![0; 40 * PAGE];
    image.file().read_exact_at(&mut bytes, image.memory().start).unwrap();
    assert_eq!(bytes, memory());
    assert_eq!(image.length(), fs::metadata(&made.path).unwrap().len());
}

#[test]
fn the_file_is_private_and_pages_of_zeros_are_holes() {
    let made = make();
    let metadata = fs::metadata(&made.path).unwrap();
    assert_eq!(metadata.mode() & 0o7777, 0o600);
    assert!(metadata.blocks() * 512 <= 12 * 4096, "{} blocks", metadata.blocks());
}

#[test]
fn memory_is_taken_from_files_and_filled_up_to_the_page() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("pages-1.img");
    let content: Vec<u8> = (0..600 * PAGE).map(|at| (at / 1000) as u8).collect();
    fs::write(&source, &content).unwrap();
    let source = File::open(source).unwrap();

    let path = folder.path().join("snap.img");
    let mut writer = Writer::create(&path, false).unwrap();
    assert_eq!(writer.append(b"short").unwrap(), 4096);
    assert_eq!(writer.position(), 8192);
    assert_eq!(writer.append_file(&source, 4096, 599 * 4096).unwrap(), 8192);
    let end = writer.position();
    assert!(matches!(
        writer.append_file(&source, 4096, 600 * 4096),
        Err(ImageError::Unwritten { why: WriteFault::ShortSource, .. })
    ));
    assert!(writer.position() >= end);
    fill(writer).unwrap();
    let image = Image::open(&path).unwrap();
    image.verify().unwrap();
    let mut bytes = vec![0; 600 * PAGE];
    image.file().read_exact_at(&mut bytes, 4096).unwrap();
    assert_eq!(&bytes[..6], b"short\0");
    assert_eq!(bytes[PAGE..], content[PAGE..]);
}

#[test]
fn nothing_is_replaced_without_being_asked() {
    let made = make();
    let before = fs::read(&made.path).unwrap();
    let refused = write(&made.path, false).unwrap_err();
    assert!(matches!(refused, ImageError::Unwritten { why: WriteFault::Exists, .. }));

    // Another one is faster: the second is refused at the end.
    let late = made.path.with_file_name("late.img");
    let mut writer = Writer::create(&late, false).unwrap();
    writer.append(&memory()).unwrap();
    fs::write(&late, "first").unwrap();
    assert!(matches!(fill(writer), Err(ImageError::Unwritten { why: WriteFault::Exists, .. })));
    assert_eq!(fs::read(&late).unwrap(), b"first");
    assert_eq!(fs::read(&made.path).unwrap(), before);
    assert_eq!(names(&made.path), ["late.img", "snap.img"]);
}

#[test]
fn force_replaces_the_file_and_what_has_it_open_keeps_the_old_one() {
    let made = make();
    fs::write(&made.path, "old").unwrap();
    let old = File::open(&made.path).unwrap();
    write(&made.path, true).unwrap();
    Image::open(&made.path).unwrap();
    assert_eq!(old.metadata().unwrap().len(), 3);
    assert_eq!(names(&made.path), ["snap.img"]);

    let link = made.path.with_file_name("link.img");
    symlink("snap.img", &link).unwrap();
    assert!(write(&link, false).is_err());
    let before = fs::metadata(&made.path).unwrap().ino();
    write(&link, true).unwrap();
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink(), "what it leads to is replaced");
    assert_ne!(fs::metadata(&made.path).unwrap().ino(), before);
    fs::remove_file(&made.path).unwrap();
    write(&link, true).unwrap();
    Image::open(&made.path).unwrap();
    let nowhere = made.path.with_file_name("nowhere.img");
    symlink("/dev/null", &nowhere).unwrap();
    let refused = write(&nowhere, true).unwrap_err();
    assert!(matches!(refused, ImageError::Unwritten { why: WriteFault::NotAFile(_), .. }));
    fs::remove_file(&nowhere).unwrap();
    symlink("absent/snap.img", &nowhere).unwrap();
    let refused = write(&nowhere, true).unwrap_err();
    assert!(matches!(refused, ImageError::Unwritten { why: WriteFault::Link(_), .. }));
}

#[test]
fn what_is_no_file_is_not_replaced_even_by_force() {
    let made = make();
    let directory = made.path.with_file_name("directory");
    fs::create_dir(&directory).unwrap();
    for path in [&directory, Path::new("/dev/null")] {
        let refused = Writer::create(path, true).unwrap_err();
        assert!(matches!(refused, ImageError::Unwritten { why: WriteFault::NotAFile(_), .. }));
    }
    for path in ["/", "..", ""] {
        let refused = Writer::create(Path::new(path), true).unwrap_err();
        assert!(matches!(refused, ImageError::Unwritten { why: WriteFault::NoName, .. }));
    }
    let refused = Writer::create(&made.path.with_file_name("absent/snap.img"), false).unwrap_err();
    assert!(matches!(refused, ImageError::Unwritten { why: WriteFault::Io(_), .. }));
}

#[test]
fn an_image_that_is_not_finished_was_never_there() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("snap.img");
    let mut writer = Writer::create(&path, false).unwrap();
    writer.append(&memory()).unwrap();
    assert_eq!(names(&path), Vec::<String>::new());
    drop(writer);
    assert_eq!(names(&path), Vec::<String>::new());
}

#[test]
fn a_file_that_must_have_a_name_has_a_temporary_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("snap.img");
    let writer = Writer::create_named(&path, false).unwrap();
    assert_eq!(names(&path).len(), 1);
    assert!(!path.exists());
    drop(writer);
    assert_eq!(names(&path), Vec::<String>::new());

    fill(Writer::create_named(&path, false).unwrap()).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
    fill(Writer::create_named(&path, true).unwrap()).unwrap();
    Image::open(&path).unwrap().verify().unwrap();

    let late = path.with_file_name("late.img");
    let writer = Writer::create_named(&late, false).unwrap();
    fs::write(&late, "first").unwrap();
    assert!(matches!(fill(writer), Err(ImageError::Unwritten { why: WriteFault::Exists, .. })));
    assert_eq!(names(&path), ["late.img", "snap.img"]);
}

#[test]
fn truncated_images_are_refused() {
    let made = make();
    let length = fs::metadata(&made.path).unwrap().len();
    let file = File::options().write(true).open(&made.path).unwrap();
    for length in [length - 1, length / 2, 4096] {
        file.set_len(length).unwrap();
        assert!(matches!(fault(&made.path), Fault::WrongLength { is, .. } if is == length));
    }
    for length in [4095, 8, 3] {
        file.set_len(length).unwrap();
        assert!(matches!(fault(&made.path), Fault::CutOff { is } if is == length));
    }
    file.set_len(0).unwrap();
    assert!(matches!(fault(&made.path), Fault::Empty));
}

#[test]
fn what_a_killed_snapshot_left_is_removed_by_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("snap.img");
    let old = SystemTime::now() - Duration::from_secs(3600);
    let left = |name: &str| {
        let file = File::create(folder.path().join(name)).unwrap();
        file.set_modified(old).unwrap();
        file
    };
    left(".preloaded-criu-dead");
    let used = left(".preloaded-criu-used");
    let _lock = nix::fcntl::Flock::lock(used, nix::fcntl::FlockArg::LockExclusive).unwrap();
    File::create(folder.path().join(".preloaded-criu-young")).unwrap();
    left("other");
    drop(Writer::create(&path, false).unwrap());
    assert_eq!(names(&path), [".preloaded-criu-used", ".preloaded-criu-young", "other"]);
}

#[test]
fn messages_have_a_why_and_a_hint() {
    use crate::sys::Explain;
    use std::error::Error;

    let made = make();
    fs::set_permissions(&made.path, fs::Permissions::from_mode(0o666)).unwrap();
    let error = Image::open(&made.path).unwrap_err();
    assert_eq!(error.to_string(), format!("cannot use the image {}", made.path.display()));
    assert_eq!(error.source().unwrap().to_string(), "others may write to it (mode 0666)");
    assert!(error.hint().contains("chmod"));
}

fn names(beside: &Path) -> Vec<String> {
    let entries = fs::read_dir(beside.parent().unwrap()).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_flipped_bit_in_a_section_is_noticed(kind in 0..6_usize, at: u64, bit in 0..8) {
        let made = make();
        let section = Image::open(&made.path).unwrap().section(SectionKind::ALL[kind]);
        let place = section.offset + at % section.length;
        let file = File::options().read(true).write(true).open(&made.path).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, place).unwrap();
        byte[0] ^= 1_u8 << bit;
        file.write_all_at(&byte, place).unwrap();
        prop_assert!(matches!(fault(&made.path), Fault::Damaged(_)));
    }
}

/// `cargo test --release --lib opening_costs -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
fn opening_costs() {
    const FILES: usize = 140;
    const ROUNDS: u32 = 1000;
    let folder = tempfile::tempdir().unwrap();
    let deep = folder.path().join("lib/python3.11/site-packages/library/subpackage");
    fs::create_dir_all(&deep).unwrap();
    let files = (0..FILES).map(|number| {
        let path = deep.join(format!("_module_{number}.cpython-311-x86_64-linux-gnu.so"));
        fs::write(&path, "content").unwrap();
        FileStamp::of(&path).unwrap()
    });
    let check = Check { files: files.collect(), ..check() };
    let path = folder.path().join("snap.img");
    let mut writer = Writer::create(&path, false).unwrap();
    writer.append(&memory()).unwrap();
    let contents = Contents {
        check: &check,
        plan: &vec![9; 100_000],
        manifest: &manifest(),
        criu: &Archive::default(),
        pages: &[],
    };
    writer.finish(&contents).unwrap();
    let average = |name: &str, work: &dyn Fn()| {
        let start = std::time::Instant::now();
        (0..ROUNDS).for_each(|_| work());
        println!("{name}: {:?}", start.elapsed() / ROUNDS);
    };
    average("open", &|| drop(Image::open(&path).unwrap()));
    average("machine", &|| drop(Machine::here()));
    let image = Image::open(&path).unwrap();
    average("compare", &|| image.compare(Depth::Quick).unwrap());
}
