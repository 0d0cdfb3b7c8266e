//! What of a row must not be read by whoever has the database alone.
//!
//! What a job was asked to do holds user data, scripts and files for restored systems; the query of a web server's URL is often a signature
//! that lets anybody in. Both are sealed with the key file, bound to their row. In the clear stays what questions are asked about: which
//! places a job uses, with a keyed hash in place of a query, so that the same URL is still found.
//!
//! With another key file nothing of it opens: jobs and images are still listed, and cannot be worked with.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Db, Result, content};
use crate::secret::{Secret, UnsealError};
use crate::store::shown;

/// What is sealed of a job.
#[derive(Debug, Serialize, Deserialize)]
struct OfJob {
    options: Value,
    image_url: String,
}

fn owner_job(id: i64) -> String {
    format!("what was asked of job {id}")
}

fn owner_url(of: &str, name: &str) -> String {
    format!("URL of {of} {name}")
}

impl Db {
    /// A place as columns have it: of a web server's URL a keyed hash in place of the query.
    pub(super) fn column(&self, place: &str) -> String {
        match place.split_once('?').filter(|_| shown(place) != place) {
            Some((url, query)) => format!("{url}?sealed-{}", self.sealer.keyed_hash(query)),
            None => place.to_owned(),
        }
    }

    /// What a request is compared with when it is repeated.
    pub(super) fn body_hash(&self, body: &str) -> Vec<u8> {
        // No query of a URL begins so.
        self.sealer.keyed_hash(&format!("request\n{body}")).into_bytes()
    }

    /// The URL of an image or a store, sealed, if there is something in it that is not in the column.
    pub(super) fn seal_url(&self, of: &str, name: &str, url: &str) -> Option<Vec<u8>> {
        (shown(url) != url)
            .then(|| self.sealer.seal(&owner_url(of, name), &Secret::new(url.to_owned())))
    }

    /// The URL that was sealed.
    pub(super) fn open_url(
        &self,
        of: &str,
        name: &str,
        sealed: &[u8],
    ) -> std::result::Result<String, UnsealError> {
        Ok(self.sealer.open(&owner_url(of, name), sealed)?.expose().to_owned())
    }

    /// The part of a job's options that questions are asked about: the places that it uses.
    pub(super) fn places_of(&self, options: &Value) -> Value {
        let column = |place: &Value| place.as_str().map(|place| self.column(place));
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let asked = &options["options"];
        // One base is a text, several are a list.
        let base = match asked["base"].as_array() {
            Some(several) => several.iter().filter_map(column).collect(),
            None => column(&asked["base"]).map_or(Value::Null, Value::from),
        };
        let also: Vec<_> = list(&asked["also"]).iter().filter_map(column).collect();
        let partitions = list(&asked["layout"]["partition"]);
        let partitions: Vec<_> = partitions
            .iter()
            .map(|partition| json!({"image": column(&partition["image"])}))
            .collect();
        json!({
            "action": options["action"],
            "options": {
                "base": base, "also": also, "layout": {"partition": partitions},
            },
        })
    }

    /// Options and place of a job, sealed.
    pub(super) fn seal_job(&self, id: i64, options: &Value, image_url: &str) -> Vec<u8> {
        let of_job = OfJob { options: options.clone(), image_url: image_url.to_owned() };
        let text = serde_json::to_string(&of_job).expect("options are plain data");
        self.sealer.seal(&owner_job(id), &Secret::new(text))
    }

    /// The options, as JSON, and the place of a job; `None` with another key file than they were sealed with.
    pub(super) fn open_job(&self, id: i64, sealed: &[u8]) -> Result<Option<(Value, String)>> {
        let Ok(text) = self.sealer.open(&owner_job(id), sealed) else { return Ok(None) };
        let OfJob { options, image_url } = serde_json::from_str(text.expose())
            .map_err(|_| content("sealed part of job", id.to_string()))?;
        Ok(Some((options, image_url)))
    }

    /// Seals what versions before this one left in the clear, and takes care that nothing of it stays in the database's files.
    pub(super) async fn seal_what_is_not(&self) -> Result<()> {
        let mut tx = self.write().await?;
        let mut count = 0_usize;
        let jobs: Vec<(i64, String, String)> =
            sqlx::query_as("SELECT id, options, image_url FROM jobs WHERE sealed IS NULL")
                .fetch_all(&mut *tx)
                .await?;
        for (id, options, image_url) in jobs {
            let options: Value = serde_json::from_str(&options)
                .map_err(|_| content("options of job", id.to_string()))?;
            sqlx::query("UPDATE jobs SET options = ?, image_url = ?, sealed = ? WHERE id = ?")
                .bind(self.places_of(&options).to_string())
                .bind(self.column(&image_url))
                .bind(self.seal_job(id, &options, &image_url))
                .bind(id)
                .execute(&mut *tx)
                .await?;
            count += 1;
        }
        for (table, of) in [("images", "image"), ("stores", "store")] {
            let rows: Vec<(String, String)> = sqlx::query_as(sqlx::AssertSqlSafe(format!(
                "SELECT name, url FROM {table} WHERE sealed_url IS NULL AND url IS NOT NULL"
            )))
            .fetch_all(&mut *tx)
            .await?;
            for (name, url) in rows {
                let Some(sealed) = self.seal_url(of, &name, &url) else { continue };
                sqlx::query(sqlx::AssertSqlSafe(format!(
                    "UPDATE {table} SET url = ?, sealed_url = ? WHERE name = ?"
                )))
                .bind(self.column(&url))
                .bind(sealed)
                .bind(name)
                .execute(&mut *tx)
                .await?;
                count += 1;
            }
        }
        tx.commit().await?;
        if count > 0 {
            tracing::info!(count, "sealed what the database held in the clear");
            // What was deleted before secure_delete was on may still be in free pages, and all of it in the journal.
            sqlx::query("VACUUM").execute(&self.pool).await?;
            sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(&self.pool).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use agent_api::{CloudInitSeed, Content, Customisation, RestoreOptions};

    use super::*;
    use crate::db::{DbError, Idempotency, NewImage, NewJobOutcome, StoreRow, samples};
    use crate::job::{NewJob, Options, Shutdown};
    use crate::secret::{KEY_LEN, Sealer};

    const IMAGE: &str = "https://h/a.img.zst?sig=canary-image";
    const ALSO: &str = "https://g/a.img.zst?sig=canary-also/1";
    const STORE: &str = "https://h/images?sig=canary-store";
    const USER_DATA: &[u8] = b"canary user data";

    fn sealer(byte: u8) -> Sealer {
        Sealer::new(&[byte; KEY_LEN])
    }

    fn holds_canary(folder: &Path) -> bool {
        let user_data = String::from(Content::from(USER_DATA.to_vec()));
        let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        files.map(|path| std::fs::read(path).unwrap()).any(|bytes| {
            let has = |text: &[u8]| bytes.windows(text.len()).any(|window| window == text);
            has(b"canary") || has(user_data.as_bytes())
        })
    }

    /// An image, a store and a job with secrets; the job's number and options.
    async fn fill(db: &Db) -> (i64, Options) {
        let image = NewImage {
            name: "a".into(),
            url: IMAGE.into(),
            root: "ab".repeat(32),
            ..NewImage::default()
        };
        db.add_image(&image).await.unwrap();
        db.add_store(&StoreRow::open_to_all("s", STORE)).await.unwrap();
        let host_id = db.add_host(&samples::host()).await.unwrap();
        let seed =
            CloudInitSeed { user_data: USER_DATA.to_vec().into(), ..CloudInitSeed::default() };
        let customise = Customisation { cloud_init_seed: Some(seed), ..Customisation::default() };
        let options = RestoreOptions {
            also: vec![ALSO.into(), IMAGE.into()],
            customise: Box::new(customise),
            ..RestoreOptions::default()
        };
        let options = Options::Restore(options);
        let job = NewJob {
            host_id,
            host: "node7".parse().unwrap(),
            image: "a".parse().unwrap(),
            place: IMAGE.parse().unwrap(),
            disk: None,
            options: options.clone(),
            shutdown: Shutdown::Refuse,
            approval: false,
            created_by: "test".into(),
        };
        match db.create_job(&job, None).await.unwrap() {
            NewJobOutcome::Created(id) | NewJobOutcome::Repeated(id) => (id, options),
        }
    }

    #[tokio::test]
    async fn what_a_request_is_compared_with_cannot_be_guessed_from_the_database() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("db");
        let holds = |needle: &[u8]| {
            let files = std::fs::read_dir(folder.path()).unwrap();
            let files = files.map(|file| std::fs::read(file.unwrap().path()).unwrap());
            files.into_iter().any(|file| file.windows(needle.len()).any(|part| part == needle))
        };
        let db = Db::open(&path, sealer(7)).await.unwrap();
        let (id, _) = fill(&db).await;
        db.add_token("t", &Secret::random().hash()).await.unwrap();
        let token_id = db.tokens().await.unwrap()[0].id;
        let body = r#"{"password":"guessable"}"#;
        let plain = crate::secret::sha256(body.as_bytes());
        let remember = async |db: &Db, key: &str, hash: Vec<u8>| {
            let row = "INSERT INTO idempotency_keys (token_id, key, body_hash, job_id, created_ms) VALUES (?, ?, ?, ?, 0)";
            let row = sqlx::query(row).bind(token_id).bind(key).bind(hash).bind(id);
            row.execute(&db.pool).await.unwrap();
        };
        let ask =
            async |db: &Db, key, body| db.job_of_key(Idempotency { token_id, key, body }).await;
        remember(&db, "new", db.body_hash(body)).await;
        assert_eq!(ask(&db, "new", body).await.unwrap(), Some(id));
        assert!(matches!(ask(&db, "new", "{}").await, Err(DbError::Conflict { .. })));
        assert!(!holds(&plain) && db.body_hash(body) != plain);
        assert_ne!(db.body_hash(body), sealer(8).keyed_hash(body).into_bytes());

        // As a version before left it: gone with the next start, from the journal too.
        remember(&db, "old", plain.clone()).await;
        sqlx::query("DELETE FROM _sqlx_migrations WHERE version = 8")
            .execute(&db.pool)
            .await
            .unwrap();
        assert!(holds(&plain), "as versions before had it");
        // Killed: the journal is not merged into the database.
        let db = Db::open(&path, sealer(7)).await.unwrap();
        assert!(!holds(&plain));
        assert_eq!(ask(&db, "old", body).await.unwrap(), None);
    }

    /// All is read as it was written, and found by what it is.
    async fn check(db: &Db, id: i64, options: &Options) {
        let job = db.job(id).await.unwrap();
        assert_eq!((&job.options, job.image_url.as_str()), (options, IMAGE));
        assert!(!job.is_locked);
        assert_eq!(db.image("a").await.unwrap().url, IMAGE);
        assert_eq!(db.images().await.unwrap()[0].url, IMAGE);
        assert_eq!(db.store("s").await.unwrap().url.as_deref(), Some(STORE));
        let stored: String =
            sqlx::query_scalar("SELECT json_extract(options, '$.options.also[1]') FROM jobs")
                .fetch_one(&db.pool)
                .await
                .unwrap();
        let url: String =
            sqlx::query_scalar("SELECT url FROM images").fetch_one(&db.pool).await.unwrap();
        assert_eq!(stored, url, "the same URL is the same in every column");
        assert!(url.starts_with("https://h/a.img.zst?sealed-"), "{url}");
    }

    #[tokio::test]
    async fn what_is_secret_is_in_no_file_and_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("db");
        let db = Db::open(&path, sealer(7)).await.unwrap();
        let (id, options) = fill(&db).await;
        assert!(!holds_canary(folder.path()));
        check(&db, id, &options).await;
        db.close().await;
        assert!(!holds_canary(folder.path()));
        let db = Db::open(&path, sealer(7)).await.unwrap();
        check(&db, id, &options).await;
    }

    #[tokio::test]
    async fn what_an_older_version_left_in_the_clear_is_sealed_at_the_next_start() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("db");
        let db = Db::open(&path, sealer(7)).await.unwrap();
        let (id, options) = fill(&db).await;
        db.close().await;
        // As it was before there was a sealed part; with something that was deleted, too.
        let old = sqlx::SqlitePool::connect(&format!("sqlite://{}", path.display())).await.unwrap();
        for (query, value) in [
            (
                "UPDATE jobs SET options = ?, sealed = NULL",
                serde_json::to_string(&options).unwrap(),
            ),
            ("UPDATE jobs SET image_url = ?", IMAGE.to_owned()),
            ("UPDATE images SET url = ?, sealed_url = NULL", IMAGE.to_owned()),
            ("UPDATE stores SET url = ?, sealed_url = NULL WHERE name = 's'", STORE.to_owned()),
        ] {
            sqlx::query(query).bind(value).execute(&old).await.unwrap();
        }
        for query in ["CREATE TABLE gone AS SELECT options FROM jobs", "DROP TABLE gone"] {
            sqlx::query(query).execute(&old).await.unwrap();
        }
        old.close().await;
        assert!(holds_canary(folder.path()), "in the clear, as versions before had it");
        let db = Db::open(&path, sealer(7)).await.unwrap();
        assert!(!holds_canary(folder.path()), "not even in a journal or a free page");
        check(&db, id, &options).await;
        db.close().await;
        assert!(!holds_canary(folder.path()));
    }

    #[tokio::test]
    async fn with_another_key_file_things_are_listed_and_not_worked_with() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("db");
        let db = Db::open(&path, sealer(7)).await.unwrap();
        let (id, _) = fill(&db).await;
        db.close().await;
        let db = Db::open(&path, sealer(8)).await.unwrap();
        let job = db.job(id).await.unwrap();
        assert!(job.is_locked && job.action() == crate::job::Action::Restore);
        assert_eq!(shown(&db.images().await.unwrap()[0].url), "https://h/a.img.zst?…");
        assert!(matches!(db.image("a").await, Err(DbError::Unseal(_))));
        assert!(matches!(db.store("s").await, Err(DbError::Unseal(_))));
        assert_eq!(db.stores().await.unwrap().len(), 2);
    }
}
