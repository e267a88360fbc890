//! The parsers of bytes that come from an image or from CRIU, fed with what they must not break at: the
//! fuzz targets (`fuzz/targets.rs`) with their seeds, with changes of them, and with noise.
#![allow(clippy::unwrap_used, reason = "in a test, what is not as it should be is a failure")]

#[path = "../fuzz/targets.rs"]
mod targets;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use targets::TARGETS;

/// The seeds of a target, each with its name.
fn named_seeds(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
    let mut files: Vec<PathBuf> =
        fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{} has no seed", folder.display());
    let name = |file: &Path| file.file_name().unwrap().to_str().unwrap().to_owned();
    files.iter().map(|file| (name(file), fs::read(file).unwrap())).collect()
}

fn seeds(target: &str) -> Vec<Vec<u8>> {
    named_seeds(target).into_iter().map(|(_, seed)| seed).collect()
}

/// Names of the seeds that are as they should be.
const OURS: [&str; 7] = ["image", "events", "handover", "heap", "arenas", "blocks", "pools"];

/// What a program of ours wrote is taken, or a target would never get to what comes behind. The other seeds
/// have done harm before.
#[test]
fn seeds_do_no_harm_and_what_we_wrote_is_taken() {
    for (target_name, target) in TARGETS {
        let mut taken = 0;
        for (name, seed) in named_seeds(target_name) {
            let outcome = target(&seed);
            if OURS.contains(&name.as_str()) {
                assert!(outcome.is_some(), "{target_name}: {name}");
                taken += 1;
            }
        }
        assert!(taken > 0, "{target_name}");
    }
}

/// A change of some bytes.
#[derive(Clone, Debug)]
enum Change {
    Set(prop::sample::Index, u8),
    Word(prop::sample::Index, u64),
    Remove(prop::sample::Index, usize),
    Repeat(prop::sample::Index, usize),
    Cut(prop::sample::Index),
}

fn change() -> impl Strategy<Value = Change> {
    let at = any::<prop::sample::Index>;
    let word = prop_oneof![
        any::<u64>(),
        (0_u64..64).prop_map(|bit| 1 << bit),
        (0_u64..64).prop_map(|bit| (1_u64 << bit).wrapping_neg()),
        (0_u64..64).prop_map(|pages| pages * 4096),
    ];
    prop_oneof![
        (at(), any::<u8>()).prop_map(|(at, byte)| Change::Set(at, byte)),
        (at(), word).prop_map(|(at, word)| Change::Word(at, word)),
        (at(), 1_usize..64).prop_map(|(at, count)| Change::Remove(at, count)),
        (at(), 1_usize..64).prop_map(|(at, count)| Change::Repeat(at, count)),
        at().prop_map(Change::Cut),
    ]
}

fn apply(bytes: &mut Vec<u8>, change: &Change) {
    if bytes.is_empty() {
        return;
    }
    let length = bytes.len();
    let end = |at: usize, count: usize| (at + count).min(length);
    match change {
        Change::Set(at, byte) => bytes[at.index(length)] = *byte,
        Change::Word(at, word) => {
            let at = at.index(length) & !7;
            let end = end(at, 8);
            bytes[at..end].copy_from_slice(&word.to_le_bytes()[..end - at]);
        }
        Change::Remove(at, count) => {
            let at = at.index(length);
            bytes.drain(at..end(at, *count));
        }
        Change::Repeat(at, count) => {
            let at = at.index(length);
            let part = bytes[at..end(at, *count)].to_vec();
            bytes.splice(at..at, part);
        }
        Change::Cut(at) => bytes.truncate(at.index(length)),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn changed_seeds_do_no_harm(
        which in any::<prop::sample::Index>(),
        changes in prop::collection::vec(change(), 1..5),
    ) {
        for (name, target) in TARGETS {
            let mut seeds = seeds(name);
            let mut bytes = seeds.swap_remove(which.index(seeds.len()));
            for change in &changes {
                apply(&mut bytes, change);
            }
            target(&bytes);
        }
    }

    #[test]
    fn noise_does_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..6000)) {
        for (_, target) in TARGETS {
            target(&bytes);
        }
    }
}

/// `PRELOADED_CRIU_SEEDS=IMAGE:DIRECTORY cargo test --test parsers make_seeds -- --ignored`
#[test]
#[ignore = "a tool of scripts/fuzz"]
fn make_seeds() {
    let from_to = env::var("PRELOADED_CRIU_SEEDS").unwrap();
    let (image, folder) = from_to.split_once(':').unwrap();
    targets::seeds(image.as_ref(), folder.as_ref());
}
