//! Makes what the library embeds: the protobuf messages of `proto/` and the shared objects that run
//! inside the interpreter (`restorer/`, `resident/`) and inside CRIU (`guard/`).

use std::env;
use std::error::Error;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(env::var("OUT_DIR")?);
    messages(&root)?;
    let plan = compile_plan(&root, &out)?;
    for object in ["restorer", "resident", "guard"] {
        compile_object(&root, &out, &plan, object)?;
    }
    Ok(())
}

fn messages(root: &Path) -> Result<(), Box<dyn Error>> {
    let folder = root.join("proto");
    println!("cargo::rerun-if-changed={}", folder.display());
    let mut files: Vec<PathBuf> = folder
        .read_dir()?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    files.retain(|path| path.extension().is_some_and(|extension| extension == "proto"));
    files.sort();
    protobuf_codegen::Codegen::new()
        .pure()
        .include(&folder)
        .inputs(&files)
        .cargo_out_dir("proto")
        .run()?;
    Ok(())
}

fn compile_plan(root: &Path, out: &Path) -> Result<PathBuf, Box<dyn Error>> {
    let source = root.join("plan/src/lib.rs");
    println!("cargo::rerun-if-changed={}", source.display());
    let library = out.join("librestore_plan.rlib");
    rustc(
        Command::new(compiler()?)
            .args(["--crate-name", "restore_plan", "--crate-type", "rlib"])
            .args(COMMON)
            .arg("-o")
            .arg(&library)
            .arg(&source),
    )?;
    Ok(library)
}

fn compile_object(root: &Path, out: &Path, plan: &Path, name: &str) -> Result<(), Box<dyn Error>> {
    let folder = root.join(name).join("src");
    println!("cargo::rerun-if-changed={}", folder.display());
    let mut external = OsString::from("restore_plan=");
    external.push(plan);
    let mut command = Command::new(compiler()?);
    command
        .args(["--crate-name", name, "--crate-type", "cdylib"])
        .args(COMMON)
        .arg("--extern")
        .arg(external)
        .arg("-o")
        .arg(out.join(format!("lib{name}.so")))
        .arg(folder.join("lib.rs"));
    match name {
        // One segment from offset 0 and no reference outwards: the restorer maps its own file a
        // second time, elsewhere, and goes on there.
        "restorer" => command.args([
            // Calls go straight to their targets, not through a table in another segment.
            "-Crelro-level=off",
            "-Clink-arg=-nostdlib",
            "-Clink-arg=-Wl,-z,noseparate-code,-z,norelro,--no-rosegment",
            "-Clink-arg=-Wl,--no-undefined,-Bsymbolic,--hash-style=sysv,--build-id=none",
        ]),
        // Whatever C library its CRIU has.
        "guard" => command.args(["-Clink-arg=-nostdlib", "-Clink-arg=-Wl,--build-id=none"]),
        _ => command.args(["-Clink-arg=-nostartfiles", "-Clink-arg=-Wl,--build-id=none"]),
    };
    rustc(&mut command)
}

const COMMON: [&str; 10] = [
    "--edition=2024",
    "-Cpanic=abort",
    "-Copt-level=2",
    "-Cdebuginfo=0",
    "-Cstrip=symbols",
    "-Crelocation-model=pic",
    "-Cforce-unwind-tables=no",
    "-Ccodegen-units=1",
    "-Coverflow-checks=no",
    "-Aunused",
];

fn compiler() -> Result<OsString, Box<dyn Error>> {
    env::var_os("RUSTC").ok_or_else(|| "cargo did not say which compiler to use".into())
}

fn rustc(command: &mut Command) -> Result<(), Box<dyn Error>> {
    // A wrapper such as clippy's has opinions about the crate that it is called for, not these.
    let status = command.env_remove("RUSTC_WORKSPACE_WRAPPER").status()?;
    if status.success() { Ok(()) } else { Err(format!("{command:?} ended with {status}").into()) }
}
