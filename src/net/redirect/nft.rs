//! Runs `nft`. Text comes in, what nft printed goes out; a failure carries nft's own words. `nft` is the one external
//! program that capture needs; it is looked for in `PATH`, then where distributions install it.

use std::io::{self, Write as _};
use std::process::{Command, Output, Stdio};

use super::ruleset::{ARMED, TABLE};

/// A normal user's `PATH` often lacks the `sbin` folders.
const PLACES: [&str; 3] = ["nft", "/usr/sbin/nft", "/sbin/nft"];

#[derive(Debug, thiserror::Error)]
pub enum NftError {
    #[error("the program `nft` was not found")]
    Missing,
    #[error("cannot run `nft`")]
    Run(#[source] io::Error),
    #[error("nft refused {what}: {said}")]
    Refused { what: &'static str, said: String },
}

/// One transaction: all of `text` or nothing.
pub(super) fn load(what: &'static str, text: &str) -> Result<(), NftError> {
    run(what, &["-f", "-"], text).map(drop)
}

/// Parses and evaluates `text` against the kernel without changing anything.
pub fn check(text: &str) -> Result<(), NftError> {
    run("the rules", &["-c", "-f", "-"], text).map(drop)
}

/// The table as it is in the kernel; `None` when there is none.
pub fn table() -> Result<Option<String>, NftError> {
    list(&["list", "table"], None)
}

/// The set that keeps capture going until it is confirmed; `None` when the table has none.
pub(super) fn armed_set() -> Result<Option<String>, NftError> {
    list(&["list", "set"], Some(ARMED))
}

fn list(command: &[&str], name: Option<&str>) -> Result<Option<String>, NftError> {
    let mut arguments = command.to_vec();
    arguments.extend(TABLE.split(' '));
    arguments.extend(name);
    match run("to list the table", &arguments, "") {
        Ok(text) => Ok(Some(text)),
        Err(NftError::Refused { said, .. }) if said.contains("No such file or directory") => Ok(None),
        Err(error) => Err(error),
    }
}

fn run(what: &'static str, arguments: &[&str], input: &str) -> Result<String, NftError> {
    let output = output(&PLACES, arguments, input)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let said = if said.is_empty() { format!("it ended with {}", output.status) } else { said };
    Err(NftError::Refused { what, said })
}

fn output(places: &[&str], arguments: &[&str], input: &str) -> Result<Output, NftError> {
    for place in places {
        let spawned = Command::new(place)
            .args(arguments)
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let mut child = match spawned {
            Ok(child) => child,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(NftError::Run(error)),
        };
        if let Some(mut stdin) = child.stdin.take() {
            // nft reads everything before it answers; if it ended early, its answer says why.
            let _ = stdin.write_all(input.as_bytes());
        }
        return child.wait_with_output().map_err(NftError::Run);
    }
    Err(NftError::Missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_place_that_has_it_is_used() {
        let missing = "/nonexistent/nft";
        assert!(matches!(output(&[missing, missing], &[], ""), Err(NftError::Missing)));
        let echoed = output(&[missing, "/bin/cat"], &[], "rules").expect("cat");
        assert_eq!(echoed.stdout, b"rules");
        // Ends without reading what it is given.
        let failed = output(&["/bin/false"], &[], &"x".repeat(1 << 20)).expect("false");
        assert!(!failed.status.success());
        assert!(matches!(output(&["/etc/hostname"], &[], ""), Err(NftError::Run(_))));
    }
}
