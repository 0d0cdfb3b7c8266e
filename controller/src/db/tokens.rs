//! API tokens: only their hashes.

use super::{Db, Result, not_found, on_unique};
use crate::clock::now_ms;

/// How often the time of a token's last use is written, in ms.
const USE_RESOLUTION_MS: i64 = 60_000;

/// A token, without its secret, which nobody knows any more.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Token {
    /// Row.
    pub id: i64,
    /// Name.
    pub name: String,
    /// When it was made.
    pub created_ms: i64,
    /// When it was last used, to the minute.
    pub last_used_ms: Option<i64>,
}

/// What the names of tokens begin with that live as long as a check of the controller's own store.
pub const CHECK_TOKEN_PREFIX: &str = "store-check-";

impl Db {
    /// Removes tokens of checks that a controller before this one did not end.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn remove_tokens_of_checks(&self) -> Result<()> {
        sqlx::query("DELETE FROM tokens WHERE substr(name, 1, length(?1)) = ?1")
            .bind(CHECK_TOKEN_PREFIX)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Stores a token.
    ///
    /// # Errors
    /// When the name is taken.
    pub async fn add_token(&self, name: &str, hash: &[u8]) -> Result<()> {
        sqlx::query("INSERT INTO tokens (name, hash, created_ms) VALUES (?, ?, ?)")
            .bind(name)
            .bind(hash)
            .bind(now_ms())
            .execute(&self.pool)
            .await
            .map_err(|e| {
                on_unique(
                    e,
                    &[(
                        "tokens.name",
                        "token_exists",
                        "a token of this name exists: remove it first, or choose another name",
                    )],
                )
            })?;
        Ok(())
    }

    /// The token with this hash; notes its use.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn token_by_hash(&self, hash: &[u8]) -> Result<Option<Token>> {
        let token: Option<Token> =
            sqlx::query_as("SELECT id, name, created_ms, last_used_ms FROM tokens WHERE hash = ?")
                .bind(hash)
                .fetch_optional(&self.pool)
                .await?;
        if let Some(token) = &token
            && token.last_used_ms.is_none_or(|at| now_ms() - at > USE_RESOLUTION_MS)
        {
            sqlx::query("UPDATE tokens SET last_used_ms = ? WHERE id = ?")
                .bind(now_ms())
                .bind(token.id)
                .execute(&self.pool)
                .await?;
        }
        Ok(token)
    }

    /// All tokens by name.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn tokens(&self) -> Result<Vec<Token>> {
        let sql = "SELECT id, name, created_ms, last_used_ms FROM tokens ORDER BY name";
        Ok(sqlx::query_as(sql).fetch_all(&self.pool).await?)
    }

    /// Removes a token: whoever holds it is refused from now on.
    ///
    /// # Errors
    /// When there is none of this name.
    pub async fn remove_token(&self, name: &str) -> Result<()> {
        let done =
            sqlx::query("DELETE FROM tokens WHERE name = ?").bind(name).execute(&self.pool).await?;
        if done.rows_affected() == 0 {
            return Err(not_found("token", name));
        }
        Ok(())
    }
}
