//! What an answer carries: a short text, or a stream that a blocking thread writes in chunks as the client takes them.
//! Nothing large is ever held as a whole; a client that does not read holds up its own thread only, and that for
//! `STALL` at most. A stream that fails breaks the connection off, so that half an answer never looks whole.

use std::fmt;
use std::io::{self, BufWriter, Write};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use hyper::body::{Frame, SizeHint};
use thiserror::Error;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// Bytes of one chunk.
const CHUNK: usize = 16 * 1024;
/// Chunks that may wait for the client.
const WAITING: usize = 4;
/// How long a client may leave all of them waiting: less than 4 KiB a second is no reader.
const STALL: Duration = Duration::from_secs(5);

/// The writer of a stream went away or failed before the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the answer could not be completed")]
pub struct Broken;

/// The body of an answer.
#[derive(Debug)]
pub struct Body {
    content: Content,
    /// Dropped together with the body, which is when the answer has been handed to the socket.
    guard: Option<Guard>,
}

/// Runs when the body is done.
pub(super) struct Guard(pub(super) Box<dyn FnOnce() + Send>);

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Guard")
    }
}

#[derive(Debug)]
enum Content {
    Full(Bytes),
    Stream(mpsc::Receiver<Chunk>),
    Done,
}

#[derive(Debug)]
enum Chunk {
    Data(Bytes),
    /// The writer finished; without it the stream is broken.
    End,
}

impl Body {
    #[must_use]
    pub fn full(content: impl Into<Bytes>) -> Self {
        Self { content: Content::Full(content.into()), guard: None }
    }

    /// Runs `write` on a blocking thread; `gzip` compresses what it writes.
    pub fn stream(gzip: bool, write: impl FnOnce(&mut dyn Write) -> io::Result<()> + Send + 'static) -> Self {
        let (sender, receiver) = mpsc::channel(WAITING);
        tokio::task::spawn_blocking(move || {
            let mut chunks = Chunks { sender, pending: Vec::new(), runtime: Handle::current() };
            let written = if gzip { compressed(&mut chunks, write) } else { write(&mut chunks) };
            if written.and_then(|()| chunks.flush()).is_ok() {
                // The client may have gone.
                let _ = chunks.send(Chunk::End);
            }
        });
        Self { content: Content::Stream(receiver), guard: None }
    }

    pub(super) fn guarded(mut self, guard: Guard) -> Self {
        self.guard = Some(guard);
        self
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        if let Some(Guard(done)) = self.guard.take() {
            done();
        }
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let frame = match &mut self.content {
            Content::Full(bytes) if !bytes.is_empty() => Some(Ok(Frame::data(std::mem::take(bytes)))),
            Content::Full(_) | Content::Done => None,
            Content::Stream(receiver) => match ready!(receiver.poll_recv(cx)) {
                Some(Chunk::Data(bytes)) => return Poll::Ready(Some(Ok(Frame::data(bytes)))),
                Some(Chunk::End) => None,
                None => Some(Err(Broken)),
            },
        };
        self.content = Content::Done;
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Full(bytes) => bytes.is_empty(),
            Content::Stream(_) => false,
            Content::Done => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Full(bytes) => SizeHint::with_exact(bytes.len().try_into().unwrap_or(u64::MAX)),
            Content::Stream(_) => SizeHint::default(),
            Content::Done => SizeHint::with_exact(0),
        }
    }
}

fn compressed(chunks: &mut Chunks, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let mut buffered = BufWriter::with_capacity(CHUNK, GzEncoder::new(chunks, Compression::fast()));
    write(&mut buffered)?;
    buffered.into_inner().map_err(io::IntoInnerError::into_error)?.finish()?;
    Ok(())
}

/// Gathers small writes into chunks and waits while the client is behind.
struct Chunks {
    sender: mpsc::Sender<Chunk>,
    pending: Vec<u8>,
    /// Whose timer limits the wait.
    runtime: Handle,
}

impl Chunks {
    fn send(&mut self, chunk: Chunk) -> io::Result<()> {
        match self.runtime.block_on(timeout(STALL, self.sender.send(chunk))) {
            Ok(sent) => sent.map_err(|_gone| io::ErrorKind::BrokenPipe.into()),
            Err(_elapsed) => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

impl Write for Chunks {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.pending.extend_from_slice(bytes);
        if self.pending.len() >= CHUNK {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let chunk = Chunk::Data(std::mem::take(&mut self.pending).into());
        self.send(chunk)
    }
}

/// `fmt::Write` on an `io::Write`; the error of the latter is lost, as the trait has no room for it.
pub(super) struct FmtWriter<'a>(pub(super) &'a mut dyn Write);

impl fmt::Write for FmtWriter<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.write_all(text.as_bytes()).map_err(|_lost| fmt::Error)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[tokio::test]
    async fn a_client_that_does_not_read_gives_its_thread_back() {
        let (told, ended) = tokio::sync::oneshot::channel();
        let started = Instant::now();
        let body = Body::stream(false, move |out| {
            let written = (0..100).try_for_each(|_| out.write_all(&[0; CHUNK]));
            let _ = told.send(written.as_ref().copied().map_err(io::Error::kind));
            written
        });
        let ended = timeout(STALL * 4, ended).await.expect("not held for ever").expect("told");
        assert_eq!(ended, Err(io::ErrorKind::TimedOut));
        assert!(started.elapsed() >= STALL, "{:?}", started.elapsed());
        drop(body);
    }
}
