//! Each cipher, with another stack that speaks no other.

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::{DigitallySignedStruct, Error, SignatureScheme};
use rustls_pki_types::{ServerName, UnixTime};

use super::*;

/// Trusts whoever answers: what is looked at here are the records.
#[derive(Debug)]
struct Anyone;

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _leaf: &CertificateDer<'_>,
        _above: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::HandshakeNotComplete)
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

fn connector(root: &Authority, suite: SupportedCipherSuite) -> TlsConnector {
    let issued = root.issue(&id("web"), SystemTime::now(), DAY).unwrap();
    let key = PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes()).unwrap();
    let provider = CryptoProvider { cipher_suites: vec![suite], ..aws_lc_rs::default_provider() };
    let config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone))
        .with_client_auth_cert(vec![issued.certificate], key)
        .unwrap();
    TlsConnector::from(Arc::new(config))
}

#[test]
fn each_cipher_gets_on_with_a_foreign_stack() {
    use aws_lc_rs::cipher_suite as suite;
    in_time(async {
        let root = root();
        let db = generation(&root, "db");
        for suite in
            [suite::TLS13_AES_128_GCM_SHA256, suite::TLS13_AES_256_GCM_SHA384, suite::TLS13_CHACHA20_POLY1305_SHA256]
        {
            let (a, b) = sockets().await;
            let (theirs, ours) = tokio::join!(connector(&root, suite).connect(no_name(), a), accept(b, &db));
            let ours = ours.unwrap();
            assert_eq!(ours.cipher, suite.suite());
            exchange(ours.stream, theirs.unwrap(), 1_000_000, 40).await;
            assert_eq!(buffers::lent(), 0);
        }
    });
}
