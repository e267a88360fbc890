//! What the tests stand on.

pub(crate) mod container;
pub(crate) mod context;
pub(crate) mod engine;
pub(crate) mod image;
mod leftovers;
mod rest;
pub(crate) mod run;
pub(crate) mod seat;
pub(crate) mod shared;
pub(crate) mod terminal;

use std::panic::{AssertUnwindSafe, catch_unwind};

pub(crate) use context::Context;
pub(crate) use engine::{Engine, native_only};
pub(crate) use image::Recipe;
pub(crate) use run::{Outcome, without_addresses};
pub(crate) use seat::{Seat, Who};
pub(crate) use shared::shared;
pub(crate) use terminal::Terminal;

/// Runs a test for everyone with every interpreter.
pub(crate) fn everywhere(test: impl Fn(&Context)) {
    at(&Seat::all(), test);
}

/// Runs a test for everyone, with the machine's own interpreter.
pub(crate) fn for_everyone(test: impl Fn(&Context)) {
    at(&Seat::everyone(), test);
}

/// Runs a test with every interpreter, for the one who has most of them.
pub(crate) fn with_every_python(test: impl Fn(&Context)) {
    let mut seats = Seat::all();
    seats.retain(|seat| seat.who == Who::most());
    at(&seats, test);
}

/// Runs a test for those who make images, with the machine's own interpreter.
pub(crate) fn for_makers(test: impl Fn(&Context)) {
    let mut seats = Seat::everyone();
    seats.retain(|seat| seat.who.maker() == seat.who);
    at(&seats, test);
}

/// Runs a test once, for the one who may do most.
pub(crate) fn once(test: impl Fn(&Context)) {
    at(&[Seat::first()], test);
}

/// Runs a test as root; by an ordinary user it is not run (whether that may be, `Who::all` says).
pub(crate) fn as_root(test: impl Fn(&Context)) {
    if Who::most() == Who::Root {
        once(test);
    }
}

fn at(seats: &[Seat], test: impl Fn(&Context)) {
    let mut failed = Vec::new();
    for seat in seats {
        eprintln!("== {seat}");
        let result = catch_unwind(AssertUnwindSafe(|| test(&Context::new(*seat))));
        if result.is_err() {
            failed.push(seat.to_string());
        }
    }
    assert!(failed.is_empty(), "failed for {} of {}: {failed:#?}", failed.len(), seats.len());
}
