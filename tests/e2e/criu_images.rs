//! Images that only CRIU can restore: what the imports left behind is there again, and who may not have
//! it is told why.

use std::fs;
use std::path::PathBuf;

use crate::support::run::{Command, Python};
use crate::support::{Context, Engine, Who, as_root, for_makers, once};

/// A snapshot of a module with this source; it is called `left`, and not in the working directory,
/// which is cleared.
fn leaving<'a>(it: &'a Context, source: &str) -> Command<'a> {
    let module = it.home().join("left.py");
    fs::write(&module, source).unwrap();
    it.own(&module);
    it.snapshot(["--import", "left"]).env("PYTHONPATH", it.home())
}

/// An image for CRIU of a module with this source; it is called `left`.
fn image(it: &Context, source: &str) -> PathBuf {
    let outcome =
        leaving(it, source).args(["--engine", "criu", "--output", "snap.img"]).run().succeeds();
    assert!(outcome.errors().contains("only --engine criu can run this image"), "{outcome:?}");
    assert!(outcome.errors().contains("there since import left"), "{outcome:?}");
    it.keep("snap.img")
}

fn run<'a>(it: &'a Context, image: &PathBuf, code: &str) -> Python<'a> {
    // The numbers that the image has are free.
    let line = "for n in {3..20}; do eval \"exec $n<&-\"; done; exec \"$@\"";
    it.code(code).image(image).by(Engine::Criu).shell(line)
}

const DESCRIPTORS: &str = "import os, select, signal, socket, ctypes, struct\n\
    libc = ctypes.CDLL(None, use_errno=True)\n\
    event = libc.eventfd(3, 0)\n\
    reader, writer = os.pipe()\n\
    os.write(writer, b'in the pipe')\n\
    one, other = socket.socketpair()\n\
    other.send(b'in the socket')\n\
    poll = select.epoll()\n\
    poll.register(reader, select.EPOLLIN, )\n\
    mask = ctypes.create_string_buffer(128)\n\
    libc.sigemptyset(mask); libc.sigaddset(mask, signal.SIGUSR1)\n\
    signals = libc.signalfd(-1, mask, 0)\n\
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])\n\
    timer = libc.timerfd_create(1, 0)\n\
    libc.timerfd_settime(timer, 0, struct.pack('4q', 0, 50000000, 0, 50000000), None)\n";

#[test]
fn events_pipes_and_pairs_of_sockets_are_as_they_were() {
    as_root(|it| {
        let image = image(it, DESCRIPTORS);
        let code = "import left, os, select, signal, socket\n\
            print(int.from_bytes(os.read(left.event, 8), 'little'))\n\
            print(left.poll.poll(10) == [(left.reader, select.EPOLLIN)])\n\
            print(os.read(left.reader, 100), left.one.recv(100))\n\
            os.write(left.writer, b'more'); left.one.send(b'back')\n\
            print(os.read(left.reader, 100), left.other.recv(100))\n\
            print(int.from_bytes(os.read(left.timer, 8), 'little') > 0)\n\
            os.kill(os.getpid(), signal.SIGUSR1)\n\
            print(int.from_bytes(os.read(left.signals, 128)[:4], 'little') == signal.SIGUSR1)\n\
            os.close(left.writer)\n\
            print(os.read(left.reader, 1))";
        let outcome = run(it, &image, code).thaw().succeeds();
        let expected =
            "3\nTrue\nb'in the pipe' b'in the socket'\nb'more' b'back'\nTrue\nTrue\nb''\n";
        assert_eq!(outcome.text(), expected, "{outcome:?}");
        // A number that is the caller's is not taken from it.
        let taken = run(it, &image, "print(1)")
            .shell("for n in {3..12}; do eval \"exec $n</dev/null\"; done; exec \"$@\"");
        taken.thaw().is_refused(&["descriptor", "is open"]);
    });
}

#[test]
fn timers_go_on() {
    as_root(|it| {
        let image = image(
            it,
            "import ctypes, signal, struct\n\
             seen = []\n\
             signal.signal(signal.SIGALRM, lambda *_: seen.append('interval'))\n\
             signal.signal(signal.SIGUSR2, lambda *_: seen.append('posix'))\n\
             signal.setitimer(signal.ITIMER_REAL, 2, 0.05)\n\
             libc, timer = ctypes.CDLL(None), ctypes.c_void_p()\n\
             event = struct.pack('qii48x', 0, signal.SIGUSR2, 0)\n\
             assert libc.timer_create(1, event, ctypes.byref(timer)) == 0\n\
             assert libc.timer_settime(timer, 0, struct.pack('4q', 0, 50000000, 2, 0), None) == 0\n",
        );
        let code = "import left, time\n\
            while len(left.seen) < 8 or len(set(left.seen)) < 2: time.sleep(0.01)\n\
            print(sorted(set(left.seen)))";
        let outcome = run(it, &image, code).thaw().succeeds();
        assert_eq!(outcome.text(), "['interval', 'posix']\n", "{outcome:?}");
    });
}

const HELPER: &str = "import os, subprocess, sys\n\
    helper = subprocess.Popen([sys.executable, '-c', '''\n\
import os, sys, threading, time\n\
threading.Thread(target=time.sleep, args=(10000,), daemon=True).start()\n\
grandchild = os.fork()\n\
if not grandchild:\n\
\x20   os.setsid()\n\
\x20   time.sleep(10000)\n\
print(\"ready\", flush=True)\n\
for line in sys.stdin:\n\
\x20   threads = sorted(map(int, os.listdir(\"/proc/self/task\")))\n\
\x20   known = sorted(thread.native_id for thread in threading.enumerate())\n\
\x20   print(os.getpid(), os.getppid(), os.getpgid(0), os.getsid(0), len(threads), line.strip(), flush=True)\n\
'''], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)\n\
    assert helper.stdout.readline() == 'ready\\n'\n\
    idle = subprocess.Popen(['sleep', '10000'], start_new_session=True)\n";

#[test]
fn processes_that_were_left_running_run_on_with_numbers_of_their_own() {
    as_root(|it| {
        let image = image(it, HELPER);
        let code = "import left, os\n\
            print('hello', file=left.helper.stdin, flush=True)\n\
            pid, parent, group, session, threads, text = left.helper.stdout.readline().split()\n\
            print(int(pid) == left.helper.pid, int(parent) == os.getpid(), threads, text)\n\
            print(int(group) == os.getpgid(0), int(session) == os.getsid(0))\n\
            print(os.getsid(left.idle.pid) == os.getpgid(left.idle.pid) == left.idle.pid)\n\
            status = open(f'/proc/{left.helper.pid}/status').read()\n\
            print('Uid:\\t54321' in status, left.helper.poll(), left.idle.poll())\n\
            grandchild, = open(f'/proc/{pid}/task/{pid}/children').read().split()\n\
            print(os.getsid(int(grandchild)) == int(grandchild))\n\
            os.kill(int(grandchild), 9)\n\
            left.idle.kill(); print(left.idle.wait())\n\
            left.helper.stdin.close(); print(left.helper.wait())\n\
            print(left.helper.pid, left.idle.pid, grandchild)";
        let expected = "True True 2 hello\nTrue True\nTrue\nFalse None None\nTrue\n-9\n0\n";
        let mut seen = Vec::new();
        let runs: Vec<_> = (0..3).map(|_| run(it, &image, code).thawed().spawn()).collect();
        let outcomes = runs.into_iter().map(|one| (one.finish().succeeds(), expected));
        for (outcome, expected) in outcomes {
            let text = outcome.text();
            let (said, numbers) = text.trim_end().rsplit_once('\n').unwrap();
            assert_eq!(format!("{said}\n"), expected, "{outcome:?}");
            seen.extend(numbers.split(' ').map(str::to_owned));
        }
        let count = seen.len();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), count, "numbers of their own: {seen:?}");
    });
}

#[test]
fn a_resource_tracker_and_a_forked_process_run_on() {
    as_root(|it| {
        let image = image(
            it,
            "import multiprocessing, os, time\n\
             from multiprocessing import resource_tracker\n\
             resource_tracker.ensure_running()\n\
             reader, writer = multiprocessing.Pipe(False)\n\
             def work():\n\
             \x20   while True: writer.send(os.getppid()); time.sleep(0.05)\n\
             process = multiprocessing.get_context('fork').Process(target=work, daemon=True)\n\
             process.start()\n",
        );
        let code = "import left, os\n\
            from multiprocessing import resource_tracker as r\n\
            while left.reader.recv() != os.getpid(): pass\n\
            print(r._resource_tracker._check_alive(), os.waitpid(r._resource_tracker._pid, os.WNOHANG))\n\
            left.process.kill()\n\
            print(os.waitpid(left.process.pid, 0)[1])";
        let outcome = run(it, &image, code).thaw().succeeds();
        assert_eq!(outcome.text(), "True (0, 0)\n9\n", "{outcome:?}");
    });
}

#[test]
fn they_are_made_only_when_asked_for() {
    for_makers(|it| {
        for (source, word) in [
            ("import os; ends = os.pipe()", "a pipe"),
            ("import select; poll = select.epoll()", "an epoll set"),
            ("import signal; signal.setitimer(signal.ITIMER_REAL, 1000)", "timer"),
            ("import socket; pair = socket.socketpair()", "socket"),
            ("import subprocess; idle = subprocess.Popen(['sleep', '1000'])", "a child process"),
        ] {
            let outcome = leaving(it, source).run();
            outcome.is_refused(&[word, "--engine criu"]);
        }
    });
}

#[test]
fn what_criu_cannot_restore_either_is_refused() {
    for_makers(|it| {
        for (source, word) in [
            ("import socket; s = socket.create_server(('127.0.0.1', 0))", "an open socket"),
            (
                "import socket; s = socket.socket(socket.AF_UNIX); s.bind('name'); s.listen()",
                "an open socket",
            ),
            ("log = open('log', 'w')", "log"),
            ("import mmap; m = mmap.mmap(-1, 4096)", "shared with other processes"),
            (
                "import subprocess\nwith open('log', 'w') as f: p = subprocess.Popen(['sleep', '1000'], stderr=f)",
                "of its child process",
            ),
        ] {
            let snapshot = leaving(it, source).args(["--engine", "criu", "--output", "snap.img"]);
            snapshot.run().is_refused(&[word]);
            assert!(!it.work().join("snap.img").exists());
        }
    });
}

#[test]
fn who_cannot_have_it_is_told_why() {
    once(|it| {
        let made = leaving(it, "import os; ends = os.pipe()");
        let made = made.args(["--engine", "criu", "--output", "snap.img"]);
        made.run().succeeds();
        let image = it.keep("snap.img");
        let only = "only --engine criu can restore";
        let why = "is a pipe, there since import left";
        run(it, &image, "print(1)").by(Engine::Native).thaw().is_refused(&[only, why]);
        let described = it.program(["inspect"]).args([&image]).run().succeeds().text();
        assert!(described.contains("criu") && described.contains(why), "{described}");
        let json = it.program(["inspect", "--json"]).args([&image]).run().succeeds().text();
        assert!(json.contains("\"only_criu\""), "{json}");
        let auto = it.program(["run"]).args([&image]).args(["-c", "print(1)"]);
        let outcome = auto.run();
        if it.seat.who == Who::Root {
            assert_eq!(outcome.succeeds().text(), "1\n");
            let stripped = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"];
            let outcome = auto.through(stripped).run();
            outcome.is_refused(&["native: ", why, "criu: ", "CAP_CHECKPOINT_RESTORE"]);
        } else {
            outcome.is_refused(&["native: ", why, "criu: ", "CAP_CHECKPOINT_RESTORE"]);
        }
        let fallback = it.program(["run", "--engine", "native", "--fallback"]).args([&image]);
        let outcome = fallback.args(["-c", "print(1)"]).run().succeeds();
        assert_eq!(outcome.text(), "1\n");
    });
}
