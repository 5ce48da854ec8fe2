//! A server of tunnels that ends streams by any RST_STREAM code it is told: what no well-behaved peer does on demand.
//!
//! A stream is answered 200 and `hello`; then it brings one byte, the code by which it is reset. Byte [`ENDED`] asks for END_STREAM
//! and then RST_STREAM(NO_ERROR), as a server does that has said all and wants to hear no more. Threads, as in `support/serve.rs`.

use std::fmt::Debug;
use std::net::TcpStream;
use std::sync::Arc;

use ::bytes::Bytes;
use h2::Reason;
use h2::server::SendResponse;
use h2::{RecvStream, server};
use http::{Request, Response};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

use crate::envoy_config::HBONE;
use crate::kit::Host;
use crate::pki::Leaf;
use crate::serve::serve;

pub(crate) const ENDED: u8 = 255;

/// Serves on 15008 of `host`, with this certificate; it asks for none.
pub(crate) fn resetter(host: &Host, leaf: &Leaf) {
    let chain =
        CertificateDer::pem_file_iter(&leaf.cert).expect("a certificate").map(|cert| cert.expect("PEM")).collect();
    let key = PrivateKeyDer::from_pem_file(&leaf.key).expect("a key");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder =
        ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().expect("versions");
    let mut config = builder.with_no_client_auth().with_single_cert(chain, key).expect("a matching key");
    config.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    serve(host, HBONE, move |stream| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().expect("a runtime");
        tokio::task::LocalSet::new().block_on(&runtime, tunnel(stream, acceptor.clone()));
    });
}

/// Until the client goes away.
async fn tunnel(stream: TcpStream, acceptor: TlsAcceptor) {
    stream.set_nonblocking(true).expect("O_NONBLOCK");
    let stream = tokio::net::TcpStream::from_std(stream).expect("a socket");
    let stream = acceptor.accept(stream).await.expect("a handshake");
    let mut connection = Box::pin(server::handshake(stream)).await.expect("a preface");
    while let Some(Ok((request, respond))) = connection.accept().await {
        tokio::task::spawn_local(told(request, respond));
    }
}

async fn told(request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
    let mut body = request.into_body();
    let mut stream = respond.send_response(Response::new(()), false).expect("an open stream");
    stream.send_data(Bytes::from_static(b"hello"), false).expect("an open stream");
    let code = loop {
        match body.data().await {
            Some(Ok(data)) if !data.is_empty() => break data[0],
            Some(Ok(_)) => {}
            other => return ignore(other),
        }
    };
    if code == ENDED {
        // h2 adds RST_STREAM(NO_ERROR) when both handles are gone; by our own it would drop the END_STREAM.
        stream.send_data(Bytes::new(), true).expect("an open stream");
    } else {
        stream.send_reset(Reason::from(u32::from(code)));
    }
}

/// A client that went away has seen enough.
fn ignore(_end: impl Debug) {}
