//! Follows what this machine's network is, for as long as somebody wants to know.
//!
//! A socket that fails is opened anew, so that nobody goes on with what was true before it failed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use smol::Timer;

use super::netlink::{Netlink, NetlinkError, NetlinkWatch};

/// Between a failure and the next attempt.
const AGAIN: Duration = Duration::from_secs(1);

/// A conversation about this machine's network that heals.
pub struct Following {
    open: Option<(Arc<Netlink>, NetlinkWatch)>,
    /// Changes are gathered for this long before anybody looks: they come in groups.
    gather: Duration,
    /// When to look; `None`: after the next change.
    look_at: Option<Instant>,
    /// A failure was told, and nothing has gone well since.
    said: bool,
}

impl Following {
    /// Opens it in the calling thread's network namespace.
    pub fn begin(gather: Duration) -> Self {
        let mut following = Self { open: None, gather, look_at: Some(Instant::now()), said: false };
        following.reopen();
        following
    }

    /// Whether the kernel can be asked.
    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Waits until there is something to look at, with what to look: the first time at once, then after each change.
    /// Several changes in a row may count as one. Safe to drop.
    pub async fn changed(&mut self) -> Arc<Netlink> {
        loop {
            if let Some(at) = self.look_at {
                Timer::at(at).await;
                if self.open.is_none() {
                    self.reopen();
                }
                if let Some((netlink, _)) = &self.open {
                    self.look_at = None;
                    return netlink.clone();
                }
                continue;
            }
            let Some((_, watch)) = &self.open else {
                self.look_at = Some(Instant::now() + AGAIN);
                continue;
            };
            match watch.changed().await {
                Ok(()) => {
                    self.said = false;
                    self.look_at = Some(Instant::now() + self.gather);
                }
                Err(error) => self.lost(&error),
            }
        }
    }

    /// Takes what became of a look: whether what was seen has been told, or why nothing was seen. Unless all went well
    /// there is another in a moment, whatever changes.
    pub fn looked(&mut self, told: Result<bool, NetlinkError>) {
        match told {
            Ok(true) => {}
            Ok(false) => self.look_at = Some(Instant::now() + AGAIN),
            Err(error) => self.lost(&error),
        }
    }

    fn lost(&mut self, error: &NetlinkError) {
        self.open = None;
        self.look_at = Some(Instant::now() + AGAIN);
        if std::mem::replace(&mut self.said, true) {
            log::debug!("this machine's networks cannot be read: {error}");
        } else {
            log::warn!("this machine's networks cannot be read ({error}); it is tried again each second");
        }
    }

    fn reopen(&mut self) {
        // The watch first: what changes after the first look is then seen.
        match NetlinkWatch::open().and_then(|watch| Ok((Arc::new(Netlink::open()?), watch))) {
            Ok(open) => self.open = Some(open),
            Err(error) => self.lost(&error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::super::netns::{Netns, can_make_networks};
    use super::*;

    /// How long it takes until there is something to look at, if that is before a limit.
    async fn waited(following: &mut Following, limit: Duration) -> Option<Duration> {
        let begun = Instant::now();
        let none = async {
            Timer::after(limit).await;
            None
        };
        smol::future::or(async { Some(following.changed().await) }, none).await.map(|_| begun.elapsed())
    }

    #[test]
    fn following_a_network_outlives_the_failure_of_its_socket_and_of_a_look() {
        if !can_make_networks() {
            return;
        }
        let ns = Netns::new().expect("a namespace");
        let other = ns.netlink().expect("a netlink socket");
        let add = async |last: u8| other.add_address(1, IpAddr::from([10, 5, 5, last]), 32).await.expect("an address");
        let limit = Duration::from_secs(5);
        // Opened anew in the thread that waits, which is in the namespace.
        ns.run(|| {
            smol::block_on(async {
                let mut following = Following::begin(Duration::from_millis(20));
                assert!(waited(&mut following, limit).await.is_some(), "the first look");
                while waited(&mut following, Duration::from_millis(100)).await.is_some() {}
                add(1).await;
                assert!(waited(&mut following, limit).await.is_some(), "a change");
                while waited(&mut following, Duration::from_millis(100)).await.is_some() {}

                following.open.as_mut().expect("open").1 = NetlinkWatch::failing();
                let healed = waited(&mut following, limit).await.expect("a look after the failure");
                while waited(&mut following, Duration::from_millis(100)).await.is_some() {}
                add(2).await;
                let netlink = following.changed().await;
                let seen = netlink.addresses().await.expect("addresses");
                assert!(seen.iter().any(|address| address.addr == IpAddr::from([10, 5, 5, 2])), "{seen:?}");

                while waited(&mut following, Duration::from_millis(100)).await.is_some() {}
                following.looked(Err(NetlinkError::NoSuchLink { name: "a reply that does not come".into() }));
                assert!(waited(&mut following, limit).await.is_some(), "what could not be read is read again");
                while waited(&mut following, Duration::from_millis(100)).await.is_some() {}
                following.looked(Ok(false));
                let again = waited(&mut following, limit).await.expect("what could not be told");
                println!("a failed socket is replaced after {healed:.1?}; what could not be told is seen again after {again:.1?}");
            });
        });
    }
}
