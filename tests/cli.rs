//! The binary as a script sees it: exit codes, and what goes to which stream.

use std::process::{Command, Output};

fn adit(args: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_adit"));
    command.args(args).env_clear().envs(variables.iter().copied());
    command.output().expect("the binary runs")
}

#[test]
fn exit_codes_are_the_documented_ones() {
    for (args, variables, code) in [
        (&["--version"][..], &[][..], 0),
        (&["check"], &[], 0),
        (&["check"], &[("ADIT__CONNECT__TIMEOUT", "3s"), ("ADIT_OTHER", "x")], 0),
        (&["check"], &[("ADIT__CONNECT__TIMEOUT", "3")], 78),
        (&["run"], &[("ADIT__NO_SUCH", "3")], 78),
        (&["--config", "/nonexistent"], &[], 78),
        (&["nonsense"], &[], 64),
    ] {
        let output = adit(args, variables);
        assert_eq!(output.status.code(), Some(code), "{args:?} {variables:?}");
        let (data, messages) = if code == 0 { (output.stdout, output.stderr) } else { (output.stderr, output.stdout) };
        assert!(!data.is_empty() && messages.is_empty(), "{args:?}: data to stdout, errors to stderr");
    }
}

#[test]
fn the_shipped_files_pass_the_check() {
    for file in ["config/adit.yaml", "config/demo/adit.yaml"] {
        let file = format!("{}/{file}", env!("CARGO_MANIFEST_DIR"));
        let output = adit(&["check", "--config", &file], &[]);
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    }
}
