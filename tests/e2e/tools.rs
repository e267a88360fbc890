//! Tools that are started as modules, and start interpreters themselves.

use crate::support::run::Python;
use crate::support::{Context, Recipe, once, shared, with_every_python};
use crate::terminal::{same, visit};

#[test]
fn the_debugger() {
    with_every_python(|it| {
        let script = "def half(n):\n    return n / 2\nprint(half(4))\n";
        // Whatever directory it is started in.
        let path = it.file("../script.py", script);
        let run = it.python(["-m", "pdb", path.to_str().unwrap(), "x"]);
        let run = run.env("TERM", "dumb").env("PYTHON_BASIC_REPL", "1");
        let ended = same(it, &run, |terminal, _| {
            let mut say = |words: &str, answer: &str| {
                terminal.press(&format!("{words}\r"));
                terminal.wait_for(answer);
                terminal.wait_for("(Pdb) ");
            };
            say("b half", "Breakpoint 1");
            say("c", "return n / 2");
            say("p n * 10, __name__", "(40, '__main__')");
            say("w", "script.py(3)<module>()");
            say("up", "print(half(4))");
            say("c", "will be restarted");
            say("import sys; sys.argv[1:]", "['x']");
            terminal.press("q\r");
        });
        assert_eq!(ended.status.code(), Some(0), "{ended:?}");
        let breaks = it.code("x = 5\nbreakpoint()\nprint(x)").env("TERM", "dumb");
        same(it, &breaks, |terminal, _| {
            terminal.wait_for("(Pdb) ");
            terminal.press("x = 6\r");
            terminal.wait_for("(Pdb) ");
            terminal.press("c\r");
            terminal.wait_for("6\r\n");
        });
    });
}

fn numeric<'a>(it: &'a Context, arguments: &[&str]) -> Python<'a> {
    it.python(arguments).from(Recipe::Numeric).env("PYTHONPATH", shared().modules())
}

#[test]
fn ipython() {
    once(|it| {
        let line = ["-m", "IPython", "--no-banner", "--colors=NoColor", "--no-confirm-exit"];
        let run = |more: &[&str]| {
            let run = numeric(it, &[&line[..], more].concat());
            run.env("IPYTHONDIR", it.home().join("ipython"))
        };
        let plain = run(&["--simple-prompt"]);
        let left = same(it, &plain, |terminal, _| {
            terminal.wait_for("In [1]: ");
            terminal.press("6 * 7\r");
            terminal.wait_for("Out[1]: 42");
            terminal.wait_for("In [2]: ");
            terminal.press("1 / 0\r");
            terminal.wait_for("ZeroDivisionError: division by zero");
            terminal.wait_for("In [3]: ");
            terminal.press("import numpy, sys; numpy.arange(3), sys.argv, __name__\r");
            terminal.wait_for("'__main__')");
            terminal.wait_for("In [4]: ");
            terminal.press("exit\r");
        });
        assert!(left.status.success(), "{left:?}");
        // With an editor of its own, which writes what it likes when it likes.
        for command in [run(&[]).stock(), run(&[]).thawed()] {
            let left = visit(it, &command, &|terminal, _| {
                terminal.wait_for("[1]:");
                terminal.press("print(6 * 7, 'sklearn' )\r");
                terminal.wait_for("42 sklearn");
                terminal.wait_for("[2]:");
                terminal.press("import time; print('now'); time.sleep(100)\r");
                terminal.wait_for("now\r\n");
                terminal.press("\x03");
                terminal.wait_for("KeyboardInterrupt");
                terminal.wait_for("[3]:");
                terminal.press("\x04");
            });
            assert!(left.status.success() && left.modes_are_kept, "{left:#?}");
        }
    });
}

const TESTS: &str = "
import sys

def test_right(tmp_path):
    (tmp_path / 'file').write_text('x')

def test_wrong():
    assert [1, 2] == [1, 3]

def test_origin():
    open('origin', 'a').write('%s\\n' % ('sklearn.cluster' in sys.modules))
";

/// Without what a clock says.
fn without_times(text: &str) -> String {
    let line = |line: &str| match line.rsplit_once(" in ") {
        Some((before, _)) if line.ends_with('s') => before.to_owned(),
        _ => line.to_owned(),
    };
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

#[test]
fn pytest() {
    once(|it| {
        let run = |more: &[&str]| {
            let line = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--basetemp=base"];
            numeric(it, &[&line[..], more, &["test_it.py"]].concat()).file("test_it.py", TESTS)
        };
        let plain = run(&[]);
        it.file("test_it.py", TESTS);
        let stock = plain.stock().run();
        let thawed = plain.thaw();
        assert_eq!(thawed.status.code(), Some(1), "{thawed:?}");
        assert_eq!(without_times(&thawed.text()), without_times(&stock.text()));
        let origins = |outcome: &crate::support::Outcome| {
            let file = outcome.files.iter().find(|(name, _)| name.as_str() == "origin");
            file.map(|(_, content)| String::from_utf8_lossy(content).into_owned())
        };
        assert_eq!(origins(&thawed).as_deref(), Some("True\n"), "{thawed:?}");
        let workers = run(&["-n", "2"]).thaw();
        assert_eq!(workers.status.code(), Some(1), "{workers:?}");
        assert!(workers.text().contains("1 failed, 2 passed"), "{workers:?}");
        assert_eq!(origins(&workers).as_deref(), Some("True\n"), "{workers:?}");
    });
}

/// Makes a wheel (Binary Distribution Format, PyPA specifications) with a script.
const WHEEL: &str = "
import zipfile
info = 'fruit-1.0.dist-info'
with zipfile.ZipFile('fruit-1.0-py3-none-any.whl', 'w') as wheel:
    wheel.writestr('fruit.py', 'def main():\\n    print(\"pear\")\\n')
    wheel.writestr(info + '/METADATA', 'Metadata-Version: 2.1\\nName: fruit\\nVersion: 1.0\\n')
    wheel.writestr(info + '/WHEEL', 'Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n')
    wheel.writestr(info + '/entry_points.txt', '[console_scripts]\\nfruit = fruit:main\\n')
    wheel.writestr(info + '/RECORD', '')
";

#[test]
fn environments_and_what_is_installed_into_them() {
    once(|it| {
        let folder = it.home().join("env");
        let make = it.python(["-m", "venv", folder.to_str().unwrap()]);
        make.thaw().succeeds();
        let python = folder.join("bin/python");
        it.snapshot(["--import", "json", "--force", "-o", "env.img", "--python"])
            .args([&python])
            .run()
            .succeeds();
        let image = it.keep("env.img");
        let install = "import subprocess, sys
subprocess.run([sys.executable, '-m', 'pip', 'install', '-q', '--no-index', '--no-deps',
    '--disable-pip-version-check', 'fruit-1.0-py3-none-any.whl'], check=True)
import fruit; fruit.main(); print(sys.prefix, fruit.__file__)";
        let code = format!("{WHEEL}\n{install}");
        let place = folder.display().to_string();
        let installed = it.code(&code).image(image.clone()).thaw().succeeds();
        assert!(
            installed.text().starts_with(&format!("pear\n{place} {place}/lib")),
            "{installed:?}"
        );
        // Its script names the interpreter itself.
        let script = it.command(folder.join("bin/fruit")).run().succeeds();
        assert_eq!(script.text(), "pear\n");
        std::fs::remove_dir_all(&folder).unwrap();
        std::fs::remove_file(image).unwrap();
    });
}
