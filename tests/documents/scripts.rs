//! The commands of a page, run as one script, in namespaces of their own.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::blocks::script;
use crate::kit::isolate::finish;
use crate::kit::isolated;
use crate::program::{need, wait};

const RUNNER: &str = "tests/documents.rs";

/// What a script said, in order, both streams; it must have gone well.
fn run(folder: &Path, code: &str) -> String {
    let bin = folder.join(".bin");
    fs::create_dir_all(&bin).expect("a writable folder");
    let adit = bin.join("adit");
    if !adit.exists() {
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_adit"), adit).expect("a writable folder");
    }
    finish(Command::new("ip").args(["link", "set", "lo", "up"]));
    let said = folder.join(".said");
    let log = fs::File::create(&said).expect("a writable folder");
    // Echoes what it does, so that a failure tells where. What runs beside it ends with it.
    let shell = format!(
        "set -eEuo pipefail\nPATH=$PWD/.bin:$PATH\ntrap 'kill $(jobs -p) 2>/dev/null || true' EXIT\nset -v\n{code}"
    );
    let file = folder.join(".script");
    fs::write(&file, shell).expect("a writable folder");
    let mut bash = Command::new("timeout");
    bash.args(["--kill-after=1", "60", "bash"]).arg(file).current_dir(folder);
    bash.env("HOME", folder).env_remove("XDG_STATE_HOME");
    bash.stdin(Stdio::null()).stdout(log.try_clone().expect("a second descriptor")).stderr(log);
    let status = bash.status().expect("bash");
    let said = fs::read_to_string(said).expect("what it said");
    assert!(status.success(), "{status}\n{said}\n{}", logs(folder));
    said
}

fn logs(folder: &Path) -> String {
    ["adit.log", "tunnel.log", "server.log"]
        .map(|name| fs::read_to_string(folder.join(name)).unwrap_or_default())
        .join("\n")
}

fn count(text: &str, words: &str) -> usize {
    text.matches(words).count()
}

#[test]
fn getting_started() {
    isolated(|| {
        need(&["bash", "curl", "python3", "ip"]);
        let folder = tempfile::tempdir().expect("a temporary folder");
        let said = run(folder.path(), &script("docs/getting-started.md", RUNNER));
        assert_eq!(
            count(&said, "\nhello from web-1\n"),
            4,
            "by name, by the new address, after a bad file, by a tunnel: {said}"
        );
        assert!(said.contains("ok: 1 settings file, 1 mesh file with 1 workload, 1 service and 0 policies"), "{said}");
        assert!(said.contains("close_reason=\"finished\"") && said.contains("dst.service=\"web.shop\""), "{said}");
        assert!(said.contains("\nready        yes\n"), "{said}");
        assert!(said.contains("verdict      allowed"), "{said}");
        assert!(said.contains("\nmesh    rejected ") && said.contains("\nmesh: "), "{said}");
        assert!(said.contains("warning: identity.source changes at a restart only"), "{said}");
        assert!(said.contains("identity     spiffe://cluster.local/ns/shop/sa/web\n"), "{said}");
        assert!(said.contains("verdict      refused: policy_denied"), "{said}");
        let log = fs::read_to_string(folder.path().join("tunnel.log")).expect("the log");
        let carried: Vec<&str> = log.lines().filter(|line| line.contains("close_reason=\"finished\"")).collect();
        assert_eq!(carried.len(), 2, "{log}");
        for line in carried {
            assert_eq!(count(line, "identity=\"spiffe://cluster.local/ns/shop/sa/web\""), 2, "{line}");
        }
        assert!(log.contains("close_reason=\"policy_denied\"") && log.contains("policy"), "{log}");
        for name in ["adit.log", "tunnel.log"] {
            let log = fs::read_to_string(folder.path().join(name)).expect("the log");
            assert!(log.contains("\tdrained\t") && !log.contains("panicked"), "{log}");
        }
    });
}

/// The scene that the page speaks of: an adit that runs on files in the current folder.
const SCENE: &str = "\
adit certs issue root --name mesh-a --out certs/a >/dev/null
adit certs issue leaf --ca certs/a --id spiffe://cluster.local/ns/shop/sa/web --out certs/first >/dev/null
cp certs/first.crt certs/tls.crt; cp certs/first.key certs/tls.key; cp certs/a.crt certs/roots.crt
adit certs inspect certs/tls.crt
adit --config adit.yaml 2>adit.log &
until adit healthcheck 2>/dev/null; do sleep 0.1; done
";

const SETTINGS: &str = "\
mesh: { files: [mesh.yaml] }
workload: { name: web-1, namespace: shop, serviceAccount: web }
identity: { source: files, files: { cert: certs/tls.crt, key: certs/tls.key, roots: [certs/roots.crt] } }
listen: { outbound: off, inbound: off, hbone: \"127.0.0.1:15008\", socks5: \"127.0.0.1:15080\" }
";

const MESH: &str = "\
workloads:
  - { name: web-1, namespace: shop, serviceAccount: web, workloadIps: [127.0.0.1], services: { shop/web.shop: { 80: 8080 } } }
services:
  - { name: web, namespace: shop, hostname: web.shop, vips: [/10.96.0.1], ports: { 80: 8080 } }
";

#[test]
fn operations() {
    isolated(|| {
        need(&["bash", "curl", "ip"]);
        let folder = tempfile::tempdir().expect("a temporary folder");
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("certs")).expect("a writable folder");
        fs::write(at("adit.yaml"), SETTINGS).expect("a writable folder");
        fs::write(at("mesh.yaml"), MESH).expect("a writable folder");
        let code = format!("{SCENE}{}wait\n", script("docs/operations.md", RUNNER));
        let said = run(folder.path(), &code);
        assert!(said.contains("\nready\n") && said.contains("\nlive\n"), "{said}");
        assert!(said.contains("adit_connections_current{scope=\"total\"} 0"), "{said}");
        assert_eq!(count(&said, "verdict      allowed"), 2, "from the files and live: {said}");
        assert!(said.contains("\n  \"filter\": \"info,mesh=debug,hbone=debug\"\n"), "{said}");
        assert!(said.contains("no connections") && said.contains("\ndraining\n"), "{said}");
        // The new certificate is in force: the one that is shown last is the one that was written last.
        let serial = |file: &str| {
            let facts = wait(
                Command::new(env!("CARGO_BIN_EXE_adit"))
                    .args(["certs", "inspect", "--json", file])
                    .current_dir(folder.path()),
            );
            let facts: serde_json::Value = serde_json::from_str(&facts.ok()).expect("JSON");
            facts
                .to_string()
                .split("\"serial\":\"")
                .nth(1)
                .and_then(|rest| rest.split('"').next())
                .expect("a serial")
                .to_owned()
        };
        let (first, next) = (serial("certs/first.crt"), serial("certs/tls.crt"));
        let shown = said.rsplit("adit certs\n").next().expect("the last one");
        assert!(shown.contains(&next) && !shown.contains(&first), "{first} {next}: {said}");
        assert!(
            fs::read_to_string(at("adit.log")).expect("the log").contains("\tdrained\t"),
            "{}",
            logs(folder.path())
        );
    });
}

/// README's capture, in a namespace that looks like a container.
#[test]
fn readme_captures_a_namespace() {
    isolated(|| {
        need(&["bash", "ip", "nft"]);
        let folder = tempfile::tempdir().expect("a temporary folder");
        let settings = folder.path().join("adit.yaml");
        fs::write(&settings, "preserveSource: off\nlisten: { hbone: off }\n").expect("a writable folder");
        let code = script("README.md", RUNNER).replace("/etc/adit/adit.yaml", &settings.display().to_string());
        let said = run(folder.path(), &format!("{code}nft list ruleset\nadit drain\nwait\n"));
        assert!(said.contains("captured") || said.contains("applied"), "{said}");
        let rules = said.rsplit("nft list ruleset\n").next().expect("what is left");
        assert!(!rules.contains("table"), "rules are left: {said}");
    });
}

/// What `docs/capture.md` says undoes the rules by hand undoes all that was applied.
#[test]
fn capture_is_undone_by_hand() {
    isolated(|| {
        need(&["bash", "ip", "nft"]);
        for kind in ["redirect", "tproxy"] {
            let folder = tempfile::tempdir().expect("a temporary folder");
            let by_hand = script("docs/capture.md", RUNNER);
            let left =
                "{ nft list ruleset; for f in -4 -6; do ip $f rule; ip $f route show table all; done; } >left 2>&1\n";
            let said = run(
                folder.path(),
                &format!("adit redirect apply --force --kind {kind}\nset +e\n{by_hand}set -e\n{left}"),
            );
            let left = fs::read_to_string(folder.path().join("left")).expect("what is left");
            assert!(said.contains("captured") && left.contains("from all lookup main"), "{said}\n{left}");
            for trace in ["table inet", "44311", "fwmark"] {
                assert!(!left.contains(trace), "{kind}: {trace} is left: {left}\n{said}");
            }
        }
    });
}
