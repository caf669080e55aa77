//! What each step costs that a frame takes: per frame of 1,400 octets, per small frame, and per super-frame.
//!
//! `cargo bench --bench datapath` runs all; a name as argument chooses. The whole system is measured by `bench/run.py`.

#![allow(clippy::disallowed_methods, reason = "a session is born at some time")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use eps_actor::ids::{MacAddr, PeerIdx, PublicKey, SessionIndex};
use eps_actor::proto::coalesce::{Coalescer, Limits};
use eps_actor::proto::crypto::{Suite, transport_keys};
use eps_actor::proto::fdb::Fdb;
use eps_actor::proto::forward::{self, EgressFacts};
use eps_actor::proto::guard::{PeerCredentials, Rights};
use eps_actor::proto::segment::{Checksums, Segmenter};
use eps_actor::proto::session::{Owner, Session, SessionParts};
use eps_actor::proto::whole::{self, Assembly, Cut};
use eps_actor::wire::ethernet::FrameView;
use eps_actor::wire::handshake::Capabilities;
use eps_actor::wire::header::{FragHeader, HEADER_LEN, SealedHeader, TAG_LEN};
use eps_actor::wire::vnet::{Gso, VnetHeader};
use zeroize::Zeroizing;

const OURS: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const THEIRS: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);
/// Octets of Ethernet, IPv4 and TCP with timestamps.
const HEADERS: usize = 14 + 20 + 32;
/// Payload of a segment at an MTU of 1,400.
const MSS: usize = 1400 - 52;
/// Segments of a super-frame.
const SEGMENTS: usize = 44;

criterion_group!(benches, forwarding, sealing, opening, segmenting, coalescing, sealed_whole);
criterion_main!(benches);

fn forwarding(c: &mut Criterion) {
    let now = Instant::now();
    let mut fdb = Fdb::new(now);
    fdb.set_own(OURS);
    fdb.set_members((0..1000u32).map(|number| {
        let [_, _, high, low] = number.to_be_bytes();
        (MacAddr([2, 0, 0, 0, high, low]), PeerIdx(number))
    }));
    let view = fdb.view();
    let facts = EgressFacts { own_mac: OURS, is_bridge: false, has_bridges: false };
    let frame = super_frame(MSS);
    let credentials = PeerCredentials { mac: OURS, ip4: None, ip6: None, rights: Rights(0) };
    let mut group = c.benchmark_group("forward");
    group.bench_function("egress, 1000 members", |b| {
        b.iter(|| forward::egress(&FrameView::parse(black_box(&frame)).expect("a frame"), &view, &facts));
    });
    group.bench_function("ingress with its checks", |b| {
        b.iter(|| {
            let frame = FrameView::parse(black_box(&frame)).expect("a frame");
            forward::ingress(&frame, PeerIdx(1), &credentials, &view, now)
        });
    });
}

fn sealing(c: &mut Criterion) {
    let mut group = c.benchmark_group("seal");
    for suite in [Suite::Aes256Gcm, Suite::ChaCha20Poly1305] {
        for length in [98, 1414] {
            let (ours, _) = pair(suite);
            let mut datagram = vec![7; Session::sealed_len(length, 1414)];
            group.throughput(Throughput::Bytes(length as u64));
            group.bench_function(format!("{suite:?}, {length} octets"), |b| {
                b.iter(|| ours.seal_frame(false, black_box(&mut datagram), length).expect("sealed"));
            });
        }
    }
}

fn opening(c: &mut Criterion) {
    let mut group = c.benchmark_group("open");
    for suite in [Suite::Aes256Gcm, Suite::ChaCha20Poly1305] {
        for length in [98, 1414] {
            group.throughput(Throughput::Bytes(length as u64));
            group.bench_function(format!("{suite:?}, {length} octets"), |b| {
                let (ours, theirs) = pair(suite);
                b.iter_batched_ref(
                    || {
                        let mut datagram = vec![7; Session::sealed_len(length, 1414)];
                        ours.seal_frame(false, &mut datagram, length).expect("sealed");
                        datagram
                    },
                    |datagram| {
                        let header = SealedHeader::parse(datagram).expect("a header");
                        theirs.open(&header, datagram).expect("authentic").len()
                    },
                    BatchSize::SmallInput,
                );
            });
        }
    }
}

fn segmenting(c: &mut Criterion) {
    let (header, frame) = (tcp_header(), super_frame(SEGMENTS * MSS));
    let (session, _) = pair(Suite::Aes256Gcm);
    let mut out = vec![0; SEGMENTS * (HEADERS + MSS + 32)];
    let mut group = c.benchmark_group(format!("segment, {SEGMENTS} in a super-frame"));
    group.throughput(Throughput::Elements(SEGMENTS as u64));
    for checksums in [Checksums::Complete, Checksums::Partial] {
        group.bench_function(format!("{checksums:?}"), |b| {
            b.iter(|| {
                let segments = Segmenter::new(&header, black_box(&frame)).expect("a super-frame");
                for number in 0..segments.count() {
                    segments.write(number, checksums, &mut out);
                }
            });
        });
    }
    group.bench_function("Partial, and sealed", |b| {
        b.iter(|| {
            let segments = Segmenter::new(&header, black_box(&frame)).expect("a super-frame");
            for (number, datagram) in out.chunks_exact_mut(HEADERS + MSS + 32).enumerate() {
                let length = segments.write(number, Checksums::Partial, &mut datagram[HEADER_LEN..]);
                session.seal_frame(true, datagram, length).expect("sealed");
            }
        });
    });
}

fn coalescing(c: &mut Criterion) {
    let (header, frame) = (tcp_header(), super_frame(SEGMENTS * MSS));
    let mut group = c.benchmark_group(format!("coalesce, {SEGMENTS} to a super-frame"));
    group.throughput(Throughput::Elements(SEGMENTS as u64));
    for (partial, checksums) in [(false, Checksums::Complete), (true, Checksums::Partial)] {
        let mut cut = vec![0; SEGMENTS * (HEADERS + MSS)];
        let segments = Segmenter::new(&header, &frame).expect("a super-frame");
        for (number, segment) in cut.chunks_exact_mut(HEADERS + MSS).enumerate() {
            segments.write(number, checksums, segment);
        }
        let mut coalescer = Coalescer::new(Limits { tcp: true, udp: true });
        group.bench_function(format!("{checksums:?}"), |b| {
            b.iter_batched_ref(
                || cut.clone(),
                |arena| {
                    for number in 0..SEGMENTS {
                        let start = number * (HEADERS + MSS);
                        coalescer.push(arena, start..start + HEADERS + MSS, partial).expect("a frame");
                    }
                    let mut writes = 0;
                    coalescer.flush(|_, pieces| writes += black_box(pieces).len());
                    writes
                },
                BatchSize::LargeInput,
            );
        });
    }
}

/// A super-frame sealed as one message and cut, and put together and opened again.
fn sealed_whole(c: &mut Criterion) {
    let (header, frame) = (tcp_header(), super_frame(SEGMENTS * MSS));
    let message = [&whole::head(&header).expect("of TCP")[..], &frame].concat();
    let fragment = HEADERS + MSS + TAG_LEN;
    let cut = Cut::new(message.len() + TAG_LEN, fragment).expect("it is cut");
    let mut group = c.benchmark_group(format!("whole, {SEGMENTS} in a super-frame"));
    group.throughput(Throughput::Elements(SEGMENTS as u64));
    let (ours, theirs) = pair(Suite::Aes256Gcm);
    let mut out = vec![0; SEGMENTS * (HEADER_LEN + fragment)];
    let mut sealed = message.clone();
    group.bench_function("sealed and cut", |b| {
        b.iter(|| {
            let (first, tag) = ours.seal_whole(cut.count(), black_box(&mut sealed)).expect("sealed");
            for (index, range) in (0..).zip(cut.ranges()) {
                let start = usize::from(index) * (HEADER_LEN + fragment);
                out[start..start + HEADER_LEN].copy_from_slice(&FragHeader { index, ..first }.to_bytes());
                let part = &sealed[range.start..range.end.min(sealed.len())];
                out[start + HEADER_LEN..start + HEADER_LEN + part.len()].copy_from_slice(part);
            }
            tag
        });
    });
    let mut assembly = Assembly::default();
    group.bench_function("put together and opened", |b| {
        b.iter_batched_ref(
            || {
                let mut sealed = message.clone();
                let (first, tag) = ours.seal_whole(cut.count(), &mut sealed).expect("sealed");
                sealed.extend(tag);
                (first, sealed)
            },
            |(first, sealed)| {
                let mut length = 0;
                for (index, range) in (0..).zip(cut.ranges()) {
                    let header = FragHeader { index, ..*first };
                    if let Some(mut room) = assembly.take(&header, &sealed[range]).expect("taken").whole {
                        length = theirs.open_whole(&header, &mut room).expect("authentic").len();
                        assembly.put_back(room);
                    }
                }
                length
            },
            BatchSize::LargeInput,
        );
    });
}

/// Both ends of a session.
fn pair(suite: Suite) -> (Session, Session) {
    let side = |initiator: bool| {
        let keys = transport_keys(&Zeroizing::new([9; 64]), suite);
        let (seal_key, open_key) = if initiator { (keys.i2r, keys.r2i) } else { (keys.r2i, keys.i2r) };
        let parts = SessionParts {
            owner: Owner::Peer(PeerIdx(0)),
            remote: PublicKey([1; 32]),
            local_index: SessionIndex(u32::from(initiator)),
            remote_index: SessionIndex(u32::from(!initiator)),
            initiator,
            suite,
            capabilities: Capabilities::OURS,
            meter: Arc::default(),
            seal_key,
            open_key,
        };
        Session::new(parts, Instant::now())
    };
    (side(true), side(false))
}

fn tcp_header() -> VnetHeader {
    VnetHeader {
        needs_csum: true,
        gso: Gso::Tcp4,
        hdr_len: HEADERS as u16,
        gso_size: MSS as u16,
        csum_start: 34,
        csum_offset: 16,
        ..VnetHeader::PLAIN
    }
}

/// A TCP packet over IPv4 as the kernel hands it over, with `payload` octets.
fn super_frame(payload: usize) -> Vec<u8> {
    let mut frame = vec![0x5a; HEADERS + payload];
    frame[..6].copy_from_slice(&THEIRS.0);
    frame[6..12].copy_from_slice(&OURS.0);
    frame[12..14].copy_from_slice(&[8, 0]);
    let ip_len = (20 + 32 + payload) as u16;
    let [high, low] = ip_len.to_be_bytes();
    frame[14..34].copy_from_slice(&[0x45, 0, high, low, 0, 1, 0x40, 0, 64, 6, 0, 0, 192, 168, 43, 1, 192, 168, 43, 2]);
    let mut sum: u32 = frame[14..34].chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    sum = (sum & 0xffff) + (sum >> 16);
    frame[24..26].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    // Data offset 8, ACK; no urgent pointer.
    frame[46..48].copy_from_slice(&[0x80, 0x10]);
    frame[52..54].copy_from_slice(&[0, 0]);
    frame
}
