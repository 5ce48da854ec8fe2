//! What README.md tells a reader to paste, pasted: the two adits with a tunnel between them.
//!
//! The block is taken from the file and run by bash as it stands, as root of namespaces of its own. What a test must change:
//! the build is the one under test; the current folder is a copy of what the commands read (`config`, `docs`), so that
//! `certs/dev` and others' work do not meet; `/run/netns` is the test's own, so that no name leaks; the shell stops at the first
//! command that fails, and waits for both adits' end.

#![allow(clippy::panic, reason = "a test fails by panicking, in its helpers too")]

#[path = "netns/kit.rs"]
#[allow(dead_code, unused_imports, unreachable_pub, reason = "shared by test binaries, none of which uses all of it")]
mod kit;
#[path = "support/program.rs"]
#[allow(dead_code, unreachable_pub, reason = "shared by test binaries, none of which uses all of it")]
mod program;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

use kit::isolate::finish;
use kit::isolated;
use program::need;

const README: &str = include_str!("../README.md");
const BUILD: &str = "cargo build --release\n";

/// The commands under that heading.
fn block(heading: &str) -> &'static str {
    let (_, section) =
        README.split_once(&format!("\n## {heading}\n")).unwrap_or_else(|| panic!("no heading {heading}"));
    let section = section.split("\n## ").next().unwrap_or_default();
    let (_, code) = section.split_once("```sh\n").unwrap_or_else(|| panic!("no commands under {heading}"));
    code.split_once("```").map(|(code, _)| code).expect("an end of the commands")
}

fn copy(from: &Path, to: &Path) {
    finish(Command::new("cp").arg("-r").arg(from).arg(to));
}

#[test]
fn two_adits_carry_a_tunnel() {
    isolated(|| {
        need(&["bash", "ip", "curl", "python3", "nft"]);
        let code = block("Two adits, one tunnel");
        let code = code.strip_prefix(BUILD).unwrap_or_else(|| panic!("the build comes first: {code}"));

        let tree = Path::new(env!("CARGO_MANIFEST_DIR"));
        let folder = tempfile::tempdir().expect("a temporary folder");
        let at = |name: &str| folder.path().join(name);
        copy(&tree.join("config"), &at("config"));
        copy(&tree.join("docs"), &at("docs"));
        for made in ["certs", "target/release"] {
            fs::create_dir_all(at(made)).expect("a writable folder");
        }
        symlink(env!("CARGO_BIN_EXE_adit"), at("target/release/adit")).expect("a writable folder");
        // Like /run itself, which may have no such folder yet.
        finish(Command::new("mount").args(["-t", "tmpfs", "tmpfs", "/run"]));

        let shell =
            format!("set -eEo pipefail\ntrap 'echo \"failed: $BASH_COMMAND\" >&2; kill $(jobs -p)' ERR\n{code}wait\n");
        let log = fs::File::create(at("log")).expect("a writable folder");
        let copy_of_log = log.try_clone().expect("a second descriptor");
        let mut bash = Command::new("bash");
        bash.args(["-c", &shell]).current_dir(folder.path()).stdin(Stdio::null()).stdout(log).stderr(copy_of_log);
        let status = bash.status().expect("bash");
        let said = fs::read_to_string(at("log")).expect("what they said");
        assert!(status.success(), "{status}: {said}");

        // What was asked for, by the service and by the address, and who is who.
        assert_eq!(said.matches("# Tunnels\n").count(), 1, "{said}");
        assert!(said.contains("Directory listing for /"), "{said}");
        assert!(said.contains("identity     spiffe://cluster.local/ns/demo/sa/web\n"), "{said}");
        assert!(said.contains("by the own certificate and peers"), "{said}");
        // "Both access logs name both identities." What came before the web server listened was refused, and tried again.
        let of = |direction: &str| {
            let mark = format!("direction=\"{direction}\"");
            let carried = |line: &&str| line.contains("close_reason=\"finished\"") && line.contains(&mark);
            said.lines().filter(carried).collect::<Vec<_>>()
        };
        for direction in ["outbound", "inbound"] {
            let lines = of(direction);
            assert_eq!(lines.len(), 2, "{direction}: {said}");
            for line in lines {
                for (side, account) in [("src", "client"), ("dst", "web")] {
                    let word = format!("{side}.identity=\"spiffe://cluster.local/ns/demo/sa/{account}\"");
                    assert!(line.contains(&word), "{word}: {line}");
                }
            }
        }
        // Nothing stays.
        assert!(!at("certs/dev").exists());
        let left = fs::read_dir("/run/netns").expect("our own folder").count();
        assert_eq!(left, 0, "namespaces are left");
    });
}
