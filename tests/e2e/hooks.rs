//! What a program can do about being frozen: the module `preloaded_criu`.

use crate::support::everywhere;
use crate::support::run::Python;

const HOOKED: &str = r"
import os, preloaded_criu
steps = [preloaded_criu.is_restored(), preloaded_criu.image()]
preloaded_criu.before_snapshot(lambda: steps.append('before'))
preloaded_criu.after_restore(lambda: steps.append('after'))
if 'BROKEN' in os.environ:
    @preloaded_criu.after_restore
    def broken():
        1 / 0
";

#[test]
fn they_are_called_at_their_time() {
    everywhere(|it| {
        let image = |name: &str, broken: bool| {
            let folder = it.home();
            std::fs::write(folder.join("hooked.py"), HOOKED).unwrap();
            let mut made = it
                .snapshot(["--import", "hooked", "-o", name, "--python"])
                .args([it.seat.python.path.as_os_str()])
                .env("PYTHONPATH", folder);
            if broken {
                made = made.env("BROKEN", "1");
            }
            let made = made.run();
            assert!(made.status.success(), "{made:?}");
            it.keep(name)
        };
        if it.seat.who.maker() != it.seat.who {
            return;
        }
        let hooked = image("hooked.img", false);
        let code = "import hooked, preloaded_criu\nprint(hooked.steps, preloaded_criu.is_restored())\n\
                    print(preloaded_criu.image())";
        let outcome: Python<'_> = it.code(code).image(&hooked);
        let wanted = format!("[False, None, 'before', 'after'] True\n{}\n", hooked.display());
        assert_eq!(outcome.thaw().succeeds().text(), wanted);

        let broken = image("broken.img", true);
        let outcome = it.code("print('not reached')").env("BROKEN", "1").image(&broken).thaw();
        assert_eq!((outcome.status.code(), outcome.text().as_str()), (Some(1), ""));
        let error = String::from_utf8_lossy(&outcome.err).into_owned();
        assert!(error.starts_with("Traceback") && error.contains("in broken"), "{error}");
        assert!(error.ends_with("ZeroDivisionError: division by zero\n"), "{error}");
        for image in [hooked, broken] {
            std::fs::remove_file(image).unwrap();
        }
    });
}

/// What a run calls of an import's, and leaves a line behind each time.
const NOISY: &str = r"
import atexit, logging, os, preloaded_criu, threading, weakref
def note(what):
    with open(os.environ['NOTES'], 'a') as file:
        print(what, file=file)
class Noisy:
    def __del__(self):
        note('del')
class Handler(logging.Handler):
    def flush(self):
        note('flush')
held, watched = Noisy(), Noisy.__new__(type('Watched', (), {}))
preloaded_criu.after_restore(lambda: note('after'))
atexit.register(note, 'atexit')
threading._register_atexit(note, 'threading')
weakref.finalize(watched, note, 'finalize')
logging.getLogger().addHandler(Handler())
";

#[test]
fn a_snapshot_calls_nothing_that_is_for_a_run() {
    everywhere(|it| {
        if it.seat.who.maker() != it.seat.who {
            return;
        }
        let notes = it.home().join("notes");
        std::fs::write(it.home().join("noisy.py"), NOISY).unwrap();
        let made = it
            .snapshot(["--import", "noisy", "-o", "noisy.img", "--python"])
            .args([it.seat.python.path.as_os_str()])
            .env("PYTHONPATH", it.home())
            .env("NOTES", &notes)
            .run();
        assert!(made.status.success(), "{made:?}");
        let said = std::fs::read_to_string(&notes).unwrap_or_default();
        assert_eq!(said, "");
        let image = it.keep("noisy.img");
        it.code("pass").env("NOTES", &notes).image(&image).thaw().succeeds();
        let said = std::fs::read_to_string(&notes).unwrap();
        for what in ["after", "atexit", "threading", "finalize", "flush"] {
            assert!(said.contains(what), "{what} is missing in\n{said}");
        }
        std::fs::remove_file(image).unwrap();
    });
}
