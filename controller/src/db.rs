//! Everything that the controller remembers, in SQLite.
//!
//! The only place with SQL. Every write is one transaction; writers begin with `BEGIN IMMEDIATE`, so two of them never read the
//! same old state. The journal is a WAL synced at every commit: what a function here has returned survives a kill and a power cut.
//! Rules that must hold whatever the code does (one active job per host, names unique, no orphans) are constraints of the schema.

mod approvals;
mod hosts;
mod images;
mod jobs;
mod power;
#[cfg(test)]
pub(crate) mod samples;
mod sealed;
mod sessions;
mod stores;
mod tokens;
mod transitions;
mod uploads;
mod uses;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Sqlite, SqlitePool, Transaction};

pub use hosts::{BmcRow, Host, HostChange, NewHost, SeenMachine};
pub use images::{Image, NewImage};
pub use jobs::{Event, Idempotency, JobFilter, NewJobOutcome};
pub use power::PowerAction;
pub use sessions::{Redemption, Session};
pub use stores::{LOCAL, StoreRow};
pub use tokens::{CHECK_TOKEN_PREFIX, Token};
pub use transitions::JOB_PAUSED;
pub use uploads::{UploadRow, Writer};

use crate::secret::{Sealer, UnsealError};

/// How long a writer waits for another one.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// Readers and writers at a time.
const CONNECTIONS: u32 = 4;

/// Why a query had no result.
#[derive(Debug, thiserror::Error)]
pub enum DbError {
    /// The database failed.
    #[error("using the database")]
    Sql(#[from] sqlx::Error),
    /// The schema could not be brought up to date.
    #[error("bringing the database up to date")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// There is no such row.
    #[error("there is no {what} {name}")]
    NotFound {
        /// Host, image, job, token.
        what: &'static str,
        /// The name that was asked for.
        name: String,
    },
    /// A rule of the schema or the state machine forbids it.
    #[error("{message}")]
    Conflict {
        /// Stable code for machines.
        code: &'static str,
        /// For people.
        message: String,
    },
    /// What is sealed of a row does not open.
    #[error(transparent)]
    Unseal(#[from] UnsealError),
    /// A row holds something that this version did not write.
    #[error("the database holds an unknown {what}: {value:?}; was it written by a newer version?")]
    Content {
        /// What kind of value.
        what: &'static str,
        /// The value.
        value: String,
    },
}

/// Result of a query.
pub type Result<T> = std::result::Result<T, DbError>;

fn not_found(what: &'static str, name: impl ToString) -> DbError {
    DbError::NotFound { what, name: name.to_string() }
}

fn conflict(code: &'static str, message: impl Into<String>) -> DbError {
    DbError::Conflict { code, message: message.into() }
}

fn content(what: &'static str, value: impl Into<String>) -> DbError {
    DbError::Content { what, value: value.into() }
}

/// Turns the violation of the named constraint (a column such as `hosts.name`, or an index) into a conflict.
fn on_unique(error: sqlx::Error, cases: &[(&str, &'static str, &str)]) -> DbError {
    if let sqlx::Error::Database(database) = &error
        && database.is_unique_violation()
    {
        let message = database.message();
        for (constraint, code, text) in cases {
            if message.contains(constraint) {
                return conflict(code, *text);
            }
        }
    }
    DbError::Sql(error)
}

/// The database.
#[derive(Debug, Clone)]
pub struct Db {
    pool: SqlitePool,
    sealer: Arc<Sealer>,
}

impl Db {
    /// Opens the database, brings its schema up to date, and seals what an earlier version left in the clear.
    ///
    /// # Errors
    /// When it cannot be opened, or was written by a newer version.
    pub async fn open(path: &Path, sealer: Sealer) -> Result<Self> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .foreign_keys(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY_TIMEOUT)
            // What was deleted or replaced is not to be read in the file's free pages.
            .pragma("secure_delete", "ON");
        let pool =
            SqlitePoolOptions::new().max_connections(CONNECTIONS).connect_with(options).await?;
        sqlx::migrate!().run(&pool).await?;
        // What a migration has removed is not to be read in the journal.
        sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(&pool).await?;
        let db = Self { pool, sealer: Arc::new(sealer) };
        db.seal_what_is_not().await?;
        Ok(db)
    }

    /// Ends all use of the database; its journal is then merged into it.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    async fn write(&self) -> Result<Transaction<'static, Sqlite>> {
        Ok(self.pool.begin_with("BEGIN IMMEDIATE").await?)
    }
}
