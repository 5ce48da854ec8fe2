//! Where commands write: data apart from messages, so that a pipe sees only data.
//!
//! A reader of the data that has gone (`adit ... | head`) is not an error worth a message; any other failure to write
//! data is exit code 1. Messages that cannot be written are dropped: there is nobody to tell.

use std::fmt::Display;
use std::io::{ErrorKind, Write};

use super::Exit;
use crate::config::Problems;

pub struct Output<'a> {
    /// stdout
    pub data: &'a mut dyn Write,
    /// stderr
    pub messages: &'a mut dyn Write,
}

impl Output<'_> {
    /// Writes data and a newline.
    pub fn data(&mut self, text: impl Display) -> Exit {
        match writeln!(self.data, "{text}").and_then(|()| self.data.flush()) {
            Ok(()) => Exit::Ok,
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Exit::Ok,
            Err(error) => {
                self.error(format_args!("cannot write the output: {error}"), None);
                Exit::Failed
            }
        }
    }

    /// Writes one line, and one more when there is a hint.
    pub fn error(&mut self, message: impl Display, hint: Option<&str>) {
        let hint = hint.map(|hint| format!("\n  hint: {hint}")).unwrap_or_default();
        let _nobody_to_tell = writeln!(self.messages, "error: {message}{hint}");
    }

    /// Writes one line about what is allowed and not good.
    pub fn warning(&mut self, message: impl Display) {
        let _nobody_to_tell = writeln!(self.messages, "warning: {message}");
    }

    /// Writes every problem, and how many there are.
    pub fn problems(&mut self, problems: &Problems) -> Exit {
        let (count, plural) = (problems.len(), if problems.len() == 1 { "" } else { "s" });
        let _nobody_to_tell = writeln!(self.messages, "{problems}\nerror: {count} problem{plural}");
        Exit::BadConfig
    }
}

impl std::fmt::Debug for Output<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Output").finish_non_exhaustive()
    }
}
