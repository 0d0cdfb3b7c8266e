//! Stores: where images lie, and what lets an agent in.
//!
//! A store has a name, and either a URL or the controller itself behind it ([`embedded`]). A job keeps only names ([`Place`]); URL,
//! credentials and the token for the controller's own store are put together when the job is handed to its agent, and live no
//! longer than that answer. The controller itself never connects to a store: it starts the agent's program for that ([`check`], [`agent_program`]).

pub mod agent_program;
pub mod check;
pub mod embedded;
mod place;
mod same;

use std::collections::HashMap;
use std::path::PathBuf;

use agent_api::{DELTA_SUFFIX, IMAGE_SUFFIX, JobAction, JobSpec, SecretText, StoreAccess};

pub use place::{Place, below, folder_of, shown};
pub use same::{Spot, Spots};

use crate::db::{Db, DbError, LOCAL, StoreRow};
use crate::job::{Action, Job, Options};
use crate::names::{FileName, ImageUrl, NameError, StoreName};
use crate::secret::{Sealer, Secret, UnsealError};
use embedded::Embedded;

/// What lies beside an image and belongs to it: see `imprint-agent sign`.
pub const BESIDE_IMAGE: [&str; 2] = [".root", ".root.minisig"];

/// Why a job cannot be handed out.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database failed, or a store is gone.
    #[error(transparent)]
    Db(#[from] DbError),
    /// Credentials do not open.
    #[error(transparent)]
    Unseal(#[from] UnsealError),
    /// What is stored is no place.
    #[error(transparent)]
    Name(#[from] NameError),
}

/// Where captures go that name no store.
#[derive(Debug, Clone)]
pub enum DefaultStore {
    /// To a folder that has no name here.
    Url(String),
    /// To a store.
    Named(StoreName),
}

/// All stores.
#[derive(Debug)]
pub struct Stores {
    /// The controller's own.
    pub embedded: Embedded,
    db: Db,
    sealer: Sealer,
    https_url: String,
    pin: String,
    default: DefaultStore,
}

/// Credentials as they come in.
#[derive(Debug, Default)]
pub struct Credentials {
    /// Who agents are.
    pub user: Option<String>,
    /// The user's domain.
    pub domain: Option<String>,
    /// The user's password.
    pub password: Option<Secret>,
    /// Bearer token.
    pub token: Option<Secret>,
    /// Pin of the server's key.
    pub tls_key: Option<String>,
}

/// Where each store is at the moment.
#[derive(Debug)]
pub struct Places(HashMap<String, String>);

impl Places {
    /// The store of a stored place, if it has one, and the URL as it may be shown.
    #[must_use]
    pub fn locate(&self, place: &str) -> (Option<String>, String) {
        match place.parse::<Place>() {
            Ok(Place::Store { store, file }) => {
                let url = self.0.get(store.as_str()).map(|folder| below(folder, file.as_str()));
                (Some(store.into()), shown(&url.unwrap_or_else(|| place.to_owned())))
            }
            _ => (None, shown(place)),
        }
    }
}

impl Stores {
    /// The stores of a controller that is reached at `https_url` and has a key with this pin.
    ///
    /// # Errors
    /// When the folder of its own store cannot be made.
    pub fn new(
        folder: PathBuf,
        db: Db,
        sealer: Sealer,
        https_url: String,
        pin: String,
        default: DefaultStore,
    ) -> std::io::Result<Self> {
        let embedded = Embedded::new(folder, db.clone())?;
        Ok(Self { embedded, db, sealer, https_url, pin, default })
    }

    /// Where an image of this file name is put.
    ///
    /// # Errors
    /// When there is no such store, or the default one makes no URL.
    pub async fn place(&self, store: Option<StoreName>, file: &str) -> Result<Place, StoreError> {
        let store = match (store, &self.default) {
            (Some(store), _) => store,
            (None, DefaultStore::Named(store)) => store.clone(),
            (None, DefaultStore::Url(url)) => return Ok(Place::Url(below(url, file).parse()?)),
        };
        self.db.store(store.as_str()).await?;
        Ok(Place::Store { store, file: file.parse()? })
    }

    /// A URL of the controller's own store as what it is, a file of that.
    #[must_use]
    pub fn known(&self, url: ImageUrl) -> Place {
        let own = format!("{}/v1/stores/{LOCAL}/files/", self.https_url);
        match url.as_str().strip_prefix(&own).map(str::parse) {
            Some(Ok(file)) => {
                let store = LOCAL.parse().expect("it is the name of a store");
                Place::Store { store, file }
            }
            _ => Place::Url(url),
        }
    }

    /// The URL of a store.
    #[must_use]
    pub fn url(&self, store: &StoreRow) -> String {
        store
            .url
            .clone()
            .unwrap_or_else(|| format!("{}/v1/stores/{}/files", self.https_url, store.name))
    }

    /// Where every store is.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn places(&self) -> Result<Places, DbError> {
        let stores = self.db.stores().await?;
        Ok(Places(stores.into_iter().map(|store| (store.name.clone(), self.url(&store))).collect()))
    }

    /// Enters a store.
    ///
    /// # Errors
    /// When the name is taken.
    pub async fn add(&self, name: &StoreName, url: &str, with: Credentials) -> Result<(), DbError> {
        let mut row = StoreRow::open_to_all(name.as_str(), url);
        self.seal_into(&mut row, url, with);
        self.db.add_store(&row).await
    }

    /// Changes what lets agents into a store on another server: the pin if one is given; user, password and token as a whole if
    /// `replaces_secret`.
    ///
    /// # Errors
    /// When the store is gone.
    pub async fn set_credentials(
        &self,
        mut row: StoreRow,
        mut with: Credentials,
        replaces_secret: bool,
    ) -> Result<(), DbError> {
        with.tls_key = with.tls_key.or_else(|| row.tls_key.clone());
        let url = self.url(&row);
        match replaces_secret {
            true => self.seal_into(&mut row, &url, with),
            false => row.tls_key = with.tls_key,
        }
        self.db.set_store_credentials(&row).await
    }

    fn seal_into(&self, row: &mut StoreRow, url: &str, with: Credentials) {
        let seal = |what, secret: Option<Secret>| {
            secret.map(|secret| self.sealer.seal(&owner(&row.name, url, what), &secret))
        };
        (row.password, row.token) = (seal("password", with.password), seal("token", with.token));
        (row.user, row.domain, row.tls_key) = (with.user, with.domain, with.tls_key);
    }

    /// Completes a job for its agent: places become URLs, with what lets the agent in. A token of the controller's own store that
    /// an earlier hand-out of the job gave is worth nothing from now on.
    ///
    /// # Errors
    /// When a store is gone or its credentials do not open.
    pub async fn hand_out(&self, job: &Job, mut spec: JobSpec) -> Result<JobSpec, StoreError> {
        if job.is_locked {
            return Err(UnsealError { owner: format!("job {}", job.id) }.into());
        }
        let (bases, also, layout) = match &mut spec.action {
            JobAction::Capture(options) => (&mut options.base, None, None),
            JobAction::Restore(options) | JobAction::Plan(options) => {
                (&mut options.base, Some(&mut options.also), options.layout.as_mut())
            }
        };
        let mut stores: Vec<StoreRow> = Vec::new();
        let texts = std::iter::once(&mut spec.image_url).chain(bases);
        let of_layout = layout.into_iter().flat_map(|layout| &mut layout.partitions);
        let of_layout = of_layout.filter_map(|partition| partition.image.as_mut());
        for text in texts.chain(also.into_iter().flatten()).chain(of_layout) {
            if let Place::Store { store, file } = text.parse()? {
                let store = self.db.store(store.as_str()).await?;
                *text = below(&self.url(&store), file.as_str());
                if !stores.iter().any(|known| known.name == store.name) {
                    stores.push(store);
                }
            }
        }
        for store in stores {
            let access = self.access(job, store).await?;
            if access.user.is_some() || access.token.is_some() || access.tls_key.is_some() {
                spec.access.push(access);
            }
        }
        Ok(spec)
    }

    async fn access(&self, job: &Job, store: StoreRow) -> Result<StoreAccess, StoreError> {
        if store.url.is_some() {
            return self.credentials(store);
        }
        let token = Secret::random();
        self.db.set_store_token(job.id, &token.hash()).await?;
        Ok(self.own_access(&store, &token))
    }

    /// What lets into the controller's own store with this token.
    #[must_use]
    pub fn own_access(&self, store: &StoreRow, token: &Secret) -> StoreAccess {
        StoreAccess {
            prefix: folder_of(&self.url(store)).to_owned(),
            token: Some(text(token)),
            tls_key: Some(self.pin.clone()),
            ..StoreAccess::default()
        }
    }

    /// What lets into a store on another server.
    ///
    /// # Errors
    /// When its credentials do not open.
    pub fn credentials(&self, store: StoreRow) -> Result<StoreAccess, StoreError> {
        let url = self.url(&store);
        let prefix = folder_of(&url).to_owned();
        let open = |what, sealed: Option<Vec<u8>>| {
            let opened =
                sealed.map(|sealed| self.sealer.open(&owner(&store.name, &url, what), &sealed));
            opened.transpose().map(|secret| secret.as_ref().map(text))
        };
        Ok(StoreAccess {
            prefix,
            password: open("password", store.password)?,
            token: open("token", store.token)?,
            user: store.user,
            domain: store.domain,
            tls_key: store.tls_key,
        })
    }
}

fn text(secret: &Secret) -> SecretText {
    SecretText::from(secret.expose().to_owned())
}

/// What a sealed secret is bound to. No host's name holds a blank, so none is bound to the same.
fn owner(store: &str, url: &str, what: &str) -> String {
    format!("{what} of store {store} at {url}")
}

/// What the agent of a job may do with a file of the controller's own store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rights {
    /// Read it.
    pub read: bool,
    /// Write it.
    pub write: bool,
}

/// A capture writes its image. Every job reads its image, from wherever it is told to, and bases with what lies beside them; one with a delta image any image of
/// the store, since the images beneath a delta are known to the agent only.
#[must_use]
pub fn rights(job: &Job, file: &FileName) -> Rights {
    let local = |text: &str| match text.parse::<Place>() {
        Ok(Place::Store { store, file }) if store.as_str() == LOCAL => Some(file),
        _ => None,
    };
    let image = local(&job.image_url);
    let (bases, also) = match &job.options {
        Options::Capture(options) => (&options.base, Vec::new()),
        Options::Restore(options) => {
            let of_layout = options.layout.iter().flat_map(|layout| &layout.partitions);
            let texts = options.also.iter().chain(of_layout.filter_map(|p| p.image.as_ref()));
            (&options.base, texts.collect())
        }
    };
    let bases: Vec<FileName> = bases.iter().filter_map(|text| local(text)).collect();
    let also: Vec<FileName> = also.into_iter().filter_map(|text| local(text)).collect();
    let has_name = |name: &str| file.as_str().ends_with(name);
    let belongs = |image: &FileName| {
        let rest = file.as_str().strip_prefix(image.as_str());
        rest.is_some_and(|rest| rest.is_empty() || BESIDE_IMAGE.contains(&rest))
    };
    let own = image.iter().chain(&bases).chain(&also);
    let deltas =
        !bases.is_empty() || own.clone().any(|image| image.as_str().ends_with(DELTA_SUFFIX));
    Rights {
        read: own.clone().any(belongs)
            || (deltas && (has_name(IMAGE_SUFFIX) || has_name(DELTA_SUFFIX))),
        write: job.action() == Action::Capture && image.as_ref() == Some(file),
    }
}
