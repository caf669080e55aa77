//! The way of a frame allocates nothing and logs nothing, frame or super-frame, out and in.
//!
//! The real data path between two real TAPs, over real sockets; only the sessions and the views are made by hand.

#![allow(unsafe_code, reason = "an allocator cannot be written without")]
#![allow(clippy::disallowed_methods, clippy::print_stdout, reason = "tests have a clock, and figures are printed")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use eps_actor::actors::datapath::{Egress, Ingress, IngressCasts, Views};
use eps_actor::actors::ext::Caster;
use eps_actor::counters::Counters;
use eps_actor::ids::{Endpoint, MacAddr, PeerIdx, PublicKey, Route, SessionIndex, UplinkId};
use eps_actor::io::netns::{Netns, can_make_networks};
use eps_actor::io::tap::{Tap, TapConfig};
use eps_actor::io::tap_slot::TapSlot;
use eps_actor::io::udp::{RecvBatch, UdpUplink};
use eps_actor::io::uplinks::Uplinks;
use eps_actor::messages::mac_learning::Learn;
use eps_actor::messages::peer_table::{Confirmed, Inbound, PeerControl, SeenFrom, Want};
use eps_actor::messages::server_link::{ServerControl, ServerInbound};
use eps_actor::proto::crypto::{Suite, transport_keys};
use eps_actor::proto::fdb::Fdb;
use eps_actor::proto::guard::{PeerCredentials, Rights};
use eps_actor::proto::mtu::Fit;
use eps_actor::proto::session::{Epoch, Meter, Owner, Session, SessionParts};
use eps_actor::view::{Outlet, PeerEntry, PeerHandle, PeerView, SelfView, ServerView};
use eps_actor::wire::checksum;
use eps_actor::wire::handshake::Capabilities;
use eps_actor::wire::vnet::{Gso, VnetHeader};
use xtra::{Actor, Context, Handler, Mailbox};
use zeroize::Zeroizing;

const FRAMES: usize = 10_000;
const SUPER_FRAMES: usize = 1_000;
/// Frames under way at once; a TAP's queue takes 500.
const BURST: usize = 20;
const SEGMENT: usize = 1300;
const SEGMENTS: usize = 40;
const SOON: Duration = Duration::from_secs(10);

/// Counts what the calling thread asks for.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
    static RECORDS: Cell<u64> = const { Cell::new(0) };
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count(what: &'static std::thread::LocalKey<Cell<u64>>) {
    // A thread that ends may still free and allocate.
    let _ = what.try_with(|count| count.set(count.get() + 1));
}

// SAFETY: all is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(&ALLOCATIONS);
        // SAFETY: as of the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(&ALLOCATIONS);
        // SAFETY: as of the caller.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(&ALLOCATIONS);
        // SAFETY: as of the caller.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as of the caller.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// Takes every record there is, and counts it.
struct Listener;

impl log::Log for Listener {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, _: &log::Record<'_>) {
        count(&RECORDS);
    }

    fn flush(&self) {}
}

/// What `work` allocated and logged on this thread.
fn costs(work: impl FnOnce()) -> (u64, u64) {
    let look = || (ALLOCATIONS.with(Cell::get), RECORDS.with(Cell::get));
    let before = look();
    work();
    let after = look();
    (after.0 - before.0, after.1 - before.1)
}

#[test]
fn frames_and_super_frames_allocate_nothing_and_log_nothing() {
    if !can_make_networks() {
        return;
    }
    log::set_logger(&Listener).expect("the only logger");
    log::set_max_level(log::LevelFilter::Trace);
    let counted = costs(|| {
        log::trace!("one, of {}", std::hint::black_box(Box::new(1)));
    });
    assert_eq!(counted, (1, 1), "the counters count");

    for suite in [Suite::Aes256Gcm, Suite::ChaCha20Poly1305] {
        for offload in [true, false] {
            let [mut ada, mut bob] = sides(offload, suite);
            let sealed_whole = |side: &Side| side.counters.whole_sealed.load(Relaxed);
            for _ in 0..50 {
                both_ways(&mut ada, &mut bob, |from, to| carry(from, to, BURST, 1));
                both_ways(&mut ada, &mut bob, |from, to| carry(from, to, 1, SEGMENTS));
                both_ways(&mut ada, &mut bob, carry_tcp);
            }
            assert_eq!(sealed_whole(&ada) > 0, offload, "whole super-frames go where they are taken");
            let frames = costs(|| {
                for _ in 0..FRAMES / BURST {
                    both_ways(&mut ada, &mut bob, |from, to| carry(from, to, BURST, 1));
                }
            });
            let before = ada.counters.list();
            let super_frames = costs(|| {
                for _ in 0..SUPER_FRAMES {
                    both_ways(&mut ada, &mut bob, |from, to| carry(from, to, 1, SEGMENTS));
                }
            });
            let after = ada.counters.list();
            let segments = costs(|| {
                for _ in 0..SUPER_FRAMES {
                    both_ways(&mut ada, &mut bob, carry_tcp);
                }
            });
            // As after losses.
            for side in [&ada, &bob] {
                side.meter.whole.hold(1 << 40);
            }
            let so_far = sealed_whole(&ada);
            both_ways(&mut ada, &mut bob, carry_tcp);
            let cut = costs(|| {
                for _ in 0..SUPER_FRAMES {
                    both_ways(&mut ada, &mut bob, carry_tcp);
                }
            });
            assert_eq!(sealed_whole(&ada), so_far, "none goes whole after losses");
            let grown = |name: &str| {
                let of = |list: &[(String, u64)]| list.iter().find(|(key, _)| key == name).expect("a counter").1;
                of(&after) - of(&before)
            };
            let (reads, read) = (grown("tap_rx_calls"), grown("tap_rx_frames"));
            println!(
                "{suite:?}, offload {offload}: (allocations, log records) of {FRAMES} frames each way: {frames:?}; of \
                 {SUPER_FRAMES} UDP super-frames: {super_frames:?} ({read} frames in {reads} reads at ada); of \
                 {SUPER_FRAMES} TCP super-frames: {segments:?}, and of as many not sealed whole: {cut:?}"
            );
            assert_eq!((frames, super_frames, segments, cut), ((0, 0), (0, 0), (0, 0), (0, 0)));
            assert_eq!(offload, reads * 10 < read, "super-frames happen where they are offloaded");
            for side in [&ada, &bob] {
                let drops =
                    side.counters.list().into_iter().filter(|(name, count)| name.contains("drop") && *count > 0);
                assert_eq!(drops.collect::<Vec<_>>(), []);
            }
        }
    }
}

fn both_ways(ada: &mut Side, bob: &mut Side, mut way: impl FnMut(&mut Side, &mut Side)) {
    way(ada, bob);
    way(bob, ada);
}

/// `sends` segmented sends of a program at one side reach a program at the other.
fn carry(from: &mut Side, to: &mut Side, sends: usize, segments: usize) {
    static PAYLOAD: [u8; SEGMENT * SEGMENTS] = [0x5a; SEGMENT * SEGMENTS];
    for _ in 0..sends {
        let bytes = &PAYLOAD[..SEGMENT * segments];
        from.program.send(to.program.local_addr(), bytes, Some(SEGMENT)).expect("sent");
    }
    let start = Instant::now();
    let mut arrived = 0;
    while arrived < sends * segments {
        assert!(start.elapsed() < SOON, "{arrived} of {} datagrams came", sends * segments);
        from.read();
        to.receive();
        match to.program.try_recv(&mut to.inbox) {
            Ok(count) => arrived += count,
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "{error}"),
        }
    }
}

/// A TCP super-frame as the TAP would give it; the other side's kernel knows no such connection.
fn carry_tcp(from: &mut Side, to: &mut Side) {
    let Side { egress, segments, buffer, .. } = from;
    let mut scope = egress.scope(Instant::now());
    let read = &mut buffer[..segments.len()];
    read.copy_from_slice(segments);
    egress.frame(read, true, &mut scope);
    egress.finish(&scope);
    let written = |side: &Side| side.counters.tap_tx_frames.load(Relaxed);
    let all = written(to) + SEGMENTS as u64;
    let start = Instant::now();
    while written(to) < all {
        assert!(start.elapsed() < SOON, "{} of {SEGMENTS} segments are missing", all - written(to));
        to.receive();
    }
    // What the kernel answers goes back.
    to.read();
    from.receive();
}

/// A node, as far as frames are concerned, and a program on its machine.
struct Side {
    egress: Egress,
    ingress: Ingress,
    tap: Arc<Tap>,
    uplink: Arc<UdpUplink>,
    counters: Arc<Counters>,
    meter: Arc<Meter>,
    program: UdpUplink,
    /// Datagrams that came from the other one.
    frames: usize,
    buffer: Vec<u8>,
    batch: RecvBatch,
    inbox: RecvBatch,
    /// A TCP super-frame to the other one.
    segments: Vec<u8>,
    _ns: Netns,
    _mailbox: Mailbox<Nobody>,
}

impl Side {
    /// What the TAP's reader does.
    fn read(&mut self) {
        let mut scope = self.egress.scope(Instant::now());
        let offloaded = self.tap.offloads().is_some();
        loop {
            match self.tap.try_read(&mut self.buffer) {
                Ok(length) => self.egress.frame(&mut self.buffer[..length], offloaded, &mut scope),
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "{error}");
                    break;
                }
            }
        }
        self.egress.finish(&scope);
    }

    /// What the socket's reader does.
    fn receive(&mut self) {
        loop {
            match self.uplink.try_recv(&mut self.batch) {
                Ok(count) => self.frames += count,
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "{error}");
                    return;
                }
            }
            let mut scope = self.ingress.scope(Instant::now());
            let (arena, trains) = self.batch.trains();
            for train in trains {
                self.ingress.train(self.uplink.id(), &train, arena, &mut scope);
            }
            self.ingress.finish(scope, arena);
        }
    }
}

/// What both know of a side.
#[derive(Clone, Copy)]
struct Facts {
    index: u32,
    mac: MacAddr,
    ip4: Ipv4Addr,
    place: Endpoint,
}

fn sides(offload: bool, suite: Suite) -> [Side; 2] {
    let now = Instant::now();
    let uplinks = [0; 2].map(|_| {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        Arc::new(UdpUplink::bind(UplinkId::UDP4, any, 4 << 20).expect("a socket"))
    });
    let facts = [0, 1].map(|index| Facts {
        index,
        mac: MacAddr([2, 0, 0, 0, 0, index as u8 + 1]),
        ip4: Ipv4Addr::new(10, 1, 0, index as u8 + 1),
        place: Endpoint::udp(uplinks[index as usize].local_addr()),
    });
    let [one, other] = uplinks;
    [side(facts[0], facts[1], one, offload, suite, now), side(facts[1], facts[0], other, offload, suite, now)]
}

fn side(us: Facts, them: Facts, uplink: Arc<UdpUplink>, offload: bool, suite: Suite, now: Instant) -> Side {
    let ns = Netns::new().expect("a namespace");
    let device = TapConfig { name: "eps0".into(), mac: Some(us.mac), mtu: 1376, offload, multi_queue: false };
    let tap = Arc::new(ns.run(|| Tap::open(&device)).expect("a TAP"));
    let netlink = ns.netlink().expect("netlink");
    smol::block_on(async {
        netlink.add_address(tap.ifindex(), us.ip4.into(), 24).await.expect("an address");
        netlink.set_up(tap.ifindex()).await.expect("up");
    });
    let slot = TapSlot::default();
    slot.set(Some(tap.clone()));

    let session = Arc::new(session(us, them, offload, suite, now));
    let meter = session.meter.clone();
    let handle = Arc::new(PeerHandle::new(PeerIdx(0), session.remote, session.meter.clone()));
    handle.set_outlet(Some(Outlet {
        session: session.clone(),
        route: Route::direct(them.place),
        meter: Arc::default(),
        plan: None,
        fit: Fit::ANY,
    }));
    let credentials = PeerCredentials { mac: them.mac, ip4: Some(them.ip4), ip6: None, rights: Rights(0) };
    let entry = PeerEntry { handle, name: "them".into(), credentials, flooded: true };
    let mut peers = PeerView::default();
    peers.peers.insert(PeerIdx(0), entry);
    peers.sessions.insert(session.local_index, session);
    peers.directory.insert(IpAddr::from(them.ip4), them.mac);
    let mut fdb = Fdb::new(now);
    fdb.set_own(us.mac);
    fdb.set_members([(them.mac, PeerIdx(0))].into_iter());
    let overlay = vec!["10.1.0.0/24".parse().expect("a network")];
    let own = SelfView { mac: Some(us.mac), ip4: Some(us.ip4), overlay, ..SelfView::default() };

    let counters = Arc::<Counters>::default();
    let views = Views {
        epoch: Epoch(now),
        peers: Arc::new(ArcSwap::from_pointee(peers)),
        fdb: Arc::new(ArcSwap::from_pointee(fdb.view())),
        own: Arc::new(ArcSwap::from_pointee(own)),
        server: Arc::new(ArcSwap::from_pointee(ServerView::default())),
        counters: counters.clone(),
    };
    let (address, mailbox) = Mailbox::bounded(64);
    let casts = IngressCasts {
        inbound: Caster::new(address.clone(), counters.clone()),
        control: Caster::new(address.clone(), counters.clone()),
        confirmed: Caster::new(address.clone(), counters.clone()),
        seen: Caster::new(address.clone(), counters.clone()),
        server_inbound: Caster::new(address.clone(), counters.clone()),
        server_control: Caster::new(address.clone(), counters.clone()),
        learn: Caster::new(address.clone(), counters.clone()),
    };
    let ways = Uplinks::new(Some(uplink.clone()), None, None, counters.clone());
    let want = Caster::new(address, counters.clone());
    let program = SocketAddr::from((us.ip4, 0));
    Side {
        egress: Egress::new(views.clone(), ways.clone(), want, slot.tx()),
        ingress: Ingress::new(views, ways, casts, slot.tx(), [0; 32]),
        tap,
        uplink,
        counters,
        meter,
        program: ns.run(|| UdpUplink::bind(UplinkId::UDP4, program, 4 << 20)).expect("a socket"),
        frames: 0,
        buffer: vec![0; 1 << 17],
        batch: RecvBatch::new(),
        inbox: RecvBatch::new(),
        segments: tcp_super_frame(us, them),
        _ns: ns,
        _mailbox: mailbox,
    }
}

fn session(us: Facts, them: Facts, offload: bool, suite: Suite, now: Instant) -> Session {
    let keys = transport_keys(&Zeroizing::new([9; 64]), suite);
    let initiator = us.index == 0;
    let (seal_key, open_key) = if initiator { (keys.i2r, keys.r2i) } else { (keys.r2i, keys.i2r) };
    let parts = SessionParts {
        owner: Owner::Peer(PeerIdx(0)),
        remote: PublicKey([them.index as u8; 32]),
        local_index: SessionIndex(us.index),
        remote_index: SessionIndex(them.index),
        initiator,
        suite,
        capabilities: if offload { Capabilities::OURS } else { Capabilities::NONE },
        meter: Arc::<Meter>::default(),
        seal_key,
        open_key,
    };
    Session::new(parts, now)
}

/// A virtio-net header and the frame it is about, with a partial checksum.
fn tcp_super_frame(us: Facts, them: Facts) -> Vec<u8> {
    let header = VnetHeader {
        needs_csum: true,
        gso: Gso::Tcp4,
        hdr_len: 54,
        gso_size: SEGMENT as u16,
        csum_start: 34,
        csum_offset: 16,
        ..VnetHeader::PLAIN
    };
    let payload = vec![0x5a; SEGMENT * SEGMENTS];
    let length = 40 + payload.len() as u16;
    let mut ip = [0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    ip[2..4].copy_from_slice(&length.to_be_bytes());
    ip[12..16].copy_from_slice(&us.ip4.octets());
    ip[16..].copy_from_slice(&them.ip4.octets());
    let sum = checksum::sum(&ip).checksum();
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    // Ports 7 and 9, a sequence number, ACK and PSH.
    let mut tcp = [0, 7, 0, 9, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x18, 0xff, 0xff, 0, 0, 0, 0];
    let addresses: [u8; 8] = ip[12..].try_into().expect("eight bytes");
    let pseudo = checksum::pseudo_header(&addresses, 6, usize::from(length) - 20).fold();
    tcp[16..18].copy_from_slice(&pseudo.to_be_bytes());
    [&header.to_bytes()[..], &them.mac.0, &us.mac.0, &[8, 0], &ip, &tcp, &payload].concat()
}

/// Whom the data path tells of what is not a frame: nobody reads it.
struct Nobody;

impl Actor for Nobody {
    type Stop = ();

    async fn stopped(self) {}
}

macro_rules! hears {
    ($($message:ty),+) => {
        $(impl Handler<$message> for Nobody {
            type Return = ();

            async fn handle(&mut self, _: $message, _: &mut Context<Self>) {}
        })+
    };
}

hears!(Want, Inbound, PeerControl, Confirmed, SeenFrom, ServerInbound, ServerControl, Learn);
