-- Times are milliseconds since 1970-01-01 UTC. Secrets are stored as SHA-256 (tokens, tickets, credentials) or sealed with the key
-- file beside the database (BMC passwords).

CREATE TABLE hosts (
    id           INTEGER PRIMARY KEY,
    name         TEXT NOT NULL UNIQUE,
    ip           TEXT UNIQUE,
    firmware     TEXT NOT NULL,
    finish       TEXT NOT NULL,
    kernel_args  TEXT NOT NULL,
    notes        TEXT NOT NULL,
    uuid         TEXT,
    bmc_driver   TEXT NOT NULL,
    bmc_host     TEXT,
    bmc_port     INTEGER,
    bmc_user     TEXT,
    bmc_password BLOB,
    -- The cipher suite that worked, so that it is probed once.
    bmc_cipher   INTEGER,
    -- Set by one wrong-password answer, cleared by new credentials: nothing is sent to the BMC meanwhile.
    bmc_refused  INTEGER NOT NULL DEFAULT 0,
    created_ms   INTEGER NOT NULL
) STRICT;

CREATE TABLE host_macs (
    mac      TEXT PRIMARY KEY,
    host_id  INTEGER NOT NULL REFERENCES hosts (id) ON DELETE CASCADE,
    position INTEGER NOT NULL
) STRICT;
CREATE INDEX host_macs_of_host ON host_macs (host_id);

-- Machines that asked for a boot script and are no host of ours. Bounded by the code that writes it.
CREATE TABLE seen_machines (
    mac      TEXT PRIMARY KEY,
    uuid     TEXT,
    first_ms INTEGER NOT NULL,
    last_ms  INTEGER NOT NULL,
    times    INTEGER NOT NULL
) STRICT;

CREATE TABLE images (
    id           INTEGER PRIMARY KEY,
    name         TEXT NOT NULL UNIQUE,
    url          TEXT NOT NULL,
    root         TEXT NOT NULL,
    image_id     TEXT,
    disk_bytes   INTEGER,
    used_bytes   INTEGER,
    stored_bytes INTEGER,
    host         TEXT,
    job_id       INTEGER REFERENCES jobs (id) ON DELETE SET NULL,
    created_ms   INTEGER NOT NULL
) STRICT;

CREATE TABLE jobs (
    id              INTEGER PRIMARY KEY AUTOINCREMENT,
    action          TEXT NOT NULL,
    host_id         INTEGER REFERENCES hosts (id) ON DELETE SET NULL,
    host            TEXT NOT NULL,
    image           TEXT NOT NULL,
    image_url       TEXT NOT NULL,
    disk            TEXT,
    options         TEXT NOT NULL,
    shutdown        TEXT NOT NULL,
    state           TEXT NOT NULL,
    state_since_ms  INTEGER NOT NULL,
    stalled         INTEGER NOT NULL DEFAULT 0,
    needs_attention TEXT,
    cancel_asked_ms INTEGER,
    -- Grows by one with every power-up of the machine for this job.
    generation      INTEGER NOT NULL DEFAULT 0,
    -- How often the agent's boot files were handed out, and how often they may be.
    boots           INTEGER NOT NULL DEFAULT 0,
    boot_budget     INTEGER NOT NULL,
    outcome         TEXT,
    -- The agent was told how to leave.
    dismissed       INTEGER NOT NULL DEFAULT 0,
    failure_kind    TEXT,
    failure_message TEXT,
    created_by      TEXT NOT NULL,
    created_ms      INTEGER NOT NULL,
    finished_ms     INTEGER
) STRICT;
CREATE INDEX jobs_by_state ON jobs (state);
CREATE UNIQUE INDEX jobs_one_active_per_host ON jobs (host_id)
    WHERE state NOT IN ('succeeded', 'failed', 'cancelled');
CREATE UNIQUE INDEX jobs_one_active_capture_per_image ON jobs (image)
    WHERE action = 'capture' AND state NOT IN ('succeeded', 'failed', 'cancelled');

-- What happened to a job, in order: transitions (with both states), alarms, notes.
CREATE TABLE job_events (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    job_id     INTEGER NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    at_ms      INTEGER NOT NULL,
    kind       TEXT NOT NULL,
    from_state TEXT,
    to_state   TEXT,
    actor      TEXT NOT NULL,
    cause      TEXT NOT NULL
) STRICT;
CREATE INDEX job_events_of_job ON job_events (job_id, id);

-- The newest ticket of a job; minting another replaces it.
CREATE TABLE tickets (
    job_id      INTEGER PRIMARY KEY REFERENCES jobs (id) ON DELETE CASCADE,
    -- Which boot of the job it is for.
    boot        INTEGER NOT NULL,
    secret_hash BLOB NOT NULL UNIQUE,
    expires_ms  INTEGER NOT NULL,
    boot_id     TEXT
) STRICT;

-- One boot of the agent that redeemed its ticket. The newest of a job is the only valid one.
CREATE TABLE sessions (
    id              INTEGER PRIMARY KEY,
    job_id          INTEGER NOT NULL UNIQUE REFERENCES jobs (id) ON DELETE CASCADE,
    boot_id         TEXT NOT NULL,
    credential_hash BLOB NOT NULL UNIQUE,
    machine         TEXT NOT NULL,
    created_ms      INTEGER NOT NULL,
    last_seen_ms    INTEGER NOT NULL,
    revoked         INTEGER NOT NULL DEFAULT 0
) STRICT;

-- Stored before the BMC is asked; `done_ms` when its effect was seen. A row without it is looked at before anything is repeated.
CREATE TABLE power_actions (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    host_id     INTEGER NOT NULL REFERENCES hosts (id) ON DELETE CASCADE,
    job_id      INTEGER REFERENCES jobs (id) ON DELETE CASCADE,
    generation  INTEGER NOT NULL,
    action      TEXT NOT NULL,
    intended_ms INTEGER NOT NULL,
    done_ms     INTEGER,
    result      TEXT
) STRICT;
CREATE INDEX power_actions_of_job ON power_actions (job_id, generation);

CREATE TABLE tokens (
    id           INTEGER PRIMARY KEY,
    name         TEXT NOT NULL UNIQUE,
    hash         BLOB NOT NULL UNIQUE,
    created_ms   INTEGER NOT NULL,
    last_used_ms INTEGER
) STRICT;

CREATE TABLE idempotency_keys (
    token_id   INTEGER NOT NULL REFERENCES tokens (id) ON DELETE CASCADE,
    key        TEXT NOT NULL,
    body_hash  BLOB NOT NULL,
    job_id     INTEGER NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    created_ms INTEGER NOT NULL,
    PRIMARY KEY (token_id, key)
) STRICT;
