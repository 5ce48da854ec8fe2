//! Handing over: what a running version (the predecessor) and the one that it has started (the successor) say to each
//! other over a [`Link`]. Every socket is known by the name of its listener.
//!
//! ```text
//! predecessor                          successor
//! sockets, at most 253 a message  ->
//!                                 <-   received, after each
//!                                      (reads settings and state; serves nobody yet)
//!                                 <-   ready, or failed and why
//! take over                       ->
//!                                 <-   accepting
//! (stops accepting, drains)
//! draining: how many are left     ->   until the link ends with the process
//! ```
//!
//! Until `accepting` the predecessor serves as if nothing were: whatever goes wrong before costs nobody anything. If it is
//! the predecessor that dies, the successor takes over by itself once it is ready. Either may be the older program:
//! messages are JSON and unknown members are ignored; a successor that does not know this protocol says so and leaves.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::time::timeout;

use super::link::{AsyncLink, Link, MOST_DESCRIPTORS};

/// Of the messages here.
const PROTOCOL: u32 = 1;
/// How long an answer may take that needs no work.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// How long a predecessor may take to let a successor serve that could. It has nothing else to do.
const LEAVE_WITHIN: Duration = Duration::from_secs(30);
/// Longest text that is passed on.
const MOST_REASON: usize = 8 << 10;

/// A version of adit that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    pub pid: u32,
    pub version: String,
}

impl Version {
    #[must_use]
    pub fn own() -> Self {
        Self { pid: std::process::id(), version: env!("CARGO_PKG_VERSION").to_owned() }
    }
}

/// What a descriptor in a message is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Item {
    /// A listening socket, by the name of its listener.
    Listener(String),
    /// The link to a version that is still draining.
    Draining(Version),
}

/// From predecessor to successor.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Down {
    #[serde(rename_all = "camelCase")]
    Sockets {
        protocol: u32,
        from: Version,
        /// One for each descriptor.
        items: Vec<Item>,
        /// Whether another message of them follows.
        more: bool,
    },
    TakeOver,
    /// Nothing comes of it: the successor must leave.
    Withdrawn,
    Draining(Left),
}

/// From successor to predecessor.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Up {
    Received { count: usize },
    Ready(Ready),
    Failed { reason: String },
    Accepting,
}

/// A successor that could serve.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ready {
    pub version: Version,
    /// Sockets that it has taken over.
    pub moved: usize,
    /// Names of listeners that it has opened anew, because their address has changed or they are new.
    pub opened: Vec<String>,
    /// Names of listeners whose sockets it has no use for.
    pub left: Vec<String>,
}

/// What a draining version still has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Left {
    pub connections: u64,
    /// RFC 3339; nothing: it waits for the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
}

/// Why a handover did not happen.
#[derive(Debug, Error)]
pub enum HandoverError {
    #[error("{0}")]
    Refused(String),
    #[error("it ended before it was ready")]
    Ended,
    #[error("it was not ready within {}", humantime::format_duration(*.0))]
    Late(Duration),
    #[error("it did not answer within {}", humantime::format_duration(*.0))]
    Silent(Duration),
    #[error("it said something else than what was asked for")]
    Confused,
    #[error("the upgrade was taken back")]
    Withdrawn,
    #[error("the link to it failed: {0}")]
    Link(#[source] io::Error),
}

impl HandoverError {
    fn of_link(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Self::Ended,
            io::ErrorKind::TimedOut => Self::Silent(ANSWER_WITHIN),
            _ => Self::Link(error),
        }
    }
}

/// The predecessor's side.
#[derive(Debug)]
pub struct Heir {
    link: AsyncLink,
}

/// What the predecessor gives.
#[derive(Debug, Default)]
pub struct Gift<'a> {
    items: Vec<Item>,
    descriptors: Vec<BorrowedFd<'a>>,
}

impl<'a> Gift<'a> {
    pub fn listener(&mut self, name: &str, socket: BorrowedFd<'a>) {
        self.items.push(Item::Listener(name.to_owned()));
        self.descriptors.push(socket);
    }

    pub fn draining(&mut self, draining: &'a Draining) {
        self.items.push(Item::Draining(draining.version.clone()));
        self.descriptors.push(draining.link.as_fd());
    }
}

impl Heir {
    /// # Errors
    /// When the runtime cannot watch the link.
    pub fn new(link: Link) -> io::Result<Self> {
        Ok(Self { link: link.watched()? })
    }

    /// Sends everything and waits until it is there.
    ///
    /// # Errors
    /// What the successor did instead.
    pub async fn give(&self, gift: &Gift<'_>) -> Result<(), HandoverError> {
        let mut items = gift.items.chunks(MOST_DESCRIPTORS).peekable();
        let mut descriptors = gift.descriptors.chunks(MOST_DESCRIPTORS);
        loop {
            let part = items.next().unwrap_or_default();
            let more = items.peek().is_some();
            let message = Down::Sockets { protocol: PROTOCOL, from: Version::own(), items: part.to_vec(), more };
            self.link.send(&message, descriptors.next().unwrap_or_default()).map_err(HandoverError::of_link)?;
            match self.answer(ANSWER_WITHIN).await? {
                Up::Received { count } if count == part.len() => {}
                other => return Err(refusal(other)),
            }
            if !more {
                return Ok(());
            }
        }
    }

    /// Waits until the successor could serve.
    ///
    /// # Errors
    /// Why it cannot.
    pub async fn ready(&self, within: Duration) -> Result<Ready, HandoverError> {
        match self.answer(within).await {
            Ok(Up::Ready(ready)) => Ok(ready),
            Ok(other) => Err(refusal(other)),
            Err(HandoverError::Silent(within)) => Err(HandoverError::Late(within)),
            Err(error) => Err(error),
        }
    }

    /// Lets it serve; returns once it accepts. From here on there is no way back but its end: it may accept already when it is
    /// late to say so.
    ///
    /// # Errors
    /// When it has ended instead.
    pub async fn take_over(&self) -> Result<(), HandoverError> {
        self.link.send(&Down::TakeOver, &[]).map_err(HandoverError::of_link)?;
        loop {
            match self.answer(ANSWER_WITHIN).await {
                Ok(Up::Accepting) => return Ok(()),
                Ok(_) => {}
                Err(HandoverError::Silent(_)) => tracing::warn!("the new version has not said yet that it accepts"),
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes it all back. Without this a link that ends is a predecessor that has died, whose place is free.
    pub fn withdraw(&self) {
        let _gone = self.link.send(&Down::Withdrawn, &[]);
    }

    /// Tells it, or whoever it has passed the link on to, what is left here. A reader that is behind gets the next one.
    pub fn tell(&self, left: &Left) {
        let _behind_or_gone = self.link.send(&Down::Draining(left.clone()), &[]);
    }

    async fn answer(&self, within: Duration) -> Result<Up, HandoverError> {
        let received = timeout(within, self.link.receive()).await.map_err(|_elapsed| HandoverError::Silent(within))?;
        Ok(received.map_err(HandoverError::of_link)?.0)
    }
}

fn refusal(up: Up) -> HandoverError {
    match up {
        Up::Failed { reason } => HandoverError::Refused(reason),
        _ => HandoverError::Confused,
    }
}

/// What a predecessor has left to its successor.
#[derive(Debug)]
pub struct Legacy {
    pub from: Version,
    /// Listening sockets by name, in the order in which they were given.
    pub sockets: Vec<(String, OwnedFd)>,
    /// Versions before it that still drain, the oldest first.
    pub draining: Vec<(Version, OwnedFd)>,
}

/// Receives what the predecessor gives, blocking.
///
/// # Errors
/// When it is gone, says nothing for some seconds, or speaks another protocol; it has been told then.
pub fn receive(link: &Link) -> Result<Legacy, HandoverError> {
    let (mut sockets, mut draining) = (Vec::new(), Vec::new());
    loop {
        let (message, descriptors) = link.receive_blocking::<Down>(ANSWER_WITHIN).map_err(HandoverError::of_link)?;
        let Down::Sockets { protocol, from, items, more } = message else { return Err(HandoverError::Confused) };
        if protocol != PROTOCOL {
            return Err(HandoverError::Refused(format!(
                "it speaks version {protocol} of the handover, and not {PROTOCOL}"
            )));
        }
        if items.len() != descriptors.len() {
            return Err(HandoverError::Confused);
        }
        let count = items.len();
        for (item, descriptor) in items.into_iter().zip(descriptors) {
            match item {
                Item::Listener(name) => sockets.push((name, descriptor)),
                Item::Draining(version) => draining.push((version, descriptor)),
            }
        }
        link.send(&Up::Received { count }, &[]).map_err(HandoverError::of_link)?;
        if !more {
            return Ok(Legacy { from, sockets, draining });
        }
    }
}

/// Tells the predecessor, if it is still there, that nothing comes of it.
pub fn fail(link: &Link, reason: &str) {
    let reason: String = reason.chars().take(MOST_REASON / 4).collect();
    let _gone = link.send(&Up::Failed { reason }, &[]);
}

/// A version before this one, from this one's side: first the predecessor that waits for us, then one that drains.
#[derive(Debug)]
pub struct Draining {
    pub version: Version,
    link: AsyncLink,
}

/// What became of the wish to take over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leave {
    /// The predecessor waits for [`Draining::accepting`].
    Given,
    /// There is no predecessor any more.
    Orphaned,
}

impl Draining {
    /// # Errors
    /// When the runtime cannot watch the link.
    pub fn new(version: Version, link: Link) -> io::Result<Self> {
        Ok(Self { version, link: link.watched()? })
    }

    /// Says that we could serve, and waits for leave to. A predecessor that is gone cannot object.
    ///
    /// # Errors
    /// When it says anything else, or nothing for long: it stands still, and may go on.
    pub async fn ready(&self, ready: Ready) -> Result<Leave, HandoverError> {
        // To one that is gone it cannot be said, and yet its last word may lie there.
        let _gone = self.link.send(&Up::Ready(ready), &[]);
        let answer = timeout(LEAVE_WITHIN, self.link.receive()).await;
        match answer.map_err(|_elapsed| HandoverError::Silent(LEAVE_WITHIN))? {
            Ok((Down::TakeOver, _)) => Ok(Leave::Given),
            Ok((Down::Withdrawn, _)) => Err(HandoverError::Withdrawn),
            Ok(_) => Err(HandoverError::Confused),
            Err(error) => orphaned(error),
        }
    }

    /// Tells it that its part is over.
    pub fn accepting(&self) {
        let _gone = self.link.send(&Up::Accepting, &[]);
    }

    /// What it has left now; nothing: it is gone. Cancel safe.
    pub async fn left(&self) -> Option<Left> {
        loop {
            match self.link.receive().await {
                Ok((Down::Draining(left), _)) => return Some(left),
                // A newer program may say more than we know.
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {}
                Ok(_) => {}
                Err(_gone) => return None,
            }
        }
    }
}

fn orphaned(error: io::Error) -> Result<Leave, HandoverError> {
    match HandoverError::of_link(error) {
        HandoverError::Ended => Ok(Leave::Orphaned),
        error => Err(error),
    }
}

#[cfg(test)]
mod tests;
