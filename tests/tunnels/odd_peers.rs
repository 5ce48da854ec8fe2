//! adit and peers that do by hand what no library does on demand: lower their limit, reset by any code.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;

use ::bytes::Bytes;
use h2::Reason;
use http::Request;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::verify_tls13_signature;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, IpAddr, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};

use crate::bytes::{End, end};
use crate::envoy_config::HBONE;
use crate::kit::door::Dial;
use crate::kit::{Adit, Door, Host, LIMIT, isolated, until};
use crate::limited::{LOWER, limited};
use crate::pki::Leaf;
use crate::world::{APP, FAR, Ground, KINDS, NEAR, NO_RECORDS, adit, mesh, settings, wait_no_stream};

/// A stream that says something and hears it again.
struct Said(TcpStream);

impl Said {
    fn open(host: &Host, to: SocketAddr) -> Self {
        let stream = Dial::default().connect(host, to).expect("captured");
        stream.set_read_timeout(Some(LIMIT)).expect("SO_RCVTIMEO");
        let mut said = Self(stream);
        said.say(b"hello");
        said
    }

    fn say(&mut self, word: &[u8]) {
        self.0.write_all(word).expect("write");
        let mut got = vec![0; word.len()];
        self.0.read_exact(&mut got).expect("an echo");
        assert_eq!(got, word);
    }
}

fn near(ground: &Ground, more: &str) -> Adit {
    let kind = KINDS[0];
    let settings = settings(kind, NEAR, &ground.near, &format!("{NO_RECORDS}\n{more}"));
    adit(&ground.lab.adit, kind, &settings, &mesh(&ground.lab.adit, &ground.lab.server))
}

/// A peer that takes a hundred streams in a tunnel, and from some moment on just one: streams that are there stay, new ones get a
/// tunnel each, and a tunnel is used again when its stream has ended.
#[test]
fn a_limit_lowered_to_one() {
    isolated(|| {
        let ground = Ground::new();
        let seen = limited(&ground.lab.server, &ground.far);
        let adit = near(&ground, "workers: 1\ntunnel: { maxPerPeer: 1 }");
        let to = SocketAddr::from((ground.lab.server.v4, APP));
        let open = || Said::open(&ground.lab.adit, to);
        let tunnels = || seen.tunnels.load(Ordering::SeqCst);
        let mut old: Vec<_> = (0..5).map(|_| open()).collect();
        assert_eq!(tunnels(), 1);
        old[0].say(LOWER);
        until(LIMIT, "the limit to be acknowledged", || (seen.acknowledged.load(Ordering::SeqCst) == 1).then_some(()));
        let mut new: Vec<_> = (0..3).map(|_| open()).collect();
        assert_eq!(tunnels(), 4);
        for said in old.iter_mut().chain(&mut new) {
            said.say(b"still here");
        }
        drop(old);
        drop(new);
        for _ in 0..20 {
            // Before that the old ones have their places still.
            wait_no_stream(&ground.lab.adit);
            drop(open());
        }
        assert_eq!(seen.beyond.load(Ordering::SeqCst), 0, "more streams than were allowed");
        assert_eq!(tunnels(), 4);
        adit.stop();
    });
}

/// A client of tunnels that resets its stream by this code as soon as it has heard the application.
async fn reset_by(stream: TcpStream, config: Arc<ClientConfig>, authority: String, code: u32) {
    stream.set_nonblocking(true).expect("O_NONBLOCK");
    let stream = tokio::net::TcpStream::from_std(stream).expect("a socket");
    let name = ServerName::IpAddress(IpAddr::from(std::net::Ipv4Addr::LOCALHOST));
    let stream = tokio_rustls::TlsConnector::from(config).connect(name, stream).await.expect("a handshake");
    let (mut send, connection) = Box::pin(h2::client::handshake(stream)).await.expect("HTTP/2");
    let driver = tokio::task::spawn_local(connection);
    let request = Request::builder().method("CONNECT").uri(authority).body(()).expect("a request");
    let (response, mut body) = send.send_request(request, false).expect("an open tunnel");
    let response = response.await.expect("an answer");
    assert_eq!(response.status(), 200);
    body.send_data(Bytes::from_static(b"hello"), false).expect("an open stream");
    let heard = response.into_body().data().await.expect("bytes").expect("no reset");
    assert_eq!(&heard[..], b"hello");
    body.send_reset(Reason::from(code));
    drop((body, send));
    // Ends when all is said.
    let _ = driver.await;
}

fn any_server(leaf: &Leaf) -> Arc<ClientConfig> {
    let chain = CertificateDer::pem_file_iter(&leaf.cert).expect("a certificate").map(|cert| cert.expect("PEM"));
    let key = PrivateKeyDer::from_pem_file(&leaf.key).expect("a key");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
    let builder = builder.expect("versions").dangerous().with_custom_certificate_verifier(Arc::new(Anybody(provider)));
    let mut config = builder.with_client_auth_cert(chain.collect(), key).expect("a matching key");
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

/// Whoever answers; who it is, is tried elsewhere.
#[derive(Debug)]
struct Anybody(Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.3 only".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Every code of a client's RST_STREAM is a reset for the application, but NO_ERROR, which is an orderly end.
#[test]
fn what_becomes_of_a_clients_reset_codes() {
    isolated(|| {
        let ground = Ground::new();
        let (lab, kind) = (&ground.lab, KINDS[0]);
        let settings = settings(kind, FAR, &ground.far, NO_RECORDS);
        let adit = adit(&lab.adit, kind, &settings, &mesh(&lab.client, &lab.adit));
        let door = Door::open(&lab.adit, APP);
        let config = any_server(&ground.near);
        for code in 0..=13 {
            let stream = Dial::default().connect(&lab.client, (lab.adit.v4, HBONE).into()).expect("a tunnel");
            let (config, authority) = (Arc::clone(&config), format!("{}:{APP}", lab.adit.v4));
            let client = thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
                let local = tokio::task::LocalSet::new();
                let asked = Box::pin(local.run_until(reset_by(stream, config, authority, code)));
                runtime.block_on(async { tokio::time::timeout(LIMIT, asked).await }).expect("in time");
            });
            let mut application = door.accept().stream;
            application.set_read_timeout(Some(LIMIT)).expect("SO_RCVTIMEO");
            let mut got = [0; 5];
            application.read_exact(&mut got).expect("hello");
            application.write_all(b"hello").expect("write");
            let want = if code == 0 { End::Fin } else { End::Reset };
            assert_eq!(end(&mut application), want, "code {code}");
            drop(application);
            client.join().expect("the client");
        }
        adit.stop();
    });
}
