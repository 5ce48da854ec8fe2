//! Request and response: each connection sends a message, waits for the same bytes back, compares them, and goes on; the server echoes.
//!
//! Every message is different (connection and sequence number are in it), so an answer that is late, doubled or someone else's is found.

use std::time::Instant;

use anyhow::{Context, Result, bail};
use rustix::event::epoll::EventFlags;
use rustix::fd::OwnedFd;

use super::{Load, Measured, Pair, Window, socket};

pub(super) struct Client {
    socket: OwnedFd,
    /// What goes out, and how much of it has gone.
    message: Vec<u8>,
    sent: usize,
    /// What came back, and how much of it.
    answer: Vec<u8>,
    received: usize,
    pub(super) begun: Instant,
}

pub(super) struct Echo {
    socket: OwnedFd,
    /// What the socket did not take yet.
    pending: Vec<u8>,
}

/// Bytes of the whole shape, both ends: sent by either, received by either.
#[derive(Default)]
pub(super) struct Totals {
    pub(super) sent: u64,
    pub(super) received: u64,
    pub(super) answers: u64,
}

/// One connection for each size of message.
pub(super) fn run(load: &mut Load, sizes: &[usize], window: &mut Window) -> Result<Measured> {
    let (mut clients, mut echoes) = open(load, sizes, 0)?;
    let totals = talk(load, &mut clients, &mut echoes, window)?;
    if totals.sent != totals.received {
        bail!("sent {} bytes, received {}", totals.sent, totals.received);
    }
    for (client, echo) in clients.into_iter().zip(echoes) {
        close(load, client, echo)?;
    }
    window.measured(totals.sent, totals.received)
}

/// Opens a connection for each size and watches its ends: with twice its number, counted from `first`, as token the client, with the next one the echo.
pub(super) fn open(load: &mut Load, sizes: &[usize], first: u64) -> Result<(Vec<Client>, Vec<Echo>)> {
    let (mut clients, mut echoes) = (Vec::new(), Vec::new());
    for (number, size) in (0..).zip(sizes) {
        let pair = load.open()?;
        clients.push(Client::new(pair.client, *size, number));
        echoes.push(Echo { socket: pair.server, pending: Vec::new() });
    }
    for (token, (client, echo)) in (2 * first..).step_by(2).zip(clients.iter().zip(&echoes)) {
        load.bell.add(&client.socket, token, EventFlags::IN)?;
        load.bell.add(&echo.socket, token + 1, EventFlags::IN)?;
    }
    Ok((clients, echoes))
}

/// Ends the connection, which must be silent.
pub(super) fn close(load: &Load, client: Client, echo: Echo) -> Result<()> {
    load.bell.remove(&client.socket)?;
    load.bell.remove(&echo.socket)?;
    Pair { client: client.socket, server: echo.socket }.close()
}

/// Talks until the window closes and every request has its answer.
fn talk(load: &mut Load, clients: &mut [Client], echoes: &mut [Echo], window: &mut Window) -> Result<Totals> {
    let mut totals = Totals::default();
    let mut scrap = vec![0; 64 * 1024];
    let mut events = Vec::with_capacity(256);
    let (mut talking, mut waiting) = (true, clients.len());
    for (token, client) in (0..).step_by(2).zip(&mut *clients) {
        client.ask(load, token, &mut totals)?;
    }
    while waiting > 0 {
        load.bell.wait(&mut events)?;
        for event in events.drain(..) {
            let token = event.data.u64();
            let index = usize::try_from(token / 2).context("token")?;
            if token % 2 == 1 {
                let echo = echoes.get_mut(index).context("no such echo")?;
                echo.turn(load, token, &mut scrap, &mut totals)?;
                continue;
            }
            let client = clients.get_mut(index).context("no such client")?;
            // Copied out, because the kernel's event is a packed struct.
            let flags = event.flags;
            if flags.contains(EventFlags::OUT) {
                client.push(load, token, &mut totals)?;
            }
            if client.pull(&mut totals)? {
                window.took(client.begun);
                if talking {
                    client.ask(load, token, &mut totals)?;
                } else {
                    waiting -= 1;
                }
            }
        }
        talking = talking && window.turn(load, totals.answers)?;
    }
    Ok(totals)
}

impl Client {
    fn new(socket: OwnedFd, size: usize, number: u32) -> Self {
        let mut message: Vec<u8> = (0..=u8::MAX).cycle().take(size).collect();
        for (place, byte) in message.iter_mut().zip(number.to_le_bytes()) {
            *place = byte;
        }
        Self { socket, answer: vec![0; size], message, sent: 0, received: 0, begun: Instant::now() }
    }

    /// Begins the next request.
    pub(super) fn ask(&mut self, load: &Load, token: u64, totals: &mut Totals) -> Result<()> {
        for (place, byte) in self.message.iter_mut().skip(4).zip(totals.answers.to_le_bytes()) {
            *place = byte;
        }
        (self.sent, self.received) = (0, 0);
        self.begun = Instant::now();
        let sent = socket::send(&self.socket, &self.message).context("client sends")?;
        self.sent = sent;
        totals.sent += sent as u64;
        if sent < self.message.len() {
            load.bell.change(&self.socket, token, EventFlags::IN | EventFlags::OUT)?;
        }
        Ok(())
    }

    /// Sends the rest of a message that did not go at once.
    pub(super) fn push(&mut self, load: &Load, token: u64, totals: &mut Totals) -> Result<()> {
        let rest = self.message.get(self.sent..).unwrap_or_default();
        let sent = socket::send(&self.socket, rest).context("client sends")?;
        self.sent += sent;
        totals.sent += sent as u64;
        if self.sent == self.message.len() {
            load.bell.change(&self.socket, token, EventFlags::IN)?;
        }
        Ok(())
    }

    /// Takes what came. True once the answer is whole, and then it was the right one.
    pub(super) fn pull(&mut self, totals: &mut Totals) -> Result<bool> {
        let room = self.answer.get_mut(self.received..).unwrap_or_default();
        let length = match socket::receive(&self.socket, room).context("client receives")? {
            None => return Ok(false),
            Some(0) => bail!("a connection ended by itself, or more came back than was sent"),
            Some(length) => length,
        };
        self.received += length;
        totals.received += length as u64;
        if self.received < self.answer.len() {
            return Ok(false);
        }
        if self.answer != self.message {
            bail!("an answer differs from its request");
        }
        totals.answers += 1;
        Ok(true)
    }
}

impl Echo {
    /// Sends what is pending, else echoes what came.
    pub(super) fn turn(&mut self, load: &Load, token: u64, scrap: &mut [u8], totals: &mut Totals) -> Result<()> {
        if !self.pending.is_empty() {
            let sent = socket::send(&self.socket, &self.pending).context("server sends")?;
            self.pending.drain(..sent);
            totals.sent += sent as u64;
            if self.pending.is_empty() {
                load.bell.change(&self.socket, token, EventFlags::IN)?;
            }
            return Ok(());
        }
        let length = match socket::receive(&self.socket, scrap).context("server receives")? {
            None => return Ok(()),
            Some(0) => bail!("a connection ended by itself, at the server's end"),
            Some(length) => length,
        };
        totals.received += length as u64;
        let bytes = scrap.get(..length).unwrap_or_default();
        let sent = socket::send(&self.socket, bytes).context("server sends")?;
        totals.sent += sent as u64;
        if sent < length {
            self.pending.extend_from_slice(bytes.get(sent..).unwrap_or_default());
            load.bell.change(&self.socket, token, EventFlags::OUT)?;
        }
        Ok(())
    }
}
