//! No two runs of one image share what must be random.

use std::collections::{BTreeMap, BTreeSet};

use crate::support::image::arguments;
use crate::support::{Context, Recipe, everywhere, shared, with_every_python};

const THROW: &str = "import dice\nfor name, value in dice.throw(): print(name, value, sep=': ')";

fn throw(it: &Context, runs: usize) -> BTreeMap<String, BTreeSet<String>> {
    let running: Vec<_> =
        (0..runs).map(|_| it.code(THROW).from(Recipe::Dice).thawed().spawn()).collect();
    let mut seen: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for run in running {
        for line in run.finish().succeeds().text().lines() {
            let (name, value) = line.split_once(": ").unwrap();
            seen.entry(name.to_owned()).or_default().insert(value.to_owned());
        }
    }
    seen
}

#[test]
fn six_runs_at_once_draw_six_different_numbers() {
    everywhere(|it| {
        let seen = throw(it, 6);
        assert!(seen.len() >= 14, "{seen:#?}");
        for (name, values) in seen {
            assert_eq!(values.len(), 6, "{name}: {values:#?}");
        }
    });
}

#[test]
fn six_runs_of_libraries_draw_six_different_numbers() {
    crate::support::for_everyone(|it| {
        let python = shared().libraries().join("bin/python");
        it.snapshot(["--import", "dice", "--force", "-o", "dice.img", "--python"])
            .args([python])
            .env("PYTHONPATH", shared().modules())
            .run()
            .succeeds();
        let image = it.keep("dice.img");
        let run = |code: &str| it.code(code).image(image.clone());
        let throws =
            run("import dice\nfor name, value in dice.throw(): print(name, value, sep=': ')");
        let running: Vec<_> = (0..6).map(|_| throws.thawed().spawn()).collect();
        let mut seen: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for run in running {
            for line in run.finish().succeeds().text().lines() {
                let (name, value) = line.split_once(": ").unwrap();
                seen.entry(name.to_owned()).or_default().insert(value.to_owned());
            }
        }
        for name in ["default_rng of the import", "its children", "cryptography"] {
            assert!(seen.contains_key(name), "{seen:#?}");
        }
        for (name, values) in seen {
            assert_eq!(values.len(), 6, "{name}: {values:#?}");
        }
        let chosen =
            run("import dice; print(dice.chosen_generator.random(), dice.chosen_state.rand())");
        let first = chosen.thaw().succeeds().text();
        assert_eq!(first, chosen.thaw().succeeds().text());
        std::fs::remove_file(image).unwrap();
    });
}

#[test]
fn a_sqlite_that_has_drawn_draws_other_numbers_in_every_run() {
    with_every_python(|it| {
        // It keeps a journal whose salt is drawn, as a cache does.
        let module = "import sqlite3\nmemory = sqlite3.connect(':memory:')\nfile = sqlite3.connect('cache.db')\n\
                      for line in ('pragma journal_mode=wal', 'create table if not exists t(x)', 'insert into t values(hex(randomblob(4)))'):\n\
                      \x20 file.execute(line)\nfile.commit()\nfile.close()";
        it.file("cache.py", module);
        let arguments =
            [arguments(it.seat, Recipe::Nothing), vec!["--import".into(), "cache".into()]];
        it.snapshot(arguments.concat()).args(["-o", "sqlite.img"]).run().succeeds();
        let image = it.keep("sqlite.img");
        let code = "import cache, sqlite3, sys; assert 'ctypes' not in sys.modules\n\
                    for memory in cache.memory, sqlite3.connect(':memory:'):\n\
                    \x20 print(memory.execute('select random(), hex(randomblob(8))').fetchone())";
        let run = it.code(code).image(&image).options(&["--check", "off"]);
        let said: BTreeSet<String> = (0..4)
            .flat_map(|_| {
                let text = run.thaw().succeeds().text();
                text.lines().map(ToOwned::to_owned).collect::<Vec<_>>()
            })
            .collect();
        assert_eq!(said.len(), 8, "{said:#?}");
        std::fs::remove_file(image).unwrap();
    });
}

#[test]
fn children_differ_from_their_parents_as_they_do_in_python() {
    everywhere(|it| {
        let code = "import os, random, subprocess, sys\nr, w = os.pipe()\nif not os.fork():\n  os.write(w, repr((random.random(), os.urandom(4))).encode()); os._exit(0)\n\
                    os.wait(); print(os.read(r, 100) != repr((random.random(), os.urandom(4))).encode())";
        assert_eq!(it.code(code).from(Recipe::Dice).thaw().succeeds().text(), "True\n");
    });
}

#[test]
fn what_was_seeded_on_purpose_stays() {
    everywhere(|it| {
        let chosen = it.code("import dice; print(dice.chosen.random())").from(Recipe::Dice);
        let first = chosen.thaw().succeeds().text();
        assert_eq!(first, chosen.thaw().succeeds().text());
        it.code(
            "import random; random.seed(7); print(random.random(), random.sample(range(100), 5))",
        )
        .is_as_stock()
        .succeeds();
    });
}
