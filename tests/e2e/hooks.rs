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
