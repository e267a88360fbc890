//! A snapshot from the recipe to the image.

use std::path::{Path, absolute};
use std::time::Instant;

use super::assemble::assemble;
use super::error::SnapshotError;
use super::frozen::take;
use super::progress::{Event, Progress};
use super::recipe::{Options, Recipe};
use crate::image::Writer;

/// Freezes the python of a recipe and writes it to `output`; a file of that name is replaced only
/// with `force`.
///
/// # Errors
///
/// Everything that [`SnapshotError`] names. Nothing is left behind then, and what had the image's
/// name has it still.
pub fn make(
    recipe: &Recipe,
    options: &Options,
    output: &Path,
    force: bool,
    progress: &mut dyn Progress,
) -> Result<(), SnapshotError> {
    // Begun first: that the image cannot be written is better known before a minute of imports.
    let writer = Writer::create(output, force)?;
    let folder = absolute(writer.path()).ok().and_then(|path| path.parent().map(Path::to_owned));
    let options = Options {
        output: options.output.clone().or(folder),
        temporary: Some(writer.temporary()),
        ..options.clone()
    };
    let frozen = take(recipe, &options, progress)?;
    let began = Instant::now();
    progress.event(Event::Writing { path: output });
    let bytes = assemble(recipe, &frozen, options.self_contained, writer, progress)?;
    let seconds = began.elapsed().as_secs_f64();
    progress.event(Event::Written { path: output, bytes, seconds });
    Ok(())
}
