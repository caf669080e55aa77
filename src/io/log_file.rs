//! The log in a file: a thread of its own writes it, so that no actor waits for a disk; rotation by size and age.
//!
//! Whoever logs copies a record into a bounded queue. While the disk is slower than that, or full, records are lost and
//! counted: standard error gets one complaint for each time of trouble, and the file, once it can be written again, one
//! line with the number. Records are written whole or not at all.
//!
//! `FILE` becomes `FILE.1` when it is full or old, `FILE.1` becomes `FILE.2.gz` and so on; what is beyond the number to
//! keep is removed. Only the youngest of the old ones stays plain, since that is the one people read.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime};

use flate2::Compression;
use flate2::write::GzEncoder;

/// The most bytes that wait for the disk: a burst of ten thousand lines, while an old file is being compressed.
const QUEUE: usize = 1 << 20;
/// How long a process that ends waits for its last lines.
const FLUSH_WITHIN: Duration = Duration::from_secs(2);
/// Its owner and group read it: it names members and their addresses.
const MODE: u32 = 0o640;

/// When a log file is rotated, and how many are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rotation {
    /// Bytes.
    pub max_size: u64,
    /// `None`: only the size decides.
    pub max_age: Option<Duration>,
    /// Old files.
    pub keep: u16,
}

/// A handle to the thread that writes; cheap to clone.
#[derive(Clone)]
pub struct LogSink(Arc<Shared>);

struct Shared {
    queue: Mutex<Queue>,
    /// There is something to do.
    wake: Condvar,
    /// All is written.
    idle: Condvar,
}

#[derive(Default)]
struct Queue {
    text: Vec<u8>,
    /// Where each record in `text` ends.
    ends: Vec<usize>,
    lost: u64,
    reopen: bool,
    busy: bool,
}

impl LogSink {
    /// Opens the file and starts the thread. `complain` gets what cannot be written to the file because it cannot be
    /// written; `note` makes a record of a sentence, for the file.
    pub fn open(
        path: &Path,
        rotation: Rotation,
        complain: impl Fn(&str) + Send + 'static,
        note: impl Fn(&str) -> Vec<u8> + Send + 'static,
    ) -> io::Result<Self> {
        let file = LogFile::open(path, rotation, SystemTime::now())?;
        let shared = Arc::new(Shared { queue: Mutex::default(), wake: Condvar::new(), idle: Condvar::new() });
        let writer = Writer { shared: shared.clone(), file, lost: 0, troubled: None };
        thread::Builder::new().name("log".into()).spawn(move || writer.run(&complain, &note))?;
        Ok(Self(shared))
    }

    /// Takes one record, with its line end; never waits for the disk.
    pub fn push(&self, record: &[u8]) {
        let mut queue = self.0.queue();
        if queue.text.len() + record.len() > QUEUE {
            queue.lost += 1;
            return;
        }
        queue.text.extend_from_slice(record);
        let end = queue.text.len();
        queue.ends.push(end);
        self.0.wake.notify_one();
    }

    /// Opens the file anew, for those who have moved it away.
    pub fn reopen(&self) {
        self.0.queue().reopen = true;
        self.0.wake.notify_one();
    }

    /// Waits until all is written, for a moment at the most.
    pub fn flush(&self) {
        let waiting = |queue: &mut Queue| queue.busy || queue.reopen || !queue.ends.is_empty();
        // Late or not, there is nothing more to be done for them.
        drop(self.0.idle.wait_timeout_while(self.0.queue(), FLUSH_WITHIN, waiting));
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread's own.
struct Writer {
    shared: Arc<Shared>,
    file: LogFile,
    /// Records that the file does not know to be lost.
    lost: u64,
    /// Why nothing can be written, if so.
    troubled: Option<String>,
}

impl Writer {
    /// Never ends: the log is there as long as the process.
    fn run(mut self, complain: &dyn Fn(&str), note: &dyn Fn(&str) -> Vec<u8>) {
        let (mut text, mut ends) = (Vec::new(), Vec::new());
        loop {
            let reopen = self.take(&mut text, &mut ends);
            let now = SystemTime::now();
            if reopen && let Err(error) = self.file.reopen(now) {
                self.trouble(&error, 0, complain);
            }
            let (mut from, mut at) = (0, 0);
            while at < ends.len() {
                let count = self.file.room_for(from, &ends[at..], now);
                let end = ends[at + count - 1];
                match self.write(&text[from..end], now, note) {
                    Ok(()) => self.troubled = None,
                    Err(error) => self.trouble(&error, count as u64, complain),
                }
                (from, at) = (end, at + count);
            }
            text.clear();
            ends.clear();
        }
    }

    /// Waits for something to do, and takes all of it.
    fn take(&mut self, text: &mut Vec<u8>, ends: &mut Vec<usize>) -> bool {
        let mut queue = self.shared.queue();
        queue.busy = false;
        while queue.ends.is_empty() && !queue.reopen {
            self.shared.idle.notify_all();
            queue = self.shared.wake.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        queue.busy = true;
        std::mem::swap(&mut queue.text, text);
        std::mem::swap(&mut queue.ends, ends);
        self.lost += std::mem::take(&mut queue.lost);
        std::mem::take(&mut queue.reopen)
    }

    fn write(&mut self, records: &[u8], now: SystemTime, note: &dyn Fn(&str) -> Vec<u8>) -> io::Result<()> {
        if self.lost > 0 {
            let why = self.troubled.as_deref().unwrap_or("the disk was too slow");
            self.file.write(&note(&format!("{} lines of the log were lost: {why}", self.lost)), now)?;
            self.lost = 0;
        }
        self.file.write(records, now)
    }

    fn trouble(&mut self, error: &io::Error, lost: u64, complain: &dyn Fn(&str)) {
        self.lost += lost;
        if self.troubled.is_none() {
            let path = self.file.path.display();
            complain(&format!("{path}: the log cannot be written: {error}; lines are lost until it can be again"));
            self.troubled = Some(error.to_string());
        }
    }
}

/// A log file and those before it.
struct LogFile {
    path: PathBuf,
    rotation: Rotation,
    file: File,
    /// Pipes and devices are written to and never renamed.
    is_regular: bool,
    size: u64,
    born: SystemTime,
}

impl LogFile {
    /// Opens the file at its end, or makes it.
    fn open(path: &Path, rotation: Rotation, now: SystemTime) -> io::Result<Self> {
        let file = OpenOptions::new().append(true).create(true).mode(MODE).open(path)?;
        let about = file.metadata()?;
        // Some file systems do not keep when a file was made; the last change is later, and a rotation too.
        let born = if about.len() == 0 { now } else { about.created().or_else(|_| about.modified())? };
        Ok(Self { path: path.to_owned(), rotation, file, is_regular: about.is_file(), size: about.len(), born })
    }

    fn reopen(&mut self, now: SystemTime) -> io::Result<()> {
        *self = Self::open(&self.path, self.rotation, now)?;
        Ok(())
    }

    /// How many of the records that begin at `from` and end at `ends` go into one file: at least one, and no more than
    /// fit into this file, or if it is to be rotated into the next.
    fn room_for(&self, from: usize, ends: &[usize], now: SystemTime) -> usize {
        let fits =
            |size: u64| ends.iter().take_while(|end| size + (**end - from) as u64 <= self.rotation.max_size).count();
        let here = if self.is_old(now) { 0 } else { fits(self.size) };
        if here > 0 { here } else { fits(0).max(1) }
    }

    fn is_old(&self, now: SystemTime) -> bool {
        let age = now.duration_since(self.born).unwrap_or_default();
        self.size > 0 && self.rotation.max_age.is_some_and(|max| age >= max)
    }

    /// Writes all of these bytes or none.
    fn write(&mut self, records: &[u8], now: SystemTime) -> io::Result<()> {
        let is_full = self.size > 0 && self.size + records.len() as u64 > self.rotation.max_size;
        if self.is_regular && (is_full || self.is_old(now)) {
            self.rotate(now)?;
        }
        if let Err(error) = self.file.write_all(records) {
            // Half a record would read like a lie; what cannot be cut off either stays.
            let _ = self.file.set_len(self.size);
            return Err(error);
        }
        self.size += records.len() as u64;
        Ok(())
    }

    fn rotate(&mut self, now: SystemTime) -> io::Result<()> {
        let keep = u32::from(self.rotation.keep);
        let mut old = self.old()?;
        old.sort_unstable_by_key(|(number, _)| std::cmp::Reverse(*number));
        for (number, packed) in old {
            let path = self.numbered(number, packed);
            if number >= keep {
                fs::remove_file(path)?;
            } else {
                fs::rename(path, self.numbered(number + 1, packed))?;
            }
        }
        if keep == 0 {
            fs::remove_file(&self.path)?;
        } else {
            fs::rename(&self.path, self.numbered(1, false))?;
        }
        self.reopen(now)?;
        // Plain is as good as packed, only larger: where there is no room for it, it stays so.
        let _ = self.pack(2);
        Ok(())
    }

    /// Numbers of the old files, and whether they are compressed.
    fn old(&self) -> io::Result<Vec<(u32, bool)>> {
        let (Some(name), Some(parent)) = (self.path.file_name(), self.path.parent()) else { return Ok(Vec::new()) };
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        let start = format!("{}.", name.to_string_lossy());
        let number_of = |entry: fs::DirEntry| {
            let name = entry.file_name();
            let tail = name.to_str()?.strip_prefix(&start)?;
            let (digits, packed) = tail.strip_suffix(".gz").map_or((tail, false), |digits| (digits, true));
            let plain = !digits.starts_with('0') && digits.bytes().all(|digit| digit.is_ascii_digit());
            plain.then(|| digits.parse().ok()).flatten().map(|number| (number, packed))
        };
        Ok(fs::read_dir(parent)?.filter_map(|entry| number_of(entry.ok()?)).collect())
    }

    fn numbered(&self, number: u32, packed: bool) -> PathBuf {
        let mut path = OsString::from(&self.path);
        path.push(format!(".{number}{}", if packed { ".gz" } else { "" }));
        path.into()
    }

    /// Compresses an old file, if it is there and plain.
    fn pack(&self, number: u32) -> io::Result<()> {
        let (plain, packed) = (self.numbered(number, false), self.numbered(number, true));
        let mut source = match File::open(&plain) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            result => result?,
        };
        let half = self.path.with_added_extension("gz.tmp");
        let made = (|| {
            let target = OpenOptions::new().write(true).create(true).truncate(true).mode(MODE).open(&half)?;
            let mut encoder = GzEncoder::new(target, Compression::default());
            io::copy(&mut source, &mut encoder)?;
            encoder.finish()?;
            fs::rename(&half, &packed)
        })();
        match made {
            Ok(()) => fs::remove_file(&plain),
            Err(error) => {
                let _ = fs::remove_file(&half);
                Err(error)
            }
        }
    }
}

/// The number of this thread, as `ps -L` shows it.
pub fn thread_id() -> i32 {
    // SAFETY: no arguments, and it cannot fail (gettid(2)).
    unsafe { libc::gettid() }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use flate2::read::GzDecoder;

    use super::*;

    const ROTATION: Rotation = Rotation { max_size: 100, max_age: None, keep: 3 };

    #[test]
    fn a_full_file_is_rotated_old_ones_are_compressed_and_the_oldest_removed() {
        let (_directory, path) = place();
        let mut log = LogFile::open(&path, ROTATION, SystemTime::now()).expect("a file");
        for record in 0..6 {
            log.write(format!("{record:059}\n").as_bytes(), SystemTime::now()).expect("written");
        }
        assert_eq!(names(&path), ["x.log", "x.log.1", "x.log.2.gz", "x.log.3.gz"]);
        assert!(fs::read_to_string(&path).expect("there").ends_with("5\n"));
        assert!(fs::read_to_string(log.numbered(1, false)).expect("there").ends_with("4\n"));
        assert!(unpacked(&log.numbered(2, true)).ends_with("3\n"));
        assert!(unpacked(&log.numbered(3, true)).ends_with("2\n"));
    }

    #[test]
    fn an_old_file_is_rotated_by_the_next_line() {
        let (_directory, path) = place();
        let rotation = Rotation { max_age: Some(Duration::from_secs(60)), keep: 1, ..ROTATION };
        let start = SystemTime::now();
        let mut log = LogFile::open(&path, rotation, start).expect("a file");
        log.write(b"one\n", start).expect("written");
        log.write(b"two\n", start + Duration::from_secs(59)).expect("written");
        assert_eq!(names(&path), ["x.log"]);
        log.write(b"three\n", start + Duration::from_secs(61)).expect("written");
        log.write(b"four\n", start + Duration::from_secs(62)).expect("written");
        assert_eq!(names(&path), ["x.log", "x.log.1"]);
        assert_eq!(fs::read_to_string(&path).expect("there"), "three\nfour\n");
    }

    #[test]
    fn fewer_to_keep_removes_what_was_kept_before_and_none_keeps_none() {
        let (_directory, path) = place();
        for name in ["x.log.1", "x.log.7.gz", "x.log.old", "x.log.01", "other.log.9"] {
            fs::write(path.with_file_name(name), "old").expect("written");
        }
        let mut log = LogFile::open(&path, Rotation { keep: 0, ..ROTATION }, SystemTime::now()).expect("a file");
        log.write(&[b'a'; 90], SystemTime::now()).expect("written");
        log.write(&[b'b'; 90], SystemTime::now()).expect("written");
        assert_eq!(names(&path), ["other.log.9", "x.log", "x.log.01", "x.log.old"]);
        assert_eq!(fs::read(&path).expect("there"), [b'b'; 90]);
    }

    #[test]
    fn records_are_not_torn_between_files() {
        let (_directory, path) = place();
        let log = LogFile::open(&path, ROTATION, SystemTime::now()).expect("a file");
        assert_eq!(log.room_for(0, &[40, 80, 120], SystemTime::now()), 2);
        assert_eq!(log.room_for(80, &[120, 500], SystemTime::now()), 1);
        assert_eq!(log.room_for(0, &[500, 510], SystemTime::now()), 1);
    }

    #[test]
    fn a_file_moved_away_is_made_anew_on_request() {
        let (_directory, path) = place();
        let sink = sink(&path, |_| panic!("no complaint"));
        sink.push(b"one\n");
        sink.flush();
        let moved = path.with_file_name("moved");
        fs::rename(&path, &moved).expect("moved");
        sink.push(b"two\n");
        sink.flush();
        assert_eq!(fs::read_to_string(&moved).expect("there"), "one\ntwo\n");
        sink.reopen();
        sink.push(b"three\n");
        sink.flush();
        assert_eq!(fs::read_to_string(&path).expect("there"), "three\n");
    }

    #[test]
    fn a_full_disk_loses_lines_is_complained_of_once_and_told_when_there_is_room_again() {
        let (_directory, path) = place();
        std::os::unix::fs::symlink("/dev/full", &path).expect("a link");
        let told: Arc<Mutex<Vec<String>>> = Arc::default();
        let tell = told.clone();
        let sink = sink(&path, move |text| tell.lock().expect("whole").push(text.to_owned()));
        for _ in 0..5 {
            sink.push(b"lost\n");
            sink.flush();
        }
        let told = told.lock().expect("whole").clone();
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].contains("x.log: the log cannot be written: No space left on device"), "{told:?}");
        fs::remove_file(&path).expect("removed");
        sink.reopen();
        sink.push(b"here\n");
        sink.flush();
        let text = fs::read_to_string(&path).expect("there");
        assert!(text.starts_with("5 lines of the log were lost: No space left on device"), "{text}");
        assert!(text.ends_with("\nhere\n"), "{text}");
    }

    #[test]
    fn a_disk_that_does_not_keep_up_delays_nobody() {
        let (_directory, path) = place();
        let pipe = path.with_file_name("pipe");
        let name = std::ffi::CString::new(pipe.to_str().expect("text")).expect("no zero in it");
        // SAFETY: the name ends in a zero and outlives the call.
        assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
        // It takes 64 KiB and then blocks whoever writes.
        let mut reader = OpenOptions::new().read(true).write(true).open(&pipe).expect("a reader");
        let sink = LogSink::open(&pipe, ROTATION, |_| {}, |text| text.into()).expect("a log");
        let start = std::time::Instant::now();
        for _ in 0..4096 {
            sink.push(&[b'a'; 1024]);
        }
        assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
        assert!(sink.0.queue().lost > 1000, "4 MiB do not fit into 1");
        let mut some = [0; 1024];
        reader.read_exact(&mut some).expect("written");
        assert!(some.ends_with(b"aaaa"), "what was taken is written");
        assert_eq!(names(&path), ["pipe"], "only files are rotated");
    }

    fn sink(path: &Path, complain: impl Fn(&str) + Send + 'static) -> LogSink {
        LogSink::open(path, ROTATION, complain, |text| format!("{text}\n").into_bytes()).expect("a log")
    }

    fn place() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("x.log");
        (directory, path)
    }

    fn names(path: &Path) -> Vec<String> {
        let entries = fs::read_dir(path.parent().expect("a parent")).expect("readable");
        let mut names: Vec<_> =
            entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    fn unpacked(path: &Path) -> String {
        let mut text = String::new();
        GzDecoder::new(File::open(path).expect("there")).read_to_string(&mut text).expect("gzip");
        text
    }
}
