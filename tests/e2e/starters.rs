//! Starters: executed as python is, they run an image, make it, and do without.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::fcntl::{Flock, FlockArg};
use nix::unistd::geteuid;

use crate::faults::alter;
use crate::support::shared::copy_program;
use crate::support::{
    Context, Outcome, Recipe, Who, as_root, for_everyone, for_makers, once, shared,
    with_every_python,
};

const STRANGER: u32 = 12345;

/// Prints whether this interpreter comes from an image: nobody has imported the module in a new one.
const ORIGIN: &str = "import sys; print('thawed' if 'ctypes' in sys.modules else 'new')";

/// A starter in the test's own directory.
fn starter(it: &Context, arguments: &[&str]) -> PathBuf {
    let path = it.home().join("python-x");
    let mut command = it.program(["starter", "--force", "--output"]).args([&path]).args(arguments);
    if !arguments.first().is_some_and(|first| Path::new(first).is_absolute()) {
        command = command.args(["--python".as_ref(), it.seat.python.path.as_os_str()]);
    }
    let outcome = command.run().succeeds();
    assert_eq!((outcome.text(), outcome.errors()), (String::new(), String::new()));
    path
}

/// A starter of an image that is there.
fn of_image(it: &Context) -> PathBuf {
    starter(it, &[it.image(Recipe::Plain).to_str().unwrap()])
}

fn use_it(it: &Context, starter: &Path) -> Outcome {
    it.command(starter).args(["-c", ORIGIN]).run()
}

fn is_thawed(outcome: Outcome) {
    let outcome = outcome.succeeds();
    assert_eq!((outcome.text().as_str(), outcome.errors().as_str()), ("thawed\n", ""));
}

fn is_new(outcome: Outcome, why: &str) {
    let outcome = outcome.succeeds();
    assert_eq!(outcome.text(), "new\n", "{outcome:?}");
    assert!(outcome.errors().contains(why), "{outcome:?}");
    assert_eq!(outcome.errors().lines().count(), 1, "{outcome:?}");
}

#[test]
fn the_place_of_python() {
    with_every_python(|it| {
        let starter = of_image(it);
        is_thawed(use_it(it, &starter));
        let show = "import sys; print(sys.executable, sys.argv, sys.orig_argv, sys.prefix, \
                    sys.flags, sys.stdin.read()); sys.exit(3)";
        it.file("script.py", show);
        it.file("module.py", show);
        for arguments in [
            &["-c", show, "x", "--help", "-c"][..],
            &["script.py", "--version", "a b", ""],
            &["-um", "module", "-h"],
            &["-", "x"],
            &["-I", "script.py"],
            &["-V"],
            &["no.py"],
            &["-c", "1/0"],
        ] {
            let of = |program: &Path| {
                let run = it.command(program).args(arguments).stdin("print('in')");
                let outcome = run.run();
                (outcome.status.code(), outcome.text(), outcome.errors())
            };
            assert_eq!(of(&starter), of(&it.seat.python.path), "{arguments:?}");
        }
    });
}

#[test]
fn the_first_line_of_a_script() {
    for_everyone(|it| {
        let starter = of_image(it);
        let script = it.file(
            "script",
            format!(
                "#!{} -u\nimport sys; print(sys.argv, sys.stdout.write_through)\n{ORIGIN}\n",
                starter.display()
            ),
        );
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        let outcome = it.command(&script).args(["-x", "y"]).run().succeeds();
        let expected = format!("['{}', '-x', 'y'] True\nthawed\n", script.display());
        assert_eq!((outcome.text(), outcome.errors()), (expected, String::new()));
        let start = format!(
            "cd {:?} && PATH=$PATH:{:?} && python-x -c {ORIGIN:?} && \"$@\"",
            it.home(),
            it.home()
        );
        let outcome = it.command("./python-x").args(["-c", ORIGIN]).shell(&start).run().succeeds();
        assert_eq!(outcome.text(), "thawed\nthawed\n");
    });
}

#[test]
fn children_of_starters() {
    once(|it| {
        let code = format!(
            "import subprocess, sys\n{ORIGIN}\nsys.stdout.flush()\nsubprocess.run([sys.executable, '-c', {ORIGIN:?}])"
        );
        let outcome = it.command(of_image(it)).args(["-c", &code]).run().succeeds();
        assert_eq!(outcome.text(), "thawed\nthawed\n");
    });
}

#[test]
fn the_image_is_made_at_first_use() {
    for_makers(|it| {
        let log = it.home().join("log");
        let exec = it.file("noted.py", format!("open({log:?}, 'a').write('made\\n')"));
        let starter = starter(it, &["--import", "ctypes", "--exec", "noted.py"]);
        fs::rename(&starter, it.home().join("moved")).unwrap();
        let starter = it.home().join("moved");
        assert!(!log.exists());
        for _ in 0..3 {
            let outcome = it.command(&starter).args(["-c", ORIGIN]).folder("/").run();
            is_thawed(outcome);
        }
        assert_eq!(fs::read_to_string(&log).unwrap(), "made\n");
        let cache = it.home().join(".cache/preloaded-criu");
        let images: Vec<_> = fs::read_dir(&cache).unwrap().flatten().collect();
        assert_eq!(images.len(), 1, "{images:?}");
        assert_eq!(fs::metadata(cache).unwrap().mode() & 0o777, 0o700);
        drop(exec);
    });
}

#[test]
fn ten_at_once_make_one_image() {
    for_makers(|it| {
        let log = it.home().join("log");
        it.file("noted.py", format!("open({log:?}, 'a').write('made\\n')"));
        let image = it.home().join("made.img");
        let starter =
            starter(it, &["--import", "ctypes", "--exec", "noted.py", image.to_str().unwrap()]);
        let all: Vec<_> =
            (0..10).map(|_| it.command(&starter).args(["-c", ORIGIN]).spawn()).collect();
        let mut thawed = 0;
        for running in all {
            let outcome = running.finish().succeeds();
            match outcome.text().as_str() {
                "thawed\n" => {
                    thawed += 1;
                    assert_eq!(outcome.errors(), "");
                }
                _ => is_new(outcome, "is being made"),
            }
        }
        assert!(thawed >= 1);
        assert_eq!(fs::read_to_string(&log).unwrap(), "made\n");
        is_thawed(use_it(it, &starter));
    });
}

#[test]
fn ten_at_once_make_an_old_image_anew_once() {
    for_makers(|it| {
        let log = it.home().join("log");
        it.file("noted.py", format!("open({log:?}, 'a').write('made\\n')"));
        let image = it.home().join("made.img");
        let made = [
            "--max-age",
            "2h",
            "--import",
            "ctypes",
            "--exec",
            "noted.py",
            image.to_str().unwrap(),
        ];
        let starter = starter(it, &made);
        is_thawed(use_it(it, &starter));
        let before = fs::metadata(&image).unwrap().ino();
        let old = SystemTime::now() - Duration::from_secs(3 * 3600);
        fs::File::options().write(true).open(&image).unwrap().set_modified(old).unwrap();
        let all: Vec<_> =
            (0..10).map(|_| it.command(&starter).args(["-c", ORIGIN]).spawn()).collect();
        // Who does not make it runs the one that is there.
        for running in all {
            is_thawed(running.finish());
        }
        assert_ne!(fs::metadata(&image).unwrap().ino(), before);
        assert_eq!(fs::read_to_string(&log).unwrap(), "made\nmade\n");
        is_thawed(use_it(it, &starter));
    });
}

#[test]
fn an_image_that_is_out_of_date_is_made_again() {
    for_makers(|it| {
        // Another name of the same length, which no file has.
        let altered = alter(it, |check| {
            let mut name = check.files[0].path.to_str().unwrap().to_owned();
            name.pop();
            check.files[0].path = (name + "~").into();
        });
        let image = it.keep(altered.file_name().unwrap().to_str().unwrap());
        it.program(["run"]).args([&image]).args(["-c", ""]).run().is_refused(&["gone"]);
        let starter = starter(it, &[image.to_str().unwrap()]);
        let before = fs::metadata(&image).unwrap().ino();
        is_thawed(use_it(it, &starter));
        let after = fs::metadata(&image).unwrap().ino();
        assert_ne!(before, after);
        is_thawed(use_it(it, &starter));
        assert_eq!(after, fs::metadata(&image).unwrap().ino());
        fs::write(&image, "").unwrap();
        is_thawed(use_it(it, &starter));
        fs::remove_file(&image).unwrap();
        is_thawed(use_it(it, &starter));
        // Made under another kernel, on this machine.
        let altered = alter(it, |check| check.machine.vdso ^= 1);
        fs::rename(altered, &image).unwrap();
        is_thawed(use_it(it, &starter));
    });
}

#[test]
fn an_image_of_another_machine_is_left_to_it() {
    as_root(|it| {
        let image = alter(it, |check| check.machine.vdso ^= 1);
        let image = it.keep(image.file_name().unwrap().to_str().unwrap());
        let starter = starter(it, &[image.to_str().unwrap()]);
        let before = fs::metadata(&image).unwrap().ino();
        let elsewhere = it.command(&starter).args(["-c", ORIGIN]).through(["unshare", "--uts"]);
        is_new(elsewhere.shell("hostname elsewhere; exec \"$@\"").run(), "another kernel");
        assert_eq!(fs::metadata(&image).unwrap().ino(), before);
        is_thawed(use_it(it, &starter));
    });
}

#[test]
fn without_an_image_there_is_python() {
    for_everyone(|it| {
        let image = it.home().join("snap.img");
        fs::copy(it.image(Recipe::Plain), &image).unwrap();
        it.own(&image);
        let starter = starter(it, &[image.to_str().unwrap()]);
        // What must not be trusted is not made again either.
        fs::set_permissions(&image, fs::Permissions::from_mode(0o666)).unwrap();
        is_new(use_it(it, &starter), "others may write to it");
        let quiet = it.command(&starter).args(["-c", ORIGIN]).env("PRELOADED_CRIU_QUIET", "1");
        assert_eq!(quiet.run().succeeds().errors(), "");
        fs::remove_file(&image).unwrap();
        is_new(
            it.command(&starter).args(["-Sc", ORIGIN]).shell("ulimit -f 100; \"$@\"").run(),
            "could not be made",
        );
    });
}

#[test]
fn what_cannot_be_made_is_not_tried_each_time() {
    for_makers(|it| {
        let log = it.home().join("log");
        it.file("broken.py", format!("open({log:?}, 'a').write('x')\n1/0"));
        let arguments = ["--import", "ctypes", "--exec", "broken.py"];
        let path = starter(it, &arguments);
        is_new(use_it(it, &path), "could not be made");
        is_new(use_it(it, &path), ".failed");
        assert_eq!(fs::read_to_string(&log).unwrap(), "x");
        // Written anew, it is tried again.
        starter(it, &arguments);
        is_new(use_it(it, &path), "could not be made");
        assert_eq!(fs::read_to_string(&log).unwrap(), "xx");
        let homeless = it.command(&path).args(["-c", ORIGIN]).without("HOME");
        is_new(homeless.run(), "HOME");
    });
}

#[test]
fn images_that_keep_their_recipe_to_themselves_are_not_made_again() {
    once(|it| {
        let image = it.home().join("snap.img");
        it.snapshot(["--env", "KEY=secret", "--import", "ctypes", "--output"])
            .args([&image])
            .args(["--python".as_ref(), it.seat.python.path.as_os_str()])
            .run()
            .succeeds();
        let path = starter(it, &[image.to_str().unwrap()]);
        is_thawed(use_it(it, &path));
        fs::remove_file(&image).unwrap();
        is_new(use_it(it, &path), "there is no such file");
        assert!(!image.exists());
        // With the recipe, the value is in the starter: nobody else reads it.
        let path =
            starter(it, &["--env", "KEY=secret", "--import", "ctypes", image.to_str().unwrap()]);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
        is_thawed(use_it(it, &path));
        assert!(image.exists());
    });
}

#[test]
fn programs_in_places_that_a_first_line_cannot_name() {
    once(|it| {
        let folder = it.home().join("it's a place");
        fs::create_dir(&folder).unwrap();
        let program = folder.join("preloaded-criu");
        copy_program(shared().binary(), &program);
        let path = it.home().join("python-x");
        let image = it.image(Recipe::Plain);
        let make = it.command(&program).args(["starter", "--output"]).args([&path, &image]);
        make.run().succeeds();
        is_thawed(use_it(it, &path));
        let text = it.command(&path).args(["-c", "import sys; print(sys.argv[1:])", "a b", "'"]);
        assert_eq!(text.run().succeeds().text(), "['a b', \"'\"]\n");
    });
}

#[test]
fn starters_that_make_no_sense() {
    for_everyone(|it| {
        let image = it.image(Recipe::Plain);
        let image = image.to_str().unwrap();
        let make = |arguments: &[&str]| it.program(["starter"]).args(arguments).run();
        make(&[image]).is_refused(&["--output"]);
        make(&["--output", "x"]).is_refused(&["IMAGE"]);
        make(&["--output", "x", "/no/such.img"]).is_refused(&["/no/such.img"]);
        make(&["--output", "x", "/etc/passwd"]).is_refused(&["/etc/passwd"]);
        make(&["--output", "x", "--recipe", "nothing"]).is_refused(&["nothing"]);
        make(&["--output", "/no/such/folder/x", image]).is_refused(&["/no/such/folder/x"]);
        assert!(!it.work().join("x").exists());
        make(&["--output", "x", image]).succeeds();
        make(&["--output", "x", image]).is_refused(&["already", "--force"]);
        make(&["--force", "--output", "x", image]).succeeds();
        it.file("foreign", "#!/bin/sh\n");
        it.program(["start", "foreign"]).run().is_refused(&["foreign"]);
        it.program(["start", "absent"]).run().is_refused(&["absent"]);
    });
}

/// A directory with that mode: a stranger's, where that can be had.
fn of_a_stranger(it: &Context, name: &str, mode: u32) -> PathBuf {
    let folder = it.home().join(name);
    fs::create_dir(&folder).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(mode)).unwrap();
    if geteuid().is_root() {
        lchown(&folder, Some(STRANGER), None).unwrap();
    }
    folder
}

/// A link that a stranger has planted.
fn plant(target: &Path, link: &Path) {
    symlink(target, link).unwrap();
    if geteuid().is_root() {
        lchown(link, Some(STRANGER), None).unwrap();
    }
}

#[test]
fn nothing_is_written_through_links_that_others_have_planted() {
    for_makers(|it| {
        let precious = it.file("precious.txt", "precious");
        it.file("broken.py", "1/0");
        for mode in [0o755, 0o775, 0o777, 0o1777] {
            let folder = of_a_stranger(it, &format!("{mode:o}"), mode);
            let image = folder.join("shared.img");
            for name in ["shared.img.failed", "shared.img.lock"] {
                plant(&precious, &folder.join(name));
                for exec in [&["--exec", "broken.py"][..], &[]] {
                    let own = [&["--import", "ctypes"], exec, &[image.to_str().unwrap()]].concat();
                    let path = starter(it, &own);
                    let outcome = use_it(it, &path).succeeds();
                    assert!(outcome.errors().lines().count() <= 1, "{outcome:?}");
                    assert_eq!(fs::read_to_string(&precious).unwrap(), "precious", "{mode:o}");
                    let _ = fs::remove_file(&image);
                }
                let _ = fs::remove_file(folder.join(name));
            }
        }
        // Nor is an empty file of one's own replaced that a stranger's link leads to.
        if geteuid().is_root() {
            let folder = of_a_stranger(it, "links", 0o755);
            let empty = it.file("empty", "");
            plant(&empty, &folder.join("shared.img"));
            fs::set_permissions(&empty, fs::Permissions::from_mode(0o600)).unwrap();
            let image = folder.join("shared.img");
            let path = starter(it, &["--import", "ctypes", image.to_str().unwrap()]);
            is_new(use_it(it, &path), "link");
            assert_eq!(fs::metadata(&empty).unwrap().len(), 0);
            // The image of one who has a directory that everyone may rename in would be refused.
            let open = of_a_stranger(it, "open", 0o777).join("shared.img");
            let path = starter(it, &["--import", "ctypes", open.to_str().unwrap()]);
            is_new(use_it(it, &path), "everyone may rename");
            assert!(!open.exists());
        }
    });
}

#[test]
fn notes_of_others_do_not_stop_an_image_from_being_made() {
    if !geteuid().is_root() {
        return;
    }
    for_makers(|it| {
        let image = it.home().join("own.img");
        let note = it.home().join("own.img.failed");
        let path = starter(it, &["--import", "ctypes", image.to_str().unwrap()]);
        fs::write(&note, "never").unwrap();
        lchown(&note, Some(STRANGER), None).unwrap();
        is_thawed(use_it(it, &path));
        fs::remove_file(&image).unwrap();
        fs::write(it.home().join("other"), "").unwrap();
        it.own(&it.home().join("other"));
        plant(&it.home().join("other"), &note);
        is_thawed(use_it(it, &path));
        let mut names: Vec<_> =
            fs::read_dir(it.home()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["other", "own.img", "python-x"]);
    });
}

#[test]
fn whoever_can_read_a_starter_does_not_stop_it() {
    for_makers(|it| {
        let image = it.home().join("own.img");
        let path = starter(it, &["--max-age", "2h", "--import", "ctypes", image.to_str().unwrap()]);
        let flock = |kind| Flock::lock(File::open(&path).unwrap(), kind).unwrap();
        let held = flock(FlockArg::LockExclusive);
        is_thawed(use_it(it, &path));
        drop(held);
        let first = fs::metadata(&image).unwrap().ino();
        let grow_old = || {
            let time = SystemTime::now() - Duration::from_secs(3 * 3600);
            File::options().write(true).open(&image).unwrap().set_modified(time).unwrap();
        };
        grow_old();
        let held = flock(FlockArg::LockShared);
        is_thawed(use_it(it, &path));
        drop(held);
        let second = fs::metadata(&image).unwrap().ino();
        assert_ne!(first, second, "it was made anew");
        // A lock that others could hold is none, and that is said; the image is used all the same.
        grow_old();
        let lock = it.home().join("own.img.lock");
        fs::write(&lock, "").unwrap();
        it.own(&lock);
        fs::set_permissions(&lock, fs::Permissions::from_mode(0o644)).unwrap();
        let outcome = use_it(it, &path).succeeds();
        assert_eq!(outcome.text(), "thawed\n");
        let told = outcome.errors();
        assert!(told.contains("own.img.lock") && told.lines().count() == 1, "{told}");
        assert_eq!(fs::metadata(&image).unwrap().ino(), second);
        // What a start that was killed has left is in nobody's way, and taken away.
        fs::set_permissions(&lock, fs::Permissions::from_mode(0o600)).unwrap();
        is_thawed(use_it(it, &path));
        assert_ne!(fs::metadata(&image).unwrap().ino(), second);
        assert!(!lock.exists());
    });
}

#[test]
fn an_image_that_one_cannot_write_is_not_renewed_each_time() {
    for_everyone(|it| {
        if it.seat.who == Who::Root || it.seat.who.maker() != it.seat.who {
            return;
        }
        let log = it.home().join("log");
        it.file("noted.py", format!("open({log:?}, 'a').write('x')"));
        let folder = it.home().join("images");
        fs::create_dir(&folder).unwrap();
        it.own(&folder);
        let image = folder.join("own.img");
        let options = ["--max-age", "2h", "--import", "ctypes", "--exec", "noted.py"];
        let path = starter(it, &[&options[..], &[image.to_str().unwrap()]].concat());
        is_thawed(use_it(it, &path));
        let time = SystemTime::now() - Duration::from_secs(3 * 3600);
        File::options().write(true).open(&image).unwrap().set_modified(time).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o555)).unwrap();
        for _ in 0..2 {
            is_thawed(use_it(it, &path));
        }
        assert_eq!(fs::read_to_string(&log).unwrap(), "x");
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
        fs::remove_file(&image).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o555)).unwrap();
        is_new(use_it(it, &path), "cannot be written to");
        assert_eq!(fs::read_to_string(&log).unwrap(), "x");
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
    });
}

#[test]
fn an_image_behind_a_link_of_ones_own() {
    for_makers(|it| {
        let (link, image) = (it.home().join("link.img"), it.home().join("real.img"));
        symlink("real.img", &link).unwrap();
        if geteuid().is_root() {
            lchown(&link, Some(it.seat.who.uid().as_raw()), None).unwrap();
        }
        let path = starter(it, &["--max-age", "2h", "--import", "ctypes", link.to_str().unwrap()]);
        is_thawed(use_it(it, &path));
        let first = fs::metadata(&image).unwrap().ino();
        let time = SystemTime::now() - Duration::from_secs(3 * 3600);
        File::options().write(true).open(&image).unwrap().set_modified(time).unwrap();
        is_thawed(use_it(it, &path));
        assert_ne!(fs::metadata(&image).unwrap().ino(), first);
        assert_eq!(fs::read_link(&link).unwrap(), Path::new("real.img"));
    });
}
