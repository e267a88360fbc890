//! What an image is, for people and their tools: never read on the way of a run.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What was frozen, when, where and how large it is.
///
/// Paths are as text, with U+FFFD for what is not UTF-8: they are to be read, not to be opened.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Manifest {
    /// Version of preloaded-criu that made it.
    pub made_by: String,
    /// When it was made, in seconds since 1970 (UTC).
    pub created: u64,
    /// The interpreter.
    pub python: Python,
    /// What was asked for, in order.
    pub recipe: Recipe,
    /// The modules of the libraries in it that have a version, in the order of their names.
    pub modules: Vec<Module>,
    /// Files of modules that a run compares only when it is asked to, and xxh3 of each.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub sources: BTreeMap<PathBuf, u64>,
    /// Where it was made.
    pub host: Host,
    /// Version of the CRIU that dumped it.
    pub criu: String,
    /// Names of its threads, the main thread first.
    pub threads: Vec<String>,
    /// Names of the processes that it has started and that are in it too.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub processes: Vec<String>,
    /// Why only CRIU can restore it, each as a sentence; nothing where either engine can.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub only_criu: Vec<String>,
    /// How its memory comes back.
    pub memory: Memory,
}

/// The frozen interpreter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Python {
    /// For instance `3.11.2`.
    pub version: String,
    /// For instance `cpython`.
    pub implementation: String,
    /// `sys.executable`.
    pub executable: String,
    /// The file that is run: `executable` with its links resolved.
    pub interpreter: String,
    /// `sys.prefix`.
    pub prefix: String,
    /// `sys.base_prefix`: another one than `prefix` in a virtual environment.
    pub base_prefix: String,
    /// Options that it was started with, for instance `-O`.
    pub flags: Vec<String>,
}

/// What the image was asked to hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Recipe {
    /// The recipe's name, if it had one.
    pub name: Option<String>,
    /// Imported modules.
    pub imports: Vec<String>,
    /// Executed files.
    pub exec: Vec<String>,
    /// Names of the environment variables that were set for it.
    pub environment: Vec<String>,
    /// Names of the caller's variables that it was made without, because they look like secrets.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub withheld: Vec<String>,
    /// How to make it again; nothing where that cannot be said in text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub again: Option<Again>,
}

/// How to make an image again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Again {
    /// Arguments of `preloaded-criu snapshot`, but for the output, that mean the same in every directory.
    /// Values of variables that were set for the image are among them: they are in its memory, too.
    pub arguments: Vec<String>,
    /// The directory in which it was made: imports see it.
    pub folder: String,
}

/// A library in the image.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Module {
    /// Its name.
    pub name: String,
    /// Its version, if it says one.
    pub version: Option<String>,
    /// How long importing it took, if it was imported by name.
    pub seconds: Option<f64>,
}

/// The machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Host {
    /// Its name.
    pub name: String,
    /// The system, as `/etc/os-release` calls it.
    pub system: String,
    /// Kernel release.
    pub kernel: String,
    /// C library and version of the interpreter.
    pub libc: String,
    /// xxh3 of the kernel's vDSO, as hexadecimal digits.
    pub vdso: String,
    /// The processor's name.
    pub cpu: String,
    /// What the processor can, as `/proc/cpuinfo` names it.
    pub cpu_features: Vec<String>,
    /// How CRIU was isolated: `host` or `userns`.
    pub isolation: String,
}

/// Bytes, by the way in which they come back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Memory {
    /// Mapped from the image: shared by all runs until written to.
    pub mapped: u64,
    /// Copied at each run.
    pub copied: u64,
    /// Anonymous memory that comes back as zeros.
    pub zero: u64,
    /// Mapped from the machine's own files (libraries).
    pub files: u64,
    /// Why some of it is mapped and some of it copied, the largest first.
    pub kinds: Vec<MemoryKind>,
}

/// Memory of one owner.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MemoryKind {
    /// What it is, in words.
    pub what: String,
    /// Copied at each run; else it is mapped from the image.
    pub copied: bool,
    /// Bytes.
    pub bytes: u64,
}
