//! What must be as it was when the image was made, and whether it is.
//!
//! The section, numbers little-endian, strings behind their length (u64):
//!
//! ```text
//!   interpreter, argv0, libc, kernel release     strings
//!   settings: their number u32, name and value of each; what the locale is made from, the encoding: strings
//!   why only CRIU can restore it: their number u32, strings
//!   variables that the imports have read (`variables`)
//!   vDSO hash u64
//!   register states u64, their bytes u32, number of feature words u32, feature words u32 each
//!   files, to the end: path, size u64, modified {seconds i64, nanoseconds u32}, content hash u64
//! ```

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use xxhash_rust::xxh3::Xxh3;

use super::bytes::{Cursor, put_bytes};
use super::machine::{Cpu, Machine, WORDS};
use super::variables::Variables;
use crate::cpython::Settings;

/// What an image depends on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Check {
    /// The file that is executed: the interpreter, its links resolved.
    pub interpreter: PathBuf,
    /// What the interpreter was called when it was frozen.
    pub argv0: OsString,
    /// The C library and its version, for messages.
    pub libc: String,
    /// Kernel release, for messages: what counts is the vDSO.
    pub kernel: String,
    /// What the interpreter was started with.
    pub settings: Settings,
    /// Why only CRIU can restore it, each as a sentence; nothing where either engine can.
    pub only_criu: Vec<String>,
    /// What the imports have read of the environment.
    pub variables: Variables,
    /// Kernel and processor.
    pub machine: Machine,
    /// Files whose content the image refers to: the interpreter and all that is mapped.
    pub files: Vec<FileStamp>,
}

/// A file as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileStamp {
    /// Its path.
    pub path: PathBuf,
    /// Length in bytes.
    pub size: u64,
    /// When its content was last changed, as its file system says.
    pub modified: Time,
    /// xxh3 of its content.
    pub content: u64,
}

/// A time as stat(2) gives it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Time {
    /// Seconds since 1970.
    pub seconds: i64,
    /// Nanoseconds of the second.
    pub nanoseconds: u32,
}

/// What is no longer as it was.
#[derive(Debug, thiserror::Error)]
pub enum Stale {
    /// Another kernel.
    #[error("another kernel runs here than the one it was made under ({made_under})")]
    Kernel {
        /// Release of the kernel that it was made under.
        made_under: String,
    },
    /// A lesser processor.
    #[error("this processor lacks what the one that it was made on has: {}", missing.join(", "))]
    Cpu {
        /// Names of the features, as in `/proc/cpuinfo`.
        missing: Vec<&'static str>,
    },
    /// A processor with other registers.
    #[error(
        "this processor saves its registers in another layout than the one that it was made on"
    )]
    Registers,
    /// A file that is not there.
    #[error("{} is gone", .0.display())]
    Gone(PathBuf),
    /// A file with other content.
    #[error("{} has changed since", .0.display())]
    Changed(PathBuf),
    /// A pipe, a device or a directory where a file was.
    #[error("{} is no file any more", .0.display())]
    NoFile(PathBuf),
    /// A variable that the imports would read otherwise now.
    #[error("its imports have read the environment variable {}, which is another here",
        String::from_utf8_lossy(.0))]
    Variable(Vec<u8>),
    /// A file that this user may not look at.
    #[error("{} cannot be looked at: {why}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        why: io::Error,
    },
}

impl Stale {
    fn unreadable(path: &Path, why: io::Error) -> Self {
        let path = path.to_owned();
        match why.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Self::Gone(path),
            _ => Self::Unreadable { path, why },
        }
    }
}

/// How much is compared. The machine always is: nothing works on another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Depth {
    /// No file.
    Off,
    /// Length and time of each file that changes when a package does.
    #[default]
    Quick,
    /// The content of every file that a module came from or that is mapped.
    Full,
}

impl Check {
    /// Whether the machine and all files are as they were, as far as that is wanted.
    pub fn compare(&self, depth: Depth) -> Result<(), Stale> {
        self.compare_machine(&Machine::here())?;
        match depth {
            Depth::Off => Ok(()),
            Depth::Quick => self.files.iter().try_for_each(FileStamp::compare),
            Depth::Full => self.files.iter().try_for_each(FileStamp::compare_content),
        }
    }

    /// Whether the imports would find in this environment what they have found. A `child` may be given
    /// another number of threads: it sets its pools to it.
    pub(super) fn compare_variables<'a>(
        &'a self,
        environment: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
        child: bool,
    ) -> Result<(), Stale> {
        let differing = self.variables.differing(environment, child);
        differing.map_or(Ok(()), |name| Err(Stale::Variable(name.to_vec())))
    }

    /// Whether a file has the content that it had, its hash says.
    pub(super) fn compare_content(path: &Path, content: u64) -> Result<(), Stale> {
        let (file, metadata) = open(path)?;
        compare_hash(path, file, metadata.size(), content)
    }

    fn compare_machine(&self, here: &Machine) -> Result<(), Stale> {
        let made_on = &self.machine;
        if here.vdso != made_on.vdso {
            return Err(Stale::Kernel { made_under: self.kernel.clone() });
        }
        let missing = here.cpu.lacks(&made_on.cpu);
        if !missing.is_empty() {
            return Err(Stale::Cpu { missing });
        }
        if here.cpu.saves_like(&made_on.cpu) { Ok(()) } else { Err(Stale::Registers) }
    }

    /// The section's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_bytes(&mut out, self.interpreter.as_os_str().as_bytes());
        put_bytes(&mut out, self.argv0.as_bytes());
        put_bytes(&mut out, self.libc.as_bytes());
        put_bytes(&mut out, self.kernel.as_bytes());
        put_settings(&mut out, &self.settings);
        out.extend((self.only_criu.len() as u32).to_le_bytes());
        for reason in &self.only_criu {
            put_bytes(&mut out, reason.as_bytes());
        }
        self.variables.encode(&mut out);
        let Machine { vdso, cpu } = &self.machine;
        out.extend(vdso.to_le_bytes());
        out.extend(cpu.states.to_le_bytes());
        out.extend(cpu.state_bytes.to_le_bytes());
        out.extend((WORDS as u32).to_le_bytes());
        out.extend(cpu.words.iter().flat_map(|word| word.to_le_bytes()));
        for file in &self.files {
            put_bytes(&mut out, file.path.as_os_str().as_bytes());
            out.extend(file.size.to_le_bytes());
            out.extend(file.modified.seconds.to_le_bytes());
            out.extend(file.modified.nanoseconds.to_le_bytes());
            out.extend(file.content.to_le_bytes());
        }
        out
    }

    /// Reads a section. `None` unless it is whole and its paths are absolute and could be names of
    /// files.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut cursor = Cursor::new(bytes);
        let interpreter = path(&mut cursor)?;
        let argv0 = cursor.bytes()?;
        let argv0 = (!argv0.contains(&0)).then(|| OsString::from_vec(argv0.to_vec()))?;
        let libc = text(&mut cursor)?;
        let kernel = text(&mut cursor)?;
        let settings = settings(&mut cursor)?;
        let mut only_criu = Vec::new();
        for _ in 0..cursor.u32()? {
            only_criu.push(text(&mut cursor)?);
        }
        let variables = Variables::decode(&mut cursor)?;
        let vdso = cursor.u64()?;
        let mut cpu = Cpu { states: cursor.u64()?, state_bytes: cursor.u32()?, ..Cpu::default() };
        (cursor.u32()? as usize == WORDS).then_some(())?;
        for word in &mut cpu.words {
            *word = cursor.u32()?;
        }
        let mut files = Vec::new();
        while !cursor.is_at_end() {
            files.push(FileStamp {
                path: path(&mut cursor)?,
                size: cursor.u64()?,
                modified: Time { seconds: cursor.i64()?, nanoseconds: cursor.u32()? },
                content: cursor.u64()?,
            });
        }
        let machine = Machine { vdso, cpu };
        Some(Self {
            interpreter,
            argv0,
            libc,
            kernel,
            settings,
            only_criu,
            variables,
            machine,
            files,
        })
    }
}

fn put_settings(out: &mut Vec<u8>, settings: &Settings) {
    out.extend((settings.values.len() as u32).to_le_bytes());
    for (name, value) in &settings.values {
        put_bytes(out, name);
        put_bytes(out, value);
    }
    put_bytes(out, &settings.locale);
    put_bytes(out, settings.encoding.as_deref().unwrap_or_default().as_bytes());
}

fn settings(cursor: &mut Cursor<'_>) -> Option<Settings> {
    let mut values = BTreeMap::new();
    for _ in 0..cursor.u32()? {
        let name = cursor.bytes()?.to_vec();
        // Sorted and each once, as they were written.
        if values.last_key_value().is_some_and(|(last, _)| *last >= name) {
            return None;
        }
        values.insert(name, cursor.bytes()?.to_vec());
    }
    let locale = cursor.bytes()?.to_vec();
    let encoding = Some(text(cursor)?).filter(|text| !text.is_empty());
    Some(Settings { values, locale, encoding })
}

fn path(cursor: &mut Cursor<'_>) -> Option<PathBuf> {
    let bytes = cursor.bytes()?;
    let usable = bytes.starts_with(b"/") && !bytes.contains(&0);
    usable.then(|| PathBuf::from(OsStr::from_bytes(bytes)))
}

fn text(cursor: &mut Cursor<'_>) -> Option<String> {
    String::from_utf8(cursor.bytes()?.to_vec()).ok()
}

impl FileStamp {
    /// The file as it is now. Reads all of it.
    pub fn of(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        Ok(Self {
            path: path.to_owned(),
            size: metadata.size(),
            modified: modified(&metadata),
            content: hash(file)?,
        })
    }

    /// Whether the file is as it was: the same length and time of change, or else the same content
    /// (a package that was installed again, a copied tree).
    pub fn compare(&self) -> Result<(), Stale> {
        let unreadable = |why| Stale::unreadable(&self.path, why);
        let metadata = fs::metadata(&self.path).map_err(unreadable)?;
        if metadata.is_file()
            && metadata.size() == self.size
            && modified(&metadata) == self.modified
        {
            return Ok(());
        }
        self.compare_content()
    }

    /// Whether the file has the content that it had; its time does not matter.
    fn compare_content(&self) -> Result<(), Stale> {
        let (file, metadata) = open(&self.path)?;
        if metadata.size() != self.size {
            return Err(Stale::Changed(self.path.clone()));
        }
        compare_hash(&self.path, file, self.size, self.content)
    }
}

/// Opens a file, if it is still one.
fn open(path: &Path) -> Result<(File, Metadata), Stale> {
    let unreadable = |why| Stale::unreadable(path, why);
    let no_file = || Stale::NoFile(path.to_owned());
    // A device can do something at being opened, so it is looked at before; a pipe that takes the file's
    // place between the two is not waited for.
    if !fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err(no_file());
    }
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let opened = File::options().read(true).custom_flags(flags.bits()).open(path);
    let file = opened.map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    if metadata.is_file() { Ok((file, metadata)) } else { Err(no_file()) }
}

/// Compares a file's first `length` bytes, of which it has no more: it may be growing.
fn compare_hash(path: &Path, file: File, length: u64, content: u64) -> Result<(), Stale> {
    let found = hash(file.take(length)).map_err(|why| Stale::unreadable(path, why))?;
    if found == content { Ok(()) } else { Err(Stale::Changed(path.to_owned())) }
}

fn modified(metadata: &Metadata) -> Time {
    Time {
        seconds: metadata.mtime(),
        nanoseconds: u32::try_from(metadata.mtime_nsec()).unwrap_or_default(),
    }
}

fn hash(mut file: impl Read) -> io::Result<u64> {
    let mut hash = Xxh3::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(hash.digest()),
            Ok(length) => hash.update(&buffer[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use proptest::prelude::*;

    use super::*;

    fn check() -> Check {
        let mut variables = Variables::default();
        variables.allow(b"READ".to_vec(), Some(b"1"));
        variables.allow(b"READ".to_vec(), None);
        variables.allow(b"\xff".to_vec(), None);
        variables.add_family(b"NUMBA_".to_vec());
        variables.add_settable(b"READ".to_vec());
        Check {
            variables,
            interpreter: "/usr/bin/python3.11".into(),
            argv0: "python3".into(),
            libc: "glibc 2.36".into(),
            kernel: "6.1.0".into(),
            settings: Settings {
                values: [(b"optimize".to_vec(), b"2".to_vec())].into(),
                locale: b"--\n\nC".to_vec(),
                encoding: Some("1 UTF-8".into()),
            },
            only_criu: vec!["a pipe".into()],
            machine: Machine::here(),
            files: vec![
                FileStamp {
                    path: "/usr/bin/python3.11".into(),
                    size: 6_000_000,
                    modified: Time { seconds: -5, nanoseconds: 999_999_999 },
                    content: u64::MAX,
                },
                FileStamp {
                    path: OsStr::from_bytes(b"/not/\xffutf-8").into(),
                    size: 0,
                    modified: Time::default(),
                    content: 0,
                },
            ],
        }
    }

    #[test]
    fn it_is_read_as_it_was_made() {
        assert_eq!(Check::decode(&check().encode()), Some(check()));
        let nothing = Check { interpreter: "/".into(), ..Check::default() };
        assert_eq!(Check::decode(&nothing.encode()), Some(nothing));
    }

    #[test]
    fn paths_that_no_file_can_have_are_refused() {
        for path in ["", "relative", "/nul\0byte"] {
            let interpreter = Check { interpreter: path.into(), ..check() };
            assert_eq!(Check::decode(&interpreter.encode()), None, "{path:?}");
            let mut file = check();
            file.files[0].path = path.into();
            assert_eq!(Check::decode(&file.encode()), None, "{path:?}");
        }
    }

    #[test]
    fn what_is_no_file_any_more_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("library.so");
        let pipe = nix::sys::stat::Mode::S_IRWXU;
        nix::unistd::mkfifo(&path, pipe).unwrap();
        for path in [&path, Path::new("/dev/zero"), folder.path()] {
            let size = fs::metadata(path).unwrap().size();
            let stamp =
                FileStamp { path: path.into(), size, modified: Time::default(), content: 1 };
            for compared in
                [stamp.compare(), stamp.compare_content(), Check::compare_content(path, 1)]
            {
                assert!(matches!(compared, Err(Stale::NoFile(found)) if found == path));
            }
        }
    }

    #[test]
    fn a_file_is_the_same_until_its_content_changes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("library.so");
        fs::write(&path, "content").unwrap();
        let stamp = FileStamp::of(&path).unwrap();
        stamp.compare().unwrap();

        let touch = |later| {
            let time = SystemTime::now() + Duration::from_secs(later);
            File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
        };
        touch(10);
        stamp.compare().unwrap();
        fs::write(&path, "CONTENT").unwrap();
        touch(20);
        assert!(matches!(stamp.compare(), Err(Stale::Changed(changed)) if changed == path));
        fs::write(&path, "more content").unwrap();
        assert!(matches!(stamp.compare(), Err(Stale::Changed(_))));
        fs::remove_file(&path).unwrap();
        assert!(matches!(stamp.compare(), Err(Stale::Gone(_))));
        fs::create_dir(&path).unwrap();
        assert!(matches!(stamp.compare(), Err(Stale::NoFile(_))));
    }

    #[test]
    fn a_change_of_machine_is_told() {
        let check = check();
        check.compare_machine(&Machine::here()).unwrap();
        let compare = |change: fn(&mut Machine)| {
            let mut here = Machine::here();
            change(&mut here);
            check.compare_machine(&here).unwrap_err().to_string()
        };
        assert!(compare(|here| here.vdso ^= 1).contains("6.1.0"));
        assert!(compare(|here| here.cpu.words[1] = 0).contains("sse2"));
        assert!(compare(|here| here.cpu.state_bytes += 64).contains("layout"));
        let mut better = Machine::here();
        better.cpu.words = [u32::MAX; WORDS];
        check.compare_machine(&better).unwrap();
    }

    proptest! {
        #[test]
        fn damaged_bytes_do_no_harm(at in 0_usize..500, byte: u8, cut in 0_usize..500) {
            let mut bytes = check().encode();
            let length = bytes.len();
            bytes[at % length] = byte;
            bytes.truncate(cut);
            if let Some(check) = Check::decode(&bytes) {
                prop_assert_eq!(check.encode(), bytes);
            }
        }

        #[test]
        fn foreign_bytes_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Check::decode(&bytes);
        }
    }
}
