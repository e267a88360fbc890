//! preloaded-criu from the outside: real images made by the real CRIU, run by root, by an ordinary
//! user and by one with no capability at all, on every interpreter that is here.
//!
//! What a run does is compared with what the interpreter does by itself, started in the same way:
//! outputs byte for byte, files, and how it ended.
#![allow(clippy::unwrap_used, reason = "in a test, what is not as it should be is a failure")]

mod children;
mod ci_examples;
mod cli;
mod containers;
mod criu_images;
mod endurance;
mod engine_faults;
mod engines;
mod environment;
mod faults;
mod hooks;
mod memory;
mod process;
mod randomness;
mod script;
mod snapshot;
mod starters;
mod steps;
mod streams;
mod support;
mod terminal;
mod threads;
mod trust;
mod variables;
