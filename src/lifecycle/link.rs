//! A link between two processes of adit: JSON messages with descriptors, over a connected `SOCK_SEQPACKET` pair of Unix
//! sockets. A message arrives whole or not at all; an end that is gone is the end of the stream.
//!
//! Blocking methods are for the start, before there is a runtime, and for threads that may block.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::cmsg_space;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair, sockopt,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// `SCM_MAX_FD` of Linux: descriptors that one message may carry.
pub const MOST_DESCRIPTORS: usize = 253;
/// A name for each of these descriptors and some words around.
const MOST_BYTES: usize = 64 << 10;

/// One end, non-blocking.
#[derive(Debug)]
pub struct Link {
    socket: OwnedFd,
}

impl Link {
    /// An end to keep and an end to give away.
    ///
    /// # Errors
    /// The system's, when descriptors or memory are wanting.
    pub fn pair() -> io::Result<(Self, OwnedFd)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        Ok((Self { socket: ours }, theirs))
    }

    /// The end that somebody gave us.
    ///
    /// # Errors
    /// When it is anything else: not a socket, or of another kind.
    pub fn from_given(socket: OwnedFd) -> io::Result<Self> {
        let unix = sockopt::socket_domain(&socket)? == AddressFamily::UNIX;
        if !unix || sockopt::socket_type(&socket)? != SocketType::SEQPACKET {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a SOCK_SEQPACKET Unix socket"));
        }
        rustix::io::ioctl_fionbio(&socket, true)?;
        Ok(Self { socket })
    }

    /// Another handle of the same end.
    ///
    /// # Errors
    /// The system's, when descriptors are wanting.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { socket: self.socket.try_clone()? })
    }

    /// Sends at once or not at all. The descriptors stay the caller's.
    ///
    /// # Errors
    /// `WouldBlock` when the other end has too much to read; `BrokenPipe` and others when it is gone.
    pub fn send(&self, message: &impl Serialize, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let bytes = serde_json::to_vec(message)?;
        let mut space = vec![MaybeUninit::uninit(); cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let too_many = descriptors.len() > MOST_DESCRIPTORS
            || !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors));
        if bytes.len() > MOST_BYTES || too_many {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "more than a message holds"));
        }
        sendmsg(&self.socket, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// The next message, if there is one already.
    ///
    /// # Errors
    /// `WouldBlock` when there is none, `UnexpectedEof` when the other end is gone, `InvalidData` for what is not such a
    /// message. Descriptors that came with what cannot be read are closed.
    pub fn try_receive<T: DeserializeOwned>(&self) -> io::Result<(T, Vec<OwnedFd>)> {
        let mut bytes = vec![0; MOST_BYTES];
        let mut space = vec![MaybeUninit::uninit(); cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut into = [IoSliceMut::new(&mut bytes)];
        let received = recvmsg(&self.socket, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC)?;
        let rights = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        });
        let descriptors = rights.flatten().collect();
        if received.bytes == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // Descriptors beyond our limit are dropped by the kernel, and so are bytes beyond the buffer.
        if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a message arrived in part"));
        }
        let message = serde_json::from_slice(bytes.get(..received.bytes).unwrap_or_default())?;
        Ok((message, descriptors))
    }

    /// Waits for the next message, blocking the thread.
    ///
    /// # Errors
    /// As [`Self::try_receive`], and `TimedOut`.
    pub fn receive_blocking<T: DeserializeOwned>(&self, within: Duration) -> io::Result<(T, Vec<OwnedFd>)> {
        let within = Timespec::try_from(within).map_err(|_too_long| io::Error::from(io::ErrorKind::InvalidInput))?;
        loop {
            let mut wanted = [PollFd::new(&self.socket, PollFlags::IN)];
            match poll(&mut wanted, Some(&within)) {
                Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            match self.try_receive() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return result,
            }
        }
    }

    /// For use inside a runtime.
    ///
    /// # Errors
    /// When the runtime cannot watch it.
    pub fn watched(self) -> io::Result<AsyncLink> {
        #[expect(deprecated, reason = "the descriptor of a link stays the same for as long as it lives")]
        Ok(AsyncLink(AsyncFd::with_interest(self, Interest::READABLE)?))
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl std::os::fd::AsRawFd for Link {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.socket.as_raw_fd()
    }
}

/// One end inside a runtime.
#[derive(Debug)]
pub struct AsyncLink(AsyncFd<Link>);

impl AsyncLink {
    /// As [`Link::send`]: messages are few and small, so a full queue is an end that does not read.
    ///
    /// # Errors
    /// As [`Link::send`].
    pub fn send(&self, message: &impl Serialize, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.0.get_ref().send(message, descriptors)
    }

    /// The next message. Cancel safe.
    ///
    /// # Errors
    /// As [`Link::try_receive`], without `WouldBlock`.
    pub async fn receive<T: DeserializeOwned>(&self) -> io::Result<(T, Vec<OwnedFd>)> {
        loop {
            let mut ready = self.0.readable().await?;
            if let Ok(result) = ready.try_io(|link| link.get_ref().try_receive()) {
                return result;
            }
        }
    }
}

impl AsFd for AsyncLink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    fn pair() -> (Link, Link) {
        let (ours, theirs) = Link::pair().expect("a pair");
        (ours, Link::from_given(theirs).expect("the right kind"))
    }

    #[test]
    fn a_message_brings_its_descriptors_in_order() {
        let (ours, theirs) = pair();
        let pipes: Vec<_> = (0..MOST_DESCRIPTORS).map(|_| io::pipe().expect("a pipe")).collect();
        let ends: Vec<_> = pipes.iter().map(|(_, writer)| writer.as_fd()).collect();
        ours.send(&"all", &ends).expect("sent");
        let (text, descriptors) = theirs.receive_blocking::<String>(Duration::from_secs(5)).expect("received");
        assert_eq!((text.as_str(), descriptors.len()), ("all", MOST_DESCRIPTORS));
        for index in [0, MOST_DESCRIPTORS - 1] {
            let mut end = std::fs::File::from(descriptors[index].try_clone().expect("clone"));
            end.write_all(&[u8::try_from(index).expect("small")]).expect("write");
            let mut byte = [0];
            let mut reader = &pipes[index].0;
            reader.read_exact(&mut byte).expect("read");
            assert_eq!(usize::from(byte[0]), index);
        }
    }

    #[test]
    fn what_is_no_message_is_refused() {
        let (ours, theirs) = pair();
        let receive = || theirs.receive_blocking::<u32>(Duration::from_millis(20)).map(|(number, _)| number);
        assert_eq!(receive().expect_err("nothing yet").kind(), io::ErrorKind::TimedOut);
        ours.send(&"not a number", &[]).expect("sent");
        assert_eq!(receive().expect_err("a string").kind(), io::ErrorKind::InvalidData);
        let too_many = vec![ours.as_fd(); MOST_DESCRIPTORS + 1];
        assert_eq!(ours.send(&1, &too_many).expect_err("254").kind(), io::ErrorKind::InvalidInput);
        assert!(ours.send(&"x".repeat(MOST_BYTES), &[]).is_err());
        ours.send(&7, &[]).expect("sent");
        assert_eq!(receive().expect("a number"), 7, "and the link is as before");
        drop(ours);
        assert_eq!(receive().expect_err("gone").kind(), io::ErrorKind::UnexpectedEof);
        assert!(theirs.send(&1, &[]).is_err());
    }

    #[test]
    fn an_end_that_never_reads_blocks_nobody() {
        let (ours, _theirs) = pair();
        let error = (0..100_000).find_map(|_| ours.send(&"x".repeat(1000), &[]).err()).expect("full at some time");
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn only_a_link_is_taken_for_one() {
        let (reader, _writer) = io::pipe().expect("a pipe");
        Link::from_given(reader.into()).expect_err("a pipe");
        let (stream, _other) = std::os::unix::net::UnixStream::pair().expect("a pair");
        Link::from_given(stream.into()).expect_err("a stream");
    }
}
