//! `inspect`: what an image is, in words or as JSON.

use std::fmt::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sys::signal::Signal;
use restore_plan::{Mapping, SOURCE_FILE, SOURCE_IMAGE, Source};
use serde_json::{Value, json};

use crate::image::{Depth, FORMAT_VERSION, Image, ImageError, Manifest, Recipe, SectionKind};
use crate::native::view::PlanView;
use crate::snapshot::is_secret_name;

use super::report::{CliError, Failure, shown};
use super::{answer, args, units};

/// Prints what an image holds.
pub(super) fn inspect(arguments: &args::Inspect) -> Result<i32, Failure> {
    let image = Image::open(&arguments.image)?;
    if arguments.verify {
        image.verify()?;
    }
    let view = PlanView::new(image.plan(), image.length(), image.memory())
        .map_err(|why| CliError::Plan { path: arguments.image.clone(), why })?;
    let manifest = image.manifest()?;
    let stale = match image.compare(Depth::Quick) {
        Ok(()) => None,
        Err(ImageError::Stale { why, .. }) => Some(why.to_string()),
        Err(error) => return Err(error.into()),
    };
    let subject = Subject { image: &image, view: &view, manifest: &manifest, stale };
    let text = if arguments.json {
        format!("{:#}\n", subject.as_json(arguments.verify))
    } else {
        subject.in_words(arguments)
    };
    answer(&text)?;
    Ok(0)
}

struct Subject<'a> {
    image: &'a Image,
    view: &'a PlanView<'a>,
    manifest: &'a Manifest,
    /// Why it cannot be run here and now.
    stale: Option<String>,
}

/// How much memory comes back in which way.
#[derive(Default)]
struct Totals {
    image: Sum,
    anonymous: Sum,
    copied: Sum,
    /// What every run writes to.
    touched: Sum,
    files: Sum,
    /// How many files the last is from.
    paths: usize,
}

#[derive(Default)]
struct Sum {
    bytes: u64,
    count: usize,
}

impl Sum {
    fn add(&mut self, bytes: u64) {
        self.bytes += bytes;
        self.count += 1;
    }
}

impl Subject<'_> {
    fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for source in self.view.sources() {
            let sum = match source.kind {
                SOURCE_IMAGE => &mut totals.image,
                SOURCE_FILE => {
                    totals.paths += 1;
                    &mut totals.files
                }
                _ => &mut totals.anonymous,
            };
            self.view.mappings_of(&source).for_each(|mapping| sum.add(mapping.length));
        }
        self.view.copies().for_each(|copy| totals.copied.add(copy.length));
        self.view.touched().for_each(|range| totals.touched.add(range.end - range.start));
        totals
    }

    fn in_words(&self, arguments: &args::Inspect) -> String {
        let Manifest { python, recipe, host, .. } = self.manifest;
        let mut text = Words::default();
        text.line("image", &self.image.path().display().to_string());
        text.line("python", &format!("{} {}", named(&python.implementation), python.version));
        text.line("", &python.executable);
        if python.interpreter != python.executable {
            text.line("", &format!("which is {}", python.interpreter));
        }
        if python.prefix != python.base_prefix {
            text.line("", &format!("in the virtual environment {}", python.prefix));
        }
        text.line("recipe", recipe.name.as_deref().unwrap_or_default());
        text.line("imports", &recipe.imports.join(", "));
        text.line("executed", &recipe.exec.join(", "));
        text.line("with set", &recipe.environment.join(", "));
        text.line("without", &recipe.withheld.join(", "));
        let secrets: Vec<_> = secrets(recipe).collect();
        if !secrets.is_empty() {
            let warning = format!("{}: whoever can read the image has it", secrets.join(", "));
            text.line("secret?", &warning);
        }
        let versions = self.manifest.modules.iter().filter_map(|module| {
            module.version.as_ref().map(|version| format!("{} {version}", module.name))
        });
        text.line("libraries", &versions.collect::<Vec<_>>().join(", "));
        let made = format!(
            "{} by preloaded-criu {} with CRIU {}",
            units::date(self.manifest.created),
            self.manifest.made_by,
            self.manifest.criu,
        );
        text.line("made", &made);
        let system =
            [host.name.as_str(), &host.system, &format!("Linux {}", host.kernel), &host.libc];
        let system = system.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>();
        text.line("on", &system.join(", "));
        text.line("", &host.cpu);
        text.line(
            "can run",
            &match &self.stale {
                None => "yes: nothing that it depends on has changed".to_owned(),
                Some(why) => format!("no: {why}"),
            },
        );
        text.line("only by", &self.only_by());
        let read = self.image.check().variables.names().count();
        let read = units::count(read, "variable", "variables");
        text.line("has read", &format!("{read} of the environment (--json names them)"));
        text.line("threads", &counted(&self.manifest.threads));
        text.line("processes", &counted(&self.manifest.processes));
        text.line("signals", &self.signals().join(", "));
        text.line("opens", &self.descriptors().join(", "));
        text.line("size", &self.size());
        if arguments.verify {
            text.line("checksums", "right, all of them");
        }
        self.memory_in_words(&mut text);
        if arguments.map {
            self.map_in_words(&mut text);
        }
        text.0
    }

    /// Who alone can restore it, and why.
    fn only_by(&self) -> String {
        let reasons = &self.image.check().only_criu;
        if reasons.is_empty() {
            String::new()
        } else {
            format!("--engine criu: {}", reasons.join("; "))
        }
    }

    fn size(&self) -> String {
        let length = units::bytes(self.image.length());
        match self.image.file().metadata() {
            Ok(metadata) => {
                format!("{length}, {} on the disk", units::bytes(metadata.blocks() * 512))
            }
            Err(_) => length,
        }
    }

    fn memory_in_words(&self, text: &mut Words) {
        let totals = self.totals();
        let mappings = |sum: &Sum| units::count(sum.count, "mapping", "mappings");
        let rows = [
            ("from the image", totals.image.bytes, mappings(&totals.image)),
            (
                "from files",
                totals.files.bytes,
                format!(
                    "{} of {}",
                    mappings(&totals.files),
                    units::count(totals.paths, "file", "files")
                ),
            ),
            ("anonymous", totals.anonymous.bytes, mappings(&totals.anonymous)),
            (
                "copied into it",
                totals.copied.bytes,
                units::count(totals.copied.count, "piece", "pieces"),
            ),
            (
                "always touched",
                totals.touched.bytes,
                units::count(totals.touched.count, "piece", "pieces"),
            ),
        ];
        for (index, (name, bytes, count)) in rows.into_iter().enumerate() {
            let row = format!("{name:<15} {:>8}  {count}", units::bytes(bytes));
            text.line(if index == 0 { "memory" } else { "" }, &row);
        }
        let headings = [
            (false, "mapped", "in all; a page costs a run something when it is touched"),
            (true, "copied", "in all, by each run anew, because it cannot or need not be mapped"),
        ];
        for (copied, heading, meaning) in headings {
            let kinds = self.manifest.memory.kinds.iter().filter(|kind| kind.copied == copied);
            let kinds: Vec<_> = kinds.collect();
            if kinds.is_empty() {
                continue;
            }
            let row = |bytes, what: &str| format!("{:>8}  {what}", units::bytes(bytes));
            text.line(heading, &row(kinds.iter().map(|kind| kind.bytes).sum(), meaning));
            for kind in kinds {
                text.line("", &row(kind.bytes, &kind.what));
            }
        }
    }

    fn map_in_words(&self, text: &mut Words) {
        let mut rows = self.mappings();
        rows.sort_unstable_by_key(|(_, mapping)| mapping.start);
        text.0.push('\n');
        for (source, mapping) in rows {
            let row = format!(
                "{:012x}-{:012x} {} {:>8}  {}",
                mapping.start,
                mapping.start + mapping.length,
                rights(&mapping),
                units::bytes(mapping.length),
                self.origin(&source),
            );
            match source.kind {
                SOURCE_IMAGE | SOURCE_FILE => {
                    // Writing to a string does not fail.
                    let _ = writeln!(text.0, "{row} +{:#x}", mapping.offset);
                }
                _ => {
                    let _ = writeln!(text.0, "{row}");
                }
            }
        }
    }

    fn mappings(&self) -> Vec<(Source, Mapping)> {
        let of = |source| self.view.mappings_of(&source).map(move |mapping| (source, mapping));
        self.view.sources().flat_map(of).collect()
    }

    fn origin(&self, source: &Source) -> String {
        match source.kind {
            SOURCE_IMAGE => "(image)".into(),
            SOURCE_FILE => self.view.path(source).unwrap_or(Path::new("")).display().to_string(),
            _ => "(anonymous)".into(),
        }
    }

    fn signals(&self) -> Vec<String> {
        /// The kernel's `SIG_IGN`.
        const IGNORED: u64 = 1;
        let told = self.view.signals().map(|signal| {
            let known = i32::try_from(signal.number).ok().and_then(|n| Signal::try_from(n).ok());
            let name =
                known.map_or_else(|| format!("signal {}", signal.number), |name| name.to_string());
            format!("{name} {}", if signal.handler == IGNORED { "ignored" } else { "handled" })
        });
        told.collect()
    }

    /// Files that the script finds open, as it would after the imports.
    fn descriptors(&self) -> Vec<String> {
        let path = |name| self.view.name(name).unwrap_or(Path::new("")).display().to_string();
        let opened = self.view.descriptors();
        opened.map(|file| format!("{} as number {}", path(file.name), file.number)).collect()
    }

    fn as_json(&self, verified: bool) -> Value {
        let check = self.image.check();
        let files = check.files.iter().map(|file| {
            json!({
                "path": file.path.to_string_lossy(),
                "size": file.size,
                "modified": [file.modified.seconds, file.modified.nanoseconds],
                "xxh3": format!("{:016x}", file.content),
            })
        });
        let sections = SectionKind::ALL.map(|kind| {
            let section = self.image.section(kind);
            json!({
                "name": kind.name(),
                "offset": section.offset,
                "length": section.length,
                "xxh3": format!("{:016x}", section.checksum),
            })
        });
        json!({
            "image": self.image.path().to_string_lossy(),
            "format": FORMAT_VERSION,
            "length": self.image.length(),
            "sections": sections,
            "checksums_right": verified.then_some(true),
            "out_of_date": self.stale,
            "manifest": without_values(self.manifest),
            "depends_on": {
                "interpreter": check.interpreter.to_string_lossy(),
                "argv0": check.argv0.to_string_lossy(),
                "libc": check.libc,
                "kernel": check.kernel,
                "vdso": format!("{:016x}", check.machine.vdso),
                "cpu_features": check.machine.cpu.features(),
                "files": files.collect::<Vec<_>>(),
                "variables": check.variables.names().map(String::from_utf8_lossy).collect::<Vec<_>>(),
            },
            "memory": self.memory_as_json(),
            "signals": self.signals(),
            "opens": self.descriptors(),
            "threads": self.view.threads().len(),
        })
    }

    fn memory_as_json(&self) -> Value {
        let mappings = self.mappings().into_iter().map(|(source, mapping)| {
            json!({
                "start": address(mapping.start),
                "end": address(mapping.start + mapping.length),
                "rights": rights(&mapping),
                "from": match source.kind {
                    SOURCE_IMAGE => json!("image"),
                    SOURCE_FILE => json!({"file": self.origin(&source)}),
                    _ => json!("anonymous"),
                },
                "offset": mapping.offset,
            })
        });
        let copies = self.view.copies().map(|copy| {
            json!({
                "start": address(copy.address),
                "end": address(copy.address + copy.length),
                "offset": copy.offset,
            })
        });
        let touched = self.view.touched();
        let touched =
            touched.map(|range| json!({"start": address(range.start), "end": address(range.end)}));
        let specials = self.view.specials().map(|special| {
            json!({
                "start": address(special.start),
                "end": address(special.start + special.length),
                "vdso": special.is_vdso != 0,
            })
        });
        json!({
            "mappings": mappings.collect::<Vec<_>>(),
            "copies": copies.collect::<Vec<_>>(),
            "touched": touched.collect::<Vec<_>>(),
            "kernel": specials.collect::<Vec<_>>(),
        })
    }
}

/// Lines with a heading each.
#[derive(Default)]
struct Words(String);

impl Words {
    /// Adds a line, unless it would say nothing.
    fn line(&mut self, heading: &str, content: &str) {
        let content = shown(content);
        if !content.is_empty() {
            // Writing to a string does not fail.
            let _ = writeln!(self.0, "{heading:<11}{content}");
        }
    }
}

/// The manifest without the values of variables: this is printed, and may be kept by others.
fn without_values(manifest: &Manifest) -> Manifest {
    let mut manifest = manifest.clone();
    let words = manifest.recipe.again.iter_mut().flat_map(|again| again.arguments.iter_mut());
    let mut is_value = false;
    for word in words {
        if is_value && let Some(equals) = word.find('=') {
            word.replace_range(equals + 1.., "…");
        }
        is_value = word == "--env";
    }
    manifest
}

/// Names of variables that were set for the image and look like secrets.
fn secrets(recipe: &Recipe) -> impl Iterator<Item = &str> {
    let names = recipe.environment.iter().map(String::as_str);
    names.filter(|name| is_secret_name(name.as_bytes()))
}

fn named(implementation: &str) -> &str {
    if implementation == "cpython" { "CPython" } else { implementation }
}

/// How many there are, and their names with how often each is there.
fn counted(names: &[String]) -> String {
    let mut groups: Vec<(&str, usize)> = Vec::new();
    for name in names {
        match groups.iter_mut().find(|(known, _)| known == name) {
            Some((_, count)) => *count += 1,
            None => groups.push((name, 1)),
        }
    }
    let told = groups.into_iter().map(|(name, count)| match count {
        1 => name.to_owned(),
        count => format!("{name} ({count} times)"),
    });
    match names.len() {
        0 => String::new(),
        count => format!("{count}: {}", told.collect::<Vec<_>>().join(", ")),
    }
}

fn address(address: u64) -> String {
    format!("{address:#x}")
}

/// As `/proc/PID/maps` has it.
fn rights(mapping: &Mapping) -> String {
    const SHARED: u32 = 1;
    let flag = |bit: u32, name: char| if mapping.prot & bit != 0 { name } else { '-' };
    let kind = if mapping.flags & 0xf == SHARED { 's' } else { 'p' };
    [flag(1, 'r'), flag(2, 'w'), flag(4, 'x'), kind].iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{
        Again, Archive, Check, Contents, Host, Machine, Memory, MemoryKind, Module, Python, Stale,
        Writer,
    };
    use crate::native::view::tests::sample;

    fn manifest() -> Manifest {
        Manifest {
            made_by: "0.1.0".into(),
            created: 1_735_689_599,
            python: Python {
                version: "3.11.2".into(),
                implementation: "cpython".into(),
                executable: "/v/bin/python3".into(),
                interpreter: "/usr/bin/python3.11".into(),
                prefix: "/v".into(),
                base_prefix: "/usr".into(),
                flags: vec![],
            },
            recipe: Recipe { imports: vec!["numpy".into(), "json".into()], ..Recipe::default() },
            modules: vec![
                Module { name: "json".into(), ..Module::default() },
                Module { name: "numpy".into(), version: Some("2.1".into()), seconds: Some(0.5) },
            ],
            host: Host { kernel: "6.1.0".into(), ..Host::default() },
            criu: "4.1.1".into(),
            threads: vec!["python3".into()],
            memory: Memory {
                kinds: vec![
                    MemoryKind { what: "malloc's heap".into(), copied: false, bytes: 8192 },
                    MemoryKind { what: "stacks".into(), copied: true, bytes: 4096 },
                ],
                ..Memory::default()
            },
            ..Manifest::default()
        }
    }

    fn inspected(then: impl FnOnce(&Subject<'_>)) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("snap.img");
        let mut writer = Writer::create(&path, false).unwrap();
        writer.append(&vec![1; 19 * 4096]).unwrap();
        let machine = Machine::here();
        let check = Check { interpreter: "/bin/sh".into(), machine, ..Check::default() };
        let manifest = manifest();
        let criu = Archive::default();
        let plan = sample();
        writer
            .finish(&Contents {
                check: &check,
                plan: &plan,
                manifest: &manifest,
                criu: &criu,
                pages: &[],
            })
            .unwrap();
        let image = Image::open(&path).unwrap();
        let view = PlanView::new(image.plan(), image.length(), image.memory()).unwrap();
        let stale = Some(Stale::Gone("/x".into()).to_string());
        then(&Subject { image: &image, view: &view, manifest: &manifest, stale });
    }

    #[test]
    fn an_image_is_told_in_words() {
        inspected(|subject| {
            let image = subject.image.path().to_owned();
            let arguments = args::Inspect { image, json: false, map: true, verify: true };
            let words = subject.in_words(&arguments);
            for line in [
                "python     CPython 3.11.2\n           /v/bin/python3\n",
                "           which is /usr/bin/python3.11\n",
                "           in the virtual environment /v\n",
                "imports    numpy, json\n",
                "libraries  numpy 2.1\n",
                "made       2024-12-31 23:59:59 UTC by preloaded-criu 0.1.0 with CRIU 4.1.1\n",
                "on         Linux 6.1.0\n",
                "can run    no: /x is gone\n",
                "threads    1: python3\n",
                "signals    SIGINT handled\n",
                "opens      /usr/lib/libc.so.6 as number 7\n",
                "checksums  right, all of them\n",
                "memory     from the image    8.2 kB  1 mapping\n",
                "           from files         16 kB  2 mappings of 1 file\n",
                "\nmapped       8.2 kB  in all; a page costs a run something when it is touched\n             8.2 kB  malloc's heap\n",
                "\ncopied       4.1 kB  in all, by each run anew, because it cannot or need not be mapped\n             4.1 kB  stacks\n",
                "\n000000400000-000000403000 r-xp    12 kB  /usr/lib/libc.so.6 +0x0\n",
                "\n000000500000-000000502000 rw-p   8.2 kB  (image) +0x5000\n",
                "\n000000502000-000000503000 rw-p   4.1 kB  (anonymous)\n",
            ] {
                assert!(words.contains(line), "{line:?} is not in\n{words}");
            }
            assert!(!words.contains("executed"));
        });
    }

    #[test]
    fn an_image_is_told_to_machines() {
        inspected(|subject| {
            let value = subject.as_json(false);
            assert_eq!(value["manifest"]["modules"][1]["version"], "2.1");
            assert_eq!(value["out_of_date"], "/x is gone");
            assert_eq!(value["checksums_right"], Value::Null);
            assert_eq!(value["sections"][0]["length"], 19 * 4096);
            let mappings = value["memory"]["mappings"].as_array().unwrap();
            assert_eq!(mappings.len(), 5);
            assert_eq!(mappings[2]["from"], "image");
            assert_eq!(mappings[3]["from"]["file"], "/usr/lib/libc.so.6");
            assert_eq!(mappings[3]["start"], "0x400000");
        });
    }

    #[test]
    fn names_are_counted() {
        let names = ["python3", "tf_worker", "tf_worker"].map(str::to_owned);
        assert_eq!(counted(&names), "3: python3, tf_worker (2 times)");
        assert_eq!(counted(&[]), "");
    }

    #[test]
    fn lines_that_say_nothing_are_left_out() {
        let mut words = Words::default();
        words.line("recipe", "");
        words.line("host", "a\x1bb");
        assert_eq!(words.0, "host       a?b\n");
    }

    #[test]
    fn rights_look_as_in_proc() {
        let mapping = |prot, flags| rights(&Mapping { prot, flags, ..Mapping::default() });
        assert_eq!(mapping(5, 2), "r-xp");
        assert_eq!(mapping(1, 1), "r--s");
        assert_eq!(mapping(3, 0x22), "rw-p");
    }

    #[test]
    fn values_of_variables_are_not_printed() {
        let mut manifest = Manifest::default();
        let arguments = ["--env", "A_TOKEN=x=y", "--import", "a=b"].map(str::to_owned).into();
        manifest.recipe.again = Some(Again { arguments, folder: "/".into() });
        manifest.recipe.environment = vec!["A_TOKEN".into(), "MODEL".into()];
        let printed = without_values(&manifest).recipe.again.unwrap().arguments;
        assert_eq!(printed, ["--env", "A_TOKEN=…", "--import", "a=b"]);
        assert_eq!(secrets(&manifest.recipe).collect::<Vec<_>>(), ["A_TOKEN"]);
    }
}
