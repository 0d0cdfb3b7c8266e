//! Hosts, their MAC addresses, and machines that are no hosts yet.

use std::net::Ipv4Addr;

use sqlx::Row;

use super::{Db, Result, conflict, content, not_found, on_unique};
use crate::clock::now_ms;
use crate::host::{Finish, Firmware};
use crate::names::Mac;

/// How many machines that are no hosts are remembered.
const SEEN_MAX: i64 = 1000;

/// How a host's BMC is reached, as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BmcRow {
    /// Somebody presses the button.
    Manual,
    /// IPMI 2.0.
    Ipmi {
        /// Address or name.
        host: String,
        /// UDP port.
        port: u16,
        /// User.
        user: String,
        /// Sealed password.
        password: Vec<u8>,
        /// Cipher suite that worked.
        cipher: Option<u8>,
        /// The BMC refused user or password; nothing is sent until they change.
        refused: bool,
    },
}

/// A host.
#[derive(Debug, Clone)]
pub struct Host {
    /// Row.
    pub id: i64,
    /// Name.
    pub name: String,
    /// MAC addresses; the first is the one it usually boots from.
    pub macs: Vec<Mac>,
    /// Address that DHCP gives it.
    pub ip: Option<Ipv4Addr>,
    /// BIOS or UEFI.
    pub firmware: Firmware,
    /// What it does after a job.
    pub finish: Finish,
    /// Added to the agent's kernel command line.
    pub kernel_args: String,
    /// For people.
    pub notes: String,
    /// SMBIOS UUID, given or learned at the first check-in.
    pub uuid: Option<String>,
    /// BMC.
    pub bmc: BmcRow,
    /// When it was entered.
    pub created_ms: i64,
}

/// A host to be.
#[derive(Debug, Clone)]
pub struct NewHost {
    /// Name.
    pub name: String,
    /// MAC addresses.
    pub macs: Vec<Mac>,
    /// Address that DHCP gives it.
    pub ip: Option<Ipv4Addr>,
    /// BIOS or UEFI.
    pub firmware: Firmware,
    /// What it does after a job.
    pub finish: Finish,
    /// Added to the agent's kernel command line.
    pub kernel_args: String,
    /// For people.
    pub notes: String,
    /// SMBIOS UUID.
    pub uuid: Option<String>,
    /// BMC.
    pub bmc: BmcRow,
}

/// What may change of a host; `None` leaves it.
#[derive(Debug, Clone, Default)]
pub struct HostChange {
    /// BIOS or UEFI.
    pub firmware: Option<Firmware>,
    /// What it does after a job.
    pub finish: Option<Finish>,
    /// Kernel arguments.
    pub kernel_args: Option<String>,
    /// Notes.
    pub notes: Option<String>,
    /// SMBIOS UUID; `Some(None)` forgets it, so that the next check-in is believed.
    pub uuid: Option<Option<String>>,
    /// BMC.
    pub bmc: Option<BmcRow>,
}

/// A machine that asked for an address or a boot script and is no host.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct SeenMachine {
    /// MAC address.
    pub mac: String,
    /// SMBIOS UUID.
    pub uuid: Option<String>,
    /// When it was first seen.
    pub first_ms: i64,
    /// When it was last seen.
    pub last_ms: i64,
    /// How often.
    pub times: i64,
}

const HOST_CONFLICTS: &[(&str, &str, &str)] = &[
    ("hosts.name", "host_exists", "a host of this name exists"),
    ("hosts.ip", "ip_in_use", "another host has this address"),
    ("host_macs.mac", "mac_in_use", "another host has this MAC address"),
];

impl Db {
    /// Stores a host.
    ///
    /// # Errors
    /// When name, address or a MAC belongs to another.
    pub async fn add_host(&self, host: &NewHost) -> Result<i64> {
        let mut tx = self.write().await?;
        let id: i64 = sqlx::query_scalar(
            "INSERT INTO hosts (name, ip, firmware, finish, kernel_args, notes, uuid, bmc_driver, created_ms)
             VALUES (?, ?, ?, ?, ?, ?, ?, 'manual', ?) RETURNING id",
        )
        .bind(&host.name)
        .bind(host.ip.map(|ip| ip.to_string()))
        .bind(host.firmware.as_str())
        .bind(host.finish.as_str())
        .bind(&host.kernel_args)
        .bind(&host.notes)
        .bind(&host.uuid)
        .bind(now_ms())
        .fetch_one(&mut *tx)
        .await
        .map_err(|e| on_unique(e, HOST_CONFLICTS))?;
        for (position, mac) in (0_i64..).zip(&host.macs) {
            sqlx::query("INSERT INTO host_macs (mac, host_id, position) VALUES (?, ?, ?)")
                .bind(mac.to_string())
                .bind(id)
                .bind(position)
                .execute(&mut *tx)
                .await
                .map_err(|e| on_unique(e, HOST_CONFLICTS))?;
            sqlx::query("DELETE FROM seen_machines WHERE mac = ?")
                .bind(mac.to_string())
                .execute(&mut *tx)
                .await?;
        }
        set_bmc(&mut tx, id, &host.bmc).await?;
        tx.commit().await?;
        Ok(id)
    }

    /// Changes a host.
    ///
    /// # Errors
    /// When there is none of this name.
    pub async fn change_host(&self, name: &str, change: &HostChange) -> Result<()> {
        let mut tx = self.write().await?;
        let id: i64 = sqlx::query_scalar(
            "UPDATE hosts SET firmware = coalesce(?, firmware), finish = coalesce(?, finish),
                    kernel_args = coalesce(?, kernel_args), notes = coalesce(?, notes)
             WHERE name = ? RETURNING id",
        )
        .bind(change.firmware.map(Firmware::as_str))
        .bind(change.finish.map(Finish::as_str))
        .bind(&change.kernel_args)
        .bind(&change.notes)
        .bind(name)
        .fetch_optional(&mut *tx)
        .await?
        .ok_or_else(|| not_found("host", name))?;
        if let Some(uuid) = &change.uuid {
            sqlx::query("UPDATE hosts SET uuid = ? WHERE id = ?")
                .bind(uuid)
                .bind(id)
                .execute(&mut *tx)
                .await?;
        }
        if let Some(bmc) = &change.bmc {
            set_bmc(&mut tx, id, bmc).await?;
        }
        tx.commit().await?;
        Ok(())
    }

    /// Removes a host.
    ///
    /// # Errors
    /// When there is none, or a job is under way on it.
    pub async fn remove_host(&self, name: &str) -> Result<()> {
        let mut tx = self.write().await?;
        let busy: Option<i64> = sqlx::query_scalar(
            "SELECT jobs.id FROM jobs JOIN hosts ON hosts.id = jobs.host_id
             WHERE hosts.name = ? AND jobs.state NOT IN ('succeeded', 'failed', 'cancelled')",
        )
        .bind(name)
        .fetch_optional(&mut *tx)
        .await?;
        if let Some(job) = busy {
            return Err(conflict(
                "host_busy",
                format!("job {job} is under way on host {name}: wait for it or cancel it"),
            ));
        }
        let done =
            sqlx::query("DELETE FROM hosts WHERE name = ?").bind(name).execute(&mut *tx).await?;
        if done.rows_affected() == 0 {
            return Err(not_found("host", name));
        }
        tx.commit().await?;
        Ok(())
    }

    /// All hosts by name.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn hosts(&self) -> Result<Vec<Host>> {
        let rows = sqlx::query("SELECT * FROM hosts ORDER BY name").fetch_all(&self.pool).await?;
        let mut hosts = rows.iter().map(host_of_row).collect::<Result<Vec<_>>>()?;
        let macs: Vec<(i64, String)> =
            sqlx::query_as("SELECT host_id, mac FROM host_macs ORDER BY host_id, position")
                .fetch_all(&self.pool)
                .await?;
        for (id, mac) in macs {
            if let Some(host) = hosts.iter_mut().find(|host| host.id == id) {
                host.macs.push(mac.parse().map_err(|_| content("MAC address", mac))?);
            }
        }
        Ok(hosts)
    }

    /// A host by name.
    ///
    /// # Errors
    /// When there is none.
    pub async fn host(&self, name: &str) -> Result<Host> {
        let row = sqlx::query("SELECT * FROM hosts WHERE name = ?")
            .bind(name)
            .fetch_optional(&self.pool)
            .await?
            .ok_or_else(|| not_found("host", name))?;
        self.with_macs(host_of_row(&row)?).await
    }

    /// A host by row.
    ///
    /// # Errors
    /// When there is none.
    pub async fn host_by_id(&self, id: i64) -> Result<Host> {
        let row = sqlx::query("SELECT * FROM hosts WHERE id = ?")
            .bind(id)
            .fetch_optional(&self.pool)
            .await?
            .ok_or_else(|| not_found("host", id))?;
        self.with_macs(host_of_row(&row)?).await
    }

    /// The host that owns a MAC address.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn host_by_mac(&self, mac: Mac) -> Result<Option<Host>> {
        let row = sqlx::query(
            "SELECT hosts.* FROM hosts JOIN host_macs ON host_macs.host_id = hosts.id WHERE mac = ?",
        )
        .bind(mac.to_string())
        .fetch_optional(&self.pool)
        .await?;
        match row {
            Some(row) => Ok(Some(self.with_macs(host_of_row(&row)?).await?)),
            None => Ok(None),
        }
    }

    /// Whether this address is a host's that has no job on its way.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn is_idle_address(&self, ip: Ipv4Addr) -> Result<bool> {
        let idle = "SELECT EXISTS (SELECT 1 FROM hosts WHERE ip = ? AND NOT EXISTS \
                    (SELECT 1 FROM jobs WHERE host_id = hosts.id \
                     AND state NOT IN ('succeeded', 'failed', 'cancelled')))";
        Ok(sqlx::query_scalar(idle).bind(ip.to_string()).fetch_one(&self.pool).await?)
    }

    async fn with_macs(&self, mut host: Host) -> Result<Host> {
        let macs: Vec<String> =
            sqlx::query_scalar("SELECT mac FROM host_macs WHERE host_id = ? ORDER BY position")
                .bind(host.id)
                .fetch_all(&self.pool)
                .await?;
        for mac in macs {
            host.macs.push(mac.parse().map_err(|_| content("MAC address", mac))?);
        }
        Ok(host)
    }

    /// Remembers the UUID that a host's machine reported, unless one is known.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn learn_uuid(&self, host_id: i64, uuid: &str) -> Result<()> {
        sqlx::query("UPDATE hosts SET uuid = ? WHERE id = ? AND uuid IS NULL")
            .bind(uuid)
            .bind(host_id)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Remembers which cipher suite a BMC takes.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn set_bmc_cipher(&self, host_id: i64, cipher: u8) -> Result<()> {
        sqlx::query("UPDATE hosts SET bmc_cipher = ? WHERE id = ?")
            .bind(i64::from(cipher))
            .bind(host_id)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Remembers that a BMC refused its user or password.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn set_bmc_refused(&self, host_id: i64) -> Result<()> {
        sqlx::query("UPDATE hosts SET bmc_refused = 1 WHERE id = ?")
            .bind(host_id)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Remembers a machine that is no host. Of more than 1,000 the longest unseen is forgotten.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn see_machine(&self, mac: Mac, uuid: Option<&str>) -> Result<()> {
        let mut tx = self.write().await?;
        sqlx::query(
            "INSERT INTO seen_machines (mac, uuid, first_ms, last_ms, times) VALUES (?1, ?2, ?3, ?3, 1)
             ON CONFLICT (mac) DO UPDATE SET uuid = coalesce(?2, uuid), last_ms = ?3, times = times + 1",
        )
        .bind(mac.to_string())
        .bind(uuid)
        .bind(now_ms())
        .execute(&mut *tx)
        .await?;
        sqlx::query(
            "DELETE FROM seen_machines WHERE mac IN
             (SELECT mac FROM seen_machines ORDER BY last_ms DESC, mac LIMIT -1 OFFSET ?)",
        )
        .bind(SEEN_MAX)
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(())
    }

    /// Machines that are no hosts, the newest first.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn seen_machines(&self) -> Result<Vec<SeenMachine>> {
        Ok(sqlx::query_as("SELECT * FROM seen_machines ORDER BY last_ms DESC")
            .fetch_all(&self.pool)
            .await?)
    }
}

async fn set_bmc(tx: &mut sqlx::SqliteConnection, id: i64, bmc: &BmcRow) -> Result<()> {
    match bmc {
        BmcRow::Manual => {
            sqlx::query(
                "UPDATE hosts SET bmc_driver = 'manual', bmc_host = NULL, bmc_port = NULL, bmc_user = NULL,
                        bmc_password = NULL, bmc_cipher = NULL, bmc_refused = 0 WHERE id = ?",
            )
            .bind(id)
            .execute(tx)
            .await?;
        }
        BmcRow::Ipmi { host, port, user, password, cipher, refused } => {
            sqlx::query(
                "UPDATE hosts SET bmc_driver = 'ipmi', bmc_host = ?, bmc_port = ?, bmc_user = ?, bmc_password = ?,
                        bmc_cipher = ?, bmc_refused = ? WHERE id = ?",
            )
            .bind(host)
            .bind(i64::from(*port))
            .bind(user)
            .bind(password)
            .bind(cipher.map(i64::from))
            .bind(*refused)
            .bind(id)
            .execute(tx)
            .await?;
        }
    }
    Ok(())
}

fn host_of_row(row: &sqlx::sqlite::SqliteRow) -> Result<Host> {
    let text = |column: &str| row.try_get::<String, _>(column);
    let driver = text("bmc_driver")?;
    let bmc = match driver.as_str() {
        "manual" => BmcRow::Manual,
        "ipmi" => {
            let port: i64 = row.try_get("bmc_port")?;
            let cipher: Option<i64> = row.try_get("bmc_cipher")?;
            BmcRow::Ipmi {
                host: text("bmc_host")?,
                port: u16::try_from(port).map_err(|_| content("port", port.to_string()))?,
                user: text("bmc_user")?,
                password: row.try_get("bmc_password")?,
                cipher: cipher.and_then(|c| u8::try_from(c).ok()),
                refused: row.try_get("bmc_refused")?,
            }
        }
        _ => return Err(content("BMC driver", driver)),
    };
    let (ip, firmware, finish): (Option<String>, _, _) =
        (row.try_get("ip")?, text("firmware")?, text("finish")?);
    Ok(Host {
        id: row.try_get("id")?,
        name: text("name")?,
        macs: Vec::new(),
        ip: ip.map(|ip| ip.parse().map_err(|_| content("address", ip))).transpose()?,
        firmware: Firmware::from_text(&firmware).ok_or_else(|| content("firmware", firmware))?,
        finish: Finish::from_text(&finish).ok_or_else(|| content("finish", finish))?,
        kernel_args: text("kernel_args")?,
        notes: text("notes")?,
        uuid: row.try_get("uuid")?,
        bmc,
        created_ms: row.try_get("created_ms")?,
    })
}
