//! Children that are the same interpreter: started from the image too, and like any other child.

use std::fs;

use crate::support::{Context, Recipe, for_everyone, once, shared, with_every_python};

/// Prints whether this interpreter comes from an image: nobody has imported the module in a new one.
const ORIGIN: &str = "import sys; print('thawed' if 'ctypes' in sys.modules else 'new')";

fn origins(it: &Context, code: &str) -> String {
    let code = code.replace("ORIGIN", &format!("{ORIGIN:?}"));
    it.code(&code).thaw().succeeds().text()
}

#[test]
fn every_way_to_start_one() {
    with_every_python(|it| {
        for start in [
            "subprocess.run([sys.executable, '-c', ORIGIN])",
            "subprocess.run([sys.executable, '-uBc', ORIGIN], close_fds=False)",
            "subprocess.run([sys.executable, '-'], input=ORIGIN, text=True)",
            "subprocess.run([sys.executable, '-c', ORIGIN], preexec_fn=os.getpid)",
            "subprocess.run(['python3', '-c', ORIGIN], executable=sys.executable, \
             env={'PATH': os.path.dirname(sys.executable), 'LANG': 'C.UTF-8'})",
            "subprocess.run([sys.executable, '-c', ORIGIN] + ['x'] * 500)",
            "os.posix_spawn(sys.executable, [sys.executable, '-c', ORIGIN], os.environ); os.wait()",
            "os.execv(sys.executable, [sys.executable, '-c', ORIGIN])",
            "os.execve(sys.executable, [sys.executable, '-c', ORIGIN], {'LANG': 'C.UTF-8'})",
            "os.spawnl(os.P_WAIT, sys.executable, sys.executable, '-c', ORIGIN)",
        ] {
            let out = origins(it, &format!("import os, subprocess, sys; {start}"));
            assert_eq!(out, "thawed\n", "{start}");
        }
    });
}

#[test]
fn children_of_children() {
    for_everyone(|it| {
        let code = format!(
            "{ORIGIN}; import subprocess; sys.stdout.flush(); depth = int(sys.argv[2])
if depth: subprocess.run([sys.executable, '-c', 'import sys; exec(sys.argv[1])', sys.argv[1], str(depth - 1)], check=True)"
        );
        let run = it.python(["-c", "import sys; exec(sys.argv[1])", &code, "3"]);
        assert_eq!(run.thaw().succeeds().text(), "thawed\n".repeat(4));
    });
}

/// What a child can see of how it was started.
const PORTRAIT: &str = "
import json, os, sys
fds = []
for number in range(3, 64):
    try:
        os.fstat(number)
    except OSError:
        continue
    fds.append((number, os.get_inheritable(number)))
def read(name):
    with open('/proc/self/' + name) as file:
        return file.read()
print(json.dumps([sys.executable, sys._base_executable, sys.argv, sys.orig_argv, sys.prefix,
    list(sys.flags), sys.warnoptions, sys._xoptions, sorted(os.environ), fds,
    read('cmdline'), read('environ'),
    os.readlink('/proc/self/exe'), os.getppid() == int(os.environ['PARENT']), sys.path]))
sys.exit(7)
";

#[test]
fn they_are_as_any_other() {
    with_every_python(|it| {
        let parent = "import os, subprocess, sys
os.environ['PARENT'] = str(os.getpid())
clean = {'PARENT': os.environ['PARENT'], 'LANG': 'C.UTF-8'}
with open('/dev/null') as file:
    for options in [], ['-W', 'error', '-X', 'faulthandler'], ['-I'], ['-O'], ['-X', 'utf8']:
        for more in {}, {'env': clean}, {'pass_fds': [file.fileno()]}, {'close_fds': False}:
            child = [sys.executable, *options, 'portrait.py', '-c', 'x']
            done = subprocess.run(child, capture_output=True, **more)
            print(done.stdout.decode().replace(clean['PARENT'], 'PID'), done.stderr, done.returncode)
for wrong in [sys.executable + 'x'], [sys.executable, '-Q'], [sys.executable, 'no.py'], [sys.executable, '-c', '1/0']:
    try:
        print(subprocess.run(wrong, capture_output=True))
    except OSError as error:
        print(repr(error))
child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(100)'])
child.terminate()
print(child.wait())
sys.stdout.flush()
os.execv(sys.executable, ['some name', '-c', 'import sys; print(sys.argv, sys.orig_argv)'])
";
        it.code(parent).file("portrait.py", PORTRAIT).is_as_stock().succeeds();
    });
}

#[test]
fn multiprocessing() {
    let script = "
import multiprocessing, sys, warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import shared_memory

warnings.simplefilter('error')

def square(number):
    return number * number, sys.executable, sys.modules['__main__'].__name__

def origin(_):
    return 'ctypes' in sys.modules

if __name__ == '__main__':
    for method in 'spawn', 'forkserver':
        context = multiprocessing.get_context(method)
        with context.Pool(2) as pool:
            print(pool.map(square, range(3)))
            print(all(pool.map(origin, range(3))), file=open('origin', 'a'))
        queue = context.Queue()
        process = context.Process(target=queue.put, args=(method,))
        process.start()
        print(queue.get(), process.join(), process.exitcode)
        with ProcessPoolExecutor(2, mp_context=context) as pool:
            print(list(pool.map(square, range(3))))
        lock = context.Lock()
        with context.Manager() as manager:
            print(manager.list([1, 2]))
    memory = shared_memory.SharedMemory(create=True, size=10)
    memory.close()
    memory.unlink()
";
    with_every_python(|it| {
        let run = it.python(["script.py"]).file("script.py", script);
        let mut thawed = run.thaw().succeeds();
        let origin = thawed.files.remove("origin").unwrap();
        assert_eq!(origin, b"True\nTrue\n");
        let plain =
            script.replace("file=open('origin', 'a')", "end=''").replace("print(all(", "((");
        let plain = plain.replace("range(3))), end='')", "range(3))))");
        it.python(["script.py"]).file("script.py", plain).is_as_stock().succeeds();
    });
}

#[test]
fn loky() {
    once(|it| {
        let script = "
import sys
from joblib import Parallel, delayed

def square(number):
    return number * number, 'sklearn.cluster' in sys.modules

print(Parallel(n_jobs=2, backend='loky')(delayed(square)(n) for n in range(4)))
";
        let run = it.python(["script.py"]).from(Recipe::Numeric).file("script.py", script);
        let thawed = run.env("PYTHONPATH", shared().modules()).thaw().succeeds();
        assert_eq!(thawed.text(), "[(0, True), (1, True), (4, True), (9, True)]\n");
        assert_eq!(thawed.errors(), "");
    });
}

#[test]
fn none_of_them_if_so_wished() {
    once(|it| {
        let code =
            format!("import subprocess, sys; subprocess.run([sys.executable, '-c', {ORIGIN:?}])");
        let outcome = it.code(&code).options(&["--no-children"]).thaw().succeeds();
        assert_eq!(outcome.text(), "new\n");
    });
}

#[test]
fn where_the_image_is_of_no_use_they_start_without() {
    for_everyone(|it| {
        let copy = || {
            let path = it.home().join("snap.img");
            fs::copy(it.image(Recipe::Plain), &path).unwrap();
            it.own(&path);
            path
        };
        for harm in [
            "os.remove(image)",
            "os.rename(image, image + '.moved')",
            "os.chmod(image, 0o666)",
            // What is mapped must not be written to: another file gets the name.
            "open(image + '.new', 'wb').write(open(image, 'rb').read(5000)); \
             os.rename(image + '.new', image)",
            "os.remove(image); open(image, 'w').close()",
            "resource.setrlimit(resource.RLIMIT_AS, (50 << 20, 50 << 20))",
            "resource.setrlimit(resource.RLIMIT_NOFILE, (6, 6))",
            "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))",
        ] {
            let image = copy();
            let code = format!(
                "import os, resource, subprocess, sys; image = {image:?}
def harm(): {harm}
done = subprocess.run([sys.executable, '-c', {ORIGIN:?}], capture_output=True, preexec_fn=harm)
print(done.stdout, done.stderr, done.returncode)"
            );
            let outcome = it.code(&code).image(&image).thaw().succeeds();
            let expected = ["b'new\\n' b'' 0\n", "b'thawed\\n' b'' 0\n"];
            assert!(expected.contains(&outcome.text().as_str()), "{harm}: {outcome:?}");
        }
    });
}

#[test]
fn a_limit_for_memory_holds_for_python_as_ever() {
    once(|it| {
        let limit = "ulimit -v 100000; \"$@\"";
        let code = format!("import subprocess, sys; {ORIGIN}");
        let outcome = it.code(&code).from(Recipe::Blocks).shell(limit).thawed().run();
        outcome.is_refused(&["ulimit -v"]);
        let options = ["--fallback"];
        let outcome = it.code(&code).from(Recipe::Blocks).options(&options).shell(limit).thaw();
        assert_eq!(outcome.text(), "new\n", "{outcome:?}");
        assert!(outcome.errors().contains("without its image"), "{outcome:?}");
    });
}

#[test]
fn descriptors_of_the_image_and_of_the_caller() {
    once(|it| {
        let opens = "import builtins; builtins.kept = open('/etc/passwd')";
        it.file("opens.py", opens);
        let python = it.seat.python.path.as_os_str();
        let outcome = it.snapshot(["--import", "ctypes", "--exec", "opens.py", "--python"]);
        outcome.args([python]).run().succeeds();
        let image = it.keep("snap.img");
        let code = format!(
            "import os, subprocess, sys; start = [sys.executable, '-c', {ORIGIN:?}]
number = kept.fileno()
print(number, subprocess.run(start, capture_output=True, text=True).stdout)
# The child finds the caller's file under that number, and so no place for its own.
print(subprocess.run(start, capture_output=True, text=True, pass_fds=[number]).stdout)"
        );
        // The working directory is laid out anew, and the image knows what it was made from.
        let outcome = it.code(&code).image(&image).file("opens.py", opens).thaw().succeeds();
        assert_eq!(outcome.text(), "3 thawed\n\nnew\n\n", "{outcome:?}");
        let taken = it
            .code("print(kept.fileno())")
            .image(&image)
            .file("opens.py", opens)
            .shell("\"$@\" 3</dev/null");
        taken.thaw().is_refused(&["descriptor 3", "/etc/passwd"]);
    });
}

#[test]
fn a_run_without_its_image_says_so_in_one_line() {
    for_everyone(|it| {
        let run = || it.python(["-c", ORIGIN]).options(&["--fallback"]).image("/no/such.img");
        let outcome = run().thaw().succeeds();
        assert_eq!(outcome.text(), "new\n");
        assert_eq!(outcome.errors().lines().count(), 1, "{outcome:?}");
        assert!(outcome.errors().contains("/no/such.img: there is no such file"), "{outcome:?}");
        let quiet = run().env("PRELOADED_CRIU_QUIET", "1").thaw().succeeds();
        assert_eq!(quiet.errors(), "");
    });
}

#[test]
fn environments_that_they_make_and_fill() {
    once(|it| {
        // A distribution as small as one can be.
        let wheel = "
import zipfile
with zipfile.ZipFile('tiny-1.0-py3-none-any.whl', 'w') as wheel:
    info = 'tiny-1.0.dist-info/'
    wheel.writestr('tiny.py', 'import sys\\ndef main(): print(sys.prefix, sys.executable)\\n')
    wheel.writestr(info + 'METADATA', 'Metadata-Version: 2.1\\nName: tiny\\nVersion: 1.0\\n')
    wheel.writestr(info + 'WHEEL', 'Wheel-Version: 1.0\\nGenerator: x\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n')
    wheel.writestr(info + 'entry_points.txt', '[console_scripts]\\ntiny = tiny:main\\n')
    wheel.writestr(info + 'RECORD', '')
";
        it.code(wheel).stock().run().succeeds();
        let wheel = it.keep("tiny-1.0-py3-none-any.whl");
        let python = Recipe::Numeric.interpreter(it.seat.python);
        let script = format!(
            "
import os, subprocess, sys
def run(*words):
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done
    return done.stdout
run(sys.executable, '-m', 'venv', '--without-pip', 'env')
print(open('env/pyvenv.cfg').read(), os.readlink('env/bin/python3'), os.listdir('env/bin').sort())
print(run('env/bin/python3', '-c', 'import sys; print(sys.prefix, sys.base_prefix, sys.executable)'))
run({python:?}, '-m', 'pip', '--python', 'env/bin/python3', 'install', '--no-index', {wheel:?})
print(open('env/bin/tiny').readline(), run('env/bin/tiny'))
run(sys.executable, '-m', 'pip', 'install', '--no-index', '--target', 'there', {wheel:?})
print(open('there/bin/tiny').readline())
import shutil
shutil.rmtree('env'), shutil.rmtree('there')
"
        );
        let run = it.python(["script.py"]).from(Recipe::Numeric).file("script.py", script);
        run.env("PYTHONDONTWRITEBYTECODE", "1").is_as_stock().succeeds();
    });
}
