//! CPython as its documentation has it: its command line, and what it heeds only when it starts.

mod command_line;
mod settings;

pub use command_line::CommandLine;
pub use settings::Settings;
