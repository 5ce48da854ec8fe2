//! The command line: arguments, help, exit codes and streams.

use super::*;
use crate::config::problem::{Origin, Problem};

const DAEMON: Daemon = Daemon {
    run: |sources| if sources.flags.iter().any(|(_, value)| value == "fail") { Exit::Failed } else { Exit::Ok },
    supervise: || Exit::Other(7),
    launch: || Exit::Other(8),
    demo: |sources| if sources.flags.is_empty() { Exit::Ok } else { Exit::Failed },
    check_mesh: |settings| match settings.mesh.files.first() {
        None => Ok(MeshSummary::default()),
        Some(file) if file.ends_with("good.yaml") => Ok(MeshSummary {
            files: 1,
            workloads: 2,
            services: 1,
            policies: 1,
            warnings: vec![Problem::of(Origin::File(file.clone()), "leads nowhere")],
        }),
        Some(file) => Err(Problem::of(Origin::File(file.clone()), "is bad").into()),
    },
};

/// Exit code, stdout, stderr.
fn adit(args: &[&str], process: &Sources) -> (u8, String, String) {
    let (mut data, mut messages) = (Vec::new(), Vec::new());
    let args = std::iter::once("adit").chain(args.iter().copied()).map(OsString::from);
    let mut output = Output { data: &mut data, messages: &mut messages };
    let exit = run_in(args, DAEMON, process, &mut output);
    (exit.code(), String::from_utf8(data).unwrap(), String::from_utf8(messages).unwrap())
}

fn plain(args: &[&str]) -> (u8, String, String) {
    adit(args, &Sources::default())
}

fn commands() -> Vec<clap::Command> {
    let mut cli = Cli::command();
    cli.build();
    cli.get_subcommands().filter(|command| command.get_name() != "help").cloned().collect()
}

#[test]
fn the_definition_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn every_command_has_help_with_an_example() {
    let (code, help, messages) = plain(&["--help"]);
    assert_eq!((code, messages.as_str()), (0, ""));
    assert!(help.contains("Example") && help.contains("Usage: adit"), "{help}");
    for command in commands() {
        let name = command.get_name().to_owned();
        assert!(command.is_hide_set() || help.contains(&name), "{name} is not listed");
        for flag in ["--help", "-h"] {
            let (code, text, messages) = plain(&[&name, flag]);
            assert_eq!((code, messages.as_str()), (0, ""), "{name}");
            assert!(text.contains("Example") && text.contains(&format!("adit {name}")), "{text}");
        }
    }
}

#[test]
fn the_version_is_data() {
    for flag in ["--version", "-V"] {
        let want = format!("adit {}\n", env!("CARGO_PKG_VERSION"));
        assert_eq!(plain(&[flag]), (0, want, String::new()));
    }
}

#[test]
fn without_a_command_it_runs() {
    for (args, code) in [
        (&[][..], 0),
        (&["run"], 0),
        (&["--set", "network=fail"], 1),
        (&["run", "--set", "network=fail"], 1),
        (&["demo"], 0),
        (&["demo", "--set", "network=x"], 1),
    ] {
        assert_eq!(plain(args).0, code, "{args:?}");
    }
}

#[test]
fn wrong_arguments_are_one_line_a_hint_and_64() {
    for args in [
        &["nonsense"][..],
        &["--nonsense"],
        &["run", "--confg", "x"],
        &["run", "--config"],
        &["run", "--set", "x"],
        &["run", "--set", "=x"],
        &["run", "extra"],
        &["completions"],
        &["completions", "tcsh"],
        &["check", "--json"],
        &["--config", "x", "check"],
    ] {
        let (code, data, messages) = plain(args);
        assert_eq!((code, data.as_str()), (64, ""), "{args:?}");
        let lines: Vec<&str> = messages.lines().collect();
        assert!(lines.len() == 2 && lines[0].starts_with("error: ") && lines[1].starts_with("  hint: "), "{messages}");
    }
    let (_, _, messages) = plain(&["run", "--confg", "x"]);
    assert_eq!(messages, "error: unexpected argument '--confg' found\n  hint: a similar argument exists: '--config'\n");
}

#[test]
fn completions_exist_for_three_shells() {
    for shell in ["bash", "zsh", "fish"] {
        let (code, script, messages) = plain(&["completions", shell]);
        assert_eq!((code, messages.as_str()), (0, ""));
        for command in commands() {
            assert!(script.contains(command.get_name()), "{shell}: {}", command.get_name());
        }
    }
}

#[test]
fn bad_settings_are_78_with_every_problem_on_stderr() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a.yaml"), "connect:\n  timeout: 5\nmesh: { files: bad.yaml }\n").unwrap();
    let mut process = Sources { working_dir: folder.path().to_owned(), ..Sources::default() };
    process.environment.push(("ADIT__EGRESS".into(), "some".into()));
    let settings = "a.yaml:2:12: connect.timeout: found 5, expected a duration such as 250ms or 5s, more than zero\n  \
                    hint: a duration needs a unit: write 5s\n\
                    environment variable ADIT__EGRESS: egress: found \"some\", expected allowAny or registryOnly\n";
    let mesh = format!("{}: is bad\n", folder.path().join("bad.yaml").display());
    let want = format!("{settings}{mesh}error: 3 problems\n");
    assert_eq!(adit(&["check", "--config", "a.yaml"], &process), (78, String::new(), want));
}

#[test]
fn check_says_what_it_checked() {
    let ok = |text: &str| (0, text.to_owned(), String::new());
    assert_eq!(
        plain(&["check"]),
        ok("ok: 0 settings files, 0 mesh files with 0 workloads, 0 services and 0 policies\n")
    );
    let folder = tempfile::tempdir().unwrap();
    for name in ["a.yaml", "b.yaml"] {
        std::fs::write(folder.path().join(name), "mesh: { files: [good.yaml] }\n").unwrap();
    }
    let process = Sources { working_dir: folder.path().to_owned(), ..Sources::default() };
    let warning = format!("warning: {}: leads nowhere\n", folder.path().join("good.yaml").display());
    assert_eq!(
        adit(&["check", "--config", "a.yaml", "--config", "b.yaml"], &process),
        (0, "ok: 2 settings files, 1 mesh file with 2 workloads, 1 service and 1 policy\n".to_owned(), warning)
    );
    let (code, data, messages) = adit(&["check", "--set", "mesh.files=bad.yaml"], &process);
    assert_eq!((code, data.as_str()), (78, ""));
    assert!(messages.ends_with("bad.yaml: is bad\nerror: 1 problem\n"), "{messages}");
}

#[test]
fn check_reads_the_files_of_the_identity() {
    let folder = tempfile::tempdir().unwrap();
    let process = Sources { working_dir: folder.path().to_owned(), ..Sources::default() };
    let at = |name: &str| folder.path().join(name).display().to_string();
    let (a, web) = (at("a"), at("web"));
    assert_eq!(plain(&["certs", "issue", "root", "--out", &a]).0, 0);
    let id = "spiffe://cluster.local/ns/default/sa/default";
    assert_eq!(plain(&["certs", "issue", "leaf", "--ca", &a, "--id", id, "--out", &web]).0, 0);
    let files = "workload: { name: web }\nidentity: { source: files, files: { cert: web.crt, key: web.key, roots: [a.crt] } }\n";
    std::fs::write(folder.path().join("adit.yaml"), files).unwrap();
    let check = || adit(&["check", "--config", "adit.yaml"], &process);
    let (code, data, messages) = check();
    let identity = format!(", identity {id} until ");
    assert!(code == 0 && data.contains(&identity) && messages.is_empty(), "{data}{messages}");
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    std::fs::set_permissions(at("web.key"), open).unwrap();
    let (code, data, messages) = check();
    assert!(code == 0 && data.starts_with("ok: ") && messages.starts_with("warning: others can read"), "{messages}");
    std::fs::write(at("web.crt"), "").unwrap();
    std::fs::remove_file(at("a.crt")).unwrap();
    let (code, data, messages) = check();
    assert_eq!((code, data.as_str()), (78, ""), "{messages}");
    for words in ["web.crt: identity.files.cert: there is no certificate", "a.crt: identity.files.roots: it cannot be"]
    {
        assert!(messages.contains(words), "{messages}");
    }
    assert!(messages.ends_with("error: 2 problems\n"), "{messages}");
}

#[test]
fn a_reader_that_has_gone_is_no_error() {
    struct Broken(std::io::ErrorKind);
    impl std::io::Write for Broken {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(self.0.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    for (kind, want) in [(std::io::ErrorKind::BrokenPipe, Exit::Ok), (std::io::ErrorKind::StorageFull, Exit::Failed)] {
        let mut messages = Vec::new();
        let mut output = Output { data: &mut Broken(kind), messages: &mut messages };
        assert_eq!(output.data("x"), want);
        assert_eq!(messages.is_empty(), want == Exit::Ok);
    }
}
