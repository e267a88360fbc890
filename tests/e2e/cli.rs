//! The other commands: doctor, inspect, export, help.

use std::fs;

use serde_json::Value;

use crate::faults::alter;
use crate::support::image::arguments;
use crate::support::{
    Context, Recipe, Who, as_root, everywhere, for_everyone, for_makers, once, shared,
};

fn json(it: &Context, arguments: &[&str]) -> Value {
    let outcome = it.program(arguments).run().succeeds();
    serde_json::from_str(&outcome.text()).unwrap()
}

#[test]
fn help_and_version() {
    for_everyone(|it| {
        let help = it.program(["--help"]).run().succeeds().text();
        for command in ["snapshot", "run", "doctor", "inspect", "export", "bench"] {
            assert!(help.contains(command), "{help}");
            assert!(it.program([command, "--help"]).run().succeeds().text().contains("Usage"));
        }
        let version = it.program(["--version"]).run().succeeds().text();
        assert_eq!(version, format!("preloaded-criu {}\n", env!("CARGO_PKG_VERSION")));
        assert_eq!(it.program([""; 0]).run().status.code(), Some(125));
    });
}

#[test]
fn the_doctor_finds_this_machine_fit() {
    for_everyone(|it| {
        for arguments in [&["doctor", "run"][..], &["doctor", "snapshot"], &["doctor"]] {
            if it.seat.who == Who::Stripped && arguments != ["doctor", "run"] {
                continue;
            }
            let outcome = it.program(arguments).run().succeeds();
            assert!(!outcome.text().is_empty());
            let findings = json(it, &[arguments, &["--json"]].concat());
            assert!(findings.is_object() || findings.is_array(), "{findings}");
        }
    });
}

#[test]
fn the_doctor_tells_what_is_missing_and_what_to_do() {
    for_makers(|it| {
        let absent = ["--criu", "/no/such/criu"];
        let outcome = it.program(["doctor", "snapshot"]).args(absent).run();
        assert_eq!(outcome.status.code(), Some(1), "{outcome:?}");
        assert!(outcome.text().contains("criu"), "{outcome:?}");
        assert_eq!(it.program(["doctor"]).args(absent).run().status.code(), Some(1));
        it.program(["doctor", "run"]).args(absent).run().succeeds();
        let outcome = it.program(["doctor", "snapshot", "--json"]).args(absent).run();
        assert_eq!(outcome.status.code(), Some(1), "{outcome:?}");
        serde_json::from_str::<Value>(&outcome.text()).unwrap();
    });
    as_root(|it| {
        let closed = "echo 2 >/proc/sys/vm/memfd_noexec && \"$@\"";
        let outcome = it
            .program(["doctor", "run"])
            .through(["unshare", "--pid", "--fork", "--mount-proc", "sh", "-c", closed, "sh"])
            .run();
        if !outcome.status.success() {
            assert!(outcome.text().contains("memfd_noexec"), "{outcome:?}");
        }
    });
}

#[test]
fn inspect_tells_what_an_image_holds() {
    everywhere(|it| {
        let image = it.image(Recipe::Lively);
        let image = image.to_str().unwrap();
        let words = it.program(["inspect", image]).run().succeeds().text();
        let (major, minor) = it.seat.python.version;
        assert!(words.contains(&format!("{major}.{minor}.")), "{words}");
        assert!(words.contains("lively"), "{words}");
        let all = json(it, &["inspect", image, "--json"]).to_string();
        for word in ["lively", "vdso", "criu", "threads", "python"] {
            assert!(all.contains(word), "{word} is not in {all}");
        }
        it.program(["inspect", "--verify", image]).run().succeeds();
    });
    for_makers(|it| {
        let image = it.image(Recipe::Numeric);
        let all = json(it, &["inspect", image.to_str().unwrap(), "--json"]).to_string();
        for module in ["numpy", "scipy", "sklearn"] {
            assert!(all.contains(module), "{module} is not in {all}");
        }
    });
}

#[test]
fn names_in_an_image_do_not_speak_for_us() {
    once(|it| {
        let image = alter(it, |check| {
            let length = check.files[0].path.as_os_str().len();
            let mut name = "/\x1b[31m\nhint: run\x07".to_owned();
            name.extend(std::iter::repeat_n('x', length.checked_sub(name.len()).unwrap()));
            check.files[0].path = name.into();
        });
        let outcome = it.program(["run"]).args([&image]).args(["-c", ""]).run();
        outcome.is_refused(&["/?[31m?hint: run?", "is gone"]);
        let told = outcome.errors();
        assert!(!told.chars().any(|one| one.is_control() && one != '\n'), "{told:?}");
        assert_eq!(told.lines().filter(|line| line.contains("hint: run")).count(), 1, "{told}");
        assert_eq!(told.lines().filter(|line| line.starts_with("hint: ")).count(), 1, "{told}");
        let outcome = it.program(["run", "--fallback"]).args([&image]).args(["-c", ""]).run();
        let told = outcome.succeeds().errors();
        assert!(told.lines().count() == 1 && !told.contains('\x1b'), "{told:?}");
        // What Python says is Python's.
        it.file("colours.py", "raise ValueError('\x1b[31mred\x1b[m')");
        let outcome =
            it.snapshot(arguments(it.seat, Recipe::Nothing)).args(["--exec", "colours.py"]).run();
        outcome.is_refused(&["ValueError: \x1b[31mred\x1b[m"]);
    });
}

#[test]
fn export_writes_the_files_of_criu() {
    for_makers(|it| {
        let image = it.image(Recipe::Lively);
        let image = image.to_str().unwrap();
        it.program(["export", image, "folder"]).run().succeeds();
        let mut names: Vec<String> = fs::read_dir(it.work().join("folder"))
            .unwrap()
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        for file in ["inventory.img", "pstree.img", "files.img", "pages-1.img"] {
            assert!(names.iter().any(|name| name == file), "{file} is not among {names:?}");
        }
        assert!(names.iter().any(|name| name.starts_with("core-")), "{names:?}");
        assert!(names.iter().any(|name| name.starts_with("pagemap-")), "{names:?}");
        let pages = fs::metadata(it.work().join("folder/pages-1.img")).unwrap().len();
        assert!(pages > 1 << 20 && pages % 4096 == 0, "{pages}");
        it.program(["export", image, "folder"]).run().is_refused(&["folder"]);
    });
}

#[test]
fn criu_restores_what_was_exported() {
    as_root(|it| {
        // CRIU wants the directory that the process was in.
        it.snapshot(arguments(it.seat, Recipe::Lively))
            .env("PYTHONPATH", shared().modules())
            .run()
            .succeeds();
        it.program(["export", "snap.img", "folder"]).run().succeeds();
        // In a PID namespace every PID is free. Left to go on, the process would find that nobody
        // has orders for it, and end.
        let script = r#"
            criu=$1; cd folder
            "$criu" restore --images-dir . --shell-job --restore-detached --leave-stopped --log-file restore.log --pidfile pid --tcp-close ||
                { tail -30 restore.log >&2; exit 1; }
            pid=$(cat pid); grep Threads "/proc/$pid/status"; kill -9 "$pid"
        "#;
        let criu = crate::faults::find_criu();
        let outcome = it
            .command("/usr/bin/unshare")
            .args(["--pid", "--fork", "--mount-proc", "--kill-child", "bash", "-c", script, "bash"])
            .args([&criu])
            .run();
        assert!(outcome.text().contains("Threads"), "{outcome:?}");
    });
}

#[test]
fn a_bench_measures_and_compares() {
    for_everyone(|it| {
        let image = it.image(Recipe::Plain).into_os_string().into_string().unwrap();
        it.file("script.py", "import json, sys\nprint(json.dumps(sys.argv))\nsys.exit(3)\n");
        let bench = ["bench", "--runs", "2", "--seconds", "1"];
        let words = [&bench[..], &["--json", &image, "script.py", "--json"]].concat();
        let told = json(it, &words);
        assert_eq!(told["same"], true, "{told:#}");
        for entry in told["contestants"].as_array().unwrap() {
            if entry["left_out"].is_null() {
                assert_eq!(
                    (&entry["runs"], &entry["different"]),
                    (&2.into(), &0.into()),
                    "{told:#}"
                );
                assert!(entry["exit_ms"]["median"].as_f64() > Some(0.0), "{told:#}");
            } else {
                assert_eq!(entry["name"], "run --engine criu", "{told:#}");
                assert_ne!(it.seat.who, Who::Root, "{told:#}");
            }
        }
        let words = [&bench[..], &[&image, "script.py"]].concat();
        let table = it.program(words).run().succeeds().text();
        for name in ["python3 ", "run ", "run --eager --full-exit ", "python3 -c pass "] {
            assert!(table.lines().any(|line| line.starts_with(name)), "{table}");
        }
    });
}

#[test]
fn a_bench_says_when_outputs_differ() {
    once(|it| {
        let image = it.image(Recipe::Plain).into_os_string().into_string().unwrap();
        let code = "import sys; print('json' in sys.modules)";
        let outcome = it.program(["bench", "--runs", "1", &image, "-c", code]).run();
        assert_eq!(outcome.status.code(), Some(1), "{outcome:?}");
        let wrong = "NOT RIGHT: in 2 of 2 runs, output or status of run were not those of python3";
        assert!(outcome.text().contains(wrong), "{outcome:?}");
        it.program(["bench", "no.img", "-c", "pass"]).run().is_refused(&["no.img"]);
    });
}
