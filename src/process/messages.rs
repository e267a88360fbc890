//! CRIU's image messages, generated from `proto/`: the parts that we read. What we do not know stays
//! in a message's unknown fields, so a message that is read, changed and written loses nothing.

#![allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic, clippy::unwrap_used)]

include!(concat!(env!("OUT_DIR"), "/proto/mod.rs"));
