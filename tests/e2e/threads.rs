//! Threads that were there when the image was made, and new ones.

use nix::sys::signal::Signal;

use crate::support::{
    Context, Recipe, everywhere, for_everyone, once, with_every_python, without_addresses,
};

fn lively(it: &Context, code: &str, expected: &str) {
    let script = format!("import lively, os, sys, threading, time, signal\n{code}");
    let outcome = it.code(&script).from(Recipe::Lively).thaw();
    assert!(outcome.status.success(), "{outcome:?}");
    assert_eq!(outcome.text(), expected, "{outcome:?}");
    assert_eq!(outcome.errors(), "", "{outcome:?}");
}

#[test]
fn all_are_there_and_work() {
    everywhere(|it| {
        let code = r"
before, polls = lively.ticks, lively.polls
time.sleep(0.2)
print(lively.ticks - before > 5, lively.polls - polls > 5)
print(len(os.listdir('/proc/self/task')) == lively.tasks)
print(sorted(thread.name for thread in threading.enumerate()))
print({name: thread.ident for name, thread in lively.threads.items()} == lively.idents)
print(lively.ask(lambda: sum(range(10)))[0], lively.local.value, lively.ask(lambda: hasattr(lively.local, 'value'))[0])
lively.signalled.set(); lively.threads['waiter'].join(20); print(lively.woken)
lively.lock.release(); print(lively.entered.wait(20)); lively.threads['enterer'].join(20)
";
        lively(
            it,
            code,
            "True True\nTrue\n['MainThread', 'enterer', 'pauser', 'poller', 'ticker', 'waiter', 'worker']\n\
             True\n45 main False\n[True]\nTrue\n",
        );
    });
}

#[test]
fn thread_ids_are_true() {
    everywhere(|it| {
        let code = r"
import ctypes
tasks = set(map(int, os.listdir('/proc/self/task')))
result, tid = lively.ask(threading.get_native_id)
print(result == tid, tid in tasks, tid != os.getpid())
print(threading.get_native_id() == os.getpid() == threading.main_thread().native_id)
print(lively.ask(lambda: ctypes.CDLL(None).gettid())[0] == tid, lively.ask(os.getpid)[0] == os.getpid())
print(len({lively.ask(threading.get_native_id)[0] for _ in range(10)}))
# glibc's own idea of it: what a robust or error-checking mutex compares with.
self = ctypes.CDLL(None).pthread_self; self.restype = ctypes.c_ulong
kill = ctypes.CDLL(None).pthread_kill; kill.argtypes = [ctypes.c_ulong, ctypes.c_int]
print(kill(self(), 0), kill(lively.threads['worker'].ident, 0))
print(all(thread.native_id in tasks for thread in lively.threads.values()))
";
        lively(it, code, "True True True\nTrue\nTrue True\n1\n0 0\nTrue\n");
    });
}

#[test]
fn the_kernels_clean_up_of_threads_works() {
    everywhere(|it| {
        // A join waits for the kernel to clear the thread's TID where glibc keeps it.
        let code = r"
import ctypes
lively.requests.put(None)
lively.threads['worker'].join(20)
print(lively.threads['worker'].is_alive())
print(lively.settle(lively.tasks - 1))
";
        lively(it, code, "False\nTrue\n");
    });
}

#[test]
fn new_threads() {
    everywhere(|it| {
        let code = r"
done = []
for _ in range(5):
    threads = [threading.Thread(target=lambda n=n: done.append(n * sum(range(1000)))) for n in range(30)]
    [t.start() for t in threads]; [t.join() for t in threads]
print(len(done), lively.settle(lively.tasks))
timer = threading.Timer(0.05, done.clear); timer.start(); timer.join(); print(done)
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(8) as pool: print(sum(pool.map(len, [b'x' * 1000] * 1000)))
condition = threading.Condition()
with condition: print(condition.wait(0.05))
";
        lively(it, code, "150 True\n[]\n1000000\nFalse\n");
    });
}

#[test]
fn signals_reach_threads() {
    everywhere(|it| {
        let code = r"
got = []
signal.signal(signal.SIGUSR1, lambda number, frame: got.append(threading.current_thread().name))
# pause(2) is interrupted by a signal that comes while it waits, not by one that came before.
where = '/proc/self/task/' + str(lively.threads['pauser'].native_id) + '/syscall'
deadline = time.monotonic() + 20
while not open(where).read().startswith('34 ') and time.monotonic() < deadline: time.sleep(0.005)
signal.pthread_kill(lively.threads['pauser'].ident, signal.SIGUSR1)
deadline = time.monotonic() + 20
while not got and time.monotonic() < deadline: time.sleep(0.005)
lively.threads['pauser'].join(20)
print(got, lively.threads['pauser'].is_alive())
for name in ('worker', 'ticker', 'poller'):
    signal.pthread_kill(lively.threads[name].ident, signal.SIGUSR1)
os.kill(os.getpid(), signal.SIGUSR1)
before = lively.ticks
time.sleep(0.1)
print(len(got) > 1, lively.ticks > before, lively.ask(lambda: 1)[0])
print(lively.ask(lambda: sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])))[0])
";
        lively(it, code, "['MainThread'] False\nTrue True 1\n[]\n");
    });
}

#[test]
fn forks_of_a_process_with_threads() {
    everywhere(|it| {
        let code = r"
import multiprocessing, warnings
warnings.simplefilter('ignore')
pid = os.fork()
if not pid:
    t = threading.Thread(target=lambda: None); t.start(); t.join()
    ok = lively.settle(1) and threading.active_count() == 1 and threading.get_native_id() == os.getpid()
    os._exit(0 if ok else 1)
print(os.waitpid(pid, 0)[1])
with multiprocessing.get_context('fork').Pool(2) as pool: print(pool.map(abs, [-1, -2]))
with multiprocessing.get_context('spawn').Pool(2) as pool: print(pool.map(abs, [-1, -2]))
print(lively.ask(lambda: 2)[0])
";
        lively(it, code, "0\n[1, 2]\n[1, 2]\n2\n");
    });
}

#[test]
fn the_way_out_with_threads() {
    everywhere(|it| {
        lively(it, "print('end')", "end\n");
        let code = "import lively, atexit; atexit.register(print, 'atexit', lively.ask(lambda: 3)[0]); raise SystemExit(9)";
        let outcome = it.code(code).from(Recipe::Lively).thaw();
        assert_eq!(
            (outcome.status.code(), outcome.text().as_str()),
            (Some(9), "atexit 3\n"),
            "{outcome:?}"
        );
        let full = it
            .code("import lively; print(1)")
            .from(Recipe::Lively)
            .options(&["--full-exit"])
            .thaw();
        assert_eq!(full.succeeds().text(), "1\n");
        let killed = it.code("import os; print('up', flush=True); import time; time.sleep(100)");
        let outcome = killed.from(Recipe::Lively).thaw_when(|child| {
            child.wait_for("up");
            child.signal(Signal::SIGTERM);
        });
        assert_eq!(outcome.status.code(), None, "{outcome:?}");
    });
}

#[test]
fn tracebacks_of_all_threads() {
    everywhere(|it| {
        let code = "import faulthandler, lively; faulthandler.dump_traceback(all_threads=True)";
        let outcome = it.code(code).from(Recipe::Lively).thaw().succeeds();
        let errors = outcome.errors();
        for function in ["_tick", "_work", "_wait", "_enter", "_pause", "_poll"] {
            assert!(errors.contains(&format!("in {function}\n")), "{function}: {errors}");
        }
        assert!(!errors.contains("<preloaded"), "{errors}");
        let later =
            "import faulthandler, time; faulthandler.dump_traceback_later(0.1); time.sleep(0.4)";
        it.code(later).mask(without_addresses).is_as_stock().succeeds();
    });
}

#[test]
fn fatal_signals_are_told_by_faulthandler() {
    with_every_python(|it| {
        for code in [
            // Needs the signal stack: the thread's own is full.
            "faulthandler._stack_overflow()",
            "faulthandler._sigsegv()",
            "faulthandler._sigabrt()",
            "faulthandler._sigfpe()",
            "faulthandler._fatal_error_c_thread()",
            "faulthandler.register(10); import os; os.kill(os.getpid(), 10)",
        ] {
            let fresh = format!("import faulthandler; faulthandler.enable(); {code}");
            it.code(&fresh).mask(without_addresses).is_as_stock();
            // Enabled by the import, whose signal stack has to come back.
            let outcome =
                it.code(&format!("import faulthandler\n{code}")).from(Recipe::Lively).thaw();
            assert!(outcome.errors().contains("(most recent call first):"), "{code}: {outcome:?}");
        }
    });
}

#[test]
fn rounding_modes_come_back() {
    with_every_python(|it| {
        let code = "import rounding; print(rounding.before == rounding.now(), rounding.now())";
        let outcome = it.code(code).from(Recipe::Rounding).thaw().succeeds();
        assert_eq!(
            outcome.text(),
            "True ((2048, '0x1.5555555555556p-2'), (1024, '0x1.5555555555555p-2'))\n"
        );
    });
}

#[test]
fn libraries_with_threads() {
    for_everyone(|it| {
        let code = r"
import os
import numeric, numpy, scipy.linalg, sklearn.cluster, sklearn.datasets, sklearn.ensemble, sklearn.linear_model
from threadpoolctl import threadpool_info
tasks = len(os.listdir('/proc/self/task'))
generator = numpy.random.RandomState(1)
a = generator.rand(400, 400)
print(numpy.allclose(a @ numpy.linalg.inv(a), numpy.eye(400)))
print(hash(numpy.round(scipy.linalg.svdvals(a), 6).tobytes()) != 0, round(float(numpy.linalg.det(a / 10)), 3) == round(float(numpy.linalg.det(a / 10)), 3))
points, _ = sklearn.datasets.make_blobs(2000, centers=3, random_state=1)
print(sorted(map(tuple, sklearn.cluster.KMeans(3, n_init=1, random_state=1).fit(points).cluster_centers_.round(4).tolist())))
forest = sklearn.ensemble.RandomForestClassifier(20, n_jobs=2, random_state=1).fit(points, points[:, 0] > 0)
print(round(float(forest.score(points, points[:, 0] > 0)), 4))
print(sklearn.linear_model.LinearRegression().fit(points, points @ [2.0, 3.0]).coef_.round(6).tolist())
print((numpy.arange(10.0) / 3).tolist(), float(numpy.float32(0.1)), numpy.exp(numpy.arange(8)).tolist(), numpy.sum(numpy.arange(1000.0)).item())
print(sorted((pool['internal_api'], pool['num_threads']) for pool in threadpool_info()))
";
        it.python(["script.py"])
            .from(Recipe::Numeric)
            .file("script.py", code)
            .env("PYTHONPATH", crate::support::shared().modules())
            .env("PYTHONHASHSEED", "0")
            .is_as_stock()
            .succeeds();
        let tasks = "import os, numeric; print(len(os.listdir('/proc/self/task')) == numeric.tasks >= 1, numeric.tasks)";
        let outcome = it.code(tasks).from(Recipe::Numeric).thaw().succeeds();
        assert!(outcome.text().starts_with("True"), "{outcome:?}");
    });
}

#[test]
fn library_processes() {
    once(|it| {
        let code = r"
import numpy, os
from joblib import Parallel, delayed
def work(n): return float(numpy.linalg.norm(numpy.arange(n)))
if __name__ == '__main__':
    print([round(x, 3) for x in Parallel(2)(delayed(work)(n) for n in range(5))])
    print([round(x, 3) for x in Parallel(2, backend='multiprocessing')(delayed(work)(n) for n in range(5))])
    pid = os.fork()
    if not pid:
        a = numpy.ones((300, 300)); os._exit(0 if (a @ a)[0, 0] == 300 else 1)
    print(os.waitpid(pid, 0)[1])
";
        let run = it.python(["script.py"]).from(Recipe::Numeric).file("script.py", code);
        run.is_as_stock().succeeds();
    });
}
