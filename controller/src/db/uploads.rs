//! What the controller's own store remembers: who may do what in it, and how far files are that are being written.

use super::{Db, Result};
use crate::clock::now_ms;
use crate::job::Job;

/// A file that is or was written by an upload.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct UploadRow {
    /// Name of the file when it is finished.
    pub file: String,
    /// Which image it is.
    pub upload_id: String,
    /// The job whose agent writes it; `None`: somebody with an API token.
    pub job_id: Option<i64>,
    /// So many bytes are on stable storage.
    pub durable: i64,
    /// It has its name.
    pub published: bool,
    /// When it was begun.
    pub created_ms: i64,
    /// A task of the controller writes it: with the controller it ends, and nobody goes on with it.
    pub of_task: bool,
}

/// Who writes a file of the controller's own store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writer {
    /// The agent of a job.
    Job(i64),
    /// A task of the controller.
    Task,
    /// Somebody with an API token.
    Person,
}

impl Writer {
    /// The job, if it is one's agent.
    #[must_use]
    pub fn job(self) -> Option<i64> {
        match self {
            Self::Job(id) => Some(id),
            Self::Task | Self::Person => None,
        }
    }
}

impl Db {
    /// Makes `hash` the only token by which the agent of this job is known in the controller's own store.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn set_store_token(&self, job_id: i64, hash: &[u8]) -> Result<()> {
        sqlx::query("INSERT OR REPLACE INTO store_tokens (job_id, hash) VALUES (?, ?)")
            .bind(job_id)
            .bind(hash)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// The job of a store token, whatever its state.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn job_of_store_token(&self, hash: &[u8]) -> Result<Option<Job>> {
        let row = sqlx::query(
            "SELECT jobs.* FROM jobs JOIN store_tokens ON store_tokens.job_id = jobs.id WHERE hash = ?",
        )
        .bind(hash)
        .fetch_optional(&self.pool)
        .await?;
        row.as_ref().map(|row| self.job_of_row(row)).transpose()
    }

    /// The upload of a file.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn upload(&self, file: &str) -> Result<Option<UploadRow>> {
        Ok(sqlx::query_as("SELECT * FROM uploads WHERE file = ?")
            .bind(file)
            .fetch_optional(&self.pool)
            .await?)
    }

    /// Every upload.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn uploads(&self) -> Result<Vec<UploadRow>> {
        Ok(sqlx::query_as("SELECT * FROM uploads ORDER BY file").fetch_all(&self.pool).await?)
    }

    /// Begins an upload in place of whatever was known of that file.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn begin_upload(&self, file: &str, upload_id: &str, writer: Writer) -> Result<()> {
        sqlx::query(
            "INSERT OR REPLACE INTO uploads (file, upload_id, job_id, created_ms, of_task) VALUES (?, ?, ?, ?, ?)",
        )
        .bind(file)
        .bind(upload_id)
        .bind(writer.job())
        .bind(now_ms())
        .bind(writer == Writer::Task)
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Makes an upload another one, of which only so many bytes count.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn rename_upload(
        &self,
        file: &str,
        upload_id: &str,
        next: &str,
        durable: i64,
    ) -> Result<()> {
        sqlx::query(
            "UPDATE uploads SET upload_id = ?, durable = ?, of_task = 0 WHERE file = ? AND upload_id = ?",
        )
        .bind(next)
        .bind(durable)
        .bind(file)
        .bind(upload_id)
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Remembers that so many bytes of an upload are durable; it never gets less.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn set_upload_durable(&self, file: &str, upload_id: &str, bytes: i64) -> Result<()> {
        sqlx::query(
            "UPDATE uploads SET durable = max(durable, ?) WHERE file = ? AND upload_id = ?",
        )
        .bind(bytes)
        .bind(file)
        .bind(upload_id)
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Remembers that an upload has its name.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn set_upload_published(&self, file: &str, upload_id: &str) -> Result<()> {
        sqlx::query("UPDATE uploads SET published = 1 WHERE file = ? AND upload_id = ?")
            .bind(file)
            .bind(upload_id)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Forgets the upload of a file.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn forget_upload(&self, file: &str, upload_id: &str) -> Result<()> {
        sqlx::query("DELETE FROM uploads WHERE file = ? AND upload_id = ?")
            .bind(file)
            .bind(upload_id)
            .execute(&self.pool)
            .await?;
        Ok(())
    }
}
