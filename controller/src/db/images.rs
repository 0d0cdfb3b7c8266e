//! The catalogue: which images exist, where, and with which root hash.

use super::uses::uses;
use super::{Db, Result, conflict, not_found, on_unique};
use crate::clock::now_ms;

/// A row of the catalogue.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Image {
    /// Name.
    pub name: String,
    /// Where it lies.
    pub url: String,
    /// Root hash, hex.
    pub root: String,
    /// Image id (UUID).
    pub image_id: Option<String>,
    /// Size of the disk.
    pub disk_bytes: Option<i64>,
    /// Bytes that its filesystems use.
    pub used_bytes: Option<i64>,
    /// Size of the image.
    pub stored_bytes: Option<i64>,
    /// Host that it was captured from.
    pub host: Option<String>,
    /// Job that captured it.
    pub job_id: Option<i64>,
    /// When it was made or entered.
    pub created_ms: i64,
    /// Of a delta image: root hash of the image that it is the difference to, if that is known.
    pub parent_root: Option<String>,
    /// Of a URL with a query: all of it, sealed. Nothing any more once it is opened.
    pub(super) sealed_url: Option<Vec<u8>>,
}

/// A row to be.
#[derive(Debug, Clone, Default)]
pub struct NewImage {
    /// Name.
    pub name: String,
    /// Where it lies.
    pub url: String,
    /// Root hash, hex.
    pub root: String,
    /// Image id.
    pub image_id: Option<String>,
    /// Size of the disk.
    pub disk_bytes: Option<i64>,
    /// Bytes that its filesystems use.
    pub used_bytes: Option<i64>,
    /// Size of the image.
    pub stored_bytes: Option<i64>,
    /// Host that it was captured from.
    pub host: Option<String>,
    /// Job that captured it.
    pub job_id: Option<i64>,
    /// Of a delta image: root hash of the image that it is the difference to, if that is known.
    pub parent_root: Option<String>,
}

impl Db {
    pub(super) async fn insert_image<'e, E>(&self, executor: E, image: &NewImage) -> Result<()>
    where
        E: sqlx::Executor<'e, Database = sqlx::Sqlite>,
    {
        self.insert_image_at(executor, image, now_ms()).await
    }

    async fn insert_image_at<'e, E>(
        &self,
        executor: E,
        image: &NewImage,
        created_ms: i64,
    ) -> Result<()>
    where
        E: sqlx::Executor<'e, Database = sqlx::Sqlite>,
    {
        sqlx::query(
        "INSERT INTO images (name, url, root, image_id, disk_bytes, used_bytes, stored_bytes, host, job_id, created_ms, parent_root, sealed_url)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(&image.name)
    .bind(self.column(&image.url))
    .bind(&image.root)
    .bind(&image.image_id)
    .bind(image.disk_bytes)
    .bind(image.used_bytes)
    .bind(image.stored_bytes)
    .bind(&image.host)
    .bind(image.job_id)
    .bind(created_ms)
    .bind(&image.parent_root)
    .bind(self.seal_url("image", &image.name, &image.url))
    .execute(executor)
    .await
    .map_err(|e| {
        on_unique(
            e,
            &[("images.name", "image_exists", "an image of this name is in the catalogue: choose another name, or remove that entry")],
        )
    })?;
        Ok(())
    }

    /// With its whole URL.
    fn opened_image(&self, mut image: Image) -> Result<Image> {
        if let Some(sealed) = image.sealed_url.take() {
            image.url = self.open_url("image", &image.name, &sealed)?;
        }
        Ok(image)
    }

    /// Enters an image.
    ///
    /// # Errors
    /// When the name is taken, another image has the same file, or a job captures to it.
    pub async fn add_image(&self, image: &NewImage) -> Result<()> {
        let mut tx = self.write().await?;
        self.insert_image(&mut *tx, image).await?;
        let mut others = uses(&mut tx).await?;
        others.forget_image(&image.name);
        others.refuse_taken(&self.column(&image.url), None)?;
        Ok(tx.commit().await?)
    }

    /// Enters an image again whose file could not be removed.
    ///
    /// # Errors
    /// When the name is taken by now.
    pub async fn put_image_back(&self, image: Image) -> Result<()> {
        let created_ms = image.created_ms;
        let image = NewImage {
            name: image.name,
            url: image.url,
            root: image.root,
            image_id: image.image_id,
            disk_bytes: image.disk_bytes,
            used_bytes: image.used_bytes,
            stored_bytes: image.stored_bytes,
            host: image.host,
            job_id: image.job_id,
            parent_root: image.parent_root,
        };
        self.insert_image_at(&self.pool, &image, created_ms).await
    }

    /// The root of the image at this place, if that is one of the catalogue.
    ///
    /// # Errors
    /// When the database fails.
    pub(super) async fn root_at<'e, E>(executor: E, place: &str) -> Result<Option<String>>
    where
        E: sqlx::Executor<'e, Database = sqlx::Sqlite>,
    {
        Ok(sqlx::query_scalar("SELECT root FROM images WHERE url = ? LIMIT 1")
            .bind(place)
            .fetch_optional(executor)
            .await?)
    }

    /// An image by name.
    ///
    /// # Errors
    /// When there is none, or its URL does not open with this controller's key file.
    pub async fn image(&self, name: &str) -> Result<Image> {
        let image = sqlx::query_as("SELECT * FROM images WHERE name = ?")
            .bind(name)
            .fetch_optional(&self.pool)
            .await?
            .ok_or_else(|| not_found("image", name))?;
        self.opened_image(image)
    }

    /// All images by name. A URL that does not open with this controller's key file is without its query.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn images(&self) -> Result<Vec<Image>> {
        let images: Vec<Image> =
            sqlx::query_as("SELECT * FROM images ORDER BY name").fetch_all(&self.pool).await?;
        let opened = |image: Image| self.opened_image(image.clone()).unwrap_or(image);
        Ok(images.into_iter().map(opened).collect())
    }

    /// Takes an image out of the catalogue, whose file is removed afterwards unless `keep_file` is given.
    ///
    /// # Errors
    /// When there is none, or an active job uses it; if the file is to go also when another image has the same one, or it is the base of
    /// a delta image.
    pub async fn remove_image(&self, name: &str, keep_file: bool) -> Result<()> {
        let mut tx = self.write().await?;
        let url: Option<String> = sqlx::query_scalar("SELECT url FROM images WHERE name = ?")
            .bind(name)
            .fetch_optional(&mut *tx)
            .await?;
        let url = url.ok_or_else(|| not_found("image", name))?;
        let uses = uses(&mut tx).await?;
        let spot = uses.spots.of(&url);
        let twin = uses.image_at(&spot, Some(name));
        // What another entry has, too, is known by that one as well.
        let by_place = || uses.job_at(&spot).filter(|_| !keep_file || twin.is_none());
        if let Some(job) = uses.job_of_image(name).or_else(by_place) {
            return Err(conflict(
                "image_in_use",
                format!("job {job} uses image {name}: wait for it or cancel it"),
            ));
        }
        if let Some(twin) = twin.filter(|_| !keep_file) {
            return Err(conflict(
                "file_in_use",
                format!(
                    "image {twin} is the same file: remove only the entry (`imprint image rm --keep-file {name}`)"
                ),
            ));
        }
        let delta: Option<String> = sqlx::query_scalar(
            "SELECT images.name FROM images JOIN jobs ON jobs.id = images.job_id
             WHERE jobs.action = 'capture'
               AND EXISTS (SELECT 1 FROM json_each(jobs.options, '$.options.base') WHERE value = ?1)
             UNION ALL
             -- Copies too: beside it (rtrim leaves the folder), but for where the same image is there again.
             SELECT delta.name FROM images JOIN images AS delta ON delta.parent_root = images.root
             WHERE images.name = ?2 AND delta.name <> images.name
               AND rtrim(delta.url, replace(delta.url, '/', '')) = rtrim(images.url, replace(images.url, '/', ''))
               AND NOT EXISTS (
                   SELECT 1 FROM images AS again WHERE again.root = images.root AND again.url <> images.url
                     AND rtrim(again.url, replace(again.url, '/', '')) = rtrim(images.url, replace(images.url, '/', '')))
             LIMIT 1",
        )
        .bind(&url)
        .bind(name)
        .fetch_optional(&mut *tx)
        .await?;
        if let Some(delta) = delta.filter(|_| !keep_file) {
            return Err(conflict(
                "image_is_base",
                format!(
                    "image {delta} is only the difference to image {name}: remove that one first, or keep the file"
                ),
            ));
        }
        sqlx::query("DELETE FROM images WHERE name = ?").bind(name).execute(&mut *tx).await?;
        tx.commit().await?;
        Ok(())
    }
}
