//! `export`: an image as the directory that it was made from.

use std::collections::btree_map::{BTreeMap, Entry};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::image::Image;

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
struct Target<'a> {
    path: &'a Path,
    is_new: bool,
    created: Vec<PathBuf>,
}

impl<'a> Target<'a> {
    /// Makes the directory, for the user alone: it holds what was in the memory. One that is there
    /// must be empty.
    fn open(path: &'a Path) -> Result<Self, CliError> {
        let fail = |why| CliError::Directory { path: path.to_owned(), why };
        let is_new = match DirBuilder::new().mode(0o700).create(path) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                if fs::read_dir(path).map_err(fail)?.next().is_some() {
                    return Err(fail(io::ErrorKind::DirectoryNotEmpty.into()));
                }
                false
            }
            Err(error) => return Err(fail(error)),
        };
        Ok(Self { path, is_new, created: Vec::new() })
    }

    fn create(&mut self, name: &str) -> io::Result<File> {
        let path = self.path.join(name);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        self.created.push(path);
        Ok(file)
    }

    fn fill(&mut self, work: impl FnOnce(&mut Self) -> io::Result<()>) -> io::Result<()> {
        let result = work(self);
        if result.is_err() {
            for path in &self.created {
                // The first failure is the one to tell.
                let _ = fs::remove_file(path);
            }
            if self.is_new {
                let _ = fs::remove_dir(self.path);
            }
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

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
