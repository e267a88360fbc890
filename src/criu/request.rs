//! The requests that we make.

use std::path::Path;

use rust_criu::rust_criu_protobuf::rpc::{
    Criu_cg_mode, Criu_opts, Criu_req, Criu_req_type, Criu_resp,
};

use super::error::{CriuError, Reason};
use super::log::{self, LOG, Log};
use super::swrk::DIRECTORY_PATH;

/// The log level that shows what CRIU does, step by step (criu(8), `-v4`).
pub(super) const DEBUG: i32 = 4;

/// Freezes one process into a directory; CRIU ends the process when it has it.
#[derive(Clone, Copy, Debug)]
pub struct Dump<'a> {
    /// The process, by its number where CRIU runs.
    pub pid: i32,
    /// The directory for CRIU's files, which CRIU has as a descriptor ([`super::Worker::program`]).
    /// Nothing else is to be in there.
    pub directory: &'a Path,
}

impl Dump<'_> {
    /// The request to be sent.
    #[must_use]
    pub fn request(&self) -> Criu_req {
        let mut options = Criu_opts::new();
        // A descriptor of CRIU's own; ours would have to be looked up in the /proc of CRIU's
        // namespace, where we may not be.
        options.set_images_dir_fd(-1);
        options.set_images_dir(DIRECTORY_PATH.to_owned());
        options.set_log_file(LOG.to_owned());
        options.set_log_level(DEBUG);
        options.set_pid(self.pid);
        options.set_leave_running(false);
        // The session is the keeper's, which is not part of the image.
        options.set_shell_job(true);
        // Also for root: control groups and network rules have no place in an image that every user
        // shall be able to run, and without this CRIU would look at them by running other programs.
        options.set_unprivileged(true);
        options.set_manage_cgroups(false);
        options.set_manage_cgroups_mode(Criu_cg_mode::IGNORE);
        let mut request = Criu_req::new();
        request.set_type(Criu_req_type::DUMP);
        request.opts = Some(options).into();
        request
    }

    /// What the answer means. `status` is how CRIU ended, where there is no answer.
    ///
    /// # Errors
    ///
    /// [`CriuError::Died`] and [`CriuError::Failed`], with what the log says; the log is kept.
    pub fn judge(
        &self,
        answer: Option<Criu_resp>,
        status: Option<std::process::ExitStatus>,
    ) -> Result<(), CriuError> {
        match answer {
            Some(answer) if answer.success() && answer.type_() == Criu_req_type::DUMP => Ok(()),
            Some(answer) => Err(CriuError::Failed(reason(self.directory, Some(&answer)))),
            None => Err(CriuError::Died { status, source: reason(self.directory, None) }),
        }
    }
}

/// What an answer that is no success, and the log, give as the reason; the log is kept.
pub(super) fn reason(directory: &Path, answer: Option<&Criu_resp>) -> Reason {
    // The message in the answer is the first error that was logged, often one that CRIU survived.
    let told = answer.map(|answer| answer.cr_errmsg().trim()).filter(|told| !told.is_empty());
    let told = told.map(|told| told.split_once("): ").map_or(told, |(_, message)| message));
    let number = answer.map(Criu_resp::cr_errno).filter(|number| *number != 0);
    let log = Log::read(directory);
    let text = log
        .reason()
        .or_else(|| told.filter(|told| !log::harmless(told)).map(ToOwned::to_owned))
        .or_else(|| number.map(|n| std::io::Error::from_raw_os_error(n).to_string()))
        .unwrap_or_else(|| "it gives no reason".to_owned());
    Reason { text, errors: log.errors, log: log::keep(directory).ok() }
}
