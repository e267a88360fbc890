//! Whose images are run, what they hold, and what a script finds of us: nothing.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::unistd::{Uid, chown};

use crate::support::image::copy;
use crate::support::run::{Command, Python, Running};
use crate::support::shared::copy_program;
use crate::support::{
    Context, Engine, Outcome, Recipe, Seat, Who, as_root, everywhere, for_everyone, for_makers,
    native_only, once, shared,
};

const STRANGER: u32 = 12345;

fn run<'a>(it: &'a Context, image: &Path) -> Command<'a> {
    it.program(["run"]).args([image]).args(["-c", "print('ran')"])
}

#[track_caller]
fn runs(command: &Command<'_>) {
    assert_eq!(command.run().succeeds().text(), "ran\n");
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn give(path: &Path, owner: u32) {
    chown(path, Some(Uid::from_raw(owner)), None).unwrap();
}

#[test]
fn an_access_list_that_lets_others_write() {
    as_root(|it| {
        let image = copy(it, Recipe::Plain, "copy.img");
        let list = |entry: &str| {
            let done = it.command("/usr/bin/setfacl").args(["-b", "-m", entry]).args([&image]);
            done.run().succeeds();
        };
        list("u:54321:r");
        runs(&run(it, &image));
        list("u:54321:rw");
        run(it, &image).run().is_refused(&["copy.img", "chmod"]);
        list("g:54321:rw");
        run(it, &image).run().is_refused(&["copy.img", "chmod"]);
    });
}

#[test]
fn directories_in_which_everyone_may_rename() {
    for_everyone(|it| {
        let image = copy(it, Recipe::Plain, "copy.img");
        let [open, inner] = ["open", "open/inner"].map(|name| it.work().join(name));
        fs::create_dir_all(&inner).unwrap();
        for directory in [&open, &inner] {
            let there = directory.join("snap.img");
            fs::copy(&image, &there).unwrap();
            it.own(directory);
            it.own(&there);
        }
        for directory in [&open, &inner] {
            let there = directory.join("snap.img");
            mode(&open, 0o777);
            run(it, &there).run().is_refused(&[open.to_str().unwrap(), "chmod"]);
            run(it, Path::new("snap.img")).folder(directory).run();
            mode(&open, 0o1777);
            runs(&run(it, &there));
            mode(&open, 0o775);
            runs(&run(it, &there));
        }
    });
}

#[test]
fn links_of_others() {
    for_everyone(|it| {
        let image = copy(it, Recipe::Plain, "copy.img");
        let open = it.work().join("open");
        fs::create_dir(&open).unwrap();
        let link = open.join("link.img");
        symlink(&image, &link).unwrap();
        let owner = |uid| {
            std::os::unix::fs::lchown(&link, Some(uid), None).unwrap();
        };
        mode(&open, 0o1777);
        owner(it.seat.who.uid().as_raw());
        runs(&run(it, &link));
        if nix::unistd::geteuid().is_root() {
            owner(0);
            runs(&run(it, &link));
            owner(STRANGER);
            run(it, &link).run().is_refused(&["link"]);
            // Where only its owner can put one, a link is no worse than what it points to.
            mode(&open, 0o755);
            runs(&run(it, &link));
        }
    });
}

#[test]
fn the_invoking_user_is_trusted_under_sudo_only() {
    as_root(|it| {
        let image = copy(it, Recipe::Plain, "copy.img");
        give(&image, STRANGER);
        let told = run(it, &image).env("SUDO_UID", STRANGER.to_string());
        runs(&told);
        run(it, &image).run().is_refused(&["12345"]);
        for other in ["0", "54321", "", "-1", "12345x", "4294979641"] {
            run(it, &image).env("SUDO_UID", other).run().is_refused(&["12345"]);
        }
        // A program that is setuid has its variables from somebody who is not root.
        told.clone().through(["setpriv", "--ruid=54321"]).run().is_refused(&["12345"]);
        let launcher = it.work().join("launcher");
        copy_program(shared().binary(), &launcher);
        mode(&launcher, 0o4755);
        let command = it
            .command("/usr/bin/setpriv")
            .args(["--reuid=54321", "--regid=54321", "--clear-groups"])
            .args([launcher.as_os_str(), "run".as_ref(), image.as_os_str()])
            .args(["-c", "print('ran')"])
            .env("SUDO_UID", STRANGER.to_string());
        command.run().is_refused(&["12345"]);
        // It runs root's images, as the rights say that it was given.
        give(&image, 0);
        runs(&command);
        // And one of the user's own, who could write anything into it, it does not.
        give(&image, 54321);
        command.run().is_refused(&["54321"]);
    });
}

const WHO: &str = "import json, os, sys\n\
    lines = [line.strip() for line in open('/proc/self/status') if line.startswith(('Uid', 'Gid', 'Cap', 'NoNew', 'Groups'))]\n\
    print(lines, sorted(os.listdir('/proc/self/fd')), [name for name in os.environ if 'CRIU' in name or 'LD_' in name])";

#[test]
fn more_rights_than_the_caller_has() {
    as_root(|it| {
        // The loader preloads nothing where real and effective identity differ: python as ever.
        for identity in [&["--ruid=54321"][..], &["--rgid=54321", "--clear-groups"]] {
            it.code(WHO).through(["setpriv"]).through(identity).is_as_stock().succeeds();
        }
        // An interpreter with capabilities of its own, or a setuid bit.
        let home = it.file("home/keep", "").parent().unwrap().to_owned();
        let python = home.join("python3");
        copy_program(&fs::canonicalize(&it.seat.python.path).unwrap(), &python);
        let set = |capabilities: &[&str]| {
            it.command("/usr/sbin/setcap").args(capabilities).args([&python]).run().succeeds();
        };
        let made = it.snapshot(["--import", "json", "-o", "own.img", "--python"]).args([&python]);
        made.run().succeeds();
        let image = home.join("own.img");
        fs::rename(it.work().join("own.img"), &image).unwrap();
        mode(&image, 0o644);
        let as_user = ["setpriv", "--reuid=54321", "--regid=54321", "--clear-groups"];
        let thawed = run_python(it, &image).through(as_user);
        let stock = it.command(&python).args(["-c", WHO]).through(as_user);
        let seen = || {
            let (thawed, stock) = (thawed.run().succeeds(), stock.run().succeeds());
            assert_eq!((thawed.text(), thawed.errors()), (stock.text(), stock.errors()));
            stock.text()
        };
        let without = seen();
        set(&["cap_net_raw+ep"]);
        assert_ne!(seen(), without, "the capability is there");
        // Without new privileges it has none, and is an ordinary program.
        let no_new = thawed.clone().through(["setpriv", "--no-new-privs"]).run().succeeds();
        let stock_no_new = stock.clone().through(["setpriv", "--no-new-privs"]).run().succeeds();
        assert_eq!(no_new.text(), stock_no_new.text());
        made.clone().args(["--force"]).run().is_refused(&["python3", "setcap"]);
        set(&["-r"]);
        mode(&python, 0o4755);
        seen();
        made.clone().args(["--force"]).run().is_refused(&["python3", "setuid"]);
        mode(&python, 0o755);
        assert_eq!(seen(), without);
    });
}

fn run_python<'a>(it: &'a Context, image: &Path) -> Command<'a> {
    it.program(["run"]).args([image]).args(["-c", WHO])
}

/// All that the kernel tells of a process, but what differs from run to run, and what memory is for.
const EVERYTHING: &str = r"
import ctypes, os, re, sys
def read(name):
    try:
        return open('/proc/self/' + name, 'rb').read().decode(errors='surrogateescape')
    except OSError as error:
        return str(error.errno)
skipped = re.compile('Vm|Rss|FDSize|Pid|Tgid|NSpid|NStgid|NSpgid|NSsid|voluntary|nonvoluntary|Name|SigQ|HugetlbPages|x86_Thread')
print([line for line in read('status').splitlines() if not skipped.match(line)])
for name in ('environ', 'limits', 'personality', 'coredump_filter', 'oom_score_adj', 'loginuid', 'sessionid',
             'cgroup', 'cpuset', 'timerslack_ns', 'timers', 'uid_map', 'attr/current', 'comm'):
    print(name, ascii(read(name)))
for number in sorted(map(int, os.listdir('/proc/self/fd'))):
    try:
        print(number, re.sub('[0-9]{3,}', 'N', os.readlink(f'/proc/self/fd/{number}')), re.findall('flags:.*', read(f'fdinfo/{number}')))
    except OSError:
        pass
maps = [line.split(None, 5) for line in read('maps').splitlines()]
print('writable and executable', [line for line in maps if 'w' in line[1] and 'x' in line[1]])
print('shared', [line for line in maps if line[1].endswith('s') and 'gconv' not in line[-1]])
print('named', sorted({line[5] for line in maps if len(line) == 6 and line[5].startswith(('[', '/memfd', '/dev', '/proc'))} - {'[heap]'}))
print('locked', read('status').count('VmLck:\t       0 kB'))
print([os.readlink(f'/proc/self/ns/{name}') for name in sorted(os.listdir('/proc/self/ns'))])
libc = ctypes.CDLL(None, use_errno=True)
print('prctl', [(option, libc.prctl(option, 0, 0, 0, 0)) for option in (3, 7, 21, 27, 30, 39, 42)])
keyctl = lambda ring: libc.syscall(250, 0, ring, 0)
print('keyrings', [(ring, keyctl(ring), ctypes.get_errno()) for ring in (-1, -2, -3)])
print(os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0), sorted(os.sched_getaffinity(0)), os.getpgid(0) == os.getsid(0))
print(len(os.listdir('/proc/self/task')), read('children'), os.listdir('/proc/self/map_files') == [] )
";

#[test]
fn nothing_of_ours_is_left_in_the_script() {
    everywhere(|it| {
        let check = |run: Python<'_>| drop(run.is_as_stock().succeeds());
        let parent = if native_only("The script is a child") { "|PPid|" } else { "|" };
        let code = EVERYTHING.replacen('|', parent, 1);
        let run = it.python(["script.py"]).file("script.py", code);
        check(run.clone());
        check(run.clone().from(Recipe::Nothing));
        check(run.clone().through(["setpriv", "--no-new-privs"]));
        check(run.clone().shell(r#"umask 077; ulimit -c 0; exec "$@" 7</dev/null"#));
        // Interpreters of others are not to be reached by everyone, and only root can do these things.
        let is_first = it.seat == Seat::first() && it.seat.who == Who::Root;
        if is_first && !native_only("It takes rights") {
            for around in [
                &["setpriv", "--securebits=+noroot,+noroot_locked"][..],
                &["setpriv", "--inh-caps=+net_raw", "--ambient-caps=+net_raw"],
                &["setpriv", "--bounding-set=-sys_admin"],
                &[
                    "setpriv",
                    "--reuid=54321",
                    "--clear-groups",
                    "--inh-caps=+sys_nice",
                    "--ambient-caps=+sys_nice",
                ],
            ] {
                let image = copy(it, Recipe::Plain, "copy.img");
                mode(&image, 0o644);
                let kept = it.keep("copy.img");
                check(run.clone().image(kept).through(around));
            }
        }
    });
}

/// The shell between has little open, whatever other tests have open at that moment.
#[test]
fn the_table_of_descriptors_has_its_size() {
    let code = "print([line for line in open('/proc/self/status') if line.startswith('FDSize')])";
    if native_only("The table of descriptors") {
        return;
    }
    everywhere(|it| {
        let run = it.python(["-c", code]).shell(r#""$@"; exit $?"#);
        assert!(run.is_as_stock().succeeds().text().contains("FDSize"));
    });
}

fn contains(image: &Path, text: &str) -> bool {
    let bytes = fs::read(image).unwrap();
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

#[test]
fn secrets_of_the_caller_stay_out_of_the_image() {
    for_makers(|it| {
        let python = it.seat.python.path.clone();
        let snapshot = |more: &[&str]| {
            it.snapshot([
                "--force", "--import", "json", "--exec", "asks.py", "-o", "x.img", "--python",
            ])
            .args([&python])
            .args(more)
            .env("READ_BY_AN_IMPORT", "read-4711")
            .env("SERVICE_API_KEY", "hidden-1-4711")
            .env("DATABASE_URL", "db://me:hidden-2-4711@host/")
            .env("ORDINARY", "plain-4711")
        };
        it.file("asks.py", "import os; os.environ.get('READ_BY_AN_IMPORT'); dict(os.environ)");
        let image = it.work().join("x.img");
        let events = snapshot(&["--json"]).run().succeeds().text();
        let withheld = events.lines().next().unwrap();
        assert!(withheld.contains("withheld") && withheld.contains("DATABASE_URL"), "{events}");
        // Nor what no import has looked at, whatever its name says.
        for (value, there) in [
            ("hidden-1-4711", false),
            ("hidden-2-4711", false),
            ("plain-4711", false),
            ("read-4711", true),
        ] {
            assert_eq!(contains(&image, value), there, "{value}");
        }
        let inspect =
            |options: &[&str]| it.program(["inspect"]).args(options).args([&image]).run().text();
        let told = inspect(&[]);
        assert!(told.contains("SERVICE_API_KEY") && !told.contains("secret?"), "{told}");
        // The script has them.
        let code = "import os; print(os.environ['SERVICE_API_KEY'])";
        let run =
            it.program(["run"]).args([&image]).args(["-c", code]).env("SERVICE_API_KEY", "now");
        let run = run.env("READ_BY_AN_IMPORT", "read-4711");
        assert_eq!(run.run().succeeds().text(), "now\n");
        // What is given on purpose is there, and warned of; its value is not printed.
        snapshot(&["--env", "SERVICE_API_KEY=given-4711"]).run().succeeds();
        assert!(contains(&image, "given-4711"));
        let told = inspect(&[]);
        assert!(told.contains("secret?") && told.contains("SERVICE_API_KEY"), "{told}");
        assert!(!told.contains("given-4711") && !inspect(&["--json"]).contains("given-4711"));
        // Who cannot do without is told how.
        it.file("needs.py", "import os; os.environ['SERVICE_API_KEY']");
        snapshot(&["--exec", "needs.py"]).run().is_refused(&[
            "needs.py",
            "SERVICE_API_KEY",
            "--env",
        ]);
    });
}

/// Where the image has put things, and what it hashes to.
fn layout(it: &Context, image: &Path) -> String {
    let code = "import own; print(own.value, hash('text'), id(own))";
    it.program(["run"]).args([image]).args(["-O", "-c", code]).folder("/").run().succeeds().text()
}

#[test]
fn an_image_is_made_anew_as_it_was_made() {
    for_makers(|it| {
        it.file("own.py", "import os; value = os.environ.get('GIVEN'), os.getcwd()");
        it.file("warm.py", "import own; own.warm = True");
        let python = it.seat.python.path.clone();
        let made = it
            .snapshot([
                "--import",
                "own,json",
                "--exec",
                "warm.py",
                "--env",
                "GIVEN=one",
                "-O",
                "--python",
            ])
            .args([&python]);
        made.run().succeeds();
        let image = it.work().join("snap.img");
        let before = (layout(it, &image), fs::metadata(&image).unwrap().ino());
        let refresh = || it.program(["snapshot", "--refresh"]).args([&image]).folder("/");
        refresh().run().succeeds();
        let after = (layout(it, &image), fs::metadata(&image).unwrap().ino());
        let value = |text: &str| text.split(") ").next().unwrap().to_owned();
        assert_eq!(value(&before.0), value(&after.0));
        assert!(before.0 != after.0 && before.1 != after.1, "{before:?} {after:?}");
        let code = "import own; print(own.warm, __debug__)";
        let run = it.program(["run"]).args([&image]).args(["-O", "-c", code]).run();
        assert_eq!(run.succeeds().text(), "True False\n");
        // A change of what is imported is in it.
        it.file("own.py", "value = 'another', 1");
        refresh().run().succeeds();
        assert!(layout(it, &image).starts_with("('another', 1)"));
        // Another environment would make it an image for other runs.
        refresh().env("PYTHONMALLOC", "malloc").run().is_refused(&["PYTHONMALLOC"]);
        refresh().args(["--import", "json"]).run().is_refused(&["--import"]);
        fs::remove_file(it.work().join("own.py")).unwrap();
        refresh().run().is_refused(&["own"]);
        let inspect = it.program(["inspect", "--verify"]).args([&image]).run();
        inspect.succeeds();
        if nix::unistd::geteuid().is_root() {
            let other = if it.seat.who.uid().is_root() { STRANGER } else { 0 };
            give(&image, other);
            mode(&image, 0o644);
            let outcome = refresh().env("SUDO_UID", STRANGER.to_string()).run();
            outcome.is_refused(&["belongs to"]);
        }
    });
}

#[test]
fn who_could_read_an_image_reads_the_one_that_replaces_it() {
    as_root(|it| {
        let image = it.work().join("snap.img");
        let made = |options: &[&str]| {
            it.snapshot(options).args([&image]).run().succeeds();
            let made = fs::metadata(&image).unwrap();
            (made.mode() & 0o7777, made.gid())
        };
        let force = || made(&["--import", "json", "--force", "-o"]);
        let refresh = || made(&["--refresh"]);
        assert_eq!(made(&["--import", "json", "-o"]), (0o600, 0));
        mode(&image, 0o644);
        assert_eq!(refresh(), (0o644, 0));
        assert_eq!(force(), (0o644, 0));
        // What others may do is never more than that.
        mode(&image, 0o766);
        assert_eq!(force(), (0o644, 0));
        chown(&image, None, Some(STRANGER.into())).unwrap();
        mode(&image, 0o440);
        assert_eq!(refresh(), (0o640, STRANGER));
        // A list names others than the group.
        let setfacl = it.command("/usr/bin/setfacl").args(["-m", "u:54321:r"]).args([&image]);
        setfacl.run().succeeds();
        assert_eq!(refresh().0, 0o600);
        // What is somebody else's, or no image, was made readable for another reason.
        mode(&image, 0o644);
        give(&image, STRANGER);
        assert_eq!(force().0, 0o600);
        fs::write(&image, "text").unwrap();
        mode(&image, 0o644);
        assert_eq!(force().0, 0o600);
    });
}

#[test]
fn a_copy_is_as_old_as_its_image() {
    once(|it| {
        let (image, starter) = (it.work().join("own.img"), it.work().join("starter"));
        let made = it.program(["starter", "--max-age", "2h", "--import", "json", "-o"]);
        made.args([&starter, &image]).run().succeeds();
        let use_it = || {
            it.command(&starter).args(["-c", "pass"]).run().succeeds();
            fs::metadata(&image).unwrap().ino()
        };
        let first = use_it();
        assert_eq!(use_it(), first);
        let text = fs::read_to_string(&starter).unwrap();
        fs::write(&starter, text.replace("max-age=7200", "max-age=3")).unwrap();
        std::thread::sleep(Duration::from_secs(5));
        // As copying it does.
        grow_old(&image, 0);
        let second = use_it();
        assert_ne!(second, first);
        std::thread::sleep(Duration::from_secs(5));
        let later = SystemTime::now() + Duration::from_secs(24 * 3600);
        fs::File::options().write(true).open(&image).unwrap().set_modified(later).unwrap();
        assert_ne!(use_it(), second);
    });
}

#[test]
fn nothing_is_written_where_strangers_lead() {
    as_root(|it| {
        let image = copy(it, Recipe::Plain, "a.img");
        let [strange, empty, victim, open] =
            ["strange", "strange/empty", "victim", "open"].map(|name| it.work().join(name));
        for folder in [&strange, &empty, &victim, &open] {
            fs::create_dir(folder).unwrap();
        }
        for directory in [&strange, &open] {
            symlink(&victim, directory.join("l")).unwrap();
            std::os::unix::fs::lchown(directory.join("l"), Some(STRANGER), None).unwrap();
        }
        give(&strange, STRANGER);
        give(&empty, STRANGER);
        mode(&empty, 0o777);
        mode(&open, 0o1777);
        let is_untouched = || assert_eq!(fs::read_dir(&victim).unwrap().count(), 0);
        for way in ["strange/l", "open/l"] {
            let there = |name: &str| it.work().join(way).join(name);
            for force in [&[][..], &["--force"]] {
                let made = it.snapshot(["--import", "json"]).args(force).args(["-o"]);
                made.args([there("x.img")]).run().is_refused(&["l is somebody else's"]);
                let made = it.program(["starter"]).args(force).args(["-o"]);
                let made = made.args([there("starter"), image.clone()]).run();
                made.is_refused(&["l is somebody else's", "--output"]);
            }
            for folder in [there(""), there("new")] {
                let export = it.program(["export"]).args([&image, &folder]).run();
                export.is_refused(&[way.split('/').next().unwrap()]);
            }
            let starter = it.work().join("starter");
            let made = it.program(["starter", "--force", "--import", "json", "-o"]);
            made.args([&starter, &there("new/n.img")]).run().succeeds();
            let outcome = it.command(&starter).args(["-c", "print('ran')"]).run().succeeds();
            assert_eq!(outcome.text(), "ran\n");
            assert!(outcome.errors().contains("somebody else's"), "{outcome:?}");
            is_untouched();
        }
        it.program(["export"]).args([&image, &empty]).run().is_refused(&["belongs to"]);
        assert_eq!(fs::read_dir(&empty).unwrap().count(), 0);
        // One's own links lead on.
        symlink(&victim, it.work().join("own")).unwrap();
        let own = it.work().join("own");
        it.program(["export"]).args([&image, &own.join("out")]).run().succeeds();
        fs::remove_dir_all(victim.join("out")).unwrap();
        it.snapshot(["--import", "json", "-o"]).args([own.join("x.img")]).run().succeeds();
        runs(&run(it, &victim.join("x.img")));
    });
}

#[test]
fn an_image_is_not_made_where_it_would_be_refused() {
    for_makers(|it| {
        let (open, noted) = (it.work().join("open"), it.work().join("noted"));
        fs::create_dir(&open).unwrap();
        it.own(&open);
        mode(&open, 0o777);
        it.file("note.py", format!("open({noted:?}, 'w')"));
        for folder in ["open", "open/inner"] {
            let path = it.work().join(folder);
            fs::create_dir_all(&path).unwrap();
            it.own(&path);
            let made = it.snapshot(["--import", "note", "-o"]).args([path.join("x.img")]).run();
            made.is_refused(&[open.to_str().unwrap(), "chmod"]);
        }
        assert!(!noted.exists(), "that is known before the imports");
        mode(&open, 0o1777);
        it.snapshot(["--import", "note", "-o"]).args([open.join("x.img")]).run().succeeds();
    });
}

/// Takes the directory `build` away, and puts a stranger's in its place whose `json` says that it ran.
fn taken_over(build: &Path) {
    fs::remove_dir_all(build).unwrap();
    fs::create_dir(build).unwrap();
    let planted = build.join("json.py");
    fs::write(&planted, "open('/proc/self/cwd/ran', 'w')\n").unwrap();
    give(&planted, STRANGER);
    give(build, STRANGER);
}

#[test]
fn nothing_is_imported_in_a_directory_that_a_stranger_has_made() {
    for_makers(|it| {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let (open, build) = (it.work().join("open"), it.work().join("open/build"));
        let (image, starter) = (it.work().join("snap.img"), it.work().join("starter"));
        fs::create_dir_all(&build).unwrap();
        mode(&open, 0o1777);
        for folder in [&open, &build] {
            it.own(folder);
        }
        let made = ["--import", "json", "-o"];
        it.snapshot(made).args([&image]).folder(&build).run().succeeds();
        let starter_made = it.program(["starter", "--max-age", "2h"]).args(made);
        starter_made.args([&starter, &it.work().join("other.img")]).folder(&build).run().succeeds();
        let refresh = || it.program(["snapshot", "--refresh"]).args([&image]).run();
        let start = || it.command(&starter).args(["-c", "print('ran')"]).run().succeeds();
        let starts_and_says = |errors: &[&str]| {
            let outcome = start();
            assert_eq!(outcome.text(), "ran\n");
            let told = outcome.errors();
            assert_eq!(told.lines().count(), usize::from(!errors.is_empty()), "{told}");
            assert!(errors.iter().all(|error| told.contains(error)), "{told}");
        };
        let before = fs::read(&image).unwrap();
        taken_over(&build);
        refresh().is_refused(&["open/build", "belongs to", "--force"]);
        starts_and_says(&["open/build", "belongs to"]);
        // Nor where a stranger can take the directory away.
        for (mine, strange) in [(&build, &open), (&open, &build)] {
            it.own(mine);
            give(strange, STRANGER);
            refresh().is_refused(&["open", "belongs to"]);
        }
        it.own(&build);
        it.own(&open);
        mode(&open, 0o777);
        refresh().is_refused(&["open", "everyone may rename"]);
        starts_and_says(&["open", "everyone may rename"]);
        mode(&open, 0o1777);
        assert!(!build.join("ran").exists());
        fs::remove_dir_all(&build).unwrap();
        // Another directory has other modules.
        refresh().is_refused(&["open/build", "No such file", "--force"]);
        assert_eq!(fs::read(&image).unwrap(), before);
        // A starter makes its image in the root directory then, and renews it in its own.
        starts_and_says(&[]);
        let other = it.work().join("other.img");
        let inode = fs::metadata(&other).unwrap().ino();
        fs::create_dir(&build).unwrap();
        taken_over(&build);
        grow_old(&other, 3 * 3600);
        starts_and_says(&["open/build", "older than it should be", "belongs to"]);
        assert_eq!(fs::metadata(&other).unwrap().ino(), inode);
        fs::remove_dir_all(&build).unwrap();
        fs::create_dir(&build).unwrap();
        it.own(&build);
        starts_and_says(&[]);
        assert_ne!(fs::metadata(&other).unwrap().ino(), inode);
        refresh().succeeds();
    });
}

#[test]
fn an_image_behind_a_link_is_made_anew_where_it_lies() {
    for_makers(|it| {
        let python = it.seat.python.path.clone();
        let snapshot = |options: &[&str]| {
            it.snapshot(["--import", "json", "--python"]).args([&python]).args(options).run()
        };
        snapshot(&["-o", "real.img"]).succeeds();
        let (image, link) = (it.work().join("real.img"), it.work().join("link.img"));
        symlink("real.img", &link).unwrap();
        let own = |uid: u32| {
            if nix::unistd::geteuid().is_root() {
                std::os::unix::fs::lchown(&link, Some(uid), None).unwrap();
            }
        };
        own(it.seat.who.uid().as_raw());
        let seed = || {
            let code = "import json; print(hash('text'), id(json))";
            it.program(["run"]).args([&image]).args(["-c", code]).run().succeeds().text()
        };
        let refresh = || it.program(["snapshot", "--refresh"]).args([&link]).run();
        let mut before = seed();
        let mut is_renewed = || {
            assert_eq!(fs::read_link(&link).unwrap(), Path::new("real.img"));
            let now = seed();
            assert_ne!(std::mem::replace(&mut before, now.clone()), now);
        };
        refresh().succeeds();
        is_renewed();
        snapshot(&["--force", "-o", "link.img"]).succeeds();
        is_renewed();
        snapshot(&["-o", "link.img"]).is_refused(&["--force"]);
        // Somebody else's link would choose what is replaced.
        if it.seat.who.uid().is_root() || nix::unistd::geteuid().is_root() {
            own(STRANGER);
            refresh().is_refused(&["link.img", "somebody else's"]);
            snapshot(&["--force", "-o", "link.img"]).is_refused(&["somebody else's"]);
        }
    });
}

fn grow_old(image: &Path, seconds: u64) {
    let time = SystemTime::now() - Duration::from_secs(seconds);
    fs::File::options().write(true).open(image).unwrap().set_modified(time).unwrap();
}

#[test]
fn starters_renew_images_that_are_too_old() {
    once(|it| {
        let folder = it.file("home/own.py", "value = 1").parent().unwrap().to_owned();
        let starter = folder.join("starter");
        let image = folder.join("own.img");
        let made = it
            .program(["starter", "--max-age", "2h", "--import", "own", "--python"])
            .args([
                it.seat.python.path.as_os_str(),
                "-o".as_ref(),
                starter.as_os_str(),
                image.as_os_str(),
            ])
            .folder(&folder);
        made.run().succeeds();
        let use_it = || -> Outcome {
            let code = "import sys; print('own' in sys.modules)";
            it.command(&starter).args(["-c", code]).folder(&folder).run().succeeds()
        };
        let inode = || fs::metadata(&image).unwrap().ino();
        assert_eq!(use_it().text(), "True\n");
        let first = inode();
        grow_old(&image, 3600);
        assert_eq!((use_it().text().as_str(), inode()), ("True\n", first));
        grow_old(&image, 3 * 3600);
        assert_eq!(use_it().text(), "True\n");
        let second = inode();
        assert_ne!(first, second, "it was made anew");
        assert_eq!((use_it().text().as_str(), inode()), ("True\n", second));
        // What cannot be made anew is run as it is, with a word.
        let text = fs::read_to_string(&starter).unwrap();
        fs::write(&starter, text.replace("snapshot=own", "snapshot=absent")).unwrap();
        grow_old(&image, 3 * 3600);
        let outcome = use_it();
        assert_eq!((outcome.text().as_str(), inode()), ("True\n", second));
        let told = outcome.errors();
        assert!(told.contains("older than it should be") && told.lines().count() == 1, "{told}");
        // Nor is that tried each time.
        let outcome = use_it();
        assert_eq!((outcome.text().as_str(), outcome.errors().as_str()), ("True\n", ""));
        for wrong in ["soon", "0d", "7", ""] {
            made.clone().args(["--force", "--max-age", wrong]).run().is_refused(&["max-age"]);
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

/// Ten scripts of an image that wait.
fn ten_that_wait(it: &Context, image: &Path, engine: Engine, code: &str) -> Vec<Running> {
    let code = format!("import sys\nprint('ready', flush=True)\nsys.stdin.read(1)\n{code}");
    let run = it.code(&code).image(image).by(engine).holding_stdin().thawed();
    let running: Vec<_> = (0..10).map(|_| run.spawn()).collect();
    for run in &running {
        run.wait_for("ready");
    }
    running
}

fn go_on(running: Vec<Running>) -> Vec<Outcome> {
    // Their input ends.
    running.into_iter().map(Running::finish).collect()
}

#[test]
fn another_image_in_its_place_while_it_runs() {
    for_everyone(|it| {
        for engine in engines(it) {
            let image = copy(it, Recipe::Plain, "copy.img");
            let kept = it.keep("copy.img");
            let code = "import decimal, json\nprint(json.dumps([1, 2]), decimal.Decimal(1))";
            let start = || ten_that_wait(it, &kept, *engine, code);
            let finish = |running: Vec<Running>| {
                for outcome in go_on(running) {
                    assert_eq!(outcome.succeeds().text(), "ready\n[1, 2] 1\n");
                }
            };
            // Replaced, as a snapshot does it.
            let running = start();
            let other = image.with_file_name("other.img");
            fs::copy(&kept, &other).unwrap();
            it.own(&other);
            fs::rename(&other, &kept).unwrap();
            finish(running);
            // Removed.
            let running = start();
            fs::remove_file(&kept).unwrap();
            finish(running);
            run(it, &kept).run().is_refused(&["no such file"]);
        }
    });
}

#[test]
fn an_image_that_is_cut_off_while_it_runs_kills_only_those_who_miss_it() {
    once(|it| {
        for engine in engines(it) {
            copy(it, Recipe::Plain, "copy.img");
            let kept: PathBuf = it.keep("copy.img");
            // Some miss a page, and some have all that they need.
            let missing =
                ten_that_wait(it, &kept, *engine, "import gc\nprint(len(gc.get_objects()) > 0)");
            let content = "import os\nos.write(1, b'content')\nos._exit(0)";
            let others = ten_that_wait(it, &kept, *engine, content);
            fs::File::options().write(true).open(&kept).unwrap().set_len(4096).unwrap();
            let mut died = 0;
            for outcome in go_on(missing).into_iter().chain(go_on(others)) {
                // As any program whose file is cut off: SIGBUS (mmap(2)), or right where nothing was
                // missed.
                let signal = std::os::unix::process::ExitStatusExt::signal(&outcome.status);
                let text = outcome.text();
                match signal {
                    Some(nix::libc::SIGBUS) => died += 1,
                    _ => assert!(
                        outcome.status.success()
                            && ["ready\nTrue\n", "ready\ncontent"].contains(&text.as_str()),
                        "{outcome:?}"
                    ),
                }
            }
            assert!(died > 0, "{engine:?}: nobody missed it");
            run(it, &kept).run().is_refused(&["copy.img"]);
            fs::remove_file(kept).unwrap();
            it.nothing_is_left();
        }
    });
}

/// In a user namespace everybody whom it does not know goes by one number, also who has none there.
#[test]
fn a_user_whom_a_namespace_does_not_know_is_nobody() {
    as_root(|it| {
        let image = copy(it, Recipe::Plain, "copy.img");
        mode(&image, 0o644);
        give(&image, STRANGER);
        run(it, &image).run().is_refused(&["copy.img", &STRANGER.to_string()]);
        let around = |uid: &str| {
            let uid = format!("--reuid={uid}");
            run(it, &image).through(["setpriv", &uid, "--clear-groups", "unshare", "--user"]).run()
        };
        for uid in ["0", "54321"] {
            around(uid).is_refused(&["copy.img", "65534"]);
        }
        // Root there is the one who made it, and knows itself.
        let as_its_root = run(it, &image).through(["unshare", "--user", "--map-root-user"]);
        as_its_root.clone().run().is_refused(&["copy.img", "65534"]);
        as_its_root.env("SUDO_UID", "65534").run().is_refused(&["copy.img", "65534"]);
        give(&image, 0);
        runs(&run(it, &image).through(["unshare", "--user", "--map-root-user"]));
    });
}
