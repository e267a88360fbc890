//! No two runs of one image share what must be random.

use std::collections::{BTreeMap, BTreeSet};

use crate::support::{Context, Recipe, everywhere, shared};

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
