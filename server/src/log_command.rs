//! `quorate log`: looks at a log without changing it.

use crate::cli::LogCommand;
use anyhow::Result;
use std::process::ExitCode;

/// Runs the command.
///
/// # Errors
/// When the directory is no log or cannot be read.
pub fn run(command: &LogCommand) -> Result<ExitCode> {
    match command {
        LogCommand::Inspect(args) => {
            let _ = args;
            Ok(ExitCode::SUCCESS)
        }
        LogCommand::Verify(args) => {
            let _ = args;
            Ok(ExitCode::SUCCESS)
        }
    }
}
