//! The Python side: its source, and what is said between it and whoever makes the image.
//!
//! The agent (`agent.py`) runs inside the interpreter. It is handed one [`Job`] as a JSON document
//! and answers with one [`Event`] a line.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The source of the agent, handed to the interpreter as text: no file of ours is needed there.
pub const SOURCE: &str = include_str!("agent.py");

/// What the interpreter is to do before it is frozen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// The source of the agent: [`SOURCE`].
    pub agent: String,
    /// Modules to import, in this order.
    pub imports: Vec<String>,
    /// Files to run after the imports, in this order, each as `python3 FILE` would be.
    pub exec: Vec<String>,
    /// How the interpreter is called.
    pub argv0: String,
    /// The caller's own `LD_PRELOAD`; the resident's place in it is nobody's business.
    pub preload: Option<String>,
    /// Child processes and sockets are not refused: whether they can be frozen, the dump tells.
    pub lenient: bool,
}

/// One line of the agent's report. After `Failed`, `Refused` and `Ready` the report ends; the
/// process ends too, with status 1, except after `Ready`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Event {
    /// An import begins.
    Importing {
        /// The module's name.
        module: String,
    },
    /// An import has ended.
    Imported {
        /// The module's name.
        module: String,
        /// How long it took.
        seconds: f64,
    },
    /// A file is being run.
    Exec {
        /// The file, as it was named in the job.
        path: String,
    },
    /// An import or a file ended with an exception.
    Failed {
        /// `import MODULE` or `exec FILE`.
        what: String,
        /// What Python prints, without a frame of the agent.
        traceback: String,
    },
    /// Something is there that cannot be frozen. There is one event for each such thing.
    Refused {
        /// What it is, as a phrase: `an open socket (descriptor 5)`.
        what: String,
        /// After which step it was there: `python`, `import MODULE` or `exec FILE`.
        owner: String,
    },
    /// Everything is in place: the process now waits to be frozen.
    Ready(Box<Ready>),
}

/// The frozen interpreter, as it sees itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// The process, in its own PID namespace.
    pub pid: u32,
    /// Where the resident goes on in a restored process: an address.
    pub thaw: u64,
    /// The resident's mappings: first address, and the one after the last.
    pub resident: (u64, u64),
    /// The interpreter.
    pub python: Python,
    /// Every imported module, with its file where it has one.
    pub modules: BTreeMap<String, Option<String>>,
    /// Every top-level module that says its version.
    pub versions: BTreeMap<String, String>,
    /// The open descriptors, but for the standard ones and those of the snapshot.
    pub descriptors: Vec<Opened>,
    /// The shared mappings.
    pub mappings: Vec<Mapped>,
    /// What each environment variable that the imports have read may be, absent for `None`; without those
    /// that all readers follow. A character stands for a byte, as in ISO 8859-1.
    pub variables: BTreeMap<String, Vec<Option<String>>>,
    /// How names begin of which the imports have read all that there are, likewise.
    pub families: Vec<String>,
    /// Those that a restored process sets itself to where they are a number, likewise.
    pub settable: Vec<String>,
    /// After which step each running interval timer (getitimer(2)) was there.
    pub timers: Vec<String>,
    /// After which step each child process was there.
    #[serde(default)]
    pub children: Vec<String>,
}

/// A shared mapping.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mapped {
    /// Its first address.
    pub address: u64,
    /// After which step it was there: `python`, `import MODULE` or `exec FILE`.
    pub owner: String,
}

/// An open descriptor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    /// Its number.
    pub descriptor: u32,
    /// What `/proc/self/fd` says.
    pub target: String,
    /// After which step it was there: `python`, `import MODULE` or `exec FILE`.
    pub owner: String,
}

/// An interpreter, and what of it was fixed at its start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Python {
    /// As in `3.11.2`.
    pub version: String,
    /// As in `cpython-311`.
    pub tag: String,
    /// `sys.executable`.
    pub executable: String,
    /// `sys.prefix`: the virtual environment, if there is one.
    pub prefix: String,
    /// `sys.base_prefix`: the installation.
    pub base_prefix: String,
    /// The encoding of file names.
    pub encoding: String,
    /// `sys.flags`.
    pub flags: BTreeMap<String, i64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(line: &str) -> Event {
        serde_json::from_str(line).expect("the agent wrote it")
    }

    #[test]
    fn events_are_told_apart_by_their_tag() {
        assert_eq!(
            event(r#"{"event": "imported", "module": "json", "seconds": 0.5}"#),
            Event::Imported { module: "json".into(), seconds: 0.5 }
        );
        assert_eq!(
            event(r#"{"event": "refused", "what": "an open socket", "owner": "import x"}"#),
            Event::Refused { what: "an open socket".into(), owner: "import x".into() }
        );
    }

    #[test]
    fn ready_tells_the_whole_interpreter() {
        let ready = event(
            r#"{"event": "ready", "pid": 7, "thaw": 4096, "resident": [1, 2], "orders": 200,
                "python": {"version": "3.11.2", "tag": "cpython-311",
                "executable": "/usr/bin/python3", "prefix": "/usr", "base_prefix": "/usr",
                "encoding": "utf-8", "flags": {"optimize": 0}},
                "modules": {"sys": null, "json": "/usr/lib/python3.11/json/__init__.py"},
                "versions": {"json": "2.0.9"},
                "descriptors": [{"descriptor": 3, "target": "/dev/urandom",
                "owner": "import json"}],
                "mappings": [{"address": 4096, "owner": "import json"}], "timers": [],
                "variables": {"HOME": ["/", null]}, "families": ["JSON_"], "settable": []}"#,
        );
        let Event::Ready(ready) = ready else { panic!("{ready:?}") };
        assert_eq!((ready.pid, ready.thaw, ready.resident), (7, 4096, (1, 2)));
        assert_eq!(ready.modules["sys"], None);
        assert_eq!(ready.descriptors[0].owner, "import json");
        assert_eq!(ready.mappings[0].address, 4096);
        assert_eq!(ready.variables["HOME"], [Some("/".into()), None]);
    }

    #[test]
    fn a_job_is_one_document() {
        let job = Job {
            agent: SOURCE.into(),
            imports: vec!["json".into()],
            exec: vec![],
            argv0: "python3".into(),
            preload: None,
            lenient: false,
        };
        let text = serde_json::to_string(&job).expect("plain data");
        assert!(text.contains(r#""imports":["json"]"#));
    }
}
