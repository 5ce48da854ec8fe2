//! Handshakes that fail: the reason on our side, and what the other side hears.

use super::*;
use crate::identity::verify::PeerError;

/// What the foreign side knows after a refusal: the alert, if one came.
fn alert_in(error: &io::Error) -> Option<AlertDescription> {
    match error.get_ref()?.downcast_ref()? {
        rustls::Error::AlertReceived(alert) => Some(*alert),
        _ => None,
    }
}

/// We accept, a foreign stack connects. Our error, and the alert that it got.
async fn accepting(tls: &Arc<TlsGeneration>, config: Arc<ClientConfig>) -> (HandshakeError, Option<AlertDescription>) {
    let (a, b) = sockets().await;
    let theirs = async {
        match TlsConnector::from(config).connect(no_name(), a).await {
            Ok(mut stream) => alert_in(&stream.read_u8().await.unwrap_err()),
            Err(error) => alert_in(&error),
        }
    };
    let (ours, alert) = tokio::join!(accept(b, tls), Box::pin(theirs));
    (ours.map(drop).unwrap_err(), alert)
}

/// We connect, a foreign stack accepts.
async fn connecting(
    tls: &Arc<TlsGeneration>,
    config: Arc<ClientConfig>,
    to: &TlsGeneration,
) -> (HandshakeError, Option<AlertDescription>) {
    let (a, b) = sockets().await;
    let acceptor = TlsAcceptor::from(Arc::clone(to.server()));
    let (ours, theirs) = tokio::join!(connect(a, tls, config), acceptor.accept(b));
    (ours.map(drop).unwrap_err(), theirs.map(drop).err().as_ref().and_then(alert_in))
}

fn without_certificate(config: &ClientConfig) -> Arc<ClientConfig> {
    let mut config = config.clone();
    config.client_auth_cert_resolver = Arc::new(Nobody);
    Arc::new(config)
}

#[derive(Debug)]
struct Nobody;

impl rustls::client::ResolvesClientCert for Nobody {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<rustls::sign::CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

#[test]
fn clients_are_refused_for_the_right_reason_and_told() {
    in_time(async {
        let root = root();
        let (web, db) = (generation(&root, "web"), generation(&root, "db"));
        let wanted = wants(&web, "db");
        let stranger = generation(&named_root("b"), "web");
        let foreign_id = "spiffe://other/ns/default/sa/web".parse().unwrap();
        let foreign = generation_of(&root, &foreign_id, &[], &system_clock());
        let blind = |from: &TlsGeneration| {
            let mut config = ClientConfig::clone(&wanted);
            config.client_auth_cert_resolver = from.client([].into()).client_auth_cert_resolver.clone();
            Arc::new(config)
        };
        let later: Clock = Arc::new(|| SystemTime::now() + DAY * 2);
        let late = generation_of(&root, &id("db"), &[], &later);
        let serial = web.credentials.leaf().serial_bytes();
        let list = root.revoke(&[serial], SystemTime::now(), DAY).unwrap();
        let strict = generation_of(&root, &id("db"), &[&list], &system_clock());
        let cases = [
            (&db, without_certificate(&wanted), "no_certificate", AlertDescription::CertificateRequired),
            (&db, blind(&stranger), "unknown_issuer", AlertDescription::UnknownCA),
            (&db, blind(&foreign), "trust_domain", AlertDescription::CertificateUnknown),
            (&late, blind(&web), "expired", AlertDescription::CertificateExpired),
            (&strict, blind(&web), "revoked", AlertDescription::CertificateRevoked),
        ];
        for (tls, config, reason, told) in cases {
            let (error, alert) = accepting(tls, config).await;
            assert_eq!((error.phase, error.reason(), alert), (Phase::Certificate, reason, Some(told)), "{error}");
        }
    });
}

#[test]
fn servers_are_refused_for_the_right_reason_and_told() {
    in_time(async {
        let root = root();
        let (web, db) = (generation(&root, "web"), generation(&root, "db"));
        let stranger = generation(&named_root("b"), "db");
        let later: Clock = Arc::new(|| SystemTime::now() + DAY * 2);
        let late = generation_of(&root, &id("web"), &[], &later);
        let list = root.revoke(&[db.credentials.leaf().serial_bytes()], SystemTime::now(), DAY).unwrap();
        let strict = generation_of(&root, &id("web"), &[&list], &system_clock());
        let cases = [
            (&web, "other", &db, "not_wanted", AlertDescription::CertificateUnknown),
            (&web, "db", &stranger, "unknown_issuer", AlertDescription::UnknownCA),
            (&late, "db", &db, "expired", AlertDescription::CertificateExpired),
            (&strict, "db", &db, "revoked", AlertDescription::CertificateRevoked),
        ];
        for (tls, name, to, reason, told) in cases {
            let (error, alert) = connecting(tls, wants(tls, name), to).await;
            assert_eq!((error.phase, error.reason(), alert), (Phase::Certificate, reason, Some(told)), "{error}");
        }
        let (error, _) = connecting(&web, wants(&web, "other"), &db).await;
        assert_eq!(
            error.to_string(),
            "the peer is refused: it is spiffe://cluster.local/ns/default/sa/db, and wanted is \
             spiffe://cluster.local/ns/default/sa/other (phase: certificate)"
        );
    });
}

/// The chain is good for the credentials that looked at it, but not for those that are asked who it is.
#[test]
fn a_peer_that_nobody_here_can_name_is_refused() {
    in_time(async {
        let root = root();
        let (web, db) = (generation(&root, "web"), generation(&root, "db"));
        let other = generation(&self::root(), "web");
        let (a, b) = sockets().await;
        let (ours, theirs) = tokio::join!(connect(a, &other, wants(&web, "db")), async {
            match TlsAcceptor::from(Arc::clone(db.server())).accept(b).await {
                Ok(mut stream) => alert_in(&stream.read_u8().await.unwrap_err()),
                Err(error) => alert_in(&error),
            }
        });
        let error = ours.map(drop).unwrap_err();
        assert_eq!((error.phase, error.reason()), (Phase::Finish, "unidentified"));
        assert_eq!(theirs, Some(AlertDescription::AccessDenied));
    });
}

/// In TLS 1.3 the connecting side is done before its certificate is judged.
#[test]
fn a_client_that_is_refused_reads_why() {
    in_time(async {
        let root = root();
        let (web, db) = (generation(&root, "web"), generation(&root, "db"));
        let list = root.revoke(&[web.credentials.leaf().serial_bytes()], SystemTime::now(), DAY).unwrap();
        let strict = generation_of(&root, &id("db"), &[&list], &system_clock());
        for tls in [&strict, &db] {
            let config = wants(&web, "db");
            let config = if Arc::ptr_eq(tls, &db) { without_certificate(&config) } else { config };
            let (a, b) = sockets().await;
            let (ours, refusal) = tokio::join!(
                async {
                    let mut stream = connect(a, &web, config).await.unwrap().stream;
                    let handle = stream.handle();
                    let error = stream.read_u8().await.unwrap_err();
                    assert_eq!(handle.ended().unwrap().unwrap_err(), *TlsError::of(&error).unwrap());
                    error
                },
                accept(b, tls)
            );
            let Some(TlsError::Alert(alert)) = TlsError::of(&ours) else { panic!("{ours}") };
            assert!(alert.is_about_certificate(), "{alert}");
            let refusal = refusal.map(drop).unwrap_err();
            let expected = [(44, "revoked"), (116, "no_certificate")][usize::from(Arc::ptr_eq(tls, &db))];
            assert_eq!((alert.0, refusal.reason()), expected);
        }
    });
}

#[test]
fn nothing_in_common() {
    in_time(async {
        let (web, db) = web_and_db();
        let mut config = ClientConfig::clone(&wants(&web, "db"));
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let (error, alert) = accepting(&db, Arc::new(config.clone())).await;
        assert_eq!((error.phase, error.reason()), (Phase::Hello, "alpn"));
        assert_eq!(alert, Some(AlertDescription::NoApplicationProtocol));

        let mut server = ServerConfigOf::clone(db.server());
        server.alpn_protocols = vec![b"http/1.1".to_vec()];
        let (a, b) = sockets().await;
        let acceptor = TlsAcceptor::from(Arc::new(server));
        let (ours, theirs) = tokio::join!(connect(a, &web, wants(&web, "db")), acceptor.accept(b));
        assert!(theirs.is_err());
        let error = ours.map(drop).unwrap_err();
        assert_eq!(error.cause, Cause::Alert(Alert(120)));
        assert_eq!(
            error.to_string(),
            "the peer refused: no common application protocol (alert 120) (phase: certificate)"
        );

        config.alpn_protocols.clear();
        let (a, b) = sockets().await;
        let connector = TlsConnector::from(Arc::new(config));
        let (theirs, ours) = tokio::join!(connector.connect(no_name(), a), accept(b, &db));
        assert!(theirs.is_ok() && !ours.unwrap().agreed_protocol, "none is as good as ours");
    });
}

type ServerConfigOf = rustls::ServerConfig;

/// What a foreign client says first.
fn client_hello() -> Vec<u8> {
    let (web, _) = web_and_db();
    let mut connection = rustls::ClientConnection::new(wants(&web, "db"), no_name()).unwrap();
    let mut hello = Vec::new();
    connection.write_tls(&mut hello).unwrap();
    hello
}

/// We accept; the other side says this, ends its half if told to, and reads what it gets.
async fn answer_to(db: &Arc<TlsGeneration>, said: &[u8], ends: bool) -> (HandshakeError, Vec<u8>) {
    let (mut a, b) = sockets().await;
    let theirs = async {
        a.write_all(said).await.unwrap();
        if ends {
            a.shutdown().await.unwrap();
        }
        let mut heard = Vec::new();
        a.read_to_end(&mut heard).await.unwrap();
        drop(a);
        heard
    };
    let (ours, heard) = tokio::join!(accept(b, db), theirs);
    (ours.map(drop).unwrap_err(), heard)
}

#[test]
fn old_versions_are_refused() {
    in_time(async {
        let (_, db) = web_and_db();
        let mut hello = client_hello();
        let versions = [0, 43, 0, 3, 2, 3, 4];
        let at = hello.windows(versions.len()).position(|window| window == versions).unwrap();
        hello[at + 6] = 3;
        let (error, heard) = answer_to(&db, &hello, false).await;
        assert_eq!((error.phase, error.reason()), (Phase::Hello, "incompatible"));
        assert_eq!(error.cause, Cause::Incompatible("it does not speak TLS 1.3"));
        assert_eq!(heard, [21, 3, 3, 0, 2, 2, 70]);
    });
}

#[test]
fn garbage_is_not_tls() {
    in_time(async {
        let (_, db) = web_and_db();
        for said in [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".as_slice(), b"\0\0\0\0\0\0", b"PRI * HTTP/2.0", &[0xff; 9000]]
        {
            let (error, heard) = answer_to(&db, said, false).await;
            assert_eq!((error.phase, error.reason()), (Phase::Hello, "not_tls"));
            assert_eq!(error.to_string(), "what the peer sent is not TLS (phase: hello)");
            assert_eq!(heard, [21, 3, 3, 0, 2, 2, 50]);
        }
        for (said, reason) in [
            (b"\x16\x03\x01\xff\xff".as_slice(), "too_long"),
            (b"\x17\x03\x01\x00\x01x", "protocol"),
            (b"\x16\x03\x01\x00\x04\x01\xff\xff\xff", "too_long"),
            (b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00", "protocol"),
            (b"\x15\x03\x01\x00\x02\x02\x28", "alert"),
            (b"", "closed"),
        ] {
            let (error, _) = answer_to(&db, said, true).await;
            assert_eq!(error.reason(), reason, "{said:?}");
        }
    });
}

/// A message of many tiny records is not gathered for ever.
#[test]
fn a_flight_without_end_is_refused() {
    in_time(async {
        let (_, db) = web_and_db();
        let mut said = b"\x16\x03\x01\x00\x04\x01\x00\xff\xff".to_vec();
        for _ in 0..50_000 {
            said.extend(b"\x16\x03\x01\x00\x01\x00");
        }
        let (error, _) = answer_to(&db, &said, true).await;
        assert!(matches!(error.reason(), "too_long"), "{error}");
    });
}

#[test]
fn a_hello_that_breaks_off_anywhere_is_an_end() {
    in_time(async {
        let (_, db) = web_and_db();
        let hello = client_hello();
        for len in 0..hello.len() {
            let (error, heard) = answer_to(&db, &hello[..len], true).await;
            assert_eq!((error.phase, error.reason(), heard.len()), (Phase::Hello, "closed", 0), "{len}");
        }
    });
}

/// A hello with any one byte changed is refused or answered, and nobody panics.
#[test]
fn a_hello_that_is_damaged_does_no_harm() {
    in_time(async {
        let (_, db) = web_and_db();
        let hello = client_hello();
        for at in (0..hello.len()).step_by(3) {
            let mut said = hello.clone();
            said[at] ^= 0x41;
            let (error, _) = answer_to(&db, &said, true).await;
            assert!(!error.to_string().contains("rustls"), "{error}");
        }
    });
}

/// All that a log could ever show is ours: nothing of a library, no address of a page.
#[test]
fn errors_speak_our_own_words() {
    let errors = [
        rustls::Error::General("see https://docs.rs".to_owned()),
        rustls::Error::PeerMisbehaved(rustls::PeerMisbehaved::TooManyEmptyFragments),
        rustls::Error::InvalidMessage(rustls::InvalidMessage::MissingData("ClientHello")),
        rustls::Error::AlertReceived(AlertDescription::Unknown(200)),
        rustls::Error::DecryptError,
    ];
    let said: Vec<_> = errors.iter().map(|error| Cause::of(error, false).to_string()).collect();
    assert_eq!(
        said,
        [
            "TLS cannot be set up",
            "the peer broke the protocol",
            "the peer broke the protocol",
            "the peer refused: a reason that we do not know (alert 200)",
            "a record from the peer is not authentic",
        ]
    );
    let refused = Cause::Peer(PeerError::UnknownIssuer).to_string();
    assert_eq!(refused, "the peer is refused: no trusted root has signed it");
    for errno in [104, 32, 110, 5] {
        let error = TlsError::socket(&io::Error::from_raw_os_error(errno));
        assert!(!error.to_string().contains("os error"), "{error}");
    }
}

/// Else it would be counted as something else.
#[test]
fn every_reason_is_one_that_is_counted() {
    let alert = Alert::ACCESS_DENIED;
    let socket = Cause::Socket { kind: io::ErrorKind::Other, errno: None };
    for cause in [
        Cause::Peer(PeerError::Revoked),
        Cause::NoCertificate,
        Cause::Unidentified,
        Cause::Alert(alert),
        Cause::Closed,
        Cause::NotTls,
        Cause::Incompatible("no cipher"),
        Cause::ApplicationProtocol,
        Cause::TooLong,
        Cause::Protocol,
        Cause::Decrypt,
        socket,
        Cause::Internal,
    ] {
        let error = HandshakeError { phase: Phase::Hello, cause };
        assert!(crate::identity::failures::REASONS.contains(&error.reason()), "{error}: {}", error.reason());
    }
}
