//! Runs and snapshots in real containers: what podman gives by default, less than that, and the one
//! capability that CRIU needs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use crate::memory::GUARDED;
use crate::support::container::{Container, Root, TO_RESTORE, TO_SNAPSHOT, User, frozen};
use crate::support::{Context, as_root, shared};

const PROGRAM: &str = "preloaded-criu";

/// What a script can see of who it is and where.
const SELF: &str = "import json, os, sys\n\
    status = {line.split(':')[0]: line.split()[1:] for line in open('/proc/self/status')}\n\
    names = ['Uid', 'Gid', 'Groups', 'NoNewPrivs', 'Seccomp', 'Seccomp_filters', 'Threads']\n\
    names += [name for name in status if name[:3] in ('Cap', 'Sig') and name != 'SigQ']\n\
    seen = [{name: status[name] for name in names}, sys.argv, os.getcwd(), sys.executable,\n\
    \x20   sorted(os.environ.items()), sys.version, sys.path, open('/proc/self/comm').read(),\n\
    \x20   os.readlink('/proc/self/exe'), sorted(os.listdir('/proc/self/fd')), os.umask(0),\n\
    \x20   sorted(os.listdir('/')), sys.stdin.isatty(), os.nice(0), os.sched_getaffinity(0)]\n\
    print(json.dumps(seen, indent=1, default=str))\n\
    sys.exit(7)";

/// A container that has an image at this name.
fn holding(it: &Context, root: Root, user: User) -> Container<'_> {
    Container::of(it, root).user(user).share(&frozen(root, user), "/snap.img:ro")
}

/// The command line of a run with code.
fn run<'a>(engine: &'a str, code: &'a str) -> [&'a str; 7] {
    [PROGRAM, "run", "--engine", engine, "/snap.img", "-c", code]
}

/// Runs a script by itself and from the image, and compares what it said and how it ended.
#[track_caller]
fn is_as_stock(container: &Container<'_>, root: Root, engine: &str, code: &str) -> String {
    let stock = container.run([root.python(), "-c", code]);
    let thawed = container.run(run(engine, code));
    assert_eq!(stock.status.code(), Some(7), "{stock:?}");
    assert_eq!(thawed.text(), stock.text(), "{root:?}: {thawed:?}");
    assert_eq!((thawed.status, thawed.errors()), (stock.status, stock.errors()), "{root:?}");
    thawed.text()
}

#[test]
fn a_run_needs_nothing_of_a_container() {
    as_root(|it| {
        let code = format!("import os; print(os.getpid(), os.getppid())\n{SELF}");
        for root in Root::ALL {
            for user in User::BOTH {
                let container = holding(it, root, user);
                let seen = is_as_stock(&container, root, "native", &code);
                assert!(seen.starts_with("1 0\n"), "{seen}");
                let less = ["--cap-drop=all", "--read-only", "--security-opt=no-new-privileges"];
                is_as_stock(&container.options(less), root, "native", &code);
            }
        }
    });
}

#[test]
fn a_run_through_criu_needs_one_capability() {
    as_root(|it| {
        for root in Root::ALL {
            for user in User::BOTH {
                let container = holding(it, root, user).options(TO_RESTORE);
                is_as_stock(&container, root, "criu", SELF);
                let less = ["--cap-drop=all", "--read-only", "--security-opt=no-new-privileges"];
                is_as_stock(&container.options(less), root, "criu", SELF);
            }
        }
    });
}

#[test]
fn no_two_runs_of_an_image_draw_the_same_bytes() {
    as_root(|it| {
        let code = "import dice\nfor name, value in dice.throw(): print(name, value, sep='\\t')";
        for root in Root::ALL {
            for (engine, options) in [("native", None), ("criu", Some(TO_RESTORE))] {
                let container =
                    holding(it, root, User::Root).options(options.into_iter().flatten());
                let mut seen: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
                // In two containers, for they begin alike.
                for _ in 0..2 {
                    for member in container.crowd(root.python(), 6, &run(engine, code)) {
                        assert_eq!(
                            (member.status, member.err.as_str()),
                            (Some(0), ""),
                            "{member:?}"
                        );
                        for line in member.out.lines() {
                            let (name, value) = line.split_once('\t').unwrap();
                            seen.entry(name.to_owned()).or_default().insert(value.to_owned());
                        }
                    }
                }
                let least = if root == Root::Forky { 15 } else { 17 };
                assert!(seen.len() >= least && seen.contains_key("arc4random"), "{seen:#?}");
                for (name, values) in seen {
                    assert_eq!(values.len(), 12, "{name} with {engine} in {root:?}: {values:#?}");
                }
            }
        }
    });
}

#[test]
fn many_through_criu_at_once_have_numbers_of_their_own() {
    as_root(|it| {
        let code = "import os, threading; print(os.getpid(), threading.get_native_id())";
        for root in Root::ALL {
            let container = holding(it, root, User::Ordinary).options(TO_RESTORE);
            let members = container.crowd(root.python(), 8, &run("criu", code));
            let mut numbers = BTreeSet::new();
            for member in members {
                assert_eq!((member.status, member.err.as_str()), (Some(0), ""), "{member:?}");
                let (process, thread) = member.out.trim().split_once(' ').unwrap();
                assert_eq!(process, thread, "{root:?}");
                numbers.insert(process.to_owned());
            }
            assert_eq!(numbers.len(), 8, "{root:?}: {numbers:?}");
        }
    });
}

#[test]
fn an_image_is_of_use_in_another_container_elsewhere_and_to_another_user() {
    as_root(|it| {
        for root in Root::ALL {
            let moved = it.work().join("moved.img");
            fs::copy(frozen(root, User::Root), &moved).unwrap();
            fs::set_permissions(&moved, Permissions::from_mode(0o644)).unwrap();
            let code = "import sys; print('dice' in sys.modules, sys.executable)";
            let outcome = Container::of(it, root)
                .user(User::Ordinary)
                .share(&moved, "/somewhere/else.img:ro")
                .run([PROGRAM, "run", "/somewhere/else.img", "-c", code])
                .succeeds();
            assert_eq!(outcome.text(), format!("True {}\n", root.python()), "{outcome:?}");
        }
    });
}

#[test]
fn an_image_is_of_use_where_the_files_were_installed_anew() {
    as_root(|it| {
        // This root came as an archive, which keeps whole seconds only.
        let outcome = Container::of_image(it, "debian:trixie")
            .share(shared().binary(), "/usr/local/bin/preloaded-criu:ro")
            .share(&frozen(Root::Trixie, User::Root), "/snap.img:ro")
            .run(run("native", "import sys; print('dice' in sys.modules)"))
            .succeeds();
        assert_eq!(outcome.text(), "True\n", "{outcome:?}");
    });
}

#[test]
fn an_image_of_another_distribution_is_refused_with_the_reason() {
    as_root(|it| {
        for (made, used, reason) in [
            (Root::Trixie, Root::Bookworm, "python3.13"),
            (Root::Bookworm, Root::Trixie, "python3.11"),
            (Root::Trixie, Root::Forky, "has changed"),
        ] {
            let outcome = Container::of(it, used)
                .share(&frozen(made, User::Root), "/snap.img:ro")
                .run(run("native", "print('started')"));
            outcome.is_refused(&["/snap.img", reason]);
            assert_eq!(outcome.text(), "", "{outcome:?}");
        }
    });
}

#[test]
fn an_image_of_another_library_is_refused_with_its_name() {
    as_root(|it| {
        let library = "usr/lib/x86_64-linux-gnu/libcrypto.so.3";
        let outcome = holding(it, Root::Trixie, User::Root)
            .share(&Root::Forky.path().join(library), &format!("/{library}:ro"))
            .run(run("native", "print('started')"));
        outcome.is_refused(&[library, "has changed"]);
        assert_eq!(outcome.text(), "", "{outcome:?}");
    });
}

#[test]
fn guard_regions_of_a_module_and_of_threads_stacks_are_there_again() {
    as_root(|it| {
        it.file("guarded.py", GUARDED);
        // glibc 2.43 and CRIU 4.2.
        let container = Container::of(it, Root::Forky).options(TO_SNAPSHOT);
        let snapshot =
            [PROGRAM, "snapshot", "--python", Root::Forky.python(), "--import", "guarded"];
        container.run(snapshot).succeeds();
        let code = "import guarded; guarded.check()";
        let seen = container.run([Root::Forky.python(), "-c", code]).succeeds();
        assert!(seen.text().starts_with("True [11, 0, 0, 11]\n"), "{seen:?}");
        for engine in ["native", "criu"] {
            let run = [PROGRAM, "run", "--engine", engine, "snap.img", "-c", code];
            let outcome = container.run(run).succeeds();
            assert_eq!(outcome.text(), seen.text(), "{engine}: {outcome:?}");
        }
    });
}

/// Reads each of CRIU's files with crit and writes it again.
const READ: &str = "set -e\n\
    preloaded-criu export /snap.img /tmp/dump >/dev/null\n\
    cd /tmp/dump\n\
    for file in *.img; do\n\
    \x20   case $file in pages-*) continue ;; esac\n\
    \x20   crit decode -i $file -o /tmp/text\n\
    \x20   crit encode -i /tmp/text -o /tmp/again\n\
    \x20   case $file in\n\
    \x20       pagemap-*) cp /tmp/text /work/pagemap; crit decode -i /tmp/again -o /work/again; cmp /work/again /tmp/text ;;\n\
    \x20       *) cmp /tmp/again $file ;;\n\
    \x20   esac\n\
    \x20   echo ${file%%-*}\n\
    done\n\
    stat -c %s pages-*.img >/work/pages\n\
    crit x . ps | sed 1d >/work/processes\n\
    crit x . mems >/work/memory\n\
    crit x . fds >/work/files";

#[test]
fn crit_reads_what_export_writes() {
    as_root(|it| {
        let outcome = holding(it, Root::Trixie, User::Root).run(["sh", "-c", READ]).succeeds();
        let text = outcome.text();
        let names: BTreeSet<&str> = text.lines().collect();
        for name in
            ["core", "fdinfo", "files.img", "fs", "inventory.img", "mm", "pagemap", "pstree.img"]
        {
            assert!(names.contains(name), "{name}: {outcome:?}");
        }
        let told = |name: &str| fs::read_to_string(it.work().join(name)).unwrap();
        // Of the two fields that say how many pages there are, crit shows one, and writes that.
        let map: serde_json::Value = serde_json::from_str(&told("pagemap")).unwrap();
        let runs = map["entries"].as_array().unwrap().iter();
        let pages: u64 = runs.filter_map(|run| run["nr_pages"].as_u64()).sum();
        assert_eq!(pages * 4096, told("pages").trim().parse::<u64>().unwrap());
        let processes = told("processes");
        let process: Vec<&str> = processes.split_whitespace().collect();
        assert_eq!(process.last(), Some(&"python3"), "{processes}");
        assert!(told("memory").contains("/usr/bin/python3.13"));
        assert!(told("files").lines().any(|line| line.trim() == "cwd: /work"));
    });
}

#[test]
fn the_doctor_of_a_container_says_what_a_snapshot_then_does() {
    as_root(|it| {
        fs::set_permissions(it.work(), Permissions::from_mode(0o777)).unwrap();
        let [capability, filter] = TO_SNAPSHOT;
        let cases: [(&[&str], User, &[&str]); 5] = [
            (&[], User::Root, &["--cap-add CHECKPOINT_RESTORE", "seccomp=unconfined"]),
            (&[capability], User::Root, &["seccomp=unconfined"]),
            (&[filter], User::Ordinary, &["CHECKPOINT_RESTORE"]),
            (&[capability, filter], User::Root, &[]),
            (&[capability, filter, "--read-only", "--tmpfs=/tmp"], User::Ordinary, &[]),
        ];
        for root in Root::ALL {
            for (options, user, missing) in cases {
                let container = Container::of(it, root).options(options).user(user);
                let doctor = container.run([PROGRAM, "doctor"]);
                let place = ["-o", "/tmp/snap.img"];
                let snapshot = [PROGRAM, "snapshot", "--python", root.python(), place[0], place[1]];
                let told = container.crowd(root.python(), 1, &snapshot);
                let [made] = told.as_slice() else { panic!("{told:?}") };
                assert!(doctor.text().starts_with("run will work\n"), "{doctor:?}");
                if missing.is_empty() {
                    assert_eq!((doctor.status.code(), made.status), (Some(0), Some(0)), "{made:?}");
                    continue;
                }
                assert_eq!((doctor.status.code(), made.status), (Some(1), Some(125)), "{made:?}");
                for word in missing {
                    assert!(doctor.text().contains(word), "{word:?} is not said: {doctor:?}");
                    assert!(made.err.contains("hint: ") && made.err.contains(word), "{made:?}");
                }
            }
        }
    });
}

#[test]
fn through_criu_what_a_container_lacks_is_named() {
    as_root(|it| {
        for root in Root::ALL {
            let container = holding(it, root, User::Root);
            let cases: [(&[&str], &[&str]); 2] = [
                (&[], &["CAP_CHECKPOINT_RESTORE", "--cap-add CHECKPOINT_RESTORE"]),
                (&[TO_RESTORE[0], "--security-opt=mask=/proc/sys"], &["/proc/sys", "mask"]),
            ];
            for (options, words) in cases {
                let container = container.clone().options(options);
                for member in container.crowd(root.python(), 1, &run("criu", "print('started')")) {
                    assert_eq!((member.status, member.out.as_str()), (Some(125), ""), "{member:?}");
                    for word in words.iter().chain(&["hint: "]) {
                        assert!(member.err.contains(word), "{word:?} is not said: {member:?}");
                    }
                }
            }
        }
    });
}

#[test]
fn without_proc_a_run_is_refused() {
    as_root(|it| {
        // Another root, in which nothing is mounted.
        let container =
            holding(it, Root::Trixie, User::Root).share(&Root::Trixie.path(), "/bare:O");
        let code = "mkdir /bare/modules && cp -a /modules/. /bare/modules && \
            cp /snap.img /usr/local/bin/preloaded-criu /bare && \
            exec chroot /bare /preloaded-criu run /snap.img -c 'print(1)'";
        let outcome = container.run(["sh", "-c", code]);
        outcome.is_refused(&["/proc does not show", "mount"]);
        assert_eq!(outcome.text(), "", "{outcome:?}");
    });
}

#[test]
fn where_there_are_few_processes_each_run_succeeds_or_says_so() {
    as_root(|it| {
        let code = "import os; print(os.getpid())";
        for (limit, count) in [(64, 4), (64, 16), (24, 8)] {
            let container = holding(it, Root::Trixie, User::Ordinary)
                .options(TO_RESTORE)
                .options(["--pids-limit", &limit.to_string()]);
            let members = container.crowd(Root::Trixie.python(), count, &run("criu", code));
            let (ran, refused): (Vec<_>, Vec<_>) =
                members.iter().partition(|member| member.status == Some(0));
            // Four of them fit in.
            assert!(count > 4 || ran.len() == 4, "{members:#?}");
            for member in refused {
                // Where python itself could not start one, there is no status.
                let told = member.status == Some(125) && member.err.contains("\nhint: ");
                assert!(member.status.is_none() || told, "{member:?}");
            }
        }
    });
}

#[test]
fn a_criu_that_would_end_everybody_ends_nobody() {
    as_root(|it| {
        // As CRIU does in want of processes. By itself it would end the other one.
        let killer = it.file("criu", "#!/bin/sh\nkill -KILL -1\nexit 1\n");
        fs::set_permissions(killer, Permissions::from_mode(0o755)).unwrap();
        let code = |criu: &str| format!("sleep 1000 & {criu}; kill -TERM $!; wait $!; echo $?");
        for root in Root::ALL {
            let container = holding(it, root, User::Root)
                .options(TO_RESTORE)
                .options(["--env=PRELOADED_CRIU_CRIU=/work/criu"]);
            let outcome = container.run(["sh", "-c", &code("/work/criu")]);
            assert_eq!(outcome.text(), "137\n", "{outcome:?}");
            let outcome = container.run(["sh", "-c", &code(&run("criu", "''").join(" "))]);
            assert_eq!(outcome.text(), "143\n", "{outcome:?}");
            assert!(outcome.errors().contains("/work/criu does not answer"), "{outcome:?}");
        }
    });
}
