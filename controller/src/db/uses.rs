//! Who has a file, and who works with it.
//!
//! By the file itself, not by how somebody wrote its place: see [`Spots`]. Read in the transaction that changes something.

use sqlx::SqliteConnection;

use super::{Db, DbError, Result, conflict};
use crate::store::{Spot, Spots};

/// An active job.
struct ActiveJob {
    id: i64,
    image: String,
    is_capture: bool,
    /// All that it reads or writes.
    spots: Vec<Spot>,
}

/// The catalogue and the active jobs.
pub(super) struct Uses {
    pub(super) spots: Spots,
    images: Vec<(String, Spot)>,
    jobs: Vec<ActiveJob>,
}

impl Uses {
    /// Another image than this whose file it is.
    pub(super) fn image_at(&self, spot: &Spot, but: Option<&str>) -> Option<&str> {
        let found = self.images.iter().find(|(name, at)| at == spot && but != Some(name.as_str()));
        found.map(|(name, _)| name.as_str())
    }

    /// As if this image were not there.
    pub(super) fn forget_image(&mut self, name: &str) {
        self.images.retain(|(other, _)| other != name);
    }

    /// An active job that was given this image by name.
    pub(super) fn job_of_image(&self, image: &str) -> Option<i64> {
        self.jobs.iter().find(|job| job.image == image).map(|job| job.id)
    }

    /// An active job that reads or writes it.
    pub(super) fn job_at(&self, spot: &Spot) -> Option<i64> {
        self.jobs.iter().find(|job| job.spots.contains(spot)).map(|job| job.id)
    }

    /// Refuses a place for a new entry, or a new file, that an entry has or another job captures to.
    pub(super) fn refuse_taken(&self, place: &str, own_job: Option<i64>) -> Result<()> {
        let spot = self.spots.of(place);
        if let Some(image) = self.image_at(&spot, None) {
            return Err(conflict(
                "place_taken",
                format!(
                    "this file is image {image} of the catalogue: use that, give another place, or remove that entry (`imprint image rm --keep-file {image}`)"
                ),
            ));
        }
        let captures = |job: &&ActiveJob| {
            job.is_capture && own_job != Some(job.id) && job.spots.first() == Some(&spot)
        };
        match self.jobs.iter().find(captures) {
            Some(job) => Err(conflict(
                "place_taken",
                format!(
                    "job {} captures to this file: wait for it, cancel it, or give another place",
                    job.id
                ),
            )),
            None => Ok(()),
        }
    }
}

async fn spots_of(connection: &mut SqliteConnection) -> Result<Spots> {
    let stores: Vec<(String, Option<String>)> =
        sqlx::query_as("SELECT name, url FROM stores").fetch_all(connection).await?;
    Ok(Spots::new(stores))
}

/// Who has and uses what at the moment.
pub(super) async fn uses(connection: &mut SqliteConnection) -> Result<Uses> {
    let spots = spots_of(&mut *connection).await?;
    let images: Vec<(String, String)> =
        sqlx::query_as("SELECT name, url FROM images ORDER BY name")
            .fetch_all(&mut *connection)
            .await?;
    let jobs: Vec<(i64, String, bool, String, String)> = sqlx::query_as(
        "SELECT id, image, action = 'capture', image_url, json_array(
             json_extract(options, '$.options.base'),
             json_extract(options, '$.options.also'),
             (SELECT json_group_array(json_extract(value, '$.image'))
              FROM json_each(options, '$.options.layout.partition')))
         FROM jobs WHERE state NOT IN ('succeeded', 'failed', 'cancelled') ORDER BY id",
    )
    .fetch_all(&mut *connection)
    .await?;
    let mut active = Vec::with_capacity(jobs.len());
    for (id, image, is_capture, place, others) in jobs {
        let others: serde_json::Value = serde_json::from_str(&others)
            .map_err(|_| super::content("places of job", id.to_string()))?;
        let mut at = vec![spots.of(&place)];
        let lists = others.as_array().into_iter().flatten();
        let texts = lists.flat_map(|value| match value.as_array() {
            Some(list) => list.as_slice(),
            None => std::slice::from_ref(value),
        });
        at.extend(texts.filter_map(|text| text.as_str()).map(|text| spots.of(text)));
        active.push(ActiveJob { id, image, is_capture, spots: at });
    }
    let images = images.into_iter().map(|(name, url)| (name, spots.of(&url))).collect();
    Ok(Uses { spots, images, jobs: active })
}

impl Db {
    /// Where every store is.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn spots(&self) -> Result<Spots> {
        spots_of(&mut *self.pool.acquire().await?).await
    }

    /// Refuses a place that an image of the catalogue has, or a job captures to.
    ///
    /// # Errors
    /// When that is so.
    pub async fn refuse_taken_place(&self, place: &str) -> Result<()> {
        let uses = uses(&mut *self.pool.acquire().await?).await?;
        uses.refuse_taken(&self.column(place), None)
    }

    /// Refuses a file that an image of the catalogue is, or an active job works with.
    ///
    /// # Errors
    /// When that is so.
    pub async fn refuse_used_file(&self, place: &str, file: &str) -> Result<()> {
        let uses = uses(&mut *self.pool.acquire().await?).await?;
        let spot = uses.spots.of(&self.column(place));
        let used = |message| Err::<(), DbError>(conflict("file_in_use", message));
        if let Some(job) = uses.job_at(&spot) {
            return used(format!("job {job} uses {file}: wait for it or cancel it"));
        }
        match uses.image_at(&spot, None) {
            Some(image) => {
                used(format!("{file} is image {image}: remove that (`imprint image rm {image}`)"))
            }
            None => Ok(()),
        }
    }
}
