//! The program: everything is in the library.
#![no_main]

preloaded_criu::entry!(preloaded_criu::cli::main);
