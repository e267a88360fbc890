//! `export`: an image as the directory that it was made from.

use std::collections::btree_map::{BTreeMap, Entry};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, absolute};

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::image::Image;
use crate::sys::places::{by_descriptor, create_new, reason};
use crate::sys::way::{Blocked, open_directory, trusted_owners};

use super::report::{CliError, Failure};
use super::{answer, args, units};

const BUFFER: u64 = 1 << 20;

/// Writes CRIU's directory. What cannot be finished is taken away again.
pub(super) fn export(arguments: &args::Export) -> Result<i32, Failure> {
    let image = Image::open(&arguments.image)?;
    image.verify()?;
    let files = image.criu_files()?;
    let pages = image.pages()?;
    let mut target = Target::open(&arguments.directory)?;
    let filled = target.fill(|target| {
        for (name, content) in files.files() {
            target.create(name)?.write_all(content)?;
        }
        let mut outputs: BTreeMap<u32, File> = BTreeMap::new();
        for run in &pages {
            let output = match outputs.entry(run.pages_id) {
                Entry::Occupied(file) => file.into_mut(),
                Entry::Vacant(place) => {
                    place.insert(target.create(&format!("pages-{}.img", run.pages_id))?)
                }
            };
            copy(image.file(), run.offset, run.length, output)?;
        }
        Ok(())
    });
    filled.map_err(|why| CliError::Directory { path: arguments.directory.clone(), why })?;
    let bytes = pages.iter().map(|run| run.length).sum();
    answer(&format!(
        "{}: {} with {} of memory\n",
        arguments.directory.display(),
        units::count(target.created.len(), "file", "files"),
        units::bytes(bytes),
    ))?;
    Ok(0)
}

fn copy(source: &File, offset: u64, length: u64, target: &mut File) -> io::Result<()> {
    let mut buffer = vec![0; length.min(BUFFER) as usize];
    let mut done = 0;
    while done < length {
        let part = &mut buffer[..(length - done).min(BUFFER) as usize];
        source.read_exact_at(part, offset + done)?;
        target.write_all(part)?;
        done += part.len() as u64;
    }
    Ok(())
}

/// A directory that is being filled.
struct Target {
    directory: OwnedFd,
    /// The directory that it is in and its name there, if it is new.
    made: Option<(OwnedFd, OsString)>,
    created: Vec<String>,
}

impl Target {
    /// Makes the directory, for the user alone: it holds what was in the memory. One that is there must be
    /// empty, and neither it nor one above it somebody else's, who could put links there.
    fn open(path: &Path) -> Result<Self, CliError> {
        Self::find(path).map_err(|why| CliError::Directory { path: path.to_owned(), why })
    }

    fn find(path: &Path) -> io::Result<Self> {
        let path = absolute(path)?;
        let trusted = trusted_owners();
        match open_directory(&path, &trusted) {
            Ok(directory) => {
                if fs::read_dir(by_descriptor(&directory))?.next().is_some() {
                    return Err(io::ErrorKind::DirectoryNotEmpty.into());
                }
                Ok(Self { directory, made: None, created: Vec::new() })
            }
            Err(Blocked::Io(error)) if error.kind() == io::ErrorKind::NotFound => {
                let (Some(above), Some(name)) = (path.parent(), path.file_name()) else {
                    return Err(error);
                };
                Self::make(open_directory(above, &trusted).map_err(reason)?, name)
            }
            Err(blocked) => Err(reason(blocked)),
        }
    }

    fn make(above: OwnedFd, name: &OsStr) -> io::Result<Self> {
        mkdirat(&above, name, Mode::S_IRWXU)?;
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let directory = openat(&above, name, flags, Mode::empty())?;
        Ok(Self { directory, made: Some((above, name.to_owned())), created: Vec::new() })
    }

    fn create(&mut self, name: &str) -> io::Result<File> {
        let file = create_new(&self.directory, name)?;
        self.created.push(name.to_owned());
        Ok(file)
    }

    fn fill(&mut self, work: impl FnOnce(&mut Self) -> io::Result<()>) -> io::Result<()> {
        let result = work(self);
        if result.is_err() {
            // The first failure is the one to tell.
            for name in &self.created {
                let _ = unlinkat(&self.directory, name.as_str(), UnlinkatFlags::NoRemoveDir);
            }
            if let Some((above, name)) = &self.made {
                let _ = unlinkat(above, name.as_os_str(), UnlinkatFlags::RemoveDir);
            }
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    use super::*;
    use crate::image::{Archive, Check, Contents, MEMORY_OFFSET, Manifest, PageRun, Writer};

    fn make(folder: &Path, files: &[&str]) -> PathBuf {
        let path = folder.join("snap.img");
        let mut writer = Writer::create(&path, true).unwrap();
        for fill in [3, 1, 2] {
            writer.append(&[fill; 4096]).unwrap();
        }
        let mut criu = Archive::default();
        for name in files {
            criu.push(name, name.as_bytes());
        }
        let run = |pages_id, address, page: u64| PageRun {
            pages_id,
            address,
            length: 4096,
            offset: MEMORY_OFFSET + page * 4096,
        };
        let contents = Contents {
            check: &Check { interpreter: "/bin/true".into(), ..Check::default() },
            plan: b"",
            manifest: &Manifest::default(),
            criu: &criu,
            pages: &[run(1, 0x1000, 1), run(2, 0x9000, 0), run(1, 0x5000, 2)],
        };
        writer.finish(&contents).unwrap();
        path
    }

    fn run(image: &Path, directory: &Path) -> Result<i32, Failure> {
        export(&args::Export { image: image.to_owned(), directory: directory.to_owned() })
    }

    #[test]
    fn pages_come_back_in_their_order() {
        let folder = tempfile::tempdir().unwrap();
        let image = make(folder.path(), &["core-1.img", "mm-1.img"]);
        let out = folder.path().join("out");
        assert_eq!(run(&image, &out).unwrap(), 0);
        assert_eq!(fs::read(out.join("core-1.img")).unwrap(), b"core-1.img");
        assert_eq!(fs::read(out.join("pages-1.img")).unwrap(), [[1; 4096], [2; 4096]].concat());
        assert_eq!(fs::read(out.join("pages-2.img")).unwrap(), [3; 4096]);
        assert_eq!(fs::metadata(&out).unwrap().permissions().mode() & 0o7777, 0o700);
        let refused = run(&image, &out).unwrap_err();
        assert!(refused.source().unwrap().to_string().contains("not empty"));
    }

    #[test]
    fn what_cannot_be_finished_is_taken_away() {
        let folder = tempfile::tempdir().unwrap();
        // The second of this name cannot be made: the index has it too.
        let image = make(folder.path(), &["a.img", "pages-2.img"]);
        let out = folder.path().join("out");
        run(&image, &out).unwrap_err();
        assert!(!out.exists());
        fs::create_dir(&out).unwrap();
        run(&image, &out).unwrap_err();
        assert_eq!(fs::read_dir(&out).unwrap().count(), 0);
    }
}
