//! A tunnel from the far side's first frames to its GOAWAY, with a bare HTTP/2 peer.

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

use super::*;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The head of an empty SETTINGS frame.
const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];

/// What becomes of a peer that sends these bytes and closes if `closes`.
async fn spoken(bytes: &[u8], closes: bool) -> Option<Result<(), ArrivalError>> {
    let (mut peer, ours) = duplex(64 * 1024);
    peer.write_all(bytes).await.expect("room");
    if closes {
        peer.shutdown().await.expect("shutdown");
    }
    let limits = Limits::default();
    let windows = Windows::new();
    let speaking = speak(ours, &limits, &windows);
    tokio::select! {
        biased;
        result = speaking => Some(result.map(drop)),
        () = async { for _ in 0..100 { tokio::task::yield_now().await } } => None,
    }
}

#[tokio::test]
async fn a_tunnel_is_there_when_preface_and_settings_are() {
    let whole = [PREFACE, &SETTINGS].concat();
    assert!(matches!(spoken(&whole, false).await, Some(Ok(()))));
    for cut in [0, 10, PREFACE.len(), whole.len() - 1] {
        let part = whole.get(..cut).expect("a part");
        assert!(spoken(part, false).await.is_none(), "{cut}: waits for the rest");
        assert!(matches!(spoken(part, true).await, Some(Err(ArrivalError::Gone | ArrivalError::Http2))), "{cut}");
    }
    assert!(matches!(spoken(&[b'x'; 64], false).await, Some(Err(ArrivalError::Http2))));
    let oversized = [PREFACE, &[0xff, 0xff, 0xff, 4, 0, 0, 0, 0, 0]].concat();
    assert!(matches!(spoken(&oversized, false).await, Some(Err(ArrivalError::Http2))));
}

#[tokio::test]
async fn what_a_peer_may_have_open_is_told_in_our_settings() {
    let (mut peer, ours) = duplex(64 * 1024);
    peer.write_all(&[PREFACE, &SETTINGS].concat()).await.expect("room");
    let arrival = speak(ours, &Limits::default(), &Windows::new()).await.expect("a tunnel");
    let mut head = [0; 9];
    peer.read_exact(&mut head).await.expect("our SETTINGS");
    let mut body = vec![0; usize::from(head[2])];
    peer.read_exact(&mut body).await.expect("its body");
    let settings: Vec<(u16, u32)> = body
        .chunks_exact(6)
        .map(|it| (u16::from_be_bytes([it[0], it[1]]), u32::from_be_bytes([it[2], it[3], it[4], it[5]])))
        .collect();
    assert!(settings.contains(&(3, Limits::default().max_streams.get())), "{settings:?}");
    let header_list = settings.iter().find(|(key, _)| *key == 6).map(|(_, value)| *value);
    assert!(header_list.is_some_and(|bytes| bytes <= 64 * 1024), "{settings:?}");
    drop((arrival, Bytes::new()));
}

fn connect_frame(stream: u8) -> Vec<u8> {
    // Of HPACK: `:method` and `:authority`, whose names are in the static table.
    let block = [&[0x02, 7][..], b"CONNECT", &[0x01, 4], b"a:80"].concat();
    let length = u8::try_from(block.len()).expect("short");
    [&[0, 0, length, 1, 4, 0, 0, 0, stream][..], &block].concat()
}

/// A tunnel is retired also because its peer is not trusted any more: not to answer must not be a way to go on.
#[tokio::test(start_paused = true)]
async fn a_peer_that_ignores_the_goaway_opens_streams_in_vain() {
    let (mut peer, ours) = duplex(64 * 1024);
    peer.write_all(&[PREFACE, &SETTINGS].concat()).await.expect("room");
    let arrival = speak(ours, &Limits::default(), &Windows::new()).await.expect("a tunnel");
    let taken = Rc::new(std::cell::RefCell::new(Vec::new()));
    let keep = Rc::clone(&taken);
    let (mut served, _pings) = arrival.serve(move |asked| keep.borrow_mut().push(asked));
    served.retire();
    let refused = [0, 0, 4, 3, 0, 0, 0, 0, 3, 0, 0, 0, 7];
    let mut heard = Vec::new();
    for (stream, frame) in [(1, connect_frame(1)), (3, connect_frame(3))] {
        peer.write_all(&frame).await.expect("room");
        for _ in 0..10 {
            let over = poll_fn(|cx| Poll::Ready(served.poll(cx).is_ready())).await;
            assert!(!over, "its first stream lives");
            let mut bytes = [0; 1024];
            let soon = tokio::time::timeout(Duration::from_millis(1), peer.read(&mut bytes)).await;
            heard.extend_from_slice(&bytes[..soon.map_or(0, |read| read.expect("bytes"))]);
        }
        assert_eq!(taken.borrow().len(), 1, "{stream}: what it opened in time is taken");
        tokio::time::sleep(GOAWAY_WITHIN).await;
        let _alive = poll_fn(|cx| Poll::Ready(served.poll(cx).is_pending())).await;
    }
    assert!(heard.windows(refused.len()).any(|bytes| bytes == refused), "{heard:?}");
}
