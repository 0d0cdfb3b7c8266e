//! `imprint token`.

use clap::{Args, Subcommand};
use reqwest::Method;

use super::connect::{Client, segment};
use super::table;
use crate::api::tokens::{MadeToken, NewToken, TokenView};

#[derive(Debug, Subcommand)]
pub(super) enum TokenCommand {
    /// Make a token and print it; it is not shown again
    Add {
        /// What it is called
        name: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// List tokens
    List(ListArgs),
    /// Remove a token
    Rm {
        /// Which
        name: String,
    },
}

#[derive(Debug, Args)]
pub(super) struct ListArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(client: &Client, command: TokenCommand) -> anyhow::Result<()> {
    match command {
        TokenCommand::Add { name, json } => {
            let request =
                client.request(Method::POST, "/v1/tokens").json(&NewToken { name: name.parse()? });
            let made: MadeToken = client.json(request).await?;
            if json { table::json(&made) } else { table::put(&format!("{}\n", made.token)) }
        }
        TokenCommand::List(args) => {
            let tokens: Vec<TokenView> = client.get("/v1/tokens").await?;
            if args.json {
                return table::json(&tokens);
            }
            let row = |token: TokenView| {
                vec![token.name, token.created, token.last_used.unwrap_or_else(|| "never".into())]
            };
            table::print(
                &["NAME", "CREATED", "LAST USED"],
                &tokens.into_iter().map(row).collect::<Vec<_>>(),
            )
        }
        TokenCommand::Rm { name } => {
            client
                .done(client.request(Method::DELETE, &format!("/v1/tokens/{}", segment(&name)?)))
                .await
        }
    }
}
