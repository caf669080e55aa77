//! The buffer of the data path: datagrams waiting to be sent.
//!
//! A [`SendBatch`] is filled by reserve and commit, so that a frame is sealed right where the kernel will read it,
//! and handed over as runs that each fit one GSO send. Nothing here allocates once its buffers have grown to the size
//! of a burst.

use std::ops::Range;

use crate::ids::Endpoint;

/// The most bytes one GSO send may hold: the largest UDP payload over IPv4.
pub const MAX_RUN_BYTES: usize = 65_507;

/// Outgoing datagrams, in order, joined to runs for GSO.
///
/// Datagrams to one endpoint that follow each other and have one length form a run; the last of a run may be
/// shorter. Order is kept, per endpoint and altogether.
#[derive(Debug)]
pub struct SendBatch {
    /// Grows to the largest burst; beyond `used` it holds leftovers.
    bytes: Vec<u8>,
    used: usize,
    reserved: usize,
    runs: Vec<Run>,
    max_segments: usize,
}

#[derive(Debug, Clone, Copy)]
struct Run {
    endpoint: Endpoint,
    start: usize,
    len: usize,
    /// Length of every datagram but perhaps the last.
    segment: usize,
    count: usize,
}

impl SendBatch {
    /// An empty batch whose runs have at most `max_segments` datagrams, as the uplink's
    /// [`max_gso_segments`](super::udp::UdpUplink::max_gso_segments) says; at least 1.
    pub fn new(max_segments: usize) -> Self {
        Self {
            bytes: vec![0; INITIAL_BYTES],
            used: 0,
            reserved: 0,
            runs: Vec::with_capacity(INITIAL_RUNS),
            max_segments: max_segments.max(1),
        }
    }

    /// Space for a datagram of `len` bytes, at most 65,507, holding leftovers. It counts once it is committed; to
    /// reserve again instead abandons it.
    pub fn reserve(&mut self, len: usize) -> &mut [u8] {
        debug_assert!(len <= MAX_RUN_BYTES, "no UDP datagram has {len} bytes");
        let end = self.used + len;
        if self.bytes.len() < end {
            self.bytes.resize(end.next_multiple_of(INITIAL_BYTES), 0);
        }
        self.reserved = len;
        &mut self.bytes[self.used..end]
    }

    /// Adds the first `len` bytes of the space reserved last as one datagram to `endpoint`.
    pub fn commit(&mut self, endpoint: Endpoint, len: usize) {
        assert!(len <= self.reserved, "committed {len} bytes of {} reserved", self.reserved);
        self.reserved = 0;
        let start = self.used;
        self.used += len;
        if let Some(run) = self.runs.last_mut()
            && run.takes(endpoint, len, self.max_segments)
        {
            run.len += len;
            run.count += 1;
            return;
        }
        self.runs.push(Run { endpoint, start, len, segment: len, count: 1 });
    }

    /// Adds a copy of `datagram`.
    pub fn push(&mut self, endpoint: Endpoint, datagram: &[u8]) {
        self.reserve(datagram.len()).copy_from_slice(datagram);
        self.commit(endpoint, datagram.len());
    }

    /// Where the next datagram will be, for [`repeat`](Self::repeat).
    pub fn mark(&self) -> usize {
        self.used
    }

    /// Adds copies of the datagrams between two marks, in which `prefix` stands for their first `strip` bytes. Gives
    /// how many there were, and the bytes of the copies.
    pub fn repeat(&mut self, marked: Range<usize>, endpoint: Endpoint, strip: usize, prefix: &[u8]) -> (u64, u64) {
        let (Range { start: mark, end }, count) = (marked, self.runs.len());
        let first = self.runs.iter().rposition(|run| run.start <= mark).unwrap_or(0);
        let (mut datagrams, mut bytes) = (0, 0);
        for number in first..count {
            let run = self.runs[number];
            // The last run may take up its own copies, or be begun anew: only what was there is copied.
            let mut at = run.start;
            while at < (run.start + run.len).min(end) {
                let len = run.segment.min(run.start + run.len - at).min(end - at);
                if at >= mark {
                    let body = at + strip..at + len;
                    let length = prefix.len() + body.len();
                    self.reserve(length);
                    let to = self.used;
                    self.bytes[to..to + prefix.len()].copy_from_slice(prefix);
                    self.bytes.copy_within(body, to + prefix.len());
                    self.commit(endpoint, length);
                    (datagrams, bytes) = (datagrams + 1, bytes + length as u64);
                }
                at += len.max(1);
            }
        }
        (datagrams, bytes)
    }

    /// Hands over each run in order, as endpoint, bytes and, where the run has several datagrams, their length; and
    /// forgets them.
    pub fn flush(&mut self, mut send: impl FnMut(Endpoint, &[u8], Option<usize>)) {
        for run in &self.runs {
            send(run.endpoint, &self.bytes[run.start..run.start + run.len], (run.count > 1).then_some(run.segment));
        }
        self.clear();
    }

    /// Forgets all datagrams.
    pub fn clear(&mut self) {
        self.runs.clear();
        self.used = 0;
        self.reserved = 0;
    }

    /// Whether nothing is committed.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Bytes committed; the owner flushes when they are enough, for the batch itself has no limit.
    pub fn bytes(&self) -> usize {
        self.used
    }

    /// Datagrams committed.
    pub fn datagrams(&self) -> usize {
        self.runs.iter().map(|run| run.count).sum()
    }
}

impl Run {
    fn takes(&self, endpoint: Endpoint, len: usize, max_segments: usize) -> bool {
        // A shorter datagram ends a run, and an empty one is no segment.
        let is_open = self.len == self.segment * self.count;
        is_open
            && self.endpoint == endpoint
            && (1..=self.segment).contains(&len)
            && self.count < max_segments
            && self.len + len <= MAX_RUN_BYTES
    }
}

/// Two full super-frames; a burst beyond grows the buffer once.
const INITIAL_BYTES: usize = 128 * 1024;
const INITIAL_RUNS: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn endpoint(number: u8) -> Endpoint {
        Endpoint::udp(([192, 0, 2, number], 43439).into())
    }

    fn flushed(batch: &mut SendBatch) -> Vec<(Endpoint, Vec<u8>, Option<usize>)> {
        let mut runs = Vec::new();
        batch.flush(|endpoint, bytes, segment| runs.push((endpoint, bytes.to_vec(), segment)));
        runs
    }

    fn datagrams(bytes: &[u8], segment: Option<usize>) -> Vec<Vec<u8>> {
        segment.map_or_else(|| vec![bytes.to_vec()], |size| bytes.chunks(size).map(<[u8]>::to_vec).collect())
    }

    #[test]
    fn equal_datagrams_to_one_endpoint_are_one_run_that_a_shorter_one_ends() {
        let mut batch = SendBatch::new(64);
        for len in [100, 100, 40, 40] {
            batch.push(endpoint(1), &vec![0; len]);
        }
        batch.push(endpoint(2), &[0; 40]);
        assert_eq!((batch.datagrams(), batch.bytes()), (5, 320));

        let runs = flushed(&mut batch);
        let shape: Vec<_> = runs.iter().map(|(to, bytes, segment)| (*to, bytes.len(), *segment)).collect();
        assert_eq!(shape, [(endpoint(1), 240, Some(100)), (endpoint(1), 40, None), (endpoint(2), 40, None)]);
        assert!(batch.is_empty());
    }

    #[test]
    fn what_was_added_since_a_mark_is_repeated_for_another_endpoint_with_another_head() {
        let mut batch = SendBatch::new(64);
        batch.push(endpoint(1), b"before");
        let mark = batch.mark();
        for datagram in [b"one...", b"two...", b"three."] {
            batch.push(endpoint(1), datagram);
        }
        batch.push(endpoint(1), b"four");
        let end = batch.mark();
        assert_eq!(batch.repeat(mark..end, endpoint(2), 0, b""), (4, 22));
        assert_eq!(batch.repeat(end - 4..end, endpoint(3), 1, b"relay:f"), (1, 10));
        let runs: Vec<_> =
            flushed(&mut batch).into_iter().map(|(to, bytes, segment)| (to, datagrams(&bytes, segment))).collect();
        let texts = |texts: &[&str]| texts.iter().map(|text| text.as_bytes().to_vec()).collect::<Vec<_>>();
        assert_eq!(
            runs,
            [
                (endpoint(1), texts(&["before", "one...", "two...", "three.", "four"])),
                (endpoint(2), texts(&["one...", "two...", "three.", "four"])),
                (endpoint(3), texts(&["relay:four"])),
            ]
        );
    }

    #[test]
    fn a_reserved_datagram_that_is_not_committed_is_not_sent() {
        let mut batch = SendBatch::new(64);
        batch.reserve(9).fill(9);
        batch.reserve(5).fill(5);
        batch.commit(endpoint(1), 4);
        assert_eq!(flushed(&mut batch), [(endpoint(1), vec![5; 4], None)]);
    }

    #[test]
    fn a_warm_batch_does_not_allocate() {
        let mut batch = SendBatch::new(64);
        let fill = |batch: &mut SendBatch| (0..500).for_each(|i| batch.push(endpoint(i as u8 % 3), &[0; 1400]));
        fill(&mut batch);
        batch.clear();
        let before = (batch.bytes.as_ptr(), batch.bytes.capacity(), batch.runs.as_ptr(), batch.runs.capacity());
        for _ in 0..10 {
            fill(&mut batch);
            batch.clear();
        }
        let after = (batch.bytes.as_ptr(), batch.bytes.capacity(), batch.runs.as_ptr(), batch.runs.capacity());
        assert_eq!(before, after);
    }

    proptest! {
        #[test]
        fn flushed_runs_split_into_what_was_committed(
            sent in prop::collection::vec((0u8..3, prop_oneof![4 => 0usize..4, 4 => Just(1400), 1 => 0usize..=65_507]), 0..120),
            max_segments in 0usize..70,
        ) {
            let mut batch = SendBatch::new(max_segments);
            let mut expected: BTreeMap<u8, Vec<Vec<u8>>> = BTreeMap::new();
            for (serial, (number, len)) in sent.iter().enumerate() {
                let datagram = vec![serial as u8; *len];
                batch.reserve(*len).copy_from_slice(&datagram);
                batch.commit(endpoint(*number), *len);
                expected.entry(*number).or_default().push(datagram);
            }
            prop_assert_eq!(batch.datagrams(), sent.len());

            let mut got: BTreeMap<u8, Vec<Vec<u8>>> = BTreeMap::new();
            for (to, bytes, segment) in flushed(&mut batch) {
                let split = datagrams(&bytes, segment);
                prop_assert!(bytes.len() <= MAX_RUN_BYTES);
                prop_assert!(split.len() <= max_segments.max(1));
                prop_assert!(segment.is_none_or(|size| size > 0 && size < bytes.len()));
                let number = (0..3).find(|number| endpoint(*number) == to).expect("an endpoint we sent to");
                got.entry(number).or_default().extend(split);
            }
            prop_assert_eq!(got, expected);
            prop_assert!(batch.is_empty());
        }
    }
}
