//! The client's TCP connections to its servers: dialled as long as they are wanted, again when they break.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use smol::{Timer, future};

use super::netlink::source_towards;
use super::tcp::{TcpConnect, TcpError, TcpTx};

/// All connections that are wanted.
#[derive(Default)]
pub struct TcpDials {
    tx: TcpTx,
    dials: Vec<Dial>,
}

/// What happened to one of them.
#[derive(Debug)]
pub enum TcpNews {
    /// It is open, and can be sent to.
    Open,
    /// It could not be made, or broke; it will be tried again.
    Closed(TcpError),
    Datagram(Vec<u8>),
}

struct Dial {
    addr: SocketAddr,
    state: State,
    failures: usize,
}

enum State {
    Dialling(BoxFuture<'static, Result<TcpConnect, TcpError>>),
    Open(TcpConnect),
    Waiting(Timer),
}

impl TcpDials {
    /// None, until some are wanted. What is sent by `tx` goes over them.
    pub fn new(tx: TcpTx) -> Self {
        Self { tx, dials: Vec::new() }
    }

    /// From here on these are wanted; others are closed.
    pub fn want(&mut self, wanted: &[SocketAddr]) {
        self.dials.retain(|dial| wanted.contains(&dial.addr));
        for addr in wanted {
            if self.dials.iter().all(|dial| dial.addr != *addr) {
                self.dials.push(Dial { addr: *addr, state: self.dial(*addr), failures: 0 });
            }
        }
    }

    /// Those that are open.
    pub fn open(&self) -> Vec<SocketAddr> {
        let open = self.dials.iter().filter(|dial| matches!(dial.state, State::Open(_)));
        open.map(|dial| dial.addr).collect()
    }

    /// The machine's addresses or routes have changed: what goes from an address that no datagram to the same server
    /// would go from any more is dead, or will be, and is dialled anew; and who waits need not. Whether one was open.
    pub fn check(&mut self) -> bool {
        let mut closed = false;
        for at in 0..self.dials.len() {
            let Dial { addr, state, .. } = &self.dials[at];
            let stale = match state {
                State::Open(connect) => connect.local_ip() != source_towards(addr.ip()),
                State::Dialling(_) | State::Waiting(_) => true,
            };
            if stale {
                closed |= matches!(state, State::Open(_));
                let addr = *addr;
                // The old one leaves the table first: both have the same name there.
                self.dials[at].state = State::Waiting(Timer::never());
                self.dials[at] = Dial { addr, state: self.dial(addr), failures: 0 };
            }
        }
        closed
    }

    fn dial(&self, addr: SocketAddr) -> State {
        let tx = self.tx.clone();
        let open = async move { TcpConnect::open(addr, tx).await };
        let too_late = async move {
            Timer::after(CONNECT_WITHIN).await;
            Err(TcpError::Connect { addr, source: io::ErrorKind::TimedOut.into() })
        };
        State::Dialling(Box::pin(future::or(open, too_late)))
    }

    /// The next thing that happens to any of them.
    pub fn poll_news(&mut self, cx: &mut Context<'_>) -> Poll<(SocketAddr, TcpNews)> {
        for at in 0..self.dials.len() {
            if let Poll::Ready(news) = self.poll_one(at, cx) {
                return Poll::Ready((self.dials[at].addr, news));
            }
        }
        Poll::Pending
    }

    fn poll_one(&mut self, at: usize, cx: &mut Context<'_>) -> Poll<TcpNews> {
        loop {
            let dial = &mut self.dials[at];
            let error = match &mut dial.state {
                State::Dialling(open) => match open.as_mut().poll(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Ok(connect)) => {
                        (dial.state, dial.failures) = (State::Open(connect), 0);
                        return Poll::Ready(TcpNews::Open);
                    }
                    Poll::Ready(Err(error)) => error,
                },
                State::Open(connect) => match connect.poll_recv(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Ok(datagram)) => return Poll::Ready(TcpNews::Datagram(datagram)),
                    Poll::Ready(Err(error)) => error,
                },
                State::Waiting(timer) => match Pin::new(timer).poll(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(_) => {
                        let addr = dial.addr;
                        self.dials[at].state = self.dial(addr);
                        continue;
                    }
                },
            };
            let wait = REDIAL[dial.failures.min(REDIAL.len() - 1)];
            dial.failures += 1;
            dial.state = State::Waiting(Timer::after(wait));
            return Poll::Ready(TcpNews::Closed(error));
        }
    }
}

/// A connection is made within this time, or given up: two repetitions of a SYN that was lost (RFC 6298: 1 s, 2 s).
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// Waits between tries. The last one repeats for as long as the connection is wanted.
const REDIAL: &[Duration] = &[
    Duration::from_millis(100),
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(5),
];

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::net::Ipv4Addr;
    use std::time::Instant;

    use super::super::tcp::TcpListen;
    use super::*;

    const SOON: Duration = Duration::from_secs(8);

    async fn next(dials: &mut TcpDials) -> TcpNews {
        let news = async { Some(poll_fn(|cx| dials.poll_news(cx)).await.1) };
        let late = async {
            Timer::after(SOON).await;
            None
        };
        future::or(news, late).await.expect("waited in vain")
    }

    fn listen(port: u16) -> TcpListen {
        TcpListen::bind(&[Ipv4Addr::LOCALHOST.into()], port).expect("a listener")
    }

    #[test]
    fn a_wanted_connection_is_made_again_when_it_breaks_and_an_unwanted_one_is_closed() {
        smol::block_on(async {
            let (tx, first) = (TcpTx::default(), listen(0));
            let addr = first.local_addrs()[0];
            let mut dials = TcpDials::new(tx.clone());
            dials.want(&[addr]);
            let talk = async {
                assert!(matches!(next(&mut dials).await, TcpNews::Open));
                assert_eq!(dials.open(), [addr]);
                assert!(!dials.check(), "nothing has changed");
                assert!(tx.send(addr, b"hello"));
                assert!(matches!(next(&mut dials).await, TcpNews::Datagram(echo) if echo == b"hello"));
            };
            let echo = first.tx();
            let serve = first.accept_loop(move |from, datagram| assert!(echo.send(from.addr, &datagram)));
            future::or(talk, serve).await;
            drop(first);
            let begun = Instant::now();
            assert!(matches!(next(&mut dials).await, TcpNews::Closed(_)));
            assert!(dials.open().is_empty() && !tx.send(addr, b"nobody"));
            // Refused at first, then somebody listens again.
            assert!(matches!(next(&mut dials).await, TcpNews::Closed(TcpError::Connect { .. })));
            let second = listen(addr.port());
            while !matches!(next(&mut dials).await, TcpNews::Open) {}
            println!("a connection was made again after {:.0} ms", begun.elapsed().as_secs_f64() * 1e3);
            dials.want(&[]);
            assert!(dials.open().is_empty() && !tx.send(addr, b"nobody"));
            drop(second);
        });
    }
}
