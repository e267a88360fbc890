//! Everything that a process has from the one that started it.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::support::{Outcome, Recipe, as_root, everywhere, for_everyone, native_only, shared};

#[test]
fn the_process_is_the_one_that_was_started() {
    everywhere(|it| {
        if native_only("The script is a child") {
            return;
        }
        let outcome = it.code("import os; print(os.getpid(), os.getppid())").thaw().succeeds();
        assert_eq!(outcome.text(), format!("{} {}\n", outcome.pid, std::process::id()));
        let code = "import os, threading\nprint(os.getppid() == int(os.environ['SHELL_PID']), \
                    os.getpgid(0) == os.getpgid(os.getppid()), os.getsid(0) == os.getsid(os.getppid()), \
                    threading.get_native_id() == os.getpid(), os.listdir('/proc/self/task') == [str(os.getpid())], \
                    os.readlink('/proc/self') == str(os.getpid()), os.getuid(), os.getgid(), os.getgroups(), os.getresuid())";
        it.code(code).shell(r#"export SHELL_PID=$$; "$@"; exit $?"#).is_as_stock().succeeds();
        it.code("import os; print(os.getsid(0) == os.getpid() == os.getpgrp())")
            .through(["setsid", "--wait"])
            .is_as_stock()
            .succeeds();
    });
}

/// What of `/proc/self/status` is the same in every run.
const STATUS: &str = r"
import os
wanted = ('Name', 'Umask', 'Tgid', 'TracerPid', 'Uid', 'Gid', 'Groups', 'Threads', 'SigPnd', 'ShdPnd', 'SigBlk', 'SigIgn',
    'SigCgt', 'CapInh', 'CapPrm', 'CapEff', 'CapBnd', 'CapAmb', 'NoNewPrivs', 'Seccomp', 'Seccomp_filters',
    'Cpus_allowed_list', 'Mems_allowed_list', 'CoreDumping', 'THP_enabled', 'x86_Thread_features', 'VmLck', 'VmPin')
with open('/proc/self/status') as file:
    for line in file:
        name, value = line.rstrip().split(':', 1)
        if name in wanted:
            print(name, value == f'\t{os.getpid()}' if name == 'Tgid' else value)
";

#[test]
fn what_the_kernel_says_of_it() {
    everywhere(|it| {
        let run = it.python(["script.py"]).file("script.py", STATUS);
        run.is_as_stock().succeeds();
        // PR_SET_THP_DISABLE
        let small_pages = "import ctypes, os, sys; ctypes.CDLL(None).prctl(41, 1, 0, 0, 0); os.execvp(sys.argv[1], sys.argv[1:])";
        let outcome = run.through(["/usr/bin/python3", "-c", small_pages]).is_as_stock().succeeds();
        assert!(outcome.text().contains("THP_enabled \t0"), "{outcome:?}");
        let code = "import os, sys\n\
            for name in ('exe', 'cwd', 'root'): print(name, os.readlink(f'/proc/self/{name}'))\n\
            for name in ('comm', 'cmdline', 'environ', 'limits', 'cgroup', 'oom_score_adj', 'coredump_filter', 'personality', \
            'loginuid', 'timerslack_ns', 'timens_offsets', 'uid_map', 'attr/current'):\n\
            \x20 try: print(name, open(f'/proc/self/{name}', 'rb').read())\n\
            \x20 except OSError as error: print(name, error)\n\
            print(open(f'/proc/self/task/{os.getpid()}/comm').read())";
        it.python(["script.py", "argument"]).file("script.py", code).is_as_stock().succeeds();
        let stat = "stat = open('/proc/self/stat').read().rsplit(')', 1)[1].split()\n\
            print([stat[n - 3] for n in (5, 6, 7, 8, 18, 19, 20, 31, 32, 33, 38, 40, 41)][4:])\n\
            start, end, stack = (int(stat[n - 3]) for n in (26, 27, 28))\n\
            data, data_end, brk, arg, arg_end, env, env_end = (int(stat[n - 3]) for n in range(45, 52))\n\
            print(start < end, data < data_end, brk > data_end, arg < arg_end <= env <= env_end)\n\
            rows = [line.split() for line in open('/proc/self/maps')]\n\
            def inside(address): return [row[5] for row in rows if len(row) > 5 and int(row[0].split('-')[0], 16) <= address < int(row[0].split('-')[1], 16)]\n\
            print(inside(stack), inside(arg) != [] or arg > 0)";
        it.python(["script.py"]).file("script.py", stat).is_as_stock().succeeds();
        let auxiliary = "import ctypes, os\nget = ctypes.CDLL(None).getauxval; get.restype = ctypes.c_ulong\n\
            print([get(n) for n in (4, 5, 6, 8, 11, 12, 13, 14, 16, 17, 23, 26, 51)])\n\
            print(ctypes.string_at(get(31)), ctypes.string_at(get(15)), get(33) != 0)\n\
            print([word for word in __import__('struct').iter_unpack('QQ', open('/proc/self/auxv', 'rb').read()) if word[0] in (6, 11, 12, 23)])";
        it.python(["script.py"]).file("script.py", auxiliary).is_as_stock().succeeds();
        if !native_only("The script is a child") {
            let death = "import ctypes\nvalue = ctypes.c_int()\n\
                print(ctypes.CDLL(None).prctl(2, ctypes.byref(value)), value.value)";
            it.code(death).is_as_stock().succeeds();
        }
        let controls = "import ctypes\nprctl = ctypes.CDLL(None).prctl\n\
            print([prctl(n, 0, 0, 0, 0) for n in (3, 7, 21, 27, 30, 39, 42)])";
        it.python(["script.py"]).file("script.py", controls).is_as_stock().succeeds();
    });
}

#[test]
fn no_mapping_is_left_that_was_only_ours() {
    everywhere(|it| {
        let code = "rows = [line.rstrip('\\n').split(None, 5) for line in open('/proc/self/maps')]\n\
            print([row for row in rows if 'w' in row[1] and 'x' in row[1]])\n\
            names = [row[5] for row in rows if len(row) > 5]\n\
            print([name for name in names if 'memfd' in name or 'deleted' in name or 'audit' in name or 'restorer' in name or 'resident' in name])\n\
            print([names.count(f'[{name}]') for name in ('stack', 'vdso')], '[vvar]' in names)\n\
            print([row[5] for row in rows if 's' in row[1]])";
        let outcome = it.code(code).is_as_stock().succeeds();
        let text = outcome.text();
        assert!(text.starts_with("[]\n[]\n[1, 1] True\n"), "{outcome:?}");
    });
}

const DESCRIPTORS: &str = r"
import fcntl, os
for name in sorted(map(int, os.listdir('/proc/self/fd'))):
    try:
        target = os.readlink(f'/proc/self/fd/{name}').split('[')[0]
        print(name, target, fcntl.fcntl(name, fcntl.F_GETFD), fcntl.fcntl(name, fcntl.F_GETFL))
    except OSError as error:
        print(name, error)
";

#[test]
fn descriptors_stay_under_their_numbers() {
    everywhere(|it| {
        let run = |line: &str| {
            it.python(["script.py"])
                .file("script.py", DESCRIPTORS)
                .shell(line)
                .is_as_stock()
                .succeeds();
        };
        run(r#"exec "$@""#);
        run(r#"exec "$@" 3</etc/passwd 4>four 5<>five 9>>nine"#);
        run(
            r#"exec "$@" 57</dev/null 200</dev/null 201</dev/null 250</dev/null 255</dev/null 1000</dev/null 1023</dev/null"#,
        );
        run(r#"exec "$@" <&- >out 3>&-"#);
        run(r#"exec "$@" 4> >(cat) 6< <(echo x) 200< <(echo y)"#);
        let all: Vec<String> = (3..300).map(|number| format!("{number}</dev/null")).collect();
        run(&format!(r#"exec "$@" {}"#, all.join(" ")));
        let use_them = "import os\nprint(os.read(3, 100), os.read(200, 100)); os.write(4, b'written')\n\
                        print(open('/dev/fd/5').read())";
        it.code(use_them)
            .shell(r#"exec 3< <(echo three) 200< <(echo two hundred) 4>four 5< <(echo five); exec "$@""#)
            .is_as_stock()
            .succeeds();
        let jobserver = "import os\ntoken = os.read(50, 1); print(token); os.write(51, token)";
        it.code(jobserver)
            .shell(r#"mkfifo fifo; exec 49<>fifo 50<fifo 51>fifo; echo -n + >&51; "$@"; read -r -n 1 token <&50; echo "$token"; rm fifo"#)
            .is_as_stock()
            .succeeds();
    });
}

#[test]
fn limits_priorities_and_processors() {
    everywhere(|it| {
        let code = "import os, resource\n\
            print([(name, resource.getrlimit(getattr(resource, name))) for name in sorted(dir(resource)) if name.startswith('RLIMIT_')])\n\
            print(os.nice(0), sorted(os.sched_getaffinity(0)), os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0))";
        it.code(code).is_as_stock().succeeds();
        for around in [
            &["nice", "-n", "7"][..],
            &["taskset", "-c", "0"],
            &["chrt", "--batch", "0"],
            &["chrt", "--idle", "0"],
            &["ionice", "-c", "3"],
        ] {
            it.code(code).through(around).is_as_stock().succeeds();
        }
        let limits = ["--nofile=1000:2000", "--cpu=1000", "--memlock=0", "--nproc=4000"];
        it.code(code).through(["prlimit"]).through(limits).is_as_stock().succeeds();
        if !native_only("CRIU needs room") {
            let limits = ["--nofile=100:200", "--fsize=1000000"];
            it.code(code).through(["prlimit"]).through(limits).is_as_stock().succeeds();
        }
    });
}

#[test]
fn tight_limits() {
    for_everyone(|it| {
        let code = "import os, sys; print(sum(range(10))); sys.stdout.flush(); print(len(bytearray(10_000_000)))";
        if native_only("CRIU needs room") {
            return;
        }
        for limit in [
            "ulimit -n 16",
            "ulimit -n 8",
            "ulimit -s 256",
            "ulimit -s unlimited",
            "ulimit -l 0",
            "ulimit -d 400000",
            "ulimit -v 800000",
            "ulimit -m 1000",
            "ulimit -i 0",
            "ulimit -q 0",
            "ulimit -c 0",
        ] {
            it.code(code).shell(&format!(r#"{limit}; exec "$@""#)).is_as_stock().succeeds();
        }
    });
}

#[test]
fn other_layouts_of_the_address_space() {
    everywhere(|it| {
        for around in
            [&["setarch", "--addr-no-randomize"][..], &["setarch", "--addr-compat-layout"]]
        {
            for _ in 0..5 {
                it.code("print('hello'); print(len(bytearray(50_000_000)))")
                    .through(around)
                    .is_as_stock()
                    .succeeds();
            }
        }
    });
}

#[test]
fn umask_and_working_directory() {
    everywhere(|it| {
        let code = "import os; print(oct(os.umask(0))); open('made', 'w'); print(oct(os.stat('made').st_mode), os.getcwd())";
        it.code(code).shell(r#"umask 027; exec "$@""#).is_as_stock().succeeds();
        it.code("import os; print(os.getcwd(), os.listdir())")
            .folder("/usr/lib")
            .is_as_stock()
            .succeeds();
        let gone = "import os\ntry: print(os.getcwd())\nexcept OSError as error: print(error)\n\
                    print(os.readlink('/proc/self/cwd')); import sys; print(sys.path[:1])";
        for arguments in [&["-c", gone][..], &["-m", "json.tool", "/dev/null"], &["-"], &["x.py"]] {
            it.python(arguments)
                .stdin(gone)
                .shell(r#"mkdir gone; cd gone; rmdir ../gone; exec "$@""#)
                .is_as_stock();
        }
    });
}

const HANDLERS: &str = r"
import signal, os
for number in sorted(signal.valid_signals()):
    handler = signal.getsignal(number)
    print(int(number), getattr(handler, '__name__', handler))
print(sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])), sorted(signal.sigpending()))
";

#[test]
fn ignored_signals_stay_ignored() {
    everywhere(|it| {
        for signals in
            ["INT", "HUP", "TERM", "PIPE", "CHLD", "INT QUIT", "ALRM USR1 USR2 TSTP WINCH"]
        {
            let run = it.python(["script.py"]).file("script.py", HANDLERS);
            run.shell(&format!(r#"trap '' {signals}; exec "$@""#)).is_as_stock().succeeds();
        }
        let code = "import os, signal\nfor s in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM): os.kill(os.getpid(), s)\nprint('alive')";
        it.code(code).shell(r#"trap '' INT HUP TERM; exec "$@""#).is_as_stock().succeeds();
        it.code(code).shell(r#"trap '' HUP TERM; exec "$@""#).is_as_stock();
        it.code(HANDLERS).shell(r#""$@" & wait $!"#).is_as_stock().succeeds();
        it.code(HANDLERS).through(["nohup"]).is_as_stock().succeeds();
        it.code("import subprocess; print(subprocess.check_output(['grep', 'SigIgn', '/proc/self/status']))")
            .shell(r#"trap '' INT USR1; exec "$@""#)
            .is_as_stock()
            .succeeds();
    });
}

#[test]
fn blocked_and_pending_signals_stay() {
    everywhere(|it| {
        for signals in ["--block-signal=USR1", "--block-signal=INT", "--block-signal"] {
            let run = it.python(["script.py"]).file("script.py", HANDLERS);
            run.through(["env", signals]).is_as_stock().succeeds();
        }
        let code = "import signal\nsignal.signal(signal.SIGUSR1, lambda *_: print('came'))\n\
                    print(signal.sigpending()); signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1]); print('end')";
        let block = "import os, signal, sys\nsignal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])\n\
                     os.kill(os.getpid(), signal.SIGUSR1)\nos.execv(sys.argv[1], sys.argv[1:])";
        it.code(code).through(["/usr/bin/python3", "-c", block]).is_as_stock().succeeds();
    });
}

#[test]
fn timers_over_exec_and_after() {
    everywhere(|it| {
        let arm = "import os, signal, sys\nsignal.setitimer(signal.ITIMER_REAL, 1.5)\nos.execv(sys.argv[1], sys.argv[1:])";
        it.code("import signal; print(0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 1.5, flush=True); signal.pause()")
            .through(["/usr/bin/python3", "-c", arm])
            .is_as_stock();
        let code = "import signal, time\ncount = 0\n\
            def tick(*_):\n  global count\n  count += 1\n\
            for timer, number in ((signal.ITIMER_REAL, signal.SIGALRM), (signal.ITIMER_VIRTUAL, signal.SIGVTALRM), (signal.ITIMER_PROF, signal.SIGPROF)):\n\
            \x20 count = 0\n  signal.signal(number, tick)\n  signal.setitimer(timer, 0.01, 0.01)\n\
            \x20 while count < 3: pass\n  signal.setitimer(timer, 0)\n  print(timer, count >= 3)\n\
            print(time.monotonic() > 0, time.process_time() < 60, signal.sigtimedwait([signal.SIGUSR1], 0.01))";
        it.code(code).is_as_stock().succeeds();
    });
}

#[test]
fn children_of_every_kind() {
    everywhere(|it| {
        let code = r"
import concurrent.futures, multiprocessing, os, pty, subprocess, sys, threading

def work(number):
    return number * number

if __name__ == '__main__':
    pid = os.fork()
    if not pid:
        print('child', os.getppid() != os.getpid(), threading.get_native_id() == os.getpid(), flush=True)
        os._exit(7)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    print(subprocess.run(['sh', '-c', 'echo out; echo err >&2; exit 3'], capture_output=True))
    print(subprocess.run('exit 4', shell=True, preexec_fn=lambda: None).returncode)
    print(subprocess.run(['cat'], input=b'x' * 100000, stdout=subprocess.PIPE).stdout.count(b'x'))
    print(os.waitstatus_to_exitcode(os.waitpid(os.posix_spawn('/bin/sh', ['sh', '-c', 'exit 5'], os.environ), 0)[1]))
    print(os.system('exit 6'), os.popen('echo popen').read())
    pid, master = pty.fork()
    if not pid:
        print('in a terminal', os.isatty(0)); sys.stdout.flush(); os._exit(0)
    print(os.read(master, 100)); os.waitpid(pid, 0)
    for method in ('fork', 'spawn', 'forkserver'):
        context = multiprocessing.get_context(method)
        with context.Pool(2) as pool:
            print(method, pool.map(work, range(5)))
        process = context.Process(target=print, args=('in', method)); process.start(); process.join(); print(process.exitcode)
    with concurrent.futures.ProcessPoolExecutor(2, multiprocessing.get_context('fork')) as pool:
        print(list(pool.map(work, range(5))))
    with multiprocessing.Manager() as manager:
        shared = manager.list([1]); shared.append(2); print(list(shared))
    from multiprocessing import shared_memory
    memory = shared_memory.SharedMemory(create=True, size=100); memory.buf[0] = 5; print(memory.buf[0])
    memory.close(); memory.unlink()
";
        it.python(["script.py"]).file("script.py", code).is_as_stock().succeeds();
    });
}

#[test]
fn children_that_fork_from_many_threads() {
    everywhere(|it| {
        let code = r"
import os, threading
def work(index):
    for _ in range(10):
        pid = os.fork()
        if not pid:
            t = threading.Thread(target=lambda: None); t.start(); t.join()
            os._exit(index)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == index
threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
[t.start() for t in threads]; [t.join() for t in threads]
print('done', threading.active_count())
";
        it.python(["-W", "ignore", "-c", code]).is_as_stock().succeeds();
    });
}

#[test]
fn groups_and_capabilities() {
    as_root(|it| {
        let run = |around: &[&str]| {
            it.python(["script.py"])
                .file("script.py", STATUS)
                .through(around)
                .is_as_stock()
                .succeeds();
        };
        run(&["setpriv", "--groups=1,2,3"]);
        run(&["setpriv", "--bounding-set=-sys_admin,-net_raw"]);
        run(&["setpriv", "--inh-caps=+net_raw"]);
        run(&["setpriv", "--no-new-privs"]);
        if !native_only("It takes rights") {
            run(&["setpriv", "--securebits=+noroot"]);
        }
        run(&["setpriv", "--pdeathsig=TERM"]);
        run(&["unshare", "--mount", "--uts", "--ipc", "--net"]);
    });
}

#[test]
fn the_first_process_of_a_namespace() {
    as_root(|it| {
        if native_only("The script is a child") {
            return;
        }
        let code = "import os, signal, subprocess; print(os.getpid(), os.getppid()); print(subprocess.check_output(['echo', 'x']))";
        let outcome = it
            .code(code)
            .through(["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"])
            .is_as_stock()
            .succeeds();
        assert!(outcome.text().starts_with("1 0\n"), "{outcome:?}");
        it.code(code).through(["unshare", "--user", "--map-root-user"]).folder("/").thaw();
    });
}

#[test]
fn programs_that_others_start() {
    everywhere(|it| {
        it.code("import sys; print(sys.argv[1:])")
            .shell(r#"echo a b c | xargs -n 1 "$@""#)
            .is_as_stock()
            .succeeds();
        it.code("print(1)").through(["timeout", "20"]).is_as_stock().succeeds();
        it.code("import time; time.sleep(20)").through(["timeout", "0.5"]).is_as_stock();
        it.code("import time; time.sleep(20)")
            // An interpreter that has not begun yet says less, and a busy machine takes its time.
            .through(["timeout", "-s", "INT", "2"])
            .is_as_stock();
    });
}

#[test]
fn the_image_is_not_changed_and_may_go_while_it_runs() {
    for_everyone(|it| {
        use crate::support::image::{copy, digest};
        let image = it.image(Recipe::Plain);
        let before = digest(&image);
        it.code("import json; json.x = bytearray(1 << 20); print(json.dumps([1] * 1000)[:10])")
            .thaw()
            .succeeds();
        assert_eq!(digest(&image), before);
        let outcome = {
            copy(it, Recipe::Plain, "copy.img");
            let kept = it.keep("copy.img");
            let code = "print('up', flush=True); input(); import json, sqlite3; print(json.dumps([1] * 10))";
            it.code(code).image(&kept).holding_stdin().thaw_when(|child| {
                child.wait_for("up\n");
                fs::remove_file(&kept).unwrap();
                child.send(b"\n");
            })
        };
        outcome.succeeds();
    });
}

#[test]
fn images_of_one_are_run_by_another() {
    as_root(|it| {
        let code = "import os; print(os.getuid(), os.geteuid())";
        let public = shared().root().join(format!("{}.public", it.name()));
        fs::copy(it.image(Recipe::Plain), &public).unwrap();
        fs::set_permissions(&public, fs::Permissions::from_mode(0o644)).unwrap();
        for_everyone(|user| {
            user.code(code).image(&public).is_as_stock().succeeds();
        });
        fs::remove_file(&public).unwrap();
        let seat = crate::support::Seat { who: crate::support::Who::User, ..it.seat };
        let theirs = crate::support::image::image(seat, Recipe::Plain);
        let uid = crate::support::Who::User.uid().to_string();
        let sudo = |outcome: Outcome| outcome.succeeds().text();
        assert_eq!(sudo(it.code(code).image(&theirs).env("SUDO_UID", uid).thaw()), "0 0\n");
        it.code(code).image(&theirs).thaw().is_refused(&["54321"]);
    });
}

/// Installs a seccomp filter, by which swapon(2) fails with 99 and all else is allowed.
pub(crate) const FILTER: &str = "import ctypes, struct
code = struct.pack('HBBIHBBIHBBIHBBI', 0x20, 0, 0, 0, 0x15, 0, 1, 167, 6, 0, 0, 0x50063, 6, 0, 0, 0x7fff0000)
code = ctypes.create_string_buffer(code)
prctl = ctypes.CDLL(None).prctl
assert prctl(38, 1, 0, 0, 0) == 0
assert prctl(22, 2, struct.pack('H6xQ', 4, ctypes.addressof(code)), 0, 0) == 0";

#[test]
fn a_seccomp_filter_of_the_callers_is_the_scripts() {
    everywhere(|it| {
        let code = "import ctypes, threading\n\
            libc = ctypes.CDLL(None, use_errno=True)\n\
            print(libc.swapon(None, 0), ctypes.get_errno())\n\
            names = 'NoNewPrivs', 'Seccomp', 'CapEff'\n\
            print([line for line in open('/proc/self/status') if line.startswith(names)])\n\
            threading.Thread(target=lambda: print(libc.swapon(None, 0), ctypes.get_errno())).start()";
        let filtering = format!("{FILTER}\nimport os, sys; os.execv(sys.argv[1], sys.argv[1:])");
        let run = it.code(code).through(["/usr/bin/python3", "-c", &filtering]);
        for recipe in [Recipe::Plain, Recipe::Lively] {
            let outcome = run.clone().from(recipe).is_as_stock().succeeds();
            assert!(outcome.text().starts_with("-1 99\n"), "{outcome:?}");
        }
    });
}
