//! From a recipe to a frozen python: starts it, follows its imports, refuses what cannot be frozen,
//! has CRIU dump it, and makes an image of the dump.
//!
//! ```text
//! we --- keeper (a session of its own; in namespaces of its own for an ordinary user)
//!          |--- python, with the resident and the agent: reports to us through a pipe
//!          `--- criu swrk: asked by us through a socket
//! ```
//!
//! Everything hangs on the keeper: when [`Frozen`] goes, or we are killed, the keeper ends what it has
//! started and removes the temporary files.

mod assemble;
mod error;
mod frozen;
mod make;
mod memory;
mod others;
mod progress;
mod python;
mod recipe;
mod refusal;
mod rehearsal;
mod scratch;
mod secrets;
mod sources;
mod target;

pub use error::{Refusal, SnapshotError};
pub use frozen::{Frozen, settings_of, take};
pub use make::make;
pub use progress::{Event, Progress, Silent};
pub use python::{Interpreter, PythonError};
pub use recipe::{Choice, Engines, Options, Recipe};
pub use scratch::ScratchError;
pub use secrets::is_secret_name;
