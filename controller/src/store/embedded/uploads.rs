//! How files of the controller's own store are written: uploads begin, go on, are flushed, get their name, or are given up.
//!
//! What an upload is known by, its writer chose. One upload of a file counts at a time; which one that is changes only under a lock, and
//! a request for one that was replaced leads nowhere, however late it comes.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::body::BodyDataStream;

use super::error::{io_error, no_upload};
use super::files::{link, new_file, remove_if_there, reopen, sync_folder};
use super::upload::Upload;
use super::{Embedded, EmbeddedError, Opened, Result, blocking};
use crate::db::{UploadRow, Writer};
use crate::names::{FileName, PARTIAL_SUFFIX};

/// A writer with an API token that was not heard of for so long is gone: one that has nothing to send asks how far it is more often.
pub const LEASE: Duration = Duration::from_secs(10);

/// How far an upload is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadState {
    /// The file's name when it is finished.
    pub file: String,
    /// What its writer calls it.
    pub upload_id: String,
    /// So many bytes came.
    pub received_bytes: u64,
    /// So many of them are on stable storage.
    pub durable_bytes: u64,
    /// It has its name.
    pub is_published: bool,
}

impl UploadState {
    fn published(row: &UploadRow) -> Self {
        let durable = u64::try_from(row.durable).unwrap_or(0);
        Self {
            file: row.file.clone(),
            upload_id: row.upload_id.clone(),
            received_bytes: durable,
            durable_bytes: durable,
            is_published: true,
        }
    }
}

impl Embedded {
    fn uploads(&self) -> MutexGuard<'_, HashMap<String, Arc<Upload>>> {
        // Its values are replaced, never half changed.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn partial_path(&self, file: &FileName) -> PathBuf {
        self.folder.join(format!("{file}{PARTIAL_SUFFIX}"))
    }

    async fn is_finished(&self, file: &FileName) -> bool {
        let path = self.path(file);
        blocking(move || path.symlink_metadata().is_ok()).await
    }

    /// Opens a file that is being written, as far as it is durable.
    ///
    /// # Errors
    /// When nobody writes such a file.
    pub async fn open_partial(&self, file: &FileName) -> Result<(Opened, Arc<Upload>)> {
        let row = self.db.upload(file.as_str()).await?.filter(|row| !row.published);
        let not_found = || EmbeddedError::NotFound(format!("{file}{PARTIAL_SUFFIX}"));
        let upload = self.upload_of(file, row.ok_or_else(not_found)?).await?;
        // Its own file, whichever one has the name by now.
        let opened = upload.file_again().map_err(io_error("opening", file.as_str()))?;
        let len_bytes = upload.durable();
        let etag = format!("\"partial-{}-{len_bytes:x}\"", upload.id());
        Ok((Opened { file: opened, len_bytes, etag }, upload))
    }

    /// Begins an upload; the same once more changes nothing. A file that the same job began to write before, or a job that is
    /// over, or somebody with an API token who is gone, is replaced.
    ///
    /// # Errors
    /// When the name is taken, or somebody else writes it.
    pub async fn begin(
        &self,
        file: &FileName,
        upload_id: &str,
        writer: Writer,
    ) -> Result<UploadState> {
        let _changing = self.changing.lock().await;
        let job = writer.job();
        let row = self.db.upload(file.as_str()).await?;
        if let Some(row) = row.clone().filter(|row| row.upload_id == upload_id) {
            if row.published {
                return Ok(UploadState::published(&row));
            }
            return Ok(self.opened(file, row).await?.state());
        }
        if self.is_finished(file).await {
            return Err(EmbeddedError::Exists(file.to_string()));
        }
        if let Some(row) = row.filter(|row| !row.published)
            && !self.may_go_on(file, &row, job)
            && !self.is_of_ended_job(&row).await?
        {
            return Err(being_written(file, row));
        }
        self.check_room(0).await?;
        self.close(file);
        let (path, name) = (self.partial_path(file), file.to_string());
        let created = blocking({
            let name = name.clone();
            move || {
                remove_if_there(&path).map_err(io_error("removing what is left of", &name))?;
                new_file(&path).map_err(io_error("making", &name))
            }
        })
        .await?;
        self.db.begin_upload(file.as_str(), upload_id, writer).await?;
        let begun = Upload::new(name, upload_id.to_owned(), job, created, 0, Instant::now());
        let upload = Arc::new(begun);
        self.uploads().insert(file.to_string(), Arc::clone(&upload));
        tracing::info!(file = file.as_str(), upload_id, ?job, "upload begun");
        Ok(upload.state())
    }

    /// Whether who writes in the name of this job, or with an API token, may take over what was written so far. A job has one writer at a
    /// time: its next attempt's token ends the one before. Of people nobody knows but what is heard of them.
    fn may_go_on(&self, file: &FileName, row: &UploadRow, job: Option<i64>) -> bool {
        match job {
            Some(_) => row.job_id == job,
            None => row.job_id.is_none() && self.heard(file, &row.upload_id).elapsed() >= LEASE,
        }
    }

    /// When the writer of an upload was last heard of. A controller that was just started may not have been found again yet.
    fn heard(&self, file: &FileName, upload_id: &str) -> Instant {
        self.known(file, upload_id).map_or(self.started, |upload| upload.heard())
    }

    async fn is_of_ended_job(&self, row: &UploadRow) -> Result<bool> {
        match row.job_id {
            None => Ok(false),
            Some(id) => Ok(self.db.job(id).await?.state.is_terminal()),
        }
    }

    /// The upload with this id, from whoever writes it.
    ///
    /// # Errors
    /// When there is none, or it is finished.
    pub async fn upload(&self, file: &FileName, upload_id: &str) -> Result<Arc<Upload>> {
        let row = self.db.upload(file.as_str()).await?;
        match row.filter(|row| row.upload_id == upload_id && !row.published) {
            Some(row) => self.upload_of(file, row).await,
            None => Err(no_upload(file, upload_id)),
        }
    }

    /// The job whose agent writes, or wrote, this upload; `None`: somebody with an API token.
    ///
    /// # Errors
    /// When there is no such upload.
    pub async fn job_of(&self, file: &FileName, upload_id: &str) -> Result<Option<i64>> {
        let row = self.db.upload(file.as_str()).await?.filter(|row| row.upload_id == upload_id);
        row.map(|row| row.job_id).ok_or_else(|| no_upload(file, upload_id))
    }

    /// What an agent of this job, or somebody with an API token who is gone, has begun to write under this name and not finished, all
    /// of it made durable. `None` if there is nothing, or nothing that could be gone on with.
    ///
    /// # Errors
    /// When the name is taken, or somebody else writes it.
    pub async fn begun(&self, file: &FileName, job: Option<i64>) -> Result<Option<UploadState>> {
        if self.is_finished(file).await {
            return Err(EmbeddedError::Exists(file.to_string()));
        }
        let Some(row) = self.db.upload(file.as_str()).await?.filter(|row| !row.published) else {
            return Ok(None);
        };
        if !self.may_go_on(file, &row, job) {
            return match self.is_of_ended_job(&row).await? {
                true => Ok(None),
                false => Err(being_written(file, row)),
            };
        }
        let upload = self.upload_of(file, row).await;
        let flushed = match upload {
            Ok(upload) => self.commit(&upload).await,
            Err(error) => Err(error),
        };
        match flushed {
            // Nothing of it is believed: another upload takes its place.
            Err(error @ (EmbeddedError::Lost(_) | EmbeddedError::Broken(_))) => {
                tracing::warn!(file = file.as_str(), %error, "what was written before is of no use");
                Ok(None)
            }
            state => state.map(Some),
        }
    }

    /// Goes on with an upload that [`begun`](Self::begun) told of: it is the upload `next` from now on, with its first `len_bytes`, and
    /// whoever wrote it before writes no more. The same once more changes nothing.
    ///
    /// # Errors
    /// When there is no such upload, or it is somebody else's, or it has less that is durable.
    pub async fn go_on(
        &self,
        file: &FileName,
        upload_id: &str,
        next: &str,
        len_bytes: u64,
        job: Option<i64>,
    ) -> Result<UploadState> {
        let _changing = self.changing.lock().await;
        let row = self.db.upload(file.as_str()).await?.filter(|row| !row.published);
        let row = match row {
            Some(row) if row.upload_id == next && row.job_id == job => {
                return Ok(self.opened(file, row).await?.state());
            }
            Some(row) if row.upload_id == upload_id => row,
            _ => return Err(no_upload(file, upload_id)),
        };
        if !self.may_go_on(file, &row, job) {
            return Err(being_written(file, row));
        }
        let durable = u64::try_from(row.durable).unwrap_or(0);
        if len_bytes > durable {
            return Err(EmbeddedError::Gap { offset: len_bytes, received: durable });
        }
        // Nothing changes if it is not there any more.
        let old = self.opened(file, row.clone()).await?;
        let bytes = i64::try_from(len_bytes).unwrap_or(i64::MAX);
        self.db.rename_upload(file.as_str(), upload_id, next, bytes).await?;
        self.close(file);
        // A write that is under way must not come behind the cut.
        drop(old.still().await);
        // Opened anew it is cut off where its durable part ends.
        let row = UploadRow { upload_id: next.to_owned(), durable: bytes, ..row };
        let upload = self.opened(file, row).await?;
        upload.hear();
        tracing::info!(file = file.as_str(), upload_id = next, len_bytes, ?job, "upload goes on");
        Ok(upload.state())
    }

    /// How far an upload is.
    ///
    /// # Errors
    /// When there is none.
    pub async fn state(&self, file: &FileName, upload_id: &str) -> Result<UploadState> {
        match self.db.upload(file.as_str()).await? {
            Some(row) if row.upload_id == upload_id && row.published => {
                Ok(UploadState::published(&row))
            }
            Some(row) if row.upload_id == upload_id => {
                let upload = self.upload_of(file, row).await?;
                upload.hear();
                Ok(upload.state())
            }
            _ => Err(no_upload(file, upload_id)),
        }
    }

    /// The open upload of a row; after a start of the controller its file is opened again.
    async fn upload_of(&self, file: &FileName, row: UploadRow) -> Result<Arc<Upload>> {
        if let Some(upload) = self.known(file, &row.upload_id) {
            return Ok(upload);
        }
        // Not while another upload takes its place; and if one has, that one counts.
        let _changing = self.changing.lock().await;
        let now = self.db.upload(file.as_str()).await?;
        match now.filter(|now| now.upload_id == row.upload_id && !now.published) {
            Some(row) => self.opened(file, row).await,
            None => Err(no_upload(file, &row.upload_id)),
        }
    }

    fn known(&self, file: &FileName, upload_id: &str) -> Option<Arc<Upload>> {
        let known = self.uploads().get(file.as_str()).cloned();
        known.filter(|upload| upload.id() == upload_id)
    }

    /// The same for whoever holds `changing`, with the row that counts.
    async fn opened(&self, file: &FileName, row: UploadRow) -> Result<Arc<Upload>> {
        if let Some(upload) = self.known(file, &row.upload_id) {
            return Ok(upload);
        }
        let durable = u64::try_from(row.durable).unwrap_or(0);
        let (path, name) = (self.partial_path(file), file.to_string());
        let reopened = blocking(move || reopen(&path, durable)).await;
        let reopened = reopened
            .map_err(io_error("going on with", &name))?
            .ok_or_else(|| EmbeddedError::Lost(name.clone()))?;
        let upload = Upload::new(name, row.upload_id, row.job_id, reopened, durable, self.started);
        let upload = Arc::new(upload);
        self.uploads().insert(file.to_string(), Arc::clone(&upload));
        Ok(upload)
    }

    /// Appends what a body brings; see [`Upload::append`].
    ///
    /// # Errors
    /// When there is no room, or as there.
    pub async fn append(
        &self,
        upload: &Upload,
        offset: u64,
        len_bytes: u64,
        body: &mut BodyDataStream,
    ) -> Result<()> {
        self.check_room(len_bytes).await?;
        upload.append(offset, body).await
    }

    /// Makes durable what was received so far.
    ///
    /// # Errors
    /// When the disk fails or is full.
    pub async fn commit(&self, upload: &Upload) -> Result<UploadState> {
        let durable = upload.flush().await?;
        let bytes = i64::try_from(durable).unwrap_or(i64::MAX);
        self.db.set_upload_durable(upload.file(), upload.id(), bytes).await?;
        upload.set_durable(durable);
        Ok(upload.state())
    }

    /// Makes everything durable and gives the file its name. The same once more changes nothing.
    ///
    /// # Errors
    /// When the name is taken by now.
    pub async fn publish(&self, file: &FileName, upload_id: &str) -> Result<UploadState> {
        if !self.state(file, upload_id).await?.is_published {
            // Others need not wait for this.
            self.commit(&*self.upload(file, upload_id).await?).await?;
        }
        let _changing = self.changing.lock().await;
        let row = self.db.upload(file.as_str()).await?.filter(|row| row.upload_id == upload_id);
        let row = row.ok_or_else(|| no_upload(file, upload_id))?;
        if row.published {
            return Ok(UploadState::published(&row));
        }
        let upload = self.opened(file, row).await?;
        // What has its name does not change any more.
        let _still = upload.still().await;
        self.commit(&upload).await?;
        let (path, partial, folder) =
            (self.path(file), self.partial_path(file), self.folder.clone());
        let name = file.to_string();
        blocking(move || link(&partial, &path, &folder, &name)).await?;
        self.db.set_upload_published(file.as_str(), upload_id).await?;
        self.close(file);
        let partial = self.partial_path(file);
        let (folder, name) = (self.folder.clone(), file.to_string());
        blocking(move || {
            remove_if_there(&partial)
                .and_then(|()| sync_folder(&folder))
                .map_err(io_error("tidying up behind", &name))
        })
        .await?;
        tracing::info!(
            file = file.as_str(),
            upload_id,
            bytes = upload.durable(),
            "upload published"
        );
        Ok(UploadState { is_published: true, ..upload.state() })
    }

    /// Gives an upload up; one that is not there, or finished, is none.
    ///
    /// # Errors
    /// When there is no such upload.
    pub async fn abort(&self, file: &FileName, upload_id: &str) -> Result<()> {
        let _changing = self.changing.lock().await;
        let row = self.db.upload(file.as_str()).await?;
        if !row.is_some_and(|row| row.upload_id == upload_id && !row.published) {
            return Err(no_upload(file, upload_id));
        }
        self.remove_partial(file, upload_id).await?;
        tracing::info!(file = file.as_str(), upload_id, "upload given up");
        Ok(())
    }

    async fn remove_partial(&self, file: &FileName, upload_id: &str) -> Result<()> {
        self.close(file);
        let (path, name) = (self.partial_path(file), file.to_string());
        blocking(move || remove_if_there(&path).map_err(io_error("removing", &name))).await?;
        Ok(self.db.forget_upload(file.as_str(), upload_id).await?)
    }

    /// Removes what writers left behind whose job is over, or, `at_start`, that were tasks of the controller before this one, and partial names of
    /// files that were published. What people left stays: they may go on with it.
    ///
    /// # Errors
    /// When the database or the disk fails.
    pub async fn sweep(&self, at_start: bool) -> Result<()> {
        let _changing = self.changing.lock().await;
        for row in self.db.uploads().await? {
            let Ok(file) = row.file.parse::<FileName>() else { continue };
            if row.published {
                let path = self.partial_path(&file);
                let name = row.file;
                blocking(move || {
                    remove_if_there(&path).map_err(io_error("tidying up behind", &name))
                })
                .await?;
            } else if (at_start && row.of_task) || self.is_of_ended_job(&row).await? {
                self.remove_partial(&file, &row.upload_id).await?;
                tracing::info!(
                    file = file.as_str(),
                    upload_id = row.upload_id,
                    "removed what an upload left behind"
                );
            }
        }
        Ok(())
    }

    /// Forgets an open upload; whoever still writes to it is stopped.
    fn close(&self, file: &FileName) {
        let upload = self.uploads().remove(file.as_str());
        if let Some(upload) = upload {
            upload.end();
        }
    }
}

fn being_written(file: &FileName, row: UploadRow) -> EmbeddedError {
    EmbeddedError::BeingWritten { file: file.to_string(), upload_id: row.upload_id }
}
