//! Short connections: connect, one byte each way, close; a fixed number of them at any time.
//!
//! The client closes as soon as it has its byte, the server when it sees the client's end. Every connection that a client completed must reach its end at the
//! server too, with exactly one byte.

use std::time::Instant;

use anyhow::{Context, Result, bail};
use rustix::event::epoll::EventFlags;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use slab::Slab;

use super::{Load, Measured, Window, blocked, socket};

/// The listener's token; clients have even ones, servers odd ones.
const LISTENER: u64 = u64::MAX;

struct Client {
    socket: OwnedFd,
    begun: Instant,
    /// Whether the byte went; it cannot before the connection stands.
    asked: bool,
}

struct Server {
    socket: OwnedFd,
    echoed: bool,
}

#[derive(Default)]
struct Shorts {
    clients: Slab<Client>,
    servers: Slab<Server>,
    /// Connections that the client, and that the server, saw through.
    completed: u64,
    served: u64,
}

pub(super) fn run(load: &mut Load, parallel: u32, window: &mut Window) -> Result<Measured> {
    let mut shorts = Shorts::default();
    let mut events = Vec::with_capacity(256);
    let mut opening = true;
    load.bell.add(&load.listener, LISTENER, EventFlags::IN)?;
    for _ in 0..parallel {
        shorts.open(load)?;
    }
    while !(shorts.clients.is_empty() && shorts.served == shorts.completed) {
        load.bell.wait(&mut events)?;
        for event in events.drain(..) {
            let token = event.data.u64();
            if token == LISTENER {
                shorts.accept(load)?;
                continue;
            }
            let key = usize::try_from(token / 2).context("token")?;
            if token % 2 == 1 {
                shorts.serve(key)?;
            } else if let Some(begun) = shorts.turn(load, key)? {
                window.took(begun);
                if opening {
                    shorts.open(load)?;
                }
            }
        }
        opening = opening && window.turn(load, shorts.completed)?;
    }
    load.bell.remove(&load.listener)?;
    if !shorts.servers.is_empty() {
        bail!("the server holds {} connections that no client made", shorts.servers.len());
    }
    window.measured(2 * shorts.completed, 2 * shorts.served)
}

impl Shorts {
    /// Begins the next connection.
    fn open(&mut self, load: &Load) -> Result<()> {
        let begun = Instant::now();
        let socket = socket::connect(load.target).with_context(|| format!("cannot connect to {}", load.target))?;
        let place = self.clients.vacant_entry();
        let token = place.key() as u64 * 2;
        // On loopback the connection stands already, unless the peer's accept queue is full.
        let asked = ask(&socket)?;
        let events = if asked { EventFlags::IN } else { EventFlags::OUT };
        load.bell.add(&socket, token, events)?;
        place.insert(Client { socket, begun, asked });
        Ok(())
    }

    /// Goes on with a client; returns when it began, once it is through.
    fn turn(&mut self, load: &Load, key: usize) -> Result<Option<Instant>> {
        // Without one this rings for a socket that is closed, of which a process that is starting still has a copy.
        let Some(client) = self.clients.get_mut(key) else { return Ok(None) };
        if !client.asked {
            socket::error(&client.socket).with_context(|| format!("cannot connect to {}", load.target))?;
            client.asked = ask(&client.socket)?;
            if client.asked {
                load.bell.change(&client.socket, key as u64 * 2, EventFlags::IN)?;
            }
            return Ok(None);
        }
        let mut answer = [0; 2];
        match socket::receive(&client.socket, &mut answer).context("client receives")? {
            None => Ok(None),
            Some(1) if answer == [BYTE, 0] => {
                self.completed += 1;
                Ok(Some(self.clients.remove(key).begun))
            }
            Some(length) => bail!("client expected the byte {BYTE}, got {length} bytes: {answer:?}"),
        }
    }

    fn accept(&mut self, load: &Load) -> Result<()> {
        loop {
            let socket = match socket::accept(&load.listener) {
                Ok(socket) => socket,
                Err(errno) if blocked(errno) => return Ok(()),
                Err(errno) => return Err(errno).context("cannot accept"),
            };
            let place = self.servers.vacant_entry();
            let key = place.key();
            load.bell.add(&socket, key as u64 * 2 + 1, EventFlags::IN)?;
            place.insert(Server { socket, echoed: false });
            // The byte is often there already; if not, the bell will ring for it.
            self.serve(key)?;
        }
    }

    /// Echoes the byte, or closes at the client's end.
    fn serve(&mut self, key: usize) -> Result<()> {
        // As for a client.
        let Some(server) = self.servers.get_mut(key) else { return Ok(()) };
        let mut byte = [0; 2];
        match socket::receive(&server.socket, &mut byte).context("server receives")? {
            None => Ok(()),
            Some(0) if server.echoed => {
                self.servers.remove(key);
                self.served += 1;
                Ok(())
            }
            Some(1) if !server.echoed => {
                server.echoed = true;
                socket::send_all(&server.socket, &byte[..1]).context("server sends")
            }
            Some(length) => {
                bail!("server got {length} bytes in its {} turn", if server.echoed { "second" } else { "first" })
            }
        }
    }
}

/// What a client says.
const BYTE: u8 = 0x2a;

/// Sends the byte; false when the connection does not stand yet.
fn ask(socket: &OwnedFd) -> Result<bool> {
    match socket::send(socket, &[BYTE]) {
        Ok(sent) => Ok(sent == 1),
        Err(Errno::NOTCONN) => Ok(false),
        Err(errno) => Err(errno).context("client sends"),
    }
}
