//! Bad input: each ends with 125, says what and why and what to do, and leaves nothing.

use std::fs::{self, File, OpenOptions, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::sys::stat::Mode;
use nix::unistd::{Uid, chown, mkfifo};
use preloaded_criu::image::{Check, FORMAT_VERSION, Image, SectionKind};
use preloaded_criu::native::view::PlanView;
use xxhash_rust::xxh3::xxh3_64;

use crate::support::image::{arguments, copy};
use crate::support::{
    Context, Engine, Outcome, Recipe, Who, as_root, everywhere, for_everyone, for_makers, once,
    shared,
};

const HEADER: usize = 4096;

fn run(it: &Context, image: &Path) -> Outcome {
    it.program(["run"]).args([image]).args(["-c", "print('ran')"]).run()
}

/// A copy of the plain image, and how long it is.
fn spoilable(it: &Context) -> (PathBuf, u64) {
    let image = copy(it, Recipe::Plain, "copy.img");
    let length = fs::metadata(&image).unwrap().len();
    (image, length)
}

fn write_at(image: &Path, offset: u64, bytes: &[u8]) {
    OpenOptions::new().write(true).open(image).unwrap().write_all_at(bytes, offset).unwrap();
}

/// Writes the header's checksum anew: xxh3 of the page with that field zero, at offset 16.
fn seal(image: &Path) {
    let file = OpenOptions::new().read(true).write(true).open(image).unwrap();
    let mut page = [0; HEADER];
    file.read_exact_at(&mut page, 0).unwrap();
    page[16..24].fill(0);
    file.write_all_at(&xxh3_64(&page).to_le_bytes(), 16).unwrap();
}

/// Changes what an image depends on, with all checksums right.
pub(crate) fn alter(it: &Context, change: impl FnOnce(&mut Check)) -> PathBuf {
    alter_section(it, SectionKind::Check, |image, _| {
        let mut check = image.check().clone();
        change(&mut check);
        check.encode()
    })
}

/// Changes a section of an image without changing its length, with all checksums right.
fn alter_section(
    it: &Context,
    kind: SectionKind,
    change: impl FnOnce(&Image, Vec<u8>) -> Vec<u8>,
) -> PathBuf {
    let (path, _) = spoilable(it);
    // Opening wants an image of one's own.
    chown(&path, Some(Uid::effective()), None).unwrap();
    let image = Image::open(&path).unwrap();
    let section = image.section(kind);
    let mut bytes = vec![0; usize::try_from(section.length).unwrap()];
    image.file().read_exact_at(&mut bytes, section.offset).unwrap();
    let bytes = change(&image, bytes);
    assert_eq!(bytes.len() as u64, section.length, "the section keeps its length");
    write_at(&path, section.offset, &bytes);
    let mut table = vec![0; HEADER];
    File::open(&path).unwrap().read_exact_at(&mut table, 0).unwrap();
    let entry: Vec<u8> =
        [section.offset, section.length].iter().flat_map(|n| n.to_le_bytes()).collect();
    let at = table.windows(entry.len()).position(|window| window == entry).unwrap();
    write_at(&path, (at + entry.len()) as u64, &xxh3_64(&bytes).to_le_bytes());
    seal(&path);
    it.own(&path);
    path
}

#[test]
fn a_vdso_that_this_kernel_does_not_have() {
    for_everyone(|it| {
        for (index, length) in [(0, 0x1000), (1, 0x1000)] {
            let image = alter_section(it, SectionKind::Plan, |image, mut plan| {
                let view = PlanView::new(image.plan(), image.length(), image.memory()).unwrap();
                let specials: Vec<_> = view.specials().collect();
                // The first of its data, or its code.
                let one = if index == 0 { specials[0] } else { *specials.last().unwrap() };
                let record: Vec<u8> =
                    [one.start, one.length].iter().flat_map(|n| n.to_le_bytes()).collect();
                let at = plan.windows(record.len()).position(|part| part == record).unwrap();
                // What lies in a row stays in one.
                let start = if index == 0 { one.start + one.length - length } else { one.start };
                plan[at..at + 8].copy_from_slice(&start.to_le_bytes());
                plan[at + 8..at + 16].copy_from_slice(&u64::to_le_bytes(length));
                plan
            });
            run(it, &image).is_refused(&["vDSO", "this kernel", "snapshot"]);
        }
    });
}

#[test]
fn no_such_image() {
    everywhere(|it| {
        run(it, Path::new("absent.img")).is_refused(&["absent.img", "snapshot"]);
        run(it, Path::new("/absent/folder/x.img")).is_refused(&["/absent/folder/x.img"]);
        run(it, Path::new("")).is_refused(&[]);
        it.program(["run"]).run().is_refused(&[]);
        for command in [&["inspect", "absent.img"][..], &["export", "absent.img", "folder"]] {
            it.program(command).run().is_refused(&["absent.img"]);
        }
    });
}

#[test]
fn other_files() {
    for_everyone(|it| {
        let text = it.file("text", "no image at all\n".repeat(1000));
        let empty = it.file("empty", "");
        let short = it.file("short", "x");
        let script = it.file("script.py", "print(1)");
        for path in [&text, &short, &script] {
            run(it, path).is_refused(&["not an image"]);
        }
        run(it, &empty).is_refused(&["empty"]);
        for path in
            ["/bin/true", "/dev/null", "/dev/zero", "/", "/proc/self/mem", "/proc/self/environ"]
        {
            run(it, Path::new(path)).is_refused(&[path]);
        }
        let pipe = it.work().join("pipe");
        mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        it.own(&pipe);
        run(it, &pipe).is_refused(&["pipe"]);
        for command in ["inspect", "export"] {
            it.program([command])
                .args([&text])
                .args(["folder"].iter().filter(|_| command == "export"))
                .run()
                .is_refused(&["not an image"]);
        }
    });
}

#[test]
fn truncated_images() {
    for_everyone(|it| {
        let (image, length) = spoilable(it);
        let file = OpenOptions::new().write(true).open(&image).unwrap();
        for kept in
            [length - 1, length - 4096, length / 2, 8192, 4097, 4096, 4095, 100, 24, 9, 8, 1, 0]
        {
            file.set_len(kept).unwrap();
            run(it, &image).is_refused(&["copy.img"]);
            it.program(["inspect"]).args([&image]).run().is_refused(&["copy.img"]);
        }
        let (image, _) = spoilable(it);
        let longer = OpenOptions::new().append(true).open(&image).unwrap();
        longer.set_len(length + 1).unwrap();
        run(it, &image).is_refused(&["copy.img"]);
    });
}

#[test]
fn flipped_bits() {
    for_everyone(|it| {
        let (image, _) = spoilable(it);
        let healthy = fs::read(&image).unwrap();
        let opened = {
            chown(&image, Some(Uid::effective()), None).unwrap();
            let opened = Image::open(&image).unwrap();
            it.own(&image);
            opened
        };
        let flip = |at: u64| {
            let byte = healthy[usize::try_from(at).unwrap()];
            write_at(&image, at, &[byte ^ 1 << (at % 8)]);
            let outcome = run(it, &image);
            let verified = it.program(["inspect", "--verify"]).args([&image]).run();
            write_at(&image, at, &[byte]);
            (outcome, verified)
        };
        // What a run reads is always checked.
        for at in (0..32).chain((32..HEADER as u64).step_by(97)) {
            flip(at).0.is_refused(&["copy.img"]);
        }
        for kind in [SectionKind::Check, SectionKind::Plan] {
            let range = opened.section(kind).range();
            let step = usize::try_from((range.end - range.start) / 12 + 1).unwrap();
            for at in range.step_by(step) {
                flip(at).0.is_refused(&["copy.img", "damaged"]);
            }
        }
        // The rest when it is asked for.
        for kind in SectionKind::ALL {
            let range = opened.section(kind).range();
            let step = usize::try_from((range.end - range.start) / 3 + 1).unwrap();
            for at in range.step_by(step) {
                flip(at).1.is_refused(&["copy.img", "damaged"]);
            }
        }
        it.program(["inspect", "--verify"]).args([&image]).run().succeeds();
        assert_eq!(run(it, &image).succeeds().text(), "ran\n");
    });
}

#[test]
fn other_format_versions() {
    for_everyone(|it| {
        let (image, _) = spoilable(it);
        write_at(&image, 8, &(FORMAT_VERSION + 1).to_le_bytes());
        run(it, &image).is_refused(&["copy.img", "newer"]);
        seal(&image);
        run(it, &image).is_refused(&["copy.img", "newer"]);
        it.program(["inspect"]).args([&image]).run().is_refused(&["newer"]);
        write_at(&image, 8, &0_u32.to_le_bytes());
        seal(&image);
        run(it, &image).is_refused(&["copy.img", "older"]);
    });
}

#[test]
fn another_machine() {
    for_everyone(|it| {
        let run = |image: PathBuf| {
            // A CRIU that is started would say so.
            let criu = criu_that(it, "touch started; exit 1");
            let run = it.program(["run"]).args(Engine::tested().option()).args([image]);
            let run = run.args(["-c", "print('ran')"]).env("PRELOADED_CRIU_CRIU", criu);
            let outcome = run.run();
            assert!(!it.work().join("started").exists(), "{outcome:?}");
            outcome
        };
        run(alter(it, |check| check.machine.vdso ^= 1)).is_refused(&["kernel", "snapshot"]);
        let lacking = alter(it, |check| check.machine.cpu.words = [u32::MAX; 7]);
        run(lacking).is_refused(&["processor", "snapshot"]);
        run(alter(it, |check| check.machine.cpu.state_bytes += 64)).is_refused(&["processor"]);
        alter(it, |_| ());
        let same = it.code("print('ran')").image(it.keep("copy.img")).thaw();
        assert_eq!(same.succeeds().text(), "ran\n");
    });
}

/// An image of an interpreter and a library that are the test's own.
fn image_of_copies(it: &Context) -> (PathBuf, PathBuf, PathBuf) {
    let home = shared().root().join(format!("{}.python", it.name()));
    let script = r#"
        set -e
        real=$(readlink -f "$1"); version=$(basename "$real")
        mkdir -p "$2/bin" "$2/lib" "$2/own"
        cp "$real" "$2/bin/python3"
        ln -s "/usr/lib/$version" "$2/lib/$version"
        cp "$("$real" -c 'import _json; print(_json.__file__)')" "$2/own/" 2>/dev/null ||
            cp "$("$real" -c 'import _bz2; print(_bz2.__file__)')" "$2/own/"
    "#;
    let python = it.seat.python.path.clone();
    it.command("/bin/sh").args(["-c", script, "sh"]).args([&python, &home]).folder("/").run();
    if !home.join("bin/python3").exists() {
        // The ordinary user cannot write there: the tests' own user does it.
        let status = std::process::Command::new("sh")
            .args(["-c", script, "sh"])
            .args([&python, &home])
            .status();
        assert!(status.unwrap().success());
    }
    let library = fs::read_dir(home.join("own")).unwrap().flatten().next().unwrap().path();
    let module =
        library.file_name().unwrap().to_string_lossy().split('.').next().unwrap().to_owned();
    let image = it.work().join("snap.img");
    it.snapshot(["--python"])
        .args([home.join("bin/python3")])
        .args(["--import", &module])
        .env("PYTHONPATH", home.join("own"))
        .run()
        .succeeds();
    (image, home.join("bin/python3"), library)
}

#[test]
fn changed_modules() {
    for_makers(|it| {
        let folder = it.work().parent().unwrap().join("project");
        let package = folder.join("site-packages/package");
        let information = folder.join("site-packages/package-1.dist-info");
        for folder in [&package, &information] {
            fs::create_dir_all(folder).unwrap();
        }
        let (module, init, record, warm_up) = (
            folder.join("own.py"),
            package.join("__init__.py"),
            information.join("RECORD"),
            folder.join("warm_up.py"),
        );
        fs::write(&module, "value = 1").unwrap();
        fs::write(&init, "value = 1").unwrap();
        fs::write(&record, "package/__init__.py,,\n").unwrap();
        fs::write(&warm_up, "import own").unwrap();
        let made = it
            .snapshot(["--import", "own,package", "-o", "x.img", "--exec"])
            .args([warm_up.as_os_str(), "--python".as_ref(), it.seat.python.path.as_os_str()])
            .env("PYTHONPATH", format!("{0}:{0}/site-packages", folder.display()))
            .run();
        assert!(made.status.success(), "{made:?}");
        let image = it.keep("x.img");
        let run = |check: &str| {
            it.program(["run", "--check", check])
                .args([image.as_os_str(), "-c".as_ref(), "import own; print(own.value)".as_ref()])
                .run()
        };
        for check in ["off", "quick", "full"] {
            assert_eq!(run(check).succeeds().text(), "1\n");
        }
        // What a package manager keeps a record of is looked at where everything is.
        fs::write(&init, "value = 2").unwrap();
        assert_eq!(run("quick").succeeds().text(), "1\n");
        run("full").is_refused(&[init.to_str().unwrap(), "changed", "snapshot"]);
        fs::write(&init, "value = 1").unwrap();
        run("full").succeeds();
        for file in [&module, &record, &warm_up] {
            let before = fs::read(file).unwrap();
            fs::write(file, "value = 22").unwrap();
            for check in ["quick", "full"] {
                run(check).is_refused(&[file.to_str().unwrap(), "changed", "snapshot"]);
            }
            fs::remove_file(file).unwrap();
            run("quick").is_refused(&[file.to_str().unwrap(), "gone"]);
            // Nobody waits for somebody who writes to a pipe, or reads what has no end.
            mkfifo(file, Mode::S_IRWXU).unwrap();
            it.own(file);
            for check in ["quick", "full"] {
                run(check).is_refused(&[file.to_str().unwrap(), "no file any more"]);
            }
            fs::remove_file(file).unwrap();
            symlink("/dev/zero", file).unwrap();
            run("full").is_refused(&[file.to_str().unwrap(), "no file any more"]);
            fs::remove_file(file).unwrap();
            assert_eq!(run("off").succeeds().text(), "1\n");
            fs::write(file, before).unwrap();
            run("quick").succeeds();
        }
        fs::remove_dir_all(folder).unwrap();
        fs::remove_file(image).unwrap();
    });
}

#[test]
fn changed_interpreters_and_libraries() {
    for_makers(|it| {
        let (image, python, library) = image_of_copies(it);
        let works = || assert_eq!(run(it, &image).succeeds().text(), "ran\n");
        works();
        for file in [&python, &library] {
            let name = file.to_str().unwrap();
            let aside = file.with_extension("aside");
            fs::copy(file, &aside).unwrap();
            // Only touched, or replaced by the same.
            let touch = |seconds| {
                let time = SystemTime::now() + Duration::from_secs(seconds);
                File::options().write(true).open(file).unwrap().set_modified(time).unwrap();
            };
            touch(100);
            works();
            fs::copy(&aside, file.with_extension("new")).unwrap();
            fs::rename(file.with_extension("new"), file).unwrap();
            works();
            // Other content of the same length, longer, shorter, gone.
            let length = fs::metadata(file).unwrap().len();
            fs::copy(&aside, file.with_extension("new")).unwrap();
            fs::rename(file.with_extension("new"), file).unwrap();
            write_at(file, length - 1, b"\xa5");
            run(it, &image).is_refused(&[name, "changed", "snapshot"]);
            File::options().write(true).open(file).unwrap().set_len(length + 1).unwrap();
            run(it, &image).is_refused(&[name, "changed"]);
            File::options().write(true).open(file).unwrap().set_len(length / 2).unwrap();
            run(it, &image).is_refused(&[name, "changed"]);
            fs::remove_file(file).unwrap();
            run(it, &image).is_refused(&[name, "gone"]);
            fs::copy(&aside, file).unwrap();
            fs::set_permissions(file, Permissions::from_mode(0o755)).unwrap();
            works();
        }
        fs::remove_dir_all(python.parent().unwrap().parent().unwrap()).unwrap();
        run(it, &image).is_refused(&["gone"]);
    });
}

#[test]
fn images_that_others_could_have_written() {
    for_everyone(|it| {
        let (image, _) = spoilable(it);
        for mode in [0o666, 0o622, 0o620, 0o602] {
            fs::set_permissions(&image, Permissions::from_mode(mode)).unwrap();
            run(it, &image).is_refused(&["copy.img", "chmod"]);
        }
        fs::set_permissions(&image, Permissions::from_mode(0o644)).unwrap();
        assert_eq!(run(it, &image).succeeds().text(), "ran\n");
    });
    as_root(|it| {
        let (image, _) = spoilable(it);
        chown(&image, Some(Uid::from_raw(12345)), None).unwrap();
        run(it, &image).is_refused(&["copy.img", "12345"]);
        for_everyone(|user| {
            let (image, _) = spoilable(user);
            fs::set_permissions(&image, Permissions::from_mode(0o644)).unwrap();
            chown(&image, Some(Uid::from_raw(12345)), None).unwrap();
            run(user, &image).is_refused(&["copy.img", "12345"]);
            user.own(&image);
            fs::set_permissions(&image, Permissions::from_mode(0o000)).unwrap();
            if user.seat.who != Who::Root {
                run(user, &image).is_refused(&["copy.img"]);
            }
        });
    });
}

/// A criu that does as this script says.
fn criu_that(it: &Context, script: &str) -> PathBuf {
    let path = it.file("criu", format!("#!/bin/sh\n{script}\n"));
    fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
    path
}

#[test]
fn criu_is_missing_too_old_or_fails() {
    for_makers(|it| {
        let with = |criu: &Path| {
            it.snapshot(arguments(it.seat, Recipe::Nothing)).args(["--criu".as_ref(), criu]).run()
        };
        with(Path::new("/no/such/criu")).is_refused(&["/no/such/criu"]);
        with(&it.file("text", "no program")).is_refused(&["text"]);
        let real = find_criu();
        let real = real.display();
        for (script, words) in [
            ("exit 0".to_owned(), &["criu"][..]),
            ("exit 3".to_owned(), &["criu"]),
            ("echo Version: 3.17.1; exit 0".to_owned(), &["criu"]),
            ("kill -9 $$".to_owned(), &["criu"]),
            ("cat >/dev/null & sleep 0.1; exit 1".to_owned(), &["criu"]),
            // Dies when it has begun.
            (format!("{real} \"$@\" & sleep 0.06; kill -9 $!; exit 1"), &["criu"]),
        ] {
            let outcome = with(&criu_that(it, &script));
            if outcome.status.success() {
                // The real one was faster.
                fs::remove_file(it.work().join("snap.img")).unwrap();
                continue;
            }
            outcome.is_refused(words);
            let mut left: Vec<_> =
                fs::read_dir(it.work()).unwrap().flatten().map(|entry| entry.file_name()).collect();
            left.retain(|name| name != "criu" && name != "text");
            assert!(left.is_empty(), "{left:?}");
            it.nothing_is_left();
        }
    });
}

pub(crate) fn find_criu() -> PathBuf {
    let given = std::env::var_os("PRELOADED_CRIU_CRIU").map(PathBuf::from);
    let known = [
        "/usr/local/lib/preloaded-criu/criu/bin/criu",
        "/usr/sbin/criu",
        "/usr/bin/criu",
        "/usr/local/sbin/criu",
    ];
    let found = given.into_iter().chain(known.map(PathBuf::from)).find(|path| path.exists());
    found.expect("no criu: scripts/install-criu makes one available")
}

#[test]
fn an_old_criu_is_told_by_its_version() {
    for_makers(|it| {
        // Answers the version request of CRIU's RPC (type 11, version message 10) with 3.17.1.
        let answer = r"import os, socket
s = socket.socket(fileno=int(os.sys.argv[-1]))
s.recv(65536)
s.send(bytes([0x08, 11, 0x10, 1, 0x52, 6, 0x08, 3, 0x10, 17, 0x20, 1]))
s.recv(65536)";
        it.file("answer.py", answer);
        let script =
            format!("exec /usr/bin/python3 {} \"$@\"", it.work().join("answer.py").display());
        let criu = criu_that(
            it,
            &format!("case \"$*\" in *--version*) echo 'Version: 3.17.1';; *) {script};; esac"),
        );
        it.snapshot(arguments(it.seat, Recipe::Nothing))
            .args(["--criu".as_ref(), criu.as_path()])
            .run()
            .is_refused(&["criu", "3.17"]);
    });
}

#[test]
fn closed_user_namespaces() {
    once(|it| {
        // A namespace in which no further one may be made; then an ordinary user in it.
        let close = "echo 0 >/proc/sys/user/max_user_namespaces; exec setpriv --inh-caps=-all --bounding-set=-all --ambient-caps=-all \"$@\"";
        let outcome = it
            .snapshot(arguments(it.seat, Recipe::Nothing))
            .args(["--isolation", "userns"])
            .through(["unshare", "--user", "--map-root-user", "sh", "-c", close, "sh"])
            .run();
        outcome.is_refused(&["user namespace"]);
        let auto = it
            .snapshot(arguments(it.seat, Recipe::Nothing))
            .through(["unshare", "--user", "--map-root-user", "sh", "-c", close, "sh"])
            .run();
        auto.is_refused(&[]);
        // Running needs none.
        let image = it.image(Recipe::Plain);
        let run = it.program(["run"]).args([&image]).args(["-c", "print('ran')"]);
        let run =
            run.through(["unshare", "--user", "--map-current-user", "sh", "-c", close, "sh"]).run();
        assert_eq!(run.text(), "ran\n", "{run:?}");
    });
}

/// In a mount namespace of its own, with this mounted at `place`.
fn mounted(options: &str, place: &Path) -> Vec<String> {
    let script =
        format!("mount -t tmpfs -o {options} none {0} && shift 0 && exec \"$@\"", place.display());
    ["unshare", "--mount", "sh", "-c", &script, "sh"].map(str::to_owned).to_vec()
}

#[test]
fn directories_for_temporary_files() {
    as_root(|it| {
        let place = it.work().join("place");
        fs::create_dir(&place).unwrap();
        let snapshot = |options: &str| {
            it.snapshot(arguments(it.seat, Recipe::Nothing))
                .args(["--import", "json", "--force"])
                .env("TMPDIR", &place)
                .through(mounted(options, &place))
                .run()
        };
        snapshot("mode=700").succeeds();
        snapshot("mode=1777").succeeds();
        // Others could rename what is ours there.
        snapshot("mode=777").is_refused(&["place", "everyone", "TMPDIR"]);
        snapshot("mode=1777,uid=12345").is_refused(&["place", "12345", "TMPDIR"]);
        snapshot("mode=700,uid=12345").is_refused(&["place", "12345", "TMPDIR"]);
        // CRIU's files do not fit.
        snapshot("size=100k").is_refused(&["place"]);
        snapshot("ro").is_refused(&["place"]);
        // The resident is a library, which must be mapped from somewhere.
        let noexec = snapshot("noexec");
        if !noexec.status.success() {
            noexec.is_refused(&["noexec"]);
        }
        let absent = it
            .snapshot(arguments(it.seat, Recipe::Nothing))
            .args(["--force"])
            .env("TMPDIR", "/no/such/folder")
            .run();
        absent.is_refused(&["/no/such/folder"]);
        // A run needs none of them.
        for options in ["size=4k", "ro", "noexec"] {
            let image = it.image(Recipe::Plain);
            let outcome = it
                .program(["run"])
                .args([&image])
                .args(["-c", "print('ran')"])
                .env("TMPDIR", &place)
                .through(mounted(options, &place))
                .run();
            assert_eq!(outcome.succeeds().text(), "ran\n");
        }
    });
}

#[test]
fn an_image_where_nothing_may_be_executed() {
    as_root(|it| {
        let image = it.image(Recipe::Plain);
        let place = it.work().join("place");
        fs::create_dir(&place).unwrap();
        let script = format!(
            "mount -t tmpfs -o noexec none {0} && cp {1} {0}/x.img && exec \"$@\"",
            place.display(),
            image.display()
        );
        let run = |options: &[&str]| {
            let run = it.program(["run"]).args(options).args([place.join("x.img")]);
            let run = run.args(["-c", "import sys; print('ran', 'ctypes' in sys.modules)"]);
            run.through(["unshare", "--mount", "sh", "-c", &script, "sh"]).run()
        };
        run(&[]).is_refused(&["x.img", "noexec", "--eager"]);
        let eager = run(&["--eager"]).succeeds();
        assert_eq!((eager.text().as_str(), eager.errors().as_str()), ("ran True\n", ""));
        assert_eq!(run(&["--fallback"]).succeeds().text(), "ran False\n");
    });
}

#[test]
fn the_next_directory_for_temporary_files() {
    as_root(|it| {
        // The tests themselves may be in what is hidden.
        let root = it.work().ancestors().nth(2).unwrap().to_owned();
        let around_tests = |options: &str| {
            let script = format!(
                "exec 9<{0}; mount -t tmpfs -o {options} none /tmp && mkdir -p {0} && \
                 mount --no-canonicalize --bind /proc/self/fd/9 {0} && exec \"$@\" 9<&-",
                root.display()
            );
            ["unshare", "--mount", "sh", "-c", &script, "sh"].map(str::to_owned).to_vec()
        };
        let snapshot = |options: &str| {
            it.snapshot(arguments(it.seat, Recipe::Nothing))
                .args(["--import", "json", "-o", "/var/tmp/snap.img"])
                .through(around_tests(options))
                .through(mounted("mode=1777", Path::new("/var/tmp")))
                .through(["env", "-u", "TMPDIR"])
                .run()
        };
        // The resident has no place, CRIU's files have none, and nothing of ours is safe.
        for options in ["mode=1777,noexec", "mode=1777,size=1m", "mode=777", "mode=1777,uid=12345"]
        {
            snapshot(options).succeeds();
        }
    });
}

/// Notes the modes of our temporary files, and which of them there are, as long as its process runs.
const WATCHER: &str = r"
import os, stat, sys, time
seen = set()
until = time.monotonic() + 30
while not os.path.exists('stop') and time.monotonic() < until:
    for place, folders, files in os.walk(os.environ['TMPDIR']):
        for name in folders + files:
            try:
                mode = os.lstat(os.path.join(place, name)).st_mode
            except FileNotFoundError:
                continue
            kind = 'directory' if stat.S_ISDIR(mode) else name.split('-')[0]
            seen.add(f'{kind} {stat.S_IMODE(mode):o}')
    time.sleep(0.001)
print(*sorted(seen), sep='\n')
";

#[test]
fn temporary_files_are_nobody_elses_to_read() {
    for_makers(|it| {
        it.file("watcher.py", WATCHER);
        let outcome = it
            .snapshot(arguments(it.seat, Recipe::Nothing))
            .args(["--import", "json,decimal,email", "--force"])
            .shell(
                "umask 0; /usr/bin/python3 watcher.py >seen & \"$@\"; status=$?; touch stop; wait; exit $status",
            )
            .run();
        outcome.succeeds();
        let seen = fs::read_to_string(it.work().join("seen")).unwrap();
        for name in ["directory", "resident.so", "pages"] {
            assert!(seen.contains(name), "{name}: {seen}");
        }
        for line in seen.lines() {
            assert!(line.ends_with(" 700") || line.ends_with(" 600"), "{seen}");
        }
    });
}

#[test]
fn full_disks() {
    as_root(|it| {
        let place = it.work().join("place");
        fs::create_dir(&place).unwrap();
        let output = place.join("snap.img");
        let script = format!(
            "mount -t tmpfs -o size=2m none {0}; \"$@\"; status=$?; ls -A {0}; exit $status",
            place.display()
        );
        let outcome = it
            .snapshot(arguments(it.seat, Recipe::Nothing))
            .args(["--output".as_ref(), output.as_path()])
            .through(["unshare", "--mount", "sh", "-c", &script, "sh"])
            .run();
        outcome.is_refused(&["room"]);
        assert_eq!(outcome.text(), "", "nothing is left on the full disk");
    });
    for_makers(|it| {
        let outcome = it
            .snapshot(arguments(it.seat, Recipe::Nothing))
            .shell(r#"ulimit -f 500; exec "$@""#)
            .run();
        outcome.is_refused(&[]);
        assert!(fs::read_dir(it.work()).unwrap().next().is_none());
    });
}

#[test]
fn memory_files_that_may_not_be_executed() {
    as_root(|it| {
        let image = it.image(Recipe::Plain);
        for (value, allowed) in [("1", true), ("2", false)] {
            let script = format!("echo {value} >/proc/sys/vm/memfd_noexec && \"$@\"");
            let outcome = it
                .program(["run"])
                .args([&image])
                .args(["-c", "print('ran')"])
                .through(["unshare", "--pid", "--fork", "--mount-proc", "sh", "-c", &script, "sh"])
                .run();
            if allowed || outcome.status.success() {
                assert_eq!(outcome.succeeds().text(), "ran\n");
            } else {
                outcome.is_refused(&["memfd_noexec"]);
            }
        }
    });
}

#[test]
fn too_few_descriptors_or_too_little_memory() {
    for_everyone(|it| {
        for limit in [
            // With three the dynamic loader itself cannot open our libraries.
            "ulimit -n 4",
            "ulimit -n 5",
            "ulimit -v 20000",
            "ulimit -v 40000",
            "ulimit -v 200000",
            "ulimit -d 1000",
            "ulimit -d 4000",
            "ulimit -d 8000",
            "ulimit -d 40000",
            "ulimit -m 0",
            "ulimit -s 64",
            "ulimit -s 128",
            "ulimit -s 1000000",
            // The memory file that the restorer is handed over in counts as a file.
            "ulimit -f 0",
        ] {
            let run = it.code("print('ran')").shell(&format!(r#"{limit}; exec "$@""#));
            let outcome = run.thaw();
            if outcome.status.success() {
                assert_eq!(outcome.text(), "ran\n", "{limit}: {outcome:?}");
                continue;
            }
            // Too little for python itself, which then dies in its own way, before our part begins.
            if outcome.status == run.stock().run().status {
                continue;
            }
            outcome.is_refused(&[]);
            assert_eq!(outcome.text(), "", "{limit}");
            if limit.starts_with("ulimit -n") {
                outcome.is_refused(&["open files", "ulimit -n"]);
            }
            if limit.starts_with("ulimit -d") {
                outcome.is_refused(&["memory of its own", "ulimit -d", "limit"]);
            }
        }
        for limit in ["-v 4000000", "-d 1000000", "-m 1000", "-s 1024", "-s unlimited"] {
            let run = it.code("print('ran')").shell(&format!(r#"ulimit {limit}; exec "$@""#));
            assert_eq!(run.thaw().succeeds().text(), "ran\n", "{limit}");
        }
    });
}

#[test]
fn a_snapshot_with_too_little_memory_says_so() {
    for_makers(|it| {
        for limit in ["-v 14000", "-d 1500", "-v 25000", "-d 6000"] {
            let line = format!(r#"ulimit {limit}; exec "$@""#);
            let outcome = it.snapshot(["--import", "json"]).shell(&line).run();
            let image = it.work().join("snap.img");
            if outcome.status.success() {
                assert_eq!(run(it, &image).succeeds().text(), "ran\n", "{limit}");
                fs::remove_file(&image).unwrap();
                continue;
            }
            let python = it.command(&it.seat.python.path).args(["-c", "pass"]);
            let starts = python.shell(&line).run().status.success();
            outcome.is_refused(&[if starts { "emory" } else { "does not run as python does" }]);
            assert!(!image.exists(), "{limit}: {outcome:?}");
            it.nothing_is_left();
        }
        for limit in ["-v 4000000", "-d 1000000", "-m 1000", "-s 1024", "-s unlimited"] {
            let line = format!(r#"ulimit {limit}; exec "$@""#);
            it.snapshot(["--import", "json", "--force"]).shell(&line).run().succeeds();
            assert_eq!(run(it, &it.work().join("snap.img")).succeeds().text(), "ran\n", "{limit}");
        }
    });
}

#[test]
fn a_snapshot_with_too_few_descriptors_says_so() {
    for_makers(|it| {
        let snapshot = |limit: u32| {
            let snapshot = it.snapshot(arguments(it.seat, Recipe::Nothing)).args(["--force"]);
            snapshot.shell(&format!(r#"ulimit -n {limit}; exec "$@""#)).run()
        };
        snapshot(1024).succeeds();
        let image = it.work().join("snap.img");
        let content = || crate::support::image::digest(&image);
        // The launcher, python, CRIU: each has too few, at every step on the way.
        for limit in [4, 6, 8, 9, 10, 12, 16, 64, 200, 205, 211, 213, 214, 215, 216] {
            let before = content();
            let outcome = snapshot(limit);
            if outcome.status.success() {
                assert!(limit > 200, "{limit}");
                continue;
            }
            outcome.is_refused(&["Too many open files", "ulimit -n"]);
            assert_eq!(content(), before, "{limit}: the old image is there");
            assert_eq!(fs::read_dir(it.work()).unwrap().count(), 1, "{limit}");
            it.nothing_is_left();
            assert_eq!(run(it, &image).succeeds().text(), "ran\n", "{limit}");
        }
        snapshot(1024).succeeds();
        assert_eq!(run(it, &image).succeeds().text(), "ran\n");
    });
}

#[test]
fn where_proc_is_not_mounted() {
    as_root(|it| {
        let image = it.image(Recipe::Plain);
        let without =
            ["unshare", "--mount", "sh", "-c", "mount -t tmpfs none /proc; exec \"$@\"", "sh"];
        let run = it.program(["run"]).args([&image]).args(["-c", "print('ran')"]);
        run.through(without).run().is_refused(&["/proc", "mount"]);
        let snapshot = it.snapshot(arguments(it.seat, Recipe::Nothing));
        snapshot.through(without).run().is_refused(&["mount /proc"]);
        assert!(!it.work().join("snap.img").exists());
    });
}

/// Memory that the kernel has promised bit by bit, and does not promise at once: twice what it has.
const PROMISED: &str = "import ctypes, os\n\
    libc = ctypes.CDLL(None, use_errno=True)\n\
    libc.mmap.restype = ctypes.c_void_p\n\
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]\n\
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]\n\
    part = 1 << 30\n\
    parts = 2 + 2 * os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') // part\n\
    start = libc.mmap(None, parts * part, 0, 0x22, -1, 0)\n\
    for number in range(parts):\n\
    \x20   assert libc.mprotect(start + number * part, part, 3) == 0\n";

/// The same without a promise.
const UNPROMISED: &str = "import mmap, os\n\
    size = 3 * os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')\n\
    kind = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000\n\
    memory = mmap.mmap(-1, size, kind, mmap.PROT_READ | mmap.PROT_WRITE)\n\
    memory[-1] = 1\n";

#[test]
fn more_memory_than_there_is() {
    for_makers(|it| {
        it.file("promised.py", PROMISED);
        it.file("unpromised.py", UNPROMISED);
        let snapshot = |module| {
            let named = ["--force", "--import", module, "-o", "big.img", "--python"];
            it.snapshot(named).args([&it.seat.python.path]).run()
        };
        let image = it.work().join("big.img");
        // What cannot be restored is no image.
        snapshot("promised").is_refused(&["when that was tried", "ENOMEM", "vm.overcommit_memory"]);
        assert!(!image.exists());
        snapshot("unpromised").succeeds();
        let code = "import unpromised; print(unpromised.memory[-1])";
        for options in [&[][..], &["--eager"]] {
            let run = it.program(["run"]).args(options).args([&image]).args(["-c", code]).run();
            assert_eq!(run.succeeds().text(), "1\n");
        }
    });
}

/// What is mounted when somebody looks for it: of the kernel's own file systems, tracefs is.
#[test]
fn an_image_in_a_directory_that_is_mounted_when_it_is_needed() {
    as_root(|it| {
        fs::create_dir(it.work().join("place")).unwrap();
        let mounted =
            ["unshare", "--mount", "sh", "-c", "mount -t debugfs none place; exec \"$@\"", "sh"];
        let run = it.program(["run", "place/tracing/README"]).through(mounted).run();
        run.is_refused(&["not an image"]);
    });
}

#[test]
fn where_there_is_no_null_device() {
    as_root(|it| {
        let image = it.image(Recipe::Plain);
        let without =
            ["unshare", "--mount", "sh", "-c", "mount -t tmpfs none /dev; exec \"$@\"", "sh"];
        let run = |engine| {
            let run = it.program(["run", "--engine", engine]).args([&image]);
            run.args(["-c", "print('ran')"]).through(without).run()
        };
        assert_eq!(run("native").succeeds().text(), "ran\n");
        run("criu").is_refused(&["/dev/null cannot be opened"]);
        let snapshot = it.snapshot(arguments(it.seat, Recipe::Nothing));
        snapshot.through(without).run().is_refused(&["/dev/null cannot be opened"]);
        assert!(!it.work().join("snap.img").exists());
    });
}

#[test]
fn a_missing_script_is_pythons_to_tell() {
    everywhere(|it| {
        let outcome = it.python(["absent.py"]).is_as_stock();
        assert_eq!(outcome.status.code(), Some(2));
    });
}

#[test]
fn command_lines_that_make_no_sense() {
    for_everyone(|it| {
        for arguments in [
            &["nonsense"][..],
            &["run"],
            &["run", "--nonsense", "x.img"],
            &["snapshot", "--nonsense"],
            &["snapshot", "--isolation", "none"],
            &["snapshot", "--env", "nothing"],
            &["snapshot", "--env", "=x"],
            &["inspect"],
            &["export", "x.img"],
            &["doctor", "nonsense"],
        ] {
            let outcome = it.program(arguments).run();
            assert_eq!(outcome.status.code(), Some(125), "{arguments:?}: {outcome:?}");
            assert!(outcome.errors().starts_with("preloaded-criu: "), "{arguments:?}: {outcome:?}");
        }
    });
}

/// An image that has a file open.
fn reader(it: &Context) -> (PathBuf, PathBuf) {
    it.file("notes", "first\nsecond\n");
    it.file("reads.py", "file = open('notes')\nfirst = file.readline()");
    it.snapshot(arguments(it.seat, Recipe::Nothing)).args(["--import", "reads"]).run().succeeds();
    (it.work().join("snap.img"), it.work().join("notes"))
}

fn reads<'a>(it: &'a Context, image: &Path, options: &[&str]) -> crate::support::run::Command<'a> {
    it.program(["run"])
        .args(options)
        .args([image])
        .args(["-c", "import reads; print(reads.file.read(), end='')"])
}

#[test]
fn a_file_that_is_open_in_the_image_has_changed() {
    for_makers(|it| {
        let (image, notes) = reader(it);
        assert_eq!(reads(it, &image, &[]).run().succeeds().text(), "second\n");
        fs::write(&notes, "first\nsecond\nthird\n").unwrap();
        reads(it, &image, &[]).run().is_refused(&["notes", "--refresh"]);
    });
}

#[test]
fn a_pipe_in_the_place_of_a_file() {
    for_makers(|it| {
        let (image, notes) = reader(it);
        fs::remove_file(&notes).unwrap();
        mkfifo(&notes, nix::sys::stat::Mode::S_IRWXU).unwrap();
        for check in ["quick", "full", "off"] {
            reads(it, &image, &["--check", check]).run().is_refused(&["notes"]);
        }
    });
    as_root(|it| {
        let (image, notes) = reader(it);
        fs::remove_file(&notes).unwrap();
        mkfifo(&notes, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let options = [Engine::Criu.option(), ["--check", "off"]].concat();
        reads(it, &image, &options).run().is_refused(&["notes", "pipe"]);
    });
}

/// The directory that commands are run in is gone, or there is none of what programs usually find.
#[test]
fn surroundings_that_are_not_there() {
    for_everyone(|it| {
        let image = it.image(Recipe::Plain);
        let gone = "mkdir gone && cd gone && rmdir ../gone && exec \"$@\"";
        for engine in engines(it) {
            let run = it.program(["run"]).args(engine.option()).args([&image]);
            let run = run.args(["-c", "print('ran')"]);
            let relative = it.program(["run"]).args(engine.option()).args(["../copy.img"]);
            copy(it, Recipe::Plain, "copy.img");
            let bare = run.clone().without("HOME").without("PATH").without("TMPDIR");
            for command in [
                run.clone().shell(gone),
                relative.args(["-c", "print('ran')"]).shell(gone),
                bare.without("LANG").without("TERM"),
                run.clone().shell("HOME=/no/such TMPDIR=/no/such PATH= exec \"$@\""),
            ] {
                assert_eq!(command.run().succeeds().text(), "ran\n", "{engine:?}");
            }
        }
        let inspect = it.program(["inspect"]).args([&image]).shell(gone);
        inspect.run().succeeds();
    });
    for_makers(|it| {
        let snapshot = it.snapshot(arguments(it.seat, Recipe::Nothing));
        let gone = "mkdir gone && cd gone && rmdir ../gone && exec \"$@\"";
        snapshot.clone().args(["--output", "x.img"]).shell(gone).run().is_refused(&["x.img"]);
        let output = it.work().join("y.img");
        let absolute = snapshot.args(["--force", "--output"]).args([&output]);
        for command in [
            absolute.clone().shell(gone),
            absolute.clone().shell("unset HOME; PATH= exec \"$@\""),
            absolute.clone().shell("exec \"$@\" <&- >&- 2>&-"),
            absolute.shell("exec \"$@\" </dev/full >/dev/full 2>/dev/full"),
        ] {
            command.run().succeeds();
            assert_eq!(run(it, &output).succeeds().text(), "ran\n");
            fs::remove_file(&output).unwrap();
        }
    });
}

#[test]
fn output_that_cannot_be_written() {
    for_everyone(|it| {
        let image = it.image(Recipe::Plain);
        let image = image.to_str().unwrap();
        for arguments in [
            &["--help"][..],
            &["--version"],
            &["run", "--help"],
            &["inspect", image],
            &["inspect", "--json", image],
            &["doctor", "run"],
            &["doctor", "run", "--json"],
        ] {
            let outcome = it.program(arguments).shell("exec \"$@\" >/dev/full").run();
            outcome.is_refused(&["standard output", "No space left on device"]);
        }
        for engine in engines(it) {
            // As python says it.
            let code = it.code("print('x')").by(*engine);
            code.clone().shell("exec \"$@\" >/dev/full").is_as_stock();
            code.clone().shell("exec \"$@\" >&-").is_as_stock();
            code.shell("exec \"$@\" >/dev/full 2>&1").is_as_stock();
        }
    });
}

/// The engines that this one can run an image by.
fn engines(it: &Context) -> &'static [Engine] {
    match it.seat.who {
        Who::Root => &[Engine::Native, Engine::Criu],
        _ => &[Engine::Native],
    }
}

#[test]
fn an_interrupt_at_any_moment() {
    once(|it| {
        let image = it.image(Recipe::Plain);
        for engine in engines(it) {
            let command = it.program(["run"]).args(engine.option()).args([&image]);
            let command = command.args(["-c", "print('ran')"]);
            let mut ended = 0;
            for moment in 0..120 {
                let running = command.spawn();
                std::thread::sleep(Duration::from_micros(match engine {
                    Engine::Native => moment * 250,
                    Engine::Criu => moment * 1200,
                }));
                running.signal(nix::sys::signal::Signal::SIGINT);
                let outcome = running.finish();
                let signal = std::os::unix::process::ExitStatusExt::signal(&outcome.status);
                // By that signal, as an interpreter that starts, or at the script's end.
                let interrupted = signal == Some(nix::libc::SIGINT);
                assert!(interrupted || outcome.status.success(), "{moment}: {outcome:?}");
                ended += usize::from(interrupted);
            }
            assert!(ended > 0, "{engine:?}");
            it.nothing_is_left();
        }
    });
}
