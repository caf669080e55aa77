//! Names: keeps the members' names in the hosts file, in a marked block.
//!
//! It reads what the peer table publishes, so nobody has to tell it anything. The state directory remembers which file
//! has a block, so that one left by a crash goes at the next start, whatever the options are by then.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use xtra::{Actor, Mailbox};

use super::client::ClientShared;
use super::desk::WriteDesk;
use super::ext::{Service, StopReason};
use crate::io::files::{FileError, edit};
use crate::proto::hosts::{Entry, with_block, without_block};

/// How often it is looked whether the members have changed.
const LOOK: Duration = Duration::from_secs(1);
/// How often the file is looked at though they have not: others write it, too.
const CHECK: Duration = Duration::from_secs(30);
/// Remembers the file that has a block.
const NOTE: &str = "hosts-file";

/// The actor.
pub struct Names {
    shared: Arc<ClientShared>,
    at: Instant,
    /// Reading and writing waits for the disk.
    desk: WriteDesk,
    book: Arc<Mutex<Book>>,
}

/// What is known of the file.
struct Book {
    shared: Arc<ClientShared>,
    /// What an earlier run may have left has been seen to.
    is_swept: bool,
    written: Option<(BTreeSet<Entry>, Instant)>,
    left_out: BTreeSet<String>,
    /// What went wrong the last time; told once.
    trouble: Option<String>,
}

impl Names {
    pub fn new(shared: Arc<ClientShared>) -> Self {
        let left_out = BTreeSet::new();
        let book = Book { shared: shared.clone(), is_swept: false, written: None, left_out, trouble: None };
        Self { shared, at: Instant::now(), desk: WriteDesk::default(), book: Arc::new(Mutex::new(book)) }
    }

    fn entries(&self) -> BTreeSet<Entry> {
        let mut entries = BTreeSet::new();
        let mut add = |name: &str, ips: [Option<IpAddr>; 2]| {
            entries.extend(ips.into_iter().flatten().map(|ip| Entry { ip, name: name.to_owned() }));
        };
        // Without a lease there is no network to reach anybody in.
        if let Some(lease) = self.shared.lease.load_full() {
            add(&self.shared.name.load(), [Some(lease.ip4.into()), lease.ip6.map(Into::into)]);
            for peer in self.shared.peers.load().iter() {
                let certificate = &peer.certificate;
                add(&peer.name, [Some(certificate.ip4.into()), certificate.ip6.map(Into::into)]);
            }
        }
        entries
    }

    /// Has something done with the book, behind what comes first whatever is asked for.
    fn put(&mut self, work: impl FnOnce(&mut Book) + Send + 'static) {
        let book = self.book.clone();
        self.desk.put(move || {
            let mut book = book.lock().unwrap_or_else(PoisonError::into_inner);
            if !std::mem::replace(&mut book.is_swept, true) {
                book.clear_leftovers();
            }
            work(&mut book);
        });
    }
}

impl Book {
    fn file(&self) -> Option<&Path> {
        self.shared.config.hosts.as_deref()
    }

    /// Takes out the block of an earlier run from a file that is not ours to keep any more.
    fn clear_leftovers(&self) {
        let Ok(Some(note)) = self.shared.state.read(NOTE) else { return };
        let old = PathBuf::from(std::ffi::OsString::from_vec(note));
        if self.file() != Some(&old) {
            self.clear(&old);
        }
    }

    fn clear(&self, file: &Path) {
        let cleared = edit(file, without_block).and_then(|_| self.shared.state.remove(NOTE));
        if let Err(error) = cleared {
            log::warn!("the members' names are still in the hosts file: {error}");
        }
    }

    fn keep(&mut self, entries: BTreeSet<Entry>, now: Instant) {
        let Some(file) = self.file().map(Path::to_owned) else { return };
        let trouble = self.write(&file, entries, now).err().map(|error| error.to_string());
        if let Some(trouble) = trouble.as_ref().filter(|new| self.trouble.as_ref() != Some(new)) {
            log::warn!("the members' names cannot be put into the hosts file: {trouble}");
        }
        self.trouble = trouble;
    }

    /// Whether there is nothing to do.
    fn is_kept(&self, entries: &BTreeSet<Entry>, now: Instant) -> bool {
        match &self.written {
            Some((old, at)) => old == entries && now < *at + CHECK,
            None => entries.is_empty(),
        }
    }

    fn write(&mut self, file: &Path, entries: BTreeSet<Entry>, now: Instant) -> Result<(), FileError> {
        if self.is_kept(&entries, now) {
            return Ok(());
        }
        // The note first: a crash in between leaves a note about nothing, and never a block that nobody knows of.
        self.shared.state.write_atomic(NOTE, file.as_os_str().as_bytes())?;
        let mut left_out = BTreeSet::new();
        let changed = edit(file, |text| {
            let (text, others) = with_block(text, &entries);
            left_out = others;
            text
        })?;
        if changed {
            log::debug!("{} names are in {}", entries.len() - left_out.len(), file.display());
        }
        for name in left_out.difference(&self.left_out) {
            log::warn!("the name {name} is not put into {}: it is no member's to take", file.display());
        }
        self.left_out = left_out;
        self.written = Some((entries, now));
        Ok(())
    }
}

impl Actor for Names {
    type Stop = StopReason;

    async fn started(&mut self, _: &Mailbox<Self>) -> Result<(), StopReason> {
        self.put(|_| {});
        Ok(())
    }

    async fn stopped(mut self) -> StopReason {
        self.put(|book| {
            if let Some(file) = book.file() {
                book.clear(file);
            }
        });
        self.desk.cleared().await;
        StopReason::Requested
    }
}

super::ext::answers_pings!(Names);

impl Service for Names {
    const NAME: &'static str = "names";

    fn next_timeout(&self) -> Option<Instant> {
        self.shared.config.hosts.as_ref().map(|_| self.at)
    }

    fn on_timeout(&mut self, now: Instant) {
        self.at = now + LOOK;
        let entries = self.entries();
        // Most of the time there is nothing to wait for the disk for.
        if !self.book.try_lock().is_ok_and(|book| book.is_kept(&entries, now)) {
            self.put(move |book| book.keep(entries, now));
        }
    }
}
