//! The text of the rules, to the letter; what refuses to be applied, and why. What the kernel makes of the rules is in
//! `tests/netns/redirect.rs`.

use std::io;
use std::time::Duration;

use super::*;

fn filtered(kind: Kind) -> Options {
    Options {
        kind,
        mark: Some("0x10539".parse().expect("mark")),
        uids: vec![1337],
        outbound: Filter {
            include_ports: None,
            exclude_ports: "25,8000-8100,8050-8200".parse().expect("ports"),
            exclude_cidrs: ["10.1.0.0/16", "10.1.2.0/24", "fd00:1::/32", "192.0.2.7/32"]
                .map(|net| net.parse().expect("net"))
                .to_vec(),
        },
        inbound: Filter {
            include_ports: Some("80,443".parse().expect("ports")),
            exclude_ports: Ports::default(),
            exclude_cidrs: vec!["169.254.7.127/32".parse().expect("net")],
        },
        rollback_after: Some(Duration::from_secs(60)),
        ..Options::default()
    }
}

fn at_sockets(preserve_source: bool) -> Options {
    Options { kind: Kind::Connect, preserve_source, ..Options::default() }
}

fn outbound_only() -> Options {
    let inbound = Filter { include_ports: Some(Ports::default()), ..Filter::default() };
    Options { inbound, ..Options::default() }
}

#[test]
fn the_rules_are_these_to_the_letter() {
    let tproxy = Options { kind: Kind::Tproxy, ..Options::default() };
    let by_uid = Options { mark: None, uids: vec![1000], preserve_source: false, ..Options::default() };
    for (name, options, want) in [
        ("redirect", Options::default(), include_str!("golden/redirect.sh")),
        ("tproxy", tproxy, include_str!("golden/tproxy.sh")),
        ("filtered_redirect", filtered(Kind::Redirect), include_str!("golden/filtered_redirect.sh")),
        ("filtered_tproxy", filtered(Kind::Tproxy), include_str!("golden/filtered_tproxy.sh")),
        // That the application sees its clients takes no rule.
        ("connect", at_sockets(true), include_str!("golden/connect.sh")),
        ("connect", at_sockets(false), include_str!("golden/connect.sh")),
        ("by_uid", by_uid, include_str!("golden/by_uid.sh")),
        ("outbound_only", outbound_only(), include_str!("golden/outbound_only.sh")),
    ] {
        let got = rules(&options).to_string();
        // To see the difference, and to take the new text over once it is right.
        let seen = std::env::temp_dir().join(format!("adit-redirect-{name}.sh"));
        if got != want {
            std::fs::write(&seen, &got).expect("a temporary folder");
        }
        assert!(got == want, "golden/{name}.sh differs from {}", seen.display());
    }
}

#[test]
fn a_shared_namespace_needs_a_decision() {
    let listed = filtered(Kind::Redirect);
    let unknown = || Verdict::Unknown("cannot read it".to_owned());
    assert!(namespace_allows(&Verdict::Private, false, &Options::default()).is_ok());
    for verdict in [Verdict::Initial, unknown()] {
        let refused = namespace_allows(&verdict, false, &listed).expect_err("no --host");
        assert!(refused.hint().is_some_and(|hint| hint.contains("--host")), "{refused}");
        let refused = namespace_allows(&verdict, true, &Options::default()).expect_err("no ports");
        assert!(refused.hint().is_some_and(|hint| hint.contains("--include-inbound-ports")), "{refused}");
        assert!(namespace_allows(&verdict, true, &listed).is_ok());
        assert!(namespace_allows(&verdict, true, &outbound_only()).is_ok());
    }
    let told = namespace_allows(&unknown(), false, &listed).expect_err("no --host").to_string();
    assert!(told.contains("cannot read it"), "{told}");
}

#[test]
fn adit_must_be_exempt_from_its_own_capture() {
    let nobody = Options { mark: None, uids: Vec::new(), ..Options::default() };
    let nothing_asked = Safeguards { host: false, readiness: None };
    assert!(matches!(apply(&nobody, &nothing_asked), Err(RedirectError::NothingExempt)));
}

#[test]
fn errors_name_what_is_missing() {
    for (error, message, hint) in [
        (RedirectError::Nft(NftError::Missing), "`nft`", "nftables"),
        (RedirectError::MissingCapability, "CAP_NET_ADMIN", "root"),
        (RedirectError::InboundPortsNotListed, "--host", "--include-inbound-ports"),
    ] {
        assert!(error.to_string().contains(message), "{error}");
        assert!(error.hint().is_some_and(|text| text.contains(hint)), "{error}");
    }
    let refused = NftError::Refused { what: "the rules", said: "Operation not supported".to_owned() };
    assert_eq!(refused.to_string(), "nft refused the rules: Operation not supported");
    let run = RedirectError::Nft(NftError::Run(io::Error::from(io::ErrorKind::PermissionDenied)));
    assert!(run.hint().is_none());
}
