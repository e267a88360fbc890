//! What a snapshot tells while it works.

use std::path::Path;

/// A step. Sizes are in bytes, times in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Event<'a> {
    /// An import begins.
    Importing {
        /// The module.
        module: &'a str,
    },
    /// An import has ended.
    Imported {
        /// The module.
        module: &'a str,
        /// How long it took.
        seconds: f64,
    },
    /// A file is being run.
    Executing {
        /// The file, as the recipe names it.
        path: &'a str,
    },
    /// What the imported code prints.
    Output(&'a [u8]),
    /// CRIU begins to freeze.
    Dumping {
        /// Memory of the process that has to be kept, about.
        bytes: u64,
    },
    /// CRIU has frozen it.
    Dumped {
        /// Size of CRIU's files.
        bytes: u64,
        /// How long it took.
        seconds: f64,
    },
    /// What was frozen can be restored by CRIU only.
    OnlyCriu {
        /// Why, each as a sentence without a full stop.
        reasons: &'a [String],
    },
    /// The image is being written.
    Writing {
        /// Where.
        path: &'a Path,
    },
    /// The image is complete.
    Written {
        /// Where.
        path: &'a Path,
        /// Its size.
        bytes: u64,
        /// How long it took.
        seconds: f64,
    },
}

/// Someone who wants to know.
pub trait Progress {
    /// Called for each step as it happens.
    fn event(&mut self, event: Event<'_>);
}

/// Tells nobody.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn event(&mut self, _: Event<'_>) {}
}
