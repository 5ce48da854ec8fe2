//! After the handshake: ends of every kind, new keys, peers that break the protocol.

use super::*;

/// A peer that can say anything: it seals what it likes with the right keys.
struct Evil(Handle);

impl Evil {
    fn seal(&self, typ: ContentType, content: &[u8]) -> Vec<u8> {
        sealed(&mut self.0.0.borrow_mut().keys, typ, &[content])
    }

    fn send(&self, bytes: &[u8]) {
        assert_eq!(self.0.0.borrow().socket.try_write(bytes).unwrap(), bytes.len());
    }

    fn say(&self, typ: ContentType, content: &[u8]) {
        self.send(&self.seal(typ, content));
    }
}

/// What reading gives in the end.
async fn ending(stream: &mut TlsStream) -> Result<Vec<u8>, TlsError> {
    let mut read = Vec::new();
    let result = stream.read_to_end(&mut read).await;
    result.map(|_| read).map_err(|error| TlsError::of(&error).unwrap().clone())
}

#[test]
fn each_end_is_told_apart() {
    in_time(async {
        let (ours, mut theirs) = with_foreign(true, sockets().await).await;
        let mut stream = ours.stream;
        theirs.write_all(b"bye").await.unwrap();
        theirs.shutdown().await.unwrap();
        assert_eq!(ending(&mut stream).await, Ok(b"bye".to_vec()));
        assert_eq!(stream.handle().ended(), Some(Ok(())));
        stream.write_all(b"still").await.unwrap();
        stream.shutdown().await.unwrap();
        assert_eq!(drink(&mut theirs, 1).await.unwrap(), b"still");
        let late = stream.write(b"x").await.unwrap_err();
        assert_eq!(TlsError::of(&late), Some(&TlsError::Closed));

        let (ours, mut theirs) = with_foreign(true, sockets().await).await;
        let mut stream = ours.stream;
        theirs.write_all(b"cut").await.unwrap();
        theirs.flush().await.unwrap();
        theirs.get_mut().0.shutdown().await.unwrap();
        let mut read = Vec::new();
        let error = stream.read_to_end(&mut read).await.unwrap_err();
        assert_eq!((read.as_slice(), error.kind()), (b"cut".as_slice(), io::ErrorKind::UnexpectedEof));
        assert_eq!(TlsError::of(&error), Some(&TlsError::Truncated));
        assert_eq!(ending(&mut stream).await, Err(TlsError::Truncated), "again");
        assert_eq!(stream.handle().ended(), Some(Err(TlsError::Truncated)));
        assert_eq!(error.to_string(), "the peer went away without saying so");

        let (ours, theirs) = with_foreign(true, sockets().await).await;
        let mut stream = ours.stream;
        SockRef::from(theirs.get_ref().0).set_linger(Some(Duration::ZERO)).unwrap();
        drop(theirs);
        let reset = ending(&mut stream).await.unwrap_err();
        assert!(matches!(reset, TlsError::Socket { kind: io::ErrorKind::ConnectionReset, errno: Some(104) }));
        assert_eq!(reset.to_string(), "the socket failed: reset by the peer");
        assert_eq!(buffers::lent(), 0);
    });
}

/// What the peer sent before it hears that we are done is still there for us, and it hears that we are done properly.
#[test]
fn a_shutdown_with_unread_data_loses_nothing() {
    in_time(async {
        let (ours, mut theirs) = with_foreign(false, sockets().await).await;
        let mut stream = ours.stream;
        let bytes = pattern(50_000, 1);
        theirs.write_all(&bytes).await.unwrap();
        theirs.flush().await.unwrap();
        stream.write_all(b"last words").await.unwrap();
        stream.shutdown().await.unwrap();
        assert_eq!(drink(&mut theirs, 1).await.unwrap(), b"last words");
        theirs.shutdown().await.unwrap();
        assert!(ending(&mut stream).await.unwrap() == bytes);
    });
}

#[test]
fn keys_change_on_request_of_the_peer() {
    in_time(async {
        for connects in [true, false] {
            let (ours, theirs) = with_foreign(connects, sockets().await).await;
            let mut stream = ours.stream;
            let (socket, mut theirs) = match theirs {
                Foreign::Client(stream) => {
                    let (socket, connection) = stream.into_inner();
                    (socket, rustls::Connection::from(connection))
                }
                Foreign::Server(stream) => {
                    let (socket, connection) = stream.into_inner();
                    (socket, rustls::Connection::from(connection))
                }
            };
            for round in 0..5_u8 {
                theirs.refresh_traffic_keys().unwrap();
                theirs.writer().write_all(&[round; 30_000]).unwrap();
                let mut read = vec![0; 30_000];
                let ((), result) = tokio::join!(push(&mut theirs, &socket), stream.read_exact(&mut read));
                result.unwrap();
                assert!(read.iter().all(|byte| *byte == round));
                let ((), result) = tokio::join!(pull(&mut theirs, &socket, 30_000, round), async {
                    stream.write_all(&[round; 30_000]).await?;
                    stream.flush().await
                });
                result.unwrap();
            }
        }
    });
}

use std::io::{Read as _, Write as _};

async fn push(connection: &mut rustls::Connection, socket: &TcpStream) {
    while connection.wants_write() {
        socket.writable().await.unwrap();
        let _again = connection.write_tls(&mut Sync(socket));
    }
}

async fn pull(connection: &mut rustls::Connection, socket: &TcpStream, len: usize, expected: u8) {
    let mut seen = 0;
    let mut piece = vec![0; 40_000];
    while seen < len {
        socket.readable().await.unwrap();
        if connection.read_tls(&mut Sync(socket)).is_ok() {
            connection.process_new_packets().unwrap();
        }
        while let Ok(read) = connection.reader().read(&mut piece) {
            assert!(read > 0 && piece[..read].iter().all(|byte| *byte == expected));
            seen += read;
        }
    }
}

struct Sync<'a>(&'a TcpStream);

impl io::Read for Sync<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(bytes)
    }
}

impl io::Write for Sync<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A cipher allows so many records per key; here few, so that keys wear out all the time.
#[test]
fn worn_keys_are_changed_in_time() {
    in_time(async {
        for connects in [true, false] {
            let (ours, theirs) = with_foreign(connects, sockets().await).await;
            ours.stream.handle().0.borrow_mut().keys.limit = 5;
            exchange(ours.stream, theirs, 1_000_000, 40).await;
        }
    });
}

#[test]
fn what_is_allowed_beside_data_is_passed_over() {
    in_time(async {
        let (client, server) = ours().await;
        let (evil, mut server) = (Evil(client.stream.handle()), server.stream);
        for _ in 0..3 {
            for _ in 0..20 {
                evil.say(ContentType::ApplicationData, b"");
            }
            evil.say(ContentType::Alert, &[1, 90]);
            evil.say(ContentType::ApplicationData, b"x");
        }
        evil.say(ContentType::Handshake, &[24, 0]);
        evil.say(ContentType::Handshake, &[0, 1, 0]);
        evil.0.0.borrow_mut().keys.next_to_seal().unwrap();
        // With padding behind the type.
        evil.say(ContentType::from(0), b"y\x17\0\0");
        evil.say(ContentType::Alert, &[1, 0]);
        evil.say(ContentType::ApplicationData, b"after the end");
        assert_eq!(ending(&mut server).await, Ok(b"xxxy".to_vec()));

        let (client, server) = ours().await;
        let (mut client, evil) = (client.stream, Evil(server.stream.handle()));
        let ticket = [&[4, 0, 0x50, 0][..], &[0; 0x5000]].concat();
        for part in ticket.chunks(16_000) {
            evil.say(ContentType::Handshake, part);
        }
        evil.say(ContentType::ApplicationData, b"z");
        evil.say(ContentType::Alert, &[1, 0]);
        assert_eq!(ending(&mut client).await, Ok(b"z".to_vec()));
    });
}

/// Each breach ends the stream with its own error, and the alert that fits arrives.
#[test]
fn peers_that_break_the_protocol_are_told_so() {
    use TlsError::{Alert as Refused, Decrypt, Protocol};
    use error::Breach;
    type Does = fn(&Evil);
    let cases: [(Does, TlsError, Option<u8>); 20] = [
        (|evil| evil.send(b"\x15\x03\x03\x00\x02\x02\x28"), Protocol(Breach::NotSealed), Some(10)),
        (|evil| evil.send(b"\x14\x03\x03\x00\x01\x01"), Protocol(Breach::NotSealed), Some(10)),
        (|evil| evil.send(b"GET / HTTP/1.1\r\n\r\n"), Protocol(Breach::NotSealed), Some(10)),
        (|evil| evil.send(b"\x17\x03\x03\x41\x01"), Protocol(Breach::RecordTooLong), Some(22)),
        (|evil| evil.send(b"\x17\x03\x03\x00\x00"), Decrypt, Some(20)),
        (|evil| evil.send(&[b"\x17\x03\x03\x00\x20".as_slice(), &[0; 32]].concat()), Decrypt, Some(20)),
        (|evil| evil.say(ContentType::Alert, &[2, 42]), Refused(Alert(42)), None),
        (|evil| evil.say(ContentType::Alert, &[2]), Protocol(Breach::MessageMalformed), Some(50)),
        (|evil| evil.say(ContentType::Alert, b""), Protocol(Breach::MessageMalformed), Some(50)),
        (|evil| evil.say(ContentType::Heartbeat, b"x"), Protocol(Breach::UnknownKind), Some(10)),
        // Nothing but padding, and no type before it.
        (|evil| evil.say(ContentType::from(0), &[0; 5]), Protocol(Breach::UnknownKind), Some(10)),
        (|evil| evil.say(ContentType::ApplicationData, &[1; 16_385]), Protocol(Breach::RecordTooLong), Some(22)),
        // As long with its padding only.
        (
            |evil| evil.say(ContentType::from(0), &[&[1; 16_384][..], &[23]].concat()),
            Protocol(Breach::RecordTooLong),
            Some(22),
        ),
        (|evil| evil.say(ContentType::Handshake, &[1, 0, 0, 0]), Protocol(Breach::MessageUnexpected), Some(10)),
        (|evil| evil.say(ContentType::Handshake, &[4, 0, 0, 0]), Protocol(Breach::MessageUnexpected), Some(10)),
        (|evil| evil.say(ContentType::Handshake, &[4, 2, 0, 0]), Protocol(Breach::MessageTooLong), Some(50)),
        (|evil| evil.say(ContentType::Handshake, &[24, 0, 0, 1, 2]), Protocol(Breach::MessageMalformed), Some(50)),
        (|evil| evil.say(ContentType::Handshake, &[24, 0, 0, 1, 0, 24]), Protocol(Breach::MessageSpansKeys), Some(10)),
        (
            |evil| {
                evil.say(ContentType::Handshake, &[24]);
                evil.say(ContentType::ApplicationData, b"x");
            },
            Protocol(Breach::MessageInterrupted),
            Some(10),
        ),
        (
            |evil| (0..33).for_each(|_| evil.say(ContentType::ApplicationData, b"")),
            Protocol(Breach::TooManyWithoutData),
            Some(10),
        ),
    ];
    in_time(async {
        for (does, expected, alert) in cases {
            let (client, server) = ours().await;
            let (mut client, mut server) = (client.stream, server.stream);
            let evil = Evil(client.handle());
            evil.say(ContentType::ApplicationData, b"before");
            does(&evil);
            let mut before = [0; 6];
            server.read_exact(&mut before).await.unwrap();
            assert_eq!(&before, b"before");
            assert_eq!(ending(&mut server).await, Err(expected.clone()));
            let refused = server.write(b"x").await.unwrap_err();
            assert_eq!(TlsError::of(&refused), Some(&expected));
            if let Some(alert) = alert {
                assert_eq!(ending(&mut client).await, Err(Refused(Alert(alert))), "{expected}");
            }
            assert_eq!(buffers::lent(), 0);
        }
    });
}

/// The peer asks for new keys again and again and takes nothing: what we owe does not add up.
#[test]
fn requests_for_keys_do_not_add_up() {
    in_time(async {
        let (client, server) = ours().await;
        let (evil, mut server) = (Evil(client.stream.handle()), server.stream);
        server.handle().cork();
        for _ in 0..1000 {
            evil.say(ContentType::Handshake, &[24, 0, 0, 1, 1]);
            evil.0.0.borrow_mut().keys.next_to_seal().unwrap();
            evil.say(ContentType::ApplicationData, b"x");
            server.read_u8().await.unwrap();
        }
        assert!(server.handle().0.borrow().outbound.queued().is_empty());
        for _ in 0..33 {
            evil.say(ContentType::Handshake, &[24, 0, 0, 1, 1]);
            evil.0.0.borrow_mut().keys.next_to_seal().unwrap();
        }
        assert_eq!(ending(&mut server).await, Err(TlsError::Protocol(error::Breach::TooManyWithoutData)));
    });
}
