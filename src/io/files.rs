//! The state directory, the secrets in it, and files that are replaced whole.
//!
//! Secrets are refused when anybody else could have read or put them there, with an error that says what to do.
//! Whatever is written survives a crash right after: content, name and directory are synced before a call returns. A
//! broken file is set aside and never overwritten.

use std::ffi::{CString, OsString};
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use zeroize::Zeroizing;

use super::clock::unix_time;

/// A directory that belongs to us alone.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
}

/// The right to use a state directory; given back when dropped or when the process ends.
#[derive(Debug)]
pub struct StateLock {
    _file: File,
}

/// Why a file or directory was not used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("{} is a symbolic link; name the directory or file itself", path.display())]
    IsLink { path: PathBuf },
    #[error("{} is not a directory; remove it or name another path", path.display())]
    NotDirectory { path: PathBuf },
    #[error("{} is not an ordinary file; remove it", path.display())]
    NotFile { path: PathBuf },
    #[error("{} belongs to user {owner} and we are user {ours}; run `chown {ours} {}`", path.display(), path.display())]
    WrongOwner { path: PathBuf, owner: u32, ours: u32 },
    #[error("others may use {} (mode {mode:04o}); run `chmod {} {}`", path.display(), wanted_mode(*directory), path.display())]
    OpenToOthers { path: PathBuf, mode: u32, directory: bool },
    #[error("{} holds {found} bytes, a key has 32; restore it from a backup, or remove it to get a new key", path.display())]
    WrongLength { path: PathBuf, found: u64 },
    #[error("{} exists already and is left as it is", path.display())]
    Exists { path: PathBuf },
    #[error("{} is in use by process {pid}; end that one, or name another state directory", path.display())]
    InUse { path: PathBuf, pid: u32 },
    #[error("{} is longer than 4 MiB and is left as it is", path.display())]
    TooLong { path: PathBuf },
    #[error("{} is no file with a secret, which has {max} bytes at the most; name another one", path.display())]
    NoSecret { path: PathBuf, max: u64 },
    #[error("{name:?} is no plain file name")]
    BadName { name: String },
    #[error("cannot {operation} {}: {source}", path.display())]
    Io { operation: &'static str, path: PathBuf, source: io::Error },
}

impl StateDir {
    /// Opens the directory, or makes it (with its parents) for us alone.
    pub fn open_or_create(path: impl Into<PathBuf>) -> Result<Self, FileError> {
        let path = path.into();
        let metadata = match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if let Some(parent) = path.parent() {
                    fs::create_dir_all(parent).map_err(failed("create", parent))?;
                }
                match DirBuilder::new().mode(DIR_MODE).create(&path) {
                    // Somebody was faster; the checks below decide whether that is all right.
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                    result => result.map_err(failed("create", &path))?,
                }
                fs::symlink_metadata(&path)
            }
            result => result,
        }
        .map_err(failed("look at", &path))?;

        if metadata.is_symlink() {
            return Err(FileError::IsLink { path });
        }
        if !metadata.is_dir() {
            return Err(FileError::NotDirectory { path });
        }
        check_private(&path, &metadata)?;
        Ok(Self { path })
    }

    /// The directory's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path of a file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Reads a 32-byte secret; `None` if there is no such file.
    pub fn read_secret(&self, name: &str) -> Result<Option<Zeroizing<[u8; 32]>>, FileError> {
        let path = self.plain(name)?;
        let Some((mut file, metadata)) = open_private(&path)? else { return Ok(None) };
        if metadata.len() != 32 {
            return Err(FileError::WrongLength { path, found: metadata.len() });
        }
        let mut secret = Zeroizing::new([0; 32]);
        file.read_exact(&mut *secret).map_err(failed("read", &path))?;
        Ok(Some(secret))
    }

    /// Writes a new 32-byte secret; an error if the file exists, since a secret lost is lost for good.
    pub fn write_secret_new(&self, name: &str, secret: &[u8; 32]) -> Result<(), FileError> {
        let path = self.plain(name)?;
        write_synced(&path, secret, FILE_MODE, |temporary| rename_new(temporary, &path))
    }

    /// Reads a file under the same conditions as a secret; `None` if there is no such file.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>, FileError> {
        let path = self.plain(name)?;
        let Some((mut file, _)) = open_private(&path)? else { return Ok(None) };
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(failed("read", &path))?;
        Ok(Some(bytes))
    }

    /// Replaces a file, for us alone; readers find the old content or the new.
    pub fn write_atomic(&self, name: &str, bytes: &[u8]) -> Result<(), FileError> {
        write_atomic(&self.plain(name)?, bytes, FILE_MODE)
    }

    /// Renames a broken file to `NAME.broken-UNIXSECONDS` and returns the new path. Nothing is ever overwritten.
    pub fn set_aside(&self, name: &str) -> Result<PathBuf, FileError> {
        let path = self.plain(name)?;
        let mut seconds = unix_time().as_secs();
        loop {
            let aside = self.path.join(format!("{name}.broken-{seconds}"));
            match rename_new(&path, &aside) {
                Ok(()) => {
                    sync_parent(&aside)?;
                    return Ok(aside);
                }
                Err(FileError::Exists { .. }) => seconds += 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// Removes a file that is not wanted any more; one that is not there is fine.
    pub fn remove(&self, name: &str) -> Result<(), FileError> {
        let path = self.plain(name)?;
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", &path)(error)),
            Ok(()) | Err(_) => sync_parent(&path),
        }
    }

    /// Makes sure that no other process uses this directory, for as long as the result lives.
    pub fn lock(&self) -> Result<StateLock, FileError> {
        let path = self.path.join("lock");
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(FILE_MODE);
        let mut file = options.custom_flags(libc::O_NOFOLLOW).open(&path).map_err(failed("open", &path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                let mut text = String::new();
                // The owner writes its number right after it has the lock, so an empty file is only a moment old.
                let pid = file.read_to_string(&mut text).ok().and_then(|_| text.trim().parse().ok()).unwrap_or(0);
                return Err(FileError::InUse { path: self.path.clone(), pid });
            }
            Err(fs::TryLockError::Error(error)) => return Err(failed("lock", &path)(error)),
        }
        let written =
            file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id()));
        written.map_err(failed("write", &path))?;
        Ok(StateLock { _file: file })
    }

    fn plain(&self, name: &str) -> Result<PathBuf, FileError> {
        if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0']) {
            return Err(FileError::BadName { name: name.to_owned() });
        }
        Ok(self.path.join(name))
    }
}

/// Replaces the file at `path` so that readers find the old content or the new and a crash leaves one of them.
///
/// The file has the permissions `mode`, whatever the umask.
pub fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    write_synced(path, bytes, mode, |temporary| fs::rename(temporary, path).map_err(failed("replace", path)))
}

/// Changes a file that is not ours alone: it keeps its owner and its mode, and if it is a link, so does what it leads
/// to. A file that does not exist counts as empty. `false` if nothing was to be changed, and nothing was written then.
///
/// Where something is mounted over the file (containers do that to `/etc/hosts`) it cannot be replaced, and is written in
/// place.
///
/// # Errors
/// `TooLong` for a file of more than 4 MiB, and what reading and writing may lead to.
pub fn edit(path: &Path, change: impl FnOnce(&[u8]) -> Vec<u8>) -> Result<bool, FileError> {
    let path = match fs::canonicalize(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => path.to_owned(),
        path_or_error => path_or_error.map_err(failed("find", path))?,
    };
    let (text, metadata) = match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => (Vec::new(), None),
        opened => {
            let file = opened.map_err(failed("open", &path))?;
            let metadata = file.metadata().map_err(failed("look at", &path))?;
            let mut text = Vec::new();
            file.take(EDIT_MAX + 1).read_to_end(&mut text).map_err(failed("read", &path))?;
            if text.len() as u64 > EDIT_MAX {
                return Err(FileError::TooLong { path });
            }
            (text, Some(metadata))
        }
    };
    let changed = change(&text);
    if changed == text {
        return Ok(false);
    }
    let mode = metadata.as_ref().map_or(0o644, |metadata| metadata.mode() & 0o7777);
    let replaced = write_synced(&path, &changed, mode, |temporary| {
        if let Some(metadata) = &metadata {
            let ours = fs::metadata(temporary).map_err(failed("look at", temporary))?;
            if (ours.uid(), ours.gid()) != (metadata.uid(), metadata.gid()) {
                std::os::unix::fs::chown(temporary, Some(metadata.uid()), Some(metadata.gid()))
                    .map_err(failed("change the owner of", temporary))?;
            }
        }
        fs::rename(temporary, &path).map_err(failed("replace", &path))
    });
    match replaced {
        Err(FileError::Io { operation: "replace", source, .. }) if source.raw_os_error() == Some(libc::EBUSY) => {
            write_in_place(&path, &changed).map_err(failed("write", &path))?;
        }
        replaced => replaced?,
    }
    Ok(true)
}

/// The longest file that is edited.
const EDIT_MAX: u64 = 4 << 20;

fn write_in_place(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).open(path)?;
    file.write_all(bytes)?;
    file.set_len(bytes.len() as u64)?;
    file.sync_all()
}

/// Writes a temporary file next to `path`, syncs it, lets `place` move it there, and syncs the directory.
fn write_synced(
    path: &Path,
    bytes: &[u8],
    mode: u32,
    place: impl FnOnce(&Path) -> Result<(), FileError>,
) -> Result<(), FileError> {
    static SERIAL: AtomicU32 = AtomicU32::new(0);
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}-{}.tmp", std::process::id(), SERIAL.fetch_add(1, Relaxed)));
    let temporary = path.with_file_name(name);

    let write = || {
        let mut options = OpenOptions::new();
        let mut file = match options.write(true).create_new(true).mode(mode).open(&temporary) {
            // Left by a process that had our number and was killed; nobody else uses this name.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                fs::remove_file(&temporary)?;
                options.open(&temporary)?
            }
            result => result?,
        };
        file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(mode))?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    let result = write().map_err(failed("write", &temporary)).and_then(|()| place(&temporary));
    if result.is_err() {
        // What counts is the first error; a file that was never made cannot be removed either.
        let _ = fs::remove_file(&temporary);
        return result;
    }
    sync_parent(path)
}

/// Renames unless the target exists, in one step.
fn rename_new(from: &Path, to: &Path) -> Result<(), FileError> {
    let c_string = |path: &Path| {
        CString::new(path.as_os_str().as_bytes())
            .map_err(|_| FileError::BadName { name: path.to_string_lossy().into_owned() })
    };
    let (c_from, c_to) = (c_string(from)?, c_string(to)?);
    // SAFETY: both are C strings that outlive the call.
    let result = unsafe {
        libc::renameat2(libc::AT_FDCWD, c_from.as_ptr(), libc::AT_FDCWD, c_to.as_ptr(), libc::RENAME_NOREPLACE)
    };
    if result == 0 {
        return Ok(());
    }
    let mut error = io::Error::last_os_error();
    if error.raw_os_error() == Some(libc::EINVAL) {
        // The file system cannot do that (NFS, for one); a hard link does not replace either.
        match fs::hard_link(from, to).and_then(|()| fs::remove_file(from)) {
            Ok(()) => return Ok(()),
            Err(other) => error = other,
        }
    }
    match error.kind() {
        io::ErrorKind::AlreadyExists => Err(FileError::Exists { path: to.to_owned() }),
        _ => Err(failed("rename", from)(error)),
    }
}

pub(super) fn sync_parent(path: &Path) -> Result<(), FileError> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent).and_then(|directory| directory.sync_all()).map_err(failed("sync", parent))
}

/// Opens first and looks afterwards, so that what was checked is what is read.
pub(super) fn open_private(path: &Path) -> Result<Option<(File, Metadata)>, FileError> {
    // Without O_NONBLOCK, opening a FIFO would wait for a writer.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::ELOOP) => {
            return Err(FileError::IsLink { path: path.to_owned() });
        }
        Err(error) => return Err(failed("open", path)(error)),
    };
    let metadata = file.metadata().map_err(failed("look at", path))?;
    if !metadata.is_file() {
        return Err(FileError::NotFile { path: path.to_owned() });
    }
    check_private(path, &metadata)?;
    Ok(Some((file, metadata)))
}

/// Reads a secret that somebody was told of, at most `max` bytes: from a file that only its owner has rights to, whoever
/// that is, or from a pipe.
///
/// # Errors
/// `OpenToOthers` says how to close it.
pub fn read_private(path: &Path, max: u64) -> Result<Zeroizing<Vec<u8>>, FileError> {
    let seen = fs::metadata(path).map_err(failed("look at", path))?;
    // A pipe is waited for. What was a file when it was looked at must not become one meanwhile.
    let is_pipe = !seen.is_file() && !seen.is_dir();
    let flags = if is_pipe { 0 } else { libc::O_NONBLOCK };
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(failed("open", path))?;
    let metadata = file.metadata().map_err(failed("look at", path))?;
    if !metadata.is_file() && !is_pipe {
        return Err(FileError::NoSecret { path: path.to_owned(), max });
    }
    let mode = metadata.mode() & 0o7777;
    if metadata.is_file() && mode & 0o077 != 0 {
        return Err(FileError::OpenToOthers { path: path.to_owned(), mode, directory: false });
    }
    // All of it at once, so that no part of the secret stays where it was before the room grew.
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(max).unwrap_or(0) + 2));
    file.take(max + 1).read_to_end(&mut bytes).map_err(failed("read", path))?;
    if bytes.len() as u64 > max {
        return Err(FileError::NoSecret { path: path.to_owned(), max });
    }
    Ok(bytes)
}

fn check_private(path: &Path, metadata: &Metadata) -> Result<(), FileError> {
    // SAFETY: no pointers.
    let ours = unsafe { libc::geteuid() };
    if metadata.uid() != ours {
        return Err(FileError::WrongOwner { path: path.to_owned(), owner: metadata.uid(), ours });
    }
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(FileError::OpenToOthers { path: path.to_owned(), mode, directory: metadata.is_dir() });
    }
    Ok(())
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError {
    move |source| FileError::Io { operation, path: path.to_owned(), source }
}

const DIR_MODE: u32 = 0o700;
pub(super) const FILE_MODE: u32 = 0o600;

fn wanted_mode(directory: bool) -> &'static str {
    if directory { "700" } else { "600" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::process::{Command, Stdio};

    fn state() -> (tempfile::TempDir, StateDir) {
        let temporary = tempfile::tempdir().expect("a directory");
        let state = StateDir::open_or_create(temporary.path().join("a/state")).expect("a state directory");
        (temporary, state)
    }

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("a file").mode() & 0o7777
    }

    fn names(state: &StateDir) -> Vec<String> {
        let entries = fs::read_dir(state.path()).expect("a directory");
        let mut names: Vec<_> =
            entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("text")).collect();
        names.sort();
        names
    }

    #[test]
    fn a_secret_that_others_have_rights_to_is_not_read_and_one_from_a_pipe_is() {
        let (place, _) = state();
        let path = place.path().join("secret");
        let with = |mode: u32, bytes: &[u8]| {
            fs::write(&path, bytes).expect("written");
            chmod(&path, mode);
            read_private(&path, 100).map(|bytes| bytes.len())
        };
        assert_eq!(with(0o600, &[b'x'; 100]).expect("a secret"), 100);
        assert!(with(0o640, b"x").is_err_and(|error| error.to_string().contains("chmod 600")));
        assert!(matches!(with(0o600, &[b'x'; 101]), Err(FileError::NoSecret { max: 100, .. })));
        assert!(matches!(read_private(place.path(), 100), Err(FileError::NoSecret { .. })));
        let mut echo = Command::new("echo").arg("a word").stdout(Stdio::piped()).spawn().expect("started");
        let pipe = echo.stdout.take().expect("a pipe");
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&pipe));
        assert_eq!(read_private(Path::new(&path), 100).expect("read")[..], *b"a word\n");
        echo.wait().expect("ended");
    }

    #[test]
    fn a_new_state_directory_is_for_its_owner_alone_and_opens_again() {
        let (_temporary, state) = state();
        assert_eq!(mode(state.path()), 0o700);
        StateDir::open_or_create(state.path()).expect("again");
    }

    #[test]
    fn a_directory_open_to_others_is_refused_with_the_command_that_mends_it() {
        let (_temporary, state) = state();
        chmod(state.path(), 0o750);
        let error = StateDir::open_or_create(state.path()).expect_err("open to the group");
        let advice = format!("run `chmod 700 {}`", state.path().display());
        assert!(error.to_string().ends_with(&advice), "{error}");
    }

    #[test]
    fn a_link_or_a_file_in_place_of_the_directory_is_refused() {
        let (temporary, state) = state();
        let link = temporary.path().join("link");
        symlink(state.path(), &link).expect("a link");
        assert!(matches!(StateDir::open_or_create(&link), Err(FileError::IsLink { .. })));
        let file = temporary.path().join("file");
        fs::write(&file, "").expect("a file");
        assert!(matches!(StateDir::open_or_create(&file), Err(FileError::NotDirectory { .. })));
    }

    #[test]
    fn files_of_another_user_are_refused() {
        let (_temporary, state) = state();
        state.write_secret_new("key", &[1; 32]).expect("written");
        if std::os::unix::fs::chown(state.file("key"), Some(12_345), None).is_err() {
            return println!("skipped: only root can give files away");
        }
        assert!(matches!(state.read_secret("key"), Err(FileError::WrongOwner { owner: 12_345, .. })));
    }

    #[test]
    fn a_secret_reads_back_and_is_never_overwritten() {
        let (_temporary, state) = state();
        assert!(state.read_secret("key").expect("no error").is_none());
        state.write_secret_new("key", &[7; 32]).expect("written");
        assert!(matches!(state.write_secret_new("key", &[8; 32]), Err(FileError::Exists { .. })));
        assert_eq!(*state.read_secret("key").expect("readable").expect("there"), [7; 32]);
        assert_eq!(mode(&state.file("key")), 0o600);
        assert_eq!(names(&state), ["key"], "no temporary file is left");
    }

    #[test]
    fn a_secret_that_others_could_have_read_or_put_there_is_refused() {
        let (_temporary, state) = state();
        state.write_secret_new("key", &[7; 32]).expect("written");
        chmod(&state.file("key"), 0o640);
        let error = state.read_secret("key").expect_err("readable by the group");
        assert!(error.to_string().contains("chmod 600"), "{error}");

        symlink(state.file("key"), state.file("link")).expect("a link");
        assert!(matches!(state.read_secret("link"), Err(FileError::IsLink { .. })));
        fs::create_dir(state.file("directory")).expect("a directory");
        assert!(matches!(state.read_secret("directory"), Err(FileError::NotFile { .. })));
        state.write_atomic("short", &[7; 31]).expect("written");
        assert!(matches!(state.read_secret("short"), Err(FileError::WrongLength { found: 31, .. })));
        for name in ["", ".", "..", "../key", "a/b"] {
            assert!(matches!(state.read_secret(name), Err(FileError::BadName { .. })), "{name}");
        }
    }

    #[test]
    fn a_file_is_replaced_whole_with_the_mode_asked_for() {
        let (_temporary, state) = state();
        assert_eq!(state.read("map").expect("no error"), None);
        for content in ["a longer first content", "second"] {
            state.write_atomic("map", content.as_bytes()).expect("written");
            assert_eq!(state.read("map").expect("readable"), Some(content.as_bytes().to_vec()));
        }
        let public = state.file("public");
        write_atomic(&public, b"for all", 0o644).expect("written");
        assert_eq!(mode(&public), 0o644);
        assert_eq!(names(&state), ["map", "public"]);
    }

    #[test]
    fn broken_files_are_set_aside_side_by_side() {
        let (_temporary, state) = state();
        let mut kept = Vec::new();
        for content in ["first", "second"] {
            state.write_atomic("map", content.as_bytes()).expect("written");
            kept.push((state.set_aside("map").expect("set aside"), content));
        }
        for (path, content) in kept {
            assert!(path.to_string_lossy().contains("/map.broken-"));
            assert_eq!(fs::read_to_string(path).expect("kept"), content);
        }
        assert_eq!(state.read("map").expect("no error"), None);
    }

    #[test]
    fn a_directory_in_use_names_the_process_that_uses_it() {
        let (_temporary, state) = state();
        let lock = state.lock().expect("free");
        let error = state.lock().expect_err("in use");
        assert!(matches!(error, FileError::InUse { pid, .. } if pid == std::process::id()), "{error}");
        // A child must not inherit the lock and keep it when we are gone.
        let mut child = Command::new("sleep").arg("5").stdout(Stdio::null()).spawn().expect("a child");
        drop(lock);
        // Between its fork and its exec a child that another test starts at this moment holds a copy; not for long.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(2);
        while let Err(error) = state.lock() {
            assert!(std::time::Instant::now() < deadline, "free again: {error}");
            std::thread::yield_now();
        }
        child.kill().expect("killed");
        child.wait().expect("ended");
    }

    #[test]
    fn an_edited_file_keeps_its_mode_and_a_link_to_it_stays_one() {
        let directory = tempfile::tempdir().expect("a directory");
        let (file, link) = (directory.path().join("file"), directory.path().join("link"));
        fs::write(&file, "one").expect("written");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).expect("set");
        std::os::unix::fs::symlink(&file, &link).expect("a link");
        assert!(edit(&link, |text| [text, b" two"].concat()).expect("edited"));
        assert!(!edit(&link, <[u8]>::to_vec).expect("as it was"));
        assert_eq!(fs::read_to_string(&file).expect("read"), "one two");
        assert_eq!(fs::metadata(&file).expect("there").mode() & 0o7777, 0o640);
        assert!(fs::symlink_metadata(&link).expect("there").is_symlink());
        let new = directory.path().join("new");
        assert!(edit(&new, |text| [text, b"begun"].concat()).expect("edited"));
        assert_eq!(fs::read_to_string(&new).expect("read"), "begun");
    }

    #[test]
    fn a_file_that_something_is_mounted_over_is_edited_in_place() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("hosts");
        fs::write(&file, "a longer text").expect("written");
        let path = CString::new(file.as_os_str().as_bytes()).expect("a path");
        // A thread with mounts of its own ends with them.
        let edited = std::thread::spawn(move || {
            let (root, none) = (c"/".as_ptr(), std::ptr::null());
            // SAFETY: the thread leaves the mounts it shares with the others; all are C strings.
            let mounted = unsafe {
                libc::unshare(libc::CLONE_NEWNS) == 0
                    && libc::mount(none, root, none, libc::MS_REC | libc::MS_PRIVATE, std::ptr::null()) == 0
                    && libc::mount(path.as_ptr(), path.as_ptr(), none, libc::MS_BIND, std::ptr::null()) == 0
            };
            mounted.then(|| edit(&file, |_| b"short".to_vec()).map(|_| fs::read_to_string(&file)))
        });
        match edited.join().expect("ended") {
            Some(edited) => assert_eq!(edited.expect("edited").expect("read"), "short"),
            None => println!("skipped: nothing can be mounted here"),
        }
        assert_eq!(fs::read_dir(directory.path()).expect("listed").count(), 1, "no temporary file stays");
    }
}
