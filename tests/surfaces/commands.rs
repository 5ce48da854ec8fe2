//! The command line: help, completions, exit codes, and what a typo is told.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::program::{Done, wait};

fn adit(arguments: &[&str]) -> Done {
    let mut command = Command::new(env!("CARGO_BIN_EXE_adit"));
    wait(command.args(arguments).env_clear().env("PATH", "/usr/bin:/bin"))
}

/// Every command, found the way a person finds them.
fn commands(of: &[&str]) -> Vec<Vec<String>> {
    let help = adit(&[of, &["--help"]].concat()).ok();
    let mut found = vec![of.iter().map(|word| (*word).to_owned()).collect()];
    let listed = help.split("Commands:\n").nth(1).unwrap_or_default();
    for line in listed.lines().take_while(|line| !line.trim().is_empty()) {
        let name = line.split_whitespace().next().expect("a word");
        // Continuation lines of a description are indented further.
        if name != "help" && !line.starts_with("   ") {
            found.extend(commands(&[of, &[name]].concat()));
        }
    }
    found
}

#[test]
fn every_help_shows_an_example() {
    let all = commands(&[]);
    let names: Vec<String> = all.iter().map(|command| command.join(" ")).collect();
    for name in [
        "run",
        "check",
        "demo",
        "certs show",
        "certs inspect",
        "redirect print",
        "redirect apply",
        "redirect remove",
        "status",
        "connections",
        "reload",
        "drain",
        "healthcheck",
        "explain",
        "completions",
    ] {
        assert!(names.iter().any(|known| known == name), "{name} is not in {names:?}");
    }
    for command in all {
        let words: Vec<&str> = command.iter().map(String::as_str).chain(["--help"]).collect();
        let help = adit(&words).ok();
        assert!(help.contains("Usage: adit"), "{words:?}");
        let example = help.split("Example").nth(1).unwrap_or_else(|| panic!("{words:?} shows no example:\n{help}"));
        assert!(example.contains("\n  "), "{words:?}: an indented line to paste\n{help}");
        let shown = format!("adit {}", command.join(" "));
        assert!(example.contains(shown.trim()), "{words:?}: the example is of another command\n{help}");
    }
}

#[test]
fn completions_are_accepted_by_the_shells() {
    for shell in ["bash", "zsh", "fish"] {
        let script = adit(&["completions", shell]).ok();
        for word in ["healthcheck", "config", "redirect"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        fs::write(file.path(), &script).expect("our own file");
        let installed = Command::new(shell).arg("-c").arg("exit").stdin(Stdio::null()).status().is_ok();
        // bash is everywhere; the others are asked where they are.
        assert!(installed || shell != "bash", "bash is not installed");
        if installed {
            let done = wait(Command::new(shell).arg("-n").arg(file.path()));
            assert_eq!((done.code, done.err.as_str()), (Some(0), ""), "{shell}");
        }
    }
    // And bash really completes.
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    fs::write(file.path(), adit(&["completions", "bash"]).ok()).expect("our own file");
    let line = format!(
        "source {}; COMP_WORDS=(adit heal); COMP_CWORD=1; _adit adit heal adit; echo \"${{COMPREPLY[*]}}\"",
        file.path().display()
    );
    assert_eq!(wait(Command::new("bash").args(["-c", &line])).ok().trim(), "healthcheck");
}

#[test]
fn exit_codes_tell_who_is_wrong() {
    let nobody = "127.0.0.1:1";
    for (arguments, code) in [
        (&["--version"][..], 0),
        (&["check"], 0),
        (&["redirect", "print"], 0),
        (&["status", "--admin", nobody], 1),
        (&["connections", "--admin", nobody], 1),
        (&["certs", "--admin", nobody], 1),
        (&["certs", "show", "--admin", nobody], 1),
        (&["reload", "--admin", nobody], 1),
        (&["drain", "--admin", nobody], 1),
        (&["healthcheck", "--readiness", nobody], 1),
        (&["status", "--admin", "unix:/nonexistent/adit.sock"], 1),
        (&["frobnicate"], 64),
        (&["status", "--frobnicate"], 64),
        (&["status", "--admin", "nowhere:port"], 64),
        (&["completions", "csh"], 64),
        (&["redirect"], 64),
        (&["run", "--config"], 64),
        (&["check", "--config", "/nonexistent.yaml"], 78),
        (&["run", "--config", "/nonexistent.yaml"], 78),
        (&["run", "--set", "connect.timeout=5"], 78),
        (&["run", "--set", "listen.admin=0.0.0.0:15000"], 78),
        (&["run", "--set", "listen.socks5=0.0.0.0:15080"], 78),
    ] {
        let done = adit(arguments);
        assert_eq!(done.code, Some(code), "{arguments:?}: {}{}", done.out, done.err);
        if code != 0 {
            assert_eq!(done.out, "", "{arguments:?}: errors go to stderr");
            assert!(done.err.contains("error: ") || code == 78, "{arguments:?}: {}", done.err);
            assert!(done.err.contains("hint: "), "{arguments:?}: {}", done.err);
        }
    }
}

/// All problems of all files at once, each with everything a person needs to mend it.
#[test]
fn a_typo_is_shown_where_it_is() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let write = |name: &str, text: &str| -> PathBuf {
        let path = folder.path().join(name);
        fs::write(&path, text).expect("our own folder");
        path
    };
    let first =
        write("first.yaml", "egress: allowAny\nconnect:\n  timeout: 5\n  atempts: 4\nkeepalive: { probes: 0 }\n");
    let second = write("second.yaml", "mesh: { files: [mesh.yaml] }\nlisten: { socks5: localhost }\n");
    write("mesh.yaml", "workloads:\n  - name: w\n    namespace: n\n    workloadIps: [10.0.0.300]\n");
    let arguments = ["check", "--config", first.to_str().expect("text"), "--config", second.to_str().expect("text")];
    let done = adit(&arguments);
    assert_eq!(done.code, Some(78));
    let line = |wanted: &[&str]| {
        let found = done.err.split("\n").collect::<Vec<_>>();
        let text = done.err.as_str();
        assert!(
            found.iter().any(|line| wanted.iter().take(2).all(|word| line.contains(word)))
                && wanted.iter().all(|word| text.contains(word)),
            "{wanted:?} in:\n{text}"
        );
    };
    line(&["first.yaml:3", "connect.timeout", "found", "expected", "hint"]);
    line(&["first.yaml:4", "connect.atempts", "attempts"]);
    line(&["first.yaml:5", "keepalive.probes"]);
    line(&["second.yaml:2", "listen.socks5", "localhost"]);
    line(&["mesh.yaml:4", "workloads[0].workloadIps", "10.0.0.300"]);
    assert!(done.err.trim_end().ends_with("5 problems"), "{}", done.err);
    // `run` says the same, from the same loader, and starts nothing.
    let run = adit(&["run", arguments[1], arguments[2], arguments[3], arguments[4]]);
    assert_eq!(run.code, Some(78));
    assert!(run.err.contains("first.yaml:3") && run.err.contains("second.yaml:2"), "{}", run.err);
}
