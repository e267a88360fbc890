//! The environment variables that the imports have read: what python3 would make of others.

use std::path::PathBuf;

use crate::support::{Context, once, with_every_python};

/// Reads variables in every way, and keeps what it found.
const READER: &str = r"
import ctypes, os
getenv = ctypes.CDLL(None).getenv
getenv.restype = ctypes.c_char_p
getenv.argtypes = [ctypes.c_char_p]
seen = [os.environ.get('FOO'), getenv(b'FROM_C'), getenv(b'MISSING_IN_C')]
copy = dict(os.environ)
os.environ.setdefault('LEFT', 'by the import')
os.environ['OWN'] = '1'
own = getenv(b'OWN')
";
const SHOW: &str = "import reader; print(reader.seen)";

fn image(it: &Context, more: &[&str]) -> PathBuf {
    it.file("reader.py", READER);
    it.snapshot(["--import", "reader", "--force", "-o", "reader.img"])
        .args(["--python".as_ref(), it.seat.python.path.as_os_str()])
        .args(more)
        .env("FOO", "1")
        .env("FROM_C", "2")
        .run()
        .succeeds();
    it.keep("reader.img")
}

#[test]
fn another_value_is_not_passed_over() {
    with_every_python(|it| {
        let image = image(it, &[]);
        let run = |environment: &[(&str, &str)], options: &[&str]| {
            let run = it
                .python(["-c", SHOW])
                .file("reader.py", READER)
                .image(image.clone())
                .options(options);
            environment.iter().fold(run, |run, (name, value)| run.env(name, value))
        };
        let same = [("FOO", "1"), ("FROM_C", "2")];
        let with = |more: &[(&'static str, &'static str)]| [&same[..], more].concat();
        for environment in [
            with(&[]),
            with(&[("OTHER", "x"), ("OWN", "2"), ("PATH", "/bin")]),
            // As a child has it.
            with(&[("LEFT", "by the import")]),
        ] {
            let right = "['1', b'2', None]\n";
            assert_eq!(run(&environment, &[]).thaw().succeeds().text(), right, "{environment:?}");
        }
        for (environment, name) in [
            (with(&[])[..1].to_vec(), "FROM_C"),
            (with(&[])[1..].to_vec(), "FOO"),
            (vec![("FOO", "2"), same[1]], "FOO"),
            (vec![("FOO", ""), same[1]], "FOO"),
            (vec![same[0], ("FROM_C", "3")], "FROM_C"),
            (with(&[("MISSING_IN_C", "")]), "MISSING_IN_C"),
            (with(&[("LEFT", "by the user")]), "LEFT"),
        ] {
            let stock = run(&environment, &[]).stock().run().succeeds().text();
            for options in [&[][..], &["--fallback"]] {
                let cold = run(&environment, options).thaw();
                assert_eq!(cold.errors().lines().count(), 1, "{cold:?}");
                assert!(cold.errors().contains(name), "{cold:?}");
                assert_eq!(cold.text(), stock);
            }
            let quiet = [&environment[..], &[("PRELOADED_CRIU_QUIET", "1")]].concat();
            assert_eq!(run(&quiet, &[]).thaw().succeeds().errors(), "");
            run(&environment, &["--check", "off"]).thaw().succeeds();
        }
        std::fs::remove_file(image).unwrap();
    });
}

#[test]
fn what_the_recipe_sets_need_not_be_set() {
    once(|it| {
        let image = image(it, &["--env", "FOO=1"]);
        let run = |value: &[&str]| {
            let run = it.python(["-c", SHOW]).file("reader.py", READER).image(image.clone());
            let run = run.env("FROM_C", "2");
            value.iter().fold(run, |run, value| run.env("FOO", value)).thaw()
        };
        run(&[]).succeeds();
        run(&["1"]).succeeds();
        let cold = run(&["2"]).succeeds();
        assert_eq!(cold.text(), "['2', b'2', None]\n");
        assert!(cold.errors().contains("FOO"), "{cold:?}");
        std::fs::remove_file(image).unwrap();
    });
}

#[test]
fn a_starter_does_without() {
    once(|it| {
        let image = image(it, &[]);
        let starter = it.home().join("python-x");
        it.program(["starter", "--output"]).args([&starter, &image]).run().succeeds();
        let use_it = |value: &str| {
            let run = it.command(&starter).args(["-c", SHOW]);
            run.env("FROM_C", "2").env("FOO", value).run().succeeds()
        };
        let thawed = use_it("1");
        assert_eq!(
            (thawed.text().as_str(), thawed.errors()),
            ("['1', b'2', None]\n", String::new())
        );
        let cold = use_it("2");
        assert_eq!(cold.text(), "['2', b'2', None]\n");
        assert_eq!(cold.errors().lines().count(), 1, "{cold:?}");
        assert!(cold.errors().contains("FOO"), "{cold:?}");
        // The image is another caller's, and is left to it.
        assert_eq!(use_it("1").errors(), "");
        std::fs::remove_file(image).unwrap();
    });
}

/// Looks for its settings below HOME, and makes them where there are none.
const HOMELY: &str = r"
import os
place = os.path.join(os.path.expanduser('~'), '.homely')
if not os.path.exists(place):
    open(place, 'w').close()
";
const FOLLOWS: &str = r"
import os, preloaded_criu, homely
source = homely.__loader__.get_code('homely')
def follow():
    if 'REFUSE' in os.environ:
        return False
    exec(source, homely.__dict__)
preloaded_criu.follows('HOME', 'homely', follow)
";
const OTHER: &str = "import os; os.environ['HOME']";
/// How the process is, and whether it was restored.
const WHERE: &str = r"
import homely, os, signal, site
print(os.path.relpath(homely.place, os.environ['HOME']), os.path.exists(homely.place))
print(os.path.relpath(site.USER_BASE, os.environ['HOME']), open('/proc/self/comm').read())
print([line for line in open('/proc/self/status') if line.startswith(('Sig', 'Shd')) and 'SigQ' not in line])
try:
    import preloaded_criu
except ImportError:
    open(os.environ['SEEN'], 'w').write('ordinary')
else:
    open(os.environ['SEEN'], 'w').write('restored')
";

#[test]
fn a_variable_is_followed_where_all_its_readers_do() {
    with_every_python(|it| {
        it.file("homely.py", HOMELY);
        it.file("follows.py", FOLLOWS);
        it.file("other.py", OTHER);
        let image = |name: &str, more: &[&str]| {
            it.snapshot(["--import", "homely", "--exec", "follows.py", "--force", "-o", name])
                .args(["--python".as_ref(), it.seat.python.path.as_os_str()])
                .args(more)
                .run()
                .succeeds();
            it.keep(name)
        };
        let all = image("all.img", &[]);
        let some = image("some.img", &["--import", "other"]);
        let folder = it.home().join("another");
        std::fs::create_dir(&folder).unwrap();
        it.own(&folder);
        let seen = it.home().join("seen");
        let run = |image: &PathBuf, more: &[&str]| {
            let files = [("homely.py", HOMELY), ("follows.py", FOLLOWS), ("other.py", OTHER)];
            let run = it.python(["-c", WHERE]).image(image.clone());
            let run = run.env("HOME", &folder).env("SEEN", &seen);
            let run = files.into_iter().fold(run, |run, (name, text)| run.file(name, text));
            more.iter().fold(run, |run, name| run.env(name, "1"))
        };
        let place = folder.join(".homely");
        let is_restored = || {
            assert!(place.exists());
            std::fs::remove_file(&place).unwrap();
            std::fs::read_to_string(&seen).unwrap() == "restored"
        };
        let stock = run(&all, &[]).stock().run().succeeds().text();
        assert!(stock.starts_with(".homely True\n.local "), "{stock}");
        assert!(!is_restored());

        let followed = run(&all, &[]).thaw().succeeds();
        assert_eq!((followed.text(), followed.errors()), (stock.clone(), String::new()));
        assert!(is_restored());

        for (image, more, why) in [
            (&some, &[][..], "which is another here"),
            (&all, &["REFUSE"], "follow cannot follow it"),
        ] {
            let cold = run(image, more).thaw().succeeds();
            assert_eq!(cold.text(), stock);
            assert!(!is_restored());
            assert_eq!(cold.errors().lines().count(), 1, "{cold:?}");
            assert!(cold.errors().contains("HOME") && cold.errors().contains(why), "{cold:?}");
            let quiet = run(image, &[more, &["PRELOADED_CRIU_QUIET"]].concat()).thaw().succeeds();
            assert_eq!((quiet.text(), quiet.errors()), (stock.clone(), String::new()));
            assert!(!is_restored());
        }
        for path in [&all, &some, &seen] {
            std::fs::remove_file(path).unwrap();
        }
        std::fs::remove_dir(folder).unwrap();
    });
}

#[test]
fn a_child_that_cannot_follow_says_nothing() {
    once(|it| {
        it.file("homely.py", HOMELY);
        it.file("follows.py", FOLLOWS);
        it.snapshot(["--import", "homely", "--exec", "follows.py", "--force", "-o", "child.img"])
            .args(["--python".as_ref(), it.seat.python.path.as_os_str()])
            .run()
            .succeeds();
        let image = it.keep("child.img");
        let script = "import os, subprocess, sys\n\
            child = [sys.executable, '-c', 'import homely; print(homely.place)']\n\
            environ = {**os.environ, 'HOME': os.getcwd()}\n\
            print(subprocess.run(child, env=environ, capture_output=True, text=True, check=True))\n\
            environ['REFUSE'] = '1'\n\
            print(subprocess.run(child, env=environ, capture_output=True, text=True, check=True))";
        let run = it.code(script).file("homely.py", HOMELY).file("follows.py", FOLLOWS);
        run.image(image.clone()).is_as_stock();
        std::fs::remove_file(image).unwrap();
    });
}
