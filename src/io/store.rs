//! Where the server's records are kept: in memory for tests and simulations, in SQLite for good.
//!
//! A batch of writes is one transaction: all of it is durable when [`Store::apply`] returns, or none of it happened.
//! The store knows what must be unique in a network, and nothing else about what the records mean.

use std::collections::HashSet;
use std::fs::OpenOptions;
use std::hash::Hash;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Mutex;
use std::time::Duration;

use smol::lock::Mutex as AsyncMutex;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteRow, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, Row};

use super::files::{self, FileError};
use crate::ids::{NetworkId, PublicKey};
use crate::proto::records::{MemberRecord, NetworkRecord, RevokedRecord, StoreOp, StoredState, TokenRecord};

/// A future that a trait object can return.
pub type StoreFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// Keeps the server's records.
pub trait Store: Send + Sync {
    /// Everything that is kept, members by key and the rest by number.
    fn load(&self) -> StoreFuture<'_, StoredState>;

    /// Writes a batch in one transaction; durable when it returns. An error means that nothing of it was written.
    fn apply(&self, ops: Vec<StoreOp>) -> StoreFuture<'_, ()>;
}

/// Why records could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{} is not a database of ours; move it away, or name another file", path.display())]
    NotADatabase { path: PathBuf },
    #[error("the database {} is damaged ({detail}); restore it from a backup", path.display())]
    Corrupt { path: PathBuf, detail: String },
    #[error(
        "the database {} has schema {found} and this program knows {SCHEMA_VERSION}; install the newer version again",
        path.display()
    )]
    Newer { path: PathBuf, found: i64 },
    #[error("another member has the same {column}")]
    Conflict { column: String },
    #[error(transparent)]
    File(#[from] FileError),
    #[error("the database {}: {source}", path.display())]
    Database { path: PathBuf, source: sqlx::Error },
}

/// Keeps records while the process lives.
#[derive(Debug, Default)]
pub struct MemoryStore {
    state: Mutex<StoredState>,
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// A store that holds `state`, such as what another one loaded before a restart.
    pub fn with(state: StoredState) -> Self {
        Self { state: Mutex::new(state) }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, StoredState> {
        self.state.lock().expect("nothing panics while it holds the state")
    }
}

impl Store for MemoryStore {
    fn load(&self) -> StoreFuture<'_, StoredState> {
        Box::pin(async { Ok(self.lock().clone()) })
    }

    fn apply(&self, ops: Vec<StoreOp>) -> StoreFuture<'_, ()> {
        Box::pin(async {
            let mut state = self.lock();
            let mut next = state.clone();
            for op in ops {
                apply_in_memory(&mut next, op)?;
            }
            *state = next;
            Ok(())
        })
    }
}

fn apply_in_memory(state: &mut StoredState, op: StoreOp) -> Result<(), StoreError> {
    match op {
        StoreOp::PutNetwork(network) => state.network = Some(network),
        StoreOp::PutMember(member) => {
            state.members.retain(|other| other.key != member.key);
            state.members.push(member);
            state.members.sort_by_key(|member| member.key);
            check_unique(&state.members)?;
        }
        StoreOp::RemoveMember(key) => state.members.retain(|member| member.key != key),
        StoreOp::PutToken(token) => {
            state.tokens.retain(|other| other.id != token.id);
            state.tokens.push(token);
            state.tokens.sort_by_key(|token| token.id);
        }
        StoreOp::RemoveToken(id) => state.tokens.retain(|token| token.id != id),
        StoreOp::PutRevoked(revoked) => {
            state.revoked.retain(|other| other.serial != revoked.serial);
            state.revoked.push(revoked);
            state.revoked.sort_by_key(|revoked| revoked.serial);
        }
        StoreOp::RemoveRevoked(serial) => state.revoked.retain(|revoked| revoked.serial != serial),
    }
    Ok(())
}

fn check_unique(members: &[MemberRecord]) -> Result<(), StoreError> {
    fn distinct<T: Eq + Hash>(column: &str, values: impl Iterator<Item = T>) -> Result<(), StoreError> {
        let mut seen = HashSet::new();
        for value in values {
            if !seen.insert(value) {
                return Err(StoreError::Conflict { column: column.to_owned() });
            }
        }
        Ok(())
    }
    distinct("name", members.iter().map(|member| &member.name))?;
    distinct("mac", members.iter().map(|member| member.mac))?;
    distinct("ip4", members.iter().map(|member| member.ip4))?;
    distinct("ip6", members.iter().filter_map(|member| member.ip6))
}

/// Keeps records in an SQLite file, with a write-ahead log: a power cut loses nothing that was acknowledged.
#[derive(Debug)]
pub struct SqliteStore {
    path: PathBuf,
    connection: AsyncMutex<SqliteConnection>,
}

impl SqliteStore {
    /// Opens the database, or makes it, for us alone (0600).
    ///
    /// A file that is no database, is damaged, or belongs to a newer program is an error and left as it is.
    pub async fn open(path: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let path = path.into();
        prepare_file(&path)?;
        let failed = |error| database_error(&path, error);
        // Switching to the write-ahead log writes to the file, so it is looked at first.
        let found = check_file(&path).await?;

        let options = SqliteConnectOptions::new()
            .filename(&path)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(BUSY_TIMEOUT)
            .disable_statement_logging();
        let mut connection = options.connect().await.map_err(failed)?;
        if found == 0 {
            sqlx::raw_sql(SCHEMA).execute(&mut connection).await.map_err(failed)?;
            files::sync_parent(&path)?;
        }
        Ok(Self { path, connection: AsyncMutex::new(connection) })
    }

    /// Brings what the write-ahead log holds into the file itself, so that the file alone is a backup.
    ///
    /// Nothing is lost without it: the log is read at the next start.
    pub async fn settle(&self) -> Result<(), StoreError> {
        let mut connection = self.connection.lock().await;
        sqlx::raw_sql("PRAGMA wal_checkpoint(TRUNCATE)").execute(&mut *connection).await.map_err(self.failed())?;
        Ok(())
    }

    fn failed(&self) -> impl Fn(sqlx::Error) -> StoreError + '_ {
        |error| database_error(&self.path, error)
    }
}

impl Store for SqliteStore {
    fn load(&self) -> StoreFuture<'_, StoredState> {
        Box::pin(async {
            let mut connection = self.connection.lock().await;
            // One transaction, so that all tables are of the same moment.
            let mut read = connection.begin().await.map_err(self.failed())?;
            let state = load(&mut read).await.map_err(self.failed())?;
            read.rollback().await.map_err(self.failed())?;
            Ok(state)
        })
    }

    fn apply(&self, ops: Vec<StoreOp>) -> StoreFuture<'_, ()> {
        Box::pin(async move {
            let mut connection = self.connection.lock().await;
            // Dropped without a commit, by an error or with the future, it rolls back.
            let mut write = connection.begin_with("BEGIN IMMEDIATE").await.map_err(self.failed())?;
            for op in ops {
                apply(&mut write, op).await.map_err(self.failed())?;
            }
            write.commit().await.map_err(self.failed())
        })
    }
}

/// Makes an empty file with the right mode if there is none; SQLite gives the log beside it the same mode.
fn prepare_file(path: &Path) -> Result<(), StoreError> {
    if files::open_private(path)?.is_some() {
        return Ok(());
    }
    match OpenOptions::new().write(true).create_new(true).mode(files::FILE_MODE).open(path) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(source) => Err(FileError::Io { operation: "create", path: path.to_owned(), source }.into()),
    }
}

/// Reads the file through without writing to it; returns its schema number, 0 for an empty file.
async fn check_file(path: &Path) -> Result<i64, StoreError> {
    let failed = |error| database_error(path, error);
    let options = SqliteConnectOptions::new().filename(path).read_only(true).busy_timeout(BUSY_TIMEOUT);
    let mut connection = options.disable_statement_logging().connect().await.map_err(failed)?;
    let found: i64 = sqlx::query_scalar("PRAGMA user_version").fetch_one(&mut connection).await.map_err(failed)?;
    let tables: i64 =
        sqlx::query_scalar("SELECT count(*) FROM sqlite_schema").fetch_one(&mut connection).await.map_err(failed)?;
    let verdict: String =
        sqlx::query_scalar("PRAGMA quick_check(1)").fetch_one(&mut connection).await.map_err(failed)?;
    connection.close().await.map_err(failed)?;

    if verdict != "ok" {
        let detail = verdict.lines().next().unwrap_or_default().to_owned();
        return Err(StoreError::Corrupt { path: path.to_owned(), detail });
    }
    match found {
        // Some other program's database.
        0 if tables > 0 => Err(StoreError::NotADatabase { path: path.to_owned() }),
        0..=SCHEMA_VERSION => Ok(found),
        _ => Err(StoreError::Newer { path: path.to_owned(), found }),
    }
}

fn database_error(path: &Path, source: sqlx::Error) -> StoreError {
    let path = path.to_owned();
    match &source {
        sqlx::Error::Database(error) if error.is_unique_violation() => {
            // "UNIQUE constraint failed: member.name"
            let column = error.message().rsplit(['.', ' ']).next().unwrap_or_default().to_owned();
            StoreError::Conflict { column }
        }
        sqlx::Error::Database(error) => {
            match error.code().and_then(|code| code.parse::<i32>().ok()).map(|c| c & 0xff) {
                Some(SQLITE_NOTADB) => StoreError::NotADatabase { path },
                Some(SQLITE_CORRUPT) => StoreError::Corrupt { path, detail: error.message().to_owned() },
                _ => StoreError::Database { path, source },
            }
        }
        sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => {
            StoreError::Corrupt { path, detail: source.to_string() }
        }
        _ => StoreError::Database { path, source },
    }
}

async fn load(connection: &mut SqliteConnection) -> Result<StoredState, sqlx::Error> {
    let network = sqlx::query("SELECT * FROM network").fetch_optional(&mut *connection).await?;
    let members = sqlx::query("SELECT * FROM member ORDER BY key").fetch_all(&mut *connection).await?;
    let tokens = sqlx::query("SELECT * FROM token").fetch_all(&mut *connection).await?;
    let revoked = sqlx::query("SELECT * FROM revoked").fetch_all(&mut *connection).await?;
    let mut state = StoredState {
        network: network.as_ref().map(network_record).transpose()?,
        members: members.iter().map(member_record).collect::<Result<_, _>>()?,
        tokens: tokens.iter().map(token_record).collect::<Result<_, _>>()?,
        revoked: revoked.iter().map(revoked_record).collect::<Result<_, _>>()?,
    };
    // SQLite orders them as signed numbers.
    state.tokens.sort_by_key(|token| token.id);
    state.revoked.sort_by_key(|revoked| revoked.serial);
    Ok(state)
}

fn network_record(row: &SqliteRow) -> Result<NetworkRecord, sqlx::Error> {
    Ok(NetworkRecord {
        id: NetworkId(number(row, "id")?),
        version: number(row, "version")?,
        epoch: number(row, "epoch")?,
        next_serial: number(row, "next_serial")?,
        boots: number(row, "boots")?,
    })
}

fn member_record(row: &SqliteRow) -> Result<MemberRecord, sqlx::Error> {
    Ok(MemberRecord {
        key: PublicKey(bytes32(row, "key")?),
        name: row.try_get("name")?,
        mac: parsed(row, "mac")?.ok_or(sqlx::Error::RowNotFound)?,
        ip4: parsed(row, "ip4")?.ok_or(sqlx::Error::RowNotFound)?,
        ip6: parsed(row, "ip6")?,
        rights: row.try_get("rights")?,
        serial: number(row, "serial")?,
        joined_unix: number(row, "joined_unix")?,
        last_endpoint: parsed(row, "last_endpoint")?,
    })
}

fn token_record(row: &SqliteRow) -> Result<TokenRecord, sqlx::Error> {
    Ok(TokenRecord {
        id: number(row, "id")?,
        psk: bytes32(row, "psk")?,
        expires_unix: row.try_get::<Option<i64>, _>("expires_unix")?.map(i64::cast_unsigned),
        uses_left: row.try_get("uses_left")?,
    })
}

fn revoked_record(row: &SqliteRow) -> Result<RevokedRecord, sqlx::Error> {
    Ok(RevokedRecord { serial: number(row, "serial")?, epoch: number(row, "epoch")? })
}

/// SQLite has signed numbers only; ours are stored as the same 64 bits.
fn number(row: &SqliteRow, column: &'static str) -> Result<u64, sqlx::Error> {
    row.try_get::<i64, _>(column).map(i64::cast_unsigned)
}

fn bytes32(row: &SqliteRow, column: &'static str) -> Result<[u8; 32], sqlx::Error> {
    let bytes: &[u8] = row.try_get(column)?;
    bytes.try_into().map_err(|error| bad_column(column, error))
}

fn parsed<T>(row: &SqliteRow, column: &'static str) -> Result<Option<T>, sqlx::Error>
where
    T: FromStr<Err: std::error::Error + Send + Sync + 'static>,
{
    let text: Option<&str> = row.try_get(column)?;
    text.map(|text| text.parse().map_err(|error| bad_column(column, error))).transpose()
}

fn bad_column(column: &'static str, error: impl std::error::Error + Send + Sync + 'static) -> sqlx::Error {
    sqlx::Error::ColumnDecode { index: column.to_owned(), source: Box::new(error) }
}

async fn apply(connection: &mut SqliteConnection, op: StoreOp) -> Result<(), sqlx::Error> {
    let query = match op {
        StoreOp::PutNetwork(network) => sqlx::query(
            "INSERT OR REPLACE INTO network (one, id, version, epoch, next_serial, boots) VALUES (1, ?, ?, ?, ?, ?)",
        )
        .bind(network.id.0.cast_signed())
        .bind(network.version.cast_signed())
        .bind(network.epoch.cast_signed())
        .bind(network.next_serial.cast_signed())
        .bind(network.boots.cast_signed()),
        // Not INSERT OR REPLACE: that would delete whoever has the name or address already.
        StoreOp::PutMember(member) => sqlx::query(
            "INSERT INTO member (key, name, mac, ip4, ip6, rights, serial, joined_unix, last_endpoint)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
             ON CONFLICT (key) DO UPDATE SET
                name = excluded.name, mac = excluded.mac, ip4 = excluded.ip4, ip6 = excluded.ip6,
                rights = excluded.rights, serial = excluded.serial, joined_unix = excluded.joined_unix,
                last_endpoint = excluded.last_endpoint",
        )
        .bind(member.key.0.to_vec())
        .bind(member.name)
        .bind(member.mac.to_string())
        .bind(member.ip4.to_string())
        .bind(member.ip6.map(|ip| ip.to_string()))
        .bind(member.rights)
        .bind(member.serial.cast_signed())
        .bind(member.joined_unix.cast_signed())
        .bind(member.last_endpoint.map(|addr| addr.to_string())),
        StoreOp::RemoveMember(key) => sqlx::query("DELETE FROM member WHERE key = ?").bind(key.0.to_vec()),
        StoreOp::PutToken(token) => {
            sqlx::query("INSERT OR REPLACE INTO token (id, psk, expires_unix, uses_left) VALUES (?, ?, ?, ?)")
                .bind(token.id.cast_signed())
                .bind(token.psk.to_vec())
                .bind(token.expires_unix.map(u64::cast_signed))
                .bind(token.uses_left)
        }
        StoreOp::RemoveToken(id) => sqlx::query("DELETE FROM token WHERE id = ?").bind(id.cast_signed()),
        StoreOp::PutRevoked(revoked) => sqlx::query("INSERT OR REPLACE INTO revoked (serial, epoch) VALUES (?, ?)")
            .bind(revoked.serial.cast_signed())
            .bind(revoked.epoch.cast_signed()),
        StoreOp::RemoveRevoked(serial) => {
            sqlx::query("DELETE FROM revoked WHERE serial = ?").bind(serial.cast_signed())
        }
    };
    query.execute(connection).await.map(|_| ())
}

/// Numbers over 2^63 are negative here. Addresses are text, so that a person can read them.
const SCHEMA: &str = "
BEGIN IMMEDIATE;
CREATE TABLE network (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    id INTEGER NOT NULL,
    version INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    next_serial INTEGER NOT NULL,
    boots INTEGER NOT NULL
) STRICT;
CREATE TABLE member (
    key BLOB PRIMARY KEY CHECK (length(key) = 32),
    name TEXT NOT NULL UNIQUE,
    mac TEXT NOT NULL UNIQUE,
    ip4 TEXT NOT NULL UNIQUE,
    ip6 TEXT UNIQUE,
    rights INTEGER NOT NULL,
    serial INTEGER NOT NULL,
    joined_unix INTEGER NOT NULL,
    last_endpoint TEXT
) STRICT, WITHOUT ROWID;
CREATE TABLE token (
    id INTEGER PRIMARY KEY,
    psk BLOB NOT NULL CHECK (length(psk) = 32),
    expires_unix INTEGER,
    uses_left INTEGER
) STRICT;
CREATE TABLE revoked (
    serial INTEGER PRIMARY KEY,
    epoch INTEGER NOT NULL
) STRICT;
PRAGMA user_version = 1;
COMMIT;
";

/// Raised with every change of [`SCHEMA`].
const SCHEMA_VERSION: i64 = 1;

/// How long to wait for somebody who looks at the file with the sqlite3 program.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Result codes of SQLite (sqlite.org/rescode.html); the low byte of an extended code.
const SQLITE_CORRUPT: i32 = 11;
const SQLITE_NOTADB: i32 = 26;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::MacAddr;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    fn member(number: u8) -> MemberRecord {
        MemberRecord {
            key: PublicKey([number; 32]),
            name: format!("node{number}"),
            mac: MacAddr([2, 0, 0, 0, 0, number]),
            ip4: [192, 168, 43, number].into(),
            ip6: number.is_multiple_of(2).then(|| std::net::Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, number.into())),
            rights: 0xff,
            serial: u64::MAX - u64::from(number),
            joined_unix: 1_800_000_000,
            last_endpoint: (number == 1).then(|| "[2001:db8::1]:43439".parse().expect("an address")),
        }
    }

    fn network(boots: u64) -> NetworkRecord {
        NetworkRecord { id: NetworkId(u64::MAX - 1), version: 3, epoch: 1 << 63, next_serial: 5, boots }
    }

    fn token(id: u64) -> TokenRecord {
        TokenRecord { id, psk: [9; 32], expires_unix: Some(id), uses_left: Some(u32::MAX) }
    }

    fn everything() -> Vec<StoreOp> {
        vec![
            StoreOp::PutNetwork(network(1)),
            StoreOp::PutNetwork(network(2)),
            StoreOp::PutMember(member(2)),
            StoreOp::PutMember(member(1)),
            StoreOp::PutMember(member(3)),
            StoreOp::RemoveMember(member(3).key),
            StoreOp::PutToken(token(u64::MAX)),
            StoreOp::PutToken(TokenRecord { expires_unix: None, uses_left: None, ..token(7) }),
            StoreOp::PutToken(token(8)),
            StoreOp::RemoveToken(8),
            StoreOp::PutRevoked(RevokedRecord { serial: u64::MAX, epoch: 2 }),
            StoreOp::PutRevoked(RevokedRecord { serial: 1, epoch: 2 }),
            StoreOp::PutRevoked(RevokedRecord { serial: 2, epoch: 2 }),
            StoreOp::RemoveRevoked(2),
        ]
    }

    fn database() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("network.db");
        (directory, path)
    }

    fn open(path: &Path) -> Result<SqliteStore, StoreError> {
        smol::block_on(SqliteStore::open(path))
    }

    fn load(store: &dyn Store) -> StoredState {
        smol::block_on(store.load()).expect("loaded")
    }

    fn apply(store: &dyn Store, ops: Vec<StoreOp>) -> Result<(), StoreError> {
        smol::block_on(store.apply(ops))
    }

    /// Runs a test on both stores.
    fn each(test: impl Fn(&dyn Store)) {
        test(&MemoryStore::new());
        let (_directory, path) = database();
        test(&open(&path).expect("a store"));
    }

    #[test]
    fn what_is_stored_is_there_after_a_restart_as_in_memory() {
        let memory = MemoryStore::new();
        apply(&memory, everything()).expect("applied");
        let expected = load(&memory);
        assert_eq!(expected.network, Some(network(2)));
        assert_eq!(expected.members, [member(1), member(2)]);
        assert_eq!(expected.tokens.iter().map(|token| token.id).collect::<Vec<_>>(), [7, u64::MAX]);

        let (_directory, path) = database();
        let store = open(&path).expect("a new database");
        assert_eq!(load(&store), StoredState::default());
        apply(&store, everything()).expect("applied");
        smol::block_on(store.settle()).expect("settled");
        drop(store);
        for _ in 0..2 {
            let store = open(&path).expect("the same database");
            assert_eq!(load(&store), expected);
            // Applying a batch once more does no harm. This one is dropped without a close, as by a crash.
            apply(&store, everything()).expect("applied");
        }
    }

    #[test]
    fn a_member_is_changed_in_place() {
        each(|store| {
            let renamed = MemberRecord { name: "other".into(), ..member(1) };
            let ops = [member(1), member(2), renamed.clone()].map(StoreOp::PutMember);
            apply(store, ops.into()).expect("applied");
            assert_eq!(load(store).members, [renamed, member(2)]);
        });
    }

    #[test]
    fn a_batch_with_a_name_or_address_taken_changes_nothing() {
        each(|store| {
            apply(store, vec![StoreOp::PutMember(member(2))]).expect("applied");
            let before = load(store);
            let twins = [
                ("name", MemberRecord { name: member(2).name, ..member(5) }),
                ("mac", MemberRecord { mac: member(2).mac, ..member(5) }),
                ("ip4", MemberRecord { ip4: member(2).ip4, ..member(5) }),
                ("ip6", MemberRecord { ip6: member(2).ip6, ..member(5) }),
            ];
            for (expected, twin) in twins {
                let ops =
                    vec![StoreOp::PutNetwork(network(1)), StoreOp::PutMember(member(4)), StoreOp::PutMember(twin)];
                match apply(store, ops) {
                    Err(StoreError::Conflict { column }) => assert_eq!(column, expected),
                    other => panic!("{expected}: {other:?}"),
                }
                assert_eq!(load(store), before);
            }
            apply(store, vec![StoreOp::PutMember(member(4))]).expect("the store still works");
        });
    }

    #[test]
    fn the_database_is_for_its_owner_alone() {
        let (directory, path) = database();
        let store = open(&path).expect("a store");
        apply(&store, everything()).expect("applied");
        for entry in fs::read_dir(directory.path()).expect("a directory") {
            let entry = entry.expect("an entry");
            let mode = entry.metadata().expect("a file").permissions().mode() & 0o777;
            assert_eq!(mode, 0o600, "{}", entry.path().display());
        }
        drop(store);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("chmod");
        assert!(matches!(open(&path), Err(StoreError::File(FileError::OpenToOthers { .. }))));
    }

    #[test]
    fn a_file_that_is_no_database_is_left_as_it_is() {
        let (_directory, path) = database();
        let text = b"Dear diary, this is not a database at all, but it is longer than a header. ".repeat(200);
        files::write_atomic(&path, &text, 0o600).expect("written");
        assert!(matches!(open(&path), Err(StoreError::NotADatabase { .. })));
        assert_eq!(fs::read(&path).expect("there"), text);
    }

    #[test]
    fn a_damaged_database_is_left_as_it_is() {
        let (_directory, path) = database();
        let store = open(&path).expect("a store");
        let members = (1..=200).map(|number| StoreOp::PutMember(member(number))).collect();
        apply(&store, members).expect("applied");
        smol::block_on(store.settle()).expect("settled");
        drop(store);

        let mut bytes = fs::read(&path).expect("there");
        let end = bytes.len();
        bytes[4096..end - 4096].fill(0x55);
        files::write_atomic(&path, &bytes, 0o600).expect("written");
        let error = open(&path).expect_err("damaged");
        assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
        assert_eq!(fs::read(&path).expect("there"), bytes);
    }

    #[test]
    fn a_database_of_a_newer_program_is_refused() {
        let (_directory, path) = database();
        let store = open(&path).expect("a store");
        smol::block_on(async {
            let mut connection = store.connection.lock().await;
            sqlx::raw_sql("PRAGMA user_version = 2").execute(&mut *connection).await.expect("set");
        });
        drop(store);
        let error = open(&path).expect_err("newer");
        assert!(matches!(error, StoreError::Newer { found: 2, .. }), "{error}");
    }

    #[test]
    fn a_settled_database_is_whole_without_its_log() {
        let (directory, path) = database();
        let copy = directory.path().join("backup.db");
        let store = open(&path).expect("a store");
        apply(&store, everything()).expect("applied");
        smol::block_on(store.settle()).expect("settled");
        fs::copy(&path, &copy).expect("copied");
        assert_eq!(load(&open(&copy).expect("the copy opens")), load(&store));
    }
}
