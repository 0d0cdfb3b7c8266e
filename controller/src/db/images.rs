//! The catalogue: which images exist, where, and with which root hash.

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
    /// When the name is taken.
    pub async fn add_image(&self, image: &NewImage) -> Result<()> {
        self.insert_image(&self.pool, image).await
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

    /// Takes an image out of the catalogue; its file stays.
    ///
    /// # Errors
    /// When there is none, an active job uses it, or it is the base of a delta image and `is_base_fine` is not given.
    pub async fn remove_image(&self, name: &str, is_base_fine: bool) -> Result<()> {
        let mut tx = self.write().await?;
        let url: Option<String> = sqlx::query_scalar("SELECT url FROM images WHERE name = ?")
            .bind(name)
            .fetch_optional(&mut *tx)
            .await?;
        let url = url.ok_or_else(|| not_found("image", name))?;
        let busy: Option<i64> = sqlx::query_scalar(
            "SELECT id FROM jobs
             WHERE (image = ?1 OR json_extract(options, '$.options.base') = ?2
                    OR EXISTS (SELECT 1 FROM json_each(options, '$.options.also') WHERE value = ?2)
                    OR EXISTS (SELECT 1 FROM json_each(options, '$.options.layout.partition')
                               WHERE json_extract(value, '$.image') = ?2))
               AND state NOT IN ('succeeded', 'failed', 'cancelled') LIMIT 1",
        )
        .bind(name)
        .bind(&url)
        .fetch_optional(&mut *tx)
        .await?;
        if let Some(job) = busy {
            return Err(conflict(
                "image_in_use",
                format!("job {job} uses image {name}: wait for it or cancel it"),
            ));
        }
        let delta: Option<String> = sqlx::query_scalar(
            "SELECT images.name FROM images JOIN jobs ON jobs.id = images.job_id
             WHERE jobs.action = 'capture' AND json_extract(jobs.options, '$.options.base') = ?1
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
        if let Some(delta) = delta.filter(|_| !is_base_fine) {
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

    /// Refuses a file of a store that an image of the catalogue or an active job is.
    ///
    /// # Errors
    /// When that is so.
    pub async fn refuse_used_file(&self, store: &str, file: &str) -> Result<()> {
        let place = format!("store:{store}/{file}");
        let image: Option<String> = sqlx::query_scalar("SELECT name FROM images WHERE url = ?")
            .bind(&place)
            .fetch_optional(&self.pool)
            .await?;
        if let Some(image) = image {
            return Err(conflict(
                "file_in_use",
                format!("{file} is image {image}: remove that (`imprint image rm {image}`)"),
            ));
        }
        let job: Option<i64> = sqlx::query_scalar(
            "SELECT id FROM jobs
             WHERE (image_url = ?1 OR json_extract(options, '$.options.base') = ?1
                    OR EXISTS (SELECT 1 FROM json_each(options, '$.options.also') WHERE value = ?1)
                    OR EXISTS (SELECT 1 FROM json_each(options, '$.options.layout.partition')
                               WHERE json_extract(value, '$.image') = ?1))
               AND state NOT IN ('succeeded', 'failed', 'cancelled') LIMIT 1",
        )
        .bind(&place)
        .fetch_optional(&self.pool)
        .await?;
        match job {
            Some(job) => Err(conflict(
                "file_in_use",
                format!("job {job} uses {file}: wait for it or cancel it"),
            )),
            None => Ok(()),
        }
    }
}
