//! The TLS configurations: whom they accept, and that OpenSSL agrees.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use rustls::{ClientConnection, Connection, ServerConnection};

use super::*;
use crate::identity::authority::{Authority, Issued};
use crate::identity::fixture::{DAY, bundle, credentials, domains, id, leaf, lists, root, serial};
use crate::identity::verify::PeerError;

fn generation(authority: &Authority, roots: &[&Authority], name: &str, crls: &[&str], clock: &Clock) -> TlsGeneration {
    let id = id(name);
    let made = credentials(&leaf(authority, &id), &[], bundle(roots, lists(crls)), &id).unwrap();
    TlsGeneration::new(1, Arc::new(made), domains(&["cluster.local"]), clock).unwrap()
}

/// Hands bytes to and fro until nobody has any, or one side refuses.
fn shake(client: &mut ClientConnection, server: &mut ServerConnection) -> Result<(), (&'static str, rustls::Error)> {
    for _ in 0..10 {
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).unwrap();
        }
        let mut reader = bytes.as_slice();
        while !reader.is_empty() {
            server.read_tls(&mut reader).unwrap();
            server.process_new_packets().map_err(|error| ("server", error))?;
        }
        let mut bytes = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut bytes).unwrap();
        }
        let mut reader = bytes.as_slice();
        while !reader.is_empty() {
            client.read_tls(&mut reader).unwrap();
            client.process_new_packets().map_err(|error| ("client", error))?;
        }
    }
    assert!(!client.is_handshaking() && !server.is_handshaking());
    Ok(())
}

fn meet(
    from: &TlsGeneration,
    to: &TlsGeneration,
    wanted: &[&str],
) -> Result<(ClientConnection, ServerConnection), (&'static str, rustls::Error)> {
    let wanted = wanted.iter().map(|name| id(name)).collect();
    let mut client = ClientConnection::new(from.client(wanted), no_name()).unwrap();
    let mut server = ServerConnection::new(Arc::clone(to.server())).unwrap();
    shake(&mut client, &mut server).map(|()| (client, server))
}

fn refusal(
    result: Result<(ClientConnection, ServerConnection), (&'static str, rustls::Error)>,
) -> (&'static str, &'static str) {
    let (side, error) = result.map(|_| ()).unwrap_err();
    (side, PeerError::of(&error).map_or("other", |error| error.reason()))
}

#[test]
fn both_sides_know_each_other_and_nothing_is_resumed() {
    let a = root("a");
    let clock = system_clock();
    let (web, db) = (generation(&a, &[&a], "web", &[], &clock), generation(&a, &[&a], "db", &[], &clock));
    for _ in 0..2 {
        let (mut client, mut server) = meet(&web, &db, &["other", "db"]).unwrap();
        let seen = db.peer(server.peer_certificates(), Usage::Client).unwrap();
        assert_eq!(
            (&seen.id, &seen.root, &seen.serial),
            (&id("web"), web.credentials.root(), &web.credentials.leaf().serial)
        );
        assert_eq!(web.peer(client.peer_certificates(), Usage::Server).unwrap().id, id("db"));
        assert!(Arc::ptr_eq(&seen, &db.peer(server.peer_certificates(), Usage::Client).unwrap()), "read once");
        // Nobody remembers it there, as when thousands of others came between the verification and this question.
        let forgetful = generation(&a, &[&a], "db", &[], &clock);
        assert_eq!(*forgetful.peer(server.peer_certificates(), Usage::Client).unwrap(), *seen);
        let b = root("b");
        let stranger = generation(&b, &[&b], "db", &[], &clock);
        assert_eq!(stranger.peer(server.peer_certificates(), Usage::Client), None);
        for connection in [&Connection::from(client), &Connection::from(server)] {
            assert_eq!(connection.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
            assert_eq!(connection.alpn_protocol(), Some(ALPN));
            assert_eq!(connection.handshake_kind(), Some(rustls::HandshakeKind::Full));
            let group = connection.negotiated_key_exchange_group().unwrap().name();
            assert_eq!(group, rustls::NamedGroup::X25519MLKEM768);
        }
        (client, server) = meet(&web, &db, &["db"]).unwrap();
        server.writer().write_all(b"x").unwrap();
        let mut bytes = Vec::new();
        server.write_tls(&mut bytes).unwrap();
        client.read_tls(&mut bytes.as_slice()).unwrap();
        let state = client.process_new_packets().unwrap();
        assert_eq!(state.plaintext_bytes_to_read(), 1);
    }
}

#[test]
fn whom_to_refuse() {
    let (a, b) = (root("a"), root("b"));
    let clock = system_clock();
    let web = generation(&a, &[&a], "web", &[], &clock);
    let db = generation(&a, &[&a], "db", &[], &clock);
    assert_eq!(refusal(meet(&web, &db, &["web"])), ("client", "not_wanted"));
    assert_eq!(refusal(meet(&web, &db, &[])), ("client", "not_wanted"));
    let stranger = generation(&b, &[&a, &b], "web", &[], &clock);
    assert_eq!(refusal(meet(&stranger, &db, &["db"])), ("server", "unknown_issuer"));
    assert_eq!(refusal(meet(&web, &stranger, &["web"])), ("client", "unknown_issuer"));
    let foreign = "spiffe://other/ns/default/sa/web".parse().unwrap();
    let made = credentials(&leaf(&a, &foreign), &[], bundle(&[&a], Arc::default()), &foreign).unwrap();
    let foreign = TlsGeneration::new(1, Arc::new(made), domains(&["other"]), &clock).unwrap();
    let (_, error) = meet(&foreign, &db, &["db"]).map(|_| ()).unwrap_err();
    let said = PeerError::of(&error).unwrap().to_string();
    assert_eq!(said, "spiffe://other/ns/default/sa/web is of no accepted trust domain; accepted: cluster.local");
    let list = a.revoke(&[serial(&leaf_of(&web))], SystemTime::now(), DAY).unwrap();
    let strict = generation(&a, &[&a], "db", &[&list], &clock);
    assert_eq!(refusal(meet(&web, &strict, &["db"])), ("server", "revoked"));
    assert_eq!(refusal(meet(&strict, &web, &["web"])), ("client", "revoked"));
    let later: Clock = Arc::new(|| SystemTime::now() + DAY * 2);
    let late = generation(&a, &[&a], "db", &[], &later);
    assert_eq!(refusal(meet(&web, &late, &["db"])), ("server", "expired"));
    assert!(!late.is_current(later()));
    let earlier: Clock = Arc::new(|| SystemTime::now() - DAY * 2);
    let early = generation(&a, &[&a], "db", &[], &earlier);
    assert_eq!(refusal(meet(&web, &early, &["db"])), ("server", "not_yet_valid"));
}

/// Whose certificate, which of the chain, and from when until when: without them nobody knows which clock to look at.
#[test]
fn dates_that_do_not_hold_are_named_with_their_certificate() {
    let a = root("a");
    let hour = Duration::from_secs(3600);
    let (middle, _) = a.intermediate("middle", SystemTime::now(), hour).unwrap();
    let web = id("web");
    let made = credentials(&leaf(&middle, &web), &[&middle], bundle(&[&a], Arc::default()), &web).unwrap();
    let [leaf, above] = made.chain() else { panic!("two certificates") };
    let (leaf, above) = (leaf.validity.words(), above.validity.words());
    let web = TlsGeneration::new(1, Arc::new(made), domains(&["cluster.local"]), &system_clock()).unwrap();
    for (ahead, which, words) in [(hour * 2, "intermediate", above), (DAY * 2, "leaf", leaf)] {
        let clock: Clock = Arc::new(move || SystemTime::now() + ahead);
        let late = generation(&a, &[&a], "db", &[], &clock);
        let (side, error) = meet(&web, &late, &["db"]).map(|_| ()).unwrap_err();
        let said = PeerError::of(&error).unwrap().to_string();
        let want =
            format!("the {which} certificate of spiffe://cluster.local/ns/default/sa/web is {words}, and now it is ");
        assert!(side == "server" && said.starts_with(&want), "{said}");
        let again = PeerError::of(&error).unwrap().to_string();
        assert!(again.starts_with("the presented certificate of an unknown identity"), "kept once only: {again}");
    }
}

/// Nothing of what was built remembers that it had expired once.
#[test]
fn the_clock_may_go_past_expiry_and_back() {
    let a = root("a");
    let ahead = Arc::new(Mutex::new(Duration::ZERO));
    let clock: Clock = {
        let ahead = Arc::clone(&ahead);
        Arc::new(move || SystemTime::now() + *ahead.lock().unwrap())
    };
    let (web, db) = (generation(&a, &[&a], "web", &[], &clock), generation(&a, &[&a], "db", &[], &clock));
    for late in [false, true, false, true, false] {
        *ahead.lock().unwrap() = if late { DAY * 2 } else { Duration::ZERO };
        assert_eq!((web.is_current(clock()), db.is_current(clock())), (!late, !late));
        if late {
            assert_eq!(refusal(meet(&web, &db, &["db"])), ("client", "expired"));
        } else {
            meet(&web, &db, &["db"]).unwrap();
        }
    }
}

/// What becomes of live connections: `presented` was good once.
#[test]
fn what_lives_is_judged_again() {
    let (a, b) = (root("a"), root("b"));
    let (now, clock) = (SystemTime::now(), system_clock());
    let (middle, _) = a.intermediate("middle", now, DAY * 30).unwrap();
    let (from_a, from_b, deep) = (leaf(&a, &id("x")), leaf(&b, &id("x")), leaf(&middle, &id("x")));
    let foreign = leaf(&a, &"spiffe://other/ns/default/sa/x".parse().unwrap());
    let chain = |issued: &Issued| vec![issued.certificate.clone()];
    let deep = vec![deep.certificate.clone(), middle.certificate().clone()];
    let (until, over) = (now + DAY, now - DAY);
    let make = |crls: &[&str], until| {
        let made = generation(&a, &[&a], "db", crls, &clock);
        let gone = bundle(&[&b], Arc::default()).known().next().unwrap();
        made.with_retired([RetiredRoot { root: gone.root, anchor: gone.anchor, until }].into())
    };
    let plain = make(&[], until);
    let (by_a, by_b) = (
        a.revoke(&[serial(&from_a.certificate), serial(middle.certificate())], now, DAY).unwrap(),
        b.revoke(&[serial(&from_b.certificate)], now, DAY).unwrap(),
    );
    let strict = make(&[&by_a, &by_b], until);
    let good = || Verdict::Good { root: Arc::clone(plain.credentials.root()) };
    for usage in [Usage::Client, Usage::Server] {
        for (chain, of_plain, of_strict) in [
            (chain(&from_a), good(), Verdict::Revoked),
            (deep.clone(), good(), Verdict::Revoked),
            (chain(&from_b), Verdict::RootRemoved { until }, Verdict::Revoked),
            (
                chain(&leaf(&root("c"), &id("x"))),
                Verdict::RootRemoved { until: now },
                Verdict::RootRemoved { until: now },
            ),
            (Vec::new(), Verdict::Refused(PeerError::Malformed), Verdict::Refused(PeerError::Malformed)),
        ] {
            assert_eq!((plain.judge(&chain, usage, now), strict.judge(&chain, usage, now)), (of_plain, of_strict));
        }
    }
    assert_eq!(plain.judge(&chain(&foreign), Usage::Client, now), Verdict::TrustDomainRemoved);
    assert_eq!(plain.judge(&chain(&foreign), Usage::Server, now), good(), "whom we connect to is the target's to say");
    // Leaf, intermediate and root, one after the other: no expiry cuts, and no expiry saves from a revocation.
    for days in [2, 40, 400] {
        let later = now + DAY * days;
        for chain in [chain(&from_a), deep.clone()] {
            assert_eq!(plain.judge(&chain, Usage::Client, later), good());
            assert_eq!(strict.judge(&chain, Usage::Client, later), Verdict::Revoked);
        }
        assert_eq!(plain.judge(&chain(&from_b), Usage::Client, later), Verdict::RootRemoved { until });
    }
    let known = &plain.retired[0].root;
    assert_eq!((plain.grace_until(known), plain.grace_until(plain.credentials.root())), (Some(until), None));
    assert_eq!(make(&[], over).judge(&chain(&from_b), Usage::Client, now), Verdict::RootRemoved { until: over });
    assert!(plain.same_trust(&make(&[], until)), "another leaf is no other trust");
    assert!(!plain.same_trust(&strict) && !plain.same_trust(&make(&[], over)));
    let both = generation(&a, &[&a, &b], "db", &[], &clock).with_retired(Arc::clone(&plain.retired));
    assert!(!plain.same_trust(&both));
    assert!(matches!(both.judge(&chain(&from_b), Usage::Client, now), Verdict::Good { .. }));
}

fn leaf_of(generation: &TlsGeneration) -> CertificateDer<'static> {
    generation.credentials.certified_key().cert[0].clone()
}

/// a -> a+b -> b: at no step do two that are at most one step apart refuse each other.
#[test]
fn a_root_rotation_refuses_nobody() {
    let (a, b) = (root("a"), root("b"));
    let clock = system_clock();
    let at = |signer, roots: &[&Authority]| generation(signer, roots, "web", &[], &clock);
    let steps = [at(&a, &[&a]), at(&a, &[&a, &b]), at(&b, &[&a, &b]), at(&b, &[&b])];
    for pair in steps.windows(2) {
        for (from, to) in [(0, 1), (1, 0), (0, 0), (1, 1)] {
            meet(&pair[from], &pair[to], &["web"]).unwrap();
        }
    }
    assert_eq!(refusal(meet(&steps[0], &steps[3], &["web"])).1, "unknown_issuer");
}

/// As a log would say it.
fn words(error: &std::io::Error) -> String {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    inner.and_then(PeerError::of).map_or_else(|| error.to_string(), |error| error.to_string())
}

/// One TLS handshake with `openssl s_client`, then "hello" from us. What it printed, and what we thought of it.
fn s_client(server: &TlsGeneration, with: Option<(&Issued, &str)>, args: &[&str]) -> (String, Result<(), String>) {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let loopback = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    socket.bind(&loopback.into()).unwrap();
    socket.listen(1).unwrap();
    let listener: TcpListener = socket.into();
    let address = listener.local_addr().unwrap().to_string();
    let mut command = Command::new("openssl");
    command.args(["s_client", "-connect", &address, "-ign_eof"]).args(args);
    if let Some((issued, chain)) = with {
        std::fs::write(path("crt"), format!("{}{chain}", issued.certificate_pem)).unwrap();
        std::fs::write(path("key"), &issued.key_pem).unwrap();
        command.args(["-cert", &path("crt"), "-key", &path("key")]);
    }
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut connection = ServerConnection::new(Arc::clone(server.server())).unwrap();
    let mut shaken = Ok(());
    while shaken.is_ok() && connection.is_handshaking() {
        shaken = connection.complete_io(&mut stream).map(|_| ()).map_err(|error| words(&error));
    }
    if shaken.is_ok() {
        connection.writer().write_all(b"hello").unwrap();
        connection.send_close_notify();
    }
    while connection.wants_write() {
        if connection.write_tls(&mut stream).is_err() {
            break;
        }
    }
    let _gone = stream.shutdown(std::net::Shutdown::Write);
    let _rest = stream.read_to_end(&mut Vec::new());
    drop(stream);
    let output = child.wait_with_output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (String::from_utf8_lossy(&text).into_owned(), shaken)
}

#[test]
fn openssl_agrees() {
    let (a, b) = (root("a"), root("b"));
    let now = SystemTime::now();
    let web = leaf(&a, &id("web"));
    let revoked = leaf(&a, &id("web"));
    let list = a.revoke(&[serial(&revoked.certificate)], now, DAY).unwrap();
    let server = generation(&a, &[&a], "db", &[&list], &system_clock());
    for args in [&["-alpn", "h2"][..], &["-alpn", "http/1.1,h2"], &[], &["-groups", "P-256"], &["-groups", "X25519"]] {
        let (text, shaken) = s_client(&server, Some((&web, "")), args);
        assert_eq!(shaken, Ok(()), "{args:?}: {text}");
        assert!(text.contains("hello") && text.contains("TLSv1.3"), "{args:?}: {text}");
        assert!(!text.contains("TLS session ticket:"), "{text}");
        let alpn = if args.contains(&"-alpn") { "ALPN protocol: h2" } else { "No ALPN negotiated" };
        assert!(text.contains(alpn), "{args:?}: {text}");
    }
    let other = |name: &str| leaf(&a, &name.parse().unwrap());
    let foreign = other("spiffe://other/ns/default/sa/web");
    let expired = a.issue(&id("web"), now - DAY * 3, DAY).unwrap();
    let unknown = leaf(&b, &id("web"));
    let nobody = a.issue_with(Vec::new(), now, DAY).unwrap();
    for (with, args, want, alert) in [
        (Some(&web), &["-tls1_2"][..], "", "protocol version"),
        (Some(&web), &["-alpn", "http/1.1"], "", "no application protocol"),
        (None, &[], "", "certificate required"),
        (Some(&foreign), &[], "accepted trust domain", ""),
        (Some(&expired), &[], "", "certificate expired"),
        (Some(&revoked), &[], "", "certificate revoked"),
        (Some(&unknown), &[], "", "unknown ca"),
        (Some(&nobody), &[], "exactly one", ""),
    ] {
        let (text, shaken) = s_client(&server, with.map(|issued| (issued, "")), args);
        let error = shaken.expect_err(alert);
        assert!(error.contains(want), "{want}: {error}");
        assert!(!text.contains("hello") && text.contains(alert), "{alert}: {text}");
    }
}

/// An authority that makes itself a new root most often keeps its name: then the old chain is not of an unknown issuer,
/// but its signature is bad.
#[test]
fn a_root_that_was_replaced_by_one_of_the_same_name_has_its_grace() {
    let (old, new) = (root("authority"), root("authority"));
    let (now, clock) = (SystemTime::now(), system_clock());
    let (until, peer) = (now + DAY, leaf(&old, &id("x")));
    let judge = |crls: &[&str], retired: bool| {
        let made = generation(&new, &[&new], "db", crls, &clock);
        let gone = bundle(&[&old], Arc::default()).known().next().unwrap();
        let gone = RetiredRoot { root: gone.root, anchor: gone.anchor, until };
        let made = if retired { made.with_retired([gone].into()) } else { made };
        made.judge(std::slice::from_ref(&peer.certificate), Usage::Client, now)
    };
    assert_eq!(judge(&[], true), Verdict::RootRemoved { until });
    assert_eq!(judge(&[], false), Verdict::Refused(PeerError::BadSignature), "without grace it is cut");
    let list = old.revoke(&[serial(&peer.certificate)], now, DAY).unwrap();
    assert_eq!(judge(&[&list], true), Verdict::Revoked);
}

/// Whoever adds the new list below the old one has revoked all the same.
#[test]
fn of_several_lists_of_an_issuer_the_newest_counts() {
    let a = root("a");
    let (now, clock, peer) = (SystemTime::now(), system_clock(), leaf(&a, &id("x")));
    let old = a.revoke(&[], now - DAY, DAY * 2).unwrap();
    let new = a.revoke(&[serial(&peer.certificate)], now, DAY).unwrap();
    let at_once = a.revoke(&[], now, DAY).unwrap();
    for lists in [[&*old, &new, &at_once], [&new, &at_once, &old], [&at_once, &old, &new]] {
        let made = generation(&a, &[&a], "db", &lists, &clock);
        assert_eq!(made.judge(std::slice::from_ref(&peer.certificate), Usage::Client, now), Verdict::Revoked);
        assert_eq!(refusal(meet(&generation_of(&a, &peer, "x"), &made, &["db"])), ("server", "revoked"));
    }
}

fn generation_of(authority: &Authority, issued: &Issued, name: &str) -> TlsGeneration {
    let id = id(name);
    let made = credentials(issued, &[], bundle(&[authority], Arc::default()), &id).unwrap();
    TlsGeneration::new(1, Arc::new(made), domains(&["cluster.local"]), &system_clock()).unwrap()
}

/// Otherwise every handshake would copy its configuration.
#[test]
fn keys_can_be_had_of_every_configuration() {
    let a = root("a");
    let tls = generation(&a, &[&a], "web", &[], &system_clock());
    assert!(tls.server().enable_secret_extraction && tls.client([id("db")].into()).enable_secret_extraction);
}
