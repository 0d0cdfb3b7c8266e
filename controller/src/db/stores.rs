//! Named stores.

use super::{Db, Result, conflict, not_found, on_unique};
use crate::clock::now_ms;

/// Name of the controller's own store.
pub const LOCAL: &str = "local";

/// A row of the stores.
#[derive(Clone, sqlx::FromRow)]
pub struct StoreRow {
    /// Name.
    pub name: String,
    /// Where it is; `None`: the controller's own.
    pub url: Option<String>,
    /// User that agents are there.
    pub user: Option<String>,
    /// The user's domain.
    pub domain: Option<String>,
    /// The user's password, sealed.
    pub password: Option<Vec<u8>>,
    /// Bearer token, sealed.
    pub token: Option<Vec<u8>>,
    /// Pin of the server's key.
    pub tls_key: Option<String>,
    /// When it was entered.
    pub created_ms: i64,
    /// Of a URL with a query: all of it, sealed. Nothing any more once it is opened.
    #[sqlx(default)]
    pub sealed_url: Option<Vec<u8>>,
}

impl StoreRow {
    /// A store at this URL that lets everybody in.
    pub(crate) fn open_to_all(name: &str, url: &str) -> Self {
        Self {
            name: name.to_owned(),
            url: Some(url.to_owned()),
            user: None,
            domain: None,
            password: None,
            token: None,
            tls_key: None,
            created_ms: 0,
            sealed_url: None,
        }
    }
}

impl std::fmt::Debug for StoreRow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StoreRow")
            .field("name", &self.name)
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

/// A place in this store begins so.
fn prefix(name: &str) -> String {
    format!("store:{name}/")
}

/// Refuses a name that no store has.
pub(super) async fn require<'e, E>(executor: E, name: &str) -> Result<()>
where
    E: sqlx::Executor<'e, Database = sqlx::Sqlite>,
{
    let found: Option<String> = sqlx::query_scalar("SELECT name FROM stores WHERE name = ?")
        .bind(name)
        .fetch_optional(executor)
        .await?;
    found.map(drop).ok_or_else(|| not_found("store", name))
}

impl Db {
    /// Enters a store; `created_ms` is set here.
    ///
    /// # Errors
    /// When the name is taken.
    pub async fn add_store(&self, store: &StoreRow) -> Result<()> {
        let url = store.url.as_deref();
        sqlx::query(
            "INSERT INTO stores (name, url, user, domain, password, token, tls_key, created_ms, sealed_url) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(&store.name)
        .bind(url.map(|url| self.column(url)))
        .bind(&store.user)
        .bind(&store.domain)
        .bind(&store.password)
        .bind(&store.token)
        .bind(&store.tls_key)
        .bind(now_ms())
        .bind(url.and_then(|url| self.seal_url("store", &store.name, url)))
        .execute(&self.pool)
        .await
        .map_err(|e| {
            on_unique(
                e,
                &[("stores.name", "store_exists", "a store of this name exists: choose another name, or remove it first")],
            )
        })?;
        Ok(())
    }

    /// Stores what lets agents into a store.
    ///
    /// # Errors
    /// When there is none of this name.
    pub async fn set_store_credentials(&self, store: &StoreRow) -> Result<()> {
        let changed = sqlx::query(
            "UPDATE stores SET user = ?, domain = ?, password = ?, token = ?, tls_key = ? WHERE name = ?",
        )
        .bind(&store.user)
        .bind(&store.domain)
        .bind(&store.password)
        .bind(&store.token)
        .bind(&store.tls_key)
        .bind(&store.name)
        .execute(&self.pool)
        .await?;
        match changed.rows_affected() {
            0 => Err(not_found("store", &store.name)),
            _ => Ok(()),
        }
    }

    /// With its whole URL.
    fn opened_store(&self, mut store: StoreRow) -> Result<StoreRow> {
        if let Some(sealed) = store.sealed_url.take() {
            store.url = Some(self.open_url("store", &store.name, &sealed)?);
        }
        Ok(store)
    }

    /// A store by name.
    ///
    /// # Errors
    /// When there is none, or its URL does not open with this controller's key file.
    pub async fn store(&self, name: &str) -> Result<StoreRow> {
        let store = sqlx::query_as("SELECT * FROM stores WHERE name = ?")
            .bind(name)
            .fetch_optional(&self.pool)
            .await?
            .ok_or_else(|| not_found("store", name))?;
        self.opened_store(store)
    }

    /// All stores by name. A URL that does not open with this controller's key file is without its query.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn stores(&self) -> Result<Vec<StoreRow>> {
        let stores: Vec<StoreRow> =
            sqlx::query_as("SELECT * FROM stores ORDER BY name").fetch_all(&self.pool).await?;
        let opened = |store: StoreRow| self.opened_store(store.clone()).unwrap_or(store);
        Ok(stores.into_iter().map(opened).collect())
    }

    /// Forgets a store and its credentials. What lies in it stays.
    ///
    /// # Errors
    /// When there is none, it is the controller's own, or an image or an active job is in it.
    pub async fn remove_store(&self, name: &str) -> Result<()> {
        if name == LOCAL {
            return Err(conflict("store_built_in", "this is the controller's own store: it stays"));
        }
        let mut tx = self.write().await?;
        let image: Option<String> = sqlx::query_scalar(
            "SELECT name FROM images WHERE substr(url, 1, length(?1)) = ?1 ORDER BY name LIMIT 1",
        )
        .bind(prefix(name))
        .fetch_optional(&mut *tx)
        .await?;
        if let Some(image) = image {
            return Err(conflict(
                "store_in_use",
                format!("image {image} lies in store {name}: remove the images of a store first"),
            ));
        }
        let job: Option<i64> = sqlx::query_scalar(
            "SELECT id FROM jobs WHERE state NOT IN ('succeeded', 'failed', 'cancelled')
               AND (substr(image_url, 1, length(?1)) = ?1
                    -- One base is a text, several are a list: json_each takes both.
                    OR EXISTS (SELECT 1 FROM json_each(options, '$.options.base')
                               WHERE substr(value, 1, length(?1)) = ?1)
                    OR EXISTS (SELECT 1 FROM json_each(options, '$.options.also')
                               WHERE substr(value, 1, length(?1)) = ?1)
                    OR EXISTS (SELECT 1 FROM json_each(options, '$.options.layout.partition')
                               WHERE substr(json_extract(value, '$.image'), 1, length(?1)) = ?1)) LIMIT 1",
        )
        .bind(prefix(name))
        .fetch_optional(&mut *tx)
        .await?;
        if let Some(job) = job {
            return Err(conflict(
                "store_in_use",
                format!("job {job} uses store {name}: wait for it or cancel it"),
            ));
        }
        let done =
            sqlx::query("DELETE FROM stores WHERE name = ?").bind(name).execute(&mut *tx).await?;
        if done.rows_affected() == 0 {
            return Err(not_found("store", name));
        }
        tx.commit().await?;
        Ok(())
    }
}
