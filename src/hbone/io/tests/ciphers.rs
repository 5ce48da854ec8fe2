//! Each cipher, with another stack that speaks no other.

use rustls::crypto::{CryptoProvider, aws_lc_rs};

use super::*;

#[test]
fn each_cipher_gets_on_with_a_foreign_stack() {
    use aws_lc_rs::cipher_suite as suite;
    in_time(async {
        let root = root();
        let db = generation(&root, "db");
        for suite in
            [suite::TLS13_AES_128_GCM_SHA256, suite::TLS13_AES_256_GCM_SHA384, suite::TLS13_CHACHA20_POLY1305_SHA256]
        {
            let provider = CryptoProvider { cipher_suites: vec![suite], ..aws_lc_rs::default_provider() };
            let (id, accepted) = (id("web"), [id("db").trust_domain().clone()].into());
            let made = credentials(&root, &id, &[]);
            let web = TlsGeneration::with_provider(&Arc::new(provider), 1, made, accepted, &system_clock()).unwrap();
            let (a, b) = sockets().await;
            let connector = TlsConnector::from(wants(&web, "db"));
            let (theirs, ours) = tokio::join!(connector.connect(no_name(), a), accept(b, &db));
            let ours = ours.unwrap();
            assert_eq!(ours.cipher, suite.suite());
            exchange(ours.stream, theirs.unwrap(), 1_000_000, 40).await;
            assert_eq!(buffers::lent(), 0);
        }
    });
}
